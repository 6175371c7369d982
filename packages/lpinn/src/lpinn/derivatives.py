"""Derivatives of a coordinate network: Taylor mode where it is known to be right, forward mode for anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.func import jvp

from lpinn.checks import check_points, described
from lpinn.pointwise import check_pointwise, is_left_to_eager, pointwise
from lpinn.taylor import Jet, is_altered, plain_layers, propagate

Field = Callable[[Tensor, Tensor], Tensor]
LagrangianField = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fast_derivatives(mlp: nn.Module, features: Field | None, x: Tensor, t: Tensor, order: int = 2) -> Jet:
    r"""Value and derivatives of `mlp(features(x, t))` in one forward pass.

    The value and its directional derivatives travel through the layers together (Taylor mode): a linear
    layer multiplies each by its weight, and an activation `s` follows

    .. math:: a = s(z),\quad a_i = s'(z) z_i,\quad a_{ij} = s''(z) z_i z_j + s'(z) z_{ij}.

    The result is an ordinary differentiable graph without nested backward passes; one `backward` through it
    gives the parameter gradients, and `torch.compile` fuses it. Memory: `2 + d + d (d + 1) / 2` activations
    per unit and point (4 in one dimension at order 2).

    Args:
        mlp: `torch.nn.Sequential` (nested ones too) of `Linear`, `Identity` and the activations `Tanh`,
            `Sigmoid`, `SiLU` and `lpinn.Sine`, exactly these types and without hooks. Every other module, a
            subclass of these or one with hooks, weight norm or pruning, is differentiated whole by
            `forward_derivatives`, which is slower and gives what calling the module gives.
        features: Map `(x, t) -> (P, F)` in front of `mlp`, e.g. `PeriodicFeatures`; `None` concatenates `x`
            and `t`.
        x: Points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        order: 1 leaves the Hessian out, 2 includes it.

    Returns:
        The `Jet` of the composed field.

    Raises:
        ValueError: If `order` is neither 1 nor 2, the shapes do not fit, or `mlp` draws dropout masks or
            normalises over the batch (in training mode).
        TypeError: If `mlp` does not return a tensor.

    Examples:
        >>> import torch
        >>> from lpinn import PeriodicFeatures, fast_derivatives
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> jet = fast_derivatives(mlp, PeriodicFeatures(2.0), torch.rand(5, 1), torch.rand(5, 1))
        >>> jet.value.shape, jet.space.shape, jet.hessian.shape
        (torch.Size([5, 1]), torch.Size([5, 1, 1]), torch.Size([5, 1, 1, 1]))
    """
    check_points(x, t)
    _check_order(order)
    features = _concatenate if features is None else features
    layers = plain_layers(mlp)
    if layers is None:
        return module_derivatives(mlp, lambda x, t: mlp(features(x, t)), x, t, order)
    jet = closed_form(features, "jet")
    return propagate(layers, forward_derivatives(features, x, t, order) if jet is None else jet(x, t, order))


def forward_derivatives(field: Field, x: Tensor, t: Tensor, order: int = 2) -> Jet:
    """Derivatives of any pointwise field by nested forward-mode differentiation (`torch.func.jvp`).

    Each derivative is one pass over all points at once, whatever is inside `field`; rows must not see each
    other (no batch normalisation), and every pass must compute the same (no dropout). `field` is made of torch
    operations that keep the derivative: no `detach`, `inference_mode` or NumPy, and no `autograd.Function` of your
    own, whose second derivative torch takes for 0 in forward mode. Compiled, layer and instance normalisation
    inside of a function are wrong too; in a module given to the losses they are left out of the graph.

    Args:
        field: Map `(x, t) -> (P, m)`.
        x: Points, shape `(P, d)`.
        t: Times, shape `(P, 1)`.
        order: 1 or 2.

    Returns:
        The `Jet` of the field.

    Raises:
        ValueError: If `order` is neither 1 nor 2, a shape is wrong, `field` does not return `(P, m)`, or it draws
            dropout masks or normalises over the batch.
        TypeError: If `field` does not return a tensor.
    """
    check_points(x, t)
    _check_order(order)
    directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def along(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: jvp(function, (x,), (direction.expand_as(x),))[1]

    def checked(x: Tensor, t: Tensor) -> Tensor:
        return check_output(pointwise(field)(x, t), len(x), "the field")

    def at_time(x: Tensor) -> Tensor:
        return checked(x, t)

    slopes = [along(at_time, direction) for direction in directions]
    value, time, *_ = jvp(lambda t: checked(x, t), (t,), (torch.ones_like(t),))
    space = torch.stack([slope(x) for slope in slopes], dim=-1)
    if order == 1:
        return Jet(value, space, time, None)
    rows = [torch.stack([along(slope, direction)(x) for direction in directions], dim=-1) for slope in slopes]
    return Jet(value, space, time, torch.stack(rows, dim=-2))


# What torch itself marks functions with: `torch.compiler.disable` would import the compiler along with this module.
_outside_of_compiled_graphs = _disable_dynamo(forward_derivatives)


def module_derivatives(module: Any, field: Field, x: Tensor, t: Tensor, order: int) -> Jet:
    """The jet of a field that calls `module`: checked, and outside of a compiled graph where that would be wrong."""
    check_pointwise(module)
    is_left_out = torch.compiler.is_compiling() and is_left_to_eager(module)
    run = _outside_of_compiled_graphs if is_left_out else forward_derivatives
    jet: Jet = run(field, x, t, order)
    return jet


def split_derivatives(
    net: LagrangianField, x0: Tensor, t: Tensor, x_order: int, u_order: int
) -> tuple[Jet, Jet]:
    """Jets of positions and states of any map `(x0, t) -> (x, u)`, differentiated as one field."""
    d = x0.shape[1]

    def both(x0: Tensor, t: Tensor) -> Tensor:
        parts = net(x0, t)
        if not isinstance(parts, tuple | list) or len(parts) != 2:
            raise TypeError(f"net must return a pair (positions, states), got {type(parts).__name__}")
        return torch.cat(
            [
                check_output(parts[0], len(x0), "positions of net", d),
                check_output(parts[1], len(x0), "states of net"),
            ],
            dim=-1,
        )

    jet = module_derivatives(net, both, x0, t, max(x_order, u_order))
    return _columns(jet, slice(None, d), x_order), _columns(jet, slice(d, None), u_order)


def _columns(jet: Jet, part: slice, order: int) -> Jet:
    hessian = jet.hessian[:, part] if order == 2 and jet.hessian is not None else None
    return Jet(jet.value[:, part], jet.space[:, part], jet.time[:, part], hessian)


class ClosedForm(nn.Module):
    """A module that knows its own derivatives, in `jet` or `jets`.

    A subclass with another `forward` is another field: unless it brings derivatives of its own they are not used.
    """

    overtaken = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        depth = {name: i for i, kind in reversed([*enumerate(cls.__mro__)]) for name in vars(kind)}
        cls.overtaken = any(depth.get(name, 0) > depth["forward"] for name in ("jet", "jets"))


def closed_form(field: Any, name: str) -> Callable[..., Any] | None:
    """The method `name` of a field that knows its own derivatives, or `None` where it does not speak for `forward`."""
    if not isinstance(field, ClosedForm) or field.overtaken or is_altered(field):
        return None
    method: Callable[..., Any] | None = getattr(field, name, None)
    return method


def check_output(value: Any, num_points: int, name: str, columns: int | None = None) -> Tensor:
    """The output of a user's function, which must be `(P, m)`: anything else would broadcast into a wrong number."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} must not be computed under torch.inference_mode, which drops its derivatives"
        )
    wanted = f"({num_points}, {'m' if columns is None else columns})"
    if value.ndim != 2 or len(value) != num_points or columns not in (None, value.shape[1]):
        raise ValueError(f"{name} must return shape {wanted}, got {described(value)}")
    return value


def _check_order(order: int) -> None:
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")


def _concatenate(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([x, t], dim=-1)
