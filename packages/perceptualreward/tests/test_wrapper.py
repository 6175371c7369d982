"""The reward in a gymnasium environment."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import demonstrations

import perceptualreward
from perceptualreward import PerceptualReward, PerceptualRewardWrapper


class Film(gymnasium.Env):
    """Plays a demonstration, whatever is done."""

    observation_space = gymnasium.spaces.Box(-50, 50, (40,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, frames):
        self.frames, self.t = frames, 0

    def _frame(self):
        return self.frames[self.t].numpy().copy()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {"own": 1}

    def step(self, action):
        self.t += 1
        return self._frame(), 10.0, self.t == len(self.frames) - 1, False, {}

    def render(self):
        return 2 * self._frame()


@pytest.fixture(scope="module")
def fitted():
    demos, _ = demonstrations()
    return demos, PerceptualReward.fit(demos, 3, m=8)


def play(env):
    _, info = env.reset(seed=0)
    told, ended = [(None, info)], False
    while not ended:
        _, reward, ended, _, info = env.step(0)
        told.append((reward, info))
    return told


def test_each_step_is_rewarded_by_its_frame(fitted):
    demos, reward = fitted
    told = play(PerceptualRewardWrapper(Film(demos[0]), torch.as_tensor, reward))
    expected = reward(demos[0])
    assert [one for one, _ in told[1:]] == pytest.approx(expected[1:].tolist())
    assert [info["progress"] for _, info in told] == pytest.approx(reward.progress(demos[0]).tolist())
    assert told[0][1]["own"] == 1
    assert "success" not in told[0][1]


def test_adding_scaling_and_squashing(fitted):
    demos, reward = fitted
    options = {"mode": "add", "scale": 3.0, "squashed": True}
    told = play(PerceptualRewardWrapper(Film(demos[0]), lambda x: x, reward, **options))
    expected = 10 + 3 * reward.progress(demos[0])[1:]
    assert [one for one, _ in told[1:]] == pytest.approx(expected.tolist())


def test_rendered_frames_and_keys(fitted):
    demos, reward = fitted
    rendered = PerceptualRewardWrapper(Film(demos[0]), lambda x: torch.tensor(x) / 2, reward, source="render")
    named = gymnasium.wrappers.TransformObservation(
        Film(demos[0]),
        lambda x: {"camera": x},
        gymnasium.spaces.Dict({"camera": Film.observation_space}),
    )
    keyed = PerceptualRewardWrapper(named, torch.as_tensor, reward, key="camera")
    assert [a for a, _ in play(rendered)[1:]] == pytest.approx([a for a, _ in play(keyed)[1:]])
    with pytest.raises(ValueError, match="key must be in the observation, got 'wrist'"):
        PerceptualRewardWrapper(named, torch.as_tensor, reward, key="wrist").reset()


def test_success_may_end_the_episode(fitted):
    demos, reward = fitted
    threshold = float(reward.progress(demos[0])[:-2].max())
    options = {"success_threshold": threshold, "terminate": True}
    told = play(PerceptualRewardWrapper(Film(demos[0]), torch.as_tensor, reward, **options))
    first = int((reward.progress(demos[0]) >= threshold).nonzero()[0])
    assert len(told) == first + 1 < len(demos[0])
    assert [info["success"] for _, info in told] == [False] * first + [True]


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_gymnasiums_checker_is_content(fitted):
    demos, reward = fitted
    env = PerceptualRewardWrapper(Film(demos[0]), torch.as_tensor, reward)
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mode": "swap"}, ValueError, "mode must be one of 'replace', 'add', got 'swap'"),
        ({"source": "film"}, ValueError, "source must be one of"),
        ({"success_threshold": 2.0}, ValueError, r"success_threshold must lie in \[0, 1\], got 2"),
        ({"terminate": True}, ValueError, "success_threshold must be given"),
    ],
)
def test_bad_options_are_named(fitted, changes, kind, message):
    with pytest.raises(kind, match=message):
        PerceptualRewardWrapper(Film(fitted[0][0]), torch.as_tensor, fitted[1], **changes)


def test_what_is_no_function_environment_or_feature_vector_is_named(fitted):
    demos, reward = fitted
    with pytest.raises(TypeError, match="feature_fn must be a function, got int"):
        PerceptualRewardWrapper(Film(demos[0]), 3, reward)
    with pytest.raises(ValueError, match=r"feature_fn must return \(40,\), got \(3,\)"):
        PerceptualRewardWrapper(Film(demos[0]), lambda x: x[:3], reward).reset()
    many = gymnasium.vector.SyncVectorEnv([lambda: Film(demos[0])] * 2)
    with pytest.raises(TypeError, match="env must be a single environment"):
        PerceptualRewardWrapper(many, torch.as_tensor, reward)
    with pytest.raises(AttributeError, match="no attribute 'Wrapper'"):
        _ = perceptualreward.Wrapper
