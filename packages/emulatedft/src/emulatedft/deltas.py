"""What guides a model: pairs of a fine-tuned model and its reference, and the vocabulary all share."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from emulatedft.distribution import check_finite, check_top_p, combine
from emulatedft.streams import AdapterOff, Model, Stream, Text

Prompt = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Delta:
    """What fine-tuning did to a model: a reward log(ft / ref) to decode for (arXiv 2310.12962, section 3).

    Models are Hugging Face causal language models, `CachedModel`s, or callables from token ids (batch,
    length) to logits (batch, length, V). Those of Hugging Face get their inputs on their own device.

    Args:
        ft: The fine-tuned model.
        ref: The model it was fine-tuned from; None for the guided model itself.
        weight: Scale of the reward: 1 emulates fine-tuning, more amplifies it, less than 0 negates it. (A
            negated safety fine-tune is an unsafe model: see the README.)
        ft_prompt: Prompt of the fine-tuned model, where its template differs from the guided model's: token
            ids (batch, length) or (1, length), or a tokenizer's dictionary of `input_ids` and
            `attention_mask`, padded on the left. None takes the guided model's.
        ref_prompt: The same for the reference.

    Raises:
        ValueError: If the weight is not finite, or a prompt is not token ids or padded on the right.
        TypeError: If a model is not callable.

    Examples:
        >>> model = lambda ids: torch.zeros(*ids.shape, 9)
        >>> Delta(model, model, weight=0.5).weight
        0.5
    """

    ft: Model
    ref: Model | None
    weight: float = 1.0
    ft_prompt: Prompt | None = None
    ref_prompt: Prompt | None = None

    def __post_init__(self) -> None:
        for name, model in (("ft", self.ft), ("ref", self.ref)):
            known = callable(model) or hasattr(model, "forward") or isinstance(model, AdapterOff)
            if not known and not (name == "ref" and model is None):
                raise TypeError(f"{name} must be a language model, got {type(model).__name__}")
        if not isinstance(self.weight, int | float) or not math.isfinite(self.weight):
            raise ValueError(f"weight must be a finite number, got {self.weight}")
        if self.ref is None and self.ref_prompt is not None:
            raise ValueError("ref_prompt must be None where ref is None: the guided model has its own prompt")
        for name, prompt in (("ft_prompt", self.ft_prompt), ("ref_prompt", self.ref_prompt)):
            if prompt is not None:
                check_prompt(name, *_ids_and_mask(prompt))

    @classmethod
    def from_adapter(
        cls,
        model: Model,
        weight: float = 1.0,
        *,
        ft_prompt: Prompt | None = None,
        ref_prompt: Prompt | None = None,
    ) -> Delta:
        """One model in memory for both: fine-tuned with its adapter (LoRA for instance) on, reference with it off.

        The two keep a cache each. The adapter that is active while decoding counts; after each step it is on or
        off as before. `delta.ref` may be the guided model too, to amplify what the adapter does.

        Args:
            model: A model of PEFT, or any Hugging Face causal language model with a `disable_adapter()` context.
            weight: Scale of the reward.
            ft_prompt: Prompt of the model with its adapter.
            ref_prompt: Prompt of the model without.

        Returns:
            The delta.

        Raises:
            ValueError: As for any delta; and when decoding starts, if the adapter is prompt or prefix tuning.
            TypeError: If the model has no `disable_adapter()`.
        """
        if not callable(getattr(model, "disable_adapter", None)):
            raise TypeError(
                f"model must have an adapter and disable_adapter(), as PEFT's, got {type(model).__name__}"
            )
        return cls(model, AdapterOff(model), weight, ft_prompt, ref_prompt)

    @property
    def has_own_prompt(self) -> bool:
        """Whether one of its models reads another prompt than the guided model."""
        return self.ft_prompt is not None or self.ref_prompt is not None


def check_vocab(*models_or_tokenizers: Any) -> int:
    """Make sure that token ids mean the same to all, and count those they share.

    Args:
        *models_or_tokenizers: Models (anything whose `config` has a `vocab_size`) and tokenizers (anything
            with `get_vocab()`). Models may be larger than the tokenizers: such rows are padding.

    Returns:
        The shared vocabulary's size, to pass as `vocab_size` where the models' own sizes differ.

    Raises:
        ValueError: If two tokenizers give an id to different strings, a model is smaller than the
            tokenizers, or models differ in size and no tokenizer says which rows are padding.
        TypeError: If an argument is neither.

    Warns:
        UserWarning: If the shared size cuts off tokens that only some tokenizers know.
    """
    tables, sizes = [], []
    for each in models_or_tokenizers:
        if hasattr(each, "get_vocab"):
            tables.append({index: string for string, index in each.get_vocab().items()})
        elif hasattr(each, "config"):
            config = each.config
            config = config.get_text_config() if hasattr(config, "get_text_config") else config
            sizes.append(int(config.vocab_size))
        else:
            raise TypeError(f"check_vocab takes models and tokenizers, got {type(each).__name__}")
    if not tables:
        if len(set(sizes)) != 1:
            raise ValueError(
                f"models must share one vocabulary, got sizes {sizes}; if the longer ones only have rows of "
                "padding, pass the tokenizers too"
            )
        return sizes[0]
    shared = min(max(table) + 1 for table in tables)
    for index in range(shared):
        strings = {table[index] for table in tables if index in table}
        if len(strings) > 1:
            raise ValueError(f"tokenizers must share their tokens, but id {index} is {sorted(strings)}")
    if sizes and min(sizes) < shared:
        raise ValueError(
            f"models must have a row for each of the {shared} shared tokens, got one with {min(sizes)}"
        )
    if any(max(table) >= shared for table in tables):
        warnings.warn(f"only the first {shared} tokens are known to all tokenizers", stacklevel=2)
    return shared


@dataclass(frozen=True)
class Reading:
    """Logits (batch, length, V) of all models at the same positions, and how to combine them."""

    base: Tensor
    fine_tuned: list[Tensor]
    references: list[Tensor | None]
    weights: list[float]
    top_p: float

    def __getitem__(self, positions: slice) -> Reading:
        """Part of the positions."""
        references = [None if ref is None else ref[:, positions] for ref in self.references]
        fine_tuned = [ft[:, positions] for ft in self.fine_tuned]
        return Reading(self.base[:, positions], fine_tuned, references, self.weights, self.top_p)

    def refuse(self) -> NoReturn:
        """Say why the emulated distribution is not one."""
        check_finite(self.base, [*self.fine_tuned, *(each for each in self.references if each is not None)])
        raise ValueError(f"weights must leave logits finite, got {self.weights}")

    def scores(self) -> Tensor:
        """The emulated distribution's logits."""
        return combine(self.base, self.fine_tuned, self.references, self.weights, self.top_p)


