"""What users bring: empty batches, numbers for times, files, wrappers, averaged weights."""

import copy
import io
import json
import os
import sys
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from poseidon_lite import (
    FLUID_MEAN,
    FLUID_STD,
    All2AllDataset,
    ScOT,
    ScOTConfig,
    convert_state_dict,
    group_loss,
    load_poseidon,
    relative_error,
    rollout,
    save_poseidon,
)
from poseidon_lite.layers import WindowAttention, relative_coordinates, shift_mask

SMALL = ScOTConfig.tiny(embed_dim=12, num_heads=(1, 2), window_size=4)


@pytest.fixture(scope="module")
def model():
    return ScOT(SMALL, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def x():
    return torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, 16])
def test_an_empty_batch_gives_an_empty_batch(model, size):
    assert model(torch.zeros(0, 4, size, size), torch.zeros(0)).shape == (0, 4, size, size)
    assert rollout(model, torch.zeros(0, 4, size, size), 0.5, steps=2).shape == (0, 4, size, size)


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), np.float64(0.5)])
def test_one_lead_time_serves_all_fields(model, x, t):
    wanted = model(x, torch.full((3,), 0.5))
    torch.testing.assert_close(model(x, t), wanted)
    torch.testing.assert_close(rollout(model, x, t, steps=1), wanted)


def test_a_whole_number_is_a_time_as_well(model, x):
    torch.testing.assert_close(model(x, 1), model(x, torch.ones(3)))
    torch.testing.assert_close(rollout(model, x, 1, steps=2), rollout(model, x, torch.ones(3), steps=2))


def test_weights_written_through_data_are_seen_between_two_evaluations(x):
    model = ScOT(SMALL, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        before = model(x, 0.5)
        for parameter in model.parameters():
            parameter.data.mul_(1.3)
        after = model(x, 0.5)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(x, 0.5).detach())
    with torch.inference_mode():
        torch.testing.assert_close(model(x, 0.5), after)


def test_the_shift_mask_is_twice_what_one_addition_would_be():
    assert set(shift_mask(4, 2, 1).unique().tolist()) == {-200.0, 0.0}


def test_coordinates_are_those_of_the_published_training_or_exact():
    w = 5
    table = torch.arange(-(w - 1), w, dtype=torch.int64).float() / (w - 1) * 8
    table = torch.sign(table) * torch.log2(torch.abs(table) + 1.0) / np.log2(8)
    attention = WindowAttention(8, 2, grid=w, window=w, shift=0, qkv_bias=True)
    wanted = torch.stack(torch.meshgrid([table, table], indexing="ij")).permute(1, 2, 0).flatten(0, 1)
    assert torch.equal(attention.coordinates, wanted)
    exact = relative_coordinates(w, torch.float64)
    seen = []
    attention.double().continuous_position_bias_mlp.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0])
    )
    attention.position_bias()
    assert torch.equal(seen[0], exact)
    steps = np.arange(-(w - 1), w) / (w - 1) * 8
    np.testing.assert_allclose(
        exact[:, 1].view(9, 9)[0].numpy(), np.sign(steps) * np.log2(abs(steps) + 1) / 3, rtol=1e-15
    )


def test_what_is_saved_comes_back_whatever_its_window(tmp_path, model, x):
    save_poseidon(nn.Sequential(model), tmp_path / "deep" / "model")
    back = load_poseidon(tmp_path / "deep" / "model").eval()
    assert back.config == model.config
    assert torch.equal(back(x, 0.5), model(x, 0.5))
    told = json.loads((tmp_path / "deep" / "model" / "config.json").read_text())
    assert (told["window_size"], told["residual_model"]) == (4, "convnext")
    with pytest.raises(TypeError, match="model must be a ScOT or hold one, got Linear"):
        save_poseidon(nn.Linear(1, 1), tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model."])
def test_names_of_wrappers_are_stripped(tmp_path, model, x, prefix):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    assert convert_state_dict(state).keys() == model.state_dict().keys()
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_poseidon(tmp_path, config=SMALL).eval()(x, 0.5), model(x, 0.5))


