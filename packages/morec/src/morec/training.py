"""Learning the dynamics reward: an adversarial game whose whole history is kept."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from morec.inputs import Array, Transitions, as_count, as_transitions
from morec.networks import TransitionDiscriminator, TransitionGenerator, as_logits
from morec.normalizer import TransitionNormalizer
from morec.reward import DynamicsReward

__all__ = ["DynamicsRewardTrainer"]

_PARTS = (
    "normalizer",
    "discriminator",
    "transition_generator",
    "discriminator_optimizer",
    "generator_optimizer",
)


class DynamicsRewardTrainer:
    r"""Adversarial inverse RL on the transition function, one batch at a time.

    A generator $P_\theta(s' | s, a)$ imitates the environment, a discriminator $D_\phi = \sigma(f_\phi)$ tells
    its transitions from logged ones (Section 4.1), both on the same $(s, a)$:

    $L_D = \mathbb E\,\mathrm{softplus}(-f(s, a, s')) + \mathbb E\,\mathrm{softplus}(f(s, a, \hat s'))$

    $L_G = \sum_{t<H} \gamma^t\, \mathbb E[\mathrm{softplus}(-f(\hat s_t, a_t, \hat s_{t+1}))
    - \beta \log\sigma_\theta]$

    Every `snapshot_every` steps a copy of the discriminator is kept with its mean logit on the real and on
    the generated half of the batch. The last discriminator alone says little (at equilibrium it answers
    1/2 everywhere); the history has seen generators of every quality.

    The authors did not release this part. The generator's step by pathwise gradients instead of PPO, the
    non-saturating loss and the defaults below are choices of this package.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        normalizer: Scaling of the data, from `TransitionNormalizer.fit`; None if the data is scaled.
        hidden_sizes: Hidden layers of both default networks.
        discriminator_learning_rate: Adam's learning rate for the discriminator.
        generator_learning_rate: Adam's learning rate for the generator.
        entropy_coefficient: $\beta$, per dimension.
        snapshot_every: Steps between snapshots.
        max_snapshots: Snapshots kept, the newest ones.
        horizon: $H$, steps the generator is rolled before the discriminator judges it.
        discount: $\gamma$.
        behavior: The data's policy, obs (B, S) to act (B, A), both unscaled; needed if `horizon > 1`.
        delta_input: Show the discriminator state differences, see `TransitionNormalizer.encode`.
        discriminator: Your own discriminator: encoded transitions (..., 2S + A) to logits (...) or (..., 1).
        transition_generator: Your own generator: scaled states and actions (..., S + A) to mean and log
            standard deviation of the scaled state difference.
        optimizer: Called as `optimizer(parameters, lr=...)` for each network.
        generator: Randomness of the initial weights and of the samples.

    Attributes:
        discriminator: The network that is trained; `transition_generator`, its opponent, likewise.
        num_steps: Steps taken.
        snapshots: The history, oldest first: weights of the discriminator, its mean logit on real and on generated
            transitions.
        random: The `generator`.

    Raises:
        TypeError: If a count is not a whole number.
        ValueError: If an argument is out of range.

    Examples:
        >>> obs, act = torch.rand(64, 3), torch.rand(64, 1)
        >>> next_obs = obs + 0.1 * act
        >>> trainer = DynamicsRewardTrainer(
        ...     3, 1, normalizer=TransitionNormalizer.fit(obs, act, next_obs), snapshot_every=2)
        >>> for _ in range(4):
        ...     losses = trainer.step((obs, act, next_obs))
        >>> trainer.export().num_snapshots
        2
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        *,
        normalizer: TransitionNormalizer | None = None,
        hidden_sizes: Sequence[int] = (128, 128),
        discriminator_learning_rate: float = 3e-4,
        generator_learning_rate: float = 1e-3,
        entropy_coefficient: float = 0.1,
        snapshot_every: int = 50,
        max_snapshots: int = 120,
        horizon: int = 1,
        discount: float = 0.99,
        behavior: Callable[[Tensor], Tensor] | None = None,
        delta_input: bool = True,
        discriminator: nn.Module | None = None,
        transition_generator: nn.Module | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= entropy_coefficient < math.inf:
            raise ValueError(f"entropy_coefficient must be at least 0 and finite, got {entropy_coefficient}")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must be in [0, 1], got {discount}")
        self.snapshot_every = as_count("snapshot_every", snapshot_every)
        self.horizon = as_count("horizon", horizon)
        if self.horizon > 1 and behavior is None:
            raise ValueError("behavior must be given when horizon > 1: it acts in the generated states")
        normalizer = TransitionNormalizer(obs_dim, act_dim) if normalizer is None else normalizer
        if (normalizer.obs_dim, normalizer.act_dim) != (obs_dim, act_dim):
            raise ValueError(
                f"normalizer must fit obs_dim={obs_dim}, act_dim={act_dim}, "
                f"got {normalizer.obs_dim} and {normalizer.act_dim}"
            )
        self.normalizer = normalizer
        like = normalizer.obs_center
        if like.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"normalizer must be float32 or float64 (training needs it), got {like.dtype}")
        if discriminator is None:
            discriminator = TransitionDiscriminator(obs_dim, act_dim, hidden_sizes, generator=generator)
        if transition_generator is None:
            transition_generator = TransitionGenerator(obs_dim, act_dim, hidden_sizes, generator=generator)
        self.discriminator = discriminator.to(like)
        self.transition_generator = transition_generator.to(like)
        self.discriminator_optimizer = optimizer(discriminator.parameters(), lr=discriminator_learning_rate)
        self.generator_optimizer = optimizer(transition_generator.parameters(), lr=generator_learning_rate)
        self.entropy_coefficient = entropy_coefficient
        self.discount = discount
        self.behavior = behavior
        self.delta_input = delta_input
        self.random = generator
        self.num_steps = 0
        self.snapshots: deque[tuple[dict[str, Tensor], Tensor, Tensor]] = deque(
            maxlen=as_count("max_snapshots", max_snapshots)
        )

    def step(self, batch: Transitions) -> dict[str, Tensor]:
        """Take one discriminator step and one generator step.

        Args:
            batch: Logged transitions `(obs, act, next_obs)`, shapes (B, S), (B, A), (B, S), tensors or NumPy arrays;
                or a mapping that calls them so, or `observations`, `actions`, `next_observations`.

        Returns:
            `discriminator_loss`, `generator_loss`, `data_logit`, `model_logit` and `generator_rmse` (error of
            the generator's mean, in scaled units): scalars without gradients, left on the device.

        Raises:
            TypeError: If a column is neither a tensor nor a NumPy array.
            ValueError: If the batch is empty or not finite, lacks a column, or its shapes, dtypes or devices do not
                fit; nothing is changed then.
        """
        obs, act, next_obs = as_transitions(batch, self.normalizer.obs_center)
        if (len(obs), obs.shape[1], act.shape[1]) != (
            max(1, len(obs)),
            self.normalizer.obs_dim,
            self.normalizer.act_dim,
        ):
            raise ValueError(
                f"batch must hold at least one transition with {self.normalizer.obs_dim} state and "
                f"{self.normalizer.act_dim} action columns, got {tuple(obs.shape)} and {tuple(act.shape)}"
            )
        state, action = self.normalizer.normalize_obs(obs), self.normalizer.normalize_act(act)
        real = self.normalizer.normalize_obs(next_obs)
        state_action = torch.cat([state, action], dim=-1)
        mean, log_std = self.transition_generator(state_action)
        fake = state + self._sample(mean, log_std)
        discriminator_loss, real_logits, fake_logits = self._discriminator_step(
            state_action, real, fake.detach()
        )
        generator_loss = self._generator_step(state_action, fake, log_std)
        self.num_steps += 1
        if self.num_steps % self.snapshot_every == 0:
            weights = {name: value.clone() for name, value in self.discriminator.state_dict().items()}
            self.snapshots.append((weights, real_logits.mean(), fake_logits.mean()))
        return {
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "data_logit": real_logits.mean(),
            "model_logit": fake_logits.mean(),
            "generator_rmse": (state + mean.detach() - real).square().mean().sqrt(),
        }

    def _sample(self, mean: Tensor, log_std: Tensor) -> Tensor:
        noise = torch.empty_like(mean).normal_(generator=self.random)
        return mean + log_std.exp() * noise

    def _logits(self, state_action: Tensor, following: Tensor) -> Tensor:
        last = following - state_action[..., : following.shape[-1]] if self.delta_input else following
        return as_logits(self.discriminator(torch.cat([state_action, last], dim=-1)), last)

    def _discriminator_step(
        self, state_action: Tensor, real: Tensor, fake: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The same (s, a) on both sides: otherwise the marginal of (s, a) would be what is learned.
        logits = self._logits(torch.cat([state_action, state_action]), torch.cat([real, fake]))
        real_logits, fake_logits = logits.chunk(2)
        loss = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        _descend(loss, self.discriminator, self.discriminator_optimizer)
        return loss.detach(), real_logits.detach(), fake_logits.detach()

    def _generator_step(self, state_action: Tensor, fake: Tensor, log_std: Tensor) -> Tensor:
        loss = self._generator_cost(state_action, fake, log_std)
        for step in range(1, self.horizon):
            assert self.behavior is not None
            action = self.normalizer.normalize_act(self.behavior(self.normalizer.denormalize_obs(fake)))
            state_action = torch.cat([fake, action], dim=-1)
            mean, log_std = self.transition_generator(state_action)
            fake = fake + self._sample(mean, log_std)
            loss = loss + self.discount**step * self._generator_cost(state_action, fake, log_std)
        _descend(loss, self.transition_generator, self.generator_optimizer)
        return loss.detach()

    def _generator_cost(self, state_action: Tensor, fake: Tensor, log_std: Tensor) -> Tensor:
        deceit = softplus(-self._logits(state_action, fake)).mean()
        return deceit - self.entropy_coefficient * log_std.mean()

    @torch.no_grad()
    def generator_rmse(self, obs: Tensor | Array, act: Tensor | Array, next_obs: Tensor | Array) -> Tensor:
        """Error of the generator's mean in scaled units: the reward is worth no more than its opponent.

        Args:
            obs: States, shape (N, S).
            act: Actions, shape (N, A).
            next_obs: Next states, shape (N, S).

        Returns:
            Root mean square over transitions and dimensions, a scalar.
        """
        obs, act, next_obs = as_transitions((obs, act, next_obs), self.normalizer.obs_center)
        state = self.normalizer.normalize_obs(obs)
        mean, _ = self.transition_generator(torch.cat([state, self.normalizer.normalize_act(act)], dim=-1))
        return (state + mean - self.normalizer.normalize_obs(next_obs)).square().mean().sqrt()

    def export(
        self,
        keep_last: int | None = None,
        every: int = 1,
        *,
        rescale: bool = False,
        rescale_range: tuple[float, float] | None = (0.0, 1.0),
        probability_clip: float = 1.0,
        chunk_size: int | None = None,
    ) -> DynamicsReward:
        """Freeze the history into a `DynamicsReward`.

        Args:
            keep_last: Use only the newest snapshots; None uses all that were kept.
            every: Of these, use every n-th, the oldest first (official: 10 for MOPO, 40 for MOBILE, of 400).
            rescale: See `DynamicsReward`, like all that follow.
            rescale_range: $(L, E)$ of the calibration.
            probability_clip: Upper bound of one snapshot's probability.
            chunk_size: Transitions judged at once.

        Returns:
            The reward, independent of further training.

        Raises:
            ValueError: If there are no snapshots, or `keep_last` or `every` is below 1.
        """
        every = as_count("every", every)
        kept = len(self.snapshots) if keep_last is None else as_count("keep_last", keep_last)
        if not self.snapshots:
            raise ValueError(
                f"there are no snapshots: {self.num_steps} steps taken, one is kept every {self.snapshot_every}"
            )
        chosen = list(self.snapshots)[-kept:][::every]
        modules = []
        for weights, _, _ in chosen:
            module = copy.deepcopy(self.discriminator)
            module.load_state_dict(weights)
            modules.append(module)
        return DynamicsReward(
            self.normalizer,
            modules,
            data_logits=torch.stack([data for _, data, _ in chosen]),
            model_logits=torch.stack([model for _, _, model in chosen]),
            delta_input=self.delta_input,
            rescale=rescale,
            rescale_range=rescale_range,
            probability_clip=probability_clip,
            chunk_size=chunk_size,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: networks, optimisers, history, step count, and the settings."""
        weights, data_logits, model_logits = (
            zip(*self.snapshots, strict=True) if self.snapshots else ((), (), ())
        )
        return {
            **{name: getattr(self, name).state_dict() for name in _PARTS},
            "snapshots": {
                "weights": {name: torch.stack([one[name] for one in weights]) for name in dict(*weights[:1])},
                "data_logits": torch.stack(data_logits) if data_logits else torch.empty(0),
                "model_logits": torch.stack(model_logits) if model_logits else torch.empty(0),
            },
            "num_steps": self.num_steps,
            "settings": self._settings(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the random generator's state is the caller's.

        Raises:
            ValueError: If the state is of a trainer with other settings.
        """
        for name, value in self._settings().items():
            # States of 0.1.0 do not say; they are loaded on their owner's word.
            other = state_dict.get("settings", {}).get(name, value)
            if other != value:
                raise ValueError(
                    f"state_dict must be of a trainer with {name}={value} like this one, it has {other}"
                )
        for name in _PARTS:
            getattr(self, name).load_state_dict(state_dict[name])
        snapshots = state_dict["snapshots"]
        if isinstance(snapshots, Mapping):
            each = [
                {name: stacked[index].clone() for name, stacked in snapshots["weights"].items()}
                for index in range(len(snapshots["data_logits"]))
            ]
            snapshots = zip(each, snapshots["data_logits"], snapshots["model_logits"], strict=True)
        self.snapshots.clear()
        self.snapshots.extend(snapshots)
        self.num_steps = state_dict["num_steps"]

    def _settings(self) -> dict[str, Any]:
        """What decides how training goes on, beside the networks and optimisers."""
        names = ("entropy_coefficient", "snapshot_every", "horizon", "discount", "delta_input")
        log_std_range = getattr(self.transition_generator, "log_std_range", None)
        return {
            **{name: getattr(self, name) for name in names},
            "max_snapshots": self.snapshots.maxlen,
            "log_std_range": None if log_std_range is None else list(log_std_range),
        }


def _descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Step one player; the other player's gradients are neither computed nor touched."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # A network of the user's own may hold parameters that do not take part.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
