"""The numbers against loops over samples, closed forms and libraries."""

import math

import numpy as np
import pytest
import torch
from helpers import as_neighbours, brute_force, random_episodes, random_lists
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from ildataquality import (
    Episodes,
    Neighbours,
    PMObstacle,
    action_chunks,
    action_variance,
    coverage_probability,
    decompose,
    divergence_from_others,
    gaussian_kl,
    held_out_residuals,
    horizon_stats,
    leave_one_out,
    multimodality,
    neighbours,
    state_similarity,
    transition_variance,
    tube_coverage,
    tube_width,
)
from ildataquality.demo.grid import spearman

seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- neighbours ------------------------------------------------------------------------------------

EXCLUSIONS = [(True, 10), (False, 2), (False, 0), (False, None)]


@pytest.mark.parametrize("backend", ["torch", "kdtree"])
@pytest.mark.parametrize(("cross", "window"), EXCLUSIONS)
@pytest.mark.parametrize(("k", "radius"), [(5, None), (None, 1.5), (4, 1.2), (40, None)])
def test_neighbours_are_those_of_two_loops(backend, cross, window, k, radius):
    episode_id = torch.tensor([0] * 20 + [1] * 7 + [2] * 15)
    step = torch.cat([torch.arange(n) for n in (20, 7, 15)])
    states = normal(1, 42, 3)
    found = neighbours(
        states,
        k=k,
        radius=radius,
        episode_id=episode_id,
        exclude_window=window,
        cross_episode_only=cross,
        backend=backend,
        chunk=16,
    )
    expected = brute_force(states.numpy(), episode_id.tolist(), step.tolist(), k, radius, window, cross)
    for i, near in enumerate(expected):
        assert found.index[i][found.mask[i]].tolist() == [j for _, j in near]
        assert found.dist[i][found.mask[i]].tolist() == pytest.approx([distance for distance, _ in near])
    assert torch.isinf(found.dist[~found.mask]).all()


def test_many_samples_go_the_same_way_as_few():
    """Enough columns that only the blocks with the smallest minima are sorted; sklearn knows the answer."""
    for dtype in (torch.float32, torch.float64):
        states = normal(2, 1003, 4).to(dtype)
        found = neighbours(states, k=5, chunk=300)
        dist, index = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(states.numpy()).kneighbors()
        own = neighbours(states, k=6, chunk=300)
        assert (own.index[:, 0] == torch.arange(1003)).all()
        assert np.array_equal(own.index[:, 1:].numpy(), index)
        np.testing.assert_allclose(own.dist[:, 1:].numpy(), dist, rtol=1e-4)
        assert torch.equal(found.index, own.index[:, :5])


def test_episodes_in_pieces_are_excluded_like_whole_ones():
    states, order = normal(3, 60, 2), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    episode_id = torch.arange(60) // 20
    plain = neighbours(states, k=4, episode_id=episode_id, chunk=7)
    mixed = neighbours(states[order], k=4, episode_id=episode_id[order], chunk=7)
    torch.testing.assert_close(mixed.dist, plain.dist[order])
    assert (episode_id[order][mixed.index] != episode_id[order][:, None]).all()


def test_the_time_of_a_sample_may_be_given_when_samples_are_not_in_order():
    episode_id = torch.arange(30) // 15
    states, order = normal(3, 30, 2), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    options = {"k": 4, "cross_episode_only": False, "exclude_window": 3}
    plain = neighbours(states, episode_id=episode_id, **options)
    mixed = neighbours(
        states[order], episode_id=episode_id[order], step=(torch.arange(30) % 15)[order], **options
    )
    torch.testing.assert_close(mixed.dist, plain.dist[order])


