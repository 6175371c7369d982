"""How a traced model is to be run: which rule each node has, and what is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from fastibp.rules import Rule
from fastibp.tables import (
    BATCH_NORMS,
    CONVOLUTIONS,
    FUNCTION_RULES,
    METHOD_RULES,
    MODULE_RULES,
    RECTIFIERS,
    SEVERAL_OPERANDS,
)
from fastibp.tracing import Graph


@dataclass(frozen=True)
class Value:
    """Stands, in the arguments of a step, for the value of the step of this name."""

    name: str


@dataclass(frozen=True)
class Step:
    """One node to run, in plain data.

    Attributes:
        name: Of the value that it gives.
        op: `"input"`, `"constant"` (a default argument), `"attribute"` (a parameter or buffer), `"merged"` (a
            convolution and its BatchNorm), `"plain"` (no bounds) or `"rule"`.
        args: Arguments, with a `Value` for each earlier one.
        kwargs: Keyword arguments, likewise.
        call: The rule; or the function or method name of a plain step.
        path: The module, parameter or buffer.
        second: The BatchNorm of a merged step.
        recorded: The value whose box is recorded, for a rectifier.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: Any = None
    path: str = ""
    second: str = ""
    recorded: str = ""


class Plan:
    """What to do at each node of a model in its present mode.

    Attributes:
        graph: The traced model.
        steps: What to run, in order.
        last_is_affine: Whether that is a linear layer, with which margins can be merged.
    """

    def __init__(self, model: nn.Module, user_rules: Mapping[Any, Rule]) -> None:
        self._user_rules = user_rules
        self.graph = Graph(model, tuple(kind for kind in user_rules if isinstance(kind, type)))
        inner = [node for node in self.graph.bounded if node is not self.graph.source]
        self.rules = {node: self._rule(node) for node in inner}
        for node in inner:
            self._refuse_other_operands(node)
        self.last_is_affine = self._is_plain(self.graph.last, (nn.Linear, F.linear))
        fused = {node: node.all_input_nodes[0] for node in inner if self._follows_convolution(node)}
        merged = set(fused.values())
        self.steps = tuple(
            self._step(node, fused.get(node))
            for node in self.graph.nodes
            if node.op != "output" and node not in merged
        )

    def _step(self, node: fx.Node, convolution: fx.Node | None) -> Step:
        name, path = node.name, str(node.target)
        if node is self.graph.source:
            return Step(name, "input")
        if node.op == "placeholder":
            return Step(name, "constant", node.args)
        if node.op == "get_attr":
            return Step(name, "attribute", path=path)
        if convolution is not None:
            before = (Value(convolution.all_input_nodes[0].name),)
            return Step(name, "merged", before, path=str(convolution.target), second=path)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), _named)
        path = path if node.op == "call_module" else ""
        if node not in self.graph.bounded:
            return Step(name, "plain", args, kwargs, node.target, path)
        recorded = node.all_input_nodes[0].name if self.graph.kind(node) in RECTIFIERS else ""
        return Step(name, "rule", args, kwargs, self.rules[node], path, recorded=recorded)

    def _rule(self, node: fx.Node) -> Rule:
        kind = self.graph.kind(node)
        tables: dict[str, Mapping[Any, Rule]] = {
            "call_module": MODULE_RULES,
            "call_function": FUNCTION_RULES,
            "call_method": METHOD_RULES,
        }
        rule = self._user_rules.get(kind) or tables[node.op].get(kind)
        if rule is None:
            raise TypeError(self._unsupported(node))
        return rule

    def _is_plain(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        """Whether the node is of one of these kinds, and left to the package's own rule."""
        if node is self.graph.source:
            return False
        kind = self.graph.kind(node)
        return kind in kinds and kind not in self._user_rules

    def _follows_convolution(self, node: fx.Node) -> bool:
        """Whether the node is a BatchNorm that alone reads a convolution."""
        if not self._is_plain(node, BATCH_NORMS):
            return False
        before = node.all_input_nodes[0]
        return self._is_plain(before, CONVOLUTIONS) and len(before.users) == 1

    def _refuse_other_operands(self, node: fx.Node) -> None:
        """Refuse a layer whose weight or second operand depends on the input, where its rule has constants."""
        kind = self.graph.kind(node)
        if kind in SEVERAL_OPERANDS or kind in self._user_rules:
            return
        first = (*node.args, *node.kwargs.values())[0]
        if any(part in self.graph.bounded and part is not first for part in node.all_input_nodes):
            raise TypeError(
                f"node {node.name!r} reads the model's input in more than its first argument, for which "
                f"{getattr(kind, '__name__', kind)} has no interval rule"
            )

    def _unsupported(self, node: fx.Node) -> str:
        kind = self.graph.kind(node)
        name = getattr(kind, "__name__", kind)
        what = {"call_module": "module", "call_method": "tensor method"}.get(node.op, "function")
        return (
            f"node {node.name!r} ({what} {name}, target {node.target!s}) has no interval rule; "
            f"give one: IBP(model, rules={{{name}: rule}}), where rule takes the layer's arguments with "
            "fastibp.Bounds in place of tensors; for a monotone one, "
            "`lambda module, bounds: bounds.monotone(module)`"
        )


def _named(node: fx.Node) -> Any:
    return Value(node.name)
