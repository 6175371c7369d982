"""The plots of the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lpinn.diagnosis import n_width

if TYPE_CHECKING:
    from lpinn.demo.study import Study


def linear_curves(study: Study, name: str, main: list[str]) -> list[dict[str, Any]]:
    """The plots of the linear waves, those of one speed at the largest."""
    last = study.sizes.speeds[-1]
    wave = f"{name}, c={last:g}"
    truth = study.fields[wave, "exact"]
    fields = {f"{method} on {wave}": field for (on, method), field in study.fields.items() if on == wave}
    fields.pop(f"exact on {wave}")
    growth = {
        row: series_of(study.t, (field - truth).norm(dim=1) / truth.norm(dim=1))
        for row, field in fields.items()
    }
    profiles = {"exact": truth} | {f"{method} on {wave}": study.fields[wave, method] for method in main}
    shapes = {row: series_of(study.points(wave)[:, 0], field[-1]) for row, field in profiles.items()}
    every = max(study.sizes.num_steps // 60, 1)
    losses = {f"{method} on {wave}": study.losses[f"{method} on {wave}"] for method in main}
    history = {row: series_of([every * i for i in range(len(h))], h) for row, h in losses.items()}
    return [
        _against_speed(study, name, "relative_l2", main, "Error against speed", "relative L2 error"),
        curve(f"Error against time, c={last:g}", "t", "relative L2 error", growth, "log"),
        curve(f"The wave at t = 1, c={last:g}", "x", "u", shapes),
        curve(f"Training, c={last:g}", "step", "loss", history, "log"),
        _against_speed(
            study,
            name,
            "sharpness",
            ["PINN", "LPINN"],
            "Top Hessian eigenvalue at the trained networks",
            "eigenvalue",
        ),
    ]


def _against_speed(
    study: Study, name: str, metric: str, methods: list[str], title: str, y_label: str
) -> dict[str, Any]:
    series = {}
    for method in methods:
        found = {c: study.row(f"{method} on {name}, c={c:g}").get(metric) for c in study.sizes.speeds}
        known = {c: value for c, value in found.items() if value is not None}
        series[method] = series_of(known, known.values())
    return curve(title, "c", y_label, series, "log")


def folding_curve(name: str, t: Tensor, error: Tensor, smallest: Tensor) -> dict[str, Any]:
    """Error and smallest Jacobian past the time when exact characteristics cross."""
    lines = {
        f"relative L2 error, {name}": error,
        f"smallest J, {name}": smallest,
        "smallest J, exact characteristics": 1 - t,  # J = 1 + t cos x0
    }
    series = {label: series_of(t, values) for label, values in lines.items()}
    return curve("Where it must fail: characteristics cross at t = 1 (inviscid Burgers)", "t", "", series)


def n_width_curve() -> dict[str, Any]:
    """Singular values of a travelling pulse's exact snapshots, in both frames (the paper's Gaussian)."""
    length, speed = 1.5, 1.5
    labels, t = (
        torch.linspace(0, length, 257, dtype=torch.float64)[:-1, None],
        torch.linspace(0, 1, 100).double(),
    )

    def pulse(x: Tensor) -> Tensor:
        return 0.8 + 0.5 * torch.exp(-((x % length - length / 2) ** 2) / 0.01)

    positions, states = labels + speed * t, pulse(labels).expand(-1, len(t))
    snapshots = {
        "u in the fixed frame": pulse(labels - speed * t),
        "u along characteristics": states,
        "x and u along characteristics": torch.cat([positions, states]),
    }
    series = {}
    for label, matrix in snapshots.items():
        values = n_width(matrix).singular_values[:20]
        series[label] = series_of(range(1, len(values) + 1), (values / values[0]).clamp_min(1e-16))
    return curve(
        "n-width of pure convection of a pulse", "mode", "singular value over the first", series, "log"
    )


def curve(
    title: str, x_label: str, y_label: str, series: dict[str, Any], y_scale: str = "linear"
) -> dict[str, Any]:
    """A plot, as the demo contract wants it."""
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series, "y_scale": y_scale}


def series_of(x: Any, y: Any) -> dict[str, list[Any]]:
    """One line of a plot."""
    return {axis: [float(value) for value in values] for axis, values in (("x", x), ("y", y))}
