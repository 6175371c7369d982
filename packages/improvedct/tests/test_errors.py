"""What is refused, and that the message says what it was."""

import copy
import math

import pytest
import torch
from improvedct_toys import Net
from torch import nn

from improvedct import (
    Consistency,
    NoiseRange,
    Stage,
    channel_transform,
    check_data,
    consistency_loss,
    curriculum,
    edit,
    ema_update,
    interpolate,
    karras_boundaries,
    legacy_curriculum,
    legacy_ema,
    lognormal_index_probs,
    patch_transform,
    pseudo_huber,
    sample,
    squared_l2,
    ternary_search_tau,
)

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max, got 0.0 and 80"),
        ({"sigma_min": 90.0}, "0 < sigma_min < sigma_max, got 90"),
        ({"sigma_max": math.inf}, "got 0.002 and inf"),
        ({"rho": 0.0}, "rho must be positive, got 0"),
        ({"sigma_data": -1.0}, "sigma_data must be positive, got -1"),
    ],
)
def test_noise_range(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseRange(**options)


@pytest.mark.parametrize("n", [1, 0, -3])
def test_fewer_than_two_boundaries(n, model):
    for call in (karras_boundaries, Stage, legacy_ema, lambda n: consistency_loss(model, X, n)):
        with pytest.raises(ValueError, match=f"n must be at least 2.*got {n}"):
            call(n)


@pytest.mark.parametrize("schedule", [curriculum, legacy_curriculum])
def test_schedules(schedule):
    for step in (-1, 11):
        with pytest.raises(ValueError, match=rf"step must be in 0..total .* got step {step} of 10"):
            schedule(step, 10)
    with pytest.raises(ValueError, match="got step 0 of 0"):
        schedule(0, 0)
    for s0, s1 in ((10, 9), (0, 9)):
        with pytest.raises(ValueError, match=f"1 <= s0 <= s1, got {s0} and {s1}"):
            schedule(0, 10, s0, s1)
    with pytest.raises(ValueError, match="mu0 must be between 0 and 1, got 1"):
        legacy_ema(5, mu0=1.0)


def test_index_probabilities(model):
    sigmas = karras_boundaries(5)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        lognormal_index_probs(sigmas, std=0.0)
    for wrong in (sigmas.flip(0), sigmas[:1], sigmas - 1, sigmas.view(1, -1)):
        with pytest.raises(ValueError, match="sigmas must be at least two increasing positive levels"):
            lognormal_index_probs(wrong)
    with pytest.raises(ValueError, match="mean and std must put weight between the sigmas"):
        lognormal_index_probs(sigmas, mean=1e4, std=1.0)
    for wrong in (torch.ones(5), -torch.ones(4), torch.zeros(4)):
        with pytest.raises(
            ValueError, match="index_probs must be 4 non-negative numbers with a positive sum"
        ):
            consistency_loss(model, X, 5, index_probs=wrong)
    with pytest.raises(ValueError, match="index_probs must be None where n is a Stage"):
        consistency_loss(model, X, Stage(5), index_probs=torch.ones(4))


def test_metric_and_options(model):
    for c in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="c must be positive"):
            pseudo_huber(X, X, c)
    for metric in (pseudo_huber, squared_l2):
        with pytest.raises(ValueError, match=r"one shape, got \(4, 3\) and \(3,\)"):
            metric(X, X[0])
    with pytest.raises(ValueError, match="metric must be 'huber' or a function, got 'l1'"):
        consistency_loss(model, X, 11, metric="l1")
    with pytest.raises(ValueError, match="weight must be 'inverse_gap' or 'none', got 'snr'"):
        consistency_loss(model, X, 11, weight="snr")


def test_data(model):
    with pytest.raises(TypeError, match=r"x must be floating point .* got torch.uint8"):
        consistency_loss(model, X.to(torch.uint8), 11)
    for value in (math.nan, math.inf):
        wrong = X.clone()
        wrong[1, 2] = value
        with pytest.raises(ValueError, match="x must be finite"):
            consistency_loss(model, wrong, 11)
    large = torch.linspace(0, 255, 300, dtype=torch.float64).view(100, 3)
    with pytest.warns(UserWarning, match="standard deviation 73.9, far from sigma_data = 0.5"):
        consistency_loss(model, large, 11)
    with pytest.warns(UserWarning, match="far from sigma_data = 0.5"):
        check_data(large * 1e-6)
    check_data(large, NoiseRange(sigma_data=74.0))
    consistency_loss(model, large, 11, validate=False)


def test_noise_levels_of_the_model(model):
    for wrong in (torch.ones(3), torch.ones(4, 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"sigma must be \(4,\), one level for each of x, got"):
            model(X, wrong)
    for level in (0.001, 81.0, math.nan):
        with pytest.raises(ValueError, match=r"sigma must be in \[0.002, 80.0\], got values in"):
            model(X, torch.tensor([1.0, 1.0, level, 1.0]))


def test_a_network_that_changes_the_shape():
    class Halving(nn.Module):
        def forward(self, x, c_noise):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"the shape of its input, \(4, 3\), got \(4, 1\)"):
        Consistency(Halving())(X, torch.ones(4))


@pytest.mark.parametrize("taus", [(), (1.0, 1.0), (0.5, 80.0), (81.0,), (80.0, 0.001), (math.nan,)])
def test_sampling_levels(model, taus):
    known = torch.ones(3, dtype=torch.bool)
    for call in (lambda: sample(model, (2, 3), taus), lambda: edit(model, X, known, taus)):
        with pytest.raises(ValueError, match=r"taus must decrease strictly within \[0.002, 80.0\], got"):
            call()


def test_search():
    for low, high in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match=f"0 < low < high, got {low} and {high}"):
            ternary_search_tau(abs, low, high)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        ternary_search_tau(abs, 1.0, 2.0, num_steps=0)


def test_editing(model):
    with pytest.raises(ValueError, match=r"known must be boolean, got torch.float32"):
        edit(model, X, torch.ones(3))
    with pytest.raises(ValueError, match=r"one shape, got \(4, 3\) and \(3,\)"):
        interpolate(model, X, X[0], torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"fractions must be in \[0, 1\], got \[1.5\]"):
        interpolate(model, X, X, torch.tensor([1.5]))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        patch_transform(0)
    with pytest.raises(ValueError, match="weights must not all be zero"):
        channel_transform((0.0, 0.0))


def test_averages(model):
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\], got {decay}"):
            ema_update(copy.deepcopy(model), model, decay)
    with pytest.raises(ValueError, match="ema and model must have the same parameters"):
        ema_update(Consistency(Net(4)), model, 0.9)
