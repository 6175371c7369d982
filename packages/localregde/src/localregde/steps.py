"""One step of an embedded Runge-Kutta pair, differentiable, with its error and stiffness estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from localregde._checks import checked_choice, checked_number, checked_shape, checked_state
from localregde.tableaus import TABLEAUS, Tableau

__all__ = ["StepEstimate", "initial_step", "local_step", "tolerance_floor"]

Dynamics = Callable[[Tensor, Tensor], Tensor]
LOCAL_METHODS = ("tsit5", "dopri5")


class StepEstimate(NamedTuple):
    """What one step says of the dynamics.

    Attributes:
        y1: The state after the step, in the shape and dtype of `z`.
        error: 0-dim, |h| times the scaled norm of the embedded error: R_E.
        stiffness: 0-dim, the estimate of the dominant eigenvalue over the stability size: R_S.
        k: The stages, each in the shape of `z`.
    """

    y1: Tensor
    error: Tensor
    stiffness: Tensor
    k: tuple[Tensor, ...]


def tolerance_floor(*dtypes: torch.dtype) -> float:
    """The smallest relative tolerance at which an error estimate is more than rounding: 10 machine epsilons.

    In float32 this is 1.2e-6. Below it the embedded error is a difference of rounded numbers, its norm noise and its
    gradient's direction random; `LocalRegularizer` estimates at the floor then, whatever the solver is asked for.

    Args:
        *dtypes: Those of the state and of what the dynamics return; the coarsest counts.

    Returns:
        The floor.

    Examples:
        >>> tolerance_floor(torch.float32)
        1.1920928955078125e-06
        >>> tolerance_floor(torch.float32, torch.bfloat16)
        0.078125
    """
    return 10 * max(torch.finfo(dtype).eps for dtype in dtypes)


def local_step(
    func: Dynamics,
    tau: Tensor | float,
    z: Tensor,
    h: Tensor | float,
    *,
    method: str = "tsit5",
    atol: float = 1e-5,
    rtol: float = 1e-5,
    k1: Tensor | None = None,
) -> StepEstimate:
    """Take one embedded step from (tau, z) and estimate its error and its stiffness.

    With the stages k_1..k_7, the new state y = z + h sum b_i k_i and the error e = h sum (b_i - bhat_i) k_i

        R_E = |h| sqrt(mean_i (e_i / (atol + rtol max(|z_i|, |y_i|)))^2)
        R_S = sqrt(mean (k_7 - k_6)^2) / sqrt(mean (y - g_6)^2) / s

    (section 3 of the paper), where g_6 is the state of stage 6 and s the stability size, 3.5068 for Tsit5. The mean is
    over every entry, those of the batch too. Nothing is detached here, nothing is checked for finiteness, and nothing
    branches on values: it may be wrapped in `torch.func.vmap`, `torch.func.grad` and `torch.compile`. R_S needs single
    precision: in half, the stages that it compares differ by rounding alone.

    Args:
        func: The dynamics f(t, z), which return the shape of `z`.
        tau: 0-dim, the time at which the step starts.
        z: (...) the state there, real floating point. Half precision is summed in float32.
        h: 0-dim, the step; negative to go back in time.
        method: `"tsit5"` or `"dopri5"`.
        atol: Absolute tolerance, in units of `z`.
        rtol: Relative tolerance.
        k1: f(tau, z) if it is known; it saves one of the 7 evaluations.

    Returns:
        The new state, the two estimates, and the stages. An estimate of exactly zero has a gradient of zero.

    Raises:
        TypeError: If `z` is no tensor.
        ValueError: If `method` is unknown, a tolerance is not above 0, `z` is empty, an integer or complex, `tau` or
            `h` is not 0-dim, or `func` or `k1` has another shape than `z`.

    Examples:
        >>> z = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> step = local_step(lambda t, y: -2 * y, 0.0, z, 0.1)
        >>> round(step.stiffness.item() * 3.5068, 6)  # the eigenvalue
        2.0
        >>> step.y1 / z  # exp(-0.2)
        tensor([0.8187, 0.8187], dtype=torch.float64)
    """
    tableau = TABLEAUS[checked_choice("method", method, LOCAL_METHODS)]
    checked_number("atol", atol, positive=True)
    checked_number("rtol", rtol, positive=True)
    checked_state("z", z, finite=False)
    start, change = as_time("tau", tau, z), as_step("h", h, z)
    k, states = stages(func, start, z, change, tableau, k1)
    state = z.to(change.dtype)
    y1 = state + change * combination(tableau.solution, k)
    error = error_norm(change * combination(tableau.error, k), state, y1, atol, rtol) * change.abs()
    # Between the points where the dynamics were evaluated, as they were rounded there.
    distance = states[-1].to(change.dtype) - states[-2].to(change.dtype)
    return StepEstimate(y1.to(z.dtype), error, stiffness_estimate(k, distance, tableau), k)


def initial_step(
    func: Dynamics,
    t: Tensor | float,
    z: Tensor,
    order: int = 5,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    *,
    until: Tensor | float | None = None,
    f0: Tensor | None = None,
) -> Tensor:
    """The step an adaptive solver takes when it starts at (t, z).

    Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4, which torchdiffeq and
    OrdinaryDiffEq use too. No gradient is kept.

    Args:
        func: The dynamics f(t, z).
        t: 0-dim, the time.
        z: (...) the state there.
        order: Order of the method.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        until: 0-dim, the end of the integration. It limits the step and gives its sign.
        f0: f(t, z) if it is known; it saves one of the 2 evaluations.

    Returns:
        0-dim step, signed, in the dtype of `z` or float32 for half precision; 0 where `until` is `t`.

    Raises:
        TypeError: If `z` is no tensor.
        ValueError: If `order` or a tolerance is not above 0, `z` is empty, an integer or complex, `t` is not 0-dim, or
            `func` or `f0` has another shape than `z`.

    Examples:
        >>> initial_step(lambda t, y: -y, 0.0, torch.ones(3), until=1.0)
        tensor(0.0457)
    """
    for name, value in (("order", order), ("atol", atol), ("rtol", rtol)):
        checked_number(name, value, positive=True)
    checked_state("z", z, finite=False)
    with torch.no_grad():
        start = as_time("t", t, z)
        f0 = (evaluate(func, start, z) if f0 is None else checked_shape("f0", f0, z)).to(work_dtype(z))
        state = z.detach().to(f0.dtype)
        room = None if until is None else _gap(t, until, f0)
        sign = torch.ones((), dtype=f0.dtype, device=z.device) if room is None else room.sign()
        scale = atol + state.abs() * rtol
        d0, d1 = rms(state / scale), rms(f0 / scale)
        tiny = torch.full_like(d0, 1e-6)
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(small, tiny, 0.01 * d0 / torch.where(small, torch.ones_like(d1), d1))
        if room is not None:
            h0 = torch.minimum(h0, room.abs())
        f1 = evaluate(func, start + (sign * h0).to(start.dtype), (state + sign * h0 * f0).to(z.dtype))
        d2 = rms((f1.to(f0.dtype) - f0) / scale) / torch.where(h0 > 0, h0, tiny)
        steep = torch.maximum(d1, d2)
        flat = steep <= 1e-15
        guarded = torch.where(flat, torch.ones_like(steep), steep)
        h1 = torch.where(flat, torch.maximum(tiny, h0 * 1e-3), (0.01 / guarded) ** (1 / order))
        h = torch.minimum(100 * h0, h1)
        return sign * (h if room is None else torch.minimum(h, room.abs()))


def advance(func: Dynamics, t: Tensor, z: Tensor, h: Tensor) -> Tensor:
    """The state one Tsit5 step later, without gradient: 6 evaluations."""
    tableau = TABLEAUS["tsit5"]
    with torch.no_grad():
        step = as_step("h", h, z)
        k, _ = stages(func, as_time("t", t, z), z, step, tableau, None, count=6)
        return (z.to(step.dtype) + step * combination(tableau.solution[:6], k)).to(z.dtype)


def stages(
    func: Dynamics,
    t: Tensor,
    z: Tensor,
    h: Tensor,
    tableau: Tableau,
    k1: Tensor | None,
    count: int | None = None,
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Evaluate the stages one after another, summed in the dtype of the step; and where they were evaluated."""
    states = [z]
    k = [(evaluate(func, t, z) if k1 is None else checked_shape("k1", k1, z)).to(h.dtype)]
    for node, weights in list(zip(tableau.nodes, tableau.stages, strict=True))[1:count]:
        states.append((z.to(h.dtype) + h * combination(weights, k)).to(z.dtype))
        k.append(evaluate(func, (t + node * h).to(z.dtype), states[-1]).to(h.dtype))
    return tuple(k), states


