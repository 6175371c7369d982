"""What is made from the packages' own metadata, and what continuous integration makes of a change."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from armillary.workspace import costs, metadata
from armillary.workspace.changed import concerned
from armillary.workspace.scaffold import scaffold

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "integration" / "src" / "armillary" / "workspace" / "suite.py"

WORKSPACE = """\
[tool.armillary]
repository = "https://code.invalid/x"
site = "https://site.invalid/"
"""
FRAME = """\
[project]
name = "armillary"

[project.optional-dependencies]
all = [
    # all: generated
    # all: end
]

[tool.uv.sources]
# sources: generated
# sources: end
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "pyproject.toml").write_text(WORKSPACE)
    (tmp_path / "integration").mkdir()
    (tmp_path / "integration" / "pyproject.toml").write_text(FRAME)
    for name in ("alpha", "beta-two", "draft"):
        scaffold(tmp_path, name)
        if name != "draft":
            finish(tmp_path, name)
    return tmp_path


def finish(root, name):
    path = root / "packages" / name / "pyproject.toml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if metadata.DRAFT not in line))


def refresh(root):
    for path, text in metadata.wanted(root).items():
        path.write_text(text)


def test_a_new_package_is_part_of_the_frame_without_an_edit_by_hand(root):
    refresh(root)
    frame = tomllib.loads((root / "integration" / "pyproject.toml").read_text())
    assert frame["project"]["optional-dependencies"]["all"] == ["alpha[demo]>=0.1", "beta-two[demo]>=0.1"]
    assert frame["tool"]["uv"]["sources"] == {
        "alpha": {"workspace": True},
        "beta-two": {"workspace": True},
    }
    finish(root, "draft")
    assert metadata.wanted(root)[root / "integration" / "pyproject.toml"].count("draft") == 2


def test_urls_are_written_from_the_one_place_and_the_paper_stays(root):
    path = root / "packages" / "alpha" / "pyproject.toml"
    path.write_text(path.read_text() + '\n[project.urls]\nSource = "old"\nPaper = "https://paper.invalid"\n')
    refresh(root)
    assert tomllib.loads(path.read_text())["project"]["urls"] == {
        "Paper": "https://paper.invalid",
        "Documentation": "https://site.invalid/methods/alpha/",
        "Source": "https://code.invalid/x/tree/main/packages/alpha",
        "Changelog": "https://code.invalid/x/blob/main/packages/alpha/CHANGELOG.md",
        "Issues": "https://code.invalid/x/issues",
    }
    before = path.read_text()
    refresh(root)
    assert path.read_text() == before
    other = tomllib.loads((root / "packages" / "beta-two" / "pyproject.toml").read_text())
    assert other["project"]["urls"]["Documentation"] == "https://site.invalid/methods/beta-two/"
    assert other["project"]["entry-points"]["armillary.demos"] == {"beta-two": "beta_two.demo:demo"}


def test_what_a_finished_package_does_not_say_of_itself_is_named(root):
    found = list(metadata.problems(root))
    assert "packages/alpha/pyproject.toml: [tool.armillary] use-when is missing" in found
    assert "packages/beta-two/pyproject.toml: [project.urls] Paper is missing" in found
    assert not any("draft" in line for line in found)


def test_every_finished_package_says_what_the_guide_needs():
    assert list(metadata.problems(ROOT)) == []


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["packages/a/src/x.py", "docs/pages/index.md"], ["a"]),
        (["README.md"], []),
        (["packages/gone/README.md"], []),
        (["uv.lock"], ["a", "b"]),
        ([".github/workflows/test.yml"], ["a", "b"]),
    ],
)
def test_the_packages_that_a_change_concerns(files, names):
    assert concerned(files, ["a", "b"]) == names


def test_the_extrapolation_counts_packages_and_what_grows_with_them():
    packages = {name: costs.Cost(10, 5, 60, 5, 30) for name in ("a", "b")}
    shared = {"integration": 60.0, "types": 20.0, "docs": 30.0, "lint": 10.0}
    # 2 x (60 + 30) + 60 + 20 + 30 + 10 = 300 s; both packages as locked take 120 s of one core, half of all is 150 s.
    assert costs.minutes(packages, shared, 2) == (5.0, 2.5)
    # Ten times the packages: 1,800 + 1,100 + 10 = 2,910 s.
    assert costs.minutes(packages, shared, 20) == (48.5, 24.25)
    assert costs.minutes({"a": costs.Cost(10, 5, 60, 0, 0)}, dict.fromkeys(shared, 0.0), 2) == (2.0, 2.0)
    page = costs.page(packages, shared)
    assert "| a | 10.0 | 5.0 | 60 | 5.0 | 30 |" in page
    assert "| 79 packages |" in page


def test_a_suite_tells_its_seconds_beyond_imports(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\nwhile time.process_time() < 1: pass\n")
    (tmp_path / "test_it.py").write_text("def test_it():\n    import slow_module\n    assert slow_module\n")
    report = tmp_path / "report.json"
    command = [sys.executable, str(SUITE), str(report), "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(report.read_text())
    assert found["status"] == 0
    assert found["imports"] > found["suite"]
    assert "OVER" not in done.stdout
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    assert subprocess.run(command, capture_output=True, timeout=600, cwd=tmp_path).returncode == 1
