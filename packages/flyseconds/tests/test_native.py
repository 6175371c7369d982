"""The step in C: what torch computes, wherever it fits, and torch wherever it does not."""

import importlib.util
import math
import shutil
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import random_actions, random_state, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from flyseconds import (
    InitSpec,
    ObservationNoise,
    QuadrotorParams,
    QuadrotorVectorEnv,
    QuadState,
    RewardWeights,
    evaluate,
    native,
    rk4,
    step,
)

compiled = pytest.mark.skipif(not native.available(), reason="flyseconds was built without a C compiler")
PAPER = QuadrotorParams.crazyflie_paper(dtype=torch.float64)
LAGGING = QuadrotorParams.crazyflie_l2f(dtype=torch.float64)
HALF = torch.bfloat16
ROUGH = ObservationNoise(0.1, 0.2, 0.3, 0.4)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def assert_same_step(state, action, params, **options):
    expected = step(state, action, params, native=False, **options)
    kept = state.motion.clone(), state.action_history.clone(), action.clone()
    found = step(state, action, params, native=True, **options)
    scale = expected.motion.abs().clamp_min(1)
    torch.testing.assert_close(found.motion / scale, expected.motion / scale, equal_nan=True, **EXACT)
    assert torch.equal(found.disturbance, expected.disturbance)
    torch.testing.assert_close(found.action_history, expected.action_history, rtol=0, atol=0, equal_nan=True)
    for before, after in zip(kept, (state.motion, state.action_history, action), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    return found


# --- the step --------------------------------------------------------------------------------------


@compiled
@given(
    seed=st.integers(0, 99),
    count=st.sampled_from([1, 3, 16, 17, 40]),
    nominal=st.sampled_from([PAPER, LAGGING]),
    spread=st.sampled_from([None, 0.3]),
    history_length=st.sampled_from([0, 1, 5]),
    integrator=st.sampled_from(["rk4", "euler"]),
    mode=st.sampled_from(["rpm", "thrust", "collective_rates"]),
)
def test_a_step_in_c_is_that_of_torch(seed, count, nominal, spread, history_length, integrator, mode):
    params = nominal if spread is None else nominal.randomized(count, spread, generator=seeded(seed))
    state = random_state(count, seed, params=nominal, history_length=history_length)
    for number in range(history_length + 3):
        action = 1.5 * random_actions(count, seed + number)
        state = assert_same_step(state, action, params, integrator=integrator, action_mode=mode)


@compiled
def test_noise_on_the_action_is_drawn_alike():
    state, action = random_state(5), random_actions(5)
    options = {"action_noise": 0.3, "params": PAPER}
    found, expected = (
        step(state, action, native=how, generator=seeded(3), **options) for how in (True, False)
    )
    torch.testing.assert_close(found.motion, expected.motion, **EXACT)
    assert torch.equal(found.action_history, expected.action_history)


@compiled
def test_single_precision_to_rounding():
    params = QuadrotorParams.crazyflie_paper()
    state, action = random_state(33, dtype=torch.float32), random_actions(33, dtype=torch.float32)
    found, expected = (step(state, action, params, native=how).motion for how in (True, False))
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@compiled
def test_what_is_not_finite_or_beyond_the_limits_fares_alike():
    state, action = random_state(4), random_actions(4)
    state.motion[0, 0], state.motion[14, 1], action[2, 1], action[3, 0] = math.nan, 3e4, math.nan, math.inf
    found = assert_same_step(state, action, PAPER)
    assert found.rpm[1, 1] == PAPER.rpm_max
    assert found.motion[:, 2].isnan().any()


@compiled
def test_states_that_lie_otherwise_in_memory_and_actions_of_another_dtype():
    wide = random_state(6)
    state = QuadState(
        wide.motion[:, ::2], wide.disturbance.mT.contiguous().mT[:, :3], random_state(3).history
    )
    assert_same_step(state, random_actions(12)[::4], PAPER)
    assert_same_step(state, random_actions(3).float(), PAPER)
    params = QuadrotorParams.crazyflie_paper()
    assert step(random_state(2, dtype=torch.float32), random_actions(2).bfloat16(), params, native=True)


@compiled
def test_two_futures_of_one_state_do_not_meet():
    first = random_state(2, history_length=3)
    one, other = (
        step(first, torch.full((2, 4), value, dtype=torch.float64), PAPER, native=True)
        for value in (0.1, 0.2)
    )
    for _ in range(5):
        one = step(one, torch.full((2, 4), 0.1, dtype=torch.float64), PAPER, native=True)
    assert (one.action_history == 0.1).all()
    assert (other.action_history[:, -1] == 0.2).all()
    assert torch.equal(other.action_history[:, :-1], first.action_history[:, 1:])


# --- where it does not fit -------------------------------------------------------------------------


def of(state=None, action=None, params=PAPER, **options):
    return partial(
        step, state or random_state(2), random_actions(2) if action is None else action, params, **options
    )


def in_vmap():
    one = random_state(2)
    return torch.func.vmap(lambda action: of(one, action, native=True)().motion)(
        random_actions(4).view(2, 2, 4)
    )


def in_forward_mode():
    with forward_ad.dual_level():
        return of(native=True)()


def in_dispatch_mode():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        return of(native=True)()


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (of(action=random_actions(2).requires_grad_(), native=True), "gradients"),
        (of(random_state(2, dtype=HALF), params=PAPER.to(dtype=HALF), native=True), "bfloat16"),
        (of(integrator=rk4, native=True), "integrator must be 'rk4' or 'euler'"),
        (of(action=random_actions(2).as_subclass(Tagged), native=True), "plain tensors of one dtype"),
        (in_vmap, "torch.func"),
        (in_forward_mode, "forward differentiation"),
        (in_dispatch_mode, "tracing"),
    ],
)  # fmt: skip
def test_asked_for_where_it_cannot_be_had(call, reason):
    with pytest.raises(ValueError, match=f"native=True cannot be had: .*{reason}"):
        call()


