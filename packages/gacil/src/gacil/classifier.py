"""The incremental classifier on given features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gacil.agreement import Identity, check_alike, check_ranks_agree
from gacil.checks import (
    MAX_CLASSES,
    as_gamma,
    as_integer,
    as_size,
    as_targets,
    check_dtype,
    check_features,
    check_labels,
    check_scale,
    checked_weights,
    finite_features,
)
from gacil.engines import GramEngine, RecursiveEngine
from gacil.ridge import exact_arithmetic
from gacil.state import check_state, fit_buffers, leave_inference_mode
from gacil.statistics import Statistics

_ENGINES: dict[str, type[GramEngine] | type[RecursiveEngine]] = {
    "gram": GramEngine,
    "recursive": RecursiveEngine,
}
_SYNCED = ("_synced_gram", "_synced_cross", "_synced_class_counts", "_synced_num_samples")


class AnalyticClassifier(nn.Module):
    """A linear classifier learnt from a stream in closed form, equal to training on all of it at once.

    After any sequence of `partial_fit` calls, in any order and with any mixture of old and new classes,

        weight = argmin_W sum ||y - W' x||^2 + gamma ||W||^2      over all samples so far

    to rounding (the weight-invariant property, arXiv 2403.15706, section 3.3). No sample is kept and
    there is no gradient. The number of classes grows with the labels.

    It is a `torch.nn.Module` without parameters: `state_dict` holds everything, `.to` moves it. Do not wrap
    it in `DistributedDataParallel`, which would overwrite the statistics of all ranks by rank 0's; each
    rank learns from its own shard and `all_reduce` adds them up.

    Args:
        in_features: M, the width of the features.
        gamma: Regularisation, above 0; assigning to `classifier.gamma` changes it later.
        engine: `"gram"` sums X'X and factors it when the weight is read: the faster and more accurate one.
            `"recursive"` is the paper's recursion: for a fresh weight after every few samples.
        bias: Add a constant feature, regularised like the others.
        dtype: `torch.float64` or `torch.float32`, of the statistics (M^2 numbers: 512 MiB at M = 8192 in
            float64) and of all arithmetic.
        feature_checksum: Names the map that made the features, e.g. `RandomBuffer.checksum()`; `merge` and
            `all_reduce` refuse to add statistics with different ones.
        max_classes: Labels from here on are taken for a mistake; None lets all through. There is a column
            of M numbers for every label up to the largest.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If gamma is not a number, or a size or `feature_checksum` not an integer.

    Examples:
        >>> classifier = AnalyticClassifier(2, gamma=1.0)
        >>> classifier = classifier.partial_fit(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> classifier = classifier.partial_fit(torch.tensor([[1.0, 1.0]]), torch.tensor([1]))
        >>> classifier.weight.round(decimals=4)
        tensor([[ 0.4000,  0.2000],
                [-0.2000,  0.4000]], dtype=torch.float64)
        >>> classifier.predict(torch.tensor([[1.0, 0.2], [0.0, 1.0]]))
        tensor([0, 1])
    """

    class_counts: Tensor
    num_samples: Tensor
    feature_checksum: Tensor
    _synced_num_samples: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        gamma: float = 0.1,
        engine: str = "gram",
        bias: bool = False,
        dtype: torch.dtype = torch.float64,
        feature_checksum: int = 0,
        max_classes: int | None = MAX_CLASSES,
    ) -> None:
        super().__init__()
        if engine not in _ENGINES:
            raise ValueError(f"engine must be one of {sorted(_ENGINES)}, got {engine!r}")
        check_dtype(dtype)
        self.in_features = as_size("in_features", in_features)
        self.has_bias = bool(bias)
        self.max_classes = None if max_classes is None else as_size("max_classes", max_classes)
        width = self.in_features + self.has_bias
        self.engine: GramEngine | RecursiveEngine = _ENGINES[engine](width, as_gamma(gamma), dtype)
        checksum = as_integer("feature_checksum", feature_checksum)
        self.register_buffer("class_counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("num_samples", torch.zeros((), dtype=torch.int64))
        self.register_buffer("feature_checksum", torch.tensor(checksum, dtype=torch.int64))
        for name in _SYNCED:  # what all ranks shared after the last all_reduce; None before the first
            self.register_buffer(name, None)

    def partial_fit(self, x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Self:
        """Learn from one batch, exactly and once.

        Args:
            x: (n, M) features of any floating dtype; n = 0 changes nothing.
            y: (n,) integer labels, any mixture of old and new classes; or (n, C) targets.
            sample_weight: (n,) non-negative; 2 gives the weight of the sample twice, 0 that without it.

        Returns:
            The classifier itself.

        Raises:
            ValueError: If a shape or value is out of range.
            TypeError: If an argument is not a tensor, or labels are not integers.
            RuntimeError: If the recursive engine has lost positive definiteness (float32, tiny gamma).
        """
        with exact_arithmetic(self.num_samples):
            features, targets, counts = self._prepare(x, y, sample_weight)
            if not len(features):
                return self
            leave_inference_mode(self)
            self._grow(targets.shape[1])
            self.engine.add(features, _widened(targets, self.num_classes))
            self.class_counts = self.class_counts + _widened(counts, self.num_classes)
            self.num_samples = self.num_samples + len(features)
        return self

    def forget(self, x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Self:
        """Unlearn samples exactly: afterwards the classifier is as if it had never seen them.

        The sums lose their terms (a Woodbury down-date in the recursive engine). Under `all_reduce`, one
        rank forgets for all.

        Args:
            x: (n, M) features, as they were learnt.
            y: (n,) labels or (n, C) targets, as they were learnt.
            sample_weight: (n,) weights, as they were learnt.

        Returns:
            The classifier itself.

        Raises:
            ValueError: If the samples cannot all have been learnt: more than seen in all or of one class,
                or X'X + gamma I would become indefinite. Nothing is changed then.
            TypeError: If an argument is not a tensor, or labels are not integers.
        """
        with exact_arithmetic(self.num_samples):
            features, targets, counts = self._prepare(x, y, sample_weight)
            if not len(features):
                return self
            leave_inference_mode(self)
            if len(features) > int(self.num_samples):
                raise ValueError(
                    f"x must hold samples seen before, got {len(features)} after {int(self.num_samples)}"
                )
            num_classes = max(self.num_classes, len(counts))
            remaining = _widened(self.class_counts, num_classes) - _widened(counts, num_classes)
            if bool((remaining < 0).any()):
                label = int((remaining < 0).nonzero()[0])
                raise ValueError(f"y must hold samples seen before, got more of class {label} than were seen")
            if not self.engine.remove(features, _widened(targets, self.num_classes)):
                raise ValueError(
                    "x must hold samples seen before: without these the regularised autocorrelation is indefinite"
                )
            self.class_counts = remaining[: self.num_classes]
            self.num_samples = self.num_samples - len(features)
        return self

    def forward(self, x: Tensor, mask_unseen: bool = True) -> Tensor:
        """Scores x W.

        Args:
            x: (n, M) features.
            mask_unseen: Give classes without a sample -inf; their columns are zero and would win wherever
                all others are negative.

        Returns:
            (n, C) scores in the classifier's dtype; NaN in rows whose features are not finite.

        Raises:
            ValueError: If `x` has the wrong shape.
            TypeError: If `x` is not a floating-point tensor.
            RuntimeError: If X'X + gamma I is too ill-conditioned for the dtype.
        """
        check_features(x, self.in_features)
        weight = self._full_weight()
        with torch.autocast(x.device.type, enabled=False):
            scores = x.to(weight.dtype) @ weight[: self.in_features]
            if self.has_bias:
                scores = scores + weight[-1]
        return scores.masked_fill(~self.seen, float("-inf")) if mask_unseen else scores

    def predict(self, x: Tensor) -> Tensor:
        """Most probable class among those seen.

        Args:
            x: (n, M) features.

        Returns:
            (n,) int64 labels.

        Raises:
            ValueError: If `x` has the wrong shape, is not finite or so large that its scores are not.
            TypeError: If `x` is not a floating-point tensor.
            RuntimeError: If no class has been seen.
        """
        check_features(x, self.in_features)
        finite_features(x, self.dtype)
        if not bool(self.seen.any()):
            raise RuntimeError("predict needs at least one class; call partial_fit first")
        with torch.no_grad():
            scores = self(x)
        count = int((scores.isnan() | (scores == float("inf"))).any(1).sum())
        if count:
            raise ValueError(f"x must have finite scores in {self.dtype}, got {count} rows too large for it")
        return scores.argmax(1)

    def score(self, x: Tensor, y: Tensor) -> float:
        """Share of the samples x (n, M) predicted as their labels y (n,).

        Raises:
            ValueError: If a shape is wrong, `x` is not finite or there is no sample.
            TypeError: If an argument is not a tensor, or labels are not integers.
            RuntimeError: If no class has been seen.
        """
        predicted = self.predict(x)
        check_labels("y", y, len(predicted))
        if not len(y):
            raise ValueError("x must hold at least one sample, got none")
        return float((predicted == y).double().mean())

    def merge(self, *others: AnalyticClassifier) -> Self:
        """Add what other classifiers have learnt from other data: federated learning in one exact step.

        Args:
            others: Classifiers with the same features and gamma, of either engine.

        Returns:
            The classifier itself, as if it had learnt from all their samples.

        Raises:
            ValueError: If width, gamma, bias or feature checksum differ.
            TypeError: If one is not an `AnalyticClassifier`.
        """
        for other in others:
            if not isinstance(other, AnalyticClassifier):
                raise TypeError(f"others must be AnalyticClassifiers, got {type(other).__name__}")
            check_alike(self._identity(), other._identity())
        return self.add_statistics(*(other.statistics() for other in others))

    def add_statistics(self, *others: Statistics) -> Self:
        """Add sums over other data, as `statistics` of some classifier gave them.

        Nothing in them tells of which features they are; `merge` does compare.

        Args:
            others: Statistics of the same features (with a bias: of features and constant).

        Returns:
            The classifier itself, as if it had learnt from their samples too.

        Raises:
            ValueError: If the number of features differs, a sum is not finite, or more samples would be taken
                away than were learnt.
            TypeError: If one is not a `Statistics`.
        """
        with exact_arithmetic(self.num_samples):
            total = self.statistics()
            for other in others:
                if not isinstance(other, Statistics):
                    raise TypeError(f"others must be Statistics, got {type(other).__name__}")
                if not bool(other.gram.isfinite().all() & other.cross.isfinite().all()):
                    raise ValueError("statistics must be finite, got sums that are not")
                total = total + other.to(total.gram)
            if int(total.num_samples) < 0 or bool((total.class_counts < 0).any()):
                raise ValueError("statistics must not take away more samples than were learnt")
            self._load(total)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Give every rank the classifier of the data of all ranks.

        May be called again and again: only what was learnt since the last call is added up. From the first
        call on that takes a second M x M matrix. Without an initialised process group, nothing happens.
        What ranks load from one checkpoint counts once only if it was saved after an `all_reduce`; load any
        other on a single rank, or it is added up as if each rank had learnt it anew.

        Args:
            group: The ranks; all if None.

        Returns:
            The classifier itself.

        Raises:
            ValueError: On every rank, if width, gamma, bias, feature checksum, dtype or the number of samples
                at the last `all_reduce` differ between ranks.
            RuntimeError: On every rank, if the recursion of one has lost positive definiteness.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        with exact_arithmetic(self.num_samples):
            synced_samples = -1 if self._synced() is None else int(self._synced_num_samples)
            # Nobody may stop before all have met, or the others would wait for ever.
            own, failure = self._statistics_or_failure()
            device = self.num_samples.device
            check_ranks_agree(self._identity(), self.dtype, synced_samples, device, group, failure)
            assert own is not None
            synced = self._synced()
            total = own.all_reduced(group) if synced is None else synced + (own - synced).all_reduced(group)
            self._load(total)
            for name, value in zip(_SYNCED, total.tensors(), strict=True):
                setattr(self, name, value)
        return self

    def statistics(self) -> Statistics:
        """Return a copy of the sufficient statistics, e.g. to send them elsewhere and add them there."""
        with exact_arithmetic(self.num_samples):
            return Statistics(*self.engine.sums(), self.class_counts.clone(), self.num_samples.clone())

    @property
    def weight(self) -> Tensor:
        """(M, C) weight; columns of unseen classes are zero. Computed when read, then kept until new data."""
        return self._full_weight()[: self.in_features]

    @property
    def intercept(self) -> Tensor:
        """(C,) weight of the constant feature; zeros without `bias`."""
        weight = self._full_weight()
        return weight[-1] if self.has_bias else weight.new_zeros(self.num_classes)

    @property
    def seen(self) -> Tensor:
        """(C,) bool, true for classes with at least one sample."""
        return self.class_counts > 0

    @property
    def num_classes(self) -> int:
        """C, one more than the largest label so far."""
        return self.class_counts.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the statistics."""
        return next(self.engine.buffers()).dtype

    @property
    def gamma(self) -> float:
        """Regularisation; assignment applies to everything learnt so far."""
        return self.engine.gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        gamma = as_gamma(value)
        with exact_arithmetic(self.num_samples):
            self.engine.set_gamma(gamma)

    def extra_repr(self) -> str:
        """Sizes and settings, for `repr`."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, gamma={self.gamma:g}"

    def get_extra_state(self) -> Tensor:
        """Return gamma, width and bias, part of `state_dict`; a tensor, so that safetensors can hold it."""
        return torch.tensor([self.gamma, self.in_features, self.has_bias], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over gamma from `state_dict`; the rest has been compared before."""
        self.engine.gamma = float(state.flatten()[0])

    def _prepare(self, x: Tensor, y: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Check one batch; return features and targets, weighted and in dtype, and samples per class."""
        check_features(x, self.in_features)
        self._check_devices(x=x, y=y, sample_weight=sample_weight)
        targets = as_targets(y, x.shape[0], max_classes=self.max_classes)
        counted = targets != 0
        features, targets = finite_features(x, self.dtype), targets.to(self.dtype)
        check_scale(features)
        if self.has_bias:
            features = nn.functional.pad(features, (0, 1), value=1.0)
        if sample_weight is not None:
            root = checked_weights(sample_weight, x.shape[0]).to(self.dtype).sqrt().unsqueeze(1)
            kept = root.squeeze(1) > 0
            features, targets, counted = (features * root)[kept], (targets * root)[kept], counted[kept]
        return features, targets, counted.sum(0)

    def _check_devices(self, **tensors: Any) -> None:
        own = self.num_samples.device
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.device != own:
                raise ValueError(f"{name} must be on the classifier's device {own}, got {tensor.device}")

    def _grow(self, num_classes: int) -> None:
        if num_classes > self.num_classes:
            self.engine.grow(num_classes)
            self.class_counts = _widened(self.class_counts, num_classes)

    def _full_weight(self) -> Tensor:
        if self.engine.is_stale:
            with exact_arithmetic(self.num_samples):
                self.engine.solve(int(self.num_samples))
        return self.engine.weight

    def _load(self, statistics: Statistics) -> None:
        self.engine.load(statistics.gram, statistics.cross)
        self.class_counts, self.num_samples = statistics.class_counts, statistics.num_samples

    def _statistics_or_failure(self) -> tuple[Statistics | None, RuntimeError | None]:
        try:
            return self.statistics(), None
        except RuntimeError as failure:
            return None, failure

    def _synced(self) -> Statistics | None:
        tensors = [getattr(self, name) for name in _SYNCED]
        return None if tensors[0] is None else Statistics(*tensors)

    def _identity(self) -> Identity:
        return Identity(self.in_features, self.gamma, self.has_bias, int(self.feature_checksum))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        engine = next(name for name, kind in _ENGINES.items() if isinstance(self.engine, kind))
        check_state(state_dict, prefix, engine, self.in_features, self.has_bias)
        fit_buffers(self, ("class_counts", *_SYNCED), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Half-precision statistics are useless, so `.half()` on a model that holds this one must not pass.
        check_dtype(fn(torch.empty(0, dtype=self.dtype, device=self.num_samples.device)).dtype)
        return super()._apply(fn, recurse)


def _widened(values: Tensor, num_classes: int) -> Tensor:
    return nn.functional.pad(values, (0, num_classes - values.shape[-1]))
