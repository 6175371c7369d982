"""The pages of the site that are made from packages: a page a method, its public names, the guide, the gallery."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from armillary.contract import Figure
from armillary.drawings import Drawings, method_lines
from armillary.workspace.package import Package, kinds, packages
from armillary.workspace.tables import ratio, row, speed_block
from armillary.workspace.thumbnails import legend, ratio_line, thumbnail

_SHOWN = 3  # so many further figures stand open on a page; more are folded
_LINKS = ("Paper", "Source", "Changelog", "Issues")  # those that a README does not begin with


def method_page(package: Package, drawings: Drawings) -> str:
    """The page of one method: what it is and its figure first, then its README and the other figures.

    Args:
        package: The method.
        drawings: Where drawings are kept.
    """
    opening, _, rest = package.readme.partition("\n## ")
    parts = [
        front_matter(title=package.name, description=package.description),
        opening.strip(),
        _links(package),
        _claim(package, drawings),
        _advice(package),
        f"## {rest.strip()}" if rest else "",
        _further_figures(package, drawings),
        f"*Search words: {', '.join(package.keywords)}.*",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def api_page(package: Package) -> str:
    """The public names of one method, found by links rather than by the search."""
    source = package.urls.get("Source", "")
    folder = package.root / "packages" / package.name / "src" / package.module
    modules = [path.name for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]
    files = ", ".join(f"[{name}]({source}/src/{package.module}/{name})" for name in modules)
    matter = front_matter(
        title=f"{package.name}: public names",
        description=f"Every public name of {package.name}, with arguments, shapes and examples.",
        hide=["navigation"],
        search={"exclude": True},
    )
    head = f"# {package.name}: public names\n\nWhat it is for, what it shows: [{package.name}](../{package.name}.md)."
    return f"{matter}\n\n{head}" + (f" Source: {files}." if files else "") + f"\n\n::: {package.module}\n"


def which_method(root: Path, methods: str) -> str:
    """Every method by the problem that a reader has.

    Args:
        root: The repository.
        methods: From the page to the folder of the methods' pages.
    """
    blocks = []
    for kind in kinds(root):
        blocks.append(f"## {kind.heading}")
        blocks += [_by_problem(package, methods) for package in kind.packages]
    return "\n\n".join(blocks)


def gallery(root: Path, methods: str) -> str:
    """One card a method: its figure, its claim, its verdict.

    Args:
        root: The repository.
        methods: From the page to the folder of the methods' pages.
    """
    cards = [_card(package, kind.heading, methods) for kind in kinds(root) for package in kind.packages]
    return '<div class="cards" markdown="1">\n\n' + "\n\n".join(cards) + "\n\n</div>"


def speed_overview(root: Path, methods: str) -> str:
    """The first ratio of every package, which is against what a competent user would pick.

    Args:
        root: The repository.
        methods: From the page to the folder of the methods' pages.
    """
    lines = [row(["method", "peer / ours", "0.01x to 10,000x", "against"]), row(["---", "--:", "---", "---"])]
    for package in packages(root):
        if package.speed:
            first = package.speed.groups[0]
            name = f"[{package.name}]({methods}/{package.name}.md)"
            peer = f"{first.peer} ({first.group})"
            lines.append(row([name, ratio(first), ratio_line(first.ratio), peer]))
    return "\n".join(lines)


def speeds(root: Path) -> str:
    """Every ratio of every package."""
    parts = [f"## {package.name}\n\n{speed_block(package)}" for package in packages(root) if package.speed]
    return "\n\n".join(parts)


def machines(root: Path) -> str:
    """The machines that the evidence names, in one line."""
    found = {
        f"{each.cores} cores of {each.cpu}, {each.system}, torch {each.torch}"
        for package in packages(root)
        if package.evidence and (each := package.evidence.machine)
    }
    return "; ".join(sorted(found)) or "no machine yet"


def recipe_figure(root: Path, name: str, drawings: Drawings) -> str:
    """The figure of one recipe.

    Args:
        root: The repository.
        name: Its module.
        drawings: Where drawings are kept.
    """
    path = root / "docs" / "evidence" / "recipes" / f"{name}.json"
    return figures(list(_drawn(Figure.model_validate_json(path.read_text()), {}, drawings)))


def figures(drawn: list[tuple[str, str]]) -> str:
    """Titles and drawings as one block of HTML."""
    each = (f"<figure>{svg}<figcaption>{escape(title)}</figcaption></figure>" for title, svg in drawn)
    return f'<div class="figures">{"".join(each)}</div>'


def front_matter(**entries: object) -> str:
    """The head of a page; JSON is YAML too."""
    lines = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())
    return f"---\n{lines}\n---"


def _links(package: Package) -> str:
    links = [
        f"[Public names]({package.name}/api.md)",
        f"[Notebook]({package.name}/{package.name}.ipynb)",
    ]
    opening = package.readme.partition("\n## ")[0]
    links += [f"[{key}]({url})" for key, url in package.urls.items() if key in _LINKS and url not in opening]
    return " · ".join(links) + "\n{ .links }"


def _claim(package: Package, drawings: Drawings) -> str:
    curve, result = package.figure, package.result
    if curve is None or result is None:
        return ""
    drawing = drawings.curve(curve, method_lines(curve, result))
    return (
        f'<figure class="claim">{drawing}<figcaption>{escape(curve.title)} (seed 0)</figcaption></figure>\n\n'
        f"{package.claim}\n**{package.verdict}**: [the evidence](#evidence).\n{{ .claim }}"
    )


def _advice(package: Package) -> str:
    advice = package.advice
    entries = {
        "Your problem": advice.problem,
        "When": advice.use_when,
        "When not": advice.not_when,
        "Rivals": advice.rivals,
        "From a clone": f"`pip install ./packages/{package.name}`",
    }
    said = "\n\n".join(f"{key}\n:   {_sentence(value)}" for key, value in entries.items() if value)
    return f'<div class="facts" markdown="1">\n\n{said}\n\n</div>'


def _further_figures(package: Package, drawings: Drawings) -> str:
    result, shown = package.result, package.figure
    if result is None:
        return ""
    curves = [curve for curve in result.curves if curve is not shown]
    marked = {curve.title: method_lines(curve, result) for curve in curves}
    drawn = list(_drawn(Figure(curves=curves, images=result.images), marked, drawings))
    if not drawn:
        return ""
    open_ones, folded = drawn[:_SHOWN], drawn[_SHOWN:]
    text = f"## More figures\n\nSeed 0 of the committed evidence.\n\n{figures(open_ones)}"
    if folded:
        summary = f"{len(folded)} more: {', '.join(escape(title) for title, _ in folded)}"
        text += f"\n\n<details><summary>{summary}</summary>{figures(folded)}</details>"
    return text


def _drawn(figure: Figure, marked: dict[str, list[str]], drawings: Drawings) -> Iterator[tuple[str, str]]:
    for curve in figure.curves:
        yield curve.title, drawings.curve(curve, marked.get(curve.title, ()))
    for image in figure.images:
        yield f"{image.title}. {image.caption}".rstrip(". "), drawings.image(image)


def _by_problem(package: Package, methods: str) -> str:
    advice = package.advice
    said = [f"[{package.name}]({methods}/{package.name}.md): {package.description}"]
    about = {"When": advice.use_when, "When not": advice.not_when, "Rivals": advice.rivals}
    said += [f"*{key}:* {_sentence(value)}." for key, value in about.items() if value]
    return f"{_sentence(advice.problem or package.description)}\n:   " + "\n    ".join(said)


def _card(package: Package, kind: str, methods: str) -> str:
    curve, result = package.figure, package.result
    picture = ""
    if curve and result:
        marked = method_lines(curve, result)
        picture = f'<div class="picture">{thumbnail(curve, marked)}<p>{legend(curve, marked)}</p></div>\n\n'
    problem = f"“{_sentence(package.advice.problem)}”\n{{ .problem }}\n\n" if package.advice.problem else ""
    return (
        '<div class="card" markdown="1">\n\n'
        f"{kind}\n{{ .kind }}\n\n**[{package.name}]({methods}/{package.name}.md)**\n{{ .name }}\n\n"
        f"{problem}{picture}{package.claim or package.description}\n\n"
        f"{package.verdict}\n{{ .verdict }}\n\n</div>"
    )


def _sentence(text: str) -> str:
    """With a capital, unless the first word is code or a name that has its own way."""
    return re.sub(r"^[a-z](?=[a-z]*\b)", lambda found: found.group().upper(), text)
