import json

import pytest
import torch

from poseidon_lite.demo import conditions, demo
from poseidon_lite.demo.judgement import trajectories_needed
from poseidon_lite.demo.measures import error
from poseidon_lite.demo.rivals import MeanField, Persistence
from poseidon_lite.demo.training import fit
from poseidon_lite.training import All2AllDataset

NAMES = [
    "nothing changes",
    "mean field",
    "pretrained scOT as it is",
    "FNO from scratch",
    "scOT from scratch, vanilla",
    "scOT from scratch",
    "fine-tuned scOT",
]


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1

    assert [row["name"] for row in result["rows"]] == NAMES
    assert [row["role"] for row in result["rows"]] == ["baseline"] * 6 + ["method"]
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    assert conditions(result["rows"]) == result["conditions"]
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    initial, reference, predicted, difference = (torch.tensor(image["values"]) for image in result["images"])
    torch.testing.assert_close(difference, (predicted - reference).abs())
    assert abs(float(initial.mean())) < 1e-5  # an incompressible flow at rest on the whole


def rows(own, *errors):
    found = [
        {"name": name, "error_1": one, "error_4": four}
        for name, (one, four) in zip(NAMES, errors, strict=True)
    ]
    found[2]["error_own"] = own
    return found


def test_the_verdict_follows_from_the_rows_clause_by_clause():
    verdict = conditions(rows(5, (40, 40), (90, 80), (30, 30), (50, 21), (30, 20), (22, 16), (20, 10)))
    assert [condition["holds"] for condition in verdict] == [True, False, True, True, True]
    # scOT comes from 22 to 16 over a factor of 4; 20 lies at log(22 / 20) / log(22 / 16) of the way.
    wanted = [5, 4 ** (0.0953102 / 0.3184537), 4, 20 / 30, (22 / 30 + 16 / 20) / 2]
    assert [condition["figure"] for condition in verdict] == pytest.approx(wanted, rel=1e-5)
    assert verdict[2]["says"] == (
        "trajectories that FNO from scratch needs for the fine-tuned error with one (4: all that there are, or more)"
    )
    assert [c["holds"] for c in conditions(rows(10, *[(4, 4)] * 6, (4, 4)))] == [False] * 5
    assert trajectories_needed([1, 2], [3.0, 2.0], 3.0) == 1
    # Errors that halve whenever the trajectories double: 8 / n is 3 at n = 8 / 3.
    assert trajectories_needed([1, 2, 4], [8.0, 4.0, 2.0], 3.0) == pytest.approx(8 / 3)


def test_the_rivals_that_need_no_training():
    trajectories = torch.zeros(2, 3, 2, 4, 4)
    trajectories[0, 2] = 4.0
    mean = MeanField(trajectories)(torch.ones(3, 2, 4, 4), torch.tensor([0.0, 1.0, 0.4]))
    assert mean[:, 0, 0, 0].tolist() == [0.0, 2.0, 0.0]
    trajectories = torch.ones(1, 3, 2, 4, 4) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    assert error(Persistence(), trajectories) == 50.0  # the lower of 50 and 75


def test_the_weights_of_the_best_check_are_kept(monkeypatch):
    seen = []

    def error(model, trajectories):
        seen.append(model.weight.detach().clone())
        return [3.0, 1.0, 2.0][len(seen) - 1]

    monkeypatch.setattr("poseidon_lite.demo.training.error", error)

    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            return self.weight * x

    model, told = Scale(), []
    trajectories = torch.ones(1, 2, 2, 4, 4) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    kept = fit(
        model,
        [{"params": list(model.parameters()), "lr": 0.1}],
        All2AllDataset(trajectories, [0.0, 1.0]),
        trajectories,
        num_steps=6,
        batch_size=4,
        checks=3,
        generator=torch.Generator().manual_seed(0),
        told=told.append,
    )
    assert told == [1, 2, 3, 4, 5, 6]
    assert len({float(weight) for weight in seen}) == 3
    assert (kept, float(model.weight.detach())) == (4, float(seen[1]))
    assert not model.training


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
