"""The paper's figures, drawn from the runs of the first initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inductionclamp.demo.training import HEADS, Outcome, Result

Curve = dict[str, Any]


def curves(result: Result) -> list[Curve]:
    """Losses by clamp and by data, clamps at evaluation only, strength and ablation of heads, and the toy."""
    first = {name: outcomes[0] for name, outcomes in result.outcomes.items()}
    unclamped = first["none"]
    plain = {name: _losses(outcome) for name, outcome in first.items() if "," not in name}
    data = {
        name: _losses(outcome) for name, outcome in first.items() if name.startswith(("match", "layer1+copy"))
    }
    heads = result.ablations[0].heads
    return [
        _curve("Loss under clamps held throughout training", "steps", "running loss [nats]", plain),
        _curve("Loss with more classes and more labels", "steps", "running loss [nats]", data),
        _curve(
            "The unclamped run as clamps at evaluation only show it",
            "steps",
            "loss [nats]",
            {name: {"x": unclamped.looked_at, "y": losses} for name, losses in unclamped.posthoc.items()},
        ),
        _curve(
            "Induction strength of each head of layer 1, unclamped",
            "steps",
            "attention to right less wrong label",
            {
                f"head {head}": {"x": unclamped.looked_at, "y": [look[head] for look in unclamped.strengths]}
                for head in range(HEADS)
            },
        ),
        _curve(
            "Heads of layer 1 ablated after training",
            "head",
            "accuracy [%]",
            {
                "this head alone": _points((100 * heads.only).tolist()),
                "all but this head": _points((100 * heads.without).tolist()),
            },
        ),
        _curve(
            "The toy",
            "steps",
            "loss",
            {name: _thinned(toy.loss.tolist()) for name, toy in result.toys.items()},
        ),
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> Curve:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _points(values: Sequence[float]) -> dict[str, list[float]]:
    return {"x": list(range(len(values))), "y": list(values)}


def _losses(outcome: Outcome) -> dict[str, list[float]]:
    return _thinned(outcome.losses)


def _thinned(values: Sequence[float], every: int = 5) -> dict[str, list[float]]:
    return {"x": list(range(0, len(values), every)), "y": list(values[::every])}
