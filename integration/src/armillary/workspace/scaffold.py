"""Scaffold a new package: `python -m armillary.workspace.scaffold NAME`.

The files are those of `template/` with the name put in: the house's anatomy with nothing to prove yet. They pass
every session as they stand, and the demo says so itself by returning `holds: false`.
"""

from __future__ import annotations

import argparse
import datetime
import keyword
import re
import shutil
import sys
from pathlib import Path

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TEMPLATE = Path(__file__).parent / "template"


def files(root: Path, name: str) -> dict[str, str]:
    """The text of every file of a new package, by path relative to its folder.

    Args:
        root: The repository's root.
        name: The distribution's name, e.g. `"poseidon-lite"`.

    Raises:
        ValueError: If the name is not a lower-case distribution name, or is taken.
    """
    check_name(root, name)
    words = {
        "newmethod": name.replace("-", "_"),
        "new-method": name,
        "2000-01-01": datetime.date.today().isoformat(),
    }
    texts = {}
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            texts[_put(words, str(path.relative_to(TEMPLATE)))] = _put(words, path.read_text())
    return texts


def check_name(root: Path, name: str) -> None:
    """Refuse a name that is malformed, or that something else has: Python, or a distribution in the lock.

    Raises:
        ValueError: Saying why.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(f"name must be lower-case letters, digits and single dashes, got {name!r}")
    if name.replace("-", "_") in sys.stdlib_module_names:
        raise ValueError(f"name must not shadow the standard library's module {name!r}")
    lock = root / "uv.lock"
    if lock.exists() and f'\nname = "{name}"\n' in lock.read_text():
        raise ValueError(f"name must be new: uv.lock has a distribution {name!r} already")


def _put(words: dict[str, str], text: str) -> str:
    for word, replacement in words.items():
        text = text.replace(word, replacement)
    return text


def scaffold(root: Path, name: str) -> Path:
    """Write a new package under `root/packages` and return its folder.

    Args:
        root: The repository's root.
        name: The distribution's name.

    Raises:
        ValueError: If the name is malformed or taken.
        FileExistsError: If the folder is there already; nothing is overwritten.
    """
    folder = root / "packages" / name
    if NAME.fullmatch(name) and folder.exists():
        raise FileExistsError(f"{folder.relative_to(root)} exists already; nothing was written")
    for relative, text in files(root, name).items():
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
