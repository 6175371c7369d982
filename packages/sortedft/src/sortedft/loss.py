"""The Sorted Fine-Tuning loss: cross-entropy at every exit, without ever holding all the logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sortedft._checks import check_labels, checked_count, checked_exits, is_plain_linear
from sortedft.cross_entropy import Options, autocast_dtype, chunked_cross_entropy
from sortedft.families import adapter, unwrapped

IGNORE_INDEX = -100


def sorted_loss(
    hidden_states: Sequence[Tensor],
    labels: Tensor,
    *,
    norm: nn.Module,
    head: nn.Module,
    exits: Sequence[int],
    weights: Sequence[float] | None = None,
    chunk_tokens: int | None = 2048,
    last_is_normed: bool = True,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    num_items_in_batch: int | Tensor | None = None,
    return_per_exit: bool = False,
) -> Any:
    """Mean cross-entropy of the sub-models that end at the given exits.

    L = sum_n w_n L_n with w_n = 1/|B|, where L_n is the token cross-entropy of
    f_n(x) = head(norm(h_n(x))) and h_n is the residual stream after block n (arXiv 2309.08968, eq. 1).
    Norm and head are shared by all exits and every parameter is trained.

    The supervised rows of all exits go through the head in chunks; each chunk leaves only its loss and
    its part of the gradients. Extra memory is O(chunk_tokens V + |B| T D + V D), not O(|B| T V). A head
    that is not a plain `nn.Linear` (LoRA on it, quantised, with hooks) is called as it is, chunk by chunk,
    and once more for its gradients.

    Args:
        hidden_states: N + 1 tensors (batch, length, D): the embedding, then the state after each block,
            as `output_hidden_states=True` gives them.
        labels: (batch, length) token ids of any integer type, not shifted; -100 is not supervised.
        norm: The final norm; acts on the last dimension.
        head: The language-model head: maps (rows, D) to (rows, V). Whole on this device (gather it first
            under FSDP or ZeRO-3).
        exits: Strictly increasing depths in 1..N.
        weights: One non-negative weight per exit, normalised to sum 1. Uniform if None.
        chunk_tokens: Rows of logits held at a time. None for as many as take the memory of all rows of states,
            64 at least: the least memory that is not paid for in time.
        last_is_normed: Whether `hidden_states[-1]` has been through `norm`, as in Hugging Face models.
        logit_scale: Factor on the logits (Cohere).
        logit_softcap: c in c tanh(logits / c) (Gemma 2).
        num_items_in_batch: What every exit's summed loss is divided by, if not by this call's own number
            of supervised tokens; the same for all exits. With it a batch may supervise nothing: its loss
            and gradients are zero.
        return_per_exit: Also return the exits' own losses.

    Returns:
        The scalar loss, or (loss, per_exit) with `per_exit` a detached (|B|,) tensor.

    Raises:
        ValueError: If exits, weights, labels or shapes do not fit, if no token is supervised and
            `num_items_in_batch` is None, or if hidden states and head differ in dtype (outside autocast)
            or device.
        TypeError: If labels or exits are not integers, or the head is not a module.

    Examples:
        >>> states = [torch.zeros(1, 4, 8) for _ in range(3)]
        >>> labels = torch.tensor([[0, 1, 2, -100]])
        >>> head = nn.Linear(8, 16, bias=False)
        >>> loss = sorted_loss(states, labels, norm=nn.Identity(), head=head, exits=[1, 2])
        >>> round(loss.item(), 4)  # log(16): a zero state predicts nothing
        2.7726
    """
    exits = _check_arguments(hidden_states, labels, head, exits)
    targets = next_tokens(labels).flatten()
    supervised = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    targets = targets[supervised]
    if not torch.compiler.is_compiling():  # it reads numbers back, which would break the graph
        check_targets(targets, getattr(head, "out_features", None))
        _check_divisor(targets, num_items_in_batch)

    states = torch.stack([hidden_states[depth].flatten(0, 1)[supervised] for depth in exits])
    if last_is_normed and exits[-1] == len(hidden_states) - 1:
        states = torch.cat([norm(states[:-1]), states[-1:]]) if len(exits) > 1 else states
    else:
        states = norm(states)

    exact_dtype = torch.promote_types(states.dtype, torch.float32)
    shares = torch.tensor(_normalised(weights, len(exits)), dtype=exact_dtype, device=states.device)
    chunk_tokens = _rows_at_a_time(states, head) if chunk_tokens is None else chunk_tokens
    options = _options(chunk_tokens, logit_scale, logit_softcap)
    if not torch.compiler.is_compiling() and targets.numel() == 0:
        loss, per_exit = _nothing(states, head).to(exact_dtype), torch.zeros_like(shares)
    else:
        divisor = targets.numel() if num_items_in_batch is None else num_items_in_batch
        loss, row_losses = chunked_cross_entropy(
            states.flatten(0, 1),
            head,
            targets.repeat(len(exits)),
            (shares / divisor).repeat_interleave(targets.numel()),
            options,
        )
        per_exit = row_losses.view(len(exits), -1).sum(1) / divisor
    return (loss, per_exit) if return_per_exit else loss


def compute_sorted_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    return_outputs: bool = False,
    num_items_in_batch: int | Tensor | None = None,
    *,
    exits: Sequence[int],
    weights: Sequence[float] | None = None,
    chunk_tokens: int | None = 2048,
) -> Any:
    """Run a Hugging Face causal language model and take `sorted_loss` of its hidden states.

    The first four arguments are those of `transformers.Trainer.compute_loss`, so a trainer is switched
    to Sorted Fine-Tuning by `trainer.compute_loss = functools.partial(compute_sorted_loss, exits=exits)`.

    Args:
        model: A supported causal language model (see `adapter`), bare or wrapped: compiled, in
            DistributedDataParallel, or with PEFT adapters such as LoRA, on the head too.
        inputs: The batch, with `labels`.
        return_outputs: Also return the model's outputs, as the trainer's evaluation wants them: with all
            logits and without the hidden states. Otherwise only one position's logits are computed.
        num_items_in_batch: See `sorted_loss`. If it counts the tokens of all processes, multiply the
            result by their number, since gradients are averaged over processes.
        exits: See `sorted_loss`.
        weights: See `sorted_loss`.
        chunk_tokens: See `sorted_loss`.

    Returns:
        The scalar loss, or (loss, outputs).

    Raises:
        ValueError: If `inputs` has no labels, or as `sorted_loss` does.
        TypeError: If the model is not a supported causal language model.
    """
    if "labels" not in inputs:
        raise ValueError(f"inputs must have 'labels', got {sorted(inputs)}")
    parts = adapter(model)
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    if not return_outputs and "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters:
        inputs["logits_to_keep"] = 1
    outputs = model(**{**inputs, "output_hidden_states": True, "use_cache": False, "return_dict": True})
    loss = sorted_loss(
        outputs.hidden_states,
        labels,
        norm=parts.norm,
        head=parts.head,
        exits=exits,
        weights=weights,
        chunk_tokens=chunk_tokens,
        logit_scale=parts.logit_scale,
        logit_softcap=parts.logit_softcap,
        num_items_in_batch=num_items_in_batch,
    )
    if not return_outputs:
        return loss
    return loss, type(outputs)(**{key: value for key, value in outputs.items() if key != "hidden_states"})


def next_tokens(labels: Tensor) -> Tensor:
    """What every position must predict: the label after it, and nothing at the end."""
    # Widened first: -100 would wrap around in an unsigned type.
    return nn.functional.pad(labels[:, 1:].long(), (0, 1), value=IGNORE_INDEX)


def check_targets(targets: Tensor, vocabulary: int | None) -> None:
    """Raise ValueError unless the supervised targets (T,) are token ids of a vocabulary, if it is known."""
    if targets.numel() == 0:
        return
    lowest, highest = torch.stack(torch.aminmax(targets)).tolist()
    if lowest < 0 or (vocabulary is not None and highest >= vocabulary):
        last = "V - 1" if vocabulary is None else vocabulary - 1
        raise ValueError(
            f"labels must be -100 or in 0..{last} (the head's vocabulary), got {lowest}..{highest}"
        )


def _check_arguments(
    hidden_states: Sequence[Tensor], labels: Tensor, head: nn.Module, exits: Sequence[int]
) -> list[int]:
    if not isinstance(head, nn.Module):
        raise TypeError(f"head must be a module, got {type(head).__name__}")
    exits = checked_exits(exits, len(hidden_states) - 1)
    check_labels(labels)
    state = hidden_states[exits[0]]
    if state.dim() != 3 or labels.shape != state.shape[:2]:
        raise ValueError(
            "labels must be (batch, length) for hidden_states of (batch, length, D), "
            f"got {tuple(labels.shape)} for {tuple(state.shape)}"
        )
    if labels.device != state.device:
        raise ValueError(f"labels must be on the device of hidden_states {state.device}, got {labels.device}")
    if is_plain_linear(head):
        _check_same_kind(state, head.weight)
    return exits


def _check_same_kind(state: Tensor, weight: Tensor) -> None:
    if state.device != weight.device:
        raise ValueError(f"hidden_states must be on the head's device {weight.device}, got {state.device}")
    if state.dtype != weight.dtype and autocast_dtype(state.device.type) is None:
        raise ValueError(f"hidden_states must have the head's dtype {weight.dtype}, got {state.dtype}")


def _check_divisor(targets: Tensor, num_items_in_batch: int | Tensor | None) -> None:
    if targets.numel() == 0:
        if num_items_in_batch is None:
            raise ValueError(
                "labels must supervise at least one token, got -100 everywhere after the shift "
                "(a batch that is a part of a larger one may be empty: give num_items_in_batch)"
            )
    elif num_items_in_batch is not None and not num_items_in_batch > 0:
        raise ValueError(f"num_items_in_batch must be positive, got {num_items_in_batch}")


def _nothing(states: Tensor, head: nn.Module) -> Tensor:
    """A zero that depends on all that a loss would, so that every gradient is zero rather than missing."""
    trained = (parameter for parameter in head.parameters() if parameter.requires_grad)
    return states.sum() + sum(parameter.flatten()[:0].sum() for parameter in trained)


def _rows_at_a_time(states: Tensor, head: nn.Module) -> int:
    """A power of two of rows, whose logits take about the memory of all the states (|B|, rows, D)."""
    wanted = states.numel() / getattr(head, "out_features", states.shape[-1])
    return max(64, 1 << math.ceil(math.log2(max(wanted, 1))))


def _options(chunk_tokens: int, logit_scale: float, logit_softcap: float | None) -> Options:
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale must be finite, got {logit_scale}")
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise ValueError(f"logit_softcap must be positive and finite, or None, got {logit_softcap}")
    return Options(checked_count("chunk_tokens", chunk_tokens), logit_scale, logit_softcap)


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    values = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(values) != count or not all(0 <= weight < math.inf for weight in values) or max(values) == 0:
        raise ValueError(f"weights must be {count} finite non-negative numbers, not all zero, got {weights}")
    relative = [weight / max(values) for weight in values]  # else the sum of large ones is infinite
    return [weight / sum(relative) for weight in relative]
