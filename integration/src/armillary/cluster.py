"""Demos on a Ray cluster: the same work as on one machine, the same results, spread over many."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from armillary.catalog import installed
from armillary.contract import Failure, Run
from armillary.runner import Job, LocalExecutor, Progress, failure

LOCAL = "local"
ATTEMPTS = 2
_PROGRESS_EVERY = 0.5  # seconds; each message is an object that crosses the network


class ClusterError(RuntimeError):
    """The cluster cannot be used; the message says why."""


class ClusterExecutor:
    """Runs each job as a task of a Ray cluster; `stop()` ends them all and lets go of the cluster.

    A job takes one CPU of the cluster, and one GPU when its device is one. What a node lacks (the package, or this
    very version of it) is a failure of the job; a node or worker that dies is tried once more first.

    Args:
        address: `"local"` starts a cluster on this machine, `"auto"` finds one that runs here, and
            `"host:port"` or `"ray://host:port"` joins another.
        timeout: Seconds after which a job counts as hanging, or `None`.
        cpus: CPUs of a cluster that is started here; `None` for all.

    Raises:
        ClusterError: If Ray is not installed or the address cannot be reached.
    """

    def __init__(self, address: str, timeout: float | None = None, cpus: int | None = None) -> None:
        self.timeout = timeout
        self._ray = _connect(address, cpus)
        self._tasks: set[Any] = set()
        self._changed = threading.Condition()
        self._stopped = False

    def __call__(self, job: Job, progress: Progress) -> Run | Failure:
        """Run one job somewhere on the cluster to its end, whatever that is.

        Args:
            job: What to run.
            progress: Told what the demo tells, at most twice a second.

        Returns:
            The validated run, or the failure with its reason and traceback.
        """
        start = time.perf_counter()
        trouble: Exception = RuntimeError("not begun")
        for _ in range(ATTEMPTS):
            try:
                return self._attempt(job, progress)
            except self._ray.exceptions.RayError as error:
                trouble = error
            if self._stopped:
                break
            progress(job, 0.0, "its worker died; once more")
        seconds = time.perf_counter() - start
        return failure(job, seconds, f"its worker on the cluster died {ATTEMPTS} times", str(trouble))

    def stop(self) -> None:
        """End every task of ours and leave the cluster; one started here ends with it."""
        with self._changed:
            self._stopped = True
            for task in self._tasks:
                self._ray.cancel(task, force=True)
            # Ray must not be left while a thread waits for it: that thread would wait for ever.
            left = self._changed.wait_for(lambda: not self._tasks, timeout=30)
        if left:
            self._ray.shutdown()

    def _attempt(self, job: Job, progress: Progress) -> Run | Failure:
        task = self._start(job)
        outcome: Run | Failure | None = None
        try:
            for reference in task:
                message = self._ray.get(reference)
                if isinstance(message, tuple):
                    progress(job, *message)
                else:
                    outcome = message
        finally:
            with self._changed:
                self._tasks.discard(task)
                self._changed.notify_all()
        assert outcome is not None, "the task's last message is its outcome"
        return outcome

    def _start(self, job: Job) -> Any:
        options = {"num_cpus": 1, "num_gpus": int(job.device.startswith("cuda")), "max_retries": 0}
        with self._changed:
            if self._stopped:
                raise self._ray.exceptions.TaskCancelledError
            task = self._ray.remote(**options)(work).remote(job, self.timeout)
            self._tasks.add(task)
        return task


def work(job: Job, timeout: float | None) -> Iterator[tuple[float, str] | Run | Failure]:
    """What a worker of the cluster does: run the job in a process of its own and tell of it as it goes.

    Args:
        job: What to run.
        timeout: Seconds after which it counts as hanging, or `None`.

    Yields:
        `(fraction, message)` now and then, and the outcome at the end.
    """
    here = installed().get(job.method.name)
    if here is None or here.version != job.method.version:
        found = f"has {job.method.name} {here.version}" if here else f"does not have {job.method.name}"
        yield failure(job, 0.0, f"the worker {found}, {job.method.version} was asked for", "")
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    executor = LocalExecutor(timeout, threads=1)

    def run() -> None:
        try:
            messages.put(executor(job, lambda _, fraction, text: messages.put((fraction, text))))
        except BaseException as error:  # the reader must hear of it
            messages.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield from _sparsely(messages)
    finally:
        executor.stop()


def _sparsely(messages: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """Pass on progress no more often than `_PROGRESS_EVERY`, and whatever ends it at once."""
    last = -_PROGRESS_EVERY
    while isinstance(message := messages.get(), tuple):
        if time.monotonic() - last >= _PROGRESS_EVERY:
            last = time.monotonic()
            yield message
    if isinstance(message, BaseException):
        raise message
    yield message


def _connect(address: str, cpus: int | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    # Ray warns of a future default unless it is chosen: workers without a GPU keep the environment's setting.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError('--cluster needs Ray; install it with: pip install "armillary[cluster]"') from None
    _check_reachable(address)
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (
        Exception
    ) as error:  # Ray raises nearly everything here: connection, value, runtime, version errors
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ClusterError(f"--cluster {address}: {reason}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    where = urlsplit(address if "://" in address else f"//{address}")
    try:
        if where.port is None:
            return
        socket.create_connection((where.hostname, where.port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"--cluster {address}: {error}") from error
