"""The same numbers from somewhere else: naive loops, exact probabilities, a smooth family of dtypes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from sortedft import (
    ExitHeads,
    default_thresholds,
    dynamic_generate,
    layer_report,
    sorted_loss,
    speculative_generate,
)

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def naive_loss(states, labels, norm, head, exits, scale=1.0, cap=None):
    """Equation 1 as it is written: all logits of one exit after the other."""
    losses = []
    for depth in exits:
        logits = head(norm(states[depth])) * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        losses.append(cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()))
    return torch.stack(losses)


def random_problem(dtype=torch.float32, bias=True, seed=0):
    """Six states, labels with holes, a norm and a head."""
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(3, 20, 16, generator=generator).to(dtype).requires_grad_() for _ in range(6)]
    labels = torch.randint(40, (3, 20), generator=generator)
    labels[torch.rand(3, 20, generator=generator) < 0.4] = -100
    norm, head = nn.RMSNorm(16), nn.Linear(16, 40, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return states, labels, norm.to(dtype), head.to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (0.5, 3.0)])
@pytest.mark.parametrize("chunk_tokens", [7, 2048])
def test_loss_and_gradients_are_those_of_the_naive_loop(bias, scale, cap, chunk_tokens):
    states, labels, norm, head = random_problem(bias=bias)
    exits, wanted = [1, 2, 5], [*states[1:3], states[5], *norm.parameters(), *head.parameters()]
    loss, per_exit = sorted_loss(
        states, labels, norm=norm, head=head, exits=exits, chunk_tokens=chunk_tokens, last_is_normed=False,
        logit_scale=scale, logit_softcap=cap, return_per_exit=True,
    )  # fmt: skip
    expected = naive_loss(states, labels, norm, head, exits, scale, cap)
    torch.testing.assert_close(per_exit, expected.detach())
    torch.testing.assert_close(loss, expected.mean())
    # A factor on the loss, as gradient accumulation puts it there.
    ours, theirs = torch.autograd.grad(loss / 8, wanted), torch.autograd.grad(expected.mean() / 8, wanted)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_normed_last_state_is_not_normed_again():
    states, labels, norm, head = random_problem()
    normed = [*states[:-1], norm(states[-1])]
    for exits in ([5], [2, 5], [2, 4]):
        ours = sorted_loss(normed, labels, norm=norm, head=head, exits=exits)
        torch.testing.assert_close(ours, naive_loss(states, labels, norm, head, exits).mean())


def test_a_tied_head_also_teaches_the_embedding():
    _, labels, norm, head = random_problem(bias=False)
    table = nn.Embedding(40, 16)
    table.weight = head.weight
    input_ids = labels.clamp_min(0)

    def states():
        return [table(input_ids), table(input_ids).tanh()]

    ours = sorted_loss(states(), labels, norm=norm, head=head, exits=[1], last_is_normed=False)
    theirs = naive_loss(states(), labels, norm, head, [1]).mean()
    gradients = [torch.autograd.grad(loss, table.weight)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_bfloat16_autocast_agrees_with_the_loop_under_autocast():
    states, labels, norm, head = random_problem()
    wanted = [states[2], head.weight]
    exact = torch.autograd.grad(naive_loss(states, labels, norm, head, [2, 5]).mean(), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = sorted_loss(states, labels, norm=norm, head=head, exits=[2, 5], last_is_normed=False)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, naive_loss(states, labels, norm, head, [2, 5]).mean(), rtol=1e-2, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, wanted), exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()


def test_gradients_of_a_large_batch_survive_half_precision():
    """One part of a million per token would be zero in float16 before the scaler's factor reaches it."""
    states, labels, norm, head = random_problem(torch.float16)
    exact = random_problem()
    loss = sorted_loss(
        states, labels, norm=norm, head=head, exits=[5], num_items_in_batch=10**6, last_is_normed=False
    )
    ours = torch.autograd.grad(loss * 2.0**16, [states[5], head.weight])
    states, labels, norm, head = exact
    count = int((labels[:, 1:] != -100).sum())
    expected = naive_loss(states, labels, norm, head, [5]).sum() * count / 10**6 * 2.0**16
    for mine, other in zip(ours, torch.autograd.grad(expected, [states[5], head.weight]), strict=True):
        assert (mine.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # the tracer of torch 2.4 does so
def test_torch_compile_changes_nothing():
    states, labels, norm, head = random_problem()
    compiled = torch.compile(sorted_loss, backend="eager")
    options = {"norm": norm, "head": head, "exits": [2, 5]}
    ours, theirs = compiled(states, labels, **options), sorted_loss(states, labels, **options)
    torch.testing.assert_close(ours, theirs)
    pairs = zip(*(torch.autograd.grad(loss, head.weight) for loss in (ours, theirs)), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other)


def test_heads_of_their_own_start_as_the_shared_one_and_learn_alone():
    states, labels, norm, head = random_problem()
    heads = ExitHeads(head, [2, 3])
    before = head.weight.clone()
    shared = sorted_loss(states, labels, norm=norm, head=head, exits=[2])
    own = sorted_loss(states, labels, norm=norm, head=heads[2], exits=[2])
    torch.testing.assert_close(own, shared)
    assert torch.equal(heads(states[1], 3), head(states[1]))
    own.backward()
    assert head.weight.grad is None
    torch.optim.SGD(heads.parameters(), lr=0.5).step()
    assert sorted_loss(states, labels, norm=norm, head=heads[2], exits=[2]) < own
    assert torch.equal(head.weight, before)
    assert sum(parameter.numel() for parameter in heads.parameters()) == 2 * (40 * 16 + 40)


# --- decoding --------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), draft_exit=st.integers(1, 4), num_draft_tokens=st.integers(1, 6))
def test_greedy_speculation_is_plain_greedy_decoding(make_tiny, seed, draft_exit, num_draft_tokens):
    model = make_tiny(seed=seed)
    expected = model.greedy(PROMPT, 5, 9)
    found = speculative_generate(model.parts, PROMPT, draft_exit, 9, num_draft_tokens=num_draft_tokens)
    assert torch.equal(found.tokens, expected)
    # A round costs n calls a drafted token and N to verify, and adds one token to those it keeps.
    rounds, rest = divmod(found.block_calls - draft_exit * found.drafted, 5)
    assert rest == 0
    assert found.accepted + rounds == 9
    end = expected[0, 4].item()
    stopped = speculative_generate(model.parts, PROMPT, draft_exit, 9, eos_token_id=end)
    assert torch.equal(stopped.tokens, expected[:, : expected[0].tolist().index(end) + 1])


def test_a_draft_that_is_always_right_is_always_kept(tiny):
    for block in tiny.blocks[2:]:
        nn.init.zeros_(block.value)
        nn.init.zeros_(block.mix)
    found = speculative_generate(tiny.parts, PROMPT, 2, 16)
    assert torch.equal(found.tokens, tiny.greedy(PROMPT, 5, 16))
    assert found.accepted == found.drafted
    # Rounds of 4 + 1 tokens, 6 + 1, and 3 + 1 to the end; 2 blocks draft each token, 5 verify each round.
    assert found.drafted == 4 + 6 + 3
    assert found.block_calls == 2 * (4 + 6 + 3) + 5 * 3


def test_sampled_speculation_has_the_distribution_of_the_full_model(make_tiny):
    """Chi-square over all texts of two tokens; the draft model itself would fail by far."""
    model = make_tiny(num_layers=2, size=4, vocabulary=4, seed=1)
    prompt, count, temperature = torch.tensor([[0, 2]]), 1000, 0.7
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(count):
        found = speculative_generate(
            model.parts, prompt, 1, 2, do_sample=True, temperature=temperature, generator=generator
        )
        seen[tuple(found.tokens[0].tolist())] += 1

    def statistic(depth):
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for first, second in itertools.product(range(4), repeat=2):
            text = torch.cat([prompt, torch.tensor([[first]])], dim=1)
            probabilities = (model.logits(text, depth)[0] / temperature).softmax(-1)
            expected[first, second] = count * probabilities[-2, first] * probabilities[-1, second]
        common = expected > 5
        return ((seen - expected)[common].square() / expected[common]).sum().item()

    assert statistic(depth=2) < 40  # 15 degrees of freedom: probability 0.0005
    assert statistic(depth=1) > 200


def test_sampling_from_one_exit_alone_has_its_distribution(make_tiny):
    model = make_tiny(num_layers=2, size=4, vocabulary=4, seed=1)
    prompt = torch.tensor([[0, 2]]).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    found = dynamic_generate(
        model.parts, prompt, [1, 2], [0.0], 1, do_sample=True, temperature=2.0, generator=generator
    )
    expected = 4000 * (model.logits(prompt[:1], 1)[0, -1] / 2).softmax(-1)
    seen = torch.bincount(found.tokens[:, 0], minlength=4)
    assert ((seen - expected).square() / expected).sum() < 20  # 3 degrees of freedom: probability 0.0002


@given(seed=st.integers(0, 10**6), level=st.floats(0.15, 0.9))
def test_every_dynamic_token_is_its_submodels_from_scratch(make_tiny, seed, level):
    model, exits = make_tiny(seed=seed), [1, 3, 4, 5]
    found = dynamic_generate(model.parts, PROMPT, exits, [level] * 3, 10)
    text = PROMPT
    for token, depth in zip(found.tokens[0], found.exit_layer.tolist(), strict=True):
        sure = [model.logits(text, n)[0, -1].softmax(-1).max() >= level for n in exits[:-1]] + [True]
        assert depth == exits[sure.index(True)]
        assert token == model.logits(text, depth)[0, -1].argmax()
        text = torch.cat([text, token[None, None]], dim=1)
    # Work put off is work saved only if it is never needed.
    assert int(found.exit_layer.sum()) <= found.block_calls + 4 * 10
    assert found.block_tokens <= 5 * (PROMPT.shape[1] + 9)


@pytest.mark.parametrize(("threshold", "depth"), [(1.1, 5), (0.0, 2)])
def test_the_limits_of_the_thresholds_are_the_full_and_the_first_submodel(tiny, threshold, depth):
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5]])
    found = dynamic_generate(tiny.parts, prompts, [2, 3, 5], [threshold] * 2, 12)
    assert torch.equal(found.tokens, tiny.greedy(prompts, depth, 12))
    assert found.exit_layer.tolist() == [depth] * 12
    assert found.block_calls == 12 * depth


