"""What must hold for all inputs."""

import re
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tulu3 import (
    Decontaminator,
    Gsm8kVerifier,
    MathVerifier,
    gae,
    kl_penalty,
    masked_whiten,
    ppo_policy_loss,
    preference_loss,
    rlvr_rewards,
    sequence_logps,
    sft_loss,
)
from tulu3.verifiers.answers import last_boxed
from tulu3.verifiers.latex import parse, rational

seeds = st.integers(0, 10_000)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_mask(*shape, seed=0):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, :2] = True
    return mask


# --- preferences ---


@given(seed=seeds, repeats=st.integers(2, 4))
def test_the_length_normalised_loss_sees_means_only(seed, repeats):
    """Every token said several times with the same log-probability: `dpo_norm` stays, `dpo` does not."""
    logits, labels = (
        normal(4, 5, 6, seed=seed),
        torch.randint(6, (4, 5), generator=torch.Generator().manual_seed(seed)),
    )
    ref = logits + normal(4, 5, 6, seed=seed + 1)
    # Logits at t predict label t + 1: both are repeated from there on.
    longer = [torch.cat([one[:, :-1].repeat_interleave(repeats, 1), one[:, -1:]], 1) for one in (logits, ref)]
    said = torch.cat([labels[:, :1], labels[:, 1:].repeat_interleave(repeats, 1)], 1)

    def loss(policy, reference, tokens, kind):
        average = kind == "dpo_norm"
        scores = [sequence_logps(one, tokens, average).chunk(2) for one in (policy, reference)]
        return preference_loss(*scores[0], *scores[1], kind=kind, beta=1.0, reduction="none").loss

    torch.testing.assert_close(loss(logits, ref, labels, "dpo_norm"), loss(*longer, said, "dpo_norm"))
    assert not torch.allclose(loss(logits, ref, labels, "dpo"), loss(*longer, said, "dpo"))


@given(seed=seeds, beta=st.floats(0.01, 50), kind=st.sampled_from(["dpo", "dpo_norm"]))
def test_a_policy_that_is_its_reference_loses_log_two_and_both_orders_are_all_there_is(seed, beta, kind):
    pc, pr, rc, rr = normal(4, 3, seed=seed)
    same = preference_loss(pc, pr, pc, pr, kind=kind, beta=beta, reduction="none").loss
    torch.testing.assert_close(same, torch.full((3,), 2.0, dtype=torch.float64).log())
    forward = preference_loss(pc, pr, rc, rr, kind=kind, beta=beta, reduction="none").loss
    backward = preference_loss(pr, pc, rr, rc, kind=kind, beta=beta, reduction="none").loss
    torch.testing.assert_close((-forward).exp() + (-backward).exp(), torch.ones(3, dtype=torch.float64))


# --- supervised fine-tuning ---


@given(seed=seeds, cut=st.integers(1, 4))
def test_micro_batches_have_the_gradient_of_the_whole_batch(seed, cut):
    weight = normal(4, 6, seed=seed).requires_grad_()
    states = normal(5, 7, 4, seed=seed + 1)
    labels = torch.randint(6, (5, 7), generator=torch.Generator().manual_seed(seed))
    labels[some_mask(5, 7, seed=seed)] = -100
    labels[1, 3] = 2
    labels[0, 1:] = -100  # a row, and with cut = 1 a micro-batch, that supervises nothing
    total = (labels[:, 1:] != -100).sum()
    whole = torch.autograd.grad(sft_loss(states @ weight, labels), weight)[0]
    parts = [sft_loss(states[rows] @ weight, labels[rows], total) for rows in (slice(0, cut), slice(cut, 5))]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), weight)[0], whole)


# --- reinforcement learning ---


@given(seed=seeds, length=st.integers(1, 150))
def test_undiscounted_advantages_without_values_are_what_is_still_to_come(seed, length):
    rewards, mask = normal(2, length, seed=seed), torch.ones(2, length, dtype=torch.bool)
    found = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(found.advantages, to_come)
    values = normal(2, length, seed=seed + 1)
    torch.testing.assert_close(gae(rewards, values, mask, gamma=1.0, lam=1.0).returns, to_come)


