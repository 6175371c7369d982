"""What two trained classifiers say, against closed forms on Gaussians."""

import functools

import pytest
import torch
from helpers import gaussian_sides, make_gap, normal, probabilities, rng

from h2orl import fit_gap, simulator_trust

SHIFT = 0.8


@functools.cache
def trained(shift):
    gap = make_gap(1, 1, (32, 32))
    real, sim = gaussian_sides(20_000, shift, seed=1)
    losses = fit_gap(
        gap, real, sim, 300, batch_size=512, learning_rate=3e-3, input_noise=0.0, generator=rng(3)
    )
    fit_gap(gap, real, sim, 80, batch_size=2048, learning_rate=5e-4, input_noise=0.0, generator=rng(4))
    return gap, losses


def test_the_log_ratio_is_the_gaussians_own():
    gap, _ = trained(SHIFT)
    _, sim = gaussian_sides(2_000, SHIFT, seed=50)
    error = sim.next_observation - 0.5 * sim.observation - 0.3 * sim.action
    closed_form = (
        0.5 * (error - SHIFT).square() - 0.5 * error.square()
    )  # log N(s'; mu) - log N(s'; mu + shift)
    found = gap.log_ratio(sim.observation, sim.action, sim.next_observation)
    assert closed_form.abs().max() < 4
    assert (found - closed_form[:, 0]).square().mean().sqrt() < 0.15
    weight = gap.weight(sim.observation, sim.action, sim.next_observation)
    torch.testing.assert_close(weight.mean(), closed_form.exp().clamp(1e-5, 1).mean(), atol=0.03, rtol=0)


@pytest.mark.parametrize("noise_std", [None, 0.5])
def test_the_gap_is_the_gaussians_divergence(noise_std):
    # The log ratio of Gaussians of one variance is linear in s', so that noise of mean zero leaves its mean as it is.
    gap, _ = trained(SHIFT)
    state, action = normal(40, 1, seed=60) + 0.35, normal(40, 1, seed=61)
    mean = 0.5 * state + 0.3 * action + SHIFT
    if noise_std is None:
        draws = mean[:, None] + normal(40, 500, 1, seed=62)
        found = gap.gap(state, action, draws)
    else:
        found = gap.gap(state, action, mean, n=500, noise_std=noise_std, generator=rng(63))
    assert found.shape == (40,)
    torch.testing.assert_close(found.mean(), torch.tensor(SHIFT**2 / 2), atol=0.05, rtol=0)


def test_untrained_on_the_side_of_the_simulator_the_losses_start_at_chance_and_fall():
    _, losses = trained(SHIFT)
    assert losses.shape == (300, 2)
    assert losses[-50:, 1].mean() < losses[-50:, 0].mean() < 2 * torch.log(torch.tensor(2.0))


def test_a_simulator_that_is_right_is_trusted_although_it_visits_other_states():
    gap, _ = trained(0.0)
    real, sim = gaussian_sides(4_000, 0.0, seed=70)
    trust = simulator_trust(gap, sim, real)
    assert trust.mean_weight > 0.93
    assert abs(trust.divergence) < 0.03
    assert not trust.distinguishable()
    # The visits differ, and the classifier of (s, a) alone knows.
    assert (
        trust.familiar[sim.observation[:, 0] > 1].mean()
        < trust.familiar[sim.observation[:, 0] < 0].mean() - 0.1
    )


def test_a_simulator_that_is_wrong_is_found_out():
    gap, _ = trained(SHIFT)
    real, sim = gaussian_sides(4_000, SHIFT, seed=70)
    trust = simulator_trust(gap, sim, real)
    assert trust.distinguishable(10.0)
    assert trust.mean_weight < 0.85
    assert abs(trust.divergence - SHIFT**2 / 2) < 5 * trust.divergence_error + 0.03
    # Information in nats: the mutual information of s' and the side, at most log 2.
    assert 5 * trust.information_error < trust.information < 0.7


def test_the_diagnosis_is_told_apart_by_state():
    gap, _ = trained(SHIFT)
    _, sim = gaussian_sides(1_000, SHIFT, seed=80)
    trust = simulator_trust(gap, sim, num_bins=4, quantiles=[0.5, 0.0])
    assert trust.bin_edges.shape == (1, 5)
    assert trust.bin_counts.tolist() == [[250] * 4]
    lowest = sim.observation[:, 0].argsort()[:250]
    torch.testing.assert_close(trust.bin_gap_quantiles[0, 0, 0], trust.gap[lowest].double().quantile(0.5))
    torch.testing.assert_close(trust.gap_quantiles[1], trust.gap.double().min())
    with pytest.raises(ValueError, match="real must have been given"):
        trust.distinguishable()
    with pytest.raises(ValueError, match=r"quantiles must be in \[0, 1\]"):
        simulator_trust(gap, sim, quantiles=[1.5])
    with pytest.raises(ValueError, match=r"in a sequence, got 0\.5"):
        simulator_trust(gap, sim, quantiles=0.5)


def test_a_single_transition_proves_nothing():
    gap, _ = trained(SHIFT)
    real, sim = gaussian_sides(200, SHIFT, seed=70)
    sure = simulator_trust(gap, sim, real).information
    assert sure > 0
    for sides in ((sim[:1], real), (sim, real[:1])):
        trust = simulator_trust(gap, *sides)
        assert trust.information_error == torch.inf
        assert not trust.distinguishable()


def test_the_standard_error_is_that_of_two_means():
    gap, _ = trained(SHIFT)
    real, sim = gaussian_sides(300, SHIFT, seed=71)
    sim = sim[:120]
    gains = []
    for rows, side in ((real, 0), (sim, 1)):
        sa, sas = probabilities(gap, rows.observation, rows.action, rows.next_observation)
        gains.append((sas[:, side].log() - sa[:, side].log()).double())
    trust = simulator_trust(gap, sim, real)
    torch.testing.assert_close(
        trust.information, (gains[0].mean() + gains[1].mean()) / 2, atol=1e-5, rtol=1e-4
    )
    expected = 0.5 * (gains[0].var() / 300 + gains[1].var() / 120).sqrt()
    torch.testing.assert_close(trust.information_error, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["d_sa", "d_sas"])
def test_classifiers_that_went_astray_do_not_trust(name):
    gap, (_, sim) = make_gap(1, 1), gaussian_sides(50, SHIFT, seed=90)
    with torch.no_grad():
        getattr(gap, name).layers[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="gap must give finite ratios"):
        simulator_trust(gap, sim)
