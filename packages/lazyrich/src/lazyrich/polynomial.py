"""The paper's network on a quadratic target, exactly, through its sufficient statistics.

f(x) = (alpha / N) sum_i phi(w_i . x), phi(h) = h + (eps / 2) h^2, of which only the w_i are trained. With
wbar = (1/N) sum_i w_i and M = (1/N) sum_i w_i w_i^T it is f(x) = alpha (wbar . x + (eps / 2) x^T M x), and gradient
descent on all N neurons is a closed recursion of wbar and M: its cost does not know N, which may be infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyrich._checks import checked_float, checked_integer, real_tensor, wide


class PolyTask:
    """Quadratic regression: x ~ N(0, I/D), y = (b . x)^2 / 2 with |b|^2 = D (section 4 of the paper).

    Args:
        D: Input dimension.
        P: Training samples.
        generator: Draws b and X, on its own device.
        dtype: Of everything.

    Raises:
        ValueError: If D or P is below 1.

    Examples:
        >>> task = PolyTask(20, 50, torch.Generator().manual_seed(0))
        >>> task.X.shape, task.y.shape, round(task.b.square().sum().item(), 6)
        (torch.Size([50, 20]), torch.Size([50]), 20.0)
    """

    def __init__(
        self, D: int, P: int, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float64
    ) -> None:
        D, P = checked_integer("D", D, 1), checked_integer("P", P, 1)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a real floating-point type, got {dtype}")
        where = generator.device if generator is not None else None
        direction = torch.randn(D, generator=generator, dtype=dtype, device=where)
        self.b = direction * (D**0.5 / direction.norm())
        self.X, self.y = self.sample(P, generator)

    def sample(self, number: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw further samples of the task.

        Args:
            number: How many.
            generator: Draws them.

        Returns:
            Inputs (number, D) and targets (number,).
        """
        number, D = checked_integer("number", number, 1), len(self.b)
        where = generator.device if generator is not None else self.b.device
        x = torch.randn(number, D, generator=generator, dtype=self.b.dtype, device=where) / D**0.5
        x = x.to(self.b.device)
        return x, (x @ self.b).square() / 2


@dataclass(frozen=True)
class LossTerms:
    """The expected squared error E (f - y)^2 over x ~ N(0, I/D), and what it is made of; scalar tensors.

    Args:
        total: The sum of the three.
        linear_power: alpha^2 |wbar|^2 / D, what a linear part costs on an even target.
        misalignment: 1/2 - alpha eps b^T M b / D^2, which falls from about 1/2 to -1/2 as M turns to b b^T.
        variance: [(alpha eps Tr M - D)^2 + 2 alpha^2 eps^2 ||M||_F^2] / (4 D^2).
        alignment: b^T M b / (D ||M||_F), 1 where M ~ b b^T; no part of the loss.
    """

    total: Tensor
    linear_power: Tensor
    misalignment: Tensor
    variance: Tensor
    alignment: Tensor


@dataclass(frozen=True)
class SuffTrajectory:
    """Gradient descent in its sufficient statistics.

    Args:
        steps: (R,) steps recorded, 0 first.
        train: (R,) mean squared error on the training samples.
        test: (R,) expected squared error on new samples, exact.
        linear_power: (R,) see `LossTerms`.
        misalignment: (R,) see `LossTerms`.
        variance: (R,) see `LossTerms`.
        alignment: (R,) see `LossTerms`.
        wbar: (R, D) means of the weights, if they were kept, else (1, D), those at the end.
        M: (R, D, D) or (1, D, D) second moments.
    """

    steps: Tensor
    train: Tensor
    test: Tensor
    linear_power: Tensor
    misalignment: Tensor
    variance: Tensor
    alignment: Tensor
    wbar: Tensor
    M: Tensor


@dataclass(frozen=True)
class PopulationTrajectory:
    """The flow on infinitely many samples.

    Args:
        times: (R,).
        test: (R,) expected squared error.
        alignment: (R,) see `LossTerms`.
        wbar: (R, D).
        M: (R, D, D).
    """

    times: Tensor
    test: Tensor
    alignment: Tensor
    wbar: Tensor
    M: Tensor


