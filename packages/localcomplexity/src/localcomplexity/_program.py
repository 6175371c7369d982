"""A piecewise-linear model as a straight-line program of affine maps, bends and sums, in float64.

Sequential models give one register that every step overwrites; a skip connection keeps a second one alive.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

_AFFINE = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_BENDS = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
# As functions or methods of a tensor, by name.
_RELU, _LEAKY = {"relu", "relu_"}, {"leaky_relu", "leaky_relu_"}
_ADD, _FLATTEN = {"add", "add_", "iadd"}, {"flatten"}
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d"}

Registers = dict[int, Tensor]


@dataclass(frozen=True)
class Affine:
    """A module that is affine in evaluation mode; never written as a matrix."""

    module: nn.Module

    def __call__(self, maps: Tensor) -> Tensor:
        """Send maps (R, k, *shape) through: the last of the k is the constant part, the others are directions."""
        images = self.module(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        constant = self.module(torch.zeros_like(maps[:1, 0]))
        return torch.cat([images[:, :-1] - constant, images[:, -1:]], dim=1)


@dataclass(frozen=True)
class Bend:
    """An activation with slope 1 above zero and `slope` below; several slopes are one a channel."""

    slope: float | Tensor

    def slopes(self, values: Tensor) -> Tensor:
        """The slope at each of the values (R, *shape)."""
        below = self.slope
        if isinstance(below, Tensor):
            below = below.to(values)
            below = below.view(-1, *[1] * (values.dim() - 2)) if below.numel() > 1 else below.reshape(())
        return torch.where(values >= 0, torch.ones_like(values), below)


@dataclass(frozen=True)
class Sum:
    """Two registers added up."""

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Add maps of one shape."""
        return left + right


@dataclass(frozen=True)
class Step:
    """One operation: what it reads, where its result goes, and what nobody needs any more.

    Attributes:
        operation: An affine map, a bend, or a sum.
        sources: The registers it reads.
        target: The register it writes.
        drops: Registers that no later step reads.
    """

    operation: Affine | Bend | Sum
    sources: tuple[int, ...]
    target: int
    drops: tuple[int, ...] = ()

    def store(self, registers: Registers, result: Tensor) -> Registers:
        """The registers after this step."""
        return {key: maps for key, maps in registers.items() if key not in self.drops} | {self.target: result}

    def straight(self, registers: Registers) -> Registers:
        """Carry out a step that is no bend."""
        assert not isinstance(self.operation, Bend)
        return self.store(registers, self.operation(*(registers[source] for source in self.sources)))


def piecewise_linear_steps(model: nn.Module) -> list[Step]:
    """Take a model apart; register 0 holds its input, and the last step leaves its output alone.

    Raises:
        TypeError: Naming the first part that is not supported.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except TypeError:
        raise
    except Exception as error:  # control flow on values, and whatever else a forward may do
        raise TypeError(
            f"model must be traceable by torch.fx to be taken apart, {type(model).__name__} is not: {error}"
        ) from error
    return _without_waste(_Compiler(model, graph).steps)


class _Tracer(fx.Tracer):
    """Goes into every module that is not torch's own, and into sequences."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if module._forward_hooks or module._forward_pre_hooks:
            raise TypeError(
                f"model must have no forward hooks where it is taken apart (old weight_norm has one), "
                f"got one on {type(module).__name__} at {name!r}"
            )
        kind = type(module)
        own = kind.__module__.startswith("torch.nn") and "forward" not in module.__dict__
        return own and kind is not nn.Sequential


class _Compiler:
    """Turns the nodes of a graph into steps, a new register for each."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.steps: list[Step] = []
        self._modules = dict(model.named_modules())
        self._registers: dict[fx.Node, int] = {}
        for node in graph.nodes:
            self._take(node)

    def _take(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self._registers:
                raise TypeError(f"model must take one tensor, got a second argument {node.target!r}")
            self._registers[node] = 0
        elif node.op == "output":
            self._end(node.args[0])
        else:
            operation, sources = self._operation(node)
            target = len(self._registers)
            self.steps.append(Step(operation, tuple(self._read(source, node) for source in sources), target))
            self._registers[node] = target

    def _operation(self, node: fx.Node) -> tuple[Affine | Bend | Sum, tuple[Any, ...]]:
        if node.op == "call_module":
            return _of_module(self._modules[str(node.target)], str(node.target)), node.args
        if node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            return _of_function(str(name), node)
        raise _unsupported(f"the attribute {node.target!r}")

    def _read(self, source: Any, node: fx.Node) -> int:
        if source not in self._registers:
            raise _unsupported(f"{node.target} of {source!r}")
        return self._registers[source]

    def _end(self, result: Any) -> None:
        if not isinstance(result, fx.Node):
            raise TypeError(f"model must return one tensor, got {type(result).__name__}")
        # The output is made by a step of its own, so that a model that returns its input is one as well.
        register = len(self._registers)
        self.steps.append(Step(Affine(nn.Identity()), (self._registers[result],), register))


def _of_module(module: Any, name: str) -> Affine | Bend:
    kind = type(module)
    if kind is nn.ReLU:
        return Bend(0.0)
    if kind is nn.LeakyReLU:
        return Bend(module.negative_slope)
    if kind is nn.PReLU:
        return Bend(module.weight.detach().double())
    if kind in _AFFINE:
        return Affine(copy.deepcopy(module).double().eval().requires_grad_(False))
    raise _unsupported(f"{kind.__name__} at {name!r}")


def _of_function(name: str, node: fx.Node) -> tuple[Affine | Bend | Sum, tuple[Any, ...]]:
    """An operation and what it is applied to."""
    first: Any = node.args[0]
    rest: Any = node.args[1:]
    options: Any = node.kwargs
    if name in _RELU:
        return Bend(0.0), (first,)
    if name in _LEAKY:
        return Bend(float((*rest, options.get("negative_slope", 0.01))[0])), (first,)
    if name in _ADD and len(rest) == 1 and not options:
        return Sum(), (first, rest[0])
    if name in _FLATTEN:
        return Affine(_flatten(*rest, **options)), (first,)
    if name in _DROPOUT:
        return Affine(nn.Identity()), (first,)
    raise _unsupported(f"the function {name}")


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    if start_dim < 1:
        raise _unsupported(f"a flatten from axis {start_dim}, the batch included")
    return nn.Flatten(start_dim, end_dim)


def _unsupported(what: str) -> TypeError:
    supported = ", ".join(kind.__name__ for kind in (nn.Sequential, *_BENDS, *_AFFINE))
    return TypeError(
        f"model must consist of {supported}, of relu, leaky_relu, flatten and dropout as functions, and of sums; "
        f"got {what}"
    )


def _without_waste(steps: list[Step]) -> list[Step]:
    """Say after each step which registers nobody reads again."""
    last: dict[int, int] = {}
    for place, step in enumerate(steps):
        last |= dict.fromkeys(step.sources, place)
    unread = {step.target for step in steps[:-1]} - last.keys()
    return [
        replace(
            step,
            drops=tuple(
                {source for source in step.sources if last[source] == place} | ({step.target} & unread)
            ),
        )
        for place, step in enumerate(steps)
    ]
