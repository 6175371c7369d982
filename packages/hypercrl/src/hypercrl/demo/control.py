"""Planning on the learnt models: all tasks and environments in one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from hypercrl import CEMPlanner, DynamicsModel
from hypercrl.demo.learners import Weights, stacked_outputs
from hypercrl.demo.tasks import Task


def mean_rewards(
    tasks: list[Task],
    model: DynamicsModel,
    weights: Weights | None,
    num_envs: int,
    steps: int,
    seed: int,
    device: str,
) -> list[float]:
    """Return each task's mean reward (%) of a step while planning swings the pole up; no weights: the true physics."""
    generator = torch.Generator().manual_seed(seed)
    count, physics = len(tasks), [task.physics for task in tasks if task.physics is not None]

    def true_step(state: Tensor, action: Tensor) -> Tensor:
        parts = zip(physics, state.reshape(count, -1, 4), action.reshape(count, -1, 1), strict=True)
        return torch.stack([one.step(x, u) for one, x, u in parts]).reshape(state.shape)

    def dynamics(state: Tensor, action: Tensor) -> Tensor:
        if weights is None:
            return true_step(state, action)
        flat, acted = state.reshape(count, -1, 4), action.reshape(count, -1, 1)
        change = stacked_outputs(model, weights, range(count), flat, acted)
        return (flat + change).clamp(-50, 50).reshape(state.shape)

    def cost(state: Tensor, action: Tensor) -> Tensor:
        return -physics[0].reward(state) + physics[0].terminated(state).float()

    planner = CEMPlanner(dynamics, cost, 20, -1.0, 1.0, 60, 8, 2, warm_start=True, device=device)
    state = torch.cat([one.reset(num_envs, generator) for one in physics]).to(device)
    total, alive = torch.zeros(len(state), device=device), torch.ones(len(state), device=device)
    for _ in range(steps):
        state = true_step(state, planner.plan(state, generator))
        alive = alive * (~physics[0].terminated(state)).float()
        total += alive * physics[0].reward(state)
        state = state.clamp(-50, 50)
    return (100 * total / steps).view(count, num_envs).mean(dim=1).tolist()
