"""What a filter does to the predictions of one dynamics model: errors per step, along rollouts, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morec.filtering import TransitionFilter, calibrate_threshold, candidates_from_gaussian, select
from morec.normalizer import TransitionNormalizer
from morec.reference import pendulum
from morec.reference.ensemble import GaussianEnsemble, fit_ensemble
from morec.reward import DynamicsReward
from morec.training import DynamicsRewardTrainer

__all__ = ["Proposals", "Trace", "World", "build_world", "cut_short", "follow", "probe_states", "propose"]

NUM_CANDIDATES = 10
# As many as the official code uses with MOPO.
NUM_SNAPSHOTS = 40


@dataclass(frozen=True)
class World:
    """A log of the timid controller and everything learned from it.

    Attributes:
        data: Logged transitions, see `pendulum.collect_logged`; the rewards as logged.
        model: Ensemble fitted to the log.
        rewards: Dynamics rewards of the same training, by name.
        min_reward: Rejection threshold read off held-out transitions.
        generator_rmse: Held-out error of the generator the discriminators had to tell from the data.
        generator: Randomness of everything that follows.
    """

    data: dict[str, Tensor]
    model: GaussianEnsemble
    rewards: dict[str, DynamicsReward]
    min_reward: float
    generator_rmse: float
    generator: torch.Generator


def build_world(
    seed: int,
    *,
    device: str = "cpu",
    model_steps: int = 1500,
    reward_steps: int = 6000,
    hidden_sizes: tuple[int, int] = (64, 64),
    batch_size: int = 128,
    progress: Callable[[float, str], None] = lambda fraction, message: None,
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
    data = pendulum.collect_logged(generator=generator)
    order = torch.randperm(len(data["obs"]), generator=generator, device=device)
    num_held = len(order) // 10
    held, data = (
        {name: column[rows] for name, column in data.items()}
        for rows in order.split([num_held, len(order) - num_held])
    )
    obs, act, next_obs = data["obs"], data["act"], data["next_obs"]
    model = GaussianEnsemble(obs.shape[1], act.shape[1], hidden_sizes=hidden_sizes, generator=generator)
    fit_ensemble(
        model,
        obs,
        act,
        data["reward"],
        next_obs,
        num_steps=model_steps,
        batch_size=batch_size,
        generator=generator,
        progress=lambda fraction: progress(0.2 * fraction, "dynamics model"),
    )
    trainer = DynamicsRewardTrainer(
        obs.shape[1],
        act.shape[1],
        normalizer=TransitionNormalizer.fit(obs, act, next_obs),
        hidden_sizes=hidden_sizes,
        snapshot_every=max(1, min(50, reward_steps // 10)),
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
    unseen = held["obs"], held["act"], held["next_obs"]
    return World(
        data=data,
        model=model,
        rewards=rewards,
        min_reward=calibrate_threshold(rewards["history"], *unseen),
        generator_rmse=float(trainer.generator_rmse(*unseen)),
        generator=generator,
    )


def probe_states(world: World, count: int) -> dict[str, Tensor]:
    """States to predict from: in the box that the log spans, and anywhere (speeds up to 6 rad/s)."""
    angle = (world.data["state"][:, 0] - math.pi).abs().max().item()
    speed = world.data["state"][:, 1].abs().max().item()
    inside = pendulum.uniform_states(count, max_speed=speed, max_angle=angle, generator=world.generator)
    return {
        "in": inside + torch.tensor([math.pi, 0.0], device=inside.device),
        "out": pendulum.uniform_states(count, max_speed=6.0, generator=world.generator),
    }


@dataclass(frozen=True)
class Proposals:
    """What the ensemble proposed for B states, how wrong it was and how it was judged.

    Attributes:
        error: Euclidean error of each candidate's next observation, shape (K, B), in random order.
        mean_error: Error of the elites' mean, shape (B,).
        scores: Dynamics rewards of the candidates, (K, B), by the reward's name.
    """

    error: Tensor
    mean_error: Tensor
    scores: dict[str, Tensor]

    def chosen_error(self, reward: str, num_candidates: int = NUM_CANDIDATES) -> Tensor:
        """Error (B,) of the greedy choice among the first candidates."""
        index = self.scores[reward][:num_candidates].argmax(0, keepdim=True)
        return self.error.gather(0, index).squeeze(0)

    def within_state_correlation(self, reward: str) -> float:
        """Mean over states of the correlation of score and minus the error over a state's candidates."""
        pair = torch.stack([self.scores[reward], -self.error])
        score, closeness = pair - pair.mean(dim=1, keepdim=True)
        norms = (score.norm(dim=0) * closeness.norm(dim=0)).clamp(min=1e-12)
        return ((score * closeness).sum(0) / norms).mean().item()

    def across_state_correlation(self, reward: str) -> float:
        """Correlation over states of the best score and minus the log error of its candidate."""
        best = self.scores[reward][:NUM_CANDIDATES].amax(0)
        return torch.corrcoef(torch.stack([best, -self.chosen_error(reward).log()]))[0, 1].item()


