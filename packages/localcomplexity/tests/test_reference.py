"""Numbers from outside the code: enumeration in exact fractions, naive loops, dense grids, closed forms."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from localcomplexity import (
    LocalComplexity,
    cross_polytope,
    exact_segment,
    exact_slice,
    pgd_linf,
    robust_accuracy,
    sign_crossings,
    slice_through,
)

SQUARE = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
PLANE = (
    torch.zeros(2, dtype=torch.float64),
    torch.tensor([1.0, 0.0], dtype=torch.float64),
    torch.tensor([0.0, 1.0], dtype=torch.float64),
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- every activation pattern, one by one, without rounding ----------------------------------------


def rational(model):
    """Layers of a network as exact fractions: [(weight rows, bias)]."""
    return [
        (
            [[Fraction(value) for value in row] for row in layer.weight.tolist()],
            [Fraction(value) for value in layer.bias.tolist()],
        )
        for layer in model
        if isinstance(layer, nn.Linear)
    ]


def clip(polygon, line):
    """The part of a convex polygon where a s + b t + c >= 0, in fractions."""
    a, b, c = line
    kept = []
    for (s, t), (u, v) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        here, there = a * s + b * t + c, a * u + b * v + c
        if here >= 0:
            kept.append((s, t))
        if here * there < 0:
            share = here / (here - there)
            kept.append((s + share * (u - s), t + share * (v - t)))
    return kept


def area(polygon):
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(s * v - u * t for (s, t), (u, v) in pairs)) / 2 if len(polygon) > 2 else Fraction(0)


def enumerate_regions(model, slope=0):
    """Area of the region of every possible pattern, and neurons that have regions on both sides."""
    *hidden, _ = rational(model)
    num_neurons = sum(len(bias) for _, bias in hidden)
    found, sides = [], [set() for _ in range(num_neurons)]
    corners = [(Fraction(s), Fraction(t)) for s, t in SQUARE.tolist()]
    for pattern in itertools.product([False, True], repeat=num_neurons):
        polygon, state = (
            corners,
            [(Fraction(1), Fraction(0), Fraction(0)), (Fraction(0), Fraction(1), Fraction(0))],
        )
        signs = iter(pattern)
        for weight, bias in hidden:
            lines = [
                tuple(sum(w * line[k] for w, line in zip(row, state, strict=True)) + (b if k == 2 else 0) for k in range(3))  # noqa: E501
                for row, b in zip(weight, bias, strict=True)
            ]  # fmt: skip
            state = []
            for line in lines:
                active = next(signs)
                polygon = clip(polygon, line if active else tuple(-part for part in line))
                state.append(line if active else tuple(Fraction(slope) * part for part in line))
        if area(polygon) > 0:
            found.append(area(polygon))
            for neuron, active in enumerate(pattern):
                sides[neuron].add(active)
    return sorted(map(float, found)), [len(side) == 2 for side in sides]


@pytest.mark.parametrize("sizes", [(2, 5, 1), (2, 3, 4, 1), (2, 2, 3, 3, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_partition_is_that_of_enumerating_all_patterns(mlp, sizes, seed):
    model = mlp(*sizes, seed=seed, scale=2.0)
    partition = exact_slice(model, *PLANE, SQUARE)
    areas, crossed = enumerate_regions(model)
    assert len(partition) == len(areas)
    np.testing.assert_allclose(sorted(partition.areas.tolist()), areas, rtol=1e-9, atol=1e-13)
    ends = np.cumsum([0, *sizes[1:-1]])
    by_layer = tuple(sum(crossed[start:end]) for start, end in itertools.pairwise(ends))
    assert partition.crossings == by_layer


@pytest.mark.parametrize("seed", [3, 4])
def test_leaky_networks_by_enumeration(mlp, seed):
    model = mlp(2, 3, 4, 1, seed=seed, scale=2.0, activation=lambda: nn.LeakyReLU(0.25))
    areas, _ = enumerate_regions(model, slope=Fraction(1, 4))
    np.testing.assert_allclose(sorted(exact_slice(model, *PLANE, SQUARE).areas.tolist()), areas, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_vertex_count_is_that_of_enumeration_in_a_small_network(mlp, seed):
    """A square neighbourhood as large as the plane's polygon, so that both count the same set of points."""
    model = mlp(2, 5, 4, 1, seed=seed, scale=1.5)
    _, crossed = enumerate_regions(model)
    diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    probe = LocalComplexity(model, directions=diagonal, radius=2**0.5)
    first, second = probe(torch.zeros(1, 2, dtype=torch.float64)).per_layer[0].tolist()
    assert first == sum(crossed[:5])  # exact: hyperplanes meet the hull iff they separate its vertices
    assert second <= sum(crossed[5:])  # a lower bound: folds between the vertices are not seen


