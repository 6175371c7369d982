"""The rows, and what they must show, clause by clause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lazyrich.demo.digits import DigitResult
from lazyrich.demo.theory import TheoryResult
from lazyrich.demo.toy import ArmResult

Row = dict[str, Any]

METRICS: dict[str, dict[str, str]] = {
    "delay": {"unit": "log time", "better": "neither"},
    "test_time": {"unit": "step", "better": "neither"},
    "onset": {"unit": "step", "better": "neither"},
    "drift": {"unit": "", "better": "neither"},
    "kta": {"unit": "", "better": "neither"},
    "train_loss": {"unit": "", "better": "lower"},
    "test_loss": {"unit": "", "better": "lower"},
    "alignment": {"unit": "", "better": "higher"},
    "foretells_delay": {"unit": "|Spearman|", "better": "higher"},
    "foretells_along_dial": {"unit": "|Spearman|", "better": "higher"},
    "lazy_fraction": {"unit": "", "better": "neither"},
    "lazy_gap": {"unit": "%", "better": "lower"},
    "accuracy": {"unit": "%", "better": "higher"},
    "error": {"unit": "relative", "better": "lower"},
}

METERS = ("lazy fraction", "kernel drift", "kernel-target alignment")
RIVALS = ("weight norm", "training loss early on", "test loss already")


def table(toy: Sequence[ArmResult], digits: Sequence[DigitResult], theory: TheoryResult) -> list[Row]:
    """All rows: arms of the network, predictors of its delay, digits, theory."""
    return [
        *map(_arm, toy),
        *_predictors(toy),
        *map(_digit, digits),
        {"name": "mean-field theory", "role": "method", "error": theory.mean_field},
        {"name": "nothing happens", "role": "baseline", "error": theory.last_value},
        {"name": "sufficient statistics", "role": "method", "error": theory.statistics},
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _arm(one: ArmResult) -> Row:
    """Meters as they stood when the training loss had fallen; losses at the end."""
    return {
        "name": one.arm.name,
        "role": "ablation" if one.arm.name.startswith(("few", "many")) else "method",
        "delay": _finite(one.delay),
        "test_time": _finite(one.test_time()),
        "onset": _finite(one.onset()),
        "drift": one.drift[one.fallen],
        "kta": one.kta[one.fallen],
        "lazy_fraction": one.lazy_fraction,
        "train_loss": float(one.run.train[-1]),
        "test_loss": float(one.run.test[-1]),
        "alignment": float(one.run.alignment[-1]),
    }


def _predictors(toy: Sequence[ArmResult]) -> list[Row]:
    """Rank correlation with the delay over the arms, of what can be read when the training loss has fallen."""
    values = {
        "lazy fraction": [one.lazy_fraction for one in toy],
        "kernel drift": [one.drift[one.fallen] for one in toy],
        "kernel-target alignment": [one.kta[one.fallen] for one in toy],
        "weight norm": [float(one.run.M[one.fallen].trace()) for one in toy],
        "training loss early on": [one.early_train for one in toy],
        "test loss already": [float(one.run.test[one.fallen] / one.run.test[0]) for one in toy],
    }
    delays = [one.delay if not math.isnan(one.delay) else math.inf for one in toy]
    dial = [i for i, one in enumerate(toy) if one.arm.name.startswith("alpha")]
    return [
        {
            "name": name,
            "role": "method" if name in METERS else "baseline",
            "foretells_delay": abs(rank_correlation(found, delays)),
            "foretells_along_dial": abs(
                rank_correlation([found[i] for i in dial], [delays[i] for i in dial])
            ),
        }
        for name, found in values.items()
    ]


def _digit(one: DigitResult) -> Row:
    matched, last = one.matched(), one.readings[-1]
    gap = None if last.lazy_gap is None or last.test_loss is None else last.test_loss - last.lazy_gap
    return {
        "name": f"digits, alpha = {one.alpha:g}",
        "role": "method",
        "delay": _finite(one.delay()),
        "onset": one.onset(),
        "drift": matched.drift,
        "kta": matched.kta,
        "train_loss": last.train_loss,
        "test_loss": last.test_loss,
        "lazy_fraction": matched.lazy_fraction,
        "lazy_gap": None if gap is None or last.lazy_gap is None else 100 * last.lazy_gap / gap,
        "accuracy": one.accuracy,
    }


def conditions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Judge the rows, clause by clause; committed evidence is judged by it again.

    Args:
        rows: The table of the result.

    Returns:
        What each condition says, its figure, what it needs, and whether it holds.
    """
    row = {one["name"]: one for one in rows}
    few, many, middle = row["few samples"], row["many samples"], row["alpha = 1"]
    told = {name: row[name]["foretells_delay"] for name in (*METERS, *RIVALS)}
    lazy = [one for one in rows if one["name"].startswith("digits")]
    ratio = (
        None
        if None in (many["delay"], middle["delay"]) or not middle["delay"]
        else many["delay"] / middle["delay"]
    )
    return [
        _clause("the delay grows with alpha (Spearman)", _along(rows, "alpha = ", "delay"), "== 1"),
        _clause("features set in later with alpha (Spearman)", _along(rows, "alpha = ", "onset"), "== 1"),
        _clause("the delay grows with 1 / eps (Spearman)", _by_curvature(row, "delay"), "== 1"),
        _clause("the test loss falls later with 1 / eps (Spearman)", _by_curvature(row, "test_time"), "== 1"),
        _clause("few samples: the test loss stays", few["test_loss"] / middle["test_loss"], "> 5"),
        _clause("few samples: though the training loss is gone", few["train_loss"], "< 0.01"),
        _clause("many samples: hardly a delay (share of that at alpha = 1)", ratio, "< 0.5"),
        _clause(
            "lazy fraction foretells the delay better than weight norm", _ahead(told, "weight norm"), "> 0"
        ),
        _clause(
            "lazy fraction foretells it better than the training loss",
            _ahead(told, "training loss early on"),
            "> 0",
        ),
        _clause(
            "lazy fraction foretells it no worse than the test loss",
            _ahead(told, "test loss already"),
            ">= 0",
        ),
        _clause(
            "digits: drift falls with alpha (Spearman)", _along(rows, "digits, alpha = ", "drift"), "== -1"
        ),
        _clause(
            "digits: the lazy arm is kernel regression (test loss)",
            None if lazy[-1]["lazy_gap"] is None else abs(lazy[-1]["lazy_gap"]),
            "<= 10 %",
        ),
        _clause("digits: the rich arm is not (cosine)", lazy[0]["lazy_fraction"], "< 0.95"),
        _clause("mean-field theory is right (largest error)", row["mean-field theory"]["error"], "< 0.1"),
        _clause("sufficient statistics are exact (error)", row["sufficient statistics"]["error"], "< 1e-10"),
    ]


