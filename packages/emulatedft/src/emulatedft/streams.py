"""A language model reading a growing text, of which it keeps the keys and values."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Model = Any
"""A Hugging Face causal language model, a `CachedModel`, or any callable from token ids to logits."""


RECURRENT = {
    "conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent",
    "compressed_sparse_attention", "heavily_compressed_attention", "reference_sliding_attention",
}  # fmt: skip
"""Layers of transformers' models whose state cannot be cropped; not all such models say so of themselves."""


@dataclass(frozen=True)
class CachedModel:
    """A model of your own with a cache of your own.

    Args:
        forward: Maps new token ids (batch, new) and the cache of all before them (None at first) to
            logits (batch, new, V) and the cache with the new ones in it.
        crop: Maps a cache and a length to the cache of the first `length` positions.

    Examples:
        >>> table = torch.eye(5)  # says the last token again
        >>> def forward(new, seen):
        ...     seen = new if seen is None else torch.cat([seen, new], dim=1)
        ...     return table[new], seen
        >>> model = CachedModel(forward, crop=lambda seen, length: seen[:, :length])
        >>> logits, seen = model.forward(torch.tensor([[1, 2]]), None)
        >>> logits.argmax(-1)
        tensor([[1, 2]])
    """

    forward: Callable[[Tensor, Any], tuple[Tensor, Any]]
    crop: Callable[[Any, int], Any]


@dataclass(frozen=True)
class AdapterOff:
    """A model with an adapter, read as it is without: the same weights, a cache of its own.

    Args:
        model: A Hugging Face causal language model with a `disable_adapter()` context, as PEFT's models have.
    """

    model: Any

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return bool(getattr(self.model, "training", False))


class Text:
    """Token ids that grow at the end, in room that doubles: appending costs what is new, not what is there.

    Args:
        prompt: (batch, length) token ids.
        mask: (batch, length), false at padding; None without padding.
    """

    def __init__(self, prompt: Tensor, mask: Tensor | None) -> None:
        self.length, self.padded = prompt.shape[1], mask is not None
        self._ids = prompt.long()  # a byte would not hold every token
        # Without padding this is a view of ones that are there already, at every step.
        self._seen = torch.ones_like(self._ids) if mask is None else mask.long()

    @property
    def ids(self) -> Tensor:
        """(batch, length) token ids; a view, which later changes may overwrite."""
        return self._ids[:, : self.length]

    def copy(self, start: int = 0) -> Tensor:
        """(batch, length - start) the token ids from `start` on, for somebody who may keep them."""
        return self.ids[:, start:].clone(memory_format=torch.contiguous_format)

    @property
    def seen(self) -> Tensor:
        """(batch, length), 0 at padding and 1 elsewhere; a view."""
        return self._seen[:, : self.length]

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Put (batch, new) tokens after the text."""
        start, self.length = self.length, self.length + tokens.shape[1]
        if self.length > self._ids.shape[1]:
            room = (len(tokens), 2 * self.length - start)
            self._ids = torch.cat([self._ids[:, :start], tokens.new_empty(room)], dim=1)
            self._seen = torch.cat([self._seen[:, :start], self._seen.new_ones(room)], dim=1)
        self._ids[:, start : self.length] = tokens
        self.padded = self.padded or mask is not None
        if self.padded:
            self._seen[:, start : self.length] = 1 if mask is None else mask

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.length = min(self.length, length)


class Stream:
    """One model and the text it reads.

    Args:
        model: The model.
        prompt: (batch, length) token ids.
        mask: (batch, length), false at padding; None without padding.
        vocab_size: Logits of later tokens are cut off.
    """

    def __init__(self, model: Model, prompt: Tensor, mask: Tensor | None, vocab_size: int | None) -> None:
        self.prompt_length, self.vocab_size = prompt.shape[1], vocab_size
        self.text = Text(prompt, None if mask is None or bool(mask.all()) else mask)
        self.reader = _reader(model)
        self.calls = 0
        self._read = 0  # positions in the reader's cache
        if self.text.padded and not self.reader.takes_mask:
            raise ValueError(
                "attention_mask must hold no padding for a model that is not a Hugging Face model"
            )
        if getattr(model, "training", False):
            named = model.model if isinstance(model, AdapterOff) else model
            warnings.warn(f"{type(named).__name__} is in training mode: call .eval() first", stacklevel=4)

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Put (batch, new) tokens after the text."""
        # Who takes no mask reads what is hidden; after the text it does no harm, and elsewhere it is refused.
        self.text.append(tokens, mask if self.reader.takes_mask else None)

    def crop(self, length: int) -> None:
        """Keep `length` tokens after the prompt."""
        self.text.crop(self.prompt_length + length)
        self._forget(self.text.length)

    def logits(self, keep: int) -> Tensor:
        """Logits (batch, keep, V) at the last `keep` positions; reads what has not been read."""
        ids = self.text.ids
        self._forget(self.text.length - keep)
        logits = self.reader.read(self.text, self._read, keep)
        self._read = self.text.length if self.reader.keeps else 0
        self.calls += 1
        if logits.dim() != 3 or logits.shape[:2] != (len(ids), keep):
            raise ValueError(
                f"a model must return logits (batch, length, V) = ({len(ids)}, {keep}, V), "
                f"got {tuple(logits.shape)}"
            )
        return logits.to(ids.device)[..., : self.vocab_size]

    def _forget(self, length: int) -> None:
        if self._read > length:
            self.reader.crop(self._read, length)
            self._read = length


