"""Noise levels: the grid, how fine it is at each step, and how often each of its intervals is trained."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseRange:
    """The noise levels between which a consistency model is defined.

    Args:
        sigma_min: Smallest noise; there the model is the identity.
        sigma_max: Largest noise; the data are invisible under it.
        rho: Exponent of the grid; larger puts more points at small noise.
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: If not 0 < sigma_min < sigma_max, or rho or sigma_data is not positive.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        for name in ("rho", "sigma_data"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def as_tuple(self) -> tuple[float, ...]:
        """sigma_min, sigma_max, rho and sigma_data."""
        return astuple(self)


def karras_boundaries(
    n: int,
    noise_range: NoiseRange | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Divide the noise range into n - 1 intervals.

    sigma_i = (sigma_min^(1/rho) + (i-1)/(n-1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho
    (arXiv 2310.14189, section 2), smallest first. The grid of 2n - 1 points contains that of n.

    Args:
        n: Number of boundaries.
        noise_range: The range; the paper's if None.
        device: Where to put them; torch's default device if None.
        dtype: Their dtype; they are computed in float64.

    Returns:
        (n,) strictly increasing noise levels with the exact ends sigma_min and sigma_max.

    Raises:
        ValueError: If n < 2.
        TypeError: If n is no whole number.

    Examples:
        >>> karras_boundaries(3, NoiseRange(sigma_min=1.0, sigma_max=9.0, rho=2.0))
        tensor([1., 4., 9.])
    """
    n = whole("n", n)
    if n < 2:
        raise ValueError(f"n must be at least 2 (one interval), got {n}")
    rng = noise_range or NoiseRange()
    roots = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")  # some accelerators have no float64
    low, high = rng.sigma_min ** (1 / rng.rho), rng.sigma_max ** (1 / rng.rho)
    sigmas = (low + roots * (high - low)) ** rng.rho
    sigmas[0], sigmas[-1] = rng.sigma_min, rng.sigma_max
    return sigmas.to(device=_resolved(device), dtype=dtype)


def curriculum(step: int, total: int, s0: int = 10, s1: int = 1280) -> int:
    """Number of boundaries at a training step: doubling in stages of equal length.

    N(k) = min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1))
    (arXiv 2310.14189, section 3.4).

    Args:
        step: k in 0..K.
        total: K, the length of the training.
        s0: Intervals of the first stage.
        s1: Intervals of the last stage.

    Raises:
        ValueError: If the step is outside 0..total or not 1 <= s0 <= s1.
        TypeError: If one of them is no whole number.

    Examples:
        >>> [curriculum(step, total=800) for step in (0, 100, 700, 800)]
        [11, 21, 1281, 1281]
    """
    step, total, s0, s1 = _checked_schedule(step, total, s0, s1)
    stage_length = max(int(total / (math.log2(s1 // s0) + 1)), 1)
    doublings = min(step // stage_length, s1.bit_length())
    return min(s0 << doublings, s1) + 1


def legacy_curriculum(step: int, total: int, s0: int = 2, s1: int = 150) -> int:
    """Number of boundaries in the original consistency training.

    N(k) = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1 (arXiv 2303.01469, appendix C).

    Args:
        step: k in 0..K.
        total: K, the length of the training.
        s0: Where the schedule starts.
        s1: Where it ends.

    Raises:
        ValueError: As `curriculum`.
        TypeError: As `curriculum`.
    """
    step, total, s0, s1 = _checked_schedule(step, total, s0, s1)
    return math.ceil(math.sqrt(step / total * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def legacy_ema(n: int, mu0: float = 0.95, s0: int = 2) -> float:
    """Decay of the teacher in the original consistency training, exp(s0 ln mu0 / n).

    Args:
        n: Number of boundaries at this step.
        mu0: Decay at the first step (0.95 for L2, 0.9 for LPIPS).
        s0: The s0 of `legacy_curriculum`.

    Raises:
        ValueError: If n < 2 or mu0 is not in (0, 1).
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if not 0 < mu0 < 1:
        raise ValueError(f"mu0 must be between 0 and 1, got {mu0}")
    return math.exp(s0 * math.log(mu0) / n)


def lognormal_index_probs(sigmas: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """Probability of training each interval: a normal law of ln sigma, discretised.

    p(i) ~ erf((ln sigma_{i+1} - mean) / (sqrt(2) std)) - erf((ln sigma_i - mean) / (sqrt(2) std))
    (arXiv 2310.14189, equation 10).

    Args:
        sigmas: (n,) strictly increasing noise levels.
        mean: P_mean, of ln sigma.
        std: P_std, of ln sigma.

    Returns:
        (n - 1,) probabilities, float64.

    Raises:
        ValueError: If std is not positive, the levels do not increase, or none of them gets any weight.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    if sigmas.dim() != 1 or len(sigmas) < 2 or not bool((sigmas.diff() > 0).all()) or not bool(sigmas[0] > 0):
        raise ValueError(f"sigmas must be at least two increasing positive levels, got {tuple(sigmas.shape)}")
    weights = torch.erf((sigmas.double().log() - mean) / (math.sqrt(2) * std)).diff()
    if not bool(weights.sum() > 0):
        raise ValueError(f"mean and std must put weight between the sigmas, got {mean} and {std}")
    return weights / weights.sum()


def sample_indices(probs: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw interval indices by inverting the distribution function.

    Args:
        probs: (n - 1,) probabilities, in any scale.
        size: How many.
        generator: Source of randomness, on the device of `probs`.

    Returns:
        (size,) int64 in 0..n-2; i stands for the interval from sigmas[i] to sigmas[i + 1].
    """
    return _invert(_distribution(probs), size, generator)


class Stage:
    """Everything that stays the same while the grid does: build it once for each number of boundaries.

    Args:
        n: Number of boundaries.
        noise_range: The range; the paper's if None.
        index_probs: (n - 1,) probabilities of the intervals; `lognormal_index_probs` if None.
        device: Where it is used; torch's default device if None.
        dtype: Dtype of the levels, float32 or float64: neighbours of a fine grid are one number in a shorter one.

    Attributes:
        sigmas: (n,) noise levels.
        inverse_gaps: (n - 1,) the weights 1 / (sigma_{i+1} - sigma_i).

    Raises:
        ValueError: If n < 2, `index_probs` is not n - 1 finite non-negative numbers with a positive sum, or the
            dtype is a shorter one.
    """

    def __init__(
        self,
        n: int,
        noise_range: NoiseRange | None = None,
        index_probs: Tensor | Sequence[float] | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.noise_range = noise_range or NoiseRange()
        with torch.inference_mode(False):  # it outlives a validation in inference mode
            sigmas = karras_boundaries(n, self.noise_range, dtype=torch.float64, device="cpu")
            probs = (
                lognormal_index_probs(sigmas)
                if index_probs is None
                else torch.as_tensor(index_probs).detach().double().cpu()
            )
            self.n = len(sigmas)
            if probs.shape != (self.n - 1,) or not bool(
                probs.isfinite().all() and (probs >= 0).all() and probs.any()
            ):
                raise ValueError(
                    f"index_probs must be {self.n - 1} non-negative numbers with a positive sum, got {index_probs}"
                )
            device = _resolved(device)
            self.sigmas = sigmas.to(device=device, dtype=dtype)
            self.inverse_gaps = (1 / sigmas.diff()).to(device=device, dtype=dtype)
            self._levels = torch.stack([self.sigmas[:-1], self.sigmas[1:], self.inverse_gaps])
            # float32 resolves 1280 intervals well, and some accelerators have no float64.
            self._distribution = _distribution(probs).to(device=device, dtype=dtype)

    def sample_indices(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (size,) interval indices."""
        return _invert(self._distribution, size, generator)

    def intervals(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lower and the upper level and the inverse gap, (B,) each, of intervals (B,)."""
        lower, upper, inverse_gap = self._levels.index_select(1, index).unbind()
        return lower, upper, inverse_gap


def whole(name: str, value: Any) -> int:
    """An int, from whatever counts as one: NumPy's, a tensor's, a float without a fraction."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def _resolved(device: torch.device | str | int | None) -> torch.device | str | int:
    return torch.get_default_device() if device is None else device


def _distribution(probs: Tensor) -> Tensor:
    """The distribution function; from the last possible interval on it is exactly 1, so that no draw passes it."""
    below = probs.double().cumsum(0)
    return below / below[-1]


def _invert(distribution: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    # Not `torch.rand`, which does not compile for batches of several sizes.
    uniform = torch.empty(size, device=distribution.device, dtype=distribution.dtype).uniform_(
        generator=generator
    )
    return torch.searchsorted(distribution, uniform, right=True)


def _checked_schedule(step: int, total: int, s0: int, s1: int) -> tuple[int, int, int, int]:
    step, total, s0, s1 = whole("step", step), whole("total", total), whole("s0", s0), whole("s1", s1)
    if total < 1 or not 0 <= step <= total:
        raise ValueError(f"step must be in 0..total with total >= 1, got step {step} of {total}")
    if not 1 <= s0 <= s1:
        raise ValueError(f"s0 and s1 must satisfy 1 <= s0 <= s1, got {s0} and {s1}")
    return step, total, s0, s1
