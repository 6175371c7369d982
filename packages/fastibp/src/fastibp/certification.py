"""The robust loss, and the error that no attack within the box can exceed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastibp.boxes import Scale, linf_box
from fastibp.layers import copy_of, in_mode
from fastibp.propagation import IBP


def robust_loss(margins: Tensor) -> Tensor:
    r"""Cross-entropy of the worst logits in the box: `mean log(1 + sum_j exp(-margin_j))` (paper, eq. 4).

    Args:
        margins: Lower bounds on `z_label - z_j`, shape (N, K - 1).

    Returns:
        Scalar, an upper bound on the cross-entropy of every input of the box.

    Raises:
        ValueError: If `margins` is not two-dimensional or holds no example.

    Examples:
        >>> robust_loss(torch.zeros(5, 9))  # ten equal logits
        tensor(2.3026)
    """
    _check_margins(margins)
    if not len(margins):
        raise ValueError("margins must hold at least one example, got none: their mean is not defined")
    # Bounds grow to 1e5 and more in bfloat16 autocast: sum in float32 there.
    wide = margins.float() if margins.dtype in (torch.float16, torch.bfloat16) else margins
    return torch.nn.functional.pad(-wide, (1, 0)).logsumexp(1).mean()


def verified(margins: Tensor) -> Tensor:
    """Which examples are certified: all margins are `>= 0`.

    Args:
        margins: Lower bounds on `z_label - z_j`, shape (N, K - 1).

    Returns:
        Booleans, shape (N,).

    Raises:
        ValueError: If `margins` is not two-dimensional.

    Examples:
        >>> verified(torch.tensor([[0.5, 0.0], [0.5, -0.1]]))
        tensor([ True, False])
    """
    _check_margins(margins)
    return (margins >= 0).all(1)


@dataclass(frozen=True)
class CertReport:
    """Errors over a data set, as fractions in [0, 1].

    Attributes:
        standard_error: Share of inputs that are misclassified as they are.
        verified_error: Share of inputs without certificate: no attack within `eps` has a larger error.
        num_examples: Size of the data set.
    """

    standard_error: float
    verified_error: float
    num_examples: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    eps: Scale,
    low: Scale | None = 0.0,
    high: Scale | None = 1.0,
    mean: Scale | None = None,
    std: Scale | None = None,
    dtype: torch.dtype | None = None,
    outward_rounding: bool | None = None,
) -> CertReport:
    """Standard and verified error, in evaluation mode and without autocast.

    Give the final radius, not that of the schedule. Modes of all modules are restored afterwards.

    Args:
        model: A module, or an `IBP` of it (keep the rules you gave it).
        loader: Yields `(x, labels)`; batches are moved to the model's device.
        eps: Radius, as in `linf_box`.
        low: As in `linf_box`.
        high: As in `linf_box`.
        mean: As in `linf_box`.
        std: As in `linf_box`.
        dtype: `torch.float64` or `torch.float32`, to compute in on a copy of the model; None for the model's
            own, or float32 for a model in half precision, in which no certificate is sound.
        outward_rounding: Also cover floating-point rounding; None for what `model` does, else False.

    Returns:
        A `CertReport`.

    Raises:
        TypeError: If the loader yields anything but pairs of tensors.
        ValueError: If the loader is empty, or `dtype` is another.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> data = [(torch.rand(8, 2), torch.zeros(8, dtype=torch.long))]
        >>> report = evaluate(model, data, eps=0.1)
        >>> report.standard_error <= report.verified_error
        True
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    bounder = model if isinstance(model, IBP) else IBP(model)
    if dtype is None and any(p.dtype in (torch.float16, torch.bfloat16) for p in bounder.parameters()):
        dtype = torch.float32
    if dtype is not None:
        bounder = copy_of(bounder).to(dtype)
    like = next((p for p in bounder.parameters()), torch.empty(0))
    wrong = unverified = torch.zeros((), dtype=torch.long, device=like.device)
    count = 0
    with _evaluating(bounder, outward_rounding), torch.autocast(like.device.type, enabled=False):
        for batch in loader:
            inputs, classes = _pair(batch)
            x, labels = inputs.to(like.device, like.dtype), classes.to(like.device)
            output = bounder(x, linf_box(x, eps, low, high, mean, std), labels)
            # A margin of the box is one of the input too, so a misclassified input never counts as verified.
            certified = verified(output.margins) & (output.logits.argmax(1) == labels)
            wrong = wrong + (output.logits.argmax(1) != labels).sum()
            unverified = unverified + (~certified).sum()
            count += len(labels)
    if count == 0:
        raise ValueError("loader must yield at least one batch, it was empty")
    return CertReport(wrong.item() / count, unverified.item() / count, count)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not (pair and all(isinstance(part, Tensor) for part in batch)):
        raise TypeError(f"loader must yield pairs (x, labels) of tensors, got {type(batch).__name__}")
    return batch[0], batch[1]


@contextmanager
def _evaluating(bounder: IBP, outward_rounding: bool | None) -> Iterator[None]:
    before = bounder.outward_rounding
    if outward_rounding is not None:
        bounder.outward_rounding = outward_rounding
    try:
        with in_mode(bounder, False):
            yield
    finally:
        bounder.outward_rounding = before


def _check_margins(margins: Tensor) -> None:
    if margins.ndim != 2:
        raise ValueError(f"margins must have shape (N, K - 1), got {tuple(margins.shape)}")
