"""Proxy actions for steps that have none, and the labelled whole in the forms that offline learners take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch

from ssorl._checks import Array, as_array, checked_choice, checked_count, checked_flags
from ssorl.episodes import Episode, checked_episodes
from ssorl.inverse_dynamics import InverseDynamics
from ssorl.windows import StateTable


@dataclass(frozen=True, eq=False, repr=False)
class LabelledEpisode(Episode):
    """An episode whose actions are all there, true ones and proxies; everything else is as in `Episode`.

    Args:
        proxy_mask: Which actions are proxies, (T,) bool; None says none.
        uncertainty: Variance of each proxy averaged over its dimensions, (T,), 0 where the action is true; None says 0.
    """

    proxy_mask: Array = None  # type: ignore[assignment]
    uncertainty: Array = None  # type: ignore[assignment]

    def __post_init__(self, nan_as_missing: bool) -> None:
        super().__post_init__(nan_as_missing)
        length = len(self)
        if not self.labelled:
            raise ValueError("actions must be there at every step of a LabelledEpisode")
        mask, doubt = np.zeros(length, dtype=bool), np.zeros(length, dtype=np.float32)
        if self.proxy_mask is not None:
            mask = checked_flags("proxy_mask", self.proxy_mask, length)
        if self.uncertainty is not None:
            doubt = as_array("uncertainty", self.uncertainty)
        if doubt.shape != (length,) or not (doubt >= 0).all():
            raise ValueError(
                f"uncertainty must be ({length},) and neither negative nor NaN, got {doubt.shape}"
            )
        object.__setattr__(self, "proxy_mask", mask)
        object.__setattr__(self, "uncertainty", doubt)


def label_episodes(
    model: InverseDynamics,
    episodes: Iterable[Episode],
    *,
    batch: int = 8192,
    sample: bool = False,
    keep_true: bool = True,
    variance: str = "pre",
    generator: torch.Generator | None = None,
) -> list[LabelledEpisode]:
    """Fill in the missing actions (Algorithm 1 of the paper), with how uncertain each is.

    Rewards and observations stay as they are. The last step of an episode without a final observation has no known
    successor: its label comes from a window that ends in its own state, and its uncertainty is infinite.

    Args:
        model: A fitted model; dropout is off whatever its mode.
        episodes: All episodes, of any lengths.
        batch: Steps at a time; it does not change the labels.
        sample: Whether to draw proxies from the mixture instead of taking its mean or most probable action.
        keep_true: Whether known actions stay, bit for bit. False replaces them too, which is how a model is examined.
            Proxies of an earlier labelling are no known actions: they are always replaced.
        variance: As in `InverseDynamics.predict`.
        generator: For `sample`, on the model's device.

    Returns:
        One labelled episode for each, in order, under its id.

    Raises:
        ValueError: If sizes disagree with the model, or a label is not finite because the model is not.
        TypeError: If `model` is wrapped, or the kind of action is another.

    Examples:
        >>> import numpy as np
        >>> model = InverseDynamics(obs_dim=2, act_dim=1, k=1, hidden=(8,), low=0, high=1)
        >>> (labelled,) = label_episodes(model, [Episode(np.zeros((4, 2)), np.zeros(3), terminals=False, id="log-3")])
        >>> labelled.id, labelled.actions.shape, labelled.proxy_mask.tolist()
        ('log-3', (3, 1), [True, True, True])
    """
    found = checked_episodes(episodes)
    checked_actions(model, found)
    checked_choice("variance", variance, ("pre", "delta"))
    batch = checked_count("batch", batch)
    table = StateTable(found)
    missing = ~table.known() | torch.from_numpy(proxies_of(found))
    missing = missing if keep_true else torch.ones_like(missing)
    rows = torch.nonzero(missing)[:, 0]
    followed = table.followed()
    doubt = np.zeros(table.num_steps, dtype=np.float32)
    labels = np.zeros((len(rows), *(() if model.discrete else (model.act_dim,))), _label_dtype(model, found))
    device, done = model.center.device, 0
    for part in rows.split(batch):
        windows = table.windows(part, model.k, pad=model.pad, parity=model.parity).to(device)
        action, spread = model.predict(windows, variance=variance)
        if sample:
            action = model.sample(windows, generator=generator)
        spread = (spread if model.discrete else spread.mean(-1)).float().cpu()
        if not (spread.isfinite().all() and action.isfinite().all()):
            raise ValueError(
                "model must give finite labels, got NaN or inf: its weights are not finite, or states are far off"
            )
        if model.next_state:
            spread[~followed[part]] = torch.inf
        labels[done : done + len(part)] = action.cpu().numpy()
        doubt[part.numpy()] = spread.numpy()
        done += len(part)
    return _spread_over(found, missing.numpy(), labels, doubt)


def concat_transitions(labelled: Iterable[Episode]) -> dict[str, Array]:
    """Concatenate labelled episodes into flat arrays, under the names that CORL and OfflineRL-Kit use.

    A last step without a known successor is left out, unless it is a terminal: there `next_observations` repeats the
    observation, which `terminals` masks in every target. OfflineRL-Kit's `buffer.load_dataset(data)` takes it as it is.

    Args:
        labelled: What `label_episodes` returned; wholly labelled `Episode`s may be among them.

    Returns:
        `observations` (M, S), `actions`, `rewards` (M,), `next_observations`, `terminals` (M,) and `timeouts` (M,)
        bool, one of them set at the last row of each episode and nowhere else; `proxy_mask` (M,); `uncertainty` (M,);
        and the way back: `episode_id` (M,), `episode` (M,) the position among `labelled`, `step` (M,).

    Raises:
        ValueError: If an episode has steps without an action.
    """
    episodes = checked_episodes(labelled)
    parts: dict[str, list[Array]] = {name: [] for name in _FLAT}
    for position, episode in enumerate(episodes):
        actions = _all_actions(episode)
        after = episode.next_observations
        keep = len(episode) if after is not None or episode.terminals[-1] else len(episode) - 1
        if after is None:
            after = np.concatenate([episode.observations[1:], episode.observations[-1:]])
        proxies, doubt = _doubt(episode)
        timeouts = np.arange(len(episode)) == keep - 1
        row = (
            episode.observations,
            actions,
            episode.rewards,
            after,
            episode.terminals,
            timeouts & ~episode.terminals,
            proxies,
            doubt,
            np.full(len(episode), position),
            np.arange(len(episode)),
        )
        for name, array in zip(_FLAT, row, strict=True):
            parts[name].append(array[:keep])
    flat = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    flat["episode_id"] = _id_array([episode.id for episode in episodes])[flat["episode"]]
    return flat


def to_d3rlpy(labelled: Iterable[Episode]) -> dict[str, Array]:
    """Return the arguments of d3rlpy's `MDPDataset`, all steps of all episodes: `MDPDataset(**to_d3rlpy(labelled))`.

    d3rlpy itself leaves out the last step of an episode that was cut off. The order of episodes is kept, so that
    positions in `dataset.episodes` are positions among `labelled`.

    Args:
        labelled: As in `concat_transitions`.

    Returns:
        `observations`, `actions`, `rewards`, `terminals`, `timeouts`, the last two as float32 and never both 1.
    """
    episodes = checked_episodes(labelled)
    ends = np.concatenate([episode.terminals for episode in episodes])
    last = np.zeros(len(ends), dtype=bool)
    last[np.cumsum([len(episode) for episode in episodes]) - 1] = True
    return {
        "observations": np.concatenate([episode.observations for episode in episodes]),
        "actions": np.concatenate([_all_actions(episode) for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminals": ends.astype(np.float32),
        "timeouts": (last & ~ends).astype(np.float32),
    }


def to_minari(labelled: Iterable[Episode]) -> list[Any]:
    """Return Minari's episode buffers, for `minari.create_dataset_from_buffers(name, buffer=...)`.

    Proxy masks and uncertainties are among the `infos`, with the source's id.

    Args:
        labelled: As in `concat_transitions`; every last step needs a known successor.

    Returns:
        One `minari.data_collector.EpisodeBuffer` an episode.

    Raises:
        ImportError: If minari is missing: `pip install 'ssorl[minari]'`.
        ValueError: If an episode has no final observation.
    """
    try:
        from minari.data_collector import EpisodeBuffer  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("to_minari needs minari: pip install 'ssorl[minari]'") from error
    buffers = []
    for position, episode in enumerate(checked_episodes(labelled)):
        actions = _all_actions(episode)
        if episode.next_observations is None:
            raise ValueError(
                f"labelled must have final observations for Minari, got none in episode {episode.id!r}"
            )
        proxies, doubt = _doubt(episode)
        infos = {  # Minari keeps T + 1 infos, as it keeps T + 1 observations
            "proxy": np.append(proxies, False),
            "uncertainty": np.append(doubt, np.float32(0)),
            "source_id": np.array([str(episode.id)] * (len(episode) + 1), dtype="S"),
        }
        buffers.append(
            EpisodeBuffer(
                id=position,
                observations=np.concatenate([episode.observations, episode.next_observations[-1:]]),
                actions=actions,
                rewards=list(episode.rewards),
                terminations=list(episode.terminals),
                truncations=list(_truncations(episode)),
                infos=infos,
            )
        )
    return buffers


def save_labels(path: str | PathLike[str], labelled: Iterable[Episode]) -> None:
    """Save actions, proxy mask and uncertainty of every step, with the source's ids, as one safetensors file.

    Args:
        path: The file.
        labelled: As in `concat_transitions`, each under an id of its own.

    Raises:
        ValueError: If an episode has steps without an action, or an id is None or there twice.
    """
    from safetensors.numpy import save_file

    episodes = checked_episodes(labelled)
    ids = [episode.id for episode in episodes]
    if None in ids or len(set(ids)) < len(ids):
        raise ValueError("labelled must have an id for each episode to be found by, got None or one twice")
    doubts = [_doubt(episode) for episode in episodes]
    tensors = {
        "actions": np.concatenate([_all_actions(episode) for episode in episodes]),
        "proxy_mask": np.concatenate([proxies for proxies, _ in doubts]),
        "uncertainty": np.concatenate([doubt for _, doubt in doubts]),
        "length": np.array([len(episode) for episode in episodes]),
    }
    rows = {
        name: np.ascontiguousarray(array) for name, array in tensors.items()
    }  # it writes memory as it lies
    save_file(rows, path, metadata={"ids": json.dumps(ids)})


def load_labels(path: str | PathLike[str], episodes: Iterable[Episode]) -> list[LabelledEpisode]:
    """Put saved labels back on the episodes of the same ids, in whatever order these are.

    Args:
        path: What `save_labels` wrote.
        episodes: Episodes, each under an id of its own that the file has.

    Returns:
        One labelled episode for each, in order.

    Raises:
        ValueError: If the file is another, an id is missing or there twice, or lengths disagree.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            wanted = ("actions", "proxy_mask", "uncertainty", "length")
            if "ids" not in metadata or not names.issuperset(wanted):
                raise ValueError(
                    f"path must hold {', '.join(wanted)} and ids, got {', '.join(sorted(names))}"
                )
            actions, proxies, doubt, lengths = (file.get_tensor(name) for name in wanted)
    except SafetensorError as error:
        raise ValueError(f"path must be a safetensors file of save_labels, got {path}: {error}") from error
    ids = json.loads(metadata["ids"])
    starts = dict(zip(ids, np.cumsum(lengths) - lengths, strict=True))
    if len(starts) != len(ids):
        raise ValueError("path must hold each id once, got one twice")
    sizes = dict(zip(ids, lengths.tolist(), strict=True))
    found = []
    for episode in checked_episodes(episodes):
        if episode.id not in starts:
            raise ValueError(f"episodes must have ids of the file, got {episode.id!r}")
        if len(episode) != sizes[episode.id]:
            raise ValueError(
                f"episode {episode.id!r} must have {sizes[episode.id]} steps, got {len(episode)}"
            )
        rows = slice(starts[episode.id], starts[episode.id] + len(episode))
        found.append(_labelled(episode, actions[rows], proxies[rows], doubt[rows]))
    return found


