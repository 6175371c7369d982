"""Scaffold a new package: `python -m armillary.workspace.scaffold NAME`.

The files are the house's anatomy with nothing to prove yet: they pass every session as they stand, and the
demo says so itself by returning `holds: false`.
"""

from __future__ import annotations

import argparse
import datetime
import keyword
import re
import shutil
import sys
from pathlib import Path
from string import Template

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

PYPROJECT = Template("""\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$name"
version = "0.1.0"
description = "One sentence: what the method gives its user."
readme = "README.md"
requires-python = ">=3.11"
license = "Apache-2.0"
license-files = ["LICENSE"]
authors = [{ name = "The armillary authors" }]
keywords = ["armillary :: unsorted"]  # the family, as `armillary list` shows it, then what one would search for
classifiers = ["Private :: Do Not Upload"]  # remove when the package has something to prove
dependencies = ["torch>=2.4"]

[project.optional-dependencies]
demo = []

[project.entry-points."armillary.demos"]
$name = "$module.demo:demo"

[dependency-groups]
test = ["pytest>=9.0", "hypothesis>=6.100", "numpy>=1.26"]

[tool.hatch.build.targets.wheel]
packages = ["src/$module"]

[tool.hatch.build.targets.sdist]
include = ["src", "tests", "benchmarks", "README.md", "CHANGELOG.md", "LICENSE"]

[tool.pytest.ini_options]
filterwarnings = ["error"]
""")

README = Template("""\
# $name

One sentence: what the method gives its user.

    pip install $name

## Use it

```python
import $module

print($module.__version__)
```

## In the box

| name | what it is |
| --- | --- |

## Evidence

<!-- evidence:$name -->
<!-- /evidence -->

## Speed

<!-- speed:$name -->
<!-- /speed -->

## Differences from the paper

## Citation
""")

CHANGELOG = Template("""\
# Changelog

The format is [Keep a Changelog](https://keepachangelog.com); versions follow [SemVer](https://semver.org).

## [0.1.0] - $date

### Added

- First version.
""")

INIT = Template('''\
"""One sentence: what the method gives its user."""

from importlib.metadata import version as _version

__all__ = ["__version__"]

__version__ = _version("$name")
''')

DEMO = Template('''\
"""The evidence: the method against its baseline (contract: docs/pages/guides/demo-contract.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Hold the method against its baseline.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    if progress is not None:
        progress(1.0, "nothing to prove yet")
    return {
        "claim": "Nothing is claimed yet.",
        "setting": {"data": "none", "model": "none", "budget": "none"},
        "metrics": {"score": {"unit": "", "better": "higher"}},
        "rows": [
            {"name": "baseline", "role": "baseline", "score": 0.0},
            {"name": "$name", "role": "method", "score": 0.0},
        ],
        "criterion": "$name beats the baseline",
        "holds": False,
        "curves": [],
    }
''')

CONFTEST = """\
from hypothesis import settings

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("isolated")
"""

TEST_README = Template("""\
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_of_the_readme_run_as_they_stand():
    blocks = re.findall(r"```python\\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks, "the README shows no example"
    exec(compile("\\n".join(blocks), str(README), "exec"), {"__name__": "readme"})
""")

TEST_PROPERTIES = Template("""\
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from $module.demo import demo


@given(seed=st.integers(0, 2**31 - 1))
def test_demo_returns_plain_data_and_judges_its_own_criterion(seed):
    result = demo("smoke", seed=seed)
    assert json.loads(json.dumps(result)) == result
    baseline, method = result["rows"]
    assert result["holds"] == (method["score"] > baseline["score"])


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be .* got 'huge'"):
        demo("huge")
""")

BENCH = Template('''\
"""$module against its natural peer: one group, exactly two cases, the same input."""

import pytest


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="placeholder")
def test_placeholder(benchmark, case):
    values = list(range(1000))
    run = {"ours": lambda: sum(values), "peer": lambda: sum(value for value in values)}
    assert run["ours"]() == run["peer"]()
    benchmark.extra_info.update(case=case, peer="a generator expression", size="1,000 integers")
    benchmark(run[case])
''')


def files(name: str) -> dict[str, str]:
    """The text of every file of a new package, by path relative to its folder.

    Args:
        name: The distribution's name, e.g. `"poseidon-lite"`.

    Returns:
        Relative path -> text.

    Raises:
        ValueError: If the name is not a lower-case distribution name.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(f"name must be lower-case letters, digits and single dashes, got {name!r}")
    module = name.replace("-", "_")
    if module in sys.stdlib_module_names:
        raise ValueError(f"name must not shadow the standard library's module {module!r}")
    words = {"name": name, "module": module, "date": datetime.date.today().isoformat()}
    source = f"src/{module}"
    return {
        "pyproject.toml": PYPROJECT.substitute(words),
        "README.md": README.substitute(words),
        "CHANGELOG.md": CHANGELOG.substitute(words),
        f"{source}/__init__.py": INIT.substitute(words),
        f"{source}/demo.py": DEMO.substitute(words),
        f"{source}/py.typed": "",
        "tests/conftest.py": CONFTEST,
        "tests/test_readme.py": TEST_README.substitute(words),
        "tests/test_properties.py": TEST_PROPERTIES.substitute(words),
        f"benchmarks/bench_{module}.py": BENCH.substitute(words),
    }


def scaffold(root: Path, name: str) -> Path:
    """Write a new package under `root/packages` and return its folder.

    Args:
        root: The repository's root.
        name: The distribution's name.

    Raises:
        ValueError: If the name is malformed.
        FileExistsError: If the folder is there already; nothing is overwritten.
    """
    texts = files(name)
    folder = root / "packages" / name
    if folder.exists():
        raise FileExistsError(f"{folder.relative_to(root)} exists already; nothing was written")
    for relative, text in texts.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(root / "LICENSE", folder / "LICENSE")
    return folder


def main() -> int:
    """Command line: one name, a clear line on failure."""
    parser = argparse.ArgumentParser(prog="nox -s new --", description="Scaffold a package.")
    parser.add_argument("name")
    try:
        folder = scaffold(Path.cwd(), parser.parse_args().name)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder.relative_to(Path.cwd())}: written. Next: nox -s 'tests({folder.name})'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
