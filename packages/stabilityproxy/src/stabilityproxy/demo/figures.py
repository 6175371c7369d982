"""The plots: what the learning rate does, what size does, and what epsilon does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from stabilityproxy.demo.experiments import NONE, QK, Prediction, Sweep
from stabilityproxy.demo.training import Run


def curves(
    sweeps: dict[str, dict[str, Sweep]], prediction: Prediction, by_eps: dict[float, Run]
) -> list[dict[str, Any]]:
    """Draw the lines."""
    rate = "learning rate"
    found = []
    for size, arms in sweeps.items():
        parameters = f"{next(iter(arms.values())).runs[0].num_parameters:,} parameters"
        losses = {
            name: _line(each, lambda run: min(run.test_loss, run.init_loss)) for name, each in arms.items()
        }
        logits = {name: _line(each, lambda run: run.max_logit) for name, each in arms.items()}
        title = f"{size} model ({parameters})"
        found += [
            _curve(f"Final loss by learning rate, {title}", rate, "test loss (nats)", losses, x_scale="log"),
            _curve(
                f"Largest attention logit by learning rate, {title}", rate, "largest |attention logit|", logits,
                x_scale="log", y_scale="log",
            ),
        ]  # fmt: skip
    return [*found, _sensitivities(sweeps), _prediction(prediction), _by_layer(by_eps)]


def _sensitivities(sweeps: dict[str, dict[str, Sweep]]) -> dict[str, Any]:
    series = {
        name: {
            "x": [arms[name].runs[0].num_parameters for arms in sweeps.values()],
            "y": [arms[name].sensitivity().value for arms in sweeps.values()],
        }
        for name in (NONE, QK)
    }
    return _curve(
        "Learning rate sensitivity by size", "parameters", "sensitivity (nats)", series, x_scale="log"
    )


def _prediction(prediction: Prediction) -> dict[str, Any]:
    low, high = min(prediction.sizes), prediction.target_size
    line = torch.logspace(math.log10(low), math.log10(high), 30, dtype=torch.float64)
    fit = prediction.fits["quadratic"]
    series = {
        "trained, fitted": {"x": prediction.sizes, "y": _shown(prediction.logits)},
        "quadratic fit": {"x": line.tolist(), "y": _shown(fit.predict(line).tolist())},
        "power law fit": {
            "x": line.tolist(),
            "y": _shown(prediction.fits["power law"].predict(line).tolist()),
        },
        "trained, not seen by the fits": {"x": [high], "y": _shown([prediction.target_logit])},
        "danger level": {"x": [low, high], "y": [1e4, 1e4]},
    }
    if fit.residual_std is not None:  # else it reaches from 0 to infinity
        for name, edge in zip(("lower", "upper"), fit.interval(line), strict=True):
            series[f"quadratic, 95 % interval, {name}"] = {"x": line.tolist(), "y": _shown(edge.tolist())}
    return _curve(
        "Largest attention logit by size, without mitigation", "parameters", "largest |attention logit|", series,
        x_scale="log", y_scale="log",
    )  # fmt: skip


def _by_layer(by_eps: dict[float, Run]) -> dict[str, Any]:
    series = {}
    for eps, run in by_eps.items():
        ratios = [value for name, value in run.last.eps_ratio.items() if "norm" not in name]
        series[f"epsilon {eps:g}"] = {"x": list(range(len(ratios))), "y": _shown(ratios)}
    return _curve(
        "Epsilon over root mean square gradient, by matrix, gradients / 1000",
        "matrix, from the embedding to the output", "epsilon / rms gradient", series, y_scale="log",
    )  # fmt: skip


def _line(each: Sweep, value: Any) -> dict[str, list[float]]:
    return {"x": list(each.learning_rates), "y": _shown([value(run) for run in each.runs])}


def _shown(values: Sequence[float]) -> list[float]:
    """Numbers that JSON can hold: what is beyond everything is drawn at the edge."""
    return [min(max(value, 1e-30), 1e30) if not math.isnan(value) else 1e30 for value in values]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any], **scales: str) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series, **scales}
