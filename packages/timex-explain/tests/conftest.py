import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from timex_explain import Replacement, TimeX

# The lowest versions are tried for their interfaces: few examples are enough there.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") == "1" else 8
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")

LENGTH, NUM_FEATURES, NUM_CLASSES = 12, 3, 4


class Recurrent(nn.Module):
    """A classifier of somebody's own code base: dropout, no module whose output is the vector of the head."""

    def __init__(self, num_features=NUM_FEATURES, num_classes=NUM_CLASSES):
        super().__init__()
        self.rnn = nn.GRU(num_features, 10, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(10, num_classes)

    def forward(self, series, lengths_mask=None, stamps=None):
        states, _ = self.rnn(series if stamps is None else series + stamps.unsqueeze(-1))
        if lengths_mask is not None:
            states = states.masked_fill(lengths_mask.unsqueeze(-1), 0)
        return self.head(self.drop(states.sum(1)))


class Attentive(nn.Module):
    """A classifier whose attention takes a mask."""

    def __init__(self, num_features=NUM_FEATURES, num_classes=NUM_CLASSES):
        super().__init__()
        self.value, self.head = nn.Linear(num_features, 6), nn.Linear(6, num_classes)

    def forward(self, x, gate=None):
        weights = (x @ x.mT).softmax(-1)
        return self.head(((weights if gate is None else weights * gate) @ self.value(x)).mean(1))


@pytest.fixture(scope="session")
def recurrent():
    """The class of the recurrent classifier."""
    return Recurrent


@pytest.fixture(scope="session")
def attentive():
    """The class of the classifier with attention."""
    return Attentive


@pytest.fixture(scope="session")
def series():
    """Series, their classes and a replacement, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, LENGTH, NUM_FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.arange(16) % NUM_CLASSES, Replacement.fit(x)


@pytest.fixture
def make_explainer(series):
    """An explainer of a recurrent classifier (in training mode, with dropout), small and in float64."""
    x, y, replacement = series

    def make(**options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = options.pop("model", Recurrent)().double()
            defaults = {"embed": "head", "embed_side": "input", "num_landmarks": 5}
            explainer = TimeX(model, replacement, **(defaults | options))
        explainer.init_landmarks([(x, y)], torch.Generator().manual_seed(0))
        return explainer

    return make
