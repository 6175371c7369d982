"""SGD with one ingredient of Adam: coordinates that the opposing signals pull at take small or bounded steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from opposingsignals._checks import checked_count, checked_number


class _Coordinates(Optimizer):
    """A loop over parameters with a gradient; `_update` says what is subtracted, in float32 at least."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Evaluates the loss again, as for any optimizer of torch.

        Returns:
            What the closure returned.

        Raises:
            ValueError: If a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if gradient.is_sparse or gradient.is_complex():
                    raise ValueError(
                        f"gradients must be dense and real, got {gradient.layout} of {gradient.dtype}"
                    )
                exact = torch.promote_types(parameter.dtype, torch.float32)
                state = self.state[parameter]
                for key, value in state.items():  # loading a state casts it to the parameter's own dtype
                    if isinstance(value, Tensor) and value.is_floating_point():
                        state[key] = value.to(exact)
                gradient = gradient.to(exact)
                if group["weight_decay"]:
                    gradient = gradient.add(parameter.to(exact), alpha=group["weight_decay"])
                parameter.sub_(self._update(gradient, state, group).to(parameter.dtype))
        return loss

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class ClippedSGD(_Coordinates):
    """SGD with dampened momentum whose largest coordinates are clamped, tensor by tensor.

    m ← β m + (1 - β) g, from m = g at the first step as in torch; the threshold is the q-quantile of |m| (or of |g|
    with `clip="gradient"`) within the tensor, and the step is η clamp(m, -threshold, threshold). With q = 1 it is
    `torch.optim.SGD(momentum=β, dampening=β)` (after the comparison with Adam in Rosenfeld and Risteski 2024).

    Args:
        params: As for any optimizer of torch.
        lr: Learning rate η.
        momentum: β in [0, 1).
        quantile: q in [0, 1]; 0.9 clamps the top tenth.
        clip: "update" clamps m, "gradient" clamps g before it enters m.
        weight_decay: Added to the gradient, times the parameter.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(4))
        >>> optimizer = ClippedSGD([weight], lr=1.0, quantile=0.75)
        >>> (weight * torch.tensor([1.0, 2.0, 3.0, 400.0])).sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([-1., -2., -3., -3.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        quantile: float = 0.9,
        *,
        clip: str = "update",
        weight_decay: float = 0.0,
    ) -> None:
        if clip not in ("update", "gradient"):
            raise ValueError(f"clip must be 'update' or 'gradient', got {clip!r}")
        defaults = {
            "lr": _rate(lr),
            "momentum": _beta("momentum", momentum),
            "quantile": checked_number("quantile", quantile, 0.0, 1.0),
            "clip": clip,
            "weight_decay": checked_number("weight_decay", weight_decay, 0.0),
        }
        super().__init__(params, defaults)

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if group["clip"] == "gradient":
            gradient = _clamp(gradient, group["quantile"])
        moment = _average(state, "momentum_buffer", gradient, group["momentum"], group["momentum"])
        if group["clip"] == "update":
            moment = _clamp(moment, group["quantile"])
        return group["lr"] * moment


class PartialAdamSGD(_Coordinates):
    """Adam on a part of the coordinates, SGD on the others: where does Adam's advantage sit?

    In each tensor the `fraction` of coordinates with the largest running v = β₂ v + (1 - β₂) g² takes Adam's step
    η_A m̂ / (sqrt(v̂) + ε), or η_A sign(m); the rest takes η times SGD's momentum. `mirror=True` gives Adam the
    smallest instead, the ablation. `fraction=0` is `torch.optim.SGD`, `fraction=1` is `torch.optim.Adam`.
    (After the comparison with Adam in Rosenfeld and Risteski 2024.)

    Args:
        params: As for any optimizer of torch.
        lr: Learning rate η of SGD.
        adam_lr: Learning rate η_A of the others.
        fraction: Part of each tensor in [0, 1], rounded up to whole coordinates.
        momentum: SGD's.
        dampening: SGD's.
        betas: Adam's.
        eps: Adam's.
        large_step: "adam" or "sign".
        mirror: Take the smallest v instead of the largest.
        mask_every: Steps between two choices of the coordinates.
        weight_decay: Added to the gradient, times the parameter.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(4))
        >>> optimizer = PartialAdamSGD([weight], lr=0.1, adam_lr=0.1, fraction=0.25)
        >>> (weight * torch.tensor([1.0, 2.0, 3.0, 400.0])).sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.1000, -0.2000, -0.3000, -0.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        adam_lr: float = 1e-3,
        fraction: float = 0.1,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        large_step: str = "adam",
        mirror: bool = False,
        mask_every: int = 1,
        weight_decay: float = 0.0,
    ) -> None:
        if large_step not in ("adam", "sign"):
            raise ValueError(f"large_step must be 'adam' or 'sign', got {large_step!r}")
        defaults = {
            "lr": _rate(lr),
            "adam_lr": _rate(adam_lr, "adam_lr"),
            "fraction": checked_number("fraction", fraction, 0.0, 1.0),
            "momentum": _beta("momentum", momentum),
            "dampening": checked_number("dampening", dampening, 0.0, 1.0),
            "betas": (_beta("betas[0]", betas[0]), _beta("betas[1]", betas[1])),
            "eps": checked_number("eps", eps, 0.0, strict=True),
            "large_step": large_step,
            "mirror": bool(mirror),
            "mask_every": checked_count("mask_every", mask_every),
            "weight_decay": checked_number("weight_decay", weight_decay, 0.0),
        }
        super().__init__(params, defaults)

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if state["step"] % group["mask_every"] == 0:
            state["mask"] = _largest(state["exp_avg_sq"], group["fraction"], group["mirror"])
        state["step"] += 1
        plain = group["lr"] * _average(
            state, "momentum_buffer", gradient, group["momentum"], group["dampening"]
        )
        if group["large_step"] == "sign":
            adapted = group["adam_lr"] * state["exp_avg"].sign()
        else:
            scale = state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2 ** state["step"]) + group["eps"]
            adapted = group["adam_lr"] / (1 - beta1 ** state["step"]) * state["exp_avg"] / scale
        return torch.where(state["mask"].bool(), adapted, plain)


