"""The families of Hugging Face models whose parts are known, and how their blocks are called."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sortedft.parts import KeyValueCache, Parts


class _Names(NamedTuple):
    backbone: str
    layers: str
    norm: str
    embed: str


_LLAMA = _Names("model", "layers", "norm", "embed_tokens")
_FAMILIES = {
    "cohere": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt2": _Names("transformer", "h", "ln_f", "wte"),
    "gpt_neox": _Names("gpt_neox", "layers", "final_layer_norm", "embed_in"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}
# What a block calls the cache: newest name first, since older ones are taken with a warning.
_CACHE_NAMES = ("cache", "past_key_values", "layer_past", "past_key_value")


def adapter(model: nn.Module | Parts) -> Parts:
    """Find the parts of a causal language model.

    Knows Hugging Face's Llama, Mistral, Qwen 2 and 3, Gemma and Gemma 2, Phi-3, OLMo 2, SmolLM 3, Cohere, GPT-2
    and GPT-NeoX, bare or inside of `torch.compile`, DistributedDataParallel or a PEFT model, whose adapters
    then act in every sub-model. Parts are returned as they are, so every function of this package takes either.

    Args:
        model: The model, with its language-model head.

    Returns:
        Its parts, sharing all parameters.

    Raises:
        TypeError: If the model is an encoder-decoder, has no language-model head, or is of a family not in
            the list.
        ValueError: If its attention is neither "sdpa" nor "eager", or PEFT puts virtual tokens before the text.
    """
    if isinstance(model, Parts):
        return model
    bare = unwrapped(model)
    config = getattr(bare, "config", None)
    name = type(bare).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(f"model must be a decoder-only language model, got encoder-decoder {name}")
    family = getattr(config, "model_type", None)
    if family not in _FAMILIES or getattr(bare, "get_output_embeddings", lambda: None)() is None:
        raise TypeError(
            f"model must be a causal language model of one of {sorted(_FAMILIES)} "
            f"(for any other pass Parts made by hand), got {name} of type {family!r}"
        )
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"model must be loaded with attn_implementation 'sdpa' or 'eager', got {attention!r}"
        )
    return _hugging_face_parts(bare, config, _FAMILIES[family])


def unwrapped(model: Any) -> Any:
    """The model inside of DistributedDataParallel, `torch.compile` and PEFT, in whatever order they wrap it."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "model must see its own text alone, got a PEFT model that puts virtual tokens before it"
        )
    if callable(getattr(model, "get_base_model", None)):
        return unwrapped(model.get_base_model())
    inner = without_shell(model)
    return model if inner is model else unwrapped(inner)


