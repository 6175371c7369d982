"""The classifier for scikit-learn: arrays in, arrays out, labels of any kind (extra `gacil[sklearn]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from gacil.buffer import RandomBuffer
from gacil.checks import as_size
from gacil.classifier import AnalyticClassifier

try:
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("gacil.estimator needs scikit-learn 1.6: pip install 'gacil[sklearn]'") from error


class GACILClassifier(ClassifierMixin, BaseEstimator):
    """G-ACIL as a scikit-learn estimator with an exact `partial_fit`.

    `RandomBuffer` and `AnalyticClassifier` on the CPU in float64: any sequence of `partial_fit` calls gives
    what `fit` on all their samples gives. Unlike scikit-learn's own estimators it does not need to know
    the classes beforehand. X may be sparse.

    Args:
        buffer_size: M, width of the random layer; None classifies the features as they are.
        gamma: Regularisation, above 0; a new value counts from the next `partial_fit` on, for all samples.
        engine: `"gram"` or `"recursive"`.
        fit_intercept: Add a constant feature.
        class_weight: Weight of the samples of each label, 1 where it is not in the dict; `"balanced"`, which
            must see all labels at once, is for `fit` only.
        random_state: Draws the random layer: an int, a `numpy.random.RandomState` or None.

    Attributes:
        classes_: (C,) sorted labels of the samples learnt and not forgotten.
        n_features_in_: Width of the input.
        feature_names_in_: Column names of the input, if it had any.
        classifier_: The `AnalyticClassifier`.
        buffer_: The `RandomBuffer`, or None.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(40, 5)) + np.repeat([[0.0], [4.0]], 20, axis=0)
        >>> model = GACILClassifier(buffer_size=50, random_state=0)
        >>> model = model.partial_fit(x[:20], ["cat"] * 20).partial_fit(x[20:], ["dog"] * 20)
        >>> model.predict(x[[0, 39]]).tolist()
        ['cat', 'dog']
    """

    def __init__(
        self,
        buffer_size: int | None = 2048,
        *,
        gamma: float = 0.1,
        engine: str = "gram",
        fit_intercept: bool = False,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.buffer_size = buffer_size
        self.gamma = gamma
        self.engine = engine
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget everything, then learn from X (n, features) and y (n,)."""
        X, y = self._validated(X, y, reset=True)
        self._start(X.shape[1])
        return self._learn(X, y, sample_weight)

    def partial_fit(
        self, X: Any, y: Any, classes: Sequence[Any] | None = None, sample_weight: Any = None
    ) -> Self:
        """Learn from one batch.

        Args:
            X: (n, features) array, data frame or sparse matrix.
            y: (n,) labels, any mixture of old and new.
            classes: Labels to expect; taken for scikit-learn's sake, nothing depends on them.
            sample_weight: (n,) non-negative weights.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If an array is malformed, a parameter out of range, `class_weight` "balanced", or
                `buffer_size`, `engine` or `fit_intercept` is not what the first batch was learnt with.
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight must be a dict or None in partial_fit, got 'balanced'")
        first = not hasattr(self, "classifier_")
        X, y = self._validated(X, y, reset=first)
        if first:
            self._start(X.shape[1])
        else:
            self._check_unchanged()
            if self.classifier_.gamma != self.gamma:
                self.classifier_.gamma = self.gamma
        return self._learn(X, y, sample_weight)

    def forget(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Unlearn samples exactly; see `AnalyticClassifier.forget`.

        Args:
            X: (n, features), as they were learnt.
            y: (n,) labels, as they were learnt.
            sample_weight: (n,) weights, as they were learnt.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If the samples cannot all have been learnt.
        """
        check_is_fitted(self, "classifier_")
        if self.class_weight == "balanced":
            raise ValueError("class_weight must be a dict or None to forget, got 'balanced'")
        X, y = self._validated(X, y, reset=False)
        unknown = np.setdiff1d(y, self._labels)
        if len(unknown):
            raise ValueError(f"y must hold samples seen before, got the label {unknown.tolist()[0]!r}")
        weights = self._weights(y, sample_weight)
        self.classifier_.forget(self._features(X), self._columns_of(y), weights)
        self._take_classes()
        return self

    def merge(self, *others: GACILClassifier) -> Self:
        """Add what others have learnt from other data, exactly; their labels may differ.

        Args:
            others: Fitted estimators with the same parameters, `random_state` included, and columns.

        Returns:
            The estimator itself, as if it had learnt from all their samples.

        Raises:
            ValueError: If the random layer, gamma, the intercept or the columns differ.
        """
        check_is_fitted(self, "classifier_")
        for other in others:
            check_is_fitted(other, "classifier_")
            names, theirs = (getattr(model, "feature_names_in_", None) for model in (self, other))
            if names is not None and theirs is not None and list(names) != list(theirs):
                raise ValueError(f"estimators to merge must have the same columns, got {names} and {theirs}")
            probe = AnalyticClassifier(
                **self._settings()
            )  # compares all else with the other, and holds nothing
            probe.merge(other.classifier_)
            self._extend(other._labels)
            columns = self._columns_of(other._labels)
            self.classifier_.add_statistics(other.classifier_.statistics().relabelled(columns))
        self._take_classes()
        return self

    def decision_function(self, X: Any) -> Any:
        """Scores (n, C) in the order of `classes_`; (n,) for two classes, positive for the second."""
        check_is_fitted(self, "classifier_")
        X = validate_data(self, X, reset=False, dtype=np.float64, accept_sparse="csr")
        columns = self._columns_of(self.classes_)
        scores = self.classifier_(self._features(X), mask_unseen=False)[:, columns].numpy()
        return scores[:, 1] - scores[:, 0] if len(columns) == 2 else scores

    def predict(self, X: Any) -> Any:
        """Labels (n,)."""
        scores = self.decision_function(X)
        if not len(self.classes_):
            raise ValueError("predict needs at least one class; all samples have been forgotten")
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn what X may be."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64, accept_sparse="csr")
        check_classification_targets(y)
        return X, y

    def _start(self, num_features: int) -> None:
        self.buffer_ = None
        if self.buffer_size is not None:
            size = as_size("buffer_size", self.buffer_size)
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            generator = torch.Generator().manual_seed(seed)
            self.buffer_ = RandomBuffer(num_features, size, generator=generator, dtype=torch.float64)
        self.classifier_ = AnalyticClassifier(**self._settings())
        # What a classifier that has learnt cannot change any more.
        self._structure = {name: getattr(self, name) for name in ("buffer_size", "engine", "fit_intercept")}
        self._labels: Any = None  # in the order of the classifier's columns

    def _check_unchanged(self) -> None:
        for name, learnt in self._structure.items():
            value = getattr(self, name)
            if value != learnt:
                raise ValueError(f"{name} must stay {learnt!r} after the first batch, got {value!r}; use fit")

    def _settings(self) -> dict[str, Any]:
        return {
            "in_features": self.n_features_in_ if self.buffer_ is None else self.buffer_.weight.shape[1],
            "gamma": self.gamma,
            "engine": self.engine,
            "bias": self.fit_intercept,
            "feature_checksum": 0 if self.buffer_ is None else self.buffer_.checksum(),
            "max_classes": None,
        }

    def _learn(self, X: Any, y: Any, sample_weight: Any) -> Self:
        weights = self._weights(y, sample_weight)
        self._extend(y)
        self.classifier_.partial_fit(self._features(X), self._columns_of(y), weights)
        self._take_classes()
        return self

    def _weights(self, y: Any, sample_weight: Any) -> torch.Tensor | None:
        if sample_weight is None and self.class_weight is None:
            return None
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (len(y),):
            raise ValueError(f"sample_weight must have shape ({len(y)},), got {weights.shape}")
        weights = weights * self._class_weights(y)
        if not (weights != 0).any():
            raise ValueError("sample_weight must hold a weight above zero, got zeros only")
        return torch.from_numpy(weights)

    def _class_weights(self, y: Any) -> Any:
        """Weight of each sample (n,) for its label."""
        labels, places, counts = np.unique(y, return_inverse=True, return_counts=True)
        if self.class_weight is None:
            return np.ones(len(y))
        if self.class_weight == "balanced":
            return (len(y) / (len(labels) * counts))[places]
        if not isinstance(self.class_weight, Mapping):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {self.class_weight!r}")
        weights = np.array([self.class_weight.get(label, 1.0) for label in labels.tolist()], dtype=float)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"class_weight must be finite and non-negative, got {self.class_weight!r}")
        return weights[places]

    def _extend(self, y: Any) -> None:
        """Give each new label the next column, so that old columns never move."""
        if self._labels is None:
            self._labels = np.unique(y)
            return
        kinds = {"numbers" if labels.dtype.kind in "biuf" else "words" for labels in (self._labels, y)}
        if len(kinds) == 2:
            raise ValueError(f"y must hold labels of one kind, got {y.dtype} after {self._labels.dtype}")
        self._labels = np.concatenate([self._labels, np.setdiff1d(y, self._labels)])

    def _columns_of(self, labels: Any) -> torch.Tensor:
        """Columns of labels that have one."""
        order = np.argsort(self._labels)
        return torch.from_numpy(order[np.searchsorted(self._labels, labels, sorter=order)])

    def _take_classes(self) -> None:
        seen = self.classifier_.seen.numpy()
        self.classes_ = np.sort(self._labels[: len(seen)][seen])

    def _features(self, X: Any) -> torch.Tensor:
        if self.buffer_ is None:
            dense = X if isinstance(X, np.ndarray) else X.toarray()
            return torch.from_numpy(
                np.require(dense, requirements=["C", "W"])
            )  # torch warns of read-only arrays
        # The layer's own product takes no sparse matrix.
        return self.buffer_.activation(torch.from_numpy(X @ self.buffer_.weight.numpy()))
