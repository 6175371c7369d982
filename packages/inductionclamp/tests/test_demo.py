import json
import math

import pytest
import torch
from helpers import batch_of, small_model
from hypothesis import given
from hypothesis import strategies as st

from inductionclamp import perfect_copy, perfect_layer1, run
from inductionclamp.demo import conditions, demo
from inductionclamp.demo.data import mnist
from inductionclamp.demo.rows import shape
from inductionclamp.demo.training import copied_losses


@pytest.mark.demo
def test_the_smoke_run_is_plain_data_judged_by_its_own_rows():
    result = demo("smoke", seed=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] == all(condition["holds"] for condition in result["conditions"])
    roles = {row["role"] for row in result["rows"]}
    assert {"method", "baseline", "ablation"} <= roles


def rows_of(times, shares, accuracy):
    names = ["none", "none, 3 x rate", "toy, free", "toy, b, c clamped"]
    arms = ["layer1", "match", "copy", "layer1+copy"]
    names += [f"{arm}: at evaluation only" for arm in arms]
    arms += [
        f"{arm}, {change}" for arm in ("match", "layer1+copy") for change in ("15 labels", "200 classes")
    ]
    names += [f"{arm}: clamped throughout" for arm in arms]
    rows = [
        {"name": name, "steps_to_threshold": times.get(name, 100.0), "plateau_share": shares.get(name, 0.5)}
        for name in names
    ]
    return [
        *rows,
        {"name": "trained unclamped: whole", "accuracy": 99.0},
        {"name": "trained unclamped: layer 0 silenced, patterns and values kept", "accuracy": accuracy},
    ]


@given(
    unclamped=st.floats(0, 4000),
    slower=st.floats(0.5, 3),
    wait=st.floats(0, 5),
    accuracy=st.floats(90, 100),
)
def test_each_condition_follows_its_rows(unclamped, slower, wait, accuracy):
    times = {
        "none": unclamped,
        "layer1+copy, 200 classes: clamped throughout": 100 * slower,
        "match, 200 classes: clamped throughout": 100 * slower,
        "toy, free": unclamped,
        "match: at evaluation only": unclamped,
    }
    shares = {"none": wait, "match: clamped throughout": wait}
    found = {one["says"]: one["holds"] for one in conditions(rows_of(times, shares, accuracy))}
    assert found["unclamped there is a plateau (stretch at ln 2 over the fall)"] == (wait >= 1)
    assert found["match has no plateau"] == (wait < 1)
    assert found["match learns sooner than unclamped (ratio)"] == (unclamped / 100 >= 2)
    assert found["matching alone is slower with 200 classes (ratio)"] == (100 * slower / 100 >= 1.1)
    assert found["copying alone is not slower with 200 classes (ratio)"] == (100 * slower / 100 < 1.15)
    assert found["layer 0 writes nothing that only the direct path needs (points lost)"] == (
        99 - accuracy < 2
    )
    assert found["match: clamps at evaluation only tell another time (ratio)"] == (unclamped / 100 >= 1.5)


def test_the_shape_tells_a_plateau_from_a_decay():
    level = math.log(2)
    decay = [1.5 * math.exp(-step / 100) for step in range(1000)]
    done, _, share = shape(decay, level, 1000)
    assert done == pytest.approx(100 * math.log(1.5 / (0.4 * level)), abs=2)
    assert share == pytest.approx(math.log(1.02 / 0.8) / math.log(2), abs=0.05)
    waiting = [level] * 500 + [level * math.exp(-step / 100) for step in range(300)]
    _, length, share = shape([1.5, *waiting], level, 801)
    assert length == pytest.approx(500 + 100 * math.log(1 / 0.8), abs=3)
    assert share > 5
    assert shape([1.5] * 10, level, 10) == (10.0, 0.0, 0.0)


def test_classes_are_images_and_exemplars_are_moved_copies():
    features = mnist(12, torch.Generator().manual_seed(0))
    assert features.shape == (12, 5, 128)
    assert features.min() == 0
    flat = torch.nn.functional.normalize(features, dim=-1)
    own = torch.einsum("cef,cgf->ceg", flat[:, :1], flat[:, 1:]).mean()
    other = torch.einsum("cf,df->cd", flat[:, 0], flat[:, 1])
    off = other[~torch.eye(12, dtype=torch.bool)].mean()
    assert own > off + 0.1


def test_copying_read_from_the_scores_is_the_clamped_copy():
    model, batch = small_model(), batch_of(size=7, pairs=4)
    clamps = perfect_layer1(1)
    _, acts = run(model, batch, clamps, record=["blocks.1.attn_pre_softmax"])
    found = copied_losses(acts["blocks.1.attn_pre_softmax"], batch.y)
    for head, loss in enumerate(found):
        logits, _ = run(model, batch, [clamps, perfect_copy(1, head)])
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[:, -1], batch.y[:, -1]))


def test_an_unknown_preset_or_a_missing_file_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("INDUCTIONCLAMP_FEATURES", raising=False)
    with pytest.raises(ValueError, match="INDUCTIONCLAMP_FEATURES"):
        demo("paper")
