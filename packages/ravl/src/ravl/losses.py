"""Targets and losses: the pessimistic target, the diversity of action gradients, the critic's and the actor's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ravl._checks import as_vector, check_flags, check_range, checked_number
from ravl.critics import CriticEnsemble, is_plain
from ravl.rollouts import TransitionBatch, as_batch

Critic = Callable[[Tensor, Tensor], Any]
TargetPatch = Callable[[TransitionBatch, Tensor], Tensor]


@dataclass(frozen=True)
class CriticLoss:
    """What `ravl_critic_loss` returns; only `total` carries gradients.

    Attributes:
        total: `td + eta * diversity`, a scalar.
        td: Sum over critics of the mean squared error.
        diversity: The diversity of the action gradients; 0 where `eta` is 0.
        q_mean: Mean over critics and batch.
        q_std: Standard deviation over critics, mean over the batch.
        target: `(B,)`, what all critics were drawn to.
    """

    total: Tensor
    td: Tensor
    diversity: Tensor
    q_mean: Tensor
    q_std: Tensor
    target: Tensor


def ensemble_values(output: Any, size: int) -> Tensor:
    """Return `(N, B)` values from what a critic returns.

    Args:
        output: `(N, B)`, `(N, B, 1)`, or a tuple or list of N tensors `(B,)` or `(B, 1)`, as twin critics and
            Stable-Baselines3's `ContinuousCritic` return.
        size: B.

    Returns:
        `(N, B)`.

    Raises:
        ValueError: If the shape is another: `(B, 1)` and `(B, N)` would broadcast silently.
        TypeError: If it is neither tensor nor sequence.
    """
    if isinstance(output, (tuple, list)):
        return torch.stack([as_vector("critic's output", value, size) for value in output])
    if not isinstance(output, Tensor):
        raise TypeError(f"critic must return a tensor or a sequence of tensors, got {type(output).__name__}")
    if output.dim() == 3 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.dim() != 2 or output.shape[1] != size:
        raise ValueError(
            f"critic must return (num_critics, {size}) or num_critics tensors of {size} values, "
            f"got {tuple(output.shape)}"
        )
    return output


def ensemble_reduction(values: Tensor, reduction: Literal["min", "lcb"] = "min", beta: float = 1.0) -> Tensor:
    """Reduce `(N, B)` values to `(B,)`: their minimum, or their mean less `beta` standard deviations.

    The standard deviation divides by N, so that one critic has none.

    Args:
        values: `(N, B)`.
        reduction: `"min"` or `"lcb"`, the lower confidence bound.
        beta: How many standard deviations; only for `"lcb"`.

    Returns:
        `(B,)`.

    Raises:
        ValueError: If `reduction` is another word, or `beta` negative.

    Examples:
        >>> ensemble_reduction(torch.tensor([[1.0], [3.0]]), "lcb", beta=0.5)
        tensor([1.5000])
    """
    if reduction == "min":
        return values.amin(0)
    if reduction != "lcb":
        raise ValueError(f"reduction must be 'min' or 'lcb', got {reduction!r}")
    beta = checked_number("beta", beta, 0)
    return values.mean(0) - beta * values.std(0, correction=0)


def pessimistic_target(
    next_q: Any,
    reward: Tensor,
    terminated: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    discount: float | Tensor,
    *,
    reduction: Literal["min", "lcb"] = "min",
    beta: float = 1.0,
) -> Tensor:
    """The target of RAVL, `y = r + gamma (1 - d) [min_i Q'_i(s', a') - alpha log pi(a'|s')]` (section 5).

    Where `d` is 1 the target is the reward, whatever the critics say, NaN included. A rollout cut after k steps has
    `d = 0`: to end it there would be another, biased, method.

    Args:
        next_q: Target values at `(s', a')`, `(N, B)` or N tensors of B values.
        reward: `(B,)` or `(B, 1)`.
        terminated: `(B,)` or `(B, 1)`, bool or 0 and 1: ends by the task, not by a time limit.
        next_log_prob: `log pi(a'|s')`, `(B,)` or `(B, 1)`.
        alpha: The entropy temperature, a number or a tensor of one or of B values.
        discount: `gamma` in [0, 1), or a tensor of B values in [0, 1] (such as `gamma^n` of n-step returns).
        reduction: `"min"`, or `"lcb"`: mean less `beta` standard deviations.
        beta: See `reduction`.

    Returns:
        `(B,)`, without gradients, in float32 at least.

    Raises:
        ValueError: If a shape or a number is not as above.
        TypeError: If something is no tensor.

    Examples:
        >>> q = torch.tensor([[1.0, 5.0], [2.0, 4.0]])
        >>> zeros = torch.zeros(2)
        >>> pessimistic_target(q, torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), zeros, 0.1, 0.5)
        tensor([1.5000, 1.0000])
    """
    size = len(reward) if isinstance(reward, Tensor) and reward.dim() else 1
    reward = as_vector("reward", reward, size)
    terminated = as_vector("terminated", terminated, size)
    value = _soft_value(next_q, next_log_prob, alpha, size, reduction, beta)
    return _bootstrapped(value, reward, terminated, discount)


def gradient_diversity(gradient: Tensor) -> Tensor:
    """How much N critics agree: `mean_B 1/(N-1) sum_{i != j} <g_i, g_j>` of unit action gradients (EDAC, section 4).

    By `sum_{i != j} <g_i, g_j> = |sum_i g_i|^2 - sum_i |g_i|^2`, without the N x N products. It is N where all
    gradients coincide and `-N / (N - 1)` at the least. Computed in float32 at least.

    Args:
        gradient: `grad_a Q_i(s, a)`, `(N, B, A)`, of any length: they are divided by their norm plus 1e-10.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shape is another, or N is below 2.

    Examples:
        >>> gradient_diversity(torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]]))  # at right angles
        tensor(0.)
        >>> gradient_diversity(torch.ones(4, 1, 2))
        tensor(4.0000)
    """
    if not isinstance(gradient, Tensor) or gradient.dim() != 3:
        raise ValueError(
            f"gradient must have shape (num_critics, B, A), got {getattr(gradient, 'shape', gradient)}"
        )
    num_critics = len(gradient)
    if num_critics < 2:
        raise ValueError(f"gradient must come from at least 2 critics to be diverse, got {num_critics}")
    gradient = _at_least_float32(gradient)
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    unit = gradient / (norm + 1e-10)
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
    return pairs.mean() / (num_critics - 1)


def value_and_action_gradient(critic: Critic, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return `Q_i(s, a)` and `grad_a Q_i(s, a)` of any ensemble, differentiable in its weights.

    A plain `CriticEnsemble` writes the gradient out; everything else (subclasses, hooks, twin critics, critics with a
    common trunk) is differentiated twice, all N gradients in one batched call.

    Args:
        critic: Called as `critic(observation, action)`.
        observation: `(B, S)`.
        action: `(B, A)`.

    Returns:
        `(N, B)` and `(N, B, A)`.
    """
    if is_plain(critic):
        assert isinstance(critic, CriticEnsemble)
        return critic.value_and_action_gradient(observation, action)
    with torch.enable_grad():
        action = action.detach()
        action = (action if action.is_floating_point() else action.float()).requires_grad_(True)
        values = ensemble_values(critic(observation, action), len(action))
        each = torch.eye(len(values), dtype=values.dtype, device=values.device)
        (gradient,) = torch.autograd.grad(
            values.sum(1), action, grad_outputs=each, create_graph=True, is_grads_batched=True
        )
    return values, gradient


