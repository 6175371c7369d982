"""Warnings where a solve goes through and its result is still not to be trusted."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

# Around N = M the error of ridge regression has its peak. On features of all kinds, a gamma below this share
# of the median feature's own part lets label noise through more than about fourfold there.
_SHARE_AT_PEAK = 1 / 50
_NOISE_GAIN_AT_PEAK = 4.0
# Rounding errors of the sums, against what the median feature adds to the others.
_ROUNDING_SHARE = 0.1
# Rounding errors of the recursion's inverse, as a share of a sample's leverage.
_LEVERAGE_ERROR = 0.003


def warn_of_factor(factor: Tensor, num_samples: int, gamma: float) -> None:
    """Warn if X'X + gamma I = L L' stands at the interpolation peak.

    L_jj^2 is what feature j adds to those before it: its squared residual, plus gamma.
    """
    if not _is_near_peak(num_samples, len(factor)):
        return
    if gamma < _SHARE_AT_PEAK * float(factor.diagonal().square().median()):
        _warn_of_peak(len(factor), gamma)


def warn_of_inverse(inverse: Tensor, num_samples: int, gamma: float) -> None:
    """Warn if R = (X'X + gamma I)^{-1} stands at the interpolation peak.

    With H = X R X', noise in the labels reaches held-out samples N tr (I - H)^2 / (tr (I - H))^2 times as
    strong, by generalised cross-validation. Both traces follow from R.
    """
    if not _is_near_peak(num_samples, len(inverse)):
        return
    rest = num_samples - len(inverse)
    trace = rest + gamma * float(inverse.diagonal().sum())
    trace_of_square = rest + gamma**2 * float(inverse.square().sum())
    if num_samples * trace_of_square > _NOISE_GAIN_AT_PEAK * trace**2:
        _warn_of_peak(len(inverse), gamma)


def warn_of_rounding(factor: Tensor, diagonal: Tensor) -> None:
    """Warn if the rounding of A = L L', whose diagonal is given, is as large as what features add to others."""
    rounding = float(torch.finfo(factor.dtype).eps * diagonal.sum())
    if rounding > _ROUNDING_SHARE * float(factor.diagonal().square().median()):
        _warn_of_precision(factor.dtype)


def warn_of_leverage(x: Tensor, gamma: float) -> None:
    """Warn if the rounding of R_0 = I / gamma is seen in the leverage x' R x of a sample."""
    largest = float(x.square().sum(1).max())
    if torch.finfo(x.dtype).eps * largest > _LEVERAGE_ERROR * gamma:
        _warn_of_precision(x.dtype)


def _is_near_peak(num_samples: int, width: int) -> bool:
    return 0.8 * width <= num_samples <= 1.2 * width


def _warn_of_peak(width: int, gamma: float) -> None:
    # The same words all along a stream, so that Python shows them once.
    _warn(
        f"there are about as many samples as features, {width}, and gamma = {gamma:.3g} is small for them: this is "
        f"the interpolation peak, where test error is at its worst; raise gamma (suggest_gamma finds one)"
    )


def _warn_of_precision(dtype: torch.dtype) -> None:
    _warn(
        f"the features are so large or so much alike that the classifier is inexact in {dtype}: subtract their "
        f"mean, scale them, raise gamma or use torch.float64 with engine='gram'"
    )


def _warn(message: str) -> None:
    """Warn at the line of the user's own code that led here."""
    frame, depth = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("gacil", "torch"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UserWarning, stacklevel=depth)
