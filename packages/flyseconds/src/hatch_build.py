"""Compiles the step in C when a wheel is built, if there is a compiler; without one the package is Python alone."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import (  # type: ignore[import-not-found,unused-ignore]
    BuildHookInterface,
)
from packaging.tags import sys_tags

LIBRARY = "_native.so"
# No -ffast-math: a NaN must remain one. No -march: what the processor has is found out when it runs.
FLAGS = [
    "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fvisibility=hidden", "-fPIC", "-shared",
]  # fmt: skip


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg,unused-ignore]
    """Puts `flyseconds/_native.so` into wheels, editable ones too, and says for which platform it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the wheel is put together."""
        if os.environ.get("FLYSECONDS_NO_NATIVE", "0") not in ("", "0"):
            return
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name, LIBRARY)
        problem = compiled(Path(self.root, "src", "flyseconds", "native.c"), library)
        if problem is not None:
            self._folder.cleanup()
            self.app.display_warning(f"flyseconds without its step in C: {problem}")
            return
        where = "force_include_editable" if version == "editable" else "force_include"
        build_data[where][str(library)] = f"flyseconds/{LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, once it is in the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compiled(source: Path, library: Path) -> str | None:
    """Compile the source; gives the reason if that cannot be done."""
    command = shlex.split(os.environ.get("CC", "")) or [
        next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "cc")
    ]
    checksum = f"-DCHECKSUM={zlib.crc32(source.read_bytes())}u"
    try:
        done = subprocess.run(
            [*command, *FLAGS, checksum, str(source), "-o", str(library), "-lm"],
            capture_output=True,
            text=True,
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        None if done.returncode == 0 and library.exists() else f"{command[0]} failed: {done.stderr[-1000:]}"
    )


def platform() -> str:
    """This platform, without a promise about other Linux distributions."""
    names = (tag.platform for tag in sys_tags())
    return next(name for name in names if not name.startswith(("manylinux", "musllinux")))
