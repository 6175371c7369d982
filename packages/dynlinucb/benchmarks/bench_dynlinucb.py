"""dynlinucb against what one would write instead: an agent asked round after round, in plain numpy."""

import math

import numpy as np
import pytest
import torch

from dynlinucb import DynamicalLinearBandit, DynLinUCB, LinUCB, budget_vertices, simulate

ACTIONS = budget_vertices([0.0] * 3, [1.0] * 3, 1.5).double()
NOISE_BLOCK = 1024  # `simulate` draws the noise of a replica in blocks of so many rounds
LEAN = "fifteen lines of numpy: Sherman-Morrison, all arms of a decision at once"
PLAIN = "the official code's way in numpy: a fresh inverse for every arm of a decision"


def campaign():
    """The paper's model of ad campaigns."""
    rows = (
        [[0.38, 0.33, 0.6], [0.07, 0.76, -0.54], [0.18, 0.34, 0.05]],
        [[0.14, 0.34, -0.05], [-0.17, 0.03, -0.01], [0.04, -0.09, 0.17]],
        [[0.25, -0.14, 0.01], [-0.55, 0.2, -0.13], [-0.31, -0.1, -0.01]],
        [[0.11, 0.1, 0.01], [0.01, 0.36, 0.01], [0.01, -0.05, 0.0]],
    )
    matrices = (torch.tensor(matrix, dtype=torch.float64) for matrix in rows)
    return DynamicalLinearBandit.from_multi_output(*matrices, torch.ones(3, dtype=torch.float64))


def noise_of(seed, horizon):
    """The noise of one replica, as `simulate` draws it."""
    generator, blocks = torch.Generator().manual_seed(seed), math.ceil(horizon / NOISE_BLOCK)
    parts = [torch.randn(1, NOISE_BLOCK, 4, generator=generator, dtype=torch.float64) for _ in range(blocks)]
    return torch.cat(parts, 1)[0, :horizon].numpy()


def first_best(values):
    """The lowest index among the largest values: symmetric actions tie up to rounding."""
    return (values >= values.max(-1, keepdims=True) - 1e-9).argmax(-1)


def radius_of(bounds, horizon, dimension, held):
    """beta as a function of the round; all that is constant is worked out before."""
    lam = math.log(horizon)
    bias, sigma = bounds.parameter_constant * math.sqrt(lam), bounds.reward_sigma
    size, first = bounds.action_norm**2 / (dimension * lam), bounds.transient_constant / math.sqrt(lam)

    def radius(t):
        found = bias + sigma * math.sqrt(2 * lam + dimension * math.log(1 + size * t))
        return found + first * (1 + math.log(t + 1)) if held else found

    return radius


class LeanAgent:
    """DynLin-UCB as one who knows numpy would write it for an online loop."""

    def __init__(self, table, bounds, horizon):
        self.table, self.radius = table, radius_of(bounds, horizon, table.shape[1], True)
        self.decay = -math.log(bounds.spectral_radius)
        self.inverse, self.estimate = np.eye(table.shape[1]) / math.log(horizon), np.zeros(table.shape[1])
        self.t = self.epoch = self.left = 0

    def act(self):
        if self.left == 0:
            self.epoch += 1
            self.left = 1 + int(math.log(self.epoch) / self.decay + 1e-9)
            widths = np.sqrt(((self.table @ self.inverse) * self.table).sum(1))
            self.u = self.table[np.argmax(self.table @ self.estimate + self.radius(self.t) * widths)]
        return self.u

    def update(self, reward):
        self.t += 1
        self.left -= 1
        if self.left == 0:
            gain = self.inverse @ self.u
            step = gain / (1 + gain @ self.u)
            self.estimate += step * (reward - self.u @ self.estimate)
            self.inverse -= np.outer(step, gain)


