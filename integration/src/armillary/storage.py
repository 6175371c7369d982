"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from armillary.contract import Failure, Run

_Model = TypeVar("_Model", bound=BaseModel)


class StorageError(RuntimeError):
    """A file could not be written; the message names it and the reason."""


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old one or the whole new one.

    Args:
        path: Where to; its folder is made when missing.
        text: The content.

    Raises:
        StorageError: If it cannot be written; what stood there before still does.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
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
    """The folder of results: `<name>/<preset>-<seed>.json`, and `.failure.json` beside it for what failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_path(self, name: str, preset: str, seed: int) -> Path:
        """Where a run is kept."""
        return self.folder / name / f"{preset}-{seed}.json"

    def failure_path(self, name: str, preset: str, seed: int) -> Path:
        """Where a failure is kept."""
        return self.folder / name / f"{preset}-{seed}.failure.json"

    def save(self, outcome: Run | Failure) -> Path:
        """Keep a run or a failure; a run clears the failure before it, and a failure an outdated run."""
        key = (outcome.name, outcome.preset, outcome.seed)
        paths = [self.run_path(*key), self.failure_path(*key)]
        if isinstance(outcome, Failure):
            paths.reverse()
        write_atomically(paths[0], outcome.model_dump_json(indent=1) + "\n")
        paths[1].unlink(missing_ok=True)
        return paths[0]

    def load(self, name: str, preset: str, seed: int) -> Run | None:
        """A kept run, or `None` when there is none that can be read."""
        return _read(self.run_path(name, preset, seed), Run)

    def runs(self) -> list[Run]:
        """Every readable run, by name, preset and seed."""
        found = (_read(path, Run) for path in self.folder.glob("*/*.json") if ".failure." not in path.name)
        return sorted((run for run in found if run), key=lambda run: (run.name, run.preset, run.seed))

    def failures(self) -> list[Failure]:
        """Every failure that no run has replaced yet."""
        found = (_read(path, Failure) for path in self.folder.glob("*/*.failure.json"))
        return sorted((item for item in found if item), key=lambda item: (item.name, item.preset, item.seed))


def _read(path: Path, model: type[_Model]) -> _Model | None:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
