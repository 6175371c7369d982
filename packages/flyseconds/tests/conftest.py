import pytest
import torch
from hypothesis import settings

from flyseconds import QuadrotorParams

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def params():
    return QuadrotorParams.crazyflie_paper(dtype=torch.float64)
