"""qk-layernorm as a layer and as a patch."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from stabilityproxy import Projections, QKNorm, StabilityProbe, add_qk_layernorm_


def test_the_layer_is_torchs_layer_norm_without_a_bias():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 5, 4, generator=generator).unbind()
    norm = QKNorm(4, eps=1e-3)
    with torch.no_grad():
        norm.query_weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.key_weight.copy_(torch.tensor([3.0, 1.0, 0.1, 2.0]))
    for ours, x, gain in zip(
        norm(query, key), (query, key), (norm.query_weight, norm.key_weight), strict=True
    ):
        centred = x - x.mean(-1, keepdim=True)
        expected = gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        torch.testing.assert_close(ours, expected)


@given(st.integers(0, 99), st.integers(2, 9), st.floats(0.2, 50))
def test_logits_are_bounded_and_do_not_see_the_scale(seed, size, scale):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(3, 6, size, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = QKNorm(size, eps=0.0).double()
    normed = norm(query, key)
    logits = normed[0] @ normed[1].mT / size**0.5
    assert logits.abs().max() <= size**0.5 * (1 + 1e-9)
    torch.testing.assert_close(norm(scale * query, key / scale), normed)


def test_the_dtype_stays_under_autocast():
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(each.dtype == torch.bfloat16 for each in QKNorm(4)(x, x))


def gains(model, value=None):
    found = [parameter for name, parameter in model.named_parameters() if "qk_layernorm" in name]
    if value is not None:
        with torch.no_grad():
            for index, parameter in enumerate(found):
                parameter.copy_(torch.linspace(0.5, value + index, len(parameter)))
    return found


def test_the_patch_normalises_each_head_before_rotation(decoder, ids):
    model = decoder(dropout=0.0)
    assert add_qk_layernorm_(model) == ["attentions.0", "attentions.1"]
    gains(model, 2.0)
    attention, hidden = model.attentions[0], model.embed(ids)
    query, key = (
        F.layer_norm(project(hidden).unflatten(-1, (-1, 4)), (4,), weight, None, 1e-6)
        for project, weight in (
            (lambda x: F.linear(x, attention.q_proj.weight), gains(attention)[0]),
            (lambda x: F.linear(x, attention.k_proj.weight), gains(attention)[1]),
        )
    )
    # Rotation by complex numbers, as the model of these tests does it.
    angles = torch.arange(9.0)[:, None] * 100.0 ** (-torch.arange(2) / 2)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    query, key = (
        torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn)
        .flatten(-2)
        .transpose(1, 2)
        for x in (query, key)
    )
    model(ids)
    torch.testing.assert_close(attention.seen[0], (query @ key.repeat_interleave(2, 1).mT / 2).detach())


def test_patched_logits_stay_bounded_however_large_the_projections(decoder, ids):
    model = decoder(dropout=0.0)
    add_qk_layernorm_(model)
    with torch.no_grad():
        for attention in model.attentions:
            attention.q_proj.weight.mul_(1e4)
    with StabilityProbe(model, mode="exact") as probe:
        model(ids)
    assert (probe.read().max_logit <= 4**0.5 * (1 + 1e-5)).all()


def test_the_gains_are_trained_saved_and_loaded(decoder, ids, tmp_path):
    model = decoder(dropout=0.0)
    add_qk_layernorm_(model)
    model(ids).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gains(model))
    gains(model, 3.0)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    other = decoder(dropout=0.0, seed=1)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*qk_layernorm"):
        other.load_state_dict(state)
    add_qk_layernorm_(other)
    other.load_state_dict(state)
    torch.testing.assert_close(other(ids), model(ids))
    with pytest.raises(RuntimeError, match=r"Missing key.*qk_layernorm"):
        model.load_state_dict(decoder().state_dict())


@pytest.mark.filterwarnings("ignore:You are using `torch.load`")  # torch 2.4 about its own pickles
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_gains(duplicate, ids):
    model = FusedModel("blocks", 4)
    add_qk_layernorm_(model, {"": Projections(4, "qkv", "qkv", 4, 4)})
    twin = duplicate(model)
    x = torch.ones(1, 3, 16)
    before = model(x)
    gains(twin, 9.0)
    torch.testing.assert_close(model(x), before)
    assert (twin(x) - before).abs().max() > 1e-3


class FusedModel(nn.Module):
    """A projection that makes queries, keys and values at once."""

    def __init__(self, layout, key_heads):
        super().__init__()
        self.key_heads, self.layout = key_heads, layout
        self.qkv = nn.Linear(16, (4 + 2 * key_heads) * 4)
        with torch.no_grad():
            self.qkv.weight.copy_(
                torch.randn(self.qkv.weight.shape, generator=torch.Generator().manual_seed(2))
            )

    def parts(self, x):
        heads = self.qkv(x).unflatten(-1, (-1, 4))
        if self.layout == "interleaved":
            return heads.unflatten(-2, (4, 3)).unbind(-2)
        return heads.split([4, self.key_heads, self.key_heads], dim=-2)

    def forward(self, x):
        return torch.cat([part.flatten(-2) for part in self.parts(x)], dim=-1)


@pytest.mark.parametrize(("layout", "key_heads"), [("blocks", 4), ("blocks", 2), ("interleaved", 4)])
def test_fused_projections_are_taken_apart(layout, key_heads):
    model = FusedModel(layout, key_heads)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(3))
    query, key, value = model.parts(x)
    add_qk_layernorm_(model, {"": Projections(4, "qkv", "qkv", 4, key_heads, layout)})
    gains(model, 2.0)
    found = model.parts(x)
    for ours, before, gain in zip(found, (query, key), gains(model), strict=False):
        torch.testing.assert_close(ours, F.layer_norm(before, (4,), gain, None, 1e-6))
    torch.testing.assert_close(found[2], value)


def test_what_cannot_be_patched_is_named(decoder):
    patched = decoder()
    add_qk_layernorm_(patched)
    with pytest.raises(
        ValueError, match=r"model must not have normalised queries and keys, got \['qk_layernorm'\]"
    ):
        add_qk_layernorm_(patched)
    unknown = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match=r"mapping must say where .* not recognised in \['0'\]"):
        add_qk_layernorm_(unknown)
    with pytest.raises(ValueError, match=r"attention must name modules of the model, got \['attentions.9'\]"):
        add_qk_layernorm_(decoder(), {"attentions.9": Projections(4)})
    with pytest.raises(ValueError, match=r"mapping must name children of attentions.0, .* got 'query'"):
        add_qk_layernorm_(decoder(), {"attentions.0": Projections(4, query="query")})
    with pytest.raises(ValueError, match=r"head_dim must divide the width of attentions.0.\w_proj"):
        add_qk_layernorm_(decoder(), {"attentions.0": Projections(5)})
    with pytest.raises(ValueError, match=r"head_dim must divide"):
        add_qk_layernorm_(FusedModel("blocks", 4), {"": Projections(4, "qkv", "qkv", 6)})
    with pytest.raises(ValueError, match=r"num_heads must be given where one projection makes"):
        Projections(4, "qkv", "qkv")
    with pytest.raises(ValueError, match=r"layout must be one of .* got 'rows'"):
        Projections(4, layout="rows")
    with pytest.raises(ValueError, match=r"head_dim must be at least 1, got 0"):
        QKNorm(0)


class Adapted(nn.Module):
    """A projection with something added to it, as low-rank adapters do."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.delta = nn.Parameter(
            torch.randn(base_layer.weight.shape, generator=torch.Generator().manual_seed(1))
        )

    def forward(self, x):
        return self.base_layer(x) + F.linear(x, self.delta)


