"""A gymnasium wrapper that makes a wrong simulator out of an environment (extra `gymnasium`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from h2orl._checks import checked_float

try:
    import gymnasium
except ImportError as missing:
    raise ImportError("h2orl.wrappers needs gymnasium: pip install 'h2orl[gymnasium]'") from missing

__all__ = ["SimulatorGap"]


class SimulatorGap(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Scale an environment's gravity and friction, and add noise to the actions it executes (the paper's experiments).

    The paper's gaps are gravity x 2, friction x 0.3, and joint noise N(0, 1), on MuJoCo environments. Gravity is
    `model.opt.gravity` there, else the attribute `gravity` or `g`; friction is `model.geom_friction`, else the
    attribute `friction`. The agent's action comes back clean: what is to be stored is what it passed to `step`; what
    was executed is `info["executed_action"]`.

    Args:
        env: The environment, changed in place until `close`; make a second one for reality.
        gravity: Factor.
        friction: Factor.
        action_noise: Standard deviation of Gaussian noise added to each executed action, which is then clipped to the
            action space.
        attributes: Factors of other attributes of the unwrapped environment, such as `{"length": 0.6}`. An attribute
            with dots goes into parts, `{"model.body_mass": 1.2}`.

    Raises:
        TypeError: If noise is asked for and actions are not continuous, or an attribute is no number.
        ValueError: If a factor or the noise is negative or not finite, or a quantity is scaled twice.
        AttributeError: If the environment has no such quantity.

    Examples:
        >>> import gymnasium
        >>> env = SimulatorGap(gymnasium.make("Pendulum-v1"), gravity=2.0, attributes={"l": 0.6})
        >>> env.unwrapped.g, env.unwrapped.l
        (20.0, 0.6)
        >>> env.close()
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        gravity: float = 1.0,
        friction: float = 1.0,
        action_noise: float = 0.0,
        attributes: Mapping[str, float] | None = None,
    ) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, gravity=gravity, friction=friction, action_noise=action_noise, attributes=attributes
        )
        super().__init__(env)
        self.action_noise = checked_float("action_noise", action_noise)
        if self.action_noise and not isinstance(env.action_space, gymnasium.spaces.Box):
            raise TypeError(f"action_noise needs a Box action space, got {env.action_space}")
        factors = {
            name: checked_float(f"attributes[{name!r}]", value) for name, value in (attributes or {}).items()
        }
        if checked_float("gravity", gravity) != 1:
            factors[self._path("gravity", ("model.opt.gravity", "gravity", "g"))] = gravity
        if checked_float("friction", friction) != 1:
            factors[self._path("friction", ("model.geom_friction", "friction"))] = friction
        if len(factors) < len(attributes or {}) + (gravity != 1) + (friction != 1):
            raise ValueError(
                f"attributes must not scale what gravity or friction scales, got {sorted(factors)}"
            )
        owners = {path: self._owner(path) for path in factors}  # all are there before any is changed
        self._before: list[tuple[Any, str, Any]] = []
        for path, factor in factors.items():
            self._scale(*owners[path], factor)
        self._noise = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; a seed also seeds the noise, from a stream of its own."""
        if seed is not None:
            self._noise = np.random.default_rng([seed, 0x420])
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Execute the action with noise; `info["executed_action"]` is what was executed."""
        if not self.action_noise:
            return super().step(action)
        space = self.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        noisy = np.asarray(action) + self.action_noise * self._noise.standard_normal(space.shape)
        executed = np.clip(noisy, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = super().step(executed)
        return observation, reward, terminated, truncated, info | {"executed_action": executed}

    def close(self) -> None:
        """Put back what was scaled, and close the environment."""
        while self._before:
            owner, name, value = self._before.pop()
            if isinstance(value, np.ndarray):
                getattr(owner, name)[...] = value
            else:
                setattr(owner, name, value)
        super().close()

    def _path(self, quantity: str, candidates: tuple[str, ...]) -> str:
        for path in candidates:
            try:
                self._owner(path)
            except AttributeError:
                continue
            return path
        raise AttributeError(
            f"{quantity}: {self.unwrapped} has none of {', '.join(candidates)}; name it in attributes"
        )

    def _owner(self, path: str) -> tuple[Any, str]:
        *parts, name = path.split(".")
        owner: Any = self.unwrapped
        for part in parts:
            owner = getattr(owner, part)
        if not hasattr(owner, name):
            raise AttributeError(f"attributes: {self.unwrapped} has no {path}")
        if not isinstance(getattr(owner, name), (int, float, np.number, np.ndarray)):
            raise TypeError(f"attributes: {path} must be a number or an array, got {getattr(owner, name)!r}")
        return owner, name

    def _scale(self, owner: Any, name: str, factor: float) -> None:
        value = getattr(owner, name)
        if isinstance(value, np.ndarray):
            self._before.append((owner, name, value.copy()))
            value *= factor  # MuJoCo's arrays are views of the model
        else:
            self._before.append((owner, name, value))
            setattr(owner, name, value * factor)
