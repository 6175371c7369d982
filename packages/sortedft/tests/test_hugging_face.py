"""Every supported family, against what transformers itself computes."""

import contextlib
import copy
import functools
import inspect
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
    "phi3": ("Phi3", {**LLAMA, "sliding_window": 4}),
    "olmo2": ("Olmo2", LLAMA),
    "smollm3": ("SmolLM3", {**LLAMA, "no_rope_layer_interval": 2}),
    "cohere": ("Cohere", {**LLAMA, "logit_scale": 0.25}),
    "gpt2": ("GPT2", SIZES),
    "gpt_neox": ("GPTNeoX", {**SIZES, "intermediate_size": 24}),
}
PROMPT = torch.tensor([[5, 9, 2, 7, 7, 30]])
# `PROMPT` and a shorter one, padded on the left.
PADDED = torch.tensor([[5, 9, 2, 7, 7, 30], [1, 8, 8, 3, 11, 25]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])


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


def own_greedy(model, num_tokens, prompt=PROMPT):
    text = prompt
    for _ in range(num_tokens):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return text[:, prompt.shape[1] :].tolist()


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
        exits=[1, 3],
        logit_scale=parts.logit_scale,
        logit_softcap=parts.logit_softcap,
        return_per_exit=True,
    )
    torch.testing.assert_close(cut(model, 1)(**inputs).loss.detach(), per_exit[0])
    with submodel(model, 3):
        torch.testing.assert_close(model(**inputs).loss.detach(), per_exit[1])


@every_family
def test_decoders_give_the_models_own_greedy_tokens(family):
    model = model_of(family)
    expected = own_greedy(model, 5)
    assert dynamic_generate(model, PROMPT, [1, 2, 4], [1.1, 1.1], 5).tokens.tolist() == expected
    assert speculative_generate(model, PROMPT, 3, 5).tokens.tolist() == expected


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_leaving_at_the_first_exit_gives_the_cut_models_tokens(family):
    model = model_of(family)
    expected = own_greedy(cut(model, 2), 6)
    assert dynamic_generate(model, PROMPT, [2, 4], [0.0], 6).tokens.tolist() == expected


@pytest.mark.parametrize(
    ("family", "threshold", "depth"), [("llama", 1.1, 4), ("mistral", 0.0, 2), ("gpt2", 1.1, 4)]
)
def test_a_row_padded_on_the_left_is_decoded_as_it_would_be_alone(family, threshold, depth):
    model = model_of(family)
    expected = [own_greedy(cut(model, depth), 6, row)[0] for row in (PROMPT, PADDED[1:, 3:])]
    found = dynamic_generate(model, PADDED, [1, 2, 4], [1.1, threshold], 6, attention_mask=MASK)
    assert found.tokens.tolist() == expected
    filled = dynamic_generate(model, PADDED, [2, 4], [threshold], 6, fill="copy", attention_mask=MASK)
    alone = dynamic_generate(model, PADDED[1:, 3:], [2, 4], [threshold], 6, fill="copy")
    assert filled.tokens[1].tolist() == alone.tokens[0].tolist()
    assert speculative_generate(model, PADDED[1:], 2, 6, attention_mask=MASK[1:]).tokens.tolist() == [
        own_greedy(model, 6, PADDED[1:, 3:])[0]
    ]


class Renamed(torch.nn.Module):
    """A block of a newer transformers, which takes its cache under a new name and warns of the old one."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        names = inspect.signature(block.forward).parameters
        self.own_name = "cache" if "cache" in names else "past_key_values"

    def forward(self, hidden_states, attention_mask=None, cache=None, past_key_values=None, **arguments):
        assert past_key_values is None
        return self.block(hidden_states, attention_mask=attention_mask, **{self.own_name: cache}, **arguments)


def test_blocks_get_the_cache_by_the_newest_name_they_know():
    model = model_of("llama")
    newer = copy.deepcopy(model)
    newer.model.layers = torch.nn.ModuleList(Renamed(block) for block in newer.model.layers).eval()
    assert speculative_generate(newer, PROMPT, 2, 8).tokens.tolist() == own_greedy(model, 8)
    newer.model.layers[0].forward = lambda hidden_states: hidden_states
    with pytest.raises(TypeError, match="blocks that take a cache by one of"):
        adapter(newer)


class Lora(torch.nn.Module):
    """A low-rank adapter laid out as PEFT lays it out: the weight that it shows is that of its base alone."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        generator = torch.Generator().manual_seed(5)
        into, out = base_layer.in_features, base_layer.out_features
        self.narrow = torch.nn.Parameter(torch.randn(into, 2, generator=generator))
        self.widen = torch.nn.Parameter(torch.randn(2, out, generator=generator))

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)
    out_features = property(lambda self: self.base_layer.out_features)

    def forward(self, states):
        return self.base_layer(states) + states @ self.narrow @ self.widen


