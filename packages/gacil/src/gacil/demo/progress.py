"""Progress of a part of the work as that of the whole."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[float, str], None]


def silent(fraction: float, message: str) -> None:
    """Report nothing."""


def section(report: Report, start: float, span: float, prefix: str) -> Report:
    """Report of a part of the work that begins at `start` and is `span` of the whole."""

    def report_part(fraction: float, message: str) -> None:
        report(start + span * fraction, f"{prefix}: {message}")

    return report_part