def without_shell(model: nn.Module) -> Any:
    """The model inside of wrappers that change nothing in it: DistributedDataParallel and `torch.compile`."""
    for name in ("module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return without_shell(inner)
    return model


def _hugging_face_parts(model: Any, config: Any, names: _Names, padding: Tensor | None = None) -> Parts:
    backbone = getattr(model, names.backbone)
    layers = getattr(backbone, names.layers)
    table = getattr(backbone, names.embed)
    cache_name = _cache_name(layers[0])
    # Gemma scales its embedding: in the forward pass of older releases, in the table of newer ones.
    scales_outside = config.model_type.startswith("gemma") and not hasattr(table, "embed_scale")
    rotary = getattr(backbone, "rotary_emb", None)
    limit = _rotary_limit(config, rotary)
    windows = {id(layer): _sliding_window(config, index) for index, layer in enumerate(layers)}

    def embed(input_ids: Tensor, start: int) -> Tensor:
        hidden = table(input_ids)
        if scales_outside:
            hidden = hidden * torch.tensor(config.hidden_size**0.5, dtype=hidden.dtype)
        if hasattr(backbone, "wpe"):
            _check_room(backbone.wpe, start + input_ids.shape[1])
            hidden = hidden + backbone.wpe(_positions(hidden, start, padding))
        return hidden

    def prepare(hidden: Tensor, start: int) -> dict[str, Any]:
        _check_rotary(limit, start, hidden.shape[1], padding is not None)
        position_ids = _positions(hidden, start, padding)
        masks = {window: _causal_mask(hidden, start, window, padding) for window in set(windows.values())}
        shared: dict[str, Any] = {"masks": masks, "position_ids": position_ids}
        if rotary is not None:
            shared["position_embeddings"] = rotary(hidden, position_ids)
        return shared

    def run(layer: nn.Module, hidden: Tensor, shared: dict[str, Any], cache: KeyValueCache) -> Tensor:
        arguments = {key: value for key, value in shared.items() if key != "masks"}
        mask = shared["masks"][windows[id(layer)]]
        output = layer(hidden, attention_mask=mask, **{cache_name: cache}, **arguments)
        return output[0] if isinstance(output, tuple) else output

    return Parts(
        layers=layers,
        norm=getattr(backbone, names.norm),
        head=model.get_output_embeddings(),
        embed=embed,
        run=run,
        prepare=prepare,
        logit_scale=getattr(config, "logit_scale", 1.0),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        padded=lambda padding: _hugging_face_parts(model, config, names, padding),
    )


def _cache_name(layer: nn.Module) -> str:
    understood = inspect.signature(without_shell(layer).forward).parameters
    for name in _CACHE_NAMES:
        if name in understood:
            return name
    raise TypeError(f"model must have blocks that take a cache by one of {_CACHE_NAMES}, got {[*understood]}")


def _check_room(table: nn.Embedding, length: int) -> None:
    if length > table.num_embeddings:
        raise ValueError(
            f"input_ids and max_new_tokens must fit into the model's {table.num_embeddings} learned positions, "
            f"got {length}"
        )


class _RotaryLimit(NamedTuple):
    kind: str
    length: int


def _rotary_limit(config: Any, rotary: Any) -> _RotaryLimit | None:
    """The length after which the rotary embedding of every position changes, None if it never does."""
    kind = getattr(rotary, "rope_type", None)
    if kind == "dynamic":
        return _RotaryLimit(kind, config.max_position_embeddings)
    if kind == "longrope":
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        length = getattr(config, "original_max_position_embeddings", None)
        length = length or rope.get("original_max_position_embeddings") or config.max_position_embeddings
        return _RotaryLimit(kind, length)
    return None


def _check_rotary(limit: _RotaryLimit | None, start: int, new: int, padded: bool) -> None:
    """Raise where kept keys would be of another embedding than the new ones, and the text not the full model's."""
    if limit is None or start + new <= limit.length:
        return
    # A prompt that is longer from the start has one "longrope" embedding throughout; "dynamic" changes with each token.
    if limit.kind == "dynamic" or padded or 0 < start <= limit.length:
        raise ValueError(
            f"input_ids and max_new_tokens must stay within the {limit.length} positions after which the model's "
            f"rotary embedding ({limit.kind}) changes for the whole text, got {start + new}"
        )


def _sliding_window(config: Any, index: int) -> int | None:
    """How far back block `index` sees, None for everything."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return window if types[index] == "sliding_attention" else None
    return window if getattr(config, "use_sliding_window", True) else None


def _positions(hidden: Tensor, start: int, padding: Tensor | None) -> Tensor:
    """(1 or batch, new) positions, counted from the first real token of each row."""
    positions = torch.arange(start, start + hidden.shape[1], device=hidden.device).unsqueeze(0)
    return positions if padding is None else (positions - padding.unsqueeze(1)).clamp_min(0)


def _causal_mask(hidden: Tensor, start: int, window: int | None, padding: Tensor | None) -> Tensor | None:
    """Additive mask (1 or batch, 1, new, start + new), None where one new token may see everything."""
    new = hidden.shape[1]
    if new == 1 and padding is None and (window is None or start < window):
        return None
    query = torch.arange(start, start + new, device=hidden.device).unsqueeze(1)
    key = torch.arange(start + new, device=hidden.device)
    hidden_from_view = (key > query).unsqueeze(0)
    if window is not None:
        hidden_from_view = hidden_from_view | (key <= query - window)
    if padding is not None:
        # A padded position still sees itself: a row that sees nothing would be no number in half precision.
        hidden_from_view = hidden_from_view | ((key < padding[:, None, None]) & (key != query))
    mask = torch.zeros(hidden_from_view.shape, dtype=hidden.dtype, device=hidden.device)
    return mask.masked_fill(hidden_from_view, torch.finfo(hidden.dtype).min).unsqueeze(1)
