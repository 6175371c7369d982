import os

import pytest
from hypothesis import settings

# With the lowest versions it is enough that everything runs.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") == "1" else 10
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def rehearsal():
    """The smoke demo, run once: its result and the progress it told."""
    from neuralcollapse.demo import demo

    told = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: told.append(fraction))
    return result, told
