"""The tables in README files and docs, made from docs/evidence: `python -m armillary.workspace.tables [--check]`.

A generated block stands between `<!-- kind:name -->` and `<!-- /kind -->`; everything else is left alone. The
pages of the site that are generated whole are written too. With `--check` nothing is written and a stale file is
an error.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from armillary.catalog import family
from armillary.summary import summarize
from armillary.workspace.evidence import Evidence, Speed, SpeedGroup


@dataclass(frozen=True)
class Package:
    """A package's folder with its committed evidence."""

    root: Path
    name: str

    @cached_property
    def project(self) -> dict[str, object]:
        """The `[project]` table of its pyproject."""
        text = (self.root / "packages" / self.name / "pyproject.toml").read_text()
        table: dict[str, object] = tomllib.loads(text)["project"]
        return table

    @cached_property
    def family(self) -> str:
        """What its keyword `armillary :: ...` says."""
        keywords = self.project["keywords"]
        assert isinstance(keywords, list)
        return family(keywords)

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


def packages(root: Path) -> list[Package]:
    """Every package that is no draft (marked `Private :: Do Not Upload`), by name."""
    found = sorted(root.glob("packages/*/pyproject.toml"))
    return [
        Package(root, path.parent.name)
        for path in found
        if "Private :: Do Not Upload" not in path.read_text()
    ]


def evidence_block(package: Package) -> str:
    """The evidence table of one package."""
    found = package.evidence
    if found is None:
        return "No evidence is committed yet."
    summary = summarize([run.result for run in found.runs])
    first, machine = found.runs[0].result, found.machine
    lines = [_row(["", *summary.columns]), _row(["---", *["--:"] * len(summary.columns)])]
    for name, role, cells in summary.lines:
        lines.append(_row([f"**{name}**" if role == "method" else f"{name} ({role})", *cells]))
    seconds = sum(run.seconds for run in found.runs) / len(found.runs)
    return "\n".join(
        [
            f"Claim: {first.claim}",
            "",
            *lines,
            "",
            f"**{summary.verdict}.** Criterion: {first.criterion}. Mean over {summary.seeds} seeds (smallest to "
            f"largest), version {found.version}, `{found.preset}` preset, about {seconds:.0f} s a seed on "
            f"{machine.cores} cores of {machine.cpu}, torch {machine.torch}.",
        ]
    )


def speed_block(package: Package) -> str:
    """The speed table of one package."""
    if package.speed is None:
        return "No benchmark is committed yet."
    lines = [_row(["comparison", "peer", "size", "quantity", "peer / ours"]), _row(["---"] * 4 + ["--:"])]
    lines += [
        _row([group.group, group.peer, group.size, group.quantity, _ratio(group)])
        for group in package.speed.groups
    ]
    return "\n".join(lines)


def methods_block(found: list[Package], link: str) -> str:
    """The table of all methods.

    Args:
        found: The packages.
        link: Where a name links to, with `{name}` in it.
    """
    lines = [_row(["method", "family", "what it gives", "evidence", "speed"]), _row(["---"] * 5)]
    for package in sorted(found, key=lambda package: (package.family, package.name)):
        verdict = best = "–"
        if package.evidence:
            verdict = summarize([run.result for run in package.evidence.runs]).verdict
        if package.speed:
            group = package.speed.groups[0]
            best = f"{group.ratio.median:.3g}x ({group.group})"
        name = f"[{package.name}]({link.format(name=package.name)})"
        lines.append(_row([name, package.family, str(package.project["description"]), verdict, best]))
    return "\n".join(lines)


def performance_page(found: list[Package]) -> str:
    """The page with every ratio."""
    parts = [f"## {package.name}\n\n{speed_block(package)}\n" for package in found if package.speed]
    intro = (
        "Every number is a ratio, peer over ours, of two cases timed one after the other in one process on the same "
        "input, after both were seen to give the same answer: above 1, ours is faster (or, where the quantity says "
        "so, smaller). The median stands first, then the range from lower quartile to upper quartile.\n"
    )
    return "# Performance\n\n" + intro + "\n" + "\n".join(parts)


def method_page(package: Package) -> str:
    """The page of one method: its README, the plots of its evidence, its public names."""
    module = package.name.replace("-", "_")
    return (
        f'--8<-- "packages/{package.name}/README.md"\n\n'
        f"## Plots\n\n<!-- plots:{package.name} -->\n\n"
        f"## Public names\n\n::: {module}\n"
    )


def wanted(root: Path) -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    found = packages(root)
    texts = {}
    for package in found:
        path = root / "packages" / package.name / "README.md"
        text = _fill(path.read_text(), f"evidence:{package.name}", evidence_block(package))
        texts[path] = _fill(text, f"speed:{package.name}", speed_block(package))
        texts[root / "docs" / "pages" / "methods" / f"{package.name}.md"] = method_page(package)
    readme, index = root / "README.md", root / "docs" / "pages" / "index.md"
    texts[readme] = _fill(readme.read_text(), "methods:all", methods_block(found, "packages/{name}"))
    texts[index] = _fill(index.read_text(), "methods:all", methods_block(found, "methods/{name}.md"))
    texts[root / "docs" / "pages" / "performance.md"] = performance_page(found)
    return texts


def refresh(root: Path) -> list[Path]:
    """Write every generated file that is stale, delete the pages of no package, and return all those."""
    texts = wanted(root)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
    orphans = _orphans(root, texts)
    for path in orphans:
        path.unlink()
    return stale + orphans


def _orphans(root: Path, texts: dict[Path, str]) -> list[Path]:
    return [path for path in sorted((root / "docs" / "pages" / "methods").glob("*.md")) if path not in texts]


def stale(root: Path) -> list[str]:
    """What is not as the evidence says: generated files, pages of packages that are gone, old versions."""
    texts = wanted(root)
    out = [
        f"{path.relative_to(root)} is stale"
        for path, text in texts.items()
        if not path.exists() or path.read_text() != text
    ]
    out += [f"{path.relative_to(root)} is the page of no package" for path in _orphans(root, texts)]
    for package in packages(root):
        for found in (package.evidence, package.speed):
            if found and found.version != package.project["version"]:
                out.append(
                    f"docs/evidence: {package.name} is at {package.project['version']}, its evidence at {found.version}"
                )
    return out


def _fill(text: str, mark: str, block: str) -> str:
    kind = mark.split(":")[0]
    pattern = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- /{kind} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no block <!-- {mark} --> ... <!-- /{kind} --> to fill")
    return pattern.sub(lambda found: f"{found.group(1)}{block}\n{found.group(2)}", text)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ratio(group: SpeedGroup) -> str:
    ratio = group.ratio
    if ratio.low == ratio.high:
        return f"{ratio.median:.3g}x"
    return f"{ratio.median:.3g}x ({ratio.low:.3g} to {ratio.high:.3g})"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is stale")
    root = Path.cwd()
    if parser.parse_args().check:
        found = stale(root)
        print("\n".join(found) or "every table is as the evidence says")
        return bool(found)
    for path in refresh(root):
        print(f"wrote {path.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
