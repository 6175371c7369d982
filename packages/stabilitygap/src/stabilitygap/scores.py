"""Scores of single samples: what an evaluator averages by task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of a tensor, a mapping with or an object of `logits`, or a tuple whose first they are."""
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits"):
        found = outputs[0] if outputs else None
    else:
        found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"outputs must be a tensor or have logits, got {type(outputs).__name__}; give score or forward"
        )
    return found


def accuracy_score(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit (n, C), or the sign of a single one, is that of the target (n,), else 0.

    A row with NaN is no hit, whatever its target.
    """
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1 or (targets.is_floating_point() and outputs.shape[1:].numel() > 1):
        raise ValueError(
            f"accuracy needs class numbers (n,), got targets of {targets.dtype} and shape {tuple(targets.shape)}; "
            "give score a function for others"
        )
    if outputs.ndim == 1 or outputs.shape[1:] == (1,):
        single = outputs.reshape(-1)
        return ((single > 0) == (targets > 0)) & ~single.isnan()
    if outputs.ndim != 2:
        raise ValueError(
            f"accuracy needs outputs (n, classes), got {tuple(outputs.shape)}; give score a function"
        )
    return _first_ranked(outputs) == targets


def next_token_accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Share of the supervised next tokens that a causal language model ranks first, for each text.

    Position p predicts token p + 1; targets of -100 are not supervised; logits with NaN hit nothing. Hand it to
    `ContinualEvaluator` as `score`.

    Args:
        outputs: Logits (n, length, vocabulary), or an object or mapping that has them.
        targets: (n, length) int64 labels as transformers wants them, -100 where nothing is to be predicted.

    Returns:
        (n,) shares in [0, 1].

    Raises:
        ValueError: If shapes do not match, or a text supervises no token.

    Examples:
        >>> import torch
        >>> logits = torch.eye(4)[torch.tensor([[1, 2, 0]])]
        >>> next_token_accuracy(logits, torch.tensor([[0, 1, 3]]))
        tensor([0.5000])
    """
    logits = logits_of(outputs)
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"outputs must have shape (n, length, vocabulary) for targets {tuple(targets.shape)}, "
            f"got {tuple(logits.shape)}"
        )
    wanted = targets[:, 1:]
    supervised = wanted != -100
    hits = (_first_ranked(logits[:, :-1]) == wanted) & supervised
    counts = supervised.sum(1)
    if bool((counts == 0).any()):
        raise ValueError("targets must supervise at least one next token in each text")
    return hits.sum(1) / counts


def likelihood_score(outputs: Any, targets: Tensor) -> Tensor:
    """Probability that a classifier gives to the target: a bounded score that is smoother than accuracy.

    The paper also follows the loss; 1 - p lies between 0 and min(1, cross-entropy).

    Args:
        outputs: Logits (n, C), or an object or mapping that has them.
        targets: (n,) int64 classes.

    Returns:
        (n,) probabilities.

    Raises:
        ValueError: If shapes do not match.

    Examples:
        >>> import torch
        >>> likelihood_score(torch.zeros(1, 4), torch.tensor([2]))
        tensor([0.2500])
    """
    logits = logits_of(outputs)
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"outputs must have shape (n, classes) for targets {tuple(targets.shape)}, got {tuple(logits.shape)}"
        )
    return (-F.cross_entropy(logits.float(), targets, reduction="none")).exp()


def _first_ranked(logits: Tensor) -> Tensor:
    """The class of the largest logit, -1 where one is NaN: `argmax` would name the first NaN's class."""
    largest, place = logits.max(-1)
    return place.masked_fill(largest.isnan(), -1)
