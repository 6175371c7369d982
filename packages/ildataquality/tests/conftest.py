import pytest
from helpers import random_episodes
from hypothesis import settings

from ildataquality import Episodes

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("isolated")


@pytest.fixture
def episodes():
    return Episodes.from_arrays(random_episodes(0))
