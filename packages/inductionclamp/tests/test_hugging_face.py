"""Llama, GPT-2 and GPT-NeoX from their configurations; weights are random, nothing is downloaded."""

import copy
import os

import pytest
import torch
from helpers import seeded

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from inductionclamp import (  # noqa: E402
    Clamp,
    ClampSet,
    Heads,
    ablate_heads,
    block_prev_token,
    clamped,
    force_pattern,
    graft,
    head_ablation_table,
    induction_pattern,
    instrument_hf,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    prev_token_score,
    run,
    sequence_induction_score,
)


def close(found, wanted, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
IDS = torch.randint(3, 30, (3, 7), generator=seeded())
LEFT = torch.ones_like(IDS)
LEFT[0, :3] = 0
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHARED = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 30}


def llama(implementation, groups=2):
    config = transformers.LlamaConfig(num_key_value_heads=groups, intermediate_size=24, **SHARED, **TOKENS)
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation=implementation)


def gpt2(implementation):
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=4,
        vocab_size=30,
        n_positions=32,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
        **TOKENS,
    )
    return transformers.GPT2LMHeadModel._from_config(config, attn_implementation=implementation)


def gpt_neox(implementation):
    config = transformers.GPTNeoXConfig(intermediate_size=24, **SHARED, **TOKENS)
    return transformers.GPTNeoXForCausalLM._from_config(config, attn_implementation=implementation)


FAMILIES = [llama, gpt2, gpt_neox]


def made(family, implementation="sdpa"):
    torch.manual_seed(0)
    model = family(implementation)
    generator = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


families = pytest.mark.parametrize("family", FAMILIES)
implementations = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


@families
@implementations
def test_instrumented_it_is_the_same_model(family, implementation):
    model = made(family, implementation)
    batch = {"input_ids": IDS, "attention_mask": LEFT}
    names, wanted = set(model.state_dict()), model(**batch).logits
    table = instrument_hf(model)
    assert torch.equal(model(**batch).logits, wanted)
    assert torch.equal(run(model, batch)[0].logits, wanted)
    assert set(model.state_dict()) == names
    shown = run(model, batch, record=["*"])[0].logits
    close(shown[LEFT.bool()], wanted[LEFT.bool()])
    table.remove()
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(**batch).logits, wanted)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    instrument_hf(model)
    assert torch.equal(model(**batch).logits, wanted)


@families
def test_maps_are_those_of_eager_attention(family):
    eager, model = made(family, "eager"), made(family)
    instrument_hf(model)
    for mask in (torch.ones_like(LEFT), LEFT):
        batch = {"input_ids": IDS, "attention_mask": mask}
        wanted = eager(**batch, output_attentions=True).attentions
        _, acts = run(model, batch, record=["blocks.*.attn_scores", "blocks.1.x", "blocks.0.out"])
        kept = mask.bool()
        for layer in range(2):
            found = acts[f"blocks.{layer}.attn_scores"].transpose(1, 2)[kept]
            close(found, wanted[layer].transpose(1, 2)[kept])
        close(acts["blocks.1.x"], acts["blocks.0.out"])


