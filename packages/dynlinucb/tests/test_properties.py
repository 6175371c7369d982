"""What must hold for every input: the invariants of the systems, the policies and the simulator."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    Policy,
    box_vertices,
    budget_vertices,
    epoch_lengths,
    regret_lower_rate,
    regret_upper_rate,
    simulate,
)

seeds = st.integers(0, 10**6)
radii = st.floats(0.0, 0.97)


def some_actions(seed, count=5, dimension=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def drive(policy, effect, rounds, seed=0, noise=0.1):
    """An online loop with rewards of no memory; returns the indices played."""
    generator = torch.Generator().manual_seed(seed)
    played = []
    for _ in range(rounds):
        reward = policy.act() @ effect + noise * torch.randn((), generator=generator, dtype=torch.float64)
        played.append(policy.action_index.clone())
        policy.update(reward)
    return torch.stack(played)


# --- systems ----------------------------------------------------------------------------------------


@given(seed=seeds, radius=st.floats(0.0, 0.9), n=st.integers(1, 4), d=st.integers(1, 3))
def test_the_long_run_effect_is_the_sum_of_the_markov_parameters_and_what_holding_earns(
    make_system, seed, radius, n, d
):
    system = make_system(seed, n, d, radius, noise=0.0)
    h = system.cumulative_markov()
    torch.testing.assert_close(system.markov_parameters(400).sum(0), h, rtol=1e-10, atol=1e-10)
    actions = some_actions(seed, 2, d)
    run = simulate(system, FixedAction(actions, 1), 400)
    torch.testing.assert_close(run.rewards[0, -1], actions[1] @ h, rtol=1e-9, atol=1e-9)
    # And on the way there the bias is at most Omega Phi rho^t ||x_steady||.
    steady = torch.linalg.solve(torch.eye(n).double() - system.A, system.B @ actions[1])
    reach = float(system.omega.norm() * steady.norm()) * system.transient_growth()
    bias = (run.rewards[0, :40] - actions[1] @ h).abs()
    limit = reach * system.spectral_radius ** torch.arange(40, dtype=torch.float64)
    assert bool((bias <= limit * (1 + 1e-6) + 1e-10).all())


@given(seed=seeds, radius=st.floats(0.05, 0.9))
def test_transient_growth_lies_between_one_and_the_condition_of_the_eigenvectors(make_system, seed, radius):
    system = make_system(seed, radius=radius)
    vectors = torch.linalg.eig(system.A).eigenvectors
    growth = system.transient_growth()
    assert 1 <= growth <= float(torch.linalg.cond(vectors)) * (1 + 1e-6)
    for power in (1, 2, 5, 13):
        norm = float(torch.linalg.matrix_norm(torch.linalg.matrix_power(system.A, power), ord=2))
        assert norm <= growth * system.spectral_radius**power * (1 + 1e-9)
    symmetric = system.A + system.A.T
    symmetric *= radius / torch.linalg.eigvalsh(symmetric).abs().max()
    normal = DynamicalLinearBandit(symmetric, system.B, system.omega, system.theta)
    assert normal.transient_growth() == pytest.approx(1)


def test_a_nilpotent_system_has_no_growth_bound_of_its_own():
    A = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    one = torch.ones(2, 1, dtype=torch.float64)
    system = DynamicalLinearBandit(A, one, torch.ones(2).double(), torch.ones(1).double())
    assert system.transient_growth() == math.inf
    assert system.transient_growth(0.5) == pytest.approx(2)
    assert system.bounds(one[:1], spectral_radius=0.5).transient_growth == pytest.approx(2)


@given(seed=seeds, radius=st.floats(0.0, 0.9))
def test_the_bound_on_the_state_holds(make_system, seed, radius):
    system, actions = make_system(seed, radius=radius, noise=0.0), some_actions(seed)
    bound = system.bounds(actions).state_norm
    state = torch.zeros(3, dtype=torch.float64)
    for index in torch.randint(5, (100,), generator=torch.Generator().manual_seed(seed)):
        state = system.A @ state + system.B @ actions[index]
        assert float(state.norm()) <= bound * (1 + 1e-9)


@given(radius=radii, more=st.floats(0.001, 0.02), count=st.integers(1, 300))
def test_epoch_lengths_grow_with_the_epoch_and_with_memory(radius, more, count):
    lengths = epoch_lengths(radius, count)
    assert int(lengths[0]) == 1
    assert bool((lengths.diff() >= 0).all())
    assert bool((epoch_lengths(radius + more, count) >= lengths).all())
    if radius > 0.01:  # 1 + H with the largest H such that rho^-H <= m
        epochs = torch.arange(1, count + 1, dtype=torch.float64)
        held = (lengths - 1).double()
        assert bool((-held * math.log(radius) <= epochs.log() + 1e-6).all())
        assert bool((-(held + 1) * math.log(radius) > epochs.log() - 1e-6).all())


def test_epoch_lengths_at_exact_powers():
    assert epoch_lengths(0.1, 1000)[[8, 9, 98, 99, 998, 999]].tolist() == [1, 2, 2, 3, 3, 4]
    assert epoch_lengths(1e-7, 5).tolist() == [1] * 5


@given(radius=st.floats(0.0, 0.9))
def test_rates_grow_with_the_horizon_and_with_memory(bounds, radius):
    slow, fast = replace(bounds, spectral_radius=radius + 0.05), replace(bounds, spectral_radius=radius)
    for rate in (regret_upper_rate, regret_lower_rate):
        assert rate(slow, 1000, 3) > rate(fast, 1000, 3)
        assert rate(fast, 4000, 3) > rate(fast, 1000, 3)
    assert regret_lower_rate(fast, 4000, 3) == pytest.approx(2 * regret_lower_rate(fast, 1000, 3))


# --- actions ----------------------------------------------------------------------------------------


@given(seed=seeds, budget=st.floats(0.2, 2.8), at_most=st.booleans())
def test_no_point_of_a_polytope_beats_its_vertices(seed, budget, at_most):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.zeros(3).double(), torch.ones(3).double()
    vertices = budget_vertices(low, high, budget, at_most=at_most)
    assert bool(((vertices >= low) & (vertices <= high)).all())
    totals = vertices.sum(1)
    assert bool((totals <= budget + 1e-9).all())
    points = torch.rand(4000, 3, generator=generator, dtype=torch.float64)
    points = points[points.sum(1) <= budget] if at_most else points * (budget / points.sum(1, keepdim=True))
    points = points[(points <= 1).all(1)]
    if not at_most:
        torch.testing.assert_close(totals, torch.full_like(totals, budget))
    root, h = (torch.randn(3, 3, generator=generator).double() for _ in range(2))

    def value(u):
        return u @ h[0] + (u @ root).norm(dim=1)

    if len(points):
        assert float(value(points).max()) <= float(value(vertices).max()) + 1e-9
    corners = box_vertices(low, high)
    assert float(value(torch.rand(500, 3).double()).max()) <= float(value(corners).max()) + 1e-9


# --- policies ---------------------------------------------------------------------------------------


@given(seed=seeds)
def test_without_memory_dynlin_ucb_is_linucb(bounds, seed):
    forgetful = replace(bounds, spectral_radius=0.0, input_norm=0.0, state_norm=0.0, action_norm=9.0)
    assert forgetful.transient_constant == 0
    actions, effect = some_actions(seed), some_actions(seed + 1, 1)[0]
    played = [drive(kind(actions, forgetful, horizon=100), effect, 60) for kind in (DynLinUCB, LinUCB)]
    assert torch.equal(*played)


@given(seed=seeds, lam=st.floats(1e-3, 10.0))
def test_sherman_and_morrison_keep_the_ridge_solution(bounds, seed, lam):
    actions, effect = some_actions(seed), some_actions(seed + 1, 1)[0]
    policy = LinUCB(actions, replace(bounds, action_norm=9.0), regularization=lam)
    generator = torch.Generator().manual_seed(seed)
    features, rewards = [], []
    for _ in range(50):
        features.append(policy.act())
        rewards.append(features[-1] @ effect + torch.randn((), generator=generator, dtype=torch.float64))
        policy.update(rewards[-1])
    X, y = torch.stack(features), torch.stack(rewards)
    V = lam * torch.eye(2).double() + X.T @ X
    torch.testing.assert_close(policy.inverse_design, torch.linalg.inv(V), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(policy.estimate, torch.linalg.solve(V, X.T @ y), rtol=1e-7, atol=1e-9)
    width = torch.einsum("ki,ij,kj->k", actions, torch.linalg.inv(V), actions).sqrt()
    torch.testing.assert_close(policy.confidence(actions), policy.beta(50) * width, rtol=1e-7, atol=1e-9)


def test_the_ridge_survives_many_rounds(bounds):
    actions = torch.eye(2, dtype=torch.float64)
    policy = LinUCB(actions, bounds, regularization=1.0, beta_scale=0.0)
    for _ in range(5_000):
        policy.begin()
        policy.observe(torch.ones(1, 1, dtype=torch.float64))
    expected = torch.diag(torch.tensor([1 / 5_001, 1.0], dtype=torch.float64))
    torch.testing.assert_close(policy.inverse_design, expected, rtol=1e-9, atol=1e-15)


@given(seed=seeds, kind=st.sampled_from([DynLinUCB, LinUCB, DLinUCB]))
def test_rotating_space_changes_no_choice_and_permuting_actions_permutes_them(bounds, seed, kind):
    actions, effect = some_actions(seed, 6, 3), some_actions(seed + 1, 1, 3)[0]
    told = replace(bounds, action_norm=9.0)
    rotation = torch.linalg.qr(some_actions(seed + 2, 3, 3)).Q
    plain = drive(kind(actions, told, horizon=80), effect, 60)
    assert torch.equal(drive(kind(actions @ rotation, told, horizon=80), effect @ rotation, 60), plain)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(order[drive(kind(actions[order], told, horizon=80), effect, 60)], plain)


def test_ties_go_to_the_lowest_index(bounds):
    actions = torch.tensor([[0.5, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    policy = DynLinUCB(actions, bounds, horizon=10)
    policy.act()
    assert int(policy.action_index) == 1


@given(seed=seeds)
def test_symmetric_actions_tie_to_the_lowest_index_in_every_frame(bounds, seed, actions):
    """The permutations of (1, 0.5, 0): actions 1 and 2 tie exactly in the third epoch, but for rounding."""
    rotation = torch.linalg.qr(some_actions(seed, 3, 3)).Q
    for frame in (torch.eye(3).double(), rotation):
        played = drive(
            DynLinUCB(actions @ frame, bounds, horizon=1000), torch.zeros(3).double(), 4, noise=0.0
        )
        assert played.tolist() == [0, 5, 5, 1]


KINDS = {
    "DynLinUCB": lambda actions, told, **more: DynLinUCB(actions, told, horizon=200, **more),
    "DynLinUCB, tail": lambda actions, told, **more: DynLinUCB(
        actions, told, horizon=200, use="tail_mean", **more
    ),
    "DynLinUCB, anytime": lambda actions, told, **more: DynLinUCB(actions, told, regularization=1.0, **more),
    "LinUCB": lambda actions, told, **more: LinUCB(actions, told, horizon=200, **more),
    "DLinUCB": lambda actions, told, **more: DLinUCB(actions, told, horizon=200, discount=0.99, **more),
    "AR2": lambda actions, told, **more: AR2(actions, told, **more),
    "FixedAction": lambda actions, told, **more: FixedAction(actions, 2, **more),
}
DRAWING = {
    "Exp3": lambda actions, told, **more: Exp3(actions, told, horizon=200, **more),
    "BatchExp3": lambda actions, told, **more: BatchExp3(actions, told, horizon=200, **more),
    "DynLinUCB, random first": lambda actions, told, **more: DynLinUCB(
        actions, told, horizon=200, first="random", **more
    ),
}


def streams(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("name", [*KINDS, *DRAWING])
def test_replicas_in_lock_step_are_single_runs(make_system, name):
    system, actions = make_system(0), some_actions(0)
    told, make = system.bounds(actions), {**KINDS, **DRAWING}[name]
    more = [{"generator": streams(n)} if name in DRAWING else {} for n in (5, 6, 7)]
    whole = {"generator": streams(5, 6, 7)} if name in DRAWING else {}
    together = simulate(system, make(actions, told, replicas=3, **whole), 150, seeds=[0, 1, 2])
    for row, one in enumerate(more):
        alone = simulate(system, make(actions, told, **one), 150, seeds=[row])
        assert torch.equal(alone.actions_index[0], together.actions_index[row])
        torch.testing.assert_close(alone.rewards[0], together.rewards[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [37, 38, 41])
@pytest.mark.parametrize("name", [*KINDS, *DRAWING])
def test_a_kept_policy_continues_bit_for_bit(make_system, name, cut):
    system, actions, effect = make_system(0), some_actions(0), some_actions(1, 1)[0]
    told, make = system.bounds(actions), {**KINDS, **DRAWING}[name]
    first, second = (
        make(actions, told, replicas=2, **({"generator": streams(n, n + 1)} if name in DRAWING else {}))
        for n in (1, 8)
    )
    drive(first, effect, cut)
    drive(second, effect, 5)
    first.act()
    state = first.state_dict()
    second.load_state_dict(state)
    with torch.no_grad():  # what is kept is a copy
        expected = {name: tensor.clone() for name, tensor in state.items()}
    assert torch.equal(drive(first, effect, 40, seed=1), drive(second, effect, 40, seed=1))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", list(KINDS))
def test_the_online_loop_and_the_simulator_agree(make_system, name):
    """The user's own loop, reward by reward, ends where the simulator does with its whole holds."""
    system, actions = make_system(2, noise=0.0), some_actions(2)
    told = system.bounds(actions, sigma=0.05)
    simulated, looped = (KINDS[name](actions, told) for _ in "ab")
    run = simulate(system, simulated, 120)
    state = torch.zeros(3, dtype=torch.float64)
    for round_ in range(120):
        action = looped.act()
        assert torch.equal(action, run.actions[0, round_])
        looped.update(float(system.omega @ state + system.theta @ action))
        state = system.A @ state + system.B @ action
    for key, tensor in simulated.state_dict().items():
        torch.testing.assert_close(looped.state_dict()[key], tensor, rtol=1e-8, atol=1e-10)


