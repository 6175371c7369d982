import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from stabilitygap import EvalSet, Trace

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 25
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture
def tasks():
    """Three tasks of unequal size, five inputs, four classes."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(4, (size,), generator=generator))
        for size in (7, 12, 9)
    ]


@pytest.fixture
def eval_set(tasks):
    return EvalSet.from_tasks(tasks)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(5, 4)


@pytest.fixture
def worked():
    """The card of the metrics: two tasks, two and three evaluations."""
    nan = float("nan")
    scores = [[0.5, nan], [0.9, nan], [0.4, 0.2], [0.7, 0.6], [0.8, 0.9]]
    return Trace.from_array(scores, current=[0, 0, 1, 1, 1])
