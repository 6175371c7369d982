"""The crop under `torch.compile`, `torch.export`, `vmap`, deepcopy and pickle."""

import copy
import pickle

import pytest
import torch
from torch import nn

from efficienttrain import LowFreqCrop, low_freq_crop


def images(count, *sides):
    return torch.randn(count, 3, *sides, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("mode", ["gemm", "resize"])
def test_it_compiles_without_a_break_for_any_batch(mode):
    crop = LowFreqCrop(20, mode).prepare(28)
    compiled = torch.compile(crop, fullgraph=True, backend="aot_eager")
    for count in (8, 3, 1):
        torch.testing.assert_close(compiled(images(count, 28, 28)), crop(images(count, 28, 28)))


def test_a_compiled_module_follows_its_size():
    crop = LowFreqCrop(12)
    compiled = torch.compile(crop, fullgraph=True, backend="eager", dynamic=False)
    for size in (12, 20, 28):
        crop.set_size(size)
        torch.testing.assert_close(compiled(images(2, 28, 28)), low_freq_crop(images(2, 28, 28), size))


# torch 2.4's own, of constants that are neither parameters nor buffers
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.filterwarnings("ignore:Node self____operators:UserWarning")
def test_it_exports():
    crop = LowFreqCrop((12, 20)).prepare((28, 31))
    program = torch.export.export(crop, (images(2, 28, 31),))
    x = images(2, 28, 31)
    torch.testing.assert_close(program.module()(x), crop(x))


@pytest.mark.parametrize("mode", ["gemm", "fft"])
def test_it_maps_over_batches(mode):
    x = images(4, 28, 28)
    found = torch.func.vmap(lambda image: low_freq_crop(image, 20, mode=mode))(x)
    torch.testing.assert_close(found, low_freq_crop(x, 20, mode=mode), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.load:FutureWarning")  # torch 2.4's own, for any pickled tensor
def test_copies_crop_the_same():
    crop = LowFreqCrop(20).prepare(28)
    x = images(2, 28, 28)
    for other in (copy.deepcopy(crop), pickle.loads(pickle.dumps(crop)), nn.Sequential(crop)):
        assert torch.equal(other(x), crop(x))
