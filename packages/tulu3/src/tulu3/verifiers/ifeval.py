"""Precise instruction following: one of 25 constraints, named by the label."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from tulu3.verifiers.base import checked_prediction, final_answer
from tulu3.verifiers.constraints import CONSTRAINTS, LANGUAGE


class IfevalVerifier:
    """Accept if the answer keeps the constraint that the label names (arXiv 2411.15124, section 6.1).

    A label is `{"func_name": ..., **arguments}`, as in the data set RLVR-IFeval, or that as JSON. Arguments that
    are None are passed over, since tables have a column for every argument. Reasoning and answer tags go first
    (`final_answer`); an answer of which nothing is left keeps no constraint.

    Args:
        detect_language: Text to language code, for the constraint `validate_response_language` (for example
            `langdetect.detect`).

    Examples:
        >>> verifier = IfevalVerifier()
        >>> verifier("I give you [time] and [place].", {"func_name": "validate_placeholders", "N": 2, "word": None})
        1.0
        >>> verifier("Loud", '{"func_name": "validate_lowercase"}')
        0.0
    """

    def __init__(self, *, detect_language: Callable[[str], str] | None = None) -> None:
        self.detect_language = detect_language

    def __call__(self, prediction: str, label: Any) -> float:
        """Score 1 or 0.

        Args:
            prediction: The model's output.
            label: A mapping, or JSON; it is not changed.

        Returns:
            1.0 if the constraint is kept, else 0.0.

        Raises:
            ValueError: If the label has no known `func_name`, lacks an argument or has one that is out of range, or
                asks for a language without `detect_language`.
            TypeError: If the prediction is not text.
        """
        name, arguments = _read(label)
        text = final_answer(checked_prediction(prediction))
        if name == LANGUAGE:
            return float(self._speaks(text, arguments))
        constraint = CONSTRAINTS[name]
        try:
            inspect.signature(constraint).bind(text, **arguments)
        except TypeError as error:
            raise ValueError(f"label must have the arguments of {name!r}: {error}, got {arguments}") from None
        kept = constraint(
            text, **arguments
        )  # before an empty text is refused, so that a bad label always shows
        return float(bool(text) and kept)

    def _speaks(self, text: str, arguments: Mapping[str, Any]) -> bool:
        if self.detect_language is None:
            raise ValueError(f"detect_language must be given for {LANGUAGE!r}, got None")
        if set(arguments) != {"language"}:
            raise ValueError(f"label must have 'language' for {LANGUAGE!r}, got {dict(arguments)}")
        # Detectors raise where there is no letter.
        return any(map(str.isalpha, text)) and self.detect_language(text) == arguments["language"]


def _read(label: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(label, str):
        try:
            label = json.loads(label)
        except ValueError:
            raise ValueError(f"label must be a mapping, or JSON, got {label!r}") from None
    if not isinstance(label, Mapping):
        raise ValueError(f"label must be a mapping with 'func_name', got {label!r}")
    arguments = {key: value for key, value in label.items() if value is not None}
    name = arguments.pop("func_name", None)
    if name != LANGUAGE and name not in CONSTRAINTS:
        raise ValueError(f"label's func_name must be one of {sorted([*CONSTRAINTS, LANGUAGE])}, got {name!r}")
    return name, arguments
