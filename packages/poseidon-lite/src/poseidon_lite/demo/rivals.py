"""The rivals: nothing changes, the mean field, and a Fourier neural operator from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Persistence(nn.Module):
    """Nothing changes: the prediction is the input."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Give back the fields `x`."""
        return x


class MeanField(nn.Module):
    """Whatever the input, the mean of the training trajectories at the nearest snapshot."""

    mean: Tensor

    def __init__(self, trajectories: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", trajectories.mean(dim=0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Look the lead times `t` of shape `(batch,)` up."""
        return self.mean[(t * (len(self.mean) - 1)).round().long()]


class FourierNeuralOperator(nn.Module):
    """Small FNO (Li et al., 2021) that predicts the change, as scOT does; the lead time is one more input channel."""

    def __init__(self, channels: int, width: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv2d(channels + 1, width, 1)
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.spectral = nn.Parameter(torch.empty(4, 2, width, width, modes, modes, 2))
        self.project = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, channels, 1)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                fan_in = parameter.shape[1] if parameter.ndim == 4 else width
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            self.spectral.mul_(width**-0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map fields `(batch, channels, n, n)` and lead times `(batch,)` to fields of the same shape."""
        time = t.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = self.lift(torch.cat([x, time], dim=1))
        for layer, weight in zip(self.local, torch.view_as_complex(self.spectral), strict=True):
            modes = torch.fft.rfft2(h, norm="ortho")
            kept = torch.zeros_like(modes)
            m = self.modes
            kept[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", modes[:, :, :m, :m], weight[0])
            kept[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", modes[:, :, -m:, :m], weight[1])
            h = nn.functional.gelu(torch.fft.irfft2(kept, s=x.shape[2:], norm="ortho") + layer(h))
        return x + self.project(h)