def test_gradients_and_transforms_go_through_torch():
    state, action = random_state(2), random_actions(2).requires_grad_()
    step(state, action, PAPER).position.sum().backward()
    assert action.grad.abs().sum() > 0
    many = torch.func.vmap(lambda each: step(state, each, PAPER).motion)(action.detach()[None])
    torch.testing.assert_close(many[0], step(state, action.detach(), PAPER, native=False).motion)
    mass = PAPER.mass.clone().requires_grad_()
    learned = QuadrotorParams(**(PAPER.values() | {"mass": mass}))
    with torch.no_grad():
        before = step(state, action.detach(), learned)
        step(state, action.detach(), learned, native=False)
    step(state, action.detach(), learned).velocity.sum().backward()
    assert mass.grad != 0
    if native.available():
        with torch.no_grad():
            mass.mul_(2)
            assert not torch.equal(step(state, action.detach(), learned).velocity, before.velocity)


def test_a_disturbance_for_all_vehicles_goes_through_torch():
    state, action = random_state(3), random_actions(3)
    common = QuadState(state.motion, state.disturbance[:, :1], state.history)
    each = QuadState(state.motion, state.disturbance[:, :1].expand(-1, 3), state.history)
    torch.testing.assert_close(step(common, action, PAPER).motion, step(each, action, PAPER).motion)
    with pytest.raises(ValueError, match="native=True cannot be had"):
        step(common, action, PAPER, native=True)


def test_without_the_library_all_is_as_before(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: None)
    assert not native.available()
    assert torch.equal(of()().motion, of(native=False)().motion)
    with pytest.raises(ValueError, match="native=True cannot be had: no library was compiled"):
        of(native=True)()
    env = QuadrotorVectorEnv(2, native=True, generator=seeded(0))
    env.reset_tensors()
    with pytest.raises(ValueError, match="native=True cannot be had: no library"):
        env.step_tensors(torch.zeros(2, 4))


