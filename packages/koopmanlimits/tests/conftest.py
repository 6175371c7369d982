import pytest
import torch
from hypothesis import settings

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def circle():
    """Equispaced angles (M, 1) in radians."""
    return lambda count: torch.linspace(0, 2 * torch.pi, count + 1, dtype=torch.float64)[:-1, None]
