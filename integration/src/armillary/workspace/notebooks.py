"""A notebook a method, made from its README: the same lines, to be run one after another and changed."""

from __future__ import annotations

import json
import re

from armillary.workspace.package import Package

# What is marked `py` is a fragment that needs more around it, and stays prose.
_SECTION = re.compile(r"^(?=## )", re.MULTILINE)
_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def notebook(package: Package, repository: str) -> str:
    """The parts of a README that hold code, as a Jupyter notebook (format 4.5).

    Args:
        package: The method.
        repository: Where it is installed from.
    """
    opening, *sections = _SECTION.split(package.readme)
    install = f"%pip install --quiet 'git+{repository}#subdirectory=packages/{package.name}'"
    cells = [*_cells(opening), ("code", install)]
    for section in sections:
        if _CODE.search(section):
            cells += _cells(section)
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                "language_info": {"name": "python"},
            },
            "cells": [_cell(number, *cell) for number, cell in enumerate(cells)],
        },
        ensure_ascii=False,
        indent=1,
    )


def _cells(text: str) -> list[tuple[str, str]]:
    """Prose and Python in turn: what a regular expression with one group splits."""
    kinds = ("markdown", "code")
    parts = enumerate(part.strip("\n") for part in _CODE.split(text))
    return [(kinds[place % 2], part) for place, part in parts if part.strip()]


def _cell(number: int, kind: str, text: str) -> dict[str, object]:
    cell: dict[str, object] = {
        "id": f"cell-{number}",
        "cell_type": kind,
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell
