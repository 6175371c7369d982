"""Attention whose every activation has a name; fused as long as nobody asks for the map."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from inductionclamp._checks import blocked_value, checked_integer
from inductionclamp.sites import Site, SiteTable

# In the order of the forward pass; the values come after the maps, which do not depend on them.
ATTENTION_NAMES = (
    "q_pre_rotary",
    "k_pre_rotary",
    "q",
    "k",
    "attn_pre_softmax",
    "attn_scores",
    "v",
    "values_pre_proj",
)


def wants_map(sites: Mapping[str, Site]) -> bool:
    """Whether a clamp or a record needs the attention map itself."""
    return sites["attn_pre_softmax"].handler is not None or sites["attn_scores"].handler is not None


def mapped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sites: Mapping[str, Site],
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T scale + mask) v with its steps as sites; the softmax is taken in float32 at least.

    Args:
        q: Queries [B, H, T, D].
        k: Keys [B, H, S, D].
        v: Values [B, H, S, D], before their site.
        sites: Holds `attn_pre_softmax`, `attn_scores` and `v`.
        scale: Factor of the scores.
        causal: Whether the last query sees all keys, the one before all but the last, and so on.
        mask: Boolean (True attends) or additive, broadcastable to [B, H, T, S].
        dropout: Probability of dropping an entry of the map, after its clamps.

    Returns:
        Mixed values [B, H, T, D], before their site.
    """
    scores = (q @ k.transpose(-2, -1)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, blocked_value(scores.dtype)) if _boolean(mask) else scores + mask
    if causal:
        scores = scores.masked_fill(_future(q.shape[-2], k.shape[-2], q.device), -math.inf)
    scores = sites["attn_pre_softmax"](scores)
    wide = torch.promote_types(scores.dtype, torch.float32)
    pattern = sites["attn_scores"](scores.softmax(-1, dtype=wide).to(v.dtype))
    if dropout > 0:
        pattern = nn.functional.dropout(pattern, dropout)
    return pattern @ sites["v"](v)


def _boolean(mask: Tensor) -> bool:
    return mask.dtype == torch.bool


def _future(queries: int, keys: int, device: torch.device) -> Tensor:
    """[T, S], True where a key lies after its query, the last query standing at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


class ClampableAttention(nn.Module):
    """Multi-head self-attention, bias-free, that exposes every activation by name (Singh et al., appendix A).

    Without a clamp or record on `attn_pre_softmax` or `attn_scores` it runs torch's fused attention.

    Args:
        dim: Width of the tokens.
        heads: Number of heads, dividing `dim`.
        rope: Whether queries and keys are rotated by position (pairs of neighbouring features).
        causal: Whether a position sees only itself and those before.
        generator: Draws the weights (LeCun normal).
        sites: Sites of a larger model to use; None makes the module's own, kept at `clamp_sites`.

    Raises:
        ValueError: If `heads` does not divide `dim`, or a head's width is odd under `rope`.

    Examples:
        >>> import torch
        >>> from inductionclamp import ClampableAttention, run
        >>> attention = ClampableAttention(dim=16, heads=4)
        >>> output, acts = run(attention, torch.randn(2, 5, 16), record=["attn_scores", "values_pre_proj"])
        >>> output.shape, acts["attn_scores"].shape, acts["values_pre_proj"].shape
        (torch.Size([2, 5, 16]), torch.Size([2, 4, 5, 5]), torch.Size([2, 4, 5, 4]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        rope: bool = True,
        causal: bool = True,
        *,
        generator: torch.Generator | None = None,
        sites: Mapping[str, Site] | None = None,
    ) -> None:
        super().__init__()
        self.dim = checked_integer("dim", dim, 1)
        self.num_heads = checked_integer("heads", heads, 1)
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        self.head_dim = dim // heads
        if rope and self.head_dim % 2:
            raise ValueError(f"dim / heads must be even for rotary positions, got {self.head_dim}")
        self.rope = rope
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        for layer in (self.qkv, self.proj):
            lecun_normal(layer.weight, generator)
        if sites is None:
            own = SiteTable(ATTENTION_NAMES, whole=False)
            self.clamp_sites = own
            sites = dict(own)
        self.sites = {name: sites[name] for name in ATTENTION_NAMES}

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens [B, T, dim].
            key_mask: Boolean [B, T], True for tokens and False for padding, which nobody attends to.

        Returns:
            Tokens [B, T, dim].
        """
        return self.project(self.mix(x, key_mask))

    def mix(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the mixed values of each head, [B, H, T, head_dim], before the projection."""
        sites = self.sites
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = sites["q_pre_rotary"](q), sites["k_pre_rotary"](k)
        if self.rope:
            cos, sin = _rotary_angles(x.shape[1], self.head_dim, q)
            q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        q, k = sites["q"](q), sites["k"](k)
        scale = self.head_dim**-0.5
        mask = None if key_mask is None else self._bias(key_mask, q)
        if wants_map(sites):
            causal = self.causal and mask is None
            mixed = mapped_attention(q, k, v, sites, scale=scale, causal=causal, mask=mask)
        else:
            causal = self.causal and mask is None
            mixed = scaled_dot_product_attention(
                q, k, sites["v"](v), attn_mask=mask, is_causal=causal, scale=scale
            )
        return sites["values_pre_proj"](mixed)

    def project(self, mixed: Tensor) -> Tensor:
        """Return the heads' mixed values [B, H, T, head_dim] as tokens [B, T, dim]."""
        return self.proj(mixed.transpose(1, 2).flatten(-2))

    def _bias(self, key_mask: Tensor, q: Tensor) -> Tensor:
        """Padding and the future as an additive mask; a padded query still sees something, so that nothing is NaN."""
        size = q.shape[-2]
        if key_mask.shape != (q.shape[0], size) or not _boolean(key_mask):
            raise ValueError(
                f"key_mask must be boolean of shape {(q.shape[0], size)}, got {key_mask.dtype} {tuple(key_mask.shape)}"
            )
        padding = q.new_zeros(key_mask.shape).masked_fill(~key_mask, blocked_value(q.dtype))[:, None, None]
        if not self.causal:
            return padding
        return padding.expand(-1, 1, size, -1).masked_fill(_future(size, size, q.device), -math.inf)


def lecun_normal(weight: Tensor, generator: torch.Generator | None) -> None:
    """Fill a weight [out, in] from a normal truncated at two deviations, of variance 1 / in."""
    std = weight.shape[1] ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def _rotary_angles(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position / 10000^(2 floor(i / 2) / width), each [T, width]."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.arange(0, width, 2, device=like.device, dtype=dtype)
    positions = torch.arange(length, device=like.device, dtype=dtype)
    angles = (positions[:, None] / 10000.0 ** (pairs / width)).repeat_interleave(2, -1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _turned(x: Tensor) -> Tensor:
    """(x0, x1, x2, x3, ...) -> (-x1, x0, -x3, x2, ...)."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
