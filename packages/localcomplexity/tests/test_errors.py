"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from localcomplexity import (
    ComplexityTracker,
    LocalComplexity,
    cross_polytope,
    detect_phases,
    exact_segment,
    exact_slice,
    log_schedule,
    pgd_linf,
    random_directions,
    robust_accuracy,
    segment_points,
    sign_crossings,
    slice_through,
    uniform_points,
)

MODEL = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
X = torch.zeros(2, 4)
Y = torch.zeros(2, dtype=torch.long)


def refuses(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"radius": 0.0}, ValueError, "radius must be positive and finite, got 0.0"),
        ({"radius": -1.0}, ValueError, "radius must be positive and finite, got -1.0"),
        ({"radius": float("nan")}, ValueError, "radius must be positive and finite, got nan"),
        ({"radius": float("inf")}, ValueError, "radius must be positive and finite, got inf"),
        (
            {"frame": "round"},
            ValueError,
            "frame must be one of 'shared', 'per_point', 'gaussian', got 'round'",
        ),
        ({"num_directions": 5}, ValueError, "num_directions must be at most 4 (the input's dimension)"),
        ({"num_directions": 0}, ValueError, "num_directions must be at least 1, got 0"),
        ({"x": X[:0]}, ValueError, "x must be a batch (B, ...) of at least one input, got shape (0, 4)"),
        ({"x": X[0]}, ValueError, "x must be a batch (B, ...) of at least one input, got shape (4,)"),
        ({"x": X.long()}, TypeError, "x must be a floating tensor, got torch.int64"),
        (
            {"directions": torch.ones(2, 3)},
            ValueError,
            "directions must have shape (P, 4) or (P, 4), got (2, 3)",
        ),
        ({"directions": torch.eye(4)[0]}, ValueError, "directions must have shape"),
        ({"directions": torch.zeros(2, 4)}, ValueError, "none of them zero, got lengths [0.0, 0.0]"),
        ({"directions": torch.full((1, 4), torch.nan)}, ValueError, "directions must be finite"),
    ],
)
def test_neighbourhoods(arguments, error, message):
    good = {"x": X, "num_directions": 2, "radius": 0.1}
    with refuses(error, message):
        cross_polytope(**(good | arguments))
    x = arguments.get("x", X)
    options = {key: value for key, value in (good | arguments).items() if key != "x"}
    with refuses(error, message):
        LocalComplexity(MODEL, **options)(x)


def test_directions_and_points():
    with refuses(ValueError, "dimension must be at least 1, got 0"):
        random_directions(1, 0)
    with refuses(ValueError, "num_points must be at least 1, got 0"):
        uniform_points(X, 0)
    with refuses(ValueError, "low must be below high and both finite, got 1.0 and 1.0"):
        uniform_points(X, 3, low=1.0, high=1.0)
    with refuses(TypeError, "like must be a floating tensor, got torch.int64"):
        uniform_points(X.long(), 3)
    with refuses(ValueError, "end must have the shape of start, (4,), got (3,)"):
        segment_points(torch.zeros(4), torch.zeros(3), 5)
    with refuses(ValueError, "num_points must be at least 2, got 1"):
        segment_points(torch.zeros(4), torch.ones(4), 1)
    with refuses(TypeError, "start must be a floating tensor, got torch.int64"):
        segment_points(torch.zeros(4).long(), torch.ones(4), 3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["0", "9"], "layers must be modules of the model, got '9'; there are 0, 1, 2"),
        ([nn.ReLU()], "layers must be modules of the model, got 'ReLU'; there are 0, 1, 2"),
        ([()], "layers must not hold an empty tuple"),
        ([], "layers must name at least one layer, got none"),
        ("conv.*", "layers matches no module, got 'conv.*'; there are 0, 1, 2"),
        (
            nn.Conv2d,
            "layers matches no module, got <class 'torch.nn.modules.conv.Conv2d'>; there are 0, 1, 2",
        ),
    ],
)
def test_layers(layers, message):
    with refuses(ValueError, message):
        LocalComplexity(MODEL, layers)


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.plain = False

    def forward(self, x):
        return self.used(x) if self.plain else self.relu(self.used(x))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x.T)


