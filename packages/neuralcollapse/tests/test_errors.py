"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import math
import re

import pytest
import torch
from torch import nn

from neuralcollapse import (
    NCMeter,
    StreamingStats,
    cdnv,
    central_path,
    class_columns,
    class_stats,
    closed_form_w,
    nc1,
    nc2,
    nc3,
    nc4,
    nc5,
    near_features,
    norm_variation,
    objective,
    predicted_spectrum,
    transfer,
    transfer_spectrum,
    ufm_minimizer,
)

FEATURES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
Y = torch.eye(3, dtype=torch.float64)[LABELS].mT
H = FEATURES.mT
NAN = torch.full((6, 4), math.nan)


def refused(error, message):
    return pytest.raises(error, match=re.escape(message))


def stats(**changes):
    return class_stats(**({"features": FEATURES, "labels": LABELS, "num_classes": 3} | changes))


BATCHES = [
    ({"features": FEATURES.long()}, TypeError, "features must be floating point, got torch.int64"),
    ({"features": FEATURES[0]}, ValueError, "features must be [num_samples, dim], got shape (4,)"),
    ({"features": NAN}, ValueError, "features must be finite, got NaN or infinity"),
    ({"features": NAN / 0}, ValueError, "features must be finite, got NaN or infinity"),
    ({"features": FEATURES.tolist()}, TypeError, "features must be a tensor, got list"),
    ({"features": FEATURES.cfloat()}, TypeError, "features must be floating point, got torch.complex64"),
    ({"labels": LABELS.tolist()}, TypeError, "labels must be a tensor, got list"),
    ({"labels": LABELS.float()}, TypeError, "labels must be integers, got torch.float32"),
    ({"labels": LABELS > 0}, TypeError, "labels must be integers, got torch.bool"),
    ({"labels": LABELS[:5]}, ValueError, "labels must be [6], one for each row of features, got (5,)"),
    ({"labels": LABELS + 1}, ValueError, "labels must lie in [0, 3), got 1 to 3"),
    ({"labels": LABELS - 1}, ValueError, "labels must lie in [0, 3), got -1 to 1"),
]
COUNTS = [
    ({"labels": 0 * LABELS}, ValueError, "every class must have samples, got none of [1, 2]"),
    ({"num_classes": 1, "labels": 0 * LABELS}, ValueError, "num_classes must be at least 2, got 1"),
    ({"num_classes": 3.0}, TypeError, "num_classes must be an integer, got 3.0"),
]


@pytest.mark.parametrize(("changes", "error", "message"), [*BATCHES, *COUNTS])
def test_class_stats_and_class_columns(changes, error, message):
    with refused(error, message):
        stats(**changes)
    with refused(error, message):
        class_columns(**({"features": FEATURES, "labels": LABELS, "num_classes": 3} | changes))


@pytest.mark.parametrize(("changes", "error", "message"), BATCHES)
def test_batches_of_a_stream(changes, error, message):
    stream = StreamingStats(3, 4)
    arguments = {"features": FEATURES, "labels": LABELS} | changes
    with refused(error, message):
        stream.update(**arguments)
    assert not stream.count.any()
    stream.update(FEATURES, LABELS)
    with refused(error, message):
        stream.second_pass().update(**arguments)


def test_options_of_statistics():
    with refused(ValueError, "cov must be 'full', 'lowrank' or 'trace', got 'half'"):
        stats(cov="half")
    with refused(ValueError, "at least two classes must have samples, got 1"):
        stats(labels=0 * LABELS, skip_empty=True)
    with refused(ValueError, "balance must be 'subsample' or None, got 'repeat'"):
        class_columns(FEATURES, LABELS, 3, balance="repeat")
    with refused(ValueError, "classes must be of equal size without balance='subsample', got [2, 1, 2]"):
        class_columns(FEATURES[1:][[0, 2, 1, 3, 4]], torch.tensor([0, 0, 1, 2, 2]), 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"dim": 0}, ValueError, "dim must be positive, got 0"),
        ({"cov": "lowrank"}, ValueError, "cov must be 'full' or 'trace', got 'lowrank'"),
        ({"dim": 4.0}, TypeError, "dim must be an integer, got 4.0"),
        ({"dtype": torch.int64}, TypeError, "dtype must be float64 or float32, got torch.int64"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype must be float64 or float32, got torch.bfloat16"),
        ({"class_counts": torch.tensor([1, 2.5, 1])}, ValueError, "class_counts must be 3 sizes"),
        ({"class_counts": torch.tensor([1, math.nan, 1])}, ValueError, "class_counts must be 3 sizes"),
        ({"class_counts": torch.ones(2)}, ValueError, "class_counts must be 3 sizes"),
        ({"class_counts": torch.tensor([1, -1, 1])}, ValueError, "class_counts must be 3 sizes"),
    ],
)
def test_streaming_stats(changes, error, message):
    with refused(error, message):
        StreamingStats(**({"num_classes": 3, "dim": 4} | changes))


