"""Streamers and stopping criteria in both decoders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emulatedft import Delta, eft_generate, speculative_generate

SIZE = 6


def table(seed):
    logits = 2 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return lambda ids: logits[ids]


BASE, TUNED, SMALL = table(1), table(2), table(3)
PROMPTS = torch.tensor([[0, 1], [2, 3], [4, 5]])
DECODERS = {
    "one by one": eft_generate,
    "coupled": speculative_generate,
    "adaptive": lambda *a, **k: speculative_generate(*a, block=3, adaptive=True, **k),
    "rejection": lambda *a, **k: speculative_generate(*a, rule="rejection", **k),
}
each = pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)


class Film:
    def __init__(self):
        self.shown, self.ended = [], False

    def put(self, value):
        assert not self.ended
        self.shown.append(value)

    def end(self):
        self.ended = True


def run(decode, seed=0, prompts=PROMPTS, **options):
    source = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": 20, "pad_token_id": 9 % SIZE, "generator": source} | options
    return decode(BASE, Delta(TUNED, SMALL), prompts, **options).tokens


def ends_with_pair(ids, scores):
    assert scores is None
    return (ids[:, -1] == 1) & (ids[:, -2] == 2)


@each
@given(seed=st.integers(0, 300))
def test_a_row_ends_where_a_criterion_first_says_so(decode, seed):
    free = run(decode, seed, PROMPTS[:1])
    found = run(decode, seed, PROMPTS[:1], stopping_criteria=ends_with_pair)
    text = torch.cat([PROMPTS[:1], free], 1)[0].tolist()
    hits = [place for place in range(1, 21) if text[place : place + 2] == [2, 1]]
    length = hits[0] if hits else 20
    if decode is not DECODERS["rejection"]:  # whose draws depend on the block
        assert found.tolist() == free[:, :length].tolist()
    assert found.shape[1] == 20 or found[0, -1] == 1


@given(seed=st.integers(0, 300), block=st.integers(1, 7))
def test_speculation_ends_rows_where_plain_decoding_does(seed, block):
    options = {"stopping_criteria": [ends_with_pair], "eos_token_id": 5}
    plain = run(eft_generate, seed, **options)
    assert torch.equal(run(speculative_generate, seed, block=block, **options), plain)


@each
def test_rows_that_have_ended_are_padded_and_shown_padded(decode):
    seen = []

    def stop(ids, scores):
        seen.append(ids.clone())
        return torch.tensor([ids.shape[1] >= 4, ids.shape[1] >= 6, False])

    found = run(decode, stopping_criteria=stop, pad_token_id=3)
    assert found.shape[1] == 20
    assert (found[0, 2:] == 3).all()
    assert (found[1, 4:] == 3).all()
    for ids in seen:
        assert torch.equal(ids, torch.cat([PROMPTS, found], 1)[:, : ids.shape[1]])


@each
def test_one_bool_ends_all_rows(decode):
    assert run(decode, stopping_criteria=lambda ids, scores: ids.shape[1] >= 7).shape == (3, 5)


@each
def test_a_streamer_sees_the_prompt_and_what_is_returned(decode):
    film = Film()
    found = run(decode, streamer=film, eos_token_id=5)
    assert torch.equal(film.shown[0], PROMPTS)
    assert torch.equal(torch.stack(film.shown[1:], 1), found)
    assert film.ended


@each
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"stopping_criteria": 3}, TypeError, "stopping_criteria must be functions .* got int"),
        ({"stopping_criteria": ["stop"]}, TypeError, "stopping_criteria must be functions .* got str"),
        ({"stopping_criteria": lambda ids, scores: torch.ones(2).bool()}, ValueError, r"one or \(3,\)"),
        ({"stopping_criteria": lambda ids, scores: 0.5}, ValueError, "must give bool"),
        ({"streamer": print}, TypeError, "streamer must have put and end"),
    ],
)
def test_what_is_neither_is_named(decode, options, kind, message):
    with pytest.raises(kind, match=message):
        run(decode, **options)
