"""The robust loss, and the error that no attack within the box can exceed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastibp.boxes import Scale, linf_box
from fastibp.propagation import IBP


def robust_loss(margins: Tensor) -> Tensor:
    r"""Cross-entropy of the worst logits in the box: `mean log(1 + sum_j exp(-margin_j))` (paper, eq. 4).

    Args:
        margins: Lower bounds on `z_label - z_j`, shape (N, K - 1).

    Returns:
        Scalar, an upper bound on the cross-entropy of every input of the box.

    Raises:
        ValueError: If `margins` is not two-dimensional.

    Example:
        >>> robust_loss(torch.zeros(5, 9))  # ten equal logits
        tensor(2.3026)
    """
    _check_margins(margins)
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

    Example:
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
        dtype: Compute in this dtype on a copy of the model, such as `torch.float64`; None for the model's.
        outward_rounding: Also cover floating-point rounding; None for what `model` does, else False.

    Returns:
        A `CertReport`.

    Raises:
        ValueError: If the loader is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> data = [(torch.rand(8, 2), torch.zeros(8, dtype=torch.long))]
        >>> report = evaluate(model, data, eps=0.1)
        >>> report.standard_error <= report.verified_error
        True
    """
    bounder = model if isinstance(model, IBP) else IBP(model)
    if dtype is not None:
        bounder = copy.deepcopy(bounder).to(dtype)
    like = next((p for p in bounder.parameters()), torch.empty(0))
    wrong = unverified = torch.zeros((), dtype=torch.long, device=like.device)
    count = 0
    with _evaluating(bounder, outward_rounding), torch.autocast(like.device.type, enabled=False):
        for inputs, classes in loader:
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


@contextmanager
def _evaluating(bounder: IBP, outward_rounding: bool | None) -> Iterator[None]:
    modes = {module: module.training for module in bounder.modules()}
    before = bounder.outward_rounding
    bounder.eval()
    if outward_rounding is not None:
        bounder.outward_rounding = outward_rounding
    try:
        yield
    finally:
        bounder.outward_rounding = before
        for module, mode in modes.items():
            module.training = mode


def _check_margins(margins: Tensor) -> None:
    if margins.ndim != 2:
        raise ValueError(f"margins must have shape (N, K - 1), got {tuple(margins.shape)}")
