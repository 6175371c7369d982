"""One package as tables and pages see it: its metadata, its advice, its committed evidence."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from armillary import catalog
from armillary.contract import Curve, Result
from armillary.summary import Summary, summarize
from armillary.workspace import metadata
from armillary.workspace.evidence import Evidence, Speed


@dataclass(frozen=True)
class Advice:
    """What `[tool.armillary]` says: for whom a method is, and for whom it is not.

    Attributes:
        problem: The reader's problem, in the first person.
        use_when: When the method is the right one.
        not_when: When it is not.
        rivals: What else one would try.
        figure: The title of the curve that shows the claim; empty for the first one.
    """

    problem: str
    use_when: str
    not_when: str
    rivals: str
    figure: str


@dataclass(frozen=True)
class Package:
    """A package's folder with its committed evidence."""

    root: Path
    name: str

    @cached_property
    def document(self) -> dict[str, Any]:
        """Its pyproject."""
        return metadata.document(self.root, self.name)

    @property
    def project(self) -> dict[str, Any]:
        """The `[project]` table of its pyproject."""
        table: dict[str, Any] = self.document["project"]
        return table

    @property
    def module(self) -> str:
        """What one imports."""
        return self.name.replace("-", "_")

    @property
    def description(self) -> str:
        """What it gives, in one sentence."""
        return str(self.project["description"])

    @property
    def urls(self) -> dict[str, str]:
        """Where its paper, source and the like are."""
        return dict(self.project.get("urls", {}))

    @property
    def keywords(self) -> list[str]:
        """The words that people search for; without the one that names the family."""
        return [word for word in self.project["keywords"] if not word.startswith("armillary ::")]

    @property
    def family(self) -> str:
        """What its keyword `armillary :: ...` says."""
        return catalog.family(self.project["keywords"])

    @cached_property
    def advice(self) -> Advice:
        """Its `[tool.armillary]`; what is missing there is empty (`metadata.problems` names it)."""
        found = self.document.get("tool", {}).get("armillary", {})
        problem, use_when, not_when, rivals = (_text(found.get(key, "")) for key in metadata.ADVICE)
        return Advice(problem, use_when, not_when, rivals, str(found.get("figure", "")))

    @cached_property
    def readme(self) -> str:
        """Its README."""
        return (self.root / "packages" / self.name / "README.md").read_text()

    @cached_property
    def evidence(self) -> Evidence | None:
        """Its three laptop seeds."""
        path = self.root / "docs" / "evidence" / f"{self.name}.json"
        return Evidence.model_validate_json(path.read_text()) if path.exists() else None

    @cached_property
    def speed(self) -> Speed | None:
        """Its ratios."""
        path = self.root / "docs" / "evidence" / f"{self.name}.speed.json"
        return Speed.model_validate_json(path.read_text()) if path.exists() else None

    @cached_property
    def summary(self) -> Summary | None:
        """Its seeds put together."""
        return summarize([run.result for run in self.evidence.runs]) if self.evidence else None

    @property
    def result(self) -> Result | None:
        """The first seed's result, whose curves the pages show."""
        return self.evidence.runs[0].result if self.evidence else None

    @property
    def claim(self) -> str:
        """What the paper says should happen; empty without evidence."""
        return self.result.claim if self.result else ""

    @property
    def verdict(self) -> str:
        """`"Holds on 3 of 3 seeds"` and the like; a dash without evidence."""
        return self.summary.verdict if self.summary else "–"

    @cached_property
    def figure(self) -> Curve | None:
        """The curve that shows the claim: the one its advice names, else the first.

        Raises:
            ValueError: If no curve has the title that the advice names.
        """
        curves = self.result.curves if self.result else []
        if not self.advice.figure:
            return curves[0] if curves else None
        for curve in curves:
            if curve.title == self.advice.figure:
                return curve
        raise ValueError(
            f"packages/{self.name}/pyproject.toml: [tool.armillary] figure is {self.advice.figure!r}, "
            f"but the curves are called {', '.join(repr(curve.title) for curve in curves) or 'nothing'}"
        )


def packages(root: Path) -> list[Package]:
    """Every package that is no draft, by name."""
    return [Package(root, name) for name in metadata.ready(root)]


@dataclass(frozen=True)
class Kind:
    """Methods for one kind of problem.

    Attributes:
        heading: The kind in plain words.
        packages: Its methods, by family and name.
    """

    heading: str
    packages: list[Package]


def kinds(root: Path) -> list[Kind]:
    """The packages by kind of problem: in the order of `docs/families.toml`, then the families it does not name."""
    path = root / "docs" / "families.toml"
    headings: dict[str, str] = tomllib.loads(path.read_text()) if path.exists() else {}
    found = packages(root)
    unnamed = sorted({package.family for package in found} - headings.keys())
    members: dict[str, list[Package]] = {}
    for family in [*headings, *unnamed]:
        heading = headings.get(family, _sentence(family))
        members.setdefault(heading, []).extend(package for package in found if package.family == family)
    return [Kind(heading, packages) for heading, packages in members.items() if packages]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(found: object) -> str:
    """One line of text, of a text or of a list of them."""
    parts = found if isinstance(found, list) else [found]
    return "; ".join(" ".join(str(part).split()).rstrip(".") for part in parts)