# --- naive loops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("center", [False, True])
def test_the_probe_counts_what_a_loop_over_points_vertices_and_neurons_counts(mlp, activation, center):
    model = mlp(6, 7, 5, 3, activation=activation, scale=2.0)
    x = torch.randn(9, 6, generator=seeded(1), dtype=torch.float64)
    directions = torch.randn(4, 6, generator=seeded(2), dtype=torch.float64)
    probe = LocalComplexity(model, directions=directions, radius=0.7, center=center, chunk_size=4)
    found = probe(x)
    with torch.no_grad():
        for b in range(9):
            vertices = []
            for v in directions:
                step = 0.7 * v / v.norm()
                vertices += [x[b] + step, x[b] - step]
            vertices += [x[b]] if center else []
            first = [model[0](vertex) for vertex in vertices]
            second = [model[2](model[1](z)) for z in first]
            for layer, z in enumerate((first, second)):
                count = 0
                for neuron in range(len(z[0])):
                    count += len({bool(at[neuron] >= 0) for at in z}) == 2
                assert found.per_layer[b, layer] == count
    assert found.num_neurons == (7, 5)
    torch.testing.assert_close(found.fraction(), found.per_layer / torch.tensor([7.0, 5.0]))
    assert float(found.mean()) == pytest.approx(float(found.total.double().mean()))


@given(seed=st.integers(0, 10**6), radius=st.floats(0.05, 3.0), zero=st.booleans())
def test_sign_crossings_agree_with_comparing_every_vertex_with_the_first(seed, radius, zero):
    z = radius * torch.randn(3 * 5, 2, 4, generator=seeded(seed)).round(decimals=1)
    count, fraction = sign_crossings(z, 5, zero_as_state=zero)
    state = z.sign() if zero else (z >= 0).long()
    grouped = state.view(3, 5, 8)
    expected = (grouped != grouped[:, :1]).any(1).sum(1)
    assert torch.equal(count, expected)
    torch.testing.assert_close(fraction, expected / 8)


def test_max_pools_count_where_their_choice_changes():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)).double()
    with torch.no_grad():
        model[0].bias.fill_(5.0)  # nothing is clipped, so only the pool bends
    x = torch.rand(4, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    probe = LocalComplexity(model, num_directions=3, radius=0.3, count_maxpool=True)
    found = probe(x)
    assert found.names == ("1", "2")
    vertices = cross_polytope(
        x, directions=probe._directions_for(x)[:, 0].flatten(1), radius=0.3
    )  # the same neighbourhoods
    for b in range(4):
        hidden = model[1](model[0](vertices[b])).detach()
        windows = hidden.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).argmax(-1)
        assert int((windows != windows[:1]).any(0).sum()) == int(found.per_layer[b, 1])
    assert found.num_neurons == (2 * 36, 2 * 9)
    assert int(found.per_layer[:, 0].sum()) == 0
    assert int(found.per_layer[:, 1].sum()) > 0


# --- grids and closed forms ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 8, 6, 2), (3, 5, 5, 5, 2)])
@given(seed=st.integers(0, 10**6))
def test_a_segment_bends_where_a_fine_grid_changes_its_pattern(mlp, sizes, seed):
    model = mlp(*sizes, scale=2.0)
    ends = 2 * torch.randn(2, 3, generator=seeded(seed), dtype=torch.float64)
    crossings = exact_segment(model, *ends)
    gap = float(torch.diff(crossings, prepend=torch.zeros(1), append=torch.ones(1)).min())
    grid = torch.linspace(0, 1, 5_001, dtype=torch.float64)
    if gap < 4e-4:
        return  # finer than the grid
    hidden, patterns = torch.lerp(ends[0], ends[1], grid[:, None]), []
    for layer in model:
        hidden = layer(hidden)
        if isinstance(layer, nn.ReLU):
            patterns.append(hidden > 0)
    pattern = torch.cat(patterns, 1)
    changes = (pattern[1:] != pattern[:-1]).any(1).nonzero()[:, 0]
    assert len(changes) == len(crossings)
    assert bool(((grid[changes] <= crossings) & (crossings <= grid[changes + 1])).all())


