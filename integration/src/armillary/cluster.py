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
from armillary.errors import Trouble
from armillary.local import LocalExecutor
from armillary.runner import Job, Progress, execute_safely, failure

LOCAL, AUTO = "local", "auto"
ATTEMPTS = 2
_PROGRESS_EVERY = 0.5  # seconds; each message is an object that crosses the network


class ClusterError(Trouble, RuntimeError):
    """The cluster cannot be used; the message says why."""


class ClusterExecutor:
    """Runs each job as a task of a Ray cluster; `stop()` ends them all and lets go of the cluster.

    What a node lacks (the package, or this very version of it) is a failure of the job; a node or worker that dies is
    tried once more first.

    Args:
        address: `"local"` starts a cluster on this machine, `"auto"` finds one that runs here, and
            `"host:port"` or `"ray://host:port"` joins another.
        timeout: Seconds after which a job counts as hanging, or `None`.
        size: How many jobs a cluster that is started here has room for; `None` for as many as it has CPUs.
        cpus: CPUs that a job takes.
        gpus: GPUs that a job takes; `None` for one when its device is one.
        memory: Bytes of main memory that a job takes, and may take; `None` for any.

    Raises:
        ClusterError: If Ray is not installed or the address cannot be reached.
    """

    def __init__(
        self,
        address: str,
        timeout: float | None = None,
        size: int | None = None,
        *,
        cpus: int = 1,
        gpus: float | None = None,
        memory: int | None = None,
    ) -> None:
        self.timeout = timeout
        self.cpus = cpus
        self.gpus = gpus
        self.memory = memory
        self._ray = _connect(address, size and size * cpus)
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
        gpus = float(job.device.startswith("cuda")) if self.gpus is None else self.gpus
        options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_retries": 0, "memory": self.memory}
        with self._changed:
            if self._stopped:
                raise self._ray.exceptions.TaskCancelledError
            task = self._ray.remote(**options)(work).remote(job, self.timeout, self.cpus, self.memory)
            self._tasks.add(task)
        return task


def work(
    job: Job, timeout: float | None, threads: int = 1, memory: int | None = None
) -> Iterator[tuple[float, str] | Run | Failure]:
    """What a worker of the cluster does: run the job in a process of its own and tell of it as it goes.

    Args:
        job: What to run.
        timeout: Seconds after which it counts as hanging, or `None`.
        threads: How many it may compute with.
        memory: Bytes that it may take, or `None`.

    Yields:
        `(fraction, message)` now and then, and the outcome at the end.
    """
    here = installed().get(job.method.name)
    if here is None or here.version != job.method.version:
        found = f"has {job.method.name} {here.version}" if here else f"does not have {job.method.name}"
        yield failure(job, 0.0, f"the worker {found}, {job.method.version} was asked for", "")
        return
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    executor = LocalExecutor(timeout, threads, memory)

    def run() -> None:
        messages.put(execute_safely(executor, job, lambda _, *step: messages.put(step)))

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
    yield message


def _connect(address: str, cpus: int | None) -> Any:
    _check_reachable(address)
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ClusterError(
            '--cluster needs Ray: pip install "armillary[cluster]", or in a clone: uv run --with ray armillary ...'
        ) from None
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        where = {"address": LOCAL, "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (
        Exception
    ) as error:  # Ray raises nearly everything here: connection, value, runtime, version errors
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ClusterError(f"--cluster {address}: {reason}") from error
    return ray


_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    # Ray warns of a future default unless it is chosen: workers without a GPU keep the environment's setting.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Under `uv run` Ray would start its workers by `uv run` as well, in an environment of their own, and hang.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def _check_reachable(address: str) -> None:
    """Say at once what is wrong with an address: Ray itself would try for minutes."""
    if address in (LOCAL, AUTO):
        return
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        host, port = where.hostname, where.port
    except ValueError as error:
        raise ClusterError(f"--cluster {address}: {error}; must be HOST:PORT, as 10.0.0.1:6379") from error
    if not host or port is None:
        raise ClusterError(
            f"--cluster {address}: must be HOST:PORT (as {host or '10.0.0.1'}:6379), ray://HOST:PORT, auto or local"
        )
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise ClusterError(f"--cluster {address}: {error}") from error