@given(seed=seeds, pieces=st.lists(st.integers(1, 4), min_size=1, max_size=40))
def test_rewards_may_come_one_by_one_or_several_at_once(bounds, seed, pieces):
    actions = some_actions(seed)
    told = replace(bounds, spectral_radius=0.9, action_norm=9.0)
    whole, single = (DynLinUCB(actions, told, horizon=500, use="tail_mean") for _ in "ab")
    generator = torch.Generator().manual_seed(seed)
    for piece in pieces:
        whole.act()
        rewards = torch.randn(min(piece, whole.rounds_left), generator=generator, dtype=torch.float64)
        whole.update_hold(rewards)
        for reward in rewards:
            single.act()
            single.update(reward)
    torch.testing.assert_close(whole.estimate, single.estimate)
    assert (whole.round, whole.epoch, whole.rounds_left) == (single.round, single.epoch, single.rounds_left)


def test_only_the_last_reward_of_a_hold_is_learned_from(bounds):
    actions, told = some_actions(3), replace(bounds, spectral_radius=0.9, action_norm=9.0)
    kept, spoilt = (DynLinUCB(actions, told, horizon=500) for _ in "ab")
    for _ in range(100):
        assert torch.equal(kept.act(), spoilt.act())
        last = kept.rounds_left == 1
        kept.update(1.0)
        spoilt.update(1.0 if last else -50.0)
    assert torch.equal(kept.estimate, spoilt.estimate)
    assert kept.epoch < 40


