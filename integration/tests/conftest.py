"""Demos of every temperament, installed as a distribution of their own for the time of a test."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("integration", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("integration")

RESULT = {
    "claim": "Taking more steps gets closer.",
    "setting": {"data": "none", "model": "a number", "budget": "ten steps each"},
    "metrics": {"distance": {"unit": "m", "better": "lower"}, "steps": {"unit": "", "better": "neither"}},
    "rows": [
        {"name": "standing still", "role": "baseline", "distance": 2.0, "steps": 0},
        {"name": "walking", "role": "method", "distance": 0.5, "steps": 10},
    ],
    "criterion": "walking ends at half the distance or less",
    "holds": True,
    "curves": [
        {
            "title": "Distance over steps",
            "x_label": "step",
            "y_label": "distance [m]",
            "series": {
                "walking": {"x": [0, 1, 2], "y": [2.0, 1.0, 0.5]},
                "standing": {"x": [0, 2], "y": [2, 2]},
            },
        }
    ],
    "images": [{"title": "Where", "values": [[0.0, 1.0], [2.0, 3.0]], "caption": "a map"}],
}

DEMOS = f"""
import os, pathlib, signal, sys, time

RESULT = {RESULT!r}

def good(preset="laptop", *, seed=0, device="cpu", progress=None):
    print("chatter on standard output")
    with open(os.environ["RUN_LOG"], "a") as log:
        log.write(f"{{seed}}\\n")
    for step in range(3):
        progress(step / 3, f"step {{step}}")
    return RESULT

def slow(preset="laptop", *, seed=0, device="cpu", progress=None):
    with open(os.environ["RUN_LOG"], "a") as log:
        log.write(f"slow {{seed}}\\n")
    if seed:
        time.sleep(60)
    return RESULT

def log(line):
    with open(os.environ["RUN_LOG"], "a") as file:
        file.write(line + "\\n")

def meeting(preset="laptop", *, seed=0, device="cpu", progress=None):
    log(f"meeting {{seed}}")
    while len(pathlib.Path(os.environ["RUN_LOG"]).read_text().split()) < 4:
        time.sleep(0.05)
    return RESULT

def deadly(preset="laptop", *, seed=0, device="cpu", progress=None):
    log("deadly")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

def deadly_once(preset="laptop", *, seed=0, device="cpu", progress=None):
    log("deadly_once")
    if pathlib.Path(os.environ["RUN_LOG"]).read_text().split().count("deadly_once") == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return RESULT

def raising(preset="laptop", *, seed=0, device="cpu", progress=None):
    raise RuntimeError("the [bracketed] cause")

def hanging(preset="laptop", *, seed=0, device="cpu", progress=None):
    print("last words", file=sys.stderr, flush=True)
    time.sleep(600)

def killed(preset="laptop", *, seed=0, device="cpu", progress=None):
    os.kill(os.getpid(), signal.SIGKILL)

def exiting(preset="laptop", *, seed=0, device="cpu", progress=None):
    os._exit(3)

def nan(preset="laptop", *, seed=0, device="cpu", progress=None):
    rows = [dict(RESULT["rows"][0], distance=float("nan")), RESULT["rows"][1]]
    return dict(RESULT, rows=rows)

def unserialisable(preset="laptop", *, seed=0, device="cpu", progress=None):
    return dict(RESULT, claim=object())
"""

METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: A demo that is {name}.
Keywords: armillary :: testing,zebra
"""


@pytest.fixture
def result():
    return copy.deepcopy(RESULT)


class Installed:
    """A folder on the path that holds fake distributions, and a command line that sees them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        self.out = folder / "results"
        (folder / "fake_demos.py").write_text(textwrap.dedent(DEMOS))

    def add(self, name: str, version: str = "1.0") -> None:
        info = self.folder / f"{name}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(METADATA.format(name=name, version=version))
        (info / "entry_points.txt").write_text(f"[armillary.demos]\n{name} = fake_demos:{name}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder), "RUN_LOG": str(self.log), "COLUMNS": "200"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "armillary.cli", *arguments]

    def call(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )

    def run(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return self.call("run", *arguments, "--out", str(self.out), timeout=timeout)

    def logged(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []


@pytest.fixture
def installed(tmp_path):
    fake = Installed(tmp_path)
    fake.add("good")
    return fake
