"""The scOT network, its Fourier resampling and its rollout in time."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from poseidon_lite.config import ScOTConfig
from poseidon_lite.layers import ConvNeXtBlock, PatchMerging, PatchUnmerging, SwinV2Block, layer_norm


def fourier_resize(x: Tensor, n: int) -> Tensor:
    """Resample periodic square fields to `n x n` points by cutting or zero-padding their Fourier modes.

    The modes `-(n // 2) <= f <= (n - 1) // 2` of both axes are kept; values, not sums, are preserved.

    Args:
        x: Fields `(..., m, m)`, real. Half precision is transformed in float32.
        n: New side, at least 1.

    Returns:
        Fields `(..., n, n)` of the dtype of `x`.

    Raises:
        TypeError: If the fields are not real floating-point numbers.
        ValueError: If the fields are not square or `n` is below 1.

    Examples:
        >>> fourier_resize(torch.ones(2, 8, 8), 12).shape
        torch.Size([2, 12, 12])
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be real and floating, got {x.dtype}")
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"x must hold square fields (..., m, m), got shape {tuple(x.shape)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    m = x.shape[-1]
    if m == n:
        return x
    if x.numel() == 0:  # an empty batch, which the transforms refuse
        return x.new_zeros((*x.shape[:-2], n, n))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    modes = torch.fft.fftshift(torch.fft.fft2(wide, norm="forward"), dim=(-2, -1))
    # After the shift mode 0 stands at size // 2; both grids are lined up there.
    if n < m:
        first = m // 2 - n // 2
        modes = modes[..., first : first + n, first : first + n]
    else:
        first = n // 2 - m // 2
        padded = modes.new_zeros((*modes.shape[:-2], n, n))
        padded[..., first : first + m, first : first + m] = modes
        modes = padded
    return torch.fft.ifft2(torch.fft.ifftshift(modes, dim=(-2, -1)), norm="forward").real.to(x.dtype)


class PatchEmbedding(nn.Module):
    """Field to tokens: a strided convolution and a norm."""

    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        projection = nn.Conv2d(config.in_channels, config.embed_dim, kernel_size=patch, stride=patch)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})
        self.norm = layer_norm(config.embed_dim, 1e-5, config.use_conditioning)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Embed fields `(batch, channels, size, size)` as tokens `(batch, grid**2, dim)`."""
        return self.norm(self.patch_embeddings["projection"](x).flatten(2).transpose(1, 2), t)


class PatchRecovery(nn.Module):
    """Tokens to field: a transposed convolution and a 5 x 5 convolution that blurs the patch edges."""

    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        self.grid = config.grids[0]
        patch, channels = config.patch_size, config.out_channels
        self.projection = nn.ConvTranspose2d(config.embed_dim, channels, kernel_size=patch, stride=patch)
        self.mixup = nn.Conv2d(channels, channels, kernel_size=5, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Recover fields `(batch, channels, size, size)` from tokens `(batch, grid**2, dim)`."""
        image = x.view(x.shape[0], self.grid, self.grid, x.shape[2]).permute(0, 3, 1, 2)
        return self.mixup(self.projection(image))


