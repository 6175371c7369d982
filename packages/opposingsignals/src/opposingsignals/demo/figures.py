"""Curves and pictures of the evidence."""

from __future__ import annotations

from typing import Any

from opposingsignals.demo.optimisers import OptimiserStudy
from opposingsignals.demo.pictures import PictureStudy
from opposingsignals.demo.toys import ToyStudy


def curves(
    toy: ToyStudy, pictures: PictureStudy, second: PictureStudy | None, optimizers: OptimiserStudy
) -> list[dict[str, Any]]:
    """Losses of the groups first: they show the claim."""
    found = _of_run(pictures, "")
    if second is not None:
        found += _of_run(second, "MNIST: ")
    found += [
        _curve(
            "Toy: sharpness and its closed form",
            "step",
            "largest Hessian eigenvalue",
            {
                "measured": {"x": toy.steps, "y": toy.sharpness},
                "closed form": {"x": toy.steps, "y": toy.predicted},
                "2 / learning rate": {"x": [toy.steps[0], toy.steps[-1]], "y": [toy.threshold] * 2},
            },
        ),
        _curve(
            "Toy: losses of the two groups",
            "step",
            "loss",
            {
                name: {"x": [float(i) for i in range(len(curve))], "y": curve}
                for name, curve in toy.groups.items()
            },
        ),
        _curve(
            "Optimizers on mini-batches with opposing signals",
            "step",
            "excess loss, of the start",
            {
                name: {"x": [float(i) for i in range(len(curve))], "y": [max(y, 1e-6) for y in curve]}
                for name, curve in optimizers.curves.items()
            },
            y_scale="log",
        ),
    ]
    return found


def _of_run(study: PictureStudy, prefix: str) -> list[dict[str, Any]]:
    x, end = study.loss["x"], -60
    series = {"training loss": {"x": x[end:], "y": study.loss["y"][end:]}}
    series |= {name: {"x": x[end:], "y": curve[end:]} for name, curve in study.groups.items()}
    whole = {"training loss": study.loss} | {
        name: {"x": x, "y": curve} for name, curve in study.groups.items()
    }
    steps = [float(step) for step in study.sharpness]
    sharpness = {
        "sharpness": {"x": steps, "y": list(study.sharpness.values())},
        "2 / learning rate": {"x": [steps[0], steps[-1]], "y": [study.threshold] * 2},
    }
    found = [
        _curve(f"{prefix}Losses of the groups in the last steps", "step", "loss", series),
        _curve(f"{prefix}Training loss", "step", "loss", whole, y_scale="log"),
        _curve(f"{prefix}Sharpness", "step", "largest Hessian eigenvalue", sharpness),
    ]
    if study.dropped:
        dropped = {
            name: {"x": [float(i) for i in range(len(curve))], "y": curve}
            for name, curve in study.dropped.items()
        }
        found.append(
            _curve(
                f"{prefix}Sharpness after dropping examples",
                "tenths of the further steps",
                "largest Hessian eigenvalue of what is left",
                dropped,
            )
        )
    return found


def images(
    pictures: PictureStudy, planted: PictureStudy, second: PictureStudy | None
) -> list[dict[str, Any]]:
    """Panels of the examples that were found."""
    named = [("Examples of the two groups", pictures), ("Planted: examples of the two groups", planted)]
    if second is not None:
        named.append(("MNIST: examples of the two groups", second))
    return [
        {"title": title, "values": study.panel, "caption": study.caption}
        for title, study in named
        if study.panel is not None
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any], **scale: str) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series} | scale
