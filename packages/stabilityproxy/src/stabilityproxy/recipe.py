"""Two parts of the paper's recipe: independent weight decay, and warm-up with cosine decay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer

from stabilityproxy._checks import checked_number
from stabilityproxy.optimizers import adam_of


def independent_weight_decay_(
    optimizer: Optimizer, lam: float = 1e-4, peak_lr: float | Sequence[float] | None = None
) -> None:
    r"""Make weight decay independent of the peak learning rate, in place (section 3.2.2 of the paper).

    $\theta \leftarrow (1 - \lambda s_t)\,\theta - \eta s_t \Delta_t$ with a schedule $s_t$ in [0, 1]. Torch's AdamW
    decays by $\eta s_t \cdot$ `weight_decay`, so that `weight_decay` $= \lambda / \eta$ gives the same steps. Groups
    whose weight decay is 0 keep it.

    Args:
        optimizer: `torch.optim.AdamW`, with any scheduler that multiplies its learning rates.
        lam: $\lambda$, the share that is taken off at the peak.
        peak_lr: $\eta$ of all groups, or one for each. None takes what a scheduler noted as `initial_lr`, or else
            the present learning rate.

    Raises:
        ValueError: If `lam` is negative, a peak is not positive, or there are not as many as groups.
        TypeError: If the optimizer is not AdamW (Adam decays through the gradient).

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.02)
        >>> independent_weight_decay_(optimizer, lam=1e-4)
        >>> optimizer.param_groups[0]["weight_decay"]
        0.005
    """
    lam = checked_number("lam", lam)
    inner = adam_of(optimizer)
    groups = inner.param_groups
    decoupled = "AdamW" in type(inner).__name__ or inner.defaults.get("decoupled_weight_decay", False)
    if not decoupled:
        raise TypeError(f"optimizer must be AdamW, whose decay is decoupled, got {type(inner).__name__}")
    if peak_lr is None:
        peaks = [float(group.get("initial_lr", group["lr"])) for group in groups]
    elif isinstance(peak_lr, Sequence):
        peaks = [float(peak) for peak in peak_lr]
    else:
        peaks = [float(peak_lr)] * len(groups)
    if len(peaks) != len(groups):
        raise ValueError(f"peak_lr must be one number or one a group, {len(groups)}, got {len(peaks)}")
    for peak in peaks:
        checked_number("peak_lr", peak, positive=True)
    for group, peak in zip(groups, peaks, strict=True):
        if group["weight_decay"] != 0:
            group["weight_decay"] = lam / peak


def warmup_cosine(step: float, warmup: float, total: float, peak: float = 1.0, floor: float = 0.0) -> float:
    r"""Learning rate after linear warm-up and cosine decay (section 2.1 of the paper).

    $\eta\, t / w$ for $t < w$, then $f + (\eta - f)(1 + \cos(\pi (t - w) / (T - w))) / 2$, and $f$ from T on. The paper
    warms up for 5,000 of 100,000 steps and ends at 1e-5; a longer warm-up lowers learning rate sensitivity.

    Args:
        step: t, from 0.
        warmup: w, steps of warm-up.
        total: T, steps in all.
        peak: $\eta$; with 1 the result is the factor that `torch.optim.lr_scheduler.LambdaLR` wants.
        floor: f, where it ends.

    Returns:
        The learning rate.

    Raises:
        ValueError: If a number is negative or not finite, or not warmup <= total and floor <= peak.

    Examples:
        >>> [warmup_cosine(step, 10, 110) for step in (0, 5, 10, 60, 110, 999)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    numbers = {"step": step, "warmup": warmup, "total": total, "peak": peak, "floor": floor}
    step, warmup, total, peak, floor = (checked_number(name, value) for name, value in numbers.items())
    if warmup > total:
        raise ValueError(f"warmup must be at most total = {total:g}, got {warmup:g}")
    if floor > peak:
        raise ValueError(f"floor must be at most peak = {peak:g}, got {floor:g}")
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