def test_streams_that_do_not_fit():
    stream = StreamingStats(3, 4)
    with refused(ValueError, "every class must have samples, got none of [0, 1, 2]"):
        stream.compute()
    stream.update(FEATURES[:4], LABELS[:4])
    with refused(ValueError, "got none of [2] (skip_empty=True leaves them out)"):
        stream.second_pass()
    assert stream.compute(skip_empty=True).classes.tolist() == [0, 1]
    second = stream.second_pass(skip_empty=True)
    with refused(ValueError, "labels must be of classes that the first pass has seen"):
        second.update(FEATURES, LABELS)
    with refused(ValueError, "features must have 4 columns, got 3"):
        second.update(FEATURES[:, :3], LABELS)
    with refused(ValueError, "features must have 4 columns, got 3"):
        stream.update(FEATURES[:, :3], LABELS)
    with refused(
        ValueError, "the second pass must see the samples of the first, [2, 2] of each class, got [0, 0]"
    ):
        second.compute()
    for other in (StreamingStats(4, 4), StreamingStats(3, 5), StreamingStats(3, 4, "trace")):
        with refused(ValueError, "other must have the same num_classes, dim, cov, dtype and class_counts"):
            stream.merge(other)
    with refused(ValueError, "other must have the same"):
        stream.merge(StreamingStats(3, 4, class_counts=torch.tensor([2, 2, 3])))
    promised = StreamingStats(3, 4, class_counts=torch.tensor([2, 2, 3]))
    promised.update(FEATURES, LABELS)
    with refused(ValueError, "class_counts must be the sizes that came, [2, 2, 2], got [2, 2, 3]"):
        promised.compute()


def test_features_whose_squares_leave_the_type():
    """float64 has no number for the square of 1e-170, nor for that of 1e+160."""
    for factor in (1e-150, 1e150):
        with refused(ValueError, "features must be spread between 7e-139 and 2e+146 in torch.float64, got"):
            stats(features=factor * FEATURES)
        stream = StreamingStats(3, 4)
        stream.update(factor * FEATURES, LABELS)
        with refused(ValueError, "features must be spread between"):
            stream.compute()
    with refused(ValueError, "features must be spread between 1e-06 and 8e+07 in torch.float32, got"):
        stats(features=1e-12 * FEATURES.float(), cov="lowrank")
    assert float(nc1(stats(features=1e-9 * FEATURES.float()))) == pytest.approx(float(nc1(stats())), rel=1e-4)


def test_metrics():
    with refused(ValueError, "kind must be 'pinv' or 'trace', got 'sum'"):
        nc1(stats(), "sum")
    with refused(ValueError, "stats must have within_cov or within_gram for kind='pinv', got neither"):
        nc1(stats(cov="trace"))
    lonely = class_stats(FEATURES[:5], LABELS[:5], 3)
    for kind in ("pinv", "trace"):
        with refused(ValueError, "stats must have at least 2 samples of each class for NC1, got 1 of [2]"):
            nc1(lonely, kind)
    with refused(ValueError, "frame must be 'etf' or 'orthogonal', got 'simplex'"):
        nc2(stats(), "simplex")
    with refused(ValueError, "kind must be 'alignment' or 'papyan', got 'cosine'"):
        nc3(stats(), torch.ones(3, 4), "cosine")
    for shape in ((3, 5), (2, 4), (4,)):
        with refused(ValueError, f"weight must be [num_classes, 4] with a row for class 2, got {shape}"):
            nc3(stats(), torch.ones(shape))
    with refused(ValueError, "weight must be finite, got NaN or infinity"):
        nc3(stats(), NAN[:3])
    with refused(TypeError, "weight must be floating point, got torch.int64"):
        nc3(stats(), torch.ones(3, 4).long())
    with refused(ValueError, "weight must be [num_classes, 4] with a row for class 2, got (2, 4)"):
        norm_variation(stats(), torch.ones(2, 4))
    with refused(ValueError, "outliers must be [num_samples, 4] and not empty, got (0, 4)"):
        nc5(stats(), FEATURES[:0])
    with refused(ValueError, "outliers must be finite, got NaN or infinity"):
        nc5(stats(), NAN)
    with refused(TypeError, "outliers must be floating point, got torch.int64"):
        nc5(stats(), FEATURES.long())


