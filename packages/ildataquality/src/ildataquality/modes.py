"""Whether operators differ by noise or choose between two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from ildataquality._checks import check_reduce
from ildataquality.local import ROWS, check_rows, gather, in_unit_variance, masked_mean
from ildataquality.neighbours import Neighbours


def multimodality(actions: Tensor, neighbours: Neighbours, *, reduce: str | None = "mean") -> Tensor:
    """Share of the neighbours' action variance that two clusters explain: between / total, along the main direction.

    The neighbours' actions are projected on their first principal direction and split in two where the variance
    between the halves is largest. Two tight modes give 1; one Gaussian gives 2/pi = 0.64 and a uniform one 0.75 (for
    many neighbours; few give more). Multimodal choices look like noise to a unimodal policy, not to a generative one.

    Args:
        actions: (N, A).
        neighbours: The C_i.
        reduce: `"mean"`, weighted by the variance along the direction, so that samples without any count nothing; or
            None for all.

    Returns:
        A scalar, or (N,) with NaN where a sample has fewer than two neighbours or no variance.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.

    Examples:
        >>> import torch
        >>> from ildataquality import multimodality, neighbours
        >>> near = neighbours(torch.arange(8.0)[:, None] / 100, k=7)
        >>> left_or_right = torch.tensor([[-1.0], [1.0]]).repeat(4, 1)
        >>> multimodality(left_or_right, near)
        tensor(1.)
    """
    ratio, weight = split(check_rows("actions", actions, neighbours), neighbours)
    check_reduce(reduce)
    return mean_split(ratio, weight) if reduce == "mean" else ratio


def split(actions: Tensor, neighbours: Neighbours) -> tuple[Tensor, Tensor]:
    """(N,) share that two clusters explain, NaN where nothing varies, and (N,) variance along the main direction."""
    values = in_unit_variance(actions)
    parts = [
        _split(*gather(values, neighbours, rows))
        for rows in torch.arange(len(values), device=values.device).split(ROWS)
    ]
    ratio, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    return ratio, weight


def mean_split(ratio: Tensor, weight: Tensor) -> Tensor:
    """Mean of the shares, weighted by the variance; NaN where nothing varies."""
    return (ratio.nan_to_num(0) * weight).sum() / weight.sum()


def _split(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    count = mask.sum(1)
    centred = (values - masked_mean(values, mask)[:, None]) * mask[:, :, None]
    scatter = centred.mT @ centred
    direction = torch.linalg.eigh(scatter).eigenvectors[:, :, -1]
    projected = (centred @ direction[:, :, None])[:, :, 0].masked_fill(~mask, torch.inf).sort(1).values
    projected = projected.masked_fill(torch.isinf(projected), 0)
    total = projected.square().sum(1)
    # Centred values: a left part of n with sum s leaves -s on the right, so between = s^2 (1/n + 1/(count - n)).
    left = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    right = (count[:, None] - left).clamp_min(0)
    between = projected.cumsum(1).square() * (1 / left + 1 / right)
    between = between.masked_fill(right == 0, 0).amax(1)
    # Rounding errors of the values themselves are no variance.
    rounding = (16 * torch.finfo(values.dtype).eps) ** 2 * (values.square().sum(2) * mask).sum(1)
    flat = (count < 2) | (total <= rounding)
    ratio = (between / total).clamp(max=1).masked_fill(flat, torch.nan)
    return ratio, torch.where(flat, 0, total / count)
