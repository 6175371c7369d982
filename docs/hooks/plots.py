"""Draw committed evidence into the pages that ask for it: `<!-- plots:NAME -->`, `<!-- recipe:NAME -->`."""

import re
from pathlib import Path
from typing import Any

from armillary.contract import Figure
from armillary.plots import curve_svg, image_svg
from armillary.workspace.evidence import Evidence

EVIDENCE = Path(__file__).parents[1] / "evidence"


def on_page_content(html: str, **_: Any) -> str:
    """Replace each mark by figures."""
    html = re.sub(r"<!-- plots:([a-z0-9-]+) -->", lambda found: _of_demo(found.group(1)), html)
    return re.sub(r"<!-- recipe:([a-z_]+) -->", lambda found: _of_recipe(found.group(1)), html)


def _of_demo(name: str) -> str:
    path = EVIDENCE / f"{name}.json"
    if not path.exists():
        return "<p>No evidence is committed yet.</p>"
    run = Evidence.model_validate_json(path.read_text()).runs[0]
    figure = Figure(curves=run.result.curves, images=run.result.images)
    return f"<p>Seed {run.seed} of the committed evidence.</p>{_draw(figure)}"


def _of_recipe(name: str) -> str:
    return _draw(Figure.model_validate_json((EVIDENCE / "recipes" / f"{name}.json").read_text()))


def _draw(figure: Figure) -> str:
    drawn = [(curve.title, curve_svg(curve)) for curve in figure.curves]
    drawn += [(f"{image.title} {image.caption}".strip(), image_svg(image)) for image in figure.images]
    figures = "".join(f"<figure>{svg}<figcaption>{title}</figcaption></figure>" for title, svg in drawn)
    return f'<div class="plots">{figures}</div>'
