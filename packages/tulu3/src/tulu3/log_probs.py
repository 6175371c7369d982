"""Log-probabilities of the tokens that were there, without ever holding a log-softmax over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tulu3._checks import IGNORE_INDEX, checked_positive, exact

_CHUNK_ELEMENTS = 1 << 18  # logits turned into exponentials at a time: about what a core's cache holds


def token_logps(logits: Tensor, labels: Tensor, *, temperature: float | None = None) -> Tensor:
    """Log-probability of every supervised token: position t of the result is label t + 1.

    log p(y_{t+1} | y_{<=t}) = z_t[y_{t+1}] - logsumexp(z_t), with z = logits / (temperature + 1e-7) where a
    temperature is given. Beyond the logits and their gradient this needs memory for one chunk of rows
    only: the backward pass makes the softmax again, chunk by chunk.

    Args:
        logits: (B, T, V) of any float type; half precision is computed in float32. NaN at positions that are not
            supervised is no part of the result, but of the gradient: mask such logits first.
        labels: (B, T) token ids of any integer type, not shifted; -100 is not supervised.
        temperature: The sampling temperature of a rollout; None leaves the logits as they are.

    Returns:
        (B, T - 1), float32 or float64; 0 where the label is -100.

    Raises:
        ValueError: If the shapes do not fit or a label is neither -100 nor in 0..V-1.
        TypeError: If labels are not integers or logits not floating point.

    Examples:
        >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[-100, 2, 1]])
        >>> token_logps(logits, labels)  # log(1 / 4)
        tensor([[-1.3863, -1.3863]])
    """
    _check(logits, labels)
    scale = 1.0 if temperature is None else 1 / (checked_positive("temperature", temperature) + 1e-7)
    # Widened first: -100 would wrap around in an unsigned type.
    targets = torch.nn.functional.pad(labels[:, 1:].long(), (0, 1), value=IGNORE_INDEX)
    supervised = targets != IGNORE_INDEX
    if not torch.compiler.is_compiling():
        _check_targets(targets, supervised, logits.shape[-1])
    rows, safe = logits.flatten(0, 1), targets.clamp(min=0).flatten()
    if torch.compiler.is_compiling():
        scaled = exact(rows) * scale
        found = scaled.gather(1, safe[:, None])[:, 0] - scaled.logsumexp(1)
    else:
        found = _Gathered.apply(rows, safe, scale)
    return torch.where(supervised, found.view(targets.shape), 0.0)[:, :-1]


def sequence_logps(
    logits: Tensor, labels: Tensor, average: bool = False, *, temperature: float | None = None
) -> Tensor:
    """Log-probability of each response: summed over its tokens, or their mean (length-normalised).

    log p(y|x) = sum_t log p(y_t | x, y_<t), divided by |y| if `average` (arXiv 2411.15124, section 5.1.2).

    Args:
        logits: (B, T, V).
        labels: (B, T), not shifted; -100 everywhere but on response tokens. Nothing precedes the first
            token, so its label never counts.
        average: Mean instead of sum: True for `dpo_norm` and `simpo`, False for `dpo` and `wpo`.
        temperature: See `token_logps`.

    Returns:
        (B,).

    Raises:
        ValueError: If a row has no response token, or as `token_logps` does.
        TypeError: As `token_logps` does.

    Examples:
        >>> logits, labels = torch.zeros(2, 4, 8), torch.tensor([[-100, 1, 2, 3], [-100, -100, -100, 5]])
        >>> sequence_logps(logits, labels)
        tensor([-6.2383, -2.0794])
        >>> sequence_logps(logits, labels, average=True)
        tensor([-2.0794, -2.0794])
    """
    logps = token_logps(logits, labels, temperature=temperature)
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(1)
    if not torch.compiler.is_compiling() and bool((counts == 0).any()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"labels must have a response token after position 0 in every row, got none in rows {empty}"
        )
    total = logps.sum(1)
    return total / counts if average else total


def sft_loss(outputs: Any, labels: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Token-sum loss of supervised fine-tuning: -sum_t log p(y_t | y_<t) / num_items_in_batch.

    Every token of the effective batch weighs the same, however it is split into micro-batches and
    processes (arXiv 2411.15124, section 4.3.2, "batch aggregation"): means of micro-batches would over-weight
    the tokens of short sequences. It is what `transformers.Trainer(compute_loss_func=sft_loss)` calls.

    Args:
        outputs: (B, T, V) logits, or what holds them: an object or mapping with `logits`.
        labels: (B, T) token ids, not shifted; -100 is not supervised.
        num_items_in_batch: The number of supervised tokens of the whole effective batch. 1 gives the plain
            sum. None divides by this call's own number: right only where this is the whole batch. If it
            counts the tokens of all processes of a DistributedDataParallel run, multiply the loss by their
            number, since gradients are averaged.

    Returns:
        A scalar. With `num_items_in_batch`, a batch that supervises nothing has a loss and gradients of zero.

    Raises:
        ValueError: If nothing is supervised and `num_items_in_batch` is None, or it is not positive, or as
            `token_logps` does.
        TypeError: If `outputs` holds no logits, or as `token_logps` does.

    Examples:
        >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 2, 1]])
        >>> round(sft_loss(logits, labels, num_items_in_batch=4).item(), 4)  # 2 log(4) / 4
        0.6931
    """
    logits = _logits_of(outputs)
    logps = token_logps(logits, labels)
    if num_items_in_batch is None:
        num_items_in_batch = (labels[:, 1:] != IGNORE_INDEX).sum()
        advice = "give num_items_in_batch where a part of a batch may supervise nothing"
        if not torch.compiler.is_compiling() and num_items_in_batch == 0:
            raise ValueError(
                f"labels must supervise a token after position 0, got -100 everywhere ({advice})"
            )
    elif not torch.compiler.is_compiling() and not num_items_in_batch > 0:
        raise ValueError(f"num_items_in_batch must be positive, got {num_items_in_batch}")
    return -logps.sum() / num_items_in_batch


