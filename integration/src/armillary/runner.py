"""Jobs, and how all of them are brought to an end: several at a time, shared with other runs, each kept at once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from armillary.catalog import Method
from armillary.claims import Claims, owner
from armillary.contract import Failure, Preset, Run
from armillary.storage import StorageError, Store
from armillary.text import clean
from armillary.worker import describe

Progress = Callable[["Job", float, str], None]
Outcome = Run | Failure
_LOOK_AGAIN = 0.5  # seconds, while every job that is left runs elsewhere


@dataclass(frozen=True)
class Job:
    """One demo to run."""

    method: Method
    preset: Preset
    seed: int
    device: str

    @property
    def label(self) -> str:
        """A short name for progress bars and messages."""
        return f"{self.method.name} {self.preset} seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What its files are called after."""
        return self.method.name, self.preset, self.seed, self.device

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the outcome beforehand."""
        return {
            "name": self.method.name,
            "version": self.method.version,
            "preset": self.preset,
            "seed": self.seed,
            "device": self.device,
        }


class Executor(Protocol):
    """What runs a job: here in a process (`LocalExecutor`), or on a cluster."""

    def __call__(self, job: Job, progress: Progress) -> Outcome:
        """Run one job to its end, whatever that is."""

    def stop(self) -> None:
        """End what still runs."""


def finished(store: Store, job: Job) -> Run | None:
    """The kept run of this very job, if there is one: same version and same device."""
    run = store.load(*job.key)
    same = run is not None and run.version == job.method.version and run.device == job.device
    return run if same else None


def failure(job: Job, seconds: float, reason: str, detail: str) -> Failure:
    """A job that gave no result.

    Args:
        job: What was run.
        seconds: How long it took to fail.
        reason: One line.
        detail: What is known besides: a traceback, or what was printed.
    """
    return Failure(**job.facts, seconds=round(seconds, 2), reason=clean(reason), detail=clean(detail))


def execute_safely(execute: Executor, job: Job, progress: Progress) -> Outcome:
    """Run a job so that whatever goes wrong about it is its own failure and no other's.

    Args:
        execute: Runs one job.
        job: What to run.
        progress: Told every step.
    """
    start = time.perf_counter()
    try:
        return execute(job, progress)
    except Exception as error:
        return failure(job, time.perf_counter() - start, describe(error), traceback.format_exc())


def run_all(
    jobs: Iterable[Job],
    execute: Executor,
    store: Store,
    *,
    workers: int = 1,
    fresh: bool = False,
    progress: Progress = lambda job, fraction, message: None,
) -> Generator[tuple[Job, Outcome], None, None]:
    """Run jobs `workers` at a time and yield each outcome once it is safely on disk.

    A job that another run on the same folder has claimed is left to it; its outcome is taken from there, or, when that
    run ends without one, made here.

    Args:
        jobs: What to run.
        execute: Runs one job; is stopped at the end.
        store: Where outcomes are kept.
        workers: How many run at the same time.
        fresh: Take no result that was there before the call.
        progress: Told every step, from the workers' threads.

    Yields:
        `(job, outcome)` in the order of finishing.

    Raises:
        StorageError: If an outcome cannot be kept.
    """
    waiting = list(jobs)
    before = {job: _stamps(store, job) for job in waiting}
    running: dict[Future[Outcome], Job] = {}
    with closing(Claims(store.folder)) as claims, ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                for job in list(waiting):
                    if len(running) == workers:
                        break
                    claim = store.claim_path(*job.key)
                    if not claims.take(claim):
                        progress(job, 0.0, f"{owner(claim)} runs it")
                        continue
                    waiting.remove(job)
                    if outcome := _made_elsewhere(store, job, before[job], fresh):
                        claims.release(claim)
                        yield job, outcome
                    else:
                        running[pool.submit(execute_safely, execute, job, progress)] = job
                if not running:
                    time.sleep(_LOOK_AGAIN if waiting else 0)
                free = len(running) < workers and waiting
                ended = wait(running, _LOOK_AGAIN if free else None, FIRST_COMPLETED).done if running else ()
                for future in ended:
                    job = running.pop(future)
                    outcome = _keep(store, job, future.result())
                    claims.release(store.claim_path(*job.key))
                    yield job, outcome
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            execute.stop()


def _keep(store: Store, job: Job, outcome: Outcome) -> Outcome:
    try:
        store.save(outcome)
    except StorageError:
        raise
    except Exception as error:  # a result that cannot be written down
        outcome = failure(job, outcome.seconds, describe(error), traceback.format_exc())
        store.save(outcome)
    return outcome


def _made_elsewhere(store: Store, job: Job, before: tuple[int, int], fresh: bool) -> Outcome | None:
    """What another run has made of a job since `before`."""
    now = _stamps(store, job)
    if (not fresh or now[0] != before[0]) and (run := finished(store, job)):
        return run
    if now[1] != before[1]:
        found = store.load_failure(*job.key)
        if found and found.version == job.method.version:
            return found
    return None


def _stamps(store: Store, job: Job) -> tuple[int, int]:
    """When the files of a job's run and failure were written; zero where there is none."""
    return _stamp(store.run_path(*job.key)), _stamp(store.failure_path(*job.key))


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
