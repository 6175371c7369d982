"""Logged transitions of anybody's environment, for the full-size setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["environment_returns", "load_transitions", "termination_of"]

_COLUMNS = ("obs", "act", "reward", "next_obs", "terminal")


def load_transitions(path: str | Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file of transitions.

    Args:
        path: File with `obs`, `next_obs` (N, S), `act` (N, A) in [-1, 1], `reward` and `terminal` (N,).
        device: Where the tensors go.

    Returns:
        The columns as float32.

    Raises:
        ImportError: If safetensors is missing.
        ValueError: If a column is missing.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            "reading logged transitions needs safetensors: pip install 'morec[demo]'"
        ) from error
    columns = load_file(path, device=device)
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"{path} must hold the columns {', '.join(_COLUMNS)}; it lacks {', '.join(missing)}")
    return {name: columns[name].float() for name in _COLUMNS}


def termination_of(environment: str) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """When a gymnasium MuJoCo task of this name ends; None for those that never do.

    Args:
        environment: A gymnasium id.

    Returns:
        A function of obs, act and next_obs to (B,) bool, or None.
    """

    def hopper(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        height, angle = next_obs[:, 0], next_obs[:, 1]
        bounded = (next_obs[:, 1:].abs() < 100).all(-1)
        return ~((height > 0.7) & (angle.abs() < 0.2) & bounded)

    def walker(obs: Tensor, act: Tensor, next_obs: Tensor) -> Tensor:
        height, angle = next_obs[:, 0], next_obs[:, 1]
        return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))

    endings = {"Hopper": hopper, "Walker2d": walker}
    return next((ending for name, ending in endings.items() if environment.startswith(name)), None)


def environment_returns(
    environment: str,
    policy: Callable[[Tensor], Tensor],
    *,
    episodes: int = 10,
    seed: int = 0,
    device: str = "cpu",
) -> list[float]:
    """Undiscounted returns of whole episodes in a gymnasium environment.

    Args:
        environment: A gymnasium id with a bounded box of actions.
        policy: obs (1, S) to act (1, A) in [-1, 1], stretched to the environment's box.
        episodes: Number of episodes.
        seed: Seed of the first episode.
        device: Where the policy lives.

    Returns:
        One return per episode.

    Raises:
        ImportError: If gymnasium is missing.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("true returns need gymnasium: pip install 'morec[demo]'") from error
    env: Any = gymnasium.make(environment)
    low, high = env.action_space.low, env.action_space.high
    found = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        rewards, over = [], False
        while not over:
            act = (
                policy(torch.as_tensor(obs, dtype=torch.float32, device=device).unsqueeze(0))[0].cpu().numpy()
            )
            obs, reward, terminated, truncated, _ = env.step(low + (act + 1) / 2 * (high - low))
            rewards.append(float(reward))
            over = terminated or truncated
        found.append(math.fsum(rewards))
    env.close()
    return found
