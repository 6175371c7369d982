"""The sessions. Plain `nox` runs what CI runs; a new folder under packages/ needs no edit here."""

from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECTS = {path.parent.name: path.read_text() for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
PACKAGES = list(PROJECTS)
READY = [
    name for name, text in PROJECTS.items() if "Private :: Do Not Upload" not in text
]  # the rest are drafts

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = [
    "lint",
    "types",
    *(f"{isolated}({name})" for name in READY for isolated in ("tests", "lowest")),
    "integration",
    "docs",
]

packages = nox.parametrize("package", PACKAGES, ids=PACKAGES)


def workspace(session, *groups):
    """Everything in the repository, editable, in this session's own environment, as uv.lock has it."""
    session.run_install(
        "uv", "sync", "--quiet", "--frozen", "--all-packages", "--all-extras", "--no-dev",
        *(f"--group={group}" for group in groups),
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )  # fmt: skip


def locked_versions(session):
    """The lock as a constraints file: isolated environments differ in what they hold, never in versions."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    session.run_install(
        "uv", "export", "--quiet", "--frozen", "--all-packages", "--all-extras", "--all-groups",
        "--no-emit-workspace", "--no-hashes", "--no-annotate", f"--output-file={constraints}",
        silent=True,
    )  # fmt: skip
    return constraints


def build_wheel(session, package):
    folder = Path(session.create_tmp()) / "wheel"
    session.run_install(
        "uv", "build", "--quiet", "--wheel", "--clear", f"--out-dir={folder}", f"packages/{package}"
    )
    return next(folder.glob("*.whl"))


def run_tests(session, package):
    """The suite and the doctests against the installed wheel; the source tree is not importable from here."""
    tests, module = ROOT / "packages" / package, package.replace("-", "_")
    session.chdir(session.create_tmp())
    session.run(
        "python", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
        "-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true",
        f"--config-file={tests}/pyproject.toml", f"--rootdir={tests}", "--doctest-modules",
        f"{tests}/tests", "--pyargs", module, *session.posargs,
        # Tests are many small tensors; and a process that one of them starts finds torch compiled.
        env={"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""},
    )  # fmt: skip


@nox.session
@packages
def tests(session, package):
    """Test one package alone: its wheel and its test group in a fresh environment."""
    test_group = f"--group=packages/{package}/pyproject.toml:test"
    session.install(build_wheel(session, package), test_group, f"--constraints={locked_versions(session)}")
    run_tests(session, package)


@nox.session(python="3.11")
@packages
def lowest(session, package):
    """Test one package with the lowest versions it declares."""
    project = f"packages/{package}/pyproject.toml"
    session.install("--resolution=lowest-direct", "-r", project, f"--group={project}:test")
    session.install("--no-deps", build_wheel(session, package))
    run_tests(session, package)


@nox.session
def integration(session):
    """Test the frame with every package installed."""
    workspace(session, "integration")
    session.run("pytest", "-q", "-c", "integration/pyproject.toml", "integration/tests", *session.posargs)
    session.run("python", "-m", "armillary.workspace.tables", "--check")


@nox.session
def lint(session):
    """Lint and check the format of everything but drafts."""
    workspace(session, "lint")
    files = ["noxfile.py", "integration", "docs", *(f"packages/{name}" for name in READY)]
    session.run("ruff", "check", *files)
    session.run("ruff", "format", "--check", *files)


@nox.session
def types(session):
    """Type-check every package's sources and the frame's, strictly."""
    workspace(session, "types")
    session.run("mypy", "integration/src", *(f"packages/{name}/src" for name in READY))


@nox.session
def docs(session):
    """Build the site; a warning is an error."""
    workspace(session, "docs")
    session.run("mkdocs", "build", "--strict", "--quiet", "--config-file", "docs/mkdocs.yml")


@nox.session
@packages
def bench(session, package):
    """Time one package against its peer and write docs/evidence/<package>.speed.json."""
    workspace(session, "bench")
    results = Path(session.create_tmp()) / "benchmark.json"
    benchmarks = sorted(map(str, Path("packages", package, "benchmarks").glob("bench_*.py")))
    session.run("pytest", "-q", *benchmarks, f"--benchmark-json={results}", *session.posargs)
    session.run("python", "-m", "armillary.workspace.evidence", "speed", package, str(results))


@nox.session
@packages
def evidence(session, package):
    """Run one package's demo at the laptop preset, three seeds, and write docs/evidence/<package>.json."""
    workspace(session)
    results = Path(session.create_tmp())
    options = ["--seeds=3", "--timeout=1800", f"--out={results}"]
    session.run("armillary", "run", package, *options, *session.posargs)
    session.run("python", "-m", "armillary.workspace.evidence", "demo", package, str(results))


@nox.session
def recipes(session):
    """Draw the figures of the recipes anew: nox -s recipes -- [NAME...]."""
    workspace(session)
    names = session.posargs or sorted(path.stem for path in ROOT.glob("docs/recipes/*.py"))
    session.run("python", "-m", "armillary.workspace.figures", *names)


@nox.session
@packages
def build(session, package):
    """Build one package's sdist and wheel into dist/."""
    session.run("uv", "build", "--out-dir", "dist", f"packages/{package}", external=True)


@nox.session
@packages
def release(session, package):
    """Check that one package can be released, build it reproducibly, print the tag and publish commands."""
    workspace(session)
    session.run("python", "-m", "armillary.workspace.release", package)


@nox.session
def new(session):
    """Scaffold a package: nox -s new -- NAME."""
    session.run("python", "integration/src/armillary/workspace/scaffold.py", *session.posargs)


@nox.session
def changed(session):
    """Test only the packages that differ from main."""
    files = session.run("git", "diff", "--name-only", "main...HEAD", external=True, silent=True).splitlines()
    files += session.run("git", "status", "--porcelain", external=True, silent=True).split()
    for package in PACKAGES:
        if any(file.startswith(f"packages/{package}/") for file in files):
            session.notify(f"tests({package})")


@nox.session
def audit(session):
    """Look up known vulnerabilities of everything in uv.lock (needs the network; not part of plain nox)."""
    session.run("uv", "audit", "--frozen", external=True)
