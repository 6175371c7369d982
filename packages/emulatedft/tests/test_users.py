"""What users bring: one model with an adapter, warps of transformers, logits that break later, labels by mistake."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from emulatedft import (
    CachedModel,
    Delta,
    EFTLogitsProcessor,
    eft_generate,
    eft_logprobs,
    emulate,
    speculative_generate,
    sweep,
)

INF, NAN = float("inf"), float("nan")
PROMPT = torch.tensor([[2, 1, 3], [4, 0, 1]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- warps -----------------------------------------------------------------------------------------


def cold(ids, scores):
    return scores / 0.7


def never_twice(ids, scores):
    """No token that the text has already: it must be told the whole of it."""
    return scores.scatter(-1, ids, -INF)


def by_hand(base, delta, prompt, count):
    """Greedy, without a token twice."""
    text = prompt
    for _ in range(count):
        parts = [model(text)[:, -1] for model in (base, delta.ft, delta.ref)]
        scores = never_twice(text, emulate(*parts))
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], dim=1)
    return text[:, prompt.shape[1] :]


@pytest.fixture(scope="module")
def models(make_attention):
    return [make_attention(16, 10 * index) for index in range(3)]


def test_a_warp_may_read_the_text_in_every_decoder(models):
    base, ft, ref = (model.plain for model in models)
    expected = by_hand(base, Delta(ft, ref), PROMPT, 9)
    cached = [model.cached for model in models]
    delta = Delta(cached[1], cached[2])
    options = {"max_new_tokens": 9, "do_sample": False, "warp": [lambda scores: scores / 2, never_twice]}
    assert torch.equal(eft_generate(cached[0], delta, PROMPT, **options).tokens, expected)
    for block in (2, 4):
        found = speculative_generate(cached[0], delta, PROMPT, block=block, **options)
        assert torch.equal(found.tokens, expected)
    ((_, found),) = sweep(cached[0], delta, [[1.0]], PROMPT, **options)
    assert torch.equal(found.tokens, expected)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_warp_that_reads_the_text_holds_when_sampling(models, rule):
    base, ft, ref = (model.cached for model in models)
    options = {"max_new_tokens": 9, "warp": never_twice}
    found = speculative_generate(
        base, Delta(ft, ref), PROMPT, block=4, rule=rule, generator=seeded(), **options
    )
    text = torch.cat([PROMPT, found.tokens], dim=1)
    assert all(len(set(row)) == 3 + 9 - (3 - len(set(row[:3]))) for row in text.tolist())
    if rule == "coupled":
        plain = eft_generate(base, Delta(ft, ref), PROMPT, generator=seeded(), **options)
        assert torch.equal(found.tokens, plain.tokens)


def test_the_processors_of_transformers_are_warps(models):
    transformers = pytest.importorskip("transformers")
    base, ft, ref = (model.cached for model in models)
    ours = {"warp": lambda scores: torch.where(scores >= scores.topk(3)[0][..., -1:], scores, -INF) / 0.7}
    warpers = [transformers.TopKLogitsWarper(3), transformers.TemperatureLogitsWarper(0.7)]
    for theirs in (warpers, transformers.LogitsProcessorList(warpers)):
        for decoder in (eft_generate, speculative_generate):
            first, second = (
                decoder(base, Delta(ft, ref), PROMPT, max_new_tokens=9, generator=seeded(), **options).tokens
                for options in (ours, {"warp": theirs})
            )
            assert torch.equal(first, second)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_warp_that_works_in_place_spoils_nothing(make_table, rule):
    base, ft, ref = (make_table(6, index) for index in range(3))

    def in_place(scores):
        scores /= 0.5
        return scores

    first, second = (
        speculative_generate(
            base, Delta(ft, ref), PROMPT[:, :1], max_new_tokens=12, rule=rule, warp=warp, generator=seeded()
        ).tokens
        for warp in (in_place, lambda scores: scores / 0.5)
    )
    assert torch.equal(first, second)


class Module(torch.nn.Module):
    def forward(self, scores):
        return scores / 2


@pytest.mark.parametrize(
    ("warp", "error", "message"),
    [
        (3, TypeError, "warp must be a callable or a list of callables, got int"),
        ([cold, None], TypeError, "warp must be a callable or a list of callables, got NoneType"),
        (lambda ids, scores, attention: scores, TypeError, r"\(logits\) or \(ids, scores\), got function"),
        (
            lambda scores: scores[..., :2],
            ValueError,
            r"warp must return logits of the shape .*, got \(1, 1, 2\)",
        ),
        (lambda ids, scores: None, ValueError, r"warp must return .*\(1, 5\), got NoneType"),
        (lambda scores: scores - INF, ValueError, "must leave a token, got NaN, inf or nothing"),
    ],
)
def test_warps_that_are_none(warp, error, message):
    uniform = lambda ids: torch.zeros(*ids.shape, 5)  # noqa: E731
    for decoder in (eft_generate, speculative_generate):
        with pytest.raises(error, match=message):
            decoder(uniform, Delta(uniform, uniform), PROMPT[:1], max_new_tokens=2, warp=warp)


@pytest.mark.parametrize("warp", [Module(), torch.relu, lambda scores, by=2: scores / by])
def test_modules_and_functions_written_in_c_take_logits(warp):
    uniform = lambda ids: torch.zeros(*ids.shape, 5)  # noqa: E731
    found = eft_generate(uniform, Delta(uniform, uniform), PROMPT, max_new_tokens=2, warp=warp)
    assert found.tokens.shape == (2, 2)


# --- logits that break after the first step --------------------------------------------------------


def breaking(value, length):
    """Uniform logits; from texts of this length on, one of the last is broken."""

    def model(ids):
        logits = torch.zeros(*ids.shape, 5)
        if ids.shape[1] >= length:
            logits[-1, -1, 2] = value
        return logits

    return model


@pytest.mark.parametrize(("value", "place"), [(NAN, 0), (INF, 0), (NAN, 1), (INF, 1), (NAN, 2), (-INF, 2)])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_logits_that_break_later_are_refused(value, place, top_p):
    fine = breaking(0.0, 99)
    models = [breaking(value, 5) if index == place else fine for index in range(3)]
    delta, options = Delta(*models[1:]), {"max_new_tokens": 4, "top_p": top_p}
    for more in ({}, {"eos_token_id": 99}, {"do_sample": False}):
        with pytest.raises(ValueError, match="must be finite at every position"):
            eft_generate(models[0], delta, PROMPT, **options, **more)
    for rule in ("coupled", "rejection"):
        with pytest.raises(ValueError, match="must be finite at every position"):
            speculative_generate(models[0], delta, PROMPT, block=2, rule=rule, **options)
    processor = EFTLogitsProcessor(delta, top_p)
    processor(PROMPT, models[0](PROMPT)[:, -1])
    text = torch.cat([PROMPT, PROMPT], dim=1)
    with pytest.raises(ValueError, match=r"(base_logits|ft_logits and ref_logits) must be finite"):
        processor(text, models[0](text)[:, -1])
    cached = [CachedModel(lambda new, seen, model=model: told(model, new, seen), lambda seen, length: seen[:, :length])
              for model in models]  # fmt: skip
    with pytest.raises(ValueError, match="must be finite"):
        eft_logprobs(cached[0], Delta(*cached[1:]), torch.cat([text, text], 1), chunk_tokens=2, top_p=top_p)


def told(model, new, seen):
    text = new if seen is None else torch.cat([seen, new], dim=1)
    return model(text)[:, -new.shape[1] :], text


def test_a_weight_that_overflows_is_named():
    lean = lambda ids: torch.tensor([0.0, 9.0, 0.0, 0.0, -9.0]).expand(*ids.shape, 5)  # noqa: E731
    processor = EFTLogitsProcessor(Delta(lean, breaking(0.0, 99), weight=1e38))
    with pytest.raises(ValueError, match=r"weights must leave logits finite, got \[1e\+38\]"):
        processor(PROMPT, torch.zeros(2, 5))


# --- one model with an adapter ---------------------------------------------------------------------


class Adapted(torch.nn.Module):
    """A stand-in for PEFT's model: everything passes through it, and `disable_adapter` is a context."""

    def __init__(self, model, change):
        super().__init__()
        self.inner, self.change, self.on = model, change, True
        self.config, self.generate, self.device = model.config, model.generate, model.device

    def get_base_model(self):
        return self.inner

    @contextmanager
    def disable_adapter(self):
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def forward(self, *args, **kwargs):
        found = self.inner(*args, **kwargs)
        if self.on:
            found.logits = found.logits @ self.change
        return found


