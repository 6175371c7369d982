"""invdyn against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, normalize
from torch.utils.data import DataLoader, Dataset, TensorDataset

from invdyn import (
    BehaviorCloning,
    InverseDynamics,
    PixelEncoder,
    cross_prediction,
    encode,
    fit_probe,
    info_nce,
    iterate_batches,
    iterate_sequences,
    transition_index,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
LOOSE = {"rtol": 1e-3, "atol": 1e-6}  # float32 sums in another order


def encoder():
    return PixelEncoder(3, 32, 16, channels=(16, 32, 32), strides=(2, 2, 1), keypoints=32)


@cache
def world(episodes=40, steps=25):
    """Random episodes, a seeded objective in evaluation mode."""
    torch.manual_seed(0)
    buffer = {
        "obs": torch.randint(256, (episodes * (steps + 1), 3, 32, 32)).to(torch.uint8),
        "action": 2 * torch.rand(episodes * steps, 2) - 1,
        "lengths": torch.full((episodes,), steps),
    }
    return buffer, InverseDynamics(encoder(), 16, 2).eval()


def compare(benchmark, case, ours, peer, about, size, rounds=15, exactly=LOOSE, read=None):
    """Time one case, after both have given the same, or the same of what `read` sees in it."""
    seen = read or (lambda found: found)
    torch.testing.assert_close(seen(ours()), seen(peer()), **exactly)
    benchmark.extra_info.update(case=case, peer=about, size=size)
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=rounds, warmup_rounds=1)


# --- sequences ------------------------------------------------------------------------------------


def loss_and_gradients(loss, objective):
    parameters = list(objective.parameters())
    return loss, *torch.autograd.grad(loss, parameters)


@both
@pytest.mark.benchmark(group="loss and gradients of whole sequences")
def test_sequences(benchmark, case):
    buffer, objective = world()
    (sequence,) = iterate_sequences(buffer, 40, shuffle=False)
    obs, action = sequence.obs[:8], sequence.action[:8]

    def peer():
        """What one writes: the encoder on both frames of all pairs, in one call."""
        pixels = obs.float() / 255
        pairs = torch.cat([pixels[:, :-1].flatten(0, 1), pixels[:, 1:].flatten(0, 1)])
        now, after = objective.encoder(pairs).chunk(2)
        found = objective.head(torch.cat([now, after], 1)).tanh()
        return loss_and_gradients((found - action.flatten(0, 1)).square().mean(), objective)

    def ours():
        return loss_and_gradients(objective.loss_sequence(obs, action), objective)

    about = "the encoder on both frames of every pair, one call"
    compare(benchmark, case, ours, peer, about, "8 sequences of 26 frames, 32 x 32")


@both
@pytest.mark.benchmark(group="loss and gradients of transitions")
def test_transitions(benchmark, case):
    buffer, objective = world()
    (batch, *_) = iterate_batches(buffer, transition_index(buffer["lengths"]), 64, shuffle=False)

    def peer():
        pixels, after = batch.obs.float() / 255, batch.next_obs.float() / 255
        both_frames = torch.cat([objective.encoder(pixels), objective.encoder(after)], 1)
        found = objective.head(both_frames).tanh()
        return loss_and_gradients((found - batch.action).square().mean(), objective)

    def ours():
        return loss_and_gradients(objective.loss(batch), objective)

    compare(benchmark, case, ours, peer, "two calls of the encoder", "64 transitions, 32 x 32")


# --- loading --------------------------------------------------------------------------------------


def moments(batches):
    """What an epoch holds, whatever its order: sums of observations, actions and next observations."""
    return torch.stack(
        [torch.stack([one[field].sum(dtype=torch.float64) for one in batches]).sum() for field in range(3)]
    )


class Pairs(Dataset):
    """A data set of transitions as one writes it, over the episodes of a list."""

    def __init__(self, buffer):
        steps = int(buffer["lengths"][0])
        self.obs = list(buffer["obs"].split(steps + 1))
        self.action = list(buffer["action"].split(steps))
        self.place = [(e, t) for e in range(len(self.obs)) for t in range(steps)]

    def __len__(self):
        return len(self.place)

    def __getitem__(self, number):
        episode, step = self.place[number]
        return self.obs[episode][step], self.action[episode][step], self.obs[episode][step + 1]


@both
@pytest.mark.benchmark(group="an epoch of transitions")
def test_epoch(benchmark, case):
    buffer, _ = world()
    index, loader = (
        transition_index(buffer["lengths"]),
        DataLoader(Pairs(buffer), batch_size=64, shuffle=True),
    )

    def ours():
        return list(iterate_batches(buffer, index, 64, drop_last=False))

    def peer():
        return list(loader)

    about = "torch's DataLoader over a list of episodes"
    compare(benchmark, case, ours, peer, about, "1,000 transitions, batches of 64, 32 x 32", read=moments)


# --- fine-tuning ----------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="a step of a policy on a frozen encoder")
def test_frozen(benchmark, case):
    buffer, objective = world()
    features = encode(objective.encoder, buffer["obs"])
    policy = BehaviorCloning(nn.Identity(), 16, 2).eval()
    rows = torch.arange(64)
    action = buffer["action"][rows]
    parameters = list(policy.head.parameters())

    def step(embeddings):
        loss = (policy(embeddings) - action).square().mean()
        return loss, *torch.autograd.grad(loss, parameters)

    def ours():
        return step(features[rows])

    def peer():
        with torch.no_grad():
            embeddings = objective.encoder(buffer["obs"][rows].float() / 255)
        return step(embeddings)

    about = "the frozen encoder in every step"
    compare(benchmark, case, ours, peer, about, "64 frames, 32 x 32", rounds=50)


@both
@pytest.mark.benchmark(group="contrast of a batch")
def test_contrast(benchmark, case):
    u, v = normalize(torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(0)), dim=2)

    def peer():
        return cross_entropy(u @ v.T / 0.1, torch.arange(256))

    about, size = "cross_entropy of u v^T, one line", "B = 256, k = 64"
    compare(benchmark, case, lambda: info_nce(u, v, 0.1), peer, about, size, rounds=50)


# --- probes ---------------------------------------------------------------------------------------


@cache
def representations():
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(1500, 4, generator=generator)
    mix = torch.randn(5, 4, 16, generator=generator)
    return {f"rep {number}": torch.tanh(state @ one) for number, one in enumerate(mix)}


@both
@pytest.mark.benchmark(group="linear probe with error bars")
def test_linear_probe(benchmark, case):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = representations()["rep 0"], representations()["rep 1"]
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(1))
    held_out = torch.zeros(1500, dtype=torch.bool)
    held_out[order[:375]] = True

    def ours():
        found = fit_probe(x, y, hidden=(), generator=torch.Generator().manual_seed(1))
        return torch.tensor(found.r2, dtype=torch.float64)

    def peer():
        train, test = ~held_out.numpy(), held_out.numpy()
        x64, y64 = x.double().numpy(), y.double().numpy()
        model = linear_model.LinearRegression().fit(x64[train], y64[train])
        errors, wanted = (model.predict(x64[test]) - y64[test]) ** 2, y64[test]
        rows = torch.randint(375, (1000, 375), generator=torch.Generator().manual_seed(2)).numpy()
        drawn = [1 - errors[own].sum() / ((wanted[own] - wanted[own].mean(0)) ** 2).sum() for own in rows]
        assert len(drawn) == 1000
        r2 = 1 - errors.sum() / ((wanted - wanted.mean(0)) ** 2).sum()
        return torch.tensor(r2, dtype=torch.float64)

    about = "scikit-learn's LinearRegression and a NumPy bootstrap"
    compare(benchmark, case, ours, peer, about, "N = 1,500, d = 16, K = 16, 1,000 resamples")


@both
@pytest.mark.benchmark(group="cross-prediction of five representations")
def test_cross_prediction(benchmark, case):
    reps, steps = representations(), 200

    def ours():
        found = cross_prediction(
            reps, steps=steps, learning_rate=1e-2, generator=torch.Generator().manual_seed(0)
        )
        return found.matrix

    def peer():
        values = [(one - one.mean(0)) / one.std(0) for one in reps.values()]
        errors = torch.zeros(5, 5, dtype=torch.float64)
        for i, x in enumerate(values):
            for j, y in enumerate(values):
                errors[i, j] = alone(x, y, steps)
        return errors

    about = "25 networks one after the other"
    size = "5 representations of 16 numbers, N = 1,500, 200 steps"
    compare(benchmark, case, ours, peer, about, size, rounds=1, exactly={"rtol": 0, "atol": 0.08})


def alone(x, y, steps):
    torch.manual_seed(0)
    first, last = nn.Linear(x.shape[1], 64), nn.Linear(64, y.shape[1])
    optimizer = torch.optim.Adam([*first.parameters(), *last.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(1125, (256,))
        loss = (last(gelu(first(x[rows]), approximate="tanh")) - y[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        errors = (last(gelu(first(x[1125:]), approximate="tanh")) - y[1125:]).square().sum()
    return (errors / (y[1125:] - y[1125:].mean(0)).square().sum()).double()


# --- the published way ----------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="an epoch with its frames encoded, the published way")
def test_published_epoch(benchmark, case):
    buffer, objective = world()
    obs, action = buffer["obs"].unflatten(0, (40, 26)), buffer["action"].unflatten(0, (40, 25))

    @torch.no_grad()
    def ours():
        losses = [objective.loss_sequence(obs[e : e + 4], action[e : e + 4]) for e in range(0, 40, 4)]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def peer():
        losses = []
        for pixels, after, wanted in DataLoader(
            TensorDataset(obs[:, :-1].flatten(0, 1), obs[:, 1:].flatten(0, 1), action.flatten(0, 1)), 100
        ):
            now, then = (objective.encoder(frames.float() / 255) for frames in (pixels, after))
            losses.append((objective.head(torch.cat([now, then], 1)).tanh() - wanted).square().mean())
        return torch.stack(losses).mean()

    about = "a DataLoader of pairs, two calls of the encoder"
    compare(benchmark, case, ours, peer, about, "1,000 transitions, 32 x 32, losses only")