@given(seed=st.integers(0, 10**6))
def test_a_convolutional_network_is_affine_between_crossings(convnet, seed):
    model = convnet(seed % 5)
    start, end = torch.randn(2, 1, 6, 6, generator=seeded(seed), dtype=torch.float64)
    crossings = exact_segment(model, start, end)
    ends = torch.cat([torch.zeros(1), crossings, torch.ones(1)])
    thirds = torch.stack([ends[:-1] + share * torch.diff(ends) for share in (0.1, 0.5, 0.9)])
    with torch.no_grad():
        first, middle, last = (model(torch.lerp(start, end, t.view(-1, 1, 1, 1))) for t in thirds)
    torch.testing.assert_close(first + last, 2 * middle, atol=1e-9, rtol=0)


def test_a_slice_of_a_convolutional_network_has_its_affine_maps_and_boundary(convnet):
    model = convnet(0)
    points = 3 * torch.randn(3, 1, 6, 6, generator=seeded(1), dtype=torch.float64)
    plane = slice_through(*points)
    torch.testing.assert_close(plane.coordinates[1, 1], torch.zeros((), dtype=torch.float64))
    partition = exact_slice(model, *plane[:4])
    low, high = plane.polygon.amin(0), plane.polygon.amax(0)
    torch.testing.assert_close(partition.areas.sum(), (high - low).prod())
    where = low + (high - low) * torch.rand(300, 2, generator=seeded(4), dtype=torch.float64)
    region = partition.locate(where)
    predicted = (partition.slopes[region] * where[:, :, None]).sum(1) + partition.offsets[region]

    def outputs(coordinates):
        inputs = plane.origin + torch.einsum("qk,k...->q...", coordinates, torch.stack([plane.a, plane.b]))
        with torch.no_grad():
            return model(inputs)

    torch.testing.assert_close(predicted, outputs(where), atol=1e-9, rtol=0)
    torch.testing.assert_close(outputs(plane.coordinates), model(points).detach())
    assert len(partition.boundary) > 0
    on_boundary = outputs(partition.boundary.mean(1))
    best = on_boundary.topk(2, dim=1)
    torch.testing.assert_close(best.values[:, 0], best.values[:, 1], atol=1e-9, rtol=0)
    assert torch.equal(best.indices.sort(1).values, partition.boundary_classes)


def test_the_boundary_is_complete_on_a_line(mlp):
    """Along any line across the slice the winner changes where it crosses the boundary, and only there."""
    model = mlp(2, 10, 8, 4, seed=7, scale=2.0)
    partition = exact_slice(model, *PLANE, SQUARE)
    s = torch.linspace(-0.999, 0.999, 10_001, dtype=torch.float64)
    for height in (-0.7134, -0.2021, 0.1173, 0.5577):
        winners = model(torch.stack([s, torch.full_like(s, height)], dim=1)).argmax(1)
        changes = int((winners[1:] != winners[:-1]).sum())
        above = partition.boundary[..., 1] > height
        met = (above[:, 0] != above[:, 1]).sum()
        assert changes == int(met)
    assert len(partition.boundary) > 0


def test_a_single_output_has_its_zero_set_as_boundary(mlp):
    model = mlp(2, 10, 8, 1, seed=0, scale=2.0)
    partition = exact_slice(model, *PLANE, SQUARE)
    assert partition.boundary_classes.shape == (len(partition.boundary), 0)
    assert len(partition.boundary) > 0
    values = model(partition.boundary.flatten(0, 1))
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-9, rtol=0)


def test_lines_in_general_position_make_one_plus_lines_plus_intersections(mlp):
    model = mlp(2, 9, 1, seed=5, scale=1.0)
    with torch.no_grad():
        model[0].bias.mul_(0.2)  # so that all of them cross the square
    partition = exact_slice(model, *PLANE, SQUARE)
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    inside = 0
    for i, j in itertools.combinations(range(9), 2):
        crossing = torch.linalg.solve(weight[[i, j]], -bias[[i, j]])
        inside += bool((crossing.abs() < 1).all())
    assert partition.crossings == (9,)
    assert len(partition) == 1 + 9 + inside
    assert partition.statistics().num_regions == len(partition)