def llama(seed, layers=2):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=layers, pad_token_id=0, eos_token_id=None)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=seeded(seed))
    return model


def stand_in():
    change = torch.eye(24) + 0.3 * torch.randn(24, 24, generator=seeded(3))
    return Adapted(llama(1), change).eval()


def of_peft():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        llama(1), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5, generator=seeded(len(name)))
    return model.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers so
@pytest.mark.parametrize("adapted", [stand_in, of_peft])
def test_one_model_with_its_adapter_on_and_off_is_two_copies(adapted):
    large, one, on, off = llama(0, 3), adapted(), adapted(), adapted().get_base_model()
    if adapted is of_peft:
        off = llama(1)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    options = {"max_new_tokens": 9, "attention_mask": mask}
    pairs = [Delta.from_adapter(one, 1.5), Delta(on, off, 1.5)]
    for decoder in (eft_generate, speculative_generate):
        first, second = (decoder(large, pair, PROMPT, generator=seeded(), **options).tokens for pair in pairs)
        assert torch.equal(first, second)
    ids = torch.cat([PROMPT, first], dim=1)
    torch.testing.assert_close(
        *(eft_logprobs(large, pair, ids, prompt_length=3, chunk_tokens=4) for pair in pairs)
    )
    found = [
        large.generate(
            PROMPT, attention_mask=mask, logits_processor=[EFTLogitsProcessor(pair, attention_mask=mask)],
            do_sample=False, max_new_tokens=9,
        )
        for pair in pairs
    ]  # fmt: skip
    assert torch.equal(*found)
    assert not torch.equal(
        found[0], large.generate(PROMPT, attention_mask=mask, do_sample=False, max_new_tokens=9)
    )


