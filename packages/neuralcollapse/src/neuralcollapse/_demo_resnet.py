"""The paper's own experiment: ResNet-18 on CIFAR-10, read from the user's copy of the binary version."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from neuralcollapse._demo_networks import Arm, Data, Trace, Training
from neuralcollapse.meter import NCMeter

FOLDER = "NEURALCOLLAPSE_CIFAR10"
_RECORD = 1 + 3 * 32 * 32


def cifar10() -> Data:
    """CIFAR-10 from the folder that the environment variable names, each channel standardised."""
    folder = Path(os.environ.get(FOLDER, ""))
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    missing = [name for name in [*names, "test_batch.bin"] if not (folder / name).is_file()]
    if not os.environ.get(FOLDER) or missing:
        raise ValueError(
            f"{FOLDER} must name a folder with CIFAR-10's binary version, got no {missing} in {folder}"
        )
    train_x, train_y = _read([folder / name for name in names])
    test_x, test_y = _read([folder / "test_batch.bin"])
    mean = train_x.mean((0, 2, 3), keepdim=True)
    scale = train_x.std((0, 2, 3), keepdim=True)
    return Data((train_x - mean) / scale, train_y, (test_x - mean) / scale, test_y, 10)


def _read(paths: list[Path]) -> tuple[Tensor, Tensor]:
    raw = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8)
    records = raw.view(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).float() / 255, records[:, 0].long()


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
) -> list[Trace]:
    """One network per arm, all from the same weights and on the same batches."""
    traces = []
    state = generator.get_state()
    for number, arm in enumerate(arms):
        generator.set_state(state)

        def report_arm(fraction: float, message: str, number: int = number, arm: Arm = arm) -> None:
            report((number + fraction) / len(arms), f"{arm.name}: {message}")

        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights that are then replaced
            model = ResNet18(data.num_classes, width, generator).to(data.train_x.device)
        traces.append(_train(model, data, arm, training, generator, report_arm))
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
    return trace


@torch.no_grad()
def _accuracy(model: ResNet18, x: Tensor, y: Tensor) -> float:
    model.eval()
    right = [
        model(images).argmax(1) == labels for images, labels in zip(x.split(500), y.split(500), strict=True)
    ]
    return 100 * float(torch.cat(right).double().mean())
