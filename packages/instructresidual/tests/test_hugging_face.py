"""What transformers and peft write and open."""

import functools
import json
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from instructresidual import apply_residual, residual, track  # noqa: E402

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
MOE = {**LLAMA, "moe_intermediate_size": 12, "num_experts": 2, "num_experts_per_tok": 1}
FAMILIES = {
    "Llama": LLAMA,
    "Qwen2": {**LLAMA, "tie_word_embeddings": True},
    "Gemma2": {**LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 4},  # ties by default
    "GPT2": SIZES,
    "GPTNeoX": {**SIZES, "intermediate_size": 24},
    "Qwen3Moe": MOE,
    "Mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}
IDS = torch.tensor([[5, 9, 2, 7, 7, 30]])
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def models(family, vocabulary=40):
    """A base, an instruct model and a continued base."""
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    sizes = FAMILIES[family] | {"vocab_size": vocabulary}
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=1, eos_token_id=2)
    found = [getattr(transformers, name)(config).eval() for _ in "abc"]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for base, *others in zip(*(model.parameters() for model in found), strict=True):
            base.normal_(0, 0.3, generator=generator)
            for other in others:
                other.copy_(base + 0.05 * torch.randn(base.shape, generator=generator))
    return found


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@every_family
def test_a_written_checkpoint_opens_and_says_what_the_module_says(family, tmp_path):
    base, instruct, target = models(family)
    for model, name, size in (
        (base, "base", "9KB"),
        (instruct, "instruct", "1GB"),
        (target, "target", "15KB"),
    ):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
    found = residual(tmp_path / "base", tmp_path / "instruct", out=tmp_path / "residual")
    report = apply_residual(
        tmp_path / "target",
        found,
        out=tmp_path / "out",
        instruct=tmp_path / "instruct",
        max_shard_bytes=12_000,
    )
    assert report.untouched == report.unused == ()
    both = opened(tmp_path / "out")
    with torch.no_grad():
        expected = {
            name: parameter + (dict(instruct.named_parameters())[name] - dict(base.named_parameters())[name])
            for name, parameter in target.named_parameters()
        }
    for name, parameter in both.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    tied = base.config.tie_word_embeddings
    assert (both.get_output_embeddings().weight is both.get_input_embeddings().weight) is bool(tied)
    module = opened(tmp_path / "target")
    in_place = apply_residual(module, residual(base, instruct))
    assert torch.equal(logits(module), logits(both))
    assert bool(in_place.tied) is bool(tied)
    from_files = opened(tmp_path / "target")  # the residual of checkpoints, given to a module
    if found.keys() <= dict(from_files.named_parameters()).keys():
        apply_residual(from_files, found)
        assert torch.equal(logits(from_files), logits(both))
    else:  # some versions of transformers rename on loading, and join experts
        with pytest.raises(ValueError, match=r"the target lacks '.*; the residual's base lacks '"):
            apply_residual(from_files, found)


def test_added_tokens_make_a_checkpoint_that_opens(tmp_path):
    base, _, target = models("Llama")
    instruct = models("Llama", 43)[1]
    with torch.no_grad():
        instruct.get_input_embeddings().weight[:40] = base.get_input_embeddings().weight + 0.1
    for model, name in ((base, "base"), (instruct, "instruct"), (target, "target")):
        model.save_pretrained(tmp_path / name)
    report = apply_residual(
        tmp_path / "target", residual(tmp_path / "base", tmp_path / "instruct"), out=tmp_path / "out"
    )
    both = opened(tmp_path / "out")
    assert both.config.vocab_size == both.get_output_embeddings().weight.shape[0] == 43
    assert torch.equal(both.get_input_embeddings().weight[40:], instruct.get_input_embeddings().weight[40:])
    assert report.vocabulary["lm_head.weight"].copied == 3