def test_models():
    with refuses(TypeError, "model must be a torch.nn.Module, got function"):
        LocalComplexity(lambda x: x)
    with refuses(ValueError, "model has no activation module to hook; name in layers="):
        LocalComplexity(nn.Sequential(nn.Linear(4, 4)))
    with refuses(ValueError, "chunk_size must be at least 1, got 0"):
        LocalComplexity(MODEL, chunk_size=0)
    with refuses(ValueError, "layers must be reached by the forward pass, not reached: ['unused']"):
        LocalComplexity(Sometimes(), ["used", "unused"], num_directions=2)(X)
    with refuses(ValueError, "layer 'relu' must have the batch as its first axis, got shape (5, 4)"):
        LocalComplexity(TimeFirst(), num_directions=2)(torch.zeros(2, 5))
    model = Sometimes()
    probe = LocalComplexity(model, num_directions=2)
    probe(X)
    model.plain = True
    with refuses(ValueError, "model must run the layers ('relu',) at every call, got []"):
        probe(X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused_by_the_layers_name(value):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh())
    probe = LocalComplexity(model, num_directions=2)
    probe(X)
    with torch.no_grad():
        model[2].bias.fill_(value)
    for measure in (probe, LocalComplexity(model, num_directions=2)):
        with refuses(ValueError, "layer '3' must have finite outputs at all vertices, got NaN or infinity"):
            measure(X)


def test_sign_crossings():
    with refuses(ValueError, "z must be (B * num_vertices, ...) with num_vertices = 3, got shape (4, 2)"):
        sign_crossings(torch.zeros(4, 2), 3)
    with refuses(ValueError, "z must be (B * num_vertices, ...) with num_vertices = 0"):
        sign_crossings(torch.zeros(4, 2), 0)


def test_a_radius_that_rounding_swallows_is_refused_and_one_above_it_counts(mlp):
    model = mlp(3, 8, 2, seed=0)
    probe = LocalComplexity(model.float(), num_directions=2, radius=0.005)
    x = torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"radius must be above the rounding of x, got 0\.005"):
        probe(x + 1e5)
    shifted = copy.deepcopy(model).double()
    with torch.no_grad():
        shifted[0].bias -= 1e5 * shifted[0].weight.sum(1)
    far = LocalComplexity(
        shifted, num_directions=2, radius=0.005, directions=probe._directions_for(x)[:, 0].double()
    )
    assert torch.equal(far(x.double() + 1e5).per_layer, probe(x).per_layer)


@pytest.mark.parametrize("attack", [pgd_linf, robust_accuracy])
def test_what_a_classifier_answers_with(attack):
    """Logits may stand in an object or a mapping, as transformers has them; labels must be among them."""
    linear = nn.Linear(4, 3)

    class Answers(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.linear, self.wrap = linear, wrap

        def forward(self, x):
            return self.wrap(self.linear(x))

    x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.uint8)

    def found(model, labels=y):
        return attack(model, x, labels, 0.1, generator=torch.Generator().manual_seed(0))

    expected = found(linear, y.long())
    for wrap in (lambda z: SimpleNamespace(loss=None, logits=z), lambda z: {"logits": z}):
        assert torch.equal(found(Answers(wrap)), expected)
    with pytest.raises(TypeError, match=r"model must answer with logits .* got tuple"):
        found(Answers(lambda z: (z, z)))
    with pytest.raises(ValueError, match="y must name classes from 0 to 2, got 0 to 9"):
        found(linear, torch.tensor([0, 1, 2, 0, 1, 9]))


def test_tracker_and_phases():
    probe = LocalComplexity(MODEL, num_directions=2)
    with refuses(ValueError, "sets must hold at least one set of points, got none"):
        ComplexityTracker(probe, {})
    with refuses(TypeError, "sets['train'] must be a floating tensor, got torch.int64"):
        ComplexityTracker(probe, {"train": X.long()})
    with refuses(ValueError, "schedule must be at least 1 step, got 0"):
        ComplexityTracker(probe, {"train": X}, 0)
    with refuses(ValueError, "schedule must hold steps, none below 0, got []"):
        ComplexityTracker(probe, {"train": X}, [])
    tracker = ComplexityTracker(probe, {"train": X}, 5)
    tracker.update(5)
    with refuses(ValueError, "step must be above 5 (the last one measured), got 0"):
        tracker.update(0)
    with refuses(ValueError, "name must be one of ['train'], got 'test'"):
        tracker.values("test")
    with refuses(ValueError, "state must be of the sets ['train'], got ['test']"):
        tracker.load_state_dict({"steps": torch.tensor([1]), "layers.test": torch.zeros(1, 1)})
    with refuses(ValueError, "max_step must be at least 1, got 0"):
        log_schedule(0, 5)
    with refuses(ValueError, "num_steps must be at least 2, got 1"):
        log_schedule(10, 1)


