"""Episodes as data sets give them, made into one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from invdyn._checks import check_finite, is_integer
from invdyn.views import Observation, map_views, num_rows, view_tensors

_OBSERVATIONS = ("observations", "obs", "observation")
_ACTIONS = ("actions", "action")


def from_episodes(
    episodes: Iterable[Any],
    *,
    dtype: torch.dtype | None = torch.float32,
    channels_last: bool = False,
    drop_last_action: bool = False,
) -> dict[str, Any]:
    """Concatenate episodes into the buffer that `iterate_batches` and `transition_index` read.

    Takes Minari's `EpisodeData` as `dataset.iterate_episodes()` gives it, mappings with the same names, and
    robomimic's demonstrations ("obs", "next_obs", "actions", as NumPy arrays). Observations may be nested
    mappings or tuples; their views are then named "camera/wrist" and "0".

    Args:
        episodes: Each with "observations" (or "obs"), T + 1 of them, or T of them and "next_obs";
            "actions", (T, ...) real numbers or (T,) integers; and perhaps a "task", one integer.
        dtype: Of real numbers; None leaves them as they are. Bytes and integers stay.
        channels_last: Whether views of bytes are (T + 1, H, W, C), to be made (T + 1, C, H, W).
        drop_last_action: For logs with T observations for T actions: leave out the last action, whose
            outcome nobody saw.

    Returns:
        "obs", "action", "lengths" (E,) and, if the episodes have it, "task" (E,).

    Raises:
        ValueError: If there is no episode, lengths do not fit, numbers are not finite, or shapes or views
            differ between episodes; the message names the episode.
        TypeError: If actions are mappings, which have no order of their own.

    Examples:
        >>> episode = {"observations": torch.zeros(3, 4), "actions": torch.zeros(2, 1)}
        >>> buffer = from_episodes([episode, episode])
        >>> buffer["obs"].shape, buffer["action"].shape, buffer["lengths"].tolist()
        (torch.Size([6, 4]), torch.Size([4, 1]), [2, 2])
    """
    parts = [
        _one(f"episode {number}", episode, dtype, channels_last, drop_last_action)
        for number, episode in enumerate(episodes)
    ]
    if not parts:
        raise ValueError("episodes must have at least one episode, got none")
    observations, actions, tasks = zip(*parts, strict=True)
    _check_alike(observations, actions)
    buffer = {
        "obs": map_views(lambda *views: torch.cat(views), *observations),
        "action": torch.cat(actions),
        "lengths": torch.tensor([len(action) for action in actions]),
    }
    if any(task is not None for task in tasks):
        if any(task is None for task in tasks):
            raise ValueError(f"task must be given for all episodes or for none, misses {tasks.index(None)}")
        buffer["task"] = torch.tensor(tasks)
    return buffer


def _one(
    name: str, episode: Any, dtype: torch.dtype | None, channels_last: bool, drop_last_action: bool
) -> tuple[Observation, Tensor, int | None]:
    action = _action(name, _read(name, episode, _ACTIONS), dtype)
    obs = _views(f"observations of {name}", _read(name, episode, _OBSERVATIONS))
    following = _get(episode, "next_obs")
    if following is not None and num_rows(name, obs) == len(action):
        later = _views(f"next_obs of {name}", following)
        obs = map_views(lambda view, after: torch.cat([view, after[-1:]]), obs, later)
    if drop_last_action:
        action = action[:-1]
    frames = num_rows(f"observations of {name}", obs)
    if frames != len(action) + 1:
        raise ValueError(
            f"observations of {name} must be T + 1 for its {len(action)} actions, got {frames}; where the last "
            "observation was not recorded pass next_obs, or drop_last_action=True"
        )
    if len(action) == 0:
        raise ValueError(f"actions of {name} must be at least one, got none")
    obs = map_views(lambda view: _prepared(view, dtype, channels_last), obs)
    for view in view_tensors(name, obs):
        check_finite(f"observations of {name}", view)
    task = _get(episode, "task")
    return obs, action, None if task is None else int(task)


def _get(episode: Any, name: str) -> Any:
    return episode.get(name) if isinstance(episode, Mapping) else getattr(episode, name, None)


def _read(name: str, episode: Any, names: tuple[str, ...]) -> Any:
    for candidate in names:
        found = _get(episode, candidate)
        if found is not None:
            return found
    there = sorted(episode) if isinstance(episode, Mapping) else type(episode).__name__
    raise ValueError(f"{name} must have {names[0]!r}, got {there}")


def _action(name: str, values: Any, dtype: torch.dtype | None) -> Tensor:
    if isinstance(values, Mapping | tuple):
        raise TypeError(f"actions of {name} must be one array, got a {type(values).__name__}: concatenate it")
    action = torch.as_tensor(values)
    if action.ndim == 0:
        raise ValueError(f"actions of {name} must be (T, ...), got a scalar")
    check_finite(f"actions of {name}", action)
    if is_integer(action):
        return action.long().squeeze(1) if action.ndim == 2 and action.shape[1] == 1 else action.long()
    if dtype is not None:
        action = action.to(dtype)
    return action.reshape(len(action), action[:1].numel()) if len(action) else action.reshape(0, 1)


def _views(name: str, values: Any) -> Observation:
    """A tensor, or a flat mapping of tensors where the observation is nested."""
    if not isinstance(values, Mapping | tuple):
        return torch.as_tensor(values)
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    flat: dict[str, Tensor] = {}
    for key, value in items:
        found = _views(name, value)
        if isinstance(found, Mapping):
            flat |= {f"{key}/{inner}": view for inner, view in found.items()}
        else:
            flat[str(key)] = found
    return flat


def _prepared(view: Tensor, dtype: torch.dtype | None, channels_last: bool) -> Tensor:
    if channels_last and view.dtype == torch.uint8 and view.ndim == 4:
        view = view.permute(0, 3, 1, 2).contiguous()
    return view.to(dtype) if dtype is not None and view.is_floating_point() else view


def _check_alike(observations: tuple[Observation, ...], actions: tuple[Tensor, ...]) -> None:
    def form(obs: Observation) -> list[Any]:
        named = obs.items() if isinstance(obs, Mapping) else [("", obs)]
        return [(name, tuple(view.shape[1:]), view.dtype) for name, view in named]

    for number, (obs, action) in enumerate(zip(observations, actions, strict=True)):
        if form(obs) != form(observations[0]):
            raise ValueError(
                f"observations of episode {number} must be as those of episode 0, {form(observations[0])}, "
                f"got {form(obs)}"
            )
        if action.shape[1:] != actions[0].shape[1:] or action.dtype != actions[0].dtype:
            raise ValueError(
                f"actions of episode {number} must be as those of episode 0, {tuple(actions[0].shape[1:])} "
                f"{actions[0].dtype}, got {tuple(action.shape[1:])} {action.dtype}"
            )
