"""The two products of an interval layer, with a gradient made for large weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class TwoProducts(torch.autograd.Function):
    """`c W^T` and `r |W|^T`, with one gradient of `W` for the two.

    The last layer's matrix is by far the largest tensor of an iteration. Left to autograd, its gradient takes
    five temporaries of its size; here it takes two.
    """

    @staticmethod
    def forward(center: Tensor, radius: Tensor, weight: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two products; `size` is `|weight|`."""
        return F.linear(center, weight), F.linear(radius, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_center: Tensor, grad_radius: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the centre, the radius and the weight."""
        center, radius, weight, size = ctx.saved_tensors
        need_center, need_radius, need_weight, _ = ctx.needs_input_grad
        with torch.autocast(weight.device.type, enabled=False):
            grad_center, grad_radius = grad_center.to(weight.dtype), grad_radius.to(weight.dtype)
            grad_weight = None
            if need_weight:
                rows = [
                    value.reshape(-1, value.shape[-1]) for value in (grad_radius, radius, grad_center, center)
                ]
                grad_weight = (rows[0].mT @ rows[1]).mul_(weight.sign()).addmm_(rows[2].mT, rows[3])
            return (
                grad_center @ weight if need_center else None,
                grad_radius @ size if need_radius else None,
                grad_weight,
                None,
            )
