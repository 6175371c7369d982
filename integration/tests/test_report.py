import re
import shutil
import subprocess

import pytest
from test_storage import a_run

from armillary.contract import Failure, check_result
from armillary.plots import curve_svg
from armillary.report import render
from armillary.summary import summarize

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture
def page(result):
    failure = Failure(
        name="bad",
        version="1",
        preset="laptop",
        seed=0,
        device="cpu",
        seconds=1.0,
        reason="<b>it</b> broke",
        detail="Traceback & " + "long line " * 60,
    )
    other = {**result, "holds": False, "rows": [result["rows"][0], {**result["rows"][1], "distance": 1.5}]}
    return render([a_run(result), a_run(other, seed=1)], [failure])


def test_the_table_holds_the_mean_and_the_range(result):
    other = {**result, "holds": False, "rows": [result["rows"][0], {**result["rows"][1], "distance": 1.5}]}
    summary = summarize([check_result(result), check_result(other)])
    assert summary.columns == ["distance [m] ↓", "steps"]
    assert summary.lines[1] == ("walking", "method", ["1 (0.5 to 1.5)", "10"])
    assert summary.verdict == "Holds on 1 of 2 seeds"


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(page):
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]{0,60}', page) == []
    assert "url(http" not in page
    assert "&lt;b&gt;it&lt;/b&gt; broke" in page
    assert "Holds on 1 of 2 seeds" in page


def test_identifiers_are_unique_over_all_plots(page):
    found = re.findall(r'\bid="([^"]+)"', page)
    assert len(found) == len(set(found))


def test_plots_take_the_colour_of_the_page(result):
    svg = curve_svg(check_result(result).curves[0])
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert not re.match(r"<svg [^>]*width=", svg)


@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(page, tmp_path, width):
    # Old and new headless modes clamp the window to about 500 pixels: the phone is a frame of its width.
    (tmp_path / "report.html").write_text(page)
    probe = (
        f'<iframe src="report.html" style="width:{width}px;height:800px;border:0"></iframe><script>'
        "onload = () => { const page = document.querySelector('iframe').contentDocument;"
        " document.body.textContent = `${page.documentElement.scrollWidth} wide,"
        " ${[...page.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 100).length} plots`; }"
        "</script>"
    )
    (tmp_path / "probe.html").write_text(probe)
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--dump-dom",
        f"--user-data-dir={tmp_path}/profile", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"(\d+) wide, (\d+) plots", shown)
    assert found, shown
    assert int(found[1]) <= width
    assert int(found[2]) == 2
