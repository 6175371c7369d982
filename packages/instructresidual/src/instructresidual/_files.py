"""Safetensors files by ranges: read and written piece by piece, neither mapped nor held whole.

A mapped page counts as resident memory as soon as it is touched, so that a mapped checkpoint of any size ends up
resident; ranges that are read and let go do not.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructresidual._checks import checked_count

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_EXCHANGE, _FROM_HERE = 2, -100  # Linux: RENAME_EXCHANGE, AT_FDCWD


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: its file, dtype, shape and first byte."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Read elements `first` to `last` of the flattened tensor, (last - first,)."""
        found = torch.empty((prod(self.shape) if last is None else last) - first, dtype=self.dtype)
        if found.numel():
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start + first * found.itemsize)
                _fill(file, memory_of(found))
        return found


def read_header(file: Path) -> dict[str, Slot]:
    """Find every tensor of a safetensors file.

    Raises:
        ValueError: If it is no safetensors file, is cut short, or has a dtype that torch has not.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{file} is not a whole safetensors file: its header does not fit its {size} bytes"
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} is not a safetensors file: its header is not JSON") from error
    header.pop("__metadata__", None)
    slots = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{file}: {name} is of dtype {entry['dtype']}: dequantise the checkpoint first")
        if 8 + length + end > size:
            raise ValueError(f"{file} is cut short: {name} ends at byte {8 + length + end} of {size}")
        slots[name] = Slot(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start)
    return slots


class ShardWriter:
    """Write tensors of a known layout in any order and in pieces, from several threads.

    Args:
        folder: Where the shards go.
        layout: Dtype and shape of every tensor.
        stem: `model` gives `model.safetensors`, or `model-00001-of-00002.safetensors` and an index.
        max_shard_bytes: A shard holds at most so much, or one tensor.
    """

    def __init__(
        self,
        folder: Path,
        layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        stem: str,
        max_shard_bytes: int,
    ) -> None:
        self._slots: dict[str, tuple[int, int, int]] = {}  # file descriptor, first byte, bytes an element
        self._files: list[int] = []
        shards = _shards(layout, max_shard_bytes)
        self.names = [
            f"{stem}.safetensors"
            if len(shards) == 1
            else f"{stem}-{index:05}-of-{len(shards):05}.safetensors"
            for index in range(1, len(shards) + 1)
        ]
        for name, shard in zip(self.names, shards, strict=True):
            self._create(folder / name, shard)
        if len(shards) > 1:
            weight_map = {
                key: name for name, shard in zip(self.names, shards, strict=True) for key in sorted(shard)
            }
            total = sum(dtype.itemsize * prod(shape) for dtype, shape in layout.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _create(self, path: Path, shard: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in shard.items():
            start, end = end, end + dtype.itemsize * prod(shape)
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._files.append(descriptor)
        _write_at(descriptor, len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(descriptor, 8 + len(text) + end)
        for name, (dtype, _) in shard.items():
            self._slots[name] = (descriptor, 8 + len(text) + header[name]["data_offsets"][0], dtype.itemsize)

    def write(self, name: str, first: int, piece: Tensor) -> None:
        """Write a piece (n,) of the layout's dtype from element `first` of the flattened tensor on."""
        descriptor, start, itemsize = self._slots[name]
        if piece.numel():
            piece = piece.detach().cpu().contiguous()
            _write_at(descriptor, memory_of(piece), start + first * itemsize)

    def close(self) -> None:
        """Bring everything to the disk."""
        for descriptor in self._files:
            os.fsync(descriptor)
        self.abandon()

    def abandon(self) -> None:
        """Close the files as they are."""
        while self._files:
            os.close(self._files.pop())


@contextmanager
def whole_or_not(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `out` in one step, and only if nothing is raised.

    Whatever kills the process before that step, `out` is as it was; a folder `.NAME.partial-*` may remain beside it.

    Raises:
        ValueError: If `out` is there already, and `overwrite` is false or it holds what nobody here has written.
    """
    out = out.resolve()
    _check_replaceable(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        draft.chmod(0o777 & ~_umask())
        yield draft
        _publish(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def in_threads(work: Callable[[str], Any], names: list[str], num_workers: int) -> list[Any]:
    """Do something with every name, in threads, and give the results in order; the first error ends it."""
    if checked_count("num_workers", num_workers) == 1:
        return [work(name) for name in names]
    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(work, name) for name in names]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"out must not exist yet, got {out}; pass overwrite=True to replace it")
    if not out.is_dir() or not any(out.glob("*.safetensors")) or any(path.is_dir() for path in out.iterdir()):
        raise ValueError(f"out must be a folder of safetensors and no folders to be replaced, got {out}")


def _publish(draft: Path, out: Path) -> None:
    for path in draft.iterdir():
        _sync(path)
    _sync(draft)
    if not out.exists():
        draft.rename(out)
    elif not _exchange(draft, out):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
        out.rename(old)
        draft.rename(out)
        shutil.rmtree(old)
    _sync(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step where the system can: Linux, on most file systems."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_FROM_HERE, paths[0], _FROM_HERE, paths[1], _EXCHANGE) == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _shards(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], max_shard_bytes: int
) -> list[dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """Split a layout in its order; inside of a shard wide dtypes come first, which keeps all of them aligned."""
    shards: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    room = max_shard_bytes
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize * prod(shape)
        if size > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = (dtype, shape)
        room -= size
    return [dict(sorted(shard.items(), key=lambda item: -item[1][0].itemsize)) for shard in shards]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in place."""
    size = tensor.numel() * tensor.itemsize
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def _fill(file: Any, memory: memoryview) -> None:
    while memory:
        count = file.readinto(memory)
        if not count:
            raise ValueError(f"{file.name} ended {len(memory)} bytes too early")
        memory = memory[count:]


def _write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
