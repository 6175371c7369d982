"""scikit-learn's own tools around the estimator."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from koopmanlimits import VerifiedKoopman

TIME = np.arange(160.0)[:, None]
# Two oscillations seen by ten sensors.
F = np.cos(0.2 * TIME + np.linspace(0, 3, 10)) + 0.5 * np.sin(0.9 * TIME - np.linspace(0, 2, 10))


def test_a_grid_search_chooses_the_rank_that_holds_both_oscillations():
    ranks = np.array([2, 4])  # NumPy's integers
    search = GridSearchCV(
        VerifiedKoopman(eps=0.3), {"rank": ranks}, cv=TimeSeriesSplit(3), error_score="raise"
    )
    search.set_params(estimator__eps=0.9)
    search.fit(F)
    assert search.best_params_ == {"rank": 4}
    assert search.best_score_ == pytest.approx(1.0, abs=1e-6)


def test_pipelines_and_cross_validation():
    pipe = make_pipeline(StandardScaler(), VerifiedKoopman(rank=4, eps=0.1))
    scores = cross_val_score(pipe, F, cv=TimeSeriesSplit(3), error_score="raise")
    np.testing.assert_allclose(scores, 1, atol=1e-6)
    pipe.fit(F)
    ahead = pipe[0].inverse_transform(pipe.predict(F))
    np.testing.assert_allclose(ahead[:-1], F[1:], atol=1e-5)


def test_data_frames_keep_their_names_and_permuted_columns_are_refused():
    frame = pd.DataFrame(F, columns=[f"sensor {i}" for i in range(10)])
    model = VerifiedKoopman(rank=4).fit(frame)
    assert model.feature_names_in_ == tuple(frame.columns)
    np.testing.assert_array_equal(model.predict(frame), model.predict(F))
    with pytest.raises(
        ValueError, match=r"X must have the features \['sensor 0'.* in this order, got \['sensor 9'"
    ):
        model.predict(frame[frame.columns[::-1]])
    assert not hasattr(model.fit(F), "feature_names_in_")