def test_an_adapter_is_amplified_over_its_own_base_with_two_readers_and_is_on_afterwards():
    one = stand_in()
    delta = Delta.from_adapter(one, 2.0)
    ids = torch.tensor([[5, 9, 2, 7]])
    with torch.no_grad():
        on, off = one(ids).logits, one.inner(ids).logits
    calls = []
    one.inner.register_forward_hook(lambda *_: calls.append(one.on))
    found = eft_logprobs(delta.ref, [delta, Delta.from_adapter(one, -0.5)], ids)
    expected = emulate(off, on, off, 1.5)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-4, atol=1e-4)
    assert sorted(calls) == [False, True]  # both deltas share a reader, and the guided model is the reference
    assert one.on
    broken = Delta.from_adapter(Adapted(one.inner, torch.full((24, 24), NAN)).eval())
    with pytest.raises(ValueError, match="must be finite"):
        eft_generate(one.inner, broken, ids, max_new_tokens=2)
    assert broken.ft.on


def test_what_cannot_be_switched_off_is_refused():
    with pytest.raises(
        TypeError, match=r"model must have an adapter and disable_adapter\(\).*got LlamaForCausalLM"
    ):
        Delta.from_adapter(llama(1))
    one = stand_in().train()
    one.active_peft_config = type("Config", (), {"is_prompt_learning": True})()
    with pytest.raises(ValueError, match=r"virtual tokens before the text .*lambda ids"):
        eft_generate(llama(0), Delta.from_adapter(one), PROMPT, max_new_tokens=1)
    one.active_peft_config.is_prompt_learning = False
    with pytest.warns(UserWarning, match="Adapted is in training mode"):
        eft_generate(llama(0), Delta.from_adapter(one), PROMPT, max_new_tokens=1)


