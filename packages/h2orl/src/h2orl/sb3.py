"""Stable-Baselines3's SAC on real transitions and a simulator (extra `sb3`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from h2orl._checks import checked_float, checked_integer, checked_share
from h2orl.gap import DynamicsGap
from h2orl.losses import h2o_critic_loss
from h2orl.transitions import Transitions, _complete, _draw, _halves

try:
    from gymnasium import spaces
    from stable_baselines3 import SAC
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.utils import polyak_update
except ImportError as missing:
    raise ImportError("h2orl.sb3 needs Stable-Baselines3: pip install 'h2orl[sb3]'") from missing

__all__ = ["H2OSAC"]


class H2OSAC(SAC):
    """`SAC` whose critic learns from a hybrid batch (the paper's algorithm); everything else is SAC's.

    `env` is the simulator. `save` and `load` keep the classifiers and their optimizer; the real transitions are
    handed over again, `model.set_real(real)`. With `VecNormalize`, real observations and rewards are normalised as
    the simulated ones.

    Args:
        policy: As in `SAC`.
        env: The simulator, as in `SAC`.
        real: Real transitions with rewards and ends in the units of the environment: observations as it gives them,
            actions as it takes them. Anything `Transitions.of` reads.
        beta: Weight of the value regulariser.
        reward_scale: As in `h2o_critic_loss`.
        real_ratio: Share of real transitions in a batch.
        adaptive_weight: Off: uniform omega (the ablation H2O-a).
        is_weight: Off: simulated errors are not weighted.
        backup_entropy: Whether the target holds the entropy, as SAC's does; the paper's does not.
        num_samples: Next states to estimate a gap from.
        noise_ratio: Their noise, in standard deviations of the real observations.
        input_noise: Noise of the classifiers' inputs.
        gap_learning_rate: Adam's for the classifiers.
        gap_kwargs: Further arguments of `DynamicsGap`, such as `{"hidden": (64, 64)}`.
        **kwargs: As in `SAC`.

    Raises:
        TypeError: If the observation space is no flat `Box`.
        ValueError: If `real` does not fit the spaces, or `beta`, `real_ratio` or `noise_ratio` is out of range.

    Examples:
        >>> import gymnasium, numpy as np
        >>> rows = np.zeros((50, 3)), np.zeros((50, 1)), np.zeros(50), np.zeros((50, 3)), np.zeros(50)
        >>> sizes = {"learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
        >>> model = H2OSAC("MlpPolicy", gymnasium.make("Pendulum-v1"), real=rows, device="cpu", seed=0, **sizes)
        >>> model.learn(30).num_timesteps
        30
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        real: Any = None,
        beta: float = 0.01,
        reward_scale: float = 1.0,
        real_ratio: float = 0.5,
        adaptive_weight: bool = True,
        is_weight: bool = True,
        backup_entropy: bool = False,
        num_samples: int = 10,
        noise_ratio: float = 1.0,
        input_noise: float = 0.1,
        gap_learning_rate: float = 3e-4,
        gap_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.beta, self.reward_scale = checked_float("beta", beta), reward_scale
        self.real_ratio = checked_share("real_ratio", real_ratio)
        checked_float("noise_ratio", noise_ratio, positive=True)
        self.adaptive_weight, self.is_weight, self.backup_entropy = adaptive_weight, is_weight, backup_entropy
        self.num_samples, self.noise_ratio, self.input_noise = num_samples, noise_ratio, input_noise
        self.gap_learning_rate, self.gap_kwargs = gap_learning_rate, gap_kwargs
        self.real: Transitions | None = None
        super().__init__(policy, env, *args, **kwargs)
        if real is not None:
            self.set_real(real)

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.observation_space, spaces.Box) or len(self.observation_space.shape) != 1:
            raise TypeError(f"H2OSAC needs flat Box observations, got {self.observation_space}")
        assert isinstance(self.action_space, spaces.Box)  # SAC's own condition
        sizes = self.observation_space.shape[0], int(np.prod(self.action_space.shape))
        self.gap = DynamicsGap(*sizes, **(self.gap_kwargs or {})).to(self.device)
        self.gap_optimizer = torch.optim.Adam(self.gap.parameters(), lr=self.gap_learning_rate)

    def set_real(self, real: Any) -> None:
        """Take the real transitions: actions are rescaled to the policy's [-1, 1], all moves to the model's device.

        Args:
            real: As in the constructor.

        Raises:
            ValueError: If widths differ from the spaces, actions leave the action space, or rewards or ends are
            missing.
        """
        rows = _complete(Transitions.of(real, "real"), "real")
        self.gap._check(rows, "real")
        if len(rows) < 2:
            raise ValueError(f"real must hold at least two transitions, got {len(rows)}")
        space = self.action_space
        assert isinstance(space, spaces.Box)
        actions = rows.action.cpu().numpy()
        if (actions < space.low.ravel() - 1e-4).any() or (actions > space.high.ravel() + 1e-4).any():
            raise ValueError(f"real: action must lie within {space}, not in the policy's own [-1, 1]")
        scaled = self.policy.scale_action(actions.reshape(-1, *space.shape)).reshape(actions.shape)
        self.real = replace(rows, action=torch.as_tensor(scaled)).to(self.device, torch.float32)
        self._real_std = self.real.observation.std(0)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do gradient steps on hybrid batches, a step of the classifiers in each."""
        if self.real is None:
            raise ValueError("real must be given before learning, in the constructor or by set_real")
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers += [self.ent_coef_optimizer]
        self._update_learning_rate(optimizers)
        noise_std = self._noise_std()
        for step in range(checked_integer("gradient_steps", gradient_steps, 0)):
            told = self._hybrid_step(noise_std, batch_size)
            if step % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in told.items() if gradient_steps else ():
            self.logger.record(f"train/{name}", float(value))

    def _noise_std(self) -> torch.Tensor:
        """Standard deviation of the real observations in the units that the networks see."""
        std, env = self._real_std, self._vec_normalize_env
        if env is not None and env.norm_obs:
            assert isinstance(env.obs_rms, RunningMeanStd)
            std = std / torch.as_tensor(np.sqrt(env.obs_rms.var + env.epsilon)).to(std)
        return self.noise_ratio * std.clamp_min(1e-6)

    def _drawn(self, size: int) -> Transitions:
        assert self.real is not None
        return self._normalized(_draw(self.real, size, None))

    def _normalized(self, rows: Transitions) -> Transitions:
        env = self._vec_normalize_env
        if env is None:
            return rows
        observation, next_observation = (
            torch.as_tensor(env.normalize_obs(states.cpu().numpy())).to(states)
            for states in (rows.observation, rows.next_observation)
        )
        assert rows.reward is not None
        reward = torch.as_tensor(env.normalize_reward(rows.reward.cpu().numpy())).to(rows.reward)
        return Transitions(observation, rows.action, next_observation, reward, rows.terminated)

    def _simulated(self, size: int) -> Transitions:
        assert self.replay_buffer is not None
        samples = self.replay_buffer.sample(size, env=self._vec_normalize_env)
        if getattr(samples, "discounts", None) is not None:
            raise ValueError("n_steps must be 1: dynamics are compared one step at a time")
        actions = samples.actions.flatten(1)
        states = samples.observations.float(), actions, samples.next_observations.float()
        return Transitions(*states, samples.rewards, samples.dones)

    def _hybrid_step(self, noise_std: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
        num_real, num_sim = _halves(self.real_ratio, batch_size)
        gap_loss = self.gap.loss(
            self._drawn(batch_size), self._simulated(batch_size), input_noise=self.input_noise
        ).total
        self.gap_optimizer.zero_grad()
        gap_loss.backward()
        self.gap_optimizer.step()

        halves = self._drawn(num_real), self._simulated(num_sim)
        observation, action, next_observation, reward, terminated = (
            torch.cat(pair) for pair in zip(*(half._columns() for half in halves), strict=True)
        )
        if self.use_sde:
            self.actor.reset_noise()
        new_action, log_prob = self.actor.action_log_prob(observation)
        entropy_weight, entropy_loss = self._entropy_step(log_prob)
        with torch.no_grad():
            next_action, next_log_prob = self.actor.action_log_prob(next_observation)
            next_q = torch.cat(self.critic_target(next_observation, next_action), 1).amin(1)
            if self.backup_entropy:
                next_q = next_q - entropy_weight * next_log_prob
            target = reward + (1 - terminated) * self.gamma * next_q
        sim = halves[1]
        found = self.gap.correction(
            sim.observation, sim.action, sim.next_observation, n=self.num_samples, noise_std=noise_std
        )
        values = torch.stack(self.critic(observation, action))[..., 0]
        loss = h2o_critic_loss(
            values[:, :num_real],
            target[:num_real],
            values[:, num_real:],
            target[num_real:],
            found.weight if self.is_weight else None,
            found.omega if self.adaptive_weight else None,
            beta=self.beta,
            reward_scale=self.reward_scale,
        )
        self.critic.optimizer.zero_grad()
        loss.total.backward()
        self.critic.optimizer.step()

        value = torch.cat(self.critic(observation, new_action), 1).amin(1)
        actor_loss = (entropy_weight * log_prob - value).mean()
        self.actor.optimizer.zero_grad()
        actor_loss.backward()
        self.actor.optimizer.step()
        return {
            "ent_coef": entropy_weight.mean(),
            "ent_coef_loss": entropy_loss,
            "actor_loss": actor_loss.detach(),
            "critic_loss": loss.total.detach(),
            "critic_regularizer": loss.reg.detach(),
            "gap_loss": gap_loss.detach(),
            "gap": found.gap.mean(),
            "sim_weight": found.weight.mean(),
        }

    def _entropy_step(self, log_prob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The temperature before its step, and the loss of the step."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor, torch.zeros(())
        assert isinstance(self.target_entropy, float)
        weight = self.log_ent_coef.detach().exp()
        loss = -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()
        self.ent_coef_optimizer.zero_grad()
        loss.backward()
        self.ent_coef_optimizer.step()
        return weight, loss.detach()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "real", "_real_std", "gap", "gap_optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, "gap", "gap_optimizer"], tensors
