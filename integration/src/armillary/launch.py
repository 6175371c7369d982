"""One call of `armillary run`, from what was asked for to its exit status."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.text import Text

from armillary import catalog, console, machine, signals
from armillary.catalog import Method
from armillary.console import err, out, say
from armillary.contract import Failure, Preset, Run
from armillary.errors import FAILED, UsageError
from armillary.local import LocalExecutor
from armillary.progress import ProgressBars
from armillary.report import write_report
from armillary.runner import Executor, Job, Outcome, finished, run_all
from armillary.signals import Interrupted
from armillary.storage import Store, check_writable
from armillary.verdicts import print_failure, print_results, print_verdict

_DEVICE = re.compile(r"[a-z]+(:[0-9]+)?")


@dataclass(frozen=True)
class Request:
    """What `armillary run` was asked for; its options explain each."""

    names: tuple[str, ...]
    everything: bool
    preset: Preset
    seeds: Sequence[int]
    device: str
    folder: Path
    jobs: int | None = None
    timeout: float | None = None
    fresh: bool = False
    full: bool = False
    cluster: str | None = None
    cpus: int = 1
    gpus: float | None = None
    memory: float | None = None
    quiet: bool = False
    show: bool = False


def launch(request: Request) -> int:
    """Carry out one call.

    Args:
        request: What was asked for.

    Returns:
        The exit status: 0 when every demo gave a result.

    Raises:
        Trouble: If nothing can be run as asked for, or results cannot be kept.
    """
    methods, refused = _choose(request)
    _check(request)
    store = Store(request.folder, _note)
    wanted = [
        Job(method, request.preset, seed, request.device) for method in methods for seed in request.seeds
    ]
    try:
        outcomes = _carry_out(request, wanted, store)
        _print(wanted, outcomes, request)
        path = write_report(store, command=shlex.join(["armillary", *sys.argv[1:]]))
    except Interrupted as end:
        end.add_note("what had finished is kept, and the same command goes on from there")
        raise
    tell_of_report(path, request.quiet, request.show)
    failed = any(isinstance(outcome, Failure) for outcome in outcomes.values())
    return FAILED if failed or refused else 0


def tell_of_report(path: Path, quiet: bool = False, show: bool = False) -> None:
    """Say where the report is, and show it.

    Args:
        path: Where it is.
        quiet: Not to say it.
        show: Open it in the user's browser.
    """
    if not quiet:
        out.print(Text(f"\nreport: {path}"), soft_wrap=True)
    if show and not webbrowser.open(path.resolve().as_uri()):
        _note(f"no browser could be opened; the report is {path}")


def _choose(request: Request) -> tuple[list[Method], bool]:
    """The methods to run, and whether any that was meant cannot be."""
    if bool(request.names) == request.everything:
        raise UsageError(
            "name one or more methods, or give --all (not both); `armillary list` shows what is installed"
        )
    found = catalog.read()
    if not request.everything:
        return catalog.find(request.names, found), False
    for reason in found.refused.values():
        _note(reason)
    return list(found.methods.values()), bool(found.refused)


def _check(request: Request) -> None:
    """Find out what would fail before anything runs."""
    if not _DEVICE.fullmatch(request.device):
        raise UsageError(f"--device {request.device}: must be a torch device, such as cpu or cuda:0")
    check_writable(request.folder)
    if request.cluster is not None:
        return
    if machine.torch_version() is None:
        raise UsageError("torch is not installed, and every demo needs it: pip install torch")
    if request.device != "cpu":
        _check_device(request.device)


def _check_device(device: str) -> None:
    """Ask torch in a process of its own: it would stay in this one for nothing."""
    script = "import sys, torch; torch.empty(0, device=sys.argv[1])"
    asked = subprocess.run(
        [sys.executable, "-c", script, device], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if asked.returncode:
        said = [line for line in asked.stderr.splitlines() if line and not line.startswith(" ")]
        raise UsageError(f"--device {device}: {said[-1] if said else 'torch cannot use it'}")


def _carry_out(request: Request, wanted: list[Job], store: Store) -> dict[Job, Outcome]:
    outcomes: dict[Job, Outcome] = {}
    if not request.fresh:
        outcomes = {job: kept for job in wanted if (kept := finished(store, job))}
    if outcomes and not request.quiet:
        out.print(Text(f"{len(outcomes)} of {len(wanted)} runs are there already", "dim"))
    missing = [job for job in wanted if job not in outcomes]
    if not missing:
        return outcomes
    executor, workers = _executor(request, len(missing))
    with (
        ProgressBars(out, len(missing)) as bars,
        closing(
            run_all(missing, executor, store, workers=workers, fresh=request.fresh, progress=bars)
        ) as ended,
    ):
        for job, outcome in ended:
            outcomes[job] = outcome
            bars.done(job)
    return outcomes


def _executor(request: Request, most: int) -> tuple[Executor, int]:
    """What runs the jobs, and how many at a time."""
    memory = None if request.memory is None else round(request.memory * 1e9)
    if request.cluster is not None:
        from armillary.cluster import ClusterExecutor

        console.reserve()  # Ray prints what it has to say, and would do so between the tables

        executor = ClusterExecutor(
            request.cluster,
            request.timeout,
            request.jobs,
            cpus=request.cpus,
            gpus=request.gpus,
            memory=memory,
        )
        signals.install()  # Ray has taken them
        return executor, min(request.jobs or most, most)
    cores = machine.cores()
    workers = min(request.jobs or 1, cores)
    if request.jobs and request.jobs > cores:
        _note(f"--jobs {request.jobs}: this machine has {cores} cores, so {cores} at a time")
    threads = None if workers == 1 else max(1, cores // workers)
    return LocalExecutor(request.timeout, threads, memory), workers


def _print(jobs: Iterable[Job], outcomes: dict[Job, Outcome], request: Request) -> None:
    for _, group in groupby(jobs, key=lambda job: job.method.name):
        ended = [outcomes[job] for job in group]
        if runs := [outcome for outcome in ended if isinstance(outcome, Run)]:
            print_verdict(runs) if request.quiet else print_results(runs, request.full)
        for outcome in ended:
            if isinstance(outcome, Failure):
                print_failure(outcome)


def _note(line: str) -> None:
    say(err, f"armillary: {line}")