def test_hybrids_that_do_not_say_so_are_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.Lfm2Config(
        **sizes, num_key_value_heads=1, num_hidden_layers=2, layer_types=["conv", "full_attention"]
    )
    hybrid = transformers.Lfm2ForCausalLM(config).eval()
    assert not getattr(hybrid, "_is_stateful", False)
    with pytest.raises(
        ValueError, match="caches that can be cropped, got Lfm2ForCausalLM, which keeps a recurrent state"
    ):
        eft_generate(llama(0), Delta(hybrid, hybrid), PROMPT, max_new_tokens=1)


# --- prompts, labels and masks ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_prompts_of_any_integer_type_hold_every_token(dtype):
    high = lambda ids: torch.arange(300.0).expand(*ids.shape, 300)  # noqa: E731
    prompt = torch.tensor([[7, 255]], dtype=dtype)
    found = eft_generate(
        high, Delta(high, high), prompt, max_new_tokens=2, do_sample=False, eos_token_id=[5, 6]
    )
    assert found.tokens.tolist() == [[299, 299]]
    assert found.tokens.dtype == torch.long


def test_equal_prompts_are_read_once(make_attention):
    base, ft, ref = (make_attention(9, 10 * index) for index in range(3))
    reader = ref.cached
    deltas = [
        Delta(ft.cached, reader, share, PROMPT[:1].clone(), PROMPT[:1].clone()) for share in (0.5, 0.25)
    ]
    eft_generate(base.cached, deltas, PROMPT[:1], max_new_tokens=5)
    assert ref.positions_read == 3 + 4
    processor = EFTLogitsProcessor(
        [Delta(ref.plain, reader, 1.0, PROMPT, PROMPT), Delta(ft.plain, reader, 1.0, PROMPT, PROMPT)]
    )
    ref.positions_read = 0
    processor(PROMPT, torch.zeros(2, 9, dtype=torch.float64))
    assert ref.positions_read == 2 * 3  # once as it is and once as a reference


def test_a_plain_model_may_keep_what_it_is_given():
    kept = []

    def model(ids):
        kept.append(ids)
        return torch.arange(5.0).expand(*ids.shape, 5)

    draft = lambda ids: -torch.arange(5.0).expand(*ids.shape, 5)  # noqa: E731
    speculative_generate(model, Delta(draft, draft), PROMPT, max_new_tokens=4, block=3, do_sample=False)
    assert kept[0].tolist() == [
        [2, 1, 3, 0, 0],
        [4, 0, 1, 0, 0],
    ]  # the draft, which has been crossed out since
    assert all(ids.is_contiguous() for ids in kept)


def uniform(ids):
    return torch.zeros(*ids.shape, 5)


DELTA = Delta(uniform, uniform)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": PROMPT - 2}, ValueError, r"labels must be in 0\.\.4 or -100, got -2 to 1"),
        ({"labels": PROMPT + 10**6}, ValueError, r"labels must be in 0\.\.4 or -100"),
        ({"labels": PROMPT.float()}, TypeError, "labels must be a tensor of integers, got torch.float32"),
        ({"labels": [[1]]}, TypeError, "labels must be a tensor of integers, got list"),
        ({"chunk_tokens": 2.5}, TypeError, "chunk_tokens must be a whole number, got float"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, ValueError, "must have its padding within"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a tensor, got list"),
        ({"input_ids": {"input_ids": PROMPT}}, TypeError, "input_ids must be a tensor, got dict"),
        ({"attention_mask": [[1, 1, 1]]}, TypeError, "the attention mask of input_ids must be a tensor, got list"),
    ],
)  # fmt: skip
def test_likelihoods_of_what_is_none(changes, error, message):
    with pytest.raises(error, match=message):
        eft_logprobs(**{"base": uniform, "deltas": DELTA, "input_ids": PROMPT} | changes)


