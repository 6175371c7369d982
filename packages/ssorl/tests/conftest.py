import os

from hypothesis import settings

# The lowest versions are there to be imported and called, not to be searched for counterexamples.
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 15
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")