def checked_actions(model: InverseDynamics, episodes: Sequence[Episode]) -> None:
    """Refuse a wrapped model and episodes that it is not made for."""
    if not isinstance(model, InverseDynamics):
        raise TypeError(f"model must be the InverseDynamics itself, not wrapped, got {type(model).__name__}")
    if episodes[0].observations.shape[1] != model.obs_dim:
        raise ValueError(
            f"episodes must have observations of size {model.obs_dim}, as the model, "
            f"got {episodes[0].observations.shape[1]}"
        )
    low, high = (end.double().cpu().numpy() for end in (model.low, model.high))
    slack = 1e-6 * np.maximum(high - low, np.maximum(np.abs(low), np.abs(high)))
    for position, episode in enumerate(episodes):
        if episode.actions is None:
            continue
        if episode.discrete != model.discrete:
            kinds = [("discrete" if kind else "continuous") for kind in (model.discrete, episode.discrete)]
            raise TypeError(
                f"episodes must have {kinds[0]} actions, as the model, got {kinds[1]} ones ({episode.actions.dtype})"
            )
        actions = episode.actions[episode.known]
        if model.discrete:
            inside = (actions >= 0) & (actions < model.act_dim)
            told = f"0, ..., {model.act_dim - 1}"
        elif actions.shape[1] != model.act_dim:
            raise ValueError(
                f"episodes must have actions of size {model.act_dim}, as the model, got {actions.shape[1]}"
            )
        else:
            inside = (actions >= low - slack) & (actions <= high + slack)
            told = f"[{low.tolist()}, {high.tolist()}], the model's low and high"
        if not inside.all():
            worst = actions[~inside][0]
            raise ValueError(
                f"episodes must have actions in {told}, got {worst} in episode {episode.id!r} at {position}"
            )


