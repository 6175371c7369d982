"""The picture in the README: what one run shows, as an SVG that reads in light and in dark.

It is committed, since a page of a repository can show nothing else; it bears the hash of what it shows, and is stale
when the evidence says something else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from armillary.drawings import method_lines
from armillary.plots import curve_svg
from armillary.workspace.package import Package

METHOD = "sortedft"  # the one that the README runs
PATH = Path("docs/pages/assets/result.svg")
_WIDTH, _HEIGHT = 640, 440
_STYLE = (
    "svg{color:#1f2328}.card{fill:#fff;stroke:#d1d9e0}text{font-family:system-ui,sans-serif;fill:currentColor}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3}.card{fill:#161b22;stroke:#3d444d}}"
)


def refresh(root: Path) -> list[Path]:
    """Draw the picture if it is stale; return what was written."""
    package = Package(root, METHOD)
    if not list(stale(root)):
        return []
    path = root / PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw(package))
    return [path]


def stale(root: Path) -> Iterator[str]:
    """Say if the picture is not of the evidence."""
    if not (root / "docs" / "evidence" / f"{METHOD}.json").exists():
        return
    path = root / PATH
    if not path.exists() or f'data-evidence="{_hash(Package(root, METHOD))}"' not in path.read_text():
        yield f"{PATH} is stale"


def draw(package: Package) -> str:
    """The curve that shows the claim, on a card, with its title and the verdict.

    Args:
        package: A package with evidence.
    """
    curve, result = package.figure, package.result
    assert curve is not None
    assert result is not None
    plot = re.sub(
        r"<svg ",
        f'<svg x="16" y="44" width="{_WIDTH - 32}" height="{_HEIGHT - 84}" ',
        curve_svg(curve, methods=method_lines(curve, result)),
        count=1,
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{curve.title}. {package.claim}")}" data-evidence="{_hash(package)}">'
        f"<style>{_STYLE}</style>"
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>'
        f'<text x="20" y="30" font-size="16" font-weight="600">{escape(curve.title)}</text>'
        f"{plot}"
        f'<text x="20" y="{_HEIGHT - 16}" font-size="13">{escape(_caption(package))}</text></svg>\n'
    )


def _caption(package: Package) -> str:
    version = package.project["version"]
    return f"{package.name} {version}, seed 0 of the committed evidence. {package.verdict}."


def _hash(package: Package) -> str:
    curve = package.figure
    shown = f"{curve.model_dump_json() if curve else ''}{package.claim}{_caption(package)}"
    return hashlib.sha256(shown.encode()).hexdigest()[:16]
