import json

import numpy as np
import pytest
import torch

from ssorl import coupled_split
from ssorl.demo import conditions, demo
from ssorl.demo.data import collect
from ssorl.demo.environments import CartPole, Pendulum
from ssorl.demo.labels import nothing_known, ridge
from ssorl.demo.learning import evaluate, interval

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
MAIN, ALONE = "k = 1, labelled from lowest 50 %", "labelled episodes alone, from lowest 50 %"
ROWS = {
    MAIN: {"score_low": 60.5, "gap": 10.0, "score": 70.0, "mse": 0.25, "rank_correlation": 0.1},
    ALONE: {"score_high": 60.0},
    "all actions known": {"score_low": 60.5},
    "k = 1, labelled from lowest 10 %": {"gap": 10.5},
    "k = 1, labelled from lowest 100 %": {"gap": 10.0},
    "k = 0": {"mse": 0.75},
    "cart-pole, positions: k = 0": {"mse": 0.75},
    "cart-pole, positions: k = 1": {"mse": 0.25},
    "pendulum, full state: cloning proxy": {"mse": 2.5},
    "pendulum, full state: k = 1": {"mse": 0.25},
    "ridge": {"score": 75.0},
    "cloning proxy": {"below_k1_low": 0.1},
    "self-training": {"score": 75.0},
}
BROKEN = [
    (MAIN, "score_low", 60.0),
    ("all actions known", "score_low", 60.0),
    (MAIN, "gap", 10.1),
    ("k = 1, labelled from lowest 10 %", "gap", 10.0),
    ("k = 1, labelled from lowest 100 %", "gap", 10.1),
    ("k = 0", "mse", 0.74),
    ("cart-pole, positions: k = 0", "mse", 0.74),
    ("pendulum, full state: cloning proxy", "mse", 2.4),
    ("cloning proxy", "below_k1_low", 0.0),
    ("ridge", "score", 75.1),
    ("self-training", "score", 75.1),
    (MAIN, "rank_correlation", 0.0),
]


def verdicts(change=None):
    rows = {name: dict(row) for name, row in ROWS.items()}
    if change is not None:
        name, metric, value = change
        rows[name][metric] = value
    return conditions([{"name": name, **row} for name, row in rows.items()])


def test_rows_that_just_meet_every_condition_hold():
    found = verdicts()
    assert len(found) == len(BROKEN)
    assert [one["figure"] for one in found] == pytest.approx(
        [0.5, 0.5, 10, 0.5, 10, 3, 3, 10, 0.1, 5, 5, 0.1]
    )
    assert all(one["holds"] for one in found)


@pytest.mark.parametrize("index", range(len(BROKEN)))
def test_every_condition_can_fail_alone(index):
    assert [one["holds"] for one in verdicts(BROKEN[index])] == [
        other != index for other in range(len(BROKEN))
    ]


@pytest.mark.parametrize("index", range(len(BROKEN)))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert (found["figure"], found["holds"]) == (None, False)


@pytest.fixture(scope="module")
def smoke():
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    return result, told, torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, fractions, left_alone = smoke
    assert left_alone
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    assert rows["random actions"]["score"] == 0
    assert (
        rows["pendulum, full state: ridge"]["mse"]
        < 0.02
        < 0.2
        < rows["pendulum, full state: constant"]["mse"]
    )
    assert len([name for name in rows if name.startswith("labelled episodes alone")]) == 4
    for name in (MAIN, ALONE, "all actions known"):
        assert rows[name]["score_low"] <= rows[name]["score"] <= rows[name]["score_high"]


def test_logs_end_where_the_environment_ended():
    logs = collect(CartPole(), 40, torch.Generator().manual_seed(3))
    episodes = logs.episodes(positions_only=False)
    assert len({len(episode) for episode in episodes}) > 1
    for episode in episodes:
        out = np.abs(episode.next_observations[:, 0]) > 2.4
        assert bool(episode.terminals[-1]) == bool(out[-1])
        assert not out[:-1].any()
    np.testing.assert_allclose([episode.return_ for episode in episodes], logs.returns.numpy(), rtol=1e-5)


def test_ridge_knows_what_is_linear_and_the_constant_what_is_not():
    logs = collect(Pendulum(), 20, torch.Generator().manual_seed(0))
    truth = logs.episodes(positions_only=False)
    split = coupled_split(logs.returns, 0.2, 0.5, torch.Generator().manual_seed(0))
    assert ridge(truth, split).mse < 0.02
    found = nothing_known(truth, split)
    known = np.concatenate([truth[i].actions for i in split.labelled]).mean()
    hidden = np.concatenate([truth[i].actions for i in split.unlabelled])
    assert found.mse == pytest.approx(np.square(hidden - known).mean(), rel=1e-5)


def test_evaluation_is_the_sum_of_rewards_of_each_agent():
    world = Pendulum()
    start = world.reset(4, torch.Generator().manual_seed(0))
    force = torch.tensor([-0.5, 0.3]).view(2, 1, 1)
    total = evaluate(lambda seen: force.expand(2, 4, 1), world, start, 2)
    for agent in range(2):
        state, expected = start, torch.zeros(4)
        for _ in range(300):
            state, reward, _ = world.step(state, force[agent, 0].expand(4))
            expected += reward
        torch.testing.assert_close(total[agent], expected)


def test_an_interval_is_that_of_paired_differences():
    first = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)) * 0.1
    low, high = interval(first + 1, torch.zeros(1, 400))
    mean, error = float(first.mean() + 1), float(first.mean(0).std()) / 20
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.3 * error)


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("SSORL_MINARI", raising=False)
    with pytest.raises(ValueError, match="paper needs SSORL_MINARI"):
        demo("paper")


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