def evaluate(func: Dynamics, t: Tensor, z: Tensor, name: str = "func") -> Tensor:
    """Evaluate the dynamics and hold their shape against the state's."""
    return checked_shape(name, func(t, z), z, "return")


def combination(weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """Sum of weighted stages.

    Element by element: a matrix product would be rounded to half precision under autocast and to ten bits under TF32,
    and the error weights cancel.
    """
    used = [(weight, one) for weight, one in zip(weights, k, strict=True) if weight]
    total = used[0][1] * used[0][0]
    for weight, one in used[1:]:
        total = torch.add(total, one, alpha=weight)
    return total


def error_norm(error: Tensor, before: Tensor, after: Tensor, atol: float, rtol: float) -> Tensor:
    """Root mean square of the error in units of the tolerance, over all entries."""
    return rms(error / (atol + rtol * torch.maximum(before.abs(), after.abs())))


def stiffness_estimate(k: Sequence[Tensor], distance: Tensor, tableau: Tableau) -> Tensor:
    """Shampine's estimate of the dominant eigenvalue from the two stages at the end of the step."""
    assert tableau.stability_size is not None
    length = rms(distance)
    unknown = length == 0
    ratio = rms(k[-1] - k[-2]) / torch.where(unknown, torch.ones_like(length), length)
    return torch.where(unknown, torch.zeros_like(ratio), ratio) / tableau.stability_size


def rms(x: Tensor) -> Tensor:
    """Root mean square that neither over- nor underflows, and whose gradient at zero is zero."""
    largest = x.detach().abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    mean = (x / scale).square().mean()
    zero = mean == 0  # and not `mean > 0`, which would make a zero of NaN
    root = torch.where(zero, torch.ones_like(mean), mean).sqrt()
    return torch.where(zero, torch.zeros_like(root), scale * root)


def as_time(name: str, value: Tensor | float, z: Tensor) -> Tensor:
    """A time as the dynamics get it from torchdiffeq: 0-dim, in the state's dtype and on its device."""
    return _scalar(name, value, z, z.dtype)


def as_step(name: str, value: Tensor | float, z: Tensor) -> Tensor:
    """A step in the dtype of the sums: half precision would round it, small ones to zero."""
    return _scalar(name, value, z, work_dtype(z))


def _scalar(name: str, value: Tensor | float, z: Tensor, dtype: torch.dtype) -> Tensor:
    found = torch.as_tensor(value, dtype=dtype, device=z.device)
    if found.dim():
        raise ValueError(f"{name} must be a number or a 0-dim tensor, got shape {tuple(found.shape)}")
    return found


def _gap(t: Tensor | float, until: Tensor | float, like: Tensor) -> Tensor:
    """The time that is left: a difference in float64, since rounded times may be equal."""
    ends = [torch.as_tensor(value, dtype=torch.float64, device=like.device) for value in (t, until)]
    return (ends[1] - ends[0]).to(like.dtype)


def work_dtype(z: Tensor) -> torch.dtype:
    """Float32 for half precision, else the dtype itself."""
    return torch.promote_types(z.dtype, torch.float32)