def test_statistics_of_four_equal_squares():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    statistics = exact_slice(model, *PLANE, SQUARE).statistics()
    assert statistics.num_regions == 4
    assert statistics.area_mean == pytest.approx(1.0)
    assert statistics.area_std == pytest.approx(0.0, abs=1e-12)
    assert statistics.vertices_mean == 4.0
    assert statistics.eccentricity_mean == pytest.approx(2**0.5)


def test_the_count_goes_with_the_exact_one_over_random_networks(mlp):
    """Invariant of the method: at most the exact number in the same square, and in the same order."""
    counted, exact = [], []
    for seed in range(40):
        generator = seeded(seed)
        width, depth = (int(torch.randint(*span, (), generator=generator)) for span in ((4, 25), (1, 4)))
        radius = float(torch.empty(()).uniform_(0.1, 1.0, generator=generator))
        model = mlp(8, *[width] * depth, 1, seed=seed, scale=1.5)
        frame = torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=torch.float64)).Q.T
        x = torch.randn(8, generator=generator, dtype=torch.float64)
        counted.append(int(LocalComplexity(model, directions=frame, radius=radius)(x[None]).total))
        corners = radius * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        exact.append(sum(exact_slice(model, x, *frame, corners).crossings))
    assert all(count <= all_of_them for count, all_of_them in zip(counted, exact, strict=True))
    ranks = [np.unique(values, return_inverse=True)[1] for values in (counted, exact)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


# --- attacks ---------------------------------------------------------------------------------------


def test_the_attack_on_a_linear_classifier_is_the_known_optimum():
    """For two classes the worst l-infinity perturbation moves every pixel against the sign of the weight."""
    model = nn.Linear(12, 2).double()
    x = torch.rand(50, 12, generator=seeded(0), dtype=torch.float64)
    y = model(x).argmax(1)
    attacked = pgd_linf(model, x, y, 0.05, low=-1.0, high=2.0, generator=seeded(1))
    toward = (model.weight[1 - y] - model.weight[y]).sign().detach()
    torch.testing.assert_close(attacked, x + 0.05 * toward)
    margin = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None])).squeeze(1)
    survives = margin > 0.05 * (model.weight[0] - model.weight[1]).abs().sum()
    accuracy = robust_accuracy(model, x, y, 0.05, low=-1.0, high=2.0, chunk_size=7, generator=seeded(1))
    assert float(accuracy) == pytest.approx(float(survives.double().mean()))


def test_attacks_stay_in_the_ball_and_in_the_range_and_leave_the_model_alone():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.rand(20, 3, 2, 2, generator=seeded(0))
    y = torch.randint(3, (20,), generator=seeded(1))
    high = torch.tensor([0.9, 0.95, 1.0]).view(3, 1, 1)
    attacked = pgd_linf(model, x.clamp(max=0.9), y, 0.1, step_size=0.04, num_steps=5, low=0.0, high=high)
    assert float((attacked - x.clamp(max=0.9)).abs().max()) <= 0.1 + 1e-6
    assert bool((attacked >= 0).all())
    assert bool((attacked <= high).all())
    assert not attacked.requires_grad
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_attack_starts_anywhere_in_the_ball():
    """A model without slope leaves the start as it was drawn: uniform on both sides of the input."""
    flat = nn.Linear(1000, 3)
    nn.init.zeros_(flat.weight)
    x = torch.full((4, 1000), 0.5)
    start = (
        pgd_linf(flat, x, torch.zeros(4, dtype=torch.long), 0.1, generator=torch.Generator().manual_seed(0))
        - x
    )
    assert float(start.min()) < -0.099
    assert float(start.max()) > 0.099
    assert float(start.mean()) == pytest.approx(0.0, abs=4 * 0.1 / 12**0.5 * 2 / 4000**0.5)


def test_every_kink_of_an_activation_is_a_neuron_of_its_own():
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(), nn.Linear(3, 4), nn.ReLU())
    found = LocalComplexity(model, num_directions=2, radius=1e4)(torch.zeros(1, 2))
    assert found.num_neurons == (6, 4)
    assert found.fraction()[0, 0] == 1.0  # so far apart both kinks of every unit lie between
