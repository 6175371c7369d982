"""Which packages a change concerns, for a workflow's matrix: `python changed.py [BASE]`, by its path, on a bare Python.

All of them without a base, when there is none in this clone, or when something changed that concerns every one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EVERYTHING = (
    "uv.lock",
    "noxfile.py",
    "pyproject.toml",
    ".github/",
    "integration/src/armillary/workspace/suite.py",
)


def concerned(files: list[str], packages: list[str]) -> list[str]:
    """The packages to test when these files changed."""
    if any(file.startswith(EVERYTHING) for file in files):
        return packages
    touched = {file.split("/")[1] for file in files if file.startswith("packages/")}
    return [name for name in packages if name in touched]


def main(base: str = "") -> None:
    """Print the line `packages=[...]`."""
    packages = [path.parent.name for path in sorted(Path().glob("packages/*/pyproject.toml"))]
    diff = subprocess.run(
        ["git", "diff", "--name-only", base or "HEAD", "HEAD"], capture_output=True, text=True
    )
    known = base and diff.returncode == 0
    print(f"packages={json.dumps(concerned(diff.stdout.splitlines(), packages) if known else packages)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
