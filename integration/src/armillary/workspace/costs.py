"""What continuous integration costs, and what it will with more packages: `python -m armillary.workspace.costs`.

Every session and every suite of a plain `nox` leaves its CPU seconds under `.costs/`; this makes a page of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from armillary.workspace.metadata import ready

PAGE = Path("docs/pages/guides/ci.md")
PLANNED = 79
FIXED = ("lint",)  # sessions whose cost hardly grows with the number of packages
SHARED = ("integration", "types", "docs", *FIXED)

TEXT = """\
---
description: CPU seconds of every session and suite, and what they come to with more packages.
---

# What continuous integration costs

Plain `uv run nox` runs two sessions at a time. Two of them take every package in turn, alone: an environment is
brought to exactly what the package declares (as locked, and with the lowest versions), its wheel is installed, and its
suite runs against that. What a former package needed is gone by then, so an undeclared import fails; torch is linked
and compiled once, not once a package.

`nox` leaves the CPU seconds of every session and suite under `.costs/`, and `uv run nox -s costs` writes this page
from them. **A suite may cost 15 CPU seconds beyond its imports**; it says so when it costs more. With the lowest
versions the only question is whether they have what is used: no doctests, no demo, few examples.

## {count} packages

CPU seconds of one machine with nothing else to do; the same on a busy one have been two and a half times as many.
*Session* is everything for one package: resolving, linking, building the wheel, importing, testing.

| package | suite | imports | session | lowest: suite | lowest: session |
| --- | --: | --: | --: | --: | --: |
{packages}

| session | CPU seconds |
| --- | --: |
{sessions}

## {planned} packages

Packages cost what they cost on average here; types, docs and integration are taken to grow with their number.

| | CPU minutes | minutes on two cores |
| --- | --: | --: |
| {count} packages | {now:.0f} | {now_wall:.0f} |
| {planned} packages | {then:.0f} | {then_wall:.0f} |

The budget is 45 minutes on two cores.
"""


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one package: its suites beyond imports, imports, and whole sessions."""

    suite: float
    imports: float
    session: float
    lowest_suite: float
    lowest_session: float


def read(root: Path) -> tuple[dict[str, Cost], dict[str, float]]:
    """The costs of every finished package and of every shared session.

    Raises:
        FileNotFoundError: If one is missing: plain `nox` has not run whole.
    """
    packages = {name: _cost(root, name) for name in ready(root)}
    return packages, {name: _load(root, f"session-{name}")["cpu"] for name in SHARED}


def page(packages: dict[str, Cost], shared: dict[str, float]) -> str:
    """The page of docs."""
    lines = [
        f"| {name} | {cost.suite:.1f} | {cost.imports:.1f} | {cost.session:.0f} "
        f"| {cost.lowest_suite:.1f} | {cost.lowest_session:.0f} |"
        for name, cost in packages.items()
    ]
    (now, now_wall), (then, then_wall) = (
        minutes(packages, shared, count) for count in (len(packages), PLANNED)
    )
    return TEXT.format(
        count=len(packages),
        planned=PLANNED,
        packages="\n".join(lines),
        sessions="\n".join(f"| {name} | {seconds:.0f} |" for name, seconds in shared.items()),
        now=now,
        now_wall=now_wall,
        then=then,
        then_wall=then_wall,
    )


def minutes(packages: dict[str, Cost], shared: dict[str, float], count: int) -> tuple[float, float]:
    """CPU minutes of a plain `nox` with this many packages like these, and minutes on two cores at the least.

    Two sessions run at a time; the longest of them, every package as locked, can be shared by no two cores.
    """
    growth = count / len(packages)
    locked = growth * sum(cost.session for cost in packages.values())
    lowest = growth * sum(cost.lowest_session for cost in packages.values())
    together = sum(seconds * (1 if name in FIXED else growth) for name, seconds in shared.items())
    everything = locked + lowest + together
    return everything / 60, max(everything / 2, locked) / 60


def _cost(root: Path, name: str) -> Cost:
    suite, lowest = _load(root, f"tests-{name}"), _load(root, f"lowest-{name}")
    session, lowest_session = (_load(root, f"session-{kind}-{name}")["cpu"] for kind in ("tests", "lowest"))
    return Cost(suite["suite"], suite["imports"], session, lowest["suite"], lowest_session)


def _load(root: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((root / ".costs" / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    PAGE.write_text(page(*read(Path.cwd())))
