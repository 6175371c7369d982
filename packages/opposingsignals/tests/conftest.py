import os

import pytest
import torch
from helpers import Sentences
from hypothesis import settings

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 25
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture
def sentences():
    torch.manual_seed(0)
    return Sentences().double(), torch.randint(5, (6, 7))
