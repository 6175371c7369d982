"""The layers of scOT: time-conditioned norm, Swin-V2 block, ConvNeXt block, patch merging and unmerging.

Tokens travel as `(batch, height * width, channels)`, row-major. Submodule names are those of the published
checkpoints.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Each of the two additions of -100 in the transformers library's attention counts: the published weights have
# only ever seen their sum.
MASKED = -200.0


class TimeConditionedLayerNorm(nn.Module):
    """Layer norm whose gain and offset are affine functions of the lead time.

    `y = w(t) * (x - mean) / sqrt(var + eps) + b(t)` with `w(t) = t * W + c` and `b(t) = t * V + d` (paper,
    Sec. 2, "time-conditioned layer norm"). At a fixed time it is `torch.nn.LayerNorm` with that gain and offset.

    Args:
        dim: Number of channels, the last dimension of the input.
        eps: Added to the (biased) variance.

    Examples:
        >>> norm = TimeConditionedLayerNorm(8)
        >>> norm(torch.randn(2, 5, 8), torch.tensor([0.0, 1.0])).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Linear(1, dim)
        self.bias = nn.Linear(1, dim)

    def forward(self, x: Tensor, t: Tensor | None) -> Tensor:
        """Normalise `x` of shape `(batch, ..., dim)` at the lead times `t` of shape `(batch,)`."""
        if t is None:
            raise ValueError("t must be given to a time-conditioned layer norm, got None")
        # The library kernel takes half precision through float32; E[x^2] - mean^2 would turn negative there.
        normalised = F.layer_norm(x, (self.dim,), eps=self.eps)
        time = t.to(normalised.dtype).unsqueeze(1)
        shape = (-1,) + (1,) * (x.ndim - 2) + (self.dim,)
        return torch.addcmul(self.bias(time).view(shape), self.weight(time).view(shape), normalised)


class StaticLayerNorm(nn.LayerNorm):
    """Plain layer norm that accepts, and ignores, a lead time."""

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Normalise the last dimension of `x`."""
        return super().forward(x)


def layer_norm(dim: int, eps: float, conditioned: bool) -> nn.Module:
    """The norm used throughout a network: time-conditioned or plain."""
    return TimeConditionedLayerNorm(dim, eps) if conditioned else StaticLayerNorm(dim, eps)


class DropPath(nn.Module):
    """Stochastic depth: drop the whole residual branch of a sample with probability `rate` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale the kept branches of `x`, of shape `(batch, ...)`, by `1 / (1 - rate)`."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


def window_order(grid: int, window: int, shift: int) -> Tensor:
    """Which token stands where once the grid is padded, rolled by `-shift` and cut into windows.

    Args:
        grid: Side of the token grid.
        window: Side of a window.
        shift: Cyclic shift towards the origin, in tokens.

    Returns:
        Token numbers of shape `(windows, window**2)`; padded places hold the number `grid**2`.
    """
    side = math.ceil(grid / window) * window
    numbers = torch.full((side, side), grid * grid)
    numbers[:grid, :grid] = torch.arange(grid * grid).view(grid, grid)
    numbers = numbers.roll((-shift, -shift), dims=(0, 1))
    count = side // window
    return numbers.view(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """Additive mask that keeps tokens apart which only the cyclic shift has brought together.

    Returns:
        Shape `(windows, window**2, window**2)`, 0 within a region and `MASKED` between regions.
    """
    side = math.ceil(grid / window) * window
    place = torch.arange(side)
    band = (place >= side - window).long() + (place >= side - shift).long()
    region = (3 * band[:, None] + band[None, :]).flatten()
    region = region[window_order(side, window, 0)]
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED)


