import types
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from h2orl.wrappers import SimulatorGap


class MuJoCoLike(gymnasium.Env):
    """The parts of a MuJoCo environment that the wrapper touches; steps tell what was executed."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-10, 10, (2,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), dtype=np.float32)
        option = types.SimpleNamespace(gravity=np.array([0.0, 0.0, -9.81]))
        self.model = types.SimpleNamespace(opt=option, geom_friction=np.ones((3, 3)), body_mass=np.ones(2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.asarray(action, np.float32), 0.0, False, False, {}


def test_a_pendulum_of_twice_the_gravity_is_gymnasiums_own():
    ours = SimulatorGap(gymnasium.make("Pendulum-v1"), gravity=2.0)
    theirs = gymnasium.make("Pendulum-v1", g=20.0)
    first, second = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    for step in range(20):
        np.testing.assert_array_equal(first, second)
        action = np.array([np.sin(step)], np.float32)
        first, second = ours.step(action)[0], theirs.step(action)[0]
    ours.close()
    assert ours.unwrapped.g == 10.0


def test_mujocos_gravity_and_friction_are_scaled_in_place_and_put_back():
    env = MuJoCoLike()
    view = env.model.opt.gravity
    wrapped = SimulatorGap(env, gravity=2.0, friction=0.3, attributes={"model.body_mass": 1.5})
    assert view.tolist() == [0, 0, -19.62]
    np.testing.assert_allclose(env.model.geom_friction, 0.3)
    np.testing.assert_allclose(env.model.body_mass, 1.5)
    wrapped.close()
    assert view.tolist() == [0, 0, -9.81]
    np.testing.assert_allclose(env.model.geom_friction, 1.0)


def test_noise_is_executed_and_the_clean_action_stays_the_callers():
    env = SimulatorGap(MuJoCoLike(), action_noise=0.5)
    action = np.array([0.2, 0.9], np.float32)
    env.reset(seed=1)
    executed = np.array([env.step(action)[0] for _ in range(2000)])
    assert action.tolist() == pytest.approx([0.2, 0.9])
    assert executed.max() == 1.0
    assert abs(executed[:, 0].mean() - 0.2) < 0.05
    assert 0.4 < executed[:, 0].std() < 0.5  # clipped
    observation, *_, info = env.step(action)
    np.testing.assert_array_equal(observation, info["executed_action"])
    env.reset(seed=1)
    np.testing.assert_array_equal(env.step(action)[0], executed[0])


def test_it_passes_the_checker_and_can_be_made_again_from_its_spec():
    env = SimulatorGap(gymnasium.make("Pendulum-v1"), gravity=2.0, attributes={"l": 0.6})
    again = gymnasium.make(env.spec)
    assert (again.unwrapped.g, again.unwrapped.l) == (20.0, 0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice about the pendulum's own spaces
        check_env(env, skip_render_check=True)
    env.close()


def test_bad_input_is_named():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(ValueError, match="gravity must be finite"):
        SimulatorGap(env, gravity=-1)
    with pytest.raises(AttributeError, match=r"friction: .* has none of model\.geom_friction"):
        SimulatorGap(env, friction=0.3)
    with pytest.raises(AttributeError, match="has no wheels"):
        SimulatorGap(env, gravity=2.0, attributes={"wheels": 2.0})
    assert env.unwrapped.g == 10.0
    with pytest.raises(TypeError, match="action_noise needs a Box"):
        SimulatorGap(gymnasium.make("CartPole-v1"), action_noise=0.1)
    with pytest.raises(ValueError, match="attributes must not scale what gravity or friction scales"):
        SimulatorGap(env, gravity=2.0, attributes={"g": 3.0})
    with pytest.raises(TypeError, match="attributes: render_mode must be a number or an array, got None"):
        SimulatorGap(env, attributes={"render_mode": 2.0})
