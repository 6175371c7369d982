"""Every family as transformers builds it: fused attention stays on, and logits are those of eager attention."""

import functools
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from stabilityproxy import StabilityProbe, add_qk_layernorm_, mup_groups  # noqa: E402

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
FAMILIES = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "gemma": ("Gemma", GROUPED),
    "gemma3": ("Gemma3", {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 5}),
    "phi3": ("Phi3", GROUPED),
    "gpt2": ("GPT2", SIZES),
    "gpt_neox": ("GPTNeoX", {**SIZES, "intermediate_size": 24}),
}
OLD = not hasattr(
    torch.compiler, "set_stance"
)  # the masks of sliding windows fail on a CPU with torch below 2.6
if OLD:
    del FAMILIES["mistral"], FAMILIES["gemma3"]
NORMED = ("qwen3",) if OLD else ("qwen3", "gemma3")
IDS = torch.tensor([[5, 9, 2, 7, 7, 30], [1, 8, 8, 3, 11, 25]])
LEFT_PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def model_of(family, attention="sdpa"):
    prefix, sizes = FAMILIES[family]
    config_class = f"{prefix}TextConfig" if family == "gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_class)(**sizes, bos_token_id=1, eos_token_id=None)
    config._attn_implementation = attention
    name = "GPT2LMHeadModel" if family == "gpt2" else f"{prefix}ForCausalLM"
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def read(model, **options):
    with StabilityProbe(model, mode="exact") as probe, torch.no_grad():
        model(input_ids=IDS, use_cache=False, **options)
    return probe.read()


@every_family
@pytest.mark.parametrize("mask", [None, LEFT_PADDED])
def test_fused_attention_has_the_logits_of_eager_attention(family, mask, monkeypatch):
    calls, kernel = [], torch.nn.functional.scaled_dot_product_attention
    model = model_of(family)
    fused = read(model, attention_mask=mask)
    eager = read(model_of(family, "eager"), attention_mask=mask)
    assert len(fused.layers) == 2
    assert fused.layers == eager.layers
    rows = slice(None) if mask is None else slice(0)  # padded queries see something else in each
    torch.testing.assert_close(fused.max_logit[rows], eager.max_logit[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.mean_entropy[rows], eager.mean_entropy[rows], rtol=1e-4, atol=1e-5)
    # The model still calls the fused kernel: once a layer, and nothing but its arguments is looked at.
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: (calls.append(1), kernel(*a, **k))[1],
    )
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    assert len(calls) == 2


@every_family
def test_entropies_and_log_partition_are_those_that_transformers_tells(family):
    model = model_of(family, "eager")
    with torch.no_grad():
        output = model(input_ids=IDS, use_cache=False, output_attentions=True)
    reading = read(model_of(family))
    for index, attention in enumerate(output.attentions):
        prob = attention.double()
        entropy = -torch.where(prob > 0, prob * prob.log(), 0.0).sum(-1).mean()
        torch.testing.assert_close(reading.mean_entropy[index], entropy, rtol=1e-3, atol=1e-5)
    assert reading.log_z == pytest.approx(output.logits.logsumexp(-1).mean().item(), rel=1e-4)


@every_family
def test_a_training_step_is_read_by_the_names_of_the_model(family):
    model = model_of(family).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with StabilityProbe(model, optimizer) as probe:
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    model.eval()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(probe.read().grad_rms) == set(probe.read().update_rms) == names
    optimizer.zero_grad()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in (*NORMED, "gpt_neox")])
def test_the_patch_bounds_the_logits_and_is_saved_by_transformers(family, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = model_of.__wrapped__(family)
    add_qk_layernorm_(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "c_attn", "qkv_proj")):
                parameter.mul_(100)
    # 256 ** -0.5 or head_dim ** -0.5: what the model scales by is its own
    scaling = model_scaling(model)
    assert (read(model).max_logit <= 8 * scaling * (1 + 1e-4)).all()
    model.save_pretrained(tmp_path)
    other = type(model)(model.config).eval()
    add_qk_layernorm_(other)
    safetensors.load_model(other, tmp_path / "model.safetensors")
    torch.testing.assert_close(other(IDS).logits, model(IDS).logits)


def model_scaling(model):
    return next((module.scaling for module in model.modules() if hasattr(module, "scaling")), 8**-0.5)


@pytest.mark.parametrize("family", NORMED)
def test_models_that_normalise_already_are_refused(family):
    with pytest.raises(ValueError, match=r"must not have normalised queries and keys"):
        add_qk_layernorm_(model_of.__wrapped__(family))


@pytest.mark.parametrize(("family", "fused"), [("gpt2", "c_attn"), ("llama", "q_proj")])
def test_mup_knows_the_hidden_matrices(family, fused):
    found = mup_groups(model_of(family), 8, 0.1)
    assert found.logits_multiplier == 0.5
    assert any(fused in name for name in found.hidden)
    assert not any("wte" in name or "embed" in name or "lm_head" in name for name in found.hidden)


def test_generation_is_read_too():
    model = model_of("llama")
    with StabilityProbe(model, mode="exact") as probe, torch.no_grad():
        model.generate(IDS[:1], max_new_tokens=3, do_sample=False)
    whole = read(model)
    assert len(probe.history) == 3
    assert probe.history[0].max_logit.shape == whole.max_logit.shape


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast")  # torch 2.4 about itself
def test_gradient_checkpointing_reads_the_same():
    found = []
    for checkpointing in (False, True):
        model = model_of.__wrapped__("llama").train()
        if checkpointing:
            name = "activation_checkpointing_enable"  # as it is called from transformers 5 on
            getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
        optimizer = torch.optim.AdamW(model.parameters())
        with StabilityProbe(model, optimizer) as probe:
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            optimizer.step()
        found.append(probe.read())
    torch.testing.assert_close(found[0].max_logit, found[1].max_logit)
    assert dict(found[0].update_rms) == pytest.approx(dict(found[1].update_rms), rel=1e-3)


def test_the_callback_tells_the_log_and_the_logger_and_leaves_no_hook():
    from types import SimpleNamespace

    from stabilityproxy import StabilityProbeCallback

    model, told = model_of.__wrapped__("llama").train(), []
    optimizer = torch.optim.AdamW(model.parameters())
    callback = StabilityProbeCallback(every=2, log=lambda numbers, step: told.append((step, numbers)))
    assert isinstance(callback, transformers.TrainerCallback)
    state = SimpleNamespace(global_step=10, log_history=[])  # resumed
    given = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(None, state, None, **given)
    for _ in range(4):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        state.global_step += 1
        callback.on_step_end(None, state, None, **given)
    callback.on_train_end(None, state, None, **given)
    assert [step for step, _ in told] == [entry["step"] for entry in state.log_history] == [11, 13]
    last, reading = state.log_history[-1], callback.probe.read()
    assert told[-1][1] == reading.as_dict()
    assert last["stability/max_logit"] == reading.max_logit.max().item()
    assert last["stability/mean_entropy"] == reading.mean_entropy.min().item()
    assert last["stability/eps_ratio"] == max(dict(reading.eps_ratio).values())
    assert last["stability/log_z"] == reading.log_z
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"every must be at least 1, got 0"):
        StabilityProbeCallback(every=0)


def test_the_callback_asks_for_transformers(monkeypatch):
    import sys

    import stabilityproxy

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "stabilityproxy._callback", raising=False)
    with pytest.raises(ImportError, match=r"pip install transformers"):
        _ = stabilityproxy.StabilityProbeCallback
    with pytest.raises(AttributeError, match=r"no attribute 'Callback'"):
        _ = stabilityproxy.Callback
