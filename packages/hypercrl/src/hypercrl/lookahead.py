"""The change that an optimizer would make, without making it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from hypercrl._checks import choice


def lookahead_delta(
    optimizer: Optimizer,
    gradients: Mapping[Tensor, Tensor] | None = None,
    *,
    fallback: Literal["sgd", "copy"] | None = None,
) -> dict[Tensor, Tensor]:
    r"""Return the change that `optimizer.step()` would make now.

    $$\Delta\theta = \mathrm{step}(\theta, \nabla L_{task}) - \theta$$

    (arXiv 2009.11997, section III-B; von Oswald et al., 2020, equation 2). Nothing is changed: neither parameters, nor
    gradients, nor the optimizer's state. Exact for `SGD`, `Adam`, `AdamW` and `RMSprop` of torch, with all their
    options.

    Args:
        optimizer: The optimizer of `theta`, after the backward pass of the task's loss.
        gradients: Gradients by parameter in place of `.grad`. If they carry a graph, so does the result.
        fallback: For any other optimizer: `"sgd"` for `-lr * gradient`, `"copy"` for a real step of a copy (exact, but
            it copies all state, and the result carries no graph).

    Returns:
        The change of each parameter that has a gradient.

    Raises:
        TypeError: If the optimizer is none of the four and there is no `fallback`.
        ValueError: If `fallback` is unknown.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = SGD([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> lookahead_delta(optimizer)[weight]
        tensor([-0.2000, -0.4000])
    """
    choice("fallback", fallback, (None, "sgd", "copy"))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    rule = _RULES.get(type(optimizer))  # a subclass may step in a way of its own
    if rule is None and fallback is None:
        raise TypeError(
            f"optimizer must be SGD, Adam, AdamW or RMSprop, got {type(optimizer).__name__}: "
            "pass fallback='sgd' or fallback='copy'"
        )
    if gradients is None:
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        gradients = {value: value.grad.detach() for value in parameters if value.grad is not None}
    if rule is None and fallback == "copy":
        return _step_of_a_copy(optimizer, gradients)
    return {
        value: (rule or _plain)(group, optimizer.state.get(value, {}), value.detach(), gradients[value])
        for group in optimizer.param_groups
        for value in group["params"]
        if value in gradients
    }


def sgd_delta(optimizer: Optimizer, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return `-lr * gradient` of each parameter, whatever the optimizer (official flag `use_sgd_change`)."""
    return {
        value: _plain(group, {}, value, gradients[value])
        for group in optimizer.param_groups
        for value in group["params"]
        if value in gradients
    }


Rule = Callable[[dict[str, Any], Mapping[str, Any], Tensor, Tensor], Tensor]


def _plain(group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor) -> Tensor:
    return (gradient if group.get("maximize") else -gradient) * group["lr"]


def _sgd(group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor) -> Tensor:
    gradient = _with_decay(group, value, gradient)
    momentum = group["momentum"]
    if momentum:
        buffer = state.get("momentum_buffer")
        average = gradient if buffer is None else momentum * buffer + (1 - group["dampening"]) * gradient
        gradient = gradient + momentum * average if group["nesterov"] else average
    return -group["lr"] * gradient


def _adam(group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor) -> Tensor:
    decoupled = group.get("decoupled_weight_decay", False)
    return _adam_change(group, state, value, gradient, decoupled)


def _adamw(group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor) -> Tensor:
    return _adam_change(group, state, value, gradient, decoupled=True)


def _adam_change(
    group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor, decoupled: bool
) -> Tensor:
    lr, (beta1, beta2) = group["lr"], group["betas"]
    decay = -lr * group["weight_decay"] * value if decoupled and group["weight_decay"] else None
    gradient = _with_decay(group, value, gradient, apply=not decoupled)
    step = _number(state.get("step", 0)) + 1
    first = torch.lerp(state["exp_avg"], gradient, 1 - beta1) if state else (1 - beta1) * gradient
    old = state["exp_avg_sq"] * beta2 if state else torch.zeros_like(gradient)
    second = torch.addcmul(old, gradient, gradient, value=1 - beta2)
    if group["amsgrad"] and "max_exp_avg_sq" in state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    # The step's size and the second moment's bias are numbers: one pass over the weights less each.
    size, bias = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
    change = first * (-size * bias) / (_root(second) + group["eps"] * bias)
    return change if decay is None else change + decay


def _rmsprop(group: dict[str, Any], state: Mapping[str, Any], value: Tensor, gradient: Tensor) -> Tensor:
    gradient, alpha = _with_decay(group, value, gradient), group["alpha"]
    second = alpha * state.get("square_avg", 0.0) + (1 - alpha) * gradient.square()
    if group["centered"]:
        mean = alpha * state.get("grad_avg", 0.0) + (1 - alpha) * gradient
        second = second - mean.square()
    change = gradient / (_root(second) + group["eps"])
    if group["momentum"]:
        change = group["momentum"] * state.get("momentum_buffer", 0.0) + change
    return -group["lr"] * change


_RULES: dict[type[Optimizer], Rule] = {SGD: _sgd, Adam: _adam, AdamW: _adamw, RMSprop: _rmsprop}


def _with_decay(group: dict[str, Any], value: Tensor, gradient: Tensor, apply: bool = True) -> Tensor:
    if group.get("maximize"):
        gradient = -gradient
    return gradient + group["weight_decay"] * value if apply and group["weight_decay"] else gradient


def _number(step: Any) -> Any:
    """Return a step count that is fine enough for powers of beta: torch keeps it in float32, on the CPU by default."""
    if not isinstance(step, Tensor):
        return step
    return step.item() if step.device.type == "cpu" else step.double()


def _root(square: Tensor) -> Tensor:
    """Return the square root, with derivative 0 where the square is 0."""
    if not square.requires_grad:
        return square.sqrt()
    zero = square == 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def _step_of_a_copy(optimizer: Optimizer, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    double = copy.deepcopy(optimizer)  # parameters too
    pairs = zip(optimizer.param_groups, double.param_groups, strict=True)
    twins = [twin for one, other in pairs for twin in zip(one["params"], other["params"], strict=True)]
    for value, copied in twins:
        copied.grad = gradients[value].detach().clone() if value in gradients else None
    double.step()
    return {value: (copied - value).detach() for value, copied in twins if value in gradients}
