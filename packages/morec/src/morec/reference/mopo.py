"""MOPO and MOREC-MOPO: the loop around a dynamics model, a filter and a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morec.filtering import TransitionFilter, candidates_from_gaussian
from morec.reference.ensemble import GaussianEnsemble
from morec.reference.sac import GroupedSAC
from morec.rollouts import rollout

__all__ = ["Arm", "ModelBuffer", "mopo_sample_fn", "train_in_models"]


def mopo_sample_fn(
    model: GaussianEnsemble,
    *,
    penalty: float = 0.0,
    resample: int = 2,
    reward_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    r"""The dynamics model as `morec.rollout` wants it, with MOPO's penalty in the reward.

    $\tilde r = r - \lambda \max_m \lVert \sigma_m(s, a) \rVert_2$ (Yu et al. 2020, official code of MOREC).

    Args:
        model: The ensemble.
        penalty: $\lambda$; 0 for none.
        resample: Samples of each elite.
        reward_scale: Multiplies the penalised reward.
        generator: Randomness of the samples.

    Returns:
        A function from obs (B, S) and act (B, A) to candidates (K, B, S + 1).
    """

    @torch.no_grad()
    def sample(obs: Tensor, act: Tensor) -> Tensor:
        mean, std = model(obs, act)
        candidates = candidates_from_gaussian(mean, std, model.elites, resample, generator)
        reward = candidates[..., -1:]
        if penalty:
            reward = reward - penalty * std.norm(dim=-1).amax(0).unsqueeze(-1)
        return torch.cat([candidates[..., :-1], reward_scale * reward], dim=-1)

    return sample


class ModelBuffer:
    """Ring buffers of G groups, so that one call samples a batch for each.

    Args:
        num_groups: G.
        capacity: Transitions kept per group.
        obs_dim: Number of state dimensions.
        act_dim: Number of action dimensions.
        device: Where the transitions are kept.
    """

    def __init__(
        self, num_groups: int, capacity: int, obs_dim: int, act_dim: int, device: torch.device | None = None
    ) -> None:
        self.capacity = capacity
        self.size = torch.zeros(num_groups, dtype=torch.long, device=device)
        self.position = [0] * num_groups
        self.columns = {
            "obs": torch.zeros(num_groups, capacity, obs_dim, device=device),
            "act": torch.zeros(num_groups, capacity, act_dim, device=device),
            "next_obs": torch.zeros(num_groups, capacity, obs_dim, device=device),
            "reward": torch.zeros(num_groups, capacity, device=device),
            "terminal": torch.zeros(num_groups, capacity, device=device),
        }

    def add(self, group: int, transitions: dict[str, Tensor]) -> None:
        """Store transitions of one group, the oldest ones giving way."""
        count = min(len(transitions["obs"]), self.capacity)
        rows = (self.position[group] + torch.arange(count, device=self.size.device)) % self.capacity
        for name, column in self.columns.items():
            column[group, rows] = transitions[name][:count].to(column)
        self.position[group] = (self.position[group] + count) % self.capacity
        self.size[group] = (self.size[group] + count).clamp(max=self.capacity)

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw a batch for every group, each column (G, batch_size, ·); group g draws from its own generator."""
        uniform = torch.stack(
            [torch.rand(batch_size, generator=one, device=one.device) for one in generators]
        )
        rows = (uniform * self.size.unsqueeze(-1)).long()
        groups = torch.arange(len(rows), device=rows.device).unsqueeze(-1)
        return {name: column[groups, rows] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Arm:
    """One agent to train in one model.

    Attributes:
        data: The logged transitions: `obs`, `act`, `reward` (scaled like the model's), `next_obs`, `terminal`.
        sample_fn: The dynamics model, see `morec.rollout`.
        transition_filter: The filter, or None for a random elite.
        horizon: Length of model rollouts.
        termination_fn: The environment's own ending, or None.
    """

    data: dict[str, Tensor]
    sample_fn: Callable[[Tensor, Tensor], Tensor]
    transition_filter: TransitionFilter | None
    horizon: int
    termination_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


def train_in_models(
    agent: GroupedSAC,
    arms: Sequence[Arm],
    *,
    num_updates: int,
    batch_size: int = 256,
    real_ratio: float = 0.05,
    rollout_every: int = 1000,
    rollout_transitions: int = 2000,
    capacity: int = 100_000,
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train group g of the agent in arm g's model, all groups in step.

    Every arm may store the same number of model transitions per refresh, so a longer horizon starts fewer
    rollouts; the official setting is 2,000 rollouts of 100 steps every 1,000 updates.

    Args:
        agent: The agents, one group per arm; trained in place.
        arms: What each trains in.
        num_updates: Updates of every agent.
        batch_size: Batch of each agent.
        real_ratio: Share of the batch that is logged data.
        rollout_every: Updates between refreshes of the model data.
        rollout_transitions: Model steps asked for per arm and refresh (fewer if rollouts end early).
        capacity: Model transitions kept per arm.
        schedulers: Learning-rate schedules, stepped at every refresh.
        progress: Called with the share of updates done.
    """
    obs_dim, act_dim = arms[0].data["obs"].shape[1], arms[0].data["act"].shape[1]
    device = arms[0].data["obs"].device
    real = ModelBuffer(len(arms), max(len(arm.data["obs"]) for arm in arms), obs_dim, act_dim, device)
    imagined = ModelBuffer(len(arms), capacity, obs_dim, act_dim, device)
    for group, arm in enumerate(arms):
        real.add(group, arm.data)
        # Until a model transition survives the filter, an arm learns from what was logged.
        imagined.add(group, arm.data)
    num_real = max(1, round(real_ratio * batch_size))
    for update in range(num_updates):
        if update % rollout_every == 0:
            for group, arm in enumerate(arms):
                imagined.add(group, _imagine(agent, group, arm, rollout_transitions))
            for scheduler in schedulers if update else ():
                scheduler.step()
        logged = real.sample(num_real, agent.generators)
        dreamt = imagined.sample(batch_size - num_real, agent.generators)
        agent.update({name: torch.cat([logged[name], dreamt[name]], dim=1) for name in logged})
        if progress is not None and update % 50 == 0:
            progress(update / num_updates)


def _imagine(agent: GroupedSAC, group: int, arm: Arm, transitions: int) -> dict[str, Tensor]:
    generator = agent.generators[group]
    count, device = max(1, transitions // arm.horizon), generator.device
    starts = torch.randint(len(arm.data["obs"]), (count,), generator=generator, device=device)
    return rollout(
        arm.sample_fn,
        lambda obs: agent.act_as(group, obs),
        arm.data["obs"][starts],
        arm.horizon,
        arm.transition_filter,
        termination_fn=arm.termination_fn,
        generator=generator,
    )
