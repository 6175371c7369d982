"""What the evidence measures and how it plots it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lpinn._demo_training import LENGTH, Wave
from lpinn.diagnosis import n_width
from lpinn.equations import lagrangian_residuals
from lpinn.solutions import to_grid


@torch.no_grad()
def on_grid(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The state on the fixed grid, shape `(M, N)`, in double precision."""
    times, points = (axis.reshape(-1, 1) for axis in torch.meshgrid(t, x, indexing="ij"))
    out = net(points, times)
    if isinstance(out, Tensor):
        return out.reshape(len(t), len(x)).double()
    positions, states = (part.reshape(len(t), len(x)).double() for part in out)
    with warnings.catch_warnings():  # folds have a column of their own
        warnings.simplefilter("ignore", RuntimeWarning)
        return to_grid(positions, states, x.double(), LENGTH)


def jacobian_on_grid(net: Any, wave: Wave, x: Tensor, t: Tensor) -> Tensor:
    """`dx/dx0` on the grid of labels and times, shape `(M, N)`."""
    times, labels = (axis.reshape(-1, 1) for axis in torch.meshgrid(t, x, indexing="ij"))
    with torch.no_grad():
        return lagrangian_residuals(net, wave.pde, labels, times).jacobian.reshape(len(t), len(x))


def relative_error(field: Tensor, truth: Tensor, mean: float) -> float:
    """Relative L2 error of the wave without its mean."""
    return ((field - truth).norm() / (truth - mean).norm()).item()


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
