"""Whether a package can be released: `python -m armillary.workspace.release NAME`.

Every check names what is wrong; when all pass, sdist and wheel are built twice and compared byte for byte, and the
commands that tag and publish are printed, not run.
"""

from __future__ import annotations

import hashlib
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


class ReleaseError(RuntimeError):
    """Why a package cannot be released."""


def release(root: Path, name: str, *, run_tests: bool = True) -> list[Path]:
    """Check one package and build what would be published into `dist/`.

    Args:
        root: The repository's root.
        name: The package.
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
    if problems := list(_source_problems(root, folder, project)):
        raise ReleaseError("\n".join(problems))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        built, again = _build(root, folder, Path(first)), _build(root, folder, Path(second))
        problems = [
            f"{one.name}: two builds differ"
            for one, two in zip(built, again, strict=True)
            if digest(one) != digest(two)
        ]
        problems += [problem for path in built for problem in archive_problems(path, folder)]
        if problems:
            raise ReleaseError("\n".join(problems))
        if run_tests and subprocess.run(["nox", "-s", f"tests({name})"], cwd=root).returncode:
            raise ReleaseError(f"the isolated tests of {name} {version} fail")
        out = root / "dist"
        out.mkdir(exist_ok=True)
        return [path.replace(out / path.name) for path in built]


def _source_problems(root: Path, folder: Path, project: dict[str, object]) -> Iterator[str]:
    tag = f"{project['name']}-v{project['version']}"
    if _git(root, "status", "--porcelain"):
        yield "the working tree is dirty: commit or stash first"
    if not has_changelog_entry((folder / "CHANGELOG.md"), str(project["version"])):
        yield f"CHANGELOG.md has no entry for {project['version']}"
    if _git(root, "tag", "--list", tag):
        yield f"the tag {tag} exists already: raise the version"
    if any("Do Not Upload" in str(line) for line in project.get("classifiers", ())):  # type: ignore[attr-defined]
        yield "the package is still marked 'Private :: Do Not Upload'"


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
        stray, missing = names - info - expected, expected - names
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


def main(name: str) -> int:
    """Command line."""
    root = Path.cwd()
    try:
        archives = release(root, name)
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
    sys.exit(main(*sys.argv[1:]))
