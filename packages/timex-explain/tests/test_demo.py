"""The evidence has the form it promises, and its parts are what they say."""

import dataclasses
import json

import pytest
import torch

import timex_explain.demo as demo_module
from timex_explain.demo import conditions, data, demo, judgement, measures
from timex_explain.demo.training import Budget

TIMES = {"explaining", "training", "break_even"}
TINY = dataclasses.replace(
    demo_module._PRESETS["smoke"],
    sizes=(24, 8, 8),
    classifier=Budget(1, 1e-2, 0.1),
    explainer=Budget(1, 1e-3, 0.0),
    segment_sizes=(8, 8, 8),
    segment_classifier=Budget(1, 1e-3, 0.0),
    lowvar_explainer=Budget(1, 1e-3, 0.0),
    seqcomb_explainer=Budget(1, 1e-3, 0.0),
    num_landmarks=4,
)


@pytest.fixture
def few_variants(monkeypatch):
    """The two methods without their ablations, curves of three points, and everything timed once."""
    monkeypatch.setattr(demo_module, "timed", lambda run, repeats=1: measures.timed(run, 1))
    monkeypatch.setattr(measures, "FRACTIONS", [0.0, 0.4, 0.9])
    monkeypatch.setattr(demo_module, "_VARIANTS", dict(list(demo_module._VARIANTS.items())[:2]))


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    rows = {row["name"]: row for row in result["rows"]}
    assert [row["role"] for row in rows.values()].count("method") == 2
    assert [row["role"] for row in rows.values()].count("baseline") == 4
    assert {key for row in rows.values() for key in row} - {"name", "role"} == set(result["metrics"])
    baselines = [row for row in rows.values() if row["role"] == "baseline"]
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    assert result["conditions"][0]["holds"] == all(rows["TimeX"]["auprc"] > row["auprc"] for row in baselines)
    several = rows["TimeX, values replaced"]
    assert several["auprc_lowest"] <= several["auprc"] <= several["auprc_highest"]
    assert several["auprc_lowest"] < several["auprc_highest"]  # two trainings
    # Facts about the set, whatever was learnt: spikes of almost 2 in noise of 0.25, on about a sixth of the points.
    assert rows["size of the value"]["auprc"] > 0.95
    assert rows["size of the value"]["lowvar_auprc"] < 0.35
    assert rows["quiet of the neighbourhood"]["lowvar_auprc"] > 0.45
    assert rows["quiet of the neighbourhood"]["auprc"] < 0.35
    assert rows["size of the value"]["seqcomb_auprc"] > 0.6 > rows["random"]["seqcomb_auprc"]
    assert 0.1 < rows["random"]["auprc"] < 0.35
    for row in rows.values():
        assert all(0 <= row[name] <= 1 for name in ("auprc", "aup", "aur", "occlusion", "deletion"))
    for plot in result["curves"]:
        assert all(len(line["x"]) == len(line["y"]) > 0 for line in plot["series"].values())
    space = result["images"][0]["values"]
    assert {value for row in space for value in row} <= {0, 1, 2, 3, 4}


