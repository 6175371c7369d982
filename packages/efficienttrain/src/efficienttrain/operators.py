"""The low-frequency crop as linear algebra: one small matrix an axis, or one real Fourier pair an axis.

The crop keeps the frequencies -b to b - 1 of each axis. All but -b come in pairs of opposite sign, so along one
axis the crop is a real matrix `R` plus i times a matrix of rank one, `outer(u, v)`, which is what the lone
frequency leaves. Over two axes the real part is `R_h x R_w^T - (v_h^T x v_w) outer(u_h, u_w)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def axis_operator(length: int, size: int) -> Tensor:
    """Build the crop of one axis in float64: the rows of `R`, and below them `v`.

    With b = size / 2, R[i, h] = (1 / length) sum_{k=-b}^{b-1} cos(2 pi k (i / size - h / length)) and
    v[h] = (1 / length) sin(2 pi b h / length). An axis that keeps its length is left as it is.

    Returns:
        Tensor of shape (size + 1, length).
    """
    if size == length:
        return torch.eye(length + 1, length, dtype=torch.float64)
    half = size // 2
    wave = torch.arange(half + 1)
    pairs = torch.full((half + 1,), 2.0, dtype=torch.float64)
    pairs[0] = pairs[half] = 1.0
    # Whole turns are taken off as integers: angles stay below 2 pi, where cosines are exact to rounding.
    out = (torch.arange(size)[:, None] * wave % size).double() * (2 * math.pi / size)
    angle = (torch.arange(length)[:, None] * wave % length).double() * (2 * math.pi / length)
    rows = (out.cos() * pairs) @ angle.cos().T + (out.sin() * pairs) @ angle.sin().T
    return torch.cat([rows, angle[:, half].sin()[None]]) / length


def alternating(size: int, like: Tensor) -> Tensor:
    """u: +1 and -1 by turns, of shape (size,)."""
    return 1 - 2 * (torch.arange(size, device=like.device) % 2).to(like.dtype)


def crop_by_products(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Crop (..., H, W) by two matrix products; the operators are those of `axis_operator`, in x's dtype.

    The axis that leaves less to do for the other goes first. The operator's last row rides along in the first
    product, so that the rank-one term costs one dot product an image.
    """
    h, w = rows.shape[0] - 1, columns.shape[0] - 1
    height, width = x.shape[-2:]
    if h * width * (height + w) <= w * height * (width + h):
        part = rows @ x
        y = part[..., :h, :] @ columns[:w].mT
        lone = part[..., h, :] @ columns[w]
    else:
        part = x @ columns.mT
        y = rows[:h] @ part[..., :w]
        lone = part[..., w] @ rows[h]
    del part  # before the last step takes memory for its result
    return _without_lone(y, lone)


def crop_by_fourier(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same by one real Fourier transform and its inverse along each axis; the operators give `v` only.

    A real inverse transform ignores the imaginary part of its highest frequency, which is what makes it `R`.
    """
    h, w = rows.shape[0] - 1, columns.shape[0] - 1
    y = _resampled(_resampled(x, w, -1), h, -2)
    return _without_lone(y, x @ columns[w] @ rows[h])


def _resampled(x: Tensor, size: int, dim: int) -> Tensor:
    if size == x.shape[dim]:
        return x
    waves = torch.fft.rfft(x, dim=dim, norm="forward")
    return torch.fft.irfft(waves, n=size, dim=dim, norm="forward")


def _without_lone(y: Tensor, lone: Tensor) -> Tensor:
    """Subtract what the unpaired frequencies -b of both axes make together."""
    h, w = y.shape[-2:]
    board = alternating(h, y)[:, None] * alternating(w, y)
    return torch.addcmul(y, lone[..., None, None], board, value=-1)
