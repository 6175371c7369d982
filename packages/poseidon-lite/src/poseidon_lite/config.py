"""The shape of a scOT network."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

_COUNTS = (
    "image_size", "patch_size", "in_channels", "out_channels", "embed_dim", "window_size",
    "depths", "num_heads", "skip_blocks",
)  # fmt: skip


def _counted(name: str, value: Any) -> int | tuple[int, ...]:
    """Whole numbers of any kind (NumPy's, of a list from a file) as Python's own, which JSON can hold."""
    try:
        return operator.index(value) if hasattr(value, "__index__") else tuple(map(operator.index, value))
    except TypeError as error:
        raise TypeError(f"{name} must be whole, got {value!r}") from error


@dataclass(frozen=True)
class ScOTConfig:
    """Architecture of a scalable operator transformer (scOT).

    The presets `T`, `S`, `B`, `L` are the published sizes (paper, Table of model sizes in the appendix); with
    four channels in and out they have 20.8, 39.9, 157.7 and 628.6 million parameters.

    Args:
        image_size: Side of the square field the network works on, in grid points. Other sizes are resampled
            in Fourier space on the way in and out.
        patch_size: Side of a patch, in grid points.
        in_channels: Channels of the input field.
        out_channels: Channels of the predicted field.
        embed_dim: Token width of the first stage; it doubles at every further stage.
        depths: Transformer blocks per stage; the decoder mirrors the encoder.
        num_heads: Attention heads per stage.
        skip_blocks: ConvNeXt blocks on the skip path of each stage.
        window_size: Side of an attention window, in tokens.
        mlp_ratio: Hidden width of the feed-forward layers over the token width.
        qkv_bias: Whether query and value have a bias (the key never has one).
        drop_path_rate: Stochastic depth at the last block; it grows linearly from 0 along the network.
        layer_norm_eps: Added to the variance by the norms inside the blocks.
        use_conditioning: Modulate every layer norm by the lead time. If `False`, plain layer norms.
        learn_residual: Predict the change of the field rather than the field.

    Raises:
        TypeError: If a size or a count is no whole number.
        ValueError: If a field is out of range or the fields do not fit each other.

    Examples:
        >>> ScOTConfig.T(in_channels=5).embed_dim
        48
    """

    image_size: int = 128
    patch_size: int = 4
    in_channels: int = 4
    out_channels: int = 4
    embed_dim: int = 48
    depths: tuple[int, ...] = (4, 4, 4, 4)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    skip_blocks: tuple[int, ...] = (2, 2, 2, 0)
    window_size: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-5
    use_conditioning: bool = True
    learn_residual: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _COUNTS:
                object.__setattr__(self, name, _counted(name, value))
        for name in ("image_size", "patch_size", "in_channels", "out_channels", "embed_dim", "window_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.depths or any(depth < 1 for depth in self.depths):
            raise ValueError(f"depths must hold at least one stage of at least one block, got {self.depths}")
        for name in ("num_heads", "skip_blocks"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(
                    f"{name} must have one entry per stage ({len(self.depths)}), got {getattr(self, name)}"
                )
        if any(blocks < 0 for blocks in self.skip_blocks):
            raise ValueError(f"skip_blocks must not be negative, got {self.skip_blocks}")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if heads < 1 or width % heads:
                raise ValueError(
                    f"num_heads must divide the stage widths {self.widths}, got {self.num_heads}"
                )
        coarsest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size must be a multiple of patch_size * 2**(stages - 1) = {coarsest}, "
                f"got {self.image_size}"
            )
        if not 1 <= self.mlp_ratio * self.embed_dim < math.inf:
            raise ValueError(f"mlp_ratio must leave a hidden width of at least 1, got {self.mlp_ratio}")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {self.drop_path_rate}")
        if self.learn_residual and not self.use_conditioning:
            raise ValueError(
                "learn_residual must be False without conditioning: there is no time to evolve over"
            )
        if self.learn_residual and self.in_channels < self.out_channels:
            raise ValueError(
                f"in_channels must be at least out_channels ({self.out_channels}) to learn a residual, "
                f"got {self.in_channels}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Token width of every stage, finest first."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the token grid of every stage, finest first."""
        return tuple(self.image_size // self.patch_size // 2**stage for stage in range(len(self.depths)))

    @classmethod
    def T(cls, **changes: Any) -> ScOTConfig:
        """Poseidon-T, 20.8 million parameters; `changes` replace single fields."""
        return cls(**changes)

    @classmethod
    def S(cls, **changes: Any) -> ScOTConfig:
        """The size between T and B, 39.9 million parameters; `changes` replace single fields."""
        return cls(**{"depths": (8, 8, 8, 8), **changes})

    @classmethod
    def B(cls, **changes: Any) -> ScOTConfig:
        """Poseidon-B, 157.7 million parameters; `changes` replace single fields."""
        return cls(**{"embed_dim": 96, "depths": (8, 8, 8, 8), **changes})

    @classmethod
    def L(cls, **changes: Any) -> ScOTConfig:
        """Poseidon-L, 628.6 million parameters; `changes` replace single fields."""
        return cls(**{"embed_dim": 192, "depths": (8, 8, 8, 8), **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> ScOTConfig:
        """A network for 32 x 32 fields that trains on a laptop; `changes` replace single fields."""
        small = {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 24,
            "depths": (2, 2),
            "num_heads": (3, 6),
            "skip_blocks": (1, 0),
            "window_size": 8,
        }
        return cls(**{**small, **changes})