def relative_coordinates(window: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-spaced relative coordinates of two tokens of a window (Swin-V2, Sec. 3.3), `((2 w - 1)**2, 2)`.

    In float32 these are, bit for bit, the numbers with which the published weights were trained.
    """
    offsets = torch.arange(1 - window, window, dtype=dtype) / max(window - 1, 1) * 8
    offsets = offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).flatten(0, 1)


def relative_index(window: int) -> Tensor:
    """Row of `relative_coordinates` for every pair of tokens of a window, `(window**2, window**2)`."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`softmax(q k^T + bias) v` for `(batch, heads, tokens, width)` and a bias `(heads, tokens, tokens)`."""
    if torch.is_grad_enabled() and query.device.type == "cpu":
        # torch has no fused kernel that differentiates a bias, and its fallback costs more than writing it out.
        return torch.softmax(query @ key.mT + bias, dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.unsqueeze(0), scale=1.0)


def is_plain(mlp: nn.Module) -> bool:
    """Whether the network of the position bias is as it was built: torch's own layers, and nothing hooked to them."""
    as_built = type(mlp) is nn.Sequential and [type(layer) for layer in mlp] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    return as_built and not any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        for module in mlp.modules()
    )


def are_equal(old: list[Tensor], new: list[Tensor]) -> bool:
    """Whether two lists hold the same tensors, in value and dtype."""
    return len(old) == len(new) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(old, new, strict=True)
    )


