"""The distance tracker: its grid, its memory options, its fit, and random walks with a known law."""

import math

import pytest
import torch
from torch import nn

from ghostbn import DiffusionTracker


def record(law, steps=2000, **options):
    weight = torch.zeros((), dtype=torch.float64)
    tracker = DiffusionTracker([weight], **options)
    for step in range(1, steps + 1):
        weight.fill_(law(step))
        tracker.update(step)
    return tracker


def test_steps_lie_on_a_logarithmic_grid():
    """Four cells a decade, opened at 10^(k/4): 1, 1.78, 3.16, 5.62, 10, ..."""
    tracker = record(float, 1000, points_per_decade=4)
    assert tracker.steps.tolist() == [1, 2, 4, 6, 10, 18, 32, 57, 100, 178, 317, 563, 1000]
    assert tracker.distances.tolist() == tracker.steps.tolist()


def test_a_power_law_is_told_from_a_logarithm():
    fit = record(lambda step: 3 * step**0.5).fit()
    assert (fit.power, fit.r2_power) == pytest.approx((0.5, 1.0), abs=1e-3)
    assert fit.r2_power > fit.r2_log + 0.1
    fit = record(lambda step: 5 + 2 * math.log(step)).fit()
    assert fit.r2_log > fit.r2_power + 0.01


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_potentials_exponent_is_read_from_the_curve(exponent):
    """E||w||^2 ~ (ln t)^(4 / alpha), so d ~ (ln t)^(2 / alpha)."""
    fit = record(lambda step: math.log(step) ** exponent).fit()
    assert fit.exponent == pytest.approx(exponent, abs=1e-3)
    assert fit.alpha == pytest.approx(2 / exponent, rel=2e-3)


def test_a_free_random_walk_follows_the_square_root(generator):
    """Without a potential the distance after t steps is sqrt(t n), n the number of weights."""
    weight = torch.zeros(2000, dtype=torch.float64)
    tracker = DiffusionTracker([weight])
    for step in range(1, 501):
        weight += torch.randn(2000, generator=generator, dtype=torch.float64)
        tracker.update(step)
    fit = tracker.fit()
    assert fit.power == pytest.approx(0.5, abs=0.02)
    assert tracker.distances[-1].item() == pytest.approx(math.sqrt(2000 * tracker.steps[-1].item()), rel=0.05)


def test_the_fit_keeps_to_the_phase_it_is_given():
    tracker = record(lambda step: math.log(step) if step <= 300 else 100.0)
    assert tracker.fit(last_step=300).slope == pytest.approx(1)
    assert tracker.fit().slope > 2
    late = record(lambda step: 50.0 if step < 20 else math.log(step))
    assert late.fit(first_step=20).slope == pytest.approx(1)
    prediction = late.fit(first_step=20).predict(torch.tensor([1, 20]))
    torch.testing.assert_close(
        prediction, torch.tensor([0.0, math.log(20)], dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_a_module_is_followed_by_its_trainable_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    tracker = DiffusionTracker(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert tracker.distance().item() == pytest.approx(math.sqrt(6))


def test_a_rounded_reference_gives_the_distance_all_the_same(generator):
    """bfloat16 has 8 bits: stored rounded, weights near 100 are off by up to 1/4 each."""
    weight = 100 + torch.randn(10_000, generator=generator)
    tracker = DiffusionTracker([weight], dtype=torch.bfloat16)
    assert tracker.state_dict()["reference.0"].dtype == torch.bfloat16
    assert tracker.distance() == 0
    weight += 0.1 * torch.randn(10_000, generator=generator)
    rounded = (weight - tracker.state_dict()["reference.0"]).norm()
    assert rounded > 12
    assert tracker.distance().item() == pytest.approx(10, rel=0.1)


def test_a_projection_estimates_the_distance(generator):
    weights = [torch.randn(300, 20, generator=generator), torch.randn(500, generator=generator)]
    tracker = DiffusionTracker(weights, projection_dim=2000, generator=generator)
    assert sum(value.numel() for name, value in tracker.state_dict().items() if "reference" in name) == 2000
    assert tracker.distance() == 0
    move = [torch.randn(weight.shape, generator=generator) for weight in weights]
    for weight, direction in zip(weights, move, strict=True):
        weight += direction
    exact = math.sqrt(sum(direction.square().sum().item() for direction in move))
    assert tracker.distance().item() == pytest.approx(exact, rel=3 * math.sqrt(2 / 2000) / 2)


def test_squared_projected_distances_are_unbiased(generator):
    """Two tensors that move alike, in buckets and with signs of their own: else they would add up to twice 50."""
    weights = [torch.zeros(25), torch.zeros(25)]
    trackers = [DiffusionTracker(weights, projection_dim=8, generator=generator) for _ in range(300)]
    for weight in weights:
        weight += 1
    squares = torch.stack([tracker.distance().square() for tracker in trackers])
    assert squares.mean().item() == pytest.approx(50, abs=4 * 50 * math.sqrt(2 / 8 / 300))
    assert squares.std().item() / 50 == pytest.approx(math.sqrt(2 / 8), rel=0.25)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"projection_dim": 16}])
