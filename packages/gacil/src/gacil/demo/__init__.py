"""The evidence: a blurry stream of handwritten digits, learnt in one pass and batches of ten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gacil.demo.comparison import JOINT, OURS, compare, enter, metrics
from gacil.demo.curves import accuracy_curve, blurriness_curve, rounding_curve
from gacil.demo.features import frozen_features
from gacil.demo.progress import Report, section, silent
from gacil.demo.settings import PRESETS, Settings
from gacil.demo.streaming import stream

__all__ = ["conditions", "demo"]

_CLAIM = (
    "On a blurry class-incremental stream, learnt in one pass without stored samples, the analytic classifier "
    "predicts exactly as ridge regression trained jointly on all data, and stays ahead of the exemplar-free "
    "online heads on the same features all along the stream."
)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Hold G-ACIL against online heads, nearest class mean and joint training on the same features.

    `smoke` and `laptop` use 5,000 MNIST images (extra `gacil[demo]`), as pixels and as features of a small
    network trained on digits 0-4 and frozen. `paper` reads the user's features, e.g. of a pre-trained
    vision transformer, from the safetensors file named by the environment variable `GACIL_FEATURES`, with
    the tensors `train_features`, `train_labels`, `test_features`, `test_labels`; or from a folder of that
    name with four `.npy` files named so.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The claim, its setting, a row per method, the conditions of the claim, and curves, as plain values.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` finds no features.
        ImportError: If the extra is missing.
        RuntimeError: If the analytic classifier's predictions differ from joint training on more than 0.1%
            of the test set: the theorem would be false or the code broken.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    settings = PRESETS[preset]
    report: Report = progress if progress is not None else silent
    generator = torch.Generator().manual_seed(seed)
    report(0.0, "features")
    feature_sets = frozen_features(preset, settings, generator, torch.device(device))

    rows: dict[str, dict[str, Any]] = {}
    curves = []
    for index, (features, data) in enumerate(feature_sets.items()):
        span = 0.65 / len(feature_sets)
        steps = stream(data.train_y, settings.batch_size, settings.steps_per_measurement, generator)
        part = section(report, 0.05 + index * span, span, features)
        traces = compare(data, steps, settings, seed, part)
        enter(rows, traces, features)
        curves.append(accuracy_curve(traces, features))

    name, data = next(iter(feature_sets.items()))
    curves.append(rounding_curve(data, settings, generator, section(report, 0.7, 0.1, name)))
    final = rows[OURS][f"A_last, {name}"]
    curves.append(blurriness_curve(data, final, settings, seed, section(report, 0.8, 0.2, name)))
    report(1.0, "done")

    judged = conditions(list(rows.values()))
    return {
        "claim": _CLAIM,
        "setting": _setting(settings, preset, list(feature_sets)),
        "metrics": metrics(list(feature_sets)),
        "rows": list(rows.values()),
        "conditions": judged,
        "holds": all(condition["holds"] for condition in judged),
        "curves": curves,
    }


def conditions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the claim by the rows of the table, two conditions for each set of features.

    Args:
        rows: A row per method, as `demo` or its JSON has them; a baseline with stored samples says so in its
            name and does not count.

    Returns:
        What each condition says, the figure measured, what it needs and whether it holds.

    Raises:
        ValueError: If the rows hold no set of features.
    """
    by_name = {row["name"]: row for row in rows}
    rivals = [row["name"] for row in rows if row["role"] == "baseline" and "stored" not in row["name"]]
    start = "A_AUC, "
    feature_sets = [key.removeprefix(start) for key in by_name.get(OURS, {}) if key.startswith(start)]
    if not feature_sets:
        raise ValueError(f"rows must hold A_AUC of {OURS} on a set of features, got {sorted(by_name)}")
    found = []
    for features in feature_sets:
        metric = f"{start}{features}"
        margin = _margin(by_name[OURS].get(metric), [by_name[name].get(metric) for name in rivals])
        found.append(
            {
                "says": f"On {features}, A_AUC of {OURS} is above that of each of {', '.join(rivals)}.",
                "figure": margin,
                "needs": "> 0 points",
                "holds": margin is not None and margin > 0,
            }
        )
        differing = by_name[OURS].get(f"differs from joint, {features}")
        found.append(
            {
                "says": f"On {features}, the final predictions of {OURS} are those of {JOINT}.",
                "figure": differing,
                "needs": "<= 0.1 % of the test set",
                "holds": differing is not None and differing <= 0.1,
            }
        )
    return found


def _margin(ours: float | None, theirs: list[float | None]) -> float | None:
    """By how much ours is above the best of theirs; None if one is missing."""
    measured = [value for value in theirs if value is not None]
    if ours is None or not measured or len(measured) < len(theirs):
        return None
    return ours - max(measured)


def _setting(settings: Settings, preset: str, feature_sets: list[str]) -> dict[str, str]:
    data = "features given by the user"
    if preset != "paper":
        data = f"MNIST, {10 * settings.train_per_class} training, {10 * settings.test_per_class} test images"
    return {
        "data": f"{data}; Si-Blurry: 5 tasks, half of the classes disjoint, 10% of the others' samples scattered",
        "model": f"a fixed random layer of {settings.buffer_size} ReLU features on frozen features "
        f"({', '.join(feature_sets)}), then one linear classifier; the same input for all methods",
        "budget": f"one pass in batches of {settings.batch_size}, measured every "
        f"{settings.batch_size * settings.steps_per_measurement} samples and at task ends; G-ACIL at the "
        f"fixed gamma {settings.gamma:g}; online heads at the best of {settings.num_learning_rates} "
        f"learning rates, chosen by A_AUC on the test set",
    }
