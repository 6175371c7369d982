"""The evaluation tasks, drawn once, stacked once, kept on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate

from stabilitygap._checks import checked_integer
from stabilitygap.isolation import kept_generators

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class EvalSet:
    """Inputs and targets of all tasks in one stack, sorted by task.

    Args:
        inputs: (N, ...) tensor, or a tuple or mapping of such tensors.
        targets: (N, ...) targets.
        task: (N,) int64, the task of each row, non-decreasing, every task at least once.
        subset: With `resample`, rows of a task that one evaluation takes.
        generator: With `resample`, where the rows are drawn from.

    Raises:
        ValueError: If lengths differ or tasks are missing or out of order.
    """

    inputs: Any
    targets: Tensor
    task: Tensor
    subset: int | None = None
    generator: torch.Generator | None = None
    sizes: tuple[int, ...] = field(init=False)
    target_ranges: tuple[tuple[int, int] | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Count the tasks' rows once, so that no evaluation has to."""
        counts = torch.bincount(self.task).tolist() if self.task.numel() else []
        if not counts or min(counts) == 0 or bool((self.task.diff() < 0).any()):
            raise ValueError("task must be sorted and name every task 0..T-1 at least once")
        for name, tensor in [("inputs", leaf) for leaf in _leaves(self.inputs)] + [("targets", self.targets)]:
            if len(tensor) != len(self.task):
                raise ValueError(
                    f"{name} must have {len(self.task)} rows, one for each in task, got {len(tensor)}"
                )
        integer = not (self.targets.is_floating_point() or self.targets.is_complex())
        parts = self.targets.split(counts)
        ranges = [(int(part.min()), int(part.max())) if integer and part.numel() else None for part in parts]
        object.__setattr__(self, "sizes", tuple(counts))
        object.__setattr__(self, "target_ranges", tuple(ranges))

    @classmethod
    def from_tasks(
        cls,
        tasks: Sequence[Any],
        *,
        subset: int | None = 1000,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        collate: Collate | None = None,
        resample: bool = False,
    ) -> EvalSet:
        """Draw at most `subset` samples of each task, once, and stack them.

        The paper evaluates on at most 1000 samples a task (section 3). A fixed subset makes two evaluations
        differ by the model alone; the standard error of one accuracy is at most 0.5 / sqrt(subset).

        Args:
            tasks: For each task a pair (inputs, targets) of tensors, a `Dataset`, or a `DataLoader`. Items are
                (input, target, ...), what follows being left out, or mappings with `labels`. Inputs may be tuples
                or mappings of tensors.
            subset: Most samples of a task; None takes all. For a `Dataset` only these are loaded; a
                `DataLoader` is read to its end.
            device: Where to keep the stack; None leaves it where it is.
            generator: A CPU generator to draw by. None draws by a copy of torch's global one, which stays
                as it was.
            collate: Makes a batch of a list of a `Dataset`'s items, as a loader's `collate_fn`; padding must give
                every task the same shape.
            resample: Keep all samples and let each evaluation draw its own `subset`, as the official code
                does; needs `generator`. Then "forgetting" contains the noise of sampling.

        Returns:
            The stack.

        Raises:
            ValueError: If there are no tasks, one is empty, its lengths or shapes differ, or `subset` < 1.
            TypeError: If a task is none of the above.

        Examples:
            >>> import torch
            >>> tasks = [(torch.rand(50, 3), torch.randint(2, (50,))) for _ in range(2)]
            >>> EvalSet.from_tasks(tasks, subset=20).sizes
            (20, 20)
        """
        if len(tasks) == 0:
            raise ValueError("tasks must hold at least one task, got none")
        if subset is not None:
            subset = checked_integer("subset", subset, 1)
        if resample and (subset is None or generator is None):
            raise ValueError("resample=True needs a subset and a generator of its own")
        with kept_generators():
            drawn = [
                _read(number, task, None if resample else subset, generator, collate)
                for number, task in enumerate(tasks)
            ]
        counts = torch.tensor([len(targets) for _, targets in drawn])
        stacked = cls(
            _concatenate([inputs for inputs, _ in drawn]),
            _concatenate([targets for _, targets in drawn]),
            torch.repeat_interleave(torch.arange(len(drawn)), counts),
            subset if resample else None,
            generator if resample else None,
        )
        return stacked if device is None else stacked.to(device)

    @property
    def samples(self) -> tuple[int, ...]:
        """Samples of each task in one evaluation."""
        return self.sizes if self.subset is None else tuple(min(size, self.subset) for size in self.sizes)

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.sizes)

    def to(self, device: torch.device | str) -> EvalSet:
        """Return the same set on another device.

        Args:
            device: Where to keep the tensors.

        Returns:
            A new set; the generator of `resample` stays on the CPU.
        """
        moved = tree_map(lambda leaf: leaf.to(device), (self.inputs, self.targets, self.task))
        return EvalSet(moved[0], moved[1], moved[2], self.subset, self.generator)

    def select(self, tasks: Sequence[int]) -> tuple[Any, Tensor, Tensor]:
        """Return inputs, targets and task of some tasks' rows: a view where these are the first ones.

        Args:
            tasks: Increasing task numbers.

        Returns:
            Inputs, targets and task (n,).
        """
        everything = (self.inputs, self.targets, self.task)
        if self.subset is not None:
            rows = self._resampled(tasks)
        elif list(tasks) == list(range(len(tasks))):
            size = sum(self.sizes[: len(tasks)])
            return tree_map(lambda leaf: leaf[:size], everything)
        else:
            rows = torch.isin(self.task, torch.tensor(list(tasks), device=self.task.device)).nonzero()[:, 0]
        return tree_map(lambda leaf: leaf[rows.to(leaf.device)], everything)

    def _resampled(self, tasks: Sequence[int]) -> Tensor:
        starts = [sum(self.sizes[:task]) for task in tasks]
        assert self.subset is not None
        return torch.cat(
            [
                start + torch.randperm(self.sizes[task], generator=self.generator)[: self.subset]
                for start, task in zip(starts, tasks, strict=True)
            ]
        )


