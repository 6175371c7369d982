import copy
import itertools
import math

import pytest
import torch
from helpers import Counting, batch, make, mlp, seeded, squared
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from hypercrl import ChunkedHyperNetwork, HyperNetwork, target_shapes

kinds = pytest.mark.parametrize("kind", ["plain", "chunked"])

shapes = st.dictionaries(
    st.sampled_from(["a", "b.weight", "c", "d.bias"]), st.lists(st.integers(1, 4), max_size=3), min_size=1
)


@given(shapes=shapes, chunk=st.integers(1, 50), tasks=st.integers(1, 3))
def test_the_requested_names_and_shapes_come_out(shapes, chunk, tasks):
    for hnet in (HyperNetwork(shapes, 3, (4,)), ChunkedHyperNetwork(shapes, chunk, 2, 3, (4,))):
        sizes = [sum(value.numel() for value in hnet.parameters())]
        for _ in range(tasks):
            hnet.add_task()
            sizes.append(sum(value.numel() for value in hnet.parameters()))
        weights = hnet(tasks - 1)
        assert {name: list(value.shape) for name, value in weights.items()} == shapes
        assert [after - before for before, after in itertools.pairwise(sizes)] == [3] * tasks


@kinds
def test_many_embeddings_at_once_equal_single_calls(kind):
    _, hnet = make(kind)
    together = hnet.forward_flat(torch.stack(list(hnet.embeddings)))
    for task in range(3):
        alone = torch.cat([value.flatten() for value in hnet(task).values()])
        torch.testing.assert_close(together[task], alone)
    stacked = hnet(torch.stack(list(hnet.embeddings)))
    torch.testing.assert_close(stacked["0.weight"][2], hnet(2)["0.weight"])
    assert not torch.allclose(together[0], together[1])


@kinds
def test_a_task_depends_on_its_own_embedding_only(kind):
    _, hnet = make(kind)
    before = hnet.forward_flat(hnet.embedding(1))
    with torch.no_grad():
        hnet.embedding(0).add_(1.0)
        hnet.embedding(2).add_(1.0)
    assert torch.equal(before, hnet.forward_flat(hnet.embedding(1)))


def test_the_mlp_is_the_one_of_the_paper():
    _, hnet = make(activation="elu")
    value = hnet.embedding(1)
    for layer, (weight, bias) in enumerate(zip(hnet.weights, hnet.biases, strict=True)):
        value = weight @ value + bias
        if layer < 2:
            value = torch.where(value > 0, value, value.exp() - 1)
    torch.testing.assert_close(hnet.forward_flat(hnet.embedding(1)), value + hnet.base)


def test_chunks_are_calls_with_their_own_embedding_and_the_last_is_cut():
    _, hnet = make("chunked")
    assert hnet.num_weights == 32
    assert hnet.num_chunks == 4
    pieces = []
    for chunk in hnet.chunk_embeddings:
        value = torch.cat([hnet.embedding(2), chunk])
        for layer, (weight, bias) in enumerate(zip(hnet.weights, hnet.biases, strict=True)):
            value = weight @ value + bias
            value = nn.functional.elu(value) if layer < 2 else value
        pieces.append(value)
    expected = hnet.base + hnet.scale * torch.cat(pieces)[:32]
    torch.testing.assert_close(hnet.forward_flat(hnet.embedding(2)), expected)


def test_the_chunk_size_does_not_matter_where_the_head_is_tied():
    one = ChunkedHyperNetwork({"w": (6, 2)}, 4, 2, 3, (5,), init="xavier", generator=seeded())
    two = ChunkedHyperNetwork({"w": (6, 2)}, 2, 2, 3, (5,), init="xavier", generator=seeded())
    with torch.no_grad():
        # Rows 2-3 of the large chunk repeat rows 0-1, whose embedding comes twice in the small one.
        one.weights[-1][2:] = one.weights[-1][:2]
        for big, small in zip([*one.weights, *one.biases], [*two.weights, *two.biases], strict=True):
            small.copy_(big[: len(small)])
        two.chunk_embeddings.copy_(one.chunk_embeddings.repeat_interleave(2, dim=0))
    embedding = torch.randn(3, generator=seeded())
    torch.testing.assert_close(one.forward_flat(embedding), two.forward_flat(embedding))