class PlainAgent:
    """DynLin-UCB, or LinUCB when nothing is held, as it is usually written."""

    def __init__(self, table, bounds, horizon, held):
        self.table, self.b, self.held = table, bounds, held
        self.lam, self.d = math.log(horizon), table.shape[1]
        self.beta = radius_of(bounds, horizon, self.d, held)
        self.V, self.vector, self.estimate = self.lam * np.eye(self.d), np.zeros(self.d), np.zeros(self.d)
        self.t, self.epoch, self.left = 0, 0, 0

    def pull_arm(self):
        if self.left == 0:
            bound, values = self.beta(self.t), np.zeros(len(self.table))
            for i, u in enumerate(self.table):
                values[i] = self.estimate @ u + bound * np.sqrt(u @ np.linalg.inv(self.V) @ u)
            self.index, self.epoch, self.left = int(first_best(values)), self.epoch + 1, 1
            if self.held:
                self.left += int(math.log(self.epoch) / -math.log(self.b.spectral_radius))
        return self.index

    def update(self, reward):
        self.t, self.left = self.t + 1, self.left - 1
        if self.left == 0:
            u = self.table[self.index]
            self.V = self.V + np.outer(u, u)
            self.vector = self.vector + u * reward
            self.estimate = np.linalg.inv(self.V) @ self.vector


def plain_runs(system, bounds, horizon, seeds, held):
    """One replica after the other, one round after the other."""
    A, B, omega, theta = (m.numpy() for m in (system.A, system.B, system.omega, system.theta))
    table = ACTIONS.numpy()
    played = np.zeros((len(seeds), horizon), dtype=np.int64)
    for row, seed in enumerate(seeds):
        agent, state = PlainAgent(table, bounds, horizon, held), np.zeros(3)
        noise = noise_of(seed, horizon)
        for t in range(horizon):
            played[row, t] = agent.pull_arm()
            u = table[played[row, t]]
            reward = omega @ state + theta @ u + system.noise_reward * noise[t, -1]
            state = A @ state + B @ u + system.noise_state * noise[t, :-1]
            agent.update(reward)
    return played


def batched_runs(system, bounds, horizon, seeds):
    """DynLin-UCB with all replicas in one batch and Sherman-Morrison, still round after round."""
    A, B, omega, theta = (m.numpy() for m in (system.A, system.B, system.omega, system.theta))
    table, count, lam = ACTIONS.numpy(), len(seeds), math.log(horizon)
    features = (table[:, :, None] * table[:, None]).reshape(len(table), -1).T.copy()
    inverse, estimate = np.repeat(np.eye(3)[None] / lam, count, 0), np.zeros((count, 3))
    state, beta = np.zeros((count, 3)), radius_of(bounds, horizon, 3, True)
    noise = np.stack([noise_of(seed, horizon) for seed in seeds], 1)
    scaled, eta = system.noise_state * noise[:, :, :-1], system.noise_reward * noise[:, :, -1]
    played, left, epoch = np.zeros((count, horizon), dtype=np.int64), 0, 0
    for t in range(horizon):
        if left == 0:
            widths = np.sqrt(inverse.reshape(count, -1) @ features)
            index, epoch = first_best(estimate @ table.T + beta(t) * widths), epoch + 1
            left, u = 1 + int(math.log(epoch) / -math.log(bounds.spectral_radius)), table[index]
        played[:, t] = index
        reward = state @ omega + u @ theta + eta[t]
        state = state @ A.T + u @ B.T + scaled[t]
        left -= 1
        if left == 0:
            gain = (inverse @ u[:, :, None])[:, :, 0]
            scale = 1 + (u * gain).sum(1, keepdims=True)
            estimate += gain * (reward - (u * estimate).sum(1))[:, None] / scale
            inverse -= gain[:, :, None] * (gain / scale)[:, None]
    return played