def test_a_name_at_the_hub_is_looked_up_and_the_extra_named(tmp_path, model, x, monkeypatch):
    save_poseidon(model, tmp_path)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    assert torch.equal(load_poseidon("camlab-ethz/Poseidon-T").eval()(x, 0.5), model(x, 0.5))
    assert asked == [("camlab-ethz/Poseidon-T", ["config.json", "model*.safetensors*"])]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"poseidon-lite\[hub\]"):
        load_poseidon("camlab-ethz/Poseidon-T")
    with pytest.raises(FileNotFoundError, match="path must be a safetensors file"):
        load_poseidon("folder/model.safetensors")


class Lazy:
    """An array on disk: it gives one snapshot at a time and counts."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, place):
        self.read.append(place)
        return self.array[place]


def test_an_array_on_disk_is_read_snapshot_by_snapshot():
    array = np.random.default_rng(0).normal(size=(3, 4, 4, 8, 8))
    times = torch.tensor([0.0, 1.0, 2.0, 4.0])
    lazy = Lazy(array)
    data = All2AllDataset(lazy, times, FLUID_MEAN, FLUID_STD, time_scale=4.0)
    held = All2AllDataset(torch.from_numpy(array).float(), times, FLUID_MEAN, FLUID_STD, time_scale=4.0)
    assert lazy.read == []
    assert len(data) == len(held) == 30
    for ours, theirs in zip(data[13], held[13], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert lazy.read == [(1, 0), (1, 3)]  # the fourth of the ten pairs of the second trajectory
    x, t, _ = data.batch(torch.tensor([13, 29]))
    np.testing.assert_allclose(x[0, 0], (array[1, 0, 0] - 0.80) / 0.31, rtol=1e-5)
    assert t.tolist() == [1.0, 0.0]
    array[1, 3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in snapshot \(1, 3\)"):
        data[13]


def test_lead_times_of_half_precision_fields_are_not_rounded():
    times = torch.tensor([0.0, 1000.5, 1001.5])
    data = All2AllDataset(torch.zeros(1, 3, 1, 4, 4, dtype=torch.bfloat16), times)
    assert float(data.batch(torch.tensor([4]))[1]) == 1.0


def peaked(**changes):
    """A network whose position bias counts, unlike a fresh one's."""
    model = ScOT(replace(SMALL, **changes), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def test_an_adapter_switched_off_and_a_layer_replaced_reach_the_bias_in_evaluation(x):
    model = peaked()
    mlp = model.encoder["layers"][0].blocks[0].attention["self"].continuous_position_bias_mlp
    with torch.no_grad():
        plain = model(x, 0.5)
        handle = mlp[0].register_forward_hook(lambda _, __, out: 3 * out)
        adapted = model(x, 0.5)
        handle.remove()
        torch.testing.assert_close(model(x, 0.5), plain)
        mlp[0].forward = lambda coordinates: 3 * nn.functional.linear(coordinates, mlp[0].weight, mlp[0].bias)
        torch.testing.assert_close(model(x, 0.5), adapted)
        del mlp[0].forward
        mlp[0] = nn.Sequential(mlp[0], nn.Linear(512, 512))
        replaced = model(x, 0.5)
    assert not torch.allclose(adapted, plain, rtol=1e-2)
    torch.testing.assert_close(replaced, model(x, 0.5).detach())


def test_an_ensemble_under_vmap_is_its_members(x):
    members = [peaked(), peaked()]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.mul_(1.1)
    parameters, buffers = torch.func.stack_module_state(members)
    parameters = {name: stacked.detach() for name, stacked in parameters.items()}

    def one(parameters, buffers):
        return torch.func.functional_call(members[0], (parameters, buffers), (x, 0.5))

    for grad in (True, False):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's fused attention is not batched yet
            members[0](x, 0.5)
            found = torch.vmap(one)(parameters, buffers)
        for ours, member in zip(found, members, strict=True):
            torch.testing.assert_close(ours, member(x, 0.5), rtol=1e-4, atol=1e-4)


def test_a_network_made_without_memory_is_whole_once_it_is_loaded(x):
    with torch.device("meta"):
        model = ScOT(SMALL).eval()
        assert model(torch.empty(2, 4, 32, 32), 0.5).shape == (2, 4, 32, 32)
    model.to_empty(device="cpu")
    for _, buffer in model.named_buffers():
        buffer.fill_(7)  # whatever was in the memory
    source = peaked()
    model.load_state_dict(source.state_dict())
    torch.testing.assert_close(model(x, 0.5), source(x, 0.5))


def test_copies_and_files_do_not_carry_what_is_remembered(x):
    def file():
        buffer = io.BytesIO()
        torch.save(model, buffer)
        return buffer

    model = peaked()
    before = file()
    with torch.no_grad():
        wanted = model(x, 0.5)
        after = file()
        assert after.tell() == before.tell()
        after.seek(0)
        for copied in (copy.deepcopy(model), torch.load(after, weights_only=False)):
            assert torch.equal(copied(x, 0.5), wanted)


def test_a_nan_stays_in_its_row(x):
    model = peaked()
    ruined = x.clone()
    ruined[1, 0, 0, 0] = torch.nan
    with torch.no_grad():
        found, wanted = model(ruined, 0.5), model(x, 0.5)
    assert found[1].isnan().any()
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]])


