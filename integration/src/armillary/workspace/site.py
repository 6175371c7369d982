"""The site: `python -m armillary.workspace.site` puts it together in docs/.site, for `mkdocs build` to read.

What stands there is plain: Markdown pages with their figures in them, and a configuration with the navigation. No
plugin or hook of one generator makes a page. Pages under docs/pages are copied, and these lines in them are replaced:

    <!-- gallery -->, <!-- which-method -->, <!-- methods -->, <!-- speed -->, <!-- speeds -->, <!-- machines -->
    <!-- recipe:NAME -->
    --8<-- "path of a file of the repository"

Figures are drawn once and kept in docs/.figures. Both folders are ignored by git and safe to delete.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from armillary.drawings import Drawings
from armillary.workspace import pages
from armillary.workspace.notebooks import notebook
from armillary.workspace.package import kinds, packages
from armillary.workspace.tables import methods_block

FOLDER = Path("docs/.site")
FIGURES = Path("docs/.figures")
_MARK = re.compile(r"^<!-- ([a-z-]+)(?::([a-z_]+))? -->$", re.MULTILINE)
_FILE = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_LINK = re.compile(r"\]\(([a-z0-9-]+\.md)\)")


def assemble(root: Path) -> Path:
    """Put the site together.

    Args:
        root: The repository.

    Returns:
        The configuration to build with.

    Raises:
        ValueError: If a page asks for something that there is not.
    """
    about = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["armillary"]
    drawings = Drawings(root / FIGURES)
    texts, files = {}, {}
    source = root / "docs" / "pages"
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = path.relative_to(source)
        if path.suffix == ".md":
            texts[place] = _filled(root, place, path.read_text(), drawings)
        else:
            files[place] = path
    for package in packages(root):
        texts[Path("methods", f"{package.name}.md")] = pages.method_page(package, drawings)
        texts[Path("methods", package.name, "api.md")] = pages.api_page(package)
        texts[Path("methods", package.name, f"{package.name}.ipynb")] = notebook(package, about["repository"])
    _write(root / FOLDER / "pages", texts, files)
    drawings.forget_the_rest()
    configuration = root / FOLDER / "mkdocs.yml"
    configuration.write_text(_configuration(root, about, texts))
    return configuration


def _filled(root: Path, place: Path, text: str, drawings: Drawings) -> str:
    """A page with its marks replaced."""
    methods = "/".join([".."] * (len(place.parts) - 1) + ["methods"])
    blocks: dict[str, Callable[[str], str]] = {
        "gallery": lambda _: pages.gallery(root, methods),
        "which-method": lambda _: pages.which_method(root, methods),
        "methods": lambda _: methods_block(root, f"{methods}/{{name}}.md"),
        "speed": lambda _: pages.speed_overview(root, methods),
        "speeds": lambda _: pages.speeds(root),
        "machines": lambda _: pages.machines(root),
        "recipe": lambda name: pages.recipe_figure(root, name, drawings),
    }

    def block(found: re.Match[str]) -> str:
        kind, name = found.groups(default="")
        if kind not in blocks:
            raise ValueError(f"docs/pages/{place}: {found.group()} is none of {', '.join(sorted(blocks))}")
        return blocks[kind](name)

    def file(found: re.Match[str]) -> str:
        path = root / found.group(1)
        if not path.is_file():
            raise ValueError(f"docs/pages/{place}: there is no file {found.group(1)}")
        return path.read_text().rstrip("\n")

    return _FILE.sub(file, _MARK.sub(block, text))


def _write(folder: Path, texts: Mapping[Path, str], files: Mapping[Path, Path]) -> None:
    """Write what differs, so that a server sees what has changed, and delete what is of no page any more."""
    for place, text in texts.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for place, source in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / place)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder) not in texts.keys() | files.keys():
            path.unlink()


def _configuration(root: Path, about: Mapping[str, str], texts: Iterable[Path]) -> str:
    """docs/mkdocs.yml with what the repository knows: addresses, and the navigation."""
    nav = [*navigation(root, texts), {"Source": about["repository"]}]
    known = {"site_url": about["site"], "nav": nav}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in known.items()]
    return "\n".join([(root / "docs" / "mkdocs.yml").read_text(), *lines]) + "\n"


def navigation(root: Path, texts: Iterable[Path]) -> list[object]:
    """The navigation: methods by kind of problem, other folders as their own index lists them.

    Args:
        root: The repository.
        texts: Every page, from the folder of pages.
    """
    methods: list[object] = ["methods/index.md"]
    for kind in kinds(root):
        methods.append({kind.heading: [f"methods/{package.name}.md" for package in kind.packages]})
    every = set(texts)
    return [
        {"Home": "index.md"},
        {"Which method": "guides/which-method.md"},
        {"Methods": methods},
        {"Recipes": _folder(root, "recipes", every)},
        {"Performance": "performance.md"},
        {"Guides": _folder(root, "guides", every - {Path("guides/which-method.md")})},
    ]


def _folder(root: Path, name: str, every: set[Path]) -> list[str]:
    """A folder's pages: its index, those that the index links to in its order, the rest by name."""
    index = root / "docs" / "pages" / name / "index.md"
    linked = [Path(name, found) for found in _LINK.findall(index.read_text())]
    order = dict.fromkeys(
        [Path(name, "index.md"), *linked, *sorted(path for path in every if path.parent.name == name)]
    )
    return [path.as_posix() for path in order if path in every]


if __name__ == "__main__":
    try:
        print(f"mkdocs build --strict --config-file {assemble(Path.cwd()).relative_to(Path.cwd())}")
    except ValueError as error:
        sys.exit(str(error))