@pytest.mark.parametrize("chunked", [False, True])
def test_hyperfan_gives_matrices_the_variance_of_their_fan_in(chunked):
    shapes = {"conv": (40, 20, 3, 3), "linear": (60, 100), "bias": (60,)}
    options = {"hidden": (50, 50), "generator": seeded()}
    hnet = ChunkedHyperNetwork(shapes, 900, **options) if chunked else HyperNetwork(shapes, **options)
    weights = hnet(torch.randn(40, 10, generator=seeded(1)))
    for name, fan_in in (("conv", 180), ("linear", 100)):
        assert weights[name].std().item() * math.sqrt(fan_in) == pytest.approx(1, rel=0.2)
    if not chunked:
        assert torch.equal(weights["bias"], torch.zeros(40, 60))


def test_xavier_is_drawn_for_each_head_and_nothing_is_added():
    hnet = HyperNetwork({"a": (30, 40), "b": (30,)}, hidden=(50,), init="xavier", generator=seeded())
    head, bias = hnet.weights[-1], hnet.biases[-1]
    for rows, fan_out in ((head[:1200], 1200), (head[1200:], 30)):
        bound = math.sqrt(6 / (50 + fan_out))
        assert bound * 0.95 < rows.abs().max().item() <= bound
    assert not bias.any()
    assert not hnet.base.any()


@kinds
def test_a_pretrained_target_is_where_all_tasks_start(kind):
    model, hnet = make(kind, tasks=0, init="target")
    fresh = HyperNetwork(model, init="target")
    fresh.add_task()
    for name, value in model.named_parameters():
        torch.testing.assert_close(fresh(0)[name], value)
    assert hnet.add_task() == 0


# --- modules as people write them -------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids)))


def test_tied_weights_are_made_once_and_used_twice():
    model = Tied()
    hnet = HyperNetwork(model, generator=seeded())
    hnet.add_task(seeded())
    assert "head.weight" not in hnet.shapes
    weights, ids = hnet(0), torch.arange(5)
    found = functional_call(model, weights, (ids,))
    rows = weights["embed.weight"]
    expected = (
        nn.functional.layer_norm(rows[ids], (6,), weights["norm.weight"], weights["norm.bias"]) @ rows.T
    )
    torch.testing.assert_close(found, expected)


def test_normalisation_layers_start_as_such_and_keep_statistics_for_each_task():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    hnet = HyperNetwork(model, generator=seeded())
    first, second = hnet.add_task(seeded()), hnet.add_task(seeded(1))
    assert torch.equal(hnet(first)["1.weight"], torch.ones(4))
    x = 3 + torch.randn(32, 3, generator=seeded(2))
    for _ in range(3):
        functional_call(model, hnet(first), (x,)).sum().backward()
    # A network of its own with the same weights is the reference.
    alone = copy.deepcopy(model)
    alone.load_state_dict({name: value.detach() for name, value in hnet(first).items()})
    assert alone[1].num_batches_tracked == 3
    alone[1].reset_running_stats()
    for _ in range(3):
        alone(x)
    torch.testing.assert_close(hnet.buffers_of(first)["1.running_mean"], alone[1].running_mean)
    assert torch.equal(hnet.buffers_of(second)["1.running_var"], torch.ones(4))
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert model[1].num_batches_tracked == 0
    third = hnet.add_task()
    assert not hnet.buffers_of(third)["1.running_mean"].any()
    shared = HyperNetwork(model, buffers="shared")
    shared.add_task()
    assert list(shared(0)) == list(shared.shapes)


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1, 1, 6), (6, 1)])
def test_a_scale_of_any_shape_starts_at_the_targets_values(shape):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.full(shape, 1.5)), nn.Parameter(torch.zeros(shape))
            self.matrix = nn.Parameter(torch.ones(1, 6))

    hnet = HyperNetwork(Scale(), generator=seeded())
    weights = hnet(hnet.add_task(seeded(1)))
    assert torch.equal(weights["scale"], torch.full(shape, 1.5))
    assert torch.equal(weights["shift"], torch.zeros(shape))
    assert weights["matrix"].std() > 0.1


