"""Conversion there and back: the same objects, the same numbers, nothing half done."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ghostbn import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    average_running_stats,
    convert_ghost_bn,
    revert_ghost_bn,
)


def test_layers_keep_their_identity_parameters_and_buffers(network):
    model = network()
    layers, tensors = list(model.modules()), list(model.state_dict(keep_vars=True).values())
    assert convert_ghost_bn(model, 4, remainder="own", running="mean") is model
    assert [type(layer).__name__ for layer in (model[1], model[5])] == [
        "GhostBatchNorm2d",
        "GhostBatchNorm1d",
    ]
    assert isinstance(model[1], nn.BatchNorm2d)
    assert all(before is after for before, after in zip(layers, model.modules(), strict=True))
    after = model.state_dict(keep_vars=True).values()
    assert all(before is now for before, now in zip(tensors, after, strict=True))
    assert repr(model[5]).startswith("GhostBatchNorm1d(6, eps=1e-05, momentum=0.1, affine=True")
    assert repr(model[5]).endswith(", ghost_size=4, grouping='strided', remainder='own', running='mean')")


def test_converted_model_is_one_built_with_ghost_layers(network, generator):
    converted, built = convert_ghost_bn(network(), 4), network()
    built[1], built[5] = GhostBatchNorm2d(4, 4).double(), GhostBatchNorm1d(6, 4).double()
    built.load_state_dict(network().state_dict())
    x = torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64)
    assert torch.equal(converted(x), built(x))
    assert torch.equal(converted.eval()(x), built.eval()(x))


def test_reverted_model_is_the_ordinary_one(network, generator):
    x = torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64)
    plain, back = network(), revert_ghost_bn(convert_ghost_bn(network(), 4))
    assert [type(layer) for layer in back.modules()] == [type(layer) for layer in plain.modules()]
    assert [vars(layer).keys() for layer in back.modules()] == [
        vars(layer).keys() for layer in plain.modules()
    ]
    assert torch.equal(back(x), plain(x))


def test_state_dicts_go_both_ways(network, generator):
    ghost, plain = convert_ghost_bn(network(), 4), network()
    ghost(torch.randn(12, 2, 5, 5, generator=generator, dtype=torch.float64))
    plain.load_state_dict(ghost.state_dict())
    again = convert_ghost_bn(network(), 4)
    again.load_state_dict(plain.state_dict())
    x = torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)
    assert torch.equal(ghost.eval()(x), plain.eval()(x))
    assert torch.equal(ghost(x), again.eval()(x))
    assert plain[1].num_batches_tracked.item() == 3


def test_skipped_layers_stay_and_ghost_layers_take_new_options():
    inner = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model = nn.Sequential(inner, nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.BatchNorm1d(2))
    convert_ghost_bn(model, 8, skip=["0", "2"])
    kinds = [nn.BatchNorm1d, nn.BatchNorm1d, GhostBatchNorm3d, nn.SyncBatchNorm, GhostBatchNorm1d]
    assert [type(layer) for layer in model.modules() if not isinstance(layer, nn.Sequential)] == kinds
    convert_ghost_bn(model, 16, skip=["0", "2", "3"], grouping="contiguous")
    assert (model[1].ghost_size, model[1].grouping) == (16, "contiguous")
    assert (model[3].ghost_size, model[3].grouping) == (8, "strided")


def test_a_single_layer_converts():
    assert type(convert_ghost_bn(nn.BatchNorm2d(3), 4)) is GhostBatchNorm2d


class NormReLU(nn.BatchNorm1d):
    """Somebody's subclass that goes on after the normalisation."""

    def forward(self, x):
        return super().forward(x).relu() + self.more


class CopiedNormReLU(nn.BatchNorm1d):
    """The same with torch's forward copied, as timm has it."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        self.num_batches_tracked.add_(int(self.training))
        y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        return y.relu() + self.more


class NamedNorm(nn.BatchNorm1d):
    """A subclass with all of torch's forward."""

    def extra_repr(self):
        return f"called {self.more}"


def relu_and_more(layer, y):
    return y.relu() + layer.more