def diversity_loss(critic: Critic, observation: Tensor, action: Tensor) -> Tensor:
    """The diversity term of EDAC at a batch, to be added to a critic loss of yours times `eta`.

    Args:
        critic: Called as `critic(observation, action)`; returns N values a row.
        observation: `(B, S)`.
        action: `(B, A)`, from the batch, not from the policy.

    Returns:
        A scalar, differentiable in the critic's weights.

    Raises:
        ValueError: If there are fewer than 2 critics.

    Examples:
        >>> critic = CriticEnsemble(3, 2, num_critics=5)
        >>> loss = diversity_loss(critic, torch.randn(8, 3), torch.rand(8, 2))
        >>> -5 / 4 <= loss.item() <= 5
        True
    """
    return gradient_diversity(value_and_action_gradient(critic, observation, action)[1])


def ravl_critic_loss(
    critic: Critic,
    target_critic: Critic,
    batch: Any,
    next_action: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    *,
    discount: float = 0.99,
    eta: float = 1.0,
    reduction: Literal["min", "lcb"] = "min",
    beta: float = 1.0,
    target_patch: TargetPatch | None = None,
) -> CriticLoss:
    """The critic's loss: `sum_i mean_B (Q_i(s, a) - y)^2 + eta * diversity` (section 5; EDAC, algorithm 1).

    The sum over critics is not a mean: each of them learns as fast as one alone would. The diversity's gradients come
    from the same forward pass as the errors. It is skipped where `eta` is 0.

    Args:
        critic: Called as `critic(observation, action)`; `CriticEnsemble`, or anything that returns N values a row.
        target_critic: The slow copy.
        batch: A `TransitionBatch` or `Rollouts`, a list `[s, a, r, s', d]` as of CORL, Stable-Baselines3's
            `ReplayBufferSamples`, or a mapping with D4RL's keys.
        next_action: `a' ~ pi(s')`, `(B, A)`.
        next_log_prob: `log pi(a'|s')`, `(B,)` or `(B, 1)`.
        alpha: The entropy temperature.
        discount: `gamma` in [0, 1); what the batch brings of its own (n-step returns) goes before it.
        eta: Weight of the diversity, at least 0.
        reduction: See `pessimistic_target`.
        beta: See `pessimistic_target`.
        target_patch: Called as `target_patch(batch, next_value)` with the `(B,)` values that are about to be
            discounted; returns them, changed where you know better. With the true values at edge-of-reach states this
            is the paper's oracle (section 4.2).

    Returns:
        The loss and its parts.

    Raises:
        ValueError: If a shape or number does not fit, or `eta` is above 0 with fewer than 2 critics.
        TypeError: If the batch is of none of these forms.

    Examples:
        >>> critic, target = CriticEnsemble(3, 2, 5), CriticEnsemble(3, 2, 5)
        >>> batch = [torch.randn(8, 3), torch.rand(8, 2), torch.randn(8, 1), torch.randn(8, 3), torch.zeros(8, 1)]
        >>> loss = ravl_critic_loss(critic, target, batch, torch.rand(8, 2), torch.zeros(8), alpha=0.1)
        >>> loss.total.backward()
    """
    eta = checked_number("eta", eta, 0)
    data = as_batch(batch)
    target = _target(
        target_critic, data, next_action, next_log_prob, alpha, discount, reduction, beta, target_patch
    )
    if eta:
        values, gradient = value_and_action_gradient(critic, data.observation, data.action)
        if len(values) < 2:
            raise ValueError(f"eta must be 0 with fewer than 2 critics, got {eta} with {len(values)}")
        diversity = gradient_diversity(gradient)
    else:
        values = ensemble_values(critic(data.observation, data.action), len(data.reward))
        diversity = target.new_zeros(())
    values = _at_least_float32(values)
    td = (values - target).square().mean(1).sum()
    total = td + eta * diversity if eta else td
    found = values.detach()
    return CriticLoss(
        total=total,
        td=td.detach(),
        diversity=diversity.detach(),
        q_mean=found.mean(),
        q_std=found.std(0, correction=0).mean(),
        target=target,
    )


