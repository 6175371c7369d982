"""ildataquality against its natural peers: one group, exactly two cases, the same input, equal answers first."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from ildataquality import action_variance, leave_one_out, neighbours

both = pytest.mark.parametrize("case", ["ours", "peer"])
NUM_NEIGHBOURS = 32


def compare(benchmark, case, cases, rounds=3, **about):
    benchmark.extra_info.update(case=case, **about)
    rounds, warmup = (rounds, 1) if case == "ours" else (1 if rounds == 3 else rounds, 0)
    benchmark.pedantic(cases[case], rounds=rounds, warmup_rounds=warmup)


@cache
def problem(num_samples, state_dim, num_episodes):
    """States and actions of a walk, an episode after the other, as float32."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(num_episodes, num_samples // num_episodes, state_dim)).cumsum(1)
    states = torch.from_numpy((steps / steps.std((0, 1))).reshape(-1, state_dim)).float()
    actions = torch.from_numpy(random.normal(size=(len(states), 7))).float()
    return states, actions, torch.arange(num_episodes).repeat_interleave(num_samples // num_episodes)


# --- local action variance against the lines that anyone writes ------------------------------------


def our_variance():
    states, actions, episode_id = problem(10_000, 20, 50)
    near = neighbours(states, k=NUM_NEIGHBOURS, episode_id=episode_id)
    return action_variance(actions, near, normalize=False, reduce=None)


def few_lines():
    states, actions, episode_id = problem(10_000, 20, 50)
    distances = torch.cdist(states, states).masked_fill_(episode_id[:, None] == episode_id, torch.inf)
    index = distances.topk(NUM_NEIGHBOURS, dim=1, largest=False).indices
    return actions[index].var(1, correction=0).sum(1)


@cache
def check_few_lines():
    assert torch.isclose(our_variance(), few_lines(), rtol=1e-3).float().mean() > 0.995


@both
@pytest.mark.benchmark(group="action variance of every sample, against cdist, mask and topk")
def test_variance(benchmark, case):
    check_few_lines()
    about = {
        "peer": "torch.cdist, masked_fill and topk",
        "size": "N = 10,000, S = 20, A = 7, k = 32, float32",
    }
    compare(benchmark, case, {"ours": our_variance, "peer": few_lines}, rounds=5, **about)


# --- nearest neighbours against scikit-learn ---------------------------------------------------------


def our_neighbours():
    return neighbours(problem(10_000, 20, 50)[0], k=NUM_NEIGHBOURS).dist


def sklearn_neighbours():
    states = problem(10_000, 20, 50)[0].numpy()
    model = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS, algorithm="brute").fit(states)
    return torch.from_numpy(model.kneighbors(states)[0])


@cache
def check_neighbours():
    torch.testing.assert_close(our_neighbours().double(), sklearn_neighbours().double(), rtol=1e-3, atol=5e-3)


@both
@pytest.mark.benchmark(group="nearest neighbours, against scikit-learn brute force")
def test_neighbours(benchmark, case):
    check_neighbours()
    about = {
        "peer": "sklearn NearestNeighbors(algorithm='brute')",
        "size": "N = 10,000, S = 20, k = 32, float32",
    }
    compare(benchmark, case, {"ours": our_neighbours, "peer": sklearn_neighbours}, rounds=5, **about)


# --- local action variance against a loop over samples -----------------------------------------------


def loop_variance():
    states, actions, episode_id = (part.numpy() for part in problem(10_000, 20, 50))
    found = np.empty(len(states), dtype=np.float32)
    for i in range(len(states)):
        distance = np.linalg.norm(states - states[i], axis=1)
        distance[episode_id == episode_id[i]] = np.inf
        near = actions[np.argsort(distance)[:NUM_NEIGHBOURS]]
        found[i] = ((near - near.mean(0)) ** 2).sum(1).mean()
    return torch.from_numpy(found)


@cache
def check_loop():
    # Single samples may differ where float32 rounds two neighbours to one distance.
    assert torch.isclose(our_variance(), loop_variance(), rtol=1e-3).float().mean() > 0.995


@both
@pytest.mark.benchmark(group="action variance of every sample, against a loop over samples")
def test_variance_loop(benchmark, case):
    check_loop()
    about = {"peer": "a Python loop with numpy distances", "size": "N = 10,000, S = 20, A = 7, k = 32"}
    compare(benchmark, case, {"ours": our_variance, "peer": loop_variance}, **about)


# --- leaving every episode out, against a mask for each ----------------------------------------------

RADIUS, NUM_EPISODES = 0.3, 160


@cache
def found():
    states, actions, episode_id = problem(3200, 3, NUM_EPISODES)
    return actions, neighbours(states, radius=RADIUS, episode_id=episode_id)


def our_leave_one_out():
    return leave_one_out(*found(), normalize=False)


def masked():
    """The same lists of neighbours, each episode in turn masked out of them."""
    actions, near = found()
    values, owner, episode_id = actions[near.index], near.episode_id[near.index], near.episode_id

    def variance(mask, rows):
        weights = mask / mask.sum(1, keepdim=True)
        mean = (weights[:, None] @ values)[:, 0]
        spread = ((values - mean[:, None]).square().sum(2) * weights).sum(1)
        return spread[rows & mask.any(1)].mean()

    whole = variance(near.mask, torch.ones_like(episode_id, dtype=torch.bool))
    return torch.stack(
        [
            whole - variance(near.mask & (owner != left_out), episode_id != left_out)
            for left_out in range(NUM_EPISODES)
        ]
    )


@both
@pytest.mark.benchmark(group="action divergence without each episode, against masking each out")
def test_leave_one_out(benchmark, case):
    torch.testing.assert_close(our_leave_one_out(), masked(), rtol=1e-3, atol=2e-5)
    about = {
        "peer": "vectorised lines over the same neighbours, once an episode",
        "size": "N = 3,200, S = 3, A = 7, 160 episodes",
    }
    compare(benchmark, case, {"ours": our_leave_one_out, "peer": masked}, **about)
