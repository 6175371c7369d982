"""One step of a stochastic differential equation with diagonal noise, and its error estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from localregde._checks import checked_choice, checked_number, checked_shape, checked_state
from localregde.steps import as_step, as_time, combination, error_norm, evaluate, work_dtype

__all__ = ["StochasticStep", "local_reg_sde", "local_step_sde"]

Field = Callable[[Tensor, Tensor], Tensor]


class StochasticStep(NamedTuple):
    """What one stochastic step gives.

    Attributes:
        y1: The state after the step, in the shape of `z`.
        drift_error: The estimated error of the drift.
        noise_error: That of the noise.
    """

    y1: Tensor
    drift_error: Tensor
    noise_error: Tensor


def local_reg_sde(
    drift: Field,
    diffusion: Field,
    tau: Tensor | float,
    z: Tensor,
    h: Tensor | float,
    *,
    scheme: str = "lamba",
    atol: float = 1e-2,
    rtol: float = 1e-2,
    delta: float = 1 / 6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The local error estimate of one step of dz = f dt + g dW with diagonal noise (section 3 of the paper).

    R = |h| sqrt(mean ((delta E_drift + E_noise) / (atol + rtol max(|z|, |z_1|)))^2). The state, the time, the step and
    the noise are constants; the gradient runs through the drift and diffusion of this one step.

    Args:
        drift: f(t, z), which returns the shape of `z`.
        diffusion: g(t, z), likewise: the noise is diagonal.
        tau: 0-dim, when the step starts; see `sample_tau` and `insert_time`.
        z: (...) the state there, detached here.
        h: 0-dim, the step, above 0: that of the solver.
        scheme: `"lamba"`: Lamba's Euler-Heun, for Stratonovich equations. `"milstein"`: Milstein with Euler-Maruyama
            embedded, for Ito equations. `"sosri"`: the official code's four stages, for Ito equations.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        delta: Weight of the drift's error.
        generator: Where the noise comes from; torch's own if `None`.

    Returns:
        0-dim regulariser.

    Raises:
        ValueError: If `scheme` is unknown, `h` or a tolerance is not above 0, `z` is empty, an integer or not
            finite, or a field returns another shape.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.ones(2, 3)
        >>> reg = local_reg_sde(lambda t, z: -z, lambda t, z: 0.1 * z, 0.0, z, 0.1, generator=generator)
        >>> reg > 0
        tensor(True)
    """
    checked_choice("scheme", scheme, _SCHEMES)
    checked_state("z", z)
    for name, value in (("h", h), ("atol", atol), ("rtol", rtol)):
        checked_number(name, value, positive=True)
    checked_number("delta", delta)
    state = z.detach()
    step = torch.as_tensor(h, device=z.device, dtype=work_dtype(z)).detach()
    dw, dz = (step.sqrt() * _normal(state, generator) for _ in range(2))
    one = local_step_sde(drift, diffusion, tau, state, step, dw, dz, scheme=scheme)
    error = delta * one.drift_error + one.noise_error
    return error_norm(error, state.to(error.dtype), one.y1.to(error.dtype), atol, rtol) * step


def local_step_sde(
    drift: Field,
    diffusion: Field,
    tau: Tensor | float,
    z: Tensor,
    h: Tensor | float,
    dw: Tensor,
    dz: Tensor,
    *,
    scheme: str = "lamba",
) -> StochasticStep:
    """One step with given noise, differentiable, with the two errors embedded in it.

    Args:
        drift: f(t, z).
        diffusion: g(t, z), diagonal.
        tau: 0-dim, when the step starts.
        z: (...) the state there.
        h: 0-dim, the step, above 0.
        dw: (...) the increment of the Wiener process, of variance h.
        dz: (...) an independent one, used by `"sosri"` alone.
        scheme: `"lamba"`, `"milstein"` or `"sosri"`.

    Returns:
        The new state and the errors, in float32 at least.

    Raises:
        TypeError: If `z` is no tensor.
        ValueError: If `scheme` is unknown, `z` is empty, an integer or complex, `tau` or `h` is not 0-dim, or a field
            or the noise has another shape than `z`.

    Examples:
        >>> step = local_step_sde(
        ...     lambda t, z: 0 * z, lambda t, z: z, 0.0, torch.ones(1), 0.01, torch.tensor([0.1]), torch.zeros(1),
        ...     scheme="milstein",
        ... )
        >>> step.y1  # 1 + dW + (dW^2 - h) / 2
        tensor([1.1000])
    """
    dtype = work_dtype(checked_state("z", z, finite=False))
    dw, dz = (checked_shape(name, noise, z) for name, noise in (("dw", dw), ("dz", dz)))
    return _SCHEMES[checked_choice("scheme", scheme, _SCHEMES)](
        _cast("drift", drift, z.dtype, dtype),
        _cast("diffusion", diffusion, z.dtype, dtype),
        as_time("tau", tau, z).to(dtype),
        z.to(dtype),
        as_step("h", h, z),
        dw.to(dtype),
        dz.to(dtype),
    )


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = torch.device("cpu") if generator is None else generator.device
    return torch.randn(like.shape, dtype=work_dtype(like), generator=generator, device=device).to(like.device)


