"""The training losses: of a Lagrangian PINN, of an ordinary one, and of its missing boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from lpinn.checks import check_points, described, finite_number, period
from lpinn.derivatives import Field, LagrangianField
from lpinn.equations import TransportPDE
from lpinn.residuals import eulerian_residual, lagrangian_residuals

Reduction = Literal["mse", "norm"]
Diffusion = Literal["exact", "label"]


class LagrangianTerms(NamedTuple):
    """The loss of a Lagrangian PINN and its terms, each reduced and not weighted: log them, weight them anew.

    Attributes:
        total: The weighted sum, what `lpinn_loss` returns without `terms`.
        characteristics: `|r_x|`.
        state: `|r_u|`.
        initial_position: `|x(x0, 0) - x0|`; 0 without initial points.
        initial_state: `|u(x0, 0) - u0|`; 0 without initial points.
    """

    total: Tensor
    characteristics: Tensor
    state: Tensor
    initial_position: Tensor
    initial_state: Tensor


class EulerianTerms(NamedTuple):
    """The loss of an ordinary PINN and its terms, each reduced and not weighted.

    Attributes:
        total: The weighted sum, what `pinn_loss` returns without `terms`.
        residual: That of the equation.
        initial: `|u(x, ic_t) - u0|`; 0 without initial points.
    """

    total: Tensor
    residual: Tensor
    initial: Tensor


@overload
def lpinn_loss(
    net: LagrangianField,
    pde: TransportPDE,
    x0: Tensor,
    t: Tensor,
    ic_x: Tensor | None = ...,
    ic_u: Tensor | None = ...,
    weights: Sequence[float | Tensor] = ...,
    reduction: Reduction = ...,
    diffusion: Diffusion = ...,
    terms: Literal[False] = ...,
) -> Tensor: ...


@overload
def lpinn_loss(
    net: LagrangianField,
    pde: TransportPDE,
    x0: Tensor,
    t: Tensor,
    ic_x: Tensor | None = ...,
    ic_u: Tensor | None = ...,
    weights: Sequence[float | Tensor] = ...,
    reduction: Reduction = ...,
    diffusion: Diffusion = ...,
    *,
    terms: Literal[True],
) -> LagrangianTerms: ...


def lpinn_loss(
    net: LagrangianField,
    pde: TransportPDE,
    x0: Tensor,
    t: Tensor,
    ic_x: Tensor | None = None,
    ic_u: Tensor | None = None,
    weights: Sequence[float | Tensor] = (10.0, 1.0, 1000.0),
    reduction: Reduction = "mse",
    diffusion: Diffusion = "exact",
    terms: bool = False,
) -> Tensor | LagrangianTerms:
    r"""The training loss of a Lagrangian PINN (paper, section 3; weights of the official code).

    .. math:: \gamma_x \|r_x\| + \gamma_u \|r_u\| + \gamma_{IC} (\|x(x_0, 0) - x_0\| + \|u(x_0, 0) - u_0\|)

    Args:
        net: Map `(x0, t) -> (x, u)`.
        pde: The equation.
        x0: Collocation labels, shape `(P, d)`.
        t: Collocation times, shape `(P, 1)`.
        ic_x: Labels of the initial condition, shape `(Q, d)`; `None` if the network satisfies it exactly, or no
            initial state is known.
        ic_u: Initial states there, shape `(Q, m)`.
        weights: `(gamma_x, gamma_u, gamma_IC)`, numbers of at least 0 or tensors.
        reduction: `"mse"`, mean of squares, or `"norm"`, the unsquared Euclidean norm over all points of the
            official code (not differentiable at its minimum: L-BFGS stalls on it).
        diffusion: As in `lagrangian_residuals`.
        terms: Return the terms by name beside their weighted sum.

    Returns:
        The loss, a scalar; with `terms` the `LagrangianTerms`.

    Raises:
        ValueError: If a shape or an option is wrong, or `net` was given an initial state that neither it nor
            initial points enforce.

    Examples:
        >>> import torch
        >>> from lpinn import LagrangianNet, burgers, lpinn_loss
        >>> net, x0, t = LagrangianNet(u0=torch.sin), torch.rand(8, 1), torch.rand(8, 1)
        >>> loss = lpinn_loss(net, burgers(0.1), x0, t, terms=True)
        >>> bool(loss.total == 10 * loss.characteristics + loss.state)
        True
    """
    reduce = _reducer(reduction)
    check_weights(weights, 3)
    initial = _initial_points(net, x0, ic_x, ic_u)
    residuals = lagrangian_residuals(net, pde, x0, t, diffusion)
    along, state = reduce(residuals.characteristics), reduce(residuals.state)
    total = weights[0] * along + weights[1] * state
    position, start = torch.zeros_like(along), torch.zeros_like(along)
    if initial is not None:
        labels, states = initial
        x, u = net(labels, torch.zeros_like(labels[:, :1]))
        position, start = reduce(_gap(x, labels, "ic_x")), reduce(_gap(u, states, "ic_u"))
        total = total + weights[2] * (position + start)
    return LagrangianTerms(total, along, state, position, start) if terms else total


@overload
def pinn_loss(
    net: Field,
    pde: TransportPDE,
    x: Tensor,
    t: Tensor,
    ic_x: Tensor | None = ...,
    ic_u: Tensor | None = ...,
    weights: Sequence[float | Tensor] = ...,
    reduction: Reduction = ...,
    ic_t: float = ...,
    terms: Literal[False] = ...,
) -> Tensor: ...


@overload
def pinn_loss(
    net: Field,
    pde: TransportPDE,
    x: Tensor,
    t: Tensor,
    ic_x: Tensor | None = ...,
    ic_u: Tensor | None = ...,
    weights: Sequence[float | Tensor] = ...,
    reduction: Reduction = ...,
    ic_t: float = ...,
    *,
    terms: Literal[True],
) -> EulerianTerms: ...


def pinn_loss(
    net: Field,
    pde: TransportPDE,
    x: Tensor,
    t: Tensor,
    ic_x: Tensor | None = None,
    ic_u: Tensor | None = None,
    weights: Sequence[float | Tensor] = (1.0, 1000.0),
    reduction: Reduction = "mse",
    ic_t: float = 0.0,
    terms: bool = False,
) -> Tensor | EulerianTerms:
    """The training loss of an ordinary PINN, the baseline: residual and initial condition.

    Args:
        net: Map `(x, t) -> u`.
        pde: The equation.
        x: Collocation points, shape `(P, d)`.
        t: Collocation times, shape `(P, 1)`.
        ic_x: Points of the initial condition, shape `(Q, d)`; `None` if the network satisfies it exactly, or no
            initial state is known.
        ic_u: States there, shape `(Q, m)`.
        weights: Of the residual and of the initial condition.
        reduction: As in `lpinn_loss`.
        ic_t: Time of the initial condition (the start of the window in sequence-to-sequence training).
        terms: Return the terms by name beside their weighted sum.

    Returns:
        The loss, a scalar; with `terms` the `EulerianTerms`.

    Raises:
        ValueError: If a shape or an option is wrong, or `net` was given an initial state that neither it nor
            initial points enforce.
    """
    reduce = _reducer(reduction)
    check_weights(weights, 2)
    initial = _initial_points(net, x, ic_x, ic_u)
    if initial is None and ic_t != 0 and getattr(net, "u0", None) is not None:
        raise ValueError(
            f"ic_x and ic_u must be given with ic_t={ic_t!r}; a built-in initial condition is at 0"
        )
    residual = reduce(eulerian_residual(net, pde, x, t))
    total, start = weights[0] * residual, torch.zeros_like(residual)
    if initial is not None:
        points, states = initial
        start = reduce(_gap(net(points, torch.full_like(points[:, :1], ic_t)), states, "ic_u"))
        total = total + weights[1] * start
    return EulerianTerms(total, residual, start) if terms else total


def periodic_penalty(
    net: Field, length: float, t: Tensor, reduction: Reduction = "mse", origin: float = 0.0
) -> Tensor:
    """Boundary loss of a one-dimensional PINN that is not periodic by construction (official weight: 10).

    Args:
        net: Map `(x, t) -> u`.
        length: Period.
        t: Boundary times, shape `(P, 1)`.
        reduction: As in `lpinn_loss`.
        origin: Where the period starts.

    Returns:
        The reduced jump `u(origin + length, t) - u(origin, t)`, a scalar.

    Raises:
        ValueError: If the shape of `t`, `length`, `origin` or `reduction` is wrong.
    """
    reduce = _reducer(reduction)
    check_points(t, t, "t")
    length, origin = period(length), finite_number("origin", origin)
    return reduce(net(torch.full_like(t, origin + length), t) - net(torch.full_like(t, origin), t))


def _reducer(reduction: Reduction) -> Callable[[Tensor], Tensor]:
    if reduction == "mse":
        return lambda residual: residual.square().mean()
    if reduction == "norm":
        return torch.linalg.vector_norm
    raise ValueError(f"reduction must be 'mse' or 'norm', got {reduction!r}")


def check_weights(weights: Sequence[float | Tensor], size: int) -> None:
    """Raise unless there are `size` weights, those given as numbers finite and not negative."""
    if len(weights) != size:
        raise ValueError(f"weights must be {size} numbers, got {len(weights)}")
    if any(isinstance(weight, Real) and not 0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights must be finite and not negative, got {weights!r}")


def _initial_points(
    net: Any, like: Tensor, ic_x: Tensor | None, ic_u: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    if ic_x is None and ic_u is None:
        check_initial(net)
        return None
    if ic_x is None or ic_u is None:
        raise ValueError("ic_x and ic_u must be given together, got only one of them")
    if ic_x.ndim != 2 or ic_u.ndim != 2 or len(ic_x) != len(ic_u) or len(ic_x) == 0:
        found = f"{tuple(ic_x.shape)} and {tuple(ic_u.shape)}"
        raise ValueError(f"ic_x and ic_u must be non-empty of shapes (Q, d) and (Q, m), got {found}")
    if ic_x.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"ic_x must have the dimensions of the points {tuple(like.shape)}, got {described(ic_x)}"
        )
    return ic_x, ic_u


def check_initial(net: Any) -> None:
    """Raise if nothing would hold a network to the initial state it was given."""
    if getattr(net, "asks_for_ic", False):
        raise ValueError(
            "ic_x and ic_u must be given: net was made with u0 and hard_ic=False, so that only the loss can enforce it"
        )


def _gap(found: Tensor, wanted: Tensor, name: str) -> Tensor:
    # Shapes that only broadcast would compare every point with every other.
    if found.shape != wanted.shape:
        raise ValueError(
            f"{name} must have the shape of what net gives, {described(found)}, got {described(wanted)}"
        )
    return found - wanted
