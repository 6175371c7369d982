"""What a terminal of 80 columns shows of a method's runs."""

import io

import pytest
from conftest import a_failure, a_run
from rich.cells import cell_len
from rich.console import Console

from armillary import console, verdicts

LONG = "walking takes no more steps than it is allowed to take by whoever counts them while it walks"


@pytest.fixture
def terminal(monkeypatch):
    """What is printed on a terminal of 80 columns, as text."""
    stream = io.StringIO()
    screen = Console(
        file=stream, force_terminal=True, width=80, color_system=None, markup=False, highlight=False
    )
    for module in (console, verdicts):
        monkeypatch.setattr(module, "out", screen)
        monkeypatch.setattr(module, "err", screen)
    return stream


def test_the_claim_the_clauses_the_rival_and_the_verdict_fit_80_columns(terminal, result):
    result["claim"] = "Taking more steps gets closer, and closer, " * 4
    result["conditions"].append({"says": LONG, "figure": 13, "needs": "<= 12 steps", "holds": False})
    result["holds"] = False
    verdicts.print_results([a_run(result), a_run(result, seed=1)], full=False)
    lines = terminal.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[1] == "good 1.0, laptop, seeds 0, 1"
    stripped = [line.strip() for line in lines]
    assert "✓ walking ends at half the distance: 0.25, needs <= 0.5 (2 of 2 seeds)" in stripped
    assert "13, needs <= 12 steps (0 of 2 seeds)" in stripped
    assert "distance [m] ↓             2 standing still  0.5 walking" in stripped
    assert stripped[-1] == "Holds on 0 of 2 seeds."
    assert "steps" not in " ".join(stripped[-4:])  # the table is not there


def test_the_whole_table_comes_when_asked_for(terminal, result):
    verdicts.print_results([a_run(result)], full=True)
    lines = [line.split() for line in terminal.getvalue().splitlines()]
    assert ["row", "distance", "[m]", "↓", "steps"] in lines
    assert ["walking", "0.5", "10"] in lines


def test_a_table_that_does_not_fit_is_one_block_a_row(terminal, result):
    for number in range(9):
        result["metrics"][f"distance_at_{number}"] = {"unit": "m", "better": "lower"}
        result["rows"][1][f"distance_at_{number}"] = number + 0.5
    verdicts.print_results([a_run(result)], full=True)
    shown = terminal.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert "distance at 8 [m] ↓  8.5" in shown
    assert "distance [m] ↓" in shown
    assert "and 0 more" not in shown


def test_a_smoke_run_is_not_judged(terminal, result):
    result["conditions"][0].update(figure=0.75, holds=False)
    result["holds"] = False
    verdicts.print_results([a_run(result, preset="smoke")], full=False)
    shown = terminal.getvalue()
    assert "· walking ends at half the distance: 0.75" in shown
    assert shown.splitlines()[-1].strip() == "Form ok, not judged."
    assert "✗" not in shown


def test_brackets_are_text(terminal, result):
    result["claim"] = "[red]no[/] markup [/nope]"
    result["rows"][0]["name"] = "a[/b]"
    result["metrics"]["distance"]["unit"] = "[bold]"
    verdicts.print_results([a_run(result)], full=True)
    verdicts.print_failure(a_failure(reason="the [bracketed] cause"))
    shown = terminal.getvalue()
    for text in ("[red]no[/] markup [/nope]", "a[/b]", "distance [[bold]] ↓", "the [bracketed] cause"):
        assert text in shown


def test_what_differs_between_seeds_is_said(terminal, result):
    other = {**result, "rows": [*result["rows"], {"name": "gliding", "role": "reference", "distance": 1}]}
    verdicts.print_results([a_run(result), a_run(other, seed=1)], full=False)
    assert "! row 'gliding' (reference): only on seed 1" in terminal.getvalue()
