"""One log of the timid controller, and everything that is learned from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from morec.demo import arm
from morec.filtering import calibrate_threshold, candidates_from_gaussian
from morec.normalizer import TransitionNormalizer
from morec.reference.ensemble import GaussianEnsemble, fit_ensemble
from morec.reward import DynamicsReward
from morec.training import DynamicsRewardTrainer

__all__ = ["NUM_CANDIDATES", "World", "build_world"]

# Five elites, sampled twice each, and 40 snapshots: as in the official code with MOPO.
NUM_CANDIDATES, NUM_SNAPSHOTS = 10, 40
_EPISODES, _LENGTH = 20, 50


@dataclass(frozen=True)
class World:
    """A log and what was learned from it.

    Attributes:
        model: Ensemble fitted to the log.
        rewards: Dynamics rewards of one training, by name.
        min_reward: Rejection threshold read off held-out episodes.
        generator_rmse: Held-out error of the generator that the discriminators had to tell from the data.
        unit: Standard deviation of the logged observations, (S,): errors are counted in it.
        generator: Randomness of everything that follows.
    """

    model: GaussianEnsemble
    rewards: dict[str, DynamicsReward]
    min_reward: float
    generator_rmse: float
    unit: Tensor
    generator: torch.Generator

    def elites(self, obs: Tensor, act: Tensor) -> Tensor:
        """Means of the elites' next observations, (5, B, S)."""
        return self.model(obs, act)[0][self.model.elites][..., :-1]

    def candidates(self, obs: Tensor, act: Tensor, resample: int = 2) -> Tensor:
        """Samples of every elite, (5 * resample, B, S)."""
        mean, std = self.model(obs, act)
        return candidates_from_gaussian(mean, std, self.model.elites, resample, self.generator)[..., :-1]

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Euclidean distance of observations (..., S) in units of the log, (...)."""
        return ((first - second) / self.unit).norm(dim=-1)

    def disagreement(self, obs: Tensor, act: Tensor) -> Tensor:
        """How far the elite that is farthest from the elites' mean is from it, (B,)."""
        means = self.elites(obs, act)
        return self.distance(means, means.mean(0)).amax(0)


def build_world(
    seed: int,
    *,
    device: str,
    model_steps: int,
    reward_steps: int,
    hidden_sizes: tuple[int, int] = (64, 64),
    batch_size: int = 128,
    progress: Callable[[float, str], None],
) -> World:
    """Log the controller, fit the ensemble, learn the dynamics reward.

    Args:
        seed: Seed of the world.
        device: Where it lives.
        model_steps: Adam steps of the ensemble.
        reward_steps: Adversarial steps of the dynamics reward.
        hidden_sizes: Hidden layers of ensemble members, discriminator and generator.
        batch_size: Batch of ensemble members and of the adversarial game.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The world.
    """
    generator = torch.Generator(device).manual_seed(seed)
    log = arm.collect(arm.timid, _EPISODES, _LENGTH, generator=generator)
    columns = [log[name] for name in ("obs", "act", "next_obs")]
    # A tenth of the episodes is held out, whole.
    held, kept = (
        [column[:, episodes].flatten(0, 1) for column in columns]
        for episodes in (slice(0, 2), slice(2, None))
    )
    obs, act, next_obs = kept
    unseen = held[0], held[1], held[2]
    model = GaussianEnsemble(arm.OBS_DIM, arm.ACT_DIM, hidden_sizes=hidden_sizes, generator=generator)
    fit_ensemble(
        model,
        obs,
        act,
        obs.new_zeros(len(obs)),
        next_obs,
        num_steps=model_steps,
        batch_size=batch_size,
        generator=generator,
        progress=lambda fraction: progress(0.2 * fraction, "dynamics model"),
    )
    trainer = DynamicsRewardTrainer(
        arm.OBS_DIM,
        arm.ACT_DIM,
        normalizer=TransitionNormalizer.fit(*kept),
        hidden_sizes=hidden_sizes,
        snapshot_every=max(1, min(50, reward_steps // 10)),
        max_snapshots=reward_steps,  # all of them
        optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
        generator=generator,
    )
    for step in range(reward_steps):
        rows = torch.randint(len(obs), (batch_size,), generator=generator, device=device)
        trainer.step((obs[rows], act[rows], next_obs[rows]))
        if step % 100 == 0:
            progress(0.2 + 0.8 * step / reward_steps, "dynamics reward")
    every = max(1, len(trainer.snapshots) // NUM_SNAPSHOTS)
    rewards = {
        "history": trainer.export(every=every),
        "official calibration": trainer.export(every=every, rescale=True),
        "last discriminator": trainer.export(keep_last=1),
    }
    return World(
        model=model,
        rewards=rewards,
        min_reward=calibrate_threshold(rewards["history"], *unseen),
        generator_rmse=float(trainer.generator_rmse(*unseen)),
        unit=obs.std(0),
        generator=generator,
    )
