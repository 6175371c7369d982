"""The central path: gradient flow of the features while the classifier stays the best one for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from neuralcollapse.checks import check_positive
from neuralcollapse.model import Moments, check_columns, check_penalties, proximal_step

Method = Literal["euler", "rk4", "rk45", "implicit"]

# Dormand and Prince (1980); the last row is also the fifth-order solution.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class CentralPath:
    """Features along the central path.

    Attributes:
        times: `[T]`.
        nc1: `Tr(Sigma_W) / Tr(Sigma_B)` at each time `[T]`.
        within_trace: `Tr(Sigma_W)` `[T]`.
        between_trace: `Tr(Sigma_B)` `[T]`.
        H: The features `[T, d, N]`, if they were to be kept.
    """

    times: Tensor
    nc1: Tensor
    within_trace: Tensor
    between_trace: Tensor
    H: Tensor | None = None


@torch.no_grad()
def central_path(
    H0: Tensor,
    Y: Tensor,
    lam_w: float,
    lam_h: float,
    times: Tensor | Sequence[float],
    method: Method = "rk4",
    *,
    max_step: float | None = None,
    tol: float = 1e-8,
    keep_features: bool = False,
) -> CentralPath:
    """Follow the features as they collapse, `dH/dt = -(W^T (W H - Y) + lam_h H)`, `W = W*(H)`, `H(0) = H0`.

    The flow of Han, Papyan and Donoho (2022) with the penalties of Section 4 of Tirer, Huang and Niles-Weed
    (2023), whose Theorem 4.1 says: `NC1~` falls strictly to 0, `exp(2 lam_h t) Tr(Sigma_W)` falls and
    `exp(2 lam_h t) Tr(Sigma_B)` rises, if `Sigma_W(H0)` is not 0. Time plays the part of `1/beta` in
    `near_features`.

    Along it `H(t) = P(t) H0 + Q(t) Y`, so `[P, Q]` is integrated, at `O(d^3)` a step whatever the number of
    samples, and `Tr(Sigma_W)` keeps its digits down to the smallest numbers of the type.

    Args:
        H0: Given features `[d, N]`, best in float64.
        Y: One-hot labels `[K, N]`, classes of equal size, in any order.
        lam_w: Penalty of the classifier, positive.
        lam_h: Penalty of the features, not negative.
        times: When to look `[T]`, not negative, increasing.
        method: `"rk4"` or `"euler"` with fixed steps, `"rk45"` with adaptive ones (Dormand and Prince), or
            `"implicit"`: proximal steps, each of them `near_features` with `beta = 1/step`; stable for any
            step and of first order.
        max_step: Longest step. By default one of guaranteed stability, `1/4` of
            `1 / (1 / (4 lam_w) + lam_h)`, since no singular value of `W*` exceeds `1 / (2 sqrt(lam_w))`; for
            `"rk45"` and `"implicit"` the time between two looks.
        tol: Error allowed per step of `"rk45"`, relative and absolute, and to which `"implicit"` solves (never less
            than the type resolves).
        keep_features: Return `H` at all times, too; memory `T d N`.

    Returns:
        The path.

    Raises:
        TypeError: If `H0` is not floating point.
        ValueError: If shapes, labels or parameters do not fit.
        RuntimeError: If `max_step` is so long that an explicit method left the path.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> H0 = torch.randn(5, 12, generator=generator, dtype=torch.float64)
        >>> Y = torch.eye(3).repeat_interleave(4, dim=1)
        >>> path = central_path(H0, Y, lam_w=0.1, lam_h=0.05, times=torch.linspace(0, 5, 6))
        >>> bool((path.nc1.diff() < 0).all())
        True
    """
    Y = check_columns(H0, Y, "H0")
    check_penalties(lam_w, lam_h)
    looks = torch.as_tensor(times, dtype=torch.float64).flatten().tolist()
    increasing = all(after > before for before, after in pairwise(looks))
    if not (looks and looks[0] >= 0 and increasing and math.isfinite(looks[-1])):
        raise ValueError(f"times must be increasing, finite and not negative, got {looks}")
    if method not in ("euler", "rk4", "rk45", "implicit"):
        raise ValueError(f"method must be 'euler', 'rk4', 'rk45' or 'implicit', got {method!r}")
    check_positive("tol", tol)
    if max_step is not None:
        check_positive("max_step", max_step)
    elif method in ("euler", "rk4"):
        max_step = _stable_step(lam_w, lam_h)
    else:
        max_step = math.inf

    with torch.autocast(H0.device.type, enabled=False):
        H0 = H0.to(Y.dtype)
        start = Moments.of(H0, Y)
        integrator = _Integrator(start, lam_w, lam_h, method, max_step, tol)
        dim, num_classes = start.mean.shape
        gain = torch.eye(dim, dim + num_classes, dtype=H0.dtype, device=H0.device)
        now, gains = 0.0, []
        for time in looks:
            gain = integrator.advance(gain, time - now)
            now = time
            gains.append(gain)
        points = [start.moved(gain) for gain in gains]
        features = torch.stack(gains) @ torch.cat([H0, Y]) if keep_features else None
    within = torch.stack([point.within.diagonal().sum() for point in points])
    means = torch.stack([point.mean for point in points])
    between = (means - means.mean(2, keepdim=True)).square().sum((1, 2)) / num_classes
    return CentralPath(torch.tensor(looks).to(within), within / between, within, between, features)


@dataclass(frozen=True)
class _Integrator:
    """Carries `[P, Q]` over a span of time."""

    start: Moments
    lam_w: float
    lam_h: float
    method: Method
    max_step: float
    tol: float

    def advance(self, gain: Tensor, span: float) -> Tensor:
        if span == 0:
            return gain
        if self.method == "rk45":
            return self._adaptive(gain, span)
        step: Callable[[Tensor, float], Tensor] = {
            "euler": self._euler,
            "rk4": self._rk4,
            "implicit": self._implicit,
        }[self.method]
        num_steps = max(1, math.ceil(span / self.max_step))
        for _ in range(num_steps):
            before, gain = gain, step(gain, span / num_steps)
            # Along the flow Tr(Sigma_W) never rises; proximal steps cannot raise it, however long.
            if self.method != "implicit" and not self._scatter(gain) <= self._scatter(before) * (1 + 1e-6):
                raise RuntimeError(
                    f"max_step must be short enough for {self.method!r} to follow the path, got {self.max_step}: "
                    "Tr(Sigma_W) grew"
                )
        return gain

    def _scatter(self, gain: Tensor) -> Tensor:
        features = gain[:, : len(gain)]
        return ((features @ self.start.within) * features).sum()

    def _velocity(self, gain: Tensor) -> Tensor:
        dim = len(gain)
        weight = self.start.moved(gain).best_weight(self.lam_w)
        velocity = -weight.mT @ (weight @ gain) - self.lam_h * gain
        velocity[:, dim:] += weight.mT
        return velocity

    def _euler(self, gain: Tensor, step: float) -> Tensor:
        return gain + step * self._velocity(gain)

    def _rk4(self, gain: Tensor, step: float) -> Tensor:
        first = self._velocity(gain)
        second = self._velocity(gain + step / 2 * first)
        third = self._velocity(gain + step / 2 * second)
        fourth = self._velocity(gain + step * third)
        return gain + step / 6 * (first + 2 * second + 2 * third + fourth)

    def _implicit(self, gain: Tensor, step: float) -> Tensor:
        point = self.start.moved(gain)
        found = proximal_step(point, self.lam_w, self.lam_h, 1 / step, self.tol, max_iter=10_000).gain
        dim = len(gain)
        gain = found[:, :dim] @ gain
        gain[:, dim:] += found[:, dim:]
        return gain

    def _adaptive(self, gain: Tensor, span: float) -> Tensor:
        left, step = span, min(span, self.max_step, _stable_step(self.lam_w, self.lam_h))
        tol = max(self.tol, 100 * torch.finfo(gain.dtype).eps)
        velocity = self._velocity(gain)
        while left > 0:
            step = min(step, left)
            stages = [velocity]
            for row in _STAGES:
                trial = gain + step * _combine(row, stages)
                stages.append(self._velocity(trial))
            scale = tol * (1 + torch.maximum(gain.abs(), trial.abs()))
            error = float((step * _combine(_ERROR, stages) / scale).abs().max())
            if error <= 1:
                left -= step
                gain, velocity = trial, stages[-1]
            step = min(self.max_step, step * min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2)))
        return gain


def _stable_step(lam_w: float, lam_h: float) -> float:
    return 0.25 / (0.25 / lam_w + lam_h)


def _combine(row: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    return sum(
        (weight * stage for weight, stage in zip(row, stages, strict=True)), torch.zeros_like(stages[0])
    )
