"""The parts of a causal language model, and how to run its blocks one range at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Names(NamedTuple):
    backbone: str
    layers: str
    norm: str
    embed: str
    cache: str = "past_key_values"


_LLAMA = _Names("model", "layers", "norm", "embed_tokens")
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt2": _Names("transformer", "h", "ln_f", "wte"),
    "gpt_neox": _Names("gpt_neox", "layers", "final_layer_norm", "embed_in", cache="layer_past"),
}


class KeyValueCache:
    """Keys and values of every block, each block at its own length.

    Speaks the `update` protocol of Hugging Face caches. Unlike theirs, blocks may lag behind one
    another, and cropping costs nothing: the buffers double when full and are never copied otherwise.
    Memory: at most 2 x 2 x batch x heads x length x head size per block.

    Example:
        >>> cache = KeyValueCache()
        >>> key = torch.ones(1, 2, 5, 4)
        >>> keys, values = cache.update(key, key, 0)
        >>> cache.crop(3)
        >>> cache.get_seq_length(0), cache.get_seq_length(1)
        (3, 0)
    """

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, size) keys and values of one block; return all it has."""
        start = self.get_seq_length(layer_idx)
        stop = start + key.shape[2]
        if layer_idx not in self._buffers or stop > self._buffers[layer_idx][0].shape[2]:
            self._buffers[layer_idx] = (self._grown(key, layer_idx, 0), self._grown(value, layer_idx, 1))
        keys, values = self._buffers[layer_idx]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        self._lengths[layer_idx] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions block `layer_idx` (from 0) holds."""
        return self._lengths.get(layer_idx, 0)

    def crop(self, length: int) -> None:
        """Forget every position from `length` on, in every block."""
        self._lengths = {index: min(held, length) for index, held in self._lengths.items()}

    def _grown(self, new: Tensor, layer_idx: int, which: int) -> Tensor:
        held = self.get_seq_length(layer_idx)
        batch, heads, length, size = new.shape
        buffer = new.new_empty(batch, heads, max(2 * (held + length), 64), size)
        if held:
            buffer[:, :, :held] = self._buffers[layer_idx][which][:, :, :held]
        return buffer


def _prepare_nothing(hidden: Tensor, start: int) -> int:
    return start


def _run_plainly(layer: nn.Module, hidden: Tensor, shared: Any, cache: KeyValueCache) -> Tensor:
    return layer(hidden, shared, cache)


@dataclass(frozen=True)
class Parts:
    """What the losses and decoders need of a model; `adapter` finds it, or build it by hand.

    A sub-model of depth n is `head(norm(h_n))`, h_n the residual stream after block n. The loss and the
    report need `layers`, `norm` and `head`; the decoders also `embed`, `prepare` and `run`.

    Args:
        layers: The N blocks.
        norm: The final norm, shared by all exits.
        head: The head, shared by all exits, with `weight` (V, D).
        embed: (input_ids (batch, new), start) -> h_0 (batch, new, D), where `start` is the position of
            the first new token.
        run: (layer, hidden (batch, new, D), shared, cache) -> hidden after the block. The block must
            append its keys and values by `cache.update(key, value, layer_idx)` and attend causally.
            By default `layer(hidden, shared, cache)`.
        prepare: (hidden, start) -> whatever the blocks share at these positions (rotary angles, masks),
            given to `run` as `shared`. By default `start` itself.
        logit_scale: Factor on the logits.
        logit_softcap: c in c tanh(logits / c), or None.
    """

    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    embed: Callable[[Tensor, int], Tensor]
    run: Callable[[nn.Module, Tensor, Any, KeyValueCache], Tensor] = _run_plainly
    prepare: Callable[[Tensor, int], Any] = _prepare_nothing
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Read un-normed states (..., D) of any exit as logits (..., V)."""
        logits = self.head(self.norm(hidden)) * self.logit_scale
        if self.logit_softcap is None:
            return logits
        return torch.tanh(logits / self.logit_softcap) * self.logit_softcap