def test_the_first_action_may_be_random_and_is_then_held_for_two_rounds(bounds, actions):
    policy = DynLinUCB(actions, bounds, horizon=100, first="random", replicas=500)
    policy.act()
    assert policy.rounds_left == 2
    counts = torch.bincount(policy.action_index, minlength=6)
    assert bool((counts > 40).all())
    policy.update_hold(torch.zeros(500, 2))
    policy.act()
    assert policy.rounds_left == 2  # the second epoch: 1 + floor(log 2 / log 2)


def test_replicas_may_differ_in_everything_but_their_memory(make_system, synthetic, campaign, actions):
    systems = [synthetic, campaign]
    told = [system.bounds(actions) for system in systems]
    options = {"horizon": 300, "regularization": [2.0, 0.5], "constants": ["static", "dynamical"]}
    together = simulate(systems, LinUCB(actions, told, replicas=2, **options), 300, seeds=[3, 4])
    for row, system in enumerate(systems):
        one = {name: value[row] if isinstance(value, list) else value for name, value in options.items()}
        alone = simulate(system, LinUCB(actions, told[row], **one), 300, seeds=[3 + row])
        assert torch.equal(alone.actions_index[0], together.actions_index[row])
        torch.testing.assert_close(alone.pseudo_regret[0], together.pseudo_regret[row])
        torch.testing.assert_close(alone.optimal_value[0], together.optimal_value[row])


