"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re

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
        ({"head": nn.Linear(8, 16).double()}, ValueError, "dtype torch.float64, got torch.float32"),
        ({"head": nn.Linear(8, 16, device="meta")}, ValueError, "device meta, got cpu"),
        ({"head": nn.Identity()}, TypeError, "head must have a weight of shape (V, D), got Identity"),
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
            "input_ids must be integers of shape (batch, length) with length >= 1",
        ),
        ({"input_ids": PROMPT.float()}, "got torch.float32 of shape (1, 3)"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"num_draft_tokens": 0}, "num_draft_tokens must be at least 1, got 0"),
    ],
)
def test_speculative_generate(tiny, arguments, message):
    good = {"input_ids": PROMPT, "draft_exit": 2, "max_new_tokens": 4}
    with pytest.raises(ValueError, match=re.escape(message)):
        speculative_generate(tiny.parts, **(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": [0.9]}, "thresholds must have one number per exit but the last (2), got 1"),
        ({"exits": [2, 4]}, "exits must end with 5 (the full model), got [2, 4]"),
        ({"exits": [2, 4, 6]}, "exits must lie in 1..5 (the number of blocks), got [2, 4, 6]"),
        ({"fill": "guess"}, "fill must be 'exact' or 'copy', got 'guess'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_dynamic_generate(tiny, arguments, message):
    good = {"input_ids": PROMPT, "exits": [2, 3, 5], "thresholds": [0.9, 0.9], "max_new_tokens": 4}
    with pytest.raises(ValueError, match=re.escape(message)):
        dynamic_generate(tiny.parts, **(good | arguments))


@pytest.mark.parametrize(
    "generate",
    [
        lambda parts: speculative_generate(parts, PROMPT, 2, 2),
        lambda parts: dynamic_generate(parts, PROMPT, [5], None, 2),
    ],
)
def test_decoding_in_training_mode_warns_at_the_callers_line(tiny, generate):
    tiny.train()
    with pytest.warns(UserWarning, match=r"training mode.*call model\.eval\(\) first") as warned:
        generate(tiny.parts)
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


def test_exits_sampler_and_heads():
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        default_exits(0)
    with pytest.raises(ValueError, match="num_exits must be at least 1, got 0"):
        default_exits(4, 0)
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