def fill_tables(module: WindowAttention | SwinV2Block, _: Any = None) -> None:
    """Write the buffers that follow from the sizes of `module`, where its parameters are.

    They are in no checkpoint, so a network made on the meta device has them only after it has been loaded.
    """
    device = next(module.parameters()).device
    for name, table in module.tables().items():
        module.register_buffer(name, None if table is None else table.to(device), persistent=False)


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows, with a continuous relative position bias (Swin-V2, Sec. 3).

    `softmax(exp(min(s, ln 100)) * cos(q, k) + 16 * sigmoid(MLP(coordinates)) + mask) v`

    Args:
        dim: Token width.
        num_heads: Attention heads.
        grid: Side of the token grid.
        window: Side of a window.
        shift: Cyclic shift of the windows, in tokens.
        qkv_bias: Whether query and value have a bias.
    """

    coordinates: Tensor
    pair_index: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, num_heads: int, grid: int, window: int, shift: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        # Only the shift mask tells windows apart; without it they are so many samples.
        self.distinct_windows = math.ceil(grid / window) ** 2 if shift else 1
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.continuous_position_bias_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False)
        )
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=qkv_bias)
        self.window = window
        self.grid, self.shift = grid, shift
        self._remembered: tuple[list[Tensor], Tensor] | None = None
        fill_tables(self)
        self.register_load_state_dict_post_hook(fill_tables)

    def tables(self) -> dict[str, Tensor | None]:
        """What follows from the sizes alone, by the names of its buffers."""
        return {
            "coordinates": relative_coordinates(self.window),
            "pair_index": relative_index(self.window),
            "mask": shift_mask(self.grid, self.window, self.shift) if self.shift else None,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows: `(batch, windows, window**2, dim)` to the same shape."""
        tokens, windows = x.shape[2], self.distinct_windows
        samples = x.shape[0] * x.shape[1] // windows
        query, key, value = (
            # Distinct windows become heads, so that one bias of shape (windows * heads, ...) serves all samples.
            layer(x)
            .view(samples, windows, tokens, self.num_heads, self.head_dim)
            .transpose(2, 3)
            .flatten(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scale = self.logit_scale.clamp(max=math.log(100)).exp().repeat(windows, 1, 1)
        query = F.normalize(query, dim=-1) * scale.to(query.dtype)
        out = attend(query, F.normalize(key, dim=-1), value, self.position_bias().to(query.dtype))
        return (
            out.view(samples, windows, self.num_heads, tokens, self.head_dim).transpose(2, 3).reshape(x.shape)
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a file computes its own: what is remembered can outweigh the layer.
        return {**self.__dict__, "_remembered": None}

    def position_bias(self) -> Tensor:
        """Position bias plus shift mask, `(distinct windows * heads, window**2, window**2)`.

        On a CPU and without gradients it is computed once and kept until it would change.
        """
        mlp = self.continuous_position_bias_mlp
        weights = list(mlp.parameters())
        dtype = weights[0].dtype if weights else self.coordinates.dtype
        # Functional calls, as for an ensemble under vmap, bring weights of which nothing should stay.
        own = all(isinstance(weight, nn.Parameter) for weight in weights)
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if torch.is_grad_enabled() or tracing or not own or self.coordinates.device.type != "cpu":
            return self._spread(self._table(dtype))
        # Compared by value: whoever writes through `.data`, as weight averaging does, leaves no other trace. Of plain
        # layers the weights tell all; of hooked or adapted ones only what they put out does.
        now = [weight.detach() for weight in weights] if is_plain(mlp) else [self._table(dtype)]
        if self._remembered is None or not are_equal(self._remembered[0], now):
            self._remembered = [tensor.clone() for tensor in now], self._spread(self._table(dtype))
        return self._remembered[1]

    def _table(self, dtype: torch.dtype) -> Tensor:
        """Bias of every relative position, `((2 window - 1)**2, heads)`."""
        coordinates = self.coordinates.to(dtype)
        if dtype == torch.float64:  # the buffer has been rounded
            coordinates = relative_coordinates(self.window, dtype).to(coordinates.device)
        kind = coordinates.device.type
        # Outside autocast, or a bias remembered there would stay rounded for whoever comes later.
        exact = nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
        with exact:
            return 16 * torch.sigmoid(self.continuous_position_bias_mlp(coordinates))

    def _spread(self, table: Tensor) -> Tensor:
        tokens = self.pair_index.shape[0]
        bias = table.t().index_select(1, self.pair_index.flatten()).view(self.num_heads, tokens, tokens)
        if self.mask is None:
            return bias
        return (bias + self.mask.to(bias.dtype).unsqueeze(1)).flatten(0, 1)


class SwinV2Block(nn.Module):
    """Swin-V2 transformer block: attention and feed-forward, each followed by a norm and added to its input.

    `h = x + norm(attention(x), t)`, `y = h + norm(MLP(h), t)`: the norm comes *after* the branch (Swin-V2,
    Sec. 3.1).

    Args:
        dim: Token width.
        num_heads: Attention heads.
        grid: Side of the token grid.
        window_size: Side of a window; a grid that is not larger becomes one window without shift.
        shift: Cyclic shift of the windows, in tokens.
        mlp_ratio: Hidden width of the feed-forward layers over `dim`.
        qkv_bias: Whether query and value have a bias.
        drop_path: Probability of dropping a residual branch in training.
        eps: Added to the variance by the norms.
        conditioned: Whether the norms depend on the lead time.
    """

    order: Tensor
    places: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int,
        *,
        window_size: int,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        eps: float = 1e-5,
        conditioned: bool = True,
    ) -> None:
        super().__init__()
        if grid <= window_size:
            window_size, shift = grid, 0
        if not 0 <= shift < window_size:
            raise ValueError(f"shift must be in [0, window_size = {window_size}), got {shift}")
        hidden = int(mlp_ratio * dim)
        self.attention = nn.ModuleDict(
            {
                "self": WindowAttention(dim, num_heads, grid, window_size, shift, qkv_bias),
                "output": nn.ModuleDict({"dense": nn.Linear(dim, dim)}),
            }
        )
        self.layernorm_before = layer_norm(dim, eps, conditioned)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, hidden)})
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden, dim)})
        self.layernorm_after = layer_norm(dim, eps, conditioned)
        self.drop_path = DropPath(drop_path)
        self.grid, self.window, self.shift = grid, window_size, shift
        self.num_windows = math.ceil(grid / window_size) ** 2
        self.padded = grid % window_size > 0
        fill_tables(self)
        self.register_load_state_dict_post_hook(fill_tables)

    def tables(self) -> dict[str, Tensor | None]:
        """What follows from the sizes alone, by the names of its buffers."""
        order = window_order(self.grid, self.window, self.shift).flatten()
        return {"order": order, "places": order.argsort()[: self.grid**2]}

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Transform tokens `(batch, grid**2, dim)` at the lead times `t` of shape `(batch,)`."""
        x = x + self.drop_path(self.layernorm_before(self._attend(x), t))
        hidden = F.gelu(self.intermediate["dense"](x))
        return x + self.drop_path(self.layernorm_after(self.output["dense"](hidden), t))

    def _attend(self, x: Tensor) -> Tensor:
        batch, _, dim = x.shape
        windows, places = x, len(self.order)
        if self.num_windows > 1:
            # One gather pads, rolls and cuts into windows; another puts everything back.
            windows = (F.pad(x, (0, 0, 0, 1)) if self.padded else x).index_select(1, self.order)
        shape = (batch, self.num_windows, places // self.num_windows, dim)
        attended = self.attention["self"](windows.view(shape)).reshape(batch, places, dim)
        if self.num_windows > 1:
            attended = attended.index_select(1, self.places)
        return self.attention["output"]["dense"](attended)  # type: ignore[index]


class ConvNeXtBlock(nn.Module):
    """ConvNeXt block with the network's norm: depthwise 7 x 7, norm, inverted bottleneck, layer scale.

    Args:
        dim: Token width.
        grid: Side of the token grid.
        eps: Added to the variance by the norm.
        conditioned: Whether the norm depends on the lead time.
    """

    def __init__(self, dim: int, grid: int, *, eps: float = 1e-5, conditioned: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = layer_norm(dim, eps, conditioned)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.weight = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Transform tokens `(batch, grid**2, dim)` at the lead times `t` of shape `(batch,)`."""
        batch, _, dim = x.shape
        # A token grid seen as an image is channels-last already: no copy on either side of the convolution.
        image = x.view(batch, self.grid, self.grid, dim).permute(0, 3, 1, 2)
        branch = self.dwconv(image).permute(0, 2, 3, 1).reshape(x.shape)
        branch = self.pwconv2(F.gelu(self.pwconv1(self.norm(branch, t))))
        return torch.addcmul(x, self.weight, branch)


