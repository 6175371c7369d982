import os

import pytest
import torch
from hypothesis import settings

from flyseconds import QuadrotorParams

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 5
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def params():
    return QuadrotorParams.crazyflie_paper(dtype=torch.float64)
