"""morec against its natural peers: each group is one comparison, exactly two cases on the same input."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from morec import DynamicsReward, TransitionDiscriminator, TransitionNormalizer
from morec.reference.sac import GroupedSAC

MEMBERS, CANDIDATES, OBS_DIM, ACT_DIM = 40, 10, 17, 6


def scoring(batch):
    """One reward, the modules it was made of, and something to judge."""
    generator = torch.Generator().manual_seed(0)
    snapshots = [TransitionDiscriminator(OBS_DIM, ACT_DIM, generator=generator) for _ in range(MEMBERS)]
    normalizer = TransitionNormalizer(OBS_DIM, ACT_DIM)
    shapes = (batch, OBS_DIM), (batch, ACT_DIM), (CANDIDATES, batch, OBS_DIM)
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    return DynamicsReward(normalizer, snapshots), normalizer, snapshots, inputs


def loop(normalizer, snapshots, obs, act, candidates):
    scores = []
    for one in candidates:
        total = 0
        for snapshot in snapshots:
            total = total + torch.sigmoid(snapshot(normalizer.encode(obs, act, one)))
        scores.append(-torch.log(1 - total / len(snapshots) + 1e-9))
    return torch.stack(scores)


def flattened(normalizer, snapshots, obs, act, candidates):
    """What one writes oneself: all candidates as one batch, a loop over the separate modules."""
    encoded = normalizer.encode(obs.expand(CANDIDATES, -1, -1), act.expand(CANDIDATES, -1, -1), candidates)
    encoded = encoded.flatten(0, 1)
    probability = torch.stack([torch.sigmoid(snapshot(encoded)) for snapshot in snapshots]).mean(0)
    return -torch.log(1 - probability + 1e-9).view(candidates.shape[:2])


def stacked(reward, normalizer, obs, act, candidates, chunks=1):
    """Stacked weights and nothing else, the flattened candidates in so many chunks."""
    encoded = normalizer.encode(obs.expand(CANDIDATES, -1, -1), act.expand(CANDIDATES, -1, -1), candidates)
    probabilities = []
    for part in encoded.flatten(0, 1).chunk(chunks):
        hidden = part.expand(MEMBERS, -1, -1)
        layers = zip(reward.ensemble.weights, reward.ensemble.biases, strict=True)
        for index, (weight, bias) in enumerate(layers):
            hidden = torch.baddbmm(bias, hidden.relu() if index else hidden, weight)
        probabilities.append(torch.sigmoid(hidden.squeeze(-1)).mean(0))
    return -torch.log(1 - torch.cat(probabilities) + 1e-9).view(candidates.shape[:2])


# What one writes oneself, what the official code does, and what nobody should.
PEERS = {
    "candidates flattened": "a loop over separate modules on flattened candidates",
    "official": "the official way: stacked weights, flattened candidates in 20 chunks",
    "candidates looped": "a loop over snapshots and candidates with separate modules",
}


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    ("batch", "way"),
    [
        pytest.param(size, way, marks=pytest.mark.benchmark(group=f"dynamics reward, {size:,} states, {way}"))
        for way in PEERS
        for size in (1, 16, 2000)
    ],
)
@torch.no_grad()
def test_scores(benchmark, batch, way, case):
    reward, normalizer, snapshots, inputs = scoring(batch)
    peers = {
        "candidates flattened": lambda: flattened(normalizer, snapshots, *inputs),
        "official": lambda: stacked(reward, normalizer, *inputs, chunks=20),
        "candidates looped": lambda: loop(normalizer, snapshots, *inputs),
    }
    run = {"ours": lambda: reward(*inputs), "peer": peers[way]}
    torch.testing.assert_close(run["ours"](), run["peer"](), atol=1e-5, rtol=1e-5)
    size = f"{MEMBERS} snapshots of 2 x 128, {CANDIDATES} candidates, {batch:,} states"
    benchmark.extra_info.update(case=case, peer=PEERS[way], size=size)
    benchmark.pedantic(run[case], rounds=5, iterations=20 if batch == 1 else 1, warmup_rounds=1)


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation hands out."""

    largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="dynamics reward, memory")
@torch.no_grad()
def test_memory(benchmark, case):
    reward, normalizer, _, inputs = scoring(2000)
    run = {"ours": lambda: reward(*inputs), "peer": lambda: stacked(reward, normalizer, *inputs)}
    torch.testing.assert_close(run["ours"](), run["peer"](), atol=1e-5, rtol=1e-5)
    with LargestTensor() as seen:
        run[case]()
    size = f"{MEMBERS} snapshots of 2 x 128, {CANDIDATES} candidates, 2,000 states"
    peer = "stacked weights without chunks"
    benchmark.extra_info.update(
        case=case, peer=peer, size=size, quantity="largest tensor (MB)", value=seen.largest / 1e6
    )
    benchmark.pedantic(run[case], rounds=3, warmup_rounds=1)


def agents(groups):
    return GroupedSAC(3, 1, [torch.Generator().manual_seed(seed) for seed in groups])


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="reference agents, one update of eight")
def test_grouped_agents(benchmark, case):
    generator, count = torch.Generator().manual_seed(0), 8
    batch = {
        "obs": torch.randn(count, 128, 3, generator=generator),
        "act": torch.rand(count, 128, 1, generator=generator),
        "next_obs": torch.randn(count, 128, 3, generator=generator),
        "reward": torch.randn(count, 128, generator=generator),
        "terminal": torch.zeros(count, 128),
    }
    single = [{name: column[row : row + 1] for name, column in batch.items()} for row in range(count)]
    together, alone = agents(range(count)), [agents([seed]) for seed in range(count)]

    def peer():
        for agent, part in zip(alone, single, strict=True):
            agent.update(part)

    together.update(batch)
    peer()
    for row, agent in enumerate(alone):
        for joint, own in zip(together.actor.parameters(), agent.actor.parameters(), strict=True):
            torch.testing.assert_close(joint[row : row + 1], own, atol=1e-5, rtol=1e-4)
    run = {"ours": lambda: together.update(batch), "peer": peer}
    benchmark.extra_info.update(case=case, peer="eight separate agents", size="batch 128, networks of 2 x 64")
    benchmark.pedantic(run[case], rounds=10, warmup_rounds=2)
