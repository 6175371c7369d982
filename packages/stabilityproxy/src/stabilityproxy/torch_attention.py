"""Queries, keys and mask of `torch.nn.MultiheadAttention`, which projects inside of one call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@torch.no_grad()
def in_projected(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Turn the arguments of `multi_head_attention_forward` into those of `scaled_dot_product_attention`.

    The keys that `add_bias_kv` and `add_zero_attn` append are left out.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    heads, size = given["num_heads"], given["embed_dim_to_check"]
    if given["use_separate_proj_weight"]:
        weights = (given["q_proj_weight"], given["k_proj_weight"])
    else:
        weights = given["in_proj_weight"].split(size)[:2]
    bias = given["in_proj_bias"]
    biases = (None, None) if bias is None else bias.split(size)[:2]
    query, key = (
        F.linear(given[name], weight, offset)
        for name, weight, offset in zip(("query", "key"), weights, biases, strict=True)
    )
    if query.dim() == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    # (length, batch, heads * d) becomes (batch, heads, length, d)
    query, key = (each.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for each in (query, key))
    masks = [_added(given["attn_mask"], heads), _added(given["key_padding_mask"], heads, of_keys=True)]
    added = [mask for mask in masks if mask is not None]
    return query, key, key, sum(added[1:], added[0]) if added else None


def _added(mask: Tensor | None, heads: int, *, of_keys: bool = False) -> Tensor | None:
    """A mask that is added to logits (batch, heads, queries, keys); here True hides a key."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask, float("-inf"))
    if of_keys:
        return mask.reshape(-1, 1, 1, mask.shape[-1])
    return mask if mask.dim() == 2 else mask.unflatten(0, (-1, heads))
