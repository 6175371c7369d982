"""Verifiers as a reward function of trl's trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tulu3.verifiers.base import Verifier
from tulu3.verifiers.gsm8k import Gsm8kVerifier
from tulu3.verifiers.ifeval import IfevalVerifier
from tulu3.verifiers.mathematics import MathVerifier, StrictMathVerifier

REGISTRY: Mapping[str, Callable[[], Verifier]] = MappingProxyType(
    {
        "gsm8k": Gsm8kVerifier,
        "math": MathVerifier,
        "strict_math": StrictMathVerifier,
        "ifeval": IfevalVerifier,
    }
)
"""Verifiers by the names that the published data gives them; call one to make it."""


def as_trl_reward(
    verifiers: Mapping[str, Verifier] | Sequence[str] | Verifier,
    *,
    label_field: str = "ground_truth",
    dataset_field: str = "dataset",
    scale: float = 10.0,
) -> Callable[..., list[float]]:
    """A reward function for `reward_funcs=` of trl's GRPO and RLOO trainers.

    r(x, y) = alpha sum_i v_i(y): each prompt's verifiers, named in its column `dataset`, judge against its labels in
    the column `ground_truth`; accepted answers add up with weight 1 (arXiv 2411.15124, section 6.2: alpha = 10).

    Args:
        verifiers: Verifiers by the names that the data uses, or names of `REGISTRY`, or one verifier that judges
            every prompt.
        label_field: Column of labels. Where `dataset` is a list of several names, a list of as many labels.
        dataset_field: Column of a verifier's name, or of a list of names. It is not read with one verifier.
        scale: alpha.

    Returns:
        A function `(prompts, completions, **columns) -> list of floats`. Completions are texts or lists of
        messages, of which the last assistant's counts.

    Raises:
        ValueError: At once if a name is not in `REGISTRY`, there is no verifier, or scale is not finite and positive;
            when called if a column is missing or has another length, a row names an unknown verifier, or has more
            labels than verifiers or fewer, or a verifier's score is not in [0, 1].
        TypeError: If a verifier cannot be called, or a completion is neither text nor messages.

    Examples:
        >>> reward = as_trl_reward(["gsm8k", "ifeval"])
        >>> columns = {"dataset": ["gsm8k"], "ground_truth": ["4"]}
        >>> reward(prompts=["2 + 2?"], completions=["That is 4."], **columns)
        [10.0]
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    known = _verifiers(verifiers)

    def verifiable_reward(
        prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **columns: Any
    ) -> list[float]:
        texts = [_text(completion) for completion in completions]
        labels = _column(columns, label_field, len(texts))
        if not isinstance(known, dict):
            return [scale * _score(known, text, label) for text, label in zip(texts, labels, strict=True)]
        names = _column(columns, dataset_field, len(texts))
        return [
            scale * sum(_score(verify, text, label) for verify, label in _judges(known, name, label))
            for text, name, label in zip(texts, names, labels, strict=True)
        ]

    return verifiable_reward


def _verifiers(given: Mapping[str, Verifier] | Sequence[str] | Verifier) -> dict[str, Verifier] | Verifier:
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Sequence):
        if unknown := [name for name in given if name not in REGISTRY]:
            raise ValueError(f"verifiers must be names of {sorted(REGISTRY)}, got {unknown}")
        given = {name: REGISTRY[name]() for name in given}
    if not isinstance(given, Mapping):
        if not callable(given):
            raise TypeError(f"verifiers must be a mapping, names, or a verifier, got {type(given).__name__}")
        return given
    if not given:
        raise ValueError("verifiers must name at least one, got none")
    for name, verifier in given.items():
        if not callable(verifier):
            raise TypeError(f"verifiers[{name!r}] must be callable, got {type(verifier).__name__}")
    return dict(given)


def _score(verifier: Verifier, text: str, label: Any) -> float:
    score = float(verifier(text, label))
    if not 0 <= score <= 1:
        name = getattr(verifier, "__name__", type(verifier).__name__)
        raise ValueError(f"verifiers must give scores in [0, 1], got {score} from {name}")
    return score


def _judges(known: dict[str, Verifier], names: Any, labels: Any) -> list[tuple[Verifier, Any]]:
    if isinstance(names, str):
        names, labels = [names], [labels]
    if isinstance(labels, (str, Mapping)) or not isinstance(labels, Sequence) or len(labels) != len(names):
        raise ValueError(f"labels must be one for each of the verifiers {list(names)}, got {labels!r}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"dataset must name verifiers of {sorted(known)}, got {unknown}")
    return [(known[name], label) for name, label in zip(names, labels, strict=True)]


def _column(columns: Mapping[str, Any], name: str, length: int) -> Sequence[Any]:
    if name not in columns:
        raise ValueError(f"columns must have {name!r}, got {sorted(columns)}")
    column: Sequence[Any] = columns[name]
    if len(column) != length:
        raise ValueError(f"column {name!r} must have {length} rows, as completions, got {len(column)}")
    return column


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(turn, Mapping) for turn in completion):
        raise TypeError(f"completions must be texts or lists of messages, got {completion!r}")
    said = [turn.get("content") for turn in completion if turn.get("role") == "assistant"]
    content = said[-1] if said else None
    if isinstance(content, Sequence) and not isinstance(content, str):  # content in parts
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""
