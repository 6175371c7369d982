"""Demos on this machine, each in a process of its own that cannot harm the others."""

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
from typing import IO, Any

from armillary import machine
from armillary.contract import ContractError, Failure, Run, check_result
from armillary.runner import Job, Progress, failure
from armillary.text import clean_data
from armillary.worker import MEMORY

_KEPT = 20_000  # characters of what a demo printed


class LocalExecutor:
    """Runs each job in a child process; `stop()` ends them all.

    Args:
        timeout: Seconds after which a job counts as hanging, or `None`.
        threads: `OMP_NUM_THREADS` of each child, or `None` to leave it.
        memory: Bytes of main memory that each child may take, or `None`.
    """

    def __init__(
        self, timeout: float | None = None, threads: int | None = None, memory: int | None = None
    ) -> None:
        self.timeout = timeout
        self.threads = threads
        self.memory = memory
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
            printed = errors.read()[-_KEPT:]
        seconds = time.perf_counter() - start
        if "result" in answer:
            return _judge(job, answer, seconds)
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
        if self.memory is not None:
            environment[MEMORY] = str(self.memory)
        command = [sys.executable, "-m", "armillary.worker", job.method.target]
        child = subprocess.Popen(
            [*command, job.preset, str(job.seed), job.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        self._children.add(child)
        if self._stopped.is_set():
            _kill(child)
        return child


def _judge(job: Job, answer: dict[str, Any], seconds: float) -> Run | Failure:
    try:
        result = check_result(answer["result"])
    except ContractError as error:
        first, *more = str(error).splitlines()
        reason = f"the result breaks the demo contract: {first}{f' (and {len(more)} more)' if more else ''}"
        return failure(job, seconds, reason, str(error))
    about = machine.describe(answer["accelerator"])
    return Run(**job.facts, seconds=round(answer["seconds"], 2), machine=about, result=result)


def _listen(child: subprocess.Popen[str], job: Job, progress: Progress) -> dict[str, Any]:
    """Read the child's messages to the end and return the last that is an answer."""
    answer: dict[str, Any] = {}
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off when the child was killed
            message = clean_data(json.loads(line))
            if "progress" in message:
                fraction, text = message["progress"]
                progress(job, max(0.0, min(1.0, fraction)), text)
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


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process ended with status {status} and no result"
