"""What must hold for every input: the invariants of neighbourhoods, counts, phases and partitions."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from localcomplexity import (
    LocalComplexity,
    cross_polytope,
    detect_phases,
    exact_slice,
    log_schedule,
    random_directions,
    segment_points,
    uniform_points,
)

seeds = st.integers(0, 10**6)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def counts(model, x, **options):
    return LocalComplexity(model, **options)(x).per_layer


# --- neighbourhoods --------------------------------------------------------------------------------


@given(seed=seeds, dimension=st.integers(1, 12), data=st.data())
def test_frames_are_orthonormal(seed, dimension, data):
    count = data.draw(st.integers(1, dimension))
    frames = random_directions(count, dimension, num_frames=3, generator=seeded(seed), dtype=torch.float64)
    assert frames.shape == (3, count, dimension)
    torch.testing.assert_close(frames @ frames.mT, torch.eye(count, dtype=torch.float64).expand(3, -1, -1))


def test_frames_are_uniform():
    """Every entry of a Haar frame has mean 0, variance 1 / D, and a fourth moment of 3 / (D (D + 2))."""
    frames = random_directions(2, 4, num_frames=20_000, generator=seeded(0), dtype=torch.float64)
    tolerance = 5 / 20_000**0.5
    assert float(frames.mean(0).abs().max()) < tolerance
    assert float((frames.square().mean(0) - 1 / 4).abs().max()) < tolerance
    assert float((frames.pow(4).mean(0) - 3 / 24).abs().max()) < tolerance


@given(
    seed=seeds,
    frame=st.sampled_from(["shared", "per_point", "gaussian"]),
    center=st.booleans(),
    radius=st.floats(0.01, 10),
)
def test_vertices_are_antithetic_at_the_radius(seed, frame, center, radius):
    x = normal(3, 2, 3, seed=seed)
    vertices = cross_polytope(x, 5, radius, frame=frame, center=center, generator=seeded(seed))
    assert vertices.shape == (3, 10 + center, 2, 3)
    torch.testing.assert_close(vertices[:, :5] + vertices[:, 5:10], 2 * x[:, None].expand(-1, 5, -1, -1))
    reach = (vertices[:, :10] - x[:, None]).flatten(2).norm(dim=2)
    torch.testing.assert_close(reach, torch.full_like(reach, radius))
    offsets = vertices[:, :5] - x[:, None]
    assert torch.allclose(offsets[0], offsets[1]) == (frame != "per_point")
    if center:
        assert torch.equal(vertices[:, -1], x)


def test_gaussian_frames_may_have_more_directions_than_dimensions():
    assert cross_polytope(torch.zeros(2, 3), 7, frame="gaussian").shape == (2, 14, 3)


@given(seed=seeds, low=st.floats(-5, 0), width=st.floats(0.1, 5))
def test_points_lie_where_they_are_asked_for(seed, low, width):
    like = torch.zeros(1, 2, 3)
    points = uniform_points(like, 50, low=low, high=low + width, generator=seeded(seed))
    assert points.shape == (50, 2, 3)
    assert bool(((points >= low - 1e-5) & (points <= low + width + 1e-5)).all())
    line = segment_points(points[0], points[1], 5)
    torch.testing.assert_close(line[[0, -1]], points[:2])
    torch.testing.assert_close(line[2], (points[0] + points[1]) / 2)


# --- counts ----------------------------------------------------------------------------------------


@given(seed=seeds, radius=st.floats(0.05, 2))
def test_the_first_layer_is_its_closed_form(mlp, seed, radius):
    """w x + b = 0 meets the cross-polytope iff |w x + b| <= r max_i |w v_i|."""
    model, x, frame = mlp(5, 12, 1, seed=seed), normal(6, 5, seed=seed + 1), normal(3, 5, seed=seed + 2)
    frame = torch.linalg.qr(frame.T).Q.T
    found = counts(model, x, directions=frame, radius=radius)[:, 0]
    weight, bias = model[0].weight, model[0].bias
    reach = radius * (frame @ weight.T).abs().amax(0)
    assert torch.equal(found, ((x @ weight.T + bias).abs() <= reach).sum(1))


@given(seed=seeds, data=st.data())
def test_counts_grow_with_vertices_and_the_first_layers_with_the_radius(mlp, seed, data):
    model, x, frame = mlp(4, 9, 8, 2, seed=seed), normal(5, 4, seed=seed + 1), normal(6, 4, seed=seed + 2)
    few = data.draw(st.integers(1, 6))
    radius = data.draw(st.floats(0.05, 2))
    small = counts(model, x, directions=frame[:few], radius=radius)
    assert bool((counts(model, x, directions=frame, radius=radius) >= small).all())
    assert bool((counts(model, x, directions=frame[:few], radius=radius, center=True) >= small).all())
    wide = counts(model, x, directions=frame[:few], radius=1.5 * radius)
    assert bool((wide[:, 0] >= small[:, 0]).all())
    assert bool((small >= 0).all())
    assert bool((small <= torch.tensor([9, 8])).all())


@given(seed=seeds)
def test_a_vanishing_radius_counts_nothing_and_an_endless_one_everything(mlp, seed):
    model, x = mlp(4, 9, 8, 2, seed=seed), normal(5, 4, seed=seed + 1)
    assert int(counts(model, x, num_directions=3, radius=1e-9).sum()) == 0
    assert bool((counts(model, x, num_directions=4, radius=1e9)[:, 0] == 9).all())


@given(seed=seeds, factor=st.floats(0.01, 100))
def test_scaling_or_permuting_neurons_changes_no_count(mlp, seed, factor):
    model, x = mlp(4, 9, 8, 2, seed=seed), normal(5, 4, seed=seed + 1)
    frame = normal(3, 4, seed=seed + 2)
    before = counts(model, x, directions=frame, radius=0.5)
    order = torch.randperm(9, generator=seeded(seed))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order] * factor)
        model[0].bias.copy_(model[0].bias[order] * factor)
        model[2].weight.copy_(model[2].weight[:, order] / factor)
    turned = frame[torch.randperm(3, generator=seeded(seed))]
    assert torch.equal(counts(model, x, directions=turned, radius=0.5), before)


@given(seed=seeds)
def test_rotating_inputs_frame_and_first_weight_together_changes_no_count(mlp, seed):
    model, x, frame = mlp(4, 9, 8, 2, seed=seed), normal(5, 4, seed=seed + 1), normal(3, 4, seed=seed + 2)
    before = counts(model, x, directions=frame, radius=0.5)
    rotation = torch.linalg.qr(normal(4, 4, seed=seed + 3)).Q
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ rotation.T)
    assert torch.equal(counts(model, x @ rotation.T, directions=frame @ rotation.T, radius=0.5), before)


@given(seed=seeds, size=st.integers(1, 12), frame=st.sampled_from(["shared", "per_point", "gaussian"]))
def test_chunks_change_nothing_and_no_point_is_dropped(mlp, seed, size, frame):
    model, x = mlp(4, 9, 8, 2, seed=seed), normal(10, 4, seed=seed + 1)
    options = {"num_directions": 3, "radius": 0.5, "frame": frame}
    whole = counts(model, x, generator=seeded(seed), **options)
    assert whole.shape == (10, 2)
    assert torch.equal(counts(model, x, generator=seeded(seed), chunk_size=size, **options), whole)


@given(seed=seeds)
def test_a_kink_elsewhere_is_a_shifted_bias(mlp, seed):
    model, x, frame = mlp(4, 9, 2, seed=seed), normal(5, 4, seed=seed + 1), normal(3, 4, seed=seed + 2)
    low, high = -0.5, 0.7
    both = nn.Sequential(model[0], nn.Hardtanh(low, high))
    found = counts(both, x, directions=frame, radius=0.5)
    expected = torch.zeros_like(found)
    for kink in (low, high):
        shifted = mlp(4, 9, 2, seed=seed)
        with torch.no_grad():
            shifted[0].bias.sub_(kink)
        expected += counts(shifted, x, directions=frame, radius=0.5)
    assert torch.equal(found, expected)


# --- phases and schedules --------------------------------------------------------------------------


@given(max_step=st.integers(1, 10**6), num_steps=st.integers(2, 60))
def test_log_schedules_increase_from_one_to_the_last(max_step, num_steps):
    steps = log_schedule(max_step, num_steps)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, max_step)
    assert len(steps) <= num_steps


@given(
    start=st.floats(2, 10),
    valley=st.floats(0.1, 1),
    peak=st.floats(3, 10),
    end=st.floats(0.1, 1.5),
    turns=st.lists(st.integers(5, 95), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_the_phases_of_a_double_descent_are_found(start, valley, peak, end, turns):
    assume(turns[1] - turns[0] > 5)
    first, second = turns
    curve = torch.cat(
        [
            torch.linspace(start, valley, first + 1),
            torch.linspace(valley, peak, second - first + 1)[1:],
            torch.linspace(peak, end, 100 - second)[1:],
        ]
    ).tolist()
    steps = [round(10 ** (index / 20)) + index for index in range(len(curve))]
    phases = detect_phases(steps, curve, bandwidth=0)
    assert phases.first_descent == (steps[0], steps[first])
    assert phases.ascent_peak == steps[second]
    assert phases.second_descent == (steps[second], steps[-1])


def test_a_falling_curve_has_one_descent_and_a_flat_one_none():
    steps = [1, 10, 100, 1000]
    falling = detect_phases(steps, [5.0, 4.0, 2.0, 1.0])
    assert (falling.first_descent, falling.ascent_peak, falling.second_descent) == ((1, 1000), None, None)
    flat = detect_phases(steps, [1.0, 1.02, 1.0, 1.03])
    assert (flat.first_descent, flat.ascent_peak, flat.second_descent) == (None, None, None)
    rising = detect_phases(steps, [1.0, 2.0, 3.0, 4.0])
    assert (rising.first_descent, rising.ascent_peak, rising.second_descent) == (None, 1000, None)


@given(seed=seeds, noise=st.floats(0, 0.2))
def test_smoothing_keeps_noise_from_making_phases(seed, noise):
    steps = log_schedule(10**5, 120)
    wobble = noise * (2 * torch.rand(len(steps), generator=seeded(seed)) - 1)
    phases = detect_phases(steps, (5 + wobble).tolist())
    assert phases.ascent_peak is None


# --- partitions ------------------------------------------------------------------------------------


@given(seed=seeds, slope=st.sampled_from([0.0, 0.2]))
def test_regions_tile_the_polygon_and_carry_the_model(mlp, seed, slope):
    model = mlp(
        3, 8, 6, 2, seed=seed, scale=1.5, activation=lambda: nn.LeakyReLU(slope) if slope else nn.ReLU()
    )
    a, b = torch.linalg.qr(normal(3, 2, seed=seed + 1)).Q.T
    origin = normal(3, seed=seed + 2)
    triangle = torch.tensor([[0.0, 0.0], [0.5, 2.0], [2.0, 0.3]], dtype=torch.float64)  # clockwise
    partition = exact_slice(model, origin, a, b, triangle)
    assert float(partition.areas.sum()) == pytest.approx(1.925, rel=1e-9)
    assert bool((partition.areas > 0).all())
    weights = torch.distributions.Exponential(1.0).icdf(torch.rand(60, 3, generator=seeded(seed)).double())
    points = (weights / weights.sum(1, keepdim=True)) @ triangle
    region = partition.locate(points)
    found = (partition.slopes[region] * points[:, :, None]).sum(1) + partition.offsets[region]
    inputs = origin + points @ torch.stack([a, b])
    torch.testing.assert_close(found, model(inputs).detach(), atol=1e-9, rtol=0)
    outside = torch.tensor([[-1.0, -1.0], [2.0, 2.0]])
    assert partition.locate(outside).tolist() == [-1, -1]


@given(seed=seeds)
@settings(max_examples=3)
def test_cells_worked_off_in_small_blocks_are_the_same(mlp, seed):
    from localcomplexity import exact

    model = mlp(2, 8, 8, 3, seed=seed)
    square = 2 * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    plane = (torch.zeros(2).double(), *torch.eye(2).double())
    whole = exact_slice(model, *plane, square)
    budget, exact._BUDGET = exact._BUDGET, 100
    try:
        blocks = exact_slice(model, *plane, square)
    finally:
        exact._BUDGET = budget
    assert blocks.crossings == whole.crossings
    torch.testing.assert_close(blocks.areas.sort().values, whole.areas.sort().values)
    torch.testing.assert_close(
        (blocks.boundary[:, 0] - blocks.boundary[:, 1]).norm(dim=1).sum(),
        (whole.boundary[:, 0] - whole.boundary[:, 1]).norm(dim=1).sum(),
    )
