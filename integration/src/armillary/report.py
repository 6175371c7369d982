"""The report: one HTML file that needs nothing else, with tables, plots, failures and provenance."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from armillary.contract import Failure, Run
from armillary.plots import curve_svg, image_svg
from armillary.storage import Store, write_atomically
from armillary.summary import summarize


def write_report(store: Store) -> Path:
    """Write `report.html` over everything the folder holds.

    Args:
        store: The folder of results.

    Returns:
        The report's path.

    Raises:
        StorageError: If it cannot be written.
    """
    path = store.folder / "report.html"
    write_atomically(path, render(store.runs(), store.failures()))
    return path


def render(runs: list[Run], failures: list[Failure]) -> str:
    """The report as text.

    Args:
        runs: Results, sorted by name, preset and seed.
        failures: What gave no result.
    """
    environment = Environment(
        loader=PackageLoader("armillary"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = groupby(runs, key=lambda run: (run.name, run.preset))
    methods = [_method(list(group)) for _, group in groups]
    return environment.get_template("report.html").render(methods=methods, failures=failures)


def _method(runs: list[Run]) -> dict[str, Any]:
    first = runs[0].result
    return {
        "name": runs[0].name,
        "preset": runs[0].preset,
        "runs": runs,
        "result": first,
        "setting": {key: str(value) for key, value in first.setting.model_dump().items()},
        "summary": summarize([run.result for run in runs]),
        "curves": [(curve, Markup(curve_svg(curve))) for curve in first.curves],
        "images": [(image, Markup(image_svg(image))) for image in first.images],
    }
