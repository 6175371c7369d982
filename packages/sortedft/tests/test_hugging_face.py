"""Every supported family, against what transformers itself computes."""

import functools
import os
import re
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from sortedft import (  # noqa: E402
    adapter,
    compute_sorted_loss,
    cut,
    cut_state_dict,
    dynamic_generate,
    layer_report,
    sorted_loss,
    speculative_generate,
    submodel,
)

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
# A sliding window of 4 is shorter than the prompt, so that a wrong mask shows.
FAMILIES = {
    "llama": ("Llama", LLAMA),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 4}),
    "qwen2": ("Qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("Qwen3", LLAMA),
    "gemma": ("Gemma", LLAMA),
    "gemma2": (
        "Gemma2",
        {**LLAMA, "sliding_window": 4, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gpt2": ("GPT2", SIZES),
    "gpt_neox": ("GPTNeoX", {**SIZES, "intermediate_size": 24}),
}
PROMPT = torch.tensor([[5, 9, 2, 7, 7, 30]])


@functools.cache
def model_of(family):
    prefix, sizes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**sizes, bos_token_id=1, eos_token_id=None)
    model_class = getattr(transformers, "GPT2LMHeadModel" if family == "gpt2" else f"{prefix}ForCausalLM")
    config._attn_implementation = "eager" if family in ("gemma2", "gpt2") else "sdpa"
    model = model_class(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=generator)
    return model.eval()


def own_greedy(model, num_tokens):
    text = PROMPT
    for _ in range(num_tokens):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return text[:, PROMPT.shape[1] :].tolist()


every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_deepest_exit_has_the_loss_and_gradients_of_the_model_itself(family):
    model = model_of(family)
    labels = PROMPT.clone()
    labels[0, 2] = -100
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = compute_sorted_loss(model, {"input_ids": PROMPT, "labels": labels}, exits=[4])
    theirs = model(input_ids=PROMPT, labels=labels).loss
    torch.testing.assert_close(ours, theirs)
    pairs = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    for our_gradient, their_gradient in pairs:
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-3, atol=1e-5)


@every_family
def test_each_exit_has_the_loss_of_the_cut_model(family):
    model = model_of(family)
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    outputs = model(input_ids=PROMPT, output_hidden_states=True)
    parts = adapter(model)
    _, per_exit = sorted_loss(
        outputs.hidden_states,
        PROMPT,
        norm=parts.norm,
        head=parts.head,
        exits=[1, 3, 4],
        logit_softcap=parts.logit_softcap,
        return_per_exit=True,
    )
    for depth, loss in zip([1, 3, 4], per_exit, strict=True):
        torch.testing.assert_close(cut(model, depth)(**inputs).loss.detach(), loss)
        with submodel(model, depth):
            torch.testing.assert_close(model(**inputs).loss.detach(), loss)


@every_family
def test_decoders_give_the_models_own_greedy_tokens(family):
    model = model_of(family)
    expected = own_greedy(model, 12)
    assert dynamic_generate(model, PROMPT, [4], max_new_tokens=12).tokens.tolist() == expected
    assert dynamic_generate(model, PROMPT, [1, 2, 4], [1.1, 1.1], 12).tokens.tolist() == expected
    for draft_exit in (1, 3):
        assert speculative_generate(model, PROMPT, draft_exit, 12).tokens.tolist() == expected
    expected = own_greedy(cut(model, 2), 12)
    assert dynamic_generate(model, PROMPT, [2, 4], [0.0], 12).tokens.tolist() == expected


def test_these_are_the_tokens_of_generate():
    model = model_of("llama")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    generated = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **options)
    assert own_greedy(model, 12) == generated[:, PROMPT.shape[1] :].tolist()


@every_family
def test_filled_caches_hold_what_the_next_blocks_make_of_the_state(family):
    generated = dynamic_generate(model_of(family), PROMPT, [2, 3, 4], [0.3, 0.3], 12, fill="copy")
    # One run of a block per token and depth: nothing runs late.
    assert generated.block_calls == int(generated.exit_layer.sum())
    assert generated.tokens.shape == (1, 12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_narrow_feed_forward_equals_zeroed_channels(family):
    model = model_of(family)
    narrowing = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}[family]
    with submodel(model, depth=3, ff_keep=10):
        narrow = model(PROMPT).logits

    def keep_ten(_, inputs):
        return (torch.cat([inputs[0][..., :10], torch.zeros_like(inputs[0][..., 10:])], -1),)

    hooks = [
        layer.get_submodule(narrowing).register_forward_pre_hook(keep_ten) for layer in adapter(model).layers
    ]
    expected = cut(model, 3)(PROMPT).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(narrow, expected)
    assert len(adapter(model).layers) == 4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_a_saved_cut_reproduces_the_logits_bit_for_bit(family, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = model_of(family)
    kept = {name: tensor.contiguous() for name, tensor in cut_state_dict(model.state_dict(), 2).items()}
    if model.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    shallow = cut(model, 2)
    shallow.config.save_pretrained(tmp_path)
    safetensors.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    implementation = model.config._attn_implementation
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=implementation).eval()
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(loaded(PROMPT).logits, shallow(PROMPT).logits)


