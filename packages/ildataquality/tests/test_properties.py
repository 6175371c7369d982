"""What holds whatever the data."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import as_neighbours, random_episodes, random_lists
from hypothesis import given
from hypothesis import strategies as st

from ildataquality import (
    Episodes,
    Normalizer,
    PMObstacle,
    StackedMLP,
    action_variance,
    bound_from_policy,
    coverage_probability,
    episode_scores,
    fit_stacked,
    gaussian_kl,
    held_out_residuals,
    keep_fraction,
    leave_one_out,
    neighbours,
    quality_report,
    rank_episodes,
    sample_weights,
    select,
    shift_bound,
    state_similarity,
    step_weights,
)

seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- the bound -------------------------------------------------------------------------------------


@given(seed=seeds, horizon=st.integers(1, 40), scale=st.floats(0, 10))
def test_the_bound_is_linear_and_monotone_and_early_steps_weigh_most(seed, horizon, scale):
    first, second = normal(seed, 2, horizon).abs()
    for convention, constant in (("H-t", (horizon + 1) / 2), ("H-1-t", (horizon - 1) / 2)):
        weights = step_weights(horizon, convention=convention)
        assert (weights.diff() <= 0).all()
        assert (weights >= 0).all()
        bound = shift_bound(torch.stack([first, second, first + scale * second]), convention=convention)
        torch.testing.assert_close(bound[2], bound[0] + scale * bound[1])
        assert bound[2] >= bound[0] * (1 - 1e-12)
        flat = shift_bound(torch.full((horizon,), scale, dtype=torch.float64), convention=convention)
        assert flat.item() == pytest.approx(scale * constant, abs=1e-12)


@given(seed=seeds, horizon=st.integers(1, 8), num_states=st.integers(2, 5), closeness=st.floats(0, 0.99))
def test_the_bound_holds_on_every_tabular_mdp(seed, horizon, num_states, closeness):
    """Both sides exactly: state marginals by dynamic programming, divergences by sums."""
    random = np.random.default_rng(seed)
    dynamics = random.dirichlet(np.full(num_states, 0.3), size=(num_states, 3))  # s, a -> s'
    expert = random.dirichlet(np.ones(3), size=num_states)
    policy = closeness * expert + (1 - closeness) * random.dirichlet(np.ones(3), size=num_states)
    start = random.dirichlet(np.ones(num_states))

    def marginals(chosen):
        rho = [start]
        for _ in range(horizon):
            rho.append(np.einsum("s,sa,sat->t", rho[-1], chosen, dynamics))
        return np.stack(rho)

    def kl(p, q):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0, p * np.log(p / q), 0).sum(-1)

    ours, theirs = marginals(policy), marginals(expert)
    per_step = torch.from_numpy(ours[:-1] @ kl(policy, expert))
    # The chain rule at every time, and its averages over t = 0..H-1 and t = 1..H.
    assert (kl(ours, theirs) <= np.concatenate([[0], np.cumsum(per_step.numpy())]) + 1e-12).all()
    shift = kl(ours[:-1].mean(0), theirs[:-1].mean(0))
    assert shift <= shift_bound(per_step, convention="H-1-t").item() + 1e-12
    assert shift_bound(per_step, convention="H-1-t") <= shift_bound(per_step)
    assert kl(ours[1:].mean(0), theirs[1:].mean(0)) <= shift_bound(per_step).item() + 1e-12


@given(seed=seeds)
def test_the_divergence_of_gaussians_is_zero_only_to_itself(seed):
    mu, std, other, wide = normal(seed, 4, 6, 2)
    std, wide = std.exp(), wide.exp()
    torch.testing.assert_close(gaussian_kl(mu, std, mu, std), torch.zeros(6, dtype=torch.float64))
    assert (gaussian_kl(mu, std, other, wide) > 0).all()


def test_the_bound_of_a_policy_is_that_of_its_divergences():
    states = normal(0, 5, 7, 2)
    std = torch.full_like(states[0].repeat(5, 1), 0.5)

    def expert(s):
        return s, std

    def policy(s):
        return s + 0.1 * s.abs(), std

    bound, per_step = bound_from_policy(policy, expert, states)
    expected = (0.1 * states.abs()).square().sum(2).mean(1) / (2 * 0.25)
    torch.testing.assert_close(per_step, expected)
    torch.testing.assert_close(bound, shift_bound(expected))
    same, _ = bound_from_policy(lambda s: policy(s)[0], lambda s: expert(s)[0], states, sigma=0.5)
    torch.testing.assert_close(same, bound)


# --- variances -------------------------------------------------------------------------------------


@given(seed=seeds)
def test_no_variance_where_actions_are_the_same_within_neighbourhoods(seed):
    places = torch.arange(5, dtype=torch.float64).repeat_interleave(8)
    states = torch.stack([10 * places, places], dim=1) + 0.01 * normal(seed, 40, 2)
    actions = normal(seed, 5, 3)[places.long()]
    near = neighbours(states, k=8)
    assert action_variance(actions, near, normalize=False).item() == pytest.approx(0, abs=1e-25)
    assert leave_one_out(actions, near, episode_id=torch.arange(40) % 4).abs().max() < 1e-12


@pytest.mark.parametrize("k", [2, 5, 20])
def test_the_expected_variance_of_noise_with_itself_counted(k):
    sigma, trials = 0.7, 4000
    near = as_neighbours([list(range(i // k * k, i // k * k + k)) for i in range(trials)])
    actions = sigma * normal(k, trials, 3) + 5
    expected = sigma**2 * 3 * (k - 1) / k
    assert action_variance(actions, near, normalize=False).item() == pytest.approx(expected, rel=0.06)


@given(seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_variance_knows_neither_order_nor_axes_nor_origin_of_actions(seed, scale, shift):
    random = np.random.default_rng(seed)
    actions = torch.from_numpy(random.normal(size=(20, 3)))
    lists = random_lists(random, 20)
    near, order = as_neighbours(lists), random.permutation(20)
    place = np.argsort(order)
    mixed = as_neighbours([[int(place[j]) for j in lists[i]] for i in order])
    rotation = torch.linalg.qr(torch.from_numpy(random.normal(size=(3, 3)))).Q

    def both(values, lists):
        return [float(action_variance(values, lists, normalize=normalize)) for normalize in (False, True)]

    plain, unit = both(actions, near)
    assert both(actions[order], mixed) == pytest.approx([plain, unit])
    assert both(actions @ rotation + shift, near) == pytest.approx([plain, unit])
    assert both(scale * actions, near) == pytest.approx([scale**2 * plain, unit])
    per_dim = [
        action_variance(x, near, normalize="per_dim")
        for x in (actions, actions * torch.tensor([1, 2, scale]))
    ]
    torch.testing.assert_close(*per_dim)


@given(seed=seeds)
def test_the_report_knows_no_order_of_episodes(seed):
    episodes = Episodes.from_arrays(random_episodes(seed))
    order = [2, 0, 3, 1]
    radius_of_all = quality_report(episodes).normalizer
    plain, mixed = (
        quality_report(part, normalizer=radius_of_all, num_phases=3)
        for part in (episodes, episodes.subset(order))
    )
    for name in ("action_variance", "state_similarity", "transition_variance", "multimodality"):
        assert getattr(mixed, name) == pytest.approx(getattr(plain, name))
    for name, values in plain.episodes.items():
        torch.testing.assert_close(mixed.episodes[name], values[order])
    torch.testing.assert_close(mixed.tube, plain.tube)


@given(seed=seeds, radius=st.floats(0.05, 5), wider=st.floats(1.1, 5))
def test_similarity_lies_between_one_sample_and_all_and_falls_with_spread(seed, radius, wider):
    states = normal(seed, 25, 2)
    found = state_similarity(states, radius).item()
    assert 1 / 25 - 1e-12 <= found <= 1
    assert state_similarity(states, 1e6).item() == 1
    assert state_similarity(wider * states, radius).item() <= found
    assert state_similarity(states, wider * radius).item() >= found


@given(
    sigma=st.floats(0.05, 5),
    eps=st.floats(0.01, 3),
    n=st.integers(1, 200),
    d=st.integers(1, 3),
    more=st.floats(1.05, 3),
)
def test_coverage_is_a_probability_that_moves_as_it_should(sigma, eps, n, d, more):
    for exact in (False, True):

        def coverage(sigma=sigma, eps=eps, n=n, d=d, exact=exact):
            return coverage_probability(sigma, eps, n, d, exact=exact).item()

        found, slack = coverage(), 1e-9
        assert 0 <= found <= 1
        assert coverage(n=n + 1) >= found - slack
        assert coverage(eps=more * eps) >= found - slack
        assert coverage(sigma=more * sigma) <= found + slack
        if d < 3:
            assert coverage(d=d + 1) <= found + slack
        assert coverage(n=1) == pytest.approx(math.erf(eps / (2 * sigma)) ** d, abs=1e-8)
    assert coverage_probability(sigma, eps, n, d, exact=True) <= coverage_probability(sigma, eps, n, d) + 1e-8


# --- curation --------------------------------------------------------------------------------------


@given(seed=seeds, keep=st.floats(0.01, 1))
def test_what_is_kept_is_the_top_of_the_ranking_with_all_it_carries(seed, keep):
    arrays = random_episodes(seed)
    episodes = Episodes.from_arrays(arrays)
    report = quality_report(episodes, seed=3)
    ranking, scores = rank_episodes(report), episode_scores(report)
    assert sorted(ranking.tolist()) == [0, 1, 2, 3]
    assert (scores[ranking].diff() <= 0).all()
    kept = keep_fraction(ranking, keep)
    assert len(kept) == max(1, round(4 * keep))
    assert set(kept.tolist()) == set(ranking[: len(kept)].tolist())
    chosen = select(episodes, keep, seed=3)
    for number, episode in zip(kept.tolist(), chosen.to_arrays(), strict=True):
        assert episode.keys() == arrays[number].keys()
        assert all(np.array_equal(episode[name].numpy(), values) for name, values in arrays[number].items())


@given(seed=seeds, tau=st.floats(0.05, 20))
def test_weights_are_those_of_a_softmax(seed, tau):
    report = quality_report(Episodes.from_arrays(random_episodes(seed)))
    scores, weights = episode_scores(report), sample_weights(report, tau)
    assert weights.sum().item() == pytest.approx(1)
    ratio = (weights / weights[0]).log() * tau
    torch.testing.assert_close(ratio, scores[report.episode_id] - scores[0], atol=1e-9, rtol=0)


def test_scores_are_weighted_z_scores():
    report = quality_report(Episodes.from_arrays(random_episodes(4)))
    z = {name: (v - v.mean()) / v.std(correction=0) for name, v in report.episodes.items() if v.std() > 0}
    torch.testing.assert_close(episode_scores(report), -z["divergence"] - 0.25 * z["length"])
    torch.testing.assert_close(episode_scores(report, {"leave_one_out": 2.0}), 2 * z["leave_one_out"])


def test_noisy_operators_are_found_and_the_strange_one_is_worth_leaving_out():
    task, generator = PMObstacle(), torch.Generator().manual_seed(0)
    parts = [
        task.collect(n, system_noise=0.02, policy_noise=p, generator=generator)
        for n, p in ((12, 0.0), (4, 1.0))
    ]
    report = quality_report(Episodes.concatenate(parts))
    assert set(rank_episodes(report)[-4:].tolist()) == {12, 13, 14, 15}
    gain = report.episodes["leave_one_out"]
    assert gain[12:].min() > gain[:12].max()


# --- reproducibility, dtype, models ----------------------------------------------------------------


def test_the_same_seed_gives_the_same_report_and_leaves_torchs_own_alone(monkeypatch):
    quick = partial(held_out_residuals, hidden=(8,), num_steps=20)
    monkeypatch.setattr("ildataquality.quality.held_out_residuals", quick)
    episodes = Episodes.from_arrays(random_episodes(0))
    before = torch.random.get_rng_state()
    first, second = (quality_report(episodes, seed=7, folds=2) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.to_dict(samples=True) == second.to_dict(samples=True)
    assert first.model_divergence > 0
    assert len(first.to_dict(samples=True)["samples"]["model_divergence"]) == 26


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_data(dtype):
    arrays = [
        {"observations": normal(i, 12, 2).to(dtype), "actions": normal(i, 11, 1).to(dtype)} for i in range(3)
    ]
    report = quality_report(Episodes.from_arrays(arrays))
    tensors = [*report.samples.values(), *report.episodes.values(), report.tube, report.tube_shift]
    assert {tensor.dtype for tensor in tensors} == {dtype}


def test_a_normalizer_drops_what_is_constant_and_is_frozen():
    states = torch.cat([normal(0, 50, 2) * 5 + 3, torch.full((50, 1), 0.1, dtype=torch.float64)], dim=1)
    normalizer = Normalizer.fit(states)
    assert normalizer(states).mean(0).abs().max() < 1e-12
    torch.testing.assert_close(normalizer(states).std(0, correction=0), torch.ones(2, dtype=torch.float64))
    pairs = torch.pdist(normalizer(states))
    assert (pairs <= normalizer.radius).double().mean().item() == pytest.approx(0.01, abs=0.001)
    torch.testing.assert_close(normalizer(states + 1), normalizer(states) + 1 / normalizer.std)


def test_stacked_models_are_the_single_models_side_by_side():
    models = StackedMLP(3, 2, 1, (4,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = normal(0, 3, 5, 2)
    for m in range(3):
        hidden = (x[m] @ models.weights[0][m] + models.biases[0][m]).relu()
        torch.testing.assert_close(models(x)[m], hidden @ models.weights[1][m] + models.biases[1][m])
    copy = StackedMLP(3, 2, 1, (4,), dtype=torch.float64)
    copy.load_state_dict(models.state_dict())
    assert torch.equal(copy(x), models(x))


def test_each_of_the_stacked_models_learns_its_own_rows_and_nothing_else():
    x = torch.linspace(-1, 1, 128)[:, None]
    y = torch.where(x < 0, x, -x)
    rows = [(x[:, 0] < 0).nonzero()[:, 0], (x[:, 0] >= 0).nonzero()[:, 0]]
    options = {"hidden": (16,), "num_steps": 300, "learning_rate": 0.01}
    models = fit_stacked(x, y, rows, generator=torch.Generator().manual_seed(0), **options)
    found = models(x)
    for m, sign in ((0, 1), (1, -1)):
        assert (found[m, rows[m]] - sign * x[rows[m]]).abs().mean() < 0.03
        assert (found[m, rows[1 - m]] - y[rows[1 - m]]).abs().mean() > 0.3
