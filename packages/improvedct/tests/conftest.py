import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from improvedct import Consistency

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 25
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")

sys.path.insert(0, str(Path(__file__).parent))  # for the toys, which pytest's importlib mode does not find
from improvedct_toys import Net  # noqa: E402


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    return Consistency(Net(3))