@kinds
@pytest.mark.parametrize(
    ("task", "error", "match"),
    [
        (torch.arange(4), TypeError, "real floats, got torch.int64"),
        (torch.zeros(4, dtype=torch.complex64), TypeError, "real floats, got torch.complex64"),
        (torch.zeros((), dtype=torch.complex64), TypeError, "real floats, got torch.complex64"),
        (torch.tensor(True), TypeError, "task_id must be an integer"),
        (torch.tensor(1.0), ValueError, r"embeddings must be \(\.\.\., 4\)"),
        ([0, 1], TypeError, "task_id must be an integer"),
        (torch.tensor(3), ValueError, "task_id must be one of the 3 tasks"),
    ],
)
def test_what_is_neither_an_id_nor_embeddings_is_refused(kind, task, error, match):
    _, hnet = make(kind)
    with pytest.raises(error, match=match):
        hnet(task)
    assert torch.equal(hnet(torch.tensor(1))["0.bias"], hnet(1)["0.bias"])
    with pytest.raises(TypeError, match="embeddings must be a tensor of real floats, got list"):
        hnet.forward_flat([[0.0] * 4])


def test_buffers_that_a_pass_sets_anew_are_put_back_by_hand():
    model = Counting()
    hnet = HyperNetwork(model, generator=seeded())
    hnet.add_task(), hnet.add_task()
    weights = hnet(1)
    functional_call(model, weights, (torch.ones(4, 3),))
    hnet.store_buffers(1, weights)
    assert torch.equal(hnet.buffers_of(1)["mean"], torch.full((3,), 0.5))
    assert [int(hnet.buffers_of(task)["calls"]) for task in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match=r"weights\['mean'\] must stay \(3,\), it has become \(2,\)"):
        hnet.store_buffers(1, weights | {"mean": torch.zeros(2)})


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        lambda: nn.LSTM(3, 2),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2, groups=1), nn.GroupNorm(1, 2)),
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
    ],
)
def test_every_generated_weight_reaches_the_output(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    hnet = HyperNetwork(model, generator=seeded())
    task, x = hnet.add_task(seeded()), torch.randn(4, 3, generator=seeded())
    flat = (
        hnet.forward_flat(hnet.embedding(task)) + 0.3 * torch.randn(hnet.num_weights, generator=seeded())
    ).detach()
    weights = {name: value.requires_grad_() for name, value in hnet.unflatten(flat).items()}
    inputs = (torch.ones(4, 4), x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    out = functional_call(model, weights, inputs)
    out = out[0] if isinstance(out, tuple) else out
    found = torch.autograd.grad(out.square().sum() + out.sum(), list(weights.values()))
    # And the same numbers as a module that holds them.
    alone = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in alone.named_parameters():
            value.copy_(weights[name])
    held = alone(*inputs)
    held = held[0] if isinstance(held, tuple) else held
    torch.testing.assert_close(out, held)
    expected = torch.autograd.grad(held.square().sum() + held.sum(), list(alone.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_stay_the_modules_own():
    model = mlp()
    model[0].requires_grad_(False)
    hnet = HyperNetwork(model, generator=seeded())
    hnet.add_task()
    assert list(hnet(0)) == ["2.weight", "2.bias"]
    x, y = batch()
    before = model[0].weight.clone()
    squared(model, x, y)(hnet(0)).backward()
    assert model[0].weight.grad is None
    assert torch.equal(model[0].weight, before)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"at least one trainable.*include_frozen"):
        HyperNetwork(model)
    assert next(iter(HyperNetwork(target_shapes(model, include_frozen=True)).shapes)) == "0.weight"


def test_weights_come_in_the_targets_precision_and_are_kept_in_full():
    model = mlp(torch.bfloat16)
    hnet = HyperNetwork(model, generator=seeded())
    hnet.add_task(seeded())
    assert {value.dtype for value in hnet.parameters()} == {torch.float32}
    assert {value.dtype for value in hnet(0).values()} == {torch.bfloat16}
    assert functional_call(model, hnet(0), (torch.ones(2, 3, dtype=torch.bfloat16),)).dtype == torch.bfloat16
    plain = HyperNetwork({"w": (3, 2)}, generator=seeded())
    plain.add_task(seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = plain(0)["w"]
    assert torch.equal(rounded, plain(0)["w"])


def test_it_can_be_made_in_inference_mode_and_trained_outside():
    with torch.inference_mode():
        hnet = HyperNetwork({"w": (3, 2)})
        hnet.add_task()
    hnet(0)["w"].sum().backward()
    assert hnet.embedding(0).grad is not None


@kinds
def test_the_state_carries_tasks_and_buffers_into_a_fresh_one(kind):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    _, hnet = make(kind, model=model)
    functional_call(model, hnet(1), (torch.randn(9, 3, generator=seeded()),))
    _, other = make(kind, tasks=0, model=model)
    other.load_state_dict(hnet.state_dict())
    assert other.num_tasks == 3
    for task in range(3):
        for ours, theirs in zip(hnet(task).values(), other(task).values(), strict=True):
            assert torch.equal(ours, theirs)
    _, wider = make(kind, tasks=0, model=model, hidden=(6, 8))
    with pytest.raises(ValueError, match=r"saved with hidden=\[6, 7\]"):
        wider.load_state_dict(hnet.state_dict())
    _, relu = make(kind, tasks=0, model=model, activation="relu")
    with pytest.raises(ValueError, match="saved with activation='elu'"):
        relu.load_state_dict(hnet.state_dict())
    _, longer = make(kind, tasks=4, model=model)
    with pytest.raises(ValueError, match="state_dict has 3 tasks, this hypernetwork has 4"):
        longer.load_state_dict(hnet.state_dict())


def test_a_copy_is_independent():
    _, hnet = make()
    twin = copy.deepcopy(hnet)
    with torch.no_grad():
        twin.embedding(0).zero_()
    assert hnet.embedding(0).any()


def test_theta_and_embeddings_are_all_parameters():
    for kind in ("plain", "chunked"):
        _, hnet = make(kind)
        found = {id(value) for value in [*hnet.theta(), *hnet.embeddings]}
        assert found == {id(value) for value in hnet.parameters()}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: HyperNetwork({}), ValueError, "at least one weight"),
        (lambda: HyperNetwork(nn.ReLU()), ValueError, "at least one trainable"),
        (lambda: HyperNetwork(3), TypeError, "target must be a module or a mapping"),
        (lambda: HyperNetwork({"a": (2, -1)}), ValueError, r"target\['a'\] must be at least 0"),
        (lambda: HyperNetwork({"a": 2}), TypeError, "must be a shape"),
        (lambda: HyperNetwork({"a": torch.arange(3)}), TypeError, "must be of real floats"),
        (lambda: HyperNetwork({"a": (2,)}, embedding_dim=0), ValueError, "embedding_dim must be at least 1"),
        (lambda: HyperNetwork({"a": (2,)}, hidden=()), ValueError, "hidden must name at least one"),
        (lambda: HyperNetwork({"a": (2,)}, hidden=50), TypeError, "hidden must be a sequence"),
        (lambda: HyperNetwork({"a": (2,)}, activation="step"), ValueError, "activation must be one of"),
        (lambda: HyperNetwork({"a": (2,)}, init="he"), ValueError, "init must be one of"),
        (
            lambda: HyperNetwork({"a": (2,)}, init="target"),
            ValueError,
            "init='target' needs the value of 'a'",
        ),
        (lambda: HyperNetwork({"a": (2,)}, buffers="none"), ValueError, "buffers must be one of"),
        (lambda: HyperNetwork({"a": (2,)}, dtype=torch.int32), TypeError, "dtype must be"),
        (lambda: HyperNetwork(nn.Linear(2, 2, dtype=torch.cfloat)), TypeError, "must be of real floats"),
        (lambda: HyperNetwork(nn.LazyLinear(2)), ValueError, "lazy parameter"),
        (lambda: ChunkedHyperNetwork({"a": (2,)}, chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (lambda: make()[1](3), ValueError, "task_id must be one of the 3 tasks"),
        (lambda: make()[1](-1), ValueError, "task_id must be at least 0"),
        (lambda: make()[1](0.5), TypeError, "task_id must be an integer"),
        (lambda: make()[1](torch.zeros(5)), ValueError, r"embeddings must be \(..., 4\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
