import json
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from robustmeanteacher.demo import _holds, demo

KEYS = {"claim", "setting", "metrics", "rows", "criterion", "holds", "curves", "images"}


def check(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.keys() == KEYS
    assert {"data", "model", "budget"} <= result["setting"].keys()
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation"}
    assert result["holds"] == _holds(result["rows"])
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


def test_the_claim_can_fail():
    def row(name, role, continual, gradual, last):
        return {"name": name, "role": role, "continual": continual, "gradual": gradual} | {
            "first loop": 30.0,
            "last loop": last,
        }

    baseline, method = row("b", "baseline", 30.0, 20.0, 40.0), row("m", "method", 29.0, 19.0, 30.0)
    assert _holds([baseline, method])
    for worse in ({"continual": 30.0}, {"gradual": 20.0}, {"last loop": 30.1}):
        assert not _holds([baseline, method | worse])


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
    import robustmeanteacher._demo_data as data

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
