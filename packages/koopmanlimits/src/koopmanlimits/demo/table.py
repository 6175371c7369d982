"""The table: one row a method, from what the parts of the demo found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from koopmanlimits.adversaries import Move
from koopmanlimits.demo.adversaries import Hidden
from koopmanlimits.demo.flows import Judged
from koopmanlimits.demo.series import Forecasts

Row = dict[str, Any]

METRICS: dict[str, dict[str, str]] = {
    "spurious": {"unit": "%", "better": "lower"},
    "spurious_worst": {"unit": "%", "better": "lower"},
    "modes": {"unit": "", "better": "neither"},
    "not_constant": {"unit": "", "better": "neither"},
    "off_circle": {"unit": "", "better": "lower"},
    "error": {"unit": "", "better": "lower"},
    "error_ratio_worst": {"unit": "", "better": "lower"},
    "error_growth_worst": {"unit": "", "better": "lower"},
    "fooled": {"unit": "%", "better": "lower"},
    "turned_over": {"unit": "%", "better": "lower"},
    "claims": {"unit": "", "better": "neither"},
    "false_claims": {"unit": "", "better": "lower"},
    "coverage": {"unit": "%", "better": "higher"},
    "coverage_worst": {"unit": "%", "better": "higher"},
}


def flow_rows(flows: dict[str, list[Judged]], hidden: list[Hidden], moves: list[Move]) -> list[Row]:
    """Flows and adversaries, each figure at the largest dictionary and over the systems."""
    last = [judged[-1] for judged in flows.values()]
    first = [judged[0] for judged in flows.values()]

    def fooled(name: str) -> float:
        return 100 * _mean([float(twist.fooled[name]) for twist in hidden])

    edmd_errors = [judged.edmd_error for judged in last]
    errors = [judged.spectrum_error for judged in last]
    preserving = [flows[name][-1] for name in flows if name != "damped_duffing"]
    return [
        {
            "name": "EDMD",
            "role": "baseline",
            "spurious": _mean([judged.spurious for judged in last]),
            "spurious_worst": max(judged.spurious for judged in last),
            "modes": _mean([len(judged.edmd_values) for judged in last]),
            "not_constant": _mean([judged.edmd_not_constant for judged in last]),
            "off_circle": _mean([judged.off_circle for judged in preserving]),
            "error": _mean(edmd_errors),
            "error_growth_worst": _growth([j.edmd_error for j in first], edmd_errors),
            "fooled": fooled("EDMD"),
            "turned_over": 100 * _mean([float(move.fooled) for move in moves[:-1]]),
        },
        {
            "name": "mpEDMD",
            "role": "baseline",
            "spurious": _mean([judged.spurious_unitary for judged in last]),
            "spurious_worst": max(judged.spurious_unitary for judged in last),
            "modes": _mean([len(judged.mp_residuals) for judged in last]),
            "off_circle": 0.0,
            "error": _mean([float(judged.mp_residuals.max()) for judged in last]),
            "fooled": fooled("mpEDMD"),
        },
        {
            "name": "ResDMD",
            "role": "method",
            "spurious": _mean([judged.false_verified for judged in last]),
            "spurious_worst": max(judged.false_verified for judged in last),
            "modes": _mean([len(judged.verified_values) for judged in last]),
            "not_constant": _mean([judged.verified_not_constant for judged in last]),
            "error": _mean([_largest(judged.verified_residuals) for judged in last]),
            "fooled": fooled("ResDMD"),
            "claims": sum(twist.claims["ResDMD"] for twist in hidden),
            "false_claims": sum(twist.false_claims["ResDMD"] for twist in hidden),
        },
        {
            "name": "CompSpec",
            "role": "method",
            "modes": _mean([len(judged.spectrum) for judged in last]),
            "error": _mean(errors),
            "error_growth_worst": _growth([j.spectrum_error for j in first], errors),
            "error_ratio_worst": max(e / worst for e, worst in zip(errors, edmd_errors, strict=True)),
        },
        {
            "name": "certified residuals",
            "role": "method",
            "claims": sum(twist.claims["certified"] for twist in hidden),
            "false_claims": sum(twist.false_claims["certified"] for twist in hidden),
        },
    ]


def forecast_rows(forecasts: list[Forecasts]) -> list[Row]:
    """Forecasts of the real series."""
    roles = {
        "verified modes": "method",
        "Hankel DMD": "baseline",
        "persistence": "reference",
        "same season before": "reference",
    }
    rows = [
        {
            "name": f"{method}, forecast",
            "role": role,
            **{f"rmse_{found.name}": found.rmse[method] for found in forecasts},
        }
        for method, role in roles.items()
    ]
    rows[0] |= {
        "coverage": _mean([found.coverage for found in forecasts]),
        "coverage_worst": min(found.coverage for found in forecasts),
        "modes": _mean([found.kept for found in forecasts]),
    }
    rows[1]["modes"] = _mean([found.total for found in forecasts])
    return rows


def _growth(first: Sequence[float], last: Sequence[float]) -> float:
    """The error at the largest dictionary over that at the smallest, worst system: below 1 it fell everywhere.

    A set that is empty has infinite error; 2 stands for it, as in the plots, since no distance here is larger.
    """
    return max(min(late, 2.0) / min(early, 2.0) for early, late in zip(first, last, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _largest(values: torch.Tensor) -> float:
    return float(values.max()) if len(values) else 0.0
