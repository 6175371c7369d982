"""Measures of heads and of in-context learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inductionclamp._checks import checked_float, checked_integer, checked_patterns, checked_tensor
from inductionclamp.clamps import Clamp
from inductionclamp.recipes import site_name
from inductionclamp.running import run
from inductionclamp.sites import sites_of, unwrapped
from inductionclamp.transformer import FewShotTransformer

Score = Callable[[Any, Any], Tensor]


def context_positions(y: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the right and the wrong labels of few-shot sequences stand.

    Args:
        y: Labels [B, n + 1], the query's last.

    Returns:
        Two boolean masks [B, 2 n + 1] over tokens: labels equal to the query's, and the other ones.

    Raises:
        ValueError: If `y` has fewer than two labels in context.

    Examples:
        >>> import torch
        >>> from inductionclamp import context_positions
        >>> context_positions(torch.tensor([[4, 2, 2]]))
        (tensor([[False, False, False,  True, False]]), tensor([[False,  True, False, False, False]]))
    """
    y = checked_tensor("y", y)
    if y.dim() != 2 or y.shape[1] < 3:
        raise ValueError(f"y must be [B, n + 1] with at least two labels in context, got {tuple(y.shape)}")
    right = torch.zeros(len(y), 2 * y.shape[1] - 1, dtype=torch.bool, device=y.device)
    wrong = right.clone()
    right[:, 1::2] = y[:, :-1] == y[:, -1:]
    wrong[:, 1::2] = y[:, :-1] != y[:, -1:]
    return right, wrong


def induction_strength(attn: Tensor, correct_pos: Tensor, wrong_pos: Tensor, query_pos: int = -1) -> Tensor:
    """Mean of attention(query -> right label) - attention(query -> wrong label) over sequences (section 3).

    Args:
        attn: Patterns [B, H, T, S].
        correct_pos: Positions of the right labels: integers [B] or [B, m], or a mask [B, S] over keys.
        wrong_pos: Positions of the wrong labels, likewise.
        query_pos: The query's row.

    Returns:
        The strength of each head, [H], between -1 and 1.

    Raises:
        TypeError: If `attn` is no tensor.
        ValueError: If a shape does not fit.

    Examples:
        >>> import torch
        >>> from inductionclamp import induction_strength
        >>> attn = torch.tensor([0.0, 0.7, 0.1, 0.1, 0.1]).expand(2, 3, 5, 5)
        >>> induction_strength(attn, torch.tensor([1, 3]), torch.tensor([3, 1]))  # once right, once wrong
        tensor([0., 0., 0.])
    """
    attn = checked_patterns("attn", attn)
    if not -attn.shape[2] <= query_pos < attn.shape[2]:
        raise ValueError(f"query_pos must be below {attn.shape[2]}, got {query_pos}")
    row = attn[:, :, query_pos].float()
    right = _weights_at("correct_pos", row, correct_pos)
    return (right - _weights_at("wrong_pos", row, wrong_pos)).mean(0)


def _weights_at(name: str, row: Tensor, positions: Tensor) -> Tensor:
    """Sum of a row [B, H, S] over positions, [B, H]."""
    positions = checked_tensor(name, positions).to(row.device)
    if positions.dtype == torch.bool and positions.shape == (row.shape[0], row.shape[2]):
        return (row * positions[:, None]).sum(-1)
    at = positions[:, None] if positions.dim() == 1 else positions
    if at.dtype == torch.bool or at.is_floating_point() or at.dim() != 2 or len(at) != len(row):
        raise ValueError(
            f"{name} must be integers [{len(row)}] or [{len(row)}, m] or a mask {(row.shape[0], row.shape[2])}, "
            f"got {positions.dtype} {tuple(positions.shape)}"
        )
    if bool((at < 0).any()) or bool((at >= row.shape[2]).any()):
        raise ValueError(
            f"{name} must be from 0 to {row.shape[2] - 1}, got {int(at.min())} to {int(at.max())}"
        )
    return row.gather(2, at[:, None].expand(-1, row.shape[1], -1)).sum(-1)


