"""Fitting an inverse dynamics model on labelled steps, once or again and again on its own labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssorl._checks import checked_count, checked_share
from ssorl.episodes import Episode, checked_episodes
from ssorl.inverse_dynamics import InverseDynamics, evaluating
from ssorl.labelling import LabelledEpisode, checked_actions, label_episodes, proxies_of
from ssorl.windows import StateTable

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class FitReport:
    """What `fit_idm` did.

    Args:
        steps: Updates made.
        best_step: For each member the update whose weights it now has.
        validation_loss: For each member the loss of these weights on held-out trajectories; None without them.
        curve: (update, training loss, validation loss or None), means over members, at each evaluation.
        train_ids: Ids of the trajectories trained on.
        validation_ids: Ids of those held out.
        train_steps: Labelled steps trained on.
        stopped_early: Whether `patience` ran out.
    """

    steps: int
    best_step: tuple[int, ...]
    validation_loss: tuple[float, ...] | None
    curve: tuple[tuple[int, float, float | None], ...]
    train_ids: tuple[int | str | None, ...]
    validation_ids: tuple[int | str | None, ...]
    train_steps: int
    stopped_early: bool


def fit_idm(
    model: InverseDynamics,
    optimizer: torch.optim.Optimizer,
    episodes: Iterable[Episode],
    *,
    steps: int,
    batch_size: int = 1024,
    val_fraction: float = 0.1,
    eval_every: int = 100,
    patience: int | None = None,
    bootstrap: bool = False,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> FitReport:
    """Fit the model on the labelled steps of the episodes, standardised by the states of all.

    Minimises the mean of `model.loss` over labelled steps, each member on batches of its own (section 3 of the
    paper). A share of the labelled *trajectories* is held out; each member ends with the weights that were best on
    it.

    States and actions are copied once into one table, windows gathered a batch at a time: 10^6 steps need about the
    memory of their arrays again.

    Args:
        model: The model. It keeps its device, dtype and mode.
        optimizer: Any optimizer over the model's parameters. The paper's is Adam at 1e-4.
        episodes: All episodes, labelled and unlabelled, in any order and of any lengths.
        steps: Updates at most.
        batch_size: Labelled steps a member and update, drawn with replacement.
        val_fraction: Share of labelled trajectories held out, at least one; 0 holds out none and keeps the last
            weights. Episodes with proxy labels are never held out.
        eval_every: Updates between evaluations. The official code's is 10.
        patience: Evaluations without a better member after which to stop; None never does.
        bootstrap: Whether each member draws its trajectories anew, with replacement.
        progress: Called as `progress(fraction, message)` at each evaluation.
        generator: On the CPU; for held-out trajectories, batches and dropout. None takes torch's global state.

    Returns:
        The report.

    Raises:
        ValueError: If no step is labelled, actions lie outside the model's range, there are too few trajectories to
            hold one out, sizes disagree, the optimizer has none of the model's parameters, or the loss is not finite.
        TypeError: If `model` is wrapped, or the kind of action is another.

    Examples:
        >>> import numpy as np, torch
        >>> rng = np.random.default_rng(0)
        >>> def walk(length, labelled):
        ...     a = rng.uniform(-1, 1, (length, 1))
        ...     s = np.concatenate([np.zeros((1, 1)), np.cumsum(a, axis=0)])
        ...     return Episode(s, np.zeros(length), terminals=False, actions=a if labelled else None)
        >>> episodes = [walk(20 + i, labelled=i < 4) for i in range(10)]
        >>> model = InverseDynamics(obs_dim=1, act_dim=1, k=0, hidden=(32,))
        >>> report = fit_idm(model, torch.optim.Adam(model.parameters(), 1e-2), episodes, steps=50, batch_size=64)
        >>> report.steps, len(report.validation_ids)
        (50, 1)
    """
    steps, batch_size = checked_count("steps", steps), checked_count("batch_size", batch_size)
    eval_every = checked_count("eval_every", eval_every)
    patience = None if patience is None else checked_count("patience", patience)
    table = StateTable(checked_episodes(episodes, labels=True))
    checked_actions(model, table.episodes)
    _same_parameters(model, optimizer)
    train, validation = _split(
        table, checked_share("val_fraction", val_fraction, zero=True, one=False), generator
    )
    rows = _labelled_rows(table, train, model)
    if len(rows) == 0:
        raise ValueError("episodes must have a labelled step with a known successor to train on, got none")
    held = _labelled_rows(table, validation, model)
    if len(validation) and len(held) == 0:
        raise ValueError("val_fraction must hold out a step with a known successor; 0 holds out none")
    with torch.no_grad():
        model.set_standardiser(*table.moments())
    data = _Data(model, table)
    best = _Best(model)
    curve: list[tuple[int, float, float | None]] = []
    draw = _draws(table, rows, model.members, batch_size, bootstrap, generator)
    done = 0
    with _training(model, generator):
        for done in range(1, steps + 1):
            loss = model(*data.batch(next(draw))).mean(1)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            if done % eval_every == 0 or done == steps:
                losses = data.mean_loss(held) if len(held) else None
                told = best.see(done, loss.detach(), losses)
                curve.append((done, *told))
                if progress is not None:
                    progress(
                        done / steps, f"inverse dynamics: loss {told[0] if told[1] is None else told[1]:.3g}"
                    )
                if patience is not None and best.without_progress >= patience:
                    break
    best.restore()
    ids = [episode.id for episode in table.episodes]
    return FitReport(
        steps=done,
        best_step=tuple(best.step) if len(held) else (done,) * model.members,
        validation_loss=tuple(best.loss.tolist()) if len(held) else None,
        curve=tuple(curve),
        train_ids=tuple(ids[index] for index in train),
        validation_ids=tuple(ids[index] for index in validation),
        train_steps=len(rows),
        stopped_early=done < steps,
    )


@dataclass(frozen=True)
class SelfTrainReport:
    """What `self_train` did.

    Args:
        model: The model of the last round.
        episodes: All episodes with labels, in the given order.
        fits: The report of each round's fit.
        moved: For each round the ids of the episodes that it labelled for good.
    """

    model: InverseDynamics
    episodes: list[Episode]
    fits: tuple[FitReport, ...]
    moved: tuple[tuple[int | str | None, ...], ...]


def self_train(
    model_fn: Callable[[], InverseDynamics],
    optimizer_fn: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    episodes: Iterable[Episode],
    *,
    rounds: int,
    steps: int,
    fraction: float | None = None,
    variance: str = "pre",
    batch: int = 8192,
    **fit: Any,
) -> SelfTrainReport:
    """Label, keep the labels that are least uncertain as if they were true, fit anew, and so on (the paper's study).

    Each round fits a new model on what is labelled so far, labels all else, and moves a fraction of the episodes,
    those of the lowest mean uncertainty, over. The last round moves all that are left. The paper found no consistent
    gain.

    Args:
        model_fn: Makes a model; several members make uncertainty mean something.
        optimizer_fn: Makes its optimizer from its parameters.
        episodes: As in `fit_idm`.
        rounds: Fits.
        steps: Updates a fit.
        fraction: Share of the unlabelled episodes that a round moves; None is 1 / rounds.
        variance: As in `InverseDynamics.predict`.
        batch: As in `label_episodes`.
        **fit: Further options of `fit_idm`.

    Returns:
        The report.

    Raises:
        ValueError: As in `fit_idm`, or if `rounds` or `fraction` makes no sense.
    """
    rounds = checked_count("rounds", rounds)
    share = checked_share("fraction", 1 / rounds if fraction is None else fraction)
    current = checked_episodes(episodes, labels=True)
    waiting = [index for index, episode in enumerate(current) if not episode.labelled]
    quota = max(1, round(share * len(waiting)))
    fits: list[FitReport] = []
    moved: list[tuple[int | str | None, ...]] = []
    model = model_fn()
    for round_ in range(rounds):
        model = model if round_ == 0 else model_fn()
        fits.append(fit_idm(model, optimizer_fn(model.parameters()), current, steps=steps, **fit))
        found = (
            label_episodes(model, [current[index] for index in waiting], batch=batch, variance=variance)
            if waiting
            else []
        )
        order = np.argsort([_mean_uncertainty(episode) for episode in found], kind="stable").tolist()
        chosen = order if round_ == rounds - 1 else order[:quota]
        moved.append(tuple(found[place].id for place in chosen))
        for place in chosen:
            current[waiting[place]] = found[place]
        waiting = [index for place, index in enumerate(waiting) if place not in set(chosen)]
        if not waiting:
            break
    return SelfTrainReport(model, current, tuple(fits), tuple(moved))


def label_loss(model: InverseDynamics, episodes: Iterable[Episode], *, batch: int = 8192) -> float:
    """Return the mean loss on all labelled steps, averaged over members: the negative log-likelihood of known actions.

    Proxies are no known actions: they do not count.

    Args:
        model: A fitted model.
        episodes: Episodes whose actions are known, for instance those hidden from the fit.
        batch: Steps at a time.

    Returns:
        Nats a step, or the squared error of a deterministic model.

    Raises:
        ValueError: If no step is labelled, or as in `fit_idm`.
    """
    table = StateTable(checked_episodes(episodes, labels=True))
    checked_actions(model, table.episodes)
    rows = _labelled_rows(table, range(len(table.episodes)), model)
    rows = rows[~torch.from_numpy(proxies_of(table.episodes))[rows]]
    if len(rows) == 0:
        raise ValueError("episodes must have a truly labelled step with a known successor, got none")
    return float(_Data(model, table).mean_loss(rows, batch).mean())


class _Data:
    """Batches of windows and actions on the model's device."""

    def __init__(self, model: InverseDynamics, table: StateTable) -> None:
        self.model, self.table = model, table
        sample = next(episode.actions for episode in table.episodes if episode.actions is not None)
        shape = (table.num_steps, *sample.shape[1:])
        actions = np.zeros(shape, dtype=np.int64 if model.discrete else np.float32)
        ends = np.cumsum([len(episode) for episode in table.episodes])
        for end, episode in zip(ends, table.episodes, strict=True):
            if episode.actions is not None:
                actions[end - len(episode) : end][episode.known] = episode.actions[episode.known]
        self.actions = torch.from_numpy(actions)
        self.device = model.center.device

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return windows and actions of some steps."""
        found = self.table.windows(rows, self.model.k, pad=self.model.pad, parity=self.model.parity)
        return found.to(self.device), self.actions[rows].to(self.device)

    @torch.no_grad()
    def mean_loss(self, rows: Tensor, batch: int = 8192) -> Tensor:
        """Return each member's mean loss (members,), without dropout."""
        with evaluating(self.model):
            parts = [self.model(*self.batch(part)).sum(1) for part in rows.split(batch)]
        return torch.stack(parts).sum(0) / len(rows)


class _Best:
    """Each member's best weights so far; a loss that is not finite is never the best."""

    def __init__(self, model: InverseDynamics) -> None:
        self.model = model
        self.loss = torch.full((model.members,), torch.inf)
        self.step = [0] * model.members
        self.kept: list[Tensor] | None = None
        self.without_progress = 0

    def see(self, step: int, train: Tensor, validation: Tensor | None) -> tuple[float, float | None]:
        """Take note of an evaluation; return the means to be reported."""
        if not train.isfinite().all():
            raise ValueError(
                f"the loss must stay finite, got {train.tolist()} at update {step}: lower the learning rate"
            )
        if validation is None:
            return float(train.mean()), None
        losses = validation.detach().float().cpu()
        better = losses < self.loss
        self.without_progress = 0 if better.any() else self.without_progress + 1
        if self.kept is None:
            self.kept = self.model.member_state()
        elif better.any():
            self._keep(better)
        self.loss = torch.where(better, losses, self.loss)
        self.step = [step if new else old for new, old in zip(better.tolist(), self.step, strict=True)]
        return float(train.mean()), float(losses.mean())

    def _keep(self, better: Tensor) -> None:
        assert self.kept is not None
        current = self.model.member_state()
        for kept, new, owner in zip(self.kept, current, self.model.member_owners(), strict=True):
            if owner is None:
                kept[better] = new[better]
            elif better[owner]:
                kept.copy_(new)

    def restore(self) -> None:
        """Give every member its best weights."""
        if self.kept is not None:
            self.model.load_member_state(self.kept)


def _same_parameters(model: InverseDynamics, optimizer: torch.optim.Optimizer) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held and parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "optimizer must hold parameters of the model that require gradients, got one over others or frozen ones"
        )


