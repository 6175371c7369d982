"""Taylor mode: a value and its derivatives carried together through plain layers.

Only layers known to compute what their weights say come here: an exact type, without hooks and without a
`forward` of its own. All else is left to `lpinn.derivatives.forward_derivatives`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lpinn.fused import carry
from lpinn.stacks import is_known, pairs


class Jet(NamedTuple):
    """A field `f(x, t)` at `P` points with its derivatives; `m` components, `d` space dimensions.

    Attributes:
        value: `f`, shape `(P, m)`.
        space: `df/dx_i`, shape `(P, m, d)`.
        time: `df/dt`, shape `(P, m)`.
        hessian: `d2f/dx_i dx_j`, shape `(P, m, d, d)`; `None` at order 1.
    """

    value: Tensor
    space: Tensor
    time: Tensor
    hessian: Tensor | None


def plain_layers(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a stack in the order they act, or `None` if any of them may do more than its type says."""
    layers = list(_flatten(module))
    return layers if all(_is_plain(layer) for layer in layers) else None


def propagate(layers: Sequence[nn.Module], jet: Jet) -> Jet:
    """Carry a jet through plain layers."""
    d = jet.space.shape[-1]
    return _to_jet(carry(layers, _to_rows(jet), d), d)


def is_altered(module: nn.Module) -> bool:
    """Whether hooks (pruning and the older weight norm are hooks) or a patched `forward` act around the class's own."""
    hooks: tuple[Any, ...] = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(len(kind) > 0 for kind in hooks) or "forward" in module.__dict__


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    # The exact type: a subclass may add a residual or anything else in its forward.
    if type(module) is nn.Sequential and not is_altered(module):
        for child in module:
            yield from _flatten(child)
    else:
        yield module


def _is_plain(layer: nn.Module) -> bool:
    return is_known(layer) and not is_altered(layer)


def _to_rows(jet: Jet) -> Tensor:
    """A jet in the layout matrix products like: value, slopes in space, slope in time, each Hessian entry once."""
    d = jet.space.shape[-1]
    rows = [jet.value, *jet.space.unbind(-1), jet.time]
    if jet.hessian is not None:
        rows += [jet.hessian[..., i, j] for i, j in pairs(d)]
    return torch.stack(rows)


def _to_jet(rows: Tensor, d: int) -> Jet:
    value, space, time = rows[0], rows[1 : d + 1].movedim(0, -1), rows[d + 1]
    if len(rows) == d + 2:
        return Jet(value, space, time, None)
    entry = {pair: d + 2 + i for i, pair in enumerate(pairs(d))}
    order = [entry[min(i, j), max(i, j)] for i in range(d) for j in range(d)]
    hessian = rows[order] if d > 1 else rows[d + 2 :]
    return Jet(value, space, time, hessian.movedim(0, -1).unflatten(-1, (d, d)))
