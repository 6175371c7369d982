"""What is installed: every distribution that registers a demo, read from its metadata alone."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageMetadata,
    PackageNotFoundError,
    distribution,
    distributions,
    entry_points,
)

from armillary.errors import Trouble
from armillary.text import clean, one_line

GROUP = "armillary.demos"
_UNKNOWN = "unknown"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # it becomes a folder's name
_EVIDENCE = re.compile(r"<!-- evidence:.*?-->\n(.*?)<!-- /evidence -->", re.DOTALL)
_HOLDS = re.compile(r"[Hh]olds on (\d+) of (\d+) seeds?")
_OF_ALL = re.compile(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]all['\"]")


class UnknownMethodError(Trouble, LookupError):
    """A name that no installed package carries; the message suggests the nearest ones."""


@dataclass(frozen=True)
class Method:
    """One installed method.

    Attributes:
        name: The entry point's name, as a rule the distribution's.
        version: The distribution's version.
        target: The demo as `module:function`.
        distribution: The name of the distribution that it comes from.
        third_party: Whether that is not one of this repository's.
    """

    name: str
    version: str
    target: str
    distribution: str = ""
    third_party: bool = True
    _source: Distribution | None = field(default=None, repr=False, compare=False)

    @cached_property
    def family(self) -> str:
        """What its keyword `armillary :: ...` says."""
        return family(self.keywords)

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """What its distribution may be found by."""
        return tuple(word.strip() for word in ",".join(self._about("Keywords")).split(",") if word.strip())

    @cached_property
    def summary(self) -> str:
        """Its one-sentence description."""
        return one_line("".join(self._about("Summary")))

    @cached_property
    def links(self) -> dict[str, str]:
        """The pages that its distribution names: documentation, source, paper and the like."""
        pairs = (line.partition(",") for line in self._about("Project-URL"))
        return {label.strip(): address.strip() for label, _, address in pairs}

    @cached_property
    def requirements(self) -> tuple[str, ...]:
        """What it depends on at run time."""
        lines = (self._source and self._source.requires) or ()
        return tuple(clean(line) for line in lines if "extra ==" not in line)

    @cached_property
    def evidence(self) -> str:
        """The evidence block of the README, empty when none is committed."""
        found = _EVIDENCE.search("".join(self._about("Description")))
        return found.group(1).strip() if found else ""

    @property
    def verdict(self) -> str:
        """`"holds 3/3"` and the like, from the README's evidence; a dash when there is none."""
        found = _HOLDS.search(self.evidence)
        return f"holds {found.group(1)}/{found.group(2)}" if found else "–"

    @property
    def origin(self) -> str:
        """What to know of where it comes from; empty for a method of this repository under its own name."""
        named = [f"from {self.distribution}"] if self.distribution != self.name else []
        return ", ".join([*named, *(["third party"] if self.third_party else [])])

    @cached_property
    def _metadata(self) -> PackageMetadata | None:
        return _parse(self._source)  # once: importlib does it each time it is asked

    def _about(self, key: str) -> list[str]:
        found = self._metadata.get_all(key) if self._metadata else None
        return [clean(value) for value in found or []]


@dataclass(frozen=True)
class Catalog:
    """What is there to run.

    Attributes:
        methods: Every installed method by name.
        refused: Names that are registered but cannot be used, each with the reason.
        missing: Names of this repository's methods that are not installed.
    """

    methods: dict[str, Method]
    refused: dict[str, str]
    missing: tuple[str, ...]


def read() -> Catalog:
    """Read the metadata of everything that is installed."""
    ours = _of_this_repository()
    points: dict[str, list[EntryPoint]] = defaultdict(list)
    for point in _registered():
        points[point.name].append(point)
    refused = {name: reason for name, found in points.items() if (reason := _objection(name, found))}
    methods = {name: _method(found[0], ours) for name, found in sorted(points.items()) if name not in refused}
    there = {method.distribution for method in methods.values()}
    return Catalog(methods, refused, tuple(name for name in ours if name not in there))


def installed() -> dict[str, Method]:
    """Every installed method by name."""
    return read().methods


def find(names: Iterable[str], catalog: Catalog) -> list[Method]:
    """The methods of these names, each once, in the order asked for.

    Raises:
        UnknownMethodError: If a name is not installed, and how to install it or which are near; or if it is refused.
    """
    return [_find(name, catalog) for name in dict.fromkeys(names)]


def family(keywords: Iterable[str]) -> str:
    """The family that a distribution names among its keywords as `"armillary :: <family>"`."""
    named = (keyword.partition("::")[2].strip() for keyword in keywords if keyword.startswith("armillary ::"))
    return next(named, "unsorted")


def _find(name: str, catalog: Catalog) -> Method:
    if name in catalog.methods:
        return catalog.methods[name]
    if name in catalog.refused:
        raise UnknownMethodError(catalog.refused[name])
    if name in catalog.missing:
        raise UnknownMethodError(f"{name} is not installed: pip install {name}")
    near = difflib.get_close_matches(name, [*catalog.methods, *catalog.missing], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`armillary list` shows what is installed"
    raise UnknownMethodError(f"no installed method is called {one_line(clean(name))!r}: {hint}")


def _registered() -> list[EntryPoint]:
    try:
        return list(entry_points(group=GROUP))
    except Exception:  # one damaged file hides all: look at each by itself
        return [point for source in distributions() for point in _points(source)]


def _points(source: Distribution) -> list[EntryPoint]:
    try:
        return list(source.entry_points.select(group=GROUP))
    except Exception:
        return []


def _objection(name: str, points: list[EntryPoint]) -> str:
    """Why a name cannot be used; empty when it can."""
    sources = " and ".join(sorted(_fact(point, "Name") for point in points))
    shown = one_line(clean(name))
    if not NAME.fullmatch(name):
        return (
            f"refused: {shown!r} of {sources} is no name of a method (small letters, digits, single dashes)"
        )
    if len(points) > 1:
        return f"refused: {name} is registered more than once, by {sources}; uninstall one of them"
    if sources == _UNKNOWN:
        return f"refused: the distribution that registers {name} cannot be read"
    return ""


def _method(point: EntryPoint, ours: tuple[str, ...]) -> Method:
    source = _normal(_fact(point, "Name"))
    return Method(
        name=point.name,
        version=_fact(point, "Version"),
        target=point.value,
        distribution=source,
        third_party=source not in ours,
        _source=point.dist,
    )


def _fact(point: EntryPoint, key: str) -> str:
    about = _parse(point.dist)
    return clean((about.get_all(key) or [_UNKNOWN])[0]) if about else _UNKNOWN


def _parse(source: Distribution | None) -> PackageMetadata | None:
    try:
        return source.metadata if source else None
    except Exception:  # absent, or no text
        return None


def _of_this_repository() -> tuple[str, ...]:
    """The methods that there are: what the frame's extra `all` names."""
    try:
        lines = distribution("armillary").requires or ()
    except PackageNotFoundError:
        return ()
    return tuple(_normal(found.group(1)) for line in lines if (found := _OF_ALL.match(line)))


def _normal(name: str) -> str:
    """A distribution's name as indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()
