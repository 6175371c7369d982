"""What every exit of a model knows: its loss, accuracy, and distance from the full model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sortedft._checks import check_labels, checked_exits, warn_in_training
from sortedft.families import adapter
from sortedft.loss import IGNORE_INDEX, check_targets, next_tokens
from sortedft.parts import Parts


@dataclass(frozen=True)
class LayerReport:
    """Means over all supervised tokens, one number per exit.

    Args:
        exits: The depths.
        loss: (|B|,) cross-entropy in nats.
        accuracy: (|B|,) share of tokens whose likeliest prediction is right.
        kl_to_full: (|B|,) KL(p_N || p_n) in nats.
        cosine_to_full: (|B|,) cosine of h_n and h_N before the norm.
        num_tokens: Supervised tokens counted.
    """

    exits: tuple[int, ...]
    loss: Tensor
    accuracy: Tensor
    kl_to_full: Tensor
    cosine_to_full: Tensor
    num_tokens: int


@torch.no_grad()
def layer_report(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    exits: Sequence[int],
    *,
    parts: Parts | None = None,
) -> LayerReport:
    """Measure every exit on held-out batches: loss and accuracy, and the paper's figures 4-5.

    Memory beside the model's own: one batch's supervised logits of two exits at a time, 2 T V floats.

    Args:
        model: Called as `model(**inputs)`; must run its blocks once each, in order.
        batches: Dictionaries of the model's inputs and `labels` (batch, length), -100 not supervised.
        exits: Strictly increasing depths in 1..N.
        parts: The model's parts if `adapter` cannot find them.

    Returns:
        The measurements, in float64 on the CPU. Logits are the model's own; what is made of them is
        computed in float32 at least, whatever the model's dtype, and summed in float64.

    Raises:
        ValueError: If `exits` is out of range, a batch has no labels or labels beyond the vocabulary, no
            token is supervised, or the model does not run every block once.
        TypeError: If labels are not integers.
    """
    parts = parts or adapter(model)
    warn_in_training(parts.layers)
    exits = checked_exits(exits, len(parts.layers))
    totals = torch.zeros(4, len(exits), dtype=torch.float64)
    num_tokens = 0
    for batch in batches:
        inputs, targets = _split(batch)
        supervised = targets != IGNORE_INDEX
        states = [state[supervised] for state in _states_after_blocks(model, inputs, parts)]
        full, wanted = _log_probs(parts, states[-1]), targets[supervised]
        check_targets(wanted, full.shape[-1])
        measured = [_measure(parts, states[depth - 1], states[-1], full, wanted) for depth in exits]
        totals += torch.stack(measured, dim=1)
        num_tokens += len(wanted)
    if num_tokens == 0:
        raise ValueError("batches must supervise at least one token, got none")
    loss, accuracy, kl_to_full, cosine_to_full = totals / num_tokens
    return LayerReport(tuple(exits), loss, accuracy, kl_to_full, cosine_to_full, num_tokens)


def _split(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The model's inputs, and what each position must predict."""
    if "labels" not in batch:
        raise ValueError(f"batches must have 'labels', got {sorted(batch)}")
    inputs = dict(batch)
    labels = inputs.pop("labels")
    check_labels(labels)
    return inputs, next_tokens(labels)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _log_probs(parts: Parts, state: Tensor) -> Tensor:
    return torch.log_softmax(_exact(parts.logits(state)), dim=-1)


def _measure(parts: Parts, state: Tensor, full_state: Tensor, full: Tensor, targets: Tensor) -> Tensor:
    """Loss, hits, divergence and cosine of one exit (4,), summed over tokens."""
    log_probs = _log_probs(parts, state)
    per_token = torch.stack(
        [
            nn.functional.nll_loss(log_probs, targets, reduction="none"),
            (log_probs.argmax(-1) == targets).to(log_probs.dtype),
            nn.functional.kl_div(log_probs, full, reduction="none", log_target=True).sum(-1),
            nn.functional.cosine_similarity(_exact(state), _exact(full_state), dim=-1).to(log_probs.dtype),
        ]
    )
    return per_token.cpu().double().sum(1)


def _states_after_blocks(model: nn.Module, inputs: Mapping[str, Any], parts: Parts) -> list[Tensor]:
    """The residual stream after every block, un-normed, of one ordinary forward pass."""
    states: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for layer in parts.layers:
            hooks.enter_context(layer.register_forward_hook(record))
        model(**inputs)
    if len(states) != len(parts.layers):
        raise ValueError(
            f"model must run each of its {len(parts.layers)} blocks once, got {len(states)} runs"
        )
    return states
