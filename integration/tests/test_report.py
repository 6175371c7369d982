import re
import shutil
import subprocess

import pytest
from conftest import a_failure, a_run

from armillary import drawings as drawings_module
from armillary.drawings import Drawings
from armillary.report import render, write_report
from armillary.storage import Store

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture
def failing(result):
    """The result on a seed where the condition does not hold."""
    rows = [result["rows"][0], {**result["rows"][1], "distance": 1.5}]
    condition = {**result["conditions"][0], "figure": 0.75, "holds": False}
    return {**result, "rows": rows, "conditions": [condition], "holds": False}


@pytest.fixture
def show(tmp_path):
    return lambda runs, failures=(), command="": render(
        runs, list(failures), Drawings(tmp_path / "plots"), command
    )


@pytest.fixture
def page(result, failing, show):
    failure = a_failure(name="bad", reason="<b>it</b> broke", detail="Traceback & " + "long line " * 60)
    return show([a_run(result), a_run(failing, seed=1)], [failure], "armillary run <all>")


def texts(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(page):
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]{0,60}', page) == []
    assert "url(http" not in page
    assert "&lt;b&gt;it&lt;/b&gt; broke" in page
    assert "armillary run &lt;all&gt;" in page


def test_the_verdict_is_told_clause_by_clause(page):
    shown = texts(page)
    assert (
        "✗walking ends at half the distance: 0.5 (0.25 to 0.75) needs <= 0.5; on 1 of 2 seeds"
        in shown.replace("&lt;", "<")
    )
    assert "Holds on 1 of 2 seeds." in shown


@pytest.mark.parametrize(
    ("seeds", "kind"), [((True, True), "all"), ((True, False), "some"), ((False, False), "none")]
)
def test_some_seeds_is_another_verdict_than_none(result, failing, show, seeds, kind):
    runs = [a_run(result if holds else failing, seed=seed) for seed, holds in enumerate(seeds)]
    assert f'<td class="{kind}">Holds on {sum(seeds)} of 2 seeds</td>' in show(runs)


def test_a_smoke_run_is_not_judged(failing, show):
    page = show([a_run(failing, preset="smoke")])
    assert '<td class="unjudged">Form ok, not judged</td>' in page
    assert not re.search(r'class="[^"]*(fails|none)', page)
    assert "Holds on" not in page


def test_versions_and_devices_are_never_averaged(result, failing, show):
    runs = [
        a_run(result, version="0.9"),
        a_run(failing),
        a_run(failing, seed=1),
        a_run(result, device="cuda"),
    ]
    page = show(runs)
    assert page.count("Holds on 1 of 1 seed</td>") == 2
    assert page.count("Holds on 0 of 2 seeds</td>") == 1
    assert len(set(re.findall(r'<section id="([^"]+)"', page))) == 3


def test_seeds_that_are_not_alike_are_told(result, show):
    other = {**result, "rows": [*result["rows"], {"name": "gliding", "role": "reference", "distance": 1}]}
    shown = texts(show([a_run(result), a_run(other, seed=1)]))
    assert "row &#39;gliding&#39; (reference): only on seed 1" in shown
    assert "1 (n=1)" in shown


def test_the_title_tells_what_is_in_it(page, result, show):
    assert "<title>good, bad: armillary report</title>" in page
    many = [a_run(result, name=f"method-{letter}") for letter in "abcde"]
    assert "<title>method-a, method-b, method-c and 2 more: armillary report</title>" in show(many)


def test_identifiers_are_unique_over_all_plots(page):
    found = re.findall(r'\bid="([^"]+)"', page)
    assert len(found) == len(set(found))


def test_what_scrolls_can_be_reached_by_keyboard_and_pictures_have_names(page):
    for tag in re.findall(r'<(?:div class="scroll"|pre)[^>]*>', page):
        assert re.search(r'tabindex="0" role="region" aria-label="[^"]+"', tag)
    for tag in re.findall(r"<svg[^>]*>", page):
        assert re.search(r'role="img" aria-label="[^"]+"', tag)


def test_a_plot_that_cannot_be_drawn_is_left_out_with_the_reason(result, show, monkeypatch):
    def broken(curve, **_):
        raise ArithmeticError("no such <curve>")

    monkeypatch.setattr(drawings_module.plots, "curve_svg", broken)
    page = show([a_run(result)])
    assert "Left out, it cannot be drawn: ArithmeticError: no such &lt;curve&gt;" in page
    assert page.count("<svg") == 1  # the image beside it


def test_only_what_changed_is_drawn_again(tmp_path, result, monkeypatch):
    store = Store(tmp_path)
    store.save(a_run(result))
    first = write_report(store).read_text()
    drawn = []
    draw = drawings_module.plots.curve_svg
    monkeypatch.setattr(
        drawings_module.plots,
        "curve_svg",
        lambda curve, **how: drawn.append(curve.title) or draw(curve, **how),
    )
    assert re.findall("<svg.*?</svg>", write_report(store).read_text(), re.S) == re.findall(
        "<svg.*?</svg>", first, re.S
    )
    assert drawn == []
    store.save(a_run({**result, "curves": [{**result["curves"][0], "title": "Another"}]}))
    write_report(store)
    assert drawn == ["Another"]
    assert len(list((tmp_path / ".plots").iterdir())) == 2


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
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"(\d+) wide, (\d+) plots", shown)
    assert found, shown
    assert int(found[1]) <= width
    assert int(found[2]) == 2
