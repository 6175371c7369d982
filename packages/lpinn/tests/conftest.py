import os

import pytest
from hypothesis import Phase, settings

# The numbers are the finding, so shrinking is left out: it costs minutes where derivatives are slow.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 4

settings.register_profile(
    "isolated", deadline=None, derandomize=True, max_examples=EXAMPLES, phases=PHASES, database=None
)
settings.load_profile("isolated")


@pytest.fixture(scope="session")
def smoke():
    """The smoke demo, run once: its result, what it told, and whether it left torch's generator alone."""
    import torch

    from lpinn.demo import demo

    told, before = [], torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    return result, told, torch.equal(torch.random.get_rng_state(), before)