def prev_token_score(attn: Tensor, positions: Sequence[int] | Tensor | None = None) -> Tensor:
    """Mean attention from labels to their exemplars, the tokens before them (section 3).

    Args:
        attn: Patterns [B, H, T, T].
        positions: The positions that look back; None are those of few-shot labels, 1, 3, .... For text: all from 1 on.

    Returns:
        The score of each head, [H], between 0 and 1.

    Raises:
        TypeError: If `attn` is no tensor.
        ValueError: If a position has none before it.

    Examples:
        >>> import torch
        >>> from inductionclamp import prev_token_score
        >>> prev_token_score(torch.eye(5).roll(-1, 1).expand(2, 3, 5, 5))
        tensor([1., 1., 1.])
    """
    attn = checked_patterns("attn", attn)
    size = attn.shape[-1]
    at = torch.arange(1, size, 2) if positions is None else torch.as_tensor(positions)
    if (
        at.is_floating_point()
        or at.dim() != 1
        or at.numel() == 0
        or bool((at < 1).any())
        or bool((at >= size).any())
    ):
        raise ValueError(f"positions must be integers from 1 to {size - 1} and not empty, got {at.tolist()}")
    at = at.to(attn.device)
    return attn[:, :, at, at - 1].float().mean((0, 2))


def sequence_induction_score(attn: Tensor, tokens: Tensor) -> Tensor:
    """How much heads of a language model look at what followed the current token before, on repeated sequences.

    The mean over positions whose token stood earlier of the attention to the tokens after those earlier places.

    Args:
        attn: Patterns [B, H, T, T].
        tokens: Token ids [B, T]: random ones, repeated; padding would count as a repeated token.

    Returns:
        The score of each head, [H], between 0 and 1.

    Raises:
        TypeError: If `attn` is no tensor.
        ValueError: If the shapes do not fit or no token repeats.

    Examples:
        >>> import torch
        >>> from inductionclamp import sequence_induction_score
        >>> tokens = torch.tensor([[5, 8, 6, 5, 8, 6]])
        >>> attn = torch.zeros(1, 1, 6, 6)
        >>> attn[0, 0, [3, 4, 5], [1, 2, 3]] = 1.0
        >>> sequence_induction_score(attn, tokens)
        tensor([1.])
    """
    attn, tokens = checked_patterns("attn", attn), checked_tensor("tokens", tokens).to(attn.device)
    if tokens.shape != (attn.shape[0], attn.shape[-1]) or attn.shape[-1] != attn.shape[-2]:
        raise ValueError(f"tokens must be [B, T] of attn {tuple(attn.shape)}, got {tuple(tokens.shape)}")
    earlier = (tokens[:, :, None] == tokens[:, None]).tril(-1)
    # what followed place j is at j + 1; the current token itself does not count
    targets = torch.nn.functional.pad(earlier, (1, 0))[:, :, :-1].tril(-1)
    rows = targets.any(-1)
    if not bool(rows.any()):
        raise ValueError("tokens must hold a token that stood before, got none")
    mass = (attn.float() * targets[:, None]).sum(-1)
    return (mass * rows[:, None]).sum((0, 2)) / rows.sum()


