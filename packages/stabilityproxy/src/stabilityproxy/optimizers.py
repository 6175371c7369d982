"""What AdamW does to each tensor: its update, and what epsilon takes away from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from stabilityproxy._checks import exact_dtype, sum_dtype
from stabilityproxy.families import plain_name

_BLOCK = 65_536  # numbers; what is done to a block of a CPU tensor stays in the cache


@dataclass(frozen=True)
class AdamStatistics:
    r"""The state of Adam, tensor by tensor.

    Attributes:
        names: The P tensors.
        update_rms: (P,) root mean square of $\Delta = \hat m / (\sqrt{\hat v} + \epsilon)$, before the learning rate.
        second_moment_rms: (P,) root mean square of $\sqrt{\hat v}$, about that of the gradient.
        eps_ratio: (P,) $\epsilon$ over the latter: above 0.1 the update begins to vanish.
    """

    names: tuple[str, ...]
    update_rms: Tensor
    second_moment_rms: Tensor
    eps_ratio: Tensor


@torch.no_grad()
def adam_statistics(optimizer: Optimizer, model: nn.Module | None = None) -> AdamStatistics:
    r"""Root mean squares of Adam's update and second moment (section 3.4 of the paper).

    With a gradient whose root mean square is g, $\Delta$ shrinks by about $g / (g + \epsilon)$: at scale gradients
    approach the usual $\epsilon = 10^{-8}$ and layers freeze.

    Args:
        optimizer: `torch.optim.AdamW` or `Adam` (amsgrad, fused, capturable or not), after a step.
        model: Gives the tensors their names; without it they are numbered by group.

    Returns:
        The statistics, on the CPU, in float64.

    Raises:
        TypeError: If the optimizer is none of the two.
        ValueError: If it has not made a step yet.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.AdamW(layer.parameters(), eps=1e-3)
        >>> layer.weight.grad = torch.full((1, 2), 3e-3)
        >>> optimizer.step()
        >>> found = adam_statistics(optimizer, layer)
        >>> found.names, round(found.update_rms.item(), 3), round(found.eps_ratio.item(), 3)
        (('weight',), 0.75, 0.333)
    """
    moments = _moments(adam_of(optimizer), parameter_names(optimizer, model))
    if not moments:
        raise ValueError("optimizer must have made a step, its state is empty")
    on_cpu = all(moment.first.device.type == "cpu" and not _is_spread(moment.first) for moment in moments)
    norms, sums = (_in_blocks if on_cpu else _at_once)(moments)
    sizes = torch.tensor([moment.first.numel() or 1 for moment in moments], dtype=torch.float64)
    eps, correction1, correction2 = (
        torch.tensor([getattr(moment, field) for moment in moments], dtype=torch.float64)
        for field in ("eps", "correction1", "correction2")
    )
    # m_hat / (sqrt(v_hat) + eps) = sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2)), and norms are of the latter
    update = correction2.sqrt() / correction1 * norms / sizes.sqrt()
    second = (sums / correction2 / sizes).sqrt()
    return AdamStatistics(tuple(moment.name for moment in moments), update, second, eps / second)


def adam_update_rms(optimizer: Optimizer, model: nn.Module | None = None) -> dict[str, float]:
    """Root mean square of Adam's last update of each tensor, before the learning rate; see `adam_statistics`.

    Args:
        optimizer: `torch.optim.AdamW` or `Adam`, after a step.
        model: Gives the tensors their names.

    Returns:
        By name.

    Raises:
        TypeError: If the optimizer is none of the two.
        ValueError: If it has not made a step yet.

    Examples:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> layer(torch.ones(1, 2)).backward()
        >>> optimizer.step()
        >>> round(adam_update_rms(optimizer, layer)["weight"], 3)
        1.0
    """
    found = adam_statistics(optimizer, model)
    return dict(zip(found.names, found.update_rms.tolist(), strict=True))


def adam_of(optimizer: Any) -> Optimizer:
    """The Adam that is inside of a wrapper such as Accelerate's."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Adam | AdamW):
        raise TypeError(
            f"optimizer must be torch.optim.AdamW or Adam, whose epsilon this is about, "
            f"got {type(optimizer).__name__}"
        )
    return inner


