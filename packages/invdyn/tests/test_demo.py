import json

import pytest
import torch

from invdyn.demo import conditions, demo
from invdyn.demo.training import RATES, Size, principal_components, tune
from invdyn.demo.world import World, demonstrate, draw_goals

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    "inverse dynamics": {
        "role": "method",
        "r2": 0.9,
        "r2_low": 0.8,
        "success": 90.0,
        "success_few": 80.0,
        "error_of_others": 0.2,
    },
    "SimCLR": {"role": "baseline", "r2": 0.7, "r2_high": 0.75, "success": 85.0, "error_of_others": 0.3},
    "goal BC": {"role": "reference", "r2": 1.0, "r2_high": 1.0, "success": 99.0, "error_of_others": 0.0},
    "from scratch": {"role": "baseline", "success": 84.0, "success_few": 65.0},
}
FIGURES = [0.2, 0.05, 5.0, 15.0, 0.1]
BROKEN = [
    ("SimCLR", "r2", 0.9),
    ("SimCLR", "r2_high", 0.8),
    ("from scratch", "success", 90.0),
    ("from scratch", "success_few", 65.1),
    ("SimCLR", "error_of_others", 0.2),
]


def verdicts(change=None):
    rows = {name: dict(row) for name, row in ROWS.items()}
    if change is not None:
        name, metric, value = change
        rows[name][metric] = value
    return conditions([{"name": name, **row} for name, row in rows.items()])


def test_rows_that_just_meet_every_condition_hold():
    assert [found["figure"] for found in verdicts()] == pytest.approx(FIGURES)
    assert all(found["holds"] for found in verdicts())


@pytest.mark.parametrize("index", range(5))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(5)]


def test_rows_without_the_method_hold_nothing():
    found = conditions([{"name": name, **row} for name, row in ROWS.items() if row["role"] != "method"])
    assert [(one["figure"], one["holds"]) for one in found] == [(None, False)] * 5


@pytest.fixture(scope="session")
def smoke():
    """One smoke run, with what its progress told and whether global randomness was left alone."""
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    return result, told, torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, fractions, left_alone = smoke
    assert left_alone
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert all(found["figure"] is not None for found in result["conditions"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "reference"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    (curve,) = result["curves"]
    assert set(curve["series"]) == set(names)
    (image,) = result["images"]
    assert len(image["values"]) == len(image["values"][0]) == len(names) - 1  # scratch has no representation


@pytest.mark.demo
def test_the_smoke_run_measures_what_is_known_beforehand(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    assert rows["state"]["r2"] == pytest.approx(1.0)
    assert all(row["r2_low"] <= row["r2"] <= row["r2_high"] for row in rows.values() if "r2" in row)


def test_the_red_blob_is_where_the_agent_is():
    generator = torch.Generator().manual_seed(0)
    world = World.start(50, generator)
    red = world.frames()[:, 0].float()
    places = torch.arange(32.0)
    across = (red.sum(1) * places).sum(1) / red.sum((1, 2))
    down = (red.sum(2) * places).sum(1) / red.sum((1, 2))
    found = (torch.stack([across, down], 1) - 15.5) * 0.3 / 12
    assert (found - world.position).abs().max() < 0.004  # a tenth of a step


def test_the_clean_expert_arrives():
    generator = torch.Generator().manual_seed(0)
    goals = draw_goals(30, generator)
    data = demonstrate(goals, 25, 0.0, generator)
    ends = data["position"].view(30, 26, 2)[:, -1]
    assert ((ends - goals).norm(dim=1) < 0.05).all()
    steps = data["position"].view(30, 26, 2).diff(dim=1) - 0.04 * data["action"].view(30, 25, 2)
    assert steps.abs().max() < 0.01  # noise of 0.002: actions stand before what they bring about


def test_components_are_those_of_an_svd():
    frames = demonstrate(torch.zeros(5, 2), 10, 2.0, torch.Generator().manual_seed(0))
    pixels = frames["obs"].flatten(1).double() / 255
    centred = pixels - pixels.mean(0)
    left = torch.linalg.svd(centred, full_matrices=False)[0][:, :16]
    found = principal_components(frames)(frames["obs"]).double()
    torch.testing.assert_close(left @ (left.T @ found), found, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.std(0), torch.ones(16).double(), atol=1e-3, rtol=1e-3)


def test_a_grid_widens_where_its_edge_wins(monkeypatch):
    scores = {2e-3: 0.1, 5e-4: 0.2, 1.25e-4: 0.4, 1.25e-4 / 4: 0.3, 8e-3: 0.0}
    monkeypatch.setattr("invdyn.demo.training.pretrain", lambda name, data, setting, *rest: setting)
    monkeypatch.setattr("invdyn.demo.training.encode", lambda phi, obs: phi)
    monkeypatch.setattr("invdyn.demo.training.probe_r2", lambda phi, data, seed: scores[phi["learning rate"]])
    size = Size(1, 1, 1, 1, 1, 1, 1, (1,), 1, ())
    found = tune("inverse dynamics", {}, {"obs": None}, size, 0)
    assert found.setting == {"learning rate": 1.25e-4}
    assert found.bracketed
    assert {setting["learning rate"] for setting, _ in found.tried} == {*RATES, 1.25e-4, 1.25e-4 / 4}


def test_an_unknown_preset_or_device_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
    with pytest.raises(ValueError, match=r"device must be 'cpu', got 'meta'"):
        demo("smoke", device="meta")
