"""Where the spread of a data set comes from: the operators, the system, or the states themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ildataquality.coverage import tube_width
from ildataquality.episodes import Episodes
from ildataquality.features import Encoder, features_of, joint
from ildataquality.local import prediction_errors
from ildataquality.neighbours import neighbours
from ildataquality.normalizer import Normalizer


@dataclass(frozen=True)
class Decomposition:
    """Where the spread of a data set comes from.

    Args:
        action_noise: RMS deviation of the recorded actions from a local linear policy, per action dimension, in the
            actions' own units. Noise of the policy (and whatever the state does not explain).
        system_noise: RMS deviation of s' - s from a local linear model in (s, a), per state dimension, in the
            states' own units.
        state_spread: RMS distance of the states to the mean of their phase, per state dimension, own units.
        system_covariance: (S, S) mean covariance of those deviations of s' - s, own units.
    """

    action_noise: float
    system_noise: float
    state_spread: float
    system_covariance: Tensor


@torch.no_grad()
def decompose(
    episodes: Episodes,
    *,
    encode: Encoder | None = None,
    circular: Sequence[int] = (),
    k: int = 32,
    exclude_window: int | None = 10,
    cross_episode_only: bool | None = None,
    backend: str = "torch",
) -> Decomposition:
    """Split the spread of the data into noise of the actions, noise of the system, and spread of the states.

    Noise in the system under clean recorded actions (as DART adds it) widens the tube and leaves the actions
    consistent; noise in the recorded actions widens it too, and has to be averaged away by the learner. Each sample
    is held against a linear fit at its neighbours, none of which is near it in time: noise that lasts longer than a
    step would otherwise look like a policy. One episode is enough where it comes back to where it was.

    Args:
        episodes: The demonstrations.
        encode: As in `quality_report`.
        circular: As in `quality_report`.
        k: Neighbours of each fit; must exceed the number of state and action dimensions by two.
        exclude_window: As in `neighbours`; should be longer than the noise lasts.
        cross_episode_only: As in `neighbours`; by default where there are several episodes.
        backend: As in `neighbours`.

    Returns:
        The split.

    Raises:
        ValueError: If `k` is too small for the dimensions, or as `neighbours`.

    Examples:
        >>> import torch
        >>> from ildataquality import PMObstacle, decompose
        >>> generator = torch.Generator().manual_seed(0)
        >>> episodes = PMObstacle().collect(10, system_noise=0.02, generator=generator)
        >>> round(decompose(episodes).system_noise, 2)
        0.02
    """
    features = features_of(episodes.observations, encode)
    kind = torch.promote_types(features.dtype, episodes.actions.dtype)
    features, actions = features.to(kind), episodes.actions.to(kind)
    moved = features_of(episodes.next_observations, encode).to(kind) - features
    moved[:, list(circular)] = torch.remainder(moved[:, list(circular)] + math.pi, 2 * math.pi) - math.pi
    normalizer = Normalizer.fit(  # draws for the radius, not needed here
        features, actions, circular=circular, generator=torch.Generator()
    )
    states = normalizer(features)
    inputs = joint(states, actions, normalizer)
    if k <= inputs.shape[1] + 1:
        raise ValueError(f"k must exceed {inputs.shape[1] + 1} for {inputs.shape[1]} dimensions, got {k}")
    options: dict[str, Any] = {
        "episode_id": episodes.episode_id,
        "exclude_window": exclude_window,
        "cross_episode_only": len(episodes) > 1 if cross_episode_only is None else cross_episode_only,
        "backend": backend,
        "k": k,
    }
    acted = _noise(*prediction_errors(actions, neighbours(states, **options), states))
    shaken = _noise(*prediction_errors(moved, neighbours(inputs, **options), inputs))
    spread = tube_width(states * normalizer.std, episodes.episode_id).square().nanmean() / features.shape[1]
    return Decomposition(
        action_noise=float(acted.diagonal().mean().sqrt()),
        system_noise=float(shaken.diagonal().mean().sqrt()),
        state_spread=float(spread.sqrt()),
        system_covariance=shaken,
    )


def _noise(error: Tensor, leverage: Tensor) -> Tensor:
    """(V, V) covariance of the noise that leaves such errors, over the samples that have one."""
    known = ~error.isnan().any(1)
    error = error[known] / (1 + leverage[known]).sqrt()[:, None]
    return error.T @ error / known.sum()