def parameter_names(optimizer: Any, model: nn.Module | None) -> dict[int, str]:
    """Names of the optimizer's parameters, by their identity."""
    known = {} if model is None else {id(value): plain_name(key) for key, value in model.named_parameters()}
    inner = getattr(optimizer, "optimizer", optimizer)
    return {
        id(parameter): known.get(id(parameter), f"group{group_index}.{index}")
        for group_index, group in enumerate(inner.param_groups)
        for index, parameter in enumerate(group["params"])
    }


@torch.no_grad()
def root_mean_squares(tensors: Sequence[Tensor]) -> Tensor:
    """(P,) of each tensor; in float64, since squares of small gradients underflow in float32."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    sizes = torch.tensor([tensor.numel() or 1 for tensor in tensors], dtype=torch.float64)
    return _norms(tensors) / sizes.sqrt()


class _Moment(NamedTuple):
    name: str
    first: Tensor
    second: Tensor
    correction1: float
    correction2: float
    eps: float


def _moments(optimizer: Optimizer, names: dict[int, str]) -> list[_Moment]:
    found = [
        (parameter, group, optimizer.state[parameter])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "exp_avg" in optimizer.state.get(parameter, {})
    ]
    steps = _numbers([state["step"] for _, _, state in found])
    return [
        _Moment(
            names[id(parameter)],
            state["exp_avg"],
            state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"],
            1 - float(group["betas"][0]) ** step,
            1 - float(group["betas"][1]) ** step,
            float(group["eps"]),
        )
        for (parameter, group, state), step in zip(found, steps, strict=True)
    ]


def _in_blocks(moments: list[_Moment]) -> tuple[Tensor, Tensor]:
    """Norm of m / (sqrt(v) + eps') and sum of v, a block at a time in one small buffer."""
    buffers: dict[torch.dtype, Tensor] = {}
    squares, sums = [], []
    for moment in moments:
        dtype = exact_dtype(moment.first)
        buffer = buffers.setdefault(dtype, torch.empty(_BLOCK, dtype=dtype))
        eps = moment.eps * math.sqrt(moment.correction2)
        square, total = [], []
        blocks = zip(_flat(moment.first).split(_BLOCK), _flat(moment.second).split(_BLOCK), strict=True)
        for above, below in blocks:
            update = buffer[: above.numel()]
            torch.sqrt(below.to(dtype), out=update).add_(eps)
            torch.div(above.to(dtype), update, out=update)
            square.append(torch.dot(update, update))
            total.append(below.sum(dtype=dtype))
        squares.append(torch.stack(square).sum(dtype=torch.float64))
        sums.append(torch.stack(total).sum(dtype=torch.float64))
    return torch.stack(squares).sqrt(), torch.stack(sums)


def _at_once(moments: list[_Moment]) -> tuple[Tensor, Tensor]:
    """The same by calls over all tensors, as suits an accelerator and tensors that are spread over ranks."""
    first, second = (
        [tensor.to(exact_dtype(tensor)) for tensor in tensors]
        for tensors in zip(*((moment.first, moment.second) for moment in moments), strict=True)
    )
    roots = list(torch._foreach_sqrt(second))
    sums = _norms(roots).square()
    torch._foreach_add_(roots, [moment.eps * math.sqrt(moment.correction2) for moment in moments])
    return _norms(torch._foreach_div(first, roots)), sums


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    dtype = sum_dtype(tensors[0].device)
    if any(_is_spread(tensor) for tensor in tensors):  # DTensors take no dtype here
        norms = torch._foreach_norm([tensor.detach().to(dtype) for tensor in tensors], 2)
    else:
        norms = torch._foreach_norm(list(tensors), 2, dtype=dtype)
    return torch.tensor(_numbers([_whole(norm) for norm in norms]), dtype=torch.float64)


def _numbers(scalars: Sequence[Any]) -> list[float]:
    """Scalars of any kind as floats, with one transfer a device."""
    numbers = [0.0] * len(scalars)
    by_device: dict[Any, list[int]] = {}
    for index, scalar in enumerate(scalars):
        by_device.setdefault(getattr(scalar, "device", None), []).append(index)
    for device, indices in by_device.items():
        chosen = [scalars[index] for index in indices]
        values = chosen if device is None else torch.stack([value.reshape(()) for value in chosen]).tolist()
        for index, value in zip(indices, values, strict=True):
            numbers[index] = float(value)
    return numbers


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)


def _is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP 2 makes of parameters."""
    return hasattr(tensor, "full_tensor")


def _whole(norm: Any) -> Tensor:
    return norm.full_tensor() if _is_spread(norm) else norm
