"""Observations: one tensor, or several views (cameras, states) in a mapping of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from invdyn._checks import check_tensor, checked_count

Observation: TypeAlias = Tensor | Mapping[str, Tensor]


def map_views(function: Callable[..., Tensor], *observations: Observation) -> Observation:
    """Apply `function` to a tensor, or to every view of a mapping.

    Args:
        function: Takes as many tensors as there are observations.
        observations: Tensors, or mappings with the same keys.

    Returns:
        A tensor, or a dictionary with the same keys.

    Raises:
        ValueError: If the views of the observations differ.

    Examples:
        >>> views = {"wrist": torch.zeros(2, 3), "front": torch.zeros(2, 4)}
        >>> {name: len(view) for name, view in map_views(lambda view: view[:1], views).items()}
        {'wrist': 1, 'front': 1}
    """
    first = observations[0]
    if not isinstance(first, Mapping):
        if any(isinstance(other, Mapping) for other in observations):
            raise ValueError("observations must all be tensors or all be mappings of views")
        return function(*observations)
    for other in observations[1:]:
        if not isinstance(other, Mapping) or other.keys() != first.keys():
            found = list(other) if isinstance(other, Mapping) else type(other).__name__
            raise ValueError(f"observations must have the same views, got {list(first)} and {found}")
    mappings = cast(tuple[Mapping[str, Tensor], ...], observations)
    return {name: function(*(mapping[name] for mapping in mappings)) for name in first}


def view_tensors(name: str, observation: Observation) -> list[Tensor]:
    """All tensors of an observation, checked to be tensors with one first dimension."""
    if isinstance(observation, Mapping):
        if not observation:
            raise ValueError(f"{name} must have at least one view, got none")
        tensors = [check_tensor(f"{name}[{key!r}]", view) for key, view in observation.items()]
    else:
        tensors = [check_tensor(name, observation)]
    if any(tensor.ndim < 1 for tensor in tensors):
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(f"{name} must have views of one length, got {[len(one) for one in tensors]}")
    return tensors


def num_rows(name: str, observation: Observation) -> int:
    """Length of the first dimension, the same for all views."""
    return len(view_tensors(name, observation)[0])


def to_unit(observation: Observation, dtype: torch.dtype | None = None) -> Observation:
    """Make pixels of bytes floats in [0, 1], on their device; leave everything else.

    Args:
        observation: Any shapes. Views of dtype uint8 are taken for pixels.
        dtype: Of the result; torch's default dtype if none is given.

    Returns:
        The observation with no uint8 left.

    Examples:
        >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    wanted = dtype or torch.get_default_dtype()

    def one(view: Tensor) -> Tensor:
        if view.dtype != torch.uint8:
            return view
        exact = torch.promote_types(wanted, torch.float32)
        return view.to(exact).div_(255).to(wanted)

    return map_views(one, observation)


def gather_frames(observation: Observation, index: Tensor, *, channel_dim: int = 0) -> Observation:
    """Rows of a flat buffer, with the frames of a history stacked along the channels.

    Args:
        observation: (M, ...) frames.
        index: (N, h) integers, the oldest frame first; or (N,), which stands for h = 1.
        channel_dim: Which dimension of *one* frame holds the channels: 0 for (C, H, W) and for vectors,
            -1 for (H, W, C).

    Returns:
        (N, ...) where the channel dimension is h times as long.

    Raises:
        ValueError: If a frame has no such dimension.

    Examples:
        >>> frames = torch.arange(4.0)[:, None]
        >>> gather_frames(frames, torch.tensor([[0, 0], [0, 1], [1, 2]]))
        tensor([[0., 0.],
                [0., 1.],
                [1., 2.]])
    """

    def one(view: Tensor) -> Tensor:
        if index.ndim == 1:
            return view.index_select(0, index)  # copies whole rows, where view[index] copies numbers
        if index.shape[1] == 1:
            return view.index_select(0, index[:, 0])
        if not -(view.ndim - 1) <= channel_dim < view.ndim - 1:
            raise ValueError(
                f"channel_dim must be a dimension of a frame of shape {tuple(view.shape[1:])}, got {channel_dim}"
            )
        dim = channel_dim % (view.ndim - 1) + 1
        return torch.cat([view.index_select(0, column) for column in index.unbind(1)], dim)

    return map_views(one, observation)


def stack_history(observation: Observation, history: int, *, channel_dim: int = 0) -> Observation:
    """Stack each frame of a batch of sequences with the frames before it, for `loss_sequence`.

    Args:
        observation: (B, T, ...) sequences.
        history: How many frames a stack has; before the beginning the first frame is repeated.
        channel_dim: As in `gather_frames`.

    Returns:
        (B, T, ...) where the channel dimension is `history` times as long, the oldest frame first.

    Raises:
        ValueError: If `history` is below 1, or a frame has no channel dimension.

    Examples:
        >>> stack_history(torch.arange(3.0).view(1, 3, 1), 2)[0]
        tensor([[0., 0.],
                [0., 1.],
                [1., 2.]])
    """
    count = checked_count("history", history)

    def one(view: Tensor) -> Tensor:
        batch, time = view.shape[:2]
        steps = torch.arange(time, device=view.device)
        columns = steps[:, None] - torch.arange(count - 1, -1, -1, device=view.device)
        rows = torch.arange(batch, device=view.device)[:, None, None] * time + columns.clamp(min=0)
        stacked = gather_frames(view.flatten(0, 1), rows.view(-1, count), channel_dim=channel_dim)
        assert isinstance(stacked, Tensor)
        return stacked.unflatten(0, (batch, time))

    return map_views(one, observation)


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the first parameter of real numbers; torch's default dtype where there is none."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.get_default_dtype()