class Stage(nn.Module):
    """Transformer blocks at one resolution, then merging or unmerging.

    Args:
        config: Architecture of the network.
        level: Resolution, 0 the finest.
        drop_paths: Drop-path rate of every block in order of execution.
        decoder: Whether the stage belongs to the decoder, which unmerges and starts with a shifted block.
    """

    def __init__(self, config: ScOTConfig, level: int, drop_paths: Sequence[float], decoder: bool) -> None:
        super().__init__()
        dim, grid, conditioned = config.widths[level], config.grids[level], config.use_conditioning
        # The published decoder lists its blocks backwards, so an even depth begins with the shifted window.
        numbers = range(config.depths[level])
        self.blocks = nn.ModuleList(
            SwinV2Block(
                dim,
                config.num_heads[level],
                grid,
                window_size=config.window_size,
                shift=config.window_size // 2 if number % 2 else 0,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                drop_path=rate,
                eps=config.layer_norm_eps,
                conditioned=conditioned,
            )
            for number, rate in zip(reversed(numbers) if decoder else numbers, drop_paths, strict=True)
        )
        if not decoder and level < len(config.depths) - 1:
            self.downsample = PatchMerging(dim, grid, conditioned=conditioned)
        if decoder and level > 0:
            self.upsample = PatchUnmerging(dim, grid, conditioned=conditioned)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Run the blocks on tokens `(batch, grid**2, dim)`; resampling is left to the network."""
        for block in self.blocks:
            x = block(x, t)
        return x


class ScOT(nn.Module):
    """Scalable operator transformer: maps a field at time 0 to the field after any lead time.

    A U-shaped hierarchy of Swin-V2 blocks whose layer norms are modulated by the lead time, with ConvNeXt blocks
    on the skip paths (paper, Sec. 2 and appendix on the architecture). Parameter names are those of the published
    checkpoints.

    Args:
        config: Architecture.
        generator: Source of the random initial weights; torch's global one if `None`.

    Examples:
        >>> model = ScOT(ScOTConfig.tiny(in_channels=2, out_channels=2))
        >>> model(torch.randn(3, 2, 32, 32), torch.rand(3)).shape
        torch.Size([3, 2, 32, 32])
    """

    def __init__(self, config: ScOTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        levels = range(len(config.depths))
        rates = torch.linspace(0, config.drop_path_rate, 2 * sum(config.depths), device="cpu").tolist()
        encoder = [Stage(config, i, [rates.pop(0) for _ in range(config.depths[i])], False) for i in levels]
        decoder = [
            Stage(config, i, [rates.pop(0) for _ in range(config.depths[i])], True) for i in reversed(levels)
        ]
        self.embeddings = PatchEmbedding(config)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(encoder)})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(decoder)})
        self.patch_recovery = PatchRecovery(config)
        self.residual_blocks = nn.ModuleList(
            nn.ModuleList(
                ConvNeXtBlock(dim, grid, eps=config.layer_norm_eps, conditioned=config.use_conditioning)
                for _ in range(blocks)
            )
            for dim, grid, blocks in zip(config.widths, config.grids, config.skip_blocks, strict=True)
        )
        for module in self.modules():
            initialise(module, generator)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Predict the field after the lead times `t`.

        Args:
            x: Fields `(batch, in_channels, size, size)`, normalised as in training. A size other than
                `config.image_size` is resampled in Fourier space, which assumes periodic fields.
            t: Lead times `(batch,)`, or one number for all, in units in which a whole training trajectory
                lasts 1. Steady problems are posed as `t = 1`.
            pixel_mask: Boolean `(batch, out_channels)` or the shape of the output. Where `True` the prediction
                is replaced by `labels`, so that a loss against them ignores it.
            labels: The target field, in the shape of the output; needed with `pixel_mask` only.

        Returns:
            Fields `(batch, out_channels, size, size)`.

        Raises:
            TypeError: If `x` is not of the dtype of the weights (outside autocast), or `t` is complex.
            ValueError: If a shape does not fit, or `t` or `labels` is missing.
        """
        self._check(x, pixel_mask, labels)
        t = None if t is None else lead_times(t, x)
        if self.config.use_conditioning and t is None:
            raise ValueError("t must be given: the network is conditioned on the lead time, got None")
        config, size = self.config, x.shape[-1]
        field = fourier_resize(x, config.image_size)

        h = self.embeddings(field, t)
        skips = []
        for stage in self.encoder["layers"]:  # type: ignore[attr-defined]
            z = stage(h, t)
            skips.append(z)
            h = stage.downsample(z + h, t) if hasattr(stage, "downsample") else z
        for level, blocks in enumerate(self.residual_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                skips[level] = block(skips[level], t)
        h = skips.pop()
        for stage in self.decoder["layers"]:  # type: ignore[attr-defined]
            h = stage(h, t)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h, t) + skips.pop()
        prediction = self.patch_recovery(h)

        if config.learn_residual:
            prediction = prediction + field[:, : config.out_channels]
        prediction = fourier_resize(prediction, size)
        if pixel_mask is None or labels is None:
            return prediction
        mask = pixel_mask[:, :, None, None] if pixel_mask.ndim == 2 else pixel_mask
        return torch.where(mask, labels.to(prediction.dtype), prediction)

    def _check(self, x: Tensor, pixel_mask: Tensor | None, labels: Tensor | None) -> None:
        config = self.config
        if x.ndim != 4 or x.shape[1] != config.in_channels or x.shape[2] != x.shape[3]:
            raise ValueError(
                f"x must be square fields (batch, {config.in_channels}, size, size), got shape {tuple(x.shape)}"
            )
        dtype = self.embeddings.patch_embeddings["projection"].weight.dtype
        autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
        if not x.is_floating_point() or (x.dtype != dtype and not autocast):
            raise TypeError(f"x must be of the dtype of the weights, {dtype}, got {x.dtype}")
        if pixel_mask is None:
            return
        output = (x.shape[0], config.out_channels, *x.shape[2:])
        if labels is None or labels.shape != output:
            got = None if labels is None else tuple(labels.shape)
            raise ValueError(f"labels must have shape {output} when pixel_mask is given, got {got}")
        if pixel_mask.dtype != torch.bool or pixel_mask.shape not in (output, output[:2]):
            raise ValueError(
                f"pixel_mask must be boolean of shape {output[:2]} or {output}, "
                f"got {pixel_mask.dtype} of shape {tuple(pixel_mask.shape)}"
            )


