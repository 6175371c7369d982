"""The demo's data sets, each with the distance its samples are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Data:
    """Training and held-out data of standard deviation about 0.5, and a distance between samples."""

    name: str
    describe: str
    measure: str
    training: Tensor
    held_out: Tensor
    distance: Callable[[Tensor, Tensor], float]
    is_image: bool = False
    dropout: float = 0.0

    @property
    def floor(self) -> float:
        """The distance of as many training data."""
        return self.distance(self.training[: len(self.held_out)], self.held_out)


def eight_gaussians(count: int, generator: torch.Generator) -> Data:
    """Eight small Gaussians on a circle."""
    angles = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    points = torch.stack([angles.cos(), angles.sin()], 1) * 0.7
    return _plane("8 Gaussians", points + 0.05 * torch.randn(count, 2, generator=generator))


def two_moons(count: int, generator: torch.Generator) -> Data:
    """Two interleaved half circles."""
    angle = math.pi * torch.rand(count, generator=generator)
    side = torch.randint(2, (count,), generator=generator) * 2 - 1.0
    points = torch.stack([side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)], 1)
    points = points + 0.05 * torch.randn(count, 2, generator=generator)
    return _plane("two moons", points * (0.5 / points.std()))


def digits(generator: torch.Generator) -> Data:
    """The 8 x 8 digits of scikit-learn, in [-1, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the laptop preset needs scikit-learn: pip install 'improvedct[demo]'") from error
    values, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(values), generator=generator)
    images = (torch.from_numpy(values).float() / 8 - 1)[order]
    classes = torch.from_numpy(labels).long()[order]
    images = images * (0.5 / images.std())
    distance = frechet_distance(images[:1200], classes[:1200], generator)
    describe = "scikit-learn's 8 x 8 digits, 1,200 for training, 597 held out"
    measure = "Frechet distance in the features of a classifier of the training digits"
    return Data("digits", describe, measure, images[:1200], images[1200:], distance, is_image=True)


def folder(path: str, generator: torch.Generator, num_steps: int = 400) -> Data:
    """Images and labels of a safetensors file, the last fifth held out."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("the paper preset needs safetensors: pip install 'improvedct[demo]'") from error
    tensors = load_file(path)
    images, labels = tensors["images"].float() / 127.5 - 1, tensors["labels"].long()
    order = torch.randperm(len(images), generator=generator)
    images, labels = images[order], labels[order]
    cut = len(images) * 4 // 5
    distance = frechet_distance(images[:cut], labels[:cut], generator, num_steps)
    measure = "Frechet distance in the features of a classifier of the training images"
    return Data("CIFAR-10", path, measure, images[:cut], images[cut:], distance, is_image=True, dropout=0.3)


def fitted_gaussian(data: Data, count: int, generator: torch.Generator) -> Tensor:
    """Samples of the normal law with the mean and the covariance of the training data."""
    flat = data.training.flatten(1).double()
    noise = torch.randn(count, flat.shape[1], generator=generator, dtype=flat.dtype)
    samples = flat.mean(0) + noise @ _root(flat.T.cov())
    return samples.view(count, *data.training.shape[1:]).to(data.training.dtype)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'|, zero between equal distributions."""
    cross = torch.cdist(a, b).mean()
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return max((2 * cross - within[0] - within[1]).item(), 1e-6)


def frechet_distance(
    images: Tensor, labels: Tensor, generator: torch.Generator, num_steps: int = 400
) -> Callable[[Tensor, Tensor], float]:
    """Train a small classifier; return the Frechet distance in its penultimate features."""
    first, second, third = (
        _layer(images[0].numel(), 128, generator),
        _layer(128, 64, generator),
        _layer(64, 10, generator),
    )
    features = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
    network = nn.Sequential(features, third)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(num_steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        noisy = images[rows] + 0.1 * torch.randn(images[rows].shape, generator=generator)
        loss = nn.functional.cross_entropy(network(noisy), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> float:
        moments = [(f.mean(0), f.T.cov()) for f in (features(x).double() for x in (a, b))]
        (mean_a, cov_a), (mean_b, cov_b) = moments
        root = _root(cov_a)
        # tr sqrt(A B) is the sum of the roots of the eigenvalues of sqrt(A) B sqrt(A).
        cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
        scale = cov_b.trace()
        gap = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
        return max((gap / scale).item(), 1e-6)

    return distance


def _plane(name: str, points: Tensor) -> Data:
    held_out = min(2000, len(points) // 4)
    describe = f"{len(points) - held_out:,} points in the plane, {held_out:,} held out"
    training, unseen = points[:-held_out], points[-held_out:]
    return Data(name, describe, "energy distance", training, unseen, energy_distance)


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.normal_(0, (2 / inputs) ** 0.5, generator=generator)
        layer.bias.zero_()
    return layer


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
