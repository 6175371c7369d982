"""The mean teacher: a copy whose weights are a moving average of the student's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustmeanteacher.split import uncompiled

Buffers = Literal["skip", "copy", "ema"]

_HALF = (torch.bfloat16, torch.float16)


class EMATeacher(nn.Module):
    """A copy of a model whose weights follow the model's by an exponential moving average.

    theta' <- m theta' + (1 - m) theta over all parameters (Tarvainen & Valpola 2017; arXiv 2211.13081,
    section 3.1). The copy is in evaluation mode and asks for no gradients.

    Tensors in half precision are averaged in float32 and rounded into the copy: at m = 0.999 an update is
    smaller than what bfloat16 can tell apart. The averages are buffers named `average_<index>`, and so part of the
    state dict; a weight of the copy that something else has written to counts as it was written.

    Args:
        model: The model to copy. Of a compiled one the module inside is copied, without `_orig_mod.` in names;
            compile `teacher.module` yourself if you like.
        momentum: m in [0, 1]; 1 freezes the teacher, 0 copies the student.
        buffers: What `update` does to buffers: `"skip"`, `"copy"`, or `"ema"` (average the floating-point
            ones, copy the others).

    Attributes:
        module: The copy.

    Raises:
        ValueError: If momentum is outside [0, 1], or `buffers` is unknown.

    Examples:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(student.weight)
        >>> teacher = EMATeacher(student, momentum=0.5)
        >>> _ = nn.init.zeros_(student.weight)
        >>> for _ in range(3):
        ...     teacher.update(student)
        >>> teacher.module.weight.item()
        0.125
    """

    def __init__(self, model: nn.Module, momentum: float = 0.999, buffers: Buffers = "skip") -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        if buffers not in ("skip", "copy", "ema"):
            raise ValueError(f"buffers must be 'skip', 'copy' or 'ema', got {buffers!r}")
        self.momentum = momentum
        self.buffer_rule = buffers
        self.module = _copy(uncompiled(model)).requires_grad_(False).eval()
        self._keep_averages(self._averaged(self.module))

    def forward(self, images: Tensor) -> Any:
        """What the copy returns for the images, without gradients."""
        with torch.no_grad():
            return self.module(images)

    def train(self, mode: bool = True) -> EMATeacher:
        """Stay in evaluation mode, whatever the mode: dropout has no place in a teacher."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model, in place.

        Args:
            model: The student, of the architecture that was copied.
        """
        self._average(self._averaged(self.module), self._averaged(model))
        if self.buffer_rule == "skip":
            return
        for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
            if self.buffer_rule == "copy" or not mine.is_floating_point():
                mine.copy_(other)

    def _averaged(self, model: nn.Module) -> list[Tensor]:
        """What follows by an average: parameters, and with the rule "ema" floating-point buffers."""
        buffers = model.buffers() if self.buffer_rule == "ema" else ()
        return [*model.parameters(), *(buffer for buffer in buffers if buffer.is_floating_point())]

    def _average(self, mine: list[Tensor], others: list[Tensor]) -> None:
        if len(mine) != len(others):
            raise ValueError(
                f"model must be of the architecture that was copied, {len(mine)} tensors, got {len(others)}"
            )
        accurate = self._accurate(mine)
        for tensor, average in zip(mine, accurate, strict=True):
            if average is not tensor:
                # Where the copy is not the rounded average any more, somebody has loaded other weights into it.
                average.copy_(torch.where(average.to(tensor.dtype) == tensor, average, tensor))
        others = [other.to(average.dtype) for average, other in zip(accurate, others, strict=True)]
        # One pass over the memory and one call for all tensors.
        torch._foreach_lerp_(accurate, others, 1 - self.momentum)
        for tensor, average in zip(mine, accurate, strict=True):
            if average is not tensor:
                tensor.copy_(average)

    def _accurate(self, tensors: list[Tensor]) -> list[Tensor]:
        """The float32 average of every tensor that has one, else the tensor itself."""
        if not self._buffers:
            return tensors
        kept = [self._buffers.get(f"average_{index}") for index in range(len(tensors))]
        return [tensor if average is None else average for tensor, average in zip(tensors, kept, strict=True)]

    def _keep_averages(self, accurate: list[Tensor]) -> None:
        """Let every tensor in half precision have a float32 average beside it, and no other one."""
        self._buffers.clear()
        for index, (tensor, value) in enumerate(zip(self._averaged(self.module), accurate, strict=True)):
            if tensor.dtype in _HALF:
                average = value.detach().to(device=tensor.device, dtype=torch.float32, copy=True)
                self.register_buffer(f"average_{index}", average)

    @torch.no_grad()
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATeacher:
        """Moving and casting (`to`, `bfloat16`, `float`) do not round the averages."""
        rounded = [tensor.detach() for tensor in self._averaged(self.module)]
        before = self._accurate(rounded)
        super()._apply(fn, recurse)
        self._keep_averages(before)
        if before is not rounded:
            for tensor, value in zip(self._averaged(self.module), before, strict=True):
                if tensor.dtype not in _HALF:
                    tensor.copy_(value)
        return self


def _copy(model: nn.Module) -> nn.Module:
    """Deep copy, also where a hook (weight norm, spectral norm) left a computed weight that torch refuses to copy."""
    computed = (
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    )
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