def test_a_saved_record_goes_on_where_it_was(options, generator):
    weight = torch.randn(40, generator=generator)
    tracker = DiffusionTracker([weight], **options, generator=generator)
    weight += 1
    tracker.update(1)
    state = {name: value.clone() for name, value in tracker.state_dict().items()}
    resumed = DiffusionTracker(
        [weight], **options
    )  # its w_0 is the present weight, until the state is loaded
    resumed.load_state_dict(state)
    weight += 1
    for one in (tracker, resumed):
        one.update(2)
    assert resumed.steps.tolist() == [1, 2]
    assert torch.equal(resumed.distances, tracker.distances)
    with pytest.raises(ValueError, match="step must be greater than 2, got 2"):
        resumed.update(2)


def test_nothing_recorded_is_an_empty_record():
    tracker = DiffusionTracker([torch.zeros(2)])
    assert (tracker.steps.shape, tracker.distances.shape) == ((0,), (0,))


def test_bad_options_steps_and_states_are_named():
    weight = torch.zeros(3)
    with pytest.raises(ValueError, match="params must hold at least one tensor, got none"):
        DiffusionTracker([])
    with pytest.raises(ValueError, match="points_per_decade must be at least 1, got 0"):
        DiffusionTracker([weight], 0)
    with pytest.raises(ValueError, match="projection_dim must be at least 1, got 0"):
        DiffusionTracker([weight], projection_dim=0)
    tracker = DiffusionTracker([weight])
    with pytest.raises(ValueError, match="step must be greater than -1, got -2"):
        tracker.update(-2)
    with pytest.raises(TypeError, match=r"step must be an integer, got 1\.5"):
        tracker.update(1.5)
    for wrong in (5, "weights", {"weight": weight}, [weight, 1.0]):
        with pytest.raises(TypeError, match="params must hold tensors, got"):
            DiffusionTracker(wrong)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (DiffusionTracker([torch.zeros(4)]), r"must hold reference.0 of \(3,\) torch.float32, got \(4,\)"),
        (
            DiffusionTracker([torch.zeros(3)] * 2 + [torch.ones(1)]),
            r"must hold reference.1 of nothing, got \(1,\)",
        ),
        (
            DiffusionTracker([torch.zeros(3)], dtype=torch.bfloat16),
            r"torch.float32, got \(3,\) torch.bfloat16",
        ),
        (DiffusionTracker([torch.zeros(9)], projection_dim=3), r"\[20, 0\], got \[20, 3\]"),
        (DiffusionTracker([torch.zeros(3)], 10), r"\[20, 0\], got \[10, 0\]"),
    ],
)
def test_a_record_of_another_tracker_is_refused(other, message):
    tracker = DiffusionTracker([torch.zeros(3)])
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"\[20, 0\], got none"):
        tracker.load_state_dict({})


def test_parameter_groups_and_named_parameters_are_the_same_tensors():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 1.0}], 0.1
    )
    forms = (model, optimizer.param_groups, list(model.named_parameters()), [*model.parameters()] * 2)
    trackers = [DiffusionTracker(form) for form in forms]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    for tracker in trackers:
        assert tracker.distance().item() == pytest.approx(math.sqrt(9 + 8))


def test_complex_weights_have_a_distance():
    weight = torch.zeros(2, dtype=torch.complex64)
    tracker = DiffusionTracker(weight)
    weight += 3 + 4j
    assert tracker.distance().item() == pytest.approx(math.sqrt(50))


def test_weights_that_are_not_finite_cannot_be_fitted():
    tracker = record(lambda step: math.log(step) if step < 100 else math.nan)
    assert tracker.fit(last_step=50).slope == pytest.approx(1)
    with pytest.raises(ValueError, match="distances must be finite, got nan among them"):
        tracker.fit()


def test_a_parameter_of_another_shape_is_named():
    layer = nn.Linear(3, 2)
    tracker = DiffusionTracker(layer)
    layer.weight.data = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"params\[0\] must keep its shape \(2, 3\), got \(2, 4\)"):
        tracker.update(1)
    assert len(tracker.steps) == 0


def test_a_fit_needs_five_points_that_vary():
    with pytest.raises(ValueError, match="fit needs at least 5 recorded points, got 4"):
        record(float, 4).fit()
    with pytest.raises(ValueError, match="fit needs at least 5 recorded points, got 3"):
        record(float, 40, points_per_decade=5).fit(first_step=10, last_step=30)
    with pytest.raises(ValueError, match=r"distances must vary, got 2.0 throughout"):
        record(lambda step: 2.0).fit()
    with pytest.raises(ValueError, match="first_step must be at least 1, got 0"):
        record(float, 10).fit(first_step=0)
