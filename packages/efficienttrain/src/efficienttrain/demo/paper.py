"""The paper's own setting: a timm model on ImageNet, EfficientTrain++ at 200 epochs' compute against 300 epochs."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from efficienttrain.batches import CurriculumBatches
from efficienttrain.curriculum import Curriculum
from efficienttrain.demo.judgement import condition
from efficienttrain.transforms import MagnitudeTransform, magnitude_to_timm

Progress = Callable[[float, str], None]

BASELINE, METHOD = "300 epochs at full size", "EfficientTrain++, 200 epochs' compute"


@dataclass(frozen=True)
class Recipe:
    """What the two runs share.

    Attributes:
        model: timm's name; a transformer needs `dynamic_img_size`, which is asked for.
        size: Side of the images.
        batch_size: Images a step.
        baseline_epochs: Epochs at full size.
        method_epochs: Epochs at full size that cost what the curriculum may.
        warm_up_epochs: Of the learning rate.
        num_workers: Of each loader.
    """

    model: str = "resnet50"
    size: int = 224
    batch_size: int = 1024
    baseline_epochs: int = 300
    method_epochs: int = 200
    warm_up_epochs: int = 20
    num_workers: int = 10


def imagenet(seed: int, device: str, report: Progress) -> dict[str, Any]:
    """Run both on the folder of EFFICIENTTRAIN_IMAGENET, `train` and `val`; EFFICIENTTRAIN_MODEL names the model.

    Raises:
        ValueError: If the variable or the folders are missing.
        ImportError: If timm is missing.
    """
    root = os.environ.get("EFFICIENTTRAIN_IMAGENET")
    if not root or not all(Path(root, part).is_dir() for part in ("train", "val")):
        raise ValueError(
            "EFFICIENTTRAIN_IMAGENET must name a folder with train/CLASS/IMAGE and val/CLASS/IMAGE for the paper "
            f"preset, got {root!r}"
        )
    if importlib.util.find_spec("timm") is None:
        raise ImportError("the paper preset needs timm: pip install 'efficienttrain[paper]'")
    return compare(
        Path(root), Recipe(os.environ.get("EFFICIENTTRAIN_MODEL", "resnet50")), seed, device, report
    )


def compare(root: Path, recipe: Recipe, seed: int, device: str, report: Progress) -> dict[str, Any]:
    """Train the model both ways and judge."""
    family = _family(recipe.model)
    runs = [
        (BASELINE, "baseline", Curriculum.constant(recipe.size), recipe.baseline_epochs),
        (METHOD, "method", Curriculum.plus_plus(recipe.size, family, multiple_of=16), recipe.method_epochs),
    ]
    rows: list[dict[str, Any]] = []
    over_time = {}
    for index, (name, role, curriculum, epochs) in enumerate(runs):

        def tell(fraction: float, message: str, index: int = index, name: str = name) -> None:
            report((index + fraction) / 2, f"{name}: {message}")

        curve = _train(root, recipe, curriculum, epochs, seed, device, tell)
        rows.append({"name": name, "role": role, "accuracy": curve[-1][1], "hours": curve[-1][0]})
        over_time[name] = {"x": [hours for hours, _ in curve], "y": [accuracy for _, accuracy in curve]}
    baseline, method = rows
    verdict = [
        condition(
            "EfficientTrain++ takes less time", lambda: baseline["hours"] / method["hours"], ">= 1.3 times"
        ),
        condition(
            "EfficientTrain++ loses little",
            lambda: method["accuracy"] - baseline["accuracy"],
            ">= -0.5 points",
        ),
    ]
    report(1.0, "done")
    return {
        "claim": "EfficientTrain++ reaches the accuracy of 300 epochs in two thirds of the time.",
        "setting": {"data": str(root), "model": recipe.model, "budget": str(recipe)},
        "metrics": {
            "accuracy": {"unit": "%", "better": "higher"},
            "hours": {"unit": "h", "better": "lower"},
        },
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [
            {
                "title": "Accuracy over time",
                "x_label": "training time (h)",
                "y_label": "accuracy at full size (%)",
                "series": over_time,
            }
        ],
        "images": [],
    }


def _train(
    root: Path, recipe: Recipe, curriculum: Curriculum, epochs: int, seed: int, device: str, report: Progress
) -> list[tuple[float, float]]:
    """The DeiT and ConvNeXt recipe: AdamW, cosine, mixup and cutmix, label smoothing, random erasing."""
    timm = _timm("timm")

    augment = MagnitudeTransform(lambda magnitude: _augmentation(recipe.size, magnitude))
    train, held_out = _loaders(root, recipe, augment, seed)
    dynamic = {"dynamic_img_size": True} if _family(recipe.model) == "deit" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        num_classes = len(train.dataset.classes)  # type: ignore[attr-defined]
        model = timm.create_model(recipe.model, num_classes=num_classes, **dynamic).to(device)
    rate = 4e-3 * recipe.batch_size / 4096
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    mixup = _timm("timm.data").Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=num_classes
    )
    criterion = _timm("timm.loss").SoftTargetCrossEntropy()
    batches = CurriculumBatches(train, curriculum, epochs * len(train), device=device, augment=augment)
    warm_up = recipe.warm_up_epochs / epochs
    every = max(len(batches) // 20, 1)
    curve, seconds, start = [], 0.0, time.perf_counter()
    for images, labels, _ in batches:
        progress = batches.progress
        along = max(progress - warm_up, 0.0) / max(1 - warm_up, 1e-9)
        factor = min(1.0, (progress + 1e-3) / warm_up) if warm_up else 1.0
        scale = 0.5 * (1 + math.cos(math.pi * along))
        optimizer.param_groups[0]["lr"] = rate * factor * scale
        model.train()
        images, targets = mixup(images, labels)
        loss = criterion(model(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if batches.step % every == 0 or batches.step == len(batches):
            seconds += time.perf_counter() - start
            curve.append((seconds / 3600, _accuracy(model, held_out, device)))
            report(batches.step / len(batches), f"{curve[-1][1]:.1f} %")
            start = time.perf_counter()
    return curve


def _loaders(
    root: Path, recipe: Recipe, augment: MagnitudeTransform, seed: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    from torchvision.datasets import ImageFolder  # type: ignore[import-not-found, import-untyped, unused-ignore]

    evaluation = _timm("timm.data").create_transform(recipe.size, is_training=False)
    options: dict[str, Any] = {
        "num_workers": recipe.num_workers,
        "persistent_workers": recipe.num_workers > 0,
    }
    generator = torch.Generator().manual_seed(seed)
    train = DataLoader(
        ImageFolder(str(root / "train"), augment),
        recipe.batch_size,
        shuffle=True,
        drop_last=True,
        generator=generator,
        **options,
    )
    return train, DataLoader(ImageFolder(str(root / "val"), evaluation), recipe.batch_size, **options)


def _augmentation(size: int, magnitude: float) -> Callable[..., Any]:
    found: Callable[..., Any] = _timm("timm.data").create_transform(
        size,
        is_training=True,
        auto_augment=magnitude_to_timm(magnitude),
        re_prob=0.25,
        interpolation="bicubic",
    )
    return found


@torch.no_grad()
def _accuracy(model: nn.Module, loader: DataLoader[Any], device: str) -> float:
    model.eval()
    right = torch.zeros((), device=device)
    for images, labels in loader:
        right += (model(images.to(device)).argmax(1) == labels.to(device)).sum()
    return 100 * right.item() / len(loader.dataset)  # type: ignore[arg-type, operator]


def _family(model: str) -> str:
    if model.startswith(("deit", "vit")):
        return "deit"
    return "convnext" if model.startswith("convnext") else "default"


def _timm(name: str) -> Any:
    """A module of timm, as one without types: which of its names are public differs between versions."""
    return importlib.import_module(name)
