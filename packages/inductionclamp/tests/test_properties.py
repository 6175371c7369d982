"""What holds for any model, batch, heads and strength."""

import copy
import pickle

import pytest
import torch
from helpers import HEADS, batch_of, sampler, small_model
from hypothesis import given
from hypothesis import strategies as st

from inductionclamp import (
    Clamp,
    ClampSet,
    FromPass,
    Heads,
    ablate_heads,
    block_prev_token,
    context_positions,
    graft,
    head_temperature,
    induction_pattern,
    induction_strength,
    match_pattern,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    run,
    silence_non_labels,
)

close = torch.testing.assert_close
SEEDS = st.integers(0, 50)
LAYERS = st.integers(0, 1)
HEAD_SETS = st.sets(st.integers(0, HEADS - 1), min_size=1)
STRENGTHS = st.floats(0, 1)
SITES = sorted(small_model(mlp_dim=8).clamp_sites)


@given(seed=SEEDS, size=st.integers(0, 4))
def test_no_clamps_change_no_bit(seed, size):
    model, batch = small_model(seed, torch.float32), batch_of(size, seed, dtype=torch.float32)
    output, acts = run(model, batch, ClampSet())
    assert torch.equal(output, model(*batch))
    assert acts == {}


@given(name=st.sampled_from(SITES), seed=SEEDS)
def test_its_own_value_changes_nothing_but_the_gradient_upstream(name, seed):
    model, batch = small_model(seed, mlp_dim=8), batch_of(4, seed)
    plain, acts = run(model, batch, record=[name])
    value = acts[name].detach()
    mask = torch.ones_like(value, dtype=torch.bool)
    output, _ = run(model, batch, Clamp(name, value, mask))
    close(output, plain.detach(), rtol=1e-9, atol=1e-9)
    if name in ("tok_embedding", "example_embedding"):
        output.sum().backward()
        assert model.embed.weight.grad.abs().max() == 0
    if name in ("logits", "pre_unembed", "blocks.1.out", "blocks.1.residual_post_attn"):
        output.sum().backward()
        assert model.blocks[0].attention.qkv.weight.grad.abs().max() == 0


@given(name=st.sampled_from(SITES), seed=SEEDS)
def test_a_pass_put_into_itself_is_the_same_pass(name, seed):
    model, batch = small_model(seed, mlp_dim=8), batch_of(4, seed)
    model.clamp_sites.ordered = False  # so that the pass is made
    wanted = torch.autograd.grad(model(*batch).square().sum(), model.embed.weight)
    output, _ = run(model, batch, Clamp(name, FromPass()))
    close(output, model(*batch), rtol=1e-9, atol=1e-9)
    if name != "label_embedding":
        close(torch.autograd.grad(output.square().sum(), model.embed.weight), wanted)


@given(seed=SEEDS, kinds=st.sets(st.sampled_from(["patterns", "values", "queries", "keys"]), min_size=1))
def test_preserving_alone_changes_nothing(seed, kinds):
    model, batch = small_model(seed), batch_of(4, seed)
    close(run(model, batch, preserve(kinds))[0], model(*batch), rtol=1e-9, atol=1e-9)


@given(seed=SEEDS, layer=LAYERS, heads=HEAD_SETS, strength=STRENGTHS, pairs=st.sampled_from([2, 4]))
def test_forced_patterns_are_causal_with_rows_that_sum_to_one(seed, layer, heads, strength, pairs):
    model, batch = small_model(seed), batch_of(4, seed, pairs)
    name = f"blocks.{layer}.attn_scores"
    for clamps in (
        prev_token(layer, heads, strength),
        prev_token(layer, heads, strength, only_labels=True),
        induction_pattern(layer, heads, strength),
        match_pattern(layer, heads, strength),
        block_prev_token(layer, heads),
        silence_non_labels(layer, heads),
        head_temperature(layer, {head: 0.1 + strength for head in heads}),
    ):
        attn = run(model, batch, clamps, record=[name])[1][name]
        close(attn.sum(-1), torch.ones_like(attn[..., 0]))
        assert attn.triu(1).abs().max() == 0
        assert attn.min() >= 0


@given(seed=SEEDS, heads=HEAD_SETS, strength=STRENGTHS)
def test_plotted_strength_is_twice_the_weight_less_one(seed, heads, strength):
    model, batch = small_model(seed), batch_of(5, seed)
    name = "blocks.1.attn_scores"
    attn = run(model, batch, induction_pattern(1, heads, strength), record=[name])[1][name]
    found = induction_strength(attn, *context_positions(batch.y))
    assert found[sorted(heads)].tolist() == pytest.approx([2 * strength - 1] * len(heads), abs=1e-6)


@given(seed=SEEDS, head=st.integers(0, HEADS - 1), strength=STRENGTHS, layer=LAYERS)
def test_clamps_on_disjoint_heads_commute(seed, head, strength, layer):
    model, batch = small_model(seed), batch_of(4, seed)
    first = prev_token(layer, head, strength)
    second = induction_pattern(layer, (head + 1) % HEADS, strength)
    third = Clamp(f"blocks.{layer}.attn_scores", FromPass(), Heads(((head + 2) % HEADS,)))
    wanted, _ = run(model, batch, [first, second, third])
    assert torch.equal(run(model, batch, [third, second, first])[0], wanted)


