"""The network against transformers' Swin-V2 modules, against loops, and against published facts."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from poseidon_lite import ScOT, ScOTConfig, SwinV2Block, convert_state_dict, finetune_groups, load_poseidon
from poseidon_lite.layers import WindowAttention

SMALL = {"image_size": 24, "patch_size": 2, "embed_dim": 8, "depths": (2, 3), "num_heads": (2, 4)}
SMALL |= {
    "skip_blocks": (1, 0),
    "window_size": 5,
    "in_channels": 3,
    "out_channels": 2,
}  # 12 is no multiple of 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def shapes_only(monkeypatch):
    """Networks on the meta device, without the work of drawing weights."""
    monkeypatch.setattr("poseidon_lite.model.initialise", lambda module, generator: None)
    for layer in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize(("preset", "count"), [("T", 20_774_444), ("L", 628_575_524)])
def test_published_sizes(preset, count):
    model = ScOT(getattr(ScOTConfig, preset)())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.usefixtures("shapes_only")
def test_the_names_and_shapes_of_a_published_checkpoint():
    shapes = {name: tuple(tensor.shape) for name, tensor in ScOT(ScOTConfig.T()).state_dict().items()}

    def affine(name, dim):
        return {f"{name}.weight.weight": (dim, 1), f"{name}.bias.weight": (dim, 1),
                f"{name}.weight.bias": (dim,), f"{name}.bias.bias": (dim,)}  # fmt: skip

    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    expected = {"embeddings.patch_embeddings.projection.weight": (48, 4, 4, 4)}
    expected |= {"embeddings.patch_embeddings.projection.bias": (48,), **affine("embeddings.norm", 48)}
    expected |= {"patch_recovery.projection.weight": (48, 4, 4, 4), "patch_recovery.projection.bias": (4,)}
    expected |= {"patch_recovery.mixup.weight": (4, 4, 5, 5)}
    for level, heads in enumerate((3, 6, 12, 24)):
        dim = 48 * 2**level
        for stage in (f"encoder.layers.{level}", f"decoder.layers.{3 - level}"):
            for block in (f"{stage}.blocks.{j}" for j in range(4)):
                attention = f"{block}.attention.self"
                expected |= {f"{attention}.logit_scale": (heads, 1, 1), f"{attention}.key.weight": (dim, dim)}
                expected |= linear(f"{attention}.query", dim, dim) | linear(f"{attention}.value", dim, dim)
                expected |= linear(f"{attention}.continuous_position_bias_mlp.0", 512, 2)
                expected |= {f"{attention}.continuous_position_bias_mlp.2.weight": (heads, 512)}
                expected |= linear(f"{block}.attention.output.dense", dim, dim)
                expected |= linear(f"{block}.intermediate.dense", 4 * dim, dim)
                expected |= linear(f"{block}.output.dense", dim, 4 * dim)
                expected |= affine(f"{block}.layernorm_before", dim) | affine(f"{block}.layernorm_after", dim)
        if level < 3:
            down, up = f"encoder.layers.{level}.downsample", f"decoder.layers.{2 - level}.upsample"
            expected |= {f"{down}.reduction.weight": (2 * dim, 4 * dim), **affine(f"{down}.norm", 2 * dim)}
            expected |= {f"{up}.upsample.weight": (4 * dim, 2 * dim), f"{up}.mixup.weight": (dim, dim)}
            expected |= affine(f"{up}.norm", dim)
            for block in (f"residual_blocks.{level}.{j}" for j in range(2)):
                expected |= {f"{block}.dwconv.weight": (dim, 1, 7, 7), f"{block}.dwconv.bias": (dim,)}
                expected |= {f"{block}.weight": (dim,), **affine(f"{block}.norm", dim)}
                expected |= linear(f"{block}.pwconv1", 4 * dim, dim) | linear(
                    f"{block}.pwconv2", dim, 4 * dim
                )
    assert shapes == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},  # padded and shifted windows
        {"window_size": 3, "depths": (3, 2)},
        {"window_size": 16, "skip_blocks": (2, 1)},
        {
            "image_size": 32,
            "depths": (1, 1, 2),
            "num_heads": (1, 2, 4),
            "skip_blocks": (0, 1, 0),
            "window_size": 2,
        },
    ],
)
def test_the_network_computes_what_the_modules_of_transformers_compute(official, changes):
    config = ScOTConfig(**{**SMALL, **changes})
    models = {name: model.double() for name, model in official["build"](config).items()}
    x, t = (tensor.double() for tensor in official["batch"](2, 3, config.image_size))
    outputs = {name: model(x, t) for name, model in models.items()}
    # The library computes its coordinates in float32.
    torch.testing.assert_close(outputs["ours"], outputs["peer"], rtol=1e-5, atol=1e-7)
    for output in outputs.values():
        output.square().sum().backward()
    peer = dict(models["peer"].named_parameters())
    for name, parameter in models["ours"].named_parameters():
        torch.testing.assert_close(parameter.grad, peer[name].grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # the fused path that remembers its bias, twice
        for _ in range(2):
            torch.testing.assert_close(models["ours"].eval()(x, t), outputs["ours"])


def test_one_window_is_full_attention_with_the_bias_of_the_swin_v2_paper():
    window, heads, dim = 3, 2, 8
    attention = WindowAttention(dim, heads, grid=window, window=window, shift=0, qkv_bias=True).double()
    with torch.no_grad():
        attention.logit_scale[1] = 9.0  # beyond ln 100: must be clamped
    x = torch.randn(1, 1, 9, dim, generator=generator(), dtype=torch.float64)
    query, key, value = (
        layer(x)[0, 0].view(9, heads, -1) for layer in (attention.query, attention.key, attention.value)
    )
    mlp, out = (
        attention.continuous_position_bias_mlp,
        torch.empty(9, heads, dim // heads, dtype=torch.float64),
    )
    for head in range(heads):
        scale = math.exp(min(float(attention.logit_scale[head].detach()), math.log(100)))
        for i in range(9):
            logits = []
            for j in range(9):
                offsets = [8 * (i // 3 - j // 3) / 2, 8 * (i % 3 - j % 3) / 2]
                spaced = [math.copysign(math.log2(abs(o) + 1) / math.log2(8), o) for o in offsets]
                bias = 16 * torch.sigmoid(mlp(torch.tensor(spaced, dtype=torch.float64))[head])
                logits.append(scale * torch.cosine_similarity(query[i, head], key[j, head], dim=0) + bias)
            out[i, head] = torch.stack(logits).softmax(0) @ value[:, head]
    torch.testing.assert_close(attention(x)[0, 0], out.flatten(1), rtol=1e-5, atol=1e-6)


def test_at_the_start_nothing_passes_at_lead_time_zero():
    model = ScOT(ScOTConfig.tiny(), generator=generator())
    x = torch.randn(3, 4, 32, 32, generator=generator())
    assert model(x, torch.zeros(3)).abs().max() == 0
    assert model(x, torch.ones(3)).abs().max() > 0
    again = ScOT(ScOTConfig.tiny(), generator=generator())
    assert torch.equal(again(x, torch.ones(3)), model(x, torch.ones(3)))
    weight = model.decoder["layers"][0].blocks[0].output["dense"].weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_stochastic_depth_grows_along_the_network_and_vanishes_in_evaluation():
    model = ScOT(ScOTConfig.tiny(depths=(2, 1), drop_path_rate=0.5), generator=generator())
    rates = [
        block.drop_path.rate
        for part in (model.encoder, model.decoder)
        for stage in part["layers"]
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    drop = model.decoder["layers"][1].blocks[1].drop_path
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = drop(torch.ones(4000, 2, 1))
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert float(kept.mean()) == pytest.approx(1, abs=0.06)
    assert torch.equal(drop.eval()(torch.ones(5, 1)), torch.ones(5, 1))


def test_the_remembered_bias_follows_the_weights_and_is_not_rounded_by_autocast():
    block = SwinV2Block(8, 2, 6, window_size=3, shift=1).eval()
    x, t = torch.randn(2, 36, 8, generator=generator()), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = block(x, t)
        before = block(x, t)
        # In the norm: bfloat16 keeps 8 bits, and a single small entry may well be off by a third.
        assert float((rounded.float() - before).norm() / before.norm()) < 0.05
        exact = block.double()(x.double(), t.double()).float()
        torch.testing.assert_close(before, exact, rtol=1e-4, atol=1e-5)
        block.float().attention["self"].continuous_position_bias_mlp[2].weight.mul_(-3)
        after = block(x, t)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(block(x, t), after)  # with gradients nothing is remembered


def test_residuals_masks_and_other_sizes():
    config = ScOTConfig.tiny(in_channels=3, out_channels=2, learn_residual=True)
    model = ScOT(config, generator=generator()).double()
    x = torch.randn(2, 3, 32, 32, generator=generator(), dtype=torch.float64)
    zero, t = torch.zeros(2, dtype=torch.float64), torch.tensor([0.4, 1.0], dtype=torch.float64)
    assert torch.equal(model(x, zero), x[:, :2])

    labels = torch.full((2, 2, 32, 32), 7.0, dtype=torch.float64)
    plain = model(x, t)
    mask = torch.tensor([[True, False], [False, False]])
    masked = model(x, t, mask, labels)
    assert torch.equal(masked[0, 0], labels[0, 0])
    assert torch.equal(masked[:, 1], plain[:, 1])
    assert torch.equal(model(x, t, torch.zeros_like(plain, dtype=torch.bool), labels), plain)

    place = torch.arange(64, dtype=torch.float64) / 64
    wave = torch.sin(2 * math.pi * (place[:, None] + 2 * place)).expand(2, 3, 64, 64)
    assert model(wave, t).shape == (2, 2, 64, 64)
    torch.testing.assert_close(
        model(wave, t)[..., ::2, ::2], model(wave[..., ::2, ::2], t), rtol=1e-3, atol=1e-2
    )


@pytest.fixture
def published(tmp_path):
    """A checkpoint folder as the official code saves it, and the model it came from."""
    config = ScOTConfig(**SMALL)
    model = ScOT(config, generator=generator(5))
    weights = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    weights["model.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(2, 2)
    weights["model.encoder.layers.0.blocks.0.attention.self.relative_coords_table"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "model.safetensors")
    told = {"image_size": 24, "window_size": 5, "layer_norm_eps": 1e-5, "drop_path_rate": 0.0, "embed_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(told | {"residual_model": "convnext"}))
    return tmp_path, model


def test_a_checkpoint_loads_by_name(published):
    path, model = published
    for source in (path, path / "model.safetensors"):
        loaded = load_poseidon(source)
        assert loaded.config == model.config
        assert all(
            torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items()
        )
    assert list(convert_state_dict({"model.a": torch.zeros(1), "b": torch.ones(1)})) == ["a", "b"]


def test_other_channels_touch_only_embedding_and_recovery(published):
    path, model = published
    loaded = load_poseidon(path, in_channels=5, out_channels=1, generator=generator(9)).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, loaded[name])}
    assert changed == {
        "embeddings.patch_embeddings.projection.weight",
        "patch_recovery.projection.weight",
        "patch_recovery.projection.bias",
        "patch_recovery.mixup.weight",
    } - {name for name in changed if loaded[name].shape == model.state_dict()[name].shape}
    assert loaded["embeddings.patch_embeddings.projection.weight"].shape == (8, 5, 2, 2)


def test_unmatched_weights_are_named(published, tmp_path):
    _, model = published
    weights = dict(model.state_dict())
    weights["decoder.extra"] = weights.pop("patch_recovery.projection.bias")
    weights["embeddings.norm.bias.bias"] = torch.zeros(3)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"missing: patch_recovery.projection.bias; unknown: decoder.extra; of another"
    ):
        load_poseidon(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"must hold the weights of a scOT network, got the names \['a'\]"):
        load_poseidon(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match="safetensors file or a folder"):
        load_poseidon(tmp_path / "nowhere")


def test_finetuning_groups_follow_the_recipe():
    model = ScOT(ScOTConfig.tiny())
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: group["name"] for group in finetune_groups(model) for p in group["params"]}
    block = "encoder.layers.0.blocks.0."
    assert found["embeddings.norm.weight.weight"] == "embedding"
    assert found["patch_recovery.projection.bias"] == "embedding"
    assert found[block + "layernorm_after.bias.weight"] == "time"
    assert found["decoder.layers.0.upsample.norm.weight.bias"] == "time"
    assert found[block + "attention.self.logit_scale"] == "decay"
    assert found["residual_blocks.0.0.weight"] == "decay"
    assert found[block + "attention.self.query.weight"] == "decay"
    assert found[block + "attention.self.query.bias"] == "no decay"
    assert found["residual_blocks.0.0.dwconv.bias"] == "no decay"


def test_gradients_reach_every_parameter():
    model = ScOT(ScOTConfig.tiny(embed_dim=12, num_heads=(1, 2)), generator=generator())
    with torch.no_grad():
        nn.init.ones_(model.residual_blocks[0][0].weight)
    model(
        torch.randn(2, 4, 32, 32, generator=generator()), torch.rand(2, generator=generator())
    ).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