@given(seed=seeds, radius=st.floats(0.2, 3))
def test_similarity_and_coverage_count_as_loops_do(seed, radius):
    states, queries = normal(seed, 30, 2), normal(seed + 1, 9, 2)
    episode_id = torch.arange(30) // 10
    lists = brute_force(states.numpy(), radius=radius)
    assert state_similarity(states, radius, chunk=7).item() == pytest.approx(sum(map(len, lists)) / 30**2)
    across = brute_force(states.numpy(), episode_id.tolist(), radius=radius)
    found = state_similarity(states, radius, episode_id=episode_id, reduce=None)
    assert found.tolist() == pytest.approx([len(near) / 20 for near in across])
    covered = [any(np.linalg.norm(q - s) <= radius for s in states.numpy()) for q in queries.numpy()]
    assert tube_coverage(states, queries, radius, chunk=4).tolist() == covered


# --- variances -------------------------------------------------------------------------------------


def loop_variance(values, lists):
    variance = []
    for row in lists:
        mean = sum(values[j] for j in row) / len(row)
        variance.append(sum(((values[j] - mean) ** 2).sum() for j in row) / len(row))
    return np.array(variance)


@given(seed=seeds)
def test_local_variances_are_those_of_a_loop(seed):
    random = np.random.default_rng(seed)
    actions, lists = random.normal(size=(24, 3)), random_lists(random, 24)
    near, expected = as_neighbours(lists), loop_variance(actions, lists)
    found = action_variance(torch.from_numpy(actions), near, normalize=False, reduce=None)
    np.testing.assert_allclose(found.numpy(), expected)
    total = actions.var(0).sum()
    assert action_variance(torch.from_numpy(actions), near).item() == pytest.approx(expected.mean() / total)
    per_dim = np.mean([loop_variance(actions[:, [d]], lists).mean() / actions[:, d].var() for d in range(3)])
    assert action_variance(torch.from_numpy(actions), near, normalize="per_dim").item() == pytest.approx(
        per_dim
    )

    states, moved = random.normal(size=(2, 24, 2))
    found = transition_variance(torch.from_numpy(states), torch.from_numpy(moved), near)
    assert found.item() == pytest.approx(loop_variance(moved - states, lists).mean())

    distance = [((actions[i] - actions[row].mean(0)) ** 2).sum() / total for i, row in enumerate(lists)]
    assert divergence_from_others(torch.from_numpy(actions), near).tolist() == pytest.approx(distance)


@given(seed=seeds, chunk=st.integers(1, 6))
def test_chunks_repeat_the_last_action_of_the_episode(seed, chunk):
    episodes = Episodes.from_arrays(random_episodes(seed))
    expected = []
    for episode in episodes.to_arrays():
        actions = episode["actions"].numpy()
        for t in range(len(actions)):
            expected.append(np.concatenate([actions[min(t + h, len(actions) - 1)] for h in range(chunk)]))
    found = action_chunks(episodes.actions, episodes.episode_id, chunk)
    assert np.array_equal(found.numpy(), np.stack(expected))
    near = neighbours(episodes.observations, k=5, episode_id=episodes.episode_id)
    variance = loop_variance(np.stack(expected), near.index.tolist()).mean() / chunk
    total = episodes.actions.var(0, correction=0).sum()
    assert action_variance(episodes.actions, near, chunk=chunk).item() == pytest.approx(
        float(variance / total)
    )


def test_the_linear_fit_is_that_of_a_library_and_sees_no_noise_in_a_slope():
    random = np.random.default_rng(0)
    states, actions = random.normal(size=(40, 2)), random.normal(size=(40, 3))
    near = neighbours(torch.from_numpy(states), k=9)
    expected = []
    for row in near.index.tolist():
        residual = actions[row] - LinearRegression().fit(states[row], actions[row]).predict(states[row])
        expected.append((residual**2).sum() / (9 - 3))
    found = action_variance(
        torch.from_numpy(actions), near, normalize=False, states=torch.from_numpy(states), reduce=None
    )
    np.testing.assert_allclose(found.numpy(), expected)
    slope = torch.from_numpy(states @ random.normal(size=(2, 3)) + 5)
    assert action_variance(slope, near, states=torch.from_numpy(states)) < 1e-20
    assert action_variance(slope, near) > 0.01