@pytest.mark.parametrize(
    ("features", "predictions", "error", "message"),
    [
        (
            FEATURES,
            LABELS[:5],
            ValueError,
            "predictions must be labels [6] or logits [6, num_classes], got (5,)",
        ),
        (FEATURES, LABELS.double(), TypeError, "predictions must be integers unless they are logits"),
        (FEATURES[:0], LABELS[:0], ValueError, "features must not be empty"),
        (FEATURES[:, :3], LABELS, ValueError, "features must have 4 columns, got 3"),
        (FEATURES.long(), LABELS, TypeError, "features must be floating point, got torch.int64"),
        (NAN, LABELS, ValueError, "features must be finite"),
        (FEATURES, NAN[:, :3], ValueError, "predictions must not be NaN"),
        (FEATURES, LABELS.tolist(), TypeError, "predictions must be a tensor, got list"),
    ],
)
def test_nc4(features, predictions, error, message):
    with refused(error, message):
        nc4(stats(), features, predictions)


def test_means_that_span_too_little_are_warned_of():
    """On a line, and in one point, where nothing is left to divide by."""
    line = FEATURES - stats().mean[LABELS] + torch.arange(3.0)[LABELS][:, None]
    with pytest.warns(UserWarning, match="span 1 directions instead of 2") as warned:
        assert 0 < float(nc1(stats(features=line))) < math.inf
    assert warned[0].filename == __file__
    point = torch.tensor([[1.0], [-1.0]]).repeat(3, 4)
    with pytest.warns(UserWarning, match="span 0 directions instead of 2"):
        assert float(nc1(stats(features=point))) == math.inf
    assert float(cdnv(stats(features=point))) == math.inf


COLUMNS = [
    ({"H": H.long()}, TypeError, "must be floating point, got torch.int64"),
    ({"H": NAN.mT}, ValueError, "must be finite, got NaN or infinity"),
    ({"H": H[:, :5]}, ValueError, "must be [d, N] and Y [K, N], got (4, 5) and (3, 6)"),
    ({"Y": 2 * Y}, ValueError, "Y must be one-hot in each column, got other values"),
    ({"Y": Y.sum(0, keepdim=True)}, ValueError, "num_classes must be at least 2, got 1"),
    ({"Y": Y[:, [0, 0, 1, 2, 3, 4]]}, ValueError, "Y must have equally many samples of each class"),
]
PENALTIES = [
    ({"lam_w": 0.0}, ValueError, "lam_w must be positive and finite, got 0.0"),
    ({"lam_w": math.nan}, ValueError, "lam_w must be positive and finite, got nan"),
    ({"lam_h": -0.1}, ValueError, "lam_h must not be negative, and finite, got -0.1"),
    ({"lam_h": math.inf}, ValueError, "lam_h must not be negative, and finite, got inf"),
]


@pytest.mark.parametrize(("changes", "error", "message"), [*COLUMNS, *PENALTIES])
def test_model(changes, error, message):
    arguments = {"H": H, "Y": Y, "lam_w": 0.1, "lam_h": 0.1} | changes
    with refused(error, message):
        objective(torch.ones(3, 4).double(), **arguments)
    given = {("H0" if name == "H" else name): value for name, value in arguments.items()}
    with refused(error, message):
        near_features(**given, beta=1.0)
    with refused(error, message):
        central_path(**given, times=[1.0])
    del arguments["lam_h"]
    if "lam_h" not in changes:
        with refused(error, message):
            closed_form_w(**arguments)


