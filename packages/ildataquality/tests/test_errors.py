"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re

import numpy as np
import pytest
import torch
from helpers import random_episodes

from ildataquality import (
    Episodes,
    Normalizer,
    PMObstacle,
    StackedMLP,
    action_chunks,
    action_variance,
    bound_from_policy,
    coverage_probability,
    decompose,
    episode_scores,
    fit_stacked,
    gaussian_kl,
    held_out_residuals,
    horizon_stats,
    keep_fraction,
    leave_one_out,
    neighbours,
    quality_report,
    sample_weights,
    select,
    shift_bound,
    state_similarity,
    step_weights,
    transition_variance,
    tube_coverage,
    tube_width,
)

STATES = torch.arange(10.0)[:, None]
NEAR = neighbours(STATES, k=3)
ACTIONS = torch.arange(20.0).view(10, 2)
REPORT = quality_report(Episodes.from_arrays(random_episodes(0)))
BROKEN = torch.full((10, 1), torch.nan)


def changed(index, **arrays):
    episodes = random_episodes(0)
    episodes[index] = episodes[index] | arrays
    return episodes


def says(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "episodes must hold at least one episode, got none"),
        ([{"actions": np.zeros((3, 1))}], "episodes[0] must have 'observations', got ['actions']"),
        ([{"observations": np.zeros((3, 1))}], "episodes[0] must have 'actions'"),
        (
            changed(1, actions=np.zeros((8, 2))),
            "episodes[1]: observations must have 9 rows for 8 actions, got 10",
        ),
        (
            changed(2, actions=np.full((4, 2), np.nan)),
            "episodes[2]: actions must be finite, got NaN or infinity",
        ),
        (changed(3, observations=np.full((8, 3), np.inf)), "episodes[3]: observations must be finite"),
        (
            changed(1, actions=np.zeros((9, 5))),
            "episodes[1]: actions must have rows of shape (2,) as in the first",
        ),
        (
            changed(1, observations=np.zeros((10, 5))),
            "observations must have rows of shape (3,) as in the first",
        ),
        (changed(0, observations=np.zeros(7)), "episodes[0]: observations must be (T+1, ...), got (7,)"),
        (changed(0, actions=np.zeros(6)), "episodes[0]: actions must be (T, A), got shape (6,)"),
        (changed(0, actions=np.zeros((0, 2))), "episodes[0] must have at least one action, got none"),
        (changed(0, rewards=np.zeros(5)), "episodes[0]: rewards must have one entry for each of 6 actions"),
        (changed(2, extra=np.zeros(4)), "episodes[2] must have the entries of the first"),
        (
            changed(0, next_observations=np.zeros((6, 3))),
            "next_observations must have the shape of observations",
        ),
    ],
)
def test_episodes(episodes, message):
    with says(message):
        Episodes.from_arrays(episodes)


def test_episodes_of_the_wrong_type_or_with_wrong_discrete_actions():
    with pytest.raises(TypeError, match=re.escape("episodes[0] must be a mapping of arrays, got list")):
        Episodes.from_arrays([[1, 2]])
    walk = {"observations": np.zeros((3, 1)), "actions": np.array([0, 2])}
    with says("episodes[0]: actions must lie in 0..1, got 0..2"):
        Episodes.from_arrays([walk], num_actions=2)
    with says("episodes[0]: actions: discrete ones must be (T,) whole numbers, got torch.float64"):
        Episodes.from_arrays([walk | {"actions": np.zeros((2, 1))}], num_actions=2)


@pytest.mark.parametrize("index", [[], [0.5], [True, False], [[0]]])
def test_an_index_that_is_none(episodes, index):
    with says("index must be a non-empty list of whole numbers"):
        episodes.subset(index)


