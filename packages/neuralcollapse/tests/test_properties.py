"""What must hold for all features: the metrics' invariances, and the theorems about the models."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcollapse import (
    StreamingStats,
    cdnv,
    central_path,
    class_stats,
    closed_form_w,
    nc1,
    nc2,
    nc3,
    near_features,
    objective,
    transfer,
    ufm_minimizer,
)

SEEDS = st.integers(0, 10**6)
FEW = min(4, settings.default.max_examples)  # for what solves or integrates
PENALTIES = st.floats(0.02, 0.9)


def generated(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(seed, num_classes=4, dim=6, size=5):
    generator = generated(seed)
    labels = torch.arange(num_classes).repeat(size)
    means = 2 * randn(num_classes, dim, generator=generator)
    return means[labels] + randn(len(labels), dim, generator=generator), labels, generator


def columns(seed, num_classes=3, dim=5, size=4):
    generator = generated(seed)
    Y = torch.eye(num_classes, dtype=torch.float64).repeat_interleave(size, dim=1)
    return randn(dim, num_classes * size, generator=generator), Y, generator


def all_metrics(features, labels, weight):
    stats = class_stats(features, labels, len(weight))
    lowrank = class_stats(features, labels, len(weight), cov="lowrank")
    return torch.stack(
        [
            nc1(stats),
            nc1(lowrank),
            nc1(stats, "trace"),
            nc2(stats),
            nc2(stats, "orthogonal"),
            nc3(stats, weight),
            nc3(stats, weight, "papyan"),
            cdnv(stats),
        ]
    )


@given(SEEDS, st.sampled_from([1e-60, 1e-3, 7.0, 1e60]))
def test_rotation_scale_order_and_names_of_classes_change_nothing(seed, scale):
    features, labels, generator = problem(seed)
    weight = randn(4, 6, generator=generator)
    expected = all_metrics(features, labels, weight)
    rotation = torch.linalg.qr(randn(6, 6, generator=generator)).Q
    order = torch.randperm(len(labels), generator=generator)
    names = torch.randperm(4, generator=generator)
    renamed = torch.empty_like(weight)
    renamed[names] = weight
    changed = all_metrics(
        scale * (features @ rotation)[order], names[labels][order], renamed @ rotation / scale
    )
    torch.testing.assert_close(changed, expected, rtol=1e-9, atol=1e-9)


@given(SEEDS)
def test_moving_the_origin_changes_nothing_but_the_orthogonal_frame(seed):
    features, labels, generator = problem(seed)
    weight = randn(4, 6, generator=generator)
    shifted = all_metrics(features + randn(6, generator=generator), labels, weight)
    centred = [0, 1, 2, 3, 5, 6, 7]
    expected = all_metrics(features, labels, weight)
    torch.testing.assert_close(shifted[centred], expected[centred], rtol=1e-9, atol=1e-9)


@given(SEEDS)
def test_nc1_is_blind_to_linear_maps_of_the_space_that_the_means_span(seed):
    features, labels, generator = problem(seed, num_classes=4, dim=3)
    transform = randn(3, 3, generator=generator) + 4 * torch.eye(3)
    mapped = nc1(class_stats(features @ transform, labels, 4))
    torch.testing.assert_close(mapped, nc1(class_stats(features, labels, 4)), rtol=1e-7, atol=0)


@given(SEEDS, st.lists(st.integers(0, 20), max_size=6), st.integers(0, 6), st.booleans())
def test_any_chunks_and_any_merge_are_the_two_pass_statistics(seed, cuts, split, unbalanced):
    features, labels, generator = problem(seed)
    features = features + 100
    if unbalanced:
        features, labels = features[:-3], labels[:-3]
    count = torch.bincount(labels)
    order = torch.randperm(len(labels), generator=generator)
    chunks = order.tensor_split(sorted(cuts))  # some of them empty
    left, right = (StreamingStats(4, 6, class_counts=count) for _ in range(2))
    for rows in chunks[:split]:
        left.update(features[rows], labels[rows])
    for rows in chunks[split:]:
        right.update(features[rows], labels[rows])
    exact = {"rtol": 1e-10, "atol": 1e-10}
    for merged in (left.merge(right).compute(), left.reduce_ddp().compute()):
        expected = class_stats(features, labels, 4)
        for name in ("mean", "count", "within_trace", "classes", "within_cov"):
            torch.testing.assert_close(getattr(merged, name), getattr(expected, name), **exact)
    second = left.second_pass()
    for rows in reversed(chunks):
        second.update(features[rows], labels[rows])
    lowrank = class_stats(features, labels, 4, cov="lowrank")
    torch.testing.assert_close(second.compute().within_gram, lowrank.within_gram, **exact)


@given(SEEDS, st.floats(1e-7, 1e-3))
def test_deep_collapse_keeps_its_digits_in_a_stream(seed, noise):
    """NC1~ of means plus `noise` times the same scatter is `noise^2` times that of `noise = 1`."""
    generator = generated(seed)
    labels = torch.arange(4).repeat(6)
    means, scatter = randn(4, 6, generator=generator), randn(24, 6, generator=generator)
    for label in range(4):
        scatter[labels == label] -= scatter[labels == label].mean(0)
    stream = StreamingStats(4, 6)
    for rows in torch.arange(24).split(5):
        stream.update((means[labels] + noise * scatter)[rows], labels[rows])
    expected = class_stats(means[labels] + scatter, labels, 4)
    for kind in ("trace", "pinv"):
        torch.testing.assert_close(
            nc1(stream.compute(), kind), noise**2 * nc1(expected, kind), rtol=1e-6, atol=0
        )


@given(SEEDS, st.integers(2, 6))
def test_collapsed_features_have_no_scatter_and_simplex_means_the_right_shape(seed, num_classes):
    generator = generated(seed)
    frame = torch.linalg.qr(randn(7, num_classes, generator=generator)).Q.mT
    labels = torch.arange(num_classes).repeat(3)
    simplex = frame - frame.mean(0) + randn(7, generator=generator)
    stats = class_stats(simplex[labels], labels, num_classes)
    metrics = [nc1(stats), nc1(stats, "trace"), cdnv(stats), nc2(stats)]
    metrics += [nc3(stats, 3 * stats.centred_mean, kind) for kind in ("alignment", "papyan")]
    assert max(map(float, metrics)) < 1e-12
    assert float(nc2(class_stats(frame[labels], labels, num_classes), "orthogonal")) < 1e-12


@settings(max_examples=FEW)
@given(SEEDS, PENALTIES, PENALTIES)
def test_no_perturbation_improves_the_collapsed_minimiser(seed, lam_w, lam_h):
    generator = generated(seed)
    W, H = ufm_minimizer(3, 5, 4, lam_w, lam_h, generator=generator)
    Y = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=1)
    variables = W.clone().requires_grad_(), H.clone().requires_grad_()
    gradients = torch.autograd.grad(objective(*variables, Y, lam_w, lam_h), variables)
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-12
    value = objective(W, H, Y, lam_w, lam_h)
    for scale in torch.logspace(-3, 1, 40):
        moved = [tensor + scale * randn(*tensor.shape, generator=generator) for tensor in (W, H)]
        assert float(objective(*moved, Y, lam_w, lam_h)) > float(value)
    torch.testing.assert_close(closed_form_w(H, Y, lam_w), W, rtol=1e-10, atol=1e-12)


@settings(max_examples=FEW)
@given(SEEDS, PENALTIES, PENALTIES, st.floats(0.2, 50))
def test_the_solver_descends_to_a_stationary_point(seed, lam_w, lam_h, beta):
    H0, Y, _ = columns(seed)
    solution = near_features(H0, Y, lam_w, lam_h, beta, tol=1e-12)
    assert solution.converged
    assert float(solution.objectives.diff().max()) < 1e-14
    W, H = solution.W.requires_grad_(), solution.H.requires_grad_()
    value = objective(W, H, Y, lam_w, lam_h, beta, H0)
    torch.testing.assert_close(value, solution.objective, rtol=1e-12, atol=1e-14)
    for gradient in torch.autograd.grad(value, [W, H]):
        assert float(gradient.norm()) < 1e-9 * (1 + beta)
    assert float(solution.gradient_norm) < 1e-9 * (1 + beta)


@given(SEEDS, PENALTIES, PENALTIES, st.floats(0.1, 100))
def test_collapsed_features_stay(seed, lam_w, lam_h, beta):
    W, H = ufm_minimizer(3, 5, 4, lam_w, lam_h, generator=generated(seed))
    Y = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=1)
    solution = near_features(H, Y, lam_w, lam_h, beta)
    torch.testing.assert_close(solution.W, W, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.H, H, rtol=0, atol=1e-12)


@given(SEEDS, PENALTIES, PENALTIES)
def test_a_strong_pull_leaves_the_features_and_lowers_nc1(seed, lam_w, lam_h):
    """The corollary to the central path's theorem, and `beta (H - H0) -> -N grad L(H0)`."""
    H0, Y, _ = columns(seed)
    labels = Y.argmax(0)
    beta = 1e5
    H = near_features(H0, Y, lam_w, lam_h, beta).H
    before, after = (nc1(class_stats(X.mT, labels, 3), "trace") for X in (H0, H))
    assert float(after) < float(before)
    W = closed_form_w(H0, Y, lam_w)
    velocity = -(W.mT @ (W @ H0 - Y) + lam_h * H0)
    torch.testing.assert_close(beta * (H - H0), velocity, rtol=0, atol=1e-2)
    X = H0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(closed_form_w(X, Y, lam_w), X, Y, lam_w, lam_h), X)
    torch.testing.assert_close(-12 * gradient, velocity, rtol=1e-10, atol=1e-12)


