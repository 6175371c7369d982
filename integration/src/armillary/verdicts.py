"""The results of one method as a person reads them: the claim, each condition with its figures, rival against method.

On a terminal everything fits its width and the table comes when it is asked for; in a pipe it is Markdown and whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from armillary import summary as summaries
from armillary.console import cut, err, out, say
from armillary.contract import Failure, Run
from armillary.summary import MARKS, Clause, Duel, Summary, differences, mark_of, summarize, verdict_of
from armillary.text import one_line

_MOST_DUELS = 6
_COLOURS = {
    **{"holds": "green", "fails": "red", "unjudged": "dim"},
    **{"all": "bold green", "some": "bold yellow", "none": "bold red"},
}


def print_results(runs: Sequence[Run], full: bool) -> None:
    """Print the runs of one method, seeds together.

    Args:
        runs: Of one version, one preset and one device.
        full: With the whole table.
    """
    summary = summarize([run.result for run in runs])
    if not out.is_terminal:
        out.print(Text(as_markdown(runs, summary)), soft_wrap=True)
        return
    preset = runs[0].preset
    out.print()
    say(out, (runs[0].name, "bold"), f" {_origin(runs)}")
    say(out, one_line(runs[0].result.claim), indent=2)
    out.print()
    for clause in summary.clauses:
        _print_clause(clause, preset)
    if summary.duels:
        _print_duels(summary.duels)
    if full:
        for each in summary.tables:
            _print_table(each)
    for line in _differences(runs):
        say(out, ("! ", "yellow"), line, indent=2)
    words, kind = verdict_of(summary, preset)
    out.print()
    say(out, (f"{words}.", _COLOURS[kind]), indent=2)


def print_verdict(runs: Sequence[Run]) -> None:
    """Print the verdict alone, in one line.

    Args:
        runs: Of one version, one preset and one device.
    """
    words, kind = verdict_of(summarize([run.result for run in runs]), runs[0].preset)
    say(out, (runs[0].name, "bold"), f" {_origin(runs)}: ", (f"{words}.", _COLOURS[kind]))


def print_failure(failure: Failure) -> None:
    """One line for a run that gave no result."""
    where = "" if failure.device == "cpu" else f" on {failure.device}"
    label = f"{failure.name} {failure.preset} seed {failure.seed}{where}"
    say(err, ("no result", "red"), f": {label}: {one_line(failure.reason)}")


def as_markdown(runs: Sequence[Run], summary: Summary) -> str:
    """The runs of one method as Markdown, with the whole table.

    Args:
        runs: Of one version, one preset and one device.
        summary: Their summary.
    """
    preset = runs[0].preset
    conditions = [
        [MARKS[mark_of(clause, preset)], clause.says, clause.figure, clause.needs, _seeds(clause)]
        for clause in summary.clauses
    ]
    tables = [
        _markdown_table(
            ["row", "role", *each.columns], [[name, role, *cells] for name, role, cells in each.lines]
        )
        for each in summary.tables
    ]
    parts = [
        f"\n## {runs[0].name} {_origin(runs)}",
        one_line(runs[0].result.claim),
        _markdown_table(["", "condition", "figure", "needs", "seeds"], conditions),
        *tables,
        *_differences(runs),
        f"**{verdict_of(summary, preset)[0]}.**",
    ]
    return "\n\n".join(parts)


def _print_clause(clause: Clause, preset: str) -> None:
    kind = mark_of(clause, preset)
    mark, colour = MARKS[kind], _COLOURS[kind]
    numbers = f"{clause.figure}, needs {clause.needs}"
    if clause.seeds > 1:
        numbers += f" ({_seeds(clause)} seeds)"
    says = one_line(clause.says)
    style = colour if colour == "red" else ""
    if cell_len(says) + cell_len(numbers) + 7 <= out.width:
        say(out, (f"{mark} ", colour), f"{says}: ", (numbers, style), indent=2)
    else:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(Text(f"  {mark}", colour), Text(says))
        table.add_row("", Text(numbers, style or "dim"))
        out.print(table)


def _print_duels(duels: Sequence[Duel]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("  best rival against method", "rival", "method"):
        table.add_column(Text(heading), no_wrap=True)
    room = max(8, (out.width - 8) // 3)
    for duel in duels[:_MOST_DUELS]:
        rival, method = (
            cut(f"{value} {one_line(name)}", room)
            for value, name in ((duel.rival_value, duel.rival), (duel.method_value, duel.method))
        )
        if duel.better:
            (method if duel.better == "method" else rival).stylize("bold")
        table.add_row(cut(f"  {duel.metric}", room + 4), rival, method)
    out.print()
    out.print(table)
    if len(duels) > _MOST_DUELS:
        say(out, (f"and {len(duels) - _MOST_DUELS} more metrics with --full", "dim"), indent=2)


def _print_table(found: summaries.Table) -> None:
    """The table if it fits the terminal, else one block a row with what was measured for it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("row", no_wrap=True)
    for column in found.columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for name, role, cells in found.lines:
        label = Text.assemble(one_line(name), ("" if role == "method" else f" {role}", "dim"))
        table.add_row(label, *map(Text, cells), style="bold" if role == "method" else "")
    out.print()
    if Measurement.get(out, out.options.update(width=10_000), table).maximum <= out.width:
        out.print(table)
        return
    width = max(map(cell_len, found.columns), default=0) + 2
    for name, role, cells in found.lines:
        say(out, (one_line(name), "bold" if role == "method" else ""), (f"  {role}", "dim"), indent=2)
        for column, cell in zip(found.columns, cells, strict=True):
            if cell != "–":
                say(out, (column + " " * (width - cell_len(column)), "dim"), cell, indent=4)


def _origin(runs: Sequence[Run]) -> str:
    first = runs[0]
    seeds = ", ".join(str(run.seed) for run in runs)
    where = "" if first.device == "cpu" else f", on {first.device}"
    return f"{first.version}, {first.preset}, seed{'s' if len(runs) > 1 else ''} {seeds}{where}"


def _seeds(clause: Clause) -> str:
    return f"{clause.held} of {clause.seeds}"


def _differences(runs: Sequence[Run]) -> list[str]:
    return differences({run.seed: run.result for run in runs})


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
