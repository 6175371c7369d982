"""Ghost batch normalisation where channels lie last in memory: read and written in place, without a copy.

Torch's fused kernel wants one channel a column, and the ghost batches of channels-last images are no columns. Here
its two reductions run on the columns that there are, (S, G P C) with P places, and their results are put together by
the law of total variance; what is left is one multiplication and one addition a value, broadcast over (S, G, P, C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F

DTYPES = (torch.float32, torch.float64)
LEAST = 100_000  # values, below which two copies cost less than six passes


def takes_rows(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None) -> bool:
    """Tell whether `normalise_rows` is for this input: an ordinary and not a small one on the CPU, channels last.

    Compilers, tracers, forward-mode differentiation and the transforms of `torch.func` read through the operators
    of the fused way, so they get those.

    Args:
        x: (N, C, *).
        weight: (C,) or None.
        bias: (C,) or None.
        dtype: Of the running statistics; None if there are none.

    Returns:
        Whether it is.
    """
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or x.dtype not in DTYPES:
        return False
    if x.numel() < LEAST:
        return False
    if x.dim() < 3 or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return False
    tensors = [x] + [tensor for tensor in (weight, bias) if tensor is not None]
    if any(kind != x.dtype for kind in (*(tensor.dtype for tensor in tensors), dtype or x.dtype)):
        return False
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or torch._C._are_functorch_transforms_active():
        return False
    return all(forward_ad.unpack_dual(tensor).tangent is None for tensor in tensors)


def normalise_rows(
    parts: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalise each ghost batch by its own statistics.

    Args:
        parts: (A, G, B, C) in that order in memory: of ghost batch g the A B values `parts[:, g]` of each channel.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to the variance.

    Returns:
        The normalised parts, and the means and unbiased variances, (2, G, C).
    """
    y, mean, variance = _NormaliseRows.apply(parts, weight, bias, eps)
    count = parts.shape[0] * parts.shape[2]
    return y, torch.stack([mean, variance * (count / (count - 1))]).flatten(1, 3)


class _NormaliseRows(Function):
    """Saves what torch's own batch normalisation saves: the input and two statistics a channel."""

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(parts)
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(parts, weight, bias, mean, inverse)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(shift, parts, scale), mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        parts, weight, bias, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants the gradient's own gradient
            return _differentiable_gradients(ctx.needs_input_grad, parts, weight, bias, ctx.eps, grad)
        grad = grad.contiguous()
        total, product = _sums(grad, parts, mean)
        grad_parts = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            scale = inverse if weight is None else inverse * weight
            count = parts.shape[0] * parts.shape[2]
            slope = -scale * inverse.square() * product / count
            grad_parts = torch.addcmul(-scale * total / count - slope * mean, parts, slope).addcmul_(
                grad, scale
            )
        if ctx.needs_input_grad[1]:
            grad_weight = (product * inverse).sum((0, 1, 2))
        if ctx.needs_input_grad[2]:
            grad_bias = total.sum((0, 1, 2))
        return grad_parts, grad_weight, grad_bias, None


def _moments(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each ghost batch, (1, G, 1, C)."""
    if parts.shape[0] == 1:
        mean = parts.mean(2, keepdim=True)
        return mean, (parts - mean).square_().mean(2, keepdim=True)
    means, variances = torch.batch_norm_update_stats(parts.flatten(1), None, None, 0.0)
    means, variances = (columns.view(1, *parts.shape[1:]) for columns in (means, variances))
    mean = means.mean(2, keepdim=True)
    return mean, variances.add_((means - mean).square_()).mean(2, keepdim=True)


def _sums(grad: Tensor, parts: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over each ghost batch of the gradient, and of the gradient times the centred input, (1, G, 1, C)."""
    if parts.shape[0] == 1:
        return grad.sum(2, keepdim=True), (parts - mean).mul_(grad).sum(2, keepdim=True)
    columns = mean.expand(1, *parts.shape[1:]).reshape(-1)
    # The kernel's gradients of scale and shift are these sums where one over the deviation is one.
    _, products, totals = torch.ops.aten.native_batch_norm_backward(
        grad.flatten(1), parts.flatten(1), None, None, None, columns, torch.ones_like(columns), True, 0.0,
        [False, True, True],
    )  # fmt: skip
    total, product = (sums.view(1, *parts.shape[1:]).sum(2, keepdim=True) for sums in (totals, products))
    return total, product


def _differentiable_gradients(
    needed: tuple[bool, ...],
    parts: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    num_groups, num_channels = parts.shape[1], parts.shape[3]
    rows = parts.transpose(1, 2).reshape(-1, num_groups * num_channels)
    gamma, beta = (None if one is None else one.expand(num_groups, -1).reshape(-1) for one in (weight, bias))
    y = F.batch_norm(rows, None, None, gamma, beta, True, 0.0, eps)
    inputs = [
        one for one, wanted in zip((parts, weight, bias), needed, strict=False) if wanted and one is not None
    ]
    direction = grad.transpose(1, 2).reshape(y.shape)
    found = iter(torch.autograd.grad(y, inputs, direction, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in needed)