@families
def test_the_fused_path_stays_where_the_map_is_not_asked_for(family, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = made(family)
    calls = []
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(module, *args, **named):
        calls.append(module.layer_idx)
        return fused(module, *args, **named)

    instrument_hf(model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
    for clamps, layers in (
        (None, [0, 1]),
        (ablate_heads(0, [1]), [0, 1]),
        (Clamp("blocks.1.out", 0.0), [0, 1]),
        (prev_token(0, [1]), [1]),
        ([prev_token(0, [1]), block_prev_token(1)], []),
    ):
        calls.clear()
        run(model, IDS, clamps)
        assert calls == layers


@families
@implementations
def test_ablating_a_head_is_zeroing_its_columns_of_the_projection(family, implementation):
    model = made(family, implementation)
    other = copy.deepcopy(model)
    instrument_hf(model)
    with torch.no_grad():
        if family is gpt2:
            other.transformer.h[1].attn.c_proj.weight[4:8] = 0
        elif family is llama:
            other.model.layers[1].self_attn.o_proj.weight[:, 4:8] = 0
        else:
            other.gpt_neox.layers[1].attention.dense.weight[:, 4:8] = 0
    wanted = other(IDS).logits
    close(run(model, IDS, ablate_heads(1, [1]))[0].logits, wanted)
    close(run(model, IDS, Clamp("blocks.1.values_pre_proj", 0.0, Heads((1,))))[0].logits, wanted)
    both = [ablate_heads(1, [1]), Clamp("blocks.1.attn_scores", lambda context, value: value)]
    close(run(model, IDS, both)[0].logits, wanted)


@families
def test_recipes_on_language_models(family):
    model = made(family)
    instrument_hf(model)
    batch = {"input_ids": IDS, "attention_mask": LEFT}
    plain = run(model, batch)[0].logits[LEFT.bool()]
    name = "blocks.0.attn_scores"
    attn = run(model, batch, prev_token(0, [2], 0.75), record=[name])[1][name]
    kept = LEFT.bool()
    assert attn[0, 2, 3].tolist() == [0, 0, 0, 1, 0, 0, 0]  # the first token after padding sees itself
    assert prev_token_score(attn[1:], range(1, 7))[2].item() == pytest.approx(0.75)
    close(run(model, batch, preserve(["patterns", "values", "keys"]))[0].logits[kept], plain)
    close(run(model, batch, graft(copy.deepcopy(model), from_=0))[0].logits[kept], plain)
    close(run(model, batch, graft(model, upto=1))[0].logits[kept], plain)
    eye = torch.eye(7)
    attn = run(model, IDS, force_pattern(1, [0, 3], eye), record=["blocks.1.attn_scores"])[1]
    assert torch.equal(attn["blocks.1.attn_scores"][:, 3], eye.expand(3, 7, 7))
    logits, acts = run(
        model,
        IDS,
        [perfect_layer1(1), perfect_copy(1, 2, [1, 3], IDS[:, [1, 3]])],
        record=["blocks.1.attn_pre_softmax"],
    )
    rows = [row for row in range(3) if IDS[row, 1] != IDS[row, 3]]
    scores = acts["blocks.1.attn_pre_softmax"][:, 2, -1, [1, 3]]
    close(logits.logits[rows, -1].gather(1, IDS[rows][:, [1, 3]]), scores[rows])
    labels = torch.tensor([[4, 5, 4]] * 3)
    forced = induction_pattern(1, [0], 0.9, labels=labels, label_positions=[2, 4])
    attn = run(model, IDS, forced, record=["blocks.1.attn_scores"])[1]["blocks.1.attn_scores"]
    assert attn[0, 0, -1].tolist() == pytest.approx([0, 0, 0.9, 0, 0.1, 0, 0])


@families
def test_gradients_reach_what_the_clamp_leaves(family):
    model = made(family)
    table = instrument_hf(model)
    clamps = ClampSet(prev_token(0))
    output, _ = run(model, {"input_ids": IDS, "labels": IDS}, clamps)
    output.loss.backward()
    mine = {name: p.grad for name, p in model.named_parameters()}
    table.remove()
    whole = made(family)
    instrument_hf(whole)
    with clamped(whole, clamps):
        for row in IDS:
            (whole(input_ids=row[None], labels=row[None]).loss / 3).backward()
    for name, parameter in whole.named_parameters():
        close(parameter.grad, mine[name])
    moved = {name: grad.abs().max() > 0 for name, grad in mine.items() if grad is not None}
    early = [name for name in moved if ".0." in name and any(part in name for part in ("q_proj", "k_proj"))]
    assert not any(moved[name] for name in early)
    assert any(moved[name] for name in moved if ".0." in name)


def test_heads_of_a_language_model_in_one_table():
    model = made(llama)
    instrument_hf(model)
    model.eval()

    def score(output, batch):
        logits = output.logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, batch["input_ids"][:, 1:, None]).mean((1, 2))

    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    table = head_ablation_table(model, batch, 0, score=score, chunk=3)
    for head in range(4):
        others = [other for other in range(4) if other != head]
        only = score(run(model, batch, ablate_heads(0, others))[0], batch).mean()
        without = score(run(model, batch, ablate_heads(0, [head]))[0], batch).mean()
        assert table.only[head].item() == pytest.approx(only.item())
        assert table.without[head].item() == pytest.approx(without.item())


def test_an_induction_head_put_in_by_hand_scores():
    model = made(gpt2)
    instrument_hf(model)
    tokens = IDS[:, :3].repeat(1, 2)
    pattern = torch.eye(6)
    pattern[[3, 4, 5]] = torch.eye(6)[[1, 2, 3]]
    _, acts = run(model, tokens, force_pattern(1, [2], pattern), record=["blocks.1.attn_scores"])
    found = sequence_induction_score(acts["blocks.1.attn_scores"], tokens)
    assert found[2].item() == pytest.approx(1.0)
    assert found.argmax().item() == 2


def test_generation_under_a_clamp_is_the_same_with_and_without_a_cache():
    model = made(llama).eval()
    instrument_hf(model)
    wanted = dict(max_new_tokens=4, do_sample=False)
    with clamped(model, [prev_token(0, [1], 0.5), ablate_heads(1, [0])]):
        cached = model.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=True, **wanted)
        plain = model.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **wanted)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, model.generate(IDS, attention_mask=torch.ones_like(IDS), **wanted))


