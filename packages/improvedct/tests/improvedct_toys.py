"""Small modules that the tests call models."""

import torch
from torch import nn

from improvedct import NoiseRange


class Net(nn.Module):
    """A network of the user's own: any shape, any number of samples, a label and a dropout if asked for."""

    def __init__(self, size, seed=0, dropout=0.0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator, dtype=dtype) / size**0.5)
        self.level = nn.Parameter(torch.randn(size, generator=generator, dtype=dtype))
        self.labels = nn.Parameter(torch.randn(3, size, generator=generator, dtype=dtype))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, c_noise, label=None):
        hidden = self.dropout(
            torch.tanh(
                x.reshape(len(x), x.shape[1:].numel()) @ self.weight + c_noise.unsqueeze(1) * self.level
            )
        )
        if label is not None:
            hidden = hidden + self.labels[label]
        return hidden.view(x.shape)


class Recorder(nn.Module):
    """Remembers what a consistency function is called with, and answers with something else."""

    def __init__(self, function=None):
        super().__init__()
        self.noise_range = NoiseRange()
        self.function = function or (lambda x, sigma: x * 0.5)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen = []

    def forward(self, x, sigma, **cond):
        self.seen.append((x.detach(), sigma, cond))
        return self.scale * self.function(x, sigma)
