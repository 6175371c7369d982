"""What `armillary list` and `armillary show` print."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from armillary.catalog import Catalog, Method
from armillary.console import out, say
from armillary.errors import UsageError
from armillary.text import one_line

_GAP = 2


def choose(catalog: Catalog, word: str, family: str, everything: bool) -> Catalog:
    """The part of the catalogue that a person asks for.

    Args:
        catalog: All of it.
        word: What name, family, sentence or keywords must mention; empty for any.
        family: What the family's name must hold; empty for any.
        everything: Whether what is not installed belongs to it.

    Raises:
        UsageError: If that is nothing.
    """
    methods = {
        name: method
        for name, method in catalog.methods.items()
        if _mentions(method, word) and family.lower() in method.family.lower()
    }
    # Of what is not installed nothing but the name is known.
    missing = [name for name in catalog.missing if everything and not family and word.lower() in name]
    if methods or missing:
        return Catalog(methods, catalog.refused, tuple(missing))
    if catalog.methods and (word or family):
        raise UsageError(f"no method mentions {word or family!r}; `armillary list` shows all")
    raise UsageError("no method is installed; try: pip install sortedft")


def print_list(catalog: Catalog) -> None:
    """One line a method, under its family's name, cut to the terminal's width.

    Args:
        catalog: What to list.
    """
    columns = [*catalog.methods, *catalog.missing]
    name_width = max(map(len, columns)) + _GAP
    verdict_width = max([len(method.verdict) for method in catalog.methods.values()], default=0) + _GAP
    by_family = sorted(catalog.methods.values(), key=lambda method: (method.family.casefold(), method.name))
    for family, methods in groupby(by_family, key=lambda method: method.family):
        _line((family, "bold"))
        for method in methods:
            about = ". ".join(filter(None, [method.origin, method.summary]))
            _line(
                f"  {method.name:{name_width}}",
                (f"{method.verdict:{verdict_width}}", "green" if _all_hold(method) else "dim"),
                about,
            )
    if catalog.missing:
        _line(("not installed", "bold"))
        for name in catalog.missing:
            _line((f"  {name:{name_width}}pip install {name}", "dim"))
    for reason in catalog.refused.values():
        print(f"armillary: {reason}", file=sys.stderr)


def as_json(catalog: Catalog) -> str:
    """The catalogue for machines.

    Args:
        catalog: What to list.
    """
    facts: list[dict[str, Any]] = [
        {
            "name": method.name,
            "installed": True,
            "version": method.version,
            "distribution": method.distribution,
            "third_party": method.third_party,
            "family": method.family,
            "summary": method.summary,
            "verdict": method.verdict,
            "keywords": method.keywords,
            "links": method.links,
        }
        for method in catalog.methods.values()
    ]
    facts += [{"name": name, "installed": False} for name in catalog.missing]
    return json.dumps(facts, indent=1, ensure_ascii=False)


def print_method(method: Method, full: bool) -> None:
    """All that is known of one method without running it.

    Args:
        method: Which.
        full: With the whole table of its evidence.
    """
    say(out, (method.name, "bold"), f" {method.version}  ", (method.family, "dim"))
    say(out, method.summary, indent=2)
    facts = {"from": method.origin, "needs": ", ".join(method.requirements) or "nothing", **method.links}
    width = max(map(len, facts)) + _GAP
    for label, text in facts.items():
        if text:
            say(out, (f"{label.lower():{width}}", "dim"), text, indent=2)
    out.print()
    for line in _evidence(method.evidence or "No evidence is committed yet.", full):
        say(out, line, indent=2)


def _line(*parts: str | tuple[str, str]) -> None:
    from rich.text import Text

    line = Text.assemble(*parts)
    if out.is_terminal:
        line.truncate(out.width, overflow="ellipsis")
    out.print(line, soft_wrap=True)


def _mentions(method: Method, word: str) -> bool:
    texts = (method.name, method.family, method.summary, *method.keywords)
    return any(word.lower() in text.lower() for text in texts)


def _all_hold(method: Method) -> bool:
    held, _, seeds = method.verdict.removeprefix("holds ").partition("/")
    return held == seeds != ""


def _evidence(block: str, full: bool) -> Iterable[str]:
    """The lines of a README's evidence as plain text, its table only when asked for."""
    for paragraph in re.split(r"\n\s*\n", block):
        lines = paragraph.splitlines()
        if lines[0].lstrip().startswith("|"):
            yield from [*lines, ""] if full else ()
        elif re.match(r"\s*([-*] |[✓✗])", lines[0]):
            yield from [*map(_plain, lines), ""]
        else:
            yield from [_plain(" ".join(lines)), ""]


def _plain(line: str) -> str:
    return one_line(re.sub(r"\*\*|`|^\s*[-*] |<[^>]*>|  $", "", line))
