"""What packages say of themselves, and what follows from it elsewhere: `integration/pyproject.toml` and their URLs.

The frame's extra `all` and its source table list every finished package; each package's `[project.urls]` begins
with what `[tool.armillary]` of the root names. `armillary.workspace.tables` writes both and checks them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DRAFT = "Private :: Do Not Upload"
ADVICE = ("problem", "use-when", "not-when", "rivals")


def project(root: Path, name: str) -> dict[str, Any]:
    """The `[project]` table of a package."""
    return document(root, name)["project"]


def document(root: Path, name: str) -> dict[str, Any]:
    """The whole pyproject of a package."""
    return tomllib.loads((root / "packages" / name / "pyproject.toml").read_text())


def names(root: Path) -> list[str]:
    """Every package, drafts included."""
    return [path.parent.name for path in sorted(root.glob("packages/*/pyproject.toml"))]


def ready(root: Path) -> list[str]:
    """Every package that is no draft."""
    return [name for name in names(root) if DRAFT not in project(root, name).get("classifiers", ())]


def wanted(root: Path) -> dict[Path, str]:
    """The frame's and the packages' pyproject files as they should be."""
    path = root / "integration" / "pyproject.toml"
    texts = {path: _frame(root, path.read_text())} if path.exists() else {}
    for name in names(root):
        path = root / "packages" / name / "pyproject.toml"
        texts[path] = _with_urls(path.read_text(), urls(root, name))
    return texts


def urls(root: Path, name: str) -> dict[str, str]:
    """Where a package's pages are; its paper is its own affair."""
    about = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["armillary"]
    source = about["repository"]
    return {
        "Documentation": f"{about['site']}methods/{name}/",
        "Source": f"{source}/tree/main/packages/{name}",
        "Changelog": f"{source}/blob/main/packages/{name}/CHANGELOG.md",
        "Issues": f"{source}/issues",
    }


def problems(root: Path) -> Iterator[str]:
    """What a finished package should say of itself and does not."""
    for name in ready(root):
        found = document(root, name)
        advice = found.get("tool", {}).get("armillary", {})
        missing = [f"[tool.armillary] {key}" for key in ADVICE if not advice.get(key)]
        about = found["project"]
        missing += [f"[project.urls] {key}" for key in ("Paper",) if key not in about.get("urls", {})]
        missing += [
            f"[project] {key}" for key in ("authors", "keywords", "classifiers") if not about.get(key)
        ]
        for place in missing:
            yield f"packages/{name}/pyproject.toml: {place} is missing"


def _frame(root: Path, text: str) -> str:
    found = ready(root)
    everything = [f'    "{name}[demo]>={_minor(project(root, name)["version"])}",' for name in found]
    sources = [f"{name} = {{ workspace = true }}" for name in found]
    return _fill(_fill(text, "all", everything), "sources", sources)


def _minor(version: str) -> str:
    """A floor that a package's next patch leaves as it is."""
    return ".".join(version.split(".")[:2])


def _fill(text: str, mark: str, lines: list[str]) -> str:
    """Put lines between `# <mark>: generated` and `# <mark>: end`."""
    pattern = re.compile(rf"( *# {mark}: generated[^\n]*\n).*?( *# {mark}: end)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"integration/pyproject.toml: no lines '# {mark}: generated' ... '# {mark}: end'")
    return pattern.sub(
        lambda found: found.group(1) + "".join(f"{line}\n" for line in lines) + found.group(2), text
    )


def _with_urls(text: str, fixed: dict[str, str]) -> str:
    """The text with these URLs in place; others, such as the paper's, stay first."""
    found = re.search(r"^\[project\.urls\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    own = {} if not found else tomllib.loads(found.group(1))
    lines = [f'{key} = "{value}"' for key, value in ({**own, **fixed}).items() if key not in fixed]
    lines += [f'{key} = "{value}"' for key, value in fixed.items()]
    section = "[project.urls]\n" + "\n".join(lines) + "\n\n"
    if found:
        return text[: found.start()] + section + text[found.end() :]
    return text.replace("[project.entry-points", f"{section}[project.entry-points", 1)