def _split(
    table: StateTable, fraction: float, generator: torch.Generator | None
) -> tuple[list[int], list[int]]:
    """Split labelled trajectories, never their steps, into those trained on and those held out."""
    labelled = [index for index, episode in enumerate(table.episodes) if episode.known.any()]
    if fraction == 0:
        return labelled, []
    true = [index for index in labelled if not _has_proxies(table.episodes[index])]
    if len(true) < 2:
        raise ValueError(
            f"val_fraction must be 0 with fewer than 2 labelled episodes, got {fraction:g} with {len(true)}"
        )
    num = min(max(1, int(len(true) * fraction)), len(true) - 1)
    order = torch.randperm(len(true), generator=generator)[:num]
    held = sorted(true[place] for place in order.tolist())
    return [index for index in labelled if index not in set(held)], held


def _has_proxies(episode: Episode) -> bool:
    return isinstance(episode, LabelledEpisode) and bool(episode.proxy_mask.any())


def _labelled_rows(table: StateTable, chosen: Sequence[int], model: InverseDynamics) -> Tensor:
    """Return the steps of some episodes that have an action and, where the window needs it, a known successor."""
    inside = torch.zeros(len(table.episodes), dtype=torch.bool)
    inside[torch.tensor(list(chosen), dtype=torch.long)] = True
    usable = table.known() & inside[table.episode]
    return torch.nonzero(usable & table.followed() if model.next_state else usable)[:, 0]


def _draws(
    table: StateTable,
    rows: Tensor,
    members: int,
    batch_size: int,
    bootstrap: bool,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Yield steps (members, batch_size), uniformly over each member's trajectories."""
    owner = table.episode[rows]
    _, counts = owner.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    pools = [rows] * members
    if bootstrap:
        pools = []
        for _ in range(members):
            drawn = torch.randint(len(counts), (len(counts),), generator=generator)
            spans = [rows[first[place] : first[place] + counts[place]] for place in drawn.tolist()]
            pools.append(torch.cat(spans))
    while True:
        yield torch.stack(
            [pool[torch.randint(len(pool), (batch_size,), generator=generator)] for pool in pools]
        )


@contextmanager
def _training(model: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Train mode inside, each submodule's own mode afterwards; with a generator dropout follows it too."""
    modes = [(part, part.training) for part in model.modules()]
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    try:
        with (
            torch.random.fork_rng(devices, enabled=generator is not None),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            model.train()
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _mean_uncertainty(episode: LabelledEpisode) -> float:
    finite = episode.uncertainty[np.isfinite(episode.uncertainty) & episode.proxy_mask]
    return float(finite.mean()) if len(finite) else float("inf")
