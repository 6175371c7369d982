"""Where in an output the answer stands, and how answers are written alike."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
# In front of "=": several answers, or a relation other than equality.
_OTHERS = re.compile(r"[<>!,;]|\\(?:[lgn]e|not|approx)(?![A-Za-z])|\b(?:not|or|and)\b")
_MINERVA = re.compile(
    r"Final Answer:\s*The final answer is(.*?)(?:\.?\s*I hope it is correct|$)", re.MULTILINE
)

# Characters that mean the same as some plain ones.
_CHARACTERS = {
    "−": "-", "－": "-", "﹣": "-", "–": "-", "‐": "-", "‑": "-", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "±": r"\pm ", "∪": r"\cup ", "°": r"^\circ ", "²": "^2", "³": "^3",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "⁄": "/", "％": "%", "，": ",", "（": "(", "）": ")", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "",
}  # fmt: skip
_TRANSLATION = str.maketrans(_CHARACTERS)

_UNITS = [
    "units?",
    "square",
    "cubic",
    "ways",
    "integers",
    "dollars?",
    "mph",
    "inch(?:es)?",
    "ft",
    "hours?",
    "hrs?",
    "km",
    "cm",
    "mm",
    "kg",
    "gm?",
    "mg",
    "lbs?",
    "points?",
    "feet",
    "foot",
    "minutes?",
    "min",
    "seconds?",
    "sec",
    "digits",
    "cents?",
    "degrees?",
    "pounds?",
    "met(?:er|re)s?",
    "miles?",
    "yards?",
    "days?",
    "weeks?",
    "years?",
    "meals",
    "edges",
    "students",
    "multiples",
    "percent",
    "euros?",
    "lit(?:er|re)s?",
    "apples",
    "sq",
    "radians?",
]
# Words and letters after a number that are no unit, but part of the answer: amounts, alternatives, bounds, variables.
_NO_UNIT = re.compile(
    r"(?i:(?:ten|hundred|thousand|(?:m|b|tr)illion|dozen|pair|third|quarter|fifth|sixth|eighth|(?:ten|hundred|thousand)th)s?"
    r"|hal(?:f|ves)|score|gross|squared|cubed|factorial|choose|mod|base|root|sqrt|pi|if|or|and|to|more|less|fewer|than|at"
    r"|most|least|about|times|divided|by|plus|minus|over|between|not|above|below|only)|[^mgshlLCFKJNVWA]"
)
_PLAIN_UNIT = re.compile(rf"(?<=[\d)}}])\s*((?:(?:{'|'.join(_UNITS)})(?:\^\{{?[23]\}}?)?(?:/|\s+|$)\s*)+)$")
_TEXT_UNIT = re.compile(r"(?<=[\d)}!])\s*((?:\\text\{[^{}]*\}(?:\^\{?[23]\}?)?\s*/?\s*)+)$")


def last_boxed(text: str) -> tuple[str | None, bool]:
    r"""Content of the last \boxed{} or \fbox{}, and whether that box is closed.

    Args:
        text: A model's output.

    Returns:
        The content with its braces matched, None without a box; and False where the last box is never closed,
        as in an output that was cut.

    Examples:
        >>> last_boxed(r"first \boxed{3}, no, \boxed{\frac{1}{2}}")
        ('\\frac{1}{2}', True)
        >>> last_boxed(r"so it is \boxed{\frac{1}{2")
        (None, False)
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None, True
    start = boxes[-1].end()
    if not text.startswith("{", start):  # \boxed 42, up to the end of the formula
        bare = re.match(r"[^$\n{}]+", text[start:])
        return (bare.group().strip().rstrip(".") if bare else None), bare is not None
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start + 1 : place].strip(), True
    return None, False


def minerva_answer(text: str) -> str | None:
    """Text after "Final Answer: The final answer is", up to "I hope it is correct" or the end of the line.

    The first one, as in the published verifier: a model prompted with examples runs on into problems of its own.

    Args:
        text: A model's output.

    Returns:
        The answer as it is written, or None.

    Examples:
        >>> minerva_answer("Final Answer: The final answer is $7$. I hope it is correct.")
        '$7$'
    """
    match = _MINERVA.search(text)
    return match.group(1).strip().removesuffix(".") if match else None


def candidates(text: str) -> list[str]:
    """All that an output offers as its answer: box, Minerva form; without these the last formula, or the whole.

    A last box that is never closed is a cut answer: then neither an earlier box nor anything else counts as one.
    """
    boxed, closed = last_boxed(text)
    found = [answer for answer in (boxed, minerva_answer(text)) if answer is not None]
    if found or not closed:
        return found
    plain = re.sub(r"\\[()\[\]]|\$\$", "$", text.replace(r"\$", ""))
    pieces = plain.split("$")
    return [pieces[-2]] if len(pieces) > 2 else [text]