class PatchMerging(nn.Module):
    """Halve the grid and double the width: four neighbouring tokens side by side, then `4 D -> 2 D`.

    Args:
        dim: Token width before merging.
        grid: Side of the token grid before merging, even.
        conditioned: Whether the norm depends on the lead time.
    """

    def __init__(self, dim: int, grid: int, *, conditioned: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = layer_norm(2 * dim, 1e-5, conditioned)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Merge tokens `(batch, grid**2, dim)` into `(batch, grid**2 / 4, 2 * dim)`."""
        batch, _, dim = x.shape
        half = self.grid // 2
        corners = x.view(batch, half, 2, half, 2, dim).permute(0, 1, 3, 4, 2, 5)  # row parity runs fastest
        return self.norm(self.reduction(corners.reshape(batch, half * half, 4 * dim)), t)


class PatchUnmerging(nn.Module):
    """Double the grid and halve the width: `D -> 2 D`, then four tokens of width `D / 2` in a square.

    Args:
        dim: Token width before unmerging, even.
        grid: Side of the token grid before unmerging.
        conditioned: Whether the norm depends on the lead time.
    """

    def __init__(self, dim: int, grid: int, *, conditioned: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.upsample = nn.Linear(dim, 2 * dim, bias=False)
        self.mixup = nn.Linear(dim // 2, dim // 2, bias=False)
        self.norm = layer_norm(dim // 2, 1e-5, conditioned)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Unmerge tokens `(batch, grid**2, dim)` into `(batch, 4 * grid**2, dim / 2)`."""
        batch, tokens, dim = x.shape
        corners = self.upsample(x).view(
            batch, self.grid, self.grid, 2, 2, dim // 2
        )  # row parity runs slowest
        square = corners.transpose(2, 3).reshape(batch, 4 * tokens, dim // 2)
        return self.mixup(self.norm(square, t))
