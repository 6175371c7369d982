"""What users put models through: compilation, tracing, export, scripting, copies, vmap."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ghostbn import GhostBatchNorm1d, GhostBatchNorm2d, convert_ghost_bn, ghost_batch_norm, revert_ghost_bn


def make_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_one_compiled_layer_takes_batches_of_any_size(generator):
    """A second size makes the compiler keep the size open; 18 leaves a remainder."""
    torch.compiler.reset()
    layer, plain = (GhostBatchNorm1d(3, 4) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for num in (16, 32, 18):
        x = torch.randn(num, 3, generator=generator)
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_a_traced_model_has_the_nodes_of_an_ordinary_one(generator):
    plain, ghost = make_model(), convert_ghost_bn(make_model(), 4)
    traced = torch.fx.symbolic_trace(ghost)
    ops = [(node.op, node.target) for node in torch.fx.symbolic_trace(plain).graph.nodes]
    assert [(node.op, node.target) for node in traced.graph.nodes] == ops
    for num in (8, 10):
        x = torch.randn(num, 3, 5, 5, generator=generator)
        assert torch.equal(traced(x), copy.deepcopy(ghost)(x))


def test_an_exported_model_evaluates_batches_of_any_size(generator):
    ghost = convert_ghost_bn(make_model(), 4).eval()
    x = torch.randn(8, 3, 5, 5, generator=generator)
    exported = torch.export.export(ghost, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(x[:3]), ghost(x[:3]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_evaluates_and_refuses_to_train(generator):
    ghost = convert_ghost_bn(make_model(), 4).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(ghost), file)
    loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    x = torch.randn(3, 3, 5, 5, generator=generator)
    torch.testing.assert_close(loaded(x), ghost(x))
    with pytest.raises(torch.jit.Error, match="cannot be run"):
        loaded.train()(x)


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4 at its own pickles
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_ghosts_of_the_same_kind(clone, generator):
    model = nn.Sequential(GhostBatchNorm2d(3, 4), convert_ghost_bn(OwnNorm(3), 2, after={OwnNorm: halve}))
    again, x = clone(model), torch.randn(8, 3, 2, 2, generator=generator)
    assert torch.equal(again(x), model(x))
    assert [type(layer) for layer in again] == [type(layer) for layer in model]
    assert type(revert_ghost_bn(again)[1]) is OwnNorm


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return halve(self, super().forward(x))


def halve(layer, y):
    return y / 2


@pytest.mark.parametrize("num", [8, 9])
def test_batches_of_batches_by_vmap(num, generator):
    def normalise(x):
        return ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, 4)

    x = torch.randn(5, num, 3, generator=generator)
    torch.testing.assert_close(torch.vmap(normalise)(x), torch.stack([normalise(one) for one in x]))
