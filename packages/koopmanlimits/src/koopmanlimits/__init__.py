"""Koopman spectra with a warranty: eigenpairs, spectra and forecasts that come with verified errors."""

from importlib.metadata import version as _version

from koopmanlimits.adversaries import Adversary, AnzaiSkew, DiskFlip, DiskTwist, Move
from koopmanlimits.certificates import QuadratureErrors, certified_residual, quadrature_errors
from koopmanlimits.coordinates import POD, pod
from koopmanlimits.dictionaries import RBF, Fourier, Hermite, HyperbolicCross, Identity, Monomials
from koopmanlimits.estimator import VerifiedKoopman
from koopmanlimits.galerkin import Galerkin, GalerkinAccumulator, galerkin, residuals, streaming_galerkin
from koopmanlimits.kernels import (
    KernelDictionary,
    KernelResult,
    kernel_dictionary,
    kernel_error_bounds,
    kernel_resdmd,
    knee,
    make_kernel,
    product_kernel,
)
from koopmanlimits.measures import autocorrelation, moment_measure, rage, spectral_measure, wiener_mass
from koopmanlimits.modes import Forecast, Modes, edmd, forecast, mpedmd, resdmd
from koopmanlimits.snapshots import Snapshots, delay_embed
from koopmanlimits.spectra import (
    VerifiedSpectrum,
    comp_spec,
    complex_grid,
    hausdorff,
    pseudoeigenfunctions,
    pseudospectrum,
)
from koopmanlimits.systems import System, classic_systems, flow
from koopmanlimits.towers import SCI_TABLE, SCIEntry, Tower, TowerStep
from koopmanlimits.verification import Verification, verify

__all__ = [
    "POD",
    "RBF",
    "SCI_TABLE",
    "Adversary",
    "AnzaiSkew",
    "DiskFlip",
    "DiskTwist",
    "Forecast",
    "Fourier",
    "Galerkin",
    "GalerkinAccumulator",
    "Hermite",
    "HyperbolicCross",
    "Identity",
    "KernelDictionary",
    "KernelResult",
    "Modes",
    "Monomials",
    "Move",
    "QuadratureErrors",
    "SCIEntry",
    "Snapshots",
    "System",
    "Tower",
    "TowerStep",
    "Verification",
    "VerifiedKoopman",
    "VerifiedSpectrum",
    "__version__",
    "autocorrelation",
    "certified_residual",
    "classic_systems",
    "comp_spec",
    "complex_grid",
    "delay_embed",
    "edmd",
    "flow",
    "forecast",
    "galerkin",
    "hausdorff",
    "kernel_dictionary",
    "kernel_error_bounds",
    "kernel_resdmd",
    "knee",
    "make_kernel",
    "moment_measure",
    "mpedmd",
    "pod",
    "product_kernel",
    "pseudoeigenfunctions",
    "pseudospectrum",
    "quadrature_errors",
    "rage",
    "resdmd",
    "residuals",
    "spectral_measure",
    "streaming_galerkin",
    "verify",
    "wiener_mass",
]

__version__ = _version("koopmanlimits")
