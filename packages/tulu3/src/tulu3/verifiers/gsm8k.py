"""Grade-school sums: the last number of the output."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from tulu3.verifiers.base import checked_label, checked_prediction

_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+)")
_MINUS = str.maketrans(
    dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\u2010\u2011\uff0d\ufe63", "-")
)  # dashes and hyphens
# A separator between digits: a comma, bare or in LaTeX, or a thin space in front of three digits.
_SEPARATOR = re.compile(r"(?<=\d)(?:,|\{,\}|(?:\\[,!:;]|[\u2009\u202f\u00a0]|,\\!)(?=\d{3}(?!\d)))(?=\d)")

_CURRENCY = re.compile(r"(?<=[-+])\\?\$(?=[\d.])")  # -$5 is -5


class Gsm8kVerifier:
    r"""Accept if the last number of the prediction is the label, as text.

    Separators between digits go first, then the last match of `[-+]?(\d*\.\d+|\d+)` is compared as a lower-case
    string (arXiv 2411.15124, section 6.1, and the published verifier). Beyond that verifier, which would read -5 with
    a typographic minus as 5 and 1{,}234 as 234, these are read as what they are. A prediction without a number
    is compared whole.

    Args:
        numeric: Compare values instead of text: 72.0 then equals 72, and +5 equals 5.

    Examples:
        >>> verifier = Gsm8kVerifier()
        >>> verifier("So she has 1,234 eggs in 3 boxes. The answer is $1,234.", "1234")
        1.0
        >>> verifier("The answer is 72.0", "72"), Gsm8kVerifier(numeric=True)("The answer is 72.0", 72)
        (0.0, 1.0)
    """

    def __init__(self, *, numeric: bool = False) -> None:
        self.numeric = numeric

    def __call__(self, prediction: str, label: Any) -> float:
        """Score 1 or 0.

        Args:
            prediction: The model's output.
            label: The number, or text that ends with it.

        Returns:
            1.0 if accepted, else 0.0.

        Raises:
            ValueError: If the label is empty.
            TypeError: If the prediction is not text.
        """
        found, wanted = _last(checked_prediction(prediction)), _last(checked_label(label))
        if self.numeric and _NUMBER.fullmatch(found) and _NUMBER.fullmatch(wanted):
            return float(_value(found) == _value(wanted))
        return float(found == wanted)


def _last(text: str) -> str:
    text = _SEPARATOR.sub("", _CURRENCY.sub("", text.translate(_MINUS)))
    numbers = _NUMBER.findall(text)
    return str(numbers[-1] if numbers else text.strip()).lower()


def _value(number: str) -> Fraction | str:
    # Python refuses to read thousands of digits; a model can write them.
    return Fraction(number) if len(number) < 1000 else number
