"""The same numbers from somewhere else: plain loops in numpy, brute force, figures of the published experiments."""

import itertools
import math

import numpy as np
import pytest
import torch

from dynlinucb import (
    AR2,
    BatchExp3,
    DLinUCB,
    DynamicalLinearBandit,
    DynLinUCB,
    Ellipsoid,
    Exp3,
    FixedAction,
    LinUCB,
    budget_vertices,
    estimate_spectral_radius,
    identify,
    simulate,
)


def noise_of(seed, horizon, n):
    """The noise that `simulate` gives the replica with some seed: whole blocks of 1024 rounds."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.randn(1, 1024, n + 1, generator=generator, dtype=torch.float64)
        for _ in range(math.ceil(horizon / 1024))
    ]
    return torch.cat(blocks, 1)[0, :horizon].numpy()


def play(system, agent, table, horizon, seed):
    """Round after round, as the system is written."""
    A, B, omega, theta = (m.numpy() for m in (system.A, system.B, system.omega, system.theta))
    noise, state = noise_of(seed, horizon, len(A)), np.zeros(len(A))
    played, rewards = [], []
    for t in range(horizon):
        index = agent.pull()
        u = table[index]
        reward = omega @ state + theta @ u + system.noise_reward * noise[t, -1]
        state = A @ state + B @ u + system.noise_state * noise[t, :-1]
        agent.update(reward)
        played.append(index)
        rewards.append(reward)
    return np.array(played), np.array(rewards)


def first_best(values):
    """The lowest index among the largest values: symmetric actions tie up to rounding."""
    return int(np.flatnonzero(np.array(values) >= max(values) - 1e-9)[0])


class NaiveLinear:
    """LinUCB and DynLin-UCB with the inverse computed anew for every arm of every decision."""

    def __init__(self, table, bounds, horizon, lam, kind, use="last"):
        self.table, self.b, self.T, self.lam, self.kind, self.use = table, bounds, horizon, lam, kind, use
        self.V, self.vector = lam * np.eye(table.shape[1]), np.zeros(table.shape[1])
        self.t, self.epoch, self.left = 0, 0, 0

    def beta(self):
        b, lam, d = self.b, self.lam, self.table.shape[1]
        U, rho, t = b.action_norm, b.spectral_radius, self.t
        c1 = U * b.omega_norm * b.transient_growth * (U * b.input_norm / (1 - rho) + b.state_norm)
        c2 = b.theta_norm + b.omega_norm * b.input_norm * b.transient_growth / (1 - rho)
        variance = b.sigma**2 * (1 + b.omega_norm**2 * b.transient_growth**2 / (1 - rho**2))
        if self.kind == "static":
            spread = 2 * math.log(self.T) + d * math.log(1 + self.T * U**2 / (d * lam))
            return b.theta_norm * math.sqrt(lam) + math.sqrt(spread)
        first = c1 / math.sqrt(lam) * math.log(math.e * (t + 1)) if self.kind == "dynlin" else 0.0
        inner = math.log(self.T) + d / 2 * math.log(1 + t * U**2 / (d * lam))
        return first + c2 * math.sqrt(lam) + math.sqrt(2 * variance * inner)

    def pull(self):
        if self.left == 0:
            estimate, beta = np.linalg.inv(self.V) @ self.vector, self.beta()
            values = [u @ estimate + beta * math.sqrt(u @ np.linalg.inv(self.V) @ u) for u in self.table]
            self.index, self.epoch, self.rewards = first_best(values), self.epoch + 1, []
            self.left = 1
            if self.kind == "dynlin":
                self.left += math.floor(math.log(self.epoch) / math.log(1 / self.b.spectral_radius))
            self.length = self.left
        return self.index

    def update(self, reward):
        self.t += 1
        self.left -= 1
        self.rewards.append(reward)
        if self.left == 0:
            burn_in = math.ceil((self.length - 1) / 2)
            kept = self.rewards[burn_in:] if self.use == "tail_mean" else self.rewards[-1:]
            u = self.table[self.index]
            self.V += np.outer(u, u)
            self.vector += u * np.mean(kept)


class NaiveDiscounted:
    """D-LinUCB as the sums it stands for."""

    def __init__(self, table, bounds, horizon, lam, discount):
        self.table, self.b, self.T, self.lam, self.discount = table, bounds, horizon, lam, discount
        self.history = []

    def pull(self):
        d, t, gamma, b = self.table.shape[1], len(self.history), self.discount, self.b
        V, squared, vector = self.lam * np.eye(d), self.lam * np.eye(d), np.zeros(d)
        for s, (u, reward) in enumerate(self.history):
            weight = gamma ** (t - 1 - s)
            V += weight * np.outer(u, u)
            squared += weight**2 * np.outer(u, u)
            vector += weight * reward * u
        inverse = np.linalg.inv(V)
        ratio = b.action_norm**2 * (1 - gamma ** (2 * t)) / (self.lam * d * (1 - gamma**2))
        beta = b.theta_norm * math.sqrt(self.lam) + b.sigma * math.sqrt(
            2 * math.log(self.T) + d * math.log(1 + ratio)
        )
        width = inverse @ squared @ inverse
        self.index = first_best([u @ inverse @ vector + beta * math.sqrt(u @ width @ u) for u in self.table])
        return self.index

    def update(self, reward):
        self.history.append((self.table[self.index], reward))


class NaiveExp3:
    """Exp3, alone or in batches, drawing from given uniform numbers."""

    def __init__(self, bounds, num_arms, horizon, batch, uniforms):
        self.K, self.batch, self.uniforms = num_arms, batch, iter(uniforms)
        decisions = horizon / batch
        self.gamma = min(1.0, math.sqrt(num_arms * math.log(num_arms) / ((math.e - 1) * 2 * decisions / 3)))
        self.M = bounds.action_norm * (
            bounds.theta_norm + bounds.omega_norm * bounds.input_norm / (1 - bounds.spectral_radius)
        )
        self.gains, self.p, self.rewards = np.zeros(num_arms), np.full(num_arms, 1 / num_arms), []

    def pull(self):
        if not self.rewards:
            self.index = int(np.searchsorted(np.cumsum(self.p)[:-1], next(self.uniforms), side="right"))
        return self.index

    def update(self, reward):
        self.rewards.append(reward)
        if len(self.rewards) == self.batch:
            scaled = (np.mean(self.rewards) + 2 * self.M) / (4 * self.M)
            self.gains[self.index] += scaled / self.p[self.index]
            weights = np.exp(self.gamma / self.K * self.gains)
            self.p = (1 - self.gamma) * weights / weights.sum() + self.gamma / self.K
            self.rewards = []


class NaiveAR2:
    """AR2 with its sets and times spelled out; rounds from 1."""

    def __init__(self, bounds, num_arms):
        self.K, self.alpha, self.sigma = num_arms, bounds.spectral_radius, bounds.sigma
        self.epoch = math.ceil(num_arms * self.alpha**-3 * self.sigma**-3)
        c0 = math.sqrt(
            4 * math.log(1 / (self.alpha * self.sigma))
            + 4 * math.log(self.epoch)
            + 2 * math.log(4 * num_arms)
        )
        self.c1, self.t = 24 * c0, 1
        self.estimate, self.tau = [0.0] * num_arms, [0] * num_arms
        self.triggered, self.pulls = {}, [0, 0]

    def pull(self):
        position = (self.t - 1) % self.epoch
        if position == 0:
            self.triggered = {}
        if position < self.K:
            self.index = position
            return self.index
        last, before = self.pulls[-1], self.pulls[-2]
        superior = last if self.estimate[last] >= self.estimate[before] else before
        for i in range(self.K):
            age = self.t - self.tau[i] + 1
            width = (
                self.c1
                * self.sigma
                * math.sqrt((self.alpha**2 - self.alpha ** (2 * age)) / (1 - self.alpha**2))
            )
            close = self.estimate[superior] - self.estimate[i] <= width
            if i != superior and i not in self.triggered and close:
                self.triggered[i] = self.t
        if self.triggered and self.t % 2 == 1:
            self.index = min(self.triggered, key=lambda i: (self.triggered[i], i))
        else:
            self.index = superior
        return self.index

    def update(self, reward):
        self.estimate = [self.alpha * value for value in self.estimate]
        self.estimate[self.index], self.tau[self.index] = self.alpha * reward, self.t
        self.triggered.pop(self.index, None)
        self.pulls.append(self.index)
        self.t += 1


def assert_same_run(system, policy, agents, table, horizon, seeds):
    run = simulate(system, policy, horizon, seeds=seeds)
    for row, (agent, seed) in enumerate(zip(agents, seeds, strict=True)):
        played, rewards = play(system, agent, table.numpy(), horizon, seed)
        assert np.array_equal(run.actions_index[row].numpy(), played)
        np.testing.assert_allclose(run.rewards[row].numpy(), rewards, rtol=0, atol=1e-10)
    values = table @ system.cumulative_markov()
    lost = (values.max() - values[run.actions_index]).cumsum(1)
    torch.testing.assert_close(run.pseudo_regret, lost, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use", ["last", "tail_mean"])
@pytest.mark.parametrize("lam", ["log", 1.0])
def test_dynlin_ucb_is_the_plain_loop(campaign, actions, published, use, lam):
    bounds, horizon, seeds = published(campaign), 1500, [7, 8]
    policy = DynLinUCB(actions, bounds, horizon=horizon, regularization=lam, use=use, replicas=2)
    number = math.log(horizon) if lam == "log" else lam
    agents = [NaiveLinear(actions.numpy(), bounds, horizon, number, "dynlin", use) for _ in seeds]
    assert_same_run(campaign, policy, agents, actions, horizon, seeds)


def test_a_run_over_several_blocks_of_noise_is_the_plain_loop(synthetic, actions, published):
    bounds, horizon = published(synthetic), 3000
    policy = DynLinUCB(actions, bounds, horizon=horizon, replicas=1)
    agent = NaiveLinear(actions.numpy(), bounds, horizon, math.log(horizon), "dynlin")
    assert_same_run(synthetic, policy, [agent], actions, horizon, [3])


@pytest.mark.parametrize("constants", ["dynamical", "static"])
def test_linucb_is_the_plain_loop(synthetic, actions, published, constants):
    bounds, horizon, seeds = published(synthetic), 600, [1, 2]
    policy = LinUCB(actions, bounds, horizon=horizon, regularization=1.0, constants=constants, replicas=2)
    agents = [NaiveLinear(actions.numpy(), bounds, horizon, 1.0, constants) for _ in seeds]
    assert_same_run(synthetic, policy, agents, actions, horizon, seeds)


def test_d_linucb_is_the_plain_loop(campaign, actions, published):
    bounds, horizon = published(campaign, sigma=0.3), 150
    policy = DLinUCB(
        actions, bounds, horizon=horizon, discount=0.95, regularization=0.5, constants="static", replicas=1
    )
    agent = NaiveDiscounted(actions.numpy(), bounds, horizon, 0.5, 0.95)
    assert_same_run(campaign, policy, [agent], actions, horizon, [5])


def test_d_linucb_that_hardly_forgets_is_linucb(campaign, actions, published):
    bounds, options = published(campaign), {"horizon": 400, "regularization": 1.0, "replicas": 2}
    runs = [
        simulate(campaign, policy, 400, seeds=[0, 1])
        for policy in (
            LinUCB(actions, bounds, **options),
            DLinUCB(actions, bounds, discount=1 - 1e-12, **options),
        )
    ]
    assert torch.equal(runs[0].actions_index, runs[1].actions_index)


@pytest.mark.parametrize("batch", [1, 7])
def test_exp3_is_the_plain_loop(campaign, actions, published, batch):
    bounds, horizon, seeds = published(campaign), 700, [1, 2]
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    if batch == 1:
        policy = Exp3(actions, bounds, horizon=horizon, replicas=2, generator=generators)
    else:
        policy = BatchExp3(
            actions, bounds, horizon=horizon, batch_size=batch, replicas=2, generator=generators
        )
    uniforms = [
        torch.rand(1, 1024, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[0].tolist()
        for seed in (11, 12)
    ]
    agents = [NaiveExp3(bounds, 6, horizon, batch, numbers) for numbers in uniforms]
    assert_same_run(campaign, policy, agents, actions, horizon, seeds)


@pytest.mark.parametrize("sigma", [0.01, 0.7, 0.9])
def test_ar2_is_the_plain_loop(campaign, actions, published, sigma):
    bounds, seeds = published(campaign, sigma=sigma), [4, 5]
    policy = AR2(actions, bounds, replicas=2)
    agents = [NaiveAR2(bounds, 6) for _ in seeds]
    assert policy.restart_every.tolist() == [agents[0].epoch]
    assert_same_run(campaign, policy, agents, actions, 400, seeds)


def test_the_official_batch_size_counts_the_epochs(campaign, actions, published):
    bounds, horizon = published(campaign), 10_000
    epochs = rounds = 0
    while rounds < horizon:
        epochs += 1
        rounds += 1 + math.floor(math.log(epochs) / math.log(1 / bounds.spectral_radius))
    expected = math.ceil(math.log(epochs) / math.log(1 / bounds.spectral_radius))
    assert BatchExp3(actions, bounds, horizon=horizon).batch_size == expected


# --- figures of the published experiments -----------------------------------------------------------


def test_the_published_systems_have_their_published_values(campaign, synthetic, actions):
    torch.testing.assert_close(campaign.spectral_radius, 0.667, atol=5e-4, rtol=0)
    torch.testing.assert_close(campaign.transient_growth(), 2.78, atol=5e-3, rtol=0)
    for system, effect, best, value, second, myopic in (
        (synthetic, [0.5625, 0.5, 0.1111], [1, 0.5, 0], 0.8125, 0.78125, [0, 1, 0.5]),
        (campaign, [0.2515, -0.0363, 0.1061], [1, 0, 0.5], 0.3046, 0.2334, [0.5, 1, 0]),
    ):
        h = system.cumulative_markov()
        torch.testing.assert_close(h, torch.tensor(effect).double(), atol=5e-5, rtol=0)
        index, optimum = system.optimal(actions)
        assert actions[index].tolist() == best
        assert optimum == pytest.approx(value, abs=5e-5)
        assert sorted((actions @ h).tolist())[-2] == pytest.approx(second, abs=5e-5)
        assert actions[(actions @ system.theta).argmax()].tolist() == myopic


@pytest.mark.parametrize(("name", "expected", "spread"), [("campaign", 11288, 50)])
def test_the_regret_of_a_hundred_thousand_rounds_is_the_published_codes(
    request, actions, published, name, expected, spread
):
    """Ten seeds of the official algorithm end at 11288 on the campaigns with lambda = log T."""
    system, horizon = request.getfixturevalue(name), 100_000
    policy = DynLinUCB(actions, published(system), horizon=horizon, replicas=4)
    run = simulate(system, policy, horizon, seeds=range(4), record_every=1000)
    assert abs(float(run.pseudo_regret[:, -1].mean()) - expected) < spread
    assert float(run.pseudo_regret[:, -1].std()) < spread
    # Noise averages out and transients are short: the realised regret is close by.
    torch.testing.assert_close(run.regret[:, -1], run.pseudo_regret[:, -1], rtol=0, atol=60)


# --- brute force ------------------------------------------------------------------------------------


def value(u, packed, radius):
    inverse, estimate = packed[:-1], packed[-1]
    return u @ estimate + radius * np.sqrt(np.einsum("...i,ij,...j->...", u, inverse, u))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", ["general", "sphere", "no estimate", "hard", "no width", "almost hard"])
def test_the_optimum_over_an_ellipse_is_the_best_of_all_angles(seed, case):
    generator = torch.Generator().manual_seed(seed)
    root, shape = (torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    inverse, estimate = root @ root.T, torch.randn(2, generator=generator, dtype=torch.float64)
    matrix, radius = shape @ shape.T + 0.1 * torch.eye(2).double(), 0.7
    if case == "sphere":
        inverse = torch.eye(2).double()
    elif case == "no estimate":
        estimate = torch.zeros(2).double()
    elif case in (
        "hard",
        "almost hard",
    ):  # the estimate has no, or next to no, part along the widest direction
        matrix, inverse = torch.eye(2).double(), torch.diag(torch.tensor([1.0, 3.0])).double()
        estimate = torch.tensor([0.2, 0.0 if case == "hard" else 1e-9]).double()
    elif case == "no width":
        radius = 0.0
    ours = Ellipsoid(matrix, 1.3).optimistic(
        torch.cat([inverse, estimate[:, None]], 1)[None], torch.tensor([[radius]]).double()
    )[0]
    assert float(ours @ matrix @ ours) == pytest.approx(1.3**2)
    angles = np.linspace(0, 2 * np.pi, 200_001)
    circle = (
        1.3
        * np.stack([np.cos(angles), np.sin(angles)], 1)
        @ np.linalg.inv(np.linalg.cholesky(matrix.numpy()))
    )
    packed = np.concatenate([inverse.numpy(), estimate.numpy()[None]])
    assert value(ours.numpy(), packed, radius) == pytest.approx(value(circle, packed, radius).max(), abs=1e-8)


def test_the_optimum_over_a_ball_of_many_dimensions_is_stationary_and_not_beaten():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(50, 6, 6, generator=generator, dtype=torch.float64)
    packed = torch.cat([root @ root.mT, torch.randn(50, 6, 1, generator=generator, dtype=torch.float64)], 2)
    ours = Ellipsoid.ball(6).optimistic(packed, torch.tensor([[0.8]]).double())
    others = torch.nn.functional.normalize(
        torch.randn(5000, 6, generator=generator, dtype=torch.float64), dim=1
    )
    for u, one in zip(ours.numpy(), packed.numpy(), strict=True):
        stacked = np.concatenate([one[:, :-1], one[:, -1:].T])
        best = value(u, stacked, 0.8)
        assert value(others.numpy(), stacked, 0.8).max() <= best
        gradient = one[:, -1] + 0.8 * one[:, :-1] @ u / math.sqrt(u @ one[:, :-1] @ u)
        np.testing.assert_allclose(gradient, (gradient @ u) * u, atol=1e-7)


def test_the_budgets_vertices_are_the_permutations_of_the_paper(actions):
    expected = sorted(set(itertools.permutations((1.0, 0.5, 0.0))))
    assert actions.tolist() == [list(row) for row in expected]
    less = budget_vertices([0.0, 0.0], [1.0, 1.0], 1.5, at_most=True)
    assert less.tolist() == [[0, 0], [0, 1], [0.5, 1], [1, 0], [1, 0.5]]


def test_a_noiseless_log_gives_the_system_back(campaign):
    quiet = DynamicalLinearBandit(campaign.A, campaign.B, campaign.omega, campaign.theta, 0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    log = torch.rand(400, 3, generator=generator, dtype=torch.float64)
    state, rewards = torch.zeros(3).double(), []
    for u in log:
        rewards.append(float(quiet.omega @ state + quiet.theta @ u))
        state = quiet.A @ state + quiet.B @ u
    found = identify(log, rewards, state_dimension=3, lags=6, ridge=1e-10)
    torch.testing.assert_close(found.markov_parameters(12), quiet.markov_parameters(12), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.cumulative_markov(), quiet.cumulative_markov(), rtol=0, atol=1e-4)
    radius = estimate_spectral_radius(log, rewards, state_dimension=3, lags=6, ridge=1e-10)
    assert radius == pytest.approx(quiet.spectral_radius, abs=1e-3)
    assert found.noise_reward < 1e-5


def test_a_noisy_log_gives_the_long_run_effect_and_the_noise(campaign):
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(5_000, 3, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(5_000, generator=generator, dtype=torch.float64).numpy()
    A, B, omega, theta = (m.numpy() for m in (campaign.A, campaign.B, campaign.omega, campaign.theta))
    state, rewards = np.zeros(3), []
    for u, eta in zip(table.numpy(), noise, strict=True):
        rewards.append(omega @ state + theta @ u + eta)
        state = A @ state + B @ u
    found = identify(table, rewards, state_dimension=3, lags=12)
    torch.testing.assert_close(found.cumulative_markov(), campaign.cumulative_markov(), rtol=0, atol=0.05)
    assert found.noise_reward == pytest.approx(0.1, rel=0.1)


def test_the_environment_keeps_gymnasiums_rules_and_the_systems_equations(campaign, actions):
    from gymnasium.utils.env_checker import check_env

    from dynlinucb import DynamicalLinearBanditEnv

    quiet = DynamicalLinearBandit(campaign.A, campaign.B, campaign.omega, campaign.theta, 0.0, 0.0)
    check_env(DynamicalLinearBanditEnv(campaign, actions, horizon=20), skip_render_check=True)
    check_env(DynamicalLinearBanditEnv(campaign, Ellipsoid.ball(3), horizon=20), skip_render_check=True)
    env = DynamicalLinearBanditEnv(quiet, actions, horizon=30)
    env.reset(seed=0)
    steps = [env.step(3) for _ in range(30)]
    run = simulate(quiet, FixedAction(actions, 3), 30)
    np.testing.assert_allclose([step[1] for step in steps], run.rewards[0].numpy(), atol=1e-12)
    assert [step[3] for step in steps] == [False] * 29 + [True]
    assert sum(step[4]["pseudo_regret"] for step in steps) == pytest.approx(float(run.pseudo_regret[0, -1]))
    ball = DynamicalLinearBanditEnv(quiet, Ellipsoid.ball(3), horizon=5)
    ball.reset(seed=0)
    assert ball.step(np.array([3.0, 0.0, 0.0]))[1] == pytest.approx(float(quiet.theta[0]))  # pulled back
