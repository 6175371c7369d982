import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynlinucb.demo import demo


@given(seed=st.integers(0, 2**31 - 1))
def test_demo_returns_plain_data_and_judges_its_own_criterion(seed):
    result = demo("smoke", seed=seed)
    assert json.loads(json.dumps(result)) == result
    baseline, method = result["rows"]
    assert result["holds"] == (method["score"] > baseline["score"])


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be .* got 'huge'"):
        demo("huge")
