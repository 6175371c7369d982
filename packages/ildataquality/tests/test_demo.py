import json

import h5py
import numpy as np
import pytest
import torch

from ildataquality.demo import demo


def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "criterion", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} == set(result["metrics"])
    rows = {row["name"]: row for row in result["rows"]}
    for task in ("PMObstacle", "Pendulum", "still Pendulum"):
        assert (
            rows[f"{task}: best half by rank"]["precision"] == 100
        )  # even three operators of each are told apart
    assert all(len(image["values"]) == 2 and len(image["values"][0]) == 2 for image in result["images"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) == 2 for series in curve["series"].values())

    combined, diversity = (
        rows[f"grid: {name}"]["spearman"] for name in ("coverage - action variance", "state diversity")
    )
    held = combined >= 0.6 and combined > diversity
    for task, score in (("PMObstacle", "success"), ("Pendulum", "return")):
        kept = rows[f"{task}: best half by rank"]
        held &= kept["precision"] >= 90
        held &= all(kept[score] > rows[f"{task}: {arm}"][score] for arm in ("all", "random half"))
    assert result["holds"] == held


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
            for _ in range(8):
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
    assert result["holds"] is ordered
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["operators: worse"]["horizon"] == levels["worse"][1]
    assert (rows["dropped by rank"]["precision"] == 100) is ordered
