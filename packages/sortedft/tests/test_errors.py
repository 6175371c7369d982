"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from sortedft import (
    ExitHeads,
    SortedSampler,
    cut,
    cut_state_dict,
    default_exits,
    dynamic_generate,
    layer_report,
    sorted_loss,
    speculative_generate,
    submodel,
)

PROMPT = torch.tensor([[3, 1, 4]])


def problem(**changes):
    """Three states of two blocks and their labels, with some argument replaced."""
    states, labels = [torch.ones(1, 4, 8) for _ in range(3)], torch.tensor([[0, 1, 2, 3]])
    arguments = {"hidden_states": states, "labels": labels, "norm": nn.Identity(), "head": nn.Linear(8, 16)}
    return arguments | {"exits": [1, 2]} | changes


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([], "exits must name at least one depth, got none"),
        ([1, 1], "exits must be strictly increasing, got [1, 1]"),
        ([2, 1], "exits must be strictly increasing, got [2, 1]"),
        ([0, 1], "exits must lie in 1..2 (the number of blocks), got [0, 1]"),
        ([1, 3], "exits must lie in 1..2 (the number of blocks), got [1, 3]"),
    ],
)
def test_exits(exits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sorted_loss(**problem(exits=exits))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": torch.full((1, 4), -100)}, ValueError, "labels must supervise at least one token"),
        (
            {"labels": torch.tensor([[5, -100, -100, -100]])},
            ValueError,
            "labels must supervise at least one token",
        ),
        (
            {"labels": torch.tensor([[0, 1, 2, 16]])},
            ValueError,
            "in 0..15 (the head's vocabulary), got 1..16",
        ),
        (
            {"labels": torch.tensor([[0, 1, -1, 3]])},
            ValueError,
            "in 0..15 (the head's vocabulary), got -1..3",
        ),
        ({"labels": torch.tensor([[0, 1, 2]])}, ValueError, "labels must be (batch, length)"),
        ({"labels": torch.ones(1, 4)}, TypeError, "labels must be integers, got torch.float32"),
        ({"labels": [[0, 1, 2, 3]]}, TypeError, "labels must be integers, got list"),
        ({"head": nn.Linear(8, 16).double()}, ValueError, "dtype torch.float64, got torch.float32"),
        ({"head": nn.Linear(8, 16, device="meta")}, ValueError, "device meta, got cpu"),
        ({"head": torch.relu}, TypeError, "head must be a module, got builtin_function_or_method"),
        (
            {"labels": torch.ones(1, 4, dtype=torch.bool)},
            TypeError,
            "labels must be integers, got torch.bool",
        ),
        ({"labels": torch.tensor([[0, 1, 2, 10**6]])}, ValueError, "(the head's vocabulary), got 1..1000000"),
        (
            {"labels": torch.ones(1, 4, dtype=torch.long, device="meta")},
            ValueError,
            "labels must be on the device",
        ),
        ({"exits": [1.0, 2.0]}, TypeError, "exits must be integers, got [1.0, 2.0]"),
        ({"chunk_tokens": 2.5}, TypeError, "chunk_tokens must be an integer, got 2.5"),
        ({"num_items_in_batch": 0}, ValueError, "num_items_in_batch must be positive, got 0"),
        ({"num_items_in_batch": float("nan")}, ValueError, "num_items_in_batch must be positive, got nan"),
        ({"logit_softcap": 0.0}, ValueError, "logit_softcap must be positive and finite, or None, got 0.0"),
        ({"logit_scale": float("nan")}, ValueError, "logit_scale must be finite, got nan"),
        (
            {"weights": [1.0]},
            ValueError,
            "weights must be 2 finite non-negative numbers, not all zero, got [1.0]",
        ),
        ({"weights": [1.0, -1.0]}, ValueError, "weights must be 2 finite non-negative numbers"),
        ({"weights": [0.0, 0.0]}, ValueError, "weights must be 2 finite non-negative numbers"),
        ({"weights": [1.0, float("nan")]}, ValueError, "weights must be 2 finite non-negative numbers"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens must be at least 1, got 0"),
    ],
)
def test_loss(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        sorted_loss(**problem(**changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft_exit": 5}, "draft_exit must be in 1..4 (below the full depth), got 5"),
        ({"draft_exit": 0}, "draft_exit must be in 1..4 (below the full depth), got 0"),
        ({"input_ids": PROMPT.expand(2, -1)}, "input_ids must hold one prompt, got a batch of 2"),
        (
            {"input_ids": PROMPT[:, :0]},
            "input_ids must be integers of shape (batch, length), both at least 1",
        ),
        ({"input_ids": PROMPT.float()}, "got torch.float32 of shape (1, 3)"),
        ({"input_ids": PROMPT.tolist()}, "input_ids must be a tensor, got list"),
        ({"attention_mask": [[1, 1, 1]]}, "attention_mask must be a tensor, got list"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, got 2.5"),
        ({"draft_exit": 2.0}, "draft_exit must be an integer, got 2.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive and finite, got nan"),
        ({"eos_token_id": -1}, "eos_token_id must be token ids or None, got -1"),
        ({"eos_token_id": [1, 2.0]}, "eos_token_id must be token ids or None, got [1, 2.0]"),
        (
            {"attention_mask": torch.ones(1, 2)},
            "attention_mask must have the shape (1, 3) of input_ids, got (1, 2)",
        ),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "attention_mask must be 0s, then 1s in every row"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "attention_mask must be 0s, then 1s in every row"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "attention_mask must be 0s, then 1s in every row"),
        ({"attention_mask": torch.tensor([[-1e9, 0, 0]])}, "attention_mask must be 0s, then 1s in every row"),
        ({"num_draft_tokens": 0}, "num_draft_tokens must be at least 1, got 0"),
    ],
)
def test_speculative_generate(tiny, arguments, message):
    good = {"input_ids": PROMPT, "draft_exit": 2, "max_new_tokens": 4}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        speculative_generate(tiny.parts, **(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": [0.9]}, "thresholds must have one number per exit but the last (2), got 1"),
        ({"thresholds": 0.9}, "thresholds must be a sequence of numbers, got 0.9"),
        ({"exits": [2, 4]}, "exits must end with 5 (the full model), got [2, 4]"),
        ({"exits": [2, 4, 6]}, "exits must lie in 1..5 (the number of blocks), got [2, 4, 6]"),
        ({"thresholds": [0.9, float("nan")]}, "thresholds must be numbers, got [0.9, nan]"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, "Parts made by hand need `padded`"),
        ({"eos_token_id": -1}, "eos_token_id must be token ids or None, got -1"),
        ({"fill": "guess"}, "fill must be 'exact' or 'copy', got 'guess'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_dynamic_generate(tiny, arguments, message):
    good = {"input_ids": PROMPT, "exits": [2, 3, 5], "thresholds": [0.9, 0.9], "max_new_tokens": 4}
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        dynamic_generate(tiny.parts, **(good | arguments))


@pytest.mark.parametrize(
    "generate",
    [
        lambda tiny: speculative_generate(tiny.parts, PROMPT, 2, 2),
        lambda tiny: dynamic_generate(tiny.parts, PROMPT, [5], None, 2),
        lambda tiny: layer_report(tiny, [{"input_ids": PROMPT, "labels": PROMPT}], [5], parts=tiny.parts),
    ],
)
def test_training_mode_warns_at_the_callers_line(tiny, generate):
    tiny.train()
    with pytest.warns(UserWarning, match=r"training mode.*call model\.eval\(\) first") as warned:
        generate(tiny)
    assert warned[0].filename == __file__


def test_submodels(tiny):
    with pytest.raises(ValueError, match=re.escape("depth must be in 1..5 (the number of blocks), got 6")):
        cut(tiny, 6, parts=tiny.parts)
    with (
        pytest.raises(ValueError, match="ff_keep needs a feed-forward network"),
        submodel(tiny, ff_keep=2, parts=tiny.parts),
    ):
        pass
    with (
        pytest.raises(ValueError, match="must be a module of the model"),
        submodel(nn.Linear(1, 1), 1, parts=tiny.parts),
    ):
        pass
    with pytest.raises(ValueError, match="state_dict must have keys like"):
        cut_state_dict({"weight": torch.ones(1)}, 1)
    with pytest.raises(ValueError, match=re.escape("depth must be in 1..5 (the number of blocks), got 0")):
        cut_state_dict(tiny.state_dict(), 0)
    with pytest.raises(TypeError, match=r"depth must be an integer, got 2\.5"):
        cut(tiny, 2.5, parts=tiny.parts)
    # Cutting both an image encoder's blocks and the language model's is what nobody wants.
    both = {
        f"{name}.layers.{index}.weight": torch.ones(1) for name in ("vision", "text") for index in range(4)
    }
    with pytest.raises(
        ValueError, match=re.escape("one list of blocks, got ['text.layers', 'vision.layers']")
    ):
        cut_state_dict(both, 2)


def test_exits_sampler_and_heads():
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        default_exits(0)
    with pytest.raises(ValueError, match="num_exits must be at least 1, got 0"):
        default_exits(4, 0)
    with pytest.raises(TypeError, match=r"num_layers must be an integer, got 8\.5"):
        default_exits(8.5)
    with pytest.raises(ValueError, match="exits must name at least one depth"):
        SortedSampler([])
    with pytest.raises(ValueError, match="accumulation_steps must be at least 1, got 0"):
        SortedSampler([1, 2], accumulation_steps=0)
    with pytest.raises(ValueError, match="exits must be strictly increasing"):
        ExitHeads(nn.Linear(2, 2), [2, 1])


def test_report(tiny):
    with pytest.raises(ValueError, match="batches must have 'labels', got"):
        layer_report(tiny, [{"input_ids": PROMPT}], [5], parts=tiny.parts)
    with pytest.raises(ValueError, match="batches must supervise at least one token"):
        layer_report(tiny, [], [5], parts=tiny.parts)
    with pytest.raises(ValueError, match=re.escape("exits must lie in 1..5")):
        layer_report(tiny, [], [6], parts=tiny.parts)
    beyond = {"input_ids": PROMPT, "labels": torch.tensor([[1, 2, 11]])}
    with pytest.raises(ValueError, match=re.escape("in 0..10 (the head's vocabulary), got 2..11")):
        layer_report(tiny, [beyond], [5], parts=tiny.parts)
    with pytest.raises(TypeError, match=r"labels must be integers, got torch\.float32"):
        layer_report(tiny, [{"input_ids": PROMPT, "labels": PROMPT.float()}], [5], parts=tiny.parts)
    short = cut(tiny, 3, parts=tiny.parts)
    with pytest.raises(ValueError, match="must run each of its 5 blocks once, got 0 runs"):
        layer_report(short, [{"input_ids": PROMPT, "labels": PROMPT}], [5], parts=tiny.parts)


@pytest.mark.parametrize("fault", ["forgets", "shares an index"])
@pytest.mark.parametrize(("exits", "fill"), [([5], "exact"), ([2, 5], "copy")])
def test_blocks_that_do_not_keep_the_text_are_refused(tiny, fault, exits, fill):
    """Their tokens would attend to nothing, or to another block's keys, without a word."""

    def run(layer, hidden, start, cache):
        if fault == "forgets" and layer.index == 3:
            return hidden
        return layer(hidden, start, cache)

    if fault == "shares an index":
        tiny.blocks[3].index = 2
    parts = replace(tiny.parts, run=run)
    with pytest.raises(ValueError, match="positions of block 4 in the cache that the block is given"):
        dynamic_generate(parts, PROMPT, exits, [0.0] * (len(exits) - 1), 2, fill=fill)
