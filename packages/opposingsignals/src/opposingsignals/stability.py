"""Where the edge of stability lies for an optimizer, and when a loss spiked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opposingsignals._checks import checked_curve, checked_number
from opposingsignals.optimizers import ClippedSGD


def eos_threshold(optimizer: torch.optim.Optimizer) -> float:
    """Sharpness above which full-batch training with this optimizer diverges on a quadratic.

    Gradient descent: 2/η. Heavy ball: (2 + 2β)/η, over 1 - d with dampening d. Nesterov: (2 + 2β)/((1 + 2β) η).
    Adam and AdamW: (2 + 2β₁)/((1 - β₁) η), 38/η at β₁ = 0.9, and RMSprop: (2 + 2β)/η, of the preconditioned
    sharpness (`top_eigs` with `adam_preconditioner`). Cohen et al. 2021 and 2022. Weight decay of `SGD` belongs into
    the loss.

    Args:
        optimizer: `SGD`, `Adam`, `AdamW` or `RMSprop` of torch, or `ClippedSGD`.

    Returns:
        The threshold.

    Raises:
        TypeError: If no threshold is known for this optimizer.
        ValueError: If its parameter groups differ, or the learning rate is 0.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> eos_threshold(torch.optim.SGD([weight], lr=0.5))
        4.0
    """
    found = {_threshold(optimizer, group) for group in optimizer.param_groups}
    if len(found) > 1:
        raise ValueError(
            f"optimizer must have one learning rate and momentum, its groups give {sorted(found)}"
        )
    return found.pop()


def _threshold(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    rate = checked_number("lr", group["lr"], 0.0, strict=True)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        beta = float(group["betas"][0])
        return (2 + 2 * beta) / ((1 - beta) * rate)
    if isinstance(optimizer, torch.optim.SGD | torch.optim.RMSprop | ClippedSGD):
        beta = float(group["momentum"])
        if group.get("nesterov"):
            return (2 + 2 * beta) / ((1 + 2 * beta) * rate)
        dampening = (
            beta if isinstance(optimizer, ClippedSGD) else float(group.get("dampening", 0.0)) * (beta > 0)
        )
        return (2 + 2 * beta) / ((1 - dampening) * rate)
    raise TypeError(
        "optimizer must be SGD, Adam, AdamW, RMSprop or ClippedSGD, no threshold is known for "
        f"{type(optimizer).__name__}"
    )


def spike_steps(losses: Tensor | Sequence[float], z: float = 4.0) -> Tensor:
    """Steps at which the loss rose out of the ordinary.

    A step t counts if the change l(t) - l(t - 1) is positive and more than `z` robust deviations (1.4826 times the
    median absolute deviation) above the median change.

    Args:
        losses: Loss curve, (T,), at least 3 records; a list will do.
        z: Deviations, above 0.

    Returns:
        Indices t of the curve, increasing.

    Raises:
        ValueError: If the curve is too short or not finite.

    Examples:
        >>> spike_steps(torch.tensor([1.0, 0.9, 0.81, 0.7, 2.0, 0.6, 0.5]))
        tensor([4])
    """
    far = checked_number("z", z, 0.0, strict=True)
    change = checked_curve("losses", losses).diff()
    centre = change.median()
    spread = 1.4826 * (change - centre).abs().median()
    return ((change > 0) & (change > centre + far * spread)).nonzero()[:, 0] + 1