def _cast(name: str, field: Field, state: torch.dtype, work: torch.dtype) -> Field:
    """A field that is asked in the state's dtype and answers in that of the sums."""
    return lambda t, z: evaluate(field, t.to(state), z.to(state), name).to(work)


def _lamba(f: Field, g: Field, t: Tensor, z: Tensor, h: Tensor, dw: Tensor, dz: Tensor) -> StochasticStep:
    """Lamba's Euler-Heun: the trapezoidal rule for both integrals, an Euler step embedded."""
    slope, noise = f(t, z), g(t, z)
    euler = z + h * slope
    predicted = euler + noise * dw
    y1 = z + h / 2 * (slope + f(t + h, predicted)) + (noise + g(t + h, predicted)) / 2 * dw
    return StochasticStep(
        y1,
        h * (f(t + h, euler) - slope) / 2,
        (g(t, z + noise * h.sqrt()) - noise) / h.sqrt() * dw.square() / 2,
    )


def _milstein(f: Field, g: Field, t: Tensor, z: Tensor, h: Tensor, dw: Tensor, dz: Tensor) -> StochasticStep:
    """Milstein without derivatives: its correction is what Euler-Maruyama misses."""
    slope, noise = f(t, z), g(t, z)
    euler = z + h * slope
    correction = (g(t, euler + noise * h.sqrt()) - noise) / h.sqrt() * (dw.square() - h) / 2
    y1 = euler + noise * dw + correction
    return StochasticStep(y1, h * (f(t + h, euler) - slope) / 2, correction)


# SOSRI: Rackauckas and Nie, Stability-optimized high order methods and stiffness detection for pathwise stiff
# stochastic differential equations (2018). Rows are the stages.
_SOSRI_A0 = (
    (),
    (-0.04199224421316468,),
    (2.842612915017106, -2.0527723684000727),
    (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
)
_SOSRI_A1 = (
    (),
    (0.26204282091330466,),
    (0.20903646383505375, -0.1502377115150361),
    (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
)
_SOSRI_B0 = (
    (),
    (-0.21641093549612528,),
    (1.5336352863679572, 0.26066223492647056),
    (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
)
_SOSRI_B1 = (
    (),
    (-0.5119011827621657,),
    (2.67767339866713, -4.9395031322250995),
    (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
)
_SOSRI_ALPHA = (1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714)
_SOSRI_BETA = (
    (-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
    (0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
    (2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
    (0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
)


def _sosri(f: Field, g: Field, t: Tensor, z: Tensor, h: Tensor, dw: Tensor, dz: Tensor) -> StochasticStep:
    """Rossler's SRI scheme of strong order 1.5 with the coefficients of SOSRI."""
    root = h.sqrt()
    chi1 = (dw.square() - h) / (2 * root)
    chi2 = (dw + dz / 3**0.5) / 2
    chi3 = (dw**3 - 3 * dw * h) / (6 * h)
    drifts, noises = [f(t, z)], [g(t, z)]
    for a0, a1, b0, b1 in zip(_SOSRI_A0[1:], _SOSRI_A1[1:], _SOSRI_B0[1:], _SOSRI_B1[1:], strict=True):
        outer = z + h * combination(a0, drifts) + chi2 * combination(b0, noises)
        inner = z + h * combination(a1, drifts) + root * combination(b1, noises)
        drifts.append(f(t + sum(a0) * h, outer))
        noises.append(g(t + sum(a1) * h, inner))
    noise_error = chi2 * combination(_SOSRI_BETA[2], noises) + chi3 * combination(_SOSRI_BETA[3], noises)
    y1 = z + h * combination(_SOSRI_ALPHA, drifts) + noise_error
    y1 = y1 + dw * combination(_SOSRI_BETA[0], noises) + chi1 * combination(_SOSRI_BETA[1], noises)
    return StochasticStep(y1, h * torch.stack(drifts).sum(0), noise_error)


_SCHEMES: dict[str, Callable[[Field, Field, Tensor, Tensor, Tensor, Tensor, Tensor], StochasticStep]] = {
    "lamba": _lamba,
    "milstein": _milstein,
    "sosri": _sosri,
}
