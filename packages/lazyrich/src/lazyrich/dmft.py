"""Dynamical mean-field theory of the same network: finite N in the limit of many dimensions and samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lazyrich._checks import checked_float, checked_integer


@dataclass(frozen=True)
class DMFTResult:
    """What `dmft` found, T times.

    Args:
        train: (T,) training loss E (f - y)^2.
        test: (T,) test loss.
        overlap: (T,) mean over neurons of w_i . b / D.
        C: (T, N, T, N) overlaps w_i(t) . w_j(s) / D.
        c: (T, N) overlaps w_i(t) . b / D.
    """

    train: Tensor
    test: Tensor
    overlap: Tensor
    C: Tensor
    c: Tensor


def dmft(
    N: int,
    num_times: int,
    nu: float,
    alpha: float,
    eps: float,
    lr: float,
    m0: float = 0.0,
    *,
    num_samples: int = 20_000,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> DMFTResult:
    """Exact learning curves for D, P -> infinity with P = nu D, in discrete time (our derivation).

    Weights w_i(0) = w0_i + m0 b follow w_i <- w_i - (lr / nu) sum_mu G_i(x_mu) x_mu, G_i = alpha d phi'(h_i), which is
    `suff_gd` with eta = lr D. One training sample sees the process

        h_i(t) = u_i(t) - sum_{s<t,j} rho_ij(t, s) G_j(s),   (u, z) Gaussian: Cov u = C, Cov(u, z) = c, y = z^2 / 2,

    and one coordinate of the weights the process

        w(t+1) = w(t) - lr [xi(t) + sum_{s<=t} Gamma(t, s) w(s) + gamma(t) b],   xi ~ GP(0, E[G G^T] / nu),

    with Gamma = E[dG(t)/du(s)] and gamma = E[dG/dz], total derivatives through the recursion. The second is linear,
    w = A0 w0 + Ab b - lr R xi, and gives C, c = Ab and rho = (lr / nu) R back to the first. The training loss is E d^2
    with h, the test loss that with u. All is causal, so that one sweep through time solves it, up to Monte Carlo;
    memory num_samples * (T N)^2 numbers.

    Args:
        N: Neurons.
        num_times: Points of time T, the initial one included.
        nu: Samples over dimensions, P / D.
        alpha: Output scale, greater than 0.
        eps: Curvature of the activation; not 0.
        lr: Learning rate.
        m0: Overlap of the weights with b at the start.
        num_samples: Monte Carlo samples of the single-sample process.
        generator: Draws the samples, on its own device.
        device: Where to compute.

    Returns:
        Losses, overlaps and correlations.

    Raises:
        ValueError: If an argument is out of range, `eps` is 0, or the curves are not finite: `lr` is too large.

    Examples:
        >>> found = dmft(2, 4, nu=3.0, alpha=1.0, eps=0.5, lr=0.25, m0=0.3, num_samples=4000,
        ...              generator=torch.Generator().manual_seed(0))
        >>> bool(found.train[-1] < found.train[0]), bool(found.test[-1] > found.train[-1])
        (True, True)
    """
    N, T = checked_integer("N", N, 1), checked_integer("num_times", num_times, 1)
    nu, alpha = checked_float("nu", nu, above=0.0), checked_float("alpha", alpha, above=0.0)
    eps, lr, m0 = checked_float("eps", eps), checked_float("lr", lr, above=0.0), checked_float("m0", m0)
    if eps == 0:
        raise ValueError("eps must not be 0: a linear activation cannot learn the quadratic target")
    number = checked_integer("num_samples", num_samples, 2)
    where = generator.device if generator is not None else "cpu"
    half = -(-number // 2)
    noise = torch.randn(half, T * N + 1, generator=generator, dtype=torch.float64, device=where).to(device)
    quantiles = (torch.arange(half, dtype=torch.float64, device=device) + 0.5) / half
    noise[:, 0] = 2**0.5 * torch.erfinv(quantiles)  # z in equal strata, since its fourth moment counts
    noise = torch.cat([noise, -noise])  # antithetic: all odd moments vanish
    fields = _Fields(noise, N, T, alpha, eps)
    C, c, rho = _single_weight(fields.Gamma, fields.gamma, fields.second, N, T, nu, lr, m0)
    for t in range(T):
        fields.advance(t, C, c, rho)
        C, c, rho = _single_weight(fields.Gamma, fields.gamma, fields.second, N, T, nu, lr, m0)
    if not bool(fields.losses.isfinite().all()):
        raise ValueError(f"lr={lr} is unstable: the mean-field curves are not finite")
    train, test = fields.losses.T
    return DMFTResult(train, test, c.reshape(T, N).mean(1), C.reshape(T, N, T, N), c.reshape(T, N))


class _Fields:
    """The single-sample process, forward in time, with its derivatives by u and (last) by z."""

    def __init__(self, noise: Tensor, N: int, T: int, alpha: float, eps: float) -> None:
        self.N, self.alpha, self.eps, size = N, alpha, eps, T * N
        self.z, self.noise = noise[:, 0], noise[:, 1:]
        self.G, self.dG = noise.new_zeros(len(noise), size), noise.new_zeros(len(noise), size, size + 1)
        self.Gamma, self.second = noise.new_zeros(size, size), noise.new_zeros(size, size)
        self.gamma, self.losses = noise.new_zeros(size), noise.new_zeros(T, 2)

    def advance(self, t: int, C: Tensor, c: Tensor, rho: Tensor) -> None:
        """Time t, given C, c and rho up to it; averages Gamma, gamma and E[G G^T] up to it."""
        N, alpha, eps = self.N, self.alpha, self.eps
        now, before, known = slice(t * N, (t + 1) * N), slice(0, t * N), slice(0, (t + 1) * N)
        u = self._field(now, known, C, c)
        memory = rho[now, before]
        h = u - self.G[:, before] @ memory.T
        dh = h.new_zeros(len(h), N, self.dG.shape[2])
        dh[:, :, before] = -(memory @ self.dG[:, before, before])
        dh[:, :, -1] = -(self.dG[:, before, -1] @ memory.T)
        dh[:, :, now] += torch.eye(N, dtype=h.dtype, device=h.device)
        slope = 1 + eps * h
        d = self._residual(h)
        dd = alpha / N * (slope[:, :, None] * dh).sum(1)
        dd[:, -1] -= self.z
        self.G[:, now] = alpha * d[:, None] * slope
        self.dG[:, now] = alpha * (d[:, None, None] * eps * dh + slope[:, :, None] * dd[:, None])
        mean = self.dG[:, now].mean(0)
        self.Gamma[now], self.gamma[now] = mean[:, :-1], mean[:, -1]
        second = self.G[:, now].T @ self.G[:, known] / len(h)
        self.second[now, known], self.second[known, now] = second, second.T
        self.losses[t] = torch.stack([d.square().mean(), self._residual(u).square().mean()])

    def _field(self, now: slice, known: slice, C: Tensor, c: Tensor) -> Tensor:
        """u(t) as a causal function of fixed noise."""
        rest = C[known, known] - torch.outer(c[known], c[known])
        jitter = 1e-10 * (1 + rest.diagonal().max()) * torch.eye(len(rest), dtype=C.dtype, device=C.device)
        factor, failed = torch.linalg.cholesky_ex(rest + jitter)
        if bool(failed) or not bool(factor.isfinite().all()):
            raise ValueError("lr is unstable: the mean-field correlations are not finite")
        return torch.outer(self.z, c[now]) + self.noise[:, known] @ factor[now].T

    def _residual(self, field: Tensor) -> Tensor:
        return self.alpha * (field + self.eps / 2 * field.square()).mean(1) - self.z.square() / 2


def _single_weight(
    Gamma: Tensor, gamma: Tensor, second: Tensor, N: int, T: int, nu: float, lr: float, m0: float
) -> tuple[Tensor, Tensor, Tensor]:
    """C, c and rho of the linear process of the weights."""
    unit = torch.eye(N, dtype=Gamma.dtype, device=Gamma.device)
    past = torch.kron(torch.ones(T, T, dtype=Gamma.dtype, device=Gamma.device).tril(-1), unit)
    response = torch.linalg.inv(torch.eye(T * N, dtype=Gamma.dtype, device=Gamma.device) + lr * past @ Gamma)
    start = response @ unit.repeat(T, 1)
    target = response @ (m0 - lr * past @ gamma)
    memory = response @ past
    C = start @ start.T + torch.outer(target, target) + lr**2 / nu * memory @ second @ memory.T
    return C, target, lr / nu * memory
