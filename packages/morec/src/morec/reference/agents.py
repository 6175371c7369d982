"""Agents trained inside the dynamics models of several worlds, judged on the true pendulum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from morec.filtering import TransitionFilter
from morec.reference import pendulum
from morec.reference.mopo import Arm, mopo_sample_fn, train_in_models
from morec.reference.sac import GroupedSAC
from morec.reference.study import World

__all__ = ["WAYS", "true_returns"]

WAYS = ("random elite", "MOPO penalty", "filter", "filter + termination")
_REWARD_SCALE = 0.1


def true_returns(
    worlds: Sequence[World],
    horizons: Sequence[int],
    *,
    num_updates: int,
    penalty: float = 1.0,
    progress: Callable[[float], None] | None = None,
) -> dict[tuple[str, int], float]:
    """Train one agent per world, way of choosing and horizon, all at once and with the same budget.

    Args:
        worlds: Logs and what was learned from them.
        horizons: Lengths of model rollouts.
        num_updates: Updates of every agent.
        penalty: MOPO's penalty, for the way of that name.
        progress: Called with the share of updates done.

    Returns:
        Return on the true pendulum by (way, horizon): mean over worlds and 50 episodes.
    """
    keys, arms, generators = [], [], []
    for world in worlds:
        data = {**world.data, "reward": _REWARD_SCALE * world.data["reward"]}
        data["terminal"] = torch.zeros_like(data["reward"])
        for way in WAYS:
            for horizon in horizons:
                # The same seed for all: within a world agents differ by what they are trained in.
                source = torch.Generator(world.generator.device)
                source.manual_seed(world.generator.initial_seed() + 7)
                sample = mopo_sample_fn(
                    world.model,
                    penalty=penalty if way == "MOPO penalty" else 0.0,
                    reward_scale=_REWARD_SCALE,
                    generator=source,
                )
                keys.append((way, horizon))
                arms.append(Arm(data, sample, _filter_of(way, world), horizon))
                generators.append(source)
    agent = GroupedSAC(3, 1, generators)
    train_in_models(
        agent,
        arms,
        num_updates=num_updates,
        batch_size=128,
        rollout_every=250,
        rollout_transitions=1000,
        capacity=10_000,
        progress=progress,
    )
    starts = pendulum.uniform_states(50, max_speed=1.0, generator=worlds[0].generator)
    found = pendulum.returns(lambda obs: agent.act(obs, deterministic=True), starts.expand(len(arms), -1, -1))
    by_arm = list(zip(keys, found.mean(-1).tolist(), strict=True))
    return {key: fmean(value for other, value in by_arm if other == key) for key in keys}


def _filter_of(way: str, world: World) -> TransitionFilter | None:
    if not way.startswith("filter"):
        return None
    # Rewards are negative here: a terminal rejection would pay for leaving the data, so it is dropped.
    minimum = world.min_reward if way == "filter + termination" else -math.inf
    return TransitionFilter(world.rewards["history"], min_reward=minimum, on_reject="drop")
