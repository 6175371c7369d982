"""Scaffold, release checks, evidence and tables, on repositories made for the purpose."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_storage import a_run

from armillary.contract import Figure
from armillary.workspace import tables
from armillary.workspace.evidence import collect, speed
from armillary.workspace.figures import draw
from armillary.workspace.metadata import DRAFT
from armillary.workspace.release import ReleaseError, archive_problems, digest, has_changelog_entry, release
from armillary.workspace.scaffold import scaffold

ROOT = Path(__file__).parents[2]
WORKSPACE = """\
[tool.armillary]
repository = "https://code.invalid/x"
site = "https://site.invalid/"
"""


def git(root, *arguments):
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.invalid"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    shutil.copy(ROOT / "LICENSE", tmp_path / "LICENSE")
    (tmp_path / ".gitignore").write_text("dist/\n")
    (tmp_path / "pyproject.toml").write_text(WORKSPACE)
    git(tmp_path, "init", "--quiet")
    for name in ("alpha", "beta-two"):
        folder = scaffold(tmp_path, name)
        pyproject = folder / "pyproject.toml"
        marked = [line for line in pyproject.read_text().splitlines() if DRAFT not in line]
        pyproject.write_text("\n".join(marked) + "\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "--quiet", "-m", "two packages")
    return tmp_path


def set_version(folder, version, changelog=True):
    pyproject = folder / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('version = "0.1.0"', f'version = "{version}"'))
    if changelog:
        path = folder / "CHANGELOG.md"
        path.write_text(path.read_text().replace("## [0.1.0]", f"## [{version}] - 2026-01-01\n\n## [0.1.0]"))


def test_two_packages_at_different_versions_are_released_on_the_same_day(repository):
    set_version(repository / "packages" / "beta-two", "2.3.0")
    git(repository, "commit", "--quiet", "-am", "beta-two 2.3.0")
    built = [
        path.name for name in ("alpha", "beta-two") for path in release(repository, name, run_tests=False)
    ]
    assert sorted(built) == [
        "alpha-0.1.0-py3-none-any.whl",
        "alpha-0.1.0.tar.gz",
        "beta_two-2.3.0-py3-none-any.whl",
        "beta_two-2.3.0.tar.gz",
    ]
    git(repository, "tag", "alpha-v0.1.0")
    git(repository, "tag", "beta-two-v2.3.0")
    set_version(repository / "packages" / "alpha", "0.2.0")
    git(repository, "commit", "--quiet", "-am", "alpha 0.2.0")
    before = digest(repository / "dist" / "beta_two-2.3.0-py3-none-any.whl")
    assert "alpha-0.2.0.tar.gz" in [path.name for path in release(repository, "alpha", run_tests=False)]
    with pytest.raises(ReleaseError, match=r"the tag beta-two-v2.3.0 exists already"):
        release(repository, "beta-two", run_tests=False)
    assert digest(repository / "dist" / "beta_two-2.3.0-py3-none-any.whl") == before


def test_a_release_names_every_reason_against_it(repository):
    set_version(repository / "packages" / "alpha", "0.9.0", changelog=False)
    with pytest.raises(ReleaseError) as caught:
        release(repository, "alpha", run_tests=False)
    assert "the working tree is dirty" in str(caught.value)
    assert "CHANGELOG.md has no entry for 0.9.0" in str(caught.value)
    with pytest.raises(ReleaseError, match="there is no package 'gamma'"):
        release(repository, "gamma", run_tests=False)


def test_a_freshly_scaffolded_package_is_private(tmp_path, repository):
    scaffold(repository, "gamma")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "gamma")
    with pytest.raises(ReleaseError, match="Do Not Upload"):
        release(repository, "gamma", run_tests=False)


def test_stray_and_missing_files_of_a_wheel_are_named(repository):
    wheel, folder = release(repository, "alpha", run_tests=False), repository / "packages" / "alpha"
    wheel = next(path for path in wheel if path.suffix == ".whl")
    assert archive_problems(wheel, folder) == []
    (folder / "src" / "alpha" / "py.typed").unlink()
    (folder / "src" / "alpha" / "other.py").write_text("")
    assert archive_problems(wheel, folder) == [
        f"{wheel.name}: stray file alpha/py.typed",
        f"{wheel.name}: missing file alpha/other.py",
    ]


def test_a_library_belongs_to_a_wheel_whose_package_has_its_source(repository):
    archives, folder = release(repository, "alpha", run_tests=False), repository / "packages" / "alpha"
    wheel = next(path for path in archives if path.suffix == ".whl")
    library = "alpha/_native.so"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(library, b"")
    assert archive_problems(wheel, folder) == [f"{wheel.name}: stray file {library}"]
    (folder / "src" / "alpha" / "native.c").write_text("")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("alpha/native.c", "")
    assert archive_problems(wheel, folder) == []


@pytest.mark.parametrize("name", ["Alpha", "a_b", "1a", "a--b", "../a", "", "class", "json", "a b", "torch"])
def test_a_bad_name_is_refused(tmp_path, name):
    lock = tmp_path / "uv.lock"
    lock.write_text('[[package]]\nname = "torch"\nversion = "2.15.0"\n')
    with pytest.raises(ValueError, match="name must"):
        scaffold(tmp_path, name)
    assert list(tmp_path.iterdir()) == [lock]


def test_an_existing_package_is_not_overwritten(repository):
    readme = repository / "packages" / "alpha" / "README.md"
    readme.write_text("mine")
    with pytest.raises(FileExistsError, match="packages/alpha exists already"):
        scaffold(repository, "alpha")
    assert readme.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "found"),
    [("## [1.2.0] - 2026", True), ("## 1.2.0", True), ("## [1.2.0.1]", False), ("1.2.0", False)],
)
def test_changelog_entries(tmp_path, text, found):
    path = tmp_path / "CHANGELOG.md"
    path.write_text(f"# Changelog\n\n{text}\n")
    assert has_changelog_entry(path, "1.2.0") is found


def benchmark(case, group="loss", median=1.0, **extra):
    stats = {"median": median, "q1": median * 0.5, "q3": median * 2}
    about = {"case": case, "peer": "a loop", "size": "10", **extra}
    return {"fullname": f"{group}[{case}]", "group": group, "extra_info": about, "stats": stats}


@given(ours=st.floats(1e-6, 1e3), factor=st.floats(1e-3, 1e3))
def test_the_ratio_is_peer_over_ours_with_its_quartiles(ours, factor):
    report = {"benchmarks": [benchmark("ours", median=ours), benchmark("peer", median=ours * factor)]}
    (group,) = speed("x", "1", report).groups
    assert group.ratio.median == pytest.approx(factor, rel=6e-3)
    assert group.ratio.low == pytest.approx(factor / 4, rel=6e-3)
    assert group.ratio.high == pytest.approx(factor * 4, rel=6e-3)


def test_values_are_compared_instead_of_times_where_a_case_gives_them():
    cases = [benchmark("ours", value=10, quantity="bytes"), benchmark("peer", value=50, quantity="bytes")]
    (group,) = speed("x", "1", {"benchmarks": cases}).groups
    assert (group.quantity, group.ratio.low, group.ratio.median) == ("bytes", 5.0, 5.0)


@pytest.mark.parametrize("cases", [["ours"], ["ours", "ours"], ["ours", "theirs"], ["ours", "peer", "peer"]])
def test_a_comparison_is_exactly_ours_and_peer(cases):
    with pytest.raises(ValueError, match="ours"):
        speed("x", "1", {"benchmarks": [benchmark(case) for case in cases]})


def test_evidence_is_three_laptop_seeds_of_this_version(tmp_path, result):
    from armillary.storage import Store

    store = Store(tmp_path)
    for seed in (0, 1):
        store.save(a_run(result, seed=seed))
    store.save(a_run(result, seed=2, version="0.9"))
    with pytest.raises(ValueError, match=r"evidence is three laptop seeds, .* holds 2"):
        collect("good", "1.0", tmp_path)
    store.save(a_run(result, seed=2))
    assert [run.seed for run in collect("good", "1.0", tmp_path).runs] == [0, 1, 2]


def test_tables_are_filled_from_the_evidence_and_staleness_is_seen(repository, result):
    def stale():
        return [line for line in tables.stale(repository) if not line.endswith("is missing")]

    (repository / "README.md").write_text("# x\n\n<!-- methods:all -->\n<!-- /methods -->\n")
    tables.refresh(repository)
    assert stale() == []
    evidence = repository / "docs" / "evidence"
    evidence.mkdir(parents=True)
    run = a_run(result)
    seeds = [{"seed": seed, "seconds": 1.0, "result": result} for seed in range(3)]
    document = {
        "name": "alpha",
        "version": "0.1.0",
        "preset": "laptop",
        "machine": run.machine.model_dump(),
        "runs": seeds,
    }
    (evidence / "alpha.json").write_text(json.dumps(document))
    assert stale() == ["packages/alpha/README.md is stale", "README.md is stale"]
    tables.refresh(repository)
    assert stale() == []
    block = (repository / "packages" / "alpha" / "README.md").read_text()
    for line in (
        "**Holds on 3 of 3 seeds.**",
        "- ✓ walking ends at half the distance: 0.25, needs <= 0.5 (3 of 3 seeds)",
        "| **walking** | 0.5 | 10 |",
    ):
        assert line in block.splitlines()
    assert "| 3 of 3 seeds |" in (repository / "README.md").read_text()
    set_version(repository / "packages" / "alpha", "0.2.0")
    assert tables.outdated(repository) == ["docs/evidence: alpha is at 0.2.0, its evidence at 0.1.0"]
    shutil.rmtree(repository / "packages" / "beta-two")
    assert "README.md is stale" in stale()
    tables.refresh(repository)
    assert "beta-two" not in (repository / "README.md").read_text()


def test_metadata_that_a_finished_package_lacks_is_named(repository):
    (repository / "README.md").write_text("<!-- methods:all -->\n<!-- /methods -->\n")
    tables.refresh(repository)
    for key in ("[tool.armillary] problem", "[tool.armillary] rivals", "[project.urls] Paper"):
        assert f"packages/alpha/pyproject.toml: {key} is missing" in tables.stale(repository)


def test_every_package_of_this_repository_is_part_of_the_frame():
    from armillary.catalog import installed

    assert {package.name for package in tables.packages(ROOT)} <= installed().keys()


def test_every_recipe_has_its_module_script_page_and_figure():
    modules = {path.stem for path in (ROOT / "integration/src/armillary/recipes").glob("[a-z]*.py")}
    assert modules
    for place in ("docs/recipes/*.py", "docs/evidence/recipes/*.json"):
        assert {path.stem for path in ROOT.glob(place)} == modules
    index = (ROOT / "docs/pages/recipes/index.md").read_text()
    for name in modules:
        page = f"{name.replace('_', '-')}.md"
        text = (ROOT / "docs/pages/recipes" / page).read_text()
        assert f"<!-- recipe:{name} -->" in text
        assert f"docs/recipes/{name}.py" in text
        assert f"::: armillary.recipes.{name}" in text
        assert f"]({page})" in index
        Figure.model_validate_json((ROOT / "docs/evidence/recipes" / f"{name}.json").read_text())


def test_a_script_that_gives_no_figure_is_refused(tmp_path):
    scripts = tmp_path / "docs" / "recipes"
    scripts.mkdir(parents=True)
    (scripts / "good.py").write_text(
        "def figure():\n    return {'images': [{'title': 'x', 'values': [[1.0]]}]}\n"
    )
    (scripts / "bad.py").write_text("def figure():\n    return {'curves': 3}\n")
    draw(tmp_path, "good")
    kept = tmp_path / "docs" / "evidence" / "recipes" / "good.json"
    assert Figure.model_validate_json(kept.read_text()).images[0].values == [[1.0]]
    with pytest.raises(ValueError, match="curves"):
        draw(tmp_path, "bad")
