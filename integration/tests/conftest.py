"""Demos of every temperament, installed as a distribution of their own for the time of a test."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from armillary.commands import execute
from armillary.contract import Failure, Machine, Run

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
    "conditions": [
        {"says": "walking ends at half the distance", "figure": 0.25, "needs": "<= 0.5", "holds": True}
    ],
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

RESULT = {dict(RESULT, curves=[], images=[])!r}  # drawing costs more than all the rest
CURVE = {RESULT["curves"][0]!r}

def log(line):
    with open(os.environ["RUN_LOG"], "a") as file:
        file.write(line + "\\n")

def logged():
    return pathlib.Path(os.environ["RUN_LOG"]).read_text().splitlines()

def demo(function):
    return lambda preset="laptop", *, seed=0, device="cpu", progress=None: function(seed, progress)

@demo
def good(seed, progress):
    print("chatter on standard output")
    log(str(seed))
    for step in range(3):
        progress(step / 3, f"step {{step}}")
    return RESULT

@demo
def slow(seed, progress):
    log(f"slow {{seed}}")
    if seed:
        time.sleep(600)
    return RESULT

@demo
def meeting(seed, progress):
    log(f"meeting {{seed}}")
    while len([line for line in logged() if line.startswith("meeting")]) < 2:
        time.sleep(0.05)
    return RESULT

@demo
def deadly(seed, progress):
    log("deadly")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

@demo
def deadly_once(seed, progress):
    log("deadly-once")
    if logged().count("deadly-once") == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return RESULT

@demo
def raising(seed, progress):
    raise RuntimeError("the [bracketed] cause")

@demo
def leaving(seed, progress):
    sys.exit("no data")

@demo
def interrupting(seed, progress):
    raise KeyboardInterrupt

@demo
def mute(seed, progress):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("not even that")
    raise Mute

@demo
def hanging(seed, progress):
    print("last words", file=sys.stderr, flush=True)
    time.sleep(600)

@demo
def greedy(seed, progress):
    held = []
    while len(held) < 40:
        held.append(bytearray(100_000_000))
    return RESULT

@demo
def killed(seed, progress):
    os.kill(os.getpid(), signal.SIGKILL)

@demo
def crashing(seed, progress):
    os.kill(os.getpid(), signal.SIGSEGV)

@demo
def exiting(seed, progress):
    os._exit(3)

def changed(**changes):
    return dict(RESULT, **changes)

@demo
def nan(seed, progress):
    return changed(rows=[dict(RESULT["rows"][0], distance=float("nan")), RESULT["rows"][1]])

@demo
def huge(seed, progress):
    return changed(rows=[dict(RESULT["rows"][0], distance=10**400), RESULT["rows"][1]])

@demo
def endless(seed, progress):
    return changed(rows=[dict(RESULT["rows"][0], distance=10**5000), RESULT["rows"][1]])

@demo
def unserialisable(seed, progress):
    return changed(claim=object())

@demo
def bracketed(seed, progress):
    progress(0.5, "step [/nope] x")
    rows = [{{"name": row["name"], "role": row["role"], "a[/b]": row["distance"]}} for row in RESULT["rows"]]
    return changed(rows=rows, metrics={{"a[/b]": {{"unit": "[bold]", "better": "lower"}}}})

@demo
def coloured(seed, progress):
    progress(0.5, "\\x1b[2Jgone")
    return changed(claim="\\x1b[31mred\\x1b[0m and \\x00nothing", setting=dict(RESULT["setting"], data="half \\ud800"))

@demo
def dollars(seed, progress):
    curve = dict(CURVE, title="price $5 to $6", x_label=r"$\\foo{{$")
    return changed(curves=[curve])

@demo
def partly(seed, progress):
    holds = seed == 0
    clauses = [dict(RESULT["conditions"][0], figure=0.25 if holds else 0.75, holds=holds),
               {{"says": "walking takes no more steps than it is allowed to take by whoever counts them while it walks",
                 "figure": 10, "needs": "<= 12 steps", "holds": True}}]
    return changed(conditions=clauses, holds=holds)
"""

METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: A demo that is {name}.
Keywords: armillary :: testing,zebra
Project-URL: Documentation, https://example.org/{name}
Requires-Dist: torch>=2.4
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

    def add(self, *names: str, version: str = "1.0", distribution: str = "", target: str = "") -> None:
        """Install demos of these names, each as a distribution of its own."""
        for name in names:
            source = distribution or name
            info = self.folder / f"{source.replace('-', '_').replace('/', '_')}.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(METADATA.format(name=source, version=version))
            function = target or f"fake_demos:{name.replace('-', '_')}"
            (info / "entry_points.txt").write_text(f"[armillary.demos]\n{name} = {function}\n")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder), "RUN_LOG": str(self.log), "COLUMNS": "200"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "armillary.cli", *arguments]

    def call(self, *arguments: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
        """One command to its end; `more` is added to its environment."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def run(self, *arguments: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
        return self.call("run", *arguments, "--out", str(self.out), timeout=timeout, **more)

    @contextmanager
    def running(self, *arguments: str, through: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
        """`run` while it goes on, started by another command if need be; all is gone at the end, whatever is found."""
        command = [*through, *self.command("run", *arguments, "--out", str(self.out))]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def kept(self, name: str, file: str = "laptop-0.json") -> dict[str, Any]:
        return json.loads((self.out / name / file).read_text())

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def installed(tmp_path):
    fake = Installed(tmp_path)
    fake.add("good")
    return fake


@pytest.fixture
def here(installed, monkeypatch, capsys):
    """The command line in this process, for what needs none of its own: what it prints, or the `Trouble` it raises."""
    monkeypatch.syspath_prepend(installed.folder)
    monkeypatch.setenv("RUN_LOG", str(installed.log))
    monkeypatch.chdir(installed.folder)

    def call(*arguments):
        execute(arguments)
        return capsys.readouterr()

    return call


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def a_run(result, **changes):
    facts = {"name": "good", "version": "1.0", "preset": "laptop", "seed": 0, "device": "cpu", "seconds": 1.0}
    machine = Machine(cpu="abacus", cores=2, system="none", python="3", torch="2")
    return Run(**{**facts, **changes}, machine=machine, result=result)


def a_failure(**changes):
    facts = {"name": "good", "version": "1.0", "preset": "laptop", "seed": 0, "device": "cpu", "seconds": 1.0}
    return Failure(**{**facts, "reason": "it broke", "detail": "there", **changes})
