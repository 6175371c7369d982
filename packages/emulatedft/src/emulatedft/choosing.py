"""How logits become tokens: warping, noise that belongs to a position, and the rule of rejection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from emulatedft.streams import Text

Warp = Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor] | Sequence[Any]
"""A map of logits (..., V); one of (ids (batch, length), scores (batch, V)) as transformers' are; or a list of such."""


class Warper:
    """Applies a warp of either kind, and bans tokens, whatever the shape of the logits.

    Args:
        warp: See `Warp`.
        suppress_tokens: Banned before the warp.

    Raises:
        TypeError: If the warp cannot be called with one or two arguments.
    """

    def __init__(self, warp: Warp | None, suppress_tokens: Sequence[int]) -> None:
        # A LogitsProcessorList is a list; one by one its members may also be of the other kind.
        steps: list[Any] = list(warp) if isinstance(warp, list | tuple) else [] if warp is None else [warp]
        self.steps = [(step, _reads_text(step)) for step in steps]
        self.suppressed = list(suppress_tokens)

    def __call__(self, logits: Tensor, text: Text) -> Tensor:
        """Map logits (batch, K, V) that follow the last K places of the text."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.suppressed:
            if not 0 <= min(self.suppressed) <= max(self.suppressed) < scores.shape[-1]:
                raise ValueError(
                    f"suppress_tokens must be in 0..{scores.shape[-1] - 1}, got {self.suppressed}"
                )
            scores = scores.index_fill(-1, torch.tensor(self.suppressed, device=scores.device), -torch.inf)
        elif self.steps and scores is logits:
            scores = scores.clone()  # a step may work in place, and the models' logits are needed again
        ids = text.copy() if any(reads_text for _, reads_text in self.steps) else text.ids
        for step, reads_text in self.steps:
            scores = _at_each_place(step, scores, ids) if reads_text else _alike(step(scores), scores.shape)
        return scores


class Chooser:
    """Draws tokens.

    Args:
        do_sample: Sample; else take the likeliest.
        warper: Maps logits first.
        generator: Source of randomness; torch's own if None.
    """

    def __init__(self, do_sample: bool, warper: Warper, generator: torch.Generator | None) -> None:
        self.do_sample, self.warper, self.generator = do_sample, warper, generator
        self._noise: dict[int, Tensor] = {}
        self._drawn = 0
        self._sound: Tensor | None = None

    def choose(self, scores: Tensor, text: Text, start: int) -> Tensor:
        """Tokens (batch, K) of logits (batch, K, V) at positions `start` and on, by each position's own noise."""
        scores = self.warper(scores, text)
        return self._best(scores + self._gumbel(scores, start) if self.do_sample else scores)

    def forget(self, start: int) -> None:
        """Drop the noise of positions before `start`."""
        self._noise = {position: noise for position, noise in self._noise.items() if position >= start}

    def draw(self, logits: Tensor, text: Text) -> Tensor:
        """Tokens (batch, K) of logits (batch, K, V), by fresh randomness."""
        scores = self.warper(logits, text)
        return self._best(scores + self._fresh(scores))

    def accept(
        self, draft: Tensor, draft_logits: Tensor, scores: Tensor, text: Text
    ) -> tuple[Tensor, Tensor]:
        """Which of the draft (batch, K) pass, and the draft with the others drawn anew."""
        proposed, wanted = (self.warper(logits, text).log_softmax(-1) for logits in (draft_logits, scores))
        ratio = (wanted - proposed).gather(-1, draft[..., None])[..., 0].exp()
        uniform = torch.rand(ratio.shape, generator=self.generator, device=ratio.device, dtype=ratio.dtype)
        passed = uniform < ratio
        residual = (wanted.exp() - proposed.exp()).clamp_min(0)
        # Equal distributions leave nothing but rounding, and then nothing fails.
        residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual.log(), wanted)
        return torch.where(passed, draft, self._best(residual + self._fresh(residual))), passed

    def check(self) -> None:
        """Refuse what has been chosen since the last check from logits that were not finite.

        Each choice notes it of itself without looking, so that a decoder may ask when it waits for values anyway.
        """
        sound, self._sound = self._sound, None
        if sound is not None and not bool(sound):
            raise ValueError(
                "logits of base, ft and ref must be finite at every position (the base's -inf for a banned token) "
                "and warp and suppress_tokens must leave a token, got NaN, inf or nothing to choose from"
            )

    def _best(self, scores: Tensor) -> Tensor:
        """The largest; which is not finite if any score is NaN or inf, or all are -inf."""
        best, tokens = scores.max(-1)
        sound = best.isfinite().all()
        self._sound = sound if self._sound is None else self._sound & sound
        return tokens

    def _gumbel(self, scores: Tensor, start: int) -> Tensor:
        """Noise (batch, K, V): that of a position is drawn once, in order, however often it is asked for."""
        count = scores.shape[1]
        for position in range(self._drawn, start + count):
            self._noise[position] = self._fresh(scores[:, 0])
            self._drawn = position + 1
        if count == 1:
            return self._noise[start][:, None]
        return torch.stack([self._noise[start + offset] for offset in range(count)], dim=1)

    def _fresh(self, like: Tensor) -> Tensor:
        return -torch.empty_like(like).exponential_(generator=self.generator).log()


def _at_each_place(step: Callable[[Tensor, Tensor], Tensor], scores: Tensor, ids: Tensor) -> Tensor:
    count, length = scores.shape[1], ids.shape[1]
    rows = [step(ids[:, : length - count + 1 + place], scores[:, place]) for place in range(count)]
    return torch.stack([_alike(row, scores[:, 0].shape) for row in rows], dim=1)


def _alike(found: Any, shape: torch.Size) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"warp must return logits of the shape it is given, {tuple(shape)}, got {what}")
    return found


def _reads_text(step: Any) -> bool:
    """Whether it is called with (ids, scores), as transformers' are, or with logits alone."""
    if not callable(step):
        raise TypeError(f"warp must be a callable or a list of callables, got {type(step).__name__}")
    called = step.forward if isinstance(step, torch.nn.Module) else step
    try:
        parameters = inspect.signature(called).parameters.values()
    except ValueError:  # written in C: takes logits, as torch's own functions do
        return False
    needed = [each for each in parameters if each.default is each.empty and each.kind in _POSITIONAL]
    if len(needed) > 2:
        names = [each.name for each in needed]
        raise TypeError(
            f"warp must take (logits) or (ids, scores), got {type(step).__name__} that takes {names}"
        )
    return len(needed) == 2


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
