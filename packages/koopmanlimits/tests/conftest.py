import os

import pytest
import torch
from hypothesis import settings

LOWEST = os.environ.get("ARMILLARY_LOWEST") == "1"  # the lowest versions are asked whether all runs at all
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=3 if LOWEST else 8)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def circle():
    """Equispaced angles (M, 1) in radians."""
    return lambda count: torch.linspace(0, 2 * torch.pi, count + 1, dtype=torch.float64)[:-1, None]
