"""Real series: verified modes against Hankel DMD, persistence and the seasonal mean, on the last fifth."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from koopmanlimits.estimator import VerifiedKoopman

NAMES = ("sunspots", "co2", "elnino")
LEADS = 12
_DELAYS = {"sunspots": 44, "co2": 24, "elnino": 24}
_EPS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
_TRUNCATE = (1e-8, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)  # the rank of Hankel DMD, by its singular values


@dataclass
class Forecasts:
    """Errors on the held-out part, in units of the training part's standard deviation."""

    name: str
    rmse: dict[str, float]
    by_lead: dict[str, list[float]]
    coverage: float
    band: float
    kept: int
    total: int
    example: dict[str, list[float]]


def series(name: str) -> tuple[Tensor, int]:
    """One of statsmodels' series and its season, in steps: yearly sunspots, monthly CO2, monthly El Nino.

    Only the data file is read; statsmodels itself is not imported.

    Raises:
        ImportError: If statsmodels is not installed.
    """
    found = importlib.util.find_spec("statsmodels")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the demo needs statsmodels' data files: pip install 'koopmanlimits[demo]'")
    path = Path(next(iter(found.submodule_search_locations))) / "datasets" / name / f"{name}.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    if name == "sunspots":
        return torch.tensor([float(row[1]) for row in rows], dtype=torch.float64), 11
    if name == "elnino":
        return torch.tensor([float(v) for row in rows for v in row[1:]], dtype=torch.float64), 12
    return _monthly(rows), 12


def compare(name: str) -> Forecasts:
    """Fit on four fifths, forecast 1..12 steps from every origin in the last fifth."""
    values, season = series(name)
    split = int(0.8 * len(values))
    mean, spread = values[:split].mean(), values[:split].std()
    x = ((values - mean) / spread)[:, None]
    delays = _DELAYS[name]
    verified = _tuned(lambda eps: _verified(delays, eps), _EPS, x[:split])
    everything = _tuned(lambda truncate: _hankel(delays, truncate), _TRUNCATE, x[:split])
    origins = range(split, len(x) - LEADS + 1)
    truth = torch.stack([x[t : t + LEADS, 0] for t in origins])
    bound = verified.forecast(x[:split], LEADS).error_bound[:, 0]
    outputs = {
        "verified modes": _rolled(verified, x, origins),
        "Hankel DMD": _rolled(everything, x, origins),
        "persistence": torch.stack([x[t - 1, 0].expand(LEADS) for t in origins]),
        "same season before": torch.stack([x[t - season + torch.arange(LEADS) % season, 0] for t in origins]),
    }
    errors = {method: (output - truth) for method, output in outputs.items()}
    last = len(origins) // 2
    return Forecasts(
        name=name,
        rmse={method: float(e.square().mean().sqrt()) for method, e in errors.items()},
        by_lead={method: e.square().mean(0).sqrt().tolist() for method, e in errors.items()},
        coverage=100 * float((errors["verified modes"].abs() <= bound).double().mean()),
        band=float(bound.mean()),
        kept=len(verified.modes_),
        total=len(verified.all_modes_),
        example={
            "observed": truth[last].tolist(),
            "verified modes, forecast": outputs["verified modes"][last].tolist(),
            "lower bound": (outputs["verified modes"][last] - bound).tolist(),
            "upper bound": (outputs["verified modes"][last] + bound).tolist(),
            "Hankel DMD, forecast": outputs["Hankel DMD"][last].tolist(),
        },
    )


# --- pieces ----------------------------------------------------------------------------------------


def _verified(delays: int, eps: float) -> VerifiedKoopman:
    return VerifiedKoopman(delays=delays, eps=eps, holdout=0.25, ridge=1e-4)


def _hankel(delays: int, truncate: float) -> VerifiedKoopman:
    return VerifiedKoopman(delays=delays, method="edmd", holdout=0.0, ridge=1e-4, truncate=truncate)


def _tuned(make: Callable[[float], VerifiedKoopman], choices: Sequence[float], x: Tensor) -> VerifiedKoopman:
    """Fitted with the choice that forecasts the last quarter of the training part best; no held-out value is seen."""
    split = int(0.75 * len(x))
    origins = range(split, len(x) - LEADS + 1)
    truth = torch.stack([x[t : t + LEADS, 0] for t in origins])
    scores: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a threshold that only the constant passes loses anyway
        for choice in choices:
            try:
                model = make(choice).fit(x[:split])
            except ValueError:  # no mode passes
                continue
            scores[choice] = float((_rolled(model, x, origins) - truth).square().mean())
        return make(min(scores, key=scores.__getitem__)).fit(x)


def _rolled(model: VerifiedKoopman, x: Tensor, origins: range) -> Tensor:
    """(origins, LEADS) forecasts from the window before each origin, all windows together."""
    windows = torch.stack([x[t - model.delays : t] for t in origins])
    mean: Tensor = model.forecast(windows, LEADS).mean
    return mean[..., 0]


def _monthly(rows: list[list[str]]) -> Tensor:
    """Weekly values with gaps to monthly means; an empty month is the mean of its neighbours."""
    months: dict[int, list[float]] = {}
    for day, value in rows:
        year, month = int(day[:4]), int(day[4:6])
        months.setdefault(12 * year + month, [])
        if value.strip():
            months[12 * year + month].append(float(value))
    means = [sum(v) / len(v) if v else None for _, v in sorted(months.items())]
    filled = []
    for i in range(len(means)):
        before = next(m for m in reversed(means[: i + 1]) if m is not None)
        after = next(m for m in means[i:] if m is not None)
        filled.append((before + after) / 2)
    return torch.tensor(filled, dtype=torch.float64)
