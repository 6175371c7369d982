"""`IBP`: interval bounds for an ordinary module, along its traced graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastibp.batchnorm import convolution_batch_norm
from fastibp.boxes import Box
from fastibp.layers import compute_weights, in_mode
from fastibp.margins import checked_labels, elided_margins, plain_margins
from fastibp.plan import Plan, Step, Value
from fastibp.rules import Bounds, Rule
from fastibp.tables import BATCH_NORMS
from fastibp.tracing import Graph

UserRules = Mapping[type[nn.Module] | Callable[..., Any], Rule]


@dataclass(frozen=True)
class IBPOutput:
    """What one propagation found.

    Attributes:
        logits: Nominal logits, shape (N, K), exactly those of `model(x)`.
        box: Bounds on the logits, if no labels were given.
        margins: Lower bounds on `z_label - z_j` for the K - 1 other classes in ascending order, shape
            (N, K - 1), if labels were given.
        preacts: The box entering each ReLU or variant of it (ReLU6, leaky and parametric ReLU, ELU, SELU,
            CELU, GELU, SiLU, Mish, Hardswish), in order of execution.
        nodes: The names of these in the graph.
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

    The model's forward pass is traced with `torch.fx`; its parameters and buffers stay its own, so
    optimizers, state dicts and `model(x)` go on as before (for several processes, wrap the `IBP` in
    DistributedDataParallel and call that). It is traced again when a module's class or its mode, training
    or evaluation, is another than before; what else the forward pass decides by attributes in Python is
    kept as it was when traced.

    Each step costs three passes of every affine layer: nominal, centre (`c' = W c + b`) and radius
    (`r' = |W| r`). A BatchNorm directly behind a convolution is folded into it for the box, with the
    statistics of the nominal pass.

    Bounds are sound in exact arithmetic. Under autocast, or TF32, they are good enough to train on and not
    to certify with: `evaluate` switches autocast off. `outward_rounding=True` widens the box at each layer
    by more than floating-point sums can lose, whatever their order, at no extra pass; convolutions by
    Winograd's or Fourier transforms round otherwise and are not covered.

    Args:
        model: Takes one tensor, returns one tensor of logits (N, K). Layers: `nn.Linear`, convolutions
            (also transposed), BatchNorm, monotone activations, GELU, SiLU, Mish, Hardswish, PReLU, max- and
            average-pooling, dropout, padding, upsampling, flatten and reshape, `cat`, `stack`, `chunk`,
            `split`, `+`, `-`, `*` and division by constants. A subclass with a forward pass of its own is
            traced through; weight norm, spectral norm and pruning are followed, other hooks refused.
        example: An input to check the trace with, shape (N, ...); None for no check. It finds what no trace
            shows, such as a branch on an attribute that changes from call to call.
        rules: Rules of your own: a module class or a function the model calls, with a function that
            takes `(module, bounds, ...)` or `(bounds, ...)` and returns `Bounds`.
        outward_rounding: Whether bounds must hold for the floating-point network, in float32 or float64.

    Raises:
        TypeError: If the model cannot be traced, or has a layer without rule or with a side effect that
            bounds cannot follow; the message names it.
        ValueError: If on `example` the traced graph differs from the model.

    Examples:
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
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._plan_ahead()
        if example is not None:
            self._check(example)

    def register_rule(self, kind: type[nn.Module] | Callable[..., Any], rule: Rule) -> None:
        """Add or replace the rule of a module class or function of this model, and trace it again.

        Args:
            kind: A module class, or a function that the model calls.
            rule: Takes `(module, bounds, ...)` or `(bounds, ...)` as the layer is called; returns `Bounds`.
        """
        self._user_rules[kind] = rule
        self._plans.clear()
        self._plan_ahead()

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
            ValueError: If box and `x` do not match, a label is out of range, there is one logit only,
                BatchNorm is in training mode with one example, or rounding is to be covered in less than float32.
        """
        self._check_input(x, box)
        plan = self._plan()
        values: dict[str, Any] = {}
        preacts: list[Box] = []
        nodes: list[str] = []
        for step in plan.steps:
            if step.name == plan.graph.last.name and labels is not None and plan.last_is_affine:
                bounds, weight, bias = _affine_arguments(plan, step, values)
                logits = F.linear(bounds.nominal, weight, bias)
                margins = elided_margins(bounds, weight, bias, checked_labels(labels, logits))
                return IBPOutput(logits, None, margins, preacts, nodes, box)
            if step.recorded:
                preacts.append(values[step.recorded].box)
                nodes.append(step.name)
            if step.op == "input":
                values[step.name] = Bounds(x, box, self.outward_rounding)
            else:
                values[step.name] = _run(plan, step, values)
        bounds = values[plan.graph.last.name]
        if labels is None:
            return IBPOutput(bounds.nominal, bounds.box, None, preacts, nodes, box)
        warnings.warn(
            "the last layer is not nn.Linear: margins are differences of separately bounded logits, which are looser",
            stacklevel=2,
        )
        margins = plain_margins(bounds.box, checked_labels(labels, bounds.nominal))
        return IBPOutput(bounds.nominal, None, margins, preacts, nodes, box)

    def graph(self) -> Graph:
        """The traced model in its present mode."""
        return self._plan().graph

    def __getstate__(self) -> dict[str, Any]:
        # A copied or pickled graph would say nothing to the copied model: that is traced when it is first used.
        return super().__getstate__() | {"_plans": {}}

    def _plan_ahead(self) -> None:
        self._plan()
        # The other mode, so that torch.compile finds its plan; if it has none, its first use says why.
        with suppress(TypeError), in_mode(self.model, not self.model.training):
            self._plan()

    def _plan(self) -> Plan:
        """The plan for the model as it is now."""
        state = tuple((type(module), module.training) for module in self.model.modules())
        if state not in self._plans:
            self._plans[state] = Plan(self.model, self._user_rules)
        return self._plans[state]

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
        if len(x) < 2 and any(
            module.training for module in self.model.modules() if isinstance(module, BATCH_NORMS)
        ):
            raise ValueError("x must hold more than one example while BatchNorm is in training mode")

    @torch.no_grad()
    def _check(self, example: Tensor) -> None:
        with in_mode(self.model, False):
            found, wanted = self(example, Box(example, example)).logits, self.model(example)
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
            raise ValueError("on example the traced graph and the model give different logits")


# --- running one node ----------------------------------------------------------------------------------


def _run(plan: Plan, step: Step, values: dict[str, Any]) -> Any:
    if step.op == "constant":
        return step.args[0]
    if step.op == "attribute":
        return plan.graph.attribute(step.path)
    args, kwargs = _filled((step.args, step.kwargs), values)
    module: Any = compute_weights(plan.graph.module(step.path)) if step.path else None
    if step.op == "merged":
        norm: Any = compute_weights(plan.graph.module(step.second))
        return convolution_batch_norm(module, norm, args[0]).widened(8)
    if step.op == "plain":
        return _call_plainly(step.call if module is None else module, *_nominal((args, kwargs)))
    if module is not None:
        args = (module, *args)
    return _widened(step.call(*args, **kwargs))


def _call_plainly(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function, module or method on values without bounds, such as shapes."""
    if isinstance(call, str):
        return getattr(args[0], call)(*args[1:], **kwargs)
    return call(*args, **kwargs)


