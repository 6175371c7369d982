"""The critic's loss on a hybrid batch: real errors, weighted simulated errors, and a value regulariser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from h2orl._checks import broadcasts, checked_float, checked_tensor, wide


class H2OLoss(NamedTuple):
    """The critic's loss and its parts, each a scalar tensor summed over critics.

    Attributes:
        total: td_real + td_sim + reward_scale * beta * reg, to call `backward` on.
        td_real: Squared temporal-difference error on the real half.
        td_sim: The weighted one on the simulated half.
        reg: The value regulariser, before beta.
    """

    total: Tensor
    td_real: Tensor
    td_sim: Tensor
    reg: Tensor


def sim_omega(gap: Tensor) -> Tensor:
    """Normalise dynamics gaps to a distribution over the simulated batch, omega = u / sum u.

    Args:
        gap: Dynamics gaps u >= 0, (..., B).

    Returns:
        (..., B), without a gradient; sums to 1 over the last dimension. Gaps that are all zero give the uniform one.

    Raises:
        TypeError: If `gap` is no tensor.
        ValueError: If the batch is empty, or a column (B, 1), in which every row would be a batch of its own.

    Examples:
        >>> sim_omega(torch.tensor([3.0, 1.0, 0.0]))
        tensor([7.5000e-01, 2.5000e-01, 1.1755e-38])
        >>> sim_omega(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    shape = tuple(checked_tensor("gap", gap).shape)
    if not shape or shape[-1] == 0 or (len(shape) == 2 and shape[1] == 1 < shape[0]):
        raise ValueError(
            f"gap must have shape (..., B) with B at least 1 and be no column (B, 1), got {shape}"
        )
    gap = wide(gap.detach())
    least = torch.finfo(gap.dtype).tiny
    largest = gap.amax(-1, keepdim=True).clamp_min(least)
    # Relative to the largest first: sums of numbers near the smallest normal one lose their digits.
    relative = gap.clamp_min(least) / largest
    return (relative / relative.sum(-1, keepdim=True)).clamp_min(least)


def value_regularizer(
    q_sim: Tensor,
    q_real: Tensor,
    omega: Tensor | None = None,
    temperature: float = 1.0,
    clip: float = 1000.0,
) -> Tensor:
    """Push values down where the simulator errs and up on real data (the paper, dynamics-aware policy evaluation).

    max_d E_d[Q] - temperature * KL(d || omega) - E_real[Q]
    = temperature * logsumexp_b(Q_b / temperature + log omega_b) - mean Q_real, clamped to +-`clip`.
    The logarithm runs over the simulated batch, not over actions of the policy as in CQL. Under DistributedDataParallel
    each rank takes its own batch, as it does for the other means.

    Args:
        q_sim: Q of the simulated batch, (..., B).
        q_real: Q of the real batch, (..., R).
        omega: Distribution over the simulated batch, (B,) or broadcastable to (..., B); None is uniform. Taken without
            gradient.
        temperature: Weight of the divergence; towards 0 the maximum is taken, towards infinity the mean under omega.
        clip: Bound of the result, beyond which there is no gradient.

    Returns:
        (...), in float32 at least.

    Raises:
        ValueError: If lengths do not fit, or `temperature` or `clip` is not positive.

    Examples:
        >>> round(float(value_regularizer(torch.tensor([0.0, 2.0]), torch.tensor([1.0]), temperature=1e-3)), 2)
        1.0
    """
    scale = checked_float("temperature", temperature, positive=True)
    bound = checked_float("clip", clip, positive=True)
    q_sim, q_real = wide(checked_tensor("q_sim", q_sim)), wide(checked_tensor("q_real", q_real))
    if q_sim.dim() == 0 or q_sim.shape[-1] == 0 or q_real.dim() == 0 or q_real.shape[-1] == 0:
        shapes = tuple(q_sim.shape), tuple(q_real.shape)
        raise ValueError(f"q_sim and q_real must have shapes (..., B) and (..., R), not empty, got {shapes}")
    if omega is None:
        log_omega = q_sim.new_tensor(-math.log(q_sim.shape[-1]))
    else:
        shape = checked_tensor("omega", omega).shape
        if omega.dim() == 0 or shape[-1] != q_sim.shape[-1] or not broadcasts(shape, q_sim.shape):
            raise ValueError(
                f"omega must have length {q_sim.shape[-1]} and broadcast to q_sim, got shape {tuple(shape)}"
            )
        omega = wide(omega.detach())
        log_omega = omega.clamp_min(torch.finfo(omega.dtype).tiny).log().to(q_sim.dtype)
    soft_maximum = scale * torch.logsumexp(q_sim / scale + log_omega, -1)
    return (soft_maximum - q_real.mean(-1)).clamp(-bound, bound)


def h2o_critic_loss(
    q_real: Tensor | Sequence[Tensor],
    y_real: Tensor,
    q_sim: Tensor | Sequence[Tensor],
    y_sim: Tensor,
    is_weight: Tensor | None = None,
    omega: Tensor | None = None,
    *,
    beta: float | Tensor = 0.01,
    temperature: float = 1.0,
    clip: float = 1000.0,
    reward_scale: float = 1.0,
) -> H2OLoss:
    """The loss of all critics on a hybrid batch (the paper, dynamics-aware policy evaluation).

    sum_i mean_real (Q_i - y)^2 + mean_sim w (Q_i - y)^2 + beta * value_regularizer(Q_i). No factor 1/2. The ablations
    are arguments: `is_weight=None` (w = 1), `omega=None` (uniform, "H2O-a"), `beta=0` (no regulariser); all three are
    plain mixing.

    Args:
        q_real: Q_i(s, a) of the real half: (E, R) for E critics, (..., E, R) for several agents, (R,) for one critic,
            or a sequence of E tensors of shape (R,) or (R, 1), as critics of Stable-Baselines3 give them.
        y_real: Its targets r + discount * (1 - terminated) * min Q', (R,), (R, 1) or (..., R). Taken without gradient.
        q_sim: The same of the simulated half, length B.
        y_sim: Its targets.
        is_weight: Weights of the simulated half from `DynamicsGap.weight`, (B,), (B, 1) or (..., B). Taken without
            gradient.
        omega: Distribution over the simulated half from `sim_omega`, likewise.
        beta: Weight of the regulariser, at least 0. A tensor that broadcasts to (..., 1), such as (agents, 1), gives
            each agent its own.
        temperature: As in `value_regularizer`.
        clip: As in `value_regularizer`.
        reward_scale: c makes a beta chosen at rewards of size 1 fit rewards of size c: beta and temperature are
            multiplied by it, and the loss of c Q is then exactly c^2 times that of Q.

    Returns:
        The loss and its parts, summed over critics and agents, means over the batch.

    Raises:
        TypeError: If something is no tensor.
        ValueError: If a length does not fit, `beta` is negative or not finite, or has one value a critic instead of one
            an agent, or `reward_scale` is not positive.

    Examples:
        >>> q_real, q_sim = torch.zeros(2, 3), torch.ones(2, 4)
        >>> found = h2o_critic_loss(q_real, torch.ones(3), q_sim, torch.zeros(4), torch.full((4,), 0.5), beta=0.1)
        >>> [round(float(part), 4) for part in found]
        [3.2, 2.0, 1.0, 2.0]
    """
    q_real, q_sim = _stacked("q_real", q_real), _stacked("q_sim", q_sim)
    if q_real.shape[:-1] != q_sim.shape[:-1]:
        shapes = tuple(q_real.shape), tuple(q_sim.shape)
        raise ValueError(f"q_real and q_sim must be of the same critics, got shapes {shapes}")
    y_real, y_sim = _aligned("y_real", y_real, q_real), _aligned("y_sim", y_sim, q_sim)
    _check_beta(beta, q_sim.shape[:-2])
    squared = (q_sim - y_sim).square()
    if is_weight is not None:
        squared = squared * _aligned("is_weight", is_weight, q_sim)
    if omega is not None:
        omega = _aligned("omega", omega, q_sim)
    scale = checked_float("reward_scale", reward_scale, positive=True)
    reg = value_regularizer(q_sim, q_real, omega, scale * temperature, clip * scale)
    td_real, td_sim = (q_real - y_real).square().mean(-1).sum(), squared.mean(-1).sum()
    return H2OLoss(td_real + td_sim + (scale * beta * reg).sum(), td_real, td_sim, reg.sum())


def multiplier_loss(
    log_multiplier: Tensor, reg: Tensor, target: float = 1.0, beta: float = 0.01, max_multiplier: float = 1e6
) -> Tensor:
    """Loss of the optional Lagrange multiplier that holds the regulariser at a target (off in the paper).

    Use beta * exp(log_multiplier).detach() as the `beta` of `h2o_critic_loss`, and minimise
    -1/2 * exp(log_multiplier) * beta * sum_i (reg_i - target) over `log_multiplier` with an optimiser of its own: it
    rises while the gap is above target.

    Args:
        log_multiplier: Scalar parameter.
        reg: Values of `value_regularizer`, one a critic, (E,). Taken without gradient.
        target: Where to hold it.
        beta: As in `h2o_critic_loss`.
        max_multiplier: Clamp of exp(log_multiplier).

    Returns:
        A scalar.

    Raises:
        ValueError: If `beta` is negative.

    Examples:
        >>> log_multiplier = torch.zeros((), requires_grad=True)
        >>> multiplier_loss(log_multiplier, torch.tensor([3.0, 5.0]), beta=0.1).backward()
        >>> round(float(log_multiplier.grad), 4)  # negative: a step of gradient descent raises it
        -0.3
    """
    weight = checked_float("beta", beta) * log_multiplier.exp().clamp(0, max_multiplier)
    return -0.5 * (weight * (reg.detach() - target)).sum()


def _check_beta(beta: float | Tensor, agents: Sequence[int]) -> None:
    if not isinstance(beta, Tensor):
        checked_float("beta", beta)
        return
    if not broadcasts(beta.shape, (*agents, 1)):
        raise ValueError(f"beta must be one number or have shape {(*agents, 1)}, got {tuple(beta.shape)}")
    if not torch.compiler.is_compiling() and not bool(((beta >= 0) & beta.isfinite()).all()):
        raise ValueError("beta must be finite and at least 0")


def _stacked(name: str, values: Tensor | Sequence[Tensor]) -> Tensor:
    """Q as (..., E, B) in float32 at least."""
    if not isinstance(values, Tensor):
        rows = [
            critic.squeeze(-1) if critic.dim() == 2 and critic.shape[-1] == 1 else critic
            for critic in (checked_tensor(name, one) for one in values)
        ]
        if not rows or any(row.dim() != 1 or row.shape != rows[0].shape for row in rows):
            shapes = [tuple(row.shape) for row in values]
            raise ValueError(f"{name} must be critics of one shape, (B,) or (B, 1), got {shapes}")
        values = torch.stack(rows)
    values = values.unsqueeze(0) if values.dim() == 1 else values
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (critics, B), not empty, got {tuple(values.shape)}")
    return wide(checked_tensor(name, values))


def _aligned(name: str, values: Tensor, q: Tensor) -> Tensor:
    """A column of the batch, (B,), (B, 1) or (..., B), as (..., 1, B) beside Q, without gradient."""
    size, found = q.shape[-1], tuple(checked_tensor(name, values).shape)
    values = wide(values.detach())
    if q.dim() == 2 and found in ((size,), (size, 1)):
        return values.reshape(size)
    if q.dim() > 2 and found in ((size,), (*q.shape[:-2], size)):
        return values if values.dim() == 1 else values.unsqueeze(-2)
    raise ValueError(f"{name} must have one value a transition, {size} of them as its Q, got shape {found}")
