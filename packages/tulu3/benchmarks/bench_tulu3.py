"""tulu3 against its natural peers: one group, exactly two cases, the same input, equal answers first."""

import itertools
import json
import random
from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid
from torch.profiler import ProfilerActivity, profile

from tulu3 import Decontaminator, Gsm8kVerifier, MathVerifier, gae, preference_loss, token_logps

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- log-probabilities -----------------------------------------------------------------------------


@cache
def logits_problem():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 128, 32_000, generator=generator, requires_grad=True)
    return logits, torch.randint(32_000, (2, 128), generator=generator)


def our_logps(logits, labels):
    return token_logps(logits, labels)


def torch_logps(logits, labels):
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    found = -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return found.view(labels.shape)[:, :-1]


def softmax_logps(logits, labels):
    return logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None])[..., 0]


def selected_logps(logits, labels):
    """As trl's `selective_log_softmax` does it for float32: rows one after the other."""
    chosen = logits[:, :-1].gather(-1, labels[:, 1:, None])[..., 0]
    return chosen - torch.stack([row.logsumexp(-1) for row in logits[:, :-1]])


LOGPS = {
    torch_logps: "torch's cross_entropy, not reduced",
    softmax_logps: "log_softmax and gather",
    selected_logps: "gather minus logsumexp, row by row, as in trl",
}


def with_gradient(compute):
    logits, labels = logits_problem()
    found = compute(logits, labels)
    return found, torch.autograd.grad(found.sum(), logits)[0]


