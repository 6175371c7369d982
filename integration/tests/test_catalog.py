"""What is installed, and how it is listed."""

import json

import pytest

from armillary import catalog
from armillary.commands import execute
from armillary.errors import Trouble


def test_list_is_one_line_a_method_under_its_family(here, installed):
    installed.add("other")
    lines = here("list").out.splitlines()
    at = lines.index("testing")
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["good", "other"]
    assert "A demo that is good." in lines[at + 1]


def test_list_can_be_narrowed(here, installed):
    installed.add("other")
    names = [
        [method["name"] for method in json.loads(here("list", *arguments, "--json").out)]
        for arguments in (["zebra"], ["OTHER"], ["--family", "testing"])
    ]
    assert names == [["good", "other"], ["other"], ["good", "other"]]


def test_list_for_machines_holds_what_is_known(here, installed):
    (good,) = json.loads(here("list", "zebra", "--json").out)
    assert good == {
        "name": "good",
        "installed": True,
        "version": "1.0",
        "distribution": "good",
        "third_party": True,
        "family": "testing",
        "summary": "A demo that is good.",
        "verdict": "–",
        "keywords": ["armillary :: testing", "zebra"],
        "links": {"Documentation": "https://example.org/good"},
    }


def test_what_is_not_installed_is_listed_as_such(here, monkeypatch):
    points = [point for point in catalog.entry_points(group=catalog.GROUP) if point.name != "gacil"]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points)
    lines = here("list").out.splitlines()
    assert lines[-2] == "not installed"
    assert lines[-1].split() == ["gacil", "pip", "install", "gacil"]
    assert "gacil" not in here("list", "--installed").out
    with pytest.raises(Trouble, match="gacil is not installed: pip install gacil"):
        here("show", "gacil")


def test_show_reads_the_metadata(here, installed):
    shown = here("show", "good").out
    assert "A demo that is good." in shown
    assert "https://example.org/good" in shown
    assert "torch>=2.4" in shown
    assert "third party" in shown
    assert "No evidence is committed yet." in shown


def test_show_tells_the_verdict_and_the_table_only_when_asked(here, installed):
    shown = here("show", "gacil").out
    assert "holds on" in shown.lower()
    assert "| ---" not in shown
    assert "| ---" in here("show", "gacil", "--full").out
    assert "third party" not in shown


def test_a_distribution_of_another_name_is_shown(here, installed):
    installed.add("good", distribution="good-by-others")
    (installed.folder / "good.dist-info" / "entry_points.txt").unlink()
    shown = here("list", "zebra").out
    assert "from good-by-others, third party" in shown


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "Caps", "a--b", "-a", "a.b", "a b"])
def test_a_name_that_is_none_is_refused_and_the_others_run(here, installed, name):
    info = installed.folder / "evil.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[armillary.demos]\n{name} = fake_demos:good\n")
    done = here("list", "--installed")
    assert f"refused: {name!r} of evil is no name of a method" in done.err
    assert "good" in done.out
    with pytest.raises(Trouble, match="refused"):
        here("run", "--", name)
    assert installed.logged() == []
    assert not (installed.folder / "escaped").exists()


def test_two_distributions_under_one_name_are_refused(here, installed):
    installed.add("good", distribution="good-by-others")
    installed.add("other")
    with pytest.raises(Trouble, match="good is registered more than once, by good and good-by-others"):
        here("run", "good")
    assert "other" in here("list", "--installed").out


def test_a_shadow_of_one_of_ours_is_refused(here, installed):
    installed.add("gacil", distribution="shadow", target="fake_demos:good")
    with pytest.raises(Trouble, match="gacil is registered more than once, by gacil and shadow"):
        here("run", "gacil")


def test_run_all_goes_on_beside_what_is_refused_and_says_so(here, installed, monkeypatch):
    installed.add("good", "other")
    installed.add("other", distribution="shadow", target="fake_demos:good")
    points = [point for point in catalog.entry_points(group=catalog.GROUP) if point.name in ("good", "other")]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points)
    command = ["run", "--all"]
    assert execute(command) == 1  # not every demo gave a result
    assert installed.logged() == ["0"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("METADATA", None), ("METADATA", b"\xff"), ("entry_points.txt", b"[armillary.demos\n\xff")],
)
def test_a_damaged_distribution_hides_no_other(here, installed, file, content):
    installed.add("damaged")
    path = installed.folder / "damaged.dist-info" / file
    path.write_bytes(content) if content else path.unlink()
    shown = here("list", "--installed").out
    assert "A demo that is good." in shown
    assert "damaged" not in shown
    with pytest.raises(Trouble, match="damaged"):
        here("show", "damaged")
