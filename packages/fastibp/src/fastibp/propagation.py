"""`IBP`: interval bounds for an ordinary module, along its traced graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from fastibp.boxes import Box
from fastibp.rules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    FUNCTION_RULES,
    METHOD_RULES,
    MODULE_RULES,
    RELUS,
    SHAPE_QUERIES,
    Bounds,
    Rule,
    convolution_batch_norm,
)

# Differences of classifier rows are tabulated up to this many numbers, and taken in chunks beyond.
_TABLE_LIMIT = 2**22

UserRules = Mapping[type[nn.Module] | Callable[..., Any], Rule]


@dataclass(frozen=True)
class IBPOutput:
    """What one propagation found.

    Attributes:
        logits: Nominal logits, shape (N, K), exactly those of `model(x)`.
        box: Bounds on the logits, if no labels were given.
        margins: Lower bounds on `z_label - z_j` for the K - 1 other classes in ascending order, shape
            (N, K - 1), if labels were given.
        preacts: The box entering each ReLU (also ReLU6, leaky ReLU), in order of execution.
        nodes: The names of these ReLUs in the graph.
        input_box: The box that was propagated.
    """

    logits: Tensor
    box: Box | None
    margins: Tensor | None
    preacts: list[Box] = field(repr=False)
    nodes: list[str]
    input_box: Box


class IBP(nn.Module):
    r"""Interval bound propagation through a model you already have.

    The model's forward pass is traced once with `torch.fx`; its parameters and buffers stay its own, so
    optimizers, state dicts and `model(x)` go on as before (for several processes, wrap the `IBP` in
    DistributedDataParallel and call that). What the forward pass decides by `self.training` itself, outside
    of layers such as BatchNorm and dropout, is kept as it was when traced.

    Each step costs three passes of every affine layer: nominal, centre (`c' = W c + b`) and radius
    (`r' = |W| r`). A BatchNorm directly behind a convolution is folded into it for the box, with the
    statistics of the nominal pass.

    Bounds are sound in exact arithmetic. Under autocast, or TF32, they are good enough to train on and not
    to certify with: `evaluate` switches autocast off. `outward_rounding=True` widens the box at each layer
    by more than floating-point sums can lose, whatever their order, at no extra pass; convolutions by
    Winograd's or Fourier transforms round otherwise and are not covered.

    Args:
        model: Takes one tensor, returns one tensor of logits (N, K). Layers: `nn.Linear`, convolutions
            (also transposed), BatchNorm, monotone activations, max- and average-pooling, dropout,
            padding, flatten and reshape, `cat`, `+`, `-`, `*` and division by constants.
        example: An input to check the trace with, shape (N, ...); None for no check. It finds what no trace
            shows, such as `x += y` where another name still stands for the old `x`.
        rules: Rules of your own: a module class or a function the model calls, with a function that
            takes `(module, bounds, ...)` or `(bounds, ...)` and returns `Bounds`.
        outward_rounding: Whether bounds must hold for the floating-point network, in float32 or float64.

    Raises:
        TypeError: If the model cannot be traced, or has a layer without rule or with a side effect that
            bounds cannot follow; the message names it.
        ValueError: If on `example` the traced graph differs from the model.

    Example:
        >>> from fastibp import IBP, linf_box
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, labels = torch.rand(4, 2), torch.tensor([0, 1, 2, 0])
        >>> output = IBP(model)(x, linf_box(x, eps=0.1), labels)
        >>> output.margins.shape, len(output.preacts)
        (torch.Size([4, 2]), 1)
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor | None = None,
        *,
        rules: UserRules | None = None,
        outward_rounding: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.outward_rounding = outward_rounding
        self._user_rules: dict[Any, Rule] = dict(rules or {})
        self._trace()
        if example is not None:
            self._check(example)

    def register_rule(self, kind: type[nn.Module] | Callable[..., Any], rule: Rule) -> None:
        """Add or replace the rule of a module class or function of this model, and trace it again.

        Args:
            kind: A module class, or a function that the model calls.
            rule: Takes `(module, bounds, ...)` or `(bounds, ...)` as the layer is called; returns `Bounds`.
        """
        self._user_rules[kind] = rule
        self._trace()

    def forward(self, x: Tensor, box: Box, labels: Tensor | None = None) -> IBPOutput:
        r"""Propagate the nominal input and the box around it.

        With labels, the last layer is merged with the differences of logits:
        `z_y - z_j >= (W_y - W_j) c + b_y - b_j - |W_y - W_j| r`, never looser than subtracting bounds.

        Args:
            x: Nominal input, shape (N, ...), inside the box.
            box: Input box, of the shape and dtype of `x`, from `linf_box` or your own.
            labels: Integer classes, shape (N,), or None for bounds on the logits.

        Returns:
            An `IBPOutput`.

        Raises:
            TypeError: If `box` is no `Box`, or `labels` are no integers.
            ValueError: If box and `x` do not match, a label is out of range, BatchNorm is in training
                mode with one example, or rounding is to be covered in less than float32.
        """
        self._check_input(x, box)
        values: dict[fx.Node, Any] = {}
        preacts: list[Box] = []
        nodes: list[str] = []
        last = self._last
        for node in self._graph.nodes:
            if node is self._input:
                values[node] = Bounds(x, box, self.outward_rounding)
            elif node.op == "output" or node in self._skipped:
                continue
            elif node is last and labels is not None and self._last_is_affine:
                bounds, weight, bias = self._affine_arguments(node, values)
                logits = F.linear(bounds.nominal, weight, bias)
                _check_labels(labels, logits)
                margins = _elided_margins(bounds, weight, bias, labels)
                return IBPOutput(logits, None, margins, preacts, nodes, box)
            else:
                if node in self._relus:
                    preacts.append(values[node.all_input_nodes[0]].box)
                    nodes.append(node.name)
                values[node] = self._run(node, values)
        bounds = values[last]
        if labels is None:
            return IBPOutput(bounds.nominal, bounds.box, None, preacts, nodes, box)
        warnings.warn(
            "the last layer is not nn.Linear: margins are differences of separately bounded logits, which are looser",
            stacklevel=2,
        )
        _check_labels(labels, bounds.nominal)
        margins = _plain_margins(bounds.box, labels)
        return IBPOutput(bounds.nominal, None, margins, preacts, nodes, box)

    def __deepcopy__(self, memo: dict[int, Any]) -> IBP:
        # A copied graph has new nodes, to which the old plan says nothing: trace the copied model.
        copied = IBP(
            copy.deepcopy(self.model, memo), rules=self._user_rules, outward_rounding=self.outward_rounding
        )
        copied.training = self.training
        return copied

    # --- running one node ------------------------------------------------------------------------

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node in self._fused:
            module, norm = self._module(self._fused[node]), self._module(node)
            bounds = values[self._fused[node].all_input_nodes[0]]
            return convolution_batch_norm(module, norm, bounds).widened(8)
        if node.op == "placeholder":
            return node.args[0]
        if node.op == "get_attr":
            return _attribute(self.model, str(node.target))
        args, kwargs = _arguments(node, values)
        if node not in self._bounded:
            return _call_plainly(node, self.model, args, kwargs)
        rule = self._rule(node)
        assert rule is not None  # every bounded node was checked when the graph was traced
        if node.op == "call_module":
            args = (self._module(node), *args)
        return rule(*args, **kwargs).widened(8)

    def _affine_arguments(
        self, node: fx.Node, values: dict[fx.Node, Any]
    ) -> tuple[Bounds, Tensor, Tensor | None]:
        args, kwargs = _arguments(node, values)
        if node.op == "call_module":
            module = self._module(node)
            return args[0], module.weight, module.bias
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        return named["input"], named["weight"], named.get("bias")

    def _module(self, node: fx.Node) -> Any:  # the plan says of which type
        return self.model.get_submodule(str(node.target))

    # --- the graph -------------------------------------------------------------------------------

    def _trace(self) -> None:
        leaves = tuple(kind for kind in self._user_rules if isinstance(kind, type))
        self._graph = trace(self.model, leaves)
        self._input, self._last = _ends(self._graph)
        self._bounded = _reached(self._graph, self._input)
        if self._last not in self._bounded:
            raise TypeError("the model's output does not depend on its input")
        for node in self._bounded:
            if self._rule(node) is None:
                raise TypeError(self._unsupported(node))
            self._refuse_side_effects(node)
        self._relus = {node for node in self._bounded if self._kind(node) in RELUS}
        self._last_is_affine = self._is_plain(self._last, (nn.Linear, F.linear))
        self._fused = {
            node: node.all_input_nodes[0] for node in self._bounded if self._follows_convolution(node)
        }
        self._skipped = set(self._fused.values())

    def _kind(self, node: fx.Node) -> Any:
        """A module class, a function, or the name of a method."""
        if node.op != "call_module":
            return node.target
        module = self._module(node)
        return type(module).__mro__[1] if is_parametrized(module) else type(module)

    def _rule(self, node: fx.Node) -> Rule | None:
        kind = self._kind(node)
        if node is self._input:
            return Bounds
        if kind in self._user_rules:
            return self._user_rules[kind]
        tables: dict[str, Mapping[Any, Rule]] = {
            "call_module": MODULE_RULES,
            "call_function": FUNCTION_RULES,
            "call_method": METHOD_RULES,
        }
        return tables[node.op].get(kind)

    def _is_plain(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        """Whether the node is of one of these kinds, and left to the package's own rule."""
        return (
            node is not self._input and self._kind(node) in kinds and self._kind(node) not in self._user_rules
        )

    def _follows_convolution(self, node: fx.Node) -> bool:
        """Whether the node is a BatchNorm that alone reads a convolution."""
        if not self._is_plain(node, BATCH_NORMS):
            return False
        before = node.all_input_nodes[0]
        return self._is_plain(before, CONVOLUTIONS) and len(before.users) == 1

    def _refuse_side_effects(self, node: fx.Node) -> None:
        """Refuse what changes a value behind the graph's back, where bounds would silently be wrong."""
        if node.op == "call_module" and self._module(node)._forward_pre_hooks:
            raise TypeError(
                f"layer {node.target!s} has a forward pre-hook, which bounds would bypass; make pruning "
                "permanent with prune.remove, and use torch.nn.utils.parametrizations for weight norms"
            )
        if not self._writes_in_place(node):
            return
        written, order = node.all_input_nodes[0], list(self._graph.nodes)
        if any(order.index(user) > order.index(node) for user in written.users):
            raise TypeError(
                f"node {node.name!r} overwrites {written.name!r} in place, which is used again behind it; "
                "make it out of place"
            )

    def _writes_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self._module(node), "inplace", False)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return True
        positional = node.target in RELUS and any(value is True for value in node.args)
        return positional or bool(node.kwargs.get("inplace"))

    def _unsupported(self, node: fx.Node) -> str:
        kind = self._kind(node)
        name = getattr(kind, "__name__", kind)
        what = {"call_module": "module", "call_method": "tensor method"}.get(node.op, "function")
        return (
            f"node {node.name!r} ({what} {name}, target {node.target!s}) has no interval rule; "
            f"give one: IBP(model, rules={{{name}: rule}}), where rule takes the layer's arguments with "
            "fastibp.Bounds in place of tensors; for a monotone one, "
            "`lambda module, bounds: bounds.monotone(module)`"
        )

    # --- checks ----------------------------------------------------------------------------------

    def _check_input(self, x: Tensor, box: Box) -> None:
        if not isinstance(box, Box):
            raise TypeError(f"box must be a fastibp.Box, got {type(box).__name__}")
        if box.shape != x.shape or box.dtype != x.dtype:
            raise ValueError(
                f"box must match x {tuple(x.shape)} {x.dtype}, got {tuple(box.shape)} {box.dtype}"
            )
        if self.outward_rounding and x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"outward_rounding needs x in float32 or float64, got {x.dtype}")
        if len(x) == 1 and any(
            module.training for module in self.model.modules() if isinstance(module, BATCH_NORMS)
        ):
            raise ValueError("x must hold more than one example while BatchNorm is in training mode")

    @torch.no_grad()
    def _check(self, example: Tensor) -> None:
        modes = {module: module.training for module in self.modules()}
        self.eval()
        found, wanted = self(example, Box(example, example)).logits, self.model(example)
        for module, mode in modes.items():
            module.training = mode
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
            raise ValueError("on example the traced graph and the model give different logits")


