"""The near-features model held against experiment: transfer operator, spectrum, central path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralcollapse.demo.judgement import TRANSFER
from neuralcollapse.flow import central_path
from neuralcollapse.model import class_columns, near_features, ufm_minimizer
from neuralcollapse.transfer import predicted_spectrum, transfer, transfer_spectrum

Curve = dict[str, Any]


def transfer_error(betas: list[float], generator: torch.Generator) -> tuple[Curve, float]:
    """How far the operators are from solving again with perturbed features, and the slope of the first order's."""
    num_classes, dim, size, lam_w, lam_h = 3, 8, 6, 0.3, 0.2
    _, collapsed = ufm_minimizer(num_classes, dim, size, lam_w, lam_h, generator=generator)
    H0 = collapsed + 0.1 * torch.randn(collapsed.shape, generator=generator, dtype=collapsed.dtype)
    direction = torch.randn(collapsed.shape, generator=generator, dtype=collapsed.dtype)
    direction /= direction.norm()
    Y = torch.eye(num_classes, dtype=H0.dtype).repeat_interleave(size, dim=1)
    errors: dict[str, list[float]] = {TRANSFER: [], "transfer operator, exact": []}
    for beta in betas:
        solution = near_features(H0, Y, lam_w, lam_h, beta, tol=1e-13)
        ends = [
            near_features(H0 + sign * 1e-4 * direction, Y, lam_w, lam_h, beta, tol=1e-13).H
            for sign in (1, -1)
        ]
        seen = (ends[0] - ends[1]) / 2e-4
        errors[TRANSFER].append(float((transfer(direction, solution, order="first") - seen).norm()))
        errors["transfer operator, exact"].append(float((transfer(direction, solution) - seen).norm()))
    x, y = (torch.tensor(values).log() for values in (betas, errors[TRANSFER]))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    curve = {
        "title": "Transfer operator against solving again with perturbed features",
        "x_label": "beta",
        "y_label": "|F dH0 - dH| / |dH0|",
        "x_scale": "log",
        "y_scale": "log",
        "series": {name: {"x": betas, "y": values} for name, values in errors.items()},
    }
    return curve, slope


def staircase(lam_hs: list[float], generator: torch.Generator) -> tuple[Curve, float]:
    """Singular values of `F_kk` at collapse for several `lam_h`, and their largest distance from closed form."""
    num_classes, dim, size, lam_w, beta = 3, 6, 4, 0.6, 200.0
    Y = torch.eye(num_classes, dtype=torch.float64).repeat_interleave(size, dim=1)
    series, worst = {}, 0.0
    for lam_h in lam_hs:
        _, H = ufm_minimizer(num_classes, dim, size, lam_w, lam_h, generator=generator)
        found = transfer_spectrum(near_features(H, Y, lam_w, lam_h, beta))
        expected = predicted_spectrum(num_classes, dim, size, lam_w, lam_h, beta, order="exact")
        worst = max(worst, float((found.diagonal - expected.diagonal).abs().max()))
        worst = max(worst, float((found.off_diagonal - expected.off_diagonal).abs().max()))
        values = found.diagonal.tolist()
        series[f"lam_h = {lam_h:g}"] = {"x": list(range(1, len(values) + 1)), "y": values}
    curve = {
        "title": "Within a class: singular values of F_kk at collapse (lam_w = 0.6, beta = 200)",
        "x_label": "index",
        "y_label": "singular value",
        "series": series,
    }
    return curve, worst


@dataclass(frozen=True)
class FlowCheck:
    """The central path of real features: its curve, and how often its theorem holds (%)."""

    curve: Curve
    holds: float


def follow_path(features: Tensor, labels: Tensor, num_classes: int, lam: float, num_times: int) -> FlowCheck:
    """Collapse features of a network along the central path."""
    H0, Y = class_columns(features, labels, num_classes)
    times = torch.linspace(0, 20, num_times).tolist()
    path = central_path(H0, Y, lam, lam, times, "rk45", tol=1e-6)
    growth = (2 * lam * path.times).exp()
    within, between = growth * path.within_trace, growth * path.between_trace
    steps = torch.stack([path.nc1.diff() < 0, within.diff() <= 0, between.diff() > 0])
    series = {
        "NC1~": path.nc1 / path.nc1[0],
        "exp(2 lam_h t) Tr Sigma_W": within / within[0],
        "exp(2 lam_h t) Tr Sigma_B": between / between[0],
    }
    curve = {
        "title": "Central path of the first layer's features",
        "x_label": "t",
        "y_label": "relative to t = 0",
        "y_scale": "log",
        "series": {name: {"x": times, "y": values.tolist()} for name, values in series.items()},
    }
    return FlowCheck(curve, 100 * float(steps.double().mean()))