@pytest.mark.parametrize("kind", [DynLinUCB, LinUCB])
def test_the_estimate_lies_in_its_confidence_region(campaign, actions, kind):
    """At least 1 - delta of 200 runs, at every checkpoint (LinUCB: on a system without memory)."""
    if kind is LinUCB:
        zeros = torch.zeros_like(campaign.A)
        system = DynamicalLinearBandit(zeros, campaign.B, 0 * campaign.omega, campaign.theta, 0.0, 0.3)
    else:
        system = DynamicalLinearBandit(campaign.A, campaign.B, campaign.omega, campaign.theta, 0.3, 0.3)
    policy = kind(actions, system.bounds(actions), delta=0.1, regularization=1.0, replicas=200)
    failed = torch.zeros(200, dtype=torch.bool)
    effect = system.cumulative_markov()
    for chunk in range(4):
        simulate(system, policy, 150, generator=torch.Generator().manual_seed(chunk))
        error = ((policy.estimate - effect) @ actions.T).abs()
        failed |= (error > policy.confidence(actions)).any(1)
    assert int(failed.sum()) <= 20


def test_beta_scale_and_delta_scale_the_radius(bounds, actions):
    rounds = torch.tensor([0, 1, 10, 100])
    plain = DynLinUCB(actions, bounds, horizon=1000).beta(rounds)
    assert bool((plain.diff() > 0).all())
    torch.testing.assert_close(
        DynLinUCB(actions, bounds, horizon=1000, beta_scale=0.1).beta(rounds), 0.1 * plain
    )
    torch.testing.assert_close(DynLinUCB(actions, bounds, horizon=1000, delta=1e-3).beta(rounds), plain)
    anytime = DynLinUCB(actions, bounds, regularization=1.0).beta(rounds)
    for t, radius in zip(rounds.tolist()[1:], anytime.tolist()[1:], strict=True):
        fixed = DynLinUCB(actions, bounds, regularization=1.0, delta=(t + 1) ** -2)
        assert radius == pytest.approx(float(fixed.beta(t)))


