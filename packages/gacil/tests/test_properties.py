"""What must hold for every stream: the invariants of the theorem and of the statistics."""

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from gacil import AnalyticClassifier, gacil_update, joint_solution, si_blurry

ENGINES = st.sampled_from(["gram", "recursive"])
SEEDS = st.integers(0, 10**6)
GAMMAS = st.floats(0.05, 20.0)
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def problem(seed, num_samples=30, width=8, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, width, generator=generator, dtype=torch.float64)
    y = torch.randint(num_classes, (num_samples,), generator=generator)
    y[-1] = num_classes - 1  # so that every problem has as many columns
    return x, y


def fitted(x, y, gamma=0.5, engine="gram", **options):
    return AnalyticClassifier(x.shape[1], gamma=gamma, engine=engine, **options).partial_fit(x, y)


@given(SEEDS, ENGINES, GAMMAS, st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_any_split_and_order_leads_to_the_joint_solution(seed, engine, gamma, cuts, class_by_class):
    x, y = problem(seed)
    order = (
        y.argsort() if class_by_class else torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    )
    classifier = AnalyticClassifier(8, gamma=gamma, engine=engine)
    for rows in order.tensor_split(sorted(cuts)):  # some of them empty
        classifier.partial_fit(x[rows], y[rows])
    torch.testing.assert_close(classifier.weight, joint_solution(x, y, gamma), **EXACT)
    assert classifier.class_counts.tolist() == torch.bincount(y, minlength=4).tolist()
    assert int(classifier.num_samples) == 30


@given(SEEDS, GAMMAS)
def test_the_parts_of_a_step_add_up_to_the_weight(seed, gamma):
    x, y = problem(seed)
    exposed = torch.zeros(4, dtype=torch.bool)
    weight, inverse = torch.zeros(8, 4, dtype=torch.float64), torch.eye(8, dtype=torch.float64) / gamma
    for rows in torch.arange(30).split(7):
        step = gacil_update(weight[:, exposed], inverse, x[rows], one_hot(y[rows], 4), exposed)
        torch.testing.assert_close(step.memory + step.eclg, step.weight[:, exposed], **EXACT)
        torch.testing.assert_close(step.unexposed, step.weight[:, ~exposed], **EXACT)
        met = torch.isin(torch.arange(4), y[rows])
        if not (met & exposed).any():
            assert step.eclg.count_nonzero() == 0
        if exposed.all():
            assert step.unexposed.shape == (8, 0)
        exposed, before = exposed | met, inverse
        # Columns of classes that are still to come are zero, and no step counts them as exposed.
        weight, inverse = step.weight, step.inverse
        assert torch.linalg.eigvalsh(before - inverse).min() > -1e-10
    torch.testing.assert_close(weight, joint_solution(x, y, gamma), **EXACT)


@given(SEEDS, GAMMAS)
def test_the_inverse_shrinks_within_its_bounds(seed, gamma):
    x, y = problem(seed)
    classifier = AnalyticClassifier(8, gamma=gamma, engine="recursive")
    previous = classifier.engine.inverse.clone()
    for rows in torch.arange(30).split(6):
        inverse = classifier.partial_fit(x[rows], y[rows]).engine.inverse.clone()
        torch.testing.assert_close(inverse, inverse.mT, rtol=1e-13, atol=1e-15)
        eigenvalues = torch.linalg.eigvalsh(inverse)
        assert eigenvalues.min() > 0
        assert eigenvalues.max() <= 1 / gamma * (1 + 1e-12)
        assert torch.linalg.eigvalsh(previous - inverse).min() > -1e-10
        previous = inverse


@given(SEEDS, st.lists(ENGINES, min_size=3, max_size=3), GAMMAS)
def test_merge_is_commutative_associative_and_a_fit_on_everything(seed, engines, gamma):
    x, y = problem(seed)
    shards = [slice(0, 5), slice(5, 17), slice(17, 30)]

    def parts():
        return [fitted(x[s], y[s], gamma, engine) for s, engine in zip(shards, engines, strict=True)]

    expected = joint_solution(x, y, gamma)
    a, b, c = parts()
    torch.testing.assert_close(a.merge(b, c).weight, expected, **EXACT)
    assert int(a.num_samples) == 30
    assert torch.equal(a.class_counts, torch.bincount(y, minlength=4))
    a, b, c = parts()
    torch.testing.assert_close(c.merge(b.merge(a)).weight, expected, **EXACT)
    a, b, c = parts()
    torch.testing.assert_close(b.merge(a).merge(c).weight, expected, **EXACT)
    # What was merged in is left alone.
    torch.testing.assert_close(c.weight, fitted(x[shards[2]], y[shards[2]], gamma).weight, **EXACT)


@given(SEEDS, ENGINES, GAMMAS, st.integers(0, 29), st.integers(1, 4))
def test_forget_is_never_having_seen(seed, engine, gamma, kept, pieces):
    x, y = problem(seed)
    classifier = fitted(x, y, gamma, engine)
    for rows in torch.arange(kept, 30).tensor_split(pieces):
        classifier.forget(x[rows], y[rows])
    expected = torch.zeros(8, 4, dtype=torch.float64)
    if kept:
        joint = joint_solution(x[:kept], y[:kept], gamma)
        expected[:, : joint.shape[1]] = joint
    torch.testing.assert_close(classifier.weight, expected, rtol=1e-7, atol=1e-9)
    assert torch.equal(classifier.class_counts, torch.bincount(y[:kept], minlength=4))
    assert torch.equal(classifier.seen, torch.isin(torch.arange(4), y[:kept]))


@given(SEEDS, ENGINES)
def test_gamma_towards_infinity_gives_class_sums_and_towards_zero_least_squares(seed, engine):
    x, y = problem(seed)
    targets = one_hot(y, 4).double()
    far = fitted(x, y, 1e9, engine)
    torch.testing.assert_close(1e9 * far.weight, x.mT @ targets, rtol=1e-6, atol=1e-6)
    near = fitted(x, y, 1e-9, "gram")
    torch.testing.assert_close(near.weight, torch.linalg.lstsq(x, targets).solution, rtol=1e-6, atol=1e-7)


@given(SEEDS, ENGINES, st.permutations(range(4)))
def test_new_names_for_the_classes_permute_the_columns(seed, engine, names):
    x, y = problem(seed)
    permutation = torch.tensor(names)
    original, renamed = fitted(x, y, engine=engine).weight, fitted(x, permutation[y], engine=engine).weight
    missing = permutation.shape[0] - renamed.shape[1]
    renamed = torch.nn.functional.pad(renamed, (0, missing))
    torch.testing.assert_close(renamed[:, permutation], original, **EXACT)


@given(SEEDS, ENGINES, st.booleans())
def test_an_integer_sample_weight_repeats_the_sample(seed, engine, bias):
    x, y = problem(seed)
    repeats = torch.randint(3, (30,), generator=torch.Generator().manual_seed(seed))
    assume(repeats[-1] > 0)
    weighted = AnalyticClassifier(8, engine=engine, bias=bias).partial_fit(x, y, repeats)
    repeated = fitted(x.repeat_interleave(repeats, 0), y.repeat_interleave(repeats), 0.1, engine, bias=bias)
    torch.testing.assert_close(weighted.weight, repeated.weight, **EXACT)
    torch.testing.assert_close(weighted.intercept, repeated.intercept, **EXACT)
    assert torch.equal(weighted.seen, repeated.seen)
    weighted.forget(x, y, repeats)
    assert weighted.weight.abs().max() < 1e-8


@given(SEEDS, ENGINES)
def test_a_new_class_without_samples_changes_no_score(seed, engine):
    x, y = problem(seed)
    classifier = fitted(x, y, engine=engine)
    before, labels = classifier(x), classifier.predict(x)
    classifier.partial_fit(x[:0], torch.zeros(0, 9))  # an empty batch is no news
    assert classifier.num_classes == 4
    wide = fitted(x, torch.nn.functional.pad(one_hot(y, 4).double(), (0, 3)), engine=engine)
    assert wide.num_classes == 7
    torch.testing.assert_close(wide(x)[:, :4], before, **EXACT)
    assert wide(x)[:, 4:].eq(float("-inf")).all()
    assert wide(x, mask_unseen=False)[:, 4:].eq(0).all()
    assert torch.equal(wide.predict(x), labels)


@given(SEEDS, ENGINES, st.booleans())
def test_a_state_dict_is_the_classifier(seed, engine, bias):
    x, y = problem(seed)
    original = AnalyticClassifier(8, gamma=0.3, engine=engine, bias=bias).partial_fit(x[:20], y[:20])
    restored = AnalyticClassifier(8, gamma=7.0, engine=engine, bias=bias).partial_fit(x[:2], y[:2])
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    assert restored.gamma == 0.3
    for classifier in (original, restored):
        classifier.partial_fit(x[20:], y[20:])
    assert torch.equal(restored.weight, original.weight)
    assert torch.equal(restored.class_counts, original.class_counts)


@given(SEEDS, ENGINES, GAMMAS, GAMMAS)
def test_gamma_may_be_changed_afterwards(seed, engine, first, second):
    x, y = problem(seed)
    classifier = fitted(x, y, first, engine)
    classifier.gamma = second
    torch.testing.assert_close(classifier.weight, joint_solution(x, y, second), rtol=1e-7, atol=1e-9)


@given(
    SEEDS,
    st.integers(1, 6),
    st.integers(6, 12),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_blurry_stream_holds_each_sample_once_and_most_of_a_class_at_home(
    seed, num_tasks, num_classes, disjoint_ratio, blurry_ratio
):
    labels = 3 * torch.arange(num_classes).repeat(20)  # labels need not be consecutive
    generator = torch.Generator().manual_seed(seed)
    tasks = si_blurry(labels, num_tasks, disjoint_ratio, blurry_ratio, generator=generator)
    assert len(tasks) == num_tasks
    assert torch.cat(tasks).sort().values.equal(torch.arange(20 * num_classes))
    assert all(len(task) for task in tasks)  # each has a class of its own
    counts = torch.stack([torch.bincount(labels[task] // 3, minlength=num_classes) for task in tasks])
    at_home = counts.max(0).values
    assert int((at_home == 20).sum()) >= round(disjoint_ratio * num_classes)
    if blurry_ratio <= 0.5:
        assert int(at_home.min()) >= 20 - round(blurry_ratio * 20)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_limits_of_blurriness_are_class_incremental_and_iid(ratio):
    labels = torch.arange(5).repeat(400)
    tasks = si_blurry(labels, 5, 0.0, ratio, generator=torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(labels[task], minlength=5) for task in tasks]).double()
    if ratio == 0:
        assert counts.max(0).values.eq(400).all()
    else:  # 20 free cells of expectation 80: five standard deviations of chi square
        assert ((counts - 80).square() / 80).sum() < 20 + 5 * 40**0.5
