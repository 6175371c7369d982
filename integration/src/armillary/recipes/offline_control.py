"""Control from a log alone: `ildataquality` chooses what to imitate, `morec` says how far to trust the model.

pip install armillary ildataquality morec gymnasium
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from armillary.recipes._packages import joined

with joined("ildataquality", "morec"):
    from ildataquality import Episodes, select
    from morec import DynamicsRewardTrainer, TransitionFilter, calibrate_threshold, rollout

Policy = Callable[[Tensor], Tensor]
Propose = Callable[[Tensor, Tensor], Tensor]


def batches(
    data: Sequence[Tensor], num_steps: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[list[Tensor]]:
    """Yield `num_steps` batches drawn with replacement from equally long tensors."""
    for _ in range(num_steps):
        rows = torch.randint(len(data[0]), (batch_size,), generator=generator, device=data[0].device)
        yield [column[rows] for column in data]


def imitate(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    demonstrations: Episodes,
    *,
    keep: float = 0.5,
    num_steps: int = 1000,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Episodes:
    """Clone the better part of a log whose operators are not labelled.

    Args:
        policy: Maps (B, S) to (B, A); trained in place by mean squared error.
        optimizer: Of the policy.
        demonstrations: The whole log.
        keep: Share of the episodes to imitate; 1 imitates all of them.
        num_steps: Gradient steps.
        batch_size: Transitions a step.
        generator: Draws the batches.
        **options: Of `ildataquality.select`, such as `weights` or `encode`.

    Returns:
        The episodes imitated.

    Raises:
        ValueError: As `select`.
    """
    kept = demonstrations if keep == 1 else select(demonstrations, keep, **options)
    for observations, actions in batches([kept.observations, kept.actions], num_steps, batch_size, generator):
        loss = (policy(observations) - actions).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept


def learn_filter(
    trainer: DynamicsRewardTrainer,
    log: Episodes,
    held_out: Episodes,
    *,
    num_steps: int = 3000,
    batch_size: int = 256,
    quantile: float = 0.02,
    generator: torch.Generator | None = None,
) -> TransitionFilter:
    """Learn which transitions are real from a log, and from which score on to believe in one.

    All of the log is of use here, whoever acted: the world is the same, and careless operators show more of it.

    Args:
        trainer: Your networks and optimizers; trained in place.
        log: Episodes to learn from.
        held_out: Other episodes, to set the threshold by.
        num_steps: Steps of the adversarial game.
        batch_size: Transitions a step.
        quantile: Share of the real held-out transitions that may be refused.
        generator: Draws the batches.

    Returns:
        The filter. It drops a transition that it refuses, which ends the rollout.
    """
    for batch in batches(_columns(log), num_steps, batch_size, generator):
        trainer.step(batch)
    reward = trainer.export()
    threshold = calibrate_threshold(reward, *_columns(held_out), quantile)
    return TransitionFilter(reward, min_reward=threshold, on_reject="drop")


def _columns(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    return episodes.observations, episodes.actions, episodes.next_observations


def returns_to_go(rewards: Tensor, episode_id: Tensor, discount: float) -> Tensor:
    """Discounted sum of the rewards from each step to the end of its episode, (N,): what a value is fitted to."""
    values, episodes = rewards.tolist(), episode_id.tolist()
    for step in range(len(values) - 2, -1, -1):
        if episodes[step] == episodes[step + 1]:
            values[step] += discount * values[step + 1]
    return rewards.new_tensor(values)


class Planner:
    """A policy that looks ahead in a learned model before it acts.

    From each state it imagines `num_plans` rollouts of the policy with noise on its actions, and takes the first
    action of the best: the one with the highest discounted sum of predicted rewards and of the value where it ends. A
    rollout that the filter ends early gets `floor` for a value, so that leaving what is known never pays.

    Args:
        policy: (B, S) -> (B, A), what to vary.
        value: (B, S) -> (B,), the discounted return from there on, of this policy or of the operators.
        propose: Your dynamics model: (B, S), (B, A) -> candidates (K, B, S + 1), the reward last.
        keep_plausible: Chooses among the candidates and ends rollouts; None takes a random candidate and ends none.
        horizon: Steps to look ahead; 0 leaves the policy as it is.
        discount: Of the rewards.
        floor: Value of a state that cannot be believed, such as the smallest return in the log.
        num_plans: Rollouts from each state. One of them begins with the policy's own action.
        noise: Standard deviation of the noise on actions.
        low: Smallest action.
        high: Largest action.
        generator: Draws the noise.

    Raises:
        ValueError: If `horizon` is negative or there are fewer than two plans.
    """

    def __init__(
        self,
        policy: Policy,
        value: Policy,
        propose: Propose,
        keep_plausible: TransitionFilter | None,
        *,
        horizon: int,
        discount: float,
        floor: float,
        num_plans: int = 32,
        noise: float = 0.5,
        low: float = -1.0,
        high: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if horizon < 0:
            raise ValueError(f"horizon must be at least 0, got {horizon}")
        if num_plans < 2:
            raise ValueError(f"num_plans must be at least 2, got {num_plans}")
        self.policy, self.value, self.propose, self.keep_plausible = policy, value, propose, keep_plausible
        self.horizon, self.discount, self.floor = horizon, discount, floor
        self.num_plans, self.noise, self.low, self.high = num_plans, noise, low, high
        self.generator = generator

    @torch.no_grad()
    def __call__(self, observation: Tensor) -> Tensor:
        """Act: (B, S) -> (B, A)."""
        own = self.policy(observation).clamp(self.low, self.high)
        if self.horizon == 0:
            return own
        start = observation.repeat_interleave(self.num_plans, dim=0)
        first = self._vary(own.repeat_interleave(self.num_plans, dim=0))
        first[:: self.num_plans] = own
        pending = [first]

        def act(states: Tensor) -> Tensor:
            return pending.pop() if pending else self._vary(self.policy(states))

        steps = rollout(self.propose, act, start, self.horizon, self.keep_plausible, generator=self.generator)
        best = self._worth(steps, len(start)).view(-1, self.num_plans).argmax(1)
        return first.view(-1, self.num_plans, first.shape[1])[
            torch.arange(len(best), device=best.device), best
        ]

    def _worth(self, steps: dict[str, Tensor], num_rollouts: int) -> Tensor:
        """Discounted predicted reward of each rollout, and the value of its end or the floor."""
        length = torch.bincount(steps["start"], minlength=num_rollouts)
        worth = self.floor * self.discount**length
        worth = worth.index_add(0, steps["start"], self.discount ** steps["step"] * steps["reward"])
        lived = steps["step"] == self.horizon - 1
        gain = self.discount**self.horizon * (self.value(steps["next_obs"][lived]) - self.floor)
        return worth.index_add(0, steps["start"][lived], gain)

    def _vary(self, acts: Tensor) -> Tensor:
        noise = torch.randn(acts.shape, generator=self.generator, dtype=acts.dtype, device=acts.device)
        return (acts + self.noise * noise).clamp(self.low, self.high)


def returns(environments: Any, policy: Policy, seed: int) -> Tensor:
    """Play one episode in each of many gymnasium environments.

    Args:
        environments: A `gymnasium.vector.VectorEnv` with continuous actions.
        policy: (B, S) -> (B, A).
        seed: Of the environments.

    Returns:
        (B,) sum of rewards until each episode's first end.
    """
    observation, _ = environments.reset(seed=seed)
    total, running = torch.zeros(environments.num_envs), torch.ones(environments.num_envs, dtype=torch.bool)
    while running.any():
        action = policy(torch.as_tensor(observation, dtype=torch.float32))
        observation, reward, terminated, truncated, _ = environments.step(action.numpy(force=True))
        total += torch.as_tensor(reward).float() * running
        running &= ~torch.as_tensor(terminated | truncated)
    return total
