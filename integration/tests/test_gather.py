"""Reports of one folder and of several; what is shown of them and where."""

import json
import webbrowser

import pytest
from conftest import a_failure, a_run

from armillary.errors import UsageError
from armillary.storage import Store


@pytest.fixture
def folders(tmp_path, result):
    """Two machines' results: one run in common, one apart each, and a failure that only one of them had."""
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    first.save(a_run(result))
    first.save(a_failure(seed=1))
    second.save(a_run(result, seconds=2.0))
    second.save(a_run(result, seed=1))
    second.save(a_failure(name="other"))
    return first, second


def test_several_folders_become_one_and_the_first_comes_first(here, folders, tmp_path):
    first, second = folders
    told = here("report", str(first.folder), str(second.folder), "--out", str(tmp_path / "all"))
    all_of_it = Store(tmp_path / "all")
    assert all_of_it.runs() == [first.load("good", "laptop", 0), second.load("good", "laptop", 1)]
    assert [failure.name for failure in all_of_it.failures()] == ["other"]
    assert "stays; another run of it is in" in told.err
    assert "no result: other laptop seed 0" in told.err
    assert "Holds on 2 of 2 seeds" in told.out
    assert "walking" in (tmp_path / "all" / "report.html").read_text()
    assert len(second.runs()) == 2
    assert not (second.folder / "report.html").exists()


def test_one_folder_gets_its_report_anew(here, folders):
    first, _ = folders
    before = json.loads(first.run_path("good", "laptop", 0).read_text())
    told = here("report", str(first.folder), "--quiet")
    assert told.out == "good 1.0, laptop, seed 0: Holds on 1 of 1 seed.\n"
    assert (first.folder / "report.html").exists()
    assert json.loads(first.run_path("good", "laptop", 0).read_text()) == before


def test_what_cannot_be_gathered_is_named(here, folders, tmp_path):
    first, second = folders
    with pytest.raises(UsageError, match="nowhere: there are no results in it"):
        here("report", str(first.folder), str(tmp_path / "nowhere"), "--out", str(tmp_path / "all"))
    with pytest.raises(UsageError, match="--out must say where"):
        here("report", str(first.folder), str(second.folder))
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("call", ["run good", "report results"])
def test_the_report_is_opened_when_asked_for(here, installed, monkeypatch, call):
    here("run", "good", "--out", "results")
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) < 2)
    extra = ["--out", "results"] if call.startswith("run") else []
    here(*call.split(), *extra, "--open")
    assert opened == [(installed.folder / "results" / "report.html").as_uri()]
    assert "no browser could be opened" in here(*call.split(), *extra, "--open", "--quiet").err