def ravl_actor_loss(
    critic: Critic,
    observation: Tensor,
    action: Tensor,
    log_prob: Tensor,
    alpha: float | Tensor,
    *,
    reduction: Literal["min", "lcb"] = "min",
    beta: float = 1.0,
) -> Tensor:
    """The actor's loss, `mean_B alpha log pi(a|s) - min_i Q_i(s, a)`: its minimum, since a mean loses the effect.

    The weights of a `torch.nn.Module` take no gradient from it, which saves a third of the backward pass. Those of a
    function, and of a module other than `CriticEnsemble` in a loss that is compiled, do: clear them before the critic's
    own backward pass.

    Args:
        critic: As in `ravl_critic_loss`.
        observation: `(B, S)`.
        action: `a ~ pi(s)`, reparametrised, `(B, A)`.
        log_prob: `log pi(a|s)`, `(B,)` or `(B, 1)`.
        alpha: The entropy temperature.
        reduction: See `pessimistic_target`.
        beta: See `pessimistic_target`.

    Returns:
        A scalar.

    Raises:
        ValueError: If a shape does not fit.

    Examples:
        >>> critic = CriticEnsemble(3, 2, 5)
        >>> action = torch.rand(8, 2, requires_grad=True)
        >>> ravl_actor_loss(critic, torch.randn(8, 3), action, torch.zeros(8), alpha=0.1).backward()
        >>> action.grad is not None and critic.critic[0].weight.grad is None
        True
    """
    size = len(action)
    values = _at_least_float32(ensemble_values(_without_weights(critic, observation, action), size))
    log_prob = _at_least_float32(as_vector("log_prob", log_prob, size))
    return (_temperature(alpha, size) * log_prob - ensemble_reduction(values, reduction, beta)).mean()


