"""scOT put together from the Swin-V2 modules of transformers, as the official code is; it takes our state dict."""

import torch
from torch import nn
from transformers import Swinv2Config
from transformers.models.swinv2.modeling_swinv2 import (
    Swinv2Attention,
    Swinv2Intermediate,
    Swinv2Output,
    window_partition,
    window_reverse,
)

from poseidon_lite import ScOT


class PeerNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Linear(1, dim), nn.Linear(1, dim)

    def forward(self, x, t):
        mean = x.mean(-1, keepdim=True)
        variance = (x**2).mean(-1, keepdim=True) - mean**2
        x = (x - mean) / (variance + 1e-5).sqrt()
        weight, bias = self.weight(t.reshape(-1, 1)), self.bias(t.reshape(-1, 1))
        shape = (len(t), *[1] * (x.ndim - 2), -1)
        return weight.view(shape) * x + bias.view(shape)


class PeerBlock(nn.Module):
    def __init__(self, config, dim, heads, grid, shifted):
        super().__init__()
        self.grid, self.window = grid, min(grid, config.window_size)
        self.shift = self.window // 2 if shifted and grid > self.window else 0
        self.attention = Swinv2Attention(config, dim, heads, self.window)
        self.layernorm_before, self.layernorm_after = PeerNorm(dim), PeerNorm(dim)
        self.intermediate, self.output = Swinv2Intermediate(config, dim), Swinv2Output(config, dim)

    def mask(self, x, side):
        if not self.shift:
            return None
        image = torch.zeros(1, side, side, 1, dtype=x.dtype)
        bands = (slice(-self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((rows, columns) for rows in bands for columns in bands):
            image[:, rows, columns] = number
        windows = window_partition(image, self.window).view(-1, self.window**2)
        different = windows.unsqueeze(1) != windows.unsqueeze(2)
        return torch.zeros(different.shape, dtype=x.dtype).masked_fill(different, -100.0).to(x.device)

    def forward(self, x, t):
        batch, _, dim = x.shape
        pad = -self.grid % self.window
        side = self.grid + pad
        image = nn.functional.pad(x.view(batch, self.grid, self.grid, dim), (0, 0, 0, pad, 0, pad))
        if self.shift:
            image = image.roll((-self.shift, -self.shift), (1, 2))
        windows = window_partition(image, self.window).view(-1, self.window**2, dim)
        windows = self.attention(windows, attention_mask=self.mask(x, side))[0]
        image = window_reverse(windows.view(-1, self.window, self.window, dim), self.window, side, side)
        if self.shift:
            image = image.roll((self.shift, self.shift), (1, 2))
        x = x + self.layernorm_before(image[:, : self.grid, : self.grid].reshape(x.shape), t)
        return x + self.layernorm_after(self.output(self.intermediate(x)), t)


class PeerConvNeXt(nn.Module):
    def __init__(self, dim, grid):
        super().__init__()
        self.grid = grid
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = PeerNorm(dim)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x, t):
        image = x.reshape(x.shape[0], self.grid, self.grid, -1).permute(0, 3, 1, 2)
        image = self.norm(self.dwconv(image).permute(0, 2, 3, 1), t)
        return x + (self.weight * self.pwconv2(self.act(self.pwconv1(image)))).reshape(x.shape)


class PeerMerging(nn.Module):
    def __init__(self, dim, grid):
        super().__init__()
        self.grid = grid
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), PeerNorm(2 * dim)

    def forward(self, x, t):
        x = x.view(x.shape[0], self.grid, self.grid, -1)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1).flatten(1, 2)
        return self.norm(self.reduction(x), t)


class PeerUnmerging(nn.Module):
    def __init__(self, dim, grid):
        super().__init__()
        self.grid = grid
        self.upsample, self.mixup = (
            nn.Linear(dim, 2 * dim, bias=False),
            nn.Linear(dim // 2, dim // 2, bias=False),
        )
        self.norm = PeerNorm(dim // 2)

    def forward(self, x, t):
        x = self.upsample(x).reshape(x.shape[0], self.grid, self.grid, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return self.mixup(self.norm(x.flatten(3, 4).flatten(1, 3).view(x.shape[0], -1, x.shape[-1]), t))


class PeerStage(nn.Module):
    def __init__(self, config, ours, level, decoder):
        super().__init__()
        dim, grid, depth = ours.widths[level], ours.grids[level], ours.depths[level]
        order = reversed(range(depth)) if decoder else range(depth)
        self.blocks = nn.ModuleList(
            PeerBlock(config, dim, ours.num_heads[level], grid, i % 2 == 1) for i in order
        )
        if not decoder and level + 1 < len(ours.depths):
            self.downsample = PeerMerging(dim, grid)
        if decoder and level > 0:
            self.upsample = PeerUnmerging(dim, grid)

    def forward(self, x, t):
        for block in self.blocks:
            x = block(x, t)
        return x


class Peer(nn.Module):
    def __init__(self, ours):
        super().__init__()
        config = Swinv2Config(
            window_size=ours.window_size, mlp_ratio=ours.mlp_ratio, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, hidden_act="gelu",
        )  # fmt: skip
        levels, patch = range(len(ours.depths)), ours.patch_size
        self.grid = ours.grids[0]
        self.embeddings = nn.Module()
        self.embeddings.patch_embeddings = nn.Module()
        self.embeddings.patch_embeddings.projection = nn.Conv2d(
            ours.in_channels, ours.embed_dim, patch, patch
        )
        self.embeddings.norm = PeerNorm(ours.embed_dim)
        self.encoder, self.decoder, self.patch_recovery = nn.Module(), nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList(PeerStage(config, ours, i, False) for i in levels)
        self.decoder.layers = nn.ModuleList(PeerStage(config, ours, i, True) for i in reversed(levels))
        self.residual_blocks = nn.ModuleList(
            nn.ModuleList(PeerConvNeXt(ours.widths[i], ours.grids[i]) for _ in range(ours.skip_blocks[i]))
            for i in levels
        )
        self.patch_recovery.projection = nn.ConvTranspose2d(ours.embed_dim, ours.out_channels, patch, patch)
        self.patch_recovery.mixup = nn.Conv2d(ours.out_channels, ours.out_channels, 5, padding=2, bias=False)

    def forward(self, x, t):
        x = self.embeddings.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
        x, skips = self.embeddings.norm(x, t), []
        for stage in self.encoder.layers:
            skips.append(stage(x, t))
            x = stage.downsample(skips[-1] + x, t) if hasattr(stage, "downsample") else skips[-1]
        for level, blocks in enumerate(self.residual_blocks):
            for block in blocks:
                skips[level] = block(skips[level], t)
        x = skips.pop()
        for stage in self.decoder.layers:
            x = stage(x, t)
            if hasattr(stage, "upsample"):
                x = stage.upsample(x, t) + skips.pop()
        x = x.transpose(1, 2).reshape(len(x), -1, self.grid, self.grid)
        return self.patch_recovery.mixup(self.patch_recovery.projection(x))


def build(config):
    generator = torch.Generator().manual_seed(0)
    ours = ScOT(config, generator=generator)
    with torch.no_grad():
        for parameter in ours.parameters():  # away from the initial zeros, or both would agree on nothing
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    peer = Peer(config)
    peer.load_state_dict(ours.state_dict())
    return {"ours": ours, "peer": peer}


def batch(size, channels, image_size):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, channels, image_size, image_size, generator=generator), torch.rand(
        size, generator=generator
    )
