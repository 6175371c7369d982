"""What is drawn: the course of training, and the flights at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flyseconds.demo.variants import Trained


def curves(found: list[Trained]) -> list[dict[str, Any]]:
    """The plots of the demo contract; the full recipe comes first in `found`, the controller last."""
    learned = [trained for trained in found if trained.steps]
    full, controller = found[0], found[-1]

    def course(x: str, y: str) -> dict[str, Any]:
        return {each.name: _series(getattr(each, x), getattr(each, y)) for each in learned}

    steps = "environment steps"
    return [
        _curve("Surviving 5 s", steps, "episodes (%)", course("steps", "survival")),
        _curve("Flight time", steps, "mean time in bounds (s)", course("steps", "flight_time")),
        _curve("Position error over the last 2 s", steps, "error (m)", course("steps", "position_error")),
        _curve(
            "Surviving 5 s, against training time (agents of one stack share their time)",
            "training time of the stack (s)",
            "episodes (%)",
            course("seconds", "survival"),
        ),
        _curve(
            "Full recipe: distance from the origin in six episodes",
            "time (s)",
            "distance (m)",
            {f"episode {index + 1}": _by_time(line) for index, line in enumerate(full.distances)},
        ),
        _curve("Figure eight from above", "x (m)", "y (m)", _eights([full, controller])),
        _curve(
            "Figure eight: distance from where the vehicle should be",
            "time (s)",
            "distance (m)",
            {each.name: _by_time(each.eight.distance) for each in (full, controller) if each.eight},
        ),
    ]


def _eights(found: Sequence[Trained]) -> dict[str, Any]:
    """The second round of the first episode, and the path it should take."""
    series = {}
    for trained in found:
        assert trained.eight is not None
        half = len(trained.eight.reference) // 2
        for name, path in (("reference", trained.eight.reference), (trained.name, trained.eight.path)):
            x, y = zip(*path[half::5], strict=True)
            series[name] = _series(x, y)
    return series


def _by_time(values: Sequence[float]) -> dict[str, list[Any]]:
    return _series([0.01 * index for index in range(0, len(values), 5)], values[::5])


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
