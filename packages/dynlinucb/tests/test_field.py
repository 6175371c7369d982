"""What users bring: another table, other settings in mid-run, lost rewards, a log to start from."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch

import dynlinucb
from dynlinucb import (
    AR2,
    BatchExp3,
    DLinUCB,
    DynamicalLinearBandit,
    DynLinUCB,
    Ellipsoid,
    Exp3,
    LinUCB,
    SystemBounds,
    box_vertices,
    budget_vertices,
    epoch_lengths,
    identify,
)

SIX = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]).double()
BOUNDS = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.1)


def make(actions=SIX, **options):
    return DynLinUCB(actions, BOUNDS, horizon=1000, **options)


def test_the_state_of_a_policy_over_other_actions_is_refused():
    policy = make()
    policy.act()
    for other in (SIX[:3], SIX.flip(0)):
        with pytest.raises(ValueError, match=r"state must be of a policy with the same actions|the shape"):
            make(other).load_state_dict(policy.state_dict())
    disc = make(Ellipsoid.ball(3))
    with pytest.raises(ValueError, match="the same actions"):
        make(Ellipsoid.ball(3, radius=0.5)).load_state_dict(disc.state_dict())
    again = make()
    again.load_state_dict(policy.state_dict())
    assert torch.equal(again.act(), policy.act())


def test_states_of_the_first_version_still_load():
    policy = make()
    policy.act()
    policy.update(1.0)
    state = policy.state_dict()
    del state["actions"], state["came"]
    again = make()
    again.load_state_dict(state)
    assert torch.equal(again.estimate, policy.estimate)


@pytest.mark.parametrize("kind", [DynLinUCB, LinUCB])
def test_a_new_scale_counts_from_the_next_decision(kind):
    rewards = torch.tensor([0.1, 0.9, 0.2, 0.4, 0.3, 0.5])
    changed, small = (kind(SIX, BOUNDS, horizon=1000, beta_scale=scale) for scale in (1.0, 0.0))
    for _ in range(60):
        played = changed.act()
        assert changed._radius() == changed.beta_scale * changed._beta(changed._rounds(1))[0]
        changed.update(float(rewards[changed.action_index]) + 0 * float(played[0]))
    small.load_state_dict(changed.state_dict())
    changed.beta_scale = 0.0
    assert float(changed.confidence(SIX).max()) == 0
    for _ in range(changed.rounds_left):
        changed.update(0.3), small.update(0.3)
    assert torch.equal(changed.act(), small.act())
    with pytest.raises(ValueError, match="beta_scale must be finite and not negative, got -1"):
        changed.beta_scale = -1


def play(policy, rewards):
    for reward in rewards:
        policy.act()
        policy.update(reward)
    return policy


def test_a_hold_whose_last_reward_is_lost_does_not_teach():
    lengths = epoch_lengths(0.5, 3).tolist()
    assert lengths == [1, 2, 2]
    taught = play(make(), [0.5, 0.1, 0.7, 9.0, 0.2])
    assert taught.epoch == 3
    lost = play(make(), [0.5, 0.1, None, 9.0, 0.2])
    assert (lost.round, lost.epoch, lost.rounds_left) == (5, 3, 0)
    assert not torch.allclose(lost.estimate, taught.estimate)
    # What the second hold would have taught is not there: ridge regression on the first and third alone.
    design = math.log(1000) * torch.eye(3, dtype=torch.float64)
    target = torch.zeros(3, dtype=torch.float64)
    seen = make()
    for length, reward in zip(lengths, (0.5, None, 0.2), strict=True):
        action = seen.act()
        seen.skip(length - 1) if length > 1 else None
        seen.update(reward)
        if reward is not None:
            design += torch.outer(action, action)
            target += reward * action
    torch.testing.assert_close(seen.estimate, torch.linalg.solve(design, target))
    torch.testing.assert_close(seen.estimate, lost.estimate)


def test_means_are_of_what_came():
    whole = play(make(use="tail_mean"), [1.0, 0.0, 3.0, 5.0, 0.0])
    part = play(make(use="tail_mean"), [1.0, None, 3.0, 5.0, 0.0])
    torch.testing.assert_close(whole.estimate, part.estimate)  # the first half of a hold is burn-in
    batch = BatchExp3(SIX, BOUNDS, horizon=1000, batch_size=4, generator=torch.Generator().manual_seed(0))
    other = BatchExp3(SIX, BOUNDS, horizon=1000, batch_size=4, generator=torch.Generator().manual_seed(0))
    play(batch, [1.0, None, 3.0, None])
    play(other, [2.0, 2.0, 2.0, 2.0])
    torch.testing.assert_close(batch._gains, other._gains)
    nothing = play(BatchExp3(SIX, BOUNDS, horizon=1000, batch_size=2), [None, None])
    assert float(nothing._gains.abs().max()) == 0


def test_other_policies_go_on_without_a_reward():
    policy = play(AR2(SIX, BOUNDS), [None] * 12)
    assert policy.round == 12
    assert float(policy._estimates.abs().max()) == 0
    with pytest.raises(RuntimeError, match=r"act\(\) must be called before update\(\)"):
        policy.skip()
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        policy.skip(0)


def test_a_log_teaches_from_the_ends_of_runs_that_are_long_enough():
    policy = make()
    indices = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3])
    rewards = torch.tensor([9.0, 9.0, 0.3, 0.6, 9.0, 0.2, 9.0, 9.0, 0.4])
    policy.observe_log(indices, rewards)  # holds of 1, 2, 2 wanted: runs of 3, (1: too short), 2, 3
    design, target = math.log(1000) * torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for index, reward in ((0, 0.3), (2, 0.2), (3, 0.4)):
        design += torch.outer(SIX[index], SIX[index])
        target += reward * SIX[index]
    torch.testing.assert_close(policy.estimate, torch.linalg.solve(design, target))
    assert (policy.round, policy.epoch) == (9, 3)
    assert policy.act().shape == (3,)
    with pytest.raises(RuntimeError, match="observe_log must come between holds"):
        policy.observe_log(indices, rewards)


def test_a_log_of_vectors_for_every_reward_and_replica():
    policy = LinUCB(SIX, BOUNDS, horizon=1000, replicas=2)
    policy.observe_log(SIX[[0, 0, 4]], [1.0, 2.0, 3.0])
    design = math.log(1000) * torch.eye(3, dtype=torch.float64) + SIX[[0, 0, 4]].mT @ SIX[[0, 0, 4]]
    wanted = torch.linalg.solve(design, SIX[[0, 0, 4]].mT @ torch.tensor([1.0, 2.0, 3.0]).double())
    torch.testing.assert_close(policy.estimate, wanted.expand(2, -1))


@pytest.mark.parametrize(
    ("actions", "rewards", "message"),
    [
        ([0, 6], [1.0, 1.0], r"indices in \[0, 6\)"),
        ([0, 1], [1.0], r"shapes \(T, 3\) and \(T,\)"),
        (SIX[:2, :2], [1.0, 1.0], r"shapes \(T, 3\) and \(T,\), got \(2, 2\)"),
        ([0, 1], [1.0, math.nan], "must be finite"),
    ],
)
def test_a_log_that_does_not_fit_is_named(actions, rewards, message):
    with pytest.raises(ValueError, match=message):
        make().observe_log(actions, rewards)


def test_a_log_that_never_varies_tells_nothing():
    with pytest.raises(ValueError, match="actions must vary"):
        identify(torch.ones(100, 2), torch.randn(100), state_dimension=1, lags=2)


# --- what people hand over --------------------------------------------------------------------------


def test_whole_numbers_cut_no_budget_and_lists_are_read_in_float64():
    assert budget_vertices([0, 0], [1, 1], 1.5).tolist() == [[0.5, 1.0], [1.0, 0.5]]
    assert box_vertices([0, 0.1], [1, 1]).tolist() == [[0, 0.1], [0, 1], [1, 0.1], [1, 1]]
    assert LinUCB([[0.1, 0.2]], BOUNDS, horizon=10).act().tolist() == [0.1, 0.2]
    assert DynamicalLinearBandit([[0.1]], [[1.0]], [0.3], [0.7]).theta.tolist() == [0.7]


def test_what_happens_to_the_tensors_of_others_stays_outside():
    table, A = SIX.clone(), torch.full((1, 1), 0.5).double()
    system = DynamicalLinearBandit(A, A, A[0], A[0])
    disc = Ellipsoid(A)
    policy, same = make(table), make()
    for tensor in (table, A):
        tensor.fill_(7.0)
    assert torch.equal(play(policy, [0.3] * 20).estimate, play(same, [0.3] * 20).estimate)
    assert float(system.cumulative_markov()) == 1.0
    assert float(disc.matrix) == 0.5


@pytest.mark.parametrize("replicas", [None, 2])
def test_learned_actions_and_rewards_keep_no_graph(replicas):
    table = torch.nn.Parameter(SIX.clone())
    policy = make(table, replicas=replicas)
    for _ in range(5):
        reward = (policy.act() @ table.sum(0)).exp()
        policy.update(reward)
    policy.observe_log(table[:2], table[:2, 0]) if policy.rounds_left == 0 else None
    assert not policy.act().requires_grad
    assert all(not kept.requires_grad for kept in policy.state_dict().values())


def test_logs_are_tensors_arrays_frames_and_lists_of_what_act_gave():
    import numpy as np
    import pandas as pd

    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    rewards = torch.rand(60, generator=generator, dtype=torch.float64)
    forms = {
        "tensors": (actions, rewards),
        "lists of tensors": (list(actions), list(rewards)),
        "lists of arrays": (list(actions.numpy()), [np.float64(reward) for reward in rewards]),
        "lists of numbers": (actions.tolist(), rewards.tolist()),
        "negative strides": (actions.numpy()[::-1].copy()[::-1], rewards.numpy()[::-1].copy()[::-1]),
        "frames": (pd.DataFrame(actions.numpy()), pd.Series(rewards.numpy())),
    }
    for name, log in forms.items():
        policy = LinUCB(SIX, BOUNDS, horizon=100)
        policy.observe_log(*log)
        expected = LinUCB(SIX, BOUNDS, horizon=100)
        expected.observe_log(actions, rewards)
        assert torch.equal(policy.estimate, expected.estimate), name
        found = identify(*log, state_dimension=1, lags=2, ridge=1.0)
        plain = identify(actions, rewards, state_dimension=1, lags=2, ridge=1.0)
        torch.testing.assert_close(found.theta, plain.theta)
    for table in (pd.DataFrame(SIX.numpy()), SIX.numpy()[::-1].copy()[::-1], list(SIX)):
        assert torch.equal(make(table).act(), make().act())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: make(SIX + 0j), TypeError, "actions must be real, got torch.complex128"),
        (lambda: make("six"), TypeError, "actions must be numbers, got str"),
        (lambda: make([[1.0, 2.0], [1.0]]), ValueError, "actions must be numbers in rows of equal length"),
        (lambda: make().confidence(torch.ones(2)), ValueError, r"actions must have 3 components"),
        (lambda: make().observe_log(SIX[:2], [1j, 1.0]), TypeError, "rewards must be"),
        (lambda: make().observe_log([True, False], [1.0, 1.0]), ValueError, "indices"),
        (lambda: make(replicas=2.5), TypeError, "replicas must be a whole number, got 2.5"),
        (lambda: DynLinUCB(SIX, BOUNDS, horizon="long"), TypeError, "horizon must be a whole number"),
        (lambda: make(beta_scale=[1.0, 2.0]), ValueError, "beta_scale must be one value or one per replica"),
        (lambda: make(beta_scale=[1.0, -2.0], replicas=2), ValueError, "beta_scale must be finite"),
    ],
)
def test_what_does_not_fit_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_counts_come_from_numpy_and_from_configs():
    import numpy as np

    for horizon in (1000, np.int64(1000), torch.tensor(1000), 1e3):
        assert DynLinUCB(SIX, BOUNDS, horizon=horizon, replicas=np.int32(2)).horizon == 1000


# --- what decides is kept, and does not change behind the policy's back -----------------------------


@pytest.mark.parametrize(
    ("policy", "other", "name"),
    [
        (make(), make(regularization=1.0), "regularization"),
        (make(), make(use="tail_mean"), "use_last"),
        (make(), DynLinUCB(SIX, replace(BOUNDS, spectral_radius=0.6), horizon=1000), "spectral_radius"),
        (
            DLinUCB(SIX, BOUNDS, horizon=9, discount=0.9),
            DLinUCB(SIX, BOUNDS, horizon=9, discount=0.8),
            "discount",
        ),
        (
            BatchExp3(SIX, BOUNDS, horizon=9, batch_size=2),
            BatchExp3(SIX, BOUNDS, horizon=9, batch_size=3),
            "exploration|batch_size",
        ),
        (
            Exp3(SIX, BOUNDS, horizon=99999),
            Exp3(SIX, replace(BOUNDS, theta_norm=9.0), horizon=99999),
            "scale",
        ),
        (AR2(SIX, BOUNDS), AR2(SIX, replace(BOUNDS, sigma=0.2)), "length"),
    ],
)
def test_a_state_made_with_other_settings_is_refused(policy, other, name):
    with pytest.raises(ValueError, match=f"state must be of a policy with the same ({name}), got another"):
        other.load_state_dict(policy.state_dict())
    policy.load_state_dict(policy.state_dict())


def test_the_radius_of_decisions_to_come_may_be_set_anew_with_a_kept_state():
    policy = play(make(), [0.5] * 9)
    other = DynLinUCB(SIX, replace(BOUNDS, sigma=0.5), horizon=1000, delta=0.3, beta_scale=0.5)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.estimate, policy.estimate)


@pytest.mark.parametrize(
    "name", ["bounds", "delta", "horizon", "regularization", "use", "first", "spectral_radius"]
)
def test_what_the_radius_and_the_holds_were_made_from_cannot_be_set(name):
    with pytest.raises(AttributeError):
        setattr(make(), name, 0.3)


@pytest.mark.parametrize("kind", [DynLinUCB, LinUCB])
def test_replicas_may_have_a_scale_each(kind):
    scales, effect = [0.0, 0.05, 1.0], torch.tensor([0.4, 0.5, -0.2]).double()
    together = kind(SIX, BOUNDS, horizon=1000, beta_scale=scales, replicas=3)
    assert together.beta_scale == scales
    singles = [kind(SIX, BOUNDS, horizon=1000, beta_scale=scale) for scale in scales]
    for _ in range(60):
        actions = together.act()
        assert torch.equal(actions, torch.stack([single.act() for single in singles]))
        together.update(actions @ effect)
        for single, reward in zip(singles, actions @ effect, strict=True):
            single.update(reward)
    widths = [single.confidence(SIX) for single in singles]
    torch.testing.assert_close(together.confidence(SIX), torch.stack(widths))
    assert together.beta([5]).tolist()[0] == [single.beta([5]).item() for single in singles]


# --- the environment --------------------------------------------------------------------------------


def test_gymnasium_makes_it_with_arguments_of_its_own():
    import gymnasium

    half = 0.5 * torch.eye(3).double()
    system = DynamicalLinearBandit(half, half, half[0], half[0])
    spec = gymnasium.envs.registration.EnvSpec("Bandit-v0", "dynlinucb:DynamicalLinearBanditEnv")
    options = {"system": system, "actions": SIX, "horizon": 9, "render_mode": None}
    env = gymnasium.make(spec, max_episode_steps=3, **options)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="render_mode must be None"):
        dynlinucb.DynamicalLinearBanditEnv(system, SIX, 9, render_mode="human")


def test_actions_outside_the_space_are_refused():
    from dynlinucb import DynamicalLinearBanditEnv

    half = 0.5 * torch.eye(3).double()
    system = DynamicalLinearBandit(half, half, half[0], half[0])
    env, ball = (DynamicalLinearBanditEnv(system, actions, 5) for actions in (SIX, Ellipsoid.ball(3)))
    for action in (-1, 6):
        with pytest.raises(ValueError, match="action must be"):
            env.step(action)
    with pytest.raises(TypeError, match=r"action must be a whole number, got 1\.5"):
        env.step(1.5)
    for action in ([math.nan, 0.0, 0.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="action must be finite, of shape"):
            ball.step(action)


# --- identification ---------------------------------------------------------------------------------


def a_log(length=2000, noise=0.05, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(length, 2, generator=generator, dtype=torch.float64)
    noises = noise * torch.randn(length, generator=generator, dtype=torch.float64)
    goodwill, rewards = 0.0, []
    for spend, eta in zip(actions, noises, strict=True):
        rewards.append(float(offset + 0.25 * spend[1] + 0.3 * goodwill + eta))
        goodwill = 0.7 * goodwill + 0.5 * float(spend[0])
    return actions, torch.tensor(rewards, dtype=torch.float64)


@pytest.mark.parametrize("unit", [1e-150, 1e-8, 1e8, 1e150])
def test_identification_finds_the_same_in_every_unit(unit):
    actions, rewards = a_log()
    plain = identify(actions, rewards, state_dimension=1)
    for log, ratio in (((actions * unit, rewards), 1 / unit), ((actions, rewards * unit), unit)):
        found = identify(*log, state_dimension=1)
        assert found.spectral_radius == pytest.approx(plain.spectral_radius, rel=1e-6)
        torch.testing.assert_close(found.cumulative_markov() / ratio, plain.cumulative_markov())


@pytest.mark.parametrize("offset", [1.0, 1e4, 1e6])
def test_a_constant_part_of_the_rewards_is_said_and_can_be_had(offset):
    said = pytest.warns(UserWarning, match="rewards have a constant part: pass intercept=True")
    with said as warned, contextlib.suppress(ValueError):  # what is found may be unstable
        identify(*a_log(offset=offset), state_dimension=1)
    assert warned[0].filename == __file__
    found = identify(*a_log(offset=offset), state_dimension=1, intercept=True)
    wanted = torch.tensor([0.3 * 0.5 / (1 - 0.7), 0.25], dtype=torch.float64)
    torch.testing.assert_close(found.cumulative_markov(), wanted, rtol=0, atol=0.03)
    assert found.noise_reward == pytest.approx(0.05, rel=0.05)
    without = identify(*a_log(), state_dimension=1, intercept=True)
    torch.testing.assert_close(found.cumulative_markov(), without.cumulative_markov(), rtol=1e-6, atol=0)


def test_a_budget_that_is_always_spent_has_no_constant_part():
    """Its actions have one sum: a constant and an equal effect of all components are the same."""
    generator = torch.Generator().manual_seed(1)
    played = SIX[torch.randint(3, (500,), generator=generator)]  # the unit vectors
    rewards = played @ torch.tensor([3.0, 4.0, 5.0]).double()
    rewards += 0.1 * torch.randn(500, generator=generator, dtype=torch.float64)
    found = identify(played, rewards, state_dimension=1, lags=2)
    torch.testing.assert_close(found.theta.diff(), torch.ones(2).double(), atol=0.1, rtol=0)


def test_noise_is_said_to_be_noise():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(300, generator=generator)
    with pytest.warns(UserWarning, match="no better than noise would"):
        identify(torch.randn(300, 2, generator=generator), noise, state_dimension=2)
    with pytest.raises(ValueError, match="rewards must vary"):
        identify(torch.randn(300, 2, generator=generator), torch.ones(300), state_dimension=2)


# --- bounds, systems, states ------------------------------------------------------------------------


def test_bounds_are_numbers():
    given = SystemBounds(*(torch.tensor(one) for one in (0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 0.25)))
    assert given == SystemBounds(0.5, 1, 1, 1, 1, 2, 1, 0.25)
    assert isinstance(given.reward_sigma, float)
    with pytest.raises(TypeError, match="spectral_radius must be numbers, got str"):
        SystemBounds("0.5", 1, 1, 1, 1, 2, 1, 0.25)
    with pytest.raises(ValueError, match="sigma must be one number"):
        SystemBounds(0.5, 1, 1, 1, 1, 2, 1, torch.ones(2))


def test_learned_systems_are_simulated_without_a_graph():
    A = torch.nn.Parameter(0.5 * torch.eye(3).double())
    system = DynamicalLinearBandit(A, A, A[0], A[0])
    assert not system.cumulative_markov().requires_grad
    assert system.bounds(SIX).spectral_radius == 0.5
    with pytest.raises(ValueError, match="num_parameters must be at least 1, got 0"):
        system.markov_parameters(0)


def test_sizes_that_overflow_are_named():
    told = SystemBounds(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 1e150, 0.1)
    with pytest.raises(ValueError, match="actions and bounds must give a finite radius"):
        DynLinUCB(1e150 * SIX, told, horizon=10).act()


def test_states_that_are_not_finite_are_refused_and_those_of_the_other_precision_load():
    policy, low = make(), make(dtype=torch.float32)
    state = play(policy, [0.5] * 9).state_dict()
    with pytest.raises(ValueError, match=r"state\['packed'\] must not be nan"):
        make().load_state_dict(state | {"packed": state["packed"] * math.nan})
    low.load_state_dict(state)
    torch.testing.assert_close(low.estimate.double(), policy.estimate, rtol=1e-5, atol=1e-6)
    policy.load_state_dict(low.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32 or torch\.float64"):
        make(dtype=dtype)


def test_an_empty_log_teaches_nothing():
    policy = make()
    for log in (([], []), (torch.zeros(0, 3), torch.zeros(0))):
        policy.observe_log(*log)
    assert (policy.round, policy.epoch) == (0, 0)
