"""The reward in a gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import torch
from torch import Tensor

from perceptualreward._checks import as_choice
from perceptualreward.reward import StepReward


class PerceptualRewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Rewards each step by what its frame looks like.

    `info` has `perceptual_reward`, `progress` in [0, 1] and `success`, at `reset` too (`success` needs a threshold).

    Args:
        env: Any environment.
        feature_fn: Maps an observation, or a rendered frame, to (F,): a tensor or what `torch.as_tensor` takes.
        reward: A fitted reward.
        key: Of a dict observation, what `feature_fn` gets; all of it if None.
        source: What `feature_fn` gets: the `"observation"`, or what `env.render()` returns.
        mode: `"replace"` the environment's reward, or `"add"` to it.
        scale: Factor on the perceptual reward.
        squashed: Take the progress as the reward, which is in [0, 1], in place of the unbounded sum.
        success_threshold: On the progress, in [0, 1].
        terminate: End the episode at success.

    Raises:
        TypeError: If the environment is a vector environment, or `feature_fn` no function.
        ValueError: If an option is unknown, the threshold outside [0, 1], or `terminate` without one; when stepping, if
            the observation has no such key, or `feature_fn` gives another number of features.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        feature_fn: Callable[[Any], Any],
        reward: StepReward,
        *,
        key: str | None = None,
        source: Literal["observation", "render"] = "observation",
        mode: Literal["replace", "add"] = "replace",
        scale: float = 1.0,
        squashed: bool = False,
        success_threshold: float | None = None,
        terminate: bool = False,
    ) -> None:
        if isinstance(env, gymnasium.vector.VectorEnv):
            raise TypeError("env must be a single environment, got a vector environment; wrap its members")
        super().__init__(env)
        as_choice("source", source, ("observation", "render"))
        as_choice("mode", mode, ("replace", "add"))
        if not callable(feature_fn):
            raise TypeError(f"feature_fn must be a function, got {type(feature_fn).__name__}")
        if success_threshold is not None and not 0 <= success_threshold <= 1:
            raise ValueError(f"success_threshold must lie in [0, 1], got {success_threshold}")
        if terminate and success_threshold is None:
            raise ValueError("success_threshold must be given where terminate is True, got None")
        self.feature_fn, self.perceptual_reward, self.key, self.source = feature_fn, reward, key, source
        self.mode, self.scale, self.squashed = mode, float(scale), squashed
        self.success_threshold, self.terminate = success_threshold, terminate

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and look at its first frame.

        Args:
            seed: Passed on.
            options: Passed on.

        Returns:
            Observation and info.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | self._told(observation)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step and reward it by the frame that it leads to.

        Args:
            action: Passed on.

        Returns:
            Observation, reward, terminated, truncated, info.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        told = self._told(observation)
        own = self.scale * told["progress" if self.squashed else "perceptual_reward"]
        total = own if self.mode == "replace" else float(reward) + own
        ended = bool(terminated) or (self.terminate and told["success"])
        return observation, total, ended, truncated, info | told

    def _told(self, observation: Any) -> dict[str, Any]:
        x = self._features(observation)
        with torch.no_grad():
            combined, progress = self.perceptual_reward(x), self.perceptual_reward.progress(x)
        told: dict[str, Any] = {"perceptual_reward": combined.item(), "progress": progress.item()}
        if self.success_threshold is not None:
            told["success"] = told["progress"] >= self.success_threshold
        return told

    def _features(self, observation: Any) -> Tensor:
        frame = self.env.render() if self.source == "render" else observation
        if self.source == "observation" and self.key is not None:
            if not isinstance(observation, dict) or self.key not in observation:
                raise ValueError(f"key must be in the observation, got {self.key!r}")
            frame = observation[self.key]
        mean = self.perceptual_reward.mean
        x = torch.as_tensor(self.feature_fn(frame)).to(mean.device)
        if x.shape != mean.shape:
            raise ValueError(f"feature_fn must return {tuple(mean.shape)}, got {tuple(x.shape)}")
        return x.to(mean.dtype)
