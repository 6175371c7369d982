"""ssorl against its natural peers: one group, exactly two cases, the same input, equal answers first."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from ssorl import Episode, InverseDynamics, label_episodes, windows
from ssorl.windows import StateTable

both = pytest.mark.parametrize("case", ["ours", "peer"])


@cache
def problem(num=200, length=500, obs_dim=17):
    """Episodes of unequal lengths without actions."""
    rng = np.random.default_rng(0)
    return [
        Episode(rng.standard_normal((n + 1, obs_dim), dtype=np.float32), np.zeros(n, np.float32), False, id=i)
        for i, n in enumerate(rng.integers(length // 2, length * 3 // 2, num))
    ]


def compare(benchmark, case, run, peer, size, *, rounds=5, tolerance=0.0):
    torch.testing.assert_close(run["ours"](), run["peer"](), rtol=tolerance, atol=tolerance)
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    benchmark.pedantic(run[case], rounds=rounds, warmup_rounds=1)


def full(episode):
    return np.concatenate([episode.observations, episode.next_observations[-1:]])


def said(episodes):
    return f"{len(episodes)} episodes, {sum(map(len, episodes)):,} steps, S = 17, k = 1"


def strided(episodes, k):
    """The vectorised lines that anyone writes: NumPy's sliding windows, one episode after the other."""
    found = []
    for episode in episodes:
        states = full(episode)
        padded = np.concatenate([np.repeat(states[:1], k, axis=0), states])
        found.append(sliding_window_view(padded, k + 2, axis=0).transpose(0, 2, 1))
    return torch.from_numpy(np.concatenate(found))


@both
@pytest.mark.benchmark(group="all windows")
def test_windows(benchmark, case):
    episodes = problem()
    run = {"ours": lambda: windows(episodes, 1)[0], "peer": lambda: strided(episodes, 1)}
    compare(benchmark, case, run, "NumPy's sliding_window_view, episode by episode", said(episodes))


@both
@pytest.mark.benchmark(group="a batch of windows for training")
def test_batch(benchmark, case):
    """What a training step needs: 1,024 windows, gathered from the table or indexed among all windows kept."""
    episodes = problem()
    table, kept = StateTable(episodes), strided(episodes, 1)
    rows = torch.randint(table.num_steps, (1024,), generator=torch.Generator().manual_seed(0))
    run = {"ours": lambda: table.windows(rows, 1), "peer": lambda: kept[rows]}
    compare(
        benchmark,
        case,
        run,
        "indexing windows that are all kept, 3 times the memory",
        said(episodes),
        rounds=200,
    )


def networks(model):
    """The same members as torch's own modules, mean and log std apart."""
    found = []
    for member in range(model.members):
        pair = []
        for head in range(2):
            layers = []
            for weight, bias in zip(model.weights, model.biases, strict=True):
                linear = nn.Linear(weight.shape[2], weight.shape[3])
                linear.weight.data, linear.bias.data = (
                    weight[member, head].detach().T.clone(),
                    bias[member, head].detach(),
                )
                layers += [linear, nn.ReLU()]
            pair.append(nn.Sequential(*layers[:-1]))
        found.append(pair)
    return found


def mixture(pairs, x):
    mean = torch.stack([mu(x).tanh() for mu, _ in pairs])
    std = torch.stack([(-5 + 3.5 * (raw(x).tanh() + 1)).exp() for _, raw in pairs])
    middle = mean.mean(0)
    return torch.cat(
        [middle, (std.square().mean(0) + (mean - middle).square().mean(0)).mean(-1, keepdim=True)], 1
    )


def labels(model, episodes):
    found = label_episodes(model, episodes)
    rows = [np.concatenate([e.actions, e.uncertainty[:, None]], axis=1) for e in found]
    return torch.from_numpy(np.concatenate(rows))


@torch.no_grad()
def batched_labels(pairs, episodes):
    """All windows at once through each network, in pieces."""
    x = strided(episodes, 1).flatten(1)
    return torch.cat([mixture(pairs, part) for part in x.split(8192)])


@torch.no_grad()
def official_labels(pairs, episodes):
    """The published way: a list of slices an episode, and one pass an episode and network."""
    found = []
    for episode in episodes:
        states = full(episode)
        rows = [states[max(0, t - 1) : t + 2] for t in range(len(episode))]
        rows[0] = np.concatenate([states[:1], rows[0]])
        found.append(mixture(pairs, torch.from_numpy(np.array(rows)).flatten(1)))
    return torch.cat(found)


def ensemble(hidden):
    return InverseDynamics(17, 6, 1, hidden, members=3, generator=torch.Generator().manual_seed(0))


@both
@pytest.mark.benchmark(group="labelling, small networks")
def test_labelling(benchmark, case):
    episodes, model = problem(), ensemble((64, 64))
    pairs = networks(model)
    run = {"ours": lambda: labels(model, episodes), "peer": lambda: batched_labels(pairs, episodes)}
    told = f"{said(episodes)}, 3 members of 64 x 2"
    compare(
        benchmark,
        case,
        run,
        "all windows in batches through a list of nn.Sequential",
        told,
        rounds=3,
        tolerance=1e-4,
    )


@both
@pytest.mark.benchmark(group="a training step of an ensemble")
def test_training_step(benchmark, case):
    model = ensemble((256, 256)).eval()
    pairs = networks(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 17, generator=generator)
    a = torch.rand(256, 6, generator=generator) * 1.8 - 0.9

    def ours():
        model.zero_grad(set_to_none=True)
        loss = model.nll(x, a).mean(1).sum()
        loss.backward()
        return loss.detach()

    def peer():
        loss = torch.zeros(())
        for mu, raw in pairs:
            for net in (mu, raw):
                net.zero_grad(set_to_none=True)
            base = torch.distributions.Normal(
                mu(x.flatten(1)), (-5 + 3.5 * (raw(x.flatten(1)).tanh() + 1)).exp()
            )
            squashed = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform())
            loss = loss - squashed.log_prob(a).sum(1).mean()
        loss.backward()
        return loss.detach()

    told = "batch of 256, S = 17, A = 6, 3 members of 256 x 2"
    name = "nn.Sequential and torch.distributions, a loop over members"
    compare(benchmark, case, {"ours": ours, "peer": peer}, name, told, rounds=20, tolerance=1e-3)


@both
@pytest.mark.benchmark(group="labelling, the published way")
def test_published_labelling(benchmark, case):
    episodes, model = problem(), ensemble((64, 64))
    pairs = networks(model)
    run = {"ours": lambda: labels(model, episodes), "peer": lambda: official_labels(pairs, episodes)}
    told = f"{said(episodes)}, 3 members of 64 x 2"
    compare(
        benchmark,
        case,
        run,
        "slices in a list, a pass an episode and network",
        told,
        rounds=2,
        tolerance=1e-4,
    )


def official_windows(episodes):
    """The published way: one slice, one concatenation and one tensor a step."""
    found = []
    for episode in episodes:
        for step in range(len(episode)):
            part = episode.observations[max(0, step - 1) : min(len(episode), step + 2)]
            part = np.concatenate([np.zeros((3 - len(part), 17)), part])
            found.append(torch.from_numpy(part).to(torch.float32))
    return torch.stack(found)


@both
@pytest.mark.benchmark(group="all windows, the published way")
def test_published_windows(benchmark, case):
    episodes = problem()[:40]
    run = {"ours": lambda: windows(episodes, 1, parity=True)[0], "peer": lambda: official_windows(episodes)}
    compare(benchmark, case, run, "a slice, a concatenation and a tensor a step", said(episodes), rounds=2)
