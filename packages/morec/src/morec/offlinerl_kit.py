"""The filter inside OfflineRL-Kit: a dynamics model whose `step` keeps the most plausible proposal.

NumPy is needed here, which OfflineRL-Kit brings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from morec.filtering import TransitionFilter, candidates_from_gaussian
from morec.inputs import Array, as_count

__all__ = ["FilteredDynamics"]


class FilteredDynamics:
    """An `EnsembleDynamics` of OfflineRL-Kit with the filter between its proposals and `step`'s answer.

    Where `step` would answer with one sample of one random elite, here each elite is sampled `resample` times and the
    filter chooses. Next state and reward come from the same sample, the penalty of the ensemble stays what it is, and a
    rejection is a terminal, by which the policies' `rollout` ends a trajectory and stores it as the official code does.
    Everything else (training, saving, the attributes) is the wrapped object's:
    `MOPOPolicy(FilteredDynamics(dynamics, keep_plausible), ...)`.

    Args:
        dynamics: As OfflineRL-Kit has it: `model` gives means and log variances (E, B, S + 1) of change and reward and
            has `elites`; `scaler`, `terminal_fn` and `step` as there.
        transition_filter: The filter, with `on_reject="terminal"` and `nan_policy="raise"`: that interface can neither
            drop a transition nor truncate a rollout. Its `min_length` counts from where a rollout began: a call whose
            states are not the ones that the last call left going begins a new one.
        resample: Samples of each elite.
        generator: Randomness of the samples and of the softmax, on the device of the filter's reward.

    Raises:
        ValueError: If the filter does something else on rejection, or `resample` is less than 1.
    """

    def __init__(
        self,
        dynamics: Any,
        transition_filter: TransitionFilter,
        *,
        resample: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, needed in (("on_reject", "terminal"), ("nan_policy", "raise")):
            found = getattr(transition_filter, name)
            if found != needed:
                raise ValueError(f"transition_filter.{name} must be {needed!r} here, got {found!r}")
        self.dynamics = dynamics
        self.transition_filter = transition_filter
        self.resample = as_count("resample", resample)
        self.generator = generator
        self._going: Array = None
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        if name == "dynamics":  # while a copy or pickle is being made
            raise AttributeError(name)
        return getattr(self.dynamics, name)

    @torch.no_grad()
    def step(self, obs: Array, action: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """One step of B rollouts.

        Args:
            obs: States, (B, S).
            action: Actions, (B, A).

        Returns:
            Next states (B, S), rewards (B, 1) less the penalty, terminals (B, 1), and `raw_reward`, `penalty` (if there
            is one), `dynamics_reward` and `reject`, (B, 1) each.

        Raises:
            ValueError: If shapes do not fit or something is not finite.
        """
        again = self._going is not None and np.array_equal(self._going, obs)
        self._steps = self._steps + 1 if again else 0
        found = self.transition_filter(
            obs, action, self._candidates(obs, action), self._steps, generator=self.generator
        ).numpy()
        next_obs, raw_reward = (found[name].astype(np.float32) for name in ("next_obs", "extra"))
        terminal = self.dynamics.terminal_fn(obs, action, next_obs) | found["terminal"][:, None]
        info = {"raw_reward": raw_reward, "reject": found["reject"][:, None]}
        info["dynamics_reward"] = found["score"][:, None]
        reward = raw_reward
        if getattr(self.dynamics, "_penalty_coef", 0):
            penalised, told = self.dynamics.step(obs, action)[1::2]
            reward = raw_reward + (penalised - told["raw_reward"])
            info["penalty"] = told["penalty"]
        self._going = next_obs[~terminal.reshape(-1)]
        return next_obs, reward, terminal, info

    def _candidates(self, obs: Array, action: Array) -> torch.Tensor:
        model, like = self.dynamics.model, self.transition_filter.reward.normalizer.obs_center
        mean, logvar = model(self.dynamics.scaler.transform(np.concatenate([obs, action], axis=-1)))
        mean, std = mean.to(like, copy=True), logvar.to(like).mul(0.5).exp()
        mean[..., :-1] += torch.as_tensor(obs).to(like)
        return candidates_from_gaussian(mean, std, model.elites.tolist(), self.resample, self.generator)
