import json
import math
import random
from statistics import median

import pytest
import torch

from stabilityproxy import SpikeDetector, growth_rate


def noisy(number, seed=0):
    source = random.Random(seed)
    return [3.0 - 0.002 * index + source.gauss(0, 0.02) for index in range(number)]


def test_a_spike_is_found_and_does_not_move_the_measure():
    losses = noisy(200)
    losses[120] += 1.0
    losses[150] += 0.5
    detector = SpikeDetector(window=50, init_loss=6.0)
    kinds = [detector.update(loss).kind for loss in losses]
    assert [index for index, kind in enumerate(kinds) if kind == "spike"] == [120, 150]
    assert set(kinds) == {"normal", "spike"}


def test_the_score_is_the_robust_one():
    losses = noisy(30)
    detector = SpikeDetector(window=30, init_loss=9.0)
    for loss in losses:
        detector.update(loss)
    middle = median(losses)
    scale = 1.4826 * median(abs(loss - middle) for loss in losses)
    assert detector.update(torch.tensor(3.4)).score == pytest.approx((3.4 - middle) / scale, rel=1e-5)


def test_divergence_is_above_the_first_loss_or_no_number():
    detector = SpikeDetector()
    assert detector.update(5.0).kind == "normal"
    assert detector.update(5.0).kind == "normal"
    assert detector.update(5.1).kind == "diverged"
    assert detector.update(math.nan).kind == "diverged"
    assert detector.update(math.inf).score == math.inf
    assert list(detector.losses) == [5.0, 5.0, 5.1]


def test_a_flat_curve_has_no_spikes_of_rounding():
    detector = SpikeDetector(init_loss=3.0)
    assert {detector.update(2.0 + 1e-6 * (index % 2)).kind for index in range(60)} == {"normal"}


def test_what_is_remembered_goes_through_json():
    losses = noisy(60)
    whole, first, second = (SpikeDetector(window=40) for _ in range(3))
    expected = [whole.update(loss) for loss in losses]
    for loss in losses[:35]:
        first.update(loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(loss) for loss in losses[35:]] == expected[35:]
    with pytest.raises(ValueError, match=r"state must be of window = 30, got 40"):
        SpikeDetector(window=30).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window must be at least 2, got 1"),
        ({"threshold": 0}, "threshold must be finite and > 0"),
        ({"warmup": 200}, "warmup must be at most window = 100, got 200"),
        ({"min_scale": 0}, "min_scale must be finite and > 0"),
        ({"init_loss": math.nan}, "init_loss must be finite"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpikeDetector(**options)


def test_growth_is_the_slope_of_the_logarithm():
    steps = [0, 300, 700, 1500]
    assert growth_rate(steps, [10 ** (0.2 - 0.0007 * step) for step in steps]) == pytest.approx(-0.7)
    noisy_logits = [1.0, 30.0, 20.0, 900.0]
    slope = torch.linalg.lstsq(
        torch.tensor([[1.0, step / 1000] for step in steps]).double(),
        torch.tensor(noisy_logits).double().log10()[:, None],
    ).solution[1]
    assert growth_rate(steps, torch.tensor(noisy_logits)) == pytest.approx(slope.item())
    with pytest.raises(ValueError, match=r"steps must hold at least two different"):
        growth_rate([1, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"max_logits must be finite and > 0"):
        growth_rate([1, 2], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"max_logits must be as many as steps, 2, got 1"):
        growth_rate([1, 2], [1.0])
