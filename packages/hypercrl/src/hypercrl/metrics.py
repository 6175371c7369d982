"""What is left of old tasks, and what new ones gained: figures of a matrix of scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def transfer_matrix_metrics(
    scores: Any, *, higher_is_better: bool, untrained: Any | None = None
) -> dict[str, float | None]:
    r"""Return final average, backward transfer, forgetting and forward transfer of a matrix of scores.

    With `R[i, j]` the score on task `j` after learning task `i`, of `T` tasks:

    * `final`: mean of `R[T-1, j]`.
    * `backward_transfer`: mean over `j < T-1` of `R[T-1, j] - R[j, j]` (Lopez-Paz and Ranzato, 2017).
    * `forgetting`: mean over `j < T-1` of what was lost against the best `R[i, j]`, `j <= i < T-1` (Chaudhry et al.,
      2018).
    * `forward_transfer`: mean over `j > 0` of `R[j-1, j] - untrained[j]`.

    For errors (`higher_is_better=False`) differences are turned around, so that transfer > 0 is good and forgetting > 0
    is bad either way.

    Args:
        scores: (T, T); what was not measured above the diagonal may be NaN.
        higher_is_better: True for rewards and accuracies, False for errors.
        untrained: Scores of an untrained model, (T,), for forward transfer.

    Returns:
        The four figures; `None` where they do not exist (one task, nothing measured).

    Raises:
        ValueError: If `scores` is not square, or has NaN on or below the diagonal.

    Examples:
        >>> found = transfer_matrix_metrics([[0.9, 0.1], [0.6, 0.8]], higher_is_better=True, untrained=[0.2, 0.3])
        >>> {name: round(value, 3) for name, value in found.items()}
        {'final': 0.7, 'backward_transfer': -0.3, 'forgetting': 0.3, 'forward_transfer': -0.2}
    """
    table = torch.as_tensor(scores, dtype=torch.float64).detach().cpu()
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not len(table):
        raise ValueError(f"scores must be (tasks, tasks), got {tuple(table.shape)}")
    if bool(torch.isnan(table.tril()).any()):
        raise ValueError("scores must have no NaN on or below the diagonal")
    sign = 1.0 if higher_is_better else -1.0
    table, last = sign * table, len(table) - 1
    backward = forgetting = forward = None
    if last:
        backward = (table[last, :last] - table.diagonal()[:last]).mean().item()
        rows, columns = torch.arange(last)[:, None], torch.arange(last)
        best = table[:last, :last].masked_fill(rows < columns, -torch.inf).amax(dim=0)
        forgetting = (best - table[last, :last]).mean().item()
        if untrained is not None:
            forward = _forward_transfer(table, sign, untrained)
    return {
        "final": sign * table[last].mean().item(),
        "backward_transfer": backward,
        "forgetting": forgetting,
        "forward_transfer": forward,
    }


def _forward_transfer(table: Tensor, sign: float, untrained: Any) -> float | None:
    start = sign * torch.as_tensor(untrained, dtype=torch.float64).detach().cpu()
    if start.shape != (len(table),):
        raise ValueError(f"untrained must be ({len(table)},), got {tuple(start.shape)}")
    gains = table.diagonal(1) - start[1:]
    return None if bool(torch.isnan(gains).any()) else gains.mean().item()
