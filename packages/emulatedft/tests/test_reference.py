"""The decoders against enumeration of every text, and against counts worked out by hand."""

import itertools

import pytest
import torch

from emulatedft import Delta, eft_generate, eft_logprobs, emulate, speculative_generate

PROMPT = torch.tensor([[2, 1]])


def enumerated(base, deltas, vocabulary, length, temperature=1.0, top_p=1.0):
    """Probability of every text of some length, by the equation and the chain rule in plain Python."""
    found = torch.zeros([vocabulary] * length, dtype=torch.float64)
    for text in itertools.product(range(vocabulary), repeat=length):
        ids, probability = PROMPT, 1.0
        for token in text:
            pairs = [
                (delta.ft(ids)[0, -1].softmax(-1), delta.ref(ids)[0, -1].softmax(-1)) for delta in deltas
            ]
            mass = base(ids)[0, -1].softmax(-1)
            if top_p == 1:
                for (ft, ref), delta in zip(pairs, deltas, strict=True):
                    mass = mass * (ft / ref) ** delta.weight
            else:
                ((ft, ref),) = pairs
                order = ft.argsort(descending=True).tolist()
                sums = list(itertools.accumulate(ft[order].tolist()))
                count = next(index for index, total in enumerate(sums) if total >= top_p) + 1
                up_scaling = torch.ones_like(ft)
                up_scaling[order[:count]] = (mass / ref)[order[:count]]
                mass = ft * up_scaling
            mass = mass ** (1 / temperature)
            probability *= (mass[token] / mass.sum()).item()
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        found[text] = probability
    return found


@pytest.fixture
def models(make_table):
    base = make_table(4, 0)
    ft, ref = make_table(4, 1).mixed(base, 0.3), make_table(4, 2).mixed(base, 0.3)
    return base, ft, ref


def chi_square(seen, probabilities):
    expected = seen.sum() * probabilities
    common = expected > 4
    rest_seen, rest = seen[~common].sum(), expected[~common].sum()
    found = ((seen - expected)[common].square() / expected[common]).sum()
    return (found + (rest_seen - rest).square() / rest.clamp_min(1e-9) * (rest > 0)).item(), int(common.sum())


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_likelihoods_of_all_texts_are_the_enumerated_ones(models, top_p):
    base, ft, ref = models
    expected = enumerated(base, [Delta(ft, ref)], 4, 3, top_p=top_p)
    texts = torch.tensor(list(itertools.product(range(4), repeat=3)))
    ids = torch.cat([PROMPT.expand(64, -1), texts], dim=1)
    found = eft_logprobs(base, Delta(ft, ref), ids, prompt_length=2, top_p=top_p).sum(1).exp()
    torch.testing.assert_close(found, expected.flatten())
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("rule", "block"), [("rejection", 3), ("rejection", 2), ("coupled", 3)])
def test_speculation_has_the_enumerated_distribution(models, rule, block):
    base, ft, ref = models
    delta, count, generator = Delta(ft, ref), 500, torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 3, "block": block, "rule": rule, "warp": lambda scores: scores / 1.5}
    seen = torch.zeros(4, 4, 4, dtype=torch.float64)
    for _ in range(count):
        found = speculative_generate(base, delta, PROMPT.expand(2, -1), generator=generator, **options)
        for row in found.tokens.tolist():
            seen[tuple(row)] += 1
    statistic, cells = chi_square(seen, enumerated(base, [delta], 4, 3, temperature=1.5))
    assert cells > 20
    assert statistic < cells + 4 * (2 * cells) ** 0.5  # four standard deviations
    # Neither the draft nor the base alone would pass.
    for wrong in (ft, base):
        statistic, cells = chi_square(seen, enumerated(wrong, [Delta(ft, ft)], 4, 3, temperature=1.5))
        assert statistic > 10 * cells


def test_plain_sampling_has_the_enumerated_distribution_with_two_deltas(models, make_table):
    base, ft, ref = models
    deltas = [Delta(ft, ref, 0.75), Delta(make_table(4, 5), ref, 0.25)]
    generator = torch.Generator().manual_seed(1)
    found = eft_generate(base, deltas, PROMPT.expand(20_000, -1), max_new_tokens=2, generator=generator)
    seen = torch.zeros(4, 4, dtype=torch.float64).index_put_(
        (found.tokens[:, 0], found.tokens[:, 1]), torch.ones(20_000, dtype=torch.float64), accumulate=True
    )
    statistic, cells = chi_square(seen, enumerated(base, deltas, 4, 2))
    assert statistic < cells + 4 * (2 * cells) ** 0.5


def test_rejection_accepts_as_much_as_the_distributions_share(models):
    base, ft, ref = models
    draft = ft(PROMPT)[0, -1].softmax(-1)
    emulated = emulate(base(PROMPT)[0, -1], ft(PROMPT)[0, -1], ref(PROMPT)[0, -1]).exp()
    overlap = torch.minimum(draft, emulated).sum().item()  # 1 - TV
    generator, rounds = torch.Generator().manual_seed(2), 800
    kept = 0
    for _ in range(rounds):
        found = speculative_generate(
            base,
            Delta(ft, ref),
            PROMPT,
            max_new_tokens=1,
            block=1,
            rule="rejection",
            generator=generator,
            diagnostics=True,
        )
        kept += found.accepted
    assert found.tv.item() == pytest.approx(1 - overlap)
    assert 0.1 < overlap < 0.9
    assert kept / rounds == pytest.approx(overlap, abs=4 * (overlap * (1 - overlap) / rounds) ** 0.5)


