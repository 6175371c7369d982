"""The invariants of emulated fine-tuning, on random distributions and models."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emulatedft import (
    Delta,
    EFTLogitsProcessor,
    eft_generate,
    eft_logprobs,
    emulate,
    speculative_generate,
    sweep,
)

seeds, weights = st.integers(0, 10**6), st.floats(-3, 3)
masses = st.one_of(st.just(1.0), st.floats(0.05, 1.0))


def logits(seed, count, vocabulary=7, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(count, 3, vocabulary, generator=generator, dtype=torch.float64)).unbind(0)


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@given(seeds, masses)
def test_a_base_that_is_the_reference_gives_the_fine_tuned_model(seed, top_p):
    ref, ft = logits(seed, 2)
    close(emulate(ref, ft, ref, 1.0, top_p), ft.log_softmax(-1))
    close(emulate(ref, ft, None, 1.0, top_p), ft.log_softmax(-1))


@given(seeds, weights)
def test_no_weight_or_no_fine_tuning_gives_the_base(seed, weight):
    base, ft, ref = logits(seed, 3)
    close(emulate(base, ft, ref, 0.0), base.log_softmax(-1))
    close(emulate(base, ft, ft, weight), base.log_softmax(-1))


@given(seeds, weights, masses)
def test_constants_change_nothing_and_the_order_of_tokens_is_immaterial(seed, weight, top_p):
    base, ft, ref = logits(seed, 3)
    expected = emulate(base, ft, ref, weight, top_p)
    close(emulate(base + 5, ft - 3, ref + 1, weight, top_p), expected)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    permuted = [each[..., order] for each in (base, ft, ref)]
    close(emulate(*permuted, weight, top_p), expected[..., order])


@given(seeds, weights, weights)
def test_weights_add_and_pairs_commute(seed, first, second):
    base, ft_a, ref_a, ft_b, ref_b = logits(seed, 5)
    twice = emulate(emulate(base, ft_a, ref_a, first), ft_a, ref_a, second)
    close(twice, emulate(base, ft_a, ref_a, first + second))
    close(twice, emulate(base, [ft_a, ft_a], [ref_a, ref_a], [first, second]))
    one = emulate(base, [ft_a, ft_b], [ref_a, ref_b], [first, second], 0.8)
    close(one, emulate(base, [ft_b, ft_a], [ref_b, ref_a], [second, first], 0.8))


@given(seeds, weights, st.floats(0.05, 0.999))
def test_tokens_outside_the_nucleus_keep_the_odds_of_the_fine_tuned_model(seed, weight, top_p):
    base, ft, ref = logits(seed, 3)
    found, small = emulate(base, ft, ref, weight, top_p), ft.log_softmax(-1)
    full = emulate(base, ft, ref, weight)
    for row in range(3):
        inside, mass = set(), 0.0
        for token in small[row].argsort(descending=True).tolist():  # the definition, one token at a time
            if mass >= top_p:
                break
            inside.add(token)
            mass += small[row, token].exp().item()
        outside = [token for token in range(7) if token not in inside]
        change = (found - small)[row, outside]
        close(change, change[:1].expand_as(change))
        kept = sorted(inside)
        change = (found - full)[row, kept]
        close(change, change[:1].expand_as(change))
    close(found.exp().sum(-1), torch.ones(3, dtype=torch.float64))


@given(seeds, weights, masses, st.integers(0, 6))
def test_banned_tokens_stay_banned(seed, weight, top_p, banned):
    base, ft, ref = logits(seed, 3)
    base = base.index_fill(-1, torch.tensor(banned), -math.inf)
    for reference in (ref, None):
        found = emulate(base, ft, reference, weight, top_p)
        assert bool((found[..., banned] == -math.inf).all())
        close(found.exp().sum(-1), torch.ones(3, dtype=torch.float64))


@given(seeds, st.integers(1, 9), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.7]))
def test_coupled_speculation_is_plain_decoding_token_for_token(
    make_attention, seed, block, do_sample, adaptive, top_p
):
    base, ft, ref = (make_attention(9, seed + 10 * index).cached for index in range(3))
    prompt = torch.randint(9, (2, 3), generator=torch.Generator().manual_seed(seed))
    options = {
        "max_new_tokens": 11,
        "do_sample": do_sample,
        "top_p": top_p,
        "eos_token_id": 4,
        "diagnostics": True,
    }
    options |= {"warp": lambda scores: scores / 0.7, "suppress_tokens": [5]}
    delta = Delta(ft, ref, weight=1.3)
    plain = eft_generate(base, delta, prompt, generator=torch.Generator().manual_seed(seed), **options)
    found = speculative_generate(
        base,
        delta,
        prompt,
        block=block,
        adaptive=adaptive,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    assert torch.equal(found.tokens, plain.tokens)
    assert found.base_calls <= plain.base_calls == plain.tokens.shape[1]
    assert not bool((found.tokens == 5).any())
    going = plain.tokens != 4  # after a row's end the padding of both is read differently
    for ours, theirs in zip(
        (found.tv, found.kl, found.log_ratio), (plain.tv, plain.kl, plain.log_ratio), strict=True
    ):
        close(ours[going], theirs[going])


@given(seeds)
def test_greedy_rejection_is_greedy_coupling(make_table, seed):
    base, ft, ref = (make_table(6, seed + index) for index in range(3))
    options = {"max_new_tokens": 9, "block": 3, "do_sample": False}
    first, second = (
        speculative_generate(base, Delta(ft, ref), torch.tensor([[1, 2]]), rule=rule, **options)
        for rule in ("coupled", "rejection")
    )
    assert torch.equal(first.tokens, second.tokens)


@given(seeds, st.integers(1, 6), st.sampled_from([1.0, 0.6]), st.integers(1, 4))
def test_caches_and_chunks_change_no_likelihood(make_attention, seed, chunk_tokens, top_p, prompt_length):
    models = [make_attention(8, seed + 10 * index) for index in range(3)]
    ids = torch.randint(8, (2, 9), generator=torch.Generator().manual_seed(seed))
    base, ft, ref = (model.plain(ids) for model in models)
    expected = emulate(base, ft, ref, 0.6, top_p)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    expected = torch.nn.functional.pad(expected, (1, 0))
    expected[:, :prompt_length] = 0
    for kind in ("plain", "cached"):
        base, ft, ref = (getattr(model, kind) for model in models)
        options = {"prompt_length": prompt_length, "top_p": top_p, "chunk_tokens": chunk_tokens}
        close(eft_logprobs(base, Delta(ft, ref, weight=0.6), ids, **options), expected)


@pytest.mark.filterwarnings("ignore:some rows of input_ids begin")  # random text may look padded
@given(seeds, st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_processor_follows_any_change_of_the_text(make_attention, seed, edits):
    base, ft, ref = (make_attention(8, seed + 10 * index) for index in range(3))
    generator = torch.Generator().manual_seed(seed)
    processor = EFTLogitsProcessor([Delta(ft.cached, ref.cached, 0.8)], top_p=0.9)
    text = torch.randint(8, (2, 3), generator=generator)
    for keep, new in edits:
        text = torch.cat([text[:, :keep], torch.randint(8, (2, new), generator=generator)], dim=1)
        scores = base.plain(text)[:, -1]
        close(
            processor(text, scores), emulate(scores, ft.plain(text)[:, -1], ref.plain(text)[:, -1], 0.8, 0.9)
        )


@given(seeds)
def test_a_sweep_turns_the_dial_and_nothing_else(make_table, seed):
    base, ft_a, ft_b, ref = (make_table(6, seed + index) for index in range(4))
    prompt, settings = torch.tensor([[1, 2], [3, 3]]), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    generator = torch.Generator().manual_seed(seed)
    found = list(
        sweep(
            base,
            [Delta(ft_a, ref), Delta(ft_b, ref)],
            settings,
            prompt,
            generator=generator,
            max_new_tokens=6,
        )
    )
    assert [setting for setting, _ in found] == settings
    for (weight, _), output in found[::2]:
        alone = Delta(ft_a if weight else ft_b, ref)
        source = torch.Generator().manual_seed(seed)
        assert torch.equal(
            eft_generate(base, alone, prompt, generator=source, max_new_tokens=6).tokens, output.tokens
        )


def test_compiled_callers_keep_one_graph():
    base, ft, ref = logits(0, 3)
    compiled = torch.compile(emulate, fullgraph=True, backend="eager")
    close(compiled(base, ft, ref, 0.7, 0.8), emulate(base, ft, ref, 0.7, 0.8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ratios_are_never_formed_in_half_precision(dtype):
    base, ft, ref = (each.to(dtype) for each in logits(3, 3, scale=8.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = emulate(base, ft, ref)
    assert found.dtype == torch.float32
    exact = emulate(base.double(), ft.double(), ref.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
