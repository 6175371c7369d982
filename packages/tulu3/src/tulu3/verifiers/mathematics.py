"""Competition mathematics: boxed answers, Minerva's closing line, and what is equal to them."""

from __future__ import annotations

from typing import Any

from tulu3._checks import checked_positive
from tulu3.verifiers.answers import (
    candidates,
    last_boxed,
    minerva_answer,
    minerva_string,
    normal_string,
    prepare,
    split_unit,
)
from tulu3.verifiers.base import checked_label, checked_prediction
from tulu3.verifiers.latex import parse
from tulu3.verifiers.symbolic import Comparer

_MOST_CHARACTERS = 1000


class MathVerifier:
    r"""Accept if an answer that the output offers is the label, as a string or as mathematics.

    Candidates are the last \boxed{} or \fbox{} and the text of "Final Answer: The final answer is ... I hope it is
    correct."; without these what stands between the last two `$`; without these the whole output. A candidate is
    accepted if it equals the label after Hendrycks' string normalisation, or if their difference is symbolically
    zero (arXiv 2411.15124, section 6.1, and the published verifier).

    Answers are read by a small parser, never evaluated as code. Numbers are compared exactly, most wrong answers
    fall at a floating-point check, and sympy simplifies the rest in a process of its own that is ended after
    `timeout` seconds; this works in threads, too. Other odd forms have these verdicts: thousands separators, a
    typographic minus, percent, degree and dollar signs are read over; a unit may be left out, but not be another one,
    and amounts, bounds and alternatives ("5 million", "5 or more") are no units; spaces separate, unless in front of
    three digits; 1 1/2 and 1\frac{1}{2} are mixed numbers; (1,234) is a pair; sets have no order, pairs and lists
    have; of several boxes the last counts; a last box that is never closed is a wrong answer.

    Args:
        symbolic: Ask sympy (extra `math`). Without it exact rational arithmetic and strings decide.
        timeout: Seconds for one symbolic comparison.

    Raises:
        ImportError: If `symbolic` and sympy is not installed.
        ValueError: If timeout is not positive.

    Examples:
        >>> verifier = MathVerifier(symbolic=False)
        >>> verifier(r"so we get $\boxed{\dfrac{1}{2}\text{ cm}}$", "0.5")
        1.0
        >>> verifier(r"\boxed{3}, or rather \boxed{4}", "3")
        0.0
    """

    def __init__(self, *, symbolic: bool = True, timeout: float = 5.0) -> None:
        self._comparer = Comparer(symbolic=symbolic, timeout=checked_positive("timeout", timeout))

    def __call__(self, prediction: str, label: Any) -> float:
        r"""Score 1 or 0.

        Args:
            prediction: The model's output.
            label: The answer, number or text; a lone \boxed{} around it is taken off.

        Returns:
            1.0 if accepted, else 0.0.

        Raises:
            ValueError: If the label is empty.
            TypeError: If the prediction is not text.
        """
        wanted = _bare(checked_label(label))
        return float(
            any(
                self.equivalent(answer, wanted) for answer in self._candidates(checked_prediction(prediction))
            )
        )

    def equivalent(self, answer: str, label: str) -> bool:
        """Whether two answers, already taken out of their outputs, are the same."""
        if max(len(answer), len(label)) > _MOST_CHARACTERS:  # no answer, and costly to search for one
            return answer.strip() == label.strip()
        first, second = prepare(answer), prepare(label)
        if not first or not second:
            return False
        named = "=" in first and "=" in second
        if normal_string(first, named=named) == normal_string(second, named=named):
            return True
        (first, unit), (second, other) = split_unit(first), split_unit(second)
        if unit and other and unit != other:
            return False
        if normal_string(first, named=named) == normal_string(second, named=named):
            return True
        left, right = parse(first), parse(second)
        return left is not None and right is not None and self._comparer.equal(left, right)

    def _candidates(self, text: str) -> list[str]:
        found = candidates(text)
        minerva = minerva_answer(text)
        # The closing line is prose: what stands in front of "=" and an article are not part of the answer.
        return found if minerva is None else [*found, minerva_string(prepare(minerva))]


class StrictMathVerifier(MathVerifier):
    r"""As `MathVerifier`, but only the Minerva form counts.

    Examples:
        >>> verifier = StrictMathVerifier(symbolic=False)
        >>> verifier("Final Answer: The final answer is $12$. I hope it is correct.", "12")
        1.0
        >>> verifier(r"\boxed{12}", "12")
        0.0
    """

    def _candidates(self, text: str) -> list[str]:
        answer = minerva_answer(text)
        return [] if answer is None else [answer, minerva_string(prepare(answer))]


def _bare(label: str) -> str:
    boxed, closed = last_boxed(label)
    return boxed if boxed is not None and closed and label.startswith("\\") else label