@pytest.mark.parametrize("patched_first", [True, False])
def test_adapters_are_normalised_with_what_they_adapt_and_so_is_the_merged_projection(
    decoder, ids, patched_first
):
    model, plain = decoder(dropout=0.0), decoder(dropout=0.0)
    if patched_first:
        add_qk_layernorm_(model)
    attention = model.attentions[0]
    attention.q_proj, attention.k_proj = Adapted(attention.q_proj), Adapted(attention.k_proj)
    if not patched_first:
        add_qk_layernorm_(model)
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(plain.attentions[0], name).weight.add_(getattr(attention, name).delta)
    add_qk_layernorm_(plain)
    gains(model, 2.0)
    gains(plain, 2.0)
    torch.testing.assert_close(model(ids), plain(ids), rtol=1e-4, atol=1e-3)
    # A copy of the adapted projection, such as one that is trained in full, is not normalised twice.
    attention.q_proj = copy.deepcopy(attention.q_proj)
    torch.testing.assert_close(model(ids), plain(ids), rtol=1e-4, atol=1e-3)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(ids), plain(ids), rtol=1e-4, atol=1e-3)
    for name in ("q_proj", "k_proj"):
        merged = getattr(attention, name).base_layer
        with torch.no_grad():
            merged.weight.add_(getattr(attention, name).delta)
        setattr(attention, name, merged)
    torch.testing.assert_close(model(ids), plain(ids), rtol=1e-4, atol=1e-3)


def test_an_attribute_of_the_same_name_is_named(decoder):
    model = decoder()
    model.attentions[1].qk_layernorm = False  # as StableLM has
    with pytest.raises(ValueError, match=r"leave the name 'qk_layernorm' free, but attentions.1 has"):
        add_qk_layernorm_(model)
    assert "qk_layernorm" not in dict(model.attentions[0].named_children())
