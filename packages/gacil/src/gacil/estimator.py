"""The classifier for scikit-learn: arrays in, arrays out, labels of any kind (extra `gacil[sklearn]`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from gacil.classifier import AnalyticClassifier
from gacil.model import RandomBuffer

try:
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_array, check_random_state, check_X_y
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError("gacil.estimator needs scikit-learn: pip install 'gacil[sklearn]'") from error


class GACILClassifier(ClassifierMixin, BaseEstimator):
    """G-ACIL as a scikit-learn estimator with an exact `partial_fit`.

    `RandomBuffer` and `AnalyticClassifier` on the CPU in float64: any sequence of `partial_fit` calls gives
    what `fit` on all their samples gives. Unlike scikit-learn's own estimators it does not need to know
    the classes beforehand.

    Args:
        buffer_size: M, width of the random layer; None classifies the features as they are.
        gamma: Regularisation, above 0.
        engine: `"gram"` or `"recursive"`.
        fit_intercept: Add a constant feature.
        random_state: Draws the random layer: an int, a `numpy.random.RandomState` or None.

    Attributes:
        classes_: (C,) sorted labels seen so far.
        n_features_in_: Width of the input.
        classifier_: The `AnalyticClassifier`.
        buffer_: The `RandomBuffer`, or None.

    Example:
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
        random_state: Any = None,
    ) -> None:
        self.buffer_size = buffer_size
        self.gamma = gamma
        self.engine = engine
        self.fit_intercept = fit_intercept
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget everything, then learn from X (n, features) and y (n,)."""
        if hasattr(self, "classifier_"):
            del self.classifier_, self.classes_
        return self.partial_fit(X, y, sample_weight=sample_weight)

    def partial_fit(
        self, X: Any, y: Any, classes: Sequence[Any] | None = None, sample_weight: Any = None
    ) -> Self:
        """Learn from one batch.

        Args:
            X: (n, features) array.
            y: (n,) labels, any mixture of old and new.
            classes: Labels to expect; taken for scikit-learn's sake, nothing depends on them.
            sample_weight: (n,) non-negative weights.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If an array is malformed or a parameter out of range.
        """
        first = not hasattr(self, "classifier_")
        X, y = check_X_y(X, y, dtype=np.float64)
        check_classification_targets(y)
        if first:
            self._start(X.shape[1])
        self._check_width(X)
        weights = None if sample_weight is None else torch.tensor(np.asarray(sample_weight, dtype=np.float64))
        if weights is not None and not bool((weights != 0).any()):
            raise ValueError("sample_weight must hold a weight above zero, got zeros only")
        self.classifier_.partial_fit(self._features(X), self._columns_of(y), weights)
        return self

    def decision_function(self, X: Any) -> Any:
        """Scores (n, C) in the order of `classes_`; (n,) for two classes, positive for the second."""
        check_is_fitted(self, "classifier_")
        X = check_array(X, dtype=np.float64)
        self._check_width(X)
        columns = [self._column[label] for label in self.classes_.tolist()]
        scores = self.classifier_(self._features(X), mask_unseen=False)[:, columns].numpy()
        return scores[:, 1] - scores[:, 0] if len(columns) == 2 else scores

    def predict(self, X: Any) -> Any:
        """Labels (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _start(self, num_features: int) -> None:
        self.n_features_in_ = num_features
        self._column: dict[Any, int] = {}
        self.buffer_ = None
        if self.buffer_size is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            generator = torch.Generator().manual_seed(seed)
            self.buffer_ = RandomBuffer(
                num_features, self.buffer_size, generator=generator, dtype=torch.float64
            )
        self.classifier_ = AnalyticClassifier(
            num_features if self.buffer_size is None else self.buffer_size,
            gamma=self.gamma,
            engine=self.engine,
            bias=self.fit_intercept,
        )

    def _columns_of(self, y: Any) -> torch.Tensor:
        """Columns of the labels; a new label gets the next one, so old columns never move."""
        self.classes_ = np.unique(np.concatenate([getattr(self, "classes_", y[:0]), y]))
        for label in y.tolist():
            self._column.setdefault(label, len(self._column))
        return torch.tensor([self._column[label] for label in y.tolist()])

    def _features(self, X: Any) -> torch.Tensor:
        x = torch.tensor(X)
        return x if self.buffer_ is None else self.buffer_(x)

    def _check_width(self, X: Any) -> None:
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
