"""MOPO against MOREC-MOPO at the paper's own size, on anybody's logged transitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from morec.filtering import TransitionFilter, calibrate_threshold
from morec.normalizer import TransitionNormalizer
from morec.reference.ensemble import GaussianEnsemble, fit_ensemble
from morec.reference.logged import environment_returns, termination_of
from morec.reference.mopo import Arm, mopo_sample_fn, train_in_models
from morec.reference.sac import GroupedSAC
from morec.reward import DynamicsReward
from morec.training import DynamicsRewardTrainer

__all__ = ["FullSize", "compare_at_full_size"]

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class FullSize:
    """The official launch settings; the dynamics reward's number of steps is a choice of this package.

    Attributes:
        model_sizes: Hidden layers of the ensemble members.
        model_steps: Adam steps of the ensemble.
        reward_sizes: Hidden layers of the discriminator and the generator.
        reward_steps: Adversarial steps; a snapshot every `reward_steps / 400`, every tenth is used.
        agent_sizes: Hidden layers of actor and critics.
        num_updates: Updates of each agent.
        rollout_every: Updates between refreshes of the model data.
        num_rollouts: Rollouts per refresh.
        horizon: Steps of a rollout.
        retain: Refreshes that the model data is kept for.
        penalty: MOPO's penalty, the same for both.
        episodes: Episodes of the evaluation.
    """

    model_sizes: tuple[int, ...] = (200, 200, 200, 200)
    model_steps: int = 200_000
    reward_sizes: tuple[int, ...] = (128, 256)
    reward_steps: int = 200_000
    agent_sizes: tuple[int, ...] = (256, 256)
    num_updates: int = 3_000_000
    rollout_every: int = 1000
    num_rollouts: int = 2000
    horizon: int = 100
    retain: int = 5
    penalty: float = 1.0
    episodes: int = 10


def compare_at_full_size(
    data: dict[str, Tensor], environment: str, size: FullSize, *, seed: int = 0, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train both agents on the same data, model, penalty and number of updates.

    Args:
        data: Logged transitions, see `load_transitions`.
        environment: The gymnasium id that judges the agents.
        size: The settings.
        seed: Seed of every random number.
        progress: Called as `progress(fraction, message)`.

    Returns:
        True returns of each agent by name, and figures of the dynamics reward.
    """
    obs, act, next_obs = data["obs"], data["act"], data["next_obs"]
    generator = torch.Generator(obs.device).manual_seed(seed)
    order = torch.randperm(len(obs), generator=generator, device=obs.device)
    held, kept = order[: len(obs) // 20 + 1], order[len(obs) // 20 + 1 :]
    model = GaussianEnsemble(obs.shape[1], act.shape[1], hidden_sizes=size.model_sizes, generator=generator)
    fit_ensemble(
        model,
        obs[kept],
        act[kept],
        data["reward"][kept],
        next_obs[kept],
        num_steps=size.model_steps,
        generator=generator,
        progress=lambda fraction: progress(0.1 * fraction, "dynamics model"),
    )
    trainer = _play(data, kept, size, generator, progress)
    reward = trainer.export(every=10 if len(trainer.snapshots) >= 10 else 1, rescale=True)
    figures = {
        "generator_rmse": float(trainer.generator_rmse(obs[held], act[held], next_obs[held])),
        "real_transitions_below_0.6": _share_below(reward, obs[held], act[held], next_obs[held]),
        "calibrated_threshold": calibrate_threshold(reward, obs[held], act[held], next_obs[held]),
    }
    filters = {"MOPO": None, "MOREC-MOPO": TransitionFilter(reward, min_reward=0.6, clip=25.0)}
    generators = [torch.Generator(obs.device).manual_seed(seed + 1 + index) for index in range(len(filters))]
    agent = _train(data, model, list(filters.values()), generators, environment, size, progress)

    def policy_of(group: int) -> Callable[[Tensor], Tensor]:
        return lambda seen: agent.act_as(group, seen, deterministic=True)

    returns = {
        name: environment_returns(
            environment, policy_of(group), episodes=size.episodes, seed=seed, device=str(obs.device)
        )
        for group, name in enumerate(filters)
    }
    return returns, figures


def _play(
    data: dict[str, Tensor], kept: Tensor, size: FullSize, generator: torch.Generator, progress: Progress
) -> DynamicsRewardTrainer:
    obs, act, next_obs = (data[name][kept] for name in ("obs", "act", "next_obs"))
    trainer = DynamicsRewardTrainer(
        obs.shape[1],
        act.shape[1],
        normalizer=TransitionNormalizer.fit(obs, act, next_obs),
        hidden_sizes=size.reward_sizes,
        snapshot_every=max(1, size.reward_steps // 400),
        max_snapshots=400,
        generator=generator,
    )
    for step in range(size.reward_steps):
        rows = torch.randint(len(obs), (256,), generator=generator, device=obs.device)
        trainer.step((obs[rows], act[rows], next_obs[rows]))
        if step % 100 == 0:
            progress(0.1 + 0.1 * step / size.reward_steps, "dynamics reward")
    return trainer


def _train(
    data: dict[str, Tensor],
    model: GaussianEnsemble,
    filters: list[TransitionFilter | None],
    generators: list[torch.Generator],
    environment: str,
    size: FullSize,
    progress: Progress,
) -> GroupedSAC:
    obs_dim, act_dim = data["obs"].shape[1], data["act"].shape[1]
    agent = GroupedSAC(
        obs_dim,
        act_dim,
        generators,
        hidden_sizes=size.agent_sizes,
        actor_learning_rate=1e-4,
        critic_learning_rate=3e-4,
    )
    ending = termination_of(environment)
    arms = [
        Arm(data, mopo_sample_fn(model, penalty=size.penalty, generator=source), chosen, size.horizon, ending)
        for chosen, source in zip(filters, generators, strict=True)
    ]
    epochs = math.ceil(size.num_updates / size.rollout_every)
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(agent.actor_optimizer, T_max=epochs)
    per_refresh = size.num_rollouts * size.horizon
    train_in_models(
        agent,
        arms,
        num_updates=size.num_updates,
        rollout_every=size.rollout_every,
        rollout_transitions=per_refresh,
        capacity=size.retain * per_refresh,
        schedulers=[schedule],
        progress=lambda fraction: progress(0.2 + 0.75 * fraction, "agents in the model"),
    )
    return agent


@torch.no_grad()
def _share_below(reward: DynamicsReward, obs: Tensor, act: Tensor, next_obs: Tensor) -> float:
    """Per cent of real transitions that the published threshold would reject."""
    scores = reward(obs, act, next_obs)
    return 100 * fmean((scores < 0.6).double().tolist())
