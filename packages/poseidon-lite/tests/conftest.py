import os
import runpy
from pathlib import Path

import pytest
from hypothesis import settings

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 10
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def official():
    """The network built from the modules of transformers, and a function that builds it with equal weights."""
    return runpy.run_path(str(Path(__file__).parent / "peer.py"))
