"""The average of a model's weights, for sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_EXACT = (torch.float32, torch.float64)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average of a model one step: ema <- decay ema + (1 - decay) model; buffers are copied.

    For evaluation (0.99993 in the paper), or as the teacher of the original consistency training. The
    improved training has no teacher but the model itself.

    The average of a model in bfloat16 or float16 is kept in float32, `copy.deepcopy(model).float()`: in its own dtype
    a step of 1 - decay is rounded away. It may also lie on another device than the model.

    Args:
        ema: The average, changed in place; a deepcopy of the model to start with.
        model: The model.
        decay: In [0, 1].

    Raises:
        ValueError: If decay is out of range, the two have different parameters or buffers, are one and the same, or
            an average that has to move is in half precision.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    if isinstance(ema, AveragedModel):  # has a counter of its own among the buffers
        ema = ema.module
    averages, average_buffers = _tensors(ema)
    parameters, buffers = _tensors(model)
    if [p.shape for p in averages] != [p.shape for p in parameters]:
        raise ValueError("ema and model must have the same parameters; start from copy.deepcopy(model)")
    if averages and averages[0] is parameters[0]:
        raise ValueError(
            "ema must be a copy of the model, got the model itself; start from copy.deepcopy(model)"
        )
    if [b.shape for b in average_buffers] != [b.shape for b in buffers]:
        raise ValueError("ema and model must have the same buffers; start from copy.deepcopy(model)")
    if any(
        a.dtype not in _EXACT or a.dtype != p.dtype or a.device != p.device
        for a, p in zip(averages, parameters, strict=True)
    ):
        averages, parameters = _alike(averages, parameters, decay)
    if averages:
        torch._foreach_lerp_(averages, parameters, 1 - decay)
    for average, buffer in zip(average_buffers, buffers, strict=True):
        average.copy_(buffer)


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers, tied ones once, in one walk over the modules."""
    parameters: dict[Tensor, None] = {}
    buffers: dict[Tensor, None] = {}
    for part in module.modules():
        parameters.update((p, None) for p in part._parameters.values() if p is not None)
        buffers.update((b, None) for b in part._buffers.values() if b is not None)
    return list(parameters), list(buffers)


def _alike(
    averages: list[Tensor], parameters: list[Tensor], decay: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The floating-point pairs, each in the dtype and on the device of the average; integers are copied on the way."""
    pairs = []
    for average, parameter in zip(averages, parameters, strict=True):
        if not average.is_floating_point():
            average.copy_(parameter)
            continue
        if average.dtype not in _EXACT and parameter.requires_grad and 0 < decay < 1:
            raise ValueError(
                f"ema must be in float32, where small steps are not rounded away, got {average.dtype}; "
                "start from copy.deepcopy(model).float()"
            )
        pairs.append((average, parameter.to(average)))
    return [average for average, _ in pairs], [parameter for _, parameter in pairs]