def test_sets_of_episodes(episodes):
    with says("index must lie in 0..3, got -1..2"):
        episodes.subset([-1, 2])
    with says("parts must hold at least one set of episodes, got none"):
        Episodes.concatenate([])
    with says("episodes[1]: actions must have rows of shape (2,)"):
        Episodes.concatenate([episodes, Episodes.from_arrays(random_episodes(0, action_dim=1))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "k must lie in 2..9 (fewer than the samples), got 1"),
        ({"k": 10}, "k must lie in 2..9 (fewer than the samples), got 10"),
        ({}, "k must lie in 2..9 (fewer than the samples), got 32"),
        ({"radius": 0.0}, "radius must be positive and finite, got 0.0"),
        ({"radius": -1.0}, "radius must be positive and finite, got -1.0"),
        ({"k": 3, "backend": "faiss"}, "backend must be 'torch' or 'kdtree', got 'faiss'"),
        ({"k": 3, "episode_id": torch.zeros(9)}, "episode_id must be (10,) as states has rows, got (9,)"),
        ({"k": 3, "episode_id": torch.zeros(10)}, "episode_id must name at least two episodes"),
        ({"k": 3, "step": torch.zeros(9)}, "step must be (10,)"),
        ({"k": 3, "exclude_window": -1}, "exclude_window must be at least 0 or None, got -1"),
        (
            {"radius": 0.5, "episode_id": torch.arange(10)},
            "radius must be larger: 10 of 10 samples have no neighbour within 0.5",
        ),
    ],
)
def test_neighbours(options, message):
    with says(message):
        neighbours(STATES, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbours(BROKEN, k=3), "states must be finite"),
        (
            lambda: neighbours(STATES[:, 0], k=3),
            "states must be a non-empty floating (N, D), got torch.float32 (10,)",
        ),
        (lambda: Normalizer.fit(torch.ones(5, 2)), "got all dimensions constant"),
        (lambda: Normalizer.fit(torch.full((50, 1), 0.1)), "got all dimensions constant"),
        (lambda: Normalizer.fit(STATES[:1]), "states must hold at least two samples, got 1"),
        (lambda: Normalizer.fit(STATES, quantile=1.0), "quantile must lie in (0, 1), got 1.0"),
        (
            lambda: Normalizer.fit(STATES, subset=1),
            "subset must be larger: 1 samples drawn of 10 all coincide",
        ),
        (lambda: state_similarity(STATES, 0.0), "radius must be positive and finite, got 0.0"),
        (lambda: state_similarity(STATES, 1.0, reduce="sum"), "reduce must be 'mean' or None, got 'sum'"),
        (lambda: tube_coverage(STATES, ACTIONS, 1.0), "queries must be (M, 1) as states are, got (10, 2)"),
        (lambda: action_variance(ACTIONS[:9], NEAR), "actions must have 10 rows as neighbours has, got 9"),
        (lambda: action_variance(BROKEN, NEAR), "actions must be finite"),
        (
            lambda: action_variance(ACTIONS, NEAR, normalize="all"),
            "normalize must be True, False or 'per_dim'",
        ),
        (lambda: action_variance(ACTIONS, NEAR, chunk=0), "chunk must be at least 1, got 0"),
        (
            lambda: action_variance(ACTIONS, NEAR, chunk=2),
            "chunk > 1 needs neighbours with episode_id, got None",
        ),
        (
            lambda: action_variance(ACTIONS, NEAR, states=STATES[:4]),
            "states must have 10 rows as neighbours has",
        ),
        (
            lambda: transition_variance(ACTIONS, STATES, NEAR),
            "next_states must have the shape of states (10, 2)",
        ),
        (lambda: leave_one_out(ACTIONS, NEAR), "episode_id must be given"),
        (lambda: leave_one_out(ACTIONS, NEAR, episode_id=torch.zeros(3)), "episode_id must be (10,)"),
        (lambda: action_chunks(ACTIONS, torch.zeros(10), 0), "chunk must be at least 1, got 0"),
        (
            lambda: action_chunks(ACTIONS, torch.arange(10) % 2, 2),
            "episode_id must hold every episode in one piece",
        ),
        (lambda: coverage_probability(0.0, 1.0, 1), "sigma must be positive, got a smallest of 0.0"),
        (lambda: coverage_probability(1.0, -1.0, 1), "eps must be positive, got a smallest of -1.0"),
        (lambda: coverage_probability(1.0, 1.0, 0), "n must be at least 1, got 0.0"),
        (lambda: coverage_probability(1.0, 1.0, 1, 4, exact=True), "at most 3 with exact=True, got 4"),
        (lambda: tube_width(STATES, torch.zeros(10), num_phases=0), "num_phases must be at least 1, got 0"),
        (lambda: tube_width(STATES, torch.zeros(9)), "episode_id must be (10,), one for each row"),
        (lambda: horizon_stats(torch.tensor([3, 0])), "lengths must be a non-empty (E,) of at least 1 each"),
        (lambda: step_weights(0), "horizon must be at least 1, got 0"),
        (lambda: step_weights(3, convention="t"), "convention must be 'H-t' or 'H-1-t', got 't'"),
        (lambda: shift_bound(torch.tensor([-1.0])), "per_step_divergence must be finite and at least 0"),
        (lambda: shift_bound(torch.tensor(1.0)), "per_step_divergence must be a floating (..., H)"),
        (
            lambda: gaussian_kl(STATES, STATES, STATES, STATES + 1),
            "std_p must be positive, got a smallest of 0.0",
        ),
        (
            lambda: fit_stacked(STATES, ACTIONS[:3], [torch.arange(3)]),
            "targets must have 10 rows as inputs has, got 3",
        ),
        (lambda: fit_stacked(STATES, ACTIONS, []), "members must hold at least one row for each model"),
        (lambda: held_out_residuals(STATES, ACTIONS, torch.arange(10) // 5), "folds must lie in 2..2"),
        (lambda: StackedMLP(0, 1, 1), "all sizes must be at least 1, got 0 models"),
        (lambda: PMObstacle().collect(0), "num_episodes and horizon must be at least 1"),
        (lambda: episode_scores(REPORT, {"speed": 1.0}), "got ['speed']"),
        (lambda: keep_fraction(torch.arange(3), 0.0), "keep must lie in (0, 1], got 0.0"),
        (lambda: keep_fraction(torch.arange(3), 1.5), "keep must lie in (0, 1], got 1.5"),
        (lambda: sample_weights(REPORT, 0.0), "tau must be positive, got 0.0"),
    ],
)
def test_metrics(call, message):
    with says(message):
        call()


