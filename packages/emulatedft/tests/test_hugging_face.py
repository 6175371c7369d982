"""Inside and beside the generate() of transformers, against recomputing everything for every token."""

import functools
import os
import re
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from emulatedft import (  # noqa: E402
    Delta,
    EFTLogitsProcessor,
    check_vocab,
    eft_generate,
    eft_logprobs,
    emulate,
    speculative_generate,
)

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": 0}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
# A sliding window of 4 is shorter than the prompt, so that a wrong cache shows.
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**LLAMA, "sliding_window": 4}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", SIZES),
}
PROMPT = torch.tensor([[5, 9, 2, 7, 7, 30]])
PADDED = torch.tensor([[0, 0, 5, 9, 2], [4, 8, 15, 16, 23]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@functools.cache
def model_of(family, seed, num_hidden_layers=2):
    model_class, config_class, sizes = FAMILIES[family]
    options = {"bos_token_id": 1, "eos_token_id": None, "num_hidden_layers": num_hidden_layers}
    config = getattr(transformers, config_class)(**sizes, **options)
    config._attn_implementation = "eager" if family == "gpt2" else "sdpa"
    model = getattr(transformers, model_class)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=generator)
    return model.eval()


@functools.cache
def trio(family):
    """A large base, and a small model before and after fine-tuning."""
    base, ft, ref = model_of(family, 0, 3), model_of(family, 1), model_of(family, 2)
    return base, ft, ref


@torch.no_grad()
def last_logits(model, ids, mask):
    """From scratch, each row without its padding."""
    return torch.cat(
        [
            model(row[kept.bool()][None], use_cache=False).logits[:, -1]
            for row, kept in zip(ids, mask, strict=True)
        ]
    )


def recomputed(models, prompts, masks, length, weight=1.0, top_p=1.0):
    """Greedy emulated fine-tuning without any cache."""
    text = prompts[0][:, :0]
    for _ in range(length):
        parts = [
            last_logits(model, torch.cat([prompt, text], 1), torch.cat([mask, torch.ones_like(text)], 1))
            for model, prompt, mask in zip(models, prompts, masks, strict=True)
        ]
        text = torch.cat([text, emulate(*parts, weight, top_p).argmax(-1, keepdim=True)], dim=1)
    return text


def generate(model, ids, processor, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | options
    found = model.generate(ids, attention_mask=mask, logits_processor=[processor], **options)
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_everything_equals_recomputation(family, top_p):
    models, ones = trio(family), torch.ones_like(PROMPT)
    delta = Delta(*models[1:], weight=1.5)
    expected = recomputed(models, [PROMPT] * 3, [ones] * 3, 8, 1.5, top_p)
    assert not torch.equal(expected, recomputed(models, [PROMPT] * 3, [ones] * 3, 8, 0.0))
    assert torch.equal(generate(models[0], PROMPT, EFTLogitsProcessor([delta], top_p)), expected)
    options = {"max_new_tokens": 8, "do_sample": False, "top_p": top_p}
    assert torch.equal(eft_generate(models[0], delta, PROMPT, **options).tokens, expected)
    found = speculative_generate(models[0], delta, PROMPT, block=3, **options)
    assert torch.equal(found.tokens, expected)
    assert found.drafted > found.accepted  # so caches were cropped


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_and_prompts_of_their_own(family):
    models = trio(family)
    chat = torch.tensor([[0, 7, 7, 5, 9, 2, 11], [6, 6, 4, 8, 15, 16, 12]])
    chat_mask = (chat != 0).long()
    prompts, masks = [PADDED, chat, PADDED], [MASK, chat_mask, MASK]
    expected = recomputed(models, prompts, masks, 8)
    delta = Delta(*models[1:], ft_prompt={"input_ids": chat, "attention_mask": chat_mask})
    processor = EFTLogitsProcessor([delta], attention_mask=MASK)
    assert torch.equal(generate(models[0], PADDED, processor, MASK), expected)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": MASK}
    assert torch.equal(eft_generate(models[0], delta, PADDED, **options).tokens, expected)
    assert torch.equal(speculative_generate(models[0], delta, PADDED, block=3, **options).tokens, expected)


def test_scores_within_generate_equal_recomputation():
    models = trio("llama")
    processor = EFTLogitsProcessor([Delta(*models[1:])], attention_mask=MASK)
    found = models[0].generate(
        PADDED,
        attention_mask=MASK,
        logits_processor=[processor],
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for step, scores in enumerate(found.scores):
        ids = found.sequences[:, : 5 + step]
        mask = torch.cat([MASK, torch.ones(2, step, dtype=torch.long)], 1)
        parts = [last_logits(model, ids, mask) for model in models]
        torch.testing.assert_close(scores, emulate(*parts), rtol=1e-4, atol=1e-4)


def test_it_acts_before_warpers_and_after_bans():
    models = trio("llama")
    seen = {}
    processor = EFTLogitsProcessor([Delta(*models[1:])])

    def spy(input_ids, scores):
        seen.setdefault("before", scores.clone())
        return processor(input_ids, scores)

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        found = models[0].generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            logits_processor=[spy],
            max_new_tokens=1,
            do_sample=True,
            temperature=0.5,
            top_k=3,
            suppress_tokens=[4, 17],
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    parts = [last_logits(model, PROMPT, torch.ones_like(PROMPT)) for model in models]
    assert bool((seen["before"][0, [4, 17]] == -torch.inf).all())
    parts[0][:, [4, 17]] = -torch.inf
    torch.testing.assert_close(seen["before"], parts[0])  # no warper has been here
    expected = emulate(*parts) / 0.5
    top, order = expected.topk(3)
    torch.testing.assert_close(found.scores[0][0, order[0]], top[0], rtol=1e-4, atol=1e-4)
    assert int((found.scores[0] > -torch.inf).sum()) == 3


def test_a_processor_serves_several_prompts_and_beam_search():
    models = trio("llama")
    ones = torch.ones_like(PROMPT)
    processor = EFTLogitsProcessor([Delta(*models[1:])])
    for prompt in (PROMPT, PROMPT.flip(1), PROMPT.flip(1), PROMPT[:, :3]):
        mask = torch.ones_like(prompt)
        expected = recomputed(models, [prompt] * 3, [mask] * 3, 5)
        assert torch.equal(generate(models[0], prompt, processor, max_new_tokens=5), expected)

    def uncached(model):
        return lambda ids: model(ids, use_cache=False).logits

    beams = {"num_beams": 3, "max_new_tokens": 6}
    plain = EFTLogitsProcessor([Delta(uncached(models[1]), uncached(models[2]))])
    expected = generate(models[0], PROMPT, plain, ones, **beams)
    assert torch.equal(generate(models[0], PROMPT, processor, ones, **beams), expected)


def test_a_base_that_is_the_reference_writes_what_the_fine_tuned_model_writes():
    base, ft, _ = trio("llama")
    expected = ft.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=8, do_sample=False, pad_token_id=0
    )[:, 6:]
    for delta in (Delta(ft, base), Delta(ft, None)):
        assert torch.equal(generate(base, PROMPT, EFTLogitsProcessor([delta])), expected)
        found = speculative_generate(base, delta, PROMPT, max_new_tokens=8, do_sample=False, block=4)
        assert torch.equal(found.tokens, expected)
        assert (found.accepted, found.base_calls) == (8, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_likelihoods_of_padded_text(side):
    models = trio("gpt2")
    ids, mask = (PADDED, MASK) if side == "left" else (PADDED.flip(1), MASK.flip(1))
    found = eft_logprobs(models[0], Delta(*models[1:]), ids, attention_mask=mask, chunk_tokens=2)
    for row, kept, ours in zip(ids, mask.bool(), found, strict=True):
        text = row[kept][None]
        with torch.no_grad():
            parts = [model(text, use_cache=False).logits[:, :-1] for model in models]
        expected = emulate(*parts).gather(-1, text[:, 1:, None])[0, :, 0]
        torch.testing.assert_close(ours[kept][1:], expected, rtol=1e-4, atol=1e-4)
        assert ours[~kept].tolist() == [0] * int((~kept).sum())


def test_models_that_cannot_guide_are_refused():
    sizes = {"vocab_size": 20, "d_model": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8, "d_ff": 8}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    base, ft, _ = trio("llama")
    with pytest.raises(TypeError, match="encoder-decoder T5ForConditionalGeneration"):
        eft_generate(base, Delta(ft, t5), PROMPT, max_new_tokens=1)
    config = transformers.MambaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, state_size=4)
    mamba = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(ValueError, match="caches that can be cropped, got MambaForCausalLM"):
        eft_generate(base, Delta(mamba, ft), PROMPT, max_new_tokens=1)
    assert check_vocab(base, ft) == 40
    with pytest.raises(ValueError, match=r"got sizes \[40, 20\]"):
        check_vocab(base, t5)


def test_the_hugging_face_block_of_the_readme_runs_as_it_stands():
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"```py\n(.*?)```", readme.read_text(), re.DOTALL)
    names = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(block, str(readme), "exec"), names)
    assert names["out"].shape == (1, 3 + 20)
    assert names["fast"].tokens.shape == (1, 20)
    assert names["scores"].shape == (1, 23)


@functools.cache
def letters():
    """A tokenizer of one letter a token."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN")}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    raw.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.mark.parametrize("decode", [eft_generate, speculative_generate])
def test_stop_strings_and_streamers_are_those_of_transformers(decode, capsys):
    base, ft, ref = trio("llama")
    options = {"max_new_tokens": 8, "do_sample": False}
    free = decode(base, Delta(ft, ref), PROMPT, **options).tokens
    text = letters().decode(free[0])
    wanted = text[3:5]
    criteria = [transformers.StopStringCriteria(letters(), [wanted])]
    found = decode(
        base, Delta(ft, ref), PROMPT, **options,
        stopping_criteria=transformers.StoppingCriteriaList(criteria),
        streamer=transformers.TextStreamer(letters(), skip_prompt=True),
    ).tokens  # fmt: skip
    expected = text[: text.index(wanted) + 2]
    assert letters().decode(found[0]) == expected
    assert capsys.readouterr().out == expected + "\n"
