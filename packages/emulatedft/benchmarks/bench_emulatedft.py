"""emulatedft against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import json
from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from emulatedft import CachedModel, Delta, eft_generate, eft_logprobs, speculative_generate
from emulatedft.demo.model import CharacterModel

both = pytest.mark.parametrize("case", ["ours", "peer"])
NUM_TOKENS, VOCABULARY = 48, 256


@cache
def problem():
    """A small pair, and a large base that agrees with it on most tokens, as related models do.

    Its logits are those of the small reference and a little of a large untrained model, which costs what it costs.
    """
    generator = torch.Generator().manual_seed(0)
    small_ft, small = (CharacterModel(VOCABULARY, 1, 128, generator).eval() for _ in range(2))
    big = CharacterModel(VOCABULARY, 8, 512, generator).eval()

    def forward(new, cache):
        of_small, of_big = (None, None) if cache is None else cache
        small_logits, of_small = small.step(new, of_small)
        big_logits, of_big = big.step(new, of_big)
        return small_logits + 0.3 * big_logits, (of_small, of_big)

    def crop(cache, length):
        return tuple([(key[:, :, :length], value[:, :, :length]) for key, value in part] for part in cache)

    base = CachedModel(forward, crop)
    return base, Delta(small_ft.cached, small.cached), torch.randint(VOCABULARY, (1, 64), generator=generator)


def uncached(model):
    return lambda ids: model.forward(ids, None)[0]


def plain(seed=0):
    base, delta, prompt = problem()
    generator = torch.Generator().manual_seed(seed)
    return eft_generate(base, delta, prompt, max_new_tokens=NUM_TOKENS, generator=generator)


def speculative(seed=0, rule="coupled"):
    base, delta, prompt = problem()
    options = {"max_new_tokens": NUM_TOKENS, "generator": torch.Generator().manual_seed(seed)}
    return speculative_generate(base, delta, prompt, block=6, rule=rule, **options)


@torch.no_grad()
def three_forwards():
    """Three models decode in sequence with caches; their logits are added and a token is drawn, nothing else."""
    base, delta, prompt = problem()
    generator = torch.Generator().manual_seed(0)
    models, caches, new, tokens = (base, delta.ft, delta.ref), [None] * 3, prompt, []
    for _ in range(NUM_TOKENS):
        found = []
        for index, model in enumerate(models):
            logits, caches[index] = model.forward(new, caches[index])
            found.append(logits[:, -1])
        scores = found[0] + found[1] - found[2]
        noise = torch.empty_like(scores).exponential_(generator=generator)
        new = (scores - noise.log()).argmax(-1, keepdim=True)
        tokens.append(new)
    return torch.cat(tokens, dim=1)


@torch.no_grad()
def recomputed():
    """The same without caches."""
    base, delta, prompt = problem()
    models = [uncached(model) for model in (base, delta.ft, delta.ref)]
    generator, text = torch.Generator().manual_seed(0), prompt
    for _ in range(NUM_TOKENS):
        found = [model(text)[:, -1] for model in models]
        scores = found[0] + found[1] - found[2]
        noise = torch.empty_like(scores).exponential_(generator=generator)
        text = torch.cat([text, (scores - noise.log()).argmax(-1, keepdim=True)], dim=1)
    return text[:, prompt.shape[1] :]


@cache
def agree(peer):
    return torch.equal(plain().tokens, peer())


SIZE = f"base of 8 blocks, D = 512, small pair of 1 block, D = 128; {NUM_TOKENS} tokens after 64"


@both
@pytest.mark.benchmark(group="a step of emulation, against its three forward passes")
def test_overhead(benchmark, case):
    assert agree(three_forwards)
    benchmark.extra_info.update(case=case, peer="a bare loop over three cached models", size=SIZE)
    benchmark.pedantic({"ours": plain, "peer": three_forwards}[case], rounds=5, warmup_rounds=1)


@cache
def speculated():
    found = speculative()
    assert torch.equal(found.tokens, plain().tokens)
    return found


def about(found):
    return f"{SIZE}; {100 * found.accepted / found.drafted:.0f} % of blocks of 6 kept"


@both
@pytest.mark.benchmark(group="speculative up-scaling, coupled")
def test_speculation(benchmark, case):
    benchmark.extra_info.update(
        case=case, peer="plain up-scaling, one token at a time", size=about(speculated())
    )
    benchmark.pedantic({"ours": speculative, "peer": plain}[case], rounds=5, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="calls of the large model per token, speculative up-scaling")
def test_calls(benchmark, case):
    run = {"ours": speculative, "peer": plain}[case]
    benchmark.extra_info.update(
        case=case,
        peer="plain up-scaling, one token at a time",
        size=about(speculated()),
        quantity="calls of the large model per token",
        value=run().base_calls / NUM_TOKENS,
    )
    benchmark.pedantic(run, rounds=1)


@both
@pytest.mark.benchmark(group="decoding with caches for all models, against a loop that has none")
def test_caches(benchmark, case):
    assert agree(recomputed)
    benchmark.extra_info.update(case=case, peer="recomputing three models' whole text per token", size=SIZE)
    benchmark.pedantic({"ours": plain, "peer": recomputed}[case], rounds=2)


# --- likelihoods -----------------------------------------------------------------------------------

LONG, WIDE = 1024, 8192


@cache
def scoring_problem():
    generator = torch.Generator().manual_seed(0)
    base, ft, ref = (CharacterModel(WIDE, 1, 32, generator).eval().to(torch.bfloat16) for _ in range(3))
    return base, ft, ref, torch.randint(WIDE, (1, LONG), generator=generator)


def our_likelihoods():
    base, ft, ref, ids = scoring_problem()
    return eft_logprobs(base.cached, Delta(ft.cached, ref.cached), ids, chunk_tokens=128)[:, 1:]


@torch.no_grad()
def naive_likelihoods():
    base, ft, ref, ids = scoring_problem()
    logits, of_ft, of_ref = (model(ids)[:, :-1] for model in (base, ft, ref))
    change = of_ft.float().log_softmax(-1) - of_ref.float().log_softmax(-1)
    emulated = (logits.float() + change).log_softmax(-1)
    return emulated.gather(-1, ids[:, 1:, None])[..., 0]


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


@both
@pytest.mark.benchmark(group="peak memory of teacher-forced likelihoods")
def test_likelihood_memory(benchmark, case, tmp_path):
    # bfloat16 activations of chunks and of the whole text round differently.
    torch.testing.assert_close(our_likelihoods(), naive_likelihoods(), rtol=0.02, atol=0.05)
    run = {"ours": our_likelihoods, "peer": naive_likelihoods}[case]
    benchmark.extra_info.update(
        case=case,
        peer="three passes and float32 log-probabilities of the whole text",
        size=f"1 text of {LONG:,} tokens, V = {WIDE:,}, bfloat16 models",
        quantity="peak memory",
        value=peak_memory(run, tmp_path / "trace.json"),
    )
    benchmark.pedantic(run, rounds=1)