def _filled(part: Any, values: dict[str, Any]) -> Any:
    """Arguments with the values that they name."""
    if isinstance(part, Value):
        return values[part.name]
    if isinstance(part, tuple | list):
        return type(part)([_filled(inner, values) for inner in part])
    if isinstance(part, dict):
        return {key: _filled(inner, values) for key, inner in part.items()}
    if isinstance(part, slice):
        return slice(*(_filled(end, values) for end in (part.start, part.stop, part.step)))
    return part


def _nominal(part: Any) -> Any:
    """Arguments with nominal activations in the place of bounds."""
    if isinstance(part, Bounds):
        return part.nominal
    if isinstance(part, tuple | list):
        return type(part)([_nominal(inner) for inner in part])
    if isinstance(part, dict):
        return {key: _nominal(inner) for key, inner in part.items()}
    return part


def _widened(result: Any) -> Any:
    """Of a rule that gives several parts, such as `chunk`, each."""
    return tuple([part.widened(8) for part in result]) if isinstance(result, tuple) else result.widened(8)


def _affine_arguments(plan: Plan, step: Step, values: dict[str, Any]) -> tuple[Bounds, Tensor, Tensor | None]:
    args, kwargs = _filled((step.args, step.kwargs), values)
    if step.path:
        module: Any = compute_weights(plan.graph.module(step.path))
        return args[0], module.weight, module.bias
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    return named["input"], named["weight"], named.get("bias")
