"""The same numbers from naive loops, dense matrices, generic optimisers and the paper's formulas."""

import math
import warnings

import pytest
import torch
from torch.autograd.functional import hessian

from neuralcollapse import (
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
from neuralcollapse.flow import _ERROR, _STAGES
from neuralcollapse.model import Moments

K, D, SIZE, LAM_W, LAM_H = 3, 5, 4, 0.6, 0.3
Y = torch.eye(K, dtype=torch.float64).repeat_interleave(SIZE, dim=1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unbalanced():
    labels = torch.tensor([0] * 7 + [1] * 3 + [2] * 5 + [3] * 9)
    return randn(24, 6) + 3 * randn(4, 6, seed=1)[labels], labels


def naive_moments(features, labels):
    """Means, and `Sigma_W`, `Sigma_B` with classes of equal weight, one sample at a time."""
    means = torch.stack([features[labels == k].mean(0) for k in range(4)])
    within, between, variance = torch.zeros(6, 6).double(), torch.zeros(6, 6).double(), []
    for k in range(4):
        members = features[labels == k]
        variance.append(0.0)
        for sample in members:
            within += torch.outer(sample - means[k], sample - means[k]) / len(members) / 4
            variance[k] += float((sample - means[k]).square().sum()) / len(members)
        between += torch.outer(means[k] - means.mean(0), means[k] - means.mean(0)) / 4
    return means, within, between, variance


def test_metrics_of_unbalanced_data_are_those_of_naive_loops():
    features, labels = unbalanced()
    means, within, between, variance = naive_moments(features, labels)
    weight = randn(4, 6, seed=2)
    for cov in ("full", "lowrank"):
        stats = class_stats(features, labels, 4, cov=cov)
        assert float(nc1(stats)) == pytest.approx(float((within @ torch.linalg.pinv(between)).trace()) / 4)
    assert float(nc1(stats, "trace")) == pytest.approx(float(within.trace() / between.trace()))
    pairs = [(k, m) for k in range(4) for m in range(k)]
    quotients = [
        (variance[k] + variance[m]) / 2 / float((means[k] - means[m]).square().sum()) for k, m in pairs
    ]
    assert float(cdnv(stats)) == pytest.approx(sum(quotients) / 6)

    centred = means - means.mean(0)
    simplex = (torch.eye(4) - 0.25) / math.sqrt(3)
    gram = centred @ centred.mT
    assert float(nc2(stats)) == pytest.approx(float((gram / gram.norm() - simplex).norm()))
    gram = means @ means.mT
    assert float(nc2(stats, "orthogonal")) == pytest.approx(
        float((gram / gram.norm() - torch.eye(4) / 2).norm())
    )
    product = weight @ centred.mT
    assert float(nc3(stats, weight)) == pytest.approx(float((product / product.norm() - simplex).norm()))
    duality = (weight / weight.norm() - centred / centred.norm()).square().sum()
    assert float(nc3(stats, weight, "papyan")) == pytest.approx(float(duality))

    logits = randn(24, 4, seed=3)
    nearest = [min(range(4), key=lambda k: float((x - means[k]).norm())) for x in features]
    disagree = sum(a != b for a, b in zip(nearest, logits.argmax(1).tolist(), strict=True))
    assert float(nc4(stats, features, logits)) == pytest.approx(disagree / 24)
    assert float(nc4(stats, features, torch.tensor(nearest))) == 0


def test_equal_norms_and_outliers_are_those_of_naive_loops():
    features, labels = unbalanced()
    means = torch.stack([features[labels == k].mean(0) for k in range(4)])
    stats, weight = class_stats(features, labels, 4), randn(5, 6, seed=2)
    for rows, found in (
        (means - means.mean(0), norm_variation(stats)),
        (weight[:4], norm_variation(stats, weight)),
    ):
        norms = [float(row.norm()) for row in rows]
        mean = sum(norms) / 4
        deviation = math.sqrt(sum((norm - mean) ** 2 for norm in norms) / 3)
        assert float(found) == pytest.approx(deviation / mean)
    outliers = randn(9, 6, seed=3) + 1
    outlying = outliers.mean(0)
    cosines = [abs(float(mean @ outlying)) / float(mean.norm() * outlying.norm()) for mean in means]
    assert float(nc5(stats, outliers)) == pytest.approx(sum(cosines) / 4)
    assert float(nc5(stats, 7 * outliers.float())) == pytest.approx(sum(cosines) / 4, rel=1e-5)


def drifting(offset, noise=1e-6, num_samples=5000):
    """Features of ten classes in float32, far from the origin, and the statistics of these numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_samples) % 10
    means = torch.randn(10, 64, generator=generator)
    features = means[labels] + noise * torch.randn(num_samples, 64, generator=generator) + offset
    exact = features.double()
    mean = torch.stack([exact[labels == k].mean(0) for k in range(10)])
    within = (exact - mean[labels]).square().sum() / num_samples
    centred = mean - mean.mean(0)
    return features, labels, float(within / centred.square().sum(1).mean()), centred


def test_float32_far_from_the_origin_has_the_nc1_of_its_own_numbers():
    """Rounding scatters them by some 1e-11; sums about the origin would give 1.9e-5, half a million times that."""
    features, labels, expected, centred = drifting(1e3)
    assert 1e-11 < expected < 1e-10
    stats = class_stats(features, labels, 10)
    torch.testing.assert_close(stats.centred_mean.double(), centred, rtol=1e-5, atol=1e-6)
    assert float(nc1(stats, "trace")) == pytest.approx(expected, rel=1e-3)
    exact = class_stats(features.double(), labels, 10)
    for cov in ("full", "lowrank"):
        found = class_stats(features, labels, 10, cov=cov)
        assert float(nc1(found)) == pytest.approx(float(nc1(exact)), rel=1e-3)


def test_accumulators_in_float32_are_as_good():
    """In chunks, merged, and gone over a second time."""
    features, labels, expected, _ = drifting(1e3, num_samples=1000)
    left, right = (StreamingStats(10, 64, dtype=torch.float32) for _ in range(2))
    for rows in torch.arange(600).split(150):
        left.update(features[rows], labels[rows])
    right.update(features[600:], labels[600:])
    exact = class_stats(features.double(), labels, 10)
    for stream in (
        left.merge(right),
        StreamingStats(10, 64, dtype=torch.float32).merge(left),
        left.reduce_ddp(),
    ):
        stats = stream.compute()
        assert float(nc1(stats, "trace")) == pytest.approx(expected, rel=1e-2)
        assert float(nc1(stats)) == pytest.approx(float(nc1(exact)), rel=1e-2)
    second = left.second_pass()
    second.update(features, labels)
    assert float(nc1(second.compute())) == pytest.approx(float(nc1(exact)), rel=1e-2)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_metrics_far_from_the_origin_are_those_of_float64(offset):
    """Also where float32 has two digits left for what differs: they are those of the features as they are."""
    features, labels, _, _ = drifting(offset, noise=0.5, num_samples=500)
    weight, logits = randn(10, 64, seed=3).float(), randn(500, 10, seed=4)
    single, double = (class_stats(x, labels, 10) for x in (features, features.double()))
    for metric in (nc1, nc2, cdnv, norm_variation, lambda stats: nc3(stats, weight.to(stats.mean))):
        assert float(metric(single)) == pytest.approx(float(metric(double)), rel=1e-4)
    found = [nc4(stats, x, logits) for stats, x in ((single, features), (double, features.double()))]
    assert float(found[0]) == pytest.approx(float(found[1]), abs=0.01)
    stats = class_stats(features, labels, 10)
    assert float(nc4(stats, features, labels)) == float(nc4(double, features.double(), labels)) < 0.01


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_metrics_of_features_whose_fourth_powers_leave_the_type(scale):
    features, labels = unbalanced()
    weight, outliers = randn(4, 6, seed=2), randn(9, 6, seed=3)
    expected, found = (class_stats(factor * features, labels, 4) for factor in (1, scale))
    for metric in (nc1, nc2, cdnv, norm_variation):
        assert float(metric(found)) == pytest.approx(float(metric(expected)))
    assert float(nc2(found, "orthogonal")) == pytest.approx(float(nc2(expected, "orthogonal")))
    for kind in ("alignment", "papyan"):
        assert float(nc3(found, scale * weight, kind)) == pytest.approx(float(nc3(expected, weight, kind)))
    assert float(norm_variation(found, scale * weight)) == pytest.approx(
        float(norm_variation(expected, weight))
    )
    assert float(nc5(found, scale * outliers)) == pytest.approx(float(nc5(expected, outliers)))


def test_fewer_dimensions_than_classes():
    """`Sigma_B` has full rank and is inverted as it is."""
    labels = torch.arange(6).repeat(5)
    features = randn(30, 2) + 2 * randn(6, 2, seed=1)[labels]
    stats = class_stats(features, labels, 6)
    between = stats.centred_mean.mT @ stats.centred_mean / 6
    expected = float((stats.within_cov @ torch.linalg.inv(between)).trace()) / 6
    assert float(nc1(stats)) == pytest.approx(expected)
    assert float(nc1(class_stats(features, labels, 6, cov="lowrank"))) == pytest.approx(expected)


@pytest.mark.parametrize("dim", [3, 6])
def test_metrics_have_the_gradients_of_finite_differences(dim):
    labels = torch.arange(5).repeat(3)
    features = (randn(15, dim) + 2 * randn(5, dim, seed=1)[labels]).requires_grad_()
    weight = randn(5, dim, seed=2).requires_grad_()

    def metrics(features, weight):
        stats = class_stats(features, labels, 5)
        lowrank = class_stats(features, labels, 5, cov="lowrank")
        losses = [nc1(stats), nc1(lowrank), nc1(stats, "trace"), nc2(stats), nc3(stats, weight), cdnv(stats)]
        return torch.stack(losses)

    torch.autograd.gradcheck(metrics, (features, weight), atol=1e-5, fast_mode=True)


def test_nc1_has_a_gradient_at_exact_symmetry():
    """Simplex means have equal eigenvalues, where eigenvectors have no derivative."""
    labels = torch.arange(4).repeat(2)
    noise = torch.tensor([0.1, -0.1]).repeat_interleave(4)[:, None]
    features = (torch.eye(4).double()[labels] + noise).requires_grad_()
    (gradient,) = torch.autograd.grad(nc1(class_stats(features, labels, 4)), features)
    assert bool(torch.isfinite(gradient).all())


def test_half_precision_and_autocast_are_promoted():
    features, labels = unbalanced()
    expected = nc1(class_stats(features, labels, 4))
    with torch.autocast("cpu", torch.bfloat16):
        low = nc1(class_stats(features.float(), labels, 4))
    torch.testing.assert_close(low.double(), expected, rtol=1e-4, atol=0)
    half = class_stats(features.bfloat16(), labels, 4)
    assert half.mean.dtype == torch.float32
    # A third has no short binary form: a mean in half precision would be 0.332.
    wrong = torch.where(torch.arange(24) < 8, (labels + 1) % 4, labels)
    nearest = nc4(half, half.mean[labels].bfloat16(), wrong)
    assert float(nearest) == pytest.approx(1 / 3, abs=1e-7)


def test_columns_are_sorted_and_subsampled():
    features, labels = unbalanced()
    H, targets = class_columns(
        features, labels, 4, balance="subsample", generator=torch.Generator().manual_seed(0)
    )
    assert targets.tolist() == torch.eye(4).repeat_interleave(3, dim=1).tolist()
    for column, target in zip(H.mT, targets.argmax(0), strict=True):
        (row,) = (features == column).all(1).nonzero().flatten().tolist()
        assert labels[row] == target
    assert len(torch.unique(H, dim=1).mT) == 12


def minimised(start, *, lam_w=LAM_W, lam_h=LAM_H, beta=0.0, H0=None):
    """What L-BFGS makes of classifier and features."""
    W, H = (tensor.clone().requires_grad_() for tensor in start)
    optimizer = torch.optim.LBFGS(
        [W, H], max_iter=800, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = objective(W, H, Y, lam_w, lam_h, beta, H0)
        value.backward()
        return value

    optimizer.step(closure)
    return W.detach(), H.detach()


@pytest.mark.parametrize(("lam_w", "lam_h"), [(0.6, 0.3), (0.05, 0.4), (0.2, 0.1)])
def test_optimisation_ends_in_the_closed_form(lam_w, lam_h):
    W, H = minimised((randn(K, D), randn(D, K * SIZE, seed=1)), lam_w=lam_w, lam_h=lam_h)
    expected_W, expected_H = ufm_minimizer(K, D, SIZE, lam_w, lam_h)
    value = objective(expected_W, expected_H, Y, lam_w, lam_h)
    torch.testing.assert_close(objective(W, H, Y, lam_w, lam_h), value, rtol=1e-9, atol=0)
    # The frame is free, its Gram matrices are not.
    torch.testing.assert_close(H.mT @ H, expected_H.mT @ expected_H, rtol=0, atol=1e-5)
    torch.testing.assert_close(W @ W.mT, expected_W @ expected_W.mT, rtol=0, atol=1e-5)
    torch.testing.assert_close(W @ H, expected_W @ expected_H, rtol=0, atol=1e-5)


def test_too_much_regularisation_leaves_nothing():
    W, H = minimised((randn(K, D), randn(D, K * SIZE, seed=1)), lam_w=3.0, lam_h=1.5)
    assert max(float(W.abs().max()), float(H.abs().max())) < 1e-5
    for tensor in ufm_minimizer(K, D, SIZE, 3.0, 1.5):
        assert tensor.count_nonzero() == 0
    path = central_path(randn(D, K * SIZE), Y, 3.0, 1.5, torch.tensor([120.0]), "implicit", max_step=6.0)
    assert float(path.within_trace + path.between_trace) < 1e-6


@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_optimisation_near_features_ends_where_the_solver_does(beta):
    H0 = randn(D, K * SIZE)
    solution = near_features(H0, Y, LAM_W, LAM_H, beta)
    W, H = minimised((closed_form_w(H0, Y, LAM_W), H0), beta=beta, H0=H0)
    torch.testing.assert_close(solution.W, W, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.H, H, rtol=0, atol=1e-6)


def test_the_classifier_is_ridge_regression():
    H = randn(D, K * SIZE)
    W = closed_form_w(H, Y, LAM_W).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(W, H, Y, LAM_W, LAM_H), W)
    assert float(gradient.abs().max()) < 1e-15


def test_copies_of_samples_and_their_order_change_no_classifier():
    H0 = randn(D, K * SIZE)
    solution = near_features(H0, Y, LAM_W, LAM_H, 2.0)
    order = torch.randperm(2 * K * SIZE, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([H0, H0], 1)[:, order], torch.cat([Y, Y], 1)[:, order]
    twice = near_features(*copies, LAM_W, LAM_H, 2.0)
    torch.testing.assert_close(twice.W, solution.W, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        twice.H, torch.cat([solution.H, solution.H], 1)[:, order], rtol=1e-9, atol=1e-12
    )


def test_the_model_sees_the_scatter_of_float32_features_far_from_the_origin():
    features, labels, _, _ = drifting(1e3, noise=1e-3, num_samples=500)
    targets = torch.eye(10)[labels].mT
    single, double = (Moments.of(x.mT, targets.to(x)) for x in (features, features.double()))
    torch.testing.assert_close(single.within.trace().double(), double.within.trace(), rtol=1e-3, atol=0)


def flow_of_the_loss(H, time, num_steps):
    """RK4 on the features themselves, the gradient by autograd through the optimal classifier."""

    def velocity(H):
        X = H.detach().requires_grad_()
        value = objective(closed_form_w(X, Y, LAM_W), X, Y, LAM_W, LAM_H)
        return -X.shape[1] * torch.autograd.grad(value, X)[0]

    step = time / num_steps
    for _ in range(num_steps):
        first = velocity(H)
        second = velocity(H + step / 2 * first)
        third = velocity(H + step / 2 * second)
        fourth = velocity(H + step * third)
        H = H + step / 6 * (first + 2 * second + 2 * third + fourth)
    return H


@pytest.mark.parametrize(
    ("method", "max_step", "error"),
    [("rk4", None, 1e-5), ("rk45", None, 1e-7), ("euler", 0.03, 1e-2), ("implicit", 0.03, 1e-2)],
)
def test_the_central_path_is_gradient_flow(method, max_step, error):
    H0 = randn(D, K * SIZE)
    path = central_path(
        H0, Y, LAM_W, LAM_H, torch.tensor([0.0, 0.8, 1.5]), method, max_step=max_step, keep_features=True
    )
    torch.testing.assert_close(path.H[0], H0, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.H[2], flow_of_the_loss(H0, 1.5, 30), rtol=0, atol=error)
    stats = class_stats(path.H[1].mT, Y.argmax(0), K)
    torch.testing.assert_close(path.nc1[1], nc1(stats, "trace"))
    torch.testing.assert_close(path.within_trace[1], stats.within_cov.trace())
    torch.testing.assert_close(path.between_trace[1], stats.centred_mean.square().sum() / K)


def test_halving_steps_shows_the_order_of_each_method():
    H0, end = randn(D, K * SIZE), torch.tensor([2.0])
    exact = central_path(H0, Y, LAM_W, LAM_H, end, "rk45", tol=1e-13, keep_features=True).H
    for method, order in (("euler", 1), ("implicit", 1), ("rk4", 4)):
        coarse, fine = (
            (
                central_path(H0, Y, LAM_W, LAM_H, end, method, max_step=step, keep_features=True).H - exact
            ).norm()
            for step in (0.2, 0.1)
        )
        assert math.log2(float(coarse / fine)) == pytest.approx(order, abs=0.35)


def test_the_adaptive_method_is_dormand_and_princes():
    """What cannot be seen in the path, only in its number of steps: the order conditions of the error estimate."""
    nodes = [0.0, *(sum(row) for row in _STAGES)]
    assert nodes[1:] == pytest.approx([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
    for power in range(5):
        fifth = sum(weight * node**power for weight, node in zip(_STAGES[-1], nodes, strict=False))
        assert fifth == pytest.approx(1 / (power + 1))
        error = sum(weight * node**power for weight, node in zip(_ERROR, nodes, strict=True))
        assert (abs(error) < 1e-15) == (power < 4)


def test_a_tolerance_below_the_type_asks_for_what_the_type_can_give():
    H0 = randn(D, K * SIZE)
    exact, single = (
        central_path(X, Y, 0.05, LAM_H, [1.0], "rk45", tol=1e-14, keep_features=True)
        for X in (H0, H0.float())
    )
    assert single.H.dtype == torch.float32
    torch.testing.assert_close(single.H.double(), exact.H, rtol=0, atol=1e-4)


def test_a_proximal_step_is_the_near_features_model():
    H0 = randn(D, K * SIZE)
    step = central_path(H0, Y, LAM_W, LAM_H, torch.tensor([0.5]), "implicit", keep_features=True).H[0]
    torch.testing.assert_close(step, near_features(H0, Y, LAM_W, LAM_H, 2.0).H, rtol=1e-6, atol=1e-8)


def test_the_path_ends_in_collapse():
    """Without underflow of the scatter: `Tr Sigma_W` is right to all digits at 1e-30."""
    path = central_path(
        randn(D, K * SIZE), Y, 0.1, 0.1, torch.tensor([200.0, 400.0]), "implicit", max_step=4.0
    )
    # Near the end W'W = (1 - c) I on the span: scatter there falls as exp(-2 (lam_h + 1 - c) t), elsewhere as
    # exp(-2 lam_h t); a proximal step of length 4 divides by 1 + 4 rate.
    assert float(path.within_trace[1] / path.within_trace[0]) == pytest.approx(1.4**-100, rel=1e-6)
    assert float(path.within_trace[1]) < 1e-28
    rho = (1 - 0.1) * 1.0
    assert float(path.between_trace[1]) == pytest.approx(rho * (K - 1) / K, rel=1e-6)


def dense_transfer(solution):
    """`(beta / N) S^{-1}` by autograd's Hessian over classifier and features."""

    def value(W, H):
        return objective(W, H, Y, LAM_W, LAM_H, solution.beta, solution.H0)

    (ww, wh), (hw, hh) = hessian(value, (solution.W, solution.H))
    size_w, size_h = K * D, D * K * SIZE
    ww, wh, hw = ww.reshape(size_w, size_w), wh.reshape(size_w, size_h), hw.reshape(size_h, size_w)
    schur = hh.reshape(size_h, size_h) - hw @ torch.linalg.solve(ww, wh)
    return solution.beta / (K * SIZE) * torch.linalg.inv(schur)


def test_transfer_is_the_dense_schur_complement():
    H0 = ufm_minimizer(K, D, SIZE, LAM_W, LAM_H)[1] + 0.2 * randn(D, K * SIZE)
    solution = near_features(H0, Y, LAM_W, LAM_H, 5.0, tol=1e-13)
    operator = dense_transfer(solution)
    changes = randn(7, D, K * SIZE, seed=1)
    expected = (changes.flatten(1) @ operator.mT).view_as(changes)
    torch.testing.assert_close(transfer(changes, solution), expected, rtol=1e-9, atol=1e-11)
    blocks = operator.view(D, K, SIZE, D, K, SIZE)
    spectrum = transfer_spectrum(solution, (2, 0))
    own = blocks[:, 2, :, :, 2].reshape(D * SIZE, -1)
    cross = blocks[:, 2, :, :, 0].reshape(D * SIZE, -1)
    torch.testing.assert_close(spectrum.diagonal, torch.linalg.svdvals(own), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(spectrum.off_diagonal, torch.linalg.svdvals(cross), rtol=1e-9, atol=1e-11)


def test_transfer_takes_few_iterations():
    """What only their number shows: 18 of them, and 32 without the preconditioner."""
    _, H = ufm_minimizer(K, D, SIZE, 0.01, 1.0)
    solution = near_features(H + 0.1 * randn(D, K * SIZE), Y, 0.01, 1.0, 1.0, tol=1e-13)
    transfer(randn(D, K * SIZE, seed=1), solution, max_iter=24)


def test_first_order_is_the_paper_formula_with_its_dense_matrix_z():
    """`F ~ I - (1/beta) (lam_h I + I_N kron W'W - Z)`, `Z = J' (HH' kron I_K + n lam_w I)^{-1} J`."""
    solution = near_features(randn(D, K * SIZE), Y, LAM_W, LAM_H, 50.0)
    W, H = solution.W, solution.H
    samples = K * SIZE
    basis = torch.eye(D * samples, dtype=torch.float64).view(-1, samples, D).mT  # columns stacked
    E = W @ H - Y
    J = (W @ basis @ H.mT + E @ basis.mT).mT.reshape(-1, K * D).mT
    middle = torch.kron(H @ H.mT, torch.eye(K).double()) + SIZE * LAM_W * torch.eye(K * D).double()
    Z = J.mT @ torch.linalg.solve(middle, J)
    shift = LAM_H * torch.eye(D * samples).double() + torch.kron(torch.eye(samples).double(), W.mT @ W) - Z
    change = randn(D, samples, seed=4)
    expected = change - (shift @ change.mT.reshape(-1)).view(samples, D).mT / 50
    torch.testing.assert_close(transfer(change, solution, order="first"), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [3, 5])
@pytest.mark.parametrize("order", ["first", "exact"])
def test_the_spectrum_at_collapse_is_the_closed_form(dim, order):
    _, H = ufm_minimizer(K, dim, SIZE, LAM_W, LAM_H, generator=torch.Generator().manual_seed(0))
    solution = near_features(H, Y, LAM_W, LAM_H, 200.0)
    found = transfer_spectrum(solution, order=order)
    expected = predicted_spectrum(K, dim, SIZE, LAM_W, LAM_H, 200.0, order=order)
    torch.testing.assert_close(found.diagonal, expected.diagonal, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.off_diagonal, expected.off_diagonal, rtol=0, atol=1e-12)


def test_the_extremes_are_the_papers():
    first = predicted_spectrum(3, 5, 4, 0.6, 0.3, 200.0)
    exact = predicted_spectrum(3, 5, 4, 0.6, 0.3, 200.0, order="exact")
    assert float(first.diagonal[0]) == 1
    assert float(first.diagonal[-1]) == pytest.approx(1 - math.sqrt(0.3 / 0.6) / 200, abs=1e-15)
    assert float(first.off_diagonal[0]) == pytest.approx(1.7272e-3, abs=5e-8)
    assert float(exact.off_diagonal[0]) == pytest.approx(1.7213e-3, abs=5e-8)
    assert first.off_diagonal[1:].count_nonzero() == 0
    assert len(first.diagonal) == 20
    assert int((first.diagonal == 1).sum()) == 2


def test_perturbing_real_weight_decay_moves_the_spectrum_as_the_paper_reads_it():
    """More `lam_h` shrinks all but the rotations; more `lam_w` raises the smallest value, lowers crosstalk."""
    base, features, weights = (
        predicted_spectrum(3, 5, 4, *penalties, 200.0) for penalties in ((0.6, 0.3), (0.6, 0.6), (1.2, 0.3))
    )
    assert bool((features.diagonal[2:] < base.diagonal[2:]).all())
    assert float(weights.diagonal[-1]) > float(base.diagonal[-1])
    assert float(weights.off_diagonal[0]) < float(base.off_diagonal[0])


def test_float32_follows_its_inputs():
    H0 = randn(D, K * SIZE).float()
    solution = near_features(H0, Y, LAM_W, LAM_H, 2.0)
    assert solution.converged
    assert solution.W.dtype == torch.float32
    exact = near_features(H0.double(), Y, LAM_W, LAM_H, 2.0)
    torch.testing.assert_close(solution.H.double(), exact.H, rtol=0, atol=1e-4)
    change = randn(D, K * SIZE, seed=1)
    torch.testing.assert_close(
        transfer(change, solution).double(), transfer(change, exact), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    """Not taken for a mask, in either pass."""
    features, labels = unbalanced()
    stream = StreamingStats(4, 6, class_counts=torch.bincount(labels))
    stream.update(features, labels.to(dtype))
    second = stream.second_pass()
    second.update(features, labels.to(dtype))
    expected = class_stats(features, labels, 4)
    for stats in (stream.compute(), second.compute(), class_stats(features, labels.to(dtype), 4)):
        torch.testing.assert_close(nc1(stats), nc1(expected), rtol=1e-12, atol=0)


def test_one_pass_over_classes_of_unequal_size_says_how_it_weighs_them():
    features, labels = unbalanced()
    stream = StreamingStats(4, 6)
    stream.update(features, labels)
    with pytest.warns(UserWarning, match="unequal size weigh by their sizes"):
        pooled = stream.compute().within_cov
    centred = features - stream.mean[labels]
    torch.testing.assert_close(pooled, centred.mT @ centred / 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert StreamingStats(4, 6, "trace").merge(StreamingStats(4, 6, "trace")).count.sum() == 0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_transfer_operator_has_no_scale(scale):
    H0, Y = class_columns(
        torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 3, 3
    )
    solution = near_features(H0, Y, lam_w=0.1, lam_h=0.1, beta=20.0)
    perturbations = torch.randn(2, *H0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    perturbations[1] = 0
    found = transfer(perturbations * scale, solution) / scale
    torch.testing.assert_close(found, transfer(perturbations, solution))
    assert found[0].norm() > 1


def test_the_objective_of_half_precision_is_that_of_its_numbers():
    W, H, Y = torch.full((2, 3), 200.0), torch.full((3, 4), 200.0), torch.eye(2).repeat(1, 2)
    # (3 * 200 * 200)^2 leaves float16: of each column one error is 120000, the other 119999.
    expected = (120000.0**2 + 119999.0**2) / 2 + 0.1 / 2 / 2 * 6 * 200.0**2 + 0.1 / 2 * 3 * 200.0**2
    found = objective(W.half(), H.half(), Y, lam_w=0.1, lam_h=0.1)
    assert found.item() == pytest.approx(expected)