class _Gathered(torch.autograd.Function):
    """log p of scaled rows (N, V) at targets (N,)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, targets: Tensor, scale: float) -> Tensor:
        picked = [
            _scaled(rows[chunk], scale).log_softmax(1).gather(1, targets[chunk][:, None])[:, 0]
            for chunk in _chunks(rows)
        ]
        return torch.cat(picked) if picked else exact(rows.new_zeros(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        rows, targets, ctx.scale = inputs
        ctx.save_for_backward(rows, targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, targets = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        factor = (grad * ctx.scale)[:, None]
        for chunk in _chunks(rows):
            share = _scaled(rows[chunk], ctx.scale).softmax(1).mul_(-factor[chunk])
            grad_rows[chunk] = share.scatter_add_(1, targets[chunk][:, None], factor[chunk])
        return grad_rows, None, None


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return exact(rows) if scale == 1 else exact(rows) * scale


def _chunks(rows: Tensor) -> list[slice]:
    size = max(_CHUNK_ELEMENTS // max(rows.shape[1], 1), 1)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if hasattr(outputs, "get") else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise TypeError(f"outputs must be logits or hold them as 'logits', got {type(outputs).__name__}")
    return found


def _check(logits: Tensor, labels: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels must be (B, T) for logits of (B, T, V), got {tuple(labels.shape)} for {tuple(logits.shape)}"
        )
    if labels.shape[1] < 2:
        raise ValueError(f"labels must have at least 2 positions, got {labels.shape[1]}")


def _check_targets(targets: Tensor, supervised: Tensor, vocabulary: int) -> None:
    bad = supervised & ((targets < 0) | (targets >= vocabulary))
    if bool(bad.any()):
        raise ValueError(f"labels must be -100 or in 0..{vocabulary - 1}, got {int(targets[bad][0])}")