def proxies_of(episodes: Sequence[Episode]) -> Array:
    """Return which steps of all episodes have a proxy for their action, (M,)."""
    return np.concatenate([_doubt(episode)[0] for episode in episodes])


_FLAT = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminals",
    "timeouts",
    "proxy_mask",
    "uncertainty",
    "episode",
    "step",
)


def _label_dtype(model: InverseDynamics, episodes: Sequence[Episode]) -> Any:
    """Proxies have the dtype of the true actions, so that the whole concatenates without a cast."""
    given = [episode.actions.dtype for episode in episodes if episode.actions is not None]
    if not model.discrete:
        return np.result_type(*given) if given else np.float32
    return np.result_type(*given, np.min_scalar_type(model.act_dim - 1)) if given else np.int64


def _spread_over(
    episodes: Sequence[Episode], missing: Array, labels: Array, doubt: Array
) -> list[LabelledEpisode]:
    found, start, used = [], 0, 0
    for episode in episodes:
        stop = start + len(episode)
        mask = missing[start:stop]
        num = int(mask.sum())
        if num == len(episode):
            actions = labels[used : used + num]
        elif num == 0 and episode.actions is not None:
            actions = episode.actions
        else:
            assert episode.actions is not None
            actions = episode.actions.copy()
            actions[mask] = labels[used : used + num]
        found.append(_labelled(episode, actions, mask, doubt[start:stop]))
        start, used = stop, used + num
    return found


