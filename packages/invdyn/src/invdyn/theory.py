"""The linear model of the paper's analysis: what inverse dynamics and behaviour cloning can reach at best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invdyn._checks import check_finite


class LinearOracle(NamedTuple):
    """A population optimum.

    Attributes:
        weight: W, the best linear head.
        risk: Its squared error, mean over the dims of the action, as the objectives' losses are.
    """

    weight: Tensor
    risk: Tensor


def linear_id_oracle(
    A: Tensor,
    B: Tensor,
    noise_cov: Tensor,
    policy_gain: Tensor,
    policy_cov: Tensor,
    state_cov: Tensor,
) -> LinearOracle:
    """The best linear inverse dynamics of z' = A z + B a + eps, a = K z + u, all of them Gaussian.

    W = Cov(a, [z, z']) Cov([z, z'])^+. A context c that nobody observes is part of u: for `a = K z + c` the
    policy's covariance is that of c. Without noise and with B of full column rank W = [-B^+ A, B^+] recovers
    every action whatever the policies were, so the risk is 0: inverse dynamics is not confounded.

    Args:
        A: (D, D) dynamics.
        B: (D, A) effect of the action.
        noise_cov: (D, D) covariance of eps.
        policy_gain: (A, D), K.
        policy_cov: (A, A) covariance of u, which is independent of z.
        state_cov: (D, D) covariance of z.

    Returns:
        W (A, 2 D), columns of z first, and the risk, in float64.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, or a covariance is none.

    Examples:
        >>> eye, zero = torch.eye(2), torch.zeros(2, 2)
        >>> weight, risk = linear_id_oracle(eye, eye, zero, zero, eye, eye)  # a = c: nothing of z in it
        >>> weight.round(decimals=6).abs().tolist(), round(risk.item(), 9)
        ([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]], 0.0)
    """
    A, B, gain = _matrix("A", A), _matrix("B", B), _matrix("policy_gain", policy_gain)
    dim, size = B.shape
    _fits("A", A, (dim, dim))
    _fits("policy_gain", gain, (size, dim))
    noise, policy, state = (
        _covariance(name, matrix, wanted)
        for name, matrix, wanted in (
            ("noise_cov", noise_cov, dim),
            ("policy_cov", policy_cov, size),
            ("state_cov", state_cov, dim),
        )
    )
    # [z, z'] and a as linear maps of the independent z, u and eps
    sources = torch.block_diag(state, policy, noise)
    eye, blank = torch.eye(dim).to(A), torch.zeros(dim, size + dim).to(A)
    pair = torch.cat([torch.cat([eye, blank], 1), torch.cat([A + B @ gain, B, eye], 1)])
    action = torch.cat([gain, torch.eye(size).to(A), torch.zeros(size, dim).to(A)], 1)
    weight = action @ sources @ pair.T @ torch.linalg.pinv(pair @ sources @ pair.T, hermitian=True)
    residual = action - weight @ pair  # of the sources: a sum of squares, with nothing to cancel
    return LinearOracle(weight, (residual @ sources @ residual.T).trace() / size)


def linear_bc_oracle(policy_gain: Tensor, policy_cov: Tensor) -> LinearOracle:
    """The best behaviour cloning of a = K z + u: E[a | z] = K z, whose risk Cov(u) no encoder takes away.

    Where the context is symmetric, `a = c` with E[c] = 0, the optimum is the constant 0: behaviour cloning
    asks nothing of phi, and its risk is the variance of c.

    Args:
        policy_gain: (A, D), K.
        policy_cov: (A, A) covariance of u, which is independent of z.

    Returns:
        K and the risk, in float64.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, or the covariance is none.

    Examples:
        >>> linear_bc_oracle(torch.zeros(2, 2), torch.eye(2)).risk.item()
        1.0
    """
    gain = _matrix("policy_gain", policy_gain)
    policy = _covariance("policy_cov", policy_cov, len(gain))
    return LinearOracle(gain, policy.trace() / len(gain))


def _matrix(name: str, matrix: Tensor) -> Tensor:
    found = torch.as_tensor(matrix).double()
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"{name} must be a matrix, got shape {tuple(found.shape)}")
    check_finite(name, found)
    return found


def _fits(name: str, matrix: Tensor, shape: tuple[int, int]) -> None:
    if matrix.shape != shape:
        raise ValueError(f"{name} must be {shape}, got {tuple(matrix.shape)}")


def _covariance(name: str, matrix: Tensor, size: int) -> Tensor:
    found = _matrix(name, matrix)
    _fits(name, found, (size, size))
    scale = found.abs().max()
    if not torch.allclose(found, found.T, atol=1e-6 * float(scale)):
        raise ValueError(f"{name} must be symmetric")
    smallest = torch.linalg.eigvalsh(found)[0]
    if smallest < -1e-6 * scale:
        raise ValueError(f"{name} must have no negative eigenvalue, got {smallest.item():g}")
    return found
