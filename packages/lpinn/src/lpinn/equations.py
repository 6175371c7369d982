"""Transport equations, their Eulerian and Lagrangian residuals, and the losses built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lpinn.derivatives import Field, Jet, check_points, forward_derivatives

Coefficient = Callable[[Tensor, Tensor, Tensor], Tensor]
LagrangianField = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Reduction = Literal["mse", "norm"]


@dataclass(frozen=True)
class TransportPDE:
    r"""The equation :math:`u_t + c(u, x, t) \cdot \nabla u = \nu \Delta u + s(u, x, t)` (paper, section 2).

    Args:
        speed: `c`: a number, a tensor that broadcasts to `(P, d)`, or a callable of `u (P, m)`, `x (P, d)`
            and `t (P, 1)` that returns such a tensor.
        nu: Viscosity, length squared per time, at least 0.
        source: `s`, a callable of `u`, `x` and `t` returning `(P, m)`, or `None`.

    Raises:
        ValueError: If `nu` is negative.
        TypeError: If `source` cannot be called.

    Example:
        >>> from lpinn import TransportPDE
        >>> flux = TransportPDE(speed=lambda u, x, t: 3.0 * u * (1 - u), nu=0.01)  # official "reaction"
        >>> flux.nu
        0.01
    """

    speed: float | Tensor | Coefficient
    nu: float = 0.0
    source: Coefficient | None = None

    def __post_init__(self) -> None:
        if not self.nu >= 0:
            raise ValueError(f"nu must be at least 0, got {self.nu!r}")
        if self.source is not None and not callable(self.source):
            raise TypeError(
                f"source must be a callable of (u, x, t) or None, got {type(self.source).__name__}"
            )

    @property
    def order(self) -> int:
        """The highest space derivative in the equation: 2 with viscosity, else 1."""
        return 2 if self.nu > 0 else 1

    def velocity(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The speed at `(P, d)` points, shape `(P, d)`."""
        if callable(self.speed) and not isinstance(self.speed, Tensor):
            return self.speed(u, x, t).expand_as(x)
        if isinstance(self.speed, Tensor):
            return self.speed.to(x).expand_as(x)
        return torch.full_like(x, self.speed)

    def forcing(self, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The source, shape `(P, m)`; zeros without one."""
        return torch.zeros_like(u) if self.source is None else self.source(u, x, t).expand_as(u)


def convection(speed: float | Tensor, nu: float = 0.0) -> TransportPDE:
    """The equation of linear convection and diffusion, `u_t + c u_x = nu u_xx`."""
    return TransportPDE(speed, nu)


def burgers(nu: float) -> TransportPDE:
    """Viscous Burgers `u_t + u u_x = nu u_xx`; in `d` dimensions the state is the `d` velocities."""
    return TransportPDE(lambda u, x, t: u, nu)


def reaction(rho: float, speed: float | Tensor = 0.0, nu: float = 0.0) -> TransportPDE:
    """Logistic reaction carried by a flow, `u_t + c u_x = nu u_xx + rho u (1 - u)`."""
    return TransportPDE(speed, nu, lambda u, x, t: rho * u * (1 - u))


def mean_speed(
    pde: TransportPDE, u0: Callable[[Tensor], Tensor], length: float, num_points: int = 256
) -> float:
    """The mean speed of the initial data over one period: a `frame_speed` for `LagrangianNet`.

    Args:
        pde: The equation.
        u0: Initial state, `(P, 1) -> (P, m)`.
        length: Period.
        num_points: Samples of the mean.

    Returns:
        Mean of `c(u0(x), x, 0)`.

    Example:
        >>> import torch
        >>> from lpinn import burgers, mean_speed
        >>> round(mean_speed(burgers(0.1), lambda x: 20 + torch.sin(x), 2 * torch.pi), 6)
        20.0
    """
    x = torch.arange(num_points, dtype=torch.float64)[:, None] * (length / num_points)
    return float(pde.velocity(u0(x), x, torch.zeros_like(x)).mean())


class LagrangianResiduals(NamedTuple):
    """What a Lagrangian field leaves of its two equations.

    Attributes:
        characteristics: `dx/dt - c`, shape `(P, d)`.
        state: `du/dt - nu Laplacian(u) - s` along the characteristics, shape `(P, m)`.
        jacobian: `J = dx/dx0`, shape `(P, d, d)`; characteristics have crossed where `det J <= 0`.
    """

    characteristics: Tensor
    state: Tensor
    jacobian: Tensor


def lagrangian_residuals(
    net: LagrangianField,
    pde: TransportPDE,
    x0: Tensor,
    t: Tensor,
    diffusion: Literal["exact", "label"] = "exact",
) -> LagrangianResiduals:
    r"""Residuals of the characteristics and of the state along them (paper, section 3).

    .. math:: r_x = \partial_t x(x_0, t) - c, \qquad r_u = \partial_t u(x_0, t) - \nu \Delta_x u - s.

    With :math:`J = \partial x / \partial x_0` and :math:`g = J^{-T} \nabla_{x_0} u` the Laplacian in physical
    space is :math:`\sum_{kl} (u_{kl} - g \cdot x_{kl}) (J^{-1} J^{-T})_{kl}`, in one dimension
    :math:`(u_{00} - x_{00} u_0 / J) / J^2`.

    Args:
        net: `LagrangianNet`, or any differentiable map `(x0, t) -> (x, u)`.
        pde: The equation.
        x0: Labels (where each characteristic starts), shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        diffusion: `"exact"` as above, or `"label"`: the label Laplacian of `u` in its place, as in the
            official code, which is right only where `J = 1`.

    Returns:
        Both residuals and the Jacobian, from one evaluation.

    Raises:
        ValueError: If a shape or `diffusion` is wrong.
    """
    check_points(x0, t, "x0")
    if diffusion not in ("exact", "label"):
        raise ValueError(f"diffusion must be 'exact' or 'label', got {diffusion!r}")
    x_order = pde.order if diffusion == "exact" else 1
    x, u = lagrangian_jets(net, x0, t, x_order, pde.order)
    state = u.time - pde.forcing(u.value, x.value, t)
    if u.hessian is not None:
        laplacian = _trace(u.hessian) if x.hessian is None else _physical_laplacian(x, u)
        state = state - pde.nu * laplacian
    return LagrangianResiduals(x.time - pde.velocity(u.value, x.value, t), state, x.space)


def eulerian_residual(net: Field, pde: TransportPDE, x: Tensor, t: Tensor) -> Tensor:
    r"""The residual of an ordinary PINN, :math:`u_t + c \cdot \nabla u - \nu \Delta u - s`.

    Args:
        net: `EulerianNet`, or any differentiable map `(x, t) -> u`.
        pde: The equation.
        x: Points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.

    Returns:
        The residual, shape `(P, m)`.

    Raises:
        ValueError: If a shape is wrong.
    """
    check_points(x, t)
    jet = _eulerian_jet(net, x, t, pde.order)
    velocity = pde.velocity(jet.value, x, t)
    residual = jet.time + (jet.space * velocity[:, None, :]).sum(-1) - pde.forcing(jet.value, x, t)
    return residual if jet.hessian is None else residual - pde.nu * _trace(jet.hessian)


def lpinn_loss(
    net: LagrangianField,
    pde: TransportPDE,
    x0: Tensor,
    t: Tensor,
    ic_x: Tensor | None = None,
    ic_u: Tensor | None = None,
    weights: tuple[float, float, float] = (10.0, 1.0, 1000.0),
    reduction: Reduction = "mse",
    diffusion: Literal["exact", "label"] = "exact",
) -> Tensor:
    r"""The training loss of a Lagrangian PINN (paper, section 3; weights of the official code).

    .. math:: \gamma_x \|r_x\| + \gamma_u \|r_u\| + \gamma_{IC} (\|x(x_0, 0) - x_0\| + \|u(x_0, 0) - u_0\|)

    Args:
        net: Map `(x0, t) -> (x, u)`.
        pde: The equation.
        x0: Collocation labels, shape `(P, d)`.
        t: Collocation times, shape `(P, 1)`.
        ic_x: Labels of the initial condition, shape `(Q, d)`; `None` if the network satisfies it exactly.
        ic_u: Initial states there, shape `(Q, m)`.
        weights: `(gamma_x, gamma_u, gamma_IC)`.
        reduction: `"mse"`, mean of squares, or `"norm"`, the unsquared Euclidean norm over all points of the
            official code (not differentiable at its minimum: L-BFGS stalls on it).
        diffusion: As in `lagrangian_residuals`.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If a shape or an option is wrong.
    """
    reduce = _reducer(reduction)
    residuals = lagrangian_residuals(net, pde, x0, t, diffusion)
    loss = weights[0] * reduce(residuals.characteristics) + weights[1] * reduce(residuals.state)
    initial = _initial_points(ic_x, ic_u)
    if initial is None:
        return loss
    labels, states = initial
    x, u = net(labels, torch.zeros_like(labels[:, :1]))
    return loss + weights[2] * (reduce(x - labels) + reduce(u - states))


def pinn_loss(
    net: Field,
    pde: TransportPDE,
    x: Tensor,
    t: Tensor,
    ic_x: Tensor | None = None,
    ic_u: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1000.0),
    reduction: Reduction = "mse",
    ic_t: float = 0.0,
) -> Tensor:
    """The training loss of an ordinary PINN, the baseline: residual and initial condition.

    Args:
        net: Map `(x, t) -> u`.
        pde: The equation.
        x: Collocation points, shape `(P, d)`.
        t: Collocation times, shape `(P, 1)`.
        ic_x: Points of the initial condition, shape `(Q, d)`; `None` if the network satisfies it exactly.
        ic_u: States there, shape `(Q, m)`.
        weights: Of the residual and of the initial condition.
        reduction: As in `lpinn_loss`.
        ic_t: Time of the initial condition (the start of the window in sequence-to-sequence training).

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If a shape or an option is wrong.
    """
    reduce = _reducer(reduction)
    loss = weights[0] * reduce(eulerian_residual(net, pde, x, t))
    initial = _initial_points(ic_x, ic_u)
    if initial is None:
        return loss
    points, states = initial
    return loss + weights[1] * reduce(net(points, torch.full_like(points[:, :1], ic_t)) - states)


def periodic_penalty(net: Field, length: float, t: Tensor, reduction: Reduction = "mse") -> Tensor:
    """Boundary loss of a one-dimensional PINN that is not periodic by construction (official weight: 10).

    Args:
        net: Map `(x, t) -> u`.
        length: Period.
        t: Boundary times, shape `(P, 1)`.
        reduction: As in `lpinn_loss`.

    Returns:
        The reduced jump `u(length, t) - u(0, t)`, a scalar.
    """
    return _reducer(reduction)(net(torch.full_like(t, length), t) - net(torch.zeros_like(t), t))


def validate_points(
    x0: Tensor,
    t: Tensor,
    length: float,
    outside: Literal["raise", "wrap"] = "raise",
) -> Tensor:
    """Check collocation points once, before the training loop; the losses check shapes only.

    Args:
        x0: Labels or points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        length: Period: labels belong to `[0, length]`.
        outside: What happens to labels that do not: `"raise"`, or `"wrap"` them into the period.

    Returns:
        The labels, wrapped if asked for.

    Raises:
        ValueError: If a shape is wrong, a time negative, or a label outside and `outside="raise"`.
    """
    check_points(x0, t, "x0")
    if outside not in ("raise", "wrap"):
        raise ValueError(f"outside must be 'raise' or 'wrap', got {outside!r}")
    if (t < 0).any():
        raise ValueError(f"t must not be negative, got a smallest time of {t.min().item():g}")
    inside = (x0 >= 0) & (x0 <= length)
    if inside.all():
        return x0
    if outside == "raise":
        low, high = x0.min().item(), x0.max().item()
        raise ValueError(f"x0 must lie in [0, {length:g}], got values from {low:g} to {high:g}")
    return torch.where(inside, x0, x0.remainder(length))


def lagrangian_jets(
    net: LagrangianField, x0: Tensor, t: Tensor, x_order: int, u_order: int
) -> tuple[Jet, Jet]:
    """Jets of positions and states of any Lagrangian field."""
    if hasattr(net, "jets"):
        return net.jets(x0, t, x_order, u_order)
    d = x0.shape[1]
    jet = forward_derivatives(lambda x0, t: torch.cat(net(x0, t), dim=-1), x0, t, max(x_order, u_order))
    return _components(jet, slice(None, d), x_order), _components(jet, slice(d, None), u_order)


def _eulerian_jet(net: Field, x: Tensor, t: Tensor, order: int) -> Jet:
    return net.jet(x, t, order) if hasattr(net, "jet") else forward_derivatives(net, x, t, order)


def _components(jet: Jet, part: slice, order: int) -> Jet:
    hessian = jet.hessian[:, part] if order == 2 and jet.hessian is not None else None
    return Jet(jet.value[:, part], jet.space[:, part], jet.time[:, part], hessian)


def _physical_laplacian(x: Jet, u: Jet) -> Tensor:
    assert x.hessian is not None
    assert u.hessian is not None
    if x.space.shape[-1] == 1:
        inverse = x.space.reciprocal()
    else:
        # inv_ex: a single folded point must not stop a training run.
        inverse = torch.linalg.inv_ex(x.space).inverse
    # Broadcast products: batched products of d x d matrices are slower than the few multiplications they hold.
    gradient = (u.space[..., None] * inverse[:, None]).sum(-2)
    metric = (inverse[:, :, None, :] * inverse[:, None, :, :]).sum(-1)
    curvature = u.hessian - (gradient[..., None, None] * x.hessian[:, None]).sum(2)
    return (curvature * metric[:, None]).sum((-2, -1))


def _trace(hessian: Tensor) -> Tensor:
    return hessian.diagonal(dim1=-2, dim2=-1).sum(-1)


def _reducer(reduction: Reduction) -> Callable[[Tensor], Tensor]:
    if reduction == "mse":
        return lambda residual: residual.square().mean()
    if reduction == "norm":
        return torch.linalg.vector_norm
    raise ValueError(f"reduction must be 'mse' or 'norm', got {reduction!r}")


def _initial_points(ic_x: Tensor | None, ic_u: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if ic_x is None and ic_u is None:
        return None
    if ic_x is None or ic_u is None:
        raise ValueError("ic_x and ic_u must be given together, got only one of them")
    if ic_x.ndim != 2 or ic_u.ndim != 2 or len(ic_x) != len(ic_u) or len(ic_x) == 0:
        found = f"{tuple(ic_x.shape)} and {tuple(ic_u.shape)}"
        raise ValueError(f"ic_x and ic_u must be non-empty of shapes (Q, d) and (Q, m), got {found}")
    return ic_x, ic_u