@given(seed=seeds, offset=st.sampled_from([0.0, 1e4, -1e6]))
def test_whitened_advantages_have_mean_zero_and_variance_one(seed, offset):
    mask = some_mask(3, 9, seed=seed)
    found = masked_whiten(normal(3, 9, seed=seed) + offset, mask)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-9)
    assert found[mask].var().item() == pytest.approx(1, rel=1e-6)
    assert (found[~mask] == 0).all()


@given(seed=seeds)
def test_before_the_first_step_ppos_gradient_is_the_policy_gradient(seed):
    logps, advantages, mask = (
        normal(3, 5, seed=seed).requires_grad_(),
        normal(3, 5, seed=seed + 1),
        some_mask(3, 5, seed=seed),
    )
    found = ppo_policy_loss(logps, logps, advantages, mask)
    vanilla = -(logps * advantages * mask).sum() / mask.sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, logps)[0] for loss in (found.loss, vanilla)))
    assert (found.approx_kl, found.clip_fraction) == (0, 0)


@given(seed=seeds, beta=st.floats(0, 2), kind=st.sampled_from(["kl1", "kl2", "kl3"]))
def test_the_score_is_paid_once_and_divergence_at_every_token(seed, beta, kind):
    logps, ref, scores = normal(4, 6, seed=seed), normal(4, 6, seed=seed + 1), normal(4, seed=seed + 2) * 10
    lengths = torch.randint(6, (4,), generator=torch.Generator().manual_seed(seed))
    rewards = rlvr_rewards(logps, ref, scores, lengths, beta=beta, kl=kind)
    real = torch.arange(6) <= lengths[:, None]
    paid = beta * (kl_penalty(logps, ref, kind) * real).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - paid)
    without = rlvr_rewards(logps, ref, torch.zeros_like(scores), lengths, beta=beta, kl=kind)
    assert ((rewards - without).abs() > 1e-12).sum(1).tolist() == [1] * 4


