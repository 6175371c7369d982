"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re

import pytest
import torch

from emulatedft import (
    Delta,
    EFTLogitsProcessor,
    check_vocab,
    eft_generate,
    eft_logprobs,
    emulate,
    speculative_generate,
    sweep,
)

PROMPT = torch.tensor([[2, 1, 3]])
INF, NAN = float("inf"), float("nan")


def uniform(ids):
    return torch.zeros(*ids.shape, 5)


def longer(ids):
    return torch.zeros(*ids.shape, 8)


def broken(ids):
    return torch.full((*ids.shape, 5), NAN)


DELTA = Delta(uniform, uniform)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"top_p": 0.0}, ValueError, "top_p must be in (0, 1], got 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p must be in (0, 1], got 1.5"),
        ({"weight": NAN}, ValueError, "weight must be finite, got nan"),
        ({"weight": [1.0, 2.0]}, ValueError, "must be equally many, got 1, 1 and 2"),
        ({"ft_logits": [], "weight": []}, ValueError, "at least one model, got none"),
        ({"ft_logits": torch.zeros(6)}, ValueError, "one vocabulary, got 5 tokens in base_logits and 6"),
        (
            {"ref_logits": torch.zeros(5, dtype=torch.long)},
            TypeError,
            "must be floating point, got torch.int64",
        ),
        ({"base_logits": torch.tensor([0, 0, NAN, 0, 0])}, ValueError, "base_logits must be finite"),
        ({"base_logits": torch.tensor([0, 0, INF, 0, 0])}, ValueError, "base_logits must be finite"),
        ({"base_logits": torch.full((5,), -INF)}, ValueError, "got NaN, inf or a row of -inf"),
        ({"ft_logits": torch.full((5,), -INF)}, ValueError, "ft_logits and ref_logits must be finite"),
        ({"ref_logits": torch.full((5,), NAN)}, ValueError, "ft_logits and ref_logits must be finite"),
    ],
)
def test_emulate(changes, error, message):
    zeros = torch.zeros(5)
    with pytest.raises(error, match=re.escape(message)):
        emulate(**{"base_logits": zeros, "ft_logits": zeros, "ref_logits": zeros} | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": INF}, ValueError, "weight must be a finite number, got inf"),
        ({"weight": "1"}, ValueError, "weight must be a finite number, got 1"),
        ({"ft": None}, TypeError, "ft must be a language model, got NoneType"),
        ({"ref": 3}, TypeError, "ref must be a language model, got int"),
        ({"ref": None, "ref_prompt": PROMPT}, ValueError, "ref_prompt must be None where ref is None"),
        ({"ft_prompt": PROMPT[0]}, ValueError, "ft_prompt must be integers of shape (batch, length)"),
        (
            {"ft_prompt": {"input_ids": PROMPT, "attention_mask": torch.tensor([[1, 1, 0]])}},
            ValueError,
            "ft_prompt must be padded on the left",
        ),
    ],
)
def test_delta(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Delta(**{"ft": uniform, "ref": uniform} | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"deltas": []}, ValueError, "deltas must hold at least one Delta, got none"),
        ({"deltas": [uniform]}, TypeError, "deltas must be Delta objects, got function"),
        (
            {"deltas": Delta(longer, uniform)},
            ValueError,
            "must share one vocabulary, got 5 tokens for the base",
        ),
        ({"deltas": Delta(broken, uniform)}, ValueError, "ft_logits and ref_logits must be finite"),
        ({"base": broken}, ValueError, "base_logits must be finite"),
        ({"base": 3}, TypeError, "a CachedModel or a callable from token ids to logits, got int"),
        (
            {"base": lambda ids: "text"},
            TypeError,
            "must return logits as a tensor (batch, length, V), got str",
        ),
        ({"base": lambda ids: torch.zeros(5)}, TypeError, "(batch, length, V), got shape (5,)"),
        ({"base": lambda ids: torch.zeros(2, 9, 5)}, ValueError, "= (1, "),
        ({"vocab_size": 6}, ValueError, "vocab_size must be at most 5, the smallest model's, got 6"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"top_p": 2.0}, ValueError, "top_p must be in (0, 1], got 2.0"),
        ({"input_ids": PROMPT[:, :0]}, ValueError, "input_ids must be integers of shape (batch, length)"),
        ({"input_ids": PROMPT.float()}, ValueError, "got torch.float32 of shape (1, 3)"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"attention_mask": torch.ones(1, 2)}, ValueError, "must have its shape (1, 3), got (1, 2)"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, ValueError, "must be padded on the left"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, ValueError, "no padding for a model that is not"),
        (
            {"deltas": Delta(uniform, uniform, ft_prompt=PROMPT.expand(3, -1))},
            ValueError,
            "1 row or as many as input_ids (1), got 3",
        ),
    ],
)
def test_decoders(changes, error, message):
    good = {"base": uniform, "deltas": DELTA, "input_ids": PROMPT, "max_new_tokens": 3}
    for decoder in (eft_generate, speculative_generate):
        with pytest.raises(error, match=re.escape(message)):
            decoder(**good | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"rule": "guess"}, "rule must be 'coupled' or 'rejection', got 'guess'"),
    ],
)
def test_speculation(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        speculative_generate(uniform, DELTA, PROMPT, max_new_tokens=3, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": PROMPT[:, :2]}, "labels must have the shape of input_ids (1, 3), got (1, 2)"),
        ({"prompt_length": 0}, "prompt_length must be in 1..3, got 0"),
        ({"prompt_length": 4}, "prompt_length must be in 1..3, got 4"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
    ],
)
def test_likelihoods(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        eft_logprobs(uniform, DELTA, PROMPT, **changes)


def test_sweep():
    with pytest.raises(ValueError, match=r"weights must have 1 numbers in each setting .*, got 2"):
        list(sweep(uniform, DELTA, [[0.5, 0.5]], PROMPT, max_new_tokens=1))


def test_the_processor_wants_to_know_of_new_prompts_where_it_cannot_guess():
    scores = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="deltas must hold at least one"):
        EFTLogitsProcessor([])
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 0"):
        EFTLogitsProcessor(DELTA, top_p=0)
    processor = EFTLogitsProcessor(Delta(uniform, uniform, ft_prompt=PROMPT))
    processor(PROMPT, scores)
    with pytest.raises(ValueError, match=r"input_ids must continue the text before: .* call reset\(\)"):
        processor(PROMPT + 1, scores)
    processor.reset()
    processor(PROMPT + 1, scores)
    with pytest.raises(ValueError, match="input_ids must be integers of shape"):
        EFTLogitsProcessor(DELTA)(PROMPT[:, :0], scores)


def test_training_mode_is_told():
    class Model(torch.nn.Module):
        def forward(self, ids):
            return uniform(ids)

    with pytest.warns(UserWarning, match="Model is in training mode"):
        eft_generate(Model(), DELTA, PROMPT, max_new_tokens=1)


class Tokenizer:
    def __init__(self, *tokens):
        self.tokens = tokens

    def get_vocab(self):
        return {token: index for index, token in enumerate(self.tokens)}


class Sized:
    def __init__(self, vocab_size):
        self.config = type("Config", (), {"vocab_size": vocab_size})()


def test_vocabularies():
    tokenizer = Tokenizer("a", "b", "c")
    assert check_vocab(tokenizer, Tokenizer("a", "b", "c"), Sized(4), Sized(8)) == 3
    assert check_vocab(Sized(4), Sized(4)) == 4
    with pytest.raises(
        ValueError, match=r"models must share one vocabulary, got sizes \[4, 8\]; .* tokenizers"
    ):
        check_vocab(Sized(4), Sized(8))
    with pytest.raises(ValueError, match=r"tokenizers must share their tokens, but id 1 is \['b', 'x'\]"):
        check_vocab(tokenizer, Tokenizer("a", "x", "c"))
    with pytest.raises(ValueError, match="a row for each of the 3 shared tokens, got one with 2"):
        check_vocab(tokenizer, Sized(2))
    with pytest.raises(TypeError, match="check_vocab takes models and tokenizers, got int"):
        check_vocab(3)
    with pytest.warns(UserWarning, match="only the first 3 tokens are known to all"):
        assert check_vocab(tokenizer, Tokenizer("a", "b", "c", "<pad>"), Sized(4)) == 3


def test_rows_of_padding_are_cut_off_where_the_shared_size_is_given():
    lean = lambda ids: torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 9.0, 9.0, 9.0]).expand(*ids.shape, 8)  # noqa: E731
    found = eft_generate(
        longer, Delta(lean, uniform), PROMPT, max_new_tokens=2, do_sample=False, vocab_size=5
    )
    assert found.tokens.tolist() == [[4, 4]]
    scores = EFTLogitsProcessor(Delta(lean, uniform), vocab_size=5)(PROMPT, torch.zeros(1, 8))
    expected = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0]).log_softmax(-1)
    torch.testing.assert_close(scores[0, :5], expected)
    assert scores[0, 5:].tolist() == [-INF] * 3