def prepare(answer: str) -> str:
    r"""Write an answer plainly: one minus, no sizing, no spacing commands, no thousands separators, one \frac."""
    text = answer.translate(_TRANSLATION).replace("\n", " ").strip().replace(r"\$", "")
    text = re.sub(r"\\boxed\s*\{(.*)\}|\$", lambda match: match.group(1) or "", text)
    text = re.sub(r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])", "", text)
    text = re.sub(r"\\([lgn])eq(?:slant)?(?![A-Za-z])", r"\\\1e", text)
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"\\[lr]?vert(?![A-Za-z])", "|", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:mathrm|textrm|operatorname|text)\s*\{\s*([ei])\s*\}", r" \1 ", text)  # the constants
    text = re.sub(
        r"\\(?:mathrm|textbf|textrm|mathbf|mbox|operatorname|textit|mathit|text)(?=\s*\{)\s*", r"\\text", text
    )
    text = re.sub(
        r"^\\text\s*\{\s*(-?[\d.,/]+)\s+([A-Za-z][^{}]*)\}$", r"\1\\text{ \2}", text
    )  # \text{5 apples}
    text = re.sub(r"(?<!\\)\\!", "", text)
    text = re.sub(r"(?<=\d)\s*\\q?quad(?![A-Za-z])\s*(?=[\d.])", ";", text)
    text = re.sub(r"(?<!\\)\\[,:; ]|\\(?:quad|qquad)(?![A-Za-z])|~", " ", text)
    text = re.sub(r"(?<![\d.,_^])[1-9]\d{0,2}(?:(?:\{,\}|\s)\d{3})+(?!\d)", _joined, text)
    text = re.sub(r"(?<![\d/.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])", _mixed, text)
    text = re.sub(r"(?<=\d)(?<!_\d)\s+(?=[\d.])", ";", text)
    text = re.sub(r"\s*\\?%|\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degree", "", text)
    text = re.sub(r"\\text\{\s*(and|or)\s*\}|(?<=[\d)}\s])(and|or)(?=[\d(\\\s-])", ",", text)
    text = re.sub(r"^[A-Za-z](?:\([A-Za-z]\))?\s*\\in(?![A-Za-z])", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\d.A-Za-z])", _scientific, text)
    return re.sub(r"\s+", " ", re.sub(r"[.,;:]+$", "", text.strip())).strip()


def split_unit(text: str) -> tuple[str, str]:
    r"""Take the unit off the end of a prepared answer: (value, unit), the unit in one spelling.

    Examples:
        >>> split_unit(r"12 \text{ cm}^2"), split_unit("12 square inches"), split_unit("x + 1")
        (('12', 'cm^2'), ('12', 'inch^2'), ('x + 1', ''))
    """
    match = _TEXT_UNIT.search(text) or _PLAIN_UNIT.search(text)
    if match is None or not _is_unit(match.group(1)):
        return text, ""
    unit = re.sub(r"\\text|[{}]", " ", match.group(1)).lower()
    unit = re.sub(r"\s*\^\s*", "^", re.sub(r"\s+", " ", unit).strip().strip(".").strip())
    for power, names in (("2", "square|sq"), ("3", "cubic|cu")):
        unit = re.sub(rf"\b(?:{names})\.? (\w+)", rf"\1^{power}", unit)
    unit = re.sub(r"\b(inch)es\b|\b(\w{3,}?)s\b", lambda m: m.group(1) or m.group(2), unit)
    unit = unit.replace("feet", "foot").replace("units", "unit")
    return text[: match.start()].strip(), "" if unit == "unit" else unit


def normal_string(text: str, *, named: bool = False) -> str:
    r"""A prepared answer in the normal form of Hendrycks et al. (arXiv 2103.03874): strings to compare.

    No spaces, no \text around words, braces around the arguments of \frac and \sqrt, a fraction for a/b and for 0.5,
    no prefix such as "x=" unless `named`: between two equations the variable counts.
    """
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).replace(" ", "")
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    if not named:
        text = re.sub(r"^[A-Za-z]{1,2}=(?=[^=]*$)", "", text)
    text = re.sub(r"\\sqrt([^{\[])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\])(?=\{)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([^{\\])", r"\1{\2}", text)
    text = re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
    return r"\frac{1}{2}" if text == "0.5" else text


def minerva_string(text: str) -> str:
    """An answer as Lewkowycz et al. (arXiv 2206.14858, appendix D) normalise it: what follows the last "=", bare.

    Unless something else stands in front: another solution, or a relation that is no equality.
    """
    before, _, after = text.rpartition("=")
    text = text if _OTHERS.search(before) else after
    text = re.sub(r"\b(?:an|a) (?=\S)", "", text)
    return re.sub(r"\\(?:textbf|overline|text)\s*\{([^{}]*)\}", r" \1 ", text).strip()


def _is_unit(text: str) -> bool:
    words = re.sub(r"\\text|\^\s*\{?[23]\}?", " ", text)
    if re.search(r"[\d,;=<>+]", words):
        return False
    return not any(_NO_UNIT.fullmatch(word) for word in re.findall(r"[A-Za-z]+", words))


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match.group())


def _mixed(match: re.Match[str]) -> str:
    whole, part, parts = match.groups()
    return f"({whole}+{part}/{parts})"


def _scientific(match: re.Match[str]) -> str:
    return f"{match.group(1)}\\cdot 10^{{{int(match.group(2))}}}"
