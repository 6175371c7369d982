import os

import numpy as np
import pytest
from hypothesis import settings

# The lowest versions are there to be imported and called, not to be searched for counterexamples.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 20
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def make_problem(num=90, dimensions=8, num_classes=5, spread=0.5, offset=0.0, dtype=np.float64, seed=0):
    """Overlapping classes of unequal sizes and radii, and a corpus of other scales and another mean."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=num)]))[
        :num
    ]
    means = spread * rng.normal(size=(num_classes, dimensions))
    widths = rng.uniform(0.3, 1.5, size=(num_classes, 1)) * rng.uniform(0.5, 1.5, size=dimensions)
    features = means[labels] + widths[labels] * rng.normal(size=(num, dimensions)) + offset
    corpus = 0.4 + rng.uniform(0.7, 2.0, size=dimensions) * rng.normal(size=(300, dimensions)) + offset
    return features.astype(dtype), labels, corpus.astype(dtype)


@pytest.fixture(scope="session")
def problem():
    return make_problem
