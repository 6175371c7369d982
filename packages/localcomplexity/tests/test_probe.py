"""How the probe fits into somebody's training: what it hooks, what it leaves alone, and its shortcut."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from localcomplexity import ComplexityTracker, LocalComplexity, cross_polytope, log_schedule, sign_crossings


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Residual(nn.Module):
    """One shared ReLU, a functional one, a skip from the input: what real code bases are made of."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.relu(self.first(x) + x)
        hidden = self.relu(self.second(hidden)) + hidden
        return self.head(torch.relu(self.third(hidden) + hidden))


def seeded_module(build, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build()


def naive(pre_activations, x, probe):
    """Counts from the pre-activations (B * V, n) of all layers at explicit vertices."""
    directions = probe._directions_for(x)[:, 0].flatten(1)
    vertices = cross_polytope(x, directions=directions, radius=probe.radius)
    with torch.no_grad():
        layers = pre_activations(vertices.flatten(0, 1))
    return torch.stack([sign_crossings(z, vertices.shape[1])[0] for z in layers], dim=1)


def test_a_module_used_twice_is_read_twice_and_a_skip_from_the_input_is_no_shortcut():
    model = seeded_module(Residual).double()
    x = torch.randn(20, 6, generator=seeded(1), dtype=torch.float64)
    probe = LocalComplexity(model, num_directions=4, radius=0.5)
    with pytest.warns(UserWarning, match=r"not counted: relu \(1 times\)"):
        found = probe(x)
    assert found.names == ("relu", "relu #2")

    def pre_activations(v):
        first = model.first(v) + v
        return first, model.second(first.relu())

    assert torch.equal(found.per_layer, naive(pre_activations, x, probe))
    assert int(found.total.sum()) > 0
    assert probe._plans[x.shape[1:]].first is None


def test_a_tuple_of_layers_is_read_as_its_sum():
    model = seeded_module(Residual).double()
    x = torch.randn(20, 6, generator=seeded(1), dtype=torch.float64)
    probe = LocalComplexity(model, ["relu", (model.third, "second")], num_directions=4, radius=0.5)
    found = probe(x)
    assert set(found.names) == {"relu", "relu #2", "third + second"}

    def pre_activations(v):
        second = model.second((model.first(v) + v).relu())
        hidden = second.relu() + (model.first(v) + v).relu()
        return model.first(v) + v, second, model.third(hidden) + second

    order = [found.names.index(name) for name in ("relu", "relu #2", "third + second")]
    assert torch.equal(found.per_layer[:, order], naive(pre_activations, x, probe))


@pytest.mark.parametrize("layers", [nn.Linear, r"\d+", ["0", "2", "4"]])
def test_layers_by_class_by_pattern_and_by_name(mlp, layers):
    model, x = mlp(4, 6, 5, 3), torch.randn(8, 4, generator=seeded(0), dtype=torch.float64)
    found = LocalComplexity(model, layers, num_directions=2, radius=0.5)(x)
    linear = [found.names.index(name) for name in ("0", "2", "4")]
    default = LocalComplexity(model, num_directions=2, radius=0.5)(x)
    assert torch.equal(found.per_layer[:, linear[:2]], default.per_layer)
    assert [found.num_neurons[index] for index in linear] == [6, 5, 3]  # the logits as well


@pytest.mark.parametrize(
    ("front", "shape"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 7)), (2, 4, 4)),
        (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (2, 4, 4)),
        (lambda: nn.Conv1d(2, 3, 2, stride=2, bias=False), (2, 6)),
        (lambda: nn.Linear(6, 5), (3, 6)),
    ],
)
@pytest.mark.parametrize("frame", ["shared", "per_point"])
def test_the_shortcut_through_the_first_layer_is_taken_and_exact(front, shape, frame):
    model = seeded_module(
        lambda: nn.Sequential(front(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), nn.Tanh())
    )
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    model = model.double()
    x = torch.randn(11, *shape, generator=seeded(0), dtype=torch.float64)
    probe = LocalComplexity(model, num_directions=3, radius=0.5, frame=frame, chunk_size=4)
    quick = probe(x)
    plan = probe._plans[x.shape[1:]]
    assert plan.first is not None
    probe._plans[x.shape[1:]] = plan._replace(first=None)
    assert torch.equal(quick.per_layer, probe(x).per_layer)
    assert int(quick.total.sum()) > 0