def test_a_ball_of_actions_is_learned(campaign):
    ball = Ellipsoid.ball(3)
    system = DynamicalLinearBandit(campaign.A, campaign.B, campaign.omega, campaign.theta)
    policy = DynLinUCB(ball, system.bounds(ball), horizon=4000, beta_scale=0.02, replicas=3)
    run = simulate(system, policy, 4000, seeds=[0, 1, 2], record_every=100)
    effect = system.cumulative_markov()
    assert run.actions_index is None
    assert run.counts is None
    torch.testing.assert_close(run.optimal_value, effect.norm().expand(3))
    lost = run.optimal_value[:, None] - run.actions @ effect
    assert float(lost[:, -1].max()) < 0.1 * float(effect.norm())
    state = policy.state_dict()
    other = DynLinUCB(ball, system.bounds(ball), horizon=4000, beta_scale=0.02, replicas=3)
    other.load_state_dict(state)
    assert torch.equal(other.act(), policy.act())


# --- simulator --------------------------------------------------------------------------------------


@given(every=st.sampled_from([1, 3, 7, 60, 420]))
def test_records_are_sums_over_rounds(campaign, actions, every):
    told = campaign.bounds(actions)
    fine, coarse = (
        simulate(campaign, LinUCB(actions, told, horizon=420, replicas=1), 420, seeds=[1], record_every=n)
        for n in (1, every)
    )
    assert coarse.rounds.tolist() == list(range(every, 421, every))
    torch.testing.assert_close(coarse.rewards, fine.rewards.view(1, -1, every).mean(2))
    torch.testing.assert_close(coarse.pseudo_regret, fine.pseudo_regret[:, every - 1 :: every])
    torch.testing.assert_close(coarse.regret, fine.regret[:, every - 1 :: every])
    assert torch.equal(coarse.actions_index, fine.actions_index[:, every - 1 :: every])
    assert torch.equal(coarse.actions, actions[coarse.actions_index])
    assert torch.equal(coarse.counts, torch.bincount(fine.actions_index[0], minlength=6)[None])
    torch.testing.assert_close(fine.slope(1.0), fine.pseudo_regret[:, -1] / 420)