@given(seed=seeds)
def test_the_split_is_the_best_of_all_thresholds_along_the_main_direction(seed):
    random = np.random.default_rng(seed)
    actions, lists = random.normal(size=(16, 2)), random_lists(random, 16, least=3)
    ratios, weights = [], []
    for row in lists:
        centred = actions[row] - actions[row].mean(0)
        projected = np.sort(centred @ np.linalg.svd(centred)[2][0])
        total = (projected**2).sum()
        within = min(
            ((part - part.mean()) ** 2).sum() + ((rest - rest.mean()) ** 2).sum()
            for part, rest in ((projected[:cut], projected[cut:]) for cut in range(1, len(row)))
        )
        ratios.append(1 - within / total)
        weights.append(total / len(row))
    found = multimodality(torch.from_numpy(actions), as_neighbours(lists), reduce=None)
    np.testing.assert_allclose(found.numpy(), ratios)
    mean = multimodality(torch.from_numpy(actions), as_neighbours(lists))
    assert mean.item() == pytest.approx(np.average(ratios, weights=weights))


def test_the_split_of_one_gaussian_is_two_over_pi_and_of_a_uniform_three_quarters():
    index = torch.arange(600).expand(600, -1)
    everyone = Neighbours(index, torch.zeros(600, 600), torch.ones(600, 600, dtype=torch.bool))
    grid = (torch.arange(600, dtype=torch.float64)[:, None] + 0.5) / 600
    assert multimodality(grid, everyone).item() == pytest.approx(3 / 4, abs=1e-3)
    assert multimodality(torch.special.ndtri(grid), everyone).item() == pytest.approx(2 / math.pi, abs=5e-3)