@given(seed=SEEDS)
def test_later_clamps_of_one_activation_win(seed):
    model, batch = small_model(seed), batch_of(4, seed)
    name = "blocks.0.attn_scores"
    for clamps in (
        [preserve("patterns"), prev_token(0, [1], 0.7)],
        [prev_token(0, [1], 0.7), preserve("patterns")],
    ):
        attn = run(model, batch, clamps, record=[name])[1][name]
        close(attn[:, 1].diagonal(-1, 1, 2), torch.full((4, 4), 0.7, dtype=torch.float64))
    mine = Clamp("blocks.0.v", 2.0)
    assert (run(model, batch, [mine, ablate_heads(0)], record=["blocks.0.v"])[1]["blocks.0.v"] == 2).all()


@given(seed=SEEDS, layer=LAYERS)
def test_a_graft_of_a_model_into_itself_is_the_model(seed, layer):
    model, batch = small_model(seed), batch_of(4, seed)
    close(run(model, batch, graft(model, upto=layer))[0], model(*batch))
    close(run(model, batch, graft(model, from_=layer))[0], model(*batch))
    close(run(model, batch, graft(copy.deepcopy(model), from_=layer))[0], model(*batch))


RECIPES = [
    lambda: prev_token(0, [1], 0.4),
    lambda: induction_pattern(1, [1], 0.4),
    lambda: match_pattern(1, [1], 0.4),
    lambda: perfect_copy(1, 1),
    lambda: perfect_layer1(1),
    lambda: [preserve("patterns"), ablate_heads(0)],
    lambda: [block_prev_token(0), silence_non_labels(1), head_temperature(0, {1: 0.5})],
]


@pytest.mark.filterwarnings(
    "ignore:You are using .torch.load.:FutureWarning"
)  # of pickled tensors, in torch 2.4
@pytest.mark.parametrize("recipe", RECIPES)
def test_clamp_sets_and_models_survive_copies(recipe):
    model, batch = small_model(), batch_of(4)
    clamps = ClampSet(recipe())
    wanted, _ = run(model, batch, clamps)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.clamp_sites["logits"] is not model.clamp_sites["logits"]
        assert torch.equal(run(other, batch, pickle.loads(pickle.dumps(clamps)))[0], wanted)
    assert not [name for name in model.state_dict() if "site" in name]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_recipes_keep_narrow_types_finite(recipe, dtype):
    wide, batch = small_model(), batch_of(4)
    model = copy.deepcopy(wide).to(dtype)
    output, _ = run(model, (batch.x.to(dtype), batch.y), recipe())
    wanted, _ = run(wide, batch, recipe())
    assert output.dtype == dtype
    assert bool(output.isfinite().all())
    shown = output.float().clamp(min=-1e3)
    tolerance = {torch.float16: 0.1, torch.bfloat16: 0.6, torch.float32: 1e-4}[dtype]
    close(shown, wanted.float().clamp(min=-1e3), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_under_autocast(recipe):
    model, batch = small_model(dtype=torch.float32), batch_of(4, dtype=torch.float32)
    wanted, _ = run(model, batch, recipe())
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run(model, batch, recipe())
        output[:, -1].float().logsumexp(-1).sum().backward()
    close(output.float().clamp(min=-1e3), wanted.clamp(min=-1e3), rtol=0.0, atol=0.6)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model.embed.weight.grad.abs().max() > 0


@given(seed=SEEDS, row=st.integers(0, 3))
def test_a_bad_sequence_spoils_itself_alone(seed, row):
    model, (x, y) = small_model(seed), batch_of(4, seed)
    bad = x.clone()
    bad[row] = torch.nan
    others = torch.arange(4) != row
    for clamps in (prev_token(0), match_pattern(1), perfect_layer1(1), perfect_copy(1, 0)):
        found, wanted = run(model, (bad, y), clamps)[0], run(model, (x, y), clamps)[0]
        assert torch.equal(found[others], wanted[others])


@given(seed=SEEDS)
def test_expanded_and_strided_sources_and_inputs(seed):
    model, (x, y) = small_model(seed), batch_of(4, seed)
    shape = (4, HEADS, 5, 4)
    flat = torch.randn(4, 5, HEADS, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    strided = flat.transpose(1, 2)
    assert strided.shape == shape
    wanted, _ = run(model, (x, y), Clamp("blocks.0.v", strided.contiguous()))
    odd = x.transpose(0, 1).contiguous().transpose(0, 1)
    close(run(model, (odd, y.repeat(1, 2)[:, :3]), Clamp("blocks.0.v", strided))[0], wanted)
    one = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expanded, _ = run(model, (x, y), Clamp("blocks.0.v", one.expand(shape)))
    assert torch.equal(run(model, (x, y), Clamp("blocks.0.v", one))[0], expanded)


@pytest.mark.filterwarnings(
    "ignore:You are using .torch.load.:FutureWarning"
)  # of pickled tensors, in torch 2.4
@given(seed=SEEDS, size=st.integers(1, 5), used=st.integers(0, 3))
def test_a_sampler_resumes_where_it_was(seed, size, used):
    first, second = sampler(seed), sampler(seed + 1)
    for _ in range(used):
        first.batch(size)
    second.features = first.features
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for _ in range(2):
        for mine, other in zip(first.batch(size), second.batch(size), strict=True):
            assert torch.equal(mine, other)
