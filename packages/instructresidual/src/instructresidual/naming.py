"""What names say: the part of the model a tensor belongs to, and the marks that wrappers leave on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

GROUPS = ("embed", "attn", "mlp", "norm", "head", "router", "other")

Rename: TypeAlias = Callable[[str], str] | Mapping[str, str]
Pattern: TypeAlias = str | Iterable[str]

# The first that matches decides: a norm inside of an attention block is a norm, a router inside of an MLP a router.
_PATTERNS = {
    "norm": r"norm|(^|\.)ln_|(^|\.)(ln|layer_?norm)\d*\.",
    "head": r"(^|\.)(lm_head|embed_out|output_layer|score|classifier)(\.|$)|^output\.",
    "embed": r"embed|(^|\.)(wte|wpe|tok_embeddings)\.",
    "router": r"(^|\.)(router|gate)\.(?!_proj)|shared_expert_gate",
    "attn": r"attn|attention|(^|\.)(query|key|value|[qkvo]_proj|qkv_proj|query_key_value)(\.|$)",
    "mlp": r"mlp|feed_forward|ffn|experts?|(^|\.)(fc\d*|c_fc|(gate|up|down|gate_up)_proj|dense_\w+|w[123])(\.|$)",
}
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|token_type_ids|masked_bias|rope\.freqs"
    r"|running_mean|running_var)$"
)
_ADAPTERS = re.compile(r"(^|\.)(lora_|base_layer\.|base_model\.model\.|modules_to_save\.)")
_QUANTISED = re.compile(
    r"(^|[._])(qweight|qzeros|g_idx|SCB|absmax|quant_state|quant_map|weight_scale|weight_packed)($|\.)"
)
_NOT_TOKENS = re.compile(r"wpe|position|token_type|segment")


@lru_cache(1 << 16)
def group_of(name: str) -> str:
    """Tell the part of a model that a parameter belongs to, from its name.

    Known are the names of Llama, Mistral, Qwen, Gemma, Phi, OLMo, Mixtral, GPT-2, GPT-NeoX and the like.

    Args:
        name: The parameter's name.

    Returns:
        One of `"embed"`, `"attn"`, `"mlp"`, `"norm"`, `"head"`, `"router"` (of a mixture of experts), `"other"`.

    Examples:
        >>> group_of("model.layers.3.self_attn.q_proj.weight")
        'attn'
        >>> group_of("model.layers.3.post_attention_layernorm.weight")
        'norm'
        >>> group_of("model.layers.3.mlp.gate.weight"), group_of("model.layers.3.mlp.gate_proj.weight")
        ('router', 'mlp')
    """
    for group, pattern in _PATTERNS.items():
        if re.search(pattern, name):
            return group
    return "other"


@lru_cache(1 << 16)
def plain_name(name: str) -> str:
    """Take off what DistributedDataParallel, `torch.compile` and FSDP put into names."""
    return _WRAPPERS.sub("", name)


@lru_cache(1 << 16)
def is_buffer(name: str, num_dimensions: int) -> bool:
    """Whether a tensor is a rotary table, a causal mask or a running statistic, which checkpoints hold as well."""
    mask = num_dimensions == 4 and re.search(r"(^|\.)(attn|attention)\.bias$", name)
    return bool(mask or _BUFFERS.search(name))


@lru_cache(1 << 16)
def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an adapter that was not merged."""
    return bool(_ADAPTERS.search(name))


@lru_cache(1 << 16)
def is_quantised(name: str) -> bool:
    """Whether a name is one that quantised checkpoints use for codes and scales."""
    return bool(_QUANTISED.search(name))


@lru_cache(1 << 16)
def has_token_rows(name: str) -> bool:
    """Whether a tensor has one row a token: embeddings and heads, not positions."""
    return group_of(name) in ("embed", "head") and not _NOT_TOKENS.search(name)


def matcher(patterns: Pattern | None, argument: str) -> Callable[[str], bool]:
    """Return a test of names by groups and regular expressions; None matches nothing."""
    chosen = [patterns] if isinstance(patterns, str) else list(patterns or ())
    groups = {pattern for pattern in chosen if pattern in GROUPS}
    try:
        expressions = [re.compile(pattern) for pattern in chosen if pattern not in GROUPS]
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{argument} must be groups of {GROUPS} or regular expressions, got {patterns!r}: {error}"
        ) from None
    return lambda name: group_of(name) in groups or any(expression.search(name) for expression in expressions)


def renamed(name: str, rename: Rename | None) -> str:
    """Apply what the caller says of names."""
    if rename is None:
        return name
    return rename.get(name, name) if isinstance(rename, Mapping) else rename(name)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Name the first few."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(repr(name) for name in found[:most]) + more


def likely_rename(wanted: Iterable[str], there: Iterable[str]) -> str:
    """Tell, for an error message, a prefix that would make the names agree; never applied by itself."""
    lacking, spare = list(wanted), set(there)
    for name in lacking[:1]:
        for other in spare:
            long, short = (other, name) if len(other) > len(name) else (name, other)
            if long.endswith(f".{short}"):
                prefix = long[: -len(short)]
                there_too = [
                    prefix + want if long == other else want.removeprefix(prefix) for want in lacking
                ]
                if spare.issuperset(there_too):
                    return f"; they would agree but for the prefix {prefix!r}: pass rename="
    return "; if they are called otherwise, pass rename="
