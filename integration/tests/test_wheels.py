"""What an engineer installs: each finished package's wheel, and what importing it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.workspace.metadata import ready
from armillary.workspace.release import archive_problems, digest

ROOT = Path(__file__).parents[2]
READY = ready(ROOT)


def build(package, out):
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1000000000"}
    command = ["uv", "build", "--quiet", "--wheel", "--no-create-gitignore", f"--out-dir={out}"]
    subprocess.run([*command, ROOT / "packages" / package], check=True, env=environment, timeout=600)
    (wheel,) = out.iterdir()
    return wheel


@pytest.mark.parametrize("package", READY)
def test_a_wheel_holds_its_package_and_nothing_else(package, tmp_path):
    assert archive_problems(build(package, tmp_path), ROOT / "packages" / package) == []


def test_a_wheel_is_the_same_when_built_again(tmp_path):
    first, second = (build(READY[0], tmp_path / turn) for turn in ("first", "second"))
    assert digest(first) == digest(second)


IMPORTS = """
import importlib, json, os, sys
import numpy, torch
loaded = set(sys.modules)
brought = {}
for name in sys.argv[1:]:
    inner, outer = os.pipe()
    if os.fork() == 0:  # where nothing but torch and numpy is loaded
        importlib.import_module(name)
        os.write(outer, json.dumps(sorted(set(sys.modules) - loaded)).encode())
        os._exit(0)
    os.close(outer)
    with os.fdopen(inner) as pipe:
        brought[name] = json.loads(pipe.read())
    os.wait()
print(json.dumps(brought))
"""
HEAVY = {"transformers", "sklearn", "scipy", "pandas", "matplotlib", "gymnasium.envs.mujoco", "torch._dynamo"}


def test_importing_a_package_brings_neither_a_sibling_nor_what_only_some_calls_need():
    modules = [name.replace("-", "_") for name in READY]
    command = [sys.executable, "-c", IMPORTS, *modules]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    for name, loaded in json.loads(done.stdout).items():
        assert name in loaded
        tops = {module.partition(".")[0] for module in loaded}
        assert tops & set(modules) == {name}
        assert HEAVY & set(loaded) == set(), name
        assert len(loaded) < 400, name  # torch alone brings more than a thousand
