"""A point that must pass an obstacle: where one can see what noise in the system and in the actions does to cloning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality.episodes import Episodes


@dataclass(frozen=True)
class PMObstacle:
    """A point in the plane from (-1, 0) to (1, 0) past a disc at the origin; all episodes at once.

    s' = s + step * a + sigma_s * noise, with |a| <= 1. An episode ends in the goal, in the obstacle or at the
    horizon.

    Args:
        step: Distance of a full action.
        goal_radius: How near (1, 0) is there.
        obstacle_radius: Of the disc.
        start_std: Deviation of the start in each coordinate.
    """

    step: float = 0.05
    goal_radius: float = 0.1
    obstacle_radius: float = 0.3
    start_std: float = 0.02

    def expert(self, states: Tensor, side: Tensor | float = 1.0) -> Tensor:
        """Head for (0.1, 0.5) while x < 0 and then for the goal: d / max(|d|, 0.2).

        The aim lies behind the line x = 0: heading for a point on it, the expert would slow down and never cross it
        without noise.

        Args:
            states: (..., 2).
            side: 1 to pass above, -1 below; broadcasts with (...).

        Returns:
            (..., 2) actions of length at most 1.
        """
        before = states[..., 0] < 0
        side = torch.as_tensor(side, dtype=states.dtype, device=states.device).expand(before.shape)
        target = torch.stack([torch.where(before, 0.1, 1.0).to(states), 0.5 * side * before], dim=-1)
        way = target - states
        action: Tensor = way / torch.linalg.vector_norm(way, dim=-1, keepdim=True).clamp_min(0.2)
        return action

    def collect(
        self,
        num_episodes: int,
        *,
        system_noise: float = 0.0,
        policy_noise: float = 0.0,
        bimodal: bool = False,
        horizon: int = 70,
        generator: torch.Generator | None = None,
    ) -> Episodes:
        """Demonstrations of the expert.

        Args:
            num_episodes: How many; whether they reach the goal or not.
            system_noise: sigma_s, added to the next state; the recorded action stays clean.
            policy_noise: sigma_p, added to the action before it is clipped, executed and recorded.
            bimodal: Each episode passes above or below by a coin.
            horizon: Most steps.
            generator: Draws everything.

        Returns:
            The episodes with `rewards` (1 in the goal) and `terminations` (goal or obstacle).

        Raises:
            ValueError: If a number is out of range.

        Examples:
            >>> import torch
            >>> from ildataquality import PMObstacle
            >>> episodes = PMObstacle().collect(3, generator=torch.Generator().manual_seed(0))
            >>> len(episodes), episodes.extras["rewards"].sum().item()
            (3, 3.0)
        """
        if num_episodes < 1 or horizon < 1 or system_noise < 0 or policy_noise < 0:
            raise ValueError(
                "num_episodes and horizon must be at least 1 and the noises at least 0, got "
                f"{num_episodes}, {horizon}, {system_noise}, {policy_noise}"
            )
        side = (
            2.0 * (torch.rand(num_episodes, generator=generator) < 0.5) - 1 if bimodal else torch.tensor(1.0)
        )

        def act(states: Tensor) -> Tensor:
            noise = torch.randn(states.shape, generator=generator)
            return self.expert(states, side) + policy_noise * noise

        states, actions, success, lengths = self._run(
            act, (num_episodes,), system_noise, horizon, generator, "cpu"
        )
        ended = success | self._in_obstacle(states[lengths, torch.arange(num_episodes)])
        rows = []
        for index, length in enumerate(lengths.tolist()):
            rewards, terminations = torch.zeros(length), torch.zeros(length, dtype=torch.bool)
            rewards[-1], terminations[-1] = success[index], ended[index]
            rows.append(
                {
                    "observations": states[: length + 1, index],
                    "actions": actions[:length, index],
                    "rewards": rewards,
                    "terminations": terminations,
                }
            )
        return Episodes.from_arrays(rows)

    def success(
        self,
        policy: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        *,
        system_noise: float = 0.02,
        horizon: int = 90,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Roll policies out and say which reach the goal.

        Args:
            policy: (*shape, 2) states -> (*shape, 2) actions, clipped to length 1.
            shape: Such as (models, rollouts), for a stack of policies.
            system_noise: sigma_s at test.
            horizon: Most steps.
            generator: Draws starts and noise, on the CPU.
            device: Where the states are.

        Returns:
            (*shape,) bool.
        """
        return self._run(policy, shape, system_noise, horizon, generator, device)[2]

    def _run(
        self,
        act: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        system_noise: float,
        horizon: int,
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(T+1, *shape, 2) states, (T, *shape, 2) actions, (*shape,) success and length. What has ended stays put."""

        def noise() -> Tensor:
            return torch.randn(*shape, 2, generator=generator).to(device)

        state = torch.tensor([-1.0, 0.0], device=device) + self.start_std * noise()
        goal = torch.tensor([1.0, 0.0], device=device)
        done = torch.zeros(shape, dtype=torch.bool, device=device)
        success, length = done.clone(), done.long()
        states, actions = [state], []
        for _ in range(horizon):
            action = act(state)
            action = action / action.norm(dim=-1, keepdim=True).clamp_min(1)
            moved = state + self.step * action + system_noise * noise()
            state = torch.where(done[..., None], state, moved)
            length += ~done
            hit = self._in_obstacle(state)
            success |= ~done & ~hit & ((state - goal).norm(dim=-1) < self.goal_radius)
            done = done | hit | success
            states.append(state)
            actions.append(action)
        return torch.stack(states), torch.stack(actions), success, length

    def _in_obstacle(self, states: Tensor) -> Tensor:
        inside: Tensor = torch.linalg.vector_norm(states, dim=-1) < self.obstacle_radius
        return inside