@given(seed=seeds)
def test_leaving_an_episode_out_equals_recomputation_with_the_same_lists(seed):
    random = np.random.default_rng(seed)
    episode_id, actions = torch.arange(24) // 4, random.normal(size=(24, 2)) + 100
    lists = random_lists(random, 24)
    expected = []
    for left_out in range(6):
        rest = [[j for j in row if j // 4 != left_out] for i, row in enumerate(lists) if i // 4 != left_out]
        without = loop_variance(actions, [row for row in rest if row])
        expected.append(loop_variance(actions, lists).mean() - (without.mean() if len(without) else 0))
    found = leave_one_out(torch.from_numpy(actions), as_neighbours(lists, episode_id), normalize=False)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_leaving_an_episode_out_equals_a_fresh_search_by_radius():
    episodes = Episodes.from_arrays(random_episodes(5, lengths=(12, 9, 15, 11)))
    whole = neighbours(episodes.observations, radius=1.5, episode_id=episodes.episode_id)
    found = leave_one_out(episodes.actions, whole, normalize=False)
    for left_out in range(4):
        rest = episodes.subset([e for e in range(4) if e != left_out])
        near = neighbours(rest.observations, radius=1.5, episode_id=rest.episode_id)
        variances = [
            action_variance(e.actions, n, normalize=False) for e, n in ((episodes, whole), (rest, near))
        ]
        torch.testing.assert_close(found[left_out], variances[0] - variances[1])


# --- coverage, tube, horizon -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "eps", "n"), [(1.0, 0.1, 1), (0.5, 0.4, 7), (2.0, 0.3, 100), (0.1, 0.5, 3)]
)
def test_exact_coverage_in_one_dimension_is_the_integral(sigma, eps, n):
    def integrand(x):
        near = stats.norm.cdf(x + eps, scale=sigma) - stats.norm.cdf(x - eps, scale=sigma)
        return stats.norm.pdf(x, scale=sigma) * (1 - (1 - near) ** n)

    expected, _ = integrate.quad(integrand, -10 * sigma, 10 * sigma, limit=200, epsabs=1e-12)
    assert coverage_probability(sigma, eps, n, exact=True).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_exact_coverage_is_how_often_a_fresh_state_is_near(d):
    random = np.random.default_rng(d)
    sigma, eps, n, trials = 0.7, 0.35, 12, 40_000
    samples, fresh = (
        random.normal(scale=sigma, size=(trials, n, d)),
        random.normal(scale=sigma, size=(trials, 1, d)),
    )
    share = (np.abs(samples - fresh) <= eps).all(2).any(1).mean()
    expected = coverage_probability(sigma, eps, n, d, exact=True).item()
    assert abs(share - expected) < 4 * math.sqrt(0.25 / trials)
    # The approximation stands apart by more than the sampling error: it is not what was checked.
    assert coverage_probability(sigma, eps, n, d).item() - expected > 0.01


def test_the_width_of_the_tube_is_that_of_a_loop():
    episodes = Episodes.from_arrays(random_episodes(1))
    groups = {}
    for episode in episodes.to_arrays():
        length = len(episode["actions"])
        for t in range(length):
            groups.setdefault(t * 3 // length, []).append(episode["observations"][t].numpy())
    expected = [
        np.sqrt(((np.stack(groups[p]) - np.mean(groups[p], axis=0)) ** 2).sum(1).mean()) for p in range(3)
    ]
    assert tube_width(episodes.observations, episodes.episode_id, num_phases=3).tolist() == pytest.approx(
        expected
    )
    assert tube_width(episodes.observations, episodes.episode_id, num_phases=50).isnan().any()


def test_horizon():
    found = horizon_stats(torch.tensor([4, 10, 7, 11]))
    assert (found.mean, found.minimum, found.maximum, found.median, found.growth) == (8.0, 4, 11, 8.5, 4.5)
    assert found.std == pytest.approx(np.std([4, 10, 7, 11]))


def test_gaussian_kl_is_torchs():
    mu_p, mu_q, std_p, std_q = normal(0, 4, 5, 3).unbind()
    std_p, std_q = std_p.exp(), std_q.exp()
    p, q = torch.distributions.Normal(mu_p, std_p), torch.distributions.Normal(mu_q, std_q)
    expected = torch.distributions.kl_divergence(p, q).sum(-1)
    torch.testing.assert_close(gaussian_kl(mu_p, std_p, mu_q, std_q), expected)


# --- models and the simulator ----------------------------------------------------------------------


def test_held_out_residuals_find_the_noise_and_not_the_function():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1200, 2, generator=generator, dtype=torch.float64) * 2 - 1
    noise = 0.3 * torch.randn(1200, 1, generator=generator, dtype=torch.float64)
    residuals, disagreement = held_out_residuals(
        x,
        x[:, :1] * x[:, 1:] + noise,
        torch.arange(1200) // 100,
        folds=3,
        hidden=(32,),
        num_steps=300,
        generator=generator,
    )
    assert residuals.square().mean().item() == pytest.approx(0.09, rel=0.15)
    assert disagreement.mean() < 0.01


def test_an_episode_that_no_other_is_like_is_far_from_the_model_trained_on_the_others():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64).repeat(4)[:, None]
    episode_id = torch.arange(200) // 50
    target = torch.where(episode_id[:, None] == 2, -3.0, 3.0) * x
    options = {"folds": 4, "hidden": (16,), "num_steps": 200, "generator": torch.Generator().manual_seed(0)}
    residuals, _ = held_out_residuals(x, target, episode_id, **options)
    by_episode = residuals.square().view(4, 50).mean(1)
    # Episode 2 against three equal ones: off by 6 x, whose mean square is 36 * 0.347.
    assert by_episode[2].item() == pytest.approx(36 * (x**2).mean().item(), rel=0.2)
    assert by_episode[[0, 1, 3]].max() < by_episode[2] / 3