def suff_stats(W: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and second moment of the weights: all that the network's function knows of them.

    Args:
        W: (N, D), one neuron a row.

    Returns:
        wbar (D,) and M (D, D). For N = infinity at initialisation they are 0 and the identity.

    Examples:
        >>> wbar, M = suff_stats(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        >>> wbar.tolist(), M.tolist()
        ([0.5, 1.5], [[0.5, 0.0], [0.0, 4.5]])
    """
    W = wide(real_tensor("W", W, 2))
    if len(W) < 1:
        raise ValueError("W must have at least one neuron, got none")
    return W.mean(0), W.T @ W / len(W)


def suff_loss(wbar: Tensor, M: Tensor, b: Tensor, alpha: float, eps: float) -> LossTerms:
    """The exact test loss, and its three terms (section 4 of the paper).

    With Q = alpha eps M - b b^T: alpha^2 |wbar|^2 / D + [(Tr Q)^2 + 2 ||Q||_F^2] / (4 D^2).

    Args:
        wbar: (D,) mean weight.
        M: (D, D) second moment.
        b: (D,) target direction, |b|^2 = D.
        alpha: Output scale, greater than 0.
        eps: Curvature of the activation; not 0.

    Returns:
        The loss without a factor 1/2, and its terms.

    Raises:
        ValueError: If shapes disagree, |b|^2 is not D, or `eps` is 0.

    Examples:
        >>> b = torch.tensor([2.0, 0.0, 0.0, 0.0])
        >>> round(suff_loss(torch.zeros(4), torch.outer(b, b) / 0.5, b, 1.0, 0.5).total.item(), 6)
        0.0
    """
    wbar, M, b, alpha, eps = _checked_state(wbar, M, b, alpha, eps)
    return _terms(wbar, M, b, alpha, eps)


def _terms(wbar: Tensor, M: Tensor, b: Tensor, alpha: float, eps: float) -> LossTerms:
    D, scale = len(b), alpha * eps
    overlap, trace, square = b @ M @ b, M.trace(), M.square().sum()
    linear = alpha**2 * wbar.square().sum() / D
    misalignment = 0.5 - scale * overlap / D**2
    variance = ((scale * trace - D).square() + 2 * scale**2 * square) / (4 * D**2)
    return LossTerms(
        linear + misalignment + variance, linear, misalignment, variance, overlap / (D * square.sqrt())
    )


def suff_kernel(X: Tensor, X2: Tensor, wbar: Tensor, M: Tensor, eps: float) -> Tensor:
    """The tangent kernel of the network, N times that over its weights at `alpha` = 1, exact at any time.

    K(x, x') = (x . x') (1 + eps wbar . (x + x') + eps^2 x^T M x'). At initialisation and N = infinity it is
    (x . x') (1 + eps^2 x . x'): linear modes of order one, the quadratic target's of order eps^2 / D^2.

    Args:
        X: (n, D) inputs.
        X2: (m, D) inputs.
        wbar: (D,) mean weight.
        M: (D, D) second moment.
        eps: Curvature of the activation.

    Returns:
        (n, m).

    Examples:
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> suff_kernel(x, x, torch.zeros(2), torch.eye(2), eps=0.5)
        tensor([[3.]])
    """
    X, wbar, M = wide(real_tensor("X", X, 2)), real_tensor("wbar", wbar, 1), real_tensor("M", M, 2)
    X2, wbar, M, eps = real_tensor("X2", X2, 2).to(X), wbar.to(X), M.to(X), checked_float("eps", eps)
    D = X.shape[1]
    if X2.shape[1] != D or wbar.shape != (D,) or M.shape != (D, D):
        raise ValueError(
            f"X2, wbar and M must have {D} dimensions as X, got shapes {tuple(X2.shape)}, {tuple(wbar.shape)} and "
            f"{tuple(M.shape)}"
        )
    linear = eps * (X @ wbar)[:, None] + eps * (X2 @ wbar)[None]
    return (X @ X2.T) * (1 + linear + eps**2 * (X @ M @ X2.T))


def suff_gd(
    X: Tensor,
    y: Tensor,
    wbar: Tensor,
    M: Tensor,
    alpha: float,
    eps: float,
    eta: float,
    steps: int,
    *,
    b: Tensor,
    record: Iterable[int] | None = None,
    keep: bool = False,
) -> SuffTrajectory:
    """Full-batch gradient descent on all neurons, exactly, without them.

    The neurons follow w_i <- w_i - (eta alpha / P) sum_mu d_mu phi'(w_i . x_mu) x_mu with d = f - y. With
    g = (1/P) sum d x, S = (1/P) sum d x x^T and A = eta alpha this is

        wbar <- wbar - A (g + eps S wbar)
        M <- M - A [g wbar^T + wbar g^T + eps (S M + M S)]
               + A^2 [g g^T + eps (g (S wbar)^T + (S wbar) g^T) + eps^2 S M S]

    at a cost of O(P D^2) a step, for any N; N = infinity starts at wbar = 0 and M = I. About eta = 0.3 D / alpha^2 is
    stable; the authors' setting is eta = 2 / alpha^2.

    Args:
        X: (P, D) training inputs, of variance 1/D.
        y: (P,) targets.
        wbar: (D,) mean weight at the start.
        M: (D, D) second moment at the start.
        alpha: Output scale, greater than 0.
        eps: Curvature of the activation; not 0.
        eta: Learning rate, greater than 0.
        steps: Number of steps.
        b: (D,) target direction, for the test loss.
        record: Steps to record, 0 and the last always, none beyond; about 20 a decade if not given.
        keep: Keep `wbar` and `M` at every record, not only at the end.

    Returns:
        Losses, terms and statistics at the records.

    Raises:
        ValueError: If shapes disagree, `eps` is 0, or the loss is not finite at a record: eta is too large.

    Examples:
        >>> task = PolyTask(10, 40, torch.Generator().manual_seed(0))
        >>> start = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
        >>> run = suff_gd(task.X, task.y, *start, alpha=1.0, eps=0.5, eta=2.0, steps=200, b=task.b)
        >>> bool(run.train[-1] < 0.1 * run.train[0]), int(run.steps[-1])
        (True, 200)
    """
    wbar, M, b, alpha, eps = _checked_state(wbar, M, b, alpha, eps)
    X, y = real_tensor("X", X, 2).to(b), real_tensor("y", y, 1).to(b)
    if X.shape != (len(y), len(b)):
        raise ValueError(f"X must have shape ({len(y)}, {len(b)}) for these y and b, got {tuple(X.shape)}")
    eta, steps = checked_float("eta", eta, above=0.0), checked_integer("steps", steps, 1)
    wanted = {
        0,
        steps,
        *(_log_spaced(steps) if record is None else (checked_integer("record", r, 0) for r in record)),
    }
    rows: list[tuple[int, Tensor, LossTerms, Tensor, Tensor]] = []
    for step in range(steps + 1):
        d = alpha * (X @ wbar + eps / 2 * ((X @ M) * X).sum(1)) - y
        if step in wanted:
            rows.append((step, d.square().mean(), _terms(wbar, M, b, alpha, eps), wbar, M))
            if not bool(rows[-1][2].total.isfinite()) or not bool(rows[-1][1].isfinite()):
                raise ValueError(
                    f"eta={eta} is unstable: the loss is not finite at step {step}; try 0.3 D / alpha^2"
                )
            if not keep and len(rows) > 1:
                rows[-2] = (*rows[-2][:3], wbar[:0], M[:0])
        if step < steps:
            wbar, M = _stepped(X, d, wbar, M, eps, eta * alpha)
    return _trajectory(rows)


def _stepped(X: Tensor, d: Tensor, wbar: Tensor, M: Tensor, eps: float, A: float) -> tuple[Tensor, Tensor]:
    """One step of gradient descent on the statistics."""
    weighted = X * d[:, None]
    g, S = weighted.mean(0), X.T @ weighted / len(X)
    turned, product = S @ wbar, S @ M
    mixed, outer = torch.outer(g, wbar), torch.outer(g, turned)
    first = mixed + mixed.T + eps * (product + product.T)
    second = torch.outer(g, g) + eps * (outer + outer.T) + eps**2 * (product @ S)
    return wbar - A * (g + eps * turned), M - A * first + A**2 * second


def _trajectory(rows: Sequence[tuple[int, Tensor, LossTerms, Tensor, Tensor]]) -> SuffTrajectory:
    def series(pick: Callable[[LossTerms], Tensor]) -> Tensor:
        return torch.stack([pick(row[2]) for row in rows])

    return SuffTrajectory(
        steps=torch.tensor([row[0] for row in rows]),
        train=torch.stack([row[1] for row in rows]),
        test=series(lambda terms: terms.total),
        linear_power=series(lambda terms: terms.linear_power),
        misalignment=series(lambda terms: terms.misalignment),
        variance=series(lambda terms: terms.variance),
        alignment=series(lambda terms: terms.alignment),
        wbar=torch.stack([row[3] for row in rows if len(row[3])]),
        M=torch.stack([row[4] for row in rows if len(row[4])]),
    )


def population_flow(
    wbar: Tensor,
    M: Tensor,
    b: Tensor,
    alpha: float,
    eps: float,
    times: Sequence[float] | Tensor,
    *,
    rtol: float = 1e-7,
) -> PopulationTrajectory:
    """Gradient flow on infinitely many samples; time is eta times the step.

    In the recursion of `suff_gd` g -> alpha wbar / D and S -> (Tr Q I + 2 Q) / (2 D^2), Q = alpha eps M - b b^T,
    without the terms in A^2. From wbar = 0 and M = I it stays within M = m_perp I + (m_par - m_perp) b b^T / D.

    Args:
        wbar: (D,) mean weight at time 0.
        M: (D, D) second moment at time 0.
        b: (D,) target direction, |b|^2 = D.
        alpha: Output scale, greater than 0.
        eps: Curvature of the activation; not 0.
        times: (R,) rising, from 0 on.
        rtol: Relative tolerance of the Runge-Kutta steps.

    Returns:
        The state and its loss at `times`.

    Raises:
        ValueError: If shapes disagree, `eps` is 0, times do not rise, or the flow is not finite.

    Examples:
        >>> b = torch.full((4,), 1.0, dtype=torch.float64)
        >>> start = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        >>> flow = population_flow(*start, b, alpha=1.0, eps=0.5, times=[0.0, 400.0])
        >>> flow.test[0].item() > 1e3 * flow.test[1].item()
        True
    """
    wbar, M, b, alpha, eps = _checked_state(wbar, M, b, alpha, eps)
    moments = torch.as_tensor(times, dtype=torch.float64).flatten()
    if (
        not len(moments)
        or bool((moments.diff() <= 0).any())
        or bool(moments[0] < 0)
        or not bool(moments.isfinite().all())
    ):
        raise ValueError("times must be finite, rising, and from 0 on")
    rtol = checked_float("rtol", rtol, above=0.0)
    D = len(b)
    target, unit = torch.outer(b, b), torch.eye(D, dtype=M.dtype, device=M.device)

    def slope(state: Tensor) -> Tensor:
        mean, moment = state[0], state[1:]
        Q = alpha * eps * moment - target
        g, S = alpha * mean / D, (Q.trace() * unit + 2 * Q) / (2 * D**2)
        mixed, product = torch.outer(g, mean), S @ moment
        change = mixed + mixed.T + eps * (product + product.T)
        return -alpha * torch.cat([(g + eps * S @ mean)[None], change])

    states, state, now, step = [], torch.cat([wbar[None], M]), 0.0, 0.01 * D
    for moment in moments.tolist():
        state, step = _integrated(slope, state, now, moment, step, rtol)
        now = moment
        states.append(state)
    found = [_terms(one[0], one[1:], b, alpha, eps) for one in states]
    return PopulationTrajectory(
        times=moments,
        test=torch.stack([terms.total for terms in found]),
        alignment=torch.stack([terms.alignment for terms in found]),
        wbar=torch.stack([one[0] for one in states]),
        M=torch.stack([one[1:] for one in states]),
    )


def _integrated(
    slope: Callable[[Tensor], Tensor], state: Tensor, now: float, end: float, step: float, rtol: float
) -> tuple[Tensor, float]:
    """Runge-Kutta of order 4 with two half steps against one whole."""
    while now < end:
        taken = min(step, end - now)
        whole = _runge_kutta(slope, state, taken)
        half = _runge_kutta(slope, _runge_kutta(slope, state, taken / 2), taken / 2)
        error = float((whole - half).norm() / half.norm().clamp(min=1e-300)) / 15
        if not math.isfinite(error):
            step = taken / 10
            if step < 1e-12 * end:
                raise ValueError("wbar, M or alpha is so large that the flow is not finite")
            continue
        longer = taken * min(4.0, max(0.1, 0.9 * (rtol / max(error, 1e-30)) ** 0.2))
        if error > rtol:
            step = longer
            continue
        state, now = half + (half - whole) / 15, end if taken == end - now else now + taken
        step = max(step, longer)
    return state, step


def _runge_kutta(slope: Callable[[Tensor], Tensor], state: Tensor, step: float) -> Tensor:
    first = slope(state)
    second = slope(state + step / 2 * first)
    third = slope(state + step / 2 * second)
    return state + step / 6 * (first + 2 * second + 2 * third + slope(state + step * third))


def _log_spaced(steps: int, decade: int = 20) -> set[int]:
    number = int(decade * math.log10(steps)) + 1
    return {round(10 ** (i / decade)) for i in range(number)}


def _checked_state(
    wbar: Any, M: Any, b: Any, alpha: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    b = wide(real_tensor("b", b, 1))
    wbar, M = real_tensor("wbar", wbar, 1).to(b), real_tensor("M", M, 2).to(b)
    D = len(b)
    if wbar.shape != (D,) or M.shape != (D, D):
        raise ValueError(
            f"wbar and M must have {D} dimensions as b, got {tuple(wbar.shape)} and {tuple(M.shape)}"
        )
    if bool((M - M.T).abs().max() > 1e-4 * M.abs().max()):
        raise ValueError("M must be symmetric")
    if not math.isclose(float(b.square().sum()), D, rel_tol=1e-3):
        raise ValueError(f"b must have squared norm {D} (its dimension), got {float(b.square().sum()):.4g}")
    alpha, eps = checked_float("alpha", alpha, above=0.0), checked_float("eps", eps)
    if eps == 0:
        raise ValueError("eps must not be 0: a linear activation cannot learn the quadratic target")
    return wbar, M, b, alpha, eps
