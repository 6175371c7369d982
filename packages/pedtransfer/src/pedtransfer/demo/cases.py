"""What is ranked: for each target the features of every model, and the accuracies that fine-tuning gave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pedtransfer.demo.data import mnist, targets
from pedtransfer.demo.hub import RECIPES, pretrain
from pedtransfer.demo.truth import true_accuracy
from pedtransfer.extraction import extract_features
from pedtransfer.reference import ReferenceStats

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Case:
    """One target.

    Args:
        name: What it is.
        features: By model, (N, D).
        references: By model.
        labels: (N,).
        accuracies: By model, in per cent.
        rates: By model, the learning rate that fine-tuning chose.
        extraction_seconds: Mean time of a model's features.
        epoch_seconds: Mean time of an epoch of fine-tuning; None where it was not measured.
    """

    name: str
    features: dict[str, Tensor]
    references: dict[str, ReferenceStats]
    labels: Tensor
    accuracies: dict[str, float]
    rates: dict[str, float]
    extraction_seconds: float
    epoch_seconds: float | None


@dataclass(frozen=True)
class Size:
    """How much a preset trains.

    Args:
        models: How many of the recipes, spread over their list.
        pretraining: Epochs in place of the recipes', or None.
        train: Labelled images of each target.
        valid: Images to choose rates by.
        test: Images to judge by.
        epochs: Of fine-tuning.
        seeds: Of fine-tuning.
        targets: How many targets, from the last.
    """

    models: int
    pretraining: float | None
    train: int
    valid: int
    test: int
    epochs: int
    seeds: int
    targets: int


SIZES = {
    "smoke": Size(4, 0.2, 100, 40, 60, 1, 1, 2),
    "laptop": Size(12, None, 500, 500, 1000, 5, 3, 3),
}


def digits(size: Size, seed: int, device: str, report: Progress) -> list[Case]:
    """Pretrain the hub, fine-tune all of it on every target, and extract its features.

    Args:
        size: How much.
        seed: Of everything.
        device: A torch device.
        report: Called as `report(fraction, message)`.

    Returns:
        The targets.
    """
    generator = torch.Generator().manual_seed(seed)
    images, digit = mnist()
    source = digit < 5
    x, y = images[source].to(device), digit[source].to(device)
    names = list(RECIPES)[:: len(RECIPES) // size.models][: size.models]
    hub, references = {}, {}
    for index, name in enumerate(names):
        hub[name] = pretrain(RECIPES[name], x, y, 1000 * seed + index, size.pretraining)
        corpus, _ = extract_features(hub[name], _loader(x, y))
        references[name] = ReferenceStats.from_features(corpus)
        report(0.2 * (index + 1) / len(names), f"pretrained: {name}")
    found = []
    chosen = targets(images, digit, (size.train, size.valid, size.test), generator)[-size.targets :]
    for place, target in enumerate(chosen):
        truth = {}
        for index, name in enumerate(names):
            seeds = [1000 * seed + run for run in range(size.seeds)]
            truth[name] = true_accuracy(hub[name], target.to(device), size.epochs, seeds)
            done = (place + (index + 1) / len(names)) / len(chosen)
            report(0.2 + 0.8 * done, f"{target.name}: fine-tuned {name}")
        loader = _loader(*target.train)
        start = time.perf_counter()
        features = {name: extract_features(model, loader)[0] for name, model in hub.items()}
        seconds = (time.perf_counter() - start) / len(hub)
        found.append(
            Case(
                target.name,
                features,
                references,
                target.train[1],
                {name: accuracy for name, (accuracy, _, _) in truth.items()},
                {name: rate for name, (_, rate, _) in truth.items()},
                seconds,
                sum(epoch for _, _, epoch in truth.values()) / len(truth),
            )
        )
    return found


def _loader(x: Tensor, y: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    # With a generator of its own, or it draws a seed from torch's.
    return DataLoader(TensorDataset(x, y), batch_size=250, generator=torch.Generator())


def own_features(report: Progress) -> list[Case]:
    """Read features that the user extracted, and accuracies that fine-tuning gave.

    The folder that PEDTRANSFER_FEATURES names holds `accuracies.json`, {data set: {model: per cent}}, and for each of
    them `{model}_{data set}_feature.npy` and `{model}_{data set}_label.npy`, with `{model}_imagenet_feature.npy`.

    Args:
        report: Called as `report(fraction, message)`.

    Returns:
        One target for each data set.

    Raises:
        ValueError: If the folder is not named, or a file is missing.
    """
    folder = Path(os.environ.get("PEDTRANSFER_FEATURES", ""))
    if not (folder / "accuracies.json").is_file():
        raise ValueError(
            "paper needs PEDTRANSFER_FEATURES, a folder with accuracies.json and the features "
            f"{{model}}_{{data set}}_feature.npy, got {str(folder)!r}"
        )
    truth: dict[str, dict[str, float]] = json.loads((folder / "accuracies.json").read_text())
    references: dict[str, ReferenceStats] = {}
    found = []
    for place, (dataset, accuracies) in enumerate(truth.items()):
        start = time.perf_counter()
        features = {}
        for model in accuracies:
            features[model] = _read(folder, f"{model}_{dataset}_feature.npy")
            if model not in references:
                corpus = _read(folder, f"{model}_imagenet_feature.npy")
                references[model] = ReferenceStats.from_features(corpus)
        labels = _read(folder, f"{next(iter(accuracies))}_{dataset}_label.npy").long()
        seconds = (time.perf_counter() - start) / len(accuracies)
        found.append(Case(dataset, features, references, labels, accuracies, {}, seconds, None))
        report((place + 1) / len(truth), f"read {dataset}")
    return found


def _read(folder: Path, name: str) -> Tensor:
    if not (folder / name).is_file():
        raise ValueError(
            f"PEDTRANSFER_FEATURES must hold {name}, got {sorted(p.name for p in folder.iterdir())}"
        )
    return torch.from_numpy(np.load(folder / name, allow_pickle=False))
