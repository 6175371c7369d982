import os

import pytest
from hypothesis import settings

# With the lowest versions it is enough that everything runs.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") == "1" else 20
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def smoke():
    """The smoke demo, run once, and the progress it reported."""
    from gacil.demo import demo

    calls = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: calls.append((fraction, message)))
    return result, calls
