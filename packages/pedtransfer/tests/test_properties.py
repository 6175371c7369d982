"""What must hold for every input: invariants of the descent, of the scores and of the correlations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pedtransfer import (
    ReferenceStats,
    gbc,
    hscore,
    kendall,
    leep,
    logme,
    nce,
    nleep,
    parc,
    pearson,
    ped,
    sfda,
    weighted_kendall,
)
from pedtransfer.discriminant import _shrinkage

seeds = st.integers(0, 10**6)
SCORES = [sfda, logme, gbc, hscore, parc]


@st.composite
def some_problem(draw, least_classes=2, most_classes=6):
    """Overlapping classes of any size, at least two samples each, and a reference of other scales."""
    num_classes, dimensions = draw(st.integers(least_classes, most_classes)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(seeds))
    counts = [draw(st.integers(2, 9)) for _ in range(num_classes)]
    labels = torch.repeat_interleave(torch.arange(num_classes), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.randn(num_classes, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dimensions, generator=generator, dtype=torch.float64)
    std = 0.5 + torch.rand(dimensions, generator=generator, dtype=torch.float64)
    mean = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    return 0.5 * means[labels] + noise, labels, ReferenceStats(mean, std)


some_dynamics = st.fixed_dictionaries(
    {
        "nsigma": st.floats(0.1, 2.0),
        "dt": st.floats(0.05, 1.5),
        "stiffness": st.floats(0.5, 2.0),
        "exit_ratio": st.floats(0.0, 0.9),
        "max_steps": st.integers(1, 8),
    }
)


def means_of(features, labels):
    return torch.stack([features[labels == label].mean(0) for label in labels.unique()])


def rotation(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


@given(problem=some_problem(), dynamics=some_dynamics)
def test_no_momentum_is_made(problem, dynamics):
    features, labels, reference = problem
    shift = ped(features, labels, reference, **dynamics).shift
    torch.testing.assert_close(
        shift.sum(0), torch.zeros(shift.shape[1], dtype=torch.float64), atol=1e-12, rtol=0
    )


@given(problem=some_problem(), dynamics=some_dynamics)
def test_a_class_moves_as_a_whole(problem, dynamics):
    features, labels, reference = problem
    before = features.clone()
    found = ped(features, labels, reference, **dynamics)
    assert torch.equal(features, before)
    torch.testing.assert_close(found.features - features, found.shift[labels], atol=1e-12, rtol=0)
    for label in labels.unique():
        torch.testing.assert_close(found.features[labels == label].T.cov(), features[labels == label].T.cov())


@given(problem=some_problem(), nsigma=st.floats(0, 1))
def test_without_overlap_nothing_moves(problem, nsigma):
    features, labels, reference = problem
    apart = (
        features + 1e3 * torch.nn.functional.one_hot(labels, features.shape[1] + 6)[:, : features.shape[1]]
    )
    assume(labels.max() < features.shape[1])
    for x, radius in ((features, 0.0), (apart, nsigma)):
        found = ped(x, labels, reference, nsigma=radius)
        assert torch.equal(found.features, x)
        assert (found.steps, found.energies, found.changes) == (0, (0.0,), (0.0,))


@given(problem=some_problem(most_classes=2), dynamics=some_dynamics)
def test_two_classes_part_by_twice_the_step_along_their_line(problem, dynamics):
    features, labels, reference = problem
    one_step = dynamics | {"max_steps": 1, "dt": min(dynamics["dt"], 0.9), "stiffness": 1.3}
    found = ped(features, labels, reference, **one_step)

    def line(x):
        first, second = means_of((x - reference.mean) / reference.std, labels)
        return first - second

    z = (features - reference.mean) / reference.std
    radii = sum(z[labels == label].var(0, correction=0).sum().sqrt() for label in (0, 1))
    before, after = line(features), line(found.features)
    overlap = max(float(one_step["nsigma"] * radii - before.norm()), 0.0)
    step = min(0.5 * one_step["dt"] ** 2 * 1.3 * overlap, overlap)
    assert float(after.norm() - before.norm()) == pytest.approx(2 * step, abs=1e-12)
    torch.testing.assert_close(after / after.norm(), before / before.norm())


@given(problem=some_problem(), dynamics=some_dynamics, seed=seeds)
def test_names_and_order_of_samples_do_not_matter(problem, dynamics, seed):
    features, labels, reference = problem
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)
    names = torch.randperm(1000, generator=generator)[: int(labels.max()) + 1] - 500
    found = ped(features, labels, reference, **dynamics)
    other = ped(features[rows], names[labels][rows], reference, **dynamics)
    assume(other.steps == found.steps)  # a change that equals the exit ratio to rounding may go either way
    torch.testing.assert_close(other.features, found.features[rows])
    assert other.classes.tolist() == sorted(names.tolist())
    for score in SCORES:
        assert score(features[rows], names[labels][rows]) == pytest.approx(score(features, labels), abs=1e-8)


@given(problem=some_problem(), nsigma=st.floats(0.2, 2), seed=seeds)
def test_descent_turns_with_the_features(problem, nsigma, seed):
    features, labels, _ = problem
    turn, identity = rotation(features.shape[1], seed), ReferenceStats.identity(features.shape[1])
    options = {"nsigma": nsigma, "dt": 0.6, "exit_ratio": 0.0}
    found = ped(features, labels, identity, **options)
    torch.testing.assert_close(
        ped(features @ turn, labels, identity, **options).features, found.features @ turn
    )


@given(problem=some_problem(), seed=seeds)
def test_scores_that_know_no_axes(problem, seed):
    features, labels, _ = problem
    turned = features @ rotation(features.shape[1], seed)
    assert logme(turned, labels) == pytest.approx(logme(features, labels), abs=1e-9)
    assert hscore(turned, labels) == pytest.approx(hscore(features, labels), abs=1e-9)
    assert 0 <= hscore(features, labels) <= int(labels.max()) + 1e-9


@given(problem=some_problem(most_classes=4), nsigma=st.floats(0.2, 1.5))
def test_energy_falls_in_small_steps(problem, nsigma):
    features, labels, reference = problem
    found = ped(features, labels, reference, nsigma=nsigma, dt=0.1, exit_ratio=0.0)
    assert all(
        later <= earlier + 1e-12 for earlier, later in zip(found.energies, found.energies[1:], strict=False)
    )


@given(problem=some_problem(), power=st.integers(-3, 3))
def test_units_of_features_do_not_matter_where_the_reference_has_them(problem, power):
    features, labels, reference = problem
    scale = 10.0**power
    scaled = ReferenceStats(scale * reference.mean, scale * reference.std)
    found, other = (
        ped(*arguments, dt=0.5)
        for arguments in ((features, labels, reference), (scale * features, labels, scaled))
    )
    torch.testing.assert_close(other.shift, scale * found.shift)


@given(seed=seeds, num_source=st.integers(2, 5))
def test_leep_of_certain_sources_is_nce_and_neither_is_positive(seed, num_source):
    rng = np.random.default_rng(seed)
    source = rng.integers(num_source, size=30)
    labels = np.concatenate([[0, 1], rng.integers(3, size=28)])
    certain = np.eye(num_source)[source]
    assert leep(certain, labels) == pytest.approx(nce(certain, labels), abs=1e-12)
    assert nce(certain, labels) < 1e-12
    assert leep(rng.dirichlet(np.ones(num_source), size=30), labels) < 1e-12
    determined = np.concatenate([[0, 1], source[2:] % 2])  # the source tells the target
    for score in (leep, nce):
        told = np.eye(num_source)[np.concatenate([[0, 1], source[2:]])]
        assert score(told, determined) == pytest.approx(0, abs=1e-12)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20, unique=True))
def test_the_same_order_is_one_and_the_reverse_is_minus_one(values):
    x = np.array(values)
    ranks = x.argsort().argsort().astype(float)
    for measure in (weighted_kendall, kendall):
        assert measure(x, ranks) == pytest.approx(1)
        assert measure(x, -ranks) == pytest.approx(-1)
    assert pearson(x, 3 * x) == pytest.approx(1)


@pytest.mark.parametrize("score", [*SCORES, nleep])
@pytest.mark.parametrize(
    "form",
    ["float32", "negative strides", "int32 labels in a column", "list", "other byte order", "integers"],
)
def test_the_form_of_the_input_does_not_matter(problem, score, form):
    features, labels, _ = problem(num=60, num_classes=3)
    features = np.round(features * 16)  # exact in every form
    expected = score(features, labels)
    given_as = {
        "float32": (torch.from_numpy(features).float().requires_grad_(), torch.from_numpy(labels)),
        "negative strides": (features[::-1].copy()[::-1], labels[::-1].copy()[::-1]),
        "int32 labels in a column": (features, labels.astype(np.int32)[:, None]),
        "list": (features.tolist(), labels.tolist()),
        "other byte order": (features.astype(">f8"), labels.astype(">i4")),
        "integers": (features.astype(np.int16), labels.astype(np.uint8)),
    }
    assert score(*given_as[form]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_scoring_twice_gives_the_same_and_changes_nothing(problem, score):
    features, labels, _ = problem()
    x = torch.from_numpy(features.copy())
    assert score(x, labels) == score(x, labels)
    assert np.array_equal(x.numpy(), features)


@pytest.mark.parametrize("score", [sfda, hscore, gbc, parc])
def test_an_offset_does_not_matter(problem, score):
    features, labels, _ = problem()
    assert score(features + 1e5, labels) == pytest.approx(score(features, labels), rel=1e-6)


@pytest.mark.parametrize("score", [sfda, logme, hscore])
@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e6, 1e100])
def test_scales_that_float64_holds_are_scored(problem, score, scale):
    features, labels, _ = problem()
    value = score(features * scale, labels)
    assert math.isfinite(value)
    if score is hscore:
        assert value == pytest.approx(hscore(features, labels), abs=1e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e-8, 1e150])
def test_scores_that_know_no_scale(problem, scale):
    features, labels, _ = problem()
    for score in (parc, lambda x, y: hscore(x, y, shrinkage="ledoit-wolf")):
        assert score(features * scale, labels) == pytest.approx(score(features, labels), abs=1e-8)


def test_constant_features_tell_nothing():
    """Whatever the rounding of their mean: 0.1 has some, and D = 80 is more than the components that GBC keeps."""
    labels = np.arange(90) % 3
    for value in (0.0, 0.1):
        x = np.full((90, 80), value)
        assert gbc(x, labels) == -3  # all three pairs overlap in full
        for shrinkage in (None, "ledoit-wolf"):
            assert hscore(x, labels, shrinkage=shrinkage) == 0


@pytest.mark.parametrize("score", [sfda, logme, hscore, gbc, parc, nleep])
def test_dead_and_repeated_columns_and_one_outlier(problem, score):
    features, labels, _ = problem(num=60, num_classes=3)
    dead = np.concatenate([features, np.full((60, 2), 3.0), features[:, :2]], 1)
    dead[7] += 1000
    assert math.isfinite(score(dead, labels))


def test_features_that_sum_to_a_constant_have_a_shrinkage(problem):
    """After a LayerNorm the rows of the covariance sum to 0, where the power iteration starts."""
    features, labels, _ = problem(dimensions=3, spread=1.0)
    features = features - features.mean(1, keepdims=True)
    plane = features @ np.array([[1, -1, 0], [1, 1, -2]]).T / np.sqrt([2, 6])  # the same in two dimensions
    residuals = plane - np.stack([plane[labels == label].mean(0) for label in labels])
    largest = np.linalg.eigvalsh(residuals.T @ residuals / len(plane))[-1]
    assert 0.05 < sfda(features, labels) < 1
    x = torch.from_numpy(features - np.stack([features[labels == label].mean(0) for label in labels]))
    assert _shrinkage(x / 7, torch.tensor(7.0)) == pytest.approx(np.exp(-5 * largest), rel=0.02)
