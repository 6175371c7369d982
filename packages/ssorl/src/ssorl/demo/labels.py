"""The ways to fill in missing actions that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssorl._checks import Array
from ssorl.episodes import Episode
from ssorl.inverse_dynamics import InverseDynamics
from ssorl.labelling import LabelledEpisode, label_episodes
from ssorl.study import LabelQuality, Split, hide_actions, label_quality
from ssorl.training import fit_idm, label_loss, self_train
from ssorl.windows import windows


@dataclass(frozen=True)
class Budget:
    """What every model of actions gets.

    Args:
        steps: Updates at most.
        batch_size: Steps an update.
        hidden: Widths.
        members: Models in an ensemble.
        learning_rate: Of Adam.
        dropout: Before the last layer.
        differences: Whether networks see differences of states.
    """

    steps: int
    batch_size: int
    hidden: tuple[int, ...]
    members: int
    learning_rate: float = 5e-3
    dropout: float = 0.0
    differences: bool = True


@dataclass(frozen=True)
class Labels:
    """One way's labels and how good they are.

    Args:
        episodes: All episodes with labels.
        mse: Error on all unlabelled episodes.
        mse_in: Error on unlabelled episodes of the labelled ones' returns; None if there are none.
        mse_out: Error on those of other returns; None if there are none.
        nll: Negative log-likelihood of the hidden actions; None if the way has none.
        rank_correlation: Of uncertainty and error.
    """

    episodes: Sequence[Episode]
    mse: float
    mse_in: float | None
    mse_out: float | None
    nll: float | None
    rank_correlation: float | None


def neural(
    truth: Sequence[Episode],
    split: Split,
    budget: Budget,
    generator: torch.Generator,
    *,
    k: int = 1,
    next_state: bool = True,
    deterministic: bool = False,
    rounds: int = 1,
    differences: bool | None = None,
) -> Labels:
    """Fit an inverse dynamics model, or in several rounds on its own labels, and label with it."""
    given = hide_actions(truth, split.labelled)

    def make() -> InverseDynamics:
        return InverseDynamics(
            truth[0].observations.shape[1],
            1,
            k,
            budget.hidden,
            dropout=budget.dropout,
            differences=budget.differences if differences is None else differences,
            members=budget.members,
            next_state=next_state,
            deterministic=deterministic,
            generator=generator,
        )

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, budget.learning_rate)  # type: ignore[arg-type]

    if rounds > 1:
        report = self_train(
            make,
            optimizer,
            given,
            rounds=rounds,
            steps=budget.steps,
            batch_size=budget.batch_size,
            generator=generator,
        )
        model, found = report.model, list(report.episodes)
    else:
        model = make()
        fit_idm(
            model,
            optimizer(model.parameters()),
            given,
            steps=budget.steps,
            batch_size=budget.batch_size,
            generator=generator,
        )
        found = list(label_episodes(model, given))
    hidden = [truth[index] for index in split.unlabelled]
    nll = label_loss(model, hidden) if hidden and not deterministic else None
    return _judged(found, truth, split, nll)


def ridge(truth: Sequence[Episode], split: Split, k: int = 1) -> Labels:
    """Label by ridge regression on the window, or on its products of two, as held-out trajectories choose."""
    given = hide_actions(truth, split.labelled)
    x, index = windows(given, k)
    flat = x.flatten(1).double().numpy()
    flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-6)
    labelled = np.isin(index[:, 0].numpy(), split.labelled)
    held = np.isin(index[:, 0].numpy(), split.labelled[:: max(2, len(split.labelled) // 3)]) & labelled
    actions = np.concatenate([episode.actions[:, 0] for episode in truth if episode.actions is not None])
    best: tuple[float, Array] | None = None
    for features in (_linear(flat), _products(flat)):
        for penalty in 10.0 ** np.arange(-8, 3, 2):
            error = np.square(
                _regress(features, actions, labelled & ~held, penalty)[held] - actions[held]
            ).mean()
            if best is None or error < best[0]:
                best = float(error), _regress(features, actions, labelled, penalty)
    assert best is not None
    return _filled(given, truth, split, best[1])


def nothing_known(truth: Sequence[Episode], split: Split) -> Labels:
    """Label every step with the mean of the known actions: the constant that any model must beat."""
    given = hide_actions(truth, split.labelled)
    known = np.concatenate([episode.actions for episode in given if episode.actions is not None])
    return _filled(given, truth, split, np.full(sum(map(len, truth)), known.mean()))


def _linear(x: Array) -> Array:
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _products(x: Array) -> Array:
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([_linear(x), x[:, first] * x[:, second]], axis=1)


def _regress(features: Array, actions: Array, rows: Array, penalty: float) -> Array:
    x = features[rows]
    weight = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ actions[rows] / len(x))
    return np.clip(features @ weight, -1, 1)


def _filled(given: Sequence[Episode], truth: Sequence[Episode], split: Split, labels: Array) -> Labels:
    found: list[Episode] = []
    start = 0
    for episode in given:
        part = labels[start : start + len(episode), None].astype(np.float32)
        start += len(episode)
        found.append(
            episode
            if episode.labelled
            else LabelledEpisode(
                episode.observations,
                episode.rewards,
                episode.terminals,
                actions=part,
                next_observations=episode.next_observations,
                id=episode.id,
                proxy_mask=np.ones(len(episode), dtype=bool),
            )
        )
    return _judged(found, truth, split, None)


def _judged(found: list[Episode], truth: Sequence[Episode], split: Split, nll: float | None) -> Labels:
    def over(chosen: Sequence[int]) -> LabelQuality | None:
        return label_quality([found[i] for i in chosen], [truth[i] for i in chosen]) if chosen else None

    inside, outside, every = over(split.unlabelled_in), over(split.unlabelled_out), over(split.unlabelled)
    assert every is not None
    assert every.mse is not None
    return Labels(
        found,
        every.mse,
        None if inside is None else inside.mse,
        None if outside is None else outside.mse,
        nll,
        every.rank_correlation,
    )
