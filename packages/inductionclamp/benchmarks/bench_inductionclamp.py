"""inductionclamp against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from inductionclamp import (
    Clamp,
    ClampSet,
    FewShotBatch,
    FewShotTransformer,
    ablate_heads,
    clamped,
    head_ablation_table,
    induction_pattern,
    instrument,
    perfect_copy,
    perfect_layer1,
    preserve,
    run,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
PAIRS, LABELS, FEATURES, DIM, HEADS = 2, 5, 512, 64, 8


@cache
def problem(batch=64):
    """The paper's model and a batch of its size."""
    generator = torch.Generator().manual_seed(0)
    model = FewShotTransformer(FEATURES, LABELS, generator=generator)
    x = torch.randn(batch, PAIRS + 1, FEATURES, generator=generator)
    first = torch.randint(LABELS, (batch,), generator=generator)
    second = (first + 1 + torch.randint(LABELS - 1, (batch,), generator=generator)) % LABELS
    return model, FewShotBatch(x, torch.stack([first, second, first], 1))


def stepped(model, logits, y):
    """A training step's loss and gradients."""
    model.zero_grad()
    loss = cross_entropy(logits[:, -1], y[:, -1])
    loss.backward()
    return loss.detach()


def compare(benchmark, case, ours, peer, says, size, rounds=60):
    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-5)
    benchmark.extra_info.update(case=case, peer=says, size=size)
    benchmark.pedantic({"ours": ours, "peer": peer}[case], rounds=rounds, warmup_rounds=5)


SIZE = "the paper's model, a training step of 64 sequences"


# --- one head ablated: hooks anyone writes ------------------------------------------------------------


@both
@pytest.mark.benchmark(group="a head ablated against a forward hook written by hand")
def test_ablation_step(benchmark, case):
    model, (x, y) = problem()
    clamps = ClampSet(ablate_heads(1, [3]))
    width = DIM // HEADS

    def by_hand():
        columns = slice(2 * DIM + 3 * width, 2 * DIM + 4 * width)

        def silenced(module, inputs, output):
            output = output.clone()
            output[..., columns] = 0
            return output

        handle = model.blocks[1].attention.qkv.register_forward_hook(silenced)
        try:
            return stepped(model, model(x, y), y)
        finally:
            handle.remove()

    def ours():
        return stepped(model, run(model, (x, y), clamps)[0], y)

    compare(benchmark, case, ours, by_hand, "a forward hook written by hand", SIZE)


@both
@pytest.mark.benchmark(group="a module's output replaced against a forward hook written by hand")
def test_plain_module(benchmark, case):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.ReLU())])
    x = torch.randn(64, 256, generator=generator)
    clamps, mask = ClampSet(Clamp("middle", 0.0, torch.arange(256) < 32)), torch.arange(256) < 32

    def ours():
        with torch.no_grad():
            return run(model, x, clamps)[0]

    def by_hand():
        handle = model[7].register_forward_hook(lambda module, inputs, output: output.masked_fill(mask, 0.0))
        try:
            with torch.no_grad():
                return model(x)
        finally:
            handle.remove()

    instrument(model, {"middle": "7"})
    compare(
        benchmark,
        case,
        ours,
        by_hand,
        "a forward hook written by hand",
        "MLP of 8 layers of 256, batch 64",
        200,
    )


# --- clamped training against plain training ----------------------------------------------------------


def plain_step():
    model, (x, y) = problem()
    return stepped(model, model(x, y), y)


def against_plain(benchmark, case, clamps):
    """Losses differ by design: asserted is that the clamped one is what the block gives."""
    model, batch = problem()
    given = ClampSet(clamps)

    def ours():
        return stepped(model, run(model, batch, given)[0], batch.y)

    with clamped(model, given):
        torch.testing.assert_close(stepped(model, model(*batch), batch.y), ours())
    benchmark.extra_info.update(case=case, peer="the step without clamps", size=SIZE)
    benchmark.pedantic({"ours": ours, "peer": plain_step}[case], rounds=60, warmup_rounds=5)


@both
@pytest.mark.benchmark(group="a forced induction pattern against the step without clamps")
def test_one_pass(benchmark, case):
    against_plain(benchmark, case, [induction_pattern(1, [0]), ablate_heads(1, range(1, HEADS))])


@both
@pytest.mark.benchmark(group="a perfect copy against the step without clamps")
def test_copy(benchmark, case):
    against_plain(benchmark, case, perfect_copy(1, 0))


@both
@pytest.mark.benchmark(group="patterns preserved in two passes against the step without clamps")
def test_two_passes(benchmark, case):
    against_plain(benchmark, case, [preserve("patterns"), ablate_heads(0, [0])])


# --- two passes against the official way --------------------------------------------------------------


@both
@pytest.mark.benchmark(group="a perfect first layer against whole passes (the official code's way)")
def test_perfect_layer(benchmark, case):
    model, batch = problem()
    given = ClampSet(perfect_layer1(1))

    def ours():
        return stepped(model, run(model, batch, given)[0], batch.y)

    def whole_passes():
        """A pass for the embeddings, one for the patterns, and one more."""
        embedding = run(model, batch, record=["tok_embedding"])[1]["tok_embedding"]
        moved = torch.cat([embedding[:, :1], embedding[:, :-2], embedding[:, -1:]], 1)
        name = "blocks.1.attn_scores"
        pattern = run(model, batch, Clamp("blocks.0.out", moved), record=[name])[1][name]
        logits, _ = run(model, batch, [Clamp("blocks.0.out", embedding), Clamp(name, pattern)])
        return stepped(model, logits, batch.y)

    compare(benchmark, case, ours, whole_passes, "three whole passes", SIZE)


# --- the table of heads -------------------------------------------------------------------------------


def loop_over_heads(model, batch):
    """2 H forwards, each with hooks of its own."""
    found = []
    width = DIM // HEADS
    for keep in torch.cat([torch.eye(HEADS), 1 - torch.eye(HEADS)]):
        columns = keep.repeat_interleave(width)

        def masked(module, inputs, columns=columns):
            return inputs[0] * columns

        handle = model.blocks[1].attention.proj.register_forward_pre_hook(masked)
        with torch.no_grad():
            found.append((model(*batch)[:, -1].argmax(-1) == batch.y[:, -1]).float().mean())
        handle.remove()
    return torch.stack(found)


def compare_tables(benchmark, case, size):
    model, batch = problem(size)

    def ours():
        table = head_ablation_table(model, batch, 1)
        return torch.cat([table.only, table.without])

    says = "2 H forwards with a hook written by hand"
    compare(
        benchmark,
        case,
        ours,
        lambda: loop_over_heads(model, batch),
        says,
        f"the paper's model, {size} sequences",
    )


@both
@pytest.mark.benchmark(group="a head ablation table against 2 H forwards")
def test_table(benchmark, case):
    compare_tables(benchmark, case, 64)


@both
@pytest.mark.benchmark(group="a head ablation table of one sequence against 2 H forwards")
def test_small_table(benchmark, case):
    compare_tables(benchmark, case, 1)
