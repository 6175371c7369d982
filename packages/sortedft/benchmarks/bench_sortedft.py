"""sortedft against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import json
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from sortedft import Generated, dynamic_generate, sorted_loss, speculative_generate
from sortedft._demo_model import CharacterModel
from sortedft.decoding import ResidualStream
from sortedft.parts import Parts

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- the loss --------------------------------------------------------------------------------------

VOCABULARY, SIZE, EXITS = 32_000, 64, [1, 2, 3, 4, 5, 6, 7, 8]


@cache
def loss_problem(num_tokens, supervised):
    """States of 8 blocks for one text, and labels of which a share is supervised."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, num_tokens, SIZE, generator=generator, requires_grad=True) for _ in range(9)]
    labels = torch.randint(VOCABULARY, (1, num_tokens), generator=generator)
    labels[torch.rand(1, num_tokens, generator=generator) >= supervised] = -100
    return states, labels, nn.RMSNorm(SIZE), nn.Linear(SIZE, VOCABULARY, bias=False)


def our_loss(states, labels, norm, head):
    return sorted_loss(
        states, labels, norm=norm, head=head, exits=EXITS, chunk_tokens=256, last_is_normed=False
    )


def naive_loss(states, labels, norm, head):
    losses = []
    for depth in EXITS:
        logits = head(norm(states[depth]))
        losses.append(cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    return torch.stack(losses).mean()


def loss_and_gradients(case, problem):
    states, _, norm, head = problem
    loss = {"ours": our_loss, "peer": naive_loss}[case](*problem)
    return loss, *torch.autograd.grad(loss, [*states[1:], norm.weight, head.weight])


@cache
def agree_on_loss(num_tokens, supervised):
    problem = loss_problem(num_tokens, supervised)
    for ours, theirs in zip(*(loss_and_gradients(case, problem) for case in ("ours", "peer")), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def compare_losses(benchmark, case, num_tokens=192, supervised=1.0, rounds=5, **about):
    agree_on_loss(num_tokens, supervised)
    size = f"V = 32,000, D = {SIZE}, {num_tokens} tokens, 8 exits, {100 * supervised:.0f} % supervised"
    benchmark.extra_info.update(case=case, peer="a loop over the exits' full logits", size=size, **about)
    benchmark.pedantic(loss_and_gradients, (case, loss_problem(num_tokens, supervised)), rounds=rounds)


@both
@pytest.mark.benchmark(group="loss and gradients, every token supervised")
def test_loss(benchmark, case):
    compare_losses(benchmark, case)


@both
@pytest.mark.benchmark(group="loss and gradients, 40 % supervised")
def test_loss_of_answers_only(benchmark, case):
    compare_losses(benchmark, case, supervised=0.4)


@both
@pytest.mark.benchmark(group="peak extra memory of loss and gradients")
def test_loss_memory(benchmark, case, tmp_path):
    problem = loss_problem(num_tokens=512, supervised=1.0)
    peak = peak_memory(lambda: loss_and_gradients(case, problem), tmp_path / "trace.json")
    compare_losses(benchmark, case, num_tokens=512, rounds=1, quantity="peak memory", value=peak)


def peak_memory(run, path):
    """The most bytes that `run` holds at once beyond what was held before, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = [
        event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"
    ]
    held = [event["args"]["Total Allocated"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(held) - (held[0] - events[0]["args"]["Bytes"])


# --- decoding --------------------------------------------------------------------------------------

NUM_BLOCKS, DRAFT_EXIT, NUM_TOKENS = 12, 4, 32


@cache
def decoding_problem():
    """A model whose first blocks agree with all of them on most tokens, as fine-tuning makes it."""
    generator = torch.Generator().manual_seed(0)
    model = CharacterModel(256, NUM_BLOCKS, 512, generator).eval()
    with torch.no_grad():
        for block in model.layers[DRAFT_EXIT:]:
            block.output.weight.mul_(0.05)
            block.down_proj.weight.mul_(0.05)
    return model.parts, torch.randint(256, (1, 256), generator=generator)


def plain(parts, prompt):
    return dynamic_generate(parts, prompt, [NUM_BLOCKS], [], NUM_TOKENS)


def self_speculative(parts, prompt):
    return speculative_generate(parts, prompt, DRAFT_EXIT, NUM_TOKENS)


@torch.no_grad()
def two_models(parts, prompt):
    """Assisted decoding as for any two models: a draft of its own cache, and all blocks to verify it."""
    small = Parts(parts.layers[:DRAFT_EXIT], parts.norm, parts.head, parts.embed, parts.run, parts.prepare)
    draft_stream, stream = ResidualStream(small), ResidualStream(parts)
    text, emitted, num_draft, drafted, accepted = prompt, 0, 4, 0, 0
    while emitted < NUM_TOKENS:
        count = min(num_draft, NUM_TOKENS - emitted - 1)
        draft = text
        for _ in range(count):
            draft_stream.feed(draft[:, draft_stream.fed[0] :])
            draft = torch.cat(
                [draft, parts.logits(draft_stream.advance(0, DRAFT_EXIT)[:, -1:]).argmax(-1)], 1
            )
        stream.feed(draft[:, stream.fed[0] :])
        choices = parts.logits(stream.advance(0, NUM_BLOCKS)[:, -count - 1 :]).argmax(-1)
        kept = int((draft[:, text.shape[1] :] == choices[:, :-1]).long().cumprod(1).sum())
        text = torch.cat([draft[:, : text.shape[1] + kept], choices[:, kept : kept + 1]], 1)
        emitted, drafted, accepted = emitted + kept + 1, drafted + count, accepted + kept
        draft_stream.crop(text.shape[1] - 1)
        stream.crop(text.shape[1] - 1)
        num_draft = num_draft + 2 if kept == count else max(1, num_draft - 1)
    calls = draft_stream.block_calls + stream.block_calls
    positions = draft_stream.block_tokens + stream.block_tokens
    return Generated(text[:, prompt.shape[1] :], torch.tensor([]), calls, positions, drafted, accepted)


@cache
def decoded(decoder):
    return decoder(*decoding_problem())


def compare_decoders(benchmark, case, ours, peer, peer_name, rounds=5, count=None, **about):
    assert torch.equal(decoded(ours).tokens, decoded(peer).tokens)
    decoder = {"ours": ours, "peer": peer}[case]
    kept = 100 * decoded(ours).accepted / decoded(ours).drafted
    size = f"12 blocks, D = 512, exit {DRAFT_EXIT}, {NUM_TOKENS} tokens after 256, {kept:.0f} % of the draft kept"
    if count is not None:
        about["value"] = getattr(decoded(decoder), count) / NUM_TOKENS
    benchmark.extra_info.update(case=case, peer=peer_name, size=size, **about)
    benchmark.pedantic(decoder, decoding_problem(), rounds=rounds)


@both
@pytest.mark.benchmark(group="self-speculative decoding")
def test_self_speculation(benchmark, case):
    compare_decoders(benchmark, case, self_speculative, two_models, "re-running the draft's blocks to verify")


@both
@pytest.mark.benchmark(group="positions run through a block per token, self-speculative decoding")
def test_self_speculation_work(benchmark, case):
    about = {"quantity": "positions through blocks, per token", "count": "block_tokens", "rounds": 1}
    name = "re-running the draft's blocks to verify"
    compare_decoders(benchmark, case, self_speculative, two_models, name, **about)


@both
@pytest.mark.benchmark(group="self-speculative against plain greedy decoding")
def test_self_speculation_against_plain_decoding(benchmark, case):
    compare_decoders(benchmark, case, self_speculative, plain, "plain greedy decoding with a cache")


@both
@pytest.mark.benchmark(group="block calls per token, against plain greedy decoding")
def test_self_speculation_block_calls(benchmark, case):
    about = {"quantity": "block calls per token", "count": "block_calls", "rounds": 1}
    compare_decoders(benchmark, case, self_speculative, plain, "plain greedy decoding with a cache", **about)
