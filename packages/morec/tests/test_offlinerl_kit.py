"""The adapter for OfflineRL-Kit against that library's own contract, written out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from morec import DynamicsReward, TransitionDiscriminator, TransitionFilter, TransitionNormalizer
from morec.offlinerl_kit import FilteredDynamics

S, A, B = 3, 2, 16


class Model(nn.Module):
    """Seven linear Gaussians of change and reward, five of them elites."""

    def __init__(self, std=0.1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(7, S + A, S + 1, generator=generator))
        self.register_parameter("elites", nn.Parameter(torch.tensor([6, 0, 3, 2, 4]), requires_grad=False))
        self.std = std

    def forward(self, x):
        mean = torch.as_tensor(x, dtype=torch.float32) @ self.weight
        return mean, torch.full_like(mean, 2 * np.log(self.std))


class Scaler:
    def transform(self, x):
        return 2 * x


class Dynamics:
    def __init__(self, penalty=0.0, std=0.1, far=np.inf):
        self.model, self.scaler, self._penalty_coef, self.far = Model(std), Scaler(), penalty, far

    def terminal_fn(self, obs, action, next_obs):
        return (np.abs(next_obs) > self.far).any(1, keepdims=True)

    def step(self, obs, action):
        mean, _ = self.model(self.scaler.transform(np.concatenate([obs, action], -1)))
        mean = mean.detach().numpy()
        reward = mean[0, :, -1:] + np.random.default_rng().normal(size=(len(obs), 1)).astype(np.float32)
        penalty = mean[..., 0].std(0)[:, None]
        told = {"raw_reward": reward, "penalty": penalty}
        return (
            obs + mean[0, :, :-1],
            reward - self._penalty_coef * penalty,
            self.terminal_fn(obs, action, obs),
            told,
        )


def reward():
    torch.manual_seed(0)
    return DynamicsReward(
        TransitionNormalizer(S, A), [TransitionDiscriminator(S, A, (16,)) for _ in range(3)]
    )


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, S)).astype(np.float32), rng.uniform(-1, 1, (B, A)).astype(np.float32)


def test_the_elites_propose_and_the_filter_chooses():
    obs, action = batch()
    dynamics, judge = Dynamics(std=1e-12), reward()
    filtered = FilteredDynamics(dynamics, TransitionFilter(judge, min_reward=-np.inf), resample=1)
    next_obs, rewards, terminals, info = filtered.step(obs, action)
    proposals = (np.concatenate([2 * obs, 2 * action], -1) @ dynamics.model.weight.detach().numpy())[
        [6, 0, 3, 2, 4]
    ]
    scores = judge(*(torch.as_tensor(one) for one in (obs, action, obs + proposals[..., :-1])))
    best = scores.argmax(0).numpy()
    np.testing.assert_allclose(next_obs, obs + proposals[best, np.arange(B), :-1], atol=1e-6)
    np.testing.assert_allclose(rewards, proposals[best, np.arange(B), -1:], atol=1e-6)
    np.testing.assert_allclose(info["dynamics_reward"][:, 0], scores.amax(0).detach().numpy(), atol=1e-6)
    assert next_obs.dtype == rewards.dtype == np.float32
    assert terminals.shape == (B, 1)
    assert terminals.dtype == bool
    assert not terminals.any()


def test_proposals_spread_as_the_model_says():
    obs, action = batch()
    filtered = FilteredDynamics(
        Dynamics(std=0.1), TransitionFilter(reward(), min_reward=0.0), resample=400,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    proposals = filtered._candidates(obs, action).unflatten(0, (400, 5))
    torch.testing.assert_close(proposals.std(0), torch.full((5, B, S + 1), 0.1), atol=0.03, rtol=0)


def test_the_penalty_is_the_ensembles_own_and_comes_off_the_chosen_reward():
    obs, action = batch()
    dynamics = Dynamics(penalty=3.0, std=1e-12)
    filtered = FilteredDynamics(dynamics, TransitionFilter(reward(), min_reward=-np.inf))
    _, rewards, _, info = filtered.step(obs, action)
    _, _, _, told = dynamics.step(obs, action)
    np.testing.assert_allclose(info["raw_reward"] - rewards, 3 * told["penalty"], atol=1e-5)


def test_rejections_and_the_models_own_ends_are_terminals():
    obs, action = batch()
    judge = reward()
    middle = float(judge(*map(torch.as_tensor, (obs, action, obs))).median())
    kept = TransitionFilter(judge, min_reward=middle)
    _, _, terminals, info = FilteredDynamics(Dynamics(std=1e-12), kept).step(obs, action)
    assert 0 < info["reject"].sum() < B
    np.testing.assert_array_equal(terminals, info["reject"])
    np.testing.assert_array_equal(info["reject"], info["dynamics_reward"] < middle)
    next_obs, _, terminals, info = FilteredDynamics(Dynamics(std=1e-12, far=1.0), kept).step(obs, action)
    np.testing.assert_array_equal(terminals, info["reject"] | (np.abs(next_obs) > 1).any(1, keepdims=True))


def test_min_length_counts_from_where_a_rollout_began():
    filtered = FilteredDynamics(Dynamics(far=1.5), TransitionFilter(reward(), min_reward=2.0, min_length=3))

    def length(seed):
        obs, _ = batch(seed)
        for count in range(1, 10):
            next_obs, _, terminals, info = filtered.step(obs, np.zeros((len(obs), A), np.float32))
            if info["reject"].any():
                assert info["reject"].all()  # no reward reaches 2
                return count
            obs = next_obs[~terminals[:, 0]]
        return None

    assert [length(seed) for seed in range(3)] == [4, 4, 4]


def test_everything_else_is_the_wrapped_dynamics():
    dynamics = Dynamics()
    filtered = FilteredDynamics(dynamics, TransitionFilter(reward(), min_reward=0.0))
    assert filtered.model is dynamics.model
    assert filtered.scaler is dynamics.scaler
    with pytest.raises(AttributeError, match="no_such"):
        filtered.no_such  # noqa: B018
    assert copy.deepcopy(filtered).model is not dynamics.model


@pytest.mark.parametrize(
    "options", [{"on_reject": "drop"}, {"on_reject": "truncate"}, {"nan_policy": "reject"}]
)
def test_a_filter_that_the_interface_cannot_serve_is_named(options):
    with pytest.raises(ValueError, match=f"transition_filter.{next(iter(options))} must be"):
        FilteredDynamics(Dynamics(), TransitionFilter(reward(), min_reward=0.0, **options))


def test_seeds_decide():
    obs, action = batch()
    kept = TransitionFilter(reward(), min_reward=0.0, mode="softmax")
    one, other = (
        FilteredDynamics(Dynamics(), kept, generator=torch.Generator().manual_seed(5)).step(obs, action)[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
