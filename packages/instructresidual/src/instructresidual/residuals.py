"""The residual itself: what instruction tuning added to every parameter, kept by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from instructresidual import compression
from instructresidual._checks import Scale, checked_choice, checked_count, checked_scale
from instructresidual._files import Slot
from instructresidual.ancestry import Ancestor
from instructresidual.deltas import Combination, Delta, Dense
from instructresidual.naming import Pattern, listed, matcher
from instructresidual.sources import InMemory

INDEX = "residual.json"
SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Tokens:
    """Which token each row of an embedding is for.

    Args:
        base: Token and row, of the base.
        added: Tokens that only the instruct model has, in the order of the copied rows.
    """

    base: Mapping[str, int]
    added: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Residual(Mapping[str, Tensor]):
    """Theta_r = theta_instruct - theta_base by parameter name (arXiv 2410.10739, equation 1).

    A lazy mapping: `found[name]` makes the tensor, reading it from the disk if it lies there. `residual` makes
    one, `load` opens one that was saved. Nothing changes a residual in place.

    Args:
        deltas: One tensor a parameter, in the form it is kept in.
        ancestor: What is known of the base.
        added: Rows (n, width) of tokens that only the instruct model has: copied, as there is nothing to subtract.
        ties: Second names of tied tensors, and the name under which the residual has them.
        renamed: Names of the instruct model, and what the base calls them, where these differ.
        skipped: Buffers and integers that were left out.
        tokens: The tokens of the rows, if tokenizers were given.
        errors: Of what was compressed: ||r' - r|| / ||r|| of every tensor, in the Frobenius norm.
        error: The same of all these tensors together.

    Examples:
        >>> from instructresidual import residual
        >>> base = {"mlp.weight": torch.ones(2, 2), "norm.weight": torch.ones(2)}
        >>> instruct = {"mlp.weight": torch.full((2, 2), 1.5), "norm.weight": torch.ones(2)}
        >>> found = residual(base, instruct)
        >>> found["mlp.weight"].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
        >>> found.norms()
        {'mlp.weight': 1.0, 'norm.weight': 0.0}
        >>> (found.scaled(0.5) + found)["mlp.weight"][0, 0].item()
        0.75
    """

    deltas: Mapping[str, Delta]
    ancestor: Ancestor
    added: Mapping[str, Tensor] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    tokens: Tokens | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0

    def __getitem__(self, name: str) -> Tensor:
        return self.deltas[name].dense()

    def __iter__(self) -> Iterator[str]:
        return iter(self.deltas)

    def __len__(self) -> int:
        return len(self.deltas)

    def __repr__(self) -> str:
        size = sum(prod(shape) for shape in self.shapes.values())
        return f"Residual({len(self)} tensors, {size:,} elements, base {self.ancestor.fingerprint[:12]})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor; nothing is read."""
        return {name: delta.shape for name, delta in self.deltas.items()}

    def files(self) -> set[Path]:
        """The folders it reads from."""
        values = [value for delta in self.deltas.values() for value in delta.sources()]
        return {value.file.parent for value in values if isinstance(value, Slot)}

    def norms(self) -> dict[str, float]:
        """Frobenius norm of every tensor; one piece of 4 MB in memory at a time."""
        return {name: compression.norm(delta) for name, delta in self.deltas.items()}

    def filter(self, include: Pattern | None = None, exclude: Pattern | None = None) -> Residual:
        """Keep some tensors.

        Args:
            include: Groups (`"embed"`, `"attn"`, `"mlp"`, `"norm"`, `"head"`, `"router"`, `"other"`) or regular
                expressions that are searched for in names; one or several. None includes all.
            exclude: The same, of what to leave out.

        Returns:
            A residual that has only these; what it leaves out is not missing when it is applied.

        Raises:
            ValueError: If a pattern is no regular expression, or nothing remains.
        """
        keeps = name_filter(include, exclude)
        deltas = {name: delta for name, delta in self.deltas.items() if keeps(name)}
        if not deltas:
            raise ValueError(f"include={include!r} and exclude={exclude!r} leave nothing of {listed(self)}")
        added = {name: rows for name, rows in self.added.items() if name in deltas}
        errors = {name: error for name, error in self.errors.items() if name in deltas}
        return replace(self, deltas=deltas, added=added, errors=errors)

    def scaled(self, scale: Scale) -> Residual:
        """Multiply by a number, or by one a group; copied rows are weights, not differences, and stay.

        Args:
            scale: A number, or numbers by group or regular expression; tensors that none names keep 1.

        Raises:
            ValueError: If a number is not finite, or a pattern matches nothing.
        """
        factors = checked_scale(scale, self)
        return replace(self, deltas={name: delta.times(factors[name]) for name, delta in self.deltas.items()})

    def __neg__(self) -> Residual:
        if self.added:
            raise ValueError(
                f"a residual with copied rows has no negative: {listed(self.added)}; the base lacks them"
            )
        return self.scaled(-1.0)

    def __add__(self, other: Residual) -> Residual:
        """Add another residual, tensor by tensor; a tensor that one of them lacks counts as zero.

        The sum has this residual's base, so that residual(a, b) + residual(b, c) is residual(a, c).
        """
        if not isinstance(other, Residual):
            return NotImplemented
        if self.added or other.added:
            raise ValueError("residuals with copied rows cannot be added: apply them one after the other")
        deltas = dict(self.deltas)
        for name, delta in other.deltas.items():
            if name in deltas and deltas[name].shape != delta.shape:
                raise ValueError(
                    f"{name} is of shape {deltas[name].shape} in one residual, {delta.shape} in the other"
                )
            terms = [(1.0, deltas[name])] if name in deltas else []
            deltas[name] = Combination([*terms, (1.0, delta)])
        return replace(self, deltas=deltas, errors={}, error=0.0)

    def __sub__(self, other: Residual) -> Residual:
        return self + (-other) if isinstance(other, Residual) else NotImplemented

    def lowrank(self, rank: int, *, generator: torch.Generator | None = None) -> Residual:
        """Replace every matrix by its best approximation of some rank, in factors.

        Exact where the smaller side is at most 256, by a randomised singular value decomposition elsewhere.
        Vectors, and tensors of more than two dimensions, stay as they are.

        Args:
            rank: At least 1; a matrix whose smaller side is less keeps that.
            generator: Source of the random ranges; None draws them from a fixed seed.

        Returns:
            The residual, with `errors`; in memory, as rank x (rows + columns) numbers a matrix.

        Raises:
            ValueError: If `rank` is less than 1.
        """
        rank, seed = checked_count("rank", rank), _seed(generator)

        def compress(name: str, delta: Delta) -> Delta:
            return compression.lowrank(delta, rank, compression.generator_for(name, seed, _device(delta)))

        return self._compressed(compress, lambda delta: len(delta.shape) == 2)

    def sparsify(
        self,
        keep: float,
        *,
        method: str = "magnitude",
        rescale: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Residual:
        """Keep a share of the elements of every tensor, as indices and values.

        Args:
            keep: The share, in (0, 1].
            method: `"magnitude"` keeps the largest, `"random"` any (DARE: Yu et al. 2023).
            rescale: Whether to divide by `keep`; None does so for `"random"`, which is then unbiased.
            generator: Source of the drops; None draws a seed from torch's global state.

        Returns:
            The residual, with `errors`, in memory.

        Raises:
            ValueError: If `keep` or `method` is neither.
        """
        checked_choice("method", method, ("magnitude", "random"))
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {keep}")
        at_random = method == "random"
        seed = _seed(generator, fixed=False) if at_random else 0
        rescale = at_random if rescale is None else rescale

        def compress(name: str, delta: Delta) -> Delta:
            drops = compression.generator_for(name, seed, _device(delta)) if at_random else None
            return compression.sparsify(delta, keep, rescale, drops)

        return self._compressed(compress)

    def quantise(self, bits: int = 8, block: int = 256) -> Residual:
        """Replace every tensor by integers with one scale a block, the largest magnitude in it.

        Args:
            bits: 8, or 4 (two a byte).
            block: Elements a block, even.

        Returns:
            The residual, with `errors`, in memory.

        Raises:
            ValueError: If `bits` or `block` is neither.
        """
        checked_choice("bits", bits, (4, 8))
        block = checked_count("block", block)
        if block % 2:
            raise ValueError(f"block must be even, got {block}")
        return self._compressed(lambda name, delta: compression.quantise(delta, bits, block))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Residual:
        """Hold every tensor as its elements in memory: to apply a residual often, have it where the model is.

        Args:
            device: Where to; None leaves each where it is (the CPU, for files).
            dtype: Of the elements; None keeps each.
        """
        deltas = {
            name: Dense(InMemory(delta.dense().to(device, dtype))) for name, delta in self.deltas.items()
        }
        return replace(self, deltas=deltas)

    def to_peft(
        self,
        path: str | os.PathLike[str],
        *,
        base_model: str | None = None,
        fan_in_fan_out: bool = False,
        strict: bool = True,
        overwrite: bool = False,
    ) -> tuple[str, ...]:
        """Write a LoRA adapter that `peft` and servers open: B A with lora_alpha / r = 1.

        Matrices must be in factors (`lowrank`). What a LoRA adapter cannot hold, vectors above all, is named.

        Args:
            path: The adapter's folder.
            base_model: The name or path of the model it is for, as the adapter's configuration states it.
            fan_in_fan_out: Whether weights lie as (in, out): GPT-2's Conv1D.
            strict: Whether to refuse tensors that do not fit; otherwise those are left out. Tensors that are
                zero throughout are always left out.
            overwrite: Whether an adapter that is there already is replaced, in one step.

        Returns:
            The names that were left out though they are not zero.

        Raises:
            ValueError: If something does not fit and `strict`, nothing fits, or the path is taken.
        """
        from instructresidual.adapters import write_adapter

        return write_adapter(self, Path(path), base_model, fan_in_fan_out, strict, overwrite)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        max_shard_bytes: int = SHARD_BYTES,
        num_workers: int = 2,
    ) -> None:
        """Write a folder of safetensors and JSON, piece by piece; it appears whole or not at all.

        Args:
            path: The folder.
            overwrite: Whether a residual that is there already is replaced, in one step.
            max_shard_bytes: The most bytes a file, unless one tensor has more.
            num_workers: Threads.

        Raises:
            ValueError: If the path is taken, or the residual is read from there.
        """
        from instructresidual.storage import save_residual

        save_residual(self, Path(path), overwrite, max_shard_bytes, num_workers)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Residual:
        """Open a saved residual; tensors are read when asked for, in the pieces asked for.

        Raises:
            ValueError: If the folder holds none, or its files are cut short.
        """
        from instructresidual.storage import load_residual

        return load_residual(Path(path))

    def _compressed(
        self, compress: Callable[[str, Delta], Delta], applies: Callable[[Delta], bool] = lambda delta: True
    ) -> Residual:
        deltas, errors, squares = dict(self.deltas), {}, [0.0, 0.0]
        for name, delta in self.deltas.items():
            if applies(delta) and 0 not in delta.shape:
                deltas[name] = compress(name, delta)
                size, apart = compression.compare(delta, deltas[name])
                errors[name] = apart / size if size else 0.0
                squares = [squares[0] + apart**2, squares[1] + size**2]
        error = (squares[0] / squares[1]) ** 0.5 if squares[1] else 0.0
        return replace(self, deltas=deltas, errors=errors, error=error)


def name_filter(include: Pattern | None, exclude: Pattern | None) -> Callable[[str], bool]:
    """Return a test for names that `include` has, all if None, and `exclude` has not."""
    included, excluded = matcher(include, "include"), matcher(exclude, "exclude")
    return lambda name: (include is None or included(name)) and not excluded(name)


def _device(delta: Delta) -> torch.device:
    return delta.read(0, min(1, prod(delta.shape))).device


def _seed(generator: torch.Generator | None, fixed: bool = True) -> int:
    if generator is None and fixed:
        return 0
    device = generator.device if generator is not None else None
    return int(torch.randint(2**31, (), generator=generator, device=device))
