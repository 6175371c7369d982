"""The Sorted Fine-Tuning loss: cross-entropy at every exit, without ever holding all the logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sortedft.exits import check_exits
from sortedft.parts import adapter

IGNORE_INDEX = -100


def sorted_loss(
    hidden_states: Sequence[Tensor],
    labels: Tensor,
    *,
    norm: nn.Module,
    head: nn.Module,
    exits: Sequence[int],
    weights: Sequence[float] | None = None,
    chunk_tokens: int = 2048,
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
    its part of the gradients. Extra memory is O(chunk_tokens V + |B| T D + V D), not O(|B| T V). The head
    is read through its weight and bias: hooks on it, or adapters around it, are not seen.

    Args:
        hidden_states: N + 1 tensors (batch, length, D): the embedding, then the state after each block,
            as `output_hidden_states=True` gives them.
        labels: (batch, length) token ids, not shifted; -100 is not supervised.
        norm: The final norm; acts on the last dimension.
        head: The language-model head, with `weight` (V, D) and optionally `bias` (V,), whole on this device
            (gather it first under FSDP or ZeRO-3).
        exits: Strictly increasing depths in 1..N.
        weights: One non-negative weight per exit, normalised to sum 1. Uniform if None.
        chunk_tokens: Rows of logits held at a time.
        last_is_normed: Whether `hidden_states[-1]` has been through `norm`, as in Hugging Face models.
        logit_scale: Factor on the logits (Cohere).
        logit_softcap: c in c tanh(logits / c) (Gemma 2).
        num_items_in_batch: What every exit's summed loss is divided by, if not by this call's own number
            of supervised tokens; the same for all exits.
        return_per_exit: Also return the exits' own losses.

    Returns:
        The scalar loss, or (loss, per_exit) with `per_exit` a detached (|B|,) tensor.

    Raises:
        ValueError: If exits, weights, labels or shapes do not fit, if no token is supervised, or if
            hidden states and head differ in dtype (outside autocast) or device.
        TypeError: If labels are not integers, or the head has no weight.

    Example:
        >>> states = [torch.zeros(1, 4, 8) for _ in range(3)]
        >>> labels = torch.tensor([[0, 1, 2, -100]])
        >>> head = nn.Linear(8, 16, bias=False)
        >>> loss = sorted_loss(states, labels, norm=nn.Identity(), head=head, exits=[1, 2])
        >>> round(loss.item(), 4)  # log(16): a zero state predicts nothing
        2.7726
    """
    weight = _weight_of(head)
    _check_arguments(hidden_states, labels, weight, exits, chunk_tokens)
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    supervised = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    targets = targets[supervised]
    if not torch.compiler.is_compiling():  # it reads numbers back, which would break the graph
        _check_targets(targets, weight.shape[0])

    states = torch.stack([hidden_states[depth].flatten(0, 1)[supervised] for depth in exits])
    if last_is_normed and exits[-1] == len(hidden_states) - 1:
        states = torch.cat([norm(states[:-1]), states[-1:]]) if len(exits) > 1 else states
    else:
        states = norm(states)

    divisor = num_items_in_batch if num_items_in_batch is not None else targets.numel()
    exact_dtype = torch.promote_types(states.dtype, torch.float32)
    shares = torch.tensor(_normalised(weights, len(exits)), dtype=exact_dtype, device=states.device)
    options = _Options(chunk_tokens, logit_scale, logit_softcap, torch.is_grad_enabled())
    loss, row_losses = _ChunkedCrossEntropy.apply(
        states.flatten(0, 1),
        weight,
        getattr(head, "bias", None),
        targets.repeat(len(exits)),
        (shares / divisor).repeat_interleave(targets.numel()),
        options,
    )
    if return_per_exit:
        return loss, row_losses.view(len(exits), -1).sum(1) / divisor
    return loss


