"""The two experiments: a void to fall into, and a pendulum with exact and with learned dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ravl.demo.arms import Arm, Experiment, Outcome, Progress, train_arms
from ravl.reference import GaussianEnsemble, Pendulum, Void
from ravl.rollouts import TransitionBatch

DISCOUNT = 0.99
PENALTIES = (1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Sizes:
    """How much of everything a preset takes.

    Attributes:
        seeds: Of the arms that the verdict compares.
        more_seeds: Of the others.
        updates: Of the void.
        pendulum_updates: Of the pendulum.
        pendulum_seeds: Of every arm there.
        critics: N of the method.
        long: k at which the void has no edge.
        model_updates: Of the learned dynamics.
        pendulum_steps: Each k there.
    """

    seeds: int
    more_seeds: int
    updates: int
    pendulum_updates: int
    pendulum_seeds: int
    critics: int = 10
    long: int = 30
    model_updates: int = 1000
    pendulum_steps: tuple[int, ...] = (1,)


def void_arms(sizes: Sizes) -> list[Arm]:
    """Return the arms of the void, all but the longer rollouts at k = 1."""
    many, few, critics = sizes.seeds, sizes.more_seeds, sizes.critics
    return [
        Arm("void: one critic", "baseline", few, num_critics=1),
        Arm("void: base, min of 2", "baseline", many),
        Arm("void: base, k = 5", "ablation", few, num_steps=5),
        Arm(f"void: base, k = {sizes.long} (no edge)", "reference", few, num_steps=sizes.long),
        Arm("void: base, true values at the edge", "reference", few, true_values=True),
        Arm("void: base, targets clipped to what is possible", "baseline", few, patch=possible_values),
        Arm("void: base, rollouts end at k", "baseline", few, ends=True),
        Arm(f"void: RAVL, N = {critics}, eta = 0", "method", many, num_critics=critics),
        Arm(f"void: RAVL, N = {critics}, eta = 1", "ablation", few, num_critics=critics, eta=1.0),
    ]


def possible_values(batch: TransitionBatch, value: Tensor) -> Tensor:
    """Keep values between 0 and `1 / (1 - gamma)`: rewards lie in [0, 1]."""
    return value.clamp(0, 1 / (1 - DISCOUNT))


def run_void(sizes: Sizes, seed: int, report: Progress) -> dict[str, Outcome]:
    """Train all arms of the void."""
    experiment = Experiment(
        Void.step,
        Void.horizon,
        Void.starts,
        Void.starts(100, torch.Generator().manual_seed(99_991 + seed)),
        Void.action_dim,
        sizes.updates,
        every=min(200, sizes.updates),
    )
    return train_arms(experiment, void_arms(sizes), seed, report)


def pendulum_arms(sizes: Sizes, model: GaussianEnsemble) -> list[Arm]:
    """Return the arms of the pendulum: base, MOPO and RAVL, with exact and with learned dynamics."""
    seeds, critics, learned = sizes.pendulum_seeds, sizes.critics, model.step()
    arms = []
    for steps in sizes.pendulum_steps:
        for dynamics, step in (("exact", None), ("learned", learned)):
            where = f"pendulum, {dynamics} model, k = {steps}"
            arms.append(Arm(f"{where}: base, min of 2", "baseline", seeds, num_steps=steps, step=step))
            arms.append(Arm(f"{where}: RAVL", "method", seeds, critics, steps, step=step))
        arms += [
            Arm(
                f"pendulum, learned model, k = {steps}: MOPO, lambda = {each}",
                "baseline",
                seeds,
                num_steps=steps,
                step=model.step(each),
            )
            for each in PENALTIES
        ]
        name = f"pendulum, exact model, k = {steps}: rollouts end at k"
        arms.append(Arm(name, "baseline", seeds, num_steps=steps, ends=True))
    return arms


def run_pendulum(sizes: Sizes, seed: int, report: Progress) -> tuple[dict[str, Outcome], float]:
    """Train all arms of the pendulum; also return what the policy that made the data gets."""
    generator = torch.Generator().manual_seed(77_773 + seed)
    data = pendulum_data(generator)
    model = GaussianEnsemble(Pendulum.observation_dim, Pendulum.action_dim, generator=generator)
    model.fit(*data[:4], num_updates=sizes.model_updates)
    evaluation = Pendulum.starts(20, generator)
    experiment = Experiment(
        Pendulum.step,
        Pendulum.horizon,
        lambda count, drawn: data.observation[torch.randint(len(data.reward), (count,), generator=drawn)],
        evaluation,
        Pendulum.action_dim,
        sizes.pendulum_updates,
        every=min(100, sizes.pendulum_updates),
        num_rollouts=200,
        kept=5,
        real=data,
        reward_scale=0.1,
        looks=3,
    )
    found = train_arms(experiment, pendulum_arms(sizes, model), seed, report)
    state, total = evaluation, torch.zeros(len(evaluation))
    for _ in range(Pendulum.horizon):
        state, reward = Pendulum.step(state, noisy_swing_up(state, generator))
        total = total + reward
    return found, float(total.mean())


def noisy_swing_up(observation: Tensor, generator: torch.Generator) -> Tensor:
    """Act as the data's policy does: half of a swing-up, half noise."""
    noise = torch.rand(len(observation), 1, generator=generator) * 2 - 1
    return (0.5 * Pendulum.swing_up(observation) + noise).clamp(-1, 1)


def pendulum_data(generator: torch.Generator, episodes: int = 15) -> TransitionBatch:
    """Return 3,000 transitions of that policy; nothing terminates."""
    state, rows = Pendulum.starts(episodes, generator), []
    for _ in range(Pendulum.horizon):
        action = noisy_swing_up(state, generator)
        following, reward = Pendulum.step(state, action)
        rows.append((state, action, reward, following))
        state = following
    s, a, r, following = (torch.cat(column) for column in zip(*rows, strict=True))
    return TransitionBatch(s, a, r, following, torch.zeros(len(r)))
