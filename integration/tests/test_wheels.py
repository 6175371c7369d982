"""What an engineer installs: each finished package's wheel, and what importing it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.workspace.release import archive_problems, digest

ROOT = Path(__file__).parents[2]
READY = [
    path.parent.name
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
    if "Private :: Do Not Upload" not in path.read_text()
]


def build(package, out):
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1000000000"}
    command = ["uv", "build", "--quiet", "--wheel", "--no-create-gitignore", f"--out-dir={out}"]
    subprocess.run([*command, ROOT / "packages" / package], check=True, env=environment, timeout=60)
    (wheel,) = out.iterdir()
    return wheel


@pytest.mark.parametrize("package", READY)
def test_a_wheel_holds_only_its_package_and_is_the_same_when_built_again(package, tmp_path):
    first, second = (build(package, tmp_path / turn) for turn in ("first", "second"))
    assert archive_problems(first, ROOT / "packages" / package) == []
    assert digest(first) == digest(second)


IMPORTS = """
import json, os, sys, time
import numpy, torch
loaded = set(sys.modules)
costs = {}
for name in sys.argv[1:]:
    best = float("inf")
    for _ in range(3):  # each in a fork, where nothing but torch and numpy is loaded
        inner, outer = os.pipe()
        if os.fork() == 0:
            start = time.process_time()
            __import__(name)
            seconds = time.process_time() - start
            own = {module.partition(".")[0] for module in set(sys.modules) - loaded}
            os.write(outer, json.dumps([seconds, sorted(own)]).encode())
            os._exit(0)
        os.close(outer)
        with os.fdopen(inner) as pipe:
            seconds, modules = json.loads(pipe.read())
        os.wait()
        best = min(best, seconds)
    costs[name] = [best, modules]
print(json.dumps(costs))
"""


def test_importing_a_package_costs_little_beyond_torch_and_brings_no_sibling():
    modules = [name.replace("-", "_") for name in READY]
    command = [sys.executable, "-c", IMPORTS, *modules]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    costs = json.loads(done.stdout)
    slow = {name: seconds for name, (seconds, _) in costs.items() if seconds >= 0.3}
    assert slow == {}  # processor seconds, the least of three
    siblings = {name: set(loaded) & set(modules) - {name} for name, (_, loaded) in costs.items()}
    assert not any(siblings.values()), siblings