@cache
def agree_on_logps(peer):
    for ours, theirs in zip(with_gradient(our_logps), with_gradient(peer), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def compare_logps(benchmark, case, peer, rounds=7, **about):
    agree_on_logps(peer)
    benchmark.extra_info.update(case=case, peer=LOGPS[peer], size="2 x 128 tokens, V = 32,000", **about)
    benchmark.pedantic(
        with_gradient, ({"ours": our_logps, "peer": peer}[case],), rounds=rounds, warmup_rounds=1
    )


@both
@pytest.mark.benchmark(group="log-probabilities and gradient")
def test_logps(benchmark, case):
    compare_logps(benchmark, case, torch_logps)


@both
@pytest.mark.benchmark(group="log-probabilities and gradient, as in trl")
def test_logps_of_trl(benchmark, case):
    compare_logps(benchmark, case, selected_logps)


@both
@pytest.mark.benchmark(group="peak extra memory of log-probabilities and gradient")
def test_logps_memory(benchmark, case, tmp_path):
    compute = {"ours": our_logps, "peer": torch_logps}[case]
    peak = peak_memory(lambda: with_gradient(compute), tmp_path / "trace.json")
    compare_logps(benchmark, case, torch_logps, rounds=1, quantity="peak memory", value=peak)


@both
@pytest.mark.benchmark(group="log-probabilities and gradient, naive")
def test_naive_logps(benchmark, case):
    compare_logps(benchmark, case, softmax_logps)


def peak_memory(run, path):
    """The most bytes that `run` holds at once beyond what was held before, by the allocator's own events."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = [
        event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"
    ]
    held = [event["args"]["Total Allocated"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(held) - (held[0] - events[0]["args"]["Bytes"])


# --- advantages ------------------------------------------------------------------------------------

GAMMA, LAM = 1.0, 0.95


@cache
def advantage_problem():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 64, 2048, generator=generator)
    return rewards, values, torch.ones(64, 2048, dtype=torch.bool)


def our_advantages(rewards, values, mask):
    return gae(rewards, values, mask, gamma=GAMMA, lam=LAM).advantages


def filtered(rewards, values, mask):
    """What spinning up and its heirs call: a recursive filter of scipy over the reversed errors."""
    from scipy.signal import lfilter

    errors = (rewards + GAMMA * torch.nn.functional.pad(values[:, 1:], (0, 1)) - values).numpy()
    found = lfilter([1.0], [1.0, -GAMMA * LAM], errors[:, ::-1], axis=1)[:, ::-1]
    return torch.from_numpy(found.copy()).float()


def one_product(rewards, values, mask):
    steps = torch.arange(rewards.shape[1])
    gaps = steps[:, None] - steps
    powers = torch.where(gaps >= 0, (GAMMA * LAM) ** gaps.clamp(min=0), 0.0)
    return (rewards + GAMMA * torch.nn.functional.pad(values[:, 1:], (0, 1)) - values) @ powers


def loop(rewards, values, mask):
    """The loop over time of the published PPO code."""
    after, found = torch.zeros(len(rewards)), []
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] if step + 1 < rewards.shape[1] else 0.0
        after = rewards[:, step] + GAMMA * following - values[:, step] + GAMMA * LAM * after
        found.append(after)
    return torch.stack(found[::-1], 1)


ADVANTAGES = {
    filtered: "scipy.signal.lfilter on the reversed errors",
    one_product: "one product with a triangular matrix",
    loop: "a loop over time, as in the published code",
}


@cache
def agree_on_advantages(peer):
    torch.testing.assert_close(
        our_advantages(*advantage_problem()), peer(*advantage_problem()), rtol=1e-3, atol=1e-3
    )


def compare_advantages(benchmark, case, peer):
    agree_on_advantages(peer)
    benchmark.extra_info.update(case=case, peer=ADVANTAGES[peer], size="64 responses of 2,048 tokens")
    run = {"ours": our_advantages, "peer": peer}[case]
    benchmark.pedantic(run, advantage_problem(), rounds=15, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="advantages")
def test_advantages(benchmark, case):
    compare_advantages(benchmark, case, filtered)


@both
@pytest.mark.benchmark(group="advantages, one product")
def test_advantages_by_one_product(benchmark, case):
    compare_advantages(benchmark, case, one_product)


@both
@pytest.mark.benchmark(group="advantages, loop over time")
def test_advantages_by_a_loop(benchmark, case):
    compare_advantages(benchmark, case, loop)


# --- preferences -----------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="length-normalised DPO loss of 64 pairs")
def test_preferences(benchmark, case):
    pc, pr, rc, rr = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))

    def as_in_trl():
        chosen, rejected = pc - rc, pr - rr
        loss = -logsigmoid(5.0 * (chosen - rejected)).mean()
        return loss, 5.0 * chosen, 5.0 * rejected, 5.0 * (chosen - rejected)

    def ours():
        return preference_loss(pc, pr, rc, rr, kind="dpo_norm", beta=5.0)

    torch.testing.assert_close(tuple(ours()), as_in_trl())
    benchmark.extra_info.update(case=case, peer="trl's lines, without checks", size="64 pairs")
    benchmark.pedantic({"ours": ours, "peer": as_in_trl}[case], rounds=200, warmup_rounds=5)


# --- decontamination -------------------------------------------------------------------------------

N = 8


@cache
def texts(num_documents, num_questions):
    """Documents of about sixty words; every fourth question has half a document in it."""
    lots = random.Random(0)
    words = [f"word{rank}" for rank in range(20_000)]
    often = list(itertools.accumulate(1 / (rank + 10) for rank in range(20_000)))
    documents = [lots.choices(words, cum_weights=often, k=lots.randint(40, 80)) for _ in range(num_documents)]
    questions = [lots.choices(words, cum_weights=often, k=40) for _ in range(num_questions)]
    for index in range(0, num_questions, 4):
        questions[index][5:30] = lots.choice(documents)[:25]
    return [" ".join(document) for document in documents], [" ".join(question) for question in questions]


def our_scores(documents, questions):
    return Decontaminator(N).index(documents).score(questions).scores.tolist()


def by_sets(documents, questions):
    """What one writes with a dictionary: the documents of every n-gram that a question has."""
    asked = [question.split() for question in questions]
    wanted = {tuple(words[i : i + N]) for words in asked for i in range(len(words) - N + 1)}
    where = {}
    for number, document in enumerate(documents):
        words = document.split()
        for i in range(len(words) - N + 1):
            gram = tuple(words[i : i + N])
            if gram in wanted:
                where.setdefault(gram, set()).add(number)
    best = []
    for words in asked:
        covered = {}
        for i in range(len(words) - N + 1):
            for number in where.get(tuple(words[i : i + N]), ()):
                covered.setdefault(number, set()).update(range(i, i + N))
        best.append(max((len(places) / len(words) for places in covered.values()), default=0.0))
    return best


def by_substrings(documents, questions):
    best = []
    for question in questions:
        words, most = question.split(), 0
        grams = [" ".join(words[i : i + N]) for i in range(len(words) - N + 1)]
        for document in documents:
            covered = {place for i, gram in enumerate(grams) if gram in document for place in range(i, i + N)}
            most = max(most, len(covered))
        best.append(most / len(words))
    return best


def compare_scores(benchmark, case, peer, name, documents, questions, rounds):
    given = texts(documents, questions)
    if case == "ours":  # once a group is enough
        assert our_scores(*given) == pytest.approx(peer(*given))
    size = f"{documents:,} documents of 60 words, {questions} questions"
    benchmark.extra_info.update(case=case, peer=name, size=size)
    benchmark.pedantic({"ours": our_scores, "peer": peer}[case], given, rounds=rounds)


@both
@pytest.mark.benchmark(group="decontamination, index and score")
def test_decontamination(benchmark, case):
    compare_scores(benchmark, case, by_sets, "a dictionary of n-grams", 100_000, 200, rounds=1)


@both
@pytest.mark.benchmark(group="decontamination of one more test set, indexed before")
def test_decontamination_again(benchmark, case):
    documents, questions = texts(100_000, 200)
    indexed = Decontaminator(N).index(documents)
    expected = indexed.score(questions).scores.tolist()
    if case == "ours":
        run = lambda: indexed.score(questions).scores.tolist()  # noqa: E731
    else:
        run = lambda: by_sets(documents, questions)  # noqa: E731
        assert run() == pytest.approx(expected)
    size = "100,000 documents of 60 words, 200 questions"
    benchmark.extra_info.update(case=case, peer="a dictionary of n-grams", size=size)
    benchmark.pedantic(run, rounds=1)


@both
@pytest.mark.benchmark(group="decontamination, naive substring search")
def test_naive_decontamination(benchmark, case):
    compare_scores(benchmark, case, by_substrings, "substring search", 10_000, 100, rounds=1)


# --- verifiers -------------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="verdicts on boxed answers, most of them wrong")
def test_verdicts(benchmark, case):
    import sympy

    answers = [f"\\boxed{{\\frac{{{n}}}{{7}}+\\sqrt{{{m}}}}}" for n in range(10) for m in (2, 3)]
    label, expected = "\\sqrt{2}+\\frac{3}{7}", [float((n, m) == (3, 2)) for n in range(10) for m in (2, 3)]
    verifier = MathVerifier()

    def ours():
        return [verifier(answer, label) for answer in answers]

    def simplified():
        wanted = sympy.sqrt(2) + sympy.Rational(3, 7)
        found = [sympy.Rational(n, 7) + sympy.sqrt(m) for n in range(10) for m in (2, 3)]
        return [float(sympy.simplify(answer - wanted) == 0) for answer in found]

    assert ours() == simplified() == expected
    benchmark.extra_info.update(
        case=case, peer="sympy's simplify alone, answers parsed before", size="20 answers"
    )
    benchmark.pedantic({"ours": ours, "peer": simplified}[case], rounds=20, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="verdicts on sums")
def test_verdicts_on_sums(benchmark, case):
    import re

    outputs = [f"First {n} and then {n + 1:,}. " * 20 + f"The answer is {n * 1000:,}." for n in range(200)]
    labels = [str(n * 1000) for n in range(200)]
    verifier = Gsm8kVerifier()

    def ours():
        return [verifier(output, label) for output, label in zip(outputs, labels, strict=True)]

    def published():
        found = []
        for output, label in zip(outputs, labels, strict=True):
            numbers = re.findall(r"[-+]?\d*\.\d+|[-+]?\d+", re.sub(r"(\d),(\d)", r"\1\2", output))
            found.append(float((numbers[-1] if numbers else output).lower() == label.lower()))
        return found

    assert ours() == published()
    benchmark.extra_info.update(case=case, peer="two regular expressions", size="200 outputs of 100 words")
    benchmark.pedantic({"ours": ours, "peer": published}[case], rounds=20, warmup_rounds=1)
