"""The plots: what every exit knows, where tokens leave, and how fine-tuning went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sortedft.demo.measures import Measured


def curves(found: dict[str, Measured], own_heads: list[float]) -> list[dict[str, Any]]:
    """Draw the lines; each bears the name of its row."""
    exits = found["SFT"].report.exits
    losses = {name: _series(exits, measured.report.loss.tolist()) for name, measured in found.items()}
    losses["SFT+ICT"] = _series(exits, [*own_heads, found["SFT"].report.loss[-1].item()])
    accuracy = {
        name: _series(exits, (100 * measured.report.accuracy).tolist()) for name, measured in found.items()
    }
    kl = {name: _series(exits, measured.report.kl_to_full.tolist()) for name, measured in found.items()}
    return [
        _curve("Held-out loss by exit", "exit after block", "loss (nats)", losses),
        _curve("Held-out accuracy by exit", "exit after block", "top-1 accuracy (%)", accuracy),
        _curve("Divergence from the full model by exit", "exit after block", "KL (nats)", kl),
        _curve(
            "Leaving when sure: accuracy against depth",
            "mean depth (blocks)",
            "top-1 accuracy (%)",
            {f"{name}: dynamic": _trade_off(measured) for name, measured in found.items()},
        ),
        _curve(
            "Where generated tokens leave",
            "exit after block",
            "tokens (%)",
            {f"{name}: dynamic": _exit_shares(measured) for name, measured in found.items()},
        ),
        _curve(
            "Full exit during fine-tuning",
            "step",
            "training loss (nats)",
            {name: _binned(measured.history) for name, measured in found.items()},
        ),
    ]


def images(found: dict[str, Measured]) -> list[dict[str, Any]]:
    """Draw how far every exit is from every other."""
    return [
        {
            "title": f"Divergence between exits, {name} (nats)",
            "values": measured.kl_map,
            "caption": f"Row m, column n: KL(p_m || p_n) on held-out text, exits {list(measured.report.exits)}",
        }
        for name, measured in found.items()
    ]


def _trade_off(measured: Measured) -> dict[str, list[Any]]:
    bars = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    points = [measured.held_out.leave_when_sure([bar] * (len(measured.report.exits) - 1)) for bar in bars]
    return _series([depth for _, depth in points], [accuracy for accuracy, _ in points])


def _exit_shares(measured: Measured) -> dict[str, list[Any]]:
    left = torch.cat([generated.exit_layer for generated, _ in measured.decoded["dynamic"]])
    exits = measured.report.exits
    return _series(exits, [100 * (left == depth).double().mean().item() for depth in exits])


def _binned(history: list[float], bins: int = 30) -> dict[str, list[Any]]:
    size = max(len(history) // bins, 1)
    starts = range(0, len(history) - size + 1, size)
    means = [sum(history[start : start + size]) / size for start in starts]
    return _series([start + size // 2 for start in starts], means)


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
