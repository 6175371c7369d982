"""Curves: evaluations over training, error against evaluations, and where the local steps started."""

from __future__ import annotations

from typing import Any

from localregde.demo.training import Outcome

Curve = dict[str, Any]


def curves(label: str, chosen: dict[str, Outcome], tried: dict[str, list[Outcome]]) -> list[Curve]:
    """The figures of one problem."""
    return [
        {
            "title": f"Evaluations of a solve while training, {label}",
            "x_label": "training step",
            "y_label": "evaluations, mean of five steps",
            "series": {f"{label}: {name}": _smooth(one.history) for name, one in chosen.items()},
        },
        {
            "title": f"Error against evaluations at every strength tried, {label}",
            "x_label": "evaluations of a solve",
            "y_label": "error on the test part",
            "series": {f"{label}: {name}": _frontier(found) for name, found in tried.items()},
        },
        {
            "title": f"Where the local step started, {label}",
            "x_label": "part of the time",
            "y_label": "share of the training steps",
            "series": {
                f"{label}: {name}": _histogram(one.taus)
                for name, one in chosen.items()
                if name in ("local error, unbiased", "local error, biased")
            },
        },
    ]


def _smooth(values: list[int], width: int = 5) -> dict[str, list[float]]:
    starts = range(0, len(values) - width + 1, width)
    return {
        "x": [start + width / 2 for start in starts],
        "y": [sum(values[start : start + width]) / width for start in starts],
    }


def _frontier(outcomes: list[Outcome]) -> dict[str, list[float]]:
    ordered = sorted(outcomes, key=lambda one: one.nfe)
    return {"x": [float(one.nfe) for one in ordered], "y": [one.test for one in ordered]}


def _histogram(taus: list[float], bins: int = 10) -> dict[str, list[float]]:
    end = max(taus) or 1.0
    places = [min(int(bins * tau / end), bins - 1) for tau in taus]
    return {
        "x": [(place + 0.5) / bins for place in range(bins)],
        "y": [places.count(place) / len(taus) for place in range(bins)],
    }