@torch.no_grad()
def propose(world: World, states: Tensor) -> Proposals:
    """Let the ensemble propose 40 next states after a random action, and judge them.

    Args:
        world: The world.
        states: True states, shape (B, 2).

    Returns:
        The proposals.
    """
    act = _random_actions(states, world.generator)
    obs, truth = pendulum.observe(states), pendulum.observe(pendulum.step(states, act)[0])
    mean, std = world.model(obs, act)
    candidates = candidates_from_gaussian(mean, std, world.model.elites, 8, world.generator)[..., :-1]
    # Shuffled state by state, so that the first K are K random ones.
    order = torch.rand(candidates.shape[:2], generator=world.generator, device=obs.device).argsort(0)
    candidates = candidates.gather(0, order.unsqueeze(-1).expand_as(candidates))
    return Proposals(
        error=(candidates - truth).norm(dim=-1),
        mean_error=(mean[world.model.elites].mean(0)[:, :-1] - truth).norm(dim=-1),
        scores={name: reward(obs, act, candidates) for name, reward in world.rewards.items()},
    )


@dataclass(frozen=True)
class Trace:
    """Rollouts of one way of choosing.

    Attributes:
        obs: Predicted observations after each step, shape (T, B, S).
        error: Their Euclidean errors, shape (T, B).
        alive: The rollout has not ended and the step is stored, shape (T, B) bool.
    """

    obs: Tensor
    error: Tensor
    alive: Tensor

    def worst_decile(self) -> float:
        """Mean of the largest tenth of the errors of stored steps."""
        errors = self.error[self.alive].sort(descending=True).values
        return errors[: max(1, len(errors) // 10)].mean().item()


@torch.no_grad()
def follow(
    world: World,
    states: Tensor,
    horizon: int,
    *,
    only: Collection[str] | None = None,
    same_actions: bool = False,
) -> tuple[dict[str, Trace], Tensor]:
    """Roll the model from true states under one sequence of random actions, once per way of choosing.

    Args:
        world: The world.
        states: True states to start from, shape (B, 2).
        horizon: Number of steps T.
        only: Names of the ways of choosing to follow; None for all.
        same_actions: Act alike in all rollouts.

    Returns:
        The traces by name, and the true observations (T, B, S).
    """
    actions, truth = [], []
    following = states
    for _ in range(horizon):
        act = _random_actions(states, world.generator)
        actions.append(act[:1].expand_as(act) if same_actions else act)
        following, _ = pendulum.step(following, actions[-1])
        truth.append(pendulum.observe(following))
    true_obs = torch.stack(truth)
    traces = {
        name: _trace(world, states, actions, true_obs, way)
        for name, way in _ways_of_choosing(world).items()
        if only is None or name in only
    }
    return traces, true_obs


# A way of choosing: (obs, act, candidates, true next obs) to the next obs and whether the rollout ends before it.
_Way = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _ways_of_choosing(world: World) -> dict[str, _Way]:
    def never(obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), dtype=torch.bool, device=obs.device)

    def random_elite(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(candidates), (len(obs),), generator=world.generator, device=obs.device)
        return candidates[index, torch.arange(len(obs), device=obs.device)], never(obs)

    def ensemble_mean(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        mean = world.model(obs, act)[0][world.model.elites].mean(0)[:, :-1]
        return mean, never(obs)

    def oracle(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        chosen, _, _ = select(candidates, -(candidates - truth).norm(dim=-1))
        return chosen, never(obs)

    def filtered(
        reward: str, mode: Literal["greedy", "softmax"] = "greedy", minimum: float = -math.inf
    ) -> _Way:
        choose = TransitionFilter(world.rewards[reward], mode=mode, min_reward=minimum)

        def way(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
            result = choose(obs, act, candidates, generator=world.generator)
            return result.next_obs, result.reject

        return way

    return {
        "random elite": random_elite,
        "ensemble mean": ensemble_mean,
        "filter": filtered("history"),
        "filter, softmax": filtered("history", "softmax"),
        "filter + termination": filtered("history", minimum=world.min_reward),
        "filter, official calibration": filtered("official calibration"),
        "filter, last discriminator": filtered("last discriminator"),
        "best of K (oracle)": oracle,
    }


def _trace(world: World, states: Tensor, actions: list[Tensor], truth: Tensor, way: _Way) -> Trace:
    obs, alive = pendulum.observe(states), torch.ones(len(states), dtype=torch.bool, device=states.device)
    visited, stored = [], []
    for act, true_obs in zip(actions, truth, strict=True):
        candidates = world.model.candidates(obs, act, generator=world.generator)[..., :-1]
        obs, ended = way(obs, act, candidates, true_obs)
        alive = alive & ~ended
        visited.append(obs)
        stored.append(alive)
    path = torch.stack(visited)
    return Trace(path, (path - truth).norm(dim=-1), torch.stack(stored))


def cut_short(trace: Trace, like: Trace) -> Trace:
    """The same rollouts, all of one length, the shortest that stores at least as many steps as `like` does."""
    stored = like.alive.double().mean().item()
    length = max(1, math.ceil(stored * len(trace.error) - 1e-9))
    alive = torch.zeros_like(trace.alive)
    alive[:length] = True
    return Trace(trace.obs, trace.error, alive)


def _random_actions(states: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(len(states), 1, generator=generator, device=states.device) - 1