@pytest.mark.parametrize(
    ("steps", "values", "options", "message"),
    [
        ([1, 2], [1.0], {}, "steps and values must be as many and at least one, got 2 and 1"),
        ([], [], {}, "steps and values must be as many and at least one, got 0 and 0"),
        ([2, 1], [1.0, 1.0], {}, "steps must increase and not be negative, got [2, 1]"),
        ([-1, 1], [1.0, 1.0], {}, "steps must increase and not be negative, got [-1, 1]"),
        ([1, 2], [1.0, float("nan")], {}, "values must be finite, got [1.0, nan]"),
        ([1], [1.0], {"bandwidth": -1.0}, "bandwidth and min_change must not be negative, got -1.0"),
    ],
)
def test_phases(steps, values, options, message):
    with refuses(ValueError, message):
        detect_phases(steps, values, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"model": nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.GELU()))},
            TypeError,
            "LeakyReLU, PReLU, Flatten",
        ),
        ({"model": nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.GELU()))}, TypeError, "got GELU at '0.1'"),
        (
            {"b": torch.tensor([1.0, 0.0])},
            ValueError,
            "a and b must be orthonormal, got lengths 1 and 1 and product 1",
        ),
        ({"b": torch.tensor([0.0, 2.0])}, ValueError, "a and b must be orthonormal, got lengths 1 and 2"),
        ({"a": torch.zeros(2)}, ValueError, "a and b must be orthonormal, got lengths 0 and 1"),
        ({"a": torch.zeros(3)}, ValueError, "origin, a and b must have one shape, got [(2,), (3,), (2,)]"),
        (
            {"polygon": SQUARE[:2]},
            ValueError,
            "polygon must be (k, 2) with at least 3 vertices, got shape (2, 2)",
        ),
        ({"polygon": SQUARE[[0, 2, 1, 3]]}, ValueError, "polygon must be convex"),
        ({"polygon": SQUARE[[0, 1, 1, 2]]}, ValueError, "polygon must be convex"),
        ({"polygon": SQUARE[[0, 1, 2, 3, 0, 1, 2, 3]]}, ValueError, "polygon must be convex"),
        (
            {"polygon": torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.5], [2.0, 2.0], [0.0, 2.0]])},
            ValueError,
            "polygon must be convex",
        ),
        ({"max_regions": 3}, RuntimeError, "the slice has more than max_regions = 3 regions:"),
    ],
)
def test_slices(mlp, arguments, error, message):
    plane = {"origin": torch.zeros(2), "a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    good = {"model": mlp(2, 20, 20, 1), "polygon": 5 * SQUARE - 2.5, **plane}
    with refuses(error, message):
        exact_slice(**(good | arguments))


def test_segments_and_planes(mlp):
    with refuses(ValueError, "x0 and x1 must have one shape, got (2,) and (3,)"):
        exact_segment(mlp(2, 3, 1), torch.zeros(2), torch.zeros(3))
    with refuses(ValueError, "x0 and x1 must differ, got the same input twice"):
        exact_segment(mlp(2, 3, 1), torch.zeros(2), torch.zeros(2))
    with refuses(TypeError, "got Softmax at '3'"):
        exact_segment(mlp(2, 3, 1).append(nn.Softmax(dim=1)), torch.zeros(2), torch.ones(2))
    with refuses(ValueError, "x0, x1, x2 must have one shape"):
        slice_through(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with refuses(ValueError, "x0, x1, x2 must not lie on one line"):
        slice_through(torch.zeros(2), torch.ones(2), 2 * torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epsilon": -0.1}, ValueError, "epsilon must be positive and finite, got -0.1"),
        ({"epsilon": float("inf")}, ValueError, "epsilon must be positive and finite, got inf"),
        ({"step_size": 0.0}, ValueError, "step_size must be positive and finite, got 0.0"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"low": 1.0}, ValueError, "low must be below high, got 1.0 and 1.0"),
        ({"x": X.long()}, TypeError, "x must be a floating tensor, got torch.int64"),
        ({"y": Y.float()}, TypeError, "y must be integers, got torch.float32"),
        ({"y": Y[:1]}, ValueError, "y must have shape (2,), got (1,)"),
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
    ],
)
def test_attacks(arguments, error, message):
    good = {"model": MODEL, "x": X, "y": Y, "epsilon": 0.1}
    for attack in (pgd_linf, robust_accuracy):
        with refuses(error, message):
            attack(**(good | arguments))
    with refuses(ValueError, "chunk_size must be at least 1, got 0"):
        robust_accuracy(**(good | {"chunk_size": 0}))
    with refuses(ValueError, "y must have shape (2,), got (1,)"):
        robust_accuracy(MODEL, X, Y[:1], 0.0)