class Normalised(nn.Module):
    """Its first linear layer does not see the input as it is."""

    def __init__(self):
        super().__init__()
        self.linear, self.relu = nn.Linear(6, 5), nn.ReLU()

    def forward(self, x):
        return self.relu(self.linear((x - 0.5) / 0.25))


class Masked(nn.Module):
    """Its first linear layer sees the input as it is, but something else looks at it without passing NaN on."""

    def __init__(self):
        super().__init__()
        self.linear, self.relu = nn.Linear(6, 5), nn.ReLU()

    def forward(self, x):
        return self.relu(self.linear(x) * (x[:, :5] > 0))


@pytest.mark.parametrize("build", [Normalised, Masked])
def test_the_shortcut_is_not_taken_where_it_would_be_wrong(build):
    model = seeded_module(build).double()
    x = torch.randn(10, 6, generator=seeded(0), dtype=torch.float64)
    probe = LocalComplexity(model, num_directions=4, radius=0.5)
    found = probe(x)
    assert probe._plans[x.shape[1:]].first is None

    def pre_activations(v):
        z = model.linear((v - 0.5) / 0.25) if build is Normalised else model.linear(v) * (v[:, :5] > 0)
        return (z,)

    assert torch.equal(found.per_layer, naive(pre_activations, x, probe))


def test_a_model_that_changes_its_front_after_the_first_call_is_still_measured_right(mlp):
    model, x = mlp(4, 6, 5, 3), torch.randn(8, 4, generator=seeded(0), dtype=torch.float64)
    probe = LocalComplexity(model, num_directions=2, radius=0.5)
    probe(x)
    model[0] = mlp(4, 6, 1, seed=9)[0]
    fresh = LocalComplexity(model, num_directions=2, radius=0.5)
    assert torch.equal(probe(x).per_layer, fresh(x).per_layer)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0 * torch.rand_like(x)  # draws in evaluation mode, too


def test_a_call_leaves_no_trace():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), Noisy(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU()
    )
    model[1].eval()  # frozen by its owner
    modes = [module.training for module in model.modules()]
    model(torch.randn(4, 6)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    x = torch.rand(5, 6, requires_grad=True)
    random_state = torch.random.get_rng_state()
    probe = LocalComplexity(model, num_directions=2)
    found = probe(x)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(kept, p.grad) for kept, p in zip(gradients, model.parameters(), strict=True))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules()
    )
    assert torch.is_grad_enabled()
    assert not found.per_layer.requires_grad


def test_an_error_in_the_model_leaves_no_trace_either(mlp):
    model = mlp(4, 6, 5, 3).train()
    probe = LocalComplexity(model, num_directions=2)
    probe(torch.zeros(2, 4).double())
    model[2] = nn.Linear(99, 5).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe(torch.zeros(2, 4).double())
    assert model.training
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules()
    )