class Guides:
    """The models of all deltas, reading what the guided model writes.

    A model that several deltas use with the same prompt reads only once. `same` is the guided model's own
    stream, if it is at hand: as a reference it need not read again.
    """

    def __init__(
        self,
        deltas: Delta | Sequence[Delta],
        input_ids: Tensor,
        mask: Tensor | None,
        top_p: float = 1.0,
        vocab_size: int | None = None,
        base: Model | None = None,
    ) -> None:
        self.deltas, self.top_p = check_deltas(deltas), top_p
        self.vocab_size = vocab_size
        self.streams: list[Stream] = []
        self._checked = False
        known: list[tuple[Model, Prompt | None]] = []

        def index_of(model: Model, prompt: Prompt | None) -> int:
            for index, (other, its_prompt) in enumerate(known):
                if _same_model(model, other) and _same_prompt(prompt, its_prompt):
                    return index
            known.append((model, prompt))
            ids, own_mask = (input_ids, mask) if prompt is None else _ids_and_mask(prompt)
            stream = Stream(model, *_expand(ids, own_mask, input_ids), vocab_size)
            if prompt is not None and own_mask is None and stream.reader.takes_mask:
                warn_of_padding("a prompt of a Delta", ids)
            self.streams.append(stream)
            return len(known) - 1

        self.fine_tuned = [index_of(delta.ft, delta.ft_prompt) for delta in self.deltas]
        self.references = [
            None
            if delta.ref is None or (_same_model(delta.ref, base) and delta.ref_prompt is None)
            else index_of(delta.ref, delta.ref_prompt)
            for delta in self.deltas
        ]

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Let all read on."""
        for stream in self.streams:
            stream.append(tokens, mask)

    def crop(self, length: int) -> None:
        """Keep `length` tokens after the prompts."""
        for stream in self.streams:
            stream.crop(length)

    def reading(self, base_logits: Tensor, known: dict[int, Tensor] | None = None) -> Reading:
        """Put the guides' logits beside the guided model's; `known` has those of some streams."""
        keep, known = base_logits.shape[1], known or {}
        found = [
            known[index] if index in known else stream.logits(keep).to(base_logits.device)
            for index, stream in enumerate(self.streams)
        ]
        base_logits = base_logits[..., : self.vocab_size]
        if not self._checked:
            self._checked = True
            _check_widths([base_logits, *found], self.vocab_size)
            check_finite(base_logits, found)
        return Reading(
            base_logits,
            [found[index] for index in self.fine_tuned],
            [None if index is None else found[index] for index in self.references],
            [delta.weight for delta in self.deltas],
            self.top_p,
        )


class Ensemble:
    """The guided model and its guides, reading one text."""

    def __init__(
        self,
        base: Model,
        deltas: Delta | Sequence[Delta],
        input_ids: Tensor,
        mask: Tensor | None,
        top_p: float,
        vocab_size: int | None,
    ) -> None:
        check_top_p(top_p)
        check_vocab_size(vocab_size)
        self.base = Stream(base, input_ids, mask, vocab_size)
        # Texts of other models are often of characters, which double; and those models take no mask.
        if mask is None and self.base.reader.takes_mask:
            warn_of_padding("input_ids", input_ids)
        self.guides = Guides(deltas, input_ids, mask, top_p, vocab_size, base)

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Let all read on."""
        self.base.append(tokens, mask)
        self.guides.append(tokens, mask)

    def crop(self, length: int) -> None:
        """Keep `length` tokens after the prompts."""
        self.base.crop(length)
        self.guides.crop(length)

    @property
    def text(self) -> Text:
        """What the guided model reads."""
        return self.base.text

    def read(self, keep: int, known: dict[int, Tensor] | None = None) -> Reading:
        """All logits at the last `keep` positions."""
        return self.guides.reading(self.base.logits(keep), known)


