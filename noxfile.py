"""The sessions. Plain `nox` runs what CI runs, two at a time; a new folder under packages/ needs no edit here."""

import json
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECTS = {path.parent.name: path.read_text() for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
PACKAGES = list(PROJECTS)
READY = [
    name for name, text in PROJECTS.items() if "Private :: Do Not Upload" not in text
]  # the rest are drafts
COSTS = ROOT / ".costs"  # CPU seconds, by session and suite; armillary.workspace.costs makes a page of them

nox.needs_version = ">=2026.8.17"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
nox.options.allow_parallel = True
nox.options.parallel = 2
nox.options.sessions = ["all_tests", "all_lowest", "integration", "types", "docs", "lint"]

packages = nox.parametrize("package", PACKAGES, ids=PACKAGES)


# --- what sessions share ---------------------------------------------------------------------------


def workspace(session, *groups):
    """Everything in the repository, editable, in this session's own environment, as uv.lock has it."""
    session.run_install(
        "uv", "sync", "--quiet", "--frozen", "--all-packages", "--all-extras", "--no-dev",
        *(f"--group={group}" for group in groups),
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )  # fmt: skip


@contextmanager
def counted(name):
    """Write the CPU seconds of all that is started inside, and the seconds that passed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        yield
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        COSTS.mkdir(exist_ok=True)
        cost = {"cpu": round(cpu, 1), "wall": round(time.monotonic() - start, 1)}
        (COSTS / f"{name}.json").write_text(json.dumps(cost) + "\n")


# --- one package alone -----------------------------------------------------------------------------


def closure(session, package, kind):
    """A file that pins what one package and its tests declare, and what that pulls in; nothing else."""
    pins = Path(session.create_tmp()) / f"{package}.txt"
    if kind == "tests":  # as the lock has it
        resolve = ["export", "--frozen", f"--package={package}", "--group=test", "--no-emit-workspace",
                   "--no-hashes"]  # fmt: skip
    else:
        project = f"packages/{package}/pyproject.toml"
        resolution = {"lowest": "lowest-direct", "newest": "highest"}[kind]
        resolve = ["pip", "compile", project, f"--group={project}:test", f"--resolution={resolution}",
                   f"--python={session.virtualenv.location}"]  # fmt: skip
    session.run_install("uv", *resolve, "--quiet", "--no-annotate", "--no-header", f"--output-file={pins}")
    return pins


def install_alone(session, package, kind):
    """Bring the environment to exactly the package's closure and its wheel; what was there before goes."""
    target = f"--python={session.virtualenv.location}"
    pins = closure(session, package, kind)
    session.run_install("uv", "pip", "sync", "--quiet", "--allow-empty-requirements", target, str(pins))
    wheels = Path(session.create_tmp()) / "wheel"
    session.run_install(
        "uv", "build", "--quiet", "--wheel", "--clear", f"--out-dir={wheels}", f"packages/{package}"
    )
    wheel = next(wheels.glob("*.whl"))
    session.run_install("uv", "pip", "install", "--quiet", "--no-deps", target, str(wheel))


def run_suite(session, package, kind):
    """The suite against the installed wheel; the source tree is not importable from where it runs.

    With the lowest versions the question is whether they have what is used: no doctests, no demo, few examples.
    """
    folder, module = ROOT / "packages" / package, package.replace("-", "_")
    lowest = kind == "lowest"
    what = ["-m", "not demo"] if lowest else ["--doctest-modules", "--pyargs", module]
    COSTS.mkdir(exist_ok=True)
    with session.chdir(session.create_tmp()):
        session.run(
            "python", "-P", str(ROOT / "integration/src/armillary/workspace/suite.py"),
            str(COSTS / f"{kind}-{package}.json"),
            "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
            "-o", "faulthandler_timeout=300", "-o", "faulthandler_exit_on_timeout=true",
            f"--config-file={folder}/pyproject.toml", f"--rootdir={folder}",
            f"{folder}/tests", *what, *(arg for arg in session.posargs if arg not in PACKAGES),
            # Tests are many small tensors; and a process that one of them starts finds torch compiled.
            env={
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "",
                "ARMILLARY_LOWEST": "1" if lowest else None,
            },
        )  # fmt: skip


def alone(session, package, kind):
    """Install one package and what it declares, nothing else, and run its suite."""
    with counted(f"session-{kind}-{package}"):
        install_alone(session, package, kind)
        run_suite(session, package, kind)


def one_after_the_other(session, kind):
    """Every finished package alone, in one environment that is brought to each in turn; all failures are told.

    `nox -s all_tests -- NAME...` takes these only.
    """
    failed = []
    for package in [name for name in session.posargs if name in PACKAGES] or READY:
        try:
            alone(session, package, kind)
        except nox.command.CommandFailed:
            failed.append(package)
    if failed:
        session.error(f"{kind} fails for: {', '.join(failed)}")


@nox.session
@packages
def tests(session, package):
    """Test one package alone: its wheel, and its test group as locked, in a fresh environment."""
    alone(session, package, "tests")


@nox.session(python="3.11")
@packages
def lowest(session, package):
    """Test one package with the lowest versions it declares."""
    alone(session, package, "lowest")


@nox.session
@packages
def newest(session, package):
    """Test one package with the newest versions there are, whatever the lock says."""
    alone(session, package, "newest")


@nox.session
def all_tests(session):
    """`tests` of every finished package."""
    one_after_the_other(session, "tests")


@nox.session(python="3.11")
def all_lowest(session):
    """`lowest` of every finished package."""
    one_after_the_other(session, "lowest")


# --- all together ----------------------------------------------------------------------------------


@nox.session
def integration(session):
    """Test the frame with every package installed; hold tables and metadata against their sources."""
    with counted("session-integration"):
        workspace(session, "integration", "docs")
        session.run("pytest", "-q", "-c", "integration/pyproject.toml", "integration/tests", *session.posargs)
        session.run("python", "-m", "armillary.workspace.tables", "--check")


@nox.session
def lint(session):
    """Lint and check the format of everything but drafts."""
    with counted("session-lint"):
        workspace(session, "lint")
        files = ["noxfile.py", "integration", "docs", *(f"packages/{name}" for name in READY)]
        session.run("ruff", "check", *files)
        session.run("ruff", "format", "--check", *files)


@nox.session
def types(session):
    """Type-check every package's sources and the frame's, strictly."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    with counted("session-types"):
        workspace(session, "types")
        # torch's stubs are most of the work; kept outside of the clone, the next one finds it done.
        cache = f"--cache-dir={caches / 'armillary' / 'mypy'}"
        session.run("mypy", cache, "integration/src", *(f"packages/{name}/src" for name in READY))


@nox.session
def docs(session):
    """Build the site; a warning is an error."""
    with counted("session-docs"):
        workspace(session, "docs")
        session.run("python", "-m", "armillary.workspace.site")
        # Never with --quiet: it lifts warnings out of what --strict counts.
        session.run(
            "mkdocs", "build", "--strict", "--config-file", "docs/.site/mkdocs.yml",
            env={"NO_MKDOCS_2_WARNING": "1"},
        )  # fmt: skip


@nox.session
def costs(session):
    """Write the table of CPU seconds, and what they come to with more packages, from the last plain `nox`."""
    workspace(session)
    session.run("python", "-m", "armillary.workspace.costs")


# --- evidence --------------------------------------------------------------------------------------


@nox.session(allow_parallel=False)
@packages
def bench(session, package):
    """Time one package against its peers and write docs/evidence/<package>.speed.json."""
    workspace(session, "bench")
    results = Path(session.create_tmp()) / "benchmark.json"
    benchmarks = sorted(map(str, Path("packages", package, "benchmarks").glob("bench_*.py")))
    session.run("pytest", "-q", *benchmarks, f"--benchmark-json={results}", *session.posargs)
    session.run("python", "-m", "armillary.workspace.evidence", "speed", package, str(results))


@nox.session(allow_parallel=False)
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


# --- packages come and go --------------------------------------------------------------------------


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
    session.run("python", "-m", "armillary.workspace.release", package, *session.posargs)


@nox.session
def new(session):
    """Scaffold a package: nox -s new -- NAME."""
    session.run("python", "integration/src/armillary/workspace/scaffold.py", *session.posargs)
    session.run("uv", "lock", "--quiet", external=True)


@nox.session
def changed(session):
    """Test, as locked and with the lowest versions, the packages that differ from main; all if the frame does."""
    files = session.run("git", "diff", "--name-only", "main...HEAD", external=True, silent=True).splitlines()
    status = session.run("git", "status", "--porcelain", external=True, silent=True).splitlines()
    files += [line[3:] for line in status]
    everything = any(file.startswith(("uv.lock", "noxfile.py", "pyproject.toml")) for file in files)
    for package in PACKAGES:
        if everything or any(file.startswith(f"packages/{package}/") for file in files):
            session.notify(f"tests({package})")
            session.notify(f"lowest({package})")
    if everything or any(file.startswith("integration/") for file in files):
        session.notify("integration")


@nox.session
def audit(session):
    """Look up known vulnerabilities of everything in uv.lock (needs the network; not part of plain nox)."""
    session.run("uv", "audit", "--frozen", external=True)
