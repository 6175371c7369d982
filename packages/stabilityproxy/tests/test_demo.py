import json
import math

import pytest
import torch

from stabilityproxy.demo import conditions, demo
from stabilityproxy.demo.experiments import Prediction, Sweep, tuned_clipping
from stabilityproxy.demo.training import Run

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    "no mitigation, large model": {"sensitivity": 0.3, "logit_growth": 101.0},
    "no mitigation, small model": {"sensitivity": 0.29},
    "qk-layernorm, large model": {"sensitivity": 0.24},
    "qk-layernorm, small model": {"sensitivity": 0.2},
    "gradient clipping, small model": {"sensitivity": 0.21},
    "extrapolated by a quadratic": {"error": 0.5, "inside": 100.0},
    "as at the largest size seen": {"error": 0.6},
    "epsilon 1e-08, gradients / 1000": {"update_rms": 0.2},
    "epsilon 0.0001, gradients / 1000": {"update_rms": 0.019},
}
FIGURES = [0.06, 101.0, 0.01, 0.01, 0.5, 0.1, 100.0, 0.2 / 0.019]
BROKEN = [
    ("qk-layernorm, large model", "sensitivity", 0.25),
    ("no mitigation, large model", "logit_growth", 100.0),
    ("no mitigation, small model", "sensitivity", 0.3),
    ("qk-layernorm, small model", "sensitivity", 0.21),
    ("extrapolated by a quadratic", "error", 0.51),
    ("as at the largest size seen", "error", 0.5),
    ("extrapolated by a quadratic", "inside", 0.0),
    ("epsilon 0.0001, gradients / 1000", "update_rms", 0.021),
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


@pytest.mark.parametrize("index", range(8))
def test_every_condition_can_fail_alone(index):
    assert [found["holds"] for found in verdicts(BROKEN[index])] == [other != index for other in range(8)]


@pytest.mark.parametrize("index", range(8))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index]
    found = verdicts((name, metric, None))[index]
    assert (found["figure"], found["holds"]) == (None, False)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    # What is known beforehand: |z| <= sqrt(d_h) but for the gains, and a share of epsilon.
    assert rows["qk-layernorm, small model"]["largest_logit"] < 2 * 16**0.5
    assert rows["epsilon 0.0001, gradients / 1000"]["eps_ratio"] > 0.1
    # Three sizes leave a quadratic nothing to state an interval by.
    assert rows["extrapolated by a quadratic"]["inside"] is None


def run_with(loss):
    return Run(10, 4.0, loss, loss + 0.1, 5.0, None)


def test_the_grid_of_norms_is_widened_until_the_best_is_inside(monkeypatch):
    from stabilityproxy.demo import experiments, tasks

    best = 9.0

    def swept(task, shape, arm, seed, rates):
        asked.append((arm.clip_norm, rates))
        loss = 2.0 + 0.05 * abs(math.log(arm.clip_norm / best))
        return Sweep([run_with(2.0), *(run_with(loss) for _ in rates[1:])], rates)

    asked = []
    monkeypatch.setattr(experiments, "sweep", swept)
    task = type("Task", (), {"sizes": tasks.SIZES["laptop"]})()
    chosen, scores = tuned_clipping(task, 0)
    assert sorted(scores) == pytest.approx([0.1, 0.3, 1.0, 3.0, 9.0, 27.0])
    assert min(scores, key=scores.__getitem__) == pytest.approx(9.0)
    # Norms are compared at the upper rates; the lower ones are of the best norm, once.
    assert [rates for _, rates in asked] == [(3e-2, 1e-1, 3e-1)] * 6 + [(1e-3, 3e-3, 1e-2)]
    assert asked[-1][0] == pytest.approx(9.0)
    assert chosen.learning_rates == (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    assert len(chosen.runs) == 6
    best = 0.3
    assert sorted(tuned_clipping(task, 0)[1]) == [0.1, 0.3, 1.0]
    best = 1e9
    assert len(tuned_clipping(task, 0)[1]) == 6


def test_diverged_runs_are_capped_and_the_test_text_is_not_the_one_to_tune_on():
    sweep = Sweep([run_with(2.0), run_with(math.inf)], (1e-2, 1e-1))
    assert sweep.sensitivity().value == pytest.approx((2.1 + 4.0) / 2 - 2.1)
    assert sweep.sensitivity("validation_loss").value == pytest.approx((2.0 + 4.0) / 2 - 2.0)
    assert Prediction([], [], {}, 1.0, 10.0, 1.0).error(1000.0) == pytest.approx(2.0)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch, tmp_path):
    from stabilityproxy.demo.tasks import load

    monkeypatch.delenv("STABILITYPROXY_TOKENS", raising=False)
    with pytest.raises(ValueError, match=r"STABILITYPROXY_TOKENS"):
        demo("paper")
    path = tmp_path / "tokens.bin"
    ids = torch.arange(20_000).to(torch.int16)
    path.write_bytes(ids.numpy().tobytes())
    monkeypatch.setenv("STABILITYPROXY_TOKENS", str(path))
    task = load("paper", "cpu")
    inputs, targets = task.batch(task.train, torch.Generator().manual_seed(0))
    assert inputs.shape == (256, 512)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(torch.cat([task.train, task.validation, task.test]), ids)
