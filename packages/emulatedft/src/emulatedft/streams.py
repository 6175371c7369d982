"""A language model reading a growing text, of which it keeps the keys and values."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Model = Any
"""A Hugging Face causal language model, a `CachedModel`, or any callable from token ids to logits."""


@dataclass(frozen=True)
class CachedModel:
    """A model of your own with a cache of your own.

    Args:
        forward: Maps new token ids (batch, new) and the cache of all before them (None at first) to
            logits (batch, new, V) and the cache with the new ones in it.
        crop: Maps a cache and a length to the cache of the first `length` positions.

    Example:
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


class Stream:
    """One model and the text it reads.

    Args:
        model: The model.
        prompt: (batch, length) token ids.
        mask: (batch, length), false at padding; None without padding.
        vocab_size: Logits of later tokens are cut off.
    """

    def __init__(self, model: Model, prompt: Tensor, mask: Tensor | None, vocab_size: int | None) -> None:
        self.text, self.prompt_length, self.vocab_size = prompt, prompt.shape[1], vocab_size
        self.mask = None if mask is None or bool(mask.all()) else mask.bool()
        self.reader = _reader(model)
        self.calls = 0
        self._read = 0  # positions in the reader's cache
        if self.mask is not None and not self.reader.takes_mask:
            raise ValueError(
                "attention_mask must hold no padding for a model that is not a Hugging Face model"
            )
        if getattr(model, "training", False):
            warnings.warn(f"{type(model).__name__} is in training mode: call .eval() first", stacklevel=4)

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Put (batch, new) tokens after the text."""
        self.text = torch.cat([self.text, tokens], dim=1)
        if self.mask is not None:
            new = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
            self.mask = torch.cat([self.mask, new], dim=1)

    def crop(self, length: int) -> None:
        """Keep `length` tokens after the prompt."""
        self.text = self.text[:, : self.prompt_length + length]
        self.mask = None if self.mask is None else self.mask[:, : self.text.shape[1]]
        self._forget(self.text.shape[1])

    def logits(self, keep: int) -> Tensor:
        """Logits (batch, keep, V) at the last `keep` positions; reads what has not been read."""
        length = self.text.shape[1]
        self._forget(length - keep)
        logits = self.reader.read(self.text, self.mask, self._read, keep)
        self._read = length if self.reader.keeps else 0
        self.calls += 1
        if logits.dim() != 3 or logits.shape[:2] != (self.text.shape[0], keep):
            raise ValueError(
                f"a model must return logits (batch, length, V) = ({self.text.shape[0]}, {keep}, V), "
                f"got {tuple(logits.shape)}"
            )
        return logits.to(self.text.device)[..., : self.vocab_size]

    def _forget(self, length: int) -> None:
        if self._read > length:
            self.reader.crop(self._read, length)
            self._read = length


class _Reader(Protocol):
    """How one kind of model is called; `keeps` says whether it remembers what it read."""

    keeps: bool
    takes_mask: bool

    def read(self, text: Tensor, mask: Tensor | None, start: int, keep: int) -> Tensor:
        """Logits (batch, keep, V) at the end of the text, of which the first `start` tokens are cached."""

    def crop(self, length: int, new_length: int) -> None:
        """Forget the positions from `new_length` to `length`."""


class _PlainReader:
    keeps = False
    takes_mask = False

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model = model

    def read(self, text: Tensor, mask: Tensor | None, start: int, keep: int) -> Tensor:
        output = self.model(text)
        return _only(getattr(output, "logits", output), keep)

    def crop(self, length: int, new_length: int) -> None:
        """Nothing is kept."""


class _CachedReader:
    keeps = True
    takes_mask = False

    def __init__(self, model: CachedModel) -> None:
        self.model, self.cache = model, None

    def read(self, text: Tensor, mask: Tensor | None, start: int, keep: int) -> Tensor:
        logits, self.cache = self.model.forward(text[:, start:], self.cache)
        return _only(logits, keep)

    def crop(self, length: int, new_length: int) -> None:
        self.cache = self.model.crop(self.cache, new_length) if new_length else None


class _HuggingFaceReader:
    keeps = True
    takes_mask = True

    def __init__(self, model: Any) -> None:
        name = type(model).__name__
        if getattr(model.config, "is_encoder_decoder", False):
            raise TypeError(f"models must be causal language models, got the encoder-decoder {name}")
        if getattr(model, "_is_stateful", False):
            raise ValueError(
                f"models must have caches that can be cropped, got {name}, which keeps a recurrent state; "
                "pass lambda ids: model(ids, use_cache=False).logits to recompute instead"
            )
        self.model: Any = model
        self.cache: Any = None
        # Adapters pass everything through, so ask the model below what it understands.
        wrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.understands = inspect.signature(wrapped.forward).parameters.keys()
        # transformers 5 renames the argument on the way.
        self.cache_name = "cache" if "cache" in self.understands else "past_key_values"

    def read(self, text: Tensor, mask: Tensor | None, start: int, keep: int) -> Tensor:
        from transformers import DynamicCache

        if self.cache is None:
            # Without the model's configuration it keeps whole windows, so that it can always be cropped.
            self.cache = DynamicCache()
        seen = torch.ones_like(text) if mask is None else mask.long()
        options: dict[str, Any] = {self.cache_name: self.cache, "attention_mask": seen.to(self.model.device)}
        if mask is not None and "position_ids" in self.understands:
            options["position_ids"] = (options["attention_mask"].cumsum(1) - 1).clamp_min(0)[:, start:]
        if "logits_to_keep" in self.understands:
            options["logits_to_keep"] = keep
        new = text[:, start:].to(self.model.device)
        output = self.model(input_ids=new, use_cache=True, **options)
        return _only(output.logits, keep)

    def crop(self, length: int, new_length: int) -> None:
        if new_length == 0:
            self.cache = None
        else:
            self.cache.crop(new_length - length)


def _reader(model: Model) -> _Reader:
    if isinstance(model, CachedModel):
        return _CachedReader(model)
    if hasattr(model, "config") and hasattr(model, "generate"):
        return _HuggingFaceReader(model)
    if callable(model):
        return _PlainReader(model)
    raise TypeError(
        "a model must be a Hugging Face causal language model, a CachedModel or a callable from token ids "
        f"to logits, got {type(model).__name__}"
    )


def _only(logits: Tensor, keep: int) -> Tensor:
    return logits[:, -keep:] if isinstance(logits, Tensor) and logits.dim() == 3 else _refuse(logits)


def _refuse(logits: object) -> Tensor:
    what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise TypeError(f"a model must return logits as a tensor (batch, length, V), got {what}")
