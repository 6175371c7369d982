"""Look at what was found: the feature that two groups share, a panel of pictures, a panel of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opposingsignals._checks import checked_count, checked_indices
from opposingsignals.losses import measuring


@dataclass(frozen=True, eq=False)
class FeatureView:
    """What two groups have in common, and how the outputs answer to it.

    Attributes:
        mean_a: Mean input of A, an input's shape.
        mean_b: Mean input of B.
        shared: Mean of both less the mean of all inputs: the shared feature's picture.
        sensitivity: Change of each output along `shared` at unit length, mean over both groups, (outputs,).
    """

    mean_a: Tensor
    mean_b: Tensor
    shared: Tensor
    sensitivity: Tensor


def feature_view(model: nn.Module, x: Tensor, a: Any, b: Any) -> FeatureView:
    """Mean inputs of two groups, and the derivative of the outputs along the feature that they share.

    Args:
        model: Called as `model(x)`, in evaluation mode; returns outputs of shape (n, outputs).
        x: All inputs, floating point, examples first.
        a: Indices of one group.
        b: Indices of the other.

    Returns:
        Means, shared feature and sensitivity.

    Raises:
        TypeError: If the inputs are not floating point.

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        >>> view = feature_view(model, x, [0], [1])
        >>> view.shared.tolist(), torch.allclose(view.sensitivity, model.weight[0, 0])
        ([4.5, 0.0], True)
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; take the embeddings of tokens instead")
    groups = [checked_indices(name, value, len(x), x.device) for name, value in (("a", a), ("b", b))]
    shared = x[torch.cat(groups)].mean(0) - x.mean(0)
    with measuring(model), torch.enable_grad():
        inputs = x.detach()[torch.cat(groups)].requires_grad_()
        direction = shared.detach() / shared.norm().clamp_min(1e-30)
        outputs = model(inputs)
        weights = torch.ones_like(
            outputs, requires_grad=True
        )  # forward mode would ask for more of the layers
        (slopes,) = torch.autograd.grad((weights * outputs).sum(), inputs, create_graph=True)
        (change,) = torch.autograd.grad((slopes * direction).sum(), weights)
    return FeatureView(x[groups[0]].mean(0), x[groups[1]].mean(0), shared, change.mean(0))


def image_panel(
    images: Tensor, groups: Sequence[Any], *, columns: int = 8, rows: int = 1, border: int = 1
) -> Tensor:
    """A picture of the found examples: `rows` lines of A, then of B and so on, ready for `matplotlib.imshow`.

    Args:
        images: All images, (n, H, W), or (n, C, H, W) with 1 or 3 channels.
        groups: Index lists, the strongest example first, such as `[pair.a, pair.b]`.
        columns: Images a line.
        rows: Lines a group.
        border: Pixels between images, at the images' largest value; twice that between groups.

    Returns:
        The panel, (height, width), or (height, width, 3) for three channels. A missing image is left at the smallest
        value.

    Raises:
        ValueError: If the images have another shape, or a group is empty.

    Examples:
        >>> image_panel(torch.rand(10, 8, 8), [[0, 1, 2], [3, 4]], columns=3).shape
        torch.Size([20, 28])
    """
    across, down = checked_count("columns", columns), checked_count("rows", rows)
    gap = checked_count("border", border, 0)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be (n, H, W) or (n, 1 or 3, H, W), got {tuple(images.shape)}")
    if len(groups) == 0:
        raise ValueError("groups must hold at least one index list, got none")
    size, channels, height, width = images.shape
    low, high = images.min(), images.max()
    total = len(groups) * down * (height + gap) + gap * len(groups)
    panel = high.expand(channels, total, across * (width + gap) + gap).clone()
    top = gap
    for group in groups:
        chosen = checked_indices("groups", group, size, images.device)[: across * down]
        for place in range(across * down):
            y, x = top + (place // across) * (height + gap), gap + (place % across) * (width + gap)
            panel[:, y : y + height, x : x + width] = images[chosen[place]] if place < len(chosen) else low
        top += down * (height + gap) + gap
    return panel[0] if channels == 1 else panel.movedim(0, -1)


def text_panel(
    tokens: Tensor,
    groups: Mapping[str, Any],
    decode: Callable[[list[int]], str],
    *,
    shape: Sequence[int],
    changes: Tensor | None = None,
    offset: int = 1,
    context: int = 8,
    limit: int = 8,
) -> str:
    """A table of the found tokens in their context, the token that is predicted in brackets.

    Args:
        tokens: Token ids, (n, length).
        groups: Index lists in the flattened losses, by the name to show, such as `{"A": pair.a, "B": pair.b}`.
        decode: Turns a list of ids to text, such as `tokenizer.decode`.
        shape: Shape of the losses, (n, T), such as `tracker.shape`; (n,) if each sentence is one example.
        changes: A change of loss to show for each, such as the last row of `tracker.deltas()`.
        offset: Loss (i, t) is that of `tokens[i, t + offset]`: 1 for next-token prediction.
        context: Tokens to show before and after.
        limit: Examples a group.

    Returns:
        Lines of text: group, sentence, token, change, text.

    Raises:
        ValueError: If the losses' shape does not fit the tokens, or a group is empty.

    Examples:
        >>> tokens = torch.tensor([[7, 4, 11, 11, 14]])
        >>> def decode(ids):
        ...     return "".join(chr(97 + i) for i in ids)
        >>> print(text_panel(tokens, {"A": [1]}, decode, shape=(1, 4)))
        A  sentence 0  token 2  he[l]lo
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be ids of shape (n, length), got {tuple(tokens.shape)} of {tokens.dtype}"
        )
    sizes = tuple(shape)
    move, around, most = (
        checked_count("offset", offset, 0),
        checked_count("context", context, 0),
        checked_count("limit", limit),
    )
    if sizes[0] != len(tokens) or len(sizes) > 2 or (len(sizes) == 2 and sizes[1] + move > tokens.shape[1]):
        raise ValueError(
            f"shape must fit tokens of shape {tuple(tokens.shape)} and offset {move}, got {sizes}"
        )
    length = sizes[1] if len(sizes) == 2 else 1
    lines = []
    for name, group in groups.items():
        for index in checked_indices("groups", group, sizes[0] * length).tolist()[:most]:
            sentence, place = divmod(index, length)
            ids = tokens[sentence].tolist()
            change = "" if changes is None else f"  {float(changes.flatten()[index]):+.3f}"
            if len(sizes) == 1:
                lines.append(f"{name}  sentence {sentence}{change}  {decode(ids[: 2 * around + 1])}")
                continue
            at = place + move
            before, after = ids[max(at - around, 0) : at], ids[at + 1 : at + 1 + around]
            text = f"{decode(before)}[{decode([ids[at]])}]{decode(after)}".replace("\n", "⏎")
            lines.append(f"{name}  sentence {sentence}  token {at}{change}  {text}")
    return "\n".join(lines)