def test_policies():
    def gaussian(s):
        return s, torch.ones_like(s)

    states = torch.zeros(3, 4, 2)
    with says("policy and expert must both give (mean, std) or both give actions"):
        bound_from_policy(gaussian, torch.zeros_like, states)
    with says("sigma must be positive for deterministic policies, got None"):
        bound_from_policy(torch.zeros_like, torch.zeros_like, states)
    with says("states_by_t must be (H, M, ...), got (4, 2)"):
        bound_from_policy(gaussian, gaussian, states[0])
    with says("must give one action of shape (A,) for each of 12 states"):
        bound_from_policy(torch.sum, torch.sum, states, sigma=1.0)


def test_reports(episodes):
    alone = episodes.subset([0])
    with says("use cross_episode_only=False"):
        quality_report(alone)
    assert quality_report(alone, k=2, cross_episode_only=False, exclude_window=1).action_variance >= 0
    with says("encode must give (26, D) features, got (26,)"):
        quality_report(episodes, encode=lambda observations: observations[:, 0])
    with says("encode(observations) must be finite"):
        quality_report(episodes, encode=lambda observations: observations * torch.nan)
    with says("report must be of these 1 episodes and without further options, got one of 4"):
        select(alone, report=REPORT)
    with says("options ['k']"):
        select(episodes, report=REPORT, k=3)
    with says("k must exceed 6 for 5 dimensions, got 6"):
        decompose(episodes, k=6)


def test_a_dimension_of_actions_that_never_changes_is_told():
    actions = torch.cat([ACTIONS, torch.ones(10, 1)], dim=1)
    with pytest.warns(UserWarning, match=re.escape("dimensions [2] of actions never change")):
        raw = action_variance(actions, NEAR, normalize=False)
    assert raw == action_variance(ACTIONS, NEAR, normalize=False)
    assert action_variance(actions, NEAR) == action_variance(ACTIONS, NEAR)
    assert action_variance(torch.ones(10, 2), NEAR) == 0
    assert action_variance(torch.ones(10, 2), NEAR, normalize="per_dim") == 0
