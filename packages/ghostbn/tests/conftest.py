import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from ghostbn.demo import demo

FEW = os.environ.get("ARMILLARY_LOWEST") == "1"  # the lowest versions are tried for their interfaces
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=3 if FEW else 20)
settings.load_profile("isolated")


def members_by_hand(num_samples, ghost_size, grouping, remainder):
    """Sample indices of each ghost batch, one list after another, written as one would say it."""
    num_full, rest = divmod(num_samples, ghost_size)
    tail = []
    if rest and remainder == "merge" and num_full > 0:
        num_full -= 1
        rest += ghost_size
    if rest:
        tail = [list(range(num_samples - rest, num_samples))]
    body = range(num_full * ghost_size)
    if grouping == "strided":
        return [[n for n in body if n % num_full == group] for group in range(num_full)] + tail
    return [list(body[start : start + ghost_size]) for start in body[::ghost_size]] + tail


def loop_over_groups(layer, x, members):
    """Call an ordinary layer on one ghost batch after another."""
    y = torch.empty_like(x)
    for samples in members:
        y[samples] = layer(x[samples])
    return y


def randomise(layer, generator):
    """Give a layer scales, shifts and running statistics that no default hides."""
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            if tensor is not None:
                tensor.uniform_(0.5, 2.0, generator=generator)
    return layer


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def by_hand():
    """The naive loop: members of the ghost batches, and a layer called on each of them."""
    return members_by_hand, loop_over_groups, randomise


@pytest.fixture
def network(generator):
    """Make a small float64 convolutional network with a plain batch normalisation of each kind of input."""

    def make():
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Linear(6, 3),
        ).double()
        fixed = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=fixed, dtype=torch.float64) / 2)
        return model

    return make


@pytest.fixture(scope="session")
def rehearsal():
    """The smoke demo, run once: its result and the progress it told."""
    told = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: told.append((fraction, message)))
    return result, told
