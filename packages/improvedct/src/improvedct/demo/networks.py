"""The demo's networks: an MLP for points and small images, a U-Net for the paper's own setting."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fourier(nn.Module):
    """sin and cos of random frequencies of the noise level."""

    def __init__(self, size: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(size // 2, generator=generator) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = 2 * math.pi * c_noise.unsqueeze(1) * self.frequencies.to(c_noise)
        return torch.cat([angles.cos(), angles.sin()], 1)


class MLP(nn.Module):
    """Hidden SiLU layers, each told the noise level; residual ones for images."""

    def __init__(self, size: int, width: int, depth: int, generator: torch.Generator, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.embed = Fourier(64, 0.5, generator)
        self.first = nn.Linear(size, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - (not residual)))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(depth if residual else 0))
        self.levels = nn.ModuleList(nn.Linear(64, width) for _ in range(1 + len(self.hidden)))
        self.last = nn.Linear(width, size)
        initialise(self, generator)
        count = sum(parameter.numel() for parameter in self.parameters())
        self.describe = f"MLP of width {width}, {count:,} parameters"

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = self.embed(c_noise)
        x = functional.silu(self.first(x) + self.levels[0](level))
        for index, layer in enumerate(self.hidden):
            inner = functional.silu(layer(x) + self.levels[index + 1](level))
            x = x + self.second[index](inner) if self.residual else inner
        output: Tensor = self.last(x)
        return output


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the noise level added between and dropout before the second."""

    def __init__(self, inputs: int, outputs: int, level_size: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs), nn.GroupNorm(32, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.level, self.dropout = nn.Linear(level_size, outputs), nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x))) + self.level(level)[:, :, None, None]
        hidden = self.conv2(self.dropout(functional.silu(self.norm2(hidden))))
        return (self.skip(x) + hidden) / math.sqrt(2)


class Attention(nn.Module):
    """Self-attention over pixels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.mix, self.output = (
            nn.GroupNorm(32, size),
            nn.Conv2d(size, 3 * size, 1),
            nn.Conv2d(size, size, 1),
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).view_as(x)
        return (x + self.output(mixed)) / math.sqrt(2)


class UNet(nn.Module):
    """A U-Net of the DDPM++ family: widths (1, 2, 2) x 128, four blocks a level, attention at the middle level."""

    def __init__(
        self,
        channels: int,
        generator: torch.Generator,
        width: int = 128,
        blocks: int = 4,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        level_size, widths = 4 * width, [width, 2 * width, 2 * width]
        # The improved recipe needs smooth noise embeddings: scale 0.02 instead of 16.
        self.embed = nn.Sequential(
            Fourier(2 * width, 0.02, generator),
            nn.Linear(2 * width, level_size),
            nn.SiLU(),
            nn.Linear(level_size, level_size),
        )
        self.first, self.down, self.up = (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        skips, size = [width], width
        for depth, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_stack(size, wide, level_size, dropout, depth == 1))
                size = wide
                skips.append(size)
            if depth + 1 < len(widths):
                self.down.append(nn.AvgPool2d(2))
                skips.append(size)
        self.middle = _stack(size, size, level_size, dropout, True)
        for depth, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_stack(size + skips.pop(), wide, level_size, dropout, depth == 1))
                size = wide
            if depth > 0:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.norm, self.last = nn.GroupNorm(32, size), nn.Conv2d(size, channels, 3, padding=1)
        initialise(self, generator)
        self.describe = f"U-Net, {sum(parameter.numel() for parameter in self.parameters()):,} parameters"

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        level = functional.silu(self.embed(c_noise))
        x = self.first(x)
        skips = [x]
        for stack in self.down:
            x = _run(stack, x, level)
            skips.append(x)
        x = _run(self.middle, x, level)
        for stack in self.up:
            x = (
                stack(x)
                if isinstance(stack, nn.Upsample)
                else _run(stack, torch.cat([x, skips.pop()], 1), level)
            )
        output: Tensor = self.last(functional.silu(self.norm(x)))
        return output


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Scale weights by their fan-in, from one generator; zero biases and the last layer's weights almost."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                assert module.bias is not None
                module.bias.zero_()


def _stack(inputs: int, outputs: int, level_size: int, dropout: float, attends: bool) -> nn.ModuleList:
    stack = nn.ModuleList([ResidualBlock(inputs, outputs, level_size, dropout)])
    if attends:
        stack.append(Attention(outputs))
    return stack


def _run(stack: nn.Module, x: Tensor, level: Tensor) -> Tensor:
    if not isinstance(stack, nn.ModuleList):
        pooled: Tensor = stack(x)
        return pooled
    for layer in stack:
        x = layer(x, level)
    return x
