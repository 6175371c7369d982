"""What must hold whatever the network, the data and the noise."""

import copy
import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from improvedct_toys import Net, Recorder

from improvedct import (
    Consistency,
    NoiseRange,
    Stage,
    consistency_loss,
    curriculum,
    karras_boundaries,
    legacy_curriculum,
    lognormal_index_probs,
    pair_loss,
    pseudo_huber,
    sample_indices,
    squared_l2,
)
from improvedct.demo import METHOD, RECIPES  # the demo's own switches are the paper's five recipes

seeds = st.integers(0, 2**31 - 1)
shapes = st.sampled_from([(4,), (4, 3), (4, 1, 2, 2), (4, 5, 2)])


def normal(shape, seed, scale=0.5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def ranges():
    return st.builds(
        NoiseRange,
        sigma_min=st.floats(1e-3, 0.1),
        sigma_max=st.floats(1, 100),
        rho=st.floats(1, 9),
        sigma_data=st.floats(0.1, 2),
    )


# --- the consistency function ----------------------------------------------------------------------------


@given(seed=seeds, shape=shapes, noise_range=ranges())
def test_no_noise_means_no_change(seed, shape, noise_range):
    x = normal(shape, seed)
    model = Consistency(Net(x[0].numel(), seed), noise_range)
    sigma = torch.full((len(x),), noise_range.sigma_min, dtype=x.dtype)
    torch.testing.assert_close(model(x, sigma), x, rtol=1e-12, atol=1e-12)


@given(seed=seeds, sigma_data=st.floats(0.1, 2))
def test_under_large_noise_the_network_speaks_alone(seed, sigma_data):
    noise_range = NoiseRange(sigma_max=1e9, sigma_data=sigma_data)
    net = Net(3, seed)
    x, sigma = normal((4, 3), seed), torch.full((4,), 1e9, dtype=torch.float64)
    expected = sigma_data * net(x * 0, sigma.log() / 4)  # c_in, c_skip -> 0 and c_out -> sigma_data
    torch.testing.assert_close(Consistency(net, noise_range)(x, sigma), expected, rtol=1e-6, atol=1e-6)


# --- the grid --------------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), noise_range=ranges())
def test_boundaries_increase_between_exact_ends_and_nest(n, noise_range):
    sigmas = karras_boundaries(n, noise_range, dtype=torch.float64)
    assert bool((sigmas.diff() > 0).all())
    assert (sigmas[0].item(), sigmas[-1].item()) == (noise_range.sigma_min, noise_range.sigma_max)
    finer = karras_boundaries(2 * n - 1, noise_range, dtype=torch.float64)
    torch.testing.assert_close(finer[::2], sigmas, rtol=1e-9, atol=0)


@given(
    total=st.integers(1, 5000), s0=st.integers(1, 20), doublings=st.integers(0, 7), fraction=st.floats(0, 1)
)
def test_the_curriculum_doubles_in_stages_of_equal_length(total, s0, doublings, fraction):
    s1 = s0 << doublings
    step = int(fraction * (total - 1))
    now, later = (curriculum(k, total, s0, s1) for k in (step, step + 1))
    assert later >= now
    assert curriculum(0, total, s0, s1) == s0 + 1
    if total > doublings:
        assert curriculum(total, total, s0, s1) == s1 + 1
    assert now - 1 in {s0 << power for power in range(doublings + 1)}
    if total % (doublings + 1) == 0:
        expected = s0 << min(step * (doublings + 1) // total, doublings)
        assert now == expected + 1


@given(total=st.integers(1, 5000), fraction=st.floats(0, 1))
def test_the_original_curriculum_never_falls_and_has_the_ends_of_its_paper(total, fraction):
    step = int(fraction * (total - 1))
    assert legacy_curriculum(step + 1, total) >= legacy_curriculum(step, total)
    assert (legacy_curriculum(0, total), legacy_curriculum(total, total)) == (2, 151)


# --- which intervals are trained ---------------------------------------------------------------------------


@given(n=st.integers(2, 400), mean=st.floats(-3, 1), std=st.floats(1.5, 4))
def test_index_probabilities_are_a_normal_law_of_the_log_levels(n, mean, std):
    sigmas = karras_boundaries(n, dtype=torch.float64)
    probs = lognormal_index_probs(sigmas, mean, std)
    assert bool((probs > 0).all())
    assert probs.sum().item() == pytest.approx(1)
    law = NormalDist(mean, std)
    below = [law.cdf(math.log(sigma)) for sigma in sigmas.tolist()]
    expected = [(value - below[0]) / (below[-1] - below[0]) for value in below[1:]]
    assert probs.cumsum(0).tolist() == pytest.approx(expected, abs=1e-9)


def test_drawn_levels_follow_the_law(rng):
    """Ten equally likely bins of ln sigma on a fine grid, each with its tenth of 50,000 draws."""
    stage = Stage(1281, dtype=torch.float64)
    levels = stage.sigmas[stage.sample_indices(50_000, rng)].log()
    law = NormalDist(-1.1, 2.0)
    low, high = law.cdf(math.log(0.002)), law.cdf(math.log(80))
    edges = torch.tensor([law.inv_cdf(low + (high - low) * k / 10) for k in range(1, 10)]).double()
    shares = torch.bucketize(levels, edges).bincount(minlength=10) / 50_000
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.007)  # 5 standard deviations, and the grid


@given(seed=seeds, weights=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_draws_have_the_given_frequencies_and_skip_what_is_impossible(seed, weights):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.tensor(weights) / sum(weights)
    counts = sample_indices(probs, 4000, generator).bincount(minlength=len(weights))
    for count, weight, share in zip(counts.tolist(), weights, probs.tolist(), strict=True):
        assert (count == 0) if weight == 0 else count / 4000 == pytest.approx(share, abs=0.05)
    stage = Stage(len(weights) + 1, index_probs=torch.tensor(weights))
    again = stage.sample_indices(4000, generator).bincount(minlength=len(weights))
    assert (again / 4000).tolist() == pytest.approx(probs.tolist(), abs=0.05)


# --- the metric --------------------------------------------------------------------------------------------


@given(seed=seeds, shape=shapes, c=st.floats(1e-3, 10))
def test_pseudo_huber_is_a_smooth_norm(seed, shape, c):
    a, b, other = (normal(shape, seed + k) for k in range(3))
    norm = (a - b).flatten(1).norm(dim=1) if a.dim() > 1 else (a - b).abs()
    distance = pseudo_huber(a, b, c)
    assert bool((pseudo_huber(a, a, c) == 0).all())
    assert bool((distance > 0).all())
    assert bool((distance <= norm).all())
    torch.testing.assert_close(pseudo_huber(a, b, 1e-9), norm, rtol=1e-6, atol=1e-8)
    # 1-Lipschitz in the norm.
    other_norm = (a - other).flatten(1).norm(dim=1) if a.dim() > 1 else (a - other).abs()
    assert bool(((distance - pseudo_huber(a, other, c)).abs() <= (norm - other_norm).abs() + 1e-12).all())
    # |a - b|^2 / (2 c) near zero, and to the last digit: computed as sqrt(...) - c it would be 0 here.
    near = a + 1e-8 * (b - a)
    small = ((near - a).flatten(1) if a.dim() > 1 else (near - a).unsqueeze(1)).square().sum(1) / (2 * c)
    torch.testing.assert_close(pseudo_huber(near, a, c), small, rtol=1e-6, atol=0)


@given(seed=seeds, size=st.integers(2, 6))
def test_pseudo_huber_does_not_see_rotations(seed, size):
    a, b = normal((4, size), seed), normal((4, size), seed + 1)
    rotation = torch.linalg.qr(normal((size, size), seed + 2)).Q
    torch.testing.assert_close(pseudo_huber(a @ rotation, b @ rotation), pseudo_huber(a, b))


# --- the loss ----------------------------------------------------------------------------------------------


@given(seed=seeds, shape=shapes, n=st.integers(2, 50))
def test_both_points_share_their_noise_and_are_neighbours(seed, shape, n):
    x, recorder = normal(shape, seed), Recorder()
    out = consistency_loss(recorder, x, n, generator=torch.Generator().manual_seed(seed), validate=False)
    (upper, high, _), (lower, low, _) = recorder.seen
    sigmas = karras_boundaries(n, dtype=torch.float64)
    assert high.tolist() == sigmas[out.index + 1].tolist() == out.sigma.tolist()
    assert low.tolist() == sigmas[out.index].tolist()
    column = (-1, *[1] * (x.dim() - 1))
    torch.testing.assert_close(
        (upper - x) / high.view(column), (lower - x) / low.view(column), atol=1e-9, rtol=0
    )
    assert out.loss.item() == pytest.approx(out.per_sample.mean().item())


@given(seed=seeds, recipe=st.sampled_from(list(RECIPES)))
def test_no_gradient_flows_through_the_target(seed, recipe):
    """The model as its own target, and a frozen copy as the target, give one loss and one gradient."""
    switches = RECIPES[recipe]
    x, n = normal((6, 3), seed), 12
    options = {
        "metric": "huber" if switches.huber else squared_l2,
        "weight": "inverse_gap" if switches.doubling else "none",
        "index_probs": None if switches.lognormal else torch.ones(n - 1),
        "validate": False,
    }
    model = Consistency(Net(3, seed))
    teacher = copy.deepcopy(model)
    gradients = []
    for target in (None, teacher):
        out = consistency_loss(
            model, x, n, target=target, generator=torch.Generator().manual_seed(seed), **options
        )
        gradients.append(
            [out.loss.detach(), *torch.autograd.grad(out.loss, list(model.net.parameters())[:2])]
        )
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert METHOD in RECIPES


def test_without_a_target_copies_of_the_model_do_not_matter(model, rng):
    average = copy.deepcopy(model)
    x = normal((8, 3), 0)
    losses = []
    for _ in range(2):
        losses.append(consistency_loss(model, x, 20, generator=torch.Generator().manual_seed(3)).loss.item())
        with torch.no_grad():
            average.net.weight.add_(1)
    assert losses[0] == losses[1]


# --- data of which everything is known ----------------------------------------------------------------------


def gaussian(spread, sigma_min=0.002):
    """The exact consistency function of N(0, spread^2)."""
    return lambda x, sigma: x * ((spread**2 + sigma_min**2) / (spread**2 + sigma**2)).sqrt().unsqueeze(1)


@given(spread=st.floats(0.1, 1), n=st.integers(2, 40), seed=seeds)
def test_the_exact_function_is_constant_along_exact_paths(spread, n, seed):
    """Distillation from the exact path: the lower point lies on the ODE's own solution, so the loss is zero.

    Heun's step is (x + low) / 2 in the slopes; a denoiser that answers twice what makes it land exactly
    on the solution stands in for an exact solver.
    """
    stage = Stage(n, dtype=torch.float64)
    index = torch.arange(n - 1)
    x, noise = normal((n - 1, 1), seed, spread), normal((n - 1, 1), seed + 1, 1)
    low, high = stage.sigmas[:-1].unsqueeze(1), stage.sigmas[1:].unsqueeze(1)
    upper = x + high * noise
    exact = upper * ((spread**2 + low**2) / (spread**2 + high**2)).sqrt()
    slope = (exact - upper) / (low - high)
    denoiser = lambda point, sigma: point - sigma.unsqueeze(1) * slope  # noqa: E731
    out = pair_loss(Recorder(gaussian(spread)), x, noise, index, stage, denoiser=denoiser, metric=squared_l2)
    assert out.per_sample.abs().max().item() < 1e-18 * (1 + stage.inverse_gaps.max().item())


@given(spread=st.floats(0.2, 1))
def test_heuns_step_is_of_third_order(spread):
    """With the exact denoiser of a Gaussian, halving the steps divides the error at a level by eight."""
    denoiser = lambda x, sigma: x * (spread**2 / (spread**2 + sigma**2)).unsqueeze(1)  # noqa: E731
    errors = []
    for n in (161, 321):
        stage = Stage(n, dtype=torch.float64)
        index = torch.tensor([(n - 1) // 2])  # the same level on both grids
        ones = torch.ones(1, 1, dtype=torch.float64)
        recorder = Recorder(gaussian(spread))
        out = pair_loss(
            recorder, ones, ones, index, stage, denoiser=denoiser, metric=squared_l2, weight="none"
        )
        errors.append(out.loss.sqrt().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)


def test_the_loss_of_the_exact_function_is_its_closed_form_and_falls_with_the_grid(rng):
    """E|f(x+) - f(x-)|^2 = s^2 (a+ - a-)^2 + (sigma+ a+ - sigma- a-)^2 for f = a x: of second order."""
    spread, totals = 0.5, []
    for n in (21, 41, 81):
        stage = Stage(n, dtype=torch.float64)
        index = torch.full((40_000,), (n - 1) // 2)
        x = torch.randn(40_000, 1, generator=rng, dtype=torch.float64) * spread
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        out = pair_loss(Recorder(gaussian(spread)), x, noise, index, stage, metric=squared_l2, weight="none")
        low, high = stage.sigmas[index[0]].item(), stage.sigmas[index[0] + 1].item()
        a_low, a_high = (math.sqrt((spread**2 + 0.002**2) / (spread**2 + sigma**2)) for sigma in (low, high))
        expected = spread**2 * (a_high - a_low) ** 2 + (high * a_high - low * a_low) ** 2
        assert out.loss.item() == pytest.approx(expected, rel=0.04)
        totals.append(expected)
    assert totals[0] > 2 * totals[1] > 4 * totals[2] > 0


# --- the paper's argument against an EMA teacher --------------------------------------------------------------


class Point(torch.nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.noise_range = NoiseRange()

    def forward(self, x, sigma):
        share = (self.noise_range.sigma_min / sigma).unsqueeze(1)
        return share * x + (1 - share) * self.theta


def toy_gradients(n, theta, teacher, data, seed):
    """Gradients over gaps, and the levels they belong to, for a few intervals of a grid of n."""
    stage = Stage(n, dtype=torch.float64)
    model, target = Point(theta), Point(teacher)
    result = []
    for share in (0.3, 0.5, 0.8):
        index = torch.tensor([int(share * (n - 1))])
        out = pair_loss(
            model,
            torch.full((1, 1), data, dtype=torch.float64),
            normal((1, 1), seed, 1),
            index,
            stage,
            target=target,
            metric=squared_l2,
            weight="inverse_gap",
        )
        (gradient,) = torch.autograd.grad(out.loss, model.theta)
        result.append((gradient.item(), out.sigma.item()))
    return result


@given(theta=st.floats(-2, 2), data=st.floats(-2, 2), seed=seeds)
def test_without_ema_the_gradient_over_the_gap_tends_to_that_of_a_regression_on_the_data(theta, data, seed):
    for gradient, sigma in toy_gradients(200_001, theta, theta, data, seed):
        limit = 2 * 0.002 / sigma**2 * (1 - 0.002 / sigma) * (theta - data)
        assert gradient == pytest.approx(limit, rel=2e-3, abs=1e-9)


@given(theta=st.floats(-2, 2), gap=st.sampled_from([-0.5, 0.5]), data=st.floats(-2, 2), seed=seeds)
def test_with_ema_it_pulls_to_the_teacher_and_blows_up(theta, gap, data, seed):
    coarse, fine = (toy_gradients(n, theta, theta - gap, data, seed) for n in (100_001, 200_001))
    for (first, _), (second, _) in zip(coarse, fine, strict=True):
        assert math.copysign(1, second) == math.copysign(1, gap)
        assert second / first == pytest.approx(2, rel=0.05)
