"""Conversion there and back: the same objects, the same numbers, nothing half done."""

import pytest
import torch
from torch import nn

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


class OwnNorm(nn.BatchNorm1d):
    """Somebody's subclass with a forward of its own."""


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), OwnNorm(2)])
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_cannot_be_converted_is_named_and_nothing_is_converted(layer):
    model = nn.Sequential(nn.BatchNorm1d(2), layer)
    with pytest.raises(
        TypeError, match=rf"torch.nn.BatchNorm1d/2d/3d layers only, got {type(layer).__name__} at '1'"
    ):
        convert_ghost_bn(model, 4)
    assert type(model[0]) is nn.BatchNorm1d


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
