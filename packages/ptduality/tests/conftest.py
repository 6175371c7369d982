import os

from hypothesis import settings

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 25
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")