def in_context_loss(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy among the context's labels only: ln 2 by chance with two of them (section 3).

    Args:
        logits: The query's logits [B, L], or [B, T, L] with the query last.
        y: Labels [B, n + 1], the query's last, which must stand in the context.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        The loss in nats, or [B] with `"none"`; of an empty batch 0.

    Raises:
        ValueError: If shapes do not fit, a label is out of range, or a query's label is not in its context.

    Examples:
        >>> import torch
        >>> from inductionclamp import in_context_loss
        >>> round(in_context_loss(torch.zeros(2, 5), torch.tensor([[0, 1, 0], [3, 2, 2]])).item(), 4)
        0.6931
    """
    logits = logits[:, -1] if logits.dim() == 3 else logits
    y = checked_tensor("y", y).to(logits.device)
    if logits.dim() != 2 or y.dim() != 2 or len(y) != len(logits) or y.shape[1] < 3:
        raise ValueError(
            "logits must be [B, L] or [B, T, L] and y [B, n + 1] with n >= 2, "
            f"got {tuple(logits.shape)} and {tuple(y.shape)}"
        )
    y = y.long()
    if y.numel() and (int(y.min()) < 0 or int(y.max()) >= logits.shape[1]):
        raise ValueError(f"y must be from 0 to {logits.shape[1] - 1}, got {int(y.min())} to {int(y.max())}")
    if not bool((y[:, :-1] == y[:, -1:]).any(1).all()):
        raise ValueError("y must have each query's label in its context")
    present = torch.zeros_like(logits, dtype=torch.bool).scatter(1, y[:, :-1], True)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(wide.masked_fill(~present, -1e9), y[:, -1], reduction="none")
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return losses.sum() / (max(len(losses), 1) if reduction == "mean" else 1)


def time_to_threshold(
    losses: Sequence[float] | Tensor, times: Sequence[float] | Tensor, threshold: float = 0.4 * math.log(2)
) -> float | None:
    """Return the first time at which a loss is below a threshold (official code: 0.4 ln 2).

    Args:
        losses: The losses in order.
        times: Sequences or steps seen at each.
        threshold: The level.

    Returns:
        The time, or None if it is never reached.

    Raises:
        ValueError: If the two are not of one length.

    Examples:
        >>> from inductionclamp import time_to_threshold
        >>> time_to_threshold([1.6, 0.7, 0.2], [32, 64, 96])
        96.0
    """
    threshold = checked_float("threshold", threshold, -math.inf)
    values, moments = [float(loss) for loss in losses], [float(time) for time in times]
    if len(values) != len(moments):
        raise ValueError(f"times must be as many as losses = {len(values)}, got {len(moments)}")
    return next((time for loss, time in zip(values, moments, strict=True) if loss < threshold), None)


@dataclass(frozen=True)
class HeadTable:
    """What is left of a score if heads of a layer are silenced.

    Attributes:
        full: The score of the whole model.
        only: With this head alone of its layer, [H].
        without: With all heads but this one, [H].
    """

    full: float
    only: Tensor
    without: Tensor


def few_shot_accuracy(output: Tensor, batch: Any) -> Tensor:
    """Whether the query of each few-shot sequence is answered rightly.

    Args:
        output: Logits [B, T, L] with the query last.
        batch: `(x, y)` with labels [B, n + 1].

    Returns:
        1.0 or 0.0 for each sequence, [B].
    """
    return (output[:, -1].argmax(-1) == batch[1][:, -1]).float()


@torch.no_grad()
def head_ablation_table(
    model: nn.Module, batch: Any, layer: int, *, score: Score = few_shot_accuracy, chunk: int | None = None
) -> HeadTable:
    """Score a model with each head of a layer alone, and with each one silenced (Fig. 4).

    Heads are silenced after training, at evaluation. A `FewShotTransformer` is run once, and only what follows the
    layer's mixed values is computed for each of the 2 H variants, in one batch; other models run on the batch repeated
    for each variant. Modes are left as they are: call `model.eval()` before.

    Args:
        model: A model whose activations are named.
        batch: Inputs, as `run` takes them.
        layer: The block.
        score: Maps output and batch to a score for each sequence, [B].
        chunk: How many variants are computed at once; None are all. The memory is that of `chunk` batches.

    Returns:
        The table.

    Raises:
        ValueError: If the layer is unknown, or `score` does not return [B].
    """
    size = 0 if chunk is None else checked_integer("chunk", chunk, 1)
    name = site_name(layer, "values_pre_proj")
    output, acts = run(model, batch, record=[name, site_name(layer, "x")] if _known(model) else [name])
    mixed = acts[name]
    heads = mixed.shape[1]
    alone = torch.eye(heads, dtype=torch.bool, device=mixed.device)
    kept = torch.cat([alone, ~alone])
    found = []
    for keep in kept.split(size or len(kept)):
        repeated = _repeated(batch, len(keep))
        if _known(model):
            inside: Any = unwrapped(model)
            several = torch.where(keep[:, None, :, None, None], mixed, 0.0).flatten(0, 1)
            x = acts[site_name(layer, "x")]
            tokens = inside.blocks[layer].finish(x.repeat(len(keep), *[1] * (x.dim() - 1)), several)
            outputs = inside.read_out(tokens, layer + 1)
        else:
            silent = ~keep.repeat_interleave(len(mixed), 0)[:, :, None, None]
            outputs, _ = run(model, repeated, [Clamp(site_name(layer, "v"), 0.0, silent)])
        scores = score(outputs, repeated)
        if not isinstance(scores, Tensor) or scores.shape != (len(keep) * len(mixed),):
            raise ValueError(
                "score must return one number for each sequence, "
                f"[{len(keep) * len(mixed)}], got {getattr(scores, 'shape', type(scores).__name__)}"
            )
        found.append(scores.unflatten(0, (len(keep), -1)).mean(1))
    scores = torch.cat(found)
    return HeadTable(float(score(output, batch).mean()), scores[:heads], scores[heads:])


def _known(model: nn.Module) -> bool:
    inside = unwrapped(model)
    plain = type(inside) is FewShotTransformer and not any(
        module._forward_hooks or module._forward_pre_hooks for module in inside.modules()
    )
    return plain and all(site.handler is None for site in sites_of(inside).values())


def _repeated(batch: Any, times: int) -> Any:
    """Repeat each tensor of a batch along its first dimension."""
    if isinstance(batch, Tensor):
        return batch.repeat(times, *[1] * (batch.dim() - 1)) if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _repeated(value, times) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_repeated(value, times) for value in batch)
    return batch
