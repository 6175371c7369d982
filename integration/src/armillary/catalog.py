"""What is installed: every distribution that registers a demo, read from its metadata alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

GROUP = "armillary.demos"
_EVIDENCE = re.compile(r"<!-- evidence:.*?-->\n(.*?)<!-- /evidence -->", re.DOTALL)
_HOLDS = re.compile(r"Holds on (\d+) of (\d+) seeds")


class UnknownMethodError(LookupError):
    """A name that no installed package carries; the message suggests the nearest ones."""


@dataclass(frozen=True)
class Method:
    """One installed method.

    Attributes:
        name: The entry point's name, which is the distribution's.
        version: The distribution's version.
        family: What its keyword `armillary :: ...` says.
        summary: Its one-sentence description.
        readme: Its README.
        target: The demo as `module:function`.
        requirements: What it depends on at run time.
    """

    name: str
    version: str
    family: str
    summary: str
    readme: str
    target: str
    requirements: tuple[str, ...]

    @property
    def evidence(self) -> str:
        """The evidence block of the README, empty when none is committed."""
        found = _EVIDENCE.search(self.readme)
        return found.group(1).strip() if found else ""

    @property
    def verdict(self) -> str:
        """`"holds 3/3"` and the like, from the README's evidence; a dash when there is none."""
        found = _HOLDS.search(self.evidence)
        return f"holds {found.group(1)}/{found.group(2)}" if found else "-"


def installed() -> dict[str, Method]:
    """Every installed method by name."""
    found = (_method(point) for point in entry_points(group=GROUP))
    return {method.name: method for method in sorted(found, key=lambda method: (method.family, method.name))}


def find(names: Iterable[str], methods: dict[str, Method]) -> list[Method]:
    """The methods of these names, each once, in the order asked for.

    Raises:
        UnknownMethodError: If a name is not installed; suggests near ones.
    """
    chosen = []
    for name in dict.fromkeys(names):
        if name not in methods:
            near = difflib.get_close_matches(name, methods, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "`armillary list` shows what is installed"
            )
            raise UnknownMethodError(f"no installed method is called {name!r}: {hint}")
        chosen.append(methods[name])
    return chosen


def family(keywords: Iterable[str]) -> str:
    """The family that a distribution names among its keywords as `"armillary :: <family>"`."""
    named = (keyword.partition("::")[2].strip() for keyword in keywords if keyword.startswith("armillary ::"))
    return next(named, "unsorted")


def _method(point: EntryPoint) -> Method:
    if point.dist is None:
        return Method(point.name, "unknown", "unsorted", "", "", point.value, ())
    about = point.dist.metadata
    return Method(
        name=point.name,
        version=point.dist.version,
        family=family("".join(about.get_all("Keywords") or []).split(",")),
        summary="".join(about.get_all("Summary") or []),
        readme=str(about.json.get("description", "")),
        target=point.value,
        requirements=tuple(line for line in point.dist.requires or () if "extra ==" not in line),
    )
