"""The evidence: its form, its verdict, and the second process of the larger presets."""

import io
import json
import sys

import pytest
import torch

from flyseconds import TD3Agent
from flyseconds.demo import conditions, demo, processes
from flyseconds.demo.training import Best
from flyseconds.demo.variants import MAIN_VARIANTS, Size, Trained

TINY = Size(64, 16, 1, (32, 32), 64, 1, 1, 6, 6)


@pytest.fixture(scope="session")
def smoke():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)
    return result, told


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, told = smoke
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    names = [row["name"] for row in result["rows"]]
    assert names == [
        "full recipe",
        "no action history",
        "symmetric critic",
        "geometric controller, perfect knowledge",
    ]
    assert [row["role"] for row in result["rows"]] == ["method", *["baseline"] * 2, "reference"]
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    for row in result["rows"]:
        assert 0 <= row["survival"] <= 100
        assert 0 < row["position_error"] <= 0.6
        assert 0 < row["undisturbed_error"] <= 0.6
        assert 0 < row["tracking_error"] <= 2
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    assert set(result["curves"][0]["series"]) == set(names[:-1])


@pytest.mark.demo
def test_the_smoke_run_is_judged_by_its_rows(smoke):
    result, _ = smoke
    assert result["conditions"] == conditions(json.loads(json.dumps(result["rows"])))
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])


def rows(survival=95.0, error=0.1, history=0.2, symmetric=0.2, slow=4.0):
    numbers = {"full recipe": error, "no action history": history, "symmetric critic": symmetric}
    return [
        {
            "name": name,
            "survival": survival,
            "position_error": value,
            "flight_time_in_training": slow if name == "symmetric critic" else 4.0,
        }
        for name, value in numbers.items()
    ]


@pytest.mark.parametrize(
    ("numbers", "holds"),
    [
        ({}, [True, True, True, True]),
        ({"survival": 90.0, "error": 0.15}, [True, True, True, True]),
        ({"survival": 89.9}, [False, True, True, True]),
        ({"error": 0.16}, [True, False, True, True]),
        ({"history": 0.105}, [True, True, False, True]),
        ({"symmetric": 0.1}, [True, True, True, False]),
        ({"symmetric": 0.1, "slow": 3.5}, [True, True, True, True]),
        ({"symmetric": 0.1, "slow": 3.7}, [True, True, True, False]),
        ({"symmetric": 0.05, "slow": 5.0}, [True, True, True, False]),
    ],
)
def test_each_clause_of_the_verdict_can_fail(numbers, holds):
    assert [condition["holds"] for condition in conditions(rows(**numbers))] == holds


def test_the_figures_of_the_verdict_are_those_of_the_rows():
    found = conditions(rows(symmetric=0.1, slow=3.0))
    assert [condition["figure"] for condition in found] == pytest.approx([95, 0.1, 100, 25])
    assert [condition["needs"] for condition in found] == [">= 90 %", "<= 0.15 m", ">= 10 %", ">= 10 %"]


def test_what_the_rows_lack_does_not_hold():
    for condition in conditions([{"name": "full recipe", "survival": None}]):
        assert condition["figure"] is None
        assert condition["holds"] is False


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_best_checkpoint_of_each_agent_is_kept():
    agent = TD3Agent(7, 5, num_agents=3, generator=torch.Generator().manual_seed(0))
    best = Best(agent)
    for number, errors in enumerate([[0.3, 0.2, float("nan")], [0.1, 0.25, 0.6], [0.2, 0.1, 0.6]]):
        for parameter in agent.actor.parameters():
            parameter.data.fill_(number)
        best.offer(errors)
    best.restore()
    for parameter in agent.actor.parameters():
        assert [row.unique().tolist() for row in parameter] == [[1.0], [2.0], [1.0]]


def test_a_second_process_works_on_what_it_is_asked_and_tells_all_of_it(monkeypatch):
    """Its work is done here, in this process: what goes in and comes out is text."""
    asked = processes.task([[MAIN_VARIANTS[2]]], TINY, 0, "cpu", torch.get_num_threads())
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    monkeypatch.setattr(sys, "stdout", written := io.StringIO())
    exec(processes.COMMAND, {})
    (told,) = processes.told(written.getvalue())
    (mine,) = processes.train_groups([[MAIN_VARIANTS[2]]], TINY, 0, "cpu", lambda fraction, message: None)
    mine.seconds = told.seconds
    assert told == mine


@pytest.mark.parametrize("status", [0, 3])
def test_two_processes_run_at_once_and_are_put_together(monkeypatch, status):
    """The child here only tells what it was asked, without torch."""
    child = "import sys, json; asked = json.load(sys.stdin); json.dump([{'name': name, 'role': 'baseline',"
    child += f"'steps': [asked['seed']]}} for names in asked['groups'] for name in names], sys.stdout);exit({status})"
    monkeypatch.setattr(processes, "COMMAND", child)
    monkeypatch.setattr(
        processes,
        "train_groups",
        lambda groups, *_: [Trained(variant.name, variant.role) for members in groups for variant in members],
    )
    threads = torch.get_num_threads()

    def run():
        return processes.train_variants(MAIN_VARIANTS, TINY, 7, "cpu", lambda fraction, message: None)

    if status:
        with pytest.raises(RuntimeError, match="second process ended with exit status 3"):
            run()
    else:
        found = run()
        assert [trained.name for trained in found] == [variant.name for variant in MAIN_VARIANTS]
        assert [trained.steps for trained in found] == [[], [], [7]]
    assert torch.get_num_threads() == threads