def adapter(model: nn.Module | Parts) -> Parts:
    """Find the parts of a causal language model.

    Knows Hugging Face's Llama, Mistral, Qwen 2 and 3, Gemma and Gemma 2, GPT-2 and GPT-NeoX. Parts are
    returned as they are, so every function of this package takes either.

    Args:
        model: The model, with its language-model head.

    Returns:
        Its parts, sharing all parameters.

    Raises:
        TypeError: If the model is an encoder-decoder, or of a family not in the list.
        ValueError: If its attention is neither "sdpa" nor "eager".
    """
    if isinstance(model, Parts):
        return model
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"model must be a decoder-only language model, got encoder-decoder {type(model).__name__}"
        )
    family = getattr(config, "model_type", None)
    if family not in _FAMILIES or getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise TypeError(
            f"model must be a causal language model of one of {sorted(_FAMILIES)} "
            f"(for any other pass Parts made by hand), got {type(model).__name__} of type {family!r}"
        )
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"model must be loaded with attn_implementation 'sdpa' or 'eager', got {attention!r}"
        )
    return _hugging_face_parts(model, config, _FAMILIES[family])


def _hugging_face_parts(model: Any, config: Any, names: _Names) -> Parts:
    backbone = getattr(model, names.backbone)
    layers = getattr(backbone, names.layers)
    table = getattr(backbone, names.embed)
    # Gemma scales its embedding: in the forward pass of older releases, in the table of newer ones.
    scales_outside = config.model_type.startswith("gemma") and not hasattr(table, "embed_scale")
    windows = {id(layer): _sliding_window(config, index) for index, layer in enumerate(layers)}

    def embed(input_ids: Tensor, start: int) -> Tensor:
        hidden = table(input_ids)
        if scales_outside:
            hidden = hidden * torch.tensor(config.hidden_size**0.5, dtype=hidden.dtype)
        if hasattr(backbone, "wpe"):
            hidden = hidden + backbone.wpe(_positions(hidden, start))
        return hidden

    def prepare(hidden: Tensor, start: int) -> dict[str, Any]:
        position_ids = _positions(hidden, start)
        masks = {window: _causal_mask(hidden, start, window) for window in set(windows.values())}
        shared: dict[str, Any] = {"masks": masks, "position_ids": position_ids}
        if hasattr(backbone, "rotary_emb"):
            shared["position_embeddings"] = backbone.rotary_emb(hidden, position_ids)
        return shared

    def run(layer: nn.Module, hidden: Tensor, shared: dict[str, Any], cache: KeyValueCache) -> Tensor:
        arguments = {key: value for key, value in shared.items() if key != "masks"}
        mask = shared["masks"][windows[id(layer)]]
        output = layer(hidden, attention_mask=mask, **{names.cache: cache}, **arguments)
        return output[0] if isinstance(output, tuple) else output

    return Parts(
        layers=layers,
        norm=getattr(backbone, names.norm),
        head=model.get_output_embeddings(),
        embed=embed,
        run=run,
        prepare=prepare,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )


def _sliding_window(config: Any, index: int) -> int | None:
    """How far back block `index` sees, None for everything."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return window if types[index] == "sliding_attention" else None
    return window if getattr(config, "use_sliding_window", True) else None


def _positions(hidden: Tensor, start: int) -> Tensor:
    return torch.arange(start, start + hidden.shape[1], device=hidden.device).unsqueeze(0)


def _causal_mask(hidden: Tensor, start: int, window: int | None) -> Tensor | None:
    """Additive mask (1, 1, new, start + new), None where one new token may see everything."""
    new = hidden.shape[1]
    if new == 1 and (window is None or start < window):
        return None
    query = torch.arange(start, start + new, device=hidden.device).unsqueeze(1)
    key = torch.arange(start + new, device=hidden.device)
    hidden_from_view = key > query
    if window is not None:
        hidden_from_view = hidden_from_view | (key <= query - window)
    mask = torch.zeros(new, start + new, dtype=hidden.dtype, device=hidden.device)
    return mask.masked_fill(hidden_from_view, torch.finfo(hidden.dtype).min)[None, None]