@given(difference=st.floats(-30, 30))
def test_the_third_estimate_of_the_divergence_is_never_negative(difference):
    found = kl_penalty(
        torch.tensor([[difference]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), "kl3"
    )
    assert found.item() >= 0
    assert (found.item() == 0) == (abs(difference) < 1e-7)


# --- verifiers ---

balanced = st.recursive(
    st.text(st.characters(blacklist_characters="{}\\$", blacklist_categories=("Cs",)), max_size=4),
    lambda inner: st.lists(inner | inner.map(lambda text: "{" + text + "}"), max_size=3).map("".join),
    max_leaves=8,
)


@given(inside=balanced, before=st.text(max_size=10).filter(lambda text: "\\" not in text))
def test_taking_an_answer_out_of_its_box_inverts_boxing(inside, before):
    assert last_boxed(f"{before}\\boxed{{{inside}}} and more") == (inside.strip(), True)


@given(
    number=st.integers() | st.decimals(-(10**9), 10**9, places=3).map(str), space=st.text(" \n\t", max_size=3)
)
def test_a_sum_accepts_its_label_and_whitespace_is_nothing(number, space):
    for verifier in (Gsm8kVerifier(), Gsm8kVerifier(numeric=True), MathVerifier(symbolic=False)):
        assert verifier(f"{space}{number}{space}", str(number)) == 1


@given(number=st.integers(-(10**12), 10**12))
def test_separators_of_thousands_change_nothing(number):
    assert Gsm8kVerifier()(f"so {number:,}", str(number)) == 1
    assert MathVerifier(symbolic=False)(f"\\boxed{{{number:,}}}".replace(",", "{,}"), str(number)) == 1


@given(text=st.text(max_size=60) | st.text("\\{}^_$()[],./!|+-=0123456789abfcrsqtoxed &", max_size=60))
def test_whatever_a_model_writes_is_judged_and_not_raised(text):
    for output in (
        text,
        f"\\boxed{{{text}}}",
        f"Final Answer: The final answer is {text}. I hope it is correct.",
    ):
        assert MathVerifier(symbolic=False)(output, "never this") in (0, 1)
        assert Gsm8kVerifier(numeric=True)(output, "never this") in (0, 1)


@given(numerator=st.integers(-99, 99), denominator=st.integers(1, 99))
def test_fractions_are_read_exactly_in_every_spelling(numerator, denominator):
    sign, size = ("-" if numerator < 0 else ""), abs(numerator)
    for text in (
        f"{numerator}/{denominator}",
        f"{sign}\\frac{{{size}}}{{{denominator}}}",
        f"\\frac{{{numerator}}}{{{denominator}}}",
    ):
        found = rational(parse(text))
        assert (found.numerator * denominator, found.denominator > 0) == (numerator * found.denominator, True)


def expressions():
    sympy = pytest.importorskip("sympy")
    x, y = sympy.symbols("x y")
    leaves = st.sampled_from([x, y, sympy.pi, sympy.Rational(2, 3), sympy.Integer(5), sympy.sqrt(2)])

    def grow(inner):
        pairs = st.tuples(inner, inner)
        return (
            pairs.map(lambda two: two[0] + two[1])
            | pairs.map(lambda two: two[0] * two[1])
            | inner.map(lambda one: one**2)
            | inner.map(lambda one: sympy.sin(one) - 1)
        )

    return st.recursive(leaves, grow, max_leaves=4)


@given(data=st.data())
def test_what_sympy_writes_is_read_as_what_it_is(data):
    sympy = pytest.importorskip("sympy")
    from tulu3.verifiers.sympy_worker import build

    expression = data.draw(expressions())
    tree = parse(sympy.latex(expression).replace("\\left", "").replace("\\right", ""))
    x, y = sympy.symbols("x y")
    difference = (build(tree, sympy) - expression).subs({x: sympy.Rational(7, 5), y: sympy.Rational(-3, 4)})
    assert abs(sympy.N(difference)) < 1e-9


def test_symbolic_verdicts_come_from_threads_too(symbolic):
    verdicts = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(symbolic("\\boxed{(x+1)^2}", "x^2+2x+1")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [1, 1, 1, 1]


def test_what_takes_too_long_is_wrong_and_the_next_answer_is_judged_by_a_copy_too(symbolic, monkeypatch):
    import os
    import pickle
    import signal

    assert symbolic("\\boxed{(x+1)^2}", "x^2+2x+1") == 1
    copied = pickle.loads(pickle.dumps(symbolic))  # a verifier with a process at work
    assert (copied._comparer.symbolic, copied._comparer.timeout) == (True, 60)
    monkeypatch.setattr(copied._comparer, "_worker", symbolic._comparer._worker)
    os.kill(symbolic._comparer._worker._process.pid, signal.SIGSTOP)  # hangs, as sympy does on some answers
    copied._comparer.timeout = 0.01  # no answer comes in this time: the process is ended
    assert copied("\\boxed{(x+1)^2}", "x^2+2x+1") == 0
    assert symbolic("\\boxed{(x+1)^2}", "x^2+2x+1") == 1


# --- decontamination ---

words = st.lists(st.sampled_from("abcde"), min_size=3, max_size=12).map(" ".join)


@given(
    train=st.lists(words, min_size=1, max_size=6),
    test=st.lists(words, min_size=1, max_size=4),
    more=words,
    seed=seeds,
)
def test_scores_of_contamination(train, test, more, seed):
    def scores(documents, questions=test):
        return Decontaminator(3).index(documents).score(questions).scores

    before = scores(train)
    assert ((before >= 0) & (before <= 1)).all()
    assert (scores(train, train) == 1).all()  # a verbatim copy
    assert (scores([re.sub("[a-e]", "z", text) for text in train]) == 0).all()  # no shared n-gram
    assert (scores([*train, more]) >= before).all()
    assert (scores([f"{train[0]} {more}", *train[1:]]) >= before).all()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.equal(scores([train[index] for index in order]), before)
