"""The paper's networks: pixel encoder, pixel decoder, heads; any other `nn.Module` will do as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from invdyn._checks import checked_count, checked_number, checked_sizes


class MLP(nn.Sequential):
    """Linear layers with GELU and dropout after each hidden one.

    Args:
        in_dim: D.
        hidden: Widths of the hidden layers; none makes it linear.
        out_dim: K.
        dropout: Probability of dropping a hidden unit, in [0, 1).

    Examples:
        >>> MLP(3, (8,), 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_dim: int, hidden: Sequence[int], out_dim: int, dropout: float = 0.0) -> None:
        widths = [checked_count("in_dim", in_dim), *checked_sizes("hidden", hidden)]
        rate = checked_number("dropout", dropout, 0, 1, open_at="high")
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(approximate="tanh"), nn.Dropout(rate)]
        super().__init__(*layers, nn.Linear(widths[-1], checked_count("out_dim", out_dim)))


class SpatialSoftmax(nn.Module):
    """Expected position of each feature map under a softmax over pixels: (x, y) in [-1, 1]^2.

    A 1 x 1 convolution makes the maps. x is -1 at the left and 1 at the right column, y -1 at the top and 1 at
    the bottom row; a map one pixel wide has x = -1.

    Args:
        channels: Of the input.
        keypoints: K, number of maps.

    Examples:
        >>> SpatialSoftmax(4, 8)(torch.zeros(2, 4, 5, 5)).shape
        torch.Size([2, 16])
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(checked_count("channels", channels), checked_count("keypoints", keypoints), 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 2 K): x and y of every keypoint in turn.

        Args:
            features: (B, channels, H, W).
        """
        maps = self.maps(features)
        height, width = maps.shape[-2:]
        exact = torch.promote_types(maps.dtype, torch.float32)
        attention = maps.flatten(2).softmax(-1, dtype=exact).unflatten(2, (height, width))
        across = torch.linspace(-1, 1, width, device=maps.device, dtype=exact)
        down = torch.linspace(-1, 1, height, device=maps.device, dtype=exact)
        # sums, not products of matrices: autocast would make these half precision
        found_x = (attention.sum(2) * across).sum(-1)
        found_y = (attention.sum(3) * down).sum(-1)
        return torch.stack([found_x, found_y], -1).flatten(1).to(maps.dtype)


class PixelEncoder(nn.Module):
    """The paper's encoder: convolutions, spatial softmax, a linear layer, LayerNorm, tanh.

    Args:
        in_channels: C, times the frames of a history.
        image_size: Height and width of the square images.
        embed_dim: d.
        channels: Of the convolutions, 3 x 3 without padding.
        strides: Of the convolutions.
        keypoints: Of the spatial softmax.

    Raises:
        ValueError: If the image is too small for the convolutions, or lists differ in length.

    Examples:
        >>> PixelEncoder(3, 32, 16)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        embed_dim: int = 64,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 1, 1),
        keypoints: int = 256,
    ) -> None:
        super().__init__()
        widths = [checked_count("in_channels", in_channels), *checked_sizes("channels", channels)]
        steps = checked_sizes("strides", strides)
        if len(widths) != len(steps) + 1 or not steps:
            raise ValueError(f"strides must be one for each of channels {widths[1:]}, got {list(steps)}")
        size = checked_count("image_size", image_size)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], steps, strict=False):
            size = (size - 3) // stride + 1
            layers += [nn.Conv2d(before, after, 3, stride), nn.GELU(approximate="tanh")]
            if size < 1:
                raise ValueError(f"image_size must be larger for {len(steps)} convolutions, got {image_size}")
        self.in_channels, self.image_size = widths[0], int(image_size)
        self.backbone = nn.Sequential(*layers)
        self.pool = SpatialSoftmax(widths[-1], keypoints)
        dim = checked_count("embed_dim", embed_dim)
        self.merge = nn.Sequential(nn.Linear(2 * keypoints, dim), nn.LayerNorm(dim, eps=1e-6), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, d) embeddings in (-1, 1).

        Args:
            images: (B, in_channels, image_size, image_size), pixels in [0, 1].

        Raises:
            ValueError: If the images have another shape.
        """
        wanted = (self.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, wanted))}), channels first, got {tuple(images.shape)}"
            )
        return self.merge(self.pool(self.backbone(images)))