def test_a_draft_that_is_always_right_needs_one_base_call_a_block(models):
    base, _, ref = models
    for rule in ("coupled", "rejection"):
        # Without a difference of the small models to the large one, the draft is the target.
        found = speculative_generate(base, Delta(base, base), PROMPT, max_new_tokens=12, block=5, rule=rule)
        assert (found.drafted, found.accepted, found.base_calls) == (12, 12, 3)
        adaptive = speculative_generate(
            ref, Delta(ref, ref), PROMPT, max_new_tokens=12, block=2, rule=rule, adaptive=True
        )
        assert adaptive.base_calls == 3  # 2 + 4 + 6


def test_a_draft_that_is_always_wrong_costs_a_base_call_a_token():
    base = lambda ids: torch.tensor([9.0, 0.0, 0.0]).expand(*ids.shape, 3)  # noqa: E731
    ft = lambda ids: torch.tensor([0.0, 1.0, 0.0]).expand(*ids.shape, 3)  # noqa: E731
    found = speculative_generate(
        base, Delta(ft, ft), PROMPT, max_new_tokens=4, block=3, do_sample=False, adaptive=True
    )
    assert found.tokens.tolist() == [[0, 0, 0, 0]]
    # Blocks of 3, 2, 1 and 1.
    assert (found.drafted, found.accepted, found.base_calls) == (7, 0, 4)


def test_every_model_reads_every_position_once(make_attention):
    base, ft, ref = (make_attention(9, 10 * index) for index in range(3))
    prompt = torch.tensor([[1, 2, 3, 4]])
    base_model, ref_model = base.cached, ref.cached
    deltas = [Delta(ft.cached, ref_model), Delta(ref_model, base_model, 0.5)]
    # The reference serves two deltas and the base is one, but each reads once; the last token is never read.
    eft_generate(base_model, deltas, prompt, max_new_tokens=10)
    assert [model.positions_read for model in (base, ft, ref)] == [13, 13, 13]


def test_prompts_of_their_own(make_attention):
    base, ft, ref = (make_attention(9, 10 * index) for index in range(3))
    chat, plain = torch.tensor([[7, 7, 1, 2, 8]]), torch.tensor([[5, 1, 2]])
    delta = Delta(ft.cached, ref.cached, ft_prompt=chat, ref_prompt=plain)
    prompt = torch.tensor([[1, 2], [3, 4]])
    found = eft_generate(base.cached, delta, prompt, max_new_tokens=6, do_sample=False).tokens
    text = found[:, :0]
    for _ in range(6):
        parts = [
            model.plain(torch.cat([start.expand(2, -1), text], dim=1))[:, -1]
            for model, start in ((base, prompt), (ft, chat), (ref, plain))
        ]
        text = torch.cat([text, emulate(*parts).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, text)
    speculated = speculative_generate(base.cached, delta, prompt, max_new_tokens=6, do_sample=False, block=4)
    assert torch.equal(speculated.tokens, text)
    ids = torch.cat([prompt, text], dim=1)
    scored = eft_logprobs(base.cached, delta, ids, prompt_length=2, chunk_tokens=4)
    full = [
        model.plain(torch.cat([start.expand(2, -1), text], dim=1))[:, start.shape[1] - 1 : -1]
        for model, start in ((base, prompt), (ft, chat), (ref, plain))
    ]
    torch.testing.assert_close(scored[:, 2:], emulate(*full).gather(-1, text[..., None])[..., 0])


def test_rows_end_alone_and_padding_follows(models):
    base, ft, ref = models
    prompts = torch.tensor([[2, 1], [0, 3], [1, 1]])
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = eft_generate(base, Delta(ft, ref), prompts, **options).tokens
    end = expected[0, 3].item()
    found = eft_generate(base, Delta(ft, ref), prompts, eos_token_id=[end], pad_token_id=77, **options).tokens
    ends = [row.index(end) if end in row else 12 for row in expected.tolist()]
    assert found.shape[1] == min(12, max(ends) + 1)
    for row, wanted, length in zip(found.tolist(), expected.tolist(), ends, strict=True):
        assert row[: length + 1] == wanted[: min(length + 1, 12)]
        assert set(row[length + 1 :]) <= {77}


def test_labels_choose_what_is_scored(models):
    base, ft, ref = models
    ids = torch.tensor([[2, 1, 3, 0]])
    labels = torch.tensor([[-100, 3, -100, 2]])
    found = eft_logprobs(base, Delta(ft, ref), ids, labels)
    expected = emulate(base(ids), ft(ids), ref(ids))[0]
    assert found[0].tolist() == pytest.approx([0, expected[0, 3].item(), 0, expected[2, 2].item()])
