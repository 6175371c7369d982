"""Taylor mode through linear layers with tanh or sigmoid as one autograd function, its gradient written by hand.

It works on blocks of points that stay in the cache and keeps one tensor a layer: with `s' = c + b s - s^2` the rows
behind an activation are those before it times `s'`, once the Hessian's have been bent by `s'' / s' = b - 2 s`,

    a_i = s' z_i,    a_ij = s' y_ij,    y_ij = z_ij + (b - 2 s) z_i z_j,

so that `s`, `z_i` and `y_ij` tell everything. What else the gradient needs takes less time to compute again than to
fetch from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lpinn.activations import RICCATI, Riccati
from lpinn.stacks import Step, carry_traced, pairs, steps

# Smaller ones pay for more calls, larger ones for the way to memory.
_BLOCK = 1024


class _Stage(NamedTuple):
    """A linear layer and the activation behind it."""

    weight: Tensor
    bias: Tensor | None
    rule: Riccati | None


def carry(layers: Sequence[nn.Module], rows: Tensor, dimensions: int) -> Tensor:
    """Carry rows as `carry_traced` does, in less time where only ordinary autograd watches."""
    layers = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    rules = _rules(layers) if _is_plain_reverse_mode(rows, layers) else None
    if rules is None:
        return carry_traced(steps(layers), rows, dimensions)
    parameters = [
        part for layer in layers if isinstance(layer, nn.Linear) for part in (layer.weight, layer.bias)
    ]
    fused: Tensor = _Carry.apply(rows, dimensions, rules, *parameters)
    return fused


def _rules(layers: Sequence[nn.Module]) -> list[Riccati | None] | None:
    """The activation behind each linear layer, or `None` for stacks that are built otherwise."""
    rules: list[Riccati | None] = []
    for before, layer in zip([None, *layers], layers, strict=False):
        if isinstance(layer, nn.Linear):
            rules.append(None)
        elif isinstance(before, nn.Linear) and type(layer) in RICCATI:
            rules[-1] = RICCATI[type(layer)]
        else:
            return None
    return rules or None


def _is_plain_reverse_mode(rows: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether no compiler, transform, forward mode or autocast is at work, which see torch operations only."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if is_traced or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if torch.is_autocast_enabled(rows.device.type):
        return False
    parts = [rows, *(part for layer in layers for part in layer.parameters(recurse=False))]
    return all(
        type(part) in (Tensor, nn.Parameter) and part.dtype == rows.dtype and part.device == rows.device
        for part in parts
    )


class _Carry(torch.autograd.Function):
    """Rows through stages; weights and biases alternate among the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        dimensions: int,
        rules: Sequence[Riccati | None],
        *parameters: Tensor | None,
    ) -> Tensor:
        stages = _stages(parameters, rules)
        kept, found = [], []
        for block in _blocks(rows):
            for stage in stages:
                output, block = _forward(stage, block, dimensions)
                kept.append(output)
            found.append(block)
        ctx.dimensions, ctx.rules = dimensions, rules
        ctx.save_for_backward(rows, *parameters, *kept)
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), depth = grads, len(ctx.rules)
        rows, *rest = ctx.saved_tensors
        parameters, kept = rest[: 2 * depth], rest[2 * depth :]
        needs_rows, _, _, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            at_rows, *found = _traced_gradient(ctx, grad, [rows, *parameters], [needs_rows, *needed])
            return at_rows, None, None, *found
        sums: list[Any] = [None] * len(parameters)
        stages, at_blocks = _stages(parameters, ctx.rules), []
        for i, (block, at_block) in enumerate(zip(_blocks(rows), _blocks(grad), strict=True)):
            outputs = kept[i * depth : (i + 1) * depth]
            at_rows, *found = _backward(
                stages, block, outputs, at_block, ctx.dimensions, [needs_rows, *needed]
            )
            sums = [
                part if total is None else total.add_(part) for total, part in zip(sums, found, strict=True)
            ]
            at_blocks.append(at_rows)
        return torch.cat(at_blocks, dim=1) if needs_rows else None, None, None, *sums


def _stages(parameters: Sequence[Any], rules: Sequence[Riccati | None]) -> list[_Stage]:
    return [_Stage(*parts) for parts in zip(parameters[::2], parameters[1::2], rules, strict=True)]


