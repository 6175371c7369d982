"""Draw the plots of the committed evidence into the pages that ask for them with `<!-- plots:NAME -->`."""

import re
from pathlib import Path
from typing import Any

from armillary.plots import curve_svg, image_svg
from armillary.workspace.evidence import Evidence

EVIDENCE = Path(__file__).parents[1] / "evidence"


def on_page_content(html: str, **_: Any) -> str:
    """Replace each mark by figures."""
    return re.sub(r"<!-- plots:([a-z0-9-]+) -->", lambda found: _figures(found.group(1)), html)


def _figures(name: str) -> str:
    path = EVIDENCE / f"{name}.json"
    if not path.exists():
        return "<p>No evidence is committed yet.</p>"
    run = Evidence.model_validate_json(path.read_text()).runs[0]
    drawn = [(curve.title, curve_svg(curve)) for curve in run.result.curves]
    drawn += [(f"{image.title} {image.caption}".strip(), image_svg(image)) for image in run.result.images]
    figures = "".join(f"<figure>{svg}<figcaption>{title}</figcaption></figure>" for title, svg in drawn)
    return f'<p>Seed {run.seed} of the committed evidence.</p><div class="plots">{figures}</div>'
