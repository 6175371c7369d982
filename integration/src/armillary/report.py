"""The report: one HTML file that needs nothing else, with verdicts, tables, plots, failures and provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from armillary import __version__
from armillary.contract import Failure, Run
from armillary.drawings import Drawings, method_lines
from armillary.presets import JUDGED
from armillary.storage import Store, write_atomically
from armillary.summary import MARKS, differences, mark_of, summarize, verdict_of


def write_report(store: Store, command: str = "") -> Path:
    """Write `report.html` over everything the folder holds; only plots that are new are drawn.

    Args:
        store: The folder of results.
        command: What the report came from, to be told in it.

    Returns:
        The report's path.

    Raises:
        StorageError: If it cannot be written.
    """
    drawings = Drawings(store.folder / ".plots")
    path = store.folder / "report.html"
    write_atomically(path, render(store.runs(), store.failures(), drawings, command))
    drawings.forget_the_rest()
    return path


def render(runs: list[Run], failures: list[Failure], drawings: Drawings, command: str = "") -> str:
    """The report as text.

    Args:
        runs: Results; those of one name, version, preset and device stand together.
        failures: What gave no result.
        drawings: Where plots are kept.
        command: What the report came from, to be told in it.
    """
    environment = Environment(
        loader=PackageLoader("armillary"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    methods = [_method(list(group), drawings) for _, group in groupby(runs, key=belongs)]
    return environment.get_template("report.html").render(
        title=_title(methods, failures),
        methods=methods,
        failures=failures,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=command,
        version=__version__,
    )


def belongs(run: Run) -> tuple[str, str, str, str]:
    """What the runs of one table have in common."""
    return run.name, run.version, run.preset, run.device


def _title(methods: Sequence[dict[str, Any]], failures: Sequence[Failure]) -> str:
    """What is in it: browsers show it in tabs and histories."""
    names = list(dict.fromkeys([*(method["name"] for method in methods), *(item.name for item in failures)]))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown}: armillary report" if names else "armillary report"


def _method(runs: list[Run], drawings: Drawings) -> dict[str, Any]:
    first = runs[0].result
    summary = summarize([run.result for run in runs])
    verdict, kind = verdict_of(summary, runs[0].preset)
    clauses = [(clause, mark_of(clause, runs[0].preset)) for clause in summary.clauses]
    curves = [
        _figure(curve.title, "", lambda curve=curve: drawings.curve(curve, method_lines(curve, first)))  # type: ignore[misc]
        for curve in first.curves
    ]
    images = [
        _figure(image.title, image.caption, lambda image=image: drawings.image(image))  # type: ignore[misc]
        for image in first.images
    ]
    return {
        "id": "-".join(belongs(runs[0])).replace(":", "-"),
        "name": runs[0].name,
        "version": runs[0].version,
        "preset": runs[0].preset,
        "device": runs[0].device,
        "judged": runs[0].preset in JUDGED,
        "runs": runs,
        "claim": first.claim,
        "setting": {key: str(value) for key, value in first.setting.model_dump().items()},
        "summary": summary,
        "verdict": verdict,
        "kind": kind,
        "clauses": [(clause, mark, MARKS[mark]) for clause, mark in clauses],
        "differences": differences({run.seed: run.result for run in runs}),
        "figures": curves + images,
    }


def _figure(title: str, caption: str, draw: Callable[[], str]) -> dict[str, Any]:
    """A plot; one that cannot be drawn is left out with the reason, and takes no other with it."""
    try:
        return {"title": title, "caption": caption, "svg": Markup(draw()), "trouble": ""}
    except Exception as error:  # matplotlib raises nearly everything
        return {"title": title, "caption": caption, "svg": "", "trouble": f"{type(error).__name__}: {error}"}