class PeftModel(torch.nn.Module):
    """As PEFT wraps a model: twice, passing on every attribute, `model` too."""

    def __init__(self, model, is_prompt_learning=False):
        super().__init__()
        self.base_model = torch.nn.ModuleDict({"model": model})
        self.active_peft_config = type("Config", (), {"is_prompt_learning": is_prompt_learning})

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.get_base_model(), name)

    def get_base_model(self):
        return self.base_model["model"]

    def forward(self, *args, **kwargs):
        return self.get_base_model()(*args, **kwargs)


@pytest.fixture(scope="module")
def peft_model():
    model = copy.deepcopy(model_of("llama")).requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
        layer.mlp.gate_proj = Lora(layer.mlp.gate_proj)
    model.lm_head = Lora(model.lm_head)
    return PeftModel(model)


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own checkpoint
def test_adapters_count_in_every_exit_and_in_the_head(peft_model):
    batch = {"input_ids": PROMPT, "labels": PROMPT}
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    ours, theirs = compute_sorted_loss(peft_model, batch, exits=[4]), peft_model(**batch).loss
    torch.testing.assert_close(ours, theirs)
    pairs = zip(*(torch.autograd.grad(loss, trained) for loss in (ours, theirs)), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    early = cut(peft_model, 2)
    torch.testing.assert_close(compute_sorted_loss(peft_model, batch, exits=[2]), early(**batch).loss)
    assert dynamic_generate(peft_model, PROMPT, [2, 4], [0.0], 8).tokens.tolist() == own_greedy(early, 8)
    assert speculative_generate(peft_model, PROMPT, 2, 8).tokens.tolist() == own_greedy(peft_model, 8)
    report = layer_report(peft_model, [batch], [4])
    assert report.loss[0].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_adapters_that_could_not_be_seen_are_refused(peft_model):
    with (
        pytest.raises(ValueError, match="ff_keep needs plain linear projections, got gate_proj of type Lora"),
        submodel(peft_model, ff_keep=4),
    ):
        pass
    assert type(peft_model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    with pytest.raises(ValueError, match="puts virtual tokens before it"):
        adapter(PeftModel(model_of("llama"), is_prompt_learning=True))


def test_wrappers_are_looked_through_in_any_order(peft_model):
    model = model_of("llama")
    parts = adapter(torch.nn.DataParallel(torch.compile(model, backend="eager")))
    assert parts.layers is model.model.layers
    wrapped = torch.compile(PeftModel(torch.nn.DataParallel(model)), backend="eager")
    assert adapter(wrapped).head is model.lm_head
    assert type(cut(torch.compile(model, backend="eager"), 2)) is type(model)


def test_prompts_longer_than_the_learned_positions_are_refused():
    config = transformers.GPT2Config(**SIZES, n_positions=8, bos_token_id=1, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    assert dynamic_generate(model, PROMPT, [4], max_new_tokens=3).tokens.shape == (1, 3)
    with pytest.raises(ValueError, match="fit into the model's 8 learned positions, got 9"):
        dynamic_generate(model, PROMPT, [4], max_new_tokens=4)


def stretched(kind):
    """A model whose rotary embedding is another one after 8 positions."""
    if kind == "dynamic":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **LLAMA,
                bos_token_id=1,
                eos_token_id=None,
                max_position_embeddings=8,
                rope_scaling={"rope_type": "dynamic", "factor": 4.0},
            )
        ).eval()
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            **LLAMA,
            bos_token_id=1,
            eos_token_id=None,
            max_position_embeddings=32,
            original_max_position_embeddings=8,
            rope_scaling={"type": "longrope", **factors},
        )
    ).eval()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_no_text_grows_past_the_length_that_changes_its_rotary_embedding(kind):
    torch.manual_seed(0)
    model = stretched(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    # The last of three tokens is not fed back: the text is of 8 positions.
    assert dynamic_generate(model, PROMPT, [4], max_new_tokens=3).tokens.tolist() == own_greedy(model, 3)
    assert speculative_generate(model, PROMPT, 2, 3).tokens.tolist() == own_greedy(model, 3)
    message = (
        f"must stay within the 8 positions after which the model's rotary embedding \\({kind}\\) changes"
    )
    for generate in (
        lambda: dynamic_generate(model, PROMPT, [4], max_new_tokens=4),
        lambda: dynamic_generate(model, PROMPT, [1, 4], [0.0], max_new_tokens=4),
        lambda: speculative_generate(model, PROMPT, 2, 6),
        lambda: dynamic_generate(model, PADDED, [4], max_new_tokens=4, attention_mask=MASK),
    ):
        with pytest.raises(ValueError, match=message):
            generate()
    long = torch.arange(1, 11)[None]
    if kind == "longrope":  # one embedding from the prompt on
        assert dynamic_generate(model, long, [2, 4], [2.0], 4).tokens.tolist() == own_greedy(model, 4, long)
        assert speculative_generate(model, long, 2, 4).tokens.tolist() == own_greedy(model, 4, long)
        # Beside a long row a short one would be read with the embedding of long texts.
        pair, mask = long.expand(2, -1), torch.ones(2, 10)
        mask[1, :5] = 0
        with pytest.raises(ValueError, match=message):
            dynamic_generate(model, pair, [4], max_new_tokens=1, attention_mask=mask)
    else:
        with pytest.raises(ValueError, match=message):
            dynamic_generate(model, long, [4], max_new_tokens=2)


def test_gradient_checkpointing_in_training_mode_never_decodes_wrongly():
    """It may withhold the cache from the blocks, whose tokens would then see nothing but themselves."""
    model = copy.deepcopy(model_of("llama"))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    newest = "cache" in inspect.signature(model.model.layers[0].forward).parameters  # there blocks keep it
    refused = pytest.raises(ValueError, match="withholds the cache")
    found = None
    with pytest.warns(UserWarning, match="training mode"), contextlib.nullcontext() if newest else refused:
        found = dynamic_generate(model, PROMPT, [4], max_new_tokens=3)
    assert found is None or found.tokens.tolist() == own_greedy(model_of("llama"), 3)


def test_these_are_the_tokens_of_generate():
    model = model_of("llama")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    generated = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **options)
    assert own_greedy(model, 12) == generated[:, PROMPT.shape[1] :].tolist()


@every_family
def test_filled_caches_hold_what_the_next_blocks_make_of_the_state(family):
    generated = dynamic_generate(model_of(family), PROMPT, [2, 3, 4], [0.3, 0.3], 3, fill="copy")
    # One run of a block per token and depth: nothing runs late.
    assert generated.block_calls == int(generated.exit_layer.sum())
    assert generated.tokens.shape == (1, 3)


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


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # untied and tied
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
    with pytest.raises(TypeError, match=r"made by hand\), got LlamaModel"):
        adapter(model_of("llama").model)
    with pytest.raises(ValueError, match="inputs must have 'labels'"):
        compute_sorted_loss(model_of("llama"), {"input_ids": PROMPT}, exits=[4])


def test_the_hugging_face_block_of_the_readme_runs_as_it_stands():
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"```py\n(.*?)```", readme.read_text(), re.DOTALL)
    names = {}
    exec(compile(block, str(readme), "exec"), names)
    model, prompt = names["model"], names["prompt"]
    assert names["loss"] < 5  # log(99) and a little, of an untrained model
    full = dynamic_generate(model, prompt, [8], max_new_tokens=9)
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