def test_rows_of_a_batch_leave_together_and_end_alone(tiny):
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    expected = tiny.greedy(prompts, 5, 8)
    end = expected[0, 2].item()
    found = dynamic_generate(tiny.parts, prompts, [5], None, 8, eos_token_id=end)
    for row, wanted in zip(found.tokens.tolist(), expected.tolist(), strict=True):
        length = wanted.index(end) + 1 if end in wanted else 8
        assert row[:length] == wanted[:length]
        assert set(row[length:]) <= {end}


def test_copied_states_are_exact_where_the_skipped_blocks_do_nothing(tiny):
    for block in tiny.blocks[2:]:
        nn.init.zeros_(block.value)
        nn.init.zeros_(block.mix)
    found = dynamic_generate(tiny.parts, PROMPT, [2, 5], [0.5], 12, fill="copy")
    assert torch.equal(found.tokens, tiny.greedy(PROMPT, 5, 12))
    assert found.block_calls == int(found.exit_layer.sum())


def test_default_thresholds_are_used_when_none_are_given(tiny):
    exits = [1, 3, 4, 5]
    found = dynamic_generate(tiny.parts, PROMPT, exits, None, 12)
    same = dynamic_generate(tiny.parts, PROMPT, exits, default_thresholds(exits), 12)
    assert torch.equal(found.tokens, same.tokens)
    assert torch.equal(found.exit_layer, same.exit_layer)


def test_the_report_agrees_with_the_logits(tiny):
    batches = [{"input_ids": PROMPT, "labels": PROMPT}, {"input_ids": PROMPT[:, :3], "labels": PROMPT[:, :3]}]
    found = layer_report(tiny, batches, [2, 5], parts=tiny.parts)
    for index, depth in enumerate(found.exits):
        loss = kl = hits = cosine = 0.0
        for batch in batches:
            ids = batch["input_ids"]
            early, full = (tiny.logits(ids, n)[0, :-1].log_softmax(-1) for n in (depth, 5))
            loss += cross_entropy(early, ids[0, 1:], reduction="sum").item()
            kl += (full.exp() * (full - early)).sum().item()
            hits += (early.argmax(-1) == ids[0, 1:]).sum().item()
            states = tiny(ids)
            cosine += torch.cosine_similarity(states[depth], states[5], dim=-1)[0, :-1].sum().item()
        measured = (found.loss, found.kl_to_full, found.accuracy, found.cosine_to_full)
        assert [values[index].item() for values in measured] == pytest.approx(
            [v / 6 for v in (loss, kl, hits, cosine)]
        )
    assert found.num_tokens == 6