class StateEncoder(nn.Sequential):
    """The paper's encoder of low-dimensional states: a linear layer, LayerNorm, tanh.

    Args:
        state_dim: D.
        embed_dim: d.

    Examples:
        >>> StateEncoder(9, 32)(torch.zeros(2, 9)).shape
        torch.Size([2, 32])
    """

    def __init__(self, state_dim: int, embed_dim: int) -> None:
        dim = checked_count("embed_dim", embed_dim)
        linear = nn.Linear(checked_count("state_dim", state_dim), dim)
        super().__init__(linear, nn.LayerNorm(dim, eps=1e-6), nn.Tanh())


class MultiViewEncoder(nn.Module):
    """One encoder a view (cameras, proprioception), embeddings side by side.

    The paper gives pixels and state half of the embedding each.

    Args:
        encoders: View name to a module that makes (B, d_v) of it; names may have dots. One module for several
            views shares its weights.

    Raises:
        ValueError: If there is none.

    Examples:
        >>> encoder = MultiViewEncoder({"image": PixelEncoder(3, 32, 8), "state": StateEncoder(9, 8)})
        >>> encoder({"image": torch.rand(2, 3, 32, 32), "state": torch.rand(2, 9)}).shape
        torch.Size([2, 16])
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders must name at least one view, got none")
        self.views = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return (B, sum of d_v).

        Args:
            views: At least the views that have an encoder.

        Raises:
            ValueError: If one is missing.
        """
        missing = [name for name in self.views if not isinstance(views, Mapping) or name not in views]
        if missing:
            there = list(views) if isinstance(views, Mapping) else type(views).__name__
            raise ValueError(f"views must have {missing}, got {there}")
        return torch.cat(
            [encoder(views[name]) for name, encoder in zip(self.views, self.encoders, strict=True)], -1
        )


class PixelDecoder(nn.Module):
    """The paper's decoder of `ForwardReconstruction`: a linear layer and five transposed convolutions.

    Args:
        in_dim: Of the joint embedding of observation and action: `embed_dim + action_embed_dim`.
        image_size: 24, 28, 32, ..., 84, ..., 120: what the strides can make.
        out_channels: C, times the frames of a history.
        channels: Of the four 3 x 3 layers, which have strides 1, 1, 2, 2.

    Raises:
        ValueError: If the strides cannot make `image_size`.

    Examples:
        >>> PixelDecoder(80, 32)(torch.zeros(2, 80)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        in_dim: int,
        image_size: int,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (256, 128, 64, 32),
    ) -> None:
        super().__init__()
        size = checked_count("image_size", image_size)
        if size < 24 or size % 4:
            raise ValueError(f"image_size must be a multiple of 4 and at least 24, got {size}")
        widths = [2, *checked_sizes("channels", channels)]
        if len(widths) != 5:
            raise ValueError(f"channels must be four, got {widths[1:]}")
        small = (size - 20) // 4  # a 3 x 3 layer adds 2, doubles and adds 1 at stride 2; the last adds 1
        layers: list[nn.Module] = [
            nn.Linear(checked_count("in_dim", in_dim), 2 * small * small),
            nn.GELU(approximate="tanh"),
            nn.Unflatten(1, (2, small, small)),
        ]
        for before, after, stride in zip(widths, widths[1:], (1, 1, 2, 2), strict=False):
            layers += [nn.ConvTranspose2d(before, after, 3, stride), nn.GELU(approximate="tanh")]
        layers.append(nn.ConvTranspose2d(widths[-1], checked_count("out_channels", out_channels), 2))
        self.layers = nn.Sequential(*layers)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (B, out_channels, image_size, image_size).

        Args:
            embedding: (B, in_dim).
        """
        return self.layers(embedding)


class ActionEncoder(nn.Module):
    """The paper's psi: an MLP of the flattened action, LayerNorm, tanh.

    Args:
        action_dim: Numbers in one action, times the steps.
        embed_dim: Of the result.
        hidden: Widths.

    Examples:
        >>> ActionEncoder(2)(torch.zeros(5, 2)).shape
        torch.Size([5, 64])
    """

    def __init__(self, action_dim: int, embed_dim: int = 64, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            MLP(action_dim, hidden, embed_dim), nn.LayerNorm(embed_dim, eps=1e-6), nn.Tanh()
        )

    def forward(self, action: Tensor) -> Tensor:
        """Return (B, embed_dim).

        Args:
            action: (B, ...).
        """
        return self.layers(action.flatten(1))
