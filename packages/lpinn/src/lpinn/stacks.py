"""Taylor mode through a stack of plain layers, in torch operations: they can be compiled and differentiated anyhow.

Points and derivatives come as rows `(K, P, m)`: the value in front, the `d` slopes in space, the slope in time and, at
order 2, the Hessian's upper triangle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpinn.activations import RULES, Rule

# A linear layer's weight and bias, or an activation.
Step = tuple[Tensor, Tensor | None] | Rule


def is_known(layer: nn.Module) -> bool:
    """Whether `steps` knows what a layer of exactly this type does."""
    # Nowhere else is RULES read: compilers of torch 2.4 cannot guard one table that two modules name.
    return type(layer) in (nn.Linear, nn.Identity, *RULES)


def steps(layers: Iterable[nn.Module]) -> Iterator[Step]:
    """What linear layers, identities and activations of `RULES` do to rows."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            yield layer.weight, layer.bias
        elif not isinstance(layer, nn.Identity):
            yield RULES[type(layer)]


def carry_traced(steps: Iterable[Step], rows: Tensor, dimensions: int) -> Tensor:
    """Carry rows through linear layers and activations."""
    value, derivatives = rows[0], rows[1:]
    for step in steps:
        if isinstance(step, tuple):
            weight, bias = step
            value, derivatives = F.linear(value, weight, bias), F.linear(derivatives, weight)
        else:
            value, derivatives = _activate(step, value, derivatives, dimensions)
    return torch.cat([value[None], derivatives])


def pairs(dimensions: int) -> list[tuple[int, int]]:
    """The entries of the Hessian's upper triangle."""
    return [(i, j) for i in range(dimensions) for j in range(i, dimensions)]


def _activate(rule: Rule, z: Tensor, derivatives: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    value, first, second = rule(z)
    rest = derivatives.unbind(0)
    slopes, bends = rest[: dimensions + 1], rest[dimensions + 1 :]
    found = [first * slope for slope in slopes]
    entries = pairs(dimensions)[: len(bends)]  # at order 1 there are no bends
    for (i, j), bend in zip(entries, bends, strict=True):
        found.append(torch.addcmul(first * bend, second, slopes[i] * slopes[j]))
    return value, torch.stack(found)