def _along(rows: Sequence[Row], prefix: str, metric: str) -> float:
    """Rank correlation with the number after the prefix; what never happened counts as infinite."""
    found = [
        (float(one["name"].removeprefix(prefix)), one[metric])
        for one in rows
        if one["name"].startswith(prefix)
    ]
    return rank_correlation(
        [key for key, _ in found], [math.inf if value is None else value for _, value in found]
    )


def _by_curvature(row: dict[str, Row], metric: str) -> float:
    """Rank correlation of a time with 1 / eps, at alpha = 1."""
    delays = [row[name][metric] for name in ("eps = 0.5", "alpha = 1", "eps = 0.15")]
    return rank_correlation([0, 1, 2], [math.inf if delay is None else delay for delay in delays])


def _ahead(told: dict[str, float], rival: str) -> float:
    return told["lazy fraction"] - told[rival]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    above = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    below = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
    return round(above / below, 12) if below else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def _clause(says: str, figure: float | None, needs: str) -> dict[str, Any]:
    sign, number = needs.split()[:2]
    bound = float(number)
    holds = (
        figure is not None
        and {
            ">": figure > bound,
            ">=": figure >= bound,
            "<": figure < bound,
            "<=": figure <= bound,
            "==": figure == bound,
        }[sign]
    )
    return {"says": says, "figure": figure, "needs": needs, "holds": bool(holds)}