class SignSGD(_Coordinates):
    """Momentum of which only the sign counts, or only the direction of each tensor: the baselines.

    m ← β m + (1 - β) g from m = g; the step is η sign(m), or η m / ||m|| times the root of the number of coordinates
    with `normalise="tensor"`, which has the same length.

    Args:
        params: As for any optimizer of torch.
        lr: Learning rate η, the size of a coordinate's step.
        momentum: β in [0, 1).
        normalise: "sign" or "tensor".
        weight_decay: Added to the gradient, times the parameter.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> (weight * torch.tensor([3.0, -4.0])).sum().backward()
        >>> SignSGD([weight], lr=0.1).step()
        >>> weight.data
        tensor([-0.1000,  0.1000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        *,
        normalise: str = "sign",
        weight_decay: float = 0.0,
    ) -> None:
        if normalise not in ("sign", "tensor"):
            raise ValueError(f"normalise must be 'sign' or 'tensor', got {normalise!r}")
        defaults = {
            "lr": _rate(lr),
            "momentum": _beta("momentum", momentum),
            "normalise": normalise,
            "weight_decay": checked_number("weight_decay", weight_decay, 0.0),
        }
        super().__init__(params, defaults)

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        moment = _average(state, "momentum_buffer", gradient, group["momentum"], group["momentum"])
        if group["normalise"] == "sign":
            return group["lr"] * moment.sign()
        length = moment.norm().clamp_min(torch.finfo(moment.dtype).tiny)
        return group["lr"] * math.sqrt(moment.numel()) * moment / length


def _average(state: dict[str, Any], name: str, gradient: Tensor, beta: float, dampening: float) -> Tensor:
    """Momentum as torch's SGD keeps it: the first gradient enters undampened."""
    if beta == 0:
        return gradient
    if name not in state:
        state[name] = gradient.clone()
    else:
        state[name].mul_(beta).add_(gradient, alpha=1 - dampening)
    return state[name]


def _clamp(values: Tensor, quantile: float) -> Tensor:
    """Clamp to an order statistic, which unlike `torch.quantile` knows no limit of size."""
    if quantile == 1 or values.numel() == 0:
        return values
    rank = max(math.ceil(quantile * values.numel() - 1e-9), 1)
    threshold = values.abs().flatten().kthvalue(rank).values
    return values.clamp(-threshold, threshold)


def _largest(values: Tensor, fraction: float, mirror: bool) -> Tensor:
    count = math.ceil(fraction * values.numel() - 1e-9)
    mask = torch.zeros(values.numel(), dtype=torch.uint8, device=values.device)
    mask[values.flatten().topk(count, largest=not mirror).indices] = 1
    return mask.view_as(values)


def _rate(value: Any, name: str = "lr") -> float:
    return checked_number(name, value, 0.0)


def _beta(name: str, value: Any) -> float:
    number = checked_number(name, value, 0.0)
    if number >= 1:
        raise ValueError(f"{name} must be below 1, got {number}")
    return number
