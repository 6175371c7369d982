"""Pendulum-v1 from the logs of operators of two kinds, and nobody wrote down who is which."""

import gymnasium
import numpy as np
import torch
from torch import nn

from armillary.recipes.offline_control import Planner, batches, imitate, learn_filter, returns, returns_to_go
from ildataquality import Episodes, episode_scores, quality_report
from morec import DynamicsRewardTrainer, TransitionNormalizer
from morec.reference.ensemble import GaussianEnsemble, fit_ensemble

LIMIT, NUM_OPERATORS, NUM_TEST, DISCOUNT = 2.0, 24, 32, 0.98
HORIZONS = (0, 2, 5, 10)


def operator(observation):
    """Swing the pendulum up by its energy, then hold it."""
    angle, speed = np.arctan2(observation[:, 1], observation[:, 0]), observation[:, 2]
    pump = 2 * (5 - speed**2 / 6 - 5 * np.cos(angle)) * speed
    pump = np.where(np.abs(speed) < 0.05, -LIMIT * np.sign(angle), pump)
    near = (np.abs(angle) < 0.35) & (np.abs(speed) < 2.5)
    return np.where(near, -10 * angle - 3 * speed, pump).clip(-LIMIT, LIMIT)[:, None].astype(np.float32)


def collect(noise):
    """One episode of each operator, who shakes by so much; gusts push the pendulum besides, unseen."""
    random = np.random.default_rng(0)
    environments = gymnasium.make_vec("Pendulum-v1", num_envs=len(noise), vectorization_mode="sync")
    observation, _ = environments.reset(seed=0)
    observations, actions, rewards = [observation], [], []
    for _ in range(200):
        shaken = operator(observation) + noise[:, None] * random.standard_normal((len(noise), 1))
        actions.append(shaken.clip(-LIMIT, LIMIT).astype(np.float32))
        gust = 0.5 * random.standard_normal((len(noise), 1))
        observation, reward, *_ = environments.step(
            (actions[-1] + gust).clip(-LIMIT, LIMIT).astype(np.float32)
        )
        observations.append(observation)
        rewards.append(reward.astype(np.float32))
    columns = (np.stack(values, axis=1) for values in (observations, actions, rewards))
    names = ("observations", "actions", "rewards")
    return Episodes.from_arrays(dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True))


def network():
    """Three observations to one number."""
    return nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def clone(log, keep):
    """A policy that imitates the share `keep` of the log, and the value of those it imitates."""
    torch.manual_seed(0)
    policy, critic = network(), network()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    kept = imitate(policy, optimizer, log, keep=keep, num_steps=2000)
    to_go = returns_to_go(kept.extras["rewards"], kept.episode_id, DISCOUNT)
    mean, std = to_go.mean(), to_go.std()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for states, target in batches([kept.observations, (to_go - mean) / std], 2000, 256, None):
        optimizer.zero_grad()
        (critic(states)[:, 0] - target).square().mean().backward()
        optimizer.step()
    return policy, lambda states: mean + std * critic(states)[:, 0]


def figure():
    """Return over the horizon of planning, with and without curation and filter; and what the ranking saw."""
    noise = np.tile([0.0, 2.0], NUM_OPERATORS // 2)
    log = collect(noise)
    careful, all_of_them = clone(log, keep=0.5), clone(log, keep=1)

    train, held_out = log.subset(range(4, NUM_OPERATORS)), log.subset(range(4))
    obs, act, next_obs = train.observations, train.actions, train.next_observations
    ensemble = GaussianEnsemble(3, 1, hidden_sizes=(64, 64), generator=torch.Generator().manual_seed(0))
    fit_ensemble(ensemble, obs, act, train.extras["rewards"], next_obs, num_steps=2000)
    normalizer = TransitionNormalizer.fit(obs, act, next_obs)
    trainer = DynamicsRewardTrainer(3, 1, normalizer=normalizer, hidden_sizes=(64, 64), snapshot_every=300)
    keep_plausible = learn_filter(trainer, train, held_out, num_steps=3000)

    environments = gymnasium.make_vec("Pendulum-v1", num_envs=NUM_TEST, vectorization_mode="sync")
    floor = returns_to_go(log.extras["rewards"], log.episode_id, DISCOUNT).min().item()
    options = {"discount": DISCOUNT, "floor": floor, "low": -LIMIT, "high": LIMIT}

    def play(learned, transition_filter):
        found = []
        for horizon in HORIZONS:
            planner = Planner(*learned, ensemble.candidates, transition_filter, horizon=horizon, **options)
            found.append(returns(environments, planner, seed=1).mean().item())
        return {"x": list(HORIZONS), "y": found}

    lines = {
        "better half imitated, filter": play(careful, keep_plausible),
        "better half imitated, no filter": play(careful, None),
        "all imitated, filter": play(all_of_them, keep_plausible),
        "all imitated, no filter": play(all_of_them, None),
    }
    scores = episode_scores(quality_report(log))
    ranking = scores.argsort(descending=True)
    kinds = {"careful operators": noise[ranking] == 0, "careless operators": noise[ranking] > 0}
    place = np.arange(1, NUM_OPERATORS + 1)
    return {
        "curves": [
            {
                "title": f"Return in Pendulum-v1, mean of {NUM_TEST} episodes",
                "x_label": "steps looked ahead in the model",
                "y_label": "return",
                "series": lines,
            },
            {
                "title": "What the ranking sees: all episodes of the log, best first",
                "x_label": "place",
                "y_label": "score",
                "series": {
                    name: {"x": place[rows].tolist(), "y": scores[ranking][rows].tolist()}
                    for name, rows in kinds.items()
                },
            },
        ]
    }
