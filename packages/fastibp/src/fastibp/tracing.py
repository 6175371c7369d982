"""The graph of a model's forward pass, and what in it bounds cannot follow."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fastibp.layers import own_class, refuse_hooks, torch_layer
from fastibp.tables import SHAPE_QUERIES, VIEWS


class Graph:
    """A traced model: its nodes, and the values that they name.

    Attributes:
        root: The module that targets are relative to: the model, or a `Sequential` that holds it alone.
        nodes: All nodes, in order of execution.
        source: The node of the input.
        last: The node whose value is the output.
        bounded: The nodes that have bounds, in order: all that read the input, but not its mere shape.
    """

    def __init__(self, model: nn.Module, leaves: tuple[type, ...] = ()) -> None:
        self._leaves = leaves
        refuse_hooks(model, leaves)
        tracer = _Tracer(leaves)
        whole = "forward" in vars(model) or tracer.is_leaf_module(model, "")
        self.root = nn.Sequential(model) if whole else model
        known = set(vars(self.root))
        try:
            self._graph = tracer.trace(self.root)  # which its nodes refer to
        except Exception as error:
            raise TypeError(
                f"model cannot be traced by torch.fx ({error}); give the part that branches on its data "
                "a rule of its own: IBP(model, rules={PartClass: rule})"
            ) from error
        finally:  # torch.fx leaves tensors that the forward pass makes on the model
            made = [name for name in vars(self.root) if name not in known]
            self._constants = {name: vars(self.root).pop(name) for name in made}
        self.nodes = tuple(self._graph.nodes)
        self.source, self.last = self._ends()
        self.bounded = self._reached()
        if self.last not in self.bounded:
            raise TypeError("the model's output does not depend on its input")
        self._refuse_overwriting()

    def module(self, path: Any) -> nn.Module:
        """A module by its path, which is the target of a node that calls it."""
        return self.root.get_submodule(str(path))

    def kind(self, node: fx.Node) -> Any:
        """A module class, a function, or the name of a method."""
        if node.op != "call_module":
            return node.target
        module = self.module(node.target)
        own = own_class(module)
        return own if own in self._leaves else torch_layer(module) or own

    def attribute(self, target: str) -> Any:
        """A parameter, buffer or constant by its path."""
        if target in self._constants:
            return self._constants[target]
        return operator.attrgetter(target)(self.root)

    # --- what it consists of ---------------------------------------------------------------------

    def _ends(self) -> tuple[fx.Node, fx.Node]:
        inputs = [node for node in self.nodes if node.op == "placeholder" and not node.args]
        outputs = [node.args[0] for node in self.nodes if node.op == "output"]
        if len(inputs) != 1 or not isinstance(outputs[0], fx.Node):
            raise TypeError("model must take one tensor and return one tensor")
        return inputs[0], outputs[0]

    def _reached(self) -> dict[fx.Node, None]:
        reached = {self.source: None}
        for node in self.nodes:
            if node.op == "output" or not any(part in reached for part in node.all_input_nodes):
                continue
            query = node.args[1] if node.target is getattr else node.target
            if not (isinstance(query, str) and query in SHAPE_QUERIES):
                reached[node] = None
        return reached

    # --- what it may not do ----------------------------------------------------------------------

    def _refuse_overwriting(self) -> None:
        """Refuse what changes a value behind the graph's back, where bounds would silently be wrong."""
        order = {node: index for index, node in enumerate(self.nodes)}
        for node in self.bounded:
            if not self._writes_in_place(node):
                continue
            written = node.all_input_nodes[0]
            users = {user for part in self._sharing(written, order[node]) for user in part.users}
            if any(
                order[user] > order[node] and (user in self.bounded or user.op == "output") for user in users
            ):
                raise TypeError(
                    f"node {node.name!r} overwrites {written.name!r} in place, which is used again behind it; "
                    "make it out of place"
                )

    def _sharing(self, written: fx.Node, before: int) -> set[fx.Node]:
        """The node, what it is a view of, and all earlier views of that: one memory."""
        while self._passes_on(written):
            written = written.all_input_nodes[0]
        shared = {written}
        for node in self.nodes[:before]:
            if self._passes_on(node) and node.all_input_nodes[0] in shared:
                shared.add(node)
        return shared

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether the node's value may lie in the memory of what it reads."""
        if node not in self.bounded or node is self.source:
            return False
        return self.kind(node) in VIEWS or self._writes_in_place(node)

    def _writes_in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self.module(node.target), "inplace", False)
        if node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
            return True
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return True
        return _asks_for_in_place(node)


def _asks_for_in_place(node: fx.Node) -> bool:
    """Whether `inplace` is given, by name or by position."""
    if not inspect.isfunction(node.target):
        return node.kwargs.get("inplace") is True
    names = list(inspect.signature(node.target).parameters)
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return given.get("inplace") is True


class _Proxy(fx.Proxy):
    """Keeps `x += y` apart from `x + y`: it changes what other names stand for."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # read when the graph runs, as parameters are

    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = torch_layer(m)
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return own_class(m) in self.leaves or (layer is not None and layer not in containers)
