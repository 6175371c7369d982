"""Values worked out by hand, in examples where every term counts."""

import math
import warnings

import pytest
import torch

from emulatedft import Delta, EFTLogitsProcessor, eft_generate, eft_logprobs, emulate, speculative_generate

ZERO = torch.zeros(2, dtype=torch.float64)
LOG3 = torch.tensor([math.log(3), 0.0], dtype=torch.float64)


def constant(logits):
    return lambda ids: logits.expand(*ids.shape, len(logits))


def test_the_diagnostics_of_one_step():
    found = eft_generate(
        constant(ZERO), Delta(constant(LOG3), constant(ZERO)), torch.tensor([[1]]),
        max_new_tokens=1, do_sample=False, diagnostics=True,
    )  # fmt: skip
    # The emulated distribution is (3/4, 1/4), the base's (1/2, 1/2), the draft's the emulated one.
    assert found.kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.kl.item() == pytest.approx(0.130812, abs=1e-6)
    assert found.tv.item() == pytest.approx(0.0)
    assert found.log_ratio.item() == pytest.approx(math.log(1.5))


def test_the_reward_of_a_token_counts_each_delta_by_its_weight():
    found = eft_generate(
        constant(ZERO), [Delta(constant(LOG3), constant(-LOG3), 2.0), Delta(constant(LOG3), None, -0.5)],
        torch.tensor([[1]]), max_new_tokens=1, do_sample=False, diagnostics=True,
    )  # fmt: skip
    # (3/4) / (1/4) = 3 for the first and (3/4) / (1/2) for the second.
    assert found.log_ratio.item() == pytest.approx(2 * math.log(3) - 0.5 * math.log(1.5))
    # Odds 9 ** 2 / 3 ** .5 = 46.77 against the first delta's 3.
    assert found.tv.item() == pytest.approx(46.765 / 47.765 - 0.75, abs=1e-5)


@pytest.fixture(scope="module")
def gpt2():
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=5, n_positions=16)
        return transformers.GPT2LMHeadModel(config).eval()


def test_the_first_token_after_padding_is_not_scored(gpt2):
    ids = torch.tensor([[0, 0, 3, 1, 4], [2, 4, 1, 3, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = eft_logprobs(gpt2, Delta(gpt2, gpt2), ids, attention_mask=mask)
    assert found[0, :3].tolist() == [0.0, 0.0, 0.0]
    alone = gpt2(torch.tensor([[3, 1, 4]])).logits.log_softmax(-1).detach()
    assert found[0, 3:].tolist() == pytest.approx([float(alone[0, 0, 1]), float(alone[0, 1, 4])], abs=1e-5)
    assert found[1, 1:].abs().min() > 0


def test_a_negative_weight_counts_by_its_size_in_the_mean_of_the_small_models():
    eight = math.log(8)
    found = emulate(
        ZERO, [torch.tensor([eight, 0.0]).double(), torch.tensor([0.0, eight]).double()], [ZERO, ZERO],
        weight=[2, -1], top_p=0.1,
    ).exp()  # fmt: skip
    assert found.tolist() == pytest.approx([0.9552, 0.0448], abs=1e-4)


def test_a_row_that_has_ended_holds_nobody_back():
    """Row 0 ends with its first token and is drafted wrong ever after; row 1 is drafted right."""

    def model(after_the_end):
        def logits(ids):
            first = ids[:, :1] == 0  # row 0 by its prompt
            ended = (ids == 2).long().cumsum(1) > 0
            token = torch.where(first, torch.where(ended, after_the_end, 2), 3)
            return 9.0 * torch.nn.functional.one_hot(token, 4).double()

        return logits

    base, ft = model(torch.tensor(1)), model(torch.tensor(0))
    found = speculative_generate(
        base, Delta(ft, ft), torch.tensor([[0], [1]]), max_new_tokens=9, block=4, do_sample=False,
        eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    assert found.tokens.tolist() == [[2] * 9, [3] * 9]
    assert found.base_calls == 3  # blocks of 4, 4 and 1


def scores_of(processor, ids):
    return processor(ids, torch.zeros(len(ids), 5, dtype=torch.float64))


@pytest.mark.parametrize("own_prompt", [False, True])
def test_masks_and_prompts_are_repeated_as_beams_repeat_rows(own_prompt):
    table = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ft(ids):  # looks two tokens back
        before = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
        return table[before, ids]

    prompts = torch.tensor([[4, 1], [2, 3]])
    mask = torch.ones(2, 2, dtype=torch.long)
    options = {"ft_prompt": prompts.flip(1)} if own_prompt else {}
    two = EFTLogitsProcessor(Delta(ft, None, **options), attention_mask=mask)
    four = EFTLogitsProcessor(Delta(ft, None, **options), attention_mask=mask)
    torch.testing.assert_close(
        scores_of(four, prompts.repeat_interleave(2, 0)), scores_of(two, prompts).repeat_interleave(2, 0)
    )


def test_a_prompt_that_looks_padded_is_warned_of_unless_its_mask_is_given(gpt2):
    model = constant(torch.zeros(5, dtype=torch.float64))
    padded = torch.tensor([[0, 0, 3], [1, 2, 3]])
    with pytest.warns(UserWarning, match=r"begin with token 0 repeated, as if padded.*attention_mask"):
        scores_of(EFTLogitsProcessor(Delta(model, None)), padded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
        EFTLogitsProcessor(Delta(gpt2, None), attention_mask=mask)(padded, torch.zeros(2, 5))
        scores_of(EFTLogitsProcessor(Delta(model, None)), torch.tensor([[0, 1, 3], [0, 2, 3]]))
