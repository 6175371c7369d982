"""The 25 verifiable constraints of IFEval (arXiv 2311.07911) as functions of a text; each returns True or False."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?|!)\s")


def _count(name: str, value: Any) -> int:
    number = (
        int(value) if isinstance(value, float) and value.is_integer() else value
    )  # a column with gaps is floats
    try:
        number = operator.index(number)
    except TypeError:
        raise ValueError(f"label's {name} must be an integer, got {value!r}") from None
    if number < 0:
        raise ValueError(f"label's {name} must be at least 0, got {number}")
    return number


def _words(name: str, value: Any) -> list[str]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(word, str) for word in value)
    ):
        raise ValueError(f"label's {name} must be a list of texts, got {value!r}")
    if not value or "" in value:  # that every text would keep, or none
        raise ValueError(f"label's {name} must have words, none of them empty, got {value!r}")
    return list(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"label's {name} must be a text, got {value!r}")
    return value


def _compared(found: int, N: Any, quantifier: Any, slack: int | None = None) -> bool:
    wanted = _count("N", N)
    if quantifier == "at least":
        return found >= wanted
    if quantifier == "at most":
        return found <= wanted
    if quantifier == "around":
        return abs(found - wanted) <= (max(round(0.1 * wanted), 1) if slack is None else slack)
    raise ValueError(f"label's quantifier must be 'at least', 'around' or 'at most', got {quantifier!r}")


def _filled(found: list[str]) -> int:
    return sum(bool(part.strip()) for part in found)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def keywords(text: str, keyword_list: Any) -> bool:
    """All keywords occur, in any case."""
    return all(word.lower() in text.lower() for word in _words("keyword_list", keyword_list))


def keyword_frequency(text: str, word: Any, N: Any) -> bool:
    """A word occurs exactly N times, in any case."""
    wanted = _text("word", word).lower()
    return len(re.findall(rf"(?<!\w){re.escape(wanted)}(?!\w)", text.lower())) == _count("N", N)


def forbidden_words(text: str, forbidden_words: Any) -> bool:
    """No forbidden word occurs, in any case, inside of another word either."""
    return not any(word.lower() in text.lower() for word in _words("forbidden_words", forbidden_words))


def letter_frequency(text: str, letter: Any, N: Any) -> bool:
    """A letter occurs exactly N times, in this case."""
    if len(_text("letter", letter)) != 1:
        raise ValueError(f"label's letter must be one character, got {letter!r}")
    return text.count(letter) == _count("N", N)


def paragraph_count(text: str, N: Any) -> bool:
    """N paragraphs stand between dividers `* * *`, none of them empty."""
    text = "\n".join(line.strip() for line in text.splitlines())
    paragraphs = text.split("* * *")
    return len(paragraphs) == _count("N", N) and all(paragraph.strip() for paragraph in paragraphs)


def word_count(text: str, N: Any, quantifier: Any) -> bool:
    """At least, at most or around (a tenth, at least one) N words."""
    return _compared(len(text.split()), N, quantifier)


def sentence_count(text: str, N: Any, quantifier: Any) -> bool:
    """At least, at most or around (one more or less) N sentences."""
    return _compared(len(_SENTENCE_END.split(text)), N, quantifier, slack=1)


def paragraphs(text: str, N: Any, first_word: Any, i: Any) -> bool:
    """N paragraphs stand between blank lines, the i-th (from 1) begins with a word."""
    number, place = _count("N", N), _count("i", i)
    if not 1 <= place <= number:
        raise ValueError(f"label's i must lie in 1..N = {number}, got {place}")
    parts = text.split("\n\n")
    return len(parts) == number and parts[place - 1].strip().startswith(_text("first_word", first_word))


def postscript(text: str, postscript_marker: Any) -> bool:
    """A postscript's marker occurs, and something follows it."""
    _, found, rest = text.partition(_text("postscript_marker", postscript_marker))
    return bool(found and rest.strip())


def placeholders(text: str, N: Any) -> bool:
    """At least N [placeholders]."""
    return _filled(re.findall(r"\[([^\[\]\n]+)\]", text)) >= _count("N", N)


def bullet_points(text: str, N: Any) -> bool:
    """Exactly N lines begin with `*` or `-`."""
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == _count("N", N)


def title(text: str) -> bool:
    """A <<title>> occurs."""
    rest = [line.partition("<<")[2] for line in text.splitlines()]
    return any(part[: max(part.rfind(">>"), 0)].strip("<> \t") for part in rest)


def choice(text: str, options: Any) -> bool:
    """One of the options occurs."""
    return any(option in text for option in _words("options", options))


def highlighted_sections(text: str, N: Any) -> bool:
    """At least N *highlights*."""
    return _filled(re.findall(r"\*([^*\n]+)\*", text)) >= _count("N", N)


def sections(text: str, N: Any, section_splitter: Any) -> bool:
    """N sections, each after a splitter; an empty part before the first is none."""
    parts = text.split(_text("section_splitter", section_splitter))
    return len(parts[1:] if parts[0] == "" else parts) == _count("N", N)


def json_format(text: str) -> bool:
    """The whole is valid JSON."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def repeat_prompt(text: str, original_prompt: Any) -> bool:
    """The prompt comes first, unchanged."""
    return text.startswith(_text("original_prompt", original_prompt))


def two_responses(text: str) -> bool:
    """Two different responses stand on either side of exactly one `******`."""
    parts = text.split("******")
    first, second = (part.strip() for part in (parts if len(parts) == 2 else ("", "")))
    return bool(first and second) and first != second


def uppercase(text: str) -> bool:
    """No lower-case letter."""
    return text == text.upper()


def lowercase(text: str) -> bool:
    """No upper-case letter."""
    return text == text.lower()


def capital_words(text: str, N: Any, quantifier: Any) -> bool:
    """At least, at most or around N words of capital letters only."""
    return _compared(len(re.findall(r"\b[A-Z]+\b", text)), N, quantifier)


def ends_with(text: str, end_phrase: Any) -> bool:
    """A phrase ends the text."""
    return text.endswith(_text("end_phrase", end_phrase))


def quotation(text: str) -> bool:
    """Double quotation marks around the whole."""
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def no_commas(text: str) -> bool:
    """No comma."""
    return "," not in text


LANGUAGE = "validate_response_language"

CONSTRAINTS: Mapping[str, Callable[..., bool]] = MappingProxyType(
    {
        "verify_keywords": keywords,
        "verify_keyword_frequency": keyword_frequency,
        "validate_forbidden_words": forbidden_words,
        "verify_letter_frequency": letter_frequency,
        "verify_paragraph_count": paragraph_count,
        "validate_word_constraint": word_count,
        "verify_sentence_constraint": sentence_count,
        "validate_paragraphs": paragraphs,
        "verify_postscript": postscript,
        "validate_placeholders": placeholders,
        "verify_bullet_points": bullet_points,
        "validate_title": title,
        "validate_choice": choice,
        "validate_highlighted_sections": highlighted_sections,
        "validate_sections": sections,
        "validate_json_format": json_format,
        "validate_repeat_prompt": repeat_prompt,
        "validate_two_responses": two_responses,
        "validate_uppercase": uppercase,
        "validate_lowercase": lowercase,
        "validate_frequency_capital_words": capital_words,
        "validate_end": ends_with,
        "validate_quotation": quotation,
        "validate_no_commas": no_commas,
    }
)
"""The constraints by the names that the published data set gives them, all but the language."""