def _without_weights(critic: Critic, observation: Tensor, action: Tensor) -> Any:
    """Call a critic so that its weights, if it is a module, take no gradient."""
    if isinstance(critic, nn.parallel.DistributedDataParallel):
        critic = critic.module  # there is nothing to reduce
    if is_plain(critic):
        assert isinstance(critic, CriticEnsemble)
        frozen = {name: value.detach() for name, value in critic.named_parameters()}
        return torch.func.functional_call(critic, frozen, (observation, action))
    if not isinstance(critic, nn.Module) or torch.compiler.is_compiling():
        return critic(observation, action)  # the flags below cannot be set in a compiled graph
    learning = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        return critic(observation, action)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@torch.no_grad()
def _target(
    target_critic: Critic,
    data: TransitionBatch,
    next_action: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    discount: float | Tensor,
    reduction: Literal["min", "lcb"],
    beta: float,
    patch: TargetPatch | None,
) -> Tensor:
    size = len(data.reward)
    output = target_critic(data.next_observation, next_action)
    value = _soft_value(output, next_log_prob, alpha, size, reduction, beta)
    if patch is not None:
        value = as_vector("target_patch's result", patch(data, value), size).to(value.dtype)
    return _bootstrapped(
        value, data.reward, data.terminated, discount if data.discount is None else data.discount
    )


def _soft_value(
    next_q: Any,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    size: int,
    reduction: Literal["min", "lcb"],
    beta: float,
) -> Tensor:
    """Return `min_i Q_i - alpha log pi`, `(B,)`."""
    values = _at_least_float32(ensemble_values(next_q, size).detach())
    log_prob = _at_least_float32(as_vector("next_log_prob", next_log_prob, size).detach())
    return ensemble_reduction(values, reduction, beta) - _temperature(alpha, size) * log_prob


def _bootstrapped(value: Tensor, reward: Tensor, terminated: Tensor, discount: float | Tensor) -> Tensor:
    """Return `r + gamma (1 - d) value`, with nothing of `value` where `d` is 1."""
    check_flags("terminated", terminated)
    gamma = _discount(discount, len(reward))
    value = value.masked_fill(terminated == 1, 0)
    return reward.detach().to(value.dtype) + gamma * (1 - terminated.to(value.dtype)) * value


def _discount(discount: float | Tensor, size: int) -> float | Tensor:
    if isinstance(discount, Tensor) and discount.dim() and (discount.numel() > 1 or size == 1):
        discount = as_vector("discount", discount, size).detach()
        check_range("discount", discount, 0, 1)
        return discount
    return checked_number("discount", discount, 0, 1, open_end=True)


def _temperature(alpha: float | Tensor, size: int) -> float | Tensor:
    """Return a number or B of them; the temperature's own loss is not this one."""
    if not isinstance(alpha, Tensor):
        return checked_number("alpha", alpha, 0)
    alpha = alpha.detach()
    check_range("alpha", alpha, 0)
    return alpha.reshape(()) if alpha.numel() == 1 else as_vector("alpha", alpha, size)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
