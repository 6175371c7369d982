"""Hugging Face decoders with named activations, through transformers' own attention interface; needs the `hf` extra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from inductionclamp.attention import mapped_attention, wants_map
from inductionclamp.sites import Site, SiteTable, check_fresh, hook_site

IMPLEMENTATION = "inductionclamp"
_KEPT_AT = "clamp_attention"  # the attribute of an attention module that holds its sites

# Per block, in the order of the forward pass.
_BLOCK = (
    "x",
    "norm_inp",
    "q",
    "k",
    "attn_pre_softmax",
    "attn_scores",
    "v",
    "values_pre_proj",
    "attn_out",
    "mlp",
    "out",
)


class _AttentionSites:
    """What an attention module is asked for, and how it attends when it is not."""

    def __init__(self, sites: Mapping[str, Site], fallback: str) -> None:
        self.sites = dict(sites)
        self.fallback = fallback


def instrument_hf(model: nn.Module) -> SiteTable:
    """Name the activations of a Hugging Face decoder (Llama, GPT-2, GPT-NeoX, Qwen, ...), without re-implementing it.

    Names per block: `x`, `norm_inp`, `q`, `k` (after rotation), `attn_pre_softmax`, `attn_scores`, `v`,
    `values_pre_proj` (all [B, heads, T, ...]; grouped keys and values are repeated for each query head), `attn_out`,
    `mlp`, `out`; besides `tok_embedding`, `pre_unembed` and `logits`. A layer runs the attention that the model had,
    `sdpa` or `eager`, unless a clamp or record needs its map. Weights, `state_dict`, `generate`, `Trainer` and
    PEFT stay as they are. `remove()` of the table takes everything back.

    Args:
        model: A `PreTrainedModel` with attention `sdpa` or `eager`.

    Returns:
        The table of sites, kept at `model.clamp_sites`.

    Raises:
        ImportError: If transformers is missing.
        TypeError: If `model` is no `PreTrainedModel`.
        ValueError: If the model's attention is neither `sdpa` nor `eager`, does not go through the
            interface, or the model is instrumented or compiled already.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    except ImportError as error:  # pragma: no cover
        raise ImportError("instrument_hf needs transformers: pip install 'inductionclamp[hf]'") from error
    check_fresh(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel, got {type(model).__name__}; see instrument")
    before = model.config._attn_implementation
    if before not in ("sdpa", "eager"):
        raise ValueError(
            f"model must attend by 'sdpa' or 'eager', got {before!r}: call model.set_attn_implementation('sdpa')"
        )
    if before == "eager" and getattr(model.config, "reorder_and_upcast_attn", False):
        raise ValueError("model must not have reorder_and_upcast_attn under eager attention; use 'sdpa'")
    attentions = _attentions(model)
    implementation = f"{IMPLEMENTATION}_{before}"
    AttentionInterface.register(implementation, _attend)
    AttentionMaskInterface.register(implementation, ALL_MASK_ATTENTION_FUNCTIONS[before])
    names = ["tok_embedding"]
    for layer, _, block in attentions:
        has_mlp = isinstance(getattr(block, "mlp", None), nn.Module)
        names += [f"blocks.{layer}.{name}" for name in _BLOCK if has_mlp or name != "mlp"]
    head = model.get_output_embeddings()
    table = SiteTable([*names, *(["pre_unembed", "logits"] if head is not None else [])])
    hook_site(table, "tok_embedding", model.get_input_embeddings())
    for layer, attention, block in attentions:
        _hook_block(table, f"blocks.{layer}.", attention, block)
        setattr(attention, _KEPT_AT, _AttentionSites(table.scope(f"blocks.{layer}."), before))
    if head is not None:
        hook_site(table, "pre_unembed", head, on_input=True)
        hook_site(table, "logits", head)
    model.set_attn_implementation(implementation)
    if model.config._attn_implementation != implementation:
        table.remove()
        raise ValueError(
            f"model must attend through transformers' AttentionInterface, {type(model).__name__} does not; name its "
            "modules by instrument instead"
        )
    table.undo = _Undo(model, before)
    model.clamp_sites = table  # type: ignore[assignment]
    return table


class _Undo:
    """Gives a model its attention back; an object, so that a deep copy's is its own."""

    def __init__(self, model: Any, before: str) -> None:
        self.model = model
        self.before = before

    def __call__(self) -> None:
        self.model.set_attn_implementation(self.before)
        for module in self.model.modules():
            module.__dict__.pop(_KEPT_AT, None)


def _attentions(model: nn.Module) -> list[tuple[int, nn.Module, nn.Module]]:
    """Each self-attention with its block: modules that know their `layer_idx` and are named for it."""
    found = []
    modules = dict(model.named_modules())
    for path, module in modules.items():
        index = getattr(module, "layer_idx", None)
        named = type(module).__name__.endswith("Attention")
        if named and isinstance(index, int) and not getattr(module, "is_cross_attention", False):
            found.append((index, module, modules[path.rpartition(".")[0]]))
    layers = [layer for layer, _, _ in found]
    if not found or layers != list(range(len(layers))):
        raise ValueError(
            f"model must have one self-attention with layer_idx in each block, found layers {layers[:12]} in "
            f"{type(model).__name__}; name modules by instrument instead"
        )
    return found


def _hook_block(table: SiteTable, prefix: str, attention: nn.Module, block: nn.Module) -> None:
    hook_site(table, prefix + "x", block, on_input=True)
    hook_site(table, prefix + "norm_inp", attention, on_input=True)
    hook_site(table, prefix + "attn_out", attention)
    if prefix + "mlp" in table:
        hook_site(table, prefix + "mlp", block.mlp)  # type: ignore[arg-type]
    hook_site(table, prefix + "out", block)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **named: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model did before, with its steps as sites."""
    state = getattr(module, _KEPT_AT, None)
    if state is None:
        raise RuntimeError(f"{type(module).__name__} is not instrumented, but its model's attention is")
    sites = state.sites
    active = [name for name in ("q", "k", "v", "values_pre_proj") if sites[name].handler is not None]
    mapped = wants_map(sites)
    if mapped or active:
        key, value = _repeated(key, query), _repeated(value, query)
        query, key = sites["q"](query), sites["k"](key)
    if mapped:
        _check_plain(module, scaling, named)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        alone = attention_mask is None
        causal = alone and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        mask = None if attention_mask is None else attention_mask[..., : key.shape[-2]]
        mixed = mapped_attention(
            query, key, value, sites, scale=scale, causal=causal, mask=mask, dropout=dropout
        )
        return sites["values_pre_proj"](mixed).transpose(1, 2).contiguous(), None
    if active:
        value = sites["v"](value)
    attend = _fallback(module, state.fallback)
    if is_causal is not None:
        named["is_causal"] = is_causal
    grouped = active and getattr(module, "num_key_value_groups", 1) > 1
    seen = _Ungrouped(module) if grouped else module  # keys and values are repeated already
    output, weights = attend(
        seen, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **named
    )
    if sites["values_pre_proj"].handler is not None:
        output = sites["values_pre_proj"](output.transpose(1, 2)).transpose(1, 2)
    return output, weights


class _Ungrouped:
    """A module as attention functions read it, but with one key and value per query head."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.num_key_value_groups = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _repeated(states: Tensor, query: Tensor) -> Tensor:
    """Repeat grouped keys or values for each query head."""
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, 1)


def _check_plain(module: nn.Module, scaling: float | None, named: Mapping[str, Any]) -> None:
    for name in ("softcap", "s_aux", "position_bias", "cache", "head_mask"):
        if named.get(name) is not None:
            raise ValueError(f"clamps and records of attention maps do not know the model's {name!r}")
    scaled_elsewhere = getattr(module, "scale_attn_by_inverse_layer_idx", False) or not getattr(
        module, "scale_attn_weights", True
    )
    if scaling is None and scaled_elsewhere:
        raise ValueError("this version of transformers does not tell how the model scales its attention maps")


def _fallback(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"]
    return sys.modules[type(module).__module__].eager_attention_forward
