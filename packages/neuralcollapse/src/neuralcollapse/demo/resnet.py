"""The paper's own network: ResNet-18 for small images, trained one arm after another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from neuralcollapse.demo.arms import Arm, Trace, matched_arm
from neuralcollapse.demo.data import Data
from neuralcollapse.demo.networks import Training
from neuralcollapse.meter import NCMeter


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images, without a bias in the head."""

    def __init__(self, num_classes: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage, (before, after) in enumerate(pairwise(sizes)):
            blocks += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
        self.body = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 * width, num_classes, bias=False)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    weight = module.weight
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.copy_(noise * (2 / weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train_resnets(
    data: Data,
    width: int,
    arms: list[Arm],
    training: Training,
    generator: torch.Generator,
    report: Callable[[float, str], None],
) -> dict[Arm, Trace]:
    """One network per arm, all from the same weights and on the same batches; the arm of equal penalty last."""
    traces: dict[Arm, Trace] = {}
    state = generator.get_state()
    for number in range(len(arms) + 1):
        arm = arms[number] if number < len(arms) else matched_arm(traces[arms[0]])
        generator.set_state(state)

        def report_arm(fraction: float, message: str, number: int = number, arm: Arm = arm) -> None:
            report((number + fraction) / (len(arms) + 1), f"{arm.name}: {message}")

        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights that are then replaced
            model = ResNet18(data.num_classes, width, generator).to(data.train_x.device)
        traces[arm] = _train(model, data, arm, training, generator, report_arm)
    return traces


def _train(
    model: ResNet18,
    data: Data,
    arm: Arm,
    training: Training,
    generator: torch.Generator,
    report: Callable[[float, str], None],
) -> Trace:
    groups = [
        {"params": model.body.parameters(), "weight_decay": arm.features * training.weight_decay},
        {"params": model.head.parameters(), "weight_decay": arm.head * training.weight_decay},
    ]
    optimizer = torch.optim.SGD(groups, training.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, training.milestones)
    loader = list(zip(data.train_x.split(500), data.train_y.split(500), strict=True))
    meter = NCMeter(model, layers=[], head="head")
    targets = one_hot(data.train_y, data.num_classes).to(data.train_x.dtype)
    trace = Trace()
    for epoch in range(1, training.num_epochs + 1):
        model.train()
        for rows in (
            torch.randperm(len(targets), generator=generator).to(targets.device).split(training.batch_size)
        ):
            loss = (model(data.train_x[rows]) - targets[rows]).square().sum(1).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if training.is_look(epoch):
            found = meter.run(loader, passes=1)["head"]
            trace.look(epoch, found.stats, model.head.weight.detach().double())
        report(epoch / training.num_epochs, f"epoch {epoch}")
    trace.train_accuracy = _accuracy(model, data.train_x, data.train_y)
    trace.test_accuracy = _accuracy(model, data.test_x, data.test_y)
    trace.features_norm, trace.head_norm = (
        sum(float(parameter.detach().square().sum()) for parameter in part.parameters())
        for part in (model.body, model.head)
    )
    return trace


@torch.no_grad()
def _accuracy(model: ResNet18, x: Tensor, y: Tensor) -> float:
    model.eval()
    right = [
        model(images).argmax(1) == labels for images, labels in zip(x.split(500), y.split(500), strict=True)
    ]
    return 100 * float(torch.cat(right).double().mean())