def test_cut_shares_storage_and_leaves_the_model_alone():
    model = model_of("llama")
    shallow = cut(model, 2)
    assert len(model.model.layers) == 4
    assert model.config.num_hidden_layers == 4
    ours = {name: parameter.data_ptr() for name, parameter in shallow.named_parameters()}
    theirs = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert ours == {name: theirs[name] for name in ours}
    assert set(theirs) - set(ours) == {
        name for name in theirs if ".layers.2." in name or ".layers.3." in name
    }
    assert torch.equal(cut(model, 4)(PROMPT).logits, model(PROMPT).logits)


def test_the_report_of_the_full_depth_is_the_model_itself():
    model = model_of("llama")
    report = layer_report(model, [{"input_ids": PROMPT, "labels": PROMPT}] * 2, exits=[2, 4])
    loss = model(input_ids=PROMPT, labels=PROMPT).loss
    assert report.num_tokens == 10
    assert report.loss[1].item() == pytest.approx(loss.item(), rel=1e-5)
    assert report.kl_to_full[1].item() == pytest.approx(0, abs=1e-6)
    assert report.cosine_to_full[1].item() == pytest.approx(1, abs=1e-6)
    full, early = (m(PROMPT).logits[0, :-1].log_softmax(-1) for m in (model, cut(model, 2)))
    assert report.kl_to_full[0].item() == pytest.approx(
        (full.exp() * (full - early)).sum(-1).mean().item(), rel=1e-4
    )
    assert report.accuracy[0].item() == pytest.approx(
        (early.argmax(-1) == PROMPT[0, 1:]).double().mean().item()
    )


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own checkpoint
def test_gradient_checkpointing_changes_nothing():
    model = model_of("llama")
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    parameters = list(model.parameters())
    plain = torch.autograd.grad(compute_sorted_loss(model, inputs, exits=[2, 4]), parameters)
    model.train()
    enable, disable = (
        getattr(model, f"activation_checkpointing_{verb}", None)
        or getattr(model, f"gradient_checkpointing_{verb}")
        for verb in ("enable", "disable")
    )
    enable({"use_reentrant": False})
    try:
        loss = compute_sorted_loss(model, inputs, exits=[2, 4])
        checkpointed = torch.autograd.grad(loss, parameters)
    finally:
        disable()
        model.eval()
    for ours, theirs in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_encoder_decoders_and_unknown_families_are_refused():
    sizes = {"vocab_size": 20, "d_model": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8, "d_ff": 8}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(TypeError, match="encoder-decoder T5ForConditionalGeneration"):
        adapter(t5)
    with pytest.raises(TypeError, match="for any other pass Parts made by hand"):
        adapter(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="inputs must have 'labels'"):
        compute_sorted_loss(model_of("llama"), {"input_ids": PROMPT}, exits=[4])


def test_the_hugging_face_block_of_the_readme_runs_as_it_stands():
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"```py\n(.*?)```", readme.read_text(), re.DOTALL)
    names = {}
    exec(compile(block, str(readme), "exec"), names)
    model, prompt = names["model"], names["prompt"]
    assert names["loss"] < 5  # log(99) and a little, of an untrained model
    full = dynamic_generate(model, prompt, [8], max_new_tokens=20)
    assert torch.equal(names["text"].tokens, full.tokens)


def test_data_parallel_training_has_the_same_gradients():
    model = model_of("llama")
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    parameters = list(model.parameters())
    expected = torch.autograd.grad(compute_sorted_loss(model, inputs, exits=[2, 4]), parameters)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        compute_sorted_loss(wrapped, inputs, exits=[2, 4]).backward()
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()
        model.zero_grad()


def test_the_trainers_evaluation_gets_the_models_own_outputs():
    model = model_of("llama")
    inputs = {"input_ids": PROMPT, "labels": PROMPT}
    loss, outputs = compute_sorted_loss(model, inputs, return_outputs=True, exits=[4])
    torch.testing.assert_close(loss, model(**inputs).loss)
    torch.testing.assert_close(outputs.logits, model(PROMPT).logits)
    assert outputs.hidden_states is None
    count = torch.tensor(20)  # as Trainer counts over its accumulation steps
    scaled = compute_sorted_loss(model, inputs, False, count, exits=[4])
    torch.testing.assert_close(scaled, loss * 5 / 20)
