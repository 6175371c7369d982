import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from robustmeanteacher.demo import conditions, demo
from robustmeanteacher.demo.tuning import Grid, choose

KEYS = {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"}


def holds(rows):
    return all(condition["holds"] for condition in conditions(rows))


def check(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.keys() == KEYS
    assert {"data", "model", "budget"} <= result["setting"].keys()
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    assert result["holds"] == holds(result["rows"])
    assert all(0 <= row[key] <= 100 for row in result["rows"] for key in row if key not in ("name", "role"))
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())


@pytest.fixture(scope="module")
def smoke():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert told == sorted(told)
    assert told[-1] == 1.0
    return result


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    check(smoke)
    rows = {row["name"]: row for row in smoke["rows"]}
    # A model that does not adapt makes the same errors in every loop; one that adapts does not predict the same.
    for name in ("source model", "BN-1"):
        assert rows[name]["first loop"] == pytest.approx(rows[name]["last loop"], abs=8)
    assert rows["source model"]["first loop"] == rows["source model"]["last loop"]
    # The map holds what the table averages.
    means = [sum(row) / len(row) for row in smoke["images"][0]["values"]]
    assert means == pytest.approx([row["continual"] for row in smoke["rows"]])


def rows_in_which_the_claim_holds():
    """Every lead is 1 point, but for TENT's and the published rate's, which are 2."""

    def row(name, continual, gradual=None, last=30.0):
        loops = {"first loop": 30.0, "last loop": last}
        return {"name": name, "role": "-", "continual": continual, **loops} | (
            {"gradual": gradual} if gradual else {}
        )

    teacher, published = "mean teacher, cross-entropy", ", at the published rate"
    methods = ("RMT, source-free", "RMT, source replay")
    rows = [row(name, 32.0, 22.0) for name in ("source model", "BN-1", "BN-adapt", "TENT")]
    rows += [row(teacher, 31.0, 21.0), row(teacher + published, 33.0)]
    rows += [row(name, 30.0, 20.0) for name in methods] + [row(name + published, 31.0) for name in methods]
    return {one["name"]: one for one in rows}


def test_the_claim_can_fail_by_every_rival_and_on_every_stream():
    rows = rows_in_which_the_claim_holds()
    figures = [condition["figure"] for condition in conditions(list(rows.values()))]
    assert figures == 2 * [2.0, 1.0, 2.0, 1.0, 2.0, 0.0]
    assert holds(list(rows.values()))
    spoilt = [(name, stream) for name in list(rows)[:5] for stream in ("continual", "gradual")]
    for name, stream in [*spoilt, ("mean teacher, cross-entropy, at the published rate", "continual")]:
        equal = {"continual": 30.0, "gradual": 20.0} if "published" not in name else {"continual": 31.0}
        worse = rows | {name: rows[name] | {stream: equal[stream]}}
        failed = [
            condition["says"] for condition in conditions(list(worse.values())) if not condition["holds"]
        ]
        assert len(failed) == 2  # both methods
        assert all(says.startswith(stream) for says in failed)
    for name in ("RMT, source-free", "RMT, source replay"):
        assert not holds(list((rows | {name: rows[name] | {"last loop": 30.1}}).values()))
        without = {key: value for key, value in rows.items() if key != name}
        judged = conditions(list(without.values()))
        assert [condition["figure"] for condition in judged].count(None) == 5
        assert not all(condition["holds"] for condition in judged)


@pytest.mark.parametrize(
    ("best", "tried", "value", "at_edge"),
    [
        (1e-2, [1e-3, 1e-2, 1e-1], 1e-2, False),  # bracketed from the start
        (1.0, [1e-3, 1e-2, 1e-1, 1.0, 10.0], 1.0, False),  # widened until something worse is beyond
        (1e3, [1e-3, 1e-2, 1e-1, 1.0, 10.0], 10.0, True),  # up to the limit, and said so
        (1e-4, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], 1e-4, False),
        (1e-9, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], 1e-5, True),
    ],
)
def test_a_choice_at_the_end_of_the_grid_widens_it(best, tried, value, at_edge):
    asked = []
    grid = Grid((1e-1, 1e-3, 1e-2), factor=10, lowest=1e-5, highest=10.0)
    choice = choose(grid, lambda rate: asked.append(rate) or abs(math.log10(rate / best)))
    assert list(choice.errors) == sorted(asked) == tried
    assert (choice.value, choice.at_edge) == (value, at_edge)