def test_skipped_labels_may_be_anything_minus_100_and_of_any_type():
    labels = torch.tensor([[-100, 4, -100]], dtype=torch.int32)
    found = eft_logprobs(uniform, DELTA, PROMPT[:1], labels)
    assert found.exp().tolist() == [[1.0, pytest.approx(0.2), 1.0]]


def test_a_gap_in_the_text_is_hidden_from_models_that_take_masks_and_harmless_at_the_end():
    model, other = llama(0), llama(1)
    ids, mask = torch.tensor([[5, 0, 9, 2]]), torch.tensor([[1, 0, 1, 1]])
    found = eft_logprobs(model, Delta(other, model), ids, attention_mask=mask, chunk_tokens=1)
    with torch.no_grad():
        alone = other(torch.tensor([[5, 9, 2]])).logits.log_softmax(-1)
    assert found[0, :3].tolist() == [0, 0, 0]
    assert found[0, 3].item() == pytest.approx(alone[0, 1, 2].item(), abs=1e-5)
    right = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert eft_logprobs(uniform, DELTA, PROMPT, attention_mask=right)[0, 2] == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be a whole number, got float"),
        ({"suppress_tokens": [5]}, ValueError, r"suppress_tokens must be in 0\.\.4, got \[5\]"),
        ({"suppress_tokens": [-1]}, ValueError, r"suppress_tokens must be in 0\.\.4, got \[-1\]"),
        ({"suppress_tokens": range(5)}, ValueError, "must leave a token"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size must be a whole number, got float"),
    ],
)
def test_decoding_what_is_none(changes, error, message):
    for decoder in (eft_generate, speculative_generate):
        with pytest.raises(error, match=message):
            decoder(**{"base": uniform, "deltas": DELTA, "input_ids": PROMPT, "max_new_tokens": 2} | changes)


def test_ends_may_be_numbers_lists_and_tensors():
    four = lambda ids: torch.arange(5.0).expand(*ids.shape, 5)  # noqa: E731
    for end in (4, [1, 4], torch.tensor(4), torch.tensor([4, 2])):
        found = eft_generate(
            four, Delta(four, four), PROMPT, max_new_tokens=9, do_sample=False, eos_token_id=end
        )
        assert found.tokens.tolist() == [[4], [4]]


def test_a_prompt_that_looks_padded_is_warned_of_in_every_entry():
    model = llama(0)
    padded, mask = torch.tensor([[0, 0, 3], [1, 2, 3]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    own, other = Delta(model, model, ft_prompt=padded), Delta(model, model)
    chats = {"input_ids": padded, "attention_mask": mask}
    entries = [
        lambda delta, **more: eft_generate(model, delta, max_new_tokens=1, **more),
        lambda delta, **more: speculative_generate(model, delta, max_new_tokens=1, **more),
        lambda delta, **more: list(sweep(model, delta, [[1.0]], max_new_tokens=1, **more)),
        lambda delta, **more: eft_logprobs(model, delta, prompt_length=3, **more),
    ]
    for entry in entries:
        with pytest.warns(
            UserWarning, match=r"rows of input_ids begin with token 0 repeated.*attention_mask"
        ):
            entry(other, input_ids=padded)
        with pytest.warns(UserWarning, match="rows of a prompt of a Delta begin with token 0 repeated"):
            entry(own, input_ids=PROMPT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            entry(Delta(model, model, ft_prompt=chats), input_ids=padded, attention_mask=mask)
