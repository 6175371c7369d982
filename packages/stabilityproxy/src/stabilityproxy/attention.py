"""The attention logits of one product, from the queries and keys that the kernel itself is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stabilityproxy._checks import checked_count, exact_dtype
from stabilityproxy.torch_attention import in_projected

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
# Masks are -inf, the least number of a dtype, or a round number such as -1e4 or -1e9. Where a mask is given apart,
# anything below the first is one; once added to the logits, which reach 1e6 in runs that diverge, it must be larger.
_MASK_ALONE, _MASK_IN_LOGITS = -9_999.0, -1e8
KERNEL = (
    99  # how surely a call is attention: kernels are, and a softmax the more so the more dimensions it has
)


class LogitStatistics(NamedTuple):
    """What is kept of one attention product.

    Attributes:
        max_logit: (heads,) largest |z| over sequences, queries and the keys that each may see; infinite where
            one is no number.
        entropy_sum: () sum over heads, sequences and queries of the entropy of softmax(z), in nats.
        num_rows: () how many distributions that is; rows that may see nothing are left out.
    """

    max_logit: Tensor
    entropy_sum: Tensor
    num_rows: Tensor


@torch.no_grad()
def attention_statistics(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    num_queries: int | None = None,
    offset: float = 0.5,
    chunk_size: int = 64,
) -> LogitStatistics:
    r"""Largest attention logit by head, and entropy, without the matrix of all logits.

    $z_{ij} = s\, q_i \cdot k_j$ with $s = 1 / \sqrt{d_h}$ (section 3.1.1 of the paper), over the pairs that the
    mask lets through. The arguments are those of `scaled_dot_product_attention`; grouped queries are taken by
    their shapes. Computed in float32, or float64 where the input is; `chunk_size` queries at a time, so that the
    memory is batch x heads x chunk_size x keys numbers.

    Args:
        query: (batch, heads, queries, d) or (batch, queries, d), after rotation and whatever else is done to it.
        key: (batch, heads or a divisor of them, keys, d), or (batch, keys, d).
        mask: Broadcastable to (batch, heads, queries, keys): boolean, True where a key is seen, or added to the
            logits. An added bias counts in the entropy, not in the largest logit; -1e4 and below hides the key.
        is_causal: Query i sees the keys up to i.
        scale: s; the inverse root of d if None.
        num_queries: How many queries of each sequence are looked at, evenly spaced; all if None.
        offset: In [0, 1), where between two of them the spacing begins.
        chunk_size: Queries at a time. Changes memory, not the result.

    Returns:
        Largest logit, sum of entropies and their number.

    Raises:
        ValueError: If the shapes do not fit, or a number is out of its range.
        TypeError: If queries or keys are no floats, or the mask is neither boolean nor of floats.

    Examples:
        >>> query = key = torch.eye(3)[None]
        >>> attention_statistics(query, 5 * key, scale=1.0).max_logit
        tensor([5.])
    """
    chunk_size = checked_count("chunk_size", chunk_size)
    num_queries = None if num_queries is None else checked_count("num_queries", num_queries)
    if not 0 <= offset < 1:
        raise ValueError(f"offset must be in [0, 1), got {offset}")
    query, key = _with_heads(query), _with_heads(key)
    _check_product(query, key, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query)
    positions = sampled_positions(length, num_queries, offset, query.device)
    dtype = exact_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        # (batch, key heads, queries per key head, ...): grouped queries need no repeated keys
        grouped = query.reshape(batch, groups, heads // groups, length, size)
        keys = key.to(dtype).unsqueeze(2).mT
        parts = []
        for chosen in positions.split(chunk_size):
            logits = (grouped.index_select(3, chosen).to(dtype) @ keys * scale).flatten(1, 2)
            seen, bias = _visible(mask, is_causal, chosen, key.shape[2])
            parts.append(_reduce(logits, seen, bias))
    return _merge(parts)


@torch.no_grad()
def softmax_statistics(
    logits: Tensor, *, num_queries: int | None, offset: float, chunk_size: int
) -> LogitStatistics:
    """The same of logits (..., queries, keys) that are about to go into a softmax, masks already added."""
    logits = _with_heads(logits)
    if logits.numel() == 0:
        return _nothing(logits)
    limit = max(_MASK_IN_LOGITS, torch.finfo(logits.dtype).min / 2)
    positions = sampled_positions(logits.shape[2], num_queries, offset, logits.device)
    parts = []
    for chosen in positions.split(chunk_size):
        chunk = logits.index_select(2, chosen).to(exact_dtype(logits))
        parts.append(_reduce(chunk, ~(chunk <= limit), None))
    return _merge(parts)


@torch.no_grad()
def bound_statistics(query: Tensor, key: Tensor, scale: float | None) -> LogitStatistics:
    r"""$|z_{ij}| \le s \max_i \|q_i\| \max_j \|k_j\|$ of each sequence, masks not counted; no entropy."""
    query, key = _with_heads(query), _with_heads(key)
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    longest = [
        torch.linalg.vector_norm(each, dim=-1, dtype=exact_dtype(each)).amax(2) for each in (query, key)
    ]
    repeats = query.shape[1] // key.shape[1]
    bound = (longest[0] * longest[1].repeat_interleave(repeats, dim=1) * abs(scale)).amax(0)
    nothing = bound.new_zeros(())
    return LogitStatistics(bound.nan_to_num(nan=torch.inf, posinf=torch.inf), nothing, nothing)


def sampled_positions(length: int, wanted: int | None, offset: float, device: torch.device) -> Tensor:
    """`wanted` evenly spaced positions of 0 .. length - 1, all where there are no more."""
    positions = torch.arange(length if wanted is None else min(wanted, length), device=device)
    if wanted is None or wanted >= length:
        return positions
    return ((positions + offset) * (length / wanted)).long().clamp_max(length - 1)


class AttentionRecorder(TorchFunctionMode):
    """While entered, hands every attention product of this thread to `record`, and changes nothing.

    `record` is called with a function that measures, and with how surely it is attention.

    It sees calls of `scaled_dot_product_attention` with their arguments, and the logits that go into a softmax
    over their last dimension where attention is written out, and the inputs of `torch.nn.MultiheadAttention`.
    """

    def __init__(
        self,
        record: Callable[[Callable[[], LogitStatistics], int], None],
        *,
        num_queries: int | None,
        bound: bool,
    ):
        super().__init__()
        self.record = record
        self.num_queries = num_queries
        self.bound = bound
        self.offset = 0.5

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.record(lambda: self.product(*args, **kwargs), KERNEL)
        elif (
            func is F.multi_head_attention_forward
        ):  # one call to torch, whose inner ones are hidden from a mode
            self.record(lambda: self.product(*in_projected(*args, **kwargs)), KERNEL)
        elif func in _SOFTMAX and (num_dims := _over_keys(*args, **kwargs)):
            self.record(lambda: self.written_out(*args, **kwargs), num_dims)
        return func(*args, **kwargs)

    def product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> LogitStatistics:
        """Measure a call of `scaled_dot_product_attention` by its own arguments."""
        if self.bound:
            return bound_statistics(query, key, scale)
        return attention_statistics(
            query,
            key,
            attn_mask,
            is_causal=is_causal,
            scale=scale,
            num_queries=self.num_queries,
            offset=self.offset,
        )

    def written_out(self, input: Tensor, *args: Any, **kwargs: Any) -> LogitStatistics:
        """Measure what goes into a softmax."""
        return softmax_statistics(input, num_queries=self.num_queries, offset=self.offset, chunk_size=64)


def _check_product(query: Tensor, key: Tensor, mask: Tensor | None) -> None:
    """Refuse what the kernel would refuse, by name."""
    if not (query.is_floating_point() and key.is_floating_point()):
        raise TypeError(f"query and key must be floats, got {query.dtype} and {key.dtype}")
    batch, heads, length, size = query.shape
    if key.shape[0] != batch or key.shape[3] != size or heads % (key.shape[1] or 1):
        raise ValueError(
            f"key must be (batch, heads or a divisor of them, keys, d) as query is {tuple(query.shape)}, "
            f"got {tuple(key.shape)}"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"mask must be boolean or floats, got {mask.dtype}")
    whole = (batch, heads, length, key.shape[2])
    fits = [have in (1, want) for have, want in zip(mask.shape[::-1], whole[::-1], strict=False)]
    if mask.dim() > len(whole) or not all(fits):
        raise ValueError(f"mask must be broadcastable to {whole}, got {tuple(mask.shape)}")


def _over_keys(input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> int:
    """Dimensions of what may be logits (..., queries, keys); 0 if it is something else."""
    is_last = dim in (-1, input.dim() - 1)
    return input.dim() if is_last and input.dim() >= 3 and input.is_floating_point() else 0


def _with_heads(tensor: Tensor) -> Tensor:
    """(batch, heads, length, size), whatever came before the last two dimensions."""
    tensor = tensor.detach()
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 3:
        return tensor.unsqueeze(1)
    return tensor if tensor.dim() == 4 else tensor.flatten(0, -4)


def _visible(
    mask: Tensor | None, is_causal: bool, chosen: Tensor, num_keys: int
) -> tuple[Tensor | None, Tensor | None]:
    """Which keys the chosen queries see, and what is added to their logits."""
    seen = bias = None
    if is_causal:
        seen = torch.arange(num_keys, device=chosen.device) <= chosen[:, None]
    if mask is not None:
        if mask.dim() >= 2 and mask.shape[-2] != 1:
            mask = mask.index_select(-2, chosen)
        if mask.dtype != torch.bool:
            bias, mask = mask, mask > max(_MASK_ALONE, torch.finfo(mask.dtype).min / 2)
        seen = mask if seen is None else seen & mask
    return seen, bias


def _reduce(logits: Tensor, seen: Tensor | None, bias: Tensor | None) -> LogitStatistics:
    """Statistics of logits (batch, heads, queries, keys)."""
    size = logits.abs()
    if seen is not None:
        size = size.masked_fill(~seen, 0.0)
    max_logit = size.amax((0, 2, 3)).nan_to_num(nan=torch.inf, posinf=torch.inf)
    if bias is not None:
        logits = logits + bias
    if seen is not None:
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    log_prob = logits.log_softmax(-1)
    entropy = -(log_prob.exp() * log_prob.clamp_min(torch.finfo(logits.dtype).min)).sum(-1)
    if seen is None:
        return LogitStatistics(max_logit, entropy.sum(), entropy.new_tensor(entropy.numel()))
    counts = seen.any(-1).expand_as(entropy)
    return LogitStatistics(max_logit, (entropy * counts).sum(), counts.sum().to(entropy.dtype))


def _merge(parts: list[LogitStatistics]) -> LogitStatistics:
    """Of chunks of queries."""
    return LogitStatistics(
        torch.stack([part.max_logit for part in parts]).amax(0),
        torch.stack([part.entropy_sum for part in parts]).sum(),
        torch.stack([part.num_rows for part in parts]).sum(),
    )


def _nothing(tensor: Tensor) -> LogitStatistics:
    """Of a batch or sequence without tokens."""
    zeros = tensor.new_zeros(tensor.shape[1], dtype=exact_dtype(tensor))
    return LogitStatistics(zeros, zeros.sum(), zeros.sum())
