import os

import pytest
from hypothesis import settings

LOWEST = os.environ.get("ARMILLARY_LOWEST") == "1"

settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=3 if LOWEST else 10)
settings.load_profile("isolated")


def pytest_collection_modifyitems(items):
    if LOWEST:
        skip = pytest.mark.skip(reason="the demo is not run with the lowest versions")
        for item in items:
            if item.get_closest_marker("demo"):
                item.add_marker(skip)
