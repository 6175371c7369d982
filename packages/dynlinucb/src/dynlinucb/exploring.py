"""DynLin-UCB for a system that nobody has bounds on: it explores, identifies, and is told what it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from dynlinucb._convert import as_count, as_real
from dynlinucb._policy import Generators, Late, RandomNumbers
from dynlinucb._ridge import fixed
from dynlinucb.actions import Ellipsoid, as_action_set
from dynlinucb.identification import identify
from dynlinucb.policies import DynLinUCB
from dynlinucb.system import DynamicalLinearBandit, SystemBounds

_FIELDS = [one.name for one in fields(SystemBounds)]
_LOST = math.inf  # a reward in the log of the exploration that never came
_LARGEST = 1 - 1e-6  # spectral radius that is told
_ATTEMPTS = 4  # explorations, one after the other, before an unstable fit is an error


class ExploringDynLinUCB(DynLinUCB):
    """DynLin-UCB that learns its bounds first: nothing is asked but the actions and the horizon.

    It plays actions at random for `explore` rounds, fits a system to them by `identify`, widens that system's bounds by
    `margin`, and is `DynLinUCB` with these from then on. If the fit is not stable it explores as long again, four times
    at most. Not in the paper, whose algorithm is told the bounds: with T^(2/3) rounds of exploration the regret grows
    with T^(2/3) at least, and its guarantee needs bounds that hold, which a margin makes likely and not sure.

    Args:
        actions: Candidates of shape (K, d).
        horizon: Number of rounds T planned.
        explore: Rounds of exploration; None takes T^(2/3), and ten rounds for each coefficient of the fit at least.
        state_dimension: Size n of the hidden state, below `lags`.
        lags: How far back the fit looks.
        intercept: Let every reward have a constant part, in the fit. The regression has none: see `DynLinUCB`.
        margin: Factor on the bounds found, at least 1; `1 / (1 - rho)`, the time to forget, grows by it, too.
        regularization: As in `DynLinUCB`, and so all that follow.
        delta: Probability of failure.
        beta_scale: Factor on beta.
        use: "last" or "tail_mean".
        replicas: Number S of replicas; each finds bounds of its own, but the spectral radius is the largest of all.
        generator: Randomness of the exploration, one or one per replica.
        dtype: Of all computations.
        device: Of all computations.

    Raises:
        TypeError: If actions are an `Ellipsoid`, or not floating-point.
        ValueError: If an argument is outside its range.
        RuntimeError: While it explores, if no stable system can be fitted after the fourth exploration.

    Examples:
        >>> policy = ExploringDynLinUCB(torch.eye(2, dtype=torch.float64), horizon=4000, beta_scale=0.05,
        ...                             generator=torch.Generator().manual_seed(0))
        >>> goodwill, noise = 0.0, torch.Generator().manual_seed(1)
        >>> for _ in range(4000):
        ...     slow, fast = policy.act().tolist()  # the first pays 1.5 in the long run, the second 1 at once
        ...     policy.update(fast + 0.5 * goodwill + 0.1 * float(torch.randn((), generator=noise)))
        ...     goodwill = 0.8 * goodwill + 0.6 * slow
        >>> policy.found is not None, policy.act().tolist()
        (True, [1.0, 0.0])
    """

    _state: tuple[str, ...] = (*DynLinUCB._state, "_log_actions", "_log_rewards", "_told_by")
    _counters = (*DynLinUCB._counters, "_explored")
    _settings = tuple(name for name in DynLinUCB._settings if name != "_spectral_radius")
    _numpy_path = True

    explore = fixed("explore", "Rounds of one exploration.")

    def __init__(
        self,
        actions: Any,
        *,
        horizon: int,
        explore: int | None = None,
        state_dimension: int = 1,
        lags: int = 8,
        intercept: bool = False,
        margin: float = 1.5,
        regularization: Any = "log",
        delta: float | None = None,
        beta_scale: float | Sequence[float] = 1.0,
        use: str = "last",
        replicas: int | None = None,
        generator: Generators = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        action_set = as_action_set(actions, dtype, device)
        if isinstance(action_set, Ellipsoid):
            raise TypeError("actions must be finite, got an Ellipsoid: give some of its points")
        horizon = as_count("horizon", horizon, least=2)
        lags, least = as_count("lags", lags), 10 * (lags + (lags + 1) * action_set.dimension)
        if not 1 <= as_count("state_dimension", state_dimension) < lags:
            raise ValueError(f"state_dimension must be in 1..{lags - 1} (below lags), got {state_dimension}")
        if not 1 <= margin < math.inf:
            raise ValueError(f"margin must be finite and at least 1, got {margin}")
        unknown = SystemBounds(0.0, 0.0, 0.0, 0.0, 1.0, 0.0, max(action_set.norm, 1e-300), 0.0)
        super().__init__(
            actions,
            unknown,
            horizon=horizon,
            regularization=regularization,
            delta=delta,
            beta_scale=beta_scale,
            use=use,
            replicas=replicas,
            dtype=dtype,
            device=device,
        )
        self._explore = (
            max(math.ceil(horizon ** (2 / 3)), least)
            if explore is None
            else as_count("explore", explore, least=2 * lags + 2)
        )
        self._fit: dict[str, Any] = {"state_dimension": state_dimension, "lags": lags, "intercept": intercept}
        self._margin = float(margin)
        self._random = self._draws = RandomNumbers(self.num_replicas, generator, self.device)
        self._log_actions = self._zeros(_ATTEMPTS * self._explore, self.actions.dimension)
        self._log_rewards = self._zeros(_ATTEMPTS * self._explore)
        self._told_by = self._zeros(len(_FIELDS))  # the bounds found, once there are any
        self._explored = 0
        self._exploring = True

    @property
    def bounds(self) -> list[SystemBounds]:
        """What it goes by: the bounds found, as a list; none while it explores."""
        return [] if self._exploring else list(self._bounds)

    @property
    def found(self) -> SystemBounds | list[SystemBounds] | None:
        """The bounds found, one or one per replica; None while it explores."""
        if self._exploring:
            return None
        return list(self._bounds) if self.replicas else self._bounds[0]

    def skip(self, rounds: int = 1) -> Late:
        """As `DynLinUCB.skip`; what comes late of the exploration is not learned from."""
        exploring = self._exploring
        late = super().skip(rounds)
        return replace(late, settled=late.settled and not exploring)

    def _decide(self) -> tuple[Tensor, Tensor]:
        if not self._exploring:
            return super()._decide()
        choice = (self._draws.draw().squeeze(-1) * len(self.actions.identity)).long()
        return choice, self.actions.vectors(choice)

    def _hold_length(self) -> int:
        return 1 if self._exploring else super()._hold_length()

    def _learn(self, rewards: Tensor) -> None:
        if not self._exploring:
            super()._learn(rewards)
            return
        for reward in rewards.unbind(1):
            self._note(reward)

    def _learn_number(self, reward: float) -> None:
        if self._exploring:
            self._learn(self._packed.new_full((1, 1), reward))
        else:
            super()._learn_number(reward)

    def _miss(self) -> None:
        if self._exploring:
            self._note(self._zeros() + _LOST)
        else:
            super()._miss()

    def _learn_run(self, rewards: Tensor) -> None:
        """Of a log: first what the exploration lacks."""
        rounds = 0
        while self._exploring and rounds < rewards.shape[1]:
            self._note(rewards[:, rounds])
            rounds += 1
        if rounds < rewards.shape[1]:
            super()._learn_run(rewards[:, rounds:])

    def _note(self, reward: Tensor) -> None:
        """Write one round of the exploration down, and fit when it is over."""
        if self._explored < self._log_rewards.shape[1]:
            self._log_actions[:, self._explored] = self._action
            self._log_rewards[:, self._explored] = reward
            self._explored += 1
        if self._explored % self._explore == 0:
            self._end_exploration()

    def _end_exploration(self) -> None:
        try:
            systems = [self._identified(replica) for replica in range(self.num_replicas)]
        except ValueError as error:
            if self._explored < self._log_rewards.shape[1]:
                return
            raise RuntimeError(
                f"no stable system fits the {self._explored} rounds of exploration: {error}"
            ) from error
        slowest = max(system.spectral_radius for system in systems)
        radius = min(1 - (1 - slowest) / self._margin, _LARGEST)
        bounds = [self._widened(system, radius) for system in systems]
        numbers = [[getattr(one, name) for name in _FIELDS] for one in bounds]
        self._told_by = as_real("bounds", numbers, **self.options)
        self._adopt()

    def _identified(self, replica: int) -> DynamicalLinearBandit:
        rewards = self._log_rewards[replica, : self._explored]
        rewards = rewards.where(rewards.isfinite(), math.nan)
        return identify(self._log_actions[replica, : self._explored], rewards, lost=True, **self._fit)

    def _widened(self, system: DynamicalLinearBandit, radius: float) -> SystemBounds:
        found = system.bounds(self.actions.identity.to(system.A), spectral_radius=radius)
        names = ("theta_norm", "omega_norm", "input_norm", "transient_growth", "state_norm", "sigma")
        return replace(found, **{name: self._margin * getattr(found, name) for name in names})

    def _adopt(self) -> None:
        """Go on with the bounds found."""
        self._exploring = False
        self._bounds = [SystemBounds(*row) for row in self._told_by.tolist()]
        self._tell(self._bounds)
        self._pace(self._bounds[0].spectral_radius)

    def _after_load(self) -> None:
        super()._after_load()
        if bool(self._told_by.any()):
            self._adopt()