def _labelled(episode: Episode, actions: Array, mask: Array, doubt: Array) -> LabelledEpisode:
    return LabelledEpisode(
        episode.observations,
        episode.rewards,
        episode.terminals,
        actions=actions,
        next_observations=episode.next_observations,
        truncations=episode.truncations,
        id=episode.id,
        proxy_mask=mask,
        uncertainty=doubt,
    )


def _doubt(episode: Episode) -> tuple[Array, Array]:
    if isinstance(episode, LabelledEpisode):
        return episode.proxy_mask, episode.uncertainty
    return np.zeros(len(episode), dtype=bool), np.zeros(len(episode), dtype=np.float32)


def _all_actions(episode: Episode) -> Array:
    if episode.actions is None or not episode.labelled:
        raise ValueError(
            f"labelled must have an action at every step, got {episode!r}: label_episodes gives them"
        )
    return episode.actions


def _truncations(episode: Episode) -> Array:
    """Truncations without those that are terminals too."""
    cut = np.zeros(len(episode), dtype=bool) if episode.truncations is None else episode.truncations
    return cut & ~episode.terminals


def _id_array(ids: Sequence[int | str | None]) -> Array:
    """Ids as integers or strings where all are, else as objects."""
    same = all(isinstance(value, (int, np.integer)) for value in ids) or all(
        isinstance(value, str) for value in ids
    )
    return np.array(ids) if same else np.array(ids, dtype=object)
