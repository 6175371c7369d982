"""The command line."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from armillary import __version__
from armillary.catalog import UnknownMethodError, find, installed
from armillary.cluster import ClusterError, ClusterExecutor
from armillary.console import ProgressBars, failure_line, methods_table, print_results
from armillary.contract import Failure, Preset, Run
from armillary.report import write_report
from armillary.runner import Executor, Job, LocalExecutor, finished, run_all
from armillary.storage import StorageError, Store, check_writable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run, compare and combine the methods of armillary.",
)
out = Console()
err = Console(stderr=True)

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Entry point: every expected trouble is one clear line and an exit status."""
    try:
        app()
    except (UnknownMethodError, StorageError, ClusterError) as error:
        _exit(str(error), FAILED if isinstance(error, StorageError) else USAGE)


@app.callback(invoke_without_command=True)
def version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Run, compare and combine the methods of armillary."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command("list")
def list_() -> None:
    """List the installed methods."""
    methods = installed()
    if not methods:
        _exit("no method is installed; try: pip install sortedft", USAGE)
    out.print(methods_table(methods.values()))


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method's name.")]) -> None:
    """Show one method: version, claim, requirements and committed evidence."""
    (method,) = find([name], installed())
    out.print(f"[bold]{method.name}[/] {method.version}  [dim]{escape(method.family)}[/]")
    out.print(method.summary, markup=False)
    out.print(f"[dim]needs[/] {escape(', '.join(method.requirements)) or 'nothing'}")
    out.print(Markdown(method.evidence or "No evidence is committed yet."))


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Methods to run.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run every installed method.")] = False,
    preset: Annotated[Preset, typer.Option(help="How much to run.")] = "laptop",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 1,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    folder: Annotated[Path, typer.Option("--out", help="Where results are kept.")] = Path(
        "armillary-results"
    ),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many demos at the same time: 1 here, as many as fit on a cluster."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds until a demo counts as hanging.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help='A Ray cluster to run on; "local" starts one on this machine.'),
    ] = None,
) -> None:
    """Run demos, keep each result, print the tables and write report.html.

    What a former call finished is not run again. The exit status is 0 when every demo gave a result.
    """
    methods = installed()
    if bool(names) == all_:
        _exit(
            "name one or more methods, or give --all (not both); `armillary list` shows what is installed",
            USAGE,
        )
    chosen = list(methods.values()) if all_ else find(names or [], methods)
    if cluster is None:
        _check_device(device)
    check_writable(folder)
    store = Store(folder)
    wanted = [Job(method, preset, seed, device) for method in chosen for seed in range(seeds)]
    outcomes: dict[Job, Run | Failure] = {job: kept for job in wanted if (kept := finished(store, job))}
    if outcomes:
        out.print(f"[dim]{len(outcomes)} of {len(wanted)} runs are there already[/]")
    if missing := [job for job in wanted if job not in outcomes]:
        executor, workers = _executor(cluster, jobs, timeout, len(missing))
        _run(missing, store, executor, workers, outcomes)
    _show(wanted, outcomes)
    out.print(f"report: {write_report(store)}", markup=False, soft_wrap=True)
    if any(isinstance(outcome, Failure) for outcome in outcomes.values()):
        raise typer.Exit(FAILED)


def _executor(
    cluster: str | None, jobs: int | None, timeout: float | None, most: int
) -> tuple[Executor, int]:
    if cluster is not None:
        return ClusterExecutor(cluster, timeout, jobs), min(jobs or most, most)
    workers = jobs or 1
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    return LocalExecutor(timeout, threads), workers


def _run(
    jobs: list[Job], store: Store, executor: Executor, workers: int, outcomes: dict[Job, Run | Failure]
) -> None:
    try:
        with (
            ProgressBars(out, len(jobs)) as bars,
            closing(run_all(jobs, executor, store, workers=workers, progress=bars)) as ended,
        ):
            for job, outcome in ended:
                outcomes[job] = outcome
                bars.done(job)
    except KeyboardInterrupt:
        _exit("interrupted; what had finished is kept, and the same command goes on from there", INTERRUPTED)


def _show(jobs: list[Job], outcomes: dict[Job, Run | Failure]) -> None:
    for _, group in groupby(jobs, key=lambda job: job.method.name):
        ended = [outcomes[job] for job in group]
        runs = [outcome for outcome in ended if isinstance(outcome, Run)]
        if runs:
            print_results(out, runs)
        for outcome in ended:
            if isinstance(outcome, Failure):
                err.print(failure_line(outcome))


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:
        _exit(f"--device {device}: {str(error).splitlines()[0]}", USAGE)


def _exit(message: str, status: int) -> None:
    err.print(f"[red]armillary:[/] {escape(message)}", soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
