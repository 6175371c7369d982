"""Whether a package can be released: `python -m armillary.workspace.release NAME [--tag TAG]`.

Every check names what is wrong; when all pass, sdist and wheel are built twice and compared byte for byte, and the
commands that tag and publish are printed, not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from armillary.workspace.metadata import DRAFT


class ReleaseError(RuntimeError):
    """Why a package cannot be released."""


def release(root: Path, name: str, *, tag: str | None = None, run_tests: bool = True) -> list[Path]:
    """Check one package and build what would be published into `dist/`.

    Args:
        root: The repository's root.
        name: The package.
        tag: The tag that is being released, if there is one already; it must be the package's name and version.
        run_tests: Whether to run its isolated tests as well.

    Returns:
        The sdist and the wheel.

    Raises:
        ReleaseError: Naming every reason that speaks against it.
    """
    folder = root / "packages" / name if name != "armillary" else root / "integration"
    if not (folder / "pyproject.toml").exists():
        raise ReleaseError(f"there is no package {name!r}")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    version = project["version"]
    problems = list(_source_problems(root, folder, project))
    if tag is not None and tag != f"{name}-v{version}":
        problems.append(f"the tag {tag} is not {name}-v{version}")
    if problems:
        raise ReleaseError("\n".join(problems))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        built, again = _build(root, folder, Path(first)), _build(root, folder, Path(second))
        problems = [
            f"{one.name}: two builds differ"
            for one, two in zip(built, again, strict=True)
            if digest(one) != digest(two)
        ]
        problems += [problem for path in built for problem in archive_problems(path, folder)]
        problems += _twine_problems(built)
        if problems:
            raise ReleaseError("\n".join(problems))
        if run_tests and subprocess.run(["nox", "-s", f"tests({name})"], cwd=root).returncode:
            raise ReleaseError(f"the isolated tests of {name} {version} fail")
        out = root / "dist"
        out.mkdir(exist_ok=True)
        return [path.replace(out / path.name) for path in built]


def _source_problems(root: Path, folder: Path, project: dict[str, Any]) -> Iterator[str]:
    tag = f"{project['name']}-v{project['version']}"
    if _git(root, "status", "--porcelain"):
        yield "the working tree is dirty: commit or stash first"
    if not has_changelog_entry((folder / "CHANGELOG.md"), str(project["version"])):
        yield f"CHANGELOG.md has no entry for {project['version']}"
    if _git(root, "tag", "--list", tag):
        yield f"the tag {tag} exists already: raise the version"
    if DRAFT in project.get("classifiers", ()):
        yield f"the package is still marked {DRAFT!r}"
    for kind in ("json", "speed.json"):
        path = root / "docs" / "evidence" / f"{project['name']}.{kind}"
        found = json.loads(path.read_text())["version"] if path.exists() else None
        if found not in (None, project["version"]):
            yield f"docs/evidence/{path.name} is of version {found}: a release shows what it can do itself"


def has_changelog_entry(path: Path, version: str) -> bool:
    """Whether a changelog has a heading for a version."""
    return path.exists() and bool(
        re.search(rf"^## \[?{re.escape(version)}\]?(\s|$)", path.read_text(), re.MULTILINE)
    )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def archive_problems(path: Path, folder: Path) -> list[str]:
    """Stray and missing files of a wheel or sdist.

    Args:
        path: The archive.
        folder: The package's folder.
    """
    source = next(item for item in (folder / "src").iterdir() if (item / "__init__.py").exists())
    expected = {
        str(file.relative_to(folder / "src"))
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    if path.suffix == ".whl":
        names = set(zipfile.ZipFile(path).namelist())
        info = {name for name in names if re.match(r"[^/]+\.dist-info/", name)}
        stray, missing = names - info - expected - _compiled(names, source), expected - names
        if not any(name.endswith("/licenses/LICENSE") for name in info):
            missing.add("LICENSE")
    else:
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        allowed = re.compile(
            r"(src|tests|benchmarks)/|(README\.md|CHANGELOG\.md|LICENSE|pyproject\.toml|PKG-INFO|\.gitignore)$"
        )
        stray = {name for name in names if name and not allowed.match(name)}
        missing = {f"src/{name}" for name in expected} - names
    return [f"{path.name}: stray file {name}" for name in sorted(stray)] + [
        f"{path.name}: missing file {name}" for name in sorted(missing)
    ]


def _compiled(names: set[str], source: Path) -> set[str]:
    """The libraries in a wheel that its own build compiles, from C files among the package's modules."""
    if not any(source.glob("*.c")):
        return set()
    return {name for name in names if re.fullmatch(rf"{source.name}/_\w+\.(so|dylib)", name)}


def _twine_problems(archives: list[Path]) -> list[str]:
    """What the index would say of the metadata and of the README."""
    command = ["uvx", "--quiet", "twine", "check", "--strict", *map(str, archives)]
    done = subprocess.run(command, capture_output=True, text=True)
    return [done.stdout + done.stderr] if done.returncode else []


def _build(root: Path, folder: Path, out: Path) -> list[Path]:
    stamp = _git(root, "log", "-1", "--format=%ct", "--", str(folder)) or "315532800"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": stamp}
    command = ["uv", "build", "--quiet", "--no-create-gitignore", "--out-dir", str(out), str(folder)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"the build fails:\n{done.stderr}")
    return sorted(out.iterdir())


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="nox -s release --", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--tag", help="refuse unless it is the package's name and version")
    given = parser.parse_args()
    root, name = Path.cwd(), given.name
    try:
        archives = release(root, name, tag=given.tag)
    except ReleaseError as error:
        print(f"{name} cannot be released:\n{error}", file=sys.stderr)
        return 1
    version = next(path.name for path in archives if path.suffix == ".whl").split("-")[1]
    for path in archives:
        print(f"{digest(path)}  {path.relative_to(root)}")
    print(f"\ngit tag -s {name}-v{version} -m '{name} {version}'\ngit push origin {name}-v{version}")
    print("uv publish " + " ".join(str(path.relative_to(root)) for path in archives))
    return 0


if __name__ == "__main__":
    sys.exit(main())
