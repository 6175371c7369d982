import functools
import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from robustmeanteacher import RobustMeanTeacher, RobustMeanTeacherConfig

LOWEST = "ARMILLARY_LOWEST" in os.environ  # the oldest versions: does it run at all
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=3 if LOWEST else 8)
settings.load_profile("isolated")


def make_network(classes=4, features=6, channels=3, seed=0, dtype=torch.float64):
    """A convolutional classifier of somebody's own code base, with BatchNorm whose statistics are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 5, 3, stride=2),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, features),
        nn.ReLU(),
        nn.Linear(features, classes),
    ).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5)
        network[1].running_mean.copy_(torch.randn(5, generator=generator))
        network[1].running_var.copy_(torch.rand(5, generator=generator) + 0.5)
    return network.eval()


def some_images(count=8, channels=3, size=9, seed=1, dtype=torch.float64):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


adam = functools.partial(torch.optim.Adam, lr=1e-2)


def make_adapter(network=None, *, seed=0, **changes):
    """Source-free unless told otherwise; `changes` go to the config if it knows them, else to the adapter."""
    network = make_network() if network is None else network
    known = RobustMeanTeacherConfig.__dataclass_fields__
    numbers = {"source_weight": 0.0} | {key: value for key, value in changes.items() if key in known}
    prototypes = torch.randn(4, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    arguments = {"split": "7", "make_optimizer": adam, "prototypes": prototypes}
    arguments |= {key: value for key, value in changes.items() if key not in known}
    generator = torch.Generator().manual_seed(seed)
    config = RobustMeanTeacherConfig(**numbers)
    return RobustMeanTeacher(network, config=config, generator=generator, **arguments)


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def images():
    return some_images()


@pytest.fixture(scope="session")
def build():
    return make_adapter


@pytest.fixture(scope="session")
def build_network():
    return make_network


@pytest.fixture(scope="session")
def draw_images():
    return some_images
