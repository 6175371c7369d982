import pytest

from armillary.contract import check_result
from armillary.summary import Cell, Clause, differences, show_number, summarize


def varied(result, **distances):
    """The result with other distances, and a verdict that fits them."""
    rows = [{**row, "distance": distances.get(row["name"], row["distance"])} for row in result["rows"]]
    ratio = rows[1]["distance"] / rows[0]["distance"]
    clause = {**result["conditions"][0], "figure": ratio, "holds": ratio <= 0.5}
    return {**result, "rows": rows, "conditions": [clause], "holds": ratio <= 0.5}


def test_the_table_holds_the_mean_and_the_range(result):
    summary = summarize([check_result(result), check_result(varied(result, walking=1.5))])
    (table,) = summary.tables
    assert table.columns == ["distance [m] ↓", "steps"]
    assert table.lines[1] == ("walking", "method", ["1 (0.5 to 1.5)", "10"])
    assert summary.verdict == "Holds on 1 of 2 seeds"


def test_rows_that_were_not_measured_alike_stand_in_tables_of_their_own(result):
    """One table of all would be half dashes; every row and every metric is in exactly one of them."""
    for name in ("slope", "grip", "wind"):
        result["metrics"][name] = {"unit": "", "better": "neither"}
    result["rows"] += [
        {"name": "hill", "role": "reference", "slope": 0.5, "grip": 1},
        {"name": "running", "role": "method", "distance": 0.25},
        {"name": "dune", "role": "reference", "slope": 0.25, "grip": 0, "steps": 3},
        {"name": "sea", "role": "reference", "wind": 9},
    ]
    tables = summarize([check_result(result)]).tables
    assert [(table.columns, [name for name, *_ in table.lines]) for table in tables] == [
        (["distance [m] ↓", "steps"], ["standing still", "walking", "running"]),
        (["steps", "slope", "grip"], ["hill", "dune"]),
        (["wind"], ["sea"]),
    ]
    assert tables[0].lines[2] == ("running", "method", ["0.25", "–"])


def test_a_condition_is_told_with_its_figures_and_the_seeds_it_holds_on(result):
    (clause,) = summarize([check_result(result), check_result(varied(result, walking=1.5))]).clauses
    assert (clause.figure, clause.needs, clause.held, clause.seeds) == ("0.5 (0.25 to 0.75)", "<= 0.5", 1, 2)
    assert not clause.holds


def test_the_best_rival_stands_against_the_best_row_of_the_method(result):
    result["rows"] += [
        {"name": "running", "role": "method", "distance": 0.25, "steps": 20},
        {"name": "crawling", "role": "ablation", "distance": 1.0, "steps": 5},
        {"name": "flying", "role": "reference", "distance": 0.0, "steps": 1},
    ]
    (duel,) = summarize([check_result(result)]).duels  # `steps` has no better side
    assert (duel.rival, duel.rival_value, duel.method, duel.method_value) == (
        "crawling",
        "1",
        "running",
        "0.25",
    )
    assert duel.better == "method"


def test_rows_that_only_some_seeds_have_are_all_shown_with_their_count(result):
    """The case of a reference that was called otherwise on one of three seeds, and was the best row there."""
    named = [
        {
            **result,
            "rows": [*result["rows"], {"name": name, "role": "reference", "distance": far, "steps": 1}],
        }
        for name, far in (("flying", 27.3), ("gliding", 21.4), ("flying", 38.5))
    ]
    results = [check_result(each) for each in named]
    lines = {name: cells for name, _, cells in summarize(results).tables[0].lines}
    assert lines["flying"] == ["32.9 (27.3 to 38.5, n=2)", "1 (n=2)"]
    assert lines["gliding"] == ["21.4 (n=1)", "1 (n=1)"]
    assert lines["walking"] == ["0.5", "10"]
    assert differences(dict(enumerate(results))) == [
        "row 'flying' (reference): only on seeds 0, 2",
        "row 'gliding' (reference): only on seed 1",
    ]


def test_metrics_and_conditions_that_differ_are_named(result):
    other = varied(result)
    other["metrics"] = {**result["metrics"], "distance": {"unit": "km", "better": "lower"}}
    other["conditions"] = [{**result["conditions"][0], "needs": "<= 0.4"}]
    found = differences({3: check_result(result), 4: check_result(other)})
    assert found == [
        "metric 'distance [m] ↓': only on seed 3",
        "condition 'walking ends at half the distance', needs <= 0.5: only on seed 3",
        "metric 'distance [km] ↓': only on seed 4",
        "condition 'walking ends at half the distance', needs <= 0.4: only on seed 4",
    ]
    assert differences({0: check_result(result), 1: check_result(result)}) == []


@pytest.mark.parametrize(
    ("figures", "needs", "shown"),
    [
        ((0.99961,), ">= 1", "0.9996"),  # "1, needs >= 1" would read as if it held
        ((0.99961, 1.2), ">= 1", "1.1 (0.9996 to 1.2)"),
        ((12.8412, None), ">= 5 points", "12.8 (n=1)"),
        ((None, None), ">= 5", "–"),
        ((1e308, 1e308, 1.5e308), "< 1", "1.17e+308 (1e+308 to 1.5e+308)"),
    ],
)
def test_a_figure_is_shown_on_its_side_of_the_bound(figures, needs, shown):
    assert Clause("it", needs, figures, held=0, seeds=len(figures)).figure == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.0, "2"),
        (0.12345, "0.123"),
        (123456, "123456"),
        (12345.678, "12,346"),
        (1.5e12, "1.5e+12"),
        (-0.0, "0"),
    ],
)
def test_numbers_are_for_people(value, shown):
    assert show_number(value) == shown


def test_means_are_those_of_the_values():
    assert Cell((1.0, 2.0, 4.5), 3).mean == pytest.approx(2.5)