def make_own(kind):
    layer = kind(3)
    layer.more = 2.0
    return layer


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (NormReLU, {NormReLU: relu_and_more}),
        (CopiedNormReLU, {CopiedNormReLU: relu_and_more}),
        (NamedNorm, None),
    ],
)
def test_own_subclasses_are_themselves_called_on_one_ghost_batch_after_another(kind, after, generator):
    plain, ghost = make_own(kind), nn.Sequential(make_own(kind))
    calls = []
    ghost[0].register_forward_hook(lambda *_: calls.append(1))
    convert_ghost_bn(ghost, 4, after=after, grouping="contiguous")
    convert_ghost_bn(ghost, 2, grouping="contiguous")  # knows what comes after from the first time
    x = torch.randn(8, 3, generator=generator)
    torch.testing.assert_close(ghost(x), torch.cat([plain(part) for part in x.split(2)]))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ghost[0].state_dict()[name], value, msg=name)
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x))
    assert calls == [1, 1]
    assert isinstance(ghost[0], kind)
    assert type(ghost[0]).__name__ == f"Ghost{kind.__name__}"
    assert type(revert_ghost_bn(ghost)[0]) is kind
    assert "ghost_size" not in vars(ghost[0])


def test_layers_of_timm(generator):
    timm = pytest.importorskip("timm")
    plain = timm.layers.BatchNormAct2d(3)
    ghost = convert_ghost_bn(copy.deepcopy(plain), 4, grouping="contiguous")
    x = torch.randn(8, 3, 2, 2, generator=generator)
    torch.testing.assert_close(ghost(x), torch.cat([plain(part) for part in x.split(4)]))


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), NormReLU(2)])
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_cannot_be_converted_is_named_and_nothing_is_converted(layer):
    model = nn.Sequential(nn.BatchNorm1d(2), layer)
    with pytest.raises(
        TypeError, match=rf"torch.nn.BatchNorm1d/2d/3d layers only, got {type(layer).__name__} at '1'"
    ):
        convert_ghost_bn(model, 4)
    assert type(model[0]) is nn.BatchNorm1d


def test_a_forward_replaced_on_the_object_is_not_lost():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].forward = lambda x: 2 * x
    with pytest.raises(TypeError, match="whose forward was replaced on the object, as that of '0'"):
        convert_ghost_bn(model, 4)
    assert type(model[0]) is nn.BatchNorm1d


def test_a_model_without_batch_normalisation_is_named():
    with pytest.raises(ValueError, match="at least one batch normalisation layer, got none in Sequential"):
        convert_ghost_bn(nn.Sequential(nn.LayerNorm(2)), 4)
    convert_ghost_bn(nn.Sequential(nn.BatchNorm1d(2)), 4, skip=["0"])  # skipping all of them is a choice


def test_after_must_name_types_in_the_model():
    with pytest.raises(ValueError, match="after must map types of layers in the model, got NormReLU"):
        convert_ghost_bn(nn.Sequential(nn.BatchNorm1d(2)), 4, after={NormReLU: relu_and_more})


def test_a_shared_layer_is_skipped_by_any_of_its_names():
    shared = nn.BatchNorm1d(2)
    convert_ghost_bn(nn.Sequential(shared, nn.Sequential(shared)), 4, skip=["1"])
    assert type(shared) is nn.BatchNorm1d


def test_skip_must_name_modules():
    with pytest.raises(ValueError, match="skip must name modules of the model, got 'head'"):
        convert_ghost_bn(nn.Sequential(nn.BatchNorm1d(2)), 4, skip=["head"])
    with pytest.raises(TypeError, match="skip must be a collection of names, got the string '0'"):
        convert_ghost_bn(nn.Sequential(nn.BatchNorm1d(2)), 4, skip="0")


def test_one_process_has_nothing_to_average(generator):
    layer = GhostBatchNorm1d(2, 4)
    layer(torch.randn(8, 2, generator=generator))
    before = layer.running_mean.clone()
    average_running_stats(layer)
    assert torch.equal(layer.running_mean, before)


class _Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).reshape_as(x)


def test_tokens_folded_into_the_samples_take_ghost_batches_of_as_many_rows():
    plain, ghost = _Tokens(), convert_ghost_bn(_Tokens(), 4)
    convert_ghost_bn(ghost.norm, 4 * 5, grouping="contiguous")
    x = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ghost(x), torch.cat([plain(part) for part in x.split(4)]))
    torch.testing.assert_close(ghost.norm.running_var, plain.norm.running_var)