def test_records_may_straddle_blocks_of_noise(campaign, actions):
    policy = FixedAction(actions, 0, replicas=2)
    fine = simulate(campaign, policy, 3000, seeds=[1, 2])
    coarse = simulate(campaign, FixedAction(actions, 0, replicas=2), 3000, seeds=[1, 2], record_every=1500)
    torch.testing.assert_close(coarse.rewards, fine.rewards.view(2, 2, 1500).mean(2))
    assert coarse.actions_index.tolist() == [[0, 0], [0, 0]]


def test_the_noise_of_the_reward_has_the_stationary_variance(campaign, actions):
    run = simulate(campaign, FixedAction(actions, 0, replicas=4), 20_000, seeds=range(4))
    covariance = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(500):
        covariance = campaign.A @ covariance @ campaign.A.T + campaign.noise_state**2 * torch.eye(3)
    expected = campaign.omega @ covariance @ campaign.omega + campaign.noise_reward**2
    measured = run.rewards[:, 100:].var(1).mean()
    torch.testing.assert_close(measured, expected, rtol=0.05, atol=0)


def test_a_generator_repeats_itself_and_the_global_one_is_left_alone(campaign, actions):
    told = campaign.bounds(actions)
    before = torch.random.get_rng_state()
    runs = [
        simulate(campaign, LinUCB(actions, told, horizon=50, replicas=2), 50, **source())
        for source in (
            lambda: {"generator": torch.Generator().manual_seed(3)},
            lambda: {"generator": torch.Generator().manual_seed(3)},
            lambda: {"seeds": [3, 3]},
        )
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(runs[0].rewards, runs[1].rewards)
    assert torch.equal(runs[2].rewards[0], runs[2].rewards[1])
    assert not torch.equal(runs[0].rewards[0], runs[0].rewards[1])


def test_a_policy_of_the_users_own_plays_too(campaign, actions):
    class RoundRobin(Policy):
        def _choose(self):
            return (self._choice + 1) % 6

        def _learn(self, rewards):
            pass

    run = simulate(campaign, RoundRobin(actions, replicas=2), 12, seeds=[0, 1])
    assert run.actions_index.tolist() == [[(1 + i) % 6 for i in range(12)]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_asked_for(campaign, actions, dtype):
    for policy in (
        DynLinUCB(actions, campaign.bounds(actions), horizon=100, dtype=dtype, replicas=2),
        DLinUCB(actions, campaign.bounds(actions), horizon=100, dtype=dtype, replicas=2),
        Exp3(actions, campaign.bounds(actions), horizon=100, dtype=dtype, replicas=2),
        AR2(actions, campaign.bounds(actions), dtype=dtype, replicas=2),
    ):
        run = simulate(campaign, policy, 100, generator=torch.Generator().manual_seed(0))
        assert run.rewards.dtype == run.pseudo_regret.dtype == policy.act().dtype == dtype
