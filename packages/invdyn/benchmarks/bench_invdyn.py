"""invdyn against what a competent user would pick instead: a group is exactly two cases on the same input."""

import pytest


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="placeholder")
def test_placeholder(benchmark, case):
    values = list(range(1000))
    run = {"ours": lambda: sum(values), "peer": lambda: sum(value for value in values)}
    assert run["ours"]() == run["peer"]()
    benchmark.extra_info.update(case=case, peer="a generator expression", size="1,000 integers")
    benchmark(run[case])