@pytest.mark.demo
def test_a_seed_gives_the_same_rows_again(monkeypatch, few_variants):
    monkeypatch.setitem(demo_module._PRESETS, "smoke", TINY)
    first, again, other = (
        [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in demo("smoke", seed=seed)["rows"]
        ]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def failing(rows):
    return [number for number, condition in enumerate(conditions(rows)) if not condition["holds"]]


def test_the_verdict_is_the_criterion():
    names = ("TimeX", *judgement.BASELINES, *judgement.REFERENCES)
    alike = {"auprc": 0.4, "lowvar_auprc": 0.4, "seqcomb_auprc": 0.4, "real_occlusion": 0.7}
    rows = {name: {"name": name} | alike for name in names}
    rows["TimeX"] |= {"auprc": 0.8, "lowvar_auprc": 0.5, "seqcomb_auprc": 0.6, "real_occlusion": 0.8}
    rows["size of the value"]["auprc"] = 0.85  # a detector made for one set, and useless on the other
    rows["quiet of the neighbourhood"]["lowvar_auprc"] = 0.85

    def with_changed(name, **change):
        return [row | change if row["name"] == name else row for row in rows.values()]

    assert failing(rows.values()) == []
    assert failing(with_changed("occlusion", auprc=0.81)) == [0]
    assert failing(with_changed("integrated gradients", lowvar_auprc=0.51)) == [1]
    assert failing(with_changed("size of the value", lowvar_auprc=0.51)) == [1, 3]
    assert failing(with_changed("gradient x input", seqcomb_auprc=0.61)) == [2]
    assert failing(with_changed("size of the value", seqcomb_auprc=0.61)) == [2]
    assert failing(with_changed("quiet of the neighbourhood", auprc=0.46)) == [3]
    assert failing(with_changed("integrated gradients", real_occlusion=0.81)) == [4]
    assert failing(with_changed("occlusion", real_occlusion=0.81)) == []  # it measures the very thing
    assert failing(with_changed("size of the value", real_occlusion=0.81)) == [5]
    assert failing(with_changed("random", real_occlusion=0.81)) == [5]
    figures = [condition["figure"] for condition in conditions(rows.values())]
    assert figures == pytest.approx([0.4, 0.1, 0.2, 0.025, 0.1, 0.1])
    older = [{"name": name, "auprc": float(name == "TimeX")} for name in names]
    assert [condition["figure"] for condition in conditions(older)] == [1.0, None, None, None]
    assert failing(older) == [1, 2, 3]


def test_quiet_is_the_deviation_of_nine_points():
    x = torch.randn(2, 14, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measures.quiet(x)
    torch.testing.assert_close(found[1, 6, 1], -x[1, 2:11, 1].std())
    torch.testing.assert_close(found[0, 0, 0], -torch.cat([x[0, :1, 0].expand(4), x[0, :5, 0]]).std())


TS = """#A comment
@problemName Toy
@univariate false
@classLabel true up down
@data
1.0,2.0,3.0:4,5,6:down
7,8,9:-1,0,1e1:up
"""


def test_ts_files_are_read_as_they_are_written(tmp_path):
    (tmp_path / "Toy.ts").write_text(TS)
    x, y = data.read_ts(tmp_path / "Toy.ts")
    assert x.tolist() == [[[1, 4], [2, 5], [3, 6]], [[7, -1], [8, 0], [9, 10]]]
    assert y.tolist() == [1, 0]


@pytest.mark.demo
@pytest.mark.parametrize("sensors", [1, 2])
def test_the_real_part_runs_on_the_users_series(monkeypatch, few_variants, tmp_path, sensors):
    safetensors = pytest.importorskip("safetensors.torch")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 12, sensors, generator=generator), torch.arange(60) % 2
    safetensors.save_file({"x": x, "y": y}, tmp_path / "mine.safetensors")
    monkeypatch.setenv("TIMEX_EXPLAIN_DATA", str(tmp_path / "mine.safetensors"))
    short = Budget(1, 1e-3, 0.0)
    changed = dataclasses.replace(TINY, real_classifier=short, real_explainer=short)
    monkeypatch.setitem(demo_module._PRESETS, "paper", changed)
    result = demo("paper", seed=0)
    assert result["setting"]["real data"].startswith(
        "mine: 27 / 5 / 28 series of 12 points; three convolutions"
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["TimeX"]["real_occlusion"] == rows["TimeX, values replaced"]["real_occlusion"]
    assert result["holds"] == (failing(result["rows"]) == [])


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")
    monkeypatch.setattr(data, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"timex-explain\[demo\]"):
        demo("laptop")
    monkeypatch.setenv("TIMEX_EXPLAIN_DATA", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="TIMEX_EXPLAIN_DATA must name a safetensors file"):
        demo("laptop")


def test_the_bundled_days_are_all_there():
    try:
        days = data.real(torch.Generator().manual_seed(0))
    except ImportError:
        pytest.skip("neither sktime nor aeon is installed: they are in the demo extra only")
    assert days.train[0].shape == (500, 24, 1)
    assert days.test[0].shape == (500, 24, 1)
    assert torch.cat([days.train[1], days.validation[1], days.test[1]]).bincount().tolist() == [547, 549]