def compute_sorted_loss(
    model: nn.Module,
    inputs: Mapping[str, Any],
    return_outputs: bool = False,
    num_items_in_batch: int | Tensor | None = None,
    *,
    exits: Sequence[int],
    weights: Sequence[float] | None = None,
    chunk_tokens: int = 2048,
) -> Any:
    """Run a Hugging Face causal language model and take `sorted_loss` of its hidden states.

    The first four arguments are those of `transformers.Trainer.compute_loss`, so a trainer is switched
    to Sorted Fine-Tuning by `trainer.compute_loss = functools.partial(compute_sorted_loss, exits=exits)`.

    Args:
        model: A supported causal language model (see `adapter`), bare or wrapped in DistributedDataParallel.
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
    bare = getattr(model, "module", model)
    parts = adapter(bare)
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    if not return_outputs and "logits_to_keep" in inspect.signature(bare.forward).parameters:
        inputs["logits_to_keep"] = 1
    outputs = model(**{**inputs, "output_hidden_states": True, "use_cache": False})
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


class _Options(NamedTuple):
    chunk_tokens: int
    logit_scale: float
    logit_softcap: float | None
    want_gradients: bool  # a Function's forward always runs with gradients off and cannot ask


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum_r weight_r CE(head(row_r), target_r), with both gradients accumulated chunk by chunk.

    The gradient of the logits is known as soon as the logits are, so the forward pass turns each
    chunk of logits in place into its gradient and folds it into d rows and d weight. The backward
    pass only scales them; no logits are kept or computed twice. What is kept is the gradient for row
    weights of at most one, since weights of 1 / (|B| T) would underflow in half precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weights: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        compute_dtype = _autocast_dtype(rows.device.type) or rows.dtype
        exact_dtype = torch.promote_types(compute_dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            matrix = weight.to(compute_dtype)
            d_rows = _room(rows, rows.dtype, options.want_gradients and ctx.needs_input_grad[0])
            d_weight = _room(weight, exact_dtype, options.want_gradients and ctx.needs_input_grad[1])
            d_bias = _room(bias, exact_dtype, options.want_gradients and ctx.needs_input_grad[2])
            losses = torch.empty(len(rows), dtype=exact_dtype, device=rows.device)
            largest = row_weights.amax()
            relative_weights = (row_weights / largest).to(exact_dtype).unsqueeze(1)
            for start in range(0, len(rows), options.chunk_tokens):
                chunk = slice(start, start + options.chunk_tokens)
                inputs, wanted = rows[chunk].to(compute_dtype), targets[chunk].unsqueeze(1)
                logits = (inputs @ matrix.T).to(exact_dtype)
                if bias is not None:
                    logits += bias
                slope = _transform(logits, options)
                logits -= logits.amax(1, keepdim=True)
                wanted_logits = logits.gather(1, wanted)
                normaliser = logits.exp_().sum(1, keepdim=True)
                losses[chunk] = (normaliser.log() - wanted_logits).squeeze(1)
                if not options.want_gradients:
                    continue
                scale = relative_weights[chunk]
                d_logits = logits.mul_(scale / normaliser).scatter_add_(1, wanted, -scale)
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
                d_logits = d_logits.to(compute_dtype)
                if d_rows is not None:
                    d_rows[chunk] = d_logits @ matrix
                if d_weight is not None:
                    _accumulate(d_weight, d_logits, inputs)
                del logits, d_logits  # else the next chunk is made while this one is still held
        ctx.gradients, ctx.scale = (d_rows, d_weight, d_bias), largest
        ctx.dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (rows, weight, bias))
        ctx.mark_non_differentiable(losses)
        return (losses * row_weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale = d_loss * ctx.scale
        scaled = (
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _room(tensor: Tensor | None, dtype: torch.dtype, wanted: bool) -> Tensor | None:
    return torch.zeros_like(tensor, dtype=dtype) if wanted and tensor is not None else None


def _accumulate(total: Tensor, d_logits: Tensor, inputs: Tensor) -> None:
    if total.dtype == d_logits.dtype:
        total.addmm_(d_logits.T, inputs)
    else:
        total += d_logits.T @ inputs


def _transform(logits: Tensor, options: _Options) -> Tensor | None:
    """Scale and soft-cap the logits in place; return the derivative, None where it is one."""
    if options.logit_scale != 1.0:
        logits *= options.logit_scale
    if options.logit_softcap is None:
        return None if options.logit_scale == 1.0 else logits.new_tensor(options.logit_scale)
    logits.div_(options.logit_softcap).tanh_()
    slope = (1 - logits.square()) * options.logit_scale
    logits *= options.logit_softcap
    return slope


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    values = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(values) != count or not all(0 <= weight < math.inf for weight in values) or sum(values) == 0:
        raise ValueError(f"weights must be {count} finite non-negative numbers, not all zero, got {weights}")
    return [weight / sum(values) for weight in values]


def _weight_of(head: nn.Module) -> Tensor:
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"head must have a weight of shape (V, D), got {type(head).__name__}")
    return weight


def _check_arguments(
    hidden_states: Sequence[Tensor], labels: Tensor, weight: Tensor, exits: Sequence[int], chunk_tokens: int
) -> None:
    check_exits(exits, len(hidden_states) - 1)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if labels.is_floating_point():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    state = hidden_states[exits[0]]
    if state.dim() != 3 or labels.shape != state.shape[:2]:
        raise ValueError(
            "labels must be (batch, length) for hidden_states of (batch, length, D), "
            f"got {tuple(labels.shape)} for {tuple(state.shape)}"
        )
    if state.device != weight.device:
        raise ValueError(f"hidden_states must be on the head's device {weight.device}, got {state.device}")
    if state.dtype != weight.dtype and _autocast_dtype(state.device.type) is None:
        raise ValueError(f"hidden_states must have the head's dtype {weight.dtype}, got {state.dtype}")


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    if targets.numel() == 0:
        raise ValueError("labels must supervise at least one token, got -100 everywhere after the shift")
    lowest, highest = torch.stack(torch.aminmax(targets)).tolist()
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"labels must be -100 or in 0..{vocabulary - 1} (the head's vocabulary), got {lowest}..{highest}"
        )
