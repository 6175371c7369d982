"""The tables of the result."""

from __future__ import annotations

import math
from typing import Any

from stabilityproxy.demo.experiments import (
    BOTH,
    CLIP,
    EPSILONS,
    NONE,
    QK,
    Z_LOSS,
    Prediction,
    Sweep,
    median_of,
)
from stabilityproxy.demo.training import Run

METRICS = {
    "sensitivity": {"unit": "nats", "better": "lower"},
    "best_loss": {"unit": "nats", "better": "lower"},
    "loss_at_largest": {"unit": "nats", "better": "lower"},
    "best_rate": {"unit": "", "better": "neither"},
    "logit_growth": {"unit": "x", "better": "lower"},
    "largest_logit": {"unit": "", "better": "lower"},
    "log_z_rms": {"unit": "nats", "better": "lower"},
    "predicted_logit": {"unit": "", "better": "neither"},
    "error": {"unit": "decades", "better": "lower"},
    "interval": {"unit": "decades", "better": "lower"},
    "inside": {"unit": "%", "better": "higher"},
    "update_rms": {"unit": "", "better": "higher"},
    "eps_ratio": {"unit": "", "better": "lower"},
    "test_loss": {"unit": "nats", "better": "lower"},
}
ROLES = {NONE: "baseline", CLIP: "baseline", Z_LOSS: "ablation", QK: "method", BOTH: "ablation"}


def table(
    sweeps: dict[str, dict[str, Sweep]], prediction: Prediction, by_eps: dict[float, Run]
) -> list[dict[str, Any]]:
    """All rows; a sweep's bears its size."""
    rows = [
        _sweep_row(f"{name}, {size} model", ROLES[name], each)
        for size, arms in sweeps.items()
        for name, each in arms.items()
    ]
    rows += [
        _prediction_row("extrapolated by a quadratic", "method", prediction, "quadratic"),
        _prediction_row("extrapolated by a power law", "ablation", prediction, "power law"),
        {
            "name": "as at the largest size seen",
            "role": "baseline",
            "predicted_logit": prediction.last_value,
            "error": prediction.error(prediction.last_value),
        },
        {
            "name": "measured at the larger size",
            "role": "reference",
            "predicted_logit": prediction.target_logit,
        },
    ]
    return rows + [_eps_row(eps, run) for eps, run in by_eps.items()]


def _sweep_row(name: str, role: str, each: Sweep) -> dict[str, Any]:
    found = each.sensitivity()
    # Growth over a decade of the learning rate, from the third largest of an even grid to the largest but one.
    low, high = (each.runs[-4], each.runs[-2]) if len(each.runs) > 3 else (each.runs[0], each.runs[-1])
    return {
        "name": name,
        "role": role,
        "sensitivity": found.value,
        "best_loss": found.best_loss,
        "loss_at_largest": _finite(min(each.runs[-1].test_loss, each.runs[-1].init_loss)),
        "best_rate": found.best_lr,
        "logit_growth": _finite(high.max_logit / low.max_logit),
        "largest_logit": _finite(max(run.max_logit for run in each.runs)),
        "log_z_rms": _finite(high.last.log_z_rms),
    }


def _prediction_row(name: str, role: str, prediction: Prediction, kind: str) -> dict[str, Any]:
    fit = prediction.fits[kind]
    value, (low, high) = fit.predict(prediction.target_size), fit.interval(prediction.target_size)
    return {
        "name": name,
        "role": role,
        "predicted_logit": _finite(value),
        "error": _finite(prediction.error(value)),
        "interval": _finite(math.log10(high / low) if low > 0 else math.inf),
        "inside": 100.0 * (low <= prediction.target_logit <= high) if low > 0 and high < math.inf else None,
    }


def _eps_row(eps: float, run: Run) -> dict[str, Any]:
    return {
        "name": f"epsilon {eps:g}, gradients / 1000",
        "role": "method" if eps == min(EPSILONS) else "baseline",
        "update_rms": median_of(run.last.update_rms.values_tensor),
        "eps_ratio": median_of(run.last.eps_ratio.values_tensor),
        "test_loss": _finite(run.test_loss),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