class _Reader(Protocol):
    """How one kind of model is called; `keeps` says whether it remembers what it read."""

    keeps: bool
    takes_mask: bool

    def read(self, text: Text, start: int, keep: int) -> Tensor:
        """Logits (batch, keep, V) at the end of the text, of which the first `start` tokens are cached."""

    def crop(self, length: int, new_length: int) -> None:
        """Forget the positions from `new_length` to `length`."""


class _PlainReader:
    keeps = False
    takes_mask = False

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model = model

    def read(self, text: Text, start: int, keep: int) -> Tensor:
        output = self.model(text.copy())
        return _only(getattr(output, "logits", output), keep)

    def crop(self, length: int, new_length: int) -> None:
        """Nothing is kept."""


class _CachedReader:
    keeps = True
    takes_mask = False

    def __init__(self, model: CachedModel) -> None:
        self.model, self.cache = model, None

    def read(self, text: Text, start: int, keep: int) -> Tensor:
        logits, self.cache = self.model.forward(text.copy(start), self.cache)
        return _only(logits, keep)

    def crop(self, length: int, new_length: int) -> None:
        self.cache = self.model.crop(self.cache, new_length) if new_length else None


class _HuggingFaceReader:
    keeps = True
    takes_mask = True

    def __init__(self, model: Any, adapter: bool = True) -> None:
        # Adapters pass everything through, so ask the model below what it is and what it understands.
        below = model.get_base_model() if hasattr(model, "get_base_model") else model
        _check_hugging_face(model, below)
        self.model: Any = model
        self.context: Any = nullcontext if adapter else model.disable_adapter
        self.cache: Any = None
        self.understands = inspect.signature(below.forward).parameters.keys()
        # transformers 5 renames the argument on the way.
        self.cache_name = "cache" if "cache" in self.understands else "past_key_values"

    def read(self, text: Text, start: int, keep: int) -> Tensor:
        from transformers import DynamicCache

        if self.cache is None:
            # Without the model's configuration it keeps whole windows, so that it can always be cropped.
            self.cache = DynamicCache()
        options: dict[str, Any] = {
            self.cache_name: self.cache,
            "attention_mask": text.seen.to(self.model.device),
        }
        if text.padded and "position_ids" in self.understands:
            options["position_ids"] = (options["attention_mask"].cumsum(1) - 1).clamp_min(0)[:, start:]
        if "logits_to_keep" in self.understands:
            options["logits_to_keep"] = keep
        with self.context():
            output = self.model(input_ids=text.copy(start).to(self.model.device), use_cache=True, **options)
        return _only(output.logits, keep)

    def crop(self, length: int, new_length: int) -> None:
        if new_length == 0:
            self.cache = None
        else:
            self.cache.crop(new_length - length)


def _reader(model: Model) -> _Reader:
    if isinstance(model, CachedModel):
        return _CachedReader(model)
    if isinstance(model, AdapterOff):
        return _HuggingFaceReader(model.model, adapter=False)
    if hasattr(model, "config") and hasattr(model, "generate"):
        return _HuggingFaceReader(model)
    if callable(model):
        return _PlainReader(model)
    raise TypeError(
        "a model must be a Hugging Face causal language model, a CachedModel or a callable from token ids "
        f"to logits, got {type(model).__name__}"
    )


def _check_hugging_face(model: Any, below: Any) -> None:
    """Refuse what has no cache that can be cropped, or would be read wrongly in pieces."""
    name = type(below).__name__
    if getattr(below.config, "is_encoder_decoder", False):
        raise TypeError(f"models must be causal language models, got the encoder-decoder {name}")
    config = below.config.get_text_config() if hasattr(below.config, "get_text_config") else below.config
    recurrent = RECURRENT & set(getattr(config, "layer_types", None) or [])
    if getattr(below, "_is_stateful", False) or recurrent:
        raise ValueError(
            f"models must have caches that can be cropped, got {name}, which keeps a recurrent state; "
            "pass lambda ids: model(ids, use_cache=False).logits to recompute instead"
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "adapters must not put virtual tokens before the text (prompt or prefix tuning), which would be repeated "
            "at every step; pass lambda ids: model(ids, use_cache=False).logits to recompute instead"
        )


def _only(logits: Tensor, keep: int) -> Tensor:
    return logits[:, -keep:] if isinstance(logits, Tensor) and logits.dim() == 3 else _refuse(logits)


def _refuse(logits: object) -> Tensor:
    what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise TypeError(f"a model must return logits as a tensor (batch, length, V), got {what}")
