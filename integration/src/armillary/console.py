"""What the terminal shows: progress bars with an ETA, and the tables."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from armillary.catalog import Method
from armillary.contract import Failure, Run
from armillary.runner import Job
from armillary.summary import summarize


class ProgressBars:
    """One bar a running demo; a context manager whose instance is the runner's `progress`.

    Args:
        console: Where to draw.
        total: How many jobs there are in all.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[label]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.description}"),
            console=console,
        )
        self._tasks: dict[Job, TaskID] = {}
        self._lock = threading.Lock()
        self._all = self._bars.add_task("", label="all", total=total, visible=total > 1)

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, job: Job, fraction: float, message: str) -> None:
        """Move the job's bar."""
        with self._lock:
            if job not in self._tasks:
                self._tasks[job] = self._bars.add_task(message, label=job.label, total=1.0)
        self._bars.update(self._tasks[job], completed=fraction, description=message)

    def done(self, job: Job) -> None:
        """Take the job's bar away and count it."""
        with self._lock:
            if job in self._tasks:
                self._bars.remove_task(self._tasks.pop(job))
        self._bars.advance(self._all)


def methods_table(methods: Iterable[Method]) -> Table:
    """The table of `armillary list`."""
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "family", "version", "evidence", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for method in methods:
        table.add_row(method.name, method.family, method.version, method.verdict, method.summary)
    return table


def print_results(console: Console, runs: list[Run]) -> None:
    """Print the table of one method's runs, seeds averaged, with its criterion and verdict."""
    summary = summarize([run.result for run in runs])
    colour = "green" if summary.held == summary.seeds else "red"
    table = Table("row", box=None, pad_edge=False, header_style="dim")
    for column in summary.columns:
        table.add_column(column, justify="right")
    for name, role, cells in summary.lines:
        ours = role == "method"
        table.add_row(
            escape(name) if ours else f"{escape(name)} [dim]{role}[/]", *cells, style="bold" if ours else None
        )
    console.print(
        f"\n[bold]{runs[0].name}[/] ({runs[0].preset}): {escape(runs[0].result.claim)}", soft_wrap=True
    )
    console.print(table)
    console.print(f"[{colour}]{summary.verdict}[/]: {escape(runs[0].result.criterion)}", soft_wrap=True)


def failure_line(failure: Failure) -> str:
    """One line for a run that gave no result."""
    return f"[red]no result[/]: {failure.name} {failure.preset} seed {failure.seed}: {escape(failure.reason)}"