@settings(max_examples=FEW)
@given(SEEDS, PENALTIES, st.floats(0, 0.9), st.sampled_from(["rk4", "rk45", "implicit"]))
def test_the_central_path_obeys_its_theorem(seed, lam_w, lam_h, method):
    H0, Y, _ = columns(seed)
    times = torch.linspace(0, 2, 5)
    path = central_path(H0, Y, lam_w, lam_h, times, method, max_step=0.05 if method == "implicit" else None)
    growth = (2 * lam_h * path.times).exp()
    assert bool((path.nc1.diff() < 0).all())
    assert bool(((growth * path.within_trace).diff() < 0).all())
    assert bool(((growth * path.between_trace).diff() > 0).all())


@settings(max_examples=FEW)
@given(SEEDS, PENALTIES, PENALTIES, st.floats(2, 50))
def test_transfer_predicts_what_solving_again_gives(seed, lam_w, lam_h, beta):
    _, H0 = ufm_minimizer(3, 5, 4, lam_w, lam_h, generator=generated(seed))
    _, Y, generator = columns(seed)
    H0 = H0 + 0.1 * randn(5, 12, generator=generator)
    change = randn(5, 12, generator=generator)
    solution = near_features(H0, Y, lam_w, lam_h, beta, tol=1e-13)
    predicted = transfer(change, solution)
    errors = []
    for size in (1e-3, 1e-4):
        again = near_features(H0 + size * change, Y, lam_w, lam_h, beta, tol=1e-13).H
        errors.append(float(((again - solution.H) / size - predicted).norm() / predicted.norm()))
    assert errors[1] < 1e-3
    # The error is proportional to the perturbation, down to what rounding leaves.
    assert errors[1] < 0.12 * errors[0] + 1e-8


@given(SEEDS, st.floats(2, 50))
def test_the_transfer_operator_is_linear_and_symmetric(seed, beta):
    H0, Y, generator = columns(seed)
    solution = near_features(H0, Y, 0.3, 0.2, beta, tol=1e-13)
    both = randn(2, 5, 12, generator=generator)
    for order in ("exact", "first"):
        answers = transfer(both, solution, order=order)
        torch.testing.assert_close((both[0] * answers[1]).sum(), (both[1] * answers[0]).sum())
        combined = transfer(2 * both[0] - both[1], solution, order=order)
        torch.testing.assert_close(combined, 2 * answers[0] - answers[1])