def test_parameters_of_model():
    for value in (0.0, -1.0, math.nan):
        for name in ("beta", "tol"):
            with refused(ValueError, f"{name} must be positive and finite, got {value}"):
                near_features(H, Y, 0.1, 0.1, **({"beta": 1.0} | {name: value}))
    with refused(ValueError, "max_iter must be positive and finite, got 0"):
        near_features(H, Y, 0.1, 0.1, 1.0, max_iter=0)
    with refused(TypeError, "max_iter must be an integer, got 2.5"):
        near_features(H, Y, 0.1, 0.1, 1.0, max_iter=2.5)
    with refused(TypeError, "Y must be a tensor, got list"):
        near_features(H, Y.tolist(), 0.1, 0.1, 1.0)
    with refused(ValueError, "W must be [3, 4], got (4, 3)"):
        objective(torch.ones(4, 3).double(), H, Y, 0.1, 0.1)
    for given in (None, H[:, :5]):
        with refused(ValueError, "H0 must be (4, 6) where beta is not 0"):
            objective(torch.ones(3, 4).double(), H, Y, 0.1, 0.1, beta=1.0, H0=given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": []}, "times must be increasing, finite and not negative, got []"),
        ({"times": [1.0, 1.0]}, "times must be increasing, finite and not negative, got [1.0, 1.0]"),
        ({"times": [-1.0, 1.0]}, "times must be increasing, finite and not negative, got [-1.0, 1.0]"),
        ({"times": [0.0, math.inf]}, "times must be increasing, finite and not negative"),
        ({"times": torch.tensor([math.nan])}, "times must be increasing, finite and not negative"),
        ({"method": "leapfrog"}, "method must be 'euler', 'rk4', 'rk45' or 'implicit', got 'leapfrog'"),
        ({"max_step": 0.0}, "max_step must be positive and finite, got 0.0"),
        ({"tol": -1e-3}, "tol must be positive and finite, got -0.001"),
    ],
)
def test_central_path(changes, message):
    with refused(ValueError, message):
        central_path(**({"H0": H, "Y": Y, "lam_w": 0.1, "lam_h": 0.1, "times": [1.0]} | changes))


@pytest.mark.parametrize(("method", "max_step"), [("euler", 2.0), ("rk4", 3.0), ("euler", 1e200)])
def test_steps_that_are_too_long_for_the_path(method, max_step):
    """`H` decays at the rate `lam_h` at least, and faster along `W`: explicit steps of more than 2 over it explode."""
    with refused(
        RuntimeError, f"max_step must be short enough for '{method}' to follow the path, got {max_step}"
    ):
        central_path(H, Y, 0.01, 1.5, [0.0, 10 * max_step], method, max_step=max_step)


SPECTRUM = {"num_classes": 3, "dim": 4, "samples_per_class": 2, "lam_w": 0.1, "lam_h": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *((changes, message) for changes, _, message in PENALTIES),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"dim": 2}, "dim must be at least num_classes = 3, got 2"),
        ({"samples_per_class": 0}, "samples_per_class must be positive and finite, got 0"),
    ],
)
def test_closed_forms(changes, message):
    with refused(ValueError, message):
        ufm_minimizer(**(SPECTRUM | changes))
    with refused(ValueError, message):
        predicted_spectrum(**(SPECTRUM | changes), beta=10.0)


def test_closed_forms_need_collapse():
    with refused(ValueError, "lam_h must be positive, or the features grow without bound, got 0"):
        ufm_minimizer(**(SPECTRUM | {"lam_h": 0}))
    for lam_h in (0.0, 10.0, 20.0):
        with refused(ValueError, "lam_w * lam_h must lie in (0, 1), or nothing collapses"):
            predicted_spectrum(**(SPECTRUM | {"lam_h": lam_h}), beta=10.0)
    with refused(ValueError, "beta must be positive and finite, got 0"):
        predicted_spectrum(**SPECTRUM, beta=0)
    with refused(ValueError, "order must be 'exact' or 'first', got 'second'"):
        predicted_spectrum(**SPECTRUM, beta=1.0, order="second")


def test_transfer():
    solution = near_features(H, Y, 0.1, 0.1, 2.0)
    with refused(TypeError, "dH0 must be floating point, got torch.int64"):
        transfer(H.long(), solution)
    with refused(ValueError, "dH0 must be [..., 4, 6], got (4, 5)"):
        transfer(H[:, :5], solution)
    with refused(ValueError, "dH0 must be finite, got NaN or infinity"):
        transfer(NAN.mT, solution)
    with refused(ValueError, "order must be 'exact' or 'first', got 'second'"):
        transfer(H, solution, order="second")
    with refused(ValueError, "tol must be positive and finite, got 0"):
        transfer(H, solution, tol=0)
    with refused(RuntimeError, "conjugate gradients did not reach tol=1e-12 in 1 iterations"):
        transfer(H, solution, max_iter=1)
    for classes in ((0, 0), (0, 3), (-1, 0)):
        with refused(ValueError, f"classes must be two different labels in [0, 3), got {classes}"):
            transfer_spectrum(solution, classes)
    with refused(ValueError, "max_size must be at least d n = 8 for these blocks, got 7"):
        transfer_spectrum(solution, max_size=7)


