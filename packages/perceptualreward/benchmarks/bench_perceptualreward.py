"""perceptualreward against what one would write instead: the same cuts and rewards first, then the time."""

import math
from functools import cache

import pytest
import torch

from perceptualreward import PerceptualReward, discover_steps

both = pytest.mark.parametrize("case", ["ours", "peer"])


@cache
def film(length, num_features):
    """Frames of three steps of uneven lengths, with noise."""
    source = torch.Generator().manual_seed(0)
    levels = torch.randn(3, num_features, generator=source)
    labels = torch.bucketize(torch.arange(length), torch.tensor([length // 2, 3 * length // 4]), right=True)
    return levels[labels] + 0.5 * torch.randn(length, num_features, generator=source)


def by_segments(X, n_steps, min_size=3):
    """The usual way: `std` of every segment, then dynamic programming in Python."""
    length = len(X)
    costs = torch.full((length + 1, length + 1), math.inf, dtype=torch.float64)
    for start in range(length):
        for end in range(start + min_size, length + 1):
            costs[start, end] = X[start:end].double().std(0, correction=0).mean()
    best, ends = costs[:, length], []
    for _ in range(n_steps - 1):
        totals = costs + best
        ends.append(totals.argmin(1))
        best = totals.amin(1)
    cuts, start = [], 0
    for end in reversed(ends):
        start = int(end[start])
        cuts.append(start)
    return torch.tensor(cuts)


@both
@pytest.mark.benchmark(group="step discovery, against std of every segment")
def test_discovery(benchmark, case):
    X = film(100, 1000)
    assert torch.equal(discover_steps(X, 3), by_segments(X, 3))
    run = {"ours": lambda: discover_steps(X, 3), "peer": lambda: by_segments(X, 3)}
    peer = "std of every segment, then dynamic programming"
    benchmark.extra_info.update(case=case, peer=peer, size="100 frames of 1,000 features, 3 steps")
    benchmark.pedantic(run[case], rounds=5, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="step discovery, against the algorithm as printed")
def test_discovery_as_printed(benchmark, case):
    X = film(60, 200)
    method = {"ours": "dp", "peer": "recursive"}
    assert torch.equal(discover_steps(X, 3), discover_steps(X, 3, method="recursive"))
    peer = "the paper's recursion, which measures every segment anew"
    benchmark.extra_info.update(case=case, peer=peer, size="60 frames of 200 features, 3 steps")
    benchmark.pedantic(lambda: discover_steps(X, 3, method=method[case]), rounds=3)


@both
@pytest.mark.benchmark(group="reward of a batch of frames, against a Gaussian a step")
def test_reward(benchmark, case):
    demos = [film(length, 3000) for length in (60, 64, 72)]
    reward, frames = PerceptualReward.fit(demos, 3), film(256, 3000)
    exact = [torch.distributions.Normal(mu, sigma) for mu, sigma in zip(reward.mu, reward.sigma, strict=True)]

    def by_hand(x):
        normal, total = (x - reward.mean) / reward.std, 0.0
        for step in (1, 2):
            gaussian = exact[step]
            log_prob = gaussian.log_prob(normal[:, reward.index[step]]) - gaussian.log_prob(gaussian.mean)
            total = total + 2**step * 2 * log_prob.mean(1)
        return total

    torch.testing.assert_close(reward(frames), by_hand(frames), rtol=1e-2, atol=1e-2)
    run = {"ours": lambda: reward(frames), "peer": lambda: by_hand(frames)}
    peer = "torch.distributions.Normal for each step, all features normalised"
    benchmark.extra_info.update(case=case, peer=peer, size="256 frames of 3,000 features, 3 steps of 32")
    benchmark.pedantic(run[case], rounds=20, iterations=10, warmup_rounds=1)
