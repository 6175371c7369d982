"""Small networks with drawn weights, for several test files."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Branches, functions, methods and constants, as an ordinary forward pass has them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(32, 3)

    def forward(self, x):
        hidden = F.relu(self.norm(self.first(2 * x - 0.5)))
        hidden = torch.tanh(self.second(hidden)) + hidden
        hidden = torch.cat([F.max_pool2d(hidden, 2), -F.avg_pool2d(hidden, 2)], dim=1)
        return self.head(torch.relu(hidden).reshape(hidden.size(0), -1))


def mlp():
    return nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 3, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


MODELS = {"mlp": (mlp, (6,)), "cnn": (cnn, (2, 4, 4)), "residual": (Residual, (2, 4, 4))}


def draw(kind, seed, batch=5):
    """A model with weights and running statistics of the seed, and a batch in [0, 1]."""
    make, shape = MODELS[kind]
    generator = torch.Generator().manual_seed(seed)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel())
            )
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model, torch.rand(batch, *shape, generator=generator, dtype=torch.float64), generator
