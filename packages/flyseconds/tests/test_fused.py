"""The compiled step of the vector environment: the episodes of the eager one."""

from functools import partial

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from flyseconds import (
    InitSpec,
    ObservationNoise,
    QuadrotorEnv,
    QuadrotorParams,
    QuadrotorVectorEnv,
    RewardWeights,
)

PAPER = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
ROUGH = ObservationNoise(0.1, 0.2, 0.3, 0.4)
FIELDS = (
    "observation",
    "privileged",
    "next_observation",
    "next_privileged",
    "reward",
    "terminated",
    "truncated",
)


def as_it_is(function):
    """Instead of a compiler: the functions that would be compiled."""
    return function


def traced(counted=None):
    """torch.compile up to the graph, without the C++ compiler; graphs are counted."""

    def backend(graph, inputs):
        if counted is not None:
            counted.append(graph)
        return graph.forward

    return partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)


def assert_same_episodes(compile, num_envs=4, *, steps=8, seed=0, **options):
    """Step both from the same seed; gives how many episodes ended by bounds and by the limit."""
    options = {"params": PAPER, "noise": ROUGH} | options
    eager, fused = (
        QuadrotorVectorEnv(num_envs, compile=how, native=False, generator=seeded(seed), **options)
        for how in (False, compile)
    )
    ends = torch.zeros(2)
    for first, second in zip(eager.reset_tensors(), fused.reset_tensors(), strict=True):
        assert torch.equal(first, second)
    for number in range(steps):
        action = 0.3 + torch.randn(num_envs, 4, generator=seeded(seed + number), dtype=torch.float64)
        expected, found = eager.step_tensors(action), fused.step_tensors(action)
        for name in FIELDS:
            first, second = getattr(expected, name), getattr(found, name)
            torch.testing.assert_close(
                second, first, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )
        torch.testing.assert_close(fused.state.motion, eager.state.motion, rtol=1e-9, atol=1e-9)
        assert torch.equal(fused.state.disturbance, eager.state.disturbance)
        assert torch.equal(fused.state.action_history, eager.state.action_history)
        assert torch.equal(fused.params.mass, eager.params.mass)
        ends += torch.stack([found.terminated.sum(), found.truncated.sum()])
    assert torch.equal(eager._generator.get_state(), fused._generator.get_state())
    return ends


@given(
    seed=st.integers(0, 99),
    num_envs=st.integers(1, 5),
    limit=st.sampled_from([None, 1, 5]),
    history_length=st.sampled_from([0, 1, 6]),
    mode=st.sampled_from(["rpm", "thrust", "collective_rates"]),
    noise=st.sampled_from([None, ROUGH]),
    action_noise=st.sampled_from([0.0, 0.3]),
    several=st.sampled_from(["one", "each", "drawn"]),
)
def test_the_fused_functions_lead_to_the_same_episodes(
    seed, num_envs, limit, history_length, mode, noise, action_noise, several
):
    options = {
        "one": {},
        "each": {"params": PAPER.randomized(num_envs, 0.3, generator=seeded(seed))},
        "drawn": {"params_sampler": partial(PAPER.randomized, spread=0.3)},
    }[several]
    assert_same_episodes(
        as_it_is, num_envs, seed=seed, max_episode_steps=limit, history_length=history_length, action_mode=mode,
        noise=noise, action_noise=action_noise, init=InitSpec(action=0.2), **options,
    )  # fmt: skip


def test_the_whole_step_is_one_graph_that_is_traced_once():
    graphs = []
    ends = assert_same_episodes(
        traced(graphs), 8, steps=20, params_sampler=partial(PAPER.randomized, spread=0.3),
        max_episode_steps=7, max_distance=0.21, action_noise=0.1,
    )  # fmt: skip
    assert (ends > 0).all()
    assert len(graphs) == 2  # of the step and of resets


def test_a_curriculum_compiles_nothing_anew():
    graphs = []
    env = QuadrotorVectorEnv(
        2, compile=traced(graphs), noise=None, history_length=0, integrator="euler", generator=seeded(0)
    )
    env.reset_tensors()
    for position in (5.0, 6.0, 7.2):
        env.reward_weights = weights = RewardWeights(
            position=position, velocity=0.0, orientation=0.0, action=0.0
        )
        cost = 0.5 * position * env.state.position.square().sum(-1)
        torch.testing.assert_close(env.step_tensors(torch.full((2, 4), 0.3)).reward, 2 - cost)
        assert env.reward_weights.position == weights.position
    assert len(graphs) == 1


def test_many_kinds_of_environments_live_in_one_process():
    """torch.compile alone gives up when one function is compiled for more than a few kinds of arguments."""
    import torch._dynamo

    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    how = traced()
    with torch._dynamo.config.patch({limit: 1}):
        for num_envs in (1, 2):
            env = QuadrotorVectorEnv(num_envs, compile=how, history_length=0, integrator="euler")
            env.reset_tensors()
            assert env.step_tensors(torch.zeros(num_envs, 4)).reward.shape == (num_envs,)


def test_a_state_that_was_taken_stays_as_it_is():
    env = QuadrotorVectorEnv(3, compile=as_it_is, max_episode_steps=2, generator=seeded(0))
    env.reset_tensors()
    taken, kept = [], []
    for number in range(6):
        result = env.step_tensors(torch.full((3, 4), 0.1 * number))
        result.next_observation.fill_(7.0)
        taken.append(env.state)
        kept.append((env.state.motion.clone(), env.state.action_history.clone()))
    for state, (motion, history) in zip(taken, kept, strict=True):
        assert torch.equal(state.motion, motion)
        assert torch.equal(state.action_history, history)
        assert (history < 1).all()


def test_a_compiler_that_fails_is_named_by_its_option():
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    how = partial(torch.compile, backend=broken)
    env = QuadrotorVectorEnv(2, compile=how, history_length=0, integrator="euler")
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"(?s)^compile=.*no compiler here.*needs a C\+\+ compiler"):
        env.step_tensors(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="compile must be True, False or a function that compiles, got 'yes'"):
        QuadrotorVectorEnv(2, compile="yes")


def test_the_single_environment_has_the_option_too():
    one, other = QuadrotorEnv(compile=as_it_is), QuadrotorEnv()
    first, second = one.reset(seed=1)[0], other.reset(seed=1)[0]
    for _ in range(3):
        assert first == pytest.approx(second, abs=1e-6)
        first, second = (env.step([0.1, 0.2, 0.3, 0.4])[0] for env in (one, other))