# peft asks transformers for an attribute by a name that newer ones deprecate
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Qwen2"])
def test_a_low_rank_residual_is_an_adapter(family, tmp_path):
    peft = pytest.importorskip("peft")
    base, instruct, target = models(family)
    target.save_pretrained(tmp_path / "target")
    found = residual(base, instruct).filter(["attn", "mlp", "embed"], exclude=["bias", "wpe"]).lowrank(5)
    if family != "Llama":  # an adapter of a tied embedding would pass over the head
        with pytest.raises(
            ValueError, match=r"a LoRA adapter cannot hold .*(wte|embed_tokens).*whose head is tied"
        ):
            found.to_peft(tmp_path / "adapter")
        found = found.filter(exclude="embed")
    assert 0.1 < found.error < 0.9
    expected = opened(tmp_path / "target")
    apply_residual(expected, found)
    left_out = found.to_peft(tmp_path / "adapter", base_model="x", fan_in_fan_out=family == "GPT2")
    assert left_out == ()
    adapted = peft.PeftModel.from_pretrained(opened(tmp_path / "target"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), logits(expected), atol=2e-5, rtol=1e-4)
    assert (logits(adapted) - logits(target)).abs().max() > 0.01
    if family == "Llama":
        with pytest.raises(ValueError, match="merge it first"):
            residual(base, adapted)
        with pytest.raises(ValueError, match="is an adapter: merge it into its base model first"):
            residual(tmp_path / "target", tmp_path / "adapter")
        torch.testing.assert_close(logits(adapted.merge_and_unload()), logits(expected), atol=2e-5, rtol=1e-4)


def test_an_adapter_names_what_it_cannot_hold(tmp_path):
    pytest.importorskip("peft")
    base, instruct, _ = models("Llama")
    found = residual(base, instruct).lowrank(30)
    with pytest.raises(
        ValueError, match=r"a LoRA adapter cannot hold 'model\.layers\.0\.input_layernorm\.weight'"
    ):
        found.to_peft(tmp_path / "adapter")
    left_out = found.to_peft(tmp_path / "adapter", strict=False)
    assert len(left_out) == 5
    assert all("norm" in name for name in left_out)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["rank_pattern"]["model.layers.0.self_attn.k_proj"] == 8
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_tokenizers_match_rows(tmp_path):
    base, instruct, target = models("Llama")
    ours = {f"t{index}": index for index in range(40)}
    theirs = {f"t{index}": 39 - index for index in range(40)}

    class Tokenizer:
        def __init__(self, vocabulary):
            self.get_vocab = lambda: vocabulary

    found = residual(base, instruct, tokenizers=(Tokenizer(ours), theirs))
    expected = instruct.lm_head.weight.flip(0) - base.lm_head.weight
    torch.testing.assert_close(found["lm_head.weight"], expected, rtol=0, atol=0)
    module = models("Llama")[0].__class__(target.config)
    module.load_state_dict(target.state_dict())
    apply_residual(module, found, tokenizer=theirs)
    torch.testing.assert_close(
        module.lm_head.weight, target.lm_head.weight + expected.flip(0), rtol=0, atol=0
    )


def test_the_callback_scores_both_and_the_trainer_does_not_notice(tmp_path):
    pytest.importorskip("accelerate")
    from instructresidual import ResidualEvalCallback

    base, instruct, _ = models("Llama")
    found = residual(base, instruct)
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(40, (8, 6))]
    results = []
    for tracked in (True, False):
        model = base.__class__(base.config)
        model.load_state_dict(base.state_dict())
        callback = ResidualEvalCallback(found, lambda model: {"loss": model(IDS, labels=IDS).loss}, every=2)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, callbacks=[callback] if tracked else []
        )
        trainer.train()
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        if tracked:
            assert [step for step, _ in callback.history] == [0, 2, 4]
            first = callback.history[0][1]
            expected = track(base, found, lambda model: model(IDS, labels=IDS).loss)
            assert (first.base["loss"], first.residual["loss"]) == (expected.base, expected.residual)
            logged = [entry for entry in trainer.state.log_history if "residual/applied/loss" in entry]
            assert [entry["step"] for entry in logged] == [0, 2, 4]
            assert logged[0]["residual/base/loss"] == expected.base.item()
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        ResidualEvalCallback(found, len, every=0)
