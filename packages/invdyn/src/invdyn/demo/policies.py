"""Fine-tuning: policies on a handful of clean demonstrations of one new goal, and what they achieve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from invdyn import BehaviorCloning
from invdyn.demo.training import EMBED, Size, cosine, new_encoder, widened
from invdyn.demo.world import World, demonstrate

Representation = Callable[[Tensor, Tensor], Tensor]  # of frames (bytes) and positions, to (N, EMBED)
_BATCH, _RATE, _NEAR = 32, 3e-3, 0.05
_SCRATCH_RATES = (2e-3, 8e-3, 3.2e-2)


def demonstrations(goals: Tensor, size: Size, generator: torch.Generator) -> list[dict[str, Any]]:
    """Clean demonstrations of each goal."""
    most = max(size.demos)
    return [demonstrate(goal.expand(most, 2), size.horizon, 0.0, generator) for goal in goals]


def _before_actions(data: dict[str, Any], name: str) -> Tensor:
    """Observations that an action follows: all but the last of every episode, episodes in order."""
    values: Tensor = data[name]
    return values.unflatten(0, (len(data["lengths"]), -1))[:, :-1].flatten(0, 1)


def frozen_success(
    representations: Mapping[str, Representation],
    demos: list[dict[str, Any]],
    goals: Tensor,
    size: Size,
    seed: int,
) -> dict[str, Tensor]:
    """(goals, numbers of demonstrations) success of policies on each frozen representation, all trained at once."""
    numbers = size.demos
    features, units = [], {}
    for name, represent in representations.items():
        own = [represent(_before_actions(one, "obs"), _before_actions(one, "position")) for one in demos]
        units[name] = _units(torch.cat(own))
        features += [(one - units[name][0]) / units[name][1] for one in own for _ in numbers]
    x = torch.stack(features)  # (members, rows, EMBED): representation, then goal, then number
    actions = torch.stack([one["action"] for one in demos]).repeat_interleave(len(numbers), 0)
    limits = size.horizon * torch.tensor(numbers).repeat(len(x) // len(numbers))
    base, weights = _train_together(x, actions.repeat(len(representations), 1, 1), limits, size, seed)
    members = len(goals) * len(numbers)  # of each representation
    targets = goals.repeat_interleave(len(numbers) * size.rollouts, 0)
    reached = {}
    for place, (name, represent) in enumerate(representations.items()):
        chosen = slice(place * members, (place + 1) * members)
        act = _policy(base, {key: one[chosen] for key, one in weights.items()}, units[name], represent)
        arrived = _rollout(act, targets, size.horizon, seed)
        reached[name] = arrived.view(len(goals), len(numbers), size.rollouts).mean(2)
    return reached


def _train_together(
    x: Tensor, y: Tensor, limits: Tensor, size: Size, seed: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A policy for each member, on the first `limits` rows of (members, rows, EMBED): one module, stacked weights."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    base = _head()
    weights, _ = stack_module_state([_head() for _ in range(len(x))])
    members = torch.arange(len(x))[:, None]
    optimizer = torch.optim.AdamW(weights.values(), lr=_RATE)
    for step in range(size.policy_steps):
        optimizer.param_groups[0]["lr"] = _RATE * cosine(step, size.policy_steps)
        rows = (torch.rand(len(x), _BATCH, generator=generator) * limits[:, None]).long()
        errors = _act(base, weights, x[members, rows]) - y[members, rows]
        loss = errors.square().mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return base.eval(), {key: one.detach() for key, one in weights.items()}


def _head() -> nn.Module:
    return BehaviorCloning(nn.Identity(), EMBED, 2, hidden=(64, 64), validate=False)


def _act(base: nn.Module, weights: dict[str, Tensor], features: Tensor) -> Tensor:
    """(members, rows, 2) actions of (members, rows, EMBED)."""

    def one(own: dict[str, Tensor], features: Tensor) -> Tensor:
        return functional_call(base, (own, {}), (features,))

    found: Tensor = vmap(one, randomness="different")(weights, features)
    return found


def _policy(
    base: nn.Module, weights: dict[str, Tensor], units: tuple[Tensor, Tensor], represent: Representation
) -> Representation:
    """All members of one representation as one policy, rows of the first member first."""
    members = len(next(iter(weights.values())))

    def act(frames: Tensor, position: Tensor) -> Tensor:
        seen = (represent(frames, position) - units[0]) / units[1]
        return _act(base, weights, seen.unflatten(0, (members, -1))).flatten(0, 1)

    return act


def scratch_success(
    demos: list[dict[str, Any]], goals: Tensor, size: Size, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """The same of policies that train encoder and head on the demonstrations alone; and their rates' errors.

    The rate is chosen on the first goal, with all its demonstrations, by the error on ten more of them.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    fresh = demonstrate(goals[:1].expand(10, 2), size.horizon, 0.0, generator)
    errors: dict[float, float] = {}

    def score(rate: float) -> float:
        if rate not in errors:
            policy = _from_scratch(demos[0], max(size.demos), rate, size, seed)
            with torch.no_grad():
                found = policy(_before_actions(fresh, "obs"))
            errors[rate] = (found - fresh["action"]).square().mean().item()
        return -errors[rate]

    rate, _ = widened(_SCRATCH_RATES, score)
    reached = torch.zeros(len(goals), len(size.demos))
    for place, goal in enumerate(goals):
        for column, number in enumerate(size.demos):
            policy = _from_scratch(demos[place], number, rate, size, seed)
            targets = goal.expand(size.rollouts, 2)

            def act(frames: Tensor, position: Tensor, policy: nn.Module = policy) -> Tensor:
                return policy(frames)

            reached[place, column] = _rollout(act, targets, size.horizon, seed).mean()
    return reached, {f"{rate:g}": error for rate, error in errors.items()}


def _from_scratch(data: dict[str, Any], number: int, rate: float, size: Size, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = BehaviorCloning(new_encoder(), EMBED, 2, hidden=(64, 64), validate=False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    frames, actions = _before_actions(data, "obs"), data["action"]
    for step in range(size.policy_steps):
        optimizer.param_groups[0]["lr"] = rate * cosine(step, size.policy_steps)
        rows = torch.randint(number * size.horizon, (_BATCH,), generator=generator)
        loss = (policy(frames[rows]) - actions[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


@torch.no_grad()
def _rollout(act: Representation, goals: Tensor, steps: int, seed: int) -> Tensor:
    """1 where an agent ends near its goal; the same seed starts them at the same places."""
    generator = torch.Generator().manual_seed(seed)
    world = World.start(len(goals), generator)
    for _ in range(steps):
        world.step(act(world.frames(), world.position), generator)
    return ((world.position - goals).norm(dim=1) < _NEAR).float()


def _units(features: Tensor) -> tuple[Tensor, Tensor]:
    spread = features.std(0)
    return features.mean(0), torch.where(spread > 1e-6, spread, 1.0)
