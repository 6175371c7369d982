"""Reading short mathematical answers, in LaTeX or plain, into trees; nothing is ever evaluated as code.

A tree is a list: `["rat", p, q]`, `["sym", name]`, `["const", name]`, `["word", text]`, `["add", ...]`,
`["mul", ...]`, `["pow", base, exponent]`, `["fn", name, ...]`, `["pm", centre, spread]`, `["eq", left, right]`,
`["seq", "(", ")", ...]` (lists have brackets `"", ""`, sets `"{", "}"`), `["matrix", row, ...]` with rows
`["seq", "", "", ...]`.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Tree = list[Any]

_TOKEN = re.compile(
    r"(?P<thousands>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?)|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\(?:[A-Za-z]+|.))"
    r"|(?P<word>[A-Za-z]{4,}|pi|yes|no|odd|sin|cos|tan|log|ln|exp|and|or)|(?P<letter>[A-Za-z])|(?P<other>\S)"
)
_DERIVATIVE = re.compile(r"\\frac\{d(?:\^\d)?[A-Za-z]?\}\{d[A-Za-z]|\bd[A-Za-z]?\s*/\s*d[A-Za-z]")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
_FUNCTIONS |= {"ln", "log", "exp"}
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "e": "e", "i": "i"}
_GREEK = set(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "theta",
        "lambda",
        "mu",
        "nu",
        "rho",
        "sigma",
        "tau",
        "phi",
        "chi",
        "psi",
        "omega",
    ]
)
_GREEK |= {"Delta", "Gamma", "Omega", "Phi", "Sigma", "varphi"}
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_OPEN = {"(": ")", "[": "]", "\\{": "\\}"}
_MOST_CHARACTERS, _MOST_DEPTH = 400, 40


class _Unreadable(Exception):
    pass


def parse(text: str) -> Tree | None:
    """Read an answer, or return None where it is no mathematics that is understood here."""
    if len(text) > _MOST_CHARACTERS or _DERIVATIVE.search(text):  # a derivative is no quotient
        return None
    try:
        return _Parser(text).whole()
    except (_Unreadable, RecursionError, ZeroDivisionError):
        return None


def rational(tree: Tree) -> Fraction | None:
    """The exact value of a tree of rational numbers, if it is one and of bearable size."""
    kind, *rest = tree
    if kind == "rat":
        return Fraction(rest[0], rest[1])
    if kind not in ("add", "mul", "pow"):
        return None
    values = [rational(item) for item in rest]
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    if kind == "add":
        return sum(known, Fraction(0))
    if kind == "mul":
        return math.prod(known, start=Fraction(1))
    base, exponent = known
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or abs(exponent) * size > 4096 or (base == 0 and exponent <= 0):
        return None
    return base**exponent.numerator


def approximate(tree: Tree) -> complex | None:
    """A tree's value in floating point, at fixed values of its symbols; None if there is none."""
    try:
        value = _approximate(tree)
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return None
    return value if cmath.isfinite(value) else None


_FLOAT: dict[str, Callable[..., complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "exp": cmath.exp,
    "ln": cmath.log, "log": lambda x: cmath.log(x) / cmath.log(10), "logbase": lambda x, b: cmath.log(x) / cmath.log(b),
    "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
    "abs": abs,
}  # fmt: skip
_FLOAT_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j}


def _approximate(tree: Tree) -> complex:
    kind, *rest = tree
    if kind == "rat":
        return complex(rest[0] / rest[1])
    if kind == "const":
        return complex(_FLOAT_CONSTANTS[rest[0]])
    if kind == "sym":  # a value of its own for every name, the same in every process
        return complex(
            1.1 + sum((place + 1) * ord(letter) for place, letter in enumerate(rest[0])) % 997 / 613
        )
    if kind == "fn":
        arguments = [_approximate(item) for item in rest[1:]]
        if rest[0] in ("factorial", "binomial"):
            return _counted(rest[0], [argument.real for argument in arguments])
        return complex(_FLOAT[rest[0]](*arguments))
    values = [_approximate(item) for item in rest]
    if kind == "add":
        return sum(values, 0j)
    if kind == "mul":
        return math.prod(values, start=1 + 0j)
    return complex(values[0] ** values[1])  # "pow"; the rest has no single value


