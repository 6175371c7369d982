"""The site, on a repository of one package made for the purpose; and what it is made of."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_storage import a_run

from armillary import plots
from armillary.contract import Curve, Result, Series
from armillary.drawings import method_lines
from armillary.workspace import picture, site, thumbnails
from armillary.workspace.evidence import Ratio
from armillary.workspace.package import Package, kinds

ROOT = Path(__file__).parents[2]
PYPROJECT = """\
[project]
name = "alpha"
version = "0.1.0"
description = "Walks where others stand."
keywords = ["armillary :: continual learning", "drone", "catastrophic forgetting"]

[project.urls]
Paper = "https://paper.invalid/alpha"
Source = "https://code.invalid/x/tree/main/packages/alpha"

[tool.armillary]
problem = "I stand still & do not like it"
use-when = "there is somewhere to go"
not-when = "you are there already"
rivals = ["standing", "running"]
"""
README = """\
# alpha

Walks.

## Use it

Call it.

```python
import alpha

alpha.walk(3)
```

Then again:

```python
alpha.walk(5)
```

```py
your_loop(alpha)
```

## Evidence

A table.
"""
INIT = '''\
"""Walks."""

from alpha.walking import walk

__all__ = ["walk"]
'''
MODULE = '''\
"""One step after the other."""


def walk(steps: int) -> int:
    """Walk so many steps.

    Args:
        steps: How many.

    Examples:
        >>> walk(2)
        2
    """
    return steps
'''


@pytest.fixture
def repository(tmp_path, result):
    """One finished package with evidence, the pages of this repository that need nothing else, its configuration."""
    write(
        tmp_path,
        "pyproject.toml",
        '[tool.armillary]\nrepository = "https://code.invalid/x"\nsite = "https://site.invalid/"\n',
    )
    write(tmp_path, "packages/alpha/pyproject.toml", PYPROJECT)
    write(tmp_path, "packages/alpha/README.md", README)
    write(tmp_path, "packages/alpha/src/alpha/__init__.py", INIT)
    write(tmp_path, "packages/alpha/src/alpha/walking.py", MODULE)
    runs = [{"seed": seed, "seconds": 1.0, "result": result} for seed in range(3)]
    about = {
        "name": "alpha",
        "version": "0.1.0",
        "preset": "laptop",
        "machine": a_run(result).machine.model_dump(),
    }
    write(tmp_path, "docs/evidence/alpha.json", json.dumps({**about, "runs": runs}))
    shutil.copytree(ROOT / "docs" / "pages", tmp_path / "docs" / "pages")
    for name in ("recipes", "guides"):
        write(tmp_path, f"docs/pages/{name}/index.md", "# Pages\n")
        for path in (tmp_path / "docs" / "pages" / name).glob("*.md"):
            if path.name not in ("index.md", "which-method.md", "use-one.md", "read-the-evidence.md"):
                path.unlink()
    for name in ("mkdocs.yml", "families.toml"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    return tmp_path


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build(repository):
    """Build the site as the session does; the package is found by its path."""
    configuration = site.assemble(repository)
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--config-file={configuration}"],
        env={**os.environ, "PYTHONPATH": str(repository / "packages/alpha/src"), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


def test_the_site_builds_without_a_warning_and_shows_what_it_should(repository):
    built = build(repository)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    page = (repository / "docs/.site/html/methods/alpha/index.html").read_text()
    assert '<link rel="canonical" href="https://site.invalid/methods/alpha/"' in page
    assert '<meta name="description" content="Walks where others stand."' in page
    assert page.index("<figure") < page.index('id="use-it"') < page.index('id="more-figures"')
    figures = re.findall(r"<figure[^>]*><svg[^>]*>", page)
    assert len(figures) == 2
    assert all('role="img"' in figure and 'aria-label="' in figure for figure in figures)
    assert "https://paper.invalid/alpha" in page
    names = (repository / "docs/.site/html/methods/alpha/api/index.html").read_text()
    assert re.search(r"<pre[^>]*>(?:(?!</pre>).)*&gt;&gt;&gt;", names, re.DOTALL)
    assert "https://code.invalid/x/tree/main/packages/alpha/src/alpha/walking.py" in names
    assert 'href="alpha.ipynb"' in page or 'href="alpha/alpha.ipynb"' in page
    guide = (repository / "docs/.site/html/guides/which-method/index.html").read_text()
    assert "I stand still &amp; do not like it" in guide
    assert "Standing; running" in guide
    home = (repository / "docs/.site/html/index.html").read_text()
    assert home.count('class="thumbnail"') == 1
    assert "Taking more steps gets closer." in home
    index = json.loads((repository / "docs/.site/html/search/search_index.json").read_text())["docs"]
    assert any("drone" in entry["text"] for entry in index if entry["location"].startswith("methods/alpha/"))
    assert not any(entry["location"].startswith("methods/alpha/api/") for entry in index)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[nowhere](nope.md)", "nope.md"),
        ("[no such place](use-one.md#nope)", "#nope"),
        ("::: alpha.nope", "alpha.nope"),
    ],
)
def test_a_planted_fault_stops_the_build(repository, text, warning):
    write(repository, "docs/pages/guides/index.md", f"# Pages\n\n{text}\n")
    built = build(repository)
    assert built.returncode != 0
    assert warning in built.stderr


def test_a_notebook_holds_the_readmes_code_in_its_order_and_installs_first(repository):
    site.assemble(repository)
    book = json.loads((repository / "docs/.site/pages/methods/alpha/alpha.ipynb").read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert cells == [
        ("markdown", "# alpha\n\nWalks."),
        ("code", "%pip install --quiet 'git+https://code.invalid/x#subdirectory=packages/alpha'"),
        ("markdown", "## Use it\n\nCall it."),
        ("code", "import alpha\n\nalpha.walk(3)"),
        ("markdown", "Then again:"),
        ("code", "alpha.walk(5)"),
        ("markdown", "```py\nyour_loop(alpha)\n```"),
    ]
    assert len({cell["id"] for cell in book["cells"]}) == len(cells)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<!-- galery -->", "guides/index.md: <!-- galery --> is none of gallery, "),
        ('--8<-- "docs/nope.py"', "guides/index.md: there is no file docs/nope.py"),
    ],
)
def test_a_page_that_asks_for_what_there_is_not_is_named(repository, line, message):
    write(repository, "docs/pages/guides/index.md", f"# Pages\n\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        site.assemble(repository)


def test_figures_are_drawn_once_and_forgotten_when_nothing_shows_them(repository, monkeypatch):
    site.assemble(repository)
    kept = set((repository / site.FIGURES).iterdir())
    assert len(kept) == 2
    monkeypatch.setattr(plots, "curve_svg", None)  # drawing anew would fail
    monkeypatch.setattr(plots, "image_svg", None)
    site.assemble(repository)
    assert set((repository / site.FIGURES).iterdir()) == kept
    (repository / "docs/evidence/alpha.json").unlink()
    site.assemble(repository)
    assert not list((repository / site.FIGURES).iterdir())


def test_pages_of_what_is_gone_are_gone(repository):
    pages = repository / site.FOLDER / "pages"
    site.assemble(repository)
    assert (pages / "methods/alpha/api.md").exists()
    before = (pages / "guides/use-one.md").stat().st_mtime_ns
    shutil.rmtree(repository / "packages" / "alpha")
    site.assemble(repository)
    assert not (pages / "methods/alpha/api.md").exists()
    assert (pages / "guides/use-one.md").stat().st_mtime_ns == before


def test_the_navigation_holds_every_page_once():
    texts = [path.relative_to(ROOT / "docs/pages") for path in (ROOT / "docs/pages").rglob("*.md")]
    methods = [Path("methods", f"{package.name}.md") for kind in kinds(ROOT) for package in kind.packages]

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [
            leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)
        ]

    found = leaves(site.navigation(ROOT, texts + methods))
    assert sorted(found) == sorted(path.as_posix() for path in texts + methods)


def test_the_figure_that_the_advice_names_is_shown_and_a_wrong_name_is_said(repository):
    package = Package(repository, "alpha")
    assert package.figure.title == "Distance over steps"
    write(repository, "packages/alpha/pyproject.toml", PYPROJECT + 'figure = "Distance"\n')
    with pytest.raises(
        ValueError, match="figure is 'Distance', but the curves are called 'Distance over steps'"
    ):
        Package(repository, "alpha").figure  # noqa: B018


def test_the_picture_of_the_readme_is_stale_when_the_evidence_says_something_else(repository, monkeypatch):
    monkeypatch.setattr(picture, "METHOD", "alpha")
    assert list(picture.stale(repository)) == [f"{picture.PATH} is stale"]
    assert picture.refresh(repository) == [repository / picture.PATH]
    assert picture.refresh(repository) == []
    ElementTree.parse(repository / picture.PATH)
    evidence = repository / "docs/evidence/alpha.json"
    evidence.write_text(evidence.read_text().replace("gets closer", "goes nearer"))
    assert list(picture.stale(repository)) == [f"{picture.PATH} is stale"]


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ("LPINN", True),  # of the row "LPINN on Burgers"
        ("PINN", False),
        ("LPINN, tied", False),  # a row of its own
        ("LPINN told", False),
        ("duffing, ResDMD", True),
        ("ResDMD", True),
        ("ResDMD+", False),
        ("either", False),  # begins a row of either kind
    ],
)
def test_lines_named_after_the_methods_rows_are_the_methods(result, line, is_ours):
    rows = {"LPINN on Burgers": "method", "ResDMD": "method", "either way": "method"}
    rows |= {
        "PINN on Burgers": "baseline",
        "LPINN, tied": "ablation",
        "LPINN told": "reference",
        "either one": "baseline",
    }
    result["rows"] = [
        {"name": name, "role": role, "distance": 1.0, "steps": 1} for name, role in rows.items()
    ]
    curve = Curve(title="x", x_label="", y_label="", series={line: Series(x=[0], y=[0])})
    assert method_lines(curve, Result.model_validate(result)) == ([line] if is_ours else [])


numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.lists(st.tuples(numbers, numbers), max_size=200)


@given(
    series=st.dictionaries(st.text(), points, min_size=1, max_size=8),
    scale=st.sampled_from(["linear", "log"]),
    data=st.data(),
)
def test_a_thumbnail_of_anything_is_well_formed_and_keeps_within_its_frame(series, scale, data):
    lines = {name: Series(x=[x for x, _ in line], y=[y for _, y in line]) for name, line in series.items()}
    title = data.draw(st.text(min_size=1))
    curve = Curve(title=title, x_label="<x>", y_label='"y"', series=lines, x_scale=scale, y_scale=scale)
    ours = data.draw(st.sets(st.sampled_from(sorted(series))))
    drawn = thumbnails.thumbnail(curve, ours)
    root = ElementTree.fromstring(re.sub(r"[^\x20-\ud7ff\ue000-\ufffd]", "", drawn))
    width, height = map(float, root.get("viewBox").split()[2:])
    for path in root.iter("path"):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    assert root.get("role") == "img"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.000556, "5.6e-4"),
        (12.3456, "12.3"),
        (21957.3, "21,957"),
        (-0.0123, "-1.2e-2"),
        (3e12, "3e+12"),
        (400, "400"),
    ],
)
def test_numbers_beside_a_thumbnail_are_never_wider_than_the_room_there(value, shown):
    assert thumbnails._short(value) == shown


@pytest.mark.parametrize(
    ("value", "left"), [(0.01, 0), (1, 100 / 3), (100, 200 / 3), (1e4, 100), (1e9, 100), (0, 0)]
)
def test_a_ratio_is_where_its_logarithm_is(value, left):
    drawn = thumbnails.ratio_line(Ratio(median=value, low=value, high=value))
    assert f'class="median" style="left:{left:.1f}%"' in drawn
    assert ("behind" in drawn) == (value < 1)
