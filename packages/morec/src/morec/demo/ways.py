"""Ways of choosing among candidates, the method's and its rivals', after one step and along rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morec.demo.world import NUM_CANDIDATES, World
from morec.filtering import TransitionFilter, select

__all__ = ["REWARD_OF", "Proposals", "Trace", "end_early", "follow", "propose"]

# The dynamics reward by which a way of choosing chooses greedily.
REWARD_OF = {
    "filter": "history",
    "filter, official calibration": "official calibration",
    "filter, last discriminator": "last discriminator",
}


@dataclass(frozen=True)
class Proposals:
    """What the ensemble proposed for B states, how wrong it was and how it was judged.

    Attributes:
        error: Error of each candidate, shape (K, B), in random order.
        mean_error: Error of the elites' mean, shape (B,).
        from_mean: Distance of each candidate from the elites' mean, (K, B).
        disagreement: Of the elites, (B,).
        scores: Dynamics rewards of the candidates, (K, B), by the reward's name.
    """

    error: Tensor
    mean_error: Tensor
    from_mean: Tensor
    disagreement: Tensor
    scores: dict[str, Tensor]

    def of(self, name: str, num_candidates: int = NUM_CANDIDATES) -> Tensor:
        """Error (B,) of a way of choosing among the first candidates; the random elite's is its expectation."""
        error = self.error[:num_candidates]
        if name == "random elite":
            return error.mean(0)
        if name == "ensemble mean":
            return self.mean_error
        if name in REWARD_OF:
            preference = self.scores[REWARD_OF[name]]
        else:
            preference = -{"nearest to the mean": self.from_mean, "best of K (oracle)": self.error}[name]
        return error.gather(0, preference[:num_candidates].argmax(0, keepdim=True)).squeeze(0)

    def within_state_correlation(self, name: str) -> float:
        """Mean over states of the correlation of score and minus the error over a state's candidates."""
        pair = torch.stack([self.scores[REWARD_OF[name]], -self.error])
        score, closeness = pair - pair.mean(dim=1, keepdim=True)
        norms = (score.norm(dim=0) * closeness.norm(dim=0)).clamp(min=1e-12)
        return ((score * closeness).sum(0) / norms).mean().item()

    def across_state_correlation(self, name: str) -> float:
        """Correlation over states of minus the log error with the best score, or minus the log disagreement."""
        if name == "ensemble mean":
            trust = -self.disagreement.log()
        else:
            trust = self.scores[REWARD_OF[name]][:NUM_CANDIDATES].amax(0)
        return torch.corrcoef(torch.stack([trust, -self.of(name).log()]))[0, 1].item()


@torch.no_grad()
def propose(world: World, truth: dict[str, Tensor]) -> Proposals:
    """Let the ensemble propose 40 next states for each true transition, and judge them.

    Args:
        world: The world.
        truth: True transitions, see `arm.collect`.

    Returns:
        The proposals.
    """
    obs, act, next_obs = (truth[name].flatten(0, 1) for name in ("obs", "act", "next_obs"))
    candidates = world.candidates(obs, act, resample=8)
    # Shuffled state by state, so that the first K are K random ones.
    order = torch.rand(candidates.shape[:2], generator=world.generator, device=obs.device).argsort(0)
    candidates = candidates.gather(0, order.unsqueeze(-1).expand_as(candidates))
    mean = world.elites(obs, act).mean(0)
    return Proposals(
        error=world.distance(candidates, next_obs),
        mean_error=world.distance(mean, next_obs),
        from_mean=world.distance(candidates, mean),
        disagreement=world.disagreement(obs, act),
        scores={name: reward(obs, act, candidates) for name, reward in world.rewards.items()},
    )


@dataclass(frozen=True)
class Trace:
    """Rollouts of one way of choosing.

    Attributes:
        obs: Predicted observations after each step, shape (T, B, S).
        error: Their errors, shape (T, B).
        disagreement: Of the elites at each step, shape (T, B).
        alive: The rollout has not ended and the step is stored, shape (T, B) bool.
    """

    obs: Tensor
    error: Tensor
    disagreement: Tensor
    alive: Tensor

    def mean_error(self) -> float:
        """Of the stored steps."""
        return self.error[self.alive].mean().item() if self.alive.any() else 0.0

    def worst_tenth(self) -> float:
        """Mean of the largest tenth of the errors of stored steps."""
        errors = self.error[self.alive].sort(descending=True).values
        return errors[: max(1, len(errors) // 10)].mean().item() if len(errors) else 0.0


# A way of choosing: (obs, act, candidates, true next obs) to the next obs and whether the rollout ends before it.
_Way = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def follow(world: World, truth: dict[str, Tensor]) -> dict[str, Trace]:
    """Roll the model from where true episodes start, under their actions, once per way of choosing.

    Args:
        world: The world.
        truth: True episodes, see `arm.collect`.

    Returns:
        The traces by name.
    """
    return {name: _trace(world, truth, way) for name, way in _ways_of_choosing(world).items()}


def _ways_of_choosing(world: World) -> dict[str, _Way]:
    def never(obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), dtype=torch.bool, device=obs.device)

    def random_elite(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(candidates), (len(obs),), generator=world.generator, device=obs.device)
        return candidates[index, torch.arange(len(obs), device=obs.device)], never(obs)

    def ensemble_mean(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        return world.elites(obs, act).mean(0), never(obs)

    def nearest(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        chosen, _, _ = select(candidates, -world.distance(candidates, world.elites(obs, act).mean(0)))
        return chosen, never(obs)

    def oracle(obs: Tensor, act: Tensor, candidates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        chosen, _, _ = select(candidates, -world.distance(candidates, truth))
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
        "nearest to the mean": nearest,
        "filter": filtered("history"),
        "filter, softmax": filtered("history", "softmax"),
        "filter + termination": filtered("history", minimum=world.min_reward),
        "filter, official calibration": filtered("official calibration"),
        "filter, last discriminator": filtered("last discriminator"),
        "best of K (oracle)": oracle,
    }


def _trace(world: World, truth: dict[str, Tensor], way: _Way) -> Trace:
    obs = truth["obs"][0]
    alive = torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    visited, doubts, stored = [], [], []
    for act, true_obs in zip(truth["act"], truth["next_obs"], strict=True):
        doubts.append(world.disagreement(obs, act))
        obs, ended = way(obs, act, world.candidates(obs, act), true_obs)
        alive = alive & ~ended
        visited.append(obs)
        stored.append(alive)
    path = torch.stack(visited)
    error = world.distance(path, truth["next_obs"])
    return Trace(path, error, torch.stack(doubts), torch.stack(stored))


def end_early(trace: Trace, like: Trace, by: Literal["length", "disagreement"]) -> Trace:
    """The same rollouts, ended by a rule that stores at least as many steps as `like` does, and hardly more.

    Args:
        trace: Rollouts that never ended.
        like: Those to store as many steps as.
        by: All after the same number of steps, or each where the elites first disagree by more than a threshold.
    """
    if by == "length":
        length = torch.arange(len(trace.error), device=trace.error.device)
        doubt = length.unsqueeze(-1).expand_as(trace.error)
    else:
        doubt = trace.disagreement.cummax(0).values
    count = max(1, int(like.alive.sum()))
    threshold = doubt.flatten().sort().values[count - 1]
    return Trace(trace.obs, trace.error, trace.disagreement, doubt <= threshold)