def our_runs(kind, system, bounds, horizon, seeds):
    policy = kind(ACTIONS, bounds, horizon=horizon, replicas=len(seeds))
    return simulate(system, policy, horizon, seeds=seeds).actions_index.numpy()


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="one online loop, 6 actions of 3 components")
def test_small_online_loop(benchmark, case):
    """act and update round by round, one policy; the rewards are on record, so that only the agents are timed."""
    system, horizon = campaign(), 20_000
    bounds, table = system.bounds(ACTIONS), ACTIONS.numpy()
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(horizon, generator=generator, dtype=torch.float64).tolist()

    def loop(agent):
        played = []
        for reward in rewards:
            played.append(agent.act())
            agent.update(reward)
        return played

    run = {
        "ours": lambda: loop(DynLinUCB(ACTIONS, bounds, horizon=horizon)),
        "peer": lambda: loop(LeanAgent(table, bounds, horizon)),
    }
    assert np.array_equal(torch.stack(run["ours"]()).numpy(), np.stack(run["peer"]()))
    size = f"6 actions, d = 3, {horizon:,} rounds"
    benchmark.extra_info.update(case=case, peer=LEAN, size=size)
    benchmark.pedantic(run[case], rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    ("kind", "replicas", "horizon"),
    [
        pytest.param(DynLinUCB, 200, 1000, marks=pytest.mark.benchmark(group="DynLin-UCB, 200 replicas")),
        pytest.param(DynLinUCB, 10, 2000, marks=pytest.mark.benchmark(group="DynLin-UCB, 10 replicas")),
        pytest.param(LinUCB, 200, 100, marks=pytest.mark.benchmark(group="LinUCB, 200 replicas")),
    ],
)
def test_simulation(benchmark, kind, replicas, horizon, case):
    system, seeds = campaign(), list(range(replicas))
    bounds = system.bounds(ACTIONS)
    run = {
        "ours": lambda: our_runs(kind, system, bounds, horizon, seeds),
        "peer": lambda: plain_runs(system, bounds, horizon, seeds, held=kind is DynLinUCB),
    }
    assert np.array_equal(run["ours"](), run["peer"]())
    size = f"{replicas} replicas of {horizon:,} rounds, 6 actions, d = n = 3"
    benchmark.extra_info.update(case=case, peer=PLAIN, size=size)
    benchmark.pedantic(run[case], rounds=3, warmup_rounds=0)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize(
    "radius",
    [
        pytest.param(0.667, marks=pytest.mark.benchmark(group="against a batched loop, rho = 0.667")),
        pytest.param(0.95, marks=pytest.mark.benchmark(group="against a batched loop, rho = 0.95")),
    ],
)
def test_epoch_skipping(benchmark, radius, case):
    like, seeds, horizon = campaign(), list(range(10)), 20_000
    longer = radius / like.spectral_radius
    system = DynamicalLinearBandit(longer * like.A, like.B, like.omega, like.theta)
    bounds = system.bounds(ACTIONS)
    run = {
        "ours": lambda: our_runs(DynLinUCB, system, bounds, horizon, seeds),
        "peer": lambda: batched_runs(system, bounds, horizon, seeds),
    }
    assert np.array_equal(run["ours"](), run["peer"]())
    peer = "a numpy loop over rounds, batched over replicas, with Sherman-Morrison"
    size = f"10 replicas of {horizon:,} rounds, 6 actions, d = n = 3"
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    benchmark.pedantic(run[case], rounds=3, warmup_rounds=0)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(group="one online loop, 400 actions of 10 components")
def test_online_loop(benchmark, case):
    """act and update, one replica, a decision every round, at the size of a small catalogue."""
    generator, horizon = torch.Generator().manual_seed(0), 100
    table = torch.randn(400, 10, generator=generator, dtype=torch.float64)
    effect = torch.randn(10, generator=generator, dtype=torch.float64)
    system = DynamicalLinearBandit(
        torch.zeros(1, 1).double(), torch.zeros(1, 10).double(), effect[:1], effect
    )
    bounds = system.bounds(table)
    values = (table @ effect).tolist()

    def ours():
        policy, played = LinUCB(table, bounds, horizon=horizon), []
        for _ in range(horizon):
            policy.act()
            played.append(int(policy.action_index))
            policy.update(values[played[-1]])
        return played

    def peer():
        agent, played = PlainAgent(table.numpy(), bounds, horizon, False), []
        for _ in range(horizon):
            played.append(agent.pull_arm())
            agent.update(values[played[-1]])
        return played

    run = {"ours": ours, "peer": peer}
    assert run["ours"]() == run["peer"]()
    benchmark.extra_info.update(case=case, peer=PLAIN, size="400 actions, d = 10, 100 rounds")
    benchmark.pedantic(run[case], rounds=3, warmup_rounds=0)
