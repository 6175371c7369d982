"""Figures of the recipes' pages: `python -m armillary.workspace.figures NAME...` runs docs/recipes/NAME.py.

Its `figure()` returns curves and images as a demo does; they are kept in docs/evidence/recipes/NAME.json.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from armillary.contract import Figure
from armillary.storage import write_atomically


def draw(root: Path, name: str) -> None:
    """Run one recipe's script and keep its figure.

    Args:
        root: The repository.
        name: The script's name without `.py`.

    Raises:
        ValueError: If the script returns something else than curves and images.
    """
    script = runpy.run_path(str(root / "docs" / "recipes" / f"{name}.py"))
    figure = Figure.model_validate(script["figure"]())
    text = figure.model_dump_json(indent=1, exclude_defaults=True)
    write_atomically(root / "docs" / "evidence" / "recipes" / f"{name}.json", text + "\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        draw(Path.cwd(), each)
