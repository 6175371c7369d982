import copy
import json

import h5py
import numpy as np
import pytest

from ildataquality.demo import conditions, demo

GRID = {
    "coverage - action variance": ("method", 0.7),
    "state diversity": ("baseline", 0.1),
    "short episodes": ("baseline", 0.5),
    "coverage": ("ablation", 0.2),
    "low action variance": ("ablation", 0.6),
}
ARMS = {"best half by rank": 0, "all": 1, "random half": 2}


def made_rows():
    """Rows that hold, each clause by a little."""
    rows = [
        {"name": f"grid: {name}", "role": role, "spearman": value} for name, (role, value) in GRID.items()
    ]
    for task, metric, values in (
        ("PMObstacle", "success", (97, 84, 80)),
        ("Pendulum", "return", (-200, -300, -400)),
    ):
        for arm, place in ARMS.items():
            rows.append({"name": f"{task}: {arm}", "role": "baseline", metric: values[place]})
        rows[-3] |= {"role": "method", "precision": 95.0}
    return rows


def changed(name, metric, value):
    rows = made_rows()
    row = next(row for row in rows if row["name"] == name)
    row[metric] = value
    return conditions(rows)


def holding(judged):
    return [condition["holds"] for condition in judged]


def test_made_rows_hold_and_their_figures_are_margins():
    judged = conditions(json.loads(json.dumps(made_rows())))
    assert holding(judged) == [True] * 7
    assert [round(condition["figure"], 6) for condition in judged] == [0.7, 0.2, 0.1, 95, 13, 95, 100]
    assert [condition["needs"] for condition in judged] == [
        ">= 0.6", "> 0", "> 0", ">= 90 %", "> 0 points", ">= 90 %", "> 0 of return",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "metric", "value", "clauses"),
    [
        ("grid: coverage - action variance", "spearman", 0.59, {0, 2}),
        ("grid: state diversity", "spearman", 0.71, {1}),
        ("grid: short episodes", "spearman", 0.7, {1}),  # a tie is no win
        ("grid: coverage", "spearman", 0.71, {2}),
        ("grid: low action variance", "spearman", 0.7, {2}),
        ("PMObstacle: best half by rank", "precision", 89.9, {3}),
        ("PMObstacle: all", "success", 97, {4}),
        ("PMObstacle: random half", "success", 98, {4}),
        ("Pendulum: best half by rank", "precision", 89.9, {5}),
        ("Pendulum: all", "return", -199, {6}),
        ("Pendulum: random half", "return", -150, {6}),
    ],
)
def test_each_clause_can_fail(name, metric, value, clauses):
    judged = changed(name, metric, value)
    assert {index for index, held in enumerate(holding(judged)) if not held} == clauses


def test_exactly_enough_is_enough():
    assert changed("PMObstacle: best half by rank", "precision", 90.0)[3]["holds"]
    judged = changed("grid: coverage - action variance", "spearman", 0.6)
    assert judged[0]["holds"]
    assert not judged[2]["holds"]


def test_what_the_rows_lack_does_not_hold():
    rows = made_rows()
    judged = conditions(rows[1:])
    assert [condition["figure"] for condition in judged[:3]] == [None] * 3
    assert holding(judged) == [False] * 3 + [True] * 4
    assert holding(conditions([])) == [False] * 7
    # Rows of the first version know no short episodes: that rival is not compared with.
    earlier = [row for row in rows if row["name"] != "grid: short episodes"]
    assert holding(conditions(earlier)) == [True] * 7
    assert conditions(earlier)[1]["figure"] == pytest.approx(0.6)


def operator_rows():
    groups = [("better", 0.1, 100.0), ("okay", 0.2, 120.0), ("worse", 0.4, 121.0)]
    rows = [
        {"name": f"operators: {name}", "role": "reference", "action_variance": variance, "horizon": horizon}
        for name, variance, horizon in groups
    ]
    for name, precision in (("by rank", 60.0), ("at random", 33.0), ("for low state diversity", 50.0)):
        rows.append({"name": f"dropped {name}", "role": "baseline", "precision": precision})
    return rows


def test_operators_are_judged_by_their_order():
    judged = conditions(operator_rows())
    assert holding(judged) == [True] * 3
    assert [condition["figure"] for condition in judged] == pytest.approx([0.1, 1.0, 10.0])
    for row, metric, value, clause in (
        (1, "action_variance", 0.4, 0),
        (2, "horizon", 119.0, 1),
        (5, "precision", 60.0, 2),
    ):
        rows = copy.deepcopy(operator_rows())
        rows[row][metric] = value
        assert [index for index, held in enumerate(holding(conditions(rows))) if not held] == [clause]


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, told, untouched = smoke
    assert untouched
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    for task in ("PMObstacle", "Pendulum", "still Pendulum"):  # even three operators of each are told apart
        assert rows[f"{task}: best half by rank"]["precision"] == 100
    assert all(len(image["values"]) == 2 and len(image["values"][0]) == 2 for image in result["images"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) == 2 for series in curve["series"].values())
    assert result["conditions"] == conditions(result["rows"])
    assert None not in [condition["figure"] for condition in result["conditions"]]
    assert result["holds"] == all(holding(result["conditions"]))


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("ILDATAQUALITY_ROBOMIMIC", raising=False)
    with pytest.raises(ValueError, match="ILDATAQUALITY_ROBOMIMIC"):
        demo("paper")


@pytest.mark.parametrize("ordered", [True, False])
def test_the_paper_preset_orders_the_operators_of_a_file(tmp_path, monkeypatch, ordered):
    """Three groups of operators of known noise and speed along one line; shuffled labels must not hold."""
    random, path = np.random.default_rng(0), tmp_path / "multi_human.hdf5"
    levels = {"better": (0.05, 30), "okay": (0.3, 36), "worse": (0.9, 45)}
    if not ordered:
        levels = dict(zip(levels, [levels["worse"], levels["better"], levels["okay"]], strict=True))
    with h5py.File(path, "w") as file:
        count = 0
        for group, (noise, length) in levels.items():
            names = []
            for _ in range(6):
                names.append(f"demo_{count}".encode())
                count += 1
                place = np.linspace(0, 1, length + 1)[:, None] + 0.01 * random.normal(size=(length + 1, 2))
                demo_group = file.create_group(f"data/{names[-1].decode()}")
                demo_group["obs/object"], demo_group["next_obs/object"] = place[:-1], place[1:]
                demo_group["actions"] = np.sin(6 * place[:-1]) + noise * random.normal(size=(length, 2))
            file[f"mask/{group}"] = np.array(names)
    monkeypatch.setenv("ILDATAQUALITY_ROBOMIMIC", str(path))
    result = demo("paper", seed=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] is ordered
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["operators: worse"]["horizon"] == levels["worse"][1]
    assert (rows["dropped by rank"]["precision"] == 100) is ordered
