"""Results of several folders in one, as when many machines have each run a part."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from armillary.console import err, say
from armillary.contract import Failure, Run
from armillary.errors import UsageError
from armillary.launch import tell_of_report
from armillary.report import belongs, write_report
from armillary.storage import Store, check_writable
from armillary.verdicts import print_failure, print_results, print_verdict


def report(
    folders: Sequence[Path], out: Path | None, *, full: bool = False, quiet: bool = False, show: bool = False
) -> int:
    """Gather folders of results, print what they hold and write the report.

    Args:
        folders: Where results are.
        out: Where to gather them; `None` for the only folder itself.
        full: Print whole tables.
        quiet: Print one line a method.
        show: Open the report in the browser.

    Returns:
        The exit status: 0.

    Raises:
        UsageError: If a folder is missing or holds no result, or nobody said where to gather several.
        StorageError: If a file cannot be written.
    """
    for folder in folders:
        if not any(folder.glob("*/*.json")):
            raise UsageError(f"{folder}: there are no results in it, as `armillary run --out` leaves them")
    if out is None and len(folders) > 1:
        raise UsageError("several folders: --out must say where to gather them")
    target = Store(out or folders[0], _note)
    check_writable(target.folder)
    for folder in folders:
        if folder.resolve() != target.folder.resolve():
            gather(Store(folder, _note), target, _note)
    for _, group in groupby(target.runs(), key=belongs):
        runs = list(group)
        print_verdict(runs) if quiet else print_results(runs, full)
    for failure in target.failures():
        print_failure(failure)
    tell_of_report(write_report(target, shlex.join(["armillary", *sys.argv[1:]])), quiet, show)
    return 0


def gather(source: Store, target: Store, tell: Callable[[str], None] = lambda line: None) -> None:
    """Keep in one folder what another holds. What is there already stays; a run replaces a failure.

    Args:
        source: Where results are.
        target: Where they go.
        tell: Is told, in one line, of every run of the source that another one stands in the way of.

    Raises:
        StorageError: If a file cannot be written.
    """
    for run in source.runs():
        kept = target.load(*_key(run))
        if kept is None:
            target.save(run)
        elif kept != run:
            tell(f"{target.run_path(*_key(run))} stays; another run of it is in {source.folder}")
    for failure in source.failures():
        if target.load(*_key(failure)) is None and target.load_failure(*_key(failure)) is None:
            target.save(failure)


def _key(outcome: Run | Failure) -> tuple[str, str, int, str]:
    return outcome.name, outcome.preset, outcome.seed, outcome.device


def _note(line: str) -> None:
    say(err, f"armillary: {line}")
