"""RLIF, DAgger and HG-DAgger solved exactly in finite Markov decision processes: theory without learning noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlif._checks import as_tensor, checked_float, checked_positive


class TabularSolution(NamedTuple):
    """An optimal policy of a finite Markov decision process.

    Attributes:
        q: Action values (S, A).
        value: State values (S,).
        policy: Probabilities (S, A), uniform over actions whose values tie.
    """

    q: Tensor
    value: Tensor
    policy: Tensor


def tabular_takeover_prob(q_ref: Tensor, a_exp: Tensor, delta: float = 0.0, beta: float = 0.95) -> Tensor:
    """Give the probability that the value-based supervisor takes over, for each state and action.

    P(take-over | s, a) = beta where Q_ref(s, a) < Q_ref(s, pi(s)) - delta, else 1 - beta (the paper's section 6).

    Args:
        q_ref: Reference critic's values (S, A).
        a_exp: What the action is compared with: actions (S,), integer, or a policy (S, A), whose mean value counts.
        delta: Margin, at least 0, in units of Q.
        beta: Probability in [0, 1] of doing what the rule says.

    Returns:
        Probabilities (S, A).

    Raises:
        ValueError: If shapes do not go together, values are not finite, or a number is outside its range.

    Examples:
        >>> import torch
        >>> tabular_takeover_prob(torch.tensor([[1.0, 0.5]]), torch.tensor([0]), beta=0.75).tolist()
        [[0.25, 0.75]]
    """
    delta, beta = checked_float("delta", delta, 0), checked_float("beta", beta, 0, 1)
    q = _finite("q_ref", q_ref, 2)
    loss = q.double() - q.double().amax(1, keepdim=True)  # an offset of the values is no part of the rule
    wanted = _wanted(loss, as_tensor("a_exp", a_exp))
    tolerance = 1e-12 * q.double().abs().amax().clamp(min=1)
    return torch.where(loss < wanted - delta - tolerance, beta, 1 - beta).to(q)


def _wanted(q: Tensor, a_exp: Tensor) -> Tensor:
    """The value of what an action is compared with (S, 1)."""
    if a_exp.is_floating_point():
        probs = _distribution("a_exp", a_exp, q.shape).double()
        return (probs * q).sum(1, keepdim=True) / probs.sum(1, keepdim=True)
    if a_exp.shape != q.shape[:1] or a_exp.dtype == torch.bool:
        raise ValueError(
            f"a_exp must be actions ({len(q)},), integer, or a policy {tuple(q.shape)}, got {a_exp.dtype} of the shape "
            f"{tuple(a_exp.shape)}"
        )
    if bool(((a_exp < 0) | (a_exp >= q.shape[1])).any()):
        raise ValueError(f"a_exp must be actions from 0 to {q.shape[1] - 1}, got {a_exp.tolist()}")
    return q.gather(1, a_exp.long()[:, None])


def tabular_rlif(P: Tensor, gamma: float, takeover_prob: Tensor, *, penalty: float = 1.0) -> TabularSolution:
    """Solve RLIF exactly: the policy that is interrupted least.

    Q = R + gamma P V with R(s, a) = -penalty P(take-over | s, a) and V = max_a Q: V* = 0 exactly in those states from
    which a policy is never interrupted. The penalty stands here at the action that is judged, in logs at the
    transition before; the two returns differ by the factor gamma and the first step, which no policy can change.

    Args:
        P: Transition probabilities (S, A, S); what is missing to a sum of 1 terminates.
        gamma: Discount in [0, 1).
        takeover_prob: (S, A), as from `tabular_takeover_prob`.
        penalty: Size of the reward, above 0.

    Returns:
        Values and the optimal policy.

    Raises:
        ValueError: If shapes do not go together, probabilities are none, or a number is outside its range.

    Examples:
        >>> import torch
        >>> stay = torch.ones(1, 2, 1)
        >>> solution = tabular_rlif(stay, 0.5, torch.tensor([[0.5, 0.0]]))
        >>> solution.policy.tolist(), solution.value.tolist()
        ([[0.0, 1.0]], [0.0])
    """
    penalty = checked_positive("penalty", penalty)
    chances = _finite("takeover_prob", takeover_prob, 2)
    if bool((chances < 0).any() | (chances > 1).any()):
        raise ValueError("takeover_prob must be in [0, 1]")
    return tabular_solve(P, gamma, -penalty * chances)


def tabular_hg_dagger(expert: Tensor, takeover_prob: Tensor) -> Tensor:
    """Give the fixed point of HG-DAgger on everything executed, with the policy's own actions in it.

    A policy that clones what is executed moves by pi' = pi (1 - t) + <pi, t> pi_exp in every state it visits; from
    pi = pi_exp this converges to pi ~ pi_exp / t, and, where the expert has actions that are never interrupted, to
    the expert among those. For a deterministic expert it *is* the expert. DAgger's fixed point is `expert` itself.

    Args:
        expert: The expert's policy (S, A).
        takeover_prob: t (S, A), in [0, 1].

    Returns:
        The policy (S, A).

    Raises:
        ValueError: If shapes do not go together, or probabilities are none.

    Examples:
        >>> import torch
        >>> tabular_hg_dagger(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])).tolist()
        [[0.75, 0.25]]
    """
    chances = _finite("takeover_prob", takeover_prob, 2)
    probs = _distribution("expert", expert, chances.shape)
    if bool((chances < 0).any() | (chances > 1).any()):
        raise ValueError("takeover_prob must be in [0, 1]")
    free = probs * (chances == 0)
    weights = torch.where(
        (free.sum(1) > 0)[:, None], free, probs / chances.clamp(min=torch.finfo(probs.dtype).tiny)
    )
    return weights / weights.sum(1, keepdim=True)


def tabular_solve(P: Tensor, gamma: float, rewards: Tensor) -> TabularSolution:
    """Solve a finite Markov decision process by policy iteration with exact evaluation.

    Args:
        P: Transition probabilities (S, A, S); what is missing to a sum of 1 terminates.
        gamma: Discount in [0, 1).
        rewards: Expected rewards (S, A).

    Returns:
        Values and the optimal policy.

    Raises:
        ValueError: If shapes do not go together, probabilities are none, or `gamma` is outside [0, 1).
    """
    chances, reward, gamma = _process(P, gamma, rewards)
    rows = torch.arange(len(reward), device=reward.device)
    actions = reward.argmax(1)
    tolerance = 1e-10 * reward.abs().amax().clamp(min=1e-30) / (1 - gamma)
    while True:
        value = _evaluated(chances[rows, actions], gamma, reward[rows, actions])
        q = reward + gamma * chances @ value
        best, better = q.max(1)
        improved = best > q[rows, actions] + tolerance
        if not bool(improved.any()):
            break
        actions = torch.where(improved, better, actions)
    ties = (q >= best[:, None] - tolerance).to(q)
    return TabularSolution(q, best, ties / ties.sum(1, keepdim=True))


def tabular_policy_value(P: Tensor, gamma: float, rewards: Tensor, policy: Tensor) -> Tensor:
    """Evaluate a policy exactly, V = (I - gamma P_pi)^-1 R_pi.

    Args:
        P: Transition probabilities (S, A, S); what is missing to a sum of 1 terminates.
        gamma: Discount in [0, 1).
        rewards: Expected rewards (S, A): the environment's, or -`takeover_prob`.
        policy: Probabilities (S, A).

    Returns:
        V (S,).

    Raises:
        ValueError: If shapes do not go together, probabilities are none, or `gamma` is outside [0, 1).

    Examples:
        >>> import torch
        >>> rewards, policy = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> tabular_policy_value(torch.ones(1, 2, 1), 0.5, rewards, policy).tolist()
        [1.0]
    """
    chances, reward, gamma = _process(P, gamma, rewards)
    probs = _distribution("policy", policy, reward.shape)
    return _evaluated((probs[..., None] * chances).sum(1), gamma, (probs * reward).sum(1))


def _evaluated(chances: Tensor, gamma: float, rewards: Tensor) -> Tensor:
    eye = torch.eye(len(rewards), dtype=rewards.dtype, device=rewards.device)
    return torch.linalg.solve(eye - gamma * chances, rewards)


def _process(P: Tensor, gamma: Any, rewards: Tensor) -> tuple[Tensor, Tensor, float]:
    """Check a process; float64 whatever comes in, since exactness is the purpose."""
    gamma = checked_float("gamma", gamma, 0, 1)
    if gamma == 1:
        raise ValueError("gamma must be below 1, got 1")
    reward = _finite("rewards", rewards, 2).double()
    chances = _finite("P", P, 3).double()
    if chances.shape != (*reward.shape, len(reward)):
        raise ValueError(f"P must have the shape {(*reward.shape, len(reward))}, got {tuple(chances.shape)}")
    if bool((chances < 0).any()) or bool((chances.sum(2) > 1 + 1e-5).any()):
        raise ValueError("P must be probabilities of the next state: at least 0, with sums of at most 1")
    return chances, reward, gamma


def _finite(name: str, given: Any, ndim: int) -> Tensor:
    values = as_tensor(name, given)
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    if values.ndim != ndim or not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be {ndim}-dimensional and finite, got the shape {tuple(values.shape)}")
    return values


def _distribution(name: str, values: Any, shape: Any) -> Tensor:
    probs = _finite(name, values, 2)
    sums = probs.sum(1)
    if (
        probs.shape != shape
        or bool((probs < 0).any())
        or not torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    ):
        raise ValueError(
            f"{name} must be probabilities of the shape {tuple(shape)} that sum to 1 in each row"
        )
    return probs
