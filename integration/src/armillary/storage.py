"""Files that are either whole or absent, and the folder of results made of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from armillary.contract import Failure, Run
from armillary.errors import FAILED, Trouble
from armillary.text import clean_data

_Model = TypeVar("_Model", bound=BaseModel)


class StorageError(Trouble, RuntimeError):
    """A file could not be written; the message names it and the reason."""

    status = FAILED


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old one or the whole new one.

    Args:
        path: Where to; its folder is made when missing.
        text: The content.

    Raises:
        StorageError: If it cannot be written; what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile`: its files are for their owner alone, these are for whom the umask says.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(folder: Path) -> None:
    """Make sure that results can be kept before any are computed.

    Raises:
        StorageError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error


class Store:
    """The folder of results: `<name>/<preset>-<seed>.json`, and `.failure.json` beside it for what failed.

    Runs on another device than the CPU carry its name as well: `laptop-0-cuda.json`. A file that cannot be read as a
    result (damaged, or of another version of the frame) is set aside under another name.

    Args:
        folder: Where it is.
        tell: Is told, in one line, of every file that is set aside.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self._tell = tell
        self._told: set[str] = set()

    def run_path(self, name: str, preset: str, seed: int, device: str = "cpu") -> Path:
        """Where a run is kept."""
        return self._path(name, preset, seed, device, ".json")

    def failure_path(self, name: str, preset: str, seed: int, device: str = "cpu") -> Path:
        """Where a failure is kept."""
        return self._path(name, preset, seed, device, ".failure.json")

    def claim_path(self, name: str, preset: str, seed: int, device: str = "cpu") -> Path:
        """Where whoever computes it says so."""
        return self._path(name, preset, seed, device, ".claim")

    def save(self, outcome: Run | Failure) -> Path:
        """Keep a run or a failure; a run clears the failure before it, and a failure an outdated run."""
        key = (outcome.name, outcome.preset, outcome.seed, outcome.device)
        paths = [self.run_path(*key), self.failure_path(*key)]
        if isinstance(outcome, Failure):
            paths.reverse()
        write_atomically(paths[0], outcome.model_dump_json(indent=1) + "\n")
        paths[1].unlink(missing_ok=True)
        return paths[0]

    def load(self, name: str, preset: str, seed: int, device: str = "cpu") -> Run | None:
        """A kept run, or `None` when there is none that can be read."""
        return self._read(self.run_path(name, preset, seed, device), Run)

    def load_failure(self, name: str, preset: str, seed: int, device: str = "cpu") -> Failure | None:
        """A kept failure, or `None` when there is none that can be read."""
        return self._read(self.failure_path(name, preset, seed, device), Failure)

    def runs(self) -> list[Run]:
        """Every readable run, by name, version, preset, device and seed."""
        paths = (path for path in self.folder.glob("*/*.json") if ".failure." not in path.name)
        return sorted(filter(None, (self._read(path, Run) for path in paths)), key=_order)

    def failures(self) -> list[Failure]:
        """Every failure that no run has replaced yet."""
        paths = self.folder.glob("*/*.failure.json")
        return sorted(filter(None, (self._read(path, Failure) for path in paths)), key=_order)

    def _path(self, name: str, preset: str, seed: int, device: str, suffix: str) -> Path:
        where = "" if device == "cpu" else "-" + re.sub(r"[^A-Za-z0-9]+", "-", device)
        return self.folder / name / f"{preset}-{seed}{where}{suffix}"

    def _read(self, path: Path, model: type[_Model]) -> _Model | None:
        try:
            return model.model_validate(clean_data(json.loads(path.read_bytes())))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"cannot read {path}: {error.strerror or error}")
        except (ValueError, RecursionError):  # not UTF-8, not JSON, not of this form
            self._set_aside(path)
        return None

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.unreadable")
        try:
            path.replace(aside)
            self._say(f"{path} is damaged or of another version of armillary: now {aside.name}")
        except OSError:
            self._say(f"{path} is damaged or of another version of armillary: passed over")

    def _say(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)


def _order(item: Run | Failure) -> tuple[str, str, str, str, int]:
    return item.name, item.version, item.preset, item.device, item.seed
