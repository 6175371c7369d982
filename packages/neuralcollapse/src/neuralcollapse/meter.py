"""A meter that hooks the layers of a model and reports their collapse over a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuralcollapse.metrics import cdnv, nc1, nc2, nc3, nearest_class
from neuralcollapse.statistics import Stats, StreamingStats, distributed

Pooling = Literal["mean", "token_mean", "flatten"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NCReport:
    """The collapse of one layer.

    Attributes:
        nc1: `(1/K) Tr(Sigma_W Sigma_B^+)`; `None` with `cov="trace"` after a single pass.
        nc1_trace: `Tr(Sigma_W) / Tr(Sigma_B)`.
        nc2: Distance of the centred means from a simplex frame.
        nc2_orthogonal: Distance of the means from an orthogonal frame.
        nc3: Alignment of the head with the means; for the head's input alone.
        nc3_self_duality: Squared distance of head and means, both at unit norm; for the head's input alone.
        nc4: Disagreement of the network with the nearest class mean; after two passes alone.
        cdnv: Class-distance normalised variance.
        stats: The statistics these are functions of.
    """

    nc1: float | None
    nc1_trace: float
    nc2: float
    nc2_orthogonal: float
    nc3: float | None
    nc3_self_duality: float | None
    nc4: float | None
    cdnv: float
    stats: Stats


class NCMeter:
    """Measures how collapsed the classes are in chosen layers of any classifier.

    `run` goes over a loader by itself, in eval mode and without gradients (dropout and batch statistics change
    NC1 by orders of magnitude), and puts the model back as it was. As a context manager the meter hooks the model
    for as long as it is open: after every forward of your own loop hand the labels to `update`, and read `report`.

    Args:
        model: The classifier; its output `[B, num_classes]`, or the first tensor of it, is needed for NC4 alone.
        layers: Names of submodules (as in `named_modules`) whose outputs are features.
        head: Name of the last linear layer. What enters it is metered too, under its name, and NC3 is
            the alignment of its weight with the means of that.
        num_classes: Number of classes, by default the head's rows.
        pool: How an output becomes `[B, d]`: `"mean"` over all axes after the channels `[B, C, ...]`,
            `"token_mean"` over all between batch and last `[B, ..., C]`, `"flatten"`, or a function.
        cov: What a single pass keeps: `"full"` or `"trace"`, see `StreamingStats`. Two passes need no choice.
        class_counts: Samples of each class over all ranks, for a single pass where they are unequal, see
            `StreamingStats`.
        skip_empty: Leave classes without samples out instead of raising.
        dtype: Type of the accumulators.

    Raises:
        ValueError: If a name is not a submodule, nothing is to be metered, `head` has no weight matrix, or the
            number of classes is not known.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> loader = [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(3)]
        >>> report = NCMeter(model, layers=["0"], head="2").run(loader)
        >>> sorted(report), report["2"].nc3 is not None
        (['0', '2'], True)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str],
        head: str | None = None,
        *,
        num_classes: int | None = None,
        pool: Pooling = "mean",
        cov: Literal["full", "trace"] = "full",
        class_counts: Tensor | None = None,
        skip_empty: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        modules = dict(model.named_modules())
        self.layers = list(dict.fromkeys(layers))
        unknown = [name for name in [*self.layers, *([] if head is None else [head])] if name not in modules]
        if unknown:
            raise ValueError(f"layers and head must be names of submodules, got {unknown}")
        if head in self.layers:
            raise ValueError(
                f"layers must not name the head {head!r}, whose input is metered under that name"
            )
        if not self.layers and head is None:
            raise ValueError("layers must name at least one submodule, or head be given")
        if head is not None:
            weight = getattr(modules[head], "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() != 2:
                raise ValueError(f"head must be a layer with a weight [num_classes, d], got {modules[head]}")
            num_classes = len(weight) if num_classes is None else num_classes
        if num_classes is None:
            raise ValueError("num_classes must be given where there is no head, got None")
        if not callable(pool) and pool not in ("mean", "token_mean", "flatten"):
            raise ValueError(f"pool must be 'mean', 'token_mean', 'flatten' or a function, got {pool!r}")
        self.model = model
        self.num_classes = num_classes
        self.head = head
        self.pool = pool
        self.skip_empty = skip_empty
        self.cov = cov
        self._options: dict[str, Any] = {"class_counts": class_counts, "dtype": dtype}
        StreamingStats(num_classes, 1, cov, **self._options)  # raises where an option is wrong
        self._handles: list[RemovableHandle] = []
        self.reset()

    def __enter__(self) -> NCMeter:
        if not self._handles:
            for name in self.layers:
                layer = self.model.get_submodule(name)
                self._handles.append(layer.register_forward_hook(self._keep_output(name)))
            if self.head is not None:
                head = self.model.get_submodule(self.head)
                self._handles.append(head.register_forward_pre_hook(self._keep_input(self.head)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._features.clear()

    @property
    def names(self) -> list[str]:
        """What is metered: the layers, then the head."""
        return self.layers if self.head is None else [*self.layers, self.head]

    def reset(self) -> None:
        """Forget everything seen."""
        self._features: dict[str, Tensor] = {}
        self._streams: dict[str, StreamingStats] = {}

    def update(self, labels: Tensor) -> None:
        """Take in the features of the last forward.

        Args:
            labels: `[B]`, integers, on the features' device.

        Raises:
            RuntimeError: If there was no forward since the last update, or the meter is not open.
            TypeError: If labels are not integers.
            ValueError: If labels do not fit, or features are not finite.
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
            loader: Batches whose first two items are the model's input and the labels, on the model's device.
            max_batches: Stop after so many batches.
            passes: 2 goes over the loader again with the class means known. Without a `[d, d]` matrix, classes
                weigh equally in NC1 whatever their sizes, and there is an NC4. It needs a loader that gives the
                same samples twice, in any order. 1 costs half the time and is all an iterator can give.
            prepare: Turns what the loader gives into input and labels, moving them where the model is.
            reduce: Join all ranks where `torch.distributed` is initialised: all ranks must then call it.

        Returns:
            One report for each name in `names`.

        Raises:
            ValueError: If nothing, or nothing of some class, was seen, `passes` is neither 1 nor 2, or the two
                passes differ.
        """
        if passes not in (1, 2):
            raise ValueError(f"passes must be 1 or 2, got {passes}")
        split = prepare or (lambda batch: (batch[0], batch[1]))
        cov = self.cov if passes == 1 else "trace"
        streams: dict[str, StreamingStats] = {}
        with self._hooked(), _eval_mode(self.model):
            for inputs, labels in map(split, islice(loader, max_batches)):
                self.model(inputs)
                self._add(streams, labels, cov)
            streams = self._total(streams, cov, reduce)
            if passes == 1:
                return self._one_pass(streams)
            return self._second_pass(streams, map(split, islice(loader, max_batches)), reduce)

    def _add(self, streams: dict[str, StreamingStats], labels: Tensor, cov: Literal["full", "trace"]) -> None:
        for name, features in self._take().items():
            if name not in streams:
                streams[name] = self._stream(features.shape[1], features.device, cov)
            streams[name].update(features, labels)

    def _stream(self, dim: int, device: torch.device, cov: Literal["full", "trace"]) -> StreamingStats:
        return StreamingStats(self.num_classes, dim, cov, device=device, **self._options)

    def _total(
        self, streams: dict[str, StreamingStats], cov: Literal["full", "trace"], reduce: bool
    ) -> dict[str, StreamingStats]:
        reduce = reduce and distributed()
        if reduce:
            # A rank whose share of the loader was empty has to learn the dimensions from the others.
            device = _device(self.model)
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
        disagreements = {name: torch.zeros_like(partial.count[0]) for name, partial in second.items()}
        for inputs, labels in batches:
            predicted = _first_tensor(self.model(inputs)).argmax(-1)
            for name, features in self._take().items():
                second[name].update(features, labels)
                disagreements[name] += (nearest_class(second[name].stats, features) != predicted).sum()
        if reduce and distributed():
            second = {name: partial.reduce_ddp() for name, partial in second.items()}
            for disagreement in disagreements.values():
                dist.all_reduce(disagreement)
        return {
            name: self._report(name, partial.compute(), int(disagreements[name]) / int(partial.count.sum()))
            for name, partial in second.items()
        }

    def _report(self, name: str, stats: Stats, disagreement: float | None = None) -> NCReport:
        weight: Tensor | None = None
        if name == self.head:
            weight = self.model.get_submodule(name).weight.detach()  # type: ignore[operator]
        has_within = stats.within_cov is not None or stats.within_gram is not None
        return NCReport(
            nc1=float(nc1(stats)) if has_within else None,
            nc1_trace=float(nc1(stats, "trace")),
            nc2=float(nc2(stats)),
            nc2_orthogonal=float(nc2(stats, "orthogonal")),
            nc3=None if weight is None else float(nc3(stats, weight)),
            nc3_self_duality=None if weight is None else float(nc3(stats, weight, "papyan")),
            nc4=disagreement,
            cdnv=float(cdnv(stats)),
            stats=stats,
        )

    def _take(self) -> dict[str, Tensor]:
        missing = [name for name in self.names if name not in self._features]
        if missing:
            raise RuntimeError(
                f"update must follow a forward of the model inside the meter's context, got none of {missing}"
            )
        taken = {name: self._features[name] for name in self.names}
        self._features.clear()
        return taken

    def _keep_output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._features[name] = self._pooled(_first_tensor(output))

        return hook

    def _keep_input(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._features[name] = self._pooled(_first_tensor(inputs))

        return hook

    def _pooled(self, output: Tensor) -> Tensor:
        output = output.detach()
        if callable(self.pool):
            return self.pool(output)
        if self.pool == "flatten" or output.dim() <= 2:
            return output.flatten(1)
        if self.pool == "token_mean":
            return output.flatten(1, -2).mean(1)
        return output.flatten(2).mean(2)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        if self._handles:
            yield
            return
        with self:
            yield


def _first_tensor(output: Any) -> Tensor:
    """The tensor itself, the first of a sequence, or the first value of a mapping (a model output)."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if hasattr(output, "values") else output))
    return output


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


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
