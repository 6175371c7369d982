"""Rewards that come late count as those that came in time; bounds that are learned first serve as those told."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynlinucb import (
    DLinUCB,
    DynamicalLinearBandit,
    DynLinUCB,
    Ellipsoid,
    Exp3,
    ExploringDynLinUCB,
    LinUCB,
    SystemBounds,
    identify,
    simulate,
)

BOUNDS = SystemBounds(0.7, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)
ACTIONS = torch.eye(3, dtype=torch.float64)
SYSTEM = DynamicalLinearBandit(
    [[0.8]], [[0.5, 0.0, 0.1]], [0.5], [0.0, 0.3, 0.1], noise_state=0.0, noise_reward=0.1
)  # the first action is best in the long run, the second at once


@pytest.mark.filterwarnings(
    "ignore:You are using .torch.load.:FutureWarning"
)  # of pickled tensors, in torch 2.4
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), replicas=st.sampled_from([None, 3]), kind=st.sampled_from([DynLinUCB, LinUCB]),
)  # fmt: skip
def test_late_rewards_teach_what_rewards_in_time_would(seed, replicas, kind):
    generator = torch.Generator().manual_seed(seed)
    policy = kind(ACTIONS, BOUNDS, horizon=200, replicas=replicas)
    shape = () if replicas is None else (replicas,)
    played, owed = [], []
    for _ in range(60):
        action = policy.act().clone()
        reward = torch.randn(shape, generator=generator, dtype=torch.float64)
        last = policy.rounds_left == 1
        if kind is LinUCB or last:
            played.append((action, reward))
        if torch.rand((), generator=generator) < 0.5:
            owed.append((policy.skip(), reward))
            assert owed[-1][0].settled == last
        else:
            policy.update(reward)
    for index in torch.randperm(len(owed), generator=generator).tolist():
        late, reward = owed[index]
        policy.settle(pickle.loads(pickle.dumps(late)), reward)
    design = math.log(200) * torch.eye(3, dtype=torch.float64).expand(*shape, 3, 3)
    target = torch.zeros(*shape, 3, dtype=torch.float64)
    for action, reward in played:
        design = design + action.unsqueeze(-1) * action.unsqueeze(-2)
        target = target + action * reward.unsqueeze(-1)
    torch.testing.assert_close(policy.estimate, torch.linalg.solve(design, target))


def test_several_rounds_at_once():
    one, other = (LinUCB(ACTIONS, BOUNDS, horizon=100) for _ in range(2))
    for policy in (one, other):
        policy.act()
    late = one.skip()
    one.settle(late, [2.0])
    other.update(2.0)
    assert torch.equal(one.estimate, other.estimate)
    hold = DynLinUCB(ACTIONS, BOUNDS, horizon=100)
    while hold.rounds_left < 2:
        hold.act()
        if hold.rounds_left < 2:
            hold.update(0.5)
    before, late = hold.estimate, hold.skip(2)
    hold.settle(late, [7.0, 1.0])
    twin = copy.deepcopy(hold)
    assert late.settled
    assert not torch.equal(before, twin.estimate)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (DLinUCB(ACTIONS, BOUNDS, horizon=100), "DLinUCB cannot learn from late rewards"),
        (Exp3(ACTIONS, BOUNDS, horizon=100), "Exp3 cannot learn from late rewards"),
        (DynLinUCB(ACTIONS, BOUNDS, horizon=100, use="tail_mean"), "cannot learn from late rewards"),
    ],
)
def test_who_cannot_learn_late_says_so(policy, message):
    policy.act()
    with pytest.raises(TypeError, match=message):
        policy.settle(policy.skip(), 1.0)


def test_bad_late_rewards_are_named():
    policy = LinUCB(ACTIONS, BOUNDS, horizon=100)
    policy.act()
    late = policy.skip()
    with pytest.raises(ValueError, match=r"reward must have the shape \(1,\)"):
        policy.settle(late, [1.0, 2.0])
    with pytest.raises(ValueError, match="reward must be finite"):
        policy.settle(late, float("nan"))
    with pytest.raises(TypeError, match="late must be what skip gave, got float"):
        policy.settle(1.0, late)
    other = LinUCB(ACTIONS, BOUNDS, horizon=100, replicas=2)
    other.act()
    with pytest.raises(
        ValueError, match=r"late must be of a policy with actions \(3,\), got one of \(2, 3\)"
    ):
        policy.settle(other.skip(), 1.0)


def test_the_bounds_are_those_of_the_system_in_the_log_with_its_gaps_widened():
    policy = ExploringDynLinUCB(
        ACTIONS, horizon=1500, explore=300, generator=torch.Generator().manual_seed(0)
    )
    noise, actions, rewards, state = torch.Generator().manual_seed(1), [], [], 0.0
    for round_ in range(300):
        actions.append(policy.act().clone())
        reward = 1 + 0.5 * state + 0.1 * float(torch.randn((), generator=noise))
        rewards.append(math.nan if round_ % 20 == 7 else reward)
        policy.update(None if round_ % 20 == 7 else reward)
        state = 0.8 * state + 0.5 * float(actions[-1][0])
    system = identify(torch.stack(actions), rewards, state_dimension=1, lags=8, lost=True)
    radius = 1 - (1 - system.spectral_radius) / 1.5
    wanted = system.bounds(ACTIONS, spectral_radius=radius)
    assert policy.found.spectral_radius == pytest.approx(radius)
    assert policy.found.sigma == pytest.approx(1.5 * wanted.sigma)
    assert policy.found.theta_norm == pytest.approx(1.5 * wanted.theta_norm)


def test_what_comes_late_of_the_exploration_is_not_learned_from():
    policy = ExploringDynLinUCB(ACTIONS, horizon=1500, explore=60, generator=torch.Generator().manual_seed(0))
    noise, owed = torch.Generator().manual_seed(1), None
    for round_ in range(60):
        reward = float(policy.act() @ ACTIONS[0]) + 0.1 * float(torch.randn((), generator=noise))
        if round_ == 30:
            owed = policy.skip()
        else:
            policy.update(reward)
    assert policy.found is not None
    before = policy.estimate
    policy.settle(owed, 100.0)
    assert torch.equal(policy.estimate, before)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.1))
def test_a_log_with_lost_rewards_identifies_the_system_still(seed, share):
    generator = torch.Generator().manual_seed(seed)
    actions, rewards, state = torch.randn(900, 2, generator=generator, dtype=torch.float64), [], 0.0
    for action in actions:
        rewards.append(0.5 * state + float(action[1]))
        state = 0.8 * state + float(action[0])
    rewards = torch.tensor(rewards, dtype=torch.float64)
    rewards[torch.rand(900, generator=generator) < share] = math.nan
    system = identify(actions, rewards, state_dimension=1, lags=2, ridge=1e-10, lost=True)
    assert system.spectral_radius == pytest.approx(0.8, abs=1e-4)
    torch.testing.assert_close(
        system.cumulative_markov(), torch.tensor([2.5, 1.0], dtype=torch.float64), atol=1e-3, rtol=1e-3
    )
    with pytest.raises(ValueError, match="must be finite"):
        identify(actions, rewards, state_dimension=1, lags=2)
    with pytest.raises(ValueError, match="rewards must leave at least"):
        identify(
            actions,
            torch.where(torch.arange(900) % 3 > 0, math.nan, rewards),
            state_dimension=1,
            lags=2,
            lost=True,
        )


def played(policy, rounds, seed=0):
    return simulate(
        SYSTEM, policy, rounds, seeds=[seed + i for i in range(policy.num_replicas)], record_every=rounds
    )


def test_it_finds_bounds_that_hold_and_then_the_best_action():
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    policy = ExploringDynLinUCB(ACTIONS, horizon=4000, beta_scale=0.05, replicas=8, generator=generators)
    assert policy.found is None
    played(policy, 4000)
    true = SYSTEM.bounds(ACTIONS)
    for found in policy.found:
        assert true.spectral_radius < found.spectral_radius < 0.95
        assert found.parameter_constant > true.parameter_constant
        assert found.sigma > true.sigma
    assert (policy.action_index == 0).float().mean() > 0.8


def test_regret_is_that_of_the_exploration_and_far_from_that_of_a_myopic_bandit():
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    policy = ExploringDynLinUCB(ACTIONS, horizon=4000, beta_scale=0.05, replicas=8, generator=generators)
    myopic = LinUCB(ACTIONS, SYSTEM.bounds(ACTIONS), horizon=4000, beta_scale=0.05, replicas=8)
    found, worst = (float(played(one, 4000).pseudo_regret[:, -1].mean()) for one in (policy, myopic))
    assert found < worst / 5
    value = SYSTEM.cumulative_markov()
    assert found < 1.5 * policy.explore * float(value.max() - value.mean())


@settings(max_examples=5, deadline=None)
@given(stop=st.integers(1, 1400))
def test_a_run_resumes_at_any_round(stop):
    def new():
        return ExploringDynLinUCB(
            ACTIONS, horizon=1500, explore=300, generator=torch.Generator().manual_seed(3)
        )

    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1500, generator=generator, dtype=torch.float64)
    whole, begun = new(), new()
    state, kept, resumed = {"x": 0.0}, None, None

    def advance(policy, state, round_):
        action = policy.act()
        lost = round_ % 17 == 0
        reward = 0.5 * state["x"] + 0.3 * float(action[1]) + 0.1 * float(noise[round_])
        policy.update(None if lost else reward)
        state["x"] = 0.8 * state["x"] + 0.5 * float(action[0])

    for round_ in range(stop):
        advance(begun, state, round_)
    resumed, kept = new(), dict(state)
    resumed.load_state_dict(begun.state_dict())
    state = {"x": 0.0}
    for round_ in range(1500):
        advance(whole, state, round_)
    for round_ in range(stop, 1500):
        advance(resumed, kept, round_)
    assert resumed.found == whole.found is not None
    torch.testing.assert_close(resumed.estimate, whole.estimate)
    assert resumed.epoch == whole.epoch


def test_a_log_is_explored_from():
    generator = torch.Generator().manual_seed(0)
    choices = torch.randint(3, (500,), generator=generator)
    rewards, state = [], 0.0
    for choice in choices.tolist():
        rewards.append(0.5 * state + 0.3 * (choice == 1) + 0.1 * float(torch.randn((), generator=generator)))
        state = 0.8 * state + 0.5 * (choice == 0)
    policy = ExploringDynLinUCB(ACTIONS, horizon=2000, explore=400)
    policy.observe_log(choices, rewards)
    assert policy.found.spectral_radius == pytest.approx(1 - 0.2 / 1.5, abs=0.06)
    assert policy.round == 500


def test_an_unstable_system_is_an_error_after_four_explorations():
    policy = ExploringDynLinUCB(torch.tensor([[1.0], [2.0]]), horizon=500, explore=50)
    total = 0.0
    with pytest.raises(RuntimeError, match="no stable system fits the 200 rounds of exploration"):  # noqa: PT012
        for _ in range(300):
            total = 1.02 * total + float(policy.act())
            policy.update(total)
    assert policy.round == 200


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"actions": Ellipsoid.ball(2)}, TypeError, "actions must be finite"),
        ({"explore": 3}, ValueError, "explore"),
        ({"margin": 0.5}, ValueError, "margin must be finite and at least 1"),
        ({"state_dimension": 8}, ValueError, "state_dimension must be in 1..7"),
        ({"horizon": 1}, ValueError, "horizon"),
    ],
)
def test_bad_arguments_are_named(options, kind, message):
    with pytest.raises(kind, match=message):
        ExploringDynLinUCB(**{"actions": ACTIONS, "horizon": 100, **options})
