"""Learned absolute position embeddings at another image size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from efficienttrain._checks import checked_choice, checked_count, checked_pair

MODES = ("nearest", "bilinear", "bicubic")


def resize_pos_embed(
    pos_embed: Tensor,
    old_hw: int | tuple[int, int],
    new_hw: int | tuple[int, int],
    prefix: int = 1,
    mode: str = "bilinear",
) -> Tensor:
    """Resize the grid part of a vision transformer's position embedding; class and register tokens stay.

    EfficientTrain resumes a ViT at the next stage's size this way, bilinearly. The optimizer's moments of that
    parameter take the same function. A timm model made with `dynamic_img_size=True` does it by itself, and a
    convolutional network needs nothing.

    Args:
        pos_embed: Shape (1, prefix + h * w, D).
        old_hw: The grid it is for, in patches: an integer or (height, width).
        new_hw: The grid wanted.
        prefix: Number of tokens in front of the grid.
        mode: `"nearest"`, `"bilinear"` or `"bicubic"`. Second moments must stay positive, which bicubic does not see
            to.

    Returns:
        Shape (1, prefix + new_h * new_w, D), in the same dtype.

    Raises:
        TypeError: If `pos_embed` is no floating-point tensor, or a size or `prefix` no integer.
        ValueError: If its shape does not fit `old_hw` and `prefix`, or `mode` is unknown.

    Examples:
        >>> import torch
        >>> resize_pos_embed(torch.zeros(1, 1 + 14 * 14, 384), 14, 6).shape
        torch.Size([1, 37, 384])
    """
    (height, width), new = checked_pair("old_hw", old_hw), checked_pair("new_hw", new_hw)
    prefix = checked_count("prefix", prefix, least=0)
    options: dict[str, Any] = {"mode": checked_choice("mode", mode, MODES)}
    if mode != "nearest":
        options["align_corners"] = False
    if not isinstance(pos_embed, Tensor) or not pos_embed.is_floating_point():
        found = pos_embed.dtype if isinstance(pos_embed, Tensor) else type(pos_embed).__name__
        raise TypeError(f"pos_embed must be a floating-point tensor, got {found}")
    wanted = prefix + height * width
    if pos_embed.dim() != 3 or pos_embed.shape[0] != 1 or pos_embed.shape[1] != wanted:
        raise ValueError(
            f"pos_embed must have shape (1, {wanted}, D) for {prefix} tokens and a grid of {height} x {width}, "
            f"got {tuple(pos_embed.shape)}"
        )
    if new == (height, width):
        return pos_embed
    tokens, grid = pos_embed[:, :prefix], pos_embed[:, prefix:].unflatten(1, (height, width))
    exact = grid if grid.dtype.itemsize >= 4 else grid.float()
    resized = interpolate(exact.movedim(-1, 1), new, **options).flatten(2).mT
    return torch.cat([tokens, resized.to(tokens.dtype)], dim=1)
