import os

import pytest
import torch
from helpers import random_episodes
from hypothesis import settings

from ildataquality import Episodes
from ildataquality.demo import demo

LOWEST = os.environ.get("ARMILLARY_LOWEST") == "1"  # the lowest versions are tried for their interfaces
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=3 if LOWEST else 6)
settings.load_profile("isolated")


@pytest.fixture
def episodes():
    return Episodes.from_arrays(random_episodes(0))


@pytest.fixture(scope="session")
def smoke():
    """The smoke demo, what it told of its progress, and whether torch's own generator is as before; run once."""
    told, before = [], torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    return result, told, torch.equal(torch.random.get_rng_state(), before)
