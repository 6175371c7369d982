import json
import math

import pytest
import torch

from emulatedft.demo import _mixed, demo
from emulatedft.demo.judgement import conditions
from emulatedft.demo.ngrams import NGramModel


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    rows = {row["name"]: row for row in result["rows"]}
    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "reference"}
    assert {key for row in result["rows"] for key in row} - {"name", "role"} <= set(result["metrics"])
    assert isinstance(result["holds"], bool)
    # Coupled speculation is exact, however little the models have learned; so is the count of plain decoding.
    assert rows["EFT: speculative, coupled"]["same_text"] == 100
    assert rows["EFT: plain sampling"]["base_calls_per_token"] == 1
    # No model that has seen anything needs more than uniform guessing among some 103 characters.
    assert 0 < rows["EFT"]["bits_per_token"] < math.log2(103)
    # Sharp models of order 3 know nothing of many tokens that the large one would raise: top-p holds those back.
    assert rows["n-grams: EFT, top-p 0.95"]["bits_per_token"] < rows["n-grams: EFT"]["bits_per_token"] - 0.1
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    histogram = result["curves"][1]["series"]["EFT"]["y"]
    assert sum(histogram) == pytest.approx(1)


def test_the_blends_count_in_the_verdict_and_rows_without_them_do_not_pass():
    names = {"small fine-tuned": 3.0, "large base": 3.0, "EFT": 2.0, "large fine-tuned (oracle)": 1.0}
    blends = {"geometric mean of these two": 2.5, "mixture of these two": 2.25}
    decoders = [
        {"name": "EFT: plain sampling", "base_calls_per_token": 1.0},
        {"name": "EFT: speculative, coupled", "base_calls_per_token": 0.5, "same_text": 100.0},
    ]

    def verdict(scores):
        rows = [
            {"name": name, "bits_per_token": bits, "gap_recovered": 50.0} for name, bits in scores.items()
        ]
        return {told["says"]: (told["figure"], told["holds"]) for told in conditions(rows + decoders)}

    found = verdict(names | blends)
    assert found["EFT needs fewer bits than the geometric mean of these two at its best weight"] == (
        0.5,
        True,
    )
    assert found["EFT needs fewer bits than the mixture of these two at its best weight"] == (0.25, True)
    assert all(holds for _, holds in found.values())
    tied = verdict(names | blends | {"mixture of these two": 2.0})
    assert [says for says, (_, holds) in tied.items() if not holds] == [
        "EFT needs fewer bits than the mixture of these two at its best weight"
    ]
    assert sum(not holds for _, holds in verdict(names).values()) == 2


def test_an_n_gram_model_counts_as_by_hand():
    # a b a a: after "a" came one b and one a, and of all four letters three are a.
    model = NGramModel([torch.tensor([0, 1, 0, 0])], 2, 3)
    found = model(torch.tensor([[0, 1, 2]]))[0].exp()
    third = torch.full((3,), 1 / 3)
    alone = 0.99 * torch.tensor([0.75, 0.25, 0.0]) + 0.01 * third
    torch.testing.assert_close(found[0], 0.99 * torch.tensor([0.5, 0.5, 0.0]) + 0.01 * alone)
    torch.testing.assert_close(found[1], 0.99 * torch.tensor([1.0, 0.0, 0.0]) + 0.01 * alone)
    torch.testing.assert_close(found[2], alone)  # nothing was seen after the third letter


def test_the_mixture_is_a_mean_of_probabilities():
    (found,) = _mixed([torch.tensor([0.5]).log()], [torch.tensor([0.1]).log()], 0.25)
    assert found.exp().item() == pytest.approx(0.75 * 0.5 + 0.25 * 0.1)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("EMULATEDFT_SMALL_BASE", raising=False)
    with pytest.raises(ValueError, match="EMULATEDFT_SMALL_BASE"):
        demo("paper")
