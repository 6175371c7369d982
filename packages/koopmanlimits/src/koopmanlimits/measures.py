"""Spectral measures: how the content of an observable is spread over the unit circle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from koopmanlimits._checks import at_least, one_of, positive, real, real_or_complex
from koopmanlimits.galerkin import Galerkin

_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "hat": lambda x: 1 - x,
    "cosine": lambda x: (1 + torch.cos(torch.pi * x)) / 2,
    "fourth_order": lambda x: 1 - x**4 * (-20 * x**3 + 70 * x**2 - 84 * x + 35),
    "bump": lambda x: torch.exp(-2 / (1 - x) * torch.exp(-0.109550455106347 / x**4)),
}


def spectral_measure(gal: Galerkin, f: Tensor, theta: Tensor, epsilon: float, *, order: int = 6) -> Tensor:
    """Smoothed density of the spectral measure of an observable, from resolvents.

    For an isometry and a rational kernel of order m with poles `delta_j = 1 + i (2 j / (m + 1) - 1)`, with
    `lambda_j = exp(i theta) (1 + epsilon delta_j)` and `I_j = (H - lambda_j)^(-1) f`,

        nu(theta) = -1/(2 pi) sum_j Re( c_j conj(lambda_j) <I_j, f> + d_j <f, H I_j> ),

    which converges like O(epsilon^m) where the density is smooth (Colbrook and Townsend 2024, section 4).

    Args:
        gal: Galerkin matrices of a measure-preserving system.
        f: (N,) dictionary coefficients of the observable.
        theta: (T,) angles in radians.
        epsilon: Smoothing, an angle; it needs a dictionary that resolves it.
        order: m, from 1 (the Poisson kernel, up to O(epsilon)) to about 10.

    Returns:
        (T,) density per radian; over the circle it integrates to <f, f>.

    Raises:
        ValueError: If f has the wrong length or an argument is out of range.

    Examples:
        >>> from koopmanlimits import Fourier, galerkin
        >>> angle = torch.linspace(0, 2 * torch.pi, 17).double()[:-1, None]
        >>> gal = galerkin(Fourier(1)(angle), Fourier(1)(angle + 1.0))
        >>> theta = torch.linspace(-torch.pi, torch.pi, 401)[:-1].double()
        >>> density = spectral_measure(gal, torch.tensor([0.0, 0.0, 1.0]), theta, epsilon=0.05)
        >>> round(float(theta[density.argmax()]), 2), round(float(density.mean() * 2 * torch.pi), 3)
        (1.01, 1.0)
    """
    f, theta = real_or_complex("f", f, 1), real("theta", theta, 1)
    positive("epsilon", epsilon)
    at_least("order", order, 1)
    if len(f) != gal.num_observables:
        raise ValueError(f"f must have one coefficient per observable ({gal.num_observables}), got {len(f)}")
    matrix = gal.compression.to(torch.complex128)
    u = gal.coordinates(f[:, None].to(torch.complex128))
    poles, c, d = _rational_kernel(order, epsilon)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    density = torch.empty_like(theta)
    for part in torch.arange(len(theta)).split(max(1, 2**22 // (order * matrix.numel()))):
        turned = torch.exp(1j * theta[part])[:, None] * (1 + epsilon * poles.to(theta.device))  # (T, m)
        resolvent = torch.linalg.solve(matrix - turned[..., None, None] * identity, u)[..., 0]
        first = (resolvent.conj() @ u)[..., 0] * turned.conj() * c.to(theta.device)
        second = (resolvent @ matrix.mT @ u.conj())[..., 0] * d.to(theta.device)
        density[part] = -(first + second).real.sum(-1) / (2 * torch.pi)
    return density


def autocorrelation(series: Tensor, max_lag: int) -> Tensor:
    """`a_n = <g, K^n g>` of an observable along one ergodic trajectory, n = 0..max_lag.

    Args:
        series: (T,) values of g, real or complex.
        max_lag: Largest n, below T.

    Returns:
        (max_lag + 1,) averages `1/(T - n) sum_t g(t) conj(g(t + n))`, by fast Fourier transforms.

    Raises:
        ValueError: If the series is not longer than `max_lag`.

    Examples:
        >>> autocorrelation(torch.tensor([1.0, -1.0, 1.0, -1.0]), 2).real.round(decimals=6)
        tensor([ 1., -1.,  1.], dtype=torch.float64)
    """
    series = real_or_complex("series", series, 1)
    at_least("max_lag", max_lag, 0)
    length = len(series)
    if length <= max_lag:
        raise ValueError(f"series must be longer than max_lag = {max_lag}, got {length}")
    transformed = torch.fft.fft(series.to(torch.complex128), 2 * length)
    # sum_t g(t) conj(g(t + n)) is the inverse transform of |g|^2 at -n.
    sums = torch.fft.ifft(transformed.abs() ** 2)[: max_lag + 1].conj()
    return sums / (length - torch.arange(max_lag + 1, device=series.device))


def moment_measure(moments: Tensor, theta: Tensor, *, filter: str = "bump") -> Tensor:
    """Smoothed density of a spectral measure from autocorrelations.

        nu(theta) = 1/(2 pi) sum_{|n| <= Nc} phi(n / Nc) a_n exp(i n theta)

    (Colbrook and Townsend 2024, section 4; the filter sets the order of convergence).

    Args:
        moments: (Nc + 1,) `a_0 .. a_Nc` from `autocorrelation` or from `<g, K^n g>`; a_{-n} is conj(a_n).
        theta: (T,) angles in radians.
        filter: `"hat"` (non-negative), `"cosine"`, `"fourth_order"` or `"bump"` (every order).

    Returns:
        (T,) density per radian; over the circle it integrates to a_0.

    Raises:
        ValueError: If the filter is unknown or there are fewer than two moments.

    Examples:
        >>> moments = torch.exp(-1j * torch.arange(41.0))  # an eigenvalue exp(i)
        >>> theta = torch.linspace(-3, 3, 601).double()
        >>> round(float(theta[moment_measure(moments, theta).argmax()]), 2)
        1.0
    """
    moments, theta = real_or_complex("moments", moments, 1).to(torch.complex128), real("theta", theta, 1)
    one_of("filter", filter, tuple(_FILTERS))
    if len(moments) < 2:
        raise ValueError(f"moments must have at least 2 entries, got {len(moments)}")
    lag = torch.arange(1, len(moments), dtype=torch.float64, device=theta.device)
    x = lag / lag[-1]
    phi = torch.where(x < 1, _FILTERS[filter](x.clamp_max(1 - 1e-12)), 0.0)
    waves = torch.exp(1j * theta[:, None] * lag)
    return (moments[0].real + 2 * (waves @ (phi * moments[1:])).real) / (2 * torch.pi)


def wiener_mass(moments: Tensor, angles: Tensor) -> Tensor:
    """Mass that the spectral measure has at single points: the eigenvalues an observable contains.

    Wiener's lemma, `mu({exp(i angle)}) = lim 1/n sum_{k<n} a_k exp(i k angle)`, in its two-sided Fejer form, which is
    real and never negative for exact moments.

    Args:
        moments: (n,) `a_0 .. a_{n-1}`, as for `moment_measure`.
        angles: (P,) angles in radians.

    Returns:
        (P,) masses; all of them over all eigenvalues sum to at most a_0.

    Raises:
        ValueError: If there are no moments.

    Examples:
        >>> moments = 0.75 * torch.exp(-2j * torch.arange(400.0)) + 0.25
        >>> wiener_mass(moments, torch.tensor([2.0, 0.0, 1.0])).round(decimals=2)
        tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """
    moments, angles = real_or_complex("moments", moments, 1), real("angles", angles, 1)
    if len(moments) == 0:
        raise ValueError("moments must have at least 1 entry")
    count = len(moments)
    lag = torch.arange(count, dtype=torch.float64, device=moments.device)
    hat = torch.where(lag > 0, 2 * (1 - lag / count), 1.0)
    waves = torch.exp(1j * angles[:, None] * lag)
    return (waves @ (hat * moments).to(waves.dtype)).real / count


def rage(
    series: Tensor,
    dimensions: tuple[int, ...] = (1, 10, 20),
    *,
    delays: int = 20,
    spacing: int = 10,
    max_lag: int = 1000,
) -> Tensor:
    """Test for continuous spectrum (Ruelle, Amrein, Georgescu, Enss): does an observable leave every finite space?

        1/(L + 1) sum_{l <= L} ||P_n K^l g||^2 / ||g||^2,

    P_n the projection on the first n functions of an orthonormalised delay dictionary, g without its mean. Decay to
    0 in L (the first limit) for every n (the second) means that g holds no eigenfunction; a plateau measures how
    much of it does (arXiv 2407.06312).

    Args:
        series: (T,) values of g along a trajectory, T > max(max_lag, (delays - 1) spacing).
        dimensions: The n, each at most `delays`.
        delays: Size of the delay dictionary.
        spacing: Time steps between its functions.
        max_lag: Largest L.

    Returns:
        (len(dimensions), max_lag + 1): the average for each n and each L.

    Raises:
        ValueError: If the series is too short or constant, or an n is out of range.

    Examples:
        >>> turning = torch.cos(torch.arange(3000.0))  # an eigenfunction pair: no decay
        >>> float(rage(turning, (2,), delays=2, spacing=1, max_lag=100)[0, -1].round(decimals=3))
        1.0
    """
    series = real_or_complex("series", series, 1)
    at_least("delays", delays, 1)
    at_least("spacing", spacing, 1)
    at_least("max_lag", max_lag, 0)
    for dimension in dimensions:
        at_least("dimensions", dimension, 1)
    if not dimensions or min(dimensions) < 1 or max(dimensions) > delays:
        raise ValueError(f"dimensions must lie in 1..{delays} (delays), got {dimensions}")
    window = len(series) - max(max_lag, (delays - 1) * spacing)
    if window < delays:
        needed = max(max_lag, (delays - 1) * spacing) + delays
        raise ValueError(f"series must have at least {needed} values here, got {len(series)}")
    centred = series - series.mean()
    size = torch.linalg.vector_norm(centred[:window])
    if not float(size) > 0:
        raise ValueError("series must not be constant")
    rows = centred.unfold(0, window, 1)  # row l: K^l g on the window
    basis = torch.linalg.qr(rows[: (delays - 1) * spacing + 1 : spacing].mT).Q
    shares = (rows[: max_lag + 1] @ basis.conj()).abs() ** 2 / size**2  # (L + 1, delays)
    inside = shares.cumsum(dim=1)[:, [n - 1 for n in dimensions]]
    count = torch.arange(1, max_lag + 2, device=series.device)[:, None]
    return (inside.cumsum(dim=0) / count).mT


# --- pieces ----------------------------------------------------------------------------------------


def _rational_kernel(order: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Poles and the two sets of residues of the m-th order kernel on the circle, from Vandermonde systems."""
    j = torch.arange(1, order + 1, dtype=torch.float64)
    poles = torch.complex(torch.ones_like(j), 2 * j / (order + 1) - 1)
    mirrored = -poles.conj() / (1 + epsilon * poles.conj())
    first = torch.zeros(order, dtype=torch.complex128)
    first[0] = 1
    powers = torch.arange(order)[:, None]
    c = torch.linalg.solve(mirrored**powers, first)
    d = torch.linalg.solve(poles**powers, first)
    return poles, c, d
