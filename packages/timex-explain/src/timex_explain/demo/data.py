"""What the demo explains classifiers on: three synthetic sets with known truth, and a real one without."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from timex_explain.synthetic import LabelledSeries, freq_shapes, low_variance, seq_comb

_REAL = "ItalyPowerDemand"
_VARIABLE = "TIMEX_EXPLAIN_DATA"


@dataclass(frozen=True)
class Split:
    """Series (n, T, D) and classes (n,) to train on, to select by, and to be judged on."""

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    truth: Tensor | None = None  # of the test series

    @property
    def num_classes(self) -> int:
        """One more than the largest class."""
        return int(torch.cat([self.train[1], self.test[1]]).max()) + 1

    def to(self, device: torch.device) -> Split:
        """Move everything."""
        train, validation, test = (
            (x.to(device), y.to(device)) for x, y in (self.train, self.validation, self.test)
        )
        truth = None if self.truth is None else self.truth.to(device)
        return Split(self.name, train, validation, test, truth)


def spikes(sizes: tuple[int, int, int], generator: torch.Generator) -> Split:
    """FreqShapes, made anew for each part."""
    return _split("FreqShapes", [freq_shapes(size, generator=generator) for size in sizes])


def quiet_segments(sizes: tuple[int, int, int], length: int, generator: torch.Generator) -> Split:
    """LowVar, made anew for each part."""
    return _split("LowVar", [low_variance(size, length=length, generator=generator) for size in sizes])


def segments(sizes: tuple[int, int, int], length: int, generator: torch.Generator) -> Split:
    """SeqComb-UV, made anew for each part."""
    return _split("SeqComb", [seq_comb(size, length=length, generator=generator) for size in sizes])


def real(generator: torch.Generator) -> Split:
    """Give the daily power demand of Italy (winter or summer), shuffled anew: 500, 96 and 500 of 1,096 days.

    Or the user's own set, from the safetensors file that the environment variable TIMEX_EXPLAIN_DATA
    names, with the tensors `x` (N, T, D) and `y` (N,), cut in the same proportions.
    """
    path = os.environ.get(_VARIABLE)
    if path is not None:
        name, (x, y) = Path(path).stem, _user_set(Path(path))
    else:
        name, (x, y) = _REAL, _bundled_set(_data_folder())
    order = torch.randperm(len(x), generator=generator)
    half, few = round(len(x) * 500 / 1096), round(len(x) * 96 / 1096)
    parts = order.tensor_split([half, half + few])
    train, validation, test = ((x[rows], y[rows]) for rows in parts)
    return Split(name, train, validation, test)


def _split(name: str, parts: list[LabelledSeries]) -> Split:
    train, validation, test = ((part.x, part.y) for part in parts)
    return Split(name, train, validation, test, parts[-1].truth)


def _user_set(path: Path) -> tuple[Tensor, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{_VARIABLE} needs safetensors: pip install 'timex-explain[demo]'") from error
    if not path.is_file():
        raise ValueError(f"{_VARIABLE} must name a safetensors file, got {path}")
    tensors = load_file(path)
    if not {"x", "y"} <= tensors.keys():
        raise ValueError(f"{_VARIABLE} must hold the tensors x and y, got {sorted(tensors)}")
    return tensors["x"].float(), tensors["y"].long()


def _data_folder() -> Path:
    """Find the folder of the sets that sktime and aeon both carry, without their imports of many seconds."""
    for package in ("sktime", "aeon"):
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or []:
            folder = Path(place) / "datasets" / "data" / _REAL
            if folder.is_dir():
                return folder
    raise ImportError("the demo needs the data sets of sktime: pip install 'timex-explain[demo]'")


def _bundled_set(folder: Path) -> tuple[Tensor, Tensor]:
    parts = [read_ts(folder / f"{_REAL}_{part}.ts") for part in ("TRAIN", "TEST")]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def read_ts(path: Path) -> tuple[Tensor, Tensor]:
    """Read series of equal length from a .ts file: a header of # and @ lines, then `sensor:...:sensor:class`.

    Returns:
        (N, T, D) values and (N,) classes, numbered in the order of the header.
    """
    lines = [line.strip() for line in path.read_text().splitlines()]
    header = [line.split() for line in lines if line.lower().startswith("@classlabel")]
    classes = header[0][2:]
    rows = [line.split(":") for line in lines if line and line[0] not in "#@"]
    values = [[[float(value) for value in sensor.split(",")] for sensor in row[:-1]] for row in rows]
    return torch.tensor(values).mT.contiguous(), torch.tensor([classes.index(row[-1]) for row in rows])