def check_deltas(deltas: Delta | Sequence[Delta]) -> list[Delta]:
    """Turn one or several deltas into a list of at least one."""
    found = [deltas] if isinstance(deltas, Delta) else list(deltas)
    if not found:
        raise ValueError("deltas must hold at least one Delta, got none")
    for delta in found:
        if not isinstance(delta, Delta):
            raise TypeError(f"deltas must be Delta objects, got {type(delta).__name__}")
    return found


def check_vocab_size(vocab_size: int | None) -> None:
    """Refuse an empty vocabulary."""
    if vocab_size is not None:
        check_count("vocab_size", vocab_size)


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number of at least 1; NumPy's are numbers too."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}") from None
    if whole < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_prompt(name: str, ids: Tensor, mask: Tensor | None, left: bool = True) -> None:
    """Refuse what is not token ids (batch, length), and padding on the right where text is to follow."""
    for each, what in ((ids, name), (mask, f"the attention mask of {name}")):
        if not isinstance(each, Tensor) and not (each is mask and mask is None):
            raise TypeError(f"{what} must be a tensor, got {type(each).__name__}")
    if ids.dim() != 2 or ids.shape[1] == 0 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be integers of shape (batch, length) with length >= 1, "
            f"got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"the attention mask of {name} must have its shape {tuple(ids.shape)}, got {tuple(mask.shape)}"
        )
    if mask is not None and left and not bool((mask.bool()[:, -1:] & (mask.long().diff(dim=1) >= 0)).all()):
        raise ValueError(f"{name} must be padded on the left, got an attention mask with zeros after ones")


def warn_of_padding(name: str, prompt: Tensor) -> None:
    """Warn if some rows, not all, begin with one token twice: that is what padding on the left looks like."""
    if prompt.shape[1] < 2:
        return
    doubled = prompt[:, 0] == prompt[:, 1]
    for token in prompt[doubled, 0].unique().tolist():
        if not bool((prompt[:, 0] == token).all()):
            warnings.warn(
                f"some rows of {name} begin with token {token} repeated, as if padded with it: give its "
                "attention_mask too, or all of it is read as text",
                stacklevel=5,
            )


def _ids_and_mask(prompt: Prompt) -> tuple[Tensor, Tensor | None]:
    if isinstance(prompt, Tensor):
        return prompt, None
    return prompt["input_ids"], prompt.get("attention_mask")


def _same_model(first: Model, second: Model) -> bool:
    """Whether two are one, as the two references of one model with an adapter are."""
    if isinstance(first, AdapterOff) and isinstance(second, AdapterOff):
        return first.model is second.model
    return first is second


def _same_prompt(first: Prompt | None, second: Prompt | None) -> bool:
    if first is None or second is None:
        return first is second
    if first is second:
        return True
    (ids, mask), (other, its_mask) = _ids_and_mask(first), _ids_and_mask(second)
    if (mask is None) != (its_mask is None) or ids.device != other.device:
        return False
    return torch.equal(ids, other) and (mask is None or its_mask is None or torch.equal(mask, its_mask))


def _expand(ids: Tensor, mask: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """One prompt for all rows, on the device of the guided model's."""
    if ids.shape[0] not in (1, like.shape[0]):
        raise ValueError(
            f"prompts of a Delta must have 1 row or as many as input_ids ({like.shape[0]}), got {ids.shape[0]}"
        )
    rows = like.shape[0]
    return (
        ids.to(like.device).expand(rows, -1),
        None if mask is None else mask.to(like.device).expand(rows, -1),
    )


def _check_widths(logits: Sequence[Tensor], vocab_size: int | None) -> None:
    widths = [each.shape[-1] for each in logits]
    if vocab_size is None and len(set(widths)) > 1:
        raise ValueError(
            f"all models must share one vocabulary, got {widths[0]} tokens for the base and {widths[1:]} for the "
            "others; if the tokens are the same and only rows of padding differ, pass vocab_size (see check_vocab)"
        )
    if vocab_size is not None and min(widths) < vocab_size:
        raise ValueError(f"vocab_size must be at most {min(widths)}, the smallest model's, got {vocab_size}")
