"""The command starts at once: what it does not need is not loaded."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pydantic", "matplotlib", "jinja2", "ray", "rich.markdown", "rich.progress")


def loaded_by(*arguments):
    script = (
        "import sys; from armillary.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "call", [("--version",), ("--help",), ("list",), ("list", "--json"), ("run", "--help")]
)
def test_nothing_heavy_is_loaded_to_answer_at_once(call):
    assert not loaded_by(*call) & set(HEAVY)


@pytest.mark.parametrize("call", [("--version",), ("--help",), ("run", "--help")])
def test_the_shortest_answers_load_next_to_nothing(call):
    assert len(loaded_by(*call)) < 200  # Python itself is about 60, metadata as many


def test_the_help_fits_80_columns_and_names_no_types():
    for call in (["--help"], ["run", "--help"], ["list", "--help"], ["show", "--help"]):
        shown = subprocess.run(
            [sys.executable, "-m", "armillary.cli", *call],
            env={"COLUMNS": "80", "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        assert max(map(len, shown.splitlines())) <= 80
        assert "<bool>" not in shown
