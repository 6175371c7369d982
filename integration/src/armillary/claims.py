"""Claims on jobs: two runs on one folder share the work, also over a network's file system.

A claim is a file that only one process can create. It names its owner, who touches it every few seconds. The claim of a
process of this machine that is gone, or of another machine's that has not been touched for a while, is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from armillary.storage import StorageError

HEARTBEAT = 10.0  # seconds
EXPIRES = 90.0  # seconds without a heartbeat, enough for a file system that is slow to tell


class Claims:
    """The claims of this process; `close()` gives them all up.

    Args:
        folder: Where the runs that share the work meet; takers-over wait for one another by a file in it.
    """

    def __init__(self, folder: Path) -> None:
        self._gate = folder / ".claims.lock"
        self._held: dict[Path, str] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def take(self, path: Path) -> bool:
        """Claim a job unless somebody alive has.

        Args:
            path: The claim's file.

        Raises:
            StorageError: If the folder cannot be written to.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._create(path):
                return True
            if not _abandoned(path):
                return False
            with self._alone():
                # Another may have been quicker: what is there now is looked at again.
                if _abandoned(path):
                    path.unlink(missing_ok=True)
                return self._create(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    def release(self, path: Path) -> None:
        """Give a claim up, unless another has taken it over meanwhile."""
        mine = self._held.pop(path, None)
        with contextlib.suppress(OSError):
            if path.read_text() == mine:
                path.unlink()

    def close(self) -> None:
        """Give every claim up."""
        self._closed.set()
        for path in list(self._held):
            self.release(path)

    def _create(self, path: Path) -> bool:
        me = json.dumps({"pid": os.getpid(), "host": _host(), "born": _born(os.getpid())})
        try:
            with path.open("x") as file:
                self._held[path] = me
                file.write(me)
        except FileExistsError:
            return False
        except OSError:
            self._held.pop(path, None)
            path.unlink(missing_ok=True)
            raise
        return True

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While this process is the only one that takes over; the kernel lets go when it dies."""
        with self._gate.open("a") as file:
            with contextlib.suppress(OSError):  # a file system without locks: at worst a demo runs twice
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def owner(path: Path) -> str:
    """Who holds a claim, for people.

    Args:
        path: The claim's file.
    """
    found = _read(path)
    return f"process {found['pid']} on {found['host']}" if found else "another process"


def _abandoned(path: Path) -> bool:
    """Whether nobody stands behind a claim any more, or it is not there."""
    found = _read(path)
    if found and found["host"] == _host():
        return _born(found["pid"]) != found["born"]
    try:
        return _age(path) > EXPIRES
    except FileNotFoundError:
        return True


def _read(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # given up, or being written
        return None
    return found if isinstance(found, dict) and found.keys() >= {"pid", "host", "born"} else None


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system: machines differ about the time."""
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime


def _host() -> str:
    return os.uname().nodename


def _born(pid: object) -> str | None:
    """When a process of this machine began, in its own units; `None` when it is gone.

    A number alone would not do: the system gives it to another process one day.
    """
    if not Path("/proc/self/stat").exists():
        return "" if _runs(int(str(pid))) else None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
