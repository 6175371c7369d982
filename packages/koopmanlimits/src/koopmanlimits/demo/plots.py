"""The plots: errors against sizes, residuals, RAGE averages, twists, forecasts, pseudospectra."""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from typing import Any

import torch

from koopmanlimits.adversaries import Move
from koopmanlimits.demo.adversaries import Hidden
from koopmanlimits.demo.flows import Judged
from koopmanlimits.demo.series import LEADS, Forecasts


def curves(
    flows: dict[str, list[Judged]],
    decay: dict[str, torch.Tensor],
    hidden: list[Hidden],
    moves: list[Move],
    forecasts: list[Forecasts],
) -> list[dict[str, Any]]:
    """All line plots."""
    errors, spurious = {}, {}
    for name, judged in flows.items():
        size = [found.size for found in judged]
        errors[f"{name}, EDMD"] = _series(size, [float(found.edmd_residuals.max()) for found in judged])
        errors[f"{name}, CompSpec"] = _series(size, [min(found.spectrum_error, 2.0) for found in judged])
        spurious[f"{name}, EDMD"] = _series(size, [found.spurious for found in judged])
        spurious[f"{name}, ResDMD"] = _series(size, [found.false_verified for found in judged])
    curves = [
        _curve("Error of the computed spectrum", "functions in the dictionary", "largest residual", errors),
        _curve("Spurious modes on unseen data", "functions in the dictionary", "modes (%)", spurious),
        *(_residual_curve(name, judged[-1]) for name, judged in flows.items()),
        _curve("RAGE: what stays in n delay functions", "steps L", "mean share of the norm", _thinned(decay)),
        *(_twist_curve(twist, index) for index, twist in enumerate(hidden)),
        _curve(
            "The stage-wise adversary against EDMD",
            "stage",
            "angle of the eigenvalue (rad)",
            {"EDMD": _series(range(1, len(moves) + 1), [cmath.phase(move.output) for move in moves])},
        ),
    ]
    for found in forecasts:
        lead = range(1, LEADS + 1)
        by_lead = {f"{method}, forecast": _series(lead, errors) for method, errors in found.by_lead.items()}
        example = {method: _series(lead, values) for method, values in found.example.items()}
        curves += [
            _curve(f"Forecast error, {found.name}", "lead (steps)", "RMSE (std)", by_lead),
            _curve(f"One forecast, {found.name}", "lead (steps)", "value (std)", example),
        ]
    return curves


def _residual_curve(name: str, judged: Judged) -> dict[str, Any]:
    series = {}
    for method, values in (("EDMD", judged.edmd_residuals), ("mpEDMD", judged.mp_residuals)):
        series[method] = _series(range(1, len(values) + 1), values.sort().values.tolist())
    if len(judged.verified_residuals):
        kept = judged.verified_residuals.sort().values.tolist()
        series["ResDMD"] = _series(range(1, len(kept) + 1), kept)
    return _curve(f"Residuals on unseen data, {name}", "mode, best first", "residual", series)


def _twist_curve(twist: Hidden, index: int) -> dict[str, Any]:
    resolutions = [4 * 2**step for step in range(len(next(iter(twist.distance.values()))))]
    series = {method: _series(resolutions, far) for method, far in twist.distance.items()}
    return _curve(
        f"Disk with a twist below 1/{twist.hidden_at}", "radii looked at", "distance to the spectrum", series
    )


def _thinned(decay: dict[str, torch.Tensor], points: int = 80) -> dict[str, Any]:
    thin = {}
    for name, row in decay.items():
        index = torch.linspace(0, len(row) - 1, min(points, len(row))).long()
        thin[name] = _series(index.tolist(), row[index].tolist())
    return thin


def images(flows: dict[str, list[Judged]]) -> list[dict[str, Any]]:
    """The pseudospectra of the oscillators."""
    return [
        {
            "title": f"Pseudospectrum, {name}: log10 tau(z)",
            "values": judged[-1].tau.clamp_min(1e-6).log10().tolist(),
            "caption": f"{judged[-1].size} functions; columns: Re z from -1.2 to 1.2, rows: Im z from 0 to 1.2",
        }
        for name, judged in flows.items()
        if judged[-1].tau.ndim == 2
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
