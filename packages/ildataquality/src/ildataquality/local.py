"""Sums over neighbourhoods: residuals of a local mean or of a local linear fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ildataquality._checks import check_matrix, constant_columns
from ildataquality.neighbours import Neighbours

ROWS = 4096  # neighbourhoods at a time


class LocalFit(NamedTuple):
    """What fits of the neighbours' values leave, for R neighbourhoods.

    Attributes:
        residual: (R, k, V) of the neighbours; 0 where the mask is false.
        left: (R,) what the sum of their squares is divided by: their number for a mean, the degrees of freedom left
            for a linear fit.
        error: (R, V) value of the sample itself less the fit at its place.
        leverage: (R,) h: noise of variance s in all values gives the error a variance of (1 + h) s.
    """

    residual: Tensor
    left: Tensor
    error: Tensor
    leverage: Tensor


def local_fits(values: Tensor, neighbours: Neighbours, states: Tensor | None = None) -> Iterator[LocalFit]:
    """Fit the neighbours of every sample, by their mean or linearly in `states`; 4096 samples at a time."""
    centred = values - values.mean(0)  # what all share would only cost precision
    for rows in torch.arange(len(values), device=values.device).split(ROWS):
        if states is None:
            yield _mean_fit(centred, neighbours, rows)
        else:
            yield _linear_fit(centred, neighbours, states, rows)


def _mean_fit(values: Tensor, neighbours: Neighbours, rows: Tensor) -> LocalFit:
    gathered, mask = gather(values, neighbours, rows)
    count, mean = mask.sum(1), masked_mean(gathered, mask)
    return LocalFit((gathered - mean[:, None]) * mask[:, :, None], count, values[rows] - mean, 1 / count)


def _linear_fit(values: Tensor, neighbours: Neighbours, states: Tensor, rows: Tensor) -> LocalFit:
    """In float64: the directions of a small neighbourhood are of very different lengths."""
    gathered, flags = gather(values, neighbours, rows)
    mask = flags[:, :, None]
    offsets = (gather(states, neighbours, rows)[0] - states[rows, None]).double() * mask
    offsets = offsets / offsets.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    design = torch.cat([torch.ones_like(offsets[:, :, :1]), offsets], dim=2) * mask
    target = (gathered - values[rows, None]).double() * mask
    # Coinciding states leave directions without data: through eigenvalues they cost no degree of freedom.
    eigenvalues, directions = torch.linalg.eigh(design.mT @ design)
    used = eigenvalues > 1e-10 * eigenvalues[:, -1:]
    inverse = torch.where(used, eigenvalues, torch.inf).reciprocal()
    fit = directions @ (inverse[:, :, None] * (directions.mT @ (design.mT @ target)))
    # Offsets and targets are relative to the sample itself, whose place is the intercept and whose value is 0.
    leverage = (directions[:, 0].square() * inverse).sum(1)
    kind = values.dtype
    return LocalFit(
        (target - design @ fit).to(kind), flags.sum(1) - used.sum(1), -fit[:, 0].to(kind), leverage.to(kind)
    )


def local_variance(values: Tensor, neighbours: Neighbours, states: Tensor | None = None) -> Tensor:
    """(N,) variance of the values within each C_i around the fit; NaN where nothing is left to judge by."""
    found = []
    for fit in local_fits(values, neighbours, states):
        squares = fit.residual.square().sum((1, 2))
        found.append((squares / fit.left.clamp_min(1)).masked_fill(fit.left < 1, torch.nan))
    return torch.cat(found)


def prediction_errors(
    values: Tensor, neighbours: Neighbours, states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(N, V) each value less what its neighbours say of it, and (N,) leverage; NaN where they cannot say."""
    errors, leverages = [], []
    for fit in local_fits(values, neighbours, states):
        errors.append(fit.error.masked_fill((fit.left < 1)[:, None], torch.nan))
        leverages.append(fit.leverage)
    return torch.cat(errors), torch.cat(leverages)


# --- small parts -----------------------------------------------------------------------------------


def gather(values: Tensor, neighbours: Neighbours, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, k, V) values of the neighbours of some rows, and (R, k) which are."""
    index = neighbours.index[rows]
    return values[index.flatten()].view(*index.shape, values.shape[1]), neighbours.mask[rows]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(R, V) mean over the second dimension; 0 where the mask is empty."""
    weights = mask.to(values.dtype) / mask.sum(1, keepdim=True).clamp_min(1)
    return (weights[:, None] @ values)[:, 0]


def check_rows(name: str, value: Tensor, neighbours: Neighbours) -> Tensor:
    """The value, if it is a finite matrix with a row for each sample."""
    value = check_matrix(name, value)
    if len(value) != len(neighbours.index):
        raise ValueError(f"{name} must have {len(neighbours.index)} rows as neighbours has, got {len(value)}")
    return value


def in_unit_variance(actions: Tensor) -> Tensor:
    """Centred and over the root of their total variance; as they are where nothing varies."""
    wide, constant = actions.double(), constant_columns(actions)
    total = wide.var(0, correction=0)[~constant].sum()
    return ((wide - wide.mean(0)) / torch.where(total > 0, total.sqrt(), 1)).to(actions.dtype)