@compiled
def test_a_library_of_another_source_is_left_alone(monkeypatch, tmp_path):
    library = Path(native._library()._name)
    assert native._loaded(library) is not None
    other = tmp_path / "native.c"
    other.write_bytes(native.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(native, "SOURCE", other)
    assert native._loaded(library) is None


def test_a_file_that_is_no_library_is_left_alone(tmp_path):
    (tmp_path / "_native.so").write_text("not a library")
    assert native._loaded(tmp_path / "_native.so") is None
    assert native._loaded(tmp_path / "missing.so") is None


# --- the environment -------------------------------------------------------------------------------

FIELDS = "observation", "privileged", "next_observation", "next_privileged", "reward"


def assert_same_episodes(count, *, steps=8, seed=0, tolerance=1e-12, **options):
    """Step both from the same seed; gives how many episodes ended by bounds and by the limit."""
    options = {"params": PAPER, "noise": ROUGH} | options
    dtype = options["params"].mass.dtype
    torch_env, c_env = (
        QuadrotorVectorEnv(count, native=how, generator=seeded(seed), **options) for how in (False, True)
    )
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    ends, taken = torch.zeros(2), []
    for first, second in zip(torch_env.reset_tensors(), c_env.reset_tensors(), strict=True):
        assert torch.equal(first, second)
    for number in range(steps):
        action = 0.3 + torch.randn(count, 4, generator=seeded(seed + number), dtype=dtype)
        expected, found = torch_env.step_tensors(action), c_env.step_tensors(action)
        for name in FIELDS:
            first, second = getattr(expected, name), getattr(found, name)
            close(second, first, msg=lambda text, name=name: f"{name}: {text}")
            assert second.stride() == first.stride()
        assert torch.equal(found.terminated, expected.terminated)
        assert torch.equal(found.truncated, expected.truncated)
        scale = torch_env.state.motion.abs().clamp_min(1)
        close(c_env.state.motion / scale, torch_env.state.motion / scale)
        close(c_env.state.disturbance, torch_env.state.disturbance)
        assert torch.equal(c_env.state.action_history, torch_env.state.action_history)
        assert torch.equal(c_env._steps, torch_env._steps)
        assert torch.equal(c_env.params.mass, torch_env.params.mass)
        ends += torch.stack([found.terminated.sum(), found.truncated.sum()])
        taken.append((c_env.state, c_env.state.motion.clone(), c_env.state.action_history.clone()))
    for state, motion, history in taken:  # what was taken stays as it is
        assert torch.equal(state.motion, motion)
        assert torch.equal(state.action_history, history)
    assert torch.equal(torch_env._generator.get_state(), c_env._generator.get_state())
    return ends


@compiled
@given(
    seed=st.integers(0, 99),
    count=st.sampled_from([1, 5, 17]),
    limit=st.sampled_from([None, 1, 5]),
    history_length=st.sampled_from([0, 1, 6]),
    mode=st.sampled_from(["rpm", "thrust", "collective_rates"]),
    noise=st.sampled_from([None, ROUGH]),
    action_noise=st.sampled_from([0.0, 0.3]),
    several=st.sampled_from(["one", "each", "drawn"]),
)
def test_episodes_in_c_are_those_of_torch(
    seed, count, limit, history_length, mode, noise, action_noise, several
):
    options = {
        "one": {},
        "each": {"params": PAPER.randomized(count, 0.3, generator=seeded(seed))},
        "drawn": {"params_sampler": partial(PAPER.randomized, spread=0.3)},
    }[several]
    assert_same_episodes(
        count, seed=seed, max_episode_steps=limit, history_length=history_length, action_mode=mode, noise=noise,
        action_noise=action_noise, init=InitSpec(action=0.2, max_angle=7.0), **options,
    )  # fmt: skip


@compiled
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_every_term_of_the_reward_and_both_ends(dtype, tolerance):
    weights = RewardWeights(
        position=torch.rand(20, generator=seeded(1)).to(dtype), orientation=2.0, velocity=0.3, angular_velocity=0.1,
        linear_acceleration=1e-4, angular_acceleration=1e-6, action=torch.tensor(0.5, dtype=dtype),
        action_baseline=torch.rand(20, generator=seeded(2)).to(dtype), scale=0.7, constant=torch.ones(1, dtype=dtype),
    )  # fmt: skip
    ends = assert_same_episodes(
        20, steps=25, params=PAPER.to(dtype=dtype), reward_weights=weights, max_episode_steps=9, max_distance=0.21,
        integrator="euler", tolerance=tolerance,
    )  # fmt: skip
    assert (ends > 0).all()


@compiled
def test_a_curriculum_and_weights_of_another_kind():
    env = QuadrotorVectorEnv(2, native=True, noise=None, generator=seeded(0))
    env.reset_tensors()
    for position in (5.0, 6.0):
        env.reward_weights = RewardWeights(position=position, velocity=0.0, orientation=0.0, action=0.0)
        cost = 0.5 * position * env.state.position.square().sum(-1)
        torch.testing.assert_close(env.step_tensors(torch.full((2, 4), 0.3)).reward, 2 - cost)
    env.reward_weights = RewardWeights(position=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="reward weights must be numbers or tensors of the dtype"):
        env.step_tensors(torch.zeros(2, 4))
    env.native = None
    assert env.step_tensors(torch.zeros(2, 4)).reward.dtype == torch.float64


@compiled
@pytest.mark.parametrize(("strict", "value"), [(False, math.nan), (True, 1.01), (True, math.nan)])
def test_actions_are_refused_as_by_torch(strict, value):
    errors = []
    for how in (True, False):
        env = QuadrotorVectorEnv(3, native=how, strict=strict, noise=None, generator=seeded(0))
        env.reset_tensors()
        before, action = env.state.motion.clone(), torch.zeros(3, 4)
        action[2, 3] = value
        with pytest.raises(ValueError, match="action must") as error:
            env.step_tensors(action)
        errors.append(str(error.value))
        assert torch.equal(env.state.motion, before)
    assert errors[0] == errors[1]


@compiled
def test_an_evaluation_in_c_is_that_of_torch():
    first, second = (
        evaluate(
            lambda seen: 0.3 - 0.5 * seen[:, :1].expand(-1, 4), PAPER, num_episodes=3, num_steps=30, last_steps=10,
            native=how, generator=seeded(0),
        )
        for how in (True, False)
    )  # fmt: skip
    torch.testing.assert_close(first.positions, second.positions, rtol=1e-9, atol=1e-9)
    assert torch.equal(first.length, second.length)


def test_options_that_exclude_each_other():
    with pytest.raises(ValueError, match="native and compile exclude each other"):
        QuadrotorVectorEnv(2, native=True, compile=True)
    with pytest.raises(TypeError, match="native must be None, True or False, got 'yes'"):
        QuadrotorVectorEnv(2, native="yes")
    env = QuadrotorVectorEnv(2, native=True, integrator=rk4)
    env.reset_tensors()
    with pytest.raises(ValueError, match="native=True cannot be had: the integrator"):
        env.step_tensors(torch.zeros(2, 4))


# --- how it is built -------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no gcc")
def test_the_source_has_nothing_to_warn_of():
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
    command = ["gcc", "-fsyntax-only", *warnings, "-DCHECKSUM=0u", str(native.SOURCE)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr == ""


@pytest.fixture
def hook(monkeypatch):
    """The build hook with a stand-in for hatchling, which no test depends on."""
    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    path = Path(__file__).parents[1] / "src" / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.NativeBuildHook()
    made.root = str(path.parents[1])
    made.told = []
    made.app = types.SimpleNamespace(display_warning=made.told.append)
    return made


@pytest.fixture
def build(hook, monkeypatch, tmp_path):
    """Runs the hook with a compiler that writes its arguments instead of a library."""
    script = tmp_path / "cc"

    def run(version, fails=False):
        script.write_text('#!/bin/sh\nfor last; do [ "$before" = -o ] && out=$last; before=$last; done\n')
        script.write_text(
            script.read_text() + ("echo broken >&2; exit 1\n" if fails else 'echo "$@" > "$out"\n')
        )
        script.chmod(0o755)
        monkeypatch.setenv("CC", f"{script} -v")
        data = {"force_include": {}, "force_include_editable": {}, "pure_python": True}
        hook.initialize(version, data)
        return data

    return run


@pytest.mark.parametrize(
    ("version", "where"), [("standard", "force_include"), ("editable", "force_include_editable")]
)
def test_a_compiler_makes_a_wheel_of_this_platform(hook, build, monkeypatch, version, where):
    monkeypatch.delenv("FLYSECONDS_NO_NATIVE", raising=False)
    data = build(version)
    ((library, inside),) = data[where].items()
    assert inside == "flyseconds/_native.so"
    asked = Path(library).read_text().split()
    assert asked[0] == "-v"
    assert not [flag for flag in asked if flag.startswith("-march") or "fast-math" in flag]
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-")
    assert not data["tag"].endswith("any")
    assert hook.told == []
    hook.finalize(version, data, "")
    assert not Path(library).exists()


def test_no_compiler_or_no_wish_makes_a_wheel_of_python_alone(hook, build, monkeypatch):
    monkeypatch.delenv("FLYSECONDS_NO_NATIVE", raising=False)
    plain = {"force_include": {}, "force_include_editable": {}, "pure_python": True}
    assert build("standard", fails=True) == plain
    assert "without its step in C" in hook.told.pop()
    monkeypatch.setenv("CC", "/nowhere/cc")
    hook.initialize("standard", plain)
    assert plain["pure_python"]
    assert "tag" not in plain
    assert "/nowhere/cc" in hook.told.pop()
    monkeypatch.setenv("FLYSECONDS_NO_NATIVE", "1")
    assert build("standard") == plain
    assert hook.told == []