def lead_times(t: Tensor | float, x: Tensor) -> Tensor:
    """One lead time per field `(batch,)`, on the device of `x`, from that or from one number for all.

    Raises:
        TypeError: If `t` is complex.
        ValueError: If `t` is neither.
    """
    times = t.to(x.device) if isinstance(t, Tensor) else torch.as_tensor(t, device=x.device)
    if times.is_complex():
        raise TypeError(f"t must be real, got {times.dtype}")
    if not times.is_floating_point():
        times = times.to(x.dtype)
    if times.ndim == 0:
        times = times.expand(x.shape[0])
    if times.shape != x.shape[:1]:
        raise ValueError(
            f"t must have shape ({x.shape[0]},), one lead time per field, or be a number, "
            f"got {tuple(times.shape)}"
        )
    return times


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights that `module` itself owns, its children aside, as at the start of training.

    Weights of linear maps and convolutions are normal with deviation 0.02, biases 0 (official code). That holds
    for the linear maps inside time-conditioned norms too: at lead time 0 these put out zero, and every residual
    branch starts almost closed.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        module.weight.normal_(std=0.02, generator=generator)
        if module.bias is not None:
            module.bias.zero_()


def rollout(
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor | float,
    steps: int | Sequence[float] = 1,
    all_steps: bool = False,
) -> Tensor:
    """Reach the lead time `t` in one call of the model or in several, each starting from the last prediction.

    Args:
        model: Maps fields `(batch, in_channels, size, size)` and lead times `(batch,)` to fields
            `(batch, out_channels, size, size)`. Input channels beyond `out_channels` are carried along.
        x: Initial fields `(batch, in_channels, size, size)`.
        t: Total lead times `(batch,)`, or one number for all.
        steps: Number of equal steps, or the fraction of `t` each step covers.
        all_steps: Return the fields after every step rather than the last.

    Returns:
        Fields `(batch, out_channels, size, size)`, or `(batch, steps, out_channels, size, size)`.

    Raises:
        ValueError: If there is no step, a fraction is not positive, or `t` has another shape.

    Examples:
        >>> decay = lambda x, t: x * torch.exp(-t).view(-1, 1, 1, 1)
        >>> float(rollout(decay, torch.ones(1, 1, 2, 2), torch.tensor([1.0]), steps=4)[0, 0, 0, 0])
        0.3678...
    """
    count = operator.index(steps) if hasattr(steps, "__index__") and not isinstance(steps, Tensor) else None
    fractions = list(steps) if count is None else [1 / max(count, 1)] * count  # type: ignore[arg-type]
    if not fractions or not all(0 < fraction < math.inf for fraction in fractions):
        raise ValueError(
            f"steps must be an int >= 1 or a non-empty list of positive fractions, got {steps!r}"
        )
    times, predictions = lead_times(t, x), []
    for fraction in fractions:
        prediction = model(x, times * fraction)
        predictions.append(prediction)
        x = torch.cat([prediction, x[:, prediction.shape[1] :]], dim=1)
    return torch.stack(predictions, dim=1) if all_steps else predictions[-1]
