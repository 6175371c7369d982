"""Two small classifiers that tell how far a simulator's dynamics are from reality's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from h2orl._checks import checked_float, checked_integer, checked_sizes, checked_tensor, wide
from h2orl.losses import sim_omega
from h2orl.transitions import Transitions, _draw


class GapLoss(NamedTuple):
    """The losses of the two classifiers, each a scalar tensor.

    Attributes:
        sa: Cross-entropy of the classifier of (s, a), real side plus simulated side.
        sas: Cross-entropy of the classifier of (s, a, s'), likewise.
    """

    sa: Tensor
    sas: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum: its gradient is that of the official two optimisers."""
        return self.sa + self.sas


class SimCorrection(NamedTuple):
    """What a simulated batch needs in the critic's loss, each (B,) and without a gradient.

    Attributes:
        weight: Importance weight of the temporal-difference error.
        omega: The batch's distribution of the dynamics gap; sums to 1.
        gap: The dynamics gap u in nats.
        log_ratio: log M(s'|s,a) - log M^(s'|s,a) in nats.
    """

    weight: Tensor
    omega: Tensor
    gap: Tensor
    log_ratio: Tensor


class Classifier(nn.Module):
    """A perceptron with two logits, 0 = real and 1 = simulated, each within +-`bound`.

    The first layer is read as two halves, for (s, a) and for s', so that many s' share the half of one (s, a).
    """

    bound: Tensor

    def __init__(
        self, size_left: int, size_right: int, hidden: Sequence[int], bound: float, dropout: float
    ) -> None:
        super().__init__()
        sizes = [size_left + size_right, *hidden, 2]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.size_left, self.dropout = size_left, dropout
        # A buffer, for it decides every ratio of saved weights.
        self.register_buffer("bound", torch.tensor(bound))

    def forward(self, left: Tensor, right: Tensor | None = None, dropping: bool = False) -> Tensor:
        """Logits (..., 2) for left (..., L) and, if there is one, right (..., R) or (..., samples, R)."""
        layers = cast("list[nn.Linear]", list(self.layers))
        first = layers[0]
        hidden = F.linear(left, first.weight[:, : self.size_left], first.bias)
        # In place wherever autograd allows it: fresh memory is what many small layers cost most.
        if right is not None:
            hidden = hidden.unsqueeze(-2) if right.dim() > left.dim() else hidden
            other = F.linear(right, first.weight[:, self.size_left :])
            hidden = other + hidden if torch.is_grad_enabled() else other.add_(hidden)
        for layer in layers[1:]:
            if dropping and self.dropout:
                hidden = F.dropout(hidden, self.dropout)
            hidden = F.linear(F.relu(hidden, inplace=True), layer.weight, layer.bias)
        return self.bound * torch.tanh(wide(hidden))


class DynamicsGap(nn.Module):
    """Estimates, for each simulated transition, how far the simulator is from reality (practical implementation).

    p_sa = softmax(d_sa(s,a)) and p_sas = softmax(d_sas(s,a,s') + d_sa(s,a)), class 0 real and 1 simulated. By Bayes'
    rule rho = log M(s'|s,a) - log M^(s'|s,a) = log p_sas[0] - log p_sas[1] - log p_sa[0] + log p_sa[1] = d_sas[0] -
    d_sas[1]: d_sa cancels, and |rho| <= 2 * `logit_bound`. Dropout acts in the loss in training mode only, never in
    an evaluation.

    Args:
        observation_dim: Size S of an observation.
        action_dim: Size A of an action.
        hidden: Sizes of the hidden layers of both classifiers.
        logit_bound: Bound of every logit, by tanh.
        dropout: Dropout probability in both.

    Raises:
        TypeError: If a size is no integer.
        ValueError: If a size is below 1, `logit_bound` is not positive, or `dropout` is not in [0, 1).

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> gap = DynamicsGap(observation_dim=3, action_dim=1, hidden=(16, 16))
        >>> optimizer = torch.optim.Adam(gap.parameters(), lr=3e-3)
        >>> state, action = torch.randn(500, 3, generator=generator), torch.zeros(500, 1)
        >>> real, sim = Transitions(state, action, state), Transitions(state, action, state + 1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     gap.loss(real, sim, generator=generator).total.backward()
        ...     optimizer.step()
        >>> bool((gap.weight(state, action, state + 1) < gap.weight(state, action, state)).float().mean() > 0.9)
        True
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        logit_bound: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.observation_dim = checked_integer("observation_dim", observation_dim, 1)
        self.action_dim = checked_integer("action_dim", action_dim, 1)
        sizes = checked_sizes("hidden", hidden)
        bound = checked_float("logit_bound", logit_bound, positive=True)
        if checked_float("dropout", dropout) >= 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        width = self.observation_dim + self.action_dim
        self.d_sa = Classifier(width, 0, sizes, bound, float(dropout))
        self.d_sas = Classifier(width, self.observation_dim, sizes, bound, float(dropout))
        for name, size in (("observation", self.observation_dim), ("action", self.action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    @torch.no_grad()
    def standardize(self, real: Any) -> DynamicsGap:
        """Centre and scale inputs by the real data from now on; without it the classifiers see raw numbers.

        Args:
            real: The real transitions, anything `Transitions.of` reads.

        Returns:
            The module itself. The four buffers are in its `state_dict`; constant columns keep the scale 1.

        Raises:
            ValueError: If there are fewer than two transitions, a width is wrong, or the module's dtype cannot hold
                the scale of a column.
        """
        rows = Transitions.of(real, "real")
        self._check(rows, "real")
        if len(rows) < 2:
            raise ValueError(f"real must hold at least two transitions, got {len(rows)}")
        for name, values in (("observation", rows.observation.double()), ("action", rows.action.double())):
            mean, std = values.mean(0), values.std(0)
            constant = std <= 1e-6 * values.abs().amax(0)
            held = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
            kept = [value.to(held[0]) for value in (mean, torch.where(constant, 1.0, std))]
            if not (kept[0].isfinite() & kept[1].isfinite() & (kept[1] > 0)).all():
                raise ValueError(f"real: {name} has a mean or scale that {held[0].dtype} cannot hold")
            for buffer, value in zip(held, kept, strict=True):
                buffer.copy_(value)
        return self

    def forward(
        self,
        real: Transitions,
        sim: Transitions,
        input_noise: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> GapLoss:
        """The same as `loss`, so that DistributedDataParallel and `torch.compile` find it."""
        real, sim = self._check(real, "real"), self._check(sim, "sim")
        left, right = (torch.cat(pair) for pair in zip(self._inputs(real), self._inputs(sim), strict=True))
        if checked_float("input_noise", input_noise) > 0:
            left = left + input_noise * _randn(left, generator)
            right = right + input_noise * _randn(right, generator)
        sa_logits = self.d_sa(left, dropping=self.training)
        sas_logits = self.d_sas(left, right, dropping=self.training) + sa_logits
        size = len(real)
        return GapLoss(*(_two_sided(logits.log_softmax(-1), size) for logits in (sa_logits, sas_logits)))

    def loss(
        self,
        real: Transitions,
        sim: Transitions,
        input_noise: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> GapLoss:
        """Cross-entropies of both classifiers; `.total.backward()` and one optimiser over `parameters()` do the rest.

        mean_real(-log p[0]) + mean_sim(-log p[1]) for p_sa and p_sas (as in DARC, arXiv 2006.13916).
        The loss of p_sas also reaches d_sa, as in the official code, where each step of d_sa uses both gradients.

        Args:
            real: A batch of real transitions; reward and end are not looked at.
            sim: A batch of simulated ones, not necessarily as many.
            input_noise: Standard deviation of Gaussian noise on s, a and s', in units of the standardised inputs
                (of the raw ones without `standardize`).
            generator: Source of that noise.

        Returns:
            The two losses.

        Raises:
            ValueError: If a side is empty or has another width, or `input_noise` is negative.
        """
        found: GapLoss = self(real, sim, input_noise, generator)
        return found

    @torch.no_grad()
    def log_ratio(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """The log ratio rho = log M(s'|s,a) - log M^(s'|s,a), in nats.

        Args:
            observation: (B, S).
            action: (B, A).
            next_observation: (B, S), or (B, n, S) for several next states of each pair.

        Returns:
            (B,) or (B, n), without a gradient, within +-2 * `logit_bound`.

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If a shape does not fit.
        """
        self._check_shapes(observation, action, next_observation)
        left = torch.cat([self._scaled(observation, "observation"), self._scaled(action, "action")], -1)
        logits = self.d_sas(left, self._scaled(next_observation, "observation"))
        return logits[..., 0] - logits[..., 1]

    @torch.no_grad()
    def real_probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """p_sa[0], the probability that (s, a) is of the real data: low where only the simulator has been.

        Args:
            observation: (B, S).
            action: (B, A).

        Returns:
            (B,) in (0, 1). Where it is low, the gap mixes ignorance with difference.
        """
        self._check_shapes(observation, action, observation)
        left = torch.cat([self._scaled(observation, "observation"), self._scaled(action, "action")], -1)
        return self.d_sa(left).softmax(-1)[..., 0]

    def weight(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, lo: float = 1e-5, hi: float = 1.0
    ) -> Tensor:
        """Importance weight of a simulated temporal-difference error, clamp(exp(rho), lo, hi).

        Args:
            observation: (B, S).
            action: (B, A).
            next_observation: (B, S).
            lo: Least weight.
            hi: Greatest weight.

        Returns:
            (B,), without a gradient.

        Raises:
            ValueError: If a shape does not fit, or not 0 <= lo <= hi.
        """
        _check_clamp(lo, hi)
        return self.log_ratio(observation, action, next_observation).exp().clamp(lo, hi)

    @torch.no_grad()
    def gap(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        n: int = 10,
        noise_std: Tensor | float | None = None,
        generator: torch.Generator | None = None,
        max_gap: float = 10.0,
    ) -> Tensor:
        """The dynamics gap u(s,a), an estimate of KL(M^(.|s,a) || M(.|s,a)) in nats.

        u = clamp(mean_j -rho(s, a, s'_j), 0, max_gap), where the s'_j are the simulated next state plus Gaussian
        noise, or next states of your own: draws of the simulator from (s, a) make it an unbiased estimate before the
        clamp.

        Args:
            observation: (B, S).
            action: (B, A).
            next_observation: (B, S), and noise is added; or (B, n, S), draws of your own, and it is not.
            n: Number of noisy next states.
            noise_std: Their standard deviation, one number or (S,), positive. The paper takes the states' own.
            generator: Source of that noise.
            max_gap: Upper clamp.

        Returns:
            (B,), positive: the lower clamp is the smallest normal number of the dtype, so that log u is finite.

        Raises:
            ValueError: If a shape does not fit, n < 1, or `noise_std` is missing, not positive or of the wrong width.
        """
        samples = self._samples(next_observation, n, noise_std, generator)
        return _clamped_gap(self.log_ratio(observation, action, samples), max_gap)

    @torch.no_grad()
    def correction(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        n: int = 10,
        noise_std: Tensor | float | None = None,
        generator: torch.Generator | None = None,
        lo: float = 1e-5,
        hi: float = 1.0,
        max_gap: float = 10.0,
    ) -> SimCorrection:
        """Weight and omega of a simulated batch in one pass: `weight`, and `sim_omega` of `gap`.

        Args:
            observation: (B, S).
            action: (B, A).
            next_observation: (B, S).
            n: Number of noisy next states.
            noise_std: Their standard deviation, one number or (S,), positive.
            generator: Source of that noise.
            lo: Least weight.
            hi: Greatest weight.
            max_gap: Upper clamp of the gap.

        Returns:
            Weight, omega, gap and log ratio, each (B,).

        Raises:
            ValueError: As `weight` and `gap`.

        Examples:
            >>> gap = DynamicsGap(3, 1, hidden=(16,))
            >>> found = gap.correction(torch.zeros(8, 3), torch.zeros(8, 1), torch.zeros(8, 3), noise_std=0.5)
            >>> found.weight.shape, round(float(found.omega.sum()), 4)
            (torch.Size([8]), 1.0)
        """
        _check_clamp(lo, hi)
        if checked_tensor("next_observation", next_observation).dim() != 2:
            raise ValueError(f"next_observation must have shape (B, S), got {tuple(next_observation.shape)}")
        noisy = self._samples(next_observation, n, noise_std, generator)
        ratios = self.log_ratio(observation, action, torch.cat([next_observation[:, None], noisy], 1))
        found = _clamped_gap(ratios[:, 1:], max_gap)
        return SimCorrection(ratios[:, 0].exp().clamp(lo, hi), sim_omega(found), found, ratios[:, 0])

    def _samples(
        self, next_observation: Tensor, n: int, noise_std: Any, generator: torch.Generator | None
    ) -> Tensor:
        if checked_tensor("next_observation", next_observation).dim() == 3:
            if noise_std is not None:
                raise ValueError(
                    "noise_std must be None where next_observation holds draws (B, n, S) of your own"
                )
            return next_observation
        count = checked_integer("n", n, 1)
        if noise_std is None:
            raise ValueError(
                "noise_std must be given, for example the standard deviation of the real observations"
            )
        if isinstance(noise_std, Tensor) and noise_std.dim() > 0:
            if noise_std.shape != (self.observation_dim,):
                raise ValueError(
                    f"noise_std must have shape ({self.observation_dim},), got {tuple(noise_std.shape)}"
                )
            good = (noise_std > 0) & noise_std.isfinite()
            if not torch.compiler.is_compiling() and not bool(good.all()):
                raise ValueError("noise_std must be positive and finite in every dimension")
        else:
            noise_std = checked_float("noise_std", noise_std, positive=True)
        repeated = wide(next_observation).unsqueeze(-2).expand(-1, count, -1)
        return repeated + noise_std * _randn(repeated, generator)

    def _scaled(self, values: Tensor, name: str) -> Tensor:
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        # Centred in the wider of the two types, then in the type of the weights.
        return ((values - mean) / std).to(next(self.d_sas.parameters()).dtype)

    def _inputs(self, rows: Transitions) -> tuple[Tensor, Tensor]:
        left = [self._scaled(rows.observation, "observation"), self._scaled(rows.action, "action")]
        return torch.cat(left, -1), self._scaled(rows.next_observation, "observation")

    def _check(self, rows: Transitions, name: str) -> Transitions:
        if not isinstance(rows, Transitions):
            rows = Transitions.of(rows, name)
        if len(rows) == 0:
            raise ValueError(f"{name} must hold at least one transition")
        for field, width in (("observation", self.observation_dim), ("action", self.action_dim)):
            found = getattr(rows, field).shape[1]
            if found != width:
                raise ValueError(f"{name}: {field} must have width {width}, got {found}")
        return rows

    def _check_shapes(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> None:
        columns = ("observation", observation), ("action", action), ("next_observation", next_observation)
        for name, values in columns:
            checked_tensor(name, values)
        size = observation.shape[0] if observation.dim() else 0
        wanted = {"observation": (size, self.observation_dim), "action": (size, self.action_dim)}
        for name, values in columns[:2]:
            if tuple(values.shape) != wanted[name]:
                raise ValueError(f"{name} must have shape {wanted[name]}, got {tuple(values.shape)}")
        shape = tuple(next_observation.shape)
        if len(shape) not in (2, 3) or (shape[0], shape[-1]) != wanted["observation"] or 0 in shape[1:]:
            raise ValueError(
                f"next_observation must have shape {wanted['observation']} or (B, n, S), got {shape}"
            )


def fit_gap(
    gap: DynamicsGap,
    real: Any,
    sim: Any,
    num_steps: int = 2000,
    *,
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    input_noise: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Train the classifiers on two fixed logs, where there is no agent's loop to do it in.

    The plain loop of the docstring of `DynamicsGap` with Adam and batches of `batch_size` from either side. Hold
    transitions back (`Transitions.split`) for `simulator_trust`: on the ones trained on, even a right simulator looks
    wrong.

    Args:
        gap: The classifiers; trained in place.
        real: Real transitions, anything `Transitions.of` reads, on the module's device.
        sim: Simulated transitions, likewise.
        num_steps: Number of updates.
        batch_size: Transitions of either side in one.
        learning_rate: Adam's.
        input_noise: As in `DynamicsGap.loss`. It also blurs which (s, a) a transition started from, so that the
            classifier of s' learns about the start from it: smaller values separate dynamics from visits more cleanly.
        generator: Source of randomness.

    Returns:
        The losses of p_sa and p_sas, (num_steps, 2).

    Raises:
        ValueError: If a side is empty, holds values that are not finite, or has another width.
    """
    sides = [Transitions.of(side, name) for side, name in ((real, "real"), (sim, "sim"))]
    for side, name in zip(sides, ("real", "sim"), strict=True):
        gap._check(side, name)
    size, steps = checked_integer("batch_size", batch_size, 1), checked_integer("num_steps", num_steps, 1)
    optimizer = torch.optim.Adam(
        gap.parameters(), lr=checked_float("learning_rate", learning_rate, positive=True)
    )
    mode, history = gap.training, []
    gap.train()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(steps):
                rows = [_draw(side, size, generator) for side in sides]
                loss = gap.loss(rows[0], rows[1], input_noise, generator)
                optimizer.zero_grad()
                loss.total.backward()
                optimizer.step()
                history.append(torch.stack(loss).detach())
    finally:
        gap.train(mode)
        optimizer.zero_grad()
    return torch.stack(history)


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _two_sided(log_prob: Tensor, size: int) -> Tensor:
    return -log_prob[:size, 0].mean() - log_prob[size:, 1].mean()


def _clamped_gap(log_ratio: Tensor, max_gap: float) -> Tensor:
    least = torch.finfo(log_ratio.dtype).tiny
    return (-log_ratio).mean(-1).clamp(least, checked_float("max_gap", max_gap, positive=True))


def _check_clamp(lo: float, hi: float) -> None:
    if not 0 <= lo <= hi:
        raise ValueError(f"lo and hi must be 0 <= lo <= hi, got lo {lo} and hi {hi}")
