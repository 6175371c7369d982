"""What a verifier is, and what is taken off a completion before it is judged."""

from __future__ import annotations

import math
import numbers
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Verifier(Protocol):
    """Anything that judges a prediction against a label: a function, or one of this package's classes.

    Nothing that a model writes may make it raise: what cannot be read is wrong, score 0. A label that cannot be used
    is the data set's fault and raises ValueError.
    """

    def __call__(self, prediction: str, label: Any) -> float:
        """Return a score in [0, 1]."""
        ...


def final_answer(prediction: str) -> str:
    """What is left of a completion without its reasoning: no `</think>` part, no answer tags, no role marker.

    Args:
        prediction: A model's output.

    Returns:
        The text after the last `</think>`, without `<answer>`, `</answer>` and `<|assistant|>`, stripped.

    Examples:
        >>> final_answer("<think>2 + 2, so</think> <answer>4</answer>")
        '4'
    """
    text = prediction.replace("<|assistant|>", "").split("</think>")[-1]
    return text.replace("<answer>", "").replace("</answer>", "").strip()


def checked_prediction(prediction: Any) -> str:
    """Return a prediction that is text."""
    if not isinstance(prediction, str):
        raise TypeError(f"prediction must be text, got {type(prediction).__name__}")
    return prediction


def checked_label(label: Any) -> str:
    """Return a label, number or text, as text that is not empty."""
    if isinstance(label, numbers.Real) and not math.isfinite(label):
        raise ValueError(f"label must be finite, got {label!r}")
    if label is not None and not isinstance(label, (str, numbers.Number)):
        raise ValueError(f"label must be a number or text, got {label!r}")
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # a column with gaps is floats
    text = "" if label is None else str(label).strip()
    if not text:
        raise ValueError(f"label must not be empty, got {label!r}")
    return text
