"""The sessions that take every package alone: what one declares is not there for the next."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "integration/src/armillary/workspace/suite.py"

WORKSPACE = """\
[project]
name = "scratch"
version = "0"
requires-python = ">=3.11"

[tool.uv]
package = false

[tool.uv.workspace]
members = ["packages/*"]
"""
PACKAGE = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
requires-python = ">=3.11"
dependencies = [{dependencies}]

[dependency-groups]
test = ["pytest>=9.0"]

[tool.pytest.ini_options]
filterwarnings = ["error"]
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add(root, name, dependencies):
    folder = root / "packages" / name
    write(folder / "pyproject.toml", PACKAGE.format(name=name, dependencies=dependencies))
    write(folder / "src" / name / "__init__.py", "import six\n")
    write(folder / "tests" / "test_it.py", f"import {name}\n\n\ndef test_it():\n    assert {name}.six\n")


@pytest.fixture
def scratch(tmp_path):
    write(tmp_path / "pyproject.toml", WORKSPACE)
    shutil.copy(ROOT / "noxfile.py", tmp_path / "noxfile.py")
    write(tmp_path / SUITE, (ROOT / SUITE).read_text())
    add(tmp_path, "honest", '"six>=1.16"')
    add(tmp_path, "planted", "")  # it imports what only the package before it declares
    subprocess.run(["uv", "lock", "--quiet"], cwd=tmp_path, check=True, timeout=600)
    return tmp_path


@pytest.mark.parametrize("kind", ["tests", "lowest"])
def test_an_undeclared_import_fails_although_another_package_declares_it(scratch, kind):
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("NOX", "VIRTUAL_ENV"))}
    command = [sys.executable, "-m", "nox", "-s", f"all_{kind}"]
    done = subprocess.run(command, cwd=scratch, env=quiet, capture_output=True, text=True, timeout=900)
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert f"{kind} fails for: planted" in told
    assert "No module named 'six'" in told
    assert (scratch / ".costs" / f"{kind}-honest.json").exists()
