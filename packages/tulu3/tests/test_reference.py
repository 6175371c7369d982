"""Numbers that come from somewhere else: naive loops, closed forms, torch's own functions, hand counts."""

import math
from fractions import Fraction

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from tulu3 import (
    CHAT_TEMPLATE,
    REGISTRY,
    Decontaminator,
    EvalScheme,
    ReferenceCache,
    as_trl_reward,
    assistant_mask,
    binarise,
    concatenate_pairs,
    gae,
    kl_penalty,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    preference_loss,
    render_chat,
    replace_unfinished_scores,
    rlvr_rewards,
    rollout_masks,
    sequence_logps,
    sft_loss,
    token_logps,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_labels(batch=3, length=7, vocabulary=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, (batch, length), generator=generator)
    labels[torch.rand(batch, length, generator=generator) < 0.4] = -100
    labels[:, -1] = 2
    return labels


# --- log-probabilities ---


def test_log_probabilities_and_gradients_are_those_of_a_log_softmax():
    logits, labels, weights = normal(3, 7, 5).requires_grad_(), some_labels(), normal(3, 6, seed=1)
    ours = token_logps(logits, labels, temperature=0.7)
    scaled = log_softmax(logits / (0.7 + 1e-7), -1)
    naive = torch.zeros(3, 6, dtype=torch.float64)
    for row in range(3):
        for step in range(6):
            if labels[row, step + 1] != -100:
                naive[row, step] = scaled[row, step, labels[row, step + 1]]
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=0)
    gradients = [
        torch.autograd.grad((found * weights).sum(), logits, retain_graph=True)[0] for found in (ours, naive)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    assert gradients[0][:, -1].abs().max() == 0


def test_many_chunks_are_as_one(monkeypatch):
    logits, labels = normal(3, 7, 5).requires_grad_(), some_labels()
    whole = torch.autograd.grad(token_logps(logits, labels).square().sum(), logits)[0]
    monkeypatch.setattr("tulu3.log_probs._CHUNK_ELEMENTS", 21)
    chunks = torch.autograd.grad(token_logps(logits, labels).square().sum(), logits)[0]
    torch.testing.assert_close(whole, chunks, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = normal(2, 5, 300, dtype=torch.float32).to(dtype).requires_grad_(), some_labels(2, 5, 300)
    found, expected = token_logps(logits, labels), token_logps(logits.detach().float(), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()
    assert logits.grad.dtype == dtype


def test_small_label_types_and_large_logits():
    labels = torch.tensor([[1, 2, 0]])
    logits = normal(1, 3, 5) + 1e6
    for kind in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(
            token_logps(logits, labels.to(kind)), token_logps(logits - 1e6, labels), rtol=0, atol=1e-8
        )


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch 2.4 loops over the copies
def test_log_probabilities_compile_and_vectorise():
    labels = some_labels(2, 6)
    compiled = torch.compile(lambda logits: token_logps(logits, labels), fullgraph=True, backend="eager")
    for size in (5, 8):
        logits = normal(2, 6, size).requires_grad_()
        torch.testing.assert_close(compiled(logits), token_logps(logits, labels))
    logits = normal(4, 2, 6, 5)
    per_copy = torch.func.vmap(torch.func.grad(lambda one: token_logps_inside(one, labels)))(logits)
    for index in range(4):
        one = logits[index].clone().requires_grad_()
        torch.testing.assert_close(
            per_copy[index], torch.autograd.grad(token_logps_inside(one, labels), one)[0]
        )


def token_logps_inside(logits, labels):
    return token_logps(logits, labels).square().sum()


def test_sequences_sum_and_average():
    logits, labels = normal(3, 7, 5), some_labels()
    tokens = token_logps(logits, labels)
    for row in range(3):
        count = sum(label != -100 for label in labels[row, 1:].tolist())
        total = sum(tokens[row].tolist())
        assert sequence_logps(logits, labels)[row].item() == pytest.approx(total, rel=1e-12)
        assert sequence_logps(logits, labels, average=True)[row].item() == pytest.approx(
            total / count, rel=1e-12
        )


def test_the_token_sum_loss_is_torchs_summed_cross_entropy_over_the_effective_batch():
    logits, labels = normal(3, 7, 5), some_labels()
    summed = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(sft_loss(logits, labels, 1), summed)
    torch.testing.assert_close(sft_loss({"logits": logits}, labels, torch.tensor(40)), summed / 40)
    mean = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(sft_loss(logits, labels), mean)


def test_a_micro_batch_that_supervises_nothing_adds_nothing():
    logits = normal(2, 4, 5).requires_grad_()
    loss = sft_loss(logits, torch.full((2, 4), -100), 12)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


# --- chat ---

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
WRITTEN = "<|system|>\nBe brief.\n<|user|>\nWhat is 1+1?\n<|assistant|>\nIt is 2.</s>\n"
WRITTEN += "<|user|>\n2+2?\n<|assistant|>\n4</s>"


def test_the_chat_format_is_as_the_paper_writes_it():
    assert render_chat(TURNS, "</s>") == WRITTEN
    assert render_chat(TURNS[:2], "</s>", add_generation_prompt=True).endswith("1+1?\n<|assistant|>\n")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_only_what_the_assistant_says_is_supervised(tokenizer, template):
    tokenizer.chat_template = template
    try:
        found = assistant_mask(TURNS, tokenizer)
        cut = assistant_mask(TURNS, tokenizer, max_length=30)
    finally:
        tokenizer.chat_template = CHAT_TEMPLATE
    assert "".join(tokenizer.convert_ids_to_tokens(found.input_ids.tolist())) == WRITTEN
    said = "".join(tokenizer.convert_ids_to_tokens(found.input_ids[found.mask].tolist()))
    assert said == "It is 2.</s>4</s>"
    assert found.labels[~found.mask].unique().tolist() == [-100]
    assert torch.equal(found.labels[found.mask], found.input_ids[found.mask])
    assert torch.equal(cut.mask, found.mask[:30])


def test_the_jinja_template_writes_what_python_writes(tokenizer):
    for stop in range(1, 6):
        for opened in (False, True):
            theirs = tokenizer.apply_chat_template(TURNS[:stop], tokenize=False, add_generation_prompt=opened)
            assert theirs == render_chat(TURNS[:stop], "</s>", add_generation_prompt=opened)


def test_a_template_that_rewrites_history_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        with pytest.raises(ValueError, match="chat template must write turn 2 alike"):
            assistant_mask(TURNS, tokenizer)
    finally:
        tokenizer.chat_template = CHAT_TEMPLATE


# --- preferences ---


def sigmoid_loss(x, smoothing=0.0):
    return -(1 - smoothing) * math.log(1 / (1 + math.exp(-x))) - smoothing * math.log(1 / (1 + math.exp(x)))


PC, PR, RC, RR = (
    torch.tensor(values, dtype=torch.float64)
    for values in ([-1.2, -3.0], [-1.5, -2.1], [-1.4, -2.8], [-1.1, -2.2])
)


@pytest.mark.parametrize("kind", ["dpo", "dpo_norm"])
@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (5.0, 0.2)])
def test_direct_preference_optimisation_by_hand(kind, beta, smoothing):
    found = preference_loss(PC, PR, RC, RR, kind=kind, beta=beta, label_smoothing=smoothing, reduction="none")
    for row in range(2):
        delta = (PC[row] - PR[row] - (RC[row] - RR[row])).item()
        assert found.loss[row].item() == pytest.approx(sigmoid_loss(beta * delta, smoothing), rel=1e-12)
        assert found.chosen_reward[row].item() == pytest.approx(beta * (PC[row] - RC[row]).item(), rel=1e-12)
        assert found.rejected_reward[row].item() == pytest.approx(
            beta * (PR[row] - RR[row]).item(), rel=1e-12
        )
        assert found.margin[row].item() == pytest.approx(beta * delta, rel=1e-12)
    mean = preference_loss(PC, PR, RC, RR, kind=kind, beta=beta, label_smoothing=smoothing)
    assert mean.loss.item() == pytest.approx(found.loss.mean().item(), rel=1e-12)


def test_the_defaults_are_the_papers():
    delta = PC - PR - (RC - RR)
    for kind, beta in (("dpo_norm", 5.0), ("dpo", 0.1)):
        found = preference_loss(PC, PR, RC, RR, kind=kind)
        assert found.loss.item() == pytest.approx(sum(sigmoid_loss(beta * d) for d in delta.tolist()) / 2)
    assert preference_loss(PC, PR, RC, RR).loss == preference_loss(PC, PR, RC, RR, kind="dpo_norm").loss


def test_simpo_by_hand():
    found = preference_loss(PC, PR, kind="simpo", beta=2.5, gamma_beta_ratio=0.4, reduction="none")
    for row in range(2):
        expected = sigmoid_loss(2.5 * ((PC[row] - PR[row]).item() - 0.4))
        assert found.loss[row].item() == pytest.approx(expected, rel=1e-12)
        assert found.chosen_reward[row].item() == pytest.approx(2.5 * PC[row].item())


def test_wpo_by_hand_and_its_weight_is_no_path_for_gradients():
    lengths = torch.tensor([3, 5]), torch.tensor([2, 7])
    pc, pr = PC.clone().requires_grad_(), PR.clone().requires_grad_()
    found = preference_loss(pc, pr, RC, RR, kind="wpo", beta=0.3, lengths=lengths, reduction="none")
    dpo = preference_loss(pc, pr, RC, RR, kind="dpo", beta=0.3, reduction="none")
    weight = [
        math.exp(PC[row].item() / lengths[0][row].item() + PR[row].item() / lengths[1][row].item())
        for row in range(2)
    ]
    assert all(0 < share < 1 for share in weight)
    torch.testing.assert_close(found.loss, dpo.loss * torch.tensor(weight, dtype=torch.float64))
    for ours, plain in zip(
        torch.autograd.grad(found.loss.sum(), (pc, pr)),
        torch.autograd.grad(dpo.loss.sum(), (pc, pr)),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain * torch.tensor(weight, dtype=torch.float64))
    likely = preference_loss(-PC, -PR, RC, RR, kind="wpo", lengths=lengths)
    torch.testing.assert_close(likely.loss, preference_loss(-PC, -PR, RC, RR, kind="dpo").loss)


def test_rewards_are_for_logging_and_references_are_constant():
    leaves = [value.clone().requires_grad_() for value in (PC, PR, RC, RR)]
    found = preference_loss(*leaves)
    assert not any(logged.requires_grad for logged in found[1:])
    found.loss.backward()
    assert [leaf.grad is None for leaf in leaves] == [False, False, True, True]


def test_pairs_of_rated_completions():
    ratings = torch.tensor(
        [
            [[5, 4, 3, 4], [4, 4, 4, 4], [1, 1, 1, 1], [2, 1, 1, 1]],
            [[3, 3, 3, 3], [2, 4, 3, 3], [1, 5, 3, 3], [3, 3, 2, 4]],
        ]
    )
    pairs = binarise(ratings.repeat(200, 1, 1), generator=torch.Generator().manual_seed(0))
    chosen, rejected = pairs.chosen.view(200, 2), pairs.rejected.view(200, 2)
    assert pairs.kept.view(200, 2).tolist() == [[True, False]] * 200
    assert chosen[:, 1].unique().tolist() == rejected[:, 1].unique().tolist() == [-1]
    # Completions 0 and 1 share the highest mean; 2 and 3 lie below it. Each has half of 200, within 4 deviations.
    for found, options in ((chosen[:, 0], [0, 1]), (rejected[:, 0], [2, 3])):
        assert found.unique().tolist() == options
        assert abs((found == options[0]).sum().item() - 100) < 4 * math.sqrt(50)
    again = binarise(ratings.repeat(200, 1, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pairs.chosen, again.chosen)


def test_one_batch_of_both_halves():
    chosen = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "attention_mask": torch.ones(1, 3),
        "labels": torch.tensor([[-100, 2, 3]]),
    }
    rejected = {
        "input_ids": torch.tensor([[4, 5]]),
        "attention_mask": torch.ones(1, 2),
        "labels": torch.tensor([[-100, 5]]),
    }
    both = concatenate_pairs(chosen, rejected, pad_id=9)
    assert both["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert both["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert both["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100]]


def test_the_reference_cache_survives_a_file(tmp_path):
    cache = ReferenceCache(4, average=True, fingerprint="model A")
    cache.put(
        torch.tensor([3, 1]), torch.tensor([-0.5, -1.5], requires_grad=True), torch.tensor([-2.5, -3.5])
    )
    assert cache.missing.tolist() == [0, 2]
    cache.save(tmp_path / "reference.safetensors")
    read = ReferenceCache.load(tmp_path / "reference.safetensors", average=True, fingerprint="model A")
    chosen, rejected = read.get(torch.tensor([1, 3]))
    assert (chosen.tolist(), rejected.tolist()) == ([-1.5, -0.5], [-3.5, -2.5])
    assert (len(read), read.missing.tolist()) == (4, [0, 2])
    for wrong in ({"average": False, "fingerprint": "model A"}, {"average": True, "fingerprint": "model B"}):
        with pytest.raises(ValueError, match="must be the file's"):
            ReferenceCache.load(tmp_path / "reference.safetensors", **wrong)


# --- reinforcement learning ---


def test_a_rollout_by_hand():
    responses = torch.tensor(
        [
            [5, 2, 7, 7, 7],
            [5, 6, 7, 8, 2],
            [5, 6, 7, 8, 9],
            [5, 0, 0, 0, 0],
            [2, 2, 2, 2, 2],
            [4, 0, 3, 2, 0],
            [0, 0, 0, 0, 0],
        ]
    )
    found = rollout_masks(responses, [2, 3], 0)
    assert found.lengths.tolist() == [1, 4, 4, 0, 0, 2, 0]
    assert found.has_stop.tolist() == [True, True, False, False, True, True, False]
    assert found.responses.tolist()[0] == [5, 2, 0, 0, 0]
    assert found.responses.tolist()[5] == [4, 0, 3, 0, 0]
    assert found.policy_mask.sum(1).tolist() == [2, 5, 5, 1, 1, 3, 1]
    assert found.value_mask.sum(1).tolist() == [3, 5, 5, 2, 2, 4, 2]
    same = rollout_masks(responses[:3], 2, pad_id=2)  # the stop token pads, too
    assert same.lengths.tolist() == [1, 4, 4]
    assert replace_unfinished_scores(torch.tensor([10.0, 0.0, 10.0]), found.has_stop[:3]).tolist() == [
        10,
        0,
        -10,
    ]


def test_divergences_and_rewards_by_hand():
    logps = torch.tensor([[-1.0, -2.0, -0.5, -9.0], [-1.0, -2.0, -0.5, -0.1]], dtype=torch.float64)
    ref = torch.tensor([[-1.5, -1.2, -0.9, -1.0], [-1.1, -2.2, -0.1, -0.9]], dtype=torch.float64)
    scores, lengths = torch.tensor([10.0, -10.0], dtype=torch.float64), torch.tensor([1, 3])
    for kind, formula in {
        "kl1": lambda d: d,
        "kl2": lambda d: d * d / 2,
        "kl3": lambda d: math.exp(-d) - 1 + d,
    }.items():
        found = rlvr_rewards(logps, ref, scores, lengths, beta=0.3, kl=kind)
        expected = [[0.0] * 4 for _ in range(2)]
        for row in range(2):
            for step in range(lengths[row].item() + 1):
                expected[row][step] = -0.3 * formula((logps[row, step] - ref[row, step]).item())
        expected[0][2] += 10.0  # just after the last token
        expected[1][3] += -10.0  # no step is left after it
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)
        assert kl_penalty(logps, ref, kind)[0, 0].item() == pytest.approx(formula(0.5))
    poisoned = logps.clone()
    poisoned[0, 2:] = float("-inf")  # padding may hold anything
    torch.testing.assert_close(
        rlvr_rewards(poisoned, ref, scores, lengths), rlvr_rewards(logps, ref, scores, lengths)
    )


def reverse_loop(rewards, values, mask, gamma, lam):
    rewards, values = rewards * mask, values * mask
    advantages, after = torch.zeros_like(rewards), torch.zeros(len(rewards), dtype=rewards.dtype)
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] if step + 1 < rewards.shape[1] else 0.0
        after = rewards[:, step] + gamma * following - values[:, step] + gamma * lam * after
        advantages[:, step] = after
    return advantages * mask, (advantages + values) * mask


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 200, 4200])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_by_blocks_are_those_of_the_loop(length, gamma, lam):
    rewards, values = normal(3, length), normal(3, length, seed=1)
    mask = normal(3, length, seed=2) > -0.5
    found, expected = (
        gae(rewards, values, mask, gamma=gamma, lam=lam),
        reverse_loop(rewards, values, mask, gamma, lam),
    )
    torch.testing.assert_close(found.advantages, expected[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.returns, expected[1], rtol=1e-9, atol=1e-10)


def test_advantages_compile():
    compiled = torch.compile(lambda *inputs: gae(*inputs), fullgraph=True, backend="eager")
    for length in (5, 70):
        inputs = normal(2, length), normal(2, length, seed=1), torch.ones(2, length, dtype=torch.bool)
        torch.testing.assert_close(compiled(*inputs).advantages, gae(*inputs).advantages)


def test_one_stop_token_or_several_of_any_integer_type():
    responses = torch.tensor([[5, 2, 7, 3]], dtype=torch.uint8)
    for stops, length in ((torch.tensor(7), 2), (torch.tensor([7, 2]), 1), ([300, 3], 3)):
        assert rollout_masks(responses, stops, 0).lengths.tolist() == [length]
    numpy = pytest.importorskip("numpy")
    assert rollout_masks(responses, numpy.int64(2), 0).lengths.tolist() == [1]


def test_gradients_reach_the_trained_network_alone():
    mask = torch.ones(1, 3, dtype=torch.bool)
    new, old, third = torch.tensor(
        [[[0.1, 0.2, 0.3]], [[0.15, 0.1, 0.25]], [[1.0, -2.0, 3.0]]]
    ).requires_grad_()
    for loss in (ppo_policy_loss(new, old, third, mask).loss, ppo_value_loss(new, old, third, mask)):
        reached = torch.autograd.grad(loss, (new, old, third), allow_unused=True)
        assert [gradient is not None for gradient in reached] == [True, False, False]
    assert not any(result.requires_grad for result in gae(new, old, mask))


def test_what_stands_at_padding_reaches_no_gradient():
    mask, nan = torch.tensor([[True, True, False]]), float("nan")
    values = torch.tensor([[1.0, 2.0, nan]], requires_grad=True)
    zeros, ones = torch.zeros(1, 3), torch.ones(1, 3)
    value_loss = ppo_value_loss(values, zeros, ones, mask, clip=5.0)  # (0 + 1) / 4
    assert (value_loss.item(), torch.autograd.grad(value_loss, values)[0].tolist()) == (0.25, [[0, 0.5, 0]])
    policy_loss = ppo_policy_loss(values, values.detach(), ones, mask).loss
    assert torch.autograd.grad(policy_loss, values)[0].tolist() == [[-0.5, -0.5, 0]]


def test_whitening_by_hand():
    values = torch.tensor([[1.0, 2.0, 77.0], [5.0, 88.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, deviation = 8 / 3, math.sqrt(13 / 3)  # of 1, 2, 5; the variance is unbiased
    expected = (
        torch.tensor([[1 - mean, 2 - mean, 0.0], [5 - mean, 0.0, 0.0]], dtype=torch.float64) / deviation
    )
    torch.testing.assert_close(masked_whiten(values, mask), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        masked_whiten(values, mask, shift_mean=False),
        torch.where(mask, expected + mean, 0.0),
        rtol=1e-7,
        atol=0,
    )


def test_ppos_losses_by_hand():
    new = torch.tensor([[-1.0, -1.0, -1.0, -1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.1, -1.5, -0.5, -1.5, 7.0]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, 3.0, -4.0, -5.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    found = ppo_policy_loss(new, old, advantages, mask)
    terms = [
        -2 * math.exp(0.1),
        -3 * 1.2,
        4 * 0.8,
        5 * math.exp(0.5),
    ]  # within, clipped, clipped, not clipped
    assert found.loss.item() == pytest.approx(sum(terms) / 4, rel=1e-12)
    assert found.approx_kl.item() == pytest.approx(0.5 * (0.01 + 0.25 + 0.25 + 0.25) / 4, rel=1e-12)
    assert found.clip_fraction.item() == pytest.approx(0.5)
    gradient = torch.autograd.grad(found.loss, new)[0][0].tolist()
    assert gradient == pytest.approx([terms[0] / 4, 0, 0, terms[3] / 4, 0], rel=1e-12)

    values = torch.tensor([[0.1, 0.9, -0.9, 0.3, 50.0]], dtype=torch.float64)
    before, returns = (
        torch.zeros(1, 5, dtype=torch.float64),
        torch.tensor([[1.0, 1.0, -0.8, -1.0, 0.0]], dtype=torch.float64),
    )
    worst = [0.9**2, max(0.1**2, 0.8**2), max(0.1**2, 0.6**2), max(1.3**2, 1.2**2)]
    assert ppo_value_loss(values, before, returns, mask).item() == pytest.approx(sum(worst) / 8, rel=1e-12)


# --- decontamination ---


def naive_scores(train, test, n):
    found = []
    for fields in test:
        rows = []
        for document in train:
            words = document.split()
            known = {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}
            shares = []
            for field in [fields] if isinstance(fields, str) else fields:
                asked = field.split()
                covered = {
                    place
                    for start in range(len(asked) - n + 1)
                    if tuple(asked[start : start + n]) in known
                    for place in range(start, start + n)
                }
                shares.append(Fraction(len(covered), len(asked)))
            rows.append(float(sum(shares) / len(shares)))
        found.append(rows)
    return torch.tensor(found, dtype=torch.float64)


def random_texts(count, words, generator, alphabet=4):
    lengths = torch.randint(1, words, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{int(word)}" for word in torch.randint(alphabet, (length,), generator=generator))
        for length in lengths
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("most", "multiplier"), [(1 << 21, 0x5851F42D4C957F2D), (8, 0x5851F42D4C957F2D), (64, 0)]
)
def test_scores_are_those_of_a_naive_search(monkeypatch, n, most, multiplier):
    monkeypatch.setattr("tulu3._ngrams._MOST_HITS", most)
    # With a multiplier of 0 all n-grams with the same last word collide.
    monkeypatch.setattr("tulu3._ngrams._MULTIPLIER", multiplier)
    generator = torch.Generator().manual_seed(n)
    train, fields = random_texts(30, 25, generator), random_texts(40, 20, generator)
    test = [*fields[:20], *zip(fields[20:30], fields[30:], strict=True)]
    report = Decontaminator(n, 0.6).index(train).score(test)
    expected = naive_scores(train, test, n)
    torch.testing.assert_close(report.scores, expected.amax(1), rtol=1e-12, atol=0)
    matched = {(i, j) for i, j in zip(report.test_index.tolist(), report.train_index.tolist(), strict=True)}
    assert matched == {tuple(pair) for pair in (expected > 0.6).nonzero().tolist()}
    for row, nearest in enumerate(report.nearest.tolist()):
        assert (nearest == -1) == (expected[row].max() == 0)
        assert nearest == -1 or expected[row, nearest] == expected[row].max()
    short = [min(len(text.split()) for text in ([one] if isinstance(one, str) else one)) < n for one in test]
    assert report.too_short.tolist() == short


def test_whole_strings_are_found_wherever_they_stand():
    generator = torch.Generator().manual_seed(0)
    train, test = random_texts(40, 30, generator), random_texts(60, 6, generator)
    report = Decontaminator(mode="exact").index(train).score(test)
    expected = [[f" {question} " in f" {document} " for document in train] for question in test]
    assert report.scores.tolist() == [float(any(row)) for row in expected]
    matched = {(i, j) for i, j in zip(report.test_index.tolist(), report.train_index.tolist(), strict=True)}
    assert matched == {(i, j) for i, row in enumerate(expected) for j, yes in enumerate(row) if yes}
    assert 0 < report.share < 1
    both = Decontaminator(mode="exact").index(["a b c d", "a b", "c d"]).score([["a b", "c d"], ["a b", "x"]])
    assert (both.nearest.tolist(), both.scores.tolist()) == ([0, -1], [1, 0])


def test_users_turns_alone_are_indexed_and_ngrams_do_not_cross_them():
    talk = [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "seven eight nine ten"},
        {"role": "user", "content": "four five six"},
    ]
    for document in (talk, {"messages": talk, "id": 3}):
        report = (
            Decontaminator(3)
            .index([document])
            .score(["one two THREE, four!", "seven eight nine", "two three four"])
        )
        assert report.scores.tolist() == [0.75, 0, 0]


def test_the_way_back_to_the_training_set():
    train = [
        "clean words here now",
        "the copied question itself",
        "other clean words too",
        "the copied question itself and more",
    ]
    decontaminator = Decontaminator(3).index(train[:2]).index(train[2:])
    report = decontaminator.score(["the copied question itself"] + ["nothing at all like it"] * 49)
    assert (report.kept.tolist(), report.remove(train)) == ([0, 2], [train[0], train[2]])
    assert (report.share, report.is_contaminated) == (0.02, False)  # not more than 2 %
    assert decontaminator.score(
        ["the copied question itself"] + ["nothing at all like it"] * 48
    ).is_contaminated


# --- evaluation ---


def test_averages_gaps_and_agreement():
    names = ("a", "b", "c", "d")
    models = {
        name: {"x": float(x), "y": float(y), "u": float(u), "v": 0.0}
        for name, x, y, u in zip(names, (1, 2, 3, 4), (3, 2, 5, 6), (1, 2, 2, 9), strict=True)
    }
    scheme = EvalScheme(
        {"x": lambda model: model["x"], "y": lambda model: model["y"]},
        {"u": lambda model: model["u"], "v": lambda model: model["v"]},
        {"all": (["x", "y"], ["u", "v"]), "half": (["x"], [])},
    )
    for name, model in models.items():
        scheme.develop(name, model)
    assert scheme.average("c") == 4
    report = scheme.final(models)
    assert report.dev == {"a": 2.0, "b": 2.0, "c": 4.0, "d": 5.0}
    assert report.unseen == {"a": 0.5, "b": 1.0, "c": 1.0, "d": 4.5}
    assert report.gaps["d"] == {"all": 0.5}
    # Six pairs: (a,b) tied in dev, (b,c) tied in unseen, the other four agree: 4 / sqrt(5 * 5).
    assert report.rank_agreement == pytest.approx(4 / 5)


def test_the_lock_survives_a_file(tmp_path):
    looks = []
    scheme = EvalScheme(
        {"x": lambda model: model}, {"u": lambda model: looks.append(model) or model}, {"s": (["x"], ["u"])}
    )
    scheme.develop("only", 3.0)
    scheme.save(tmp_path / "open.json")
    assert scheme.final({"only": 3.0}).rank_agreement is None
    scheme.save(tmp_path / "closed.json")
    for path, locked in (("open.json", True), ("closed.json", False)):
        again = EvalScheme({"x": float}, {"u": float}, {})
        again.load(tmp_path / path)
        assert again.locked is locked
    with pytest.raises(RuntimeError, match="looked at once"):
        again.final({"only": 3.0})
    with pytest.raises(RuntimeError, match="development is over"):
        again.develop("more", 1.0)
    assert looks == [3.0]


# --- verifiers in trainers ---


def test_rewards_add_up_and_scale():
    reward = as_trl_reward({"gsm8k": REGISTRY["gsm8k"](), "ifeval": REGISTRY["ifeval"]()}, scale=3.0)
    brackets = {"func_name": "validate_placeholders", "N": 1, "word": None}
    rows = {
        "dataset": ["gsm8k", ["gsm8k", "ifeval"], ["ifeval"]],
        "ground_truth": ["4", ["4", brackets], [brackets]],
    }
    texts = ["is 4", "[4]", [{"role": "assistant", "content": "no"}, {"role": "tool", "content": "[x]"}]]
    assert reward(prompts=["?"] * 3, completions=texts, completion_ids=None, trainer_state=None, **rows) == [
        3,
        6,
        0,
    ]
    assert brackets == {"func_name": "validate_placeholders", "N": 1, "word": None}
    parts = [
        [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "4"}],
            }
        ],
        [{"role": "assistant", "content": None}],
    ]
    assert as_trl_reward(REGISTRY["gsm8k"](), label_field="answer")(completions=parts, answer=[4, 4]) == [
        10,
        0,
    ]