def test_the_rivals_are_the_published_ones_written_out():
    """BN-adapt's statistics are those of `prior` source samples and the batch; TENT's step lowers the entropy."""
    from robustmeanteacher.demo import methods

    draw = torch.Generator().manual_seed(0)
    layer = nn.BatchNorm1d(3).eval()
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.running_var.copy_(torch.tensor([2.0, 0.5, 4.0]))
    task = types.SimpleNamespace(model=nn.Sequential(layer))
    images = torch.randn(6, 3, generator=draw) + 3
    mean = (4 * layer.running_mean + 6 * images.mean(0)) / 10
    variance = (4 * layer.running_var + 6 * images.var(0, correction=0)) / 10
    expected = (images - mean) / (variance + layer.eps).sqrt()
    torch.testing.assert_close(methods.blended_statistics(task, 4)(images), expected)
    with torch.no_grad():
        torch.testing.assert_close(methods.source_model(task)(images), task.model(images))
        normal = (images - images.mean(0)) / (images.var(0, correction=0) + layer.eps).sqrt()
        torch.testing.assert_close(methods.batch_statistics(task)(images), normal)

    tent = methods.Tent(task, 1e-2)
    torch.testing.assert_close(tent(images), normal)  # predicted before the step
    scale = torch.ones(3, requires_grad=True)
    p = (normal * scale).softmax(1)
    (slope,) = torch.autograd.grad(-(p * p.log()).sum(1).mean(), scale)
    # Adam's first step has one length, whatever the gradient's: down the slope of the entropy.
    torch.testing.assert_close(tent._model[0].weight.detach(), 1 - 1e-2 * slope.sign(), atol=1e-5, rtol=0)


def test_one_value_is_no_choice():
    choice = choose(Grid.of(1e-3), lambda rate: pytest.fail("nothing is to be compared"))
    assert (choice.value, choice.errors, choice.at_edge) == (1e-3, {}, False)


def test_the_setting_tells_what_was_tried_and_what_lies_at_an_edge():
    """The mean teachers' choice is interior, TENT's at the limit; every row has its own."""
    import robustmeanteacher.demo as told

    def outcome(name, choice):
        return told._Outcome(told._Method(name, "baseline", None, "rate", grid), choice, [])

    grid = Grid((1e-2, 1e-1), 10, 1e-3, 1e-1)
    task = types.SimpleNamespace(
        about={}, learning_rates=grid, priors=grid, batch_size=1, loops=1, warm_up_steps=1
    )
    inside = choose(Grid((1e-3, 1e-2, 1e-1), 10, 1e-3, 1e-1), lambda rate: abs(rate - 1e-2))
    setting = told._setting(
        task, [outcome("teacher", inside), outcome("TENT", choose(grid, lambda rate: 1 - rate))]
    )
    assert setting["chosen"] == {"teacher": "rate 0.01", "TENT": "rate 0.1"}
    assert setting["choices at an edge"] == "rate 0.1 of TENT"
    assert setting["tried"]["TENT"] == "0.01: 99.0 %, 0.1: 90.0 %"


def test_every_row_but_those_at_the_published_rate_is_tuned_by_one_rule():
    import robustmeanteacher.demo as told

    grid = Grid((1e-2, 1e-1), 10, 1e-3, 1e-1)
    task = types.SimpleNamespace(learning_rates=grid, priors=grid)
    methods = {method.name: method for method in told._methods(task, seed=0)}
    fixed = {name for name, method in methods.items() if method.grid is not grid}
    references = {name for name, method in methods.items() if method.role == "reference"}
    assert fixed == references | {"source model", "BN-1"}
    assert {methods[name].grid.highest for name in references} == {1e-3}
    assert references == {
        f"{name}, at the published rate"
        for name in ("mean teacher, cross-entropy", "RMT, source-free", "RMT, source replay")
    }


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.delenv("ROBUSTMEANTEACHER_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="ROBUSTMEANTEACHER_CIFAR10 must name a folder"):
        demo("paper")
    for variable in ("ROBUSTMEANTEACHER_CIFAR10", "ROBUSTMEANTEACHER_CIFAR10C"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(ImportError, match="robustbench"):
        demo("paper")


class Tiny(nn.Module):
    """Stands for the network that robustbench would load."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, images):
        return self.fc(self.norm(self.stem(images)).relu().mean((2, 3)))


def test_the_paper_preset_runs_on_files_of_the_right_form(monkeypatch, tmp_path):
    """Four images per corruption and severity, and a network of no depth: the form of the paper's run alone."""
    import robustmeanteacher.demo.data as data

    rng = np.random.default_rng(0)
    kinds = data._CIFAR_KINDS[:2]
    monkeypatch.setattr(data, "_CIFAR_KINDS", kinds)
    monkeypatch.setattr(data, "_WARM_UP_IMAGES", 8)
    for kind in kinds:
        np.save(tmp_path / f"{kind}.npy", rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    for part in range(1, 6):
        table = rng.integers(0, 256, (10, 3073), dtype=np.uint8)
        table[:, 0] = np.arange(10)
        table.tofile(tmp_path / f"data_batch_{part}.bin")
    for variable in ("ROBUSTMEANTEACHER_CIFAR10", "ROBUSTMEANTEACHER_CIFAR10C"):
        monkeypatch.setenv(variable, str(tmp_path))
    with torch.random.fork_rng():
        network = Tiny()
    asked = []
    fake = types.ModuleType("robustbench.utils")
    fake.load_model = lambda name, **options: asked.append((name, options)) or network
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", fake)

    result = demo("paper", seed=0)
    check(result)
    assert asked == [("Standard", {"dataset": "cifar10", "threat_model": "corruptions"})]
    assert len(result["images"][0]["values"][0]) == 2