def test_one_graph_serves_every_batch_size():
    model = peaked(depths=(2,), num_heads=(2,), skip_blocks=(1,))  # a shifted block on each side
    lowest = bool(os.environ.get("ARMILLARY_LOWEST"))  # torch 2.4 takes half a minute over symbolic sizes
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=not lowest)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for batch in (4,) if lowest else (4, 3, 1):
            x, t = torch.randn(batch, 4, 32, 32, generator=generator), torch.rand(batch, generator=generator)
            torch.testing.assert_close(compiled(x, t), model(x, t))


def test_losses_of_half_precision_fields_do_not_overflow_and_an_empty_batch_adds_nothing():
    target = torch.full((1, 2, 128, 128), 100.0, dtype=torch.float16)
    for p in (1, 2):
        assert float(group_loss(1.5 * target, target, (2,), p)) == pytest.approx(0.5**p)
        assert float(relative_error(1.5 * target, target, (2,), p)) == pytest.approx(50)
    silent = torch.zeros(1, 1, 4, 4, dtype=torch.float16)
    assert group_loss(silent, silent, (1,)) == 0  # 1e-10 is no number of half precision
    nothing = torch.zeros(0, 2, 4, 4, requires_grad=True)
    loss = group_loss(nothing, nothing.detach(), (1, 1))
    loss.backward()
    assert loss == 0


def test_whole_numbers_from_files_are_normalised_like_others():
    images = torch.arange(96, dtype=torch.uint8).view(1, 2, 3, 4, 4)
    data = All2AllDataset(images, [0.0, 1.0], mean=[0.5, 1.0, 2.5], std=[0.5, 2.0, 4.0])
    x, _, y = data[1]
    assert [float(x[c, 0, 1]) for c in range(3)] == [1.0, 8.0, 7.625]
    assert float(y[2, 3, 3]) == (95 - 2.5) / 4


def test_sizes_and_steps_from_numpy_and_lists(tmp_path, x):
    config = ScOTConfig.tiny(embed_dim=np.int64(12), num_heads=[1, np.int32(2)], depths=[1, 1], window_size=4)
    assert hash(config) == hash(ScOTConfig.tiny(embed_dim=12, num_heads=(1, 2), depths=(1, 1), window_size=4))
    model = ScOT(config, generator=torch.Generator().manual_seed(0)).eval()
    save_poseidon(model, tmp_path)
    assert load_poseidon(tmp_path).config == config
    assert torch.equal(rollout(model, x, 0.5, steps=np.int64(2)), rollout(model, x, 0.5, steps=2))


def test_shards_are_read_together_and_another_file_is_named(tmp_path, model, x):
    state = list(model.state_dict().items())
    shards = {"model-1.safetensors": dict(state[::2]), "model-2.safetensors": dict(state[1::2])}
    for name, part in shards.items():
        save_file(part, tmp_path / name)
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_poseidon(tmp_path, config=SMALL).eval()(x, 0.5), model(x, 0.5))
    torch.save(dict(state), tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"path must be a safetensors file, got .*model\.bin"):
        load_poseidon(tmp_path / "model.bin")
