"""What a network leaves of its equations: the Lagrangian residuals, and the Eulerian one of an ordinary PINN."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lpinn.checks import check_points
from lpinn.derivatives import (
    Field,
    LagrangianField,
    closed_form,
    module_derivatives,
    split_derivatives,
)
from lpinn.equations import TransportPDE
from lpinn.taylor import Jet


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
        ValueError: If a shape or `diffusion` is wrong, or `net` holds dropout or batch normalisation in training.
        TypeError: If `net` does not return a pair of tensors.
    """
    check_points(x0, t, "x0")
    if diffusion not in ("exact", "label"):
        raise ValueError(f"diffusion must be 'exact' or 'label', got {diffusion!r}")
    x_order = pde.order if diffusion == "exact" else 1
    x, u = lagrangian_jets(net, x0, t, x_order, pde.order)
    state = u.time - pde.forcing(u.value, x.value, t)
    if u.hessian is not None:
        laplacian = _trace(u.hessian) if x.hessian is None else _physical_laplacian(x, u)
        state = state - pde.viscosity() * laplacian
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
        ValueError: If a shape is wrong, or `net` holds dropout or batch normalisation in training mode.
        TypeError: If `net` does not return a tensor.
    """
    check_points(x, t)
    jet = _eulerian_jet(net, x, t, pde.order)
    velocity = pde.velocity(jet.value, x, t)
    residual = jet.time + (jet.space * velocity[:, None, :]).sum(-1) - pde.forcing(jet.value, x, t)
    return residual if jet.hessian is None else residual - pde.viscosity() * _trace(jet.hessian)


def lagrangian_jets(
    net: LagrangianField, x0: Tensor, t: Tensor, x_order: int, u_order: int
) -> tuple[Jet, Jet]:
    """Jets of positions and states of any Lagrangian field."""
    known = closed_form(net, "jets")
    if known is not None:
        jets: tuple[Jet, Jet] = known(x0, t, x_order, u_order)
        return jets
    return split_derivatives(net, x0, t, x_order, u_order)


def _eulerian_jet(net: Field, x: Tensor, t: Tensor, order: int) -> Jet:
    known = closed_form(net, "jet")
    if known is not None:
        jet: Jet = known(x, t, order)
        return jet
    return module_derivatives(net, net, x, t, order)


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
