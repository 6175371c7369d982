"""How well discovered steps and rewards agree with annotated ones, and what chance would give."""

from __future__ import annotations

import torch
from torch import Tensor

from perceptualreward._checks import as_count
from perceptualreward.steps import checked_cuts, step_labels


def jaccard(pred_cuts: Tensor, true_cuts: Tensor, T: int) -> Tensor:
    """Intersection over union of each discovered step with the annotated one.

    Args:
        pred_cuts: (n - 1,).
        true_cuts: (n - 1,).
        T: Number of frames.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ValueError: If the cuts do not ascend within the frames, or differ in number.

    Examples:
        >>> jaccard(torch.tensor([2]), torch.tensor([3]), 4).tolist()
        [0.6666666666666666, 0.5]
    """
    pred, true = checked_cuts("pred_cuts", pred_cuts, T), checked_cuts("true_cuts", true_cuts, T)
    if len(pred) != len(true):
        raise ValueError(f"pred_cuts must be as many as true_cuts, {len(true)}, got {len(pred)}")
    steps = torch.arange(len(pred) + 1, device=pred.device)[:, None]
    return _iou(step_labels(pred, T) == steps, step_labels(true, T).to(pred.device) == steps)


def reward_jaccard(active: Tensor, true_cuts: Tensor) -> Tensor:
    """Intersection over union of the frames where a step's reward is on with the annotated step.

    Args:
        active: (T, n) bool, such as `reward.step_rewards(x, squashed=True) >= 0.5`.
        true_cuts: (n - 1,).

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        TypeError: If `active` is not bool.
        ValueError: If the number of steps differs.
    """
    if active.dtype != torch.bool:
        raise TypeError(f"active must be bool, got {active.dtype}")
    labels = step_labels(true_cuts, len(active)).to(active.device)
    if active.dim() != 2 or active.shape[1] != len(true_cuts) + 1:
        raise ValueError(f"active must be (T, {len(true_cuts) + 1}), got {tuple(active.shape)}")
    return _iou(active.T, labels == torch.arange(active.shape[1], device=active.device)[:, None])


def random_ordered_cuts(
    T: int, n: int, min_size: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Cuts drawn uniformly from all that leave each step at least `min_size` frames: what chance would discover.

    Args:
        T: Number of frames.
        n: Number of steps.
        min_size: Frames that a step has at least.
        generator: Source of randomness, on the CPU.

    Returns:
        (n - 1,) int64.

    Raises:
        TypeError: If a count is not an integer.
        ValueError: If T is less than n * min_size.
    """
    n, min_size = as_count("n", n), as_count("min_size", min_size)
    spare = as_count("T", T) - n * min_size
    if spare < 0:
        raise ValueError(f"T must be at least {n} x {min_size}, got {T}")
    # Stars and bars: where the n - 1 bars stand among spare + n - 1 places.
    places = torch.randperm(spare + n - 1, generator=generator)[: n - 1].sort().values
    return places + torch.arange(1, n) * (min_size - 1) + 1


def _iou(one: Tensor, other: Tensor) -> Tensor:
    return (one & other).sum(1).double() / (one | other).sum(1)
