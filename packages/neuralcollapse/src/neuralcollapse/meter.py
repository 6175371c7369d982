"""A meter that hooks the layers of a model and reports their collapse over a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuralcollapse.batches import (
    POOLINGS,
    LinearCheck,
    Pooling,
    device_of,
    first_tensor,
    forward,
    logits_of,
    moved,
    pooled,
    predicted_classes,
    split,
)
from neuralcollapse.checks import check_count, warn_caller
from neuralcollapse.metrics import nearest_class
from neuralcollapse.report import NCReport, report_of
from neuralcollapse.statistics import Stats
from neuralcollapse.stream import StreamingStats, distributed

Covariance = Literal["full", "trace"]
Layers = str | type[nn.Module] | Iterable[str | type[nn.Module]]


class NCMeter:
    """Measures how collapsed the classes are in chosen layers of any classifier.

    `run` goes over a loader by itself, in eval mode and without gradients (dropout and batch statistics change
    NC1 by orders of magnitude), and puts the model back as it was. As a context manager the meter hooks the model
    for as long as it is open: after every forward of your own loop hand the labels to `update`, and read `report`.

    Args:
        model: The classifier.
        layers: Submodules whose outputs are features: names as in `named_modules`, patterns of them
            (`"layer*.conv2"`), types, or one of these alone. Each must give a tensor once a forward, or a tuple that
            begins with it.
        head: Name of the last linear layer. What enters it is metered too, under its name, and NC3 is
            the alignment of its weight with the means of that; a head that does more than multiply by its weight and
            add a bias (an adapter, a normalised weight) has no NC3, and a warning says so.
        num_classes: Number of classes, by default the head's rows.
        pool: How an output becomes `[B, d]`: `"mean"` over all axes after the channels `[B, C, ...]`,
            `"token_mean"` over all between batch and last `[B, ..., C]` (without padding where the model was called
            with an `attention_mask` by name), `"flatten"`, or a function. `"auto"` takes vectors as they are and the
            mean of images `[B, C, H, W]`, and refuses `[B, T, d]`, which could be either.
        logits: Finds the logits `[B, num_classes]` in the model's output, for NC4; by default they are what is called
            `logits` in it, or its first item, or itself. `lambda output: None` where there are none.
        cov: What a single pass keeps: `"full"` or `"trace"`, see `StreamingStats`. Two passes need no choice.
        class_counts: Samples of each class over all ranks, for a single pass where they are unequal, see
            `StreamingStats`.
        skip_empty: Leave classes without samples out instead of raising.
        dtype: Type of the accumulators.

    Raises:
        TypeError: If the number of classes is not an integer, or `dtype` neither float64 nor float32.
        ValueError: If a layer matches no submodule, nothing is to be metered, `head` has no weight matrix, or the
            number of classes is not known.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> loader = [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(3)]
        >>> report = NCMeter(model, layers=["0"], head="2").run(loader)
        >>> sorted(report), report["2"].nc3 is not None
        (['0', '2'], True)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        head: str | None = None,
        *,
        num_classes: int | None = None,
        pool: Pooling = "auto",
        logits: Callable[[Any], Tensor | None] | None = None,
        cov: Covariance = "full",
        class_counts: Tensor | None = None,
        skip_empty: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.layers = _chosen(model, layers, head)
        if not self.layers and head is None:
            raise ValueError("layers must name at least one submodule, or head be given")
        num_outputs = num_classes
        if head is not None:
            weight = getattr(model.get_submodule(head), "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() != 2:
                raise ValueError(
                    f"head must be a layer with a weight [num_classes, d], got {model.get_submodule(head)}"
                )
            num_outputs = len(weight)
        if num_outputs is None:
            raise ValueError("num_classes must be given where there is no head, got None")
        if not callable(pool) and pool not in POOLINGS:
            raise ValueError(f"pool must be one of {POOLINGS} or a function, got {pool!r}")
        self.model = model
        self.head = head
        self.pool = pool
        self.skip_empty = skip_empty
        self.cov = cov
        self._num_outputs = num_outputs
        self._logits = logits or logits_of
        self._options: dict[str, Any] = {"class_counts": class_counts, "dtype": dtype}
        # Raises where an option is wrong.
        checked = StreamingStats(num_outputs if num_classes is None else num_classes, 1, cov, **self._options)
        self.num_classes = checked.num_classes
        self._handles: list[RemovableHandle] = []
        self.reset()

    def __enter__(self) -> NCMeter:
        if not self._handles:
            self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
            for name in self.layers:
                layer = self.model.get_submodule(name)
                self._handles.append(layer.register_forward_hook(self._keep_output(name)))
            if self.head is not None:
                head = self.model.get_submodule(self.head)
                self._handles.append(
                    head.register_forward_hook(self._keep_input(self.head), with_kwargs=True)
                )
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget_forward()

    @property
    def names(self) -> list[str]:
        """What is metered: the layers, then the head."""
        return self.layers if self.head is None else [*self.layers, self.head]

    def reset(self) -> None:
        """Forget everything seen."""
        self._streams: dict[str, StreamingStats] = {}
        self._head_check = LinearCheck()
        self._forget_forward()

    def _forget_forward(self) -> None:
        self._features: dict[str, Tensor] = {}
        self._ambiguous: set[str] = set()
        self._mask: Tensor | None = None

    def update(self, labels: Tensor) -> None:
        """Take in the features of the last forward.

        Args:
            labels: `[B]`, integers.

        Raises:
            RuntimeError: If there was no forward since the last update, or the meter is not open.
            TypeError: If labels are not integers.
            ValueError: If labels do not fit, features are not finite, or a layer was called more than once.
        """
        self._add(self._streams, labels, self.cov)

    def report(self, *, reduce: bool = True) -> dict[str, NCReport]:
        """The collapse of each layer on all that was taken in.

        Args:
            reduce: Join what all ranks have seen, where `torch.distributed` is initialised: all ranks must
                then call it. `False` reports what this rank has seen.

        Returns:
            One report for each name in `names`.

        Raises:
            ValueError: If nothing, or nothing of some class, was seen.
        """
        return self._one_pass(self._total(self._streams, self.cov, reduce))

    @torch.no_grad()
    def run(
        self,
        loader: Iterable[Any],
        max_batches: int | None = None,
        *,
        passes: Literal[1, 2] = 2,
        prepare: Callable[[Any], tuple[Any, Tensor]] | None = None,
        reduce: bool = True,
    ) -> dict[str, NCReport]:
        """Measure the model on a loader; what `update` has taken in stays apart.

        Args:
            loader: Batches that begin with the model's input and the labels, or mappings with `"labels"` among
                their items. A mapping's items are arguments of the model by name; all go where the model is.
            max_batches: Stop after so many batches.
            passes: 2 goes over the loader again with the class means known. Without a `[d, d]` matrix, classes
                weigh equally in NC1 whatever their sizes, and there is an NC4. It needs a loader that gives the
                same samples twice, in any order. 1 costs half the time and is all an iterator can give.
            prepare: Turns what the loader gives into input and labels.
            reduce: Join all ranks where `torch.distributed` is initialised: all ranks must then call it.

        Returns:
            One report for each name in `names`.

        Raises:
            TypeError: If batches, outputs or labels are not of a kind that is understood.
            ValueError: If nothing, or nothing of some class, was seen, `passes` is neither 1 nor 2, the model's output
                has no logits of the right shape, or the two passes differ.
        """
        if passes not in (1, 2):
            raise ValueError(f"passes must be 1 or 2, got {passes}")
        if max_batches is not None:
            max_batches = check_count("max_batches", max_batches)
        if passes == 2 and isinstance(loader, Iterator):
            raise ValueError(
                "loader must give its batches twice (an iterator cannot be gone over twice): passes=1 takes one"
            )
        device = device_of(self.model)

        def batches() -> Iterator[tuple[Any, Tensor]]:
            for batch in islice(loader, max_batches):
                inputs, labels = (prepare or split)(batch)
                yield moved(inputs, device), moved(labels, device)

        cov: Covariance = self.cov if passes == 1 else "trace"
        streams: dict[str, StreamingStats] = {}
        with self._hooked(), _eval_mode(self.model):
            self._head_check = LinearCheck()
            for inputs, labels in batches():
                forward(self.model, inputs)
                self._add(streams, labels, cov)
            streams = self._total(streams, cov, reduce)
            if passes == 1:
                return self._one_pass(streams)
            return self._second_pass(streams, batches(), reduce)

    def _add(self, streams: dict[str, StreamingStats], labels: Tensor, cov: Covariance) -> None:
        for name, features in self._take().items():
            if name not in streams:
                streams[name] = self._stream(features.shape[1], features.device, cov)
            streams[name].update(features, moved(labels, features.device))

    def _stream(self, dim: int, device: torch.device, cov: Covariance) -> StreamingStats:
        return StreamingStats(self.num_classes, dim, cov, device=device, **self._options)

    def _total(
        self, streams: dict[str, StreamingStats], cov: Covariance, reduce: bool
    ) -> dict[str, StreamingStats]:
        reduce = reduce and distributed()
        if reduce:
            # A rank whose share of the loader was empty has to learn the dimensions from the others.
            device = device_of(self.model) or torch.device("cpu")
            dims = torch.tensor([streams[name].dim if streams else 0 for name in self.names], device=device)
            dist.all_reduce(dims, dist.ReduceOp.MAX)
            if not streams and bool(dims.all()):
                streams = {
                    name: self._stream(dim, device, cov)
                    for name, dim in zip(self.names, dims.tolist(), strict=True)
                }
        if not streams:
            raise ValueError("the meter must have seen a batch before it can report, got none")
        return {name: stream.reduce_ddp() for name, stream in streams.items()} if reduce else streams

    def _one_pass(self, streams: dict[str, StreamingStats]) -> dict[str, NCReport]:
        return {
            name: self._report(name, stream.compute(skip_empty=self.skip_empty))
            for name, stream in streams.items()
        }

    def _second_pass(
        self, streams: dict[str, StreamingStats], batches: Iterable[tuple[Any, Tensor]], reduce: bool
    ) -> dict[str, NCReport]:
        second = {name: stream.second_pass(skip_empty=self.skip_empty) for name, stream in streams.items()}
        wrong = {
            name: torch.zeros(self.num_classes, dtype=torch.int64, device=partial.gram.device)
            for name, partial in second.items()
        }
        no_logits = False
        for inputs, labels in batches:
            logits = self._logits(forward(self.model, inputs))
            no_logits = no_logits or (logits is None and self._logits is not logits_of)
            predicted = None if no_logits else predicted_classes(logits, len(labels), self._num_outputs)
            for name, features in self._take().items():
                here = moved(labels, features.device)
                second[name].update(features, here)
                if predicted is not None:
                    missed = nearest_class(second[name].stats, features) != predicted.to(features.device)
                    wrong[name] += torch.bincount(here[missed], minlength=self.num_classes)
        if reduce and distributed():
            second = {name: partial.reduce_ddp() for name, partial in second.items()}
            for counts in wrong.values():
                dist.all_reduce(counts)
        return {
            name: self._report(
                name, partial.compute(), None if no_logits else wrong[name][partial.stats.classes]
            )
            for name, partial in second.items()
        }

    def _report(self, name: str, stats: Stats, disagreements: Tensor | None = None) -> NCReport:
        weight: Tensor | None = None
        if name == self.head:
            if self._head_check.linear is False:
                warn_caller(
                    f"the head {name!r} does not multiply by its weight (an adapter, a normalised weight?): no NC3"
                )
            else:
                weight = self.model.get_submodule(name).weight.detach().to(stats.mean.device)  # type: ignore[operator]
        return report_of(stats, weight, disagreements)

    def _take(self) -> dict[str, Tensor]:
        missing = [name for name in self.names if name not in self._features]
        if missing:
            raise RuntimeError(
                f"update must follow a forward of the model inside the meter's context, got none of {missing}"
            )
        if self._ambiguous:
            raise ValueError(
                f"layers must be called once a forward, got {sorted(self._ambiguous)} that gave other features at "
                "every call: name the modules around them"
            )
        taken = {name: self._features[name] for name in self.names}
        self._forget_forward()
        return taken

    def _begin(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self._forget_forward()
        mask = named.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) else None

    def _keep_output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(name, first_tensor(name, output).detach())

        return hook

    def _keep_input(self, name: str) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
        def hook(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
            entering = first_tensor(name, inputs or tuple(named.values())).detach()
            self._head_check.see(module.weight.detach(), entering, output)  # type: ignore[operator]
            self._keep(name, entering)

        return hook

    def _keep(self, name: str, output: Tensor) -> None:
        features = pooled(output, self.pool, self._mask)
        if features.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
            features = features.clone()  # what follows may change it in place
        before = self._features.get(name)
        if before is not None and not torch.equal(before, features):  # checkpointing repeats itself
            self._ambiguous.add(name)
        self._features[name] = features

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        if self._handles:
            yield
            return
        with self:
            yield


def _chosen(model: nn.Module, layers: Layers, head: str | None) -> list[str]:
    """The names of the layers, each once; raise where something names none."""
    named = dict(model.named_modules(remove_duplicate=False))
    wanted = [layers] if isinstance(layers, str | type) else list(layers)
    chosen: list[str] = []
    unknown: list[object] = [] if head is None or head in named else [head]
    for entry in wanted:
        if isinstance(entry, str) and entry in named:
            chosen.append(entry)
            continue
        found = [
            name
            for name, module in model.named_modules()
            if name
            and name != head
            and (isinstance(module, entry) if isinstance(entry, type) else fnmatchcase(name, entry))
        ]
        if not found:
            unknown.append(entry)
        chosen += found
    if unknown:
        raise ValueError(f"layers and head must name submodules, got {unknown} that match none")
    if head in chosen:
        raise ValueError(f"layers must not name the head {head!r}, whose input is metered under that name")
    return list(dict.fromkeys(chosen))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): layers the user froze in eval mode stay there.
        for module in training:
            module.training = True
