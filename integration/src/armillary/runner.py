"""Run demos, each in a process of its own, several at a time, and keep what they return."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import IO, Any, Protocol

from armillary import machine
from armillary.catalog import Method
from armillary.contract import ContractError, Failure, Preset, Run, check_result
from armillary.storage import Store

Progress = Callable[["Job", float, str], None]


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
    def facts(self) -> dict[str, Any]:
        """What is known of the outcome beforehand."""
        return {
            "name": self.method.name,
            "version": self.method.version,
            "preset": self.preset,
            "seed": self.seed,
            "device": self.device,
        }


def finished(store: Store, job: Job) -> Run | None:
    """The kept run of this very job, if there is one: same version and same device."""
    run = store.load(job.method.name, job.preset, job.seed)
    same = run is not None and run.version == job.method.version and run.device == job.device
    return run if same else None


class Executor(Protocol):
    """What runs a job: here in a process (`LocalExecutor`), or on a cluster."""

    def __call__(self, job: Job, progress: Progress) -> Run | Failure:
        """Run one job to its end, whatever that is."""

    def stop(self) -> None:
        """End what still runs."""


class LocalExecutor:
    """Runs each job in a child process; `stop()` ends them all.

    Args:
        timeout: Seconds after which a job counts as hanging, or `None`.
        threads: `OMP_NUM_THREADS` of each child, or `None` to leave it.
    """

    def __init__(self, timeout: float | None = None, threads: int | None = None) -> None:
        self.timeout = timeout
        self.threads = threads
        self._children: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def __call__(self, job: Job, progress: Progress) -> Run | Failure:
        """Run one job to its end, whatever that is.

        Args:
            job: What to run.
            progress: Told every step of the demo, from this thread.

        Returns:
            The validated run, or the failure with its reason and traceback.
        """
        start = time.perf_counter()
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
            self._start(job, errors) as child,
        ):
            expired = threading.Event()
            timer = threading.Timer(self.timeout or 0, lambda: _expire(child, expired))
            timer.daemon = True
            if self.timeout is not None:
                timer.start()
            try:
                answer = _listen(child, job, progress)
                status = child.wait()
            finally:
                timer.cancel()
                _kill(child)
                self._children.discard(child)
            errors.seek(0)
            printed = errors.read()[-20_000:]
        seconds = time.perf_counter() - start
        if "result" in answer:
            try:
                result = check_result(answer["result"])
            except ContractError as error:
                return failure(job, seconds, "the result breaks the demo contract", str(error))
            about = machine.describe(job.device)
            return Run(**job.facts, seconds=round(answer["seconds"], 2), machine=about, result=result)
        if expired.is_set():
            return failure(job, seconds, f"no result after {self.timeout:g} s", printed)
        if "error" in answer:
            return failure(job, seconds, answer["error"], answer["detail"])
        return failure(job, seconds, _how_it_ended(status), printed)

    def stop(self) -> None:
        """End every child now; no further one starts."""
        self._stopped.set()
        for child in list(self._children):
            _kill(child)

    def _start(self, job: Job, errors: IO[str]) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        command = [
            sys.executable,
            "-m",
            "armillary.worker",
            job.method.target,
            job.preset,
            str(job.seed),
            job.device,
        ]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._children.add(child)
        if self._stopped.is_set():
            _kill(child)
        return child


def run_all(
    jobs: Iterable[Job],
    execute: Executor,
    store: Store,
    *,
    workers: int = 1,
    progress: Progress = lambda job, fraction, message: None,
) -> Generator[tuple[Job, Run | Failure], None, None]:
    """Run jobs `workers` at a time and yield each outcome once it is safely on disk.

    Args:
        jobs: What to run.
        execute: Runs one job; is stopped at the end.
        store: Where outcomes are kept.
        workers: How many run at the same time.
        progress: Told every step, from the workers' threads.

    Yields:
        `(job, outcome)` in the order of finishing.

    Raises:
        StorageError: If an outcome cannot be kept.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: dict[Future[Run | Failure], Job] = {pool.submit(execute, job, progress): job for job in jobs}
        try:
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    job, outcome = pending.pop(future), future.result()
                    store.save(outcome)
                    yield job, outcome
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            execute.stop()


def _listen(child: subprocess.Popen[str], job: Job, progress: Progress) -> dict[str, Any]:
    """Read the child's messages to the end and return the last that is an answer."""
    answer: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off when the child was killed
            message = json.loads(line)
            if "progress" in message:
                fraction, text = message["progress"]
                progress(job, min(max(fraction, 0.0), 1.0), text)
            else:
                answer = message
    return answer


def _expire(child: subprocess.Popen[str], expired: threading.Event) -> None:
    expired.set()
    _kill(child)


def _kill(child: subprocess.Popen[str]) -> None:
    """End the child and whatever it started (it leads a process group of its own)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def failure(job: Job, seconds: float, reason: str, detail: str) -> Failure:
    """A job that gave no result.

    Args:
        job: What was run.
        seconds: How long it took to fail.
        reason: One line.
        detail: What is known besides: a traceback, or what was printed.
    """
    return Failure(**job.facts, seconds=round(seconds, 2), reason=reason, detail=detail)


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process ended with status {status} and no result"