def test_a_watched_training_run_is_the_unwatched_one_bit_for_bit():
    def run(watched):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
            )
            probe = LocalComplexity(model, num_directions=2) if watched else None
            optimizer = torch.optim.Adam(model.parameters())
            for _ in range(10):
                x = torch.randn(16, 6)
                loss = model(x).square().mean()
                optimizer.zero_grad()
                loss.backward()
                if probe is not None:
                    probe(x)  # between backward and step, of all places
                optimizer.step()
            return model.state_dict()

    watched, alone = run(True), run(False)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_directions_stay_and_follow_the_seed():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    x = torch.rand(5, 6)
    probe = LocalComplexity(model, num_directions=3, frame="per_point")
    first = probe._directions_for(x)
    probe(torch.rand(9, 6))  # a set of another size in between
    assert torch.equal(probe._directions_for(x), first)
    one, two = (LocalComplexity(model, generator=seeded(3)).seed for _ in range(2))
    assert one == two != LocalComplexity(model, generator=seeded(4)).seed
    assert LocalComplexity(model).seed == LocalComplexity(model).seed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_in_single_precision_also_under_autocast(dtype):
    half = seeded_module(lambda: nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())).to(
        dtype
    )
    x = torch.rand(30, 6, generator=seeded(0)).to(dtype)
    single = copy.deepcopy(half).float()
    expected = LocalComplexity(single, num_directions=4, radius=0.05)(x.float()).per_layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LocalComplexity(half, num_directions=4, radius=0.05)(x)
        again = LocalComplexity(single, num_directions=4, radius=0.05)(x)
    assert torch.equal(found.per_layer, expected)
    assert torch.equal(again.per_layer, expected)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


def test_wrappers_are_looked_through(mlp):
    model, x = mlp(4, 6, 5, 3), torch.randn(8, 4, generator=seeded(0), dtype=torch.float64)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(
        LocalComplexity(compiled, num_directions=2)(x).per_layer,
        LocalComplexity(model, num_directions=2)(x).per_layer,
    )


def test_the_pass_ends_with_the_last_layer_that_is_read():
    calls = []

    class Loud(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Loud())
    probe = LocalComplexity(model, num_directions=2)
    probe(torch.rand(3, 4))
    calls.clear()
    probe(torch.rand(3, 4))
    assert calls == []


# --- the tracker -----------------------------------------------------------------------------------


def test_a_tracker_measures_when_due_and_resumes_from_safetensors(mlp, tmp_path):
    x = torch.rand(6, 4, generator=seeded(0), dtype=torch.float64)

    def tracker(model, seed):
        probe = LocalComplexity(model, num_directions=2, radius=0.3, generator=seeded(seed))
        return ComplexityTracker(probe, {"train": x[:3], "test": x[3:]}, log_schedule(100, 5))

    def advance(model, step):
        with torch.no_grad():
            model[0].bias.add_(0.01 * step)

    straight, halves = mlp(4, 9, 8, 2), mlp(4, 9, 8, 2)
    whole, first, second = tracker(straight, 0), tracker(halves, 0), tracker(halves, 1)
    for step in range(1, 101):
        advance(straight, step)
        scalars = whole.update(step)
        assert bool(scalars) == (step in (1, 3, 10, 32, 100))
    for step in range(1, 11):
        advance(halves, step)
        first.update(step)
    save_file(first.state_dict(), tmp_path / "tracker.safetensors")
    second.load_state_dict(load_file(tmp_path / "tracker.safetensors"))
    for step in range(11, 101):
        advance(halves, step)
        second.update(step)
    assert second.steps == whole.steps == [1, 3, 10, 32, 100]
    for name in ("train", "test"):
        assert torch.equal(second.layers(name), whole.layers(name))
        torch.testing.assert_close(whole.values(name), whole.layers(name).sum(1))
    assert scalars["train"] == pytest.approx(float(whole.probe(x[:3]).mean()))
    assert whole.phases("train") == second.phases("train")


def test_given_directions_go_into_the_state(mlp):
    model, x = mlp(4, 9, 2), torch.rand(6, 4, generator=seeded(0), dtype=torch.float64)
    given = LocalComplexity(model, directions=torch.eye(4)[:3], radius=0.5)
    other = LocalComplexity(model, num_directions=2, radius=0.5)
    other.load_state_dict(given.state_dict())
    assert torch.equal(other(x).per_layer, given(x).per_layer)


def test_an_interval_measures_from_step_zero(mlp):
    tracker = ComplexityTracker(
        LocalComplexity(mlp(4, 9, 2), num_directions=2), {"x": torch.rand(3, 4).double()}, 5
    )
    assert [step for step in range(12) if tracker.update(step)] == [0, 5, 10]