@contextmanager
def samples_kept(*rows: Any) -> Iterator[None]:
    """Raise if what runs inside changes evaluation samples in place: the next evaluation would get other ones."""
    leaves = [leaf for leaf in tree_flatten(rows)[0] if not leaf.is_inference()]
    versions = [leaf._version for leaf in leaves]
    yield
    if versions != [leaf._version for leaf in leaves]:
        raise ValueError(
            "the model or score must not change the inputs or targets in place, which are the evaluation set's own: "
            "give forward=lambda model, inputs, task: model(inputs.clone())"
        )


def _leaves(inputs: Any) -> list[Tensor]:
    leaves, _ = tree_flatten(inputs)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(
            f"inputs must be tensors, or a tuple or mapping of tensors, got {type(inputs).__name__}"
        )
    return leaves


def _read(
    number: int, task: Any, subset: int | None, generator: torch.Generator | None, collate: Collate | None
) -> tuple[Any, Tensor]:
    """Inputs and targets of one task, cut to its subset."""
    if isinstance(task, tuple):
        inputs, targets = _checked_pair(number, task)
    elif isinstance(task, DataLoader):
        batches = [_pair(number, batch) for batch in task]
        _checked_size(number, len(batches))
        inputs, targets = (_concatenate(parts, number) for parts in zip(*batches, strict=True))
    elif isinstance(task, IterableDataset):
        items = list(task)
        _checked_size(number, len(items))
        inputs, targets = _pair(number, _collated(number, items, collate))
    elif hasattr(task, "__getitem__") and hasattr(task, "__len__") and not isinstance(task, (Mapping, str)):
        size = _checked_size(number, len(task))
        rows = _draw(size, subset, generator).tolist()
        inputs, targets = _pair(number, _collated(number, [task[row] for row in rows], collate))
        return inputs, targets
    else:
        raise TypeError(
            f"task {number} must be a pair (inputs, targets), a Dataset or a DataLoader, got {type(task).__name__}"
        )
    drawn = _draw(len(targets), subset, generator)
    return tree_map(lambda leaf: leaf[drawn.to(leaf.device)], (inputs, targets))


def _checked_pair(number: int, task: tuple[Any, ...]) -> tuple[Any, Tensor]:
    if len(task) != 2:
        raise TypeError(f"task {number} must be a pair (inputs, targets), got a tuple of {len(task)}")
    inputs, targets = task[0], torch.as_tensor(task[1])
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    elif not isinstance(inputs, (Tensor, tuple)):
        inputs = torch.as_tensor(inputs)
    sizes = {len(leaf) for leaf in _leaves(inputs)} | {len(targets)}
    if len(sizes) > 1:
        raise ValueError(f"task {number}: inputs and targets must have the same length, got {sorted(sizes)}")
    _checked_size(number, len(targets))
    return inputs, targets


def _checked_size(number: int, size: int) -> int:
    if size == 0:
        raise ValueError(f"task {number} must have at least one sample, got none")
    return size


def _draw(size: int, subset: int | None, generator: torch.Generator | None) -> Tensor:
    """Rows of the subset, in their order."""
    if subset is None or subset >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=generator)[:subset].sort().values


def _collated(number: int, items: list[Any], collate: Collate | None) -> Any:
    if collate is not None:
        return collate(items)
    try:
        # Lists of numbers, as tokenizers give them, would be transposed by the default.
        return default_collate([_plain(item) if isinstance(item, Mapping) else item for item in items])
    except RuntimeError as error:
        raise ValueError(
            f"task {number}: the samples must have one shape, or collate must pad them ({error})"
        ) from None


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: torch.as_tensor(value) for key, value in item.items()}


def _pair(number: int, batch: Any) -> tuple[Any, Tensor]:
    """Inputs and targets of a collated batch."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        if "labels" not in inputs:
            raise ValueError(f"task {number}: mappings must have 'labels', got {sorted(inputs)}")
        return inputs, torch.as_tensor(inputs.pop("labels"))
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        inputs = dict(batch[0]) if isinstance(batch[0], Mapping) else batch[0]
        # The default collation turns a sample's tuple of inputs into a list.
        return tuple(inputs) if isinstance(inputs, list) else inputs, torch.as_tensor(batch[1])
    raise TypeError(
        f"task {number} must yield (input, target) or mappings with 'labels', got {type(batch).__name__}"
    )


def _concatenate(parts: Iterable[Any], number: int | None = None) -> Any:
    """Stack tensors, or tuples and mappings of tensors, along the rows."""
    where = "tasks" if number is None else f"task {number}"
    parts = list(parts)
    try:
        return tree_map(lambda *leaves: torch.cat(leaves), *parts)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{where}: all samples must have one form and shape; pad them alike ({error})"
        ) from None