def test_transfer_from_no_minimum():
    with pytest.warns(UserWarning, match="the solution has not converged"):
        transfer(H, near_features(H, Y, 0.1, 0.1, 2.0, max_iter=1))
    # At the origin, a saddle where the penalties are small, nothing moves: S has negative curvature.
    saddle = near_features(torch.zeros_like(H), Y, 0.1, 0.1, 0.1)
    assert not saddle.H.any()
    with refused(RuntimeError, "solution must be a strict minimum"):
        transfer(H, saddle)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"layers": ["0", "5"]},
            ValueError,
            "layers and head must name submodules, got ['5'] that match none",
        ),
        ({"head": "7"}, ValueError, "layers and head must name submodules, got ['7'] that match none"),
        ({"layers": ["2"]}, ValueError, "layers must not name the head '2'"),
        (
            {"layers": [], "head": None},
            ValueError,
            "layers must name at least one submodule, or head be given",
        ),
        ({"head": "1"}, ValueError, "head must be a layer with a weight [num_classes, d], got ReLU()"),
        ({"head": None}, ValueError, "num_classes must be given where there is no head, got None"),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        (
            {"pool": "max"},
            ValueError,
            "pool must be one of ('auto', 'mean', 'token_mean', 'flatten') or a function, got 'max'",
        ),
        ({"cov": "lowrank"}, ValueError, "cov must be 'full' or 'trace', got 'lowrank'"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float64 or float32, got torch.int8"),
    ],
)
def test_meter(changes, error, message):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with refused(error, message):
        NCMeter(model, **({"layers": ["0"], "head": "2"} | changes))


def test_use_of_the_meter():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    meter = NCMeter(model, ["0"], head="2")
    batch = FEATURES.float(), LABELS
    with refused(ValueError, "passes must be 1 or 2, got 3"):
        meter.run([batch], passes=3)
    with refused(ValueError, "the meter must have seen a batch before it can report, got none"):
        meter.run([])
    with refused(ValueError, "(an iterator cannot be gone over twice)"):
        meter.run(iter([batch]))
    model(batch[0])
    with refused(RuntimeError, "update must follow a forward of the model inside the meter's context"):
        meter.update(LABELS)
    with meter:
        model(batch[0])
        meter.update(LABELS)
        with refused(RuntimeError, "got none of ['0', '2']"):
            meter.update(LABELS)


def test_predictions_that_are_no_logits_of_all_classes():
    labels = torch.arange(6) % 3
    for predictions in (labels[:, None], torch.randn(6, 2)):
        with refused(ValueError, "predictions must have a column for class 2, or be labels [6], got"):
            nc4(stats(), FEATURES, predictions)
    with refused(TypeError, "predictions must be integers unless they are logits, got torch.bool"):
        nc4(stats(), FEATURES, labels > 0)


def test_features_are_no_statistics():
    for metric in (nc1, nc2, cdnv, norm_variation):
        with refused(TypeError, "stats must be Stats, such as class_stats returns, got Tensor"):
            metric(FEATURES)
    for metric in (nc3, nc5):
        with refused(TypeError, "stats must be Stats"):
            metric(FEATURES, FEATURES)
    with refused(TypeError, "stats must be Stats"):
        nc4(FEATURES, FEATURES, torch.arange(6) % 3)


def test_weights_whose_norms_are_asked_for():
    with refused(TypeError, "weight must be a tensor, got list"):
        norm_variation(stats(), [1.0])
    with refused(ValueError, "weight must be [num_classes, 4] with a row for class 2, got (3, 5)"):
        norm_variation(stats(), torch.ones(3, 5))
    with refused(ValueError, "weight must be finite"):
        norm_variation(stats(), torch.full((3, 4), math.nan))


def test_a_stream_does_not_join_itself():
    stream = StreamingStats(3, 4)
    stream.update(FEATURES, torch.arange(6) % 3)
    with refused(ValueError, "other must not be this object itself"):
        stream.merge(stream)
    with refused(TypeError, "other must be a StreamingStats, got Stats"):
        stream.merge(stream.compute())


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_the_objective_has_no_such_pull(beta):
    W, Y = torch.ones(3, 4), torch.eye(3).repeat(1, 2)
    with refused(ValueError, f"beta must not be negative, and finite, got {beta}"):
        objective(W, FEATURES.mT, Y, 0.1, 0.1, beta, FEATURES.mT)


def test_numbers_as_text_are_named():
    H, Y = FEATURES.mT, torch.eye(3).repeat(1, 2)
    for name, numbers in {
        "lam_w": ("1e-3", 0.1, 1.0),
        "lam_h": (0.1, "1e-3", 1.0),
        "beta": (0.1, 0.1, "1e-3"),
    }.items():
        with refused(TypeError, f"{name} must be a number, got '1e-3'"):
            near_features(H, Y, *numbers)
