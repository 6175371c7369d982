"""The evidence: how much of the large batch's lost accuracy each tool brings back (Table 1 of the paper)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ghostbn.demo.arms import (
    ADAPTED,
    ADAPTED_PLAIN,
    DEFAULT_GHOST,
    DEFAULT_LARGE,
    DEFAULT_SMALL,
    GHOST,
    LARGE,
    PRESETS,
    ROLES,
    SCALED,
    SMALL,
    Preset,
)
from ghostbn.demo.bench import Bench
from ghostbn.demo.curves import accuracy_curves, belief_curves, sweep_curve, walk_curves
from ghostbn.demo.training import History


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Train a network with a small batch, with a large one, and with each tool added in turn.

    Table 1 of arXiv 1705.08741. `paper` is its ResNet-44 on CIFAR-10 at 4,096 samples per update and needs a GPU
    and the data set's binary version in the folder that the environment variable `GHOSTBN_CIFAR10` names.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ImportError: If `laptop` misses the `[demo]` extra.
        ValueError: If `preset` is not one of the three, or `paper` misses its data.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    bench = Bench(PRESETS[preset], seed, device, progress)
    arms = bench.arms()
    rows, swept, walks = _rows(arms), bench.sweep(arms), bench.walks()
    verdict = conditions(rows)
    return {
        "claim": (
            "A large batch loses test accuracy to a small one; the square-root learning rate and ghost batch "
            "normalisation win back a good part of it in the same epochs, and all of it with more updates."
        ),
        "setting": _setting(bench.preset),
        "metrics": {
            "accuracy": {"unit": "%", "better": "higher"},
            "gap_closed": {"unit": "% of small batch minus large batch", "better": "higher"},
            "epochs": {"unit": "", "better": "lower"},
            "updates": {"unit": "", "better": "lower"},
            "distance": {"unit": "norm of the weights' way from initialisation", "better": "neither"},
        },
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [*accuracy_curves(arms), *walk_curves(walks), sweep_curve(swept), *belief_curves(arms)],
    }


def conditions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause.

    Args:
        rows: The rows of a result, as JSON gives them.

    Returns:
        Per condition what it says, the figure that was measured (None if the rows lack it), the comparison that
        it needs, and whether that holds.

    Examples:
        >>> rows = [{"name": "small batch", "accuracy": 96.0}, {"name": "large batch", "accuracy": 93.0}]
        >>> conditions(rows)[0]
        {'says': 'small batch beats large batch', 'figure': 3.0, 'needs': '> 0 points', 'holds': True}
    """
    accuracy = {row["name"]: row.get("accuracy") for row in rows}

    def lead(name: str, other: str) -> float | None:
        first, second = accuracy.get(name), accuracy.get(other)
        return None if first is None or second is None else first - second

    gap, won = lead(SMALL, LARGE), lead(GHOST, LARGE)
    closed = None if gap is None or won is None or gap <= 0 else 100 * won / gap
    return [
        _condition(f"{SMALL} beats {LARGE}", gap, operator.gt, "> 0 points"),
        # A third, rounded where no count of test samples can tell the difference.
        _condition(
            f"{GHOST} closes a third of the gap in the same epochs", closed, operator.ge, ">= 33.3333 %"
        ),
        _condition(
            f"{ADAPTED} is at least as good as {SMALL}", lead(ADAPTED, SMALL), operator.ge, ">= 0 points"
        ),
        _condition(f"{GHOST} beats {SCALED}", lead(GHOST, SCALED), operator.gt, "> 0 points"),
        _condition(
            f"{ADAPTED} beats {ADAPTED_PLAIN}", lead(ADAPTED, ADAPTED_PLAIN), operator.gt, "> 0 points"
        ),
    ]


def _condition(
    says: str, figure: float | None, compare: Callable[[float, float], bool], needs: str
) -> dict[str, Any]:
    holds = figure is not None and compare(figure, float(needs.split()[1]))
    return {"says": says, "figure": figure, "needs": needs, "holds": holds}


def _setting(preset: Preset) -> dict[str, str]:
    regime = preset.regime
    return {
        "data": preset.data,
        "model": preset.model,
        "initialisation": "He's normal with biases zero; torch's default in the arms that say so",
        "budget": (
            f"{regime.epochs} epochs over all samples for every arm (the last batch of an epoch may be smaller), "
            f"{regime.epochs * preset.stretch} for RA; "
            f"small batch {regime.base_batch_size}, large batch {preset.large_batch}, ghost size {preset.ghost_size}"
        ),
        "training": (
            f"SGD, learning rate {regime.learning_rate} for the small batch as in the paper (not tuned for any arm), "
            f"momentum {regime.momentum}, weight decay {regime.weight_decay}, "
            f"x0.1 after epochs {', '.join(map(str, regime.milestones))} (times {preset.stretch} for RA), "
            f"gradients clipped at norm {regime.clip_norm} in every arm"
        ),
    }


def _rows(arms: dict[str, History]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "role": ROLES[name],
            "accuracy": history.accuracy[-1],
            "gap_closed": _gap_closed(arms, name),
            "epochs": history.epochs[-1],
            "updates": history.updates[-1],
            "distance": history.distance,
        }
        for name, history in arms.items()
    ]


def _gap_closed(arms: dict[str, History], name: str) -> float | None:
    """Share of the gap between small and large batch; None if there is none or the arm started elsewhere."""
    low, high = arms[LARGE].accuracy[-1], arms[SMALL].accuracy[-1]
    if high <= low or name in (DEFAULT_SMALL, DEFAULT_LARGE, DEFAULT_GHOST):
        return None
    return 100 * (arms[name].accuracy[-1] - low) / (high - low)