@pytest.mark.parametrize(("system", "policy"), [(0.02, 0.0), (0.03, 0.2), (0.01, 0.1)])
def test_the_split_recovers_the_noises_of_the_simulator(system, policy):
    episodes = PMObstacle().collect(
        30, system_noise=system, policy_noise=policy, generator=torch.Generator().manual_seed(0)
    )
    found = decompose(episodes)
    assert found.system_noise == pytest.approx(system, rel=0.06)
    assert found.system_covariance.diagonal().sqrt().tolist() == pytest.approx([system] * 2, rel=0.1)
    # Actions are clipped to length 1, so that of the noise along the way about half is lost.
    assert 0.55 * policy <= found.action_noise <= policy + 0.1


def test_system_noise_widens_the_states_without_touching_the_actions_and_policy_noise_does_both():
    def split(**noise):
        return decompose(PMObstacle().collect(16, generator=torch.Generator().manual_seed(1), **noise))

    still, shaken, sloppy = split(), split(system_noise=0.03), split(policy_noise=1.0)
    assert shaken.state_spread > 2 * still.state_spread
    assert sloppy.state_spread > 2 * still.state_spread
    assert shaken.action_noise < 0.15 < 0.4 < sloppy.action_noise
    assert sloppy.system_noise < 0.002 < 0.025 < shaken.system_noise


def test_multimodality_tells_two_ways_from_noise():
    def measured(**options):
        episodes = PMObstacle().collect(20, generator=torch.Generator().manual_seed(2), **options)
        near = neighbours(episodes.observations, k=16, episode_id=episodes.episode_id)
        return episodes, multimodality(episodes.actions, near, reduce=None)

    episodes, two_ways = measured(bimodal=True)
    assert two_ways[episodes.step < 3].nanmean() > 0.9
    assert measured(policy_noise=0.6)[1].nanmean() < 0.8


def test_the_point_moves_as_stated():
    episodes = PMObstacle().collect(5, policy_noise=0.5, generator=torch.Generator().manual_seed(3))
    moved = episodes.next_observations - episodes.observations
    torch.testing.assert_close(moved, 0.05 * episodes.actions)
    assert episodes.actions.norm(dim=1).max() <= 1 + 1e-6
    assert (episodes.observations.norm(dim=1) >= 0.3).all()
    last = torch.cumsum(episodes.lengths, 0) - 1
    there = (episodes.next_observations[last] - torch.tensor([1.0, 0.0])).norm(dim=1) < 0.1
    assert torch.equal(episodes.extras["rewards"][last].bool(), there)
    assert torch.equal(episodes.extras["rewards"].nonzero()[:, 0], last[there])


def test_success_of_the_expert_and_of_one_that_does_not_move():
    task, generator = PMObstacle(), torch.Generator().manual_seed(0)
    assert task.success(task.expert, (2, 100), system_noise=0.0, generator=generator).all()
    assert not task.success(torch.zeros_like, (50,), system_noise=0.0, generator=generator).any()

    def straight(states):
        return torch.tensor([1.0, 0.0]).expand(states.shape)

    assert not task.success(straight, (50,), system_noise=0.0, generator=generator).any()


@given(seed=seeds)
def test_spearman_is_scipys(seed):
    random = np.random.default_rng(seed)
    first, second = random.integers(0, 6, size=(2, 20))
    expected = stats.spearmanr(first, second).statistic
    assert spearman(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected)


def test_a_dimension_that_never_changes_does_not_dilute_the_mean_over_dimensions():
    generator = torch.Generator().manual_seed(0)
    near = neighbours(torch.randn(40, 2, generator=generator), k=5)
    actions = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    still = torch.cat([actions, torch.full((40, 1), 0.3, dtype=torch.float64)], dim=1)
    expected = action_variance(actions, near, normalize="per_dim")
    local = actions[near.index].var(1, correction=0) / actions.var(0, correction=0)
    torch.testing.assert_close(expected, local.mean())
    torch.testing.assert_close(action_variance(still, near, normalize="per_dim"), expected)