def _blocks(rows: Tensor) -> Sequence[Tensor]:
    """Blocks of points, about as many in each; a GPU has no cache to keep them in."""
    if rows.device.type != "cpu":
        return [rows]
    return rows.tensor_split(-(-rows.shape[1] // _BLOCK), dim=1)


def _forward(stage: _Stage, rows: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """What to keep of a stage, and the rows behind it."""
    kept = (rows.flatten(0, 1) @ stage.weight.T).unflatten(0, rows.shape[:2])
    value, *slopes = kept.unbind(0)
    if stage.bias is not None:
        value += stage.bias
    if stage.rule is None:
        return kept, kept
    stage.rule.value_(value)
    curvature = stage.rule.curvature(value)
    for (i, j), bend in zip(pairs(dimensions), slopes[dimensions + 1 :], strict=False):
        bend.addcmul_(curvature, slopes[i] * slopes[j])
    return kept, _behind(kept, value, stage.rule.slope(value))


def _behind(kept: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    rows = kept * slope
    rows[0] = value
    return rows


def _backward(
    stages: Sequence[_Stage],
    rows: Tensor,
    outputs: Sequence[Tensor],
    grad: Tensor,
    dimensions: int,
    needed: Sequence[bool],
) -> list[Any]:
    """The gradients at a block's rows and at each weight and bias; `None` where none is needed."""
    found: list[Tensor | None] = [None] * len(needed)
    slope = _slope(stages[-1], outputs[-1])
    for i in reversed(range(len(stages))):
        rule, inputs = stages[i].rule, rows
        if rule is not None and slope is not None:
            grad = _through(rule, outputs[i], slope, grad, dimensions)
        if i > 0:
            inputs, slope = outputs[i - 1], _slope(stages[i - 1], outputs[i - 1])
            inputs = inputs if slope is None else _behind(inputs, inputs[0], slope)
        flat = grad.flatten(0, 1)
        if needed[1 + 2 * i]:
            found[1 + 2 * i] = _product(flat, inputs.flatten(0, 1))
        if needed[2 + 2 * i]:
            found[2 + 2 * i] = grad[0].sum(0)
        if i > 0 or needed[0]:
            grad = (flat @ stages[i].weight).unflatten(0, rows.shape[:2])
    found[0] = grad if needed[0] else None
    return found


def _product(a: Tensor, b: Tensor) -> Tensor:
    # With a handful of columns on the right the product takes several times as long as the other way around.
    return (b.T @ a).T if b.shape[1] < a.shape[1] else a.T @ b


def _slope(stage: _Stage, kept: Tensor) -> Tensor | None:
    return None if stage.rule is None else stage.rule.slope(kept[0])


def _through(rule: Riccati, kept: Tensor, slope: Tensor, grad: Tensor, dimensions: int) -> Tensor:
    """The gradient before an activation from that behind it."""
    found = grad * slope
    value, *slopes = kept.unbind(0)
    at_value, *at_slopes = found.unbind(0)
    curvature = rule.curvature(value)
    # All derivatives depend on the value by s', whose derivative is curvature s'; the Hessian's by the curvature too,
    # whose derivative is -2 s'.
    along = grad[1] * slopes[0]
    for part, row in zip(grad[2:], slopes[1:], strict=True):
        along.addcmul_(part, row)
    along *= curvature
    for (i, j), bend in zip(pairs(dimensions), at_slopes[dimensions + 1 :], strict=False):
        turned = bend * slopes[i]
        along.addcmul_(turned, slopes[j], value=-2)
        at_slopes[j].addcmul_(curvature, turned, value=2 if i == j else 1)
        if i != j:
            at_slopes[i].addcmul_(curvature, bend * slopes[j])
    at_value.addcmul_(slope, along)
    return found


def _traced_gradient(
    ctx: Any, grad: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The same gradient, with a graph of its own."""
    rows, *parameters = inputs
    traced: list[Step] = []
    for stage in _stages(parameters, ctx.rules):
        traced += [(stage.weight, stage.bias), *([] if stage.rule is None else [stage.rule.rule])]
    wanted = [part for part, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(
        torch.autograd.grad(carry_traced(traced, rows, ctx.dimensions), wanted, grad, create_graph=True)
    )
    return [next(found) if is_needed else None for is_needed in needed]