# --- tracing -------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            is_parametrized(m) or type(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)
        )


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The node's arguments and keyword arguments, with values in the place of nodes."""
    return fx.node.map_arg((node.args, node.kwargs), values.__getitem__)


def trace(model: nn.Module, leaves: tuple[type, ...] = ()) -> fx.Graph:
    """The model's graph, with torch's own layers and `leaves` as single nodes."""
    if type(model) in leaves or type(model) in MODULE_RULES:
        raise TypeError("model must not be a single layer; wrap it: nn.Sequential(layer)")
    try:
        return _Tracer(leaves).trace(model)
    except Exception as error:
        raise TypeError(
            f"model cannot be traced by torch.fx ({error}); give the part that branches on its data "
            "a rule of its own: IBP(model, rules={PartClass: rule})"
        ) from error


def _ends(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    outputs = [node.args[0] for node in graph.nodes if node.op == "output"]
    if len(inputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise TypeError("model must take one tensor and return one tensor")
    return inputs[0], outputs[0]


def _reached(graph: fx.Graph, source: fx.Node) -> dict[fx.Node, None]:
    """The nodes whose value is bounded, in order: all that read the input, but not its mere shape."""
    reached = {source: None}
    for node in graph.nodes:
        if node.op == "output" or not any(part in reached for part in node.all_input_nodes):
            continue
        query = node.args[1] if node.target is getattr else node.target
        if not (isinstance(query, str) and query in SHAPE_QUERIES):
            reached[node] = None
    return reached


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _call_plainly(node: fx.Node, model: nn.Module, args: Any, kwargs: Any) -> Any:
    """Run a node that handles no bounds, such as a shape, as it stands."""
    args, kwargs = torch.utils._pytree.tree_map(
        lambda value: value.nominal if isinstance(value, Bounds) else value, (args, kwargs)
    )
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


# --- margins -------------------------------------------------------------------------------------------


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if logits.ndim != 2:
        raise ValueError(f"margins need logits of shape (N, K), the model gives {tuple(logits.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape ({len(logits)},), got {tuple(labels.shape)}")
    # An accelerator checks the gather itself, and would have to be waited for; torch.compile would break.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise ValueError(f"labels must lie in [0, {logits.shape[1]}), the number of logits")


def _others(labels: Tensor, num_classes: int) -> Tensor:
    """The classes other than the label, ascending, shape (N, K - 1)."""
    others = torch.arange(num_classes - 1, device=labels.device)
    return others + (others >= labels[:, None])


def _plain_margins(box: Box, labels: Tensor) -> Tensor:
    lower = box.lower.gather(1, labels[:, None])
    return lower - box.upper.gather(1, _others(labels, box.shape[1]))


def _elided_margins(bounds: Bounds, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """`(W_y - W_j) c + b_y - b_j - |W_y - W_j| r` for all j but y, shape (N, K - 1)."""
    steps = 2 * (weight.shape[1] + 8)
    bounds = bounds.widened(steps)
    center, radius = bounds.box.center, bounds.box.radius
    others = _others(labels, len(weight))
    # The differences of rows are never formed for the centre: differences of its logits are the same.
    logits = F.linear(center, weight, bias)
    spread = _spread(radius, weight, labels).gather(1, others)
    margins = logits.gather(1, labels[:, None]) - logits.gather(1, others) - spread
    if not bounds.outward:
        return margins
    # Two logits cancel in a margin, so their own roundings count, not the margin's.
    size = F.linear(center.abs() + radius, weight.abs(), None if bias is None else bias.abs())
    unit = steps * torch.finfo(margins.dtype).eps
    return margins - unit * (size.gather(1, labels[:, None]) + size.gather(1, others))


def _spread(radius: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """`|W_y - W_j| r` for all j, shape (N, K)."""
    num_classes, features = weight.shape
    if num_classes * num_classes * features <= _TABLE_LIMIT:
        table = (weight[:, None] - weight).abs().flatten(0, 1)
        index = labels[:, None, None].expand(-1, 1, num_classes)
        return F.linear(radius, table).unflatten(1, (num_classes, num_classes)).gather(1, index)[:, 0]
    rows = max(1, _TABLE_LIMIT // (num_classes * features))
    # Recomputed in the backward pass: N K D numbers are never held at once.
    chunks = [
        checkpoint(_spread_directly, r, weight, y, use_reentrant=False)
        for r, y in zip(radius.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(chunks)


def _spread_directly(radius: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return torch.einsum("nkd,nd->nk", (weight[labels][:, None] - weight).abs(), radius)
