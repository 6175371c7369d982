import os
from itertools import pairwise

import pytest
import torch
from hypothesis import settings
from torch import nn

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 12
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def build_mlp(*sizes, seed=0, activation=nn.ReLU, scale=1.0):
    """A float64 network with Gaussian weights and biases."""
    generator = seeded(seed)
    layers = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(
                scale * torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
            )
            linear.bias.copy_(0.5 * scale * torch.randn(outputs, generator=generator, dtype=torch.float64))
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def build_convnet(seed=0):
    """A small convolutional network with everything that the exact partition supports."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm2d(3),
            nn.LeakyReLU(0.1),
            nn.AvgPool2d(2),
            nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Dropout(0.5)),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        nn.init.normal_(model[1].bias)
    return model.double().eval()


@pytest.fixture(scope="session")
def mlp():
    return build_mlp


@pytest.fixture(scope="session")
def convnet():
    return build_convnet