@pytest.mark.skipif(OLD, reason="the compiler of this torch cannot trace it")
def test_a_compiled_language_model_takes_clamps():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHARED, "num_hidden_layers": 1}, intermediate_size=24, **TOKENS)
    model = transformers.LlamaForCausalLM(config).eval()
    instrument_hf(model)

    @torch.compile(backend="eager")
    def step(ids):
        return run(model, {"input_ids": ids, "use_cache": False}, clamps)[0].logits

    clamps = ClampSet([prev_token(0, [1]), ablate_heads(0, [0])])
    close(step(IDS), run(model, {"input_ids": IDS, "use_cache": False}, clamps)[0].logits)
    torch.compiler.reset()


def test_what_cannot_be_clamped_is_told():
    model = made(llama)
    table = instrument_hf(model)
    with pytest.raises(ValueError, match="instrumented already"):
        instrument_hf(model)
    cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values must be None"):
        run(
            model,
            {"input_ids": IDS[:, :1], "past_key_values": cache},
            [preserve("patterns"), ablate_heads(0)],
        )
    switch = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{switch}_checkpointing_enable")()
    with pytest.raises(ValueError, match="must not checkpoint gradients"):
        run(model.train(), IDS, ablate_heads(0))
    getattr(model, f"{switch}_checkpointing_disable")()
    with pytest.raises(ValueError, match=r"unknown activation name 'blocks.0.residual_post_attn'"):
        run(model, IDS, Clamp("blocks.0.residual_post_attn", 0.0))
    table.remove()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"must attend by 'sdpa' or 'eager', got 'flex_attention'"):
        instrument_hf(model)


def test_gpt2_scales_by_layer_as_it_says():
    options = {"scale_attn_by_inverse_layer_idx": True, "vocab_size": 30, **TOKENS}
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, **options)
    eager = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    wanted = eager(IDS, output_attentions=True)
    instrument_hf(eager)
    record = ["blocks.1.attn_scores"]
    if not hasattr(eager.transformer.h[1].attn, "scaling"):  # older versions keep it to themselves
        with pytest.raises(ValueError, match="does not tell how the model scales"):
            run(eager, IDS, record=record)
        return
    output, acts = run(eager, IDS, record=record)
    close(output.logits, wanted.logits)
    close(acts["blocks.1.attn_scores"], wanted.attentions[1])


def test_a_model_that_keeps_its_attention_to_itself_is_refused():
    config = transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=4, vocab_size=30)
    model = transformers.BloomForCausalLM(config)
    with pytest.raises(ValueError, match="must attend through transformers' AttentionInterface"):
        instrument_hf(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_inside_attention_is_told_where_two_passes_would_differ():
    config = transformers.LlamaConfig(attention_dropout=0.5, intermediate_size=24, **SHARED, **TOKENS)
    model = transformers.LlamaForCausalLM(config).train()
    instrument_hf(model)
    with pytest.raises(ValueError, match=r"attention_dropout = 0.5"):
        run(model, IDS, [preserve("patterns"), ablate_heads(0)])
    run(model.eval(), IDS, [preserve("patterns"), ablate_heads(0)])


def test_maps_with_a_soft_cap_are_refused():
    model = made(llama)
    instrument_hf(model)
    q = torch.ones(1, 4, 3, 4)
    attention = model.model.layers[0].self_attn
    sites = model.clamp_sites
    from inductionclamp.huggingface import _attend

    sites["blocks.0.attn_scores"].handler = lambda value: value
    with pytest.raises(ValueError, match="do not know the model's 'softcap'"):
        _attend(attention, q, q, q, None, softcap=30.0)
