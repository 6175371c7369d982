"""Plots drawn once: kept in a folder under the hash of what they show and of how they are drawn."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from armillary import plots
from armillary.contract import Curve, Image, Result, Row
from armillary.storage import StorageError, write_atomically


class Drawings:
    """A folder of drawings; safe to delete.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()

    def curve(self, curve: Curve, methods: Collection[str] = ()) -> str:
        """A curve as an SVG element.

        Args:
            curve: What to draw.
            methods: The names of the lines that are the method's.
        """
        marked = sorted(methods)
        content = f"{marked}{curve.model_dump_json()}"
        return self._kept(content, lambda: plots.curve_svg(curve, methods=marked))

    def image(self, image: Image) -> str:
        """A two-dimensional field as an SVG element.

        Args:
            image: What to draw.
        """
        return self._kept(image.model_dump_json(), lambda: plots.image_svg(image))

    def forget_the_rest(self) -> None:
        """Delete every drawing that was not asked for since this object was made."""
        for path in set(self.folder.glob("*.svg")) - self._used:
            path.unlink(missing_ok=True)

    def _kept(self, content: str, draw: Callable[[], str]) -> str:
        key = hashlib.sha256(f"{_style()}{content}".encode()).hexdigest()[:24]
        path = self.folder / f"{key}.svg"
        self._used.add(path)
        with contextlib.suppress(OSError, ValueError):
            if svg := path.read_text(encoding="utf-8"):
                return svg
        svg = draw()
        with contextlib.suppress(StorageError):  # then it is drawn again next time
            write_atomically(path, svg)
        return svg


def method_lines(curve: Curve, result: Result) -> list[str]:
    """The lines of a curve that are the method's: those named after its rows, in whole or by one end.

    `LPINN` belongs to a row `LPINN on Burgers`, `duffing, ResDMD` to a row `ResDMD`. A line that is named after a
    baseline's row as well belongs to neither; ablations and references may bear the method's name, so only their
    whole name counts.

    Args:
        curve: A curve of the result.
        result: Whose rows have names and roles.
    """
    return [line for line in curve.series if _is_ours(line, result.rows)]


def _is_ours(line: str, rows: Sequence[Row]) -> bool:
    mine = max((_likeness(line, row.name) for row in rows if row.role == "method"), default=0)
    theirs = max((_likeness(line, row.name) for row in rows if row.role == "baseline"), default=0)
    return mine > theirs and not any(row.name == line and row.role != "method" for row in rows)


def _likeness(line: str, name: str) -> int:
    """Two for the same name, one where either begins or ends with the other at a word's end."""
    if line == name:
        return 2
    long, short = (line, name) if len(line) > len(name) else (name, line)
    cut = re.escape(short)
    return int(bool(re.match(rf"{cut}(?!\w|[-+*])", long) or re.search(rf"(?<![\w+*-]){cut}$", long)))


@cache
def _style() -> str:
    """What a drawing depends on besides its content."""
    return version("matplotlib") + Path(plots.__file__).read_text(encoding="utf-8")
