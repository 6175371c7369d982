"""The tables in README files, made from docs/evidence: `python -m armillary.workspace.tables [--check]`.

A generated block stands between `<!-- kind:name -->` and `<!-- /kind -->`; everything else is left alone. So do the
lists of packages in `integration/pyproject.toml`, the packages' URLs and the picture in the README. With `--check`
nothing is written, and a stale file is an error, as is metadata that a finished package lacks. Pages that only the
site shows are no files of the repository: `armillary.workspace.site` makes them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from armillary.summary import Clause
from armillary.workspace import metadata, picture
from armillary.workspace.evidence import SpeedGroup, misjudged
from armillary.workspace.package import Package, kinds, packages

__all__ = [
    "evidence_block",
    "methods_block",
    "packages",
    "ratio",
    "refresh",
    "row",
    "speed_block",
    "stale",
    "wanted",
]


def evidence_block(package: Package) -> str:
    """Claim, verdict, conditions, table and provenance of one package's evidence."""
    found, summary = package.evidence, package.summary
    if found is None or summary is None:
        return "No evidence is committed yet."
    machine = found.machine
    lines: list[str] = []
    for table in summary.tables:
        lines += ["", row(["compared", *table.columns]), row(["---", *["--:"] * len(table.columns)])]
        for name, role, cells in table.lines:
            lines.append(row([f"**{name}**" if role == "method" else f"{name} ({role})", *cells]))
    seconds = sum(run.seconds for run in found.runs) / len(found.runs)
    return "\n".join(
        [
            f"Claim: {package.claim}",
            "",
            f"**{summary.verdict}.**",
            "",
            *(_condition(clause) for clause in summary.clauses),
            *lines,
            "",
            f"Mean over {summary.seeds} seeds (smallest to largest). Version {found.version}, `{found.preset}` "
            f"preset, about {seconds:.0f} s a seed on {machine.cores} cores of {machine.cpu}, torch {machine.torch}.",
        ]
    )


def speed_block(package: Package) -> str:
    """The speed table of one package."""
    if package.speed is None:
        return "No benchmark is committed yet."
    lines = [row(["comparison", "peer", "size", "quantity", "peer / ours"]), row(["---"] * 4 + ["--:"])]
    lines += [
        row([group.group, group.peer, group.size, group.quantity, ratio(group)])
        for group in package.speed.groups
    ]
    return "\n".join(lines)


def methods_block(root: Path, link: str) -> str:
    """The table of all methods, by kind of problem.

    Args:
        root: The repository.
        link: Where a name links to, with `{name}` in it.
    """
    lines = [row(["method", "your problem", "what it gives", "holds on"]), row(["---"] * 4)]
    for kind in kinds(root):
        lines.append(row(["", f"**{kind.heading}**", "", ""]))
        lines += [
            row(
                [
                    f"[{package.name}]({link.format(name=package.name)})",
                    package.advice.problem or "–",
                    package.description,
                    package.verdict.removeprefix("Holds on "),
                ]
            )
            for package in kind.packages
        ]
    return "\n".join(lines)


def ratio(group: SpeedGroup) -> str:
    """A ratio for people: `"1.33x (1.28 to 1.48)"`; large ones in whole numbers."""
    found = group.ratio
    if found.low == found.high:
        return f"{_short(found.median)}x"
    return f"{_short(found.median)}x ({_short(found.low)} to {_short(found.high)})"


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def wanted(root: Path) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    texts = metadata.wanted(root)
    for package in packages(root):
        path = root / "packages" / package.name / "README.md"
        text = _fill(package.readme, f"evidence:{package.name}", evidence_block(package))
        texts[path] = _fill(text, f"speed:{package.name}", speed_block(package))
    readme = root / "README.md"
    texts[readme] = _fill(readme.read_text(), "methods:all", methods_block(root, "packages/{name}"))
    return texts


def refresh(root: Path) -> list[Path]:
    """Write every generated file that is stale, and return those."""
    texts = wanted(root)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
    return [*stale, *picture.refresh(root)]


def stale(root: Path) -> list[str]:
    """What is not as evidence and metadata say: generated files, and metadata that is not there."""
    return list(_stale(root))


def _stale(root: Path) -> Iterator[str]:
    for path, text in wanted(root).items():
        if not path.exists() or path.read_text() != text:
            yield f"{path.relative_to(root)} is stale"
    yield from picture.stale(root)
    yield from metadata.problems(root)


def outdated(root: Path) -> list[str]:
    """Whose evidence is of an earlier version: the tables say of which, and a release refuses it."""
    return [
        f"docs/evidence: {package.name} is at {package.project['version']}, its {kind} at {found.version}"
        for package in packages(root)
        for kind, found in (("evidence", package.evidence), ("speed", package.speed))
        if found and found.version != package.project["version"]
    ]


def _condition(clause: Clause) -> str:
    mark = "✓" if clause.holds else "✗"
    return (
        f"- {mark} {clause.says}: {clause.figure}, needs {clause.needs} "
        f"({clause.held} of {clause.seeds} seed{'s' if clause.seeds > 1 else ''})"
    )


def _fill(text: str, mark: str, block: str) -> str:
    kind = mark.split(":")[0]
    pattern = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- /{kind} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no block <!-- {mark} --> ... <!-- /{kind} --> to fill")
    return pattern.sub(lambda found: f"{found.group(1)}{block}\n{found.group(2)}", text)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is stale")
    root = Path.cwd()
    if parser.parse_args().check:
        found = stale(root)
        found += [
            f"docs/evidence: the verdict of {name} is not what its demo says of its rows"
            for name in misjudged(root)
        ]
        print("\n".join(f"note: {line}" for line in outdated(root)))
        print("\n".join(found) or "every table is as the evidence says")
        return bool(found)
    for path in refresh(root):
        print(f"wrote {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
