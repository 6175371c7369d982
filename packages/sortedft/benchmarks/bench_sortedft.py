"""sortedft against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import json
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear_cross_entropy
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from sortedft import Generated, Parts, adapter, dynamic_generate, sorted_loss, speculative_generate
from sortedft.stream import ResidualStream

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- the loss --------------------------------------------------------------------------------------

VOCABULARY, SIZE, EXITS = 32_000, 256, [1, 2, 3, 4, 5, 6, 7, 8]


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


def our_loss_in_least_memory(states, labels, norm, head):
    return sorted_loss(
        states, labels, norm=norm, head=head, exits=EXITS, chunk_tokens=None, last_is_normed=False
    )


def torch_loss(states, labels, norm, head, options=None):
    """What torch offers: one call on the supervised rows of all exits, stacked."""
    targets = labels[:, 1:].flatten()
    supervised = targets != -100
    rows = torch.stack([states[depth][:, :-1].flatten(0, 1)[supervised] for depth in EXITS])
    targets = targets[supervised].repeat(len(EXITS))
    return linear_cross_entropy(norm(rows).flatten(0, 1), head.weight, targets, options=options)


def chunked_torch_loss(states, labels, norm, head):
    return torch_loss(states, labels, norm, head, nn.LinearCrossEntropyOptions())


def naive_loss(states, labels, norm, head):
    losses = []
    for depth in EXITS:
        logits = head(norm(states[depth]))
        losses.append(cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    return torch.stack(losses).mean()


PEERS = {
    torch_loss: "linear_cross_entropy on the gathered rows",
    chunked_torch_loss: "linear_cross_entropy on the gathered rows, in chunks",
    naive_loss: "a loop over the exits' full logits",
}


def loss_and_gradients(compute, problem):
    states, _, norm, head = problem
    loss = compute(*problem)
    return loss, *torch.autograd.grad(loss, [*states[1:], norm.weight, head.weight])


@cache
def agree_on_loss(peer, num_tokens, supervised):
    problem = loss_problem(num_tokens, supervised)
    pairs = zip(*(loss_and_gradients(compute, problem) for compute in (our_loss, peer)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def compare_losses(benchmark, case, peer, ours=our_loss, num_tokens=64, supervised=1.0, rounds=3, **about):
    agree_on_loss(peer, num_tokens, supervised)
    size = f"V = 32,000, D = {SIZE}, {num_tokens} tokens, 8 exits, {100 * supervised:.0f} % supervised"
    benchmark.extra_info.update(case=case, peer=PEERS[peer], size=size, **about)
    compute = {"ours": ours, "peer": peer}[case]
    benchmark.pedantic(loss_and_gradients, (compute, loss_problem(num_tokens, supervised)), rounds=rounds)


def compare_memory(benchmark, case, peer, path, ours=our_loss):
    compute = {"ours": ours, "peer": peer}[case]
    problem = loss_problem(num_tokens=512, supervised=1.0)
    peak = peak_memory(lambda: loss_and_gradients(compute, problem), path / "trace.json")
    compare_losses(benchmark, case, peer, ours, num_tokens=512, rounds=1, quantity="peak memory", value=peak)


@both
@pytest.mark.benchmark(group="loss and gradients, every token supervised")
def test_loss(benchmark, case):
    compare_losses(benchmark, case, torch_loss)


@both
@pytest.mark.benchmark(group="loss and gradients, 40 % supervised")
def test_loss_of_answers_only(benchmark, case):
    compare_losses(benchmark, case, torch_loss, supervised=0.4)


@both
@pytest.mark.benchmark(group="loss and gradients, peer in chunks")
def test_loss_in_chunks(benchmark, case):
    compare_losses(benchmark, case, chunked_torch_loss, our_loss_in_least_memory)


@both
@pytest.mark.benchmark(group="peak extra memory of loss and gradients")
def test_loss_memory(benchmark, case, tmp_path):
    compare_memory(benchmark, case, torch_loss, tmp_path)


@both
@pytest.mark.benchmark(group="peak extra memory of loss and gradients, peer in chunks")
def test_loss_memory_in_chunks(benchmark, case, tmp_path):
    compare_memory(benchmark, case, chunked_torch_loss, tmp_path, our_loss_in_least_memory)


@both
@pytest.mark.benchmark(group="loss and gradients against a loop, 40 % supervised")
def test_loss_against_a_loop(benchmark, case):
    compare_losses(benchmark, case, naive_loss, supervised=0.4)


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
    sizes = {"hidden_size": 512, "intermediate_size": 1280, "num_attention_heads": 16, "vocab_size": 256}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=NUM_BLOCKS, **sizes, **tokens)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5 / parameter.shape[1] ** 0.5, generator=generator)
        for block in model.model.layers[DRAFT_EXIT:]:
            block.self_attn.o_proj.weight.mul_(0.025)
            block.mlp.down_proj.weight.mul_(0.025)
    return model, torch.randint(256, (1, 256), generator=generator)


def plain(model, prompt):
    return dynamic_generate(model, prompt, [NUM_BLOCKS], [], NUM_TOKENS)


def self_speculative(model, prompt):
    return speculative_generate(model, prompt, DRAFT_EXIT, NUM_TOKENS)


def generate(model, prompt, **options):
    options |= {"do_sample": False, "max_new_tokens": NUM_TOKENS}
    text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return Generated(text[:, prompt.shape[1] :], torch.tensor([]), 0, 0)


def generate_with_early_exit(model, prompt):
    return generate(model, prompt, assistant_early_exit=DRAFT_EXIT)


@torch.no_grad()
def two_models(model, prompt):
    """Assisted decoding as for any two models: a draft of its own cache, and all blocks to verify it."""
    parts = adapter(model)
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


PEER_DECODERS = {
    generate: "transformers' generate",
    generate_with_early_exit: "transformers' generate(assistant_early_exit=4)",
    two_models: "re-running the draft's blocks to verify",
    plain: "plain greedy decoding with a cache",
}


def compare_decoders(benchmark, case, peer, ours=self_speculative, rounds=3, count=None, **about):
    assert torch.equal(decoded(ours).tokens, decoded(peer).tokens)
    decoder = {"ours": ours, "peer": peer}[case]
    size = f"12 blocks, D = 512, exit {DRAFT_EXIT}, {NUM_TOKENS} tokens after 256"
    if ours is self_speculative:
        size += f", {100 * decoded(ours).accepted / decoded(ours).drafted:.0f} % of the draft kept"
    if count is not None:
        about["value"] = getattr(decoded(decoder), count) / NUM_TOKENS
    benchmark.extra_info.update(case=case, peer=PEER_DECODERS[peer], size=size, **about)
    benchmark.pedantic(decoder, decoding_problem(), rounds=rounds)


@both
@pytest.mark.benchmark(group="self-speculative decoding against generate")
def test_self_speculation_against_generate(benchmark, case):
    compare_decoders(benchmark, case, generate)


@both
@pytest.mark.benchmark(group="self-speculative decoding against generate with an early exit")
def test_self_speculation_against_early_exit(benchmark, case):
    compare_decoders(benchmark, case, generate_with_early_exit)


@both
@pytest.mark.benchmark(group="plain greedy decoding against generate")
def test_plain_decoding_against_generate(benchmark, case):
    compare_decoders(benchmark, case, generate, ours=plain)


@both
@pytest.mark.benchmark(group="self-speculative decoding")
def test_self_speculation(benchmark, case):
    compare_decoders(benchmark, case, two_models)


@both
@pytest.mark.benchmark(group="positions run through a block per token, self-speculative decoding")
def test_self_speculation_work(benchmark, case):
    about = {"quantity": "positions through blocks, per token", "count": "block_tokens", "rounds": 1}
    compare_decoders(benchmark, case, two_models, **about)


@both
@pytest.mark.benchmark(group="self-speculative against plain greedy decoding")
def test_self_speculation_against_plain_decoding(benchmark, case):
    compare_decoders(benchmark, case, plain)


@both
@pytest.mark.benchmark(group="block calls per token, against plain greedy decoding")
def test_self_speculation_block_calls(benchmark, case):
    about = {"quantity": "block calls per token", "count": "block_calls", "rounds": 1}
    compare_decoders(benchmark, case, plain, **about)
