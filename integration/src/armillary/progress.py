"""One bar for every demo that runs, with an ETA."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from armillary.runner import Job
from armillary.text import one_line


class ProgressBars:
    """One bar a running demo; a context manager whose instance is the runner's `progress`.

    Without a terminal nothing is drawn.

    Args:
        console: Where to draw.
        total: How many jobs there are in all.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False, style="dim"),
            console=console,
            disable=not console.is_terminal,
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
                self._tasks[job] = self._bars.add_task("", label=job.label, total=1.0)
        self._bars.update(self._tasks[job], completed=fraction, description=one_line(message))

    def done(self, job: Job) -> None:
        """Take the job's bar away and count it."""
        with self._lock:
            if job in self._tasks:
                self._bars.remove_task(self._tasks.pop(job))
        self._bars.advance(self._all)
