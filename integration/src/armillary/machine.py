"""Where a run is made."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from armillary.contract import Machine


def describe(accelerator: str | None = None) -> Machine:
    """This machine.

    Args:
        accelerator: What else computed, as the process that used it found out.
    """
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch_version() or "none",
        accelerator=accelerator,
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_version() -> str | None:
    """The installed torch, read from its metadata; `None` when there is none."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