def _counted(name: str, arguments: list[float]) -> complex:
    if name == "factorial":
        return complex(math.gamma(arguments[0] + 1))
    n, k = arguments
    return complex(math.gamma(n + 1) / (math.gamma(k + 1) * math.gamma(n - k + 1)))


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = [(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(text)]
        self.place = self.depth = 0

    # --- tokens ---

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise _Unreadable
        self.place += 1
        return token

    # --- grammar ---

    def whole(self) -> Tree:
        items = self.items()
        if self.peek():
            raise _Unreadable
        return items[0] if len(items) == 1 else ["seq", "", "", *items]

    def items(self) -> list[Tree]:
        """What stands between commas."""
        items = [self.relation()]
        while self.peek() in (",", ";", "and", "or"):
            self.take()
            if self.peek() in ("and", "or"):  # "1, 2, and 3"
                self.take()
            items.append(self.relation())
        return items

    def relation(self) -> Tree:
        left = self.sum()
        if self.peek() == "=":
            self.take()
            return ["eq", left, self.sum()]
        return left

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise _Unreadable
        terms: list[Tree] = []
        if self.peek() in ("\\pm", "±"):
            centre: Tree = ["rat", 0, 1]
        else:
            terms.append(self.product())
            while self.peek() in ("+", "-"):
                negative = self.take() == "-"
                term = self.product()
                terms.append(_negated(term) if negative else term)
            centre = terms[0] if len(terms) == 1 else ["add", *terms]
        if self.peek() in ("\\pm", "±"):
            self.take()
            centre = ["pm", centre, self.product()]
        self.depth -= 1
        return centre

    def product(self) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        factors = [self.power()]
        while True:
            token = self.peek()
            if token in _TIMES:
                self.take()
                factors.append(self.signed_power())
            elif token in ("/", "\\div"):
                self.take()
                factors.append(_inverse(self.signed_power()))
            elif self.starts_factor():
                factors.append(self.power())
            else:
                break
        tree = factors[0] if len(factors) == 1 else ["mul", *factors]
        return _negated(tree) if negative else tree

    def signed_power(self) -> Tree:
        if self.peek() == "-":
            self.take()
            return _negated(self.signed_power())
        return self.power()

    def starts_factor(self) -> bool:
        token, kind = self.peek(), self.kind()
        if kind == "command":
            return token[1:] in _FUNCTIONS | _CONSTANTS.keys() | _GREEK or token in (
                "\\frac",
                "\\sqrt",
                "\\binom",
                "\\text",
            )
        return (
            kind in ("number", "thousands", "letter")
            or (kind == "word" and token not in ("and", "or"))
            or token in ("(", "{")
        )

    def power(self) -> Tree:
        base = self.primary()
        while self.peek() in ("^", "!", "**"):
            if self.take() == "!":
                base = ["fn", "factorial", base]
            else:
                base = ["pow", base, self.exponent()]
        return base

    def exponent(self) -> Tree:
        if self.peek() == "-":
            self.take()
            return _negated(self.exponent())
        return self.group() if self.peek() == "{" else self.primary()

    def primary(self) -> Tree:
        token, kind = self.peek(), self.kind()
        if kind in ("number", "thousands"):
            return self.number()
        if kind == "letter":
            self.take()
            return ["const", token] if token in ("e", "i") else self.subscripted(token)
        if kind == "word":
            return self.word()
        if token in _OPEN:
            self.take()
            return self.bracketed(token)
        if token == "{":
            return self.group()
        if token == "|":
            self.take()
            inside = self.sum()
            self.take("|")
            return ["fn", "abs", inside]
        if kind == "command":
            return self.command()
        raise _Unreadable

    def bracketed(self, opened: str) -> Tree:
        self.split_thousands()
        items = self.items()
        closed = self.take()
        if closed not in (")", "]", "\\}") or (opened == "\\{") != (closed == "\\}"):
            raise _Unreadable
        if len(items) == 1 and (opened, closed) == ("(", ")"):
            return items[0]
        return ["seq", opened.lstrip("\\"), closed.lstrip("\\"), *items]

    def split_thousands(self) -> None:
        """In brackets commas separate: (1,234) is a pair."""
        depth, ahead = 1, self.place
        while ahead < len(self.tokens) and depth:
            kind, token = self.tokens[ahead]
            depth += (token in _OPEN) - (token in (")", "]", "\\}"))
            if kind == "thousands":
                parts = [("number", part) for part in token.split(",")]
                spread = [piece for part in parts for piece in (("other", ","), part)][1:]
                self.tokens[ahead : ahead + 1] = spread
            ahead += 1

    def number(self) -> Tree:
        whole = self.tokens[self.place][0]
        text = self.take().replace(",", "")
        if self.peek() == "_":  # a numeral in another base is not its digits
            self.take()
            return ["sym", f"{text}_{self.name()}"]
        if len(text) > 300:
            raise _Unreadable
        value = Fraction(text)
        tree: Tree = ["rat", value.numerator, value.denominator]
        if "." not in text and whole == "number" and self.peek() == "\\frac":
            start = self.place
            part = self.command()
            share = rational(part)
            if part[0] == "mul" and share is not None and 0 < share < 1:  # 1\frac{1}{2} is a mixed number
                return ["add", tree, part]
            self.place = start
        return tree

    def word(self) -> Tree:
        token = self.take()
        if token in _FUNCTIONS:
            return self.function(token)
        if token == "sqrt":
            self.take("(")
            return ["pow", self.bracketed("("), ["rat", 1, 2]]
        if token in _CONSTANTS:
            return ["const", _CONSTANTS[token]]
        return ["word", token]

    def command(self) -> Tree:
        name = self.take()[1:]
        if name == "frac":
            return ["mul", self.argument(), _inverse(self.argument())]
        if name == "sqrt":
            degree: Tree = ["rat", 2, 1]
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return ["pow", self.argument(), _inverse(degree)]
        if name == "binom":
            return ["fn", "binomial", self.argument(), self.argument()]
        if name == "text":
            text = self.name()
            letter = text.strip("()")
            return ["sym", letter] if len(letter) == 1 else ["word", text]  # the choice (B) is B
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _CONSTANTS:
            return ["const", _CONSTANTS[name]]
        if name in _GREEK:
            return self.subscripted(name)
        if name == "begin":
            return self.matrix()
        raise _Unreadable

    def function(self, name: str) -> Tree:
        exponent: Tree | None = None
        base: Tree | None = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.exponent()
            else:
                base = self.argument()
        if base is not None and name != "log":
            raise _Unreadable
        if exponent == ["rat", -1, 1]:  # the inverse function, not the reciprocal
            name, exponent = f"arc{name}", None
            if name not in _FUNCTIONS:
                raise _Unreadable
        bounded = self.peek() in ("(", "{")  # \sin(x)y is a product
        factors = [self.power()]
        while not bounded and self.starts_argument():
            factors.append(self.power())
        argument = factors[0] if len(factors) == 1 else ["mul", *factors]
        tree: Tree = ["fn", name, argument] if base is None else ["fn", "logbase", argument, base]
        return tree if exponent is None else ["pow", tree, exponent]

    def starts_argument(self) -> bool:
        token = self.peek()
        return self.kind() in ("number", "letter") or token[1:] in _CONSTANTS or token == "\\frac"

    def matrix(self) -> Tree:
        name = self.name()
        if name not in ("matrix", "pmatrix", "bmatrix"):  # bars are a determinant
            raise _Unreadable
        rows: list[Tree] = [["seq", "", ""]]
        if self.peek() == "\\\\":
            raise _Unreadable
        while True:
            rows[-1].append(self.sum())
            token = self.take()
            if token == "\\\\":
                if self.peek() != "\\end":
                    rows.append(["seq", "", ""])
                    continue
                token = self.take()
            if token == "\\end":
                break
            if token != "&":
                raise _Unreadable
        if self.name() != name:
            raise _Unreadable
        return ["matrix", *rows]

    def argument(self) -> Tree:
        r"""A group, or one character: \frac12 is a half."""
        if self.peek() == "{":
            return self.group()
        kind, token = self.kind(), self.peek()
        if kind == "number" and len(token) > 1 and token.isdigit():
            self.tokens[self.place : self.place + 1] = [("number", token[0]), ("number", token[1:])]
        return self.primary()

    def group(self) -> Tree:
        self.take("{")
        inside = self.sum()
        self.take("}")
        return inside

    def name(self) -> str:
        """What stands between braces, or the next token, as it is written."""
        if self.peek() != "{":
            return self.take()
        self.take("{")
        parts = []
        while self.peek() != "}":
            parts.append(self.take())
        self.take("}")
        return "".join(parts)

    def subscripted(self, name: str) -> Tree:
        if self.peek() == "_":
            self.take()
            name = f"{name}_{self.name()}"
        return ["sym", name]


def _negated(tree: Tree) -> Tree:
    return ["rat", -tree[1], tree[2]] if tree[0] == "rat" else ["mul", ["rat", -1, 1], tree]


def _inverse(tree: Tree) -> Tree:
    return ["pow", tree, ["rat", -1, 1]]
