"""The same numbers from somewhere else: naive loops, exact probabilities, a smooth family of dtypes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from sortedft import (
    ExitHeads,
    Parts,
    default_exits,
    default_thresholds,
    dynamic_generate,
    layer_report,
    sorted_loss,
    speculative_generate,
)
from sortedft import loss as loss_module

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
@pytest.mark.parametrize("chunk_tokens", [7, 2048, None])
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


def test_the_gradients_of_a_retained_graph_can_be_had_again():
    states, labels, norm, head = random_problem()
    wanted = [states[1], head.weight, head.bias]
    loss = sorted_loss(states, labels, norm=norm, head=head, exits=[1], last_is_normed=False)
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    last = torch.autograd.grad(2 * loss, wanted)
    for one, as_it_was, twice in zip(first, kept, last, strict=True):
        assert torch.equal(one, as_it_was)
        torch.testing.assert_close(twice, 2 * one)


def test_the_gradients_of_a_freed_graph_are_refused():
    if not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"):
        pytest.skip("this torch does not tell whether a graph is retained, so all are")
    states, labels, _, head = random_problem()
    loss = sorted_loss(states, labels, norm=nn.Identity(), head=head, exits=[1], last_is_normed=False)
    torch.autograd.grad(loss, head.weight)
    with pytest.raises(RuntimeError, match="retain_graph"):
        torch.autograd.grad(loss, head.weight)


@pytest.mark.parametrize(("size", "words", "rows"), [(16, 2048, 64), (16, 16, 1024), (64, 16, 4096)])
def test_none_takes_as_many_rows_as_take_the_memory_of_the_states(monkeypatch, size, words, rows):
    seen = []
    real = loss_module.chunked_cross_entropy
    monkeypatch.setattr(
        loss_module, "chunked_cross_entropy", lambda *a: seen.append(a[-1].chunk_tokens) or real(*a)
    )
    states, head = [torch.randn(1, 301, size) for _ in range(3)], nn.Linear(size, words)
    labels = torch.zeros(1, 301, dtype=torch.long)
    sorted_loss(states, labels, norm=nn.Identity(), head=head, exits=[1, 2], chunk_tokens=None)
    assert seen == [rows]


class ResidualHead(nn.Linear):
    """Somebody's own head: its weight and bias are not all there is to it."""

    def forward(self, normed):
        return super().forward(normed) + normed.tanh().sum(-1, keepdim=True) * self.bias


def doubled(head, inputs, output):
    return 2 * output


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # torch 2.4's own checkpoint
@pytest.mark.parametrize("kind", ["subclass", "hook", "replaced forward"])
@pytest.mark.parametrize("chunk_tokens", [7, 2048])
def test_a_head_that_is_more_than_its_weight_is_called_as_it_is(kind, chunk_tokens):
    states, labels, norm, head = random_problem()
    if kind == "subclass":
        head.__class__ = ResidualHead
    elif kind == "hook":
        head.register_forward_hook(doubled)
    else:
        head.forward = lambda normed: nn.functional.linear(normed, head.weight).square() + head.bias
    exits, wanted = [1, 2, 5], [*states[1:3], states[5], *norm.parameters(), *head.parameters()]
    options = {"weights": [1, 2, 5], "logit_scale": 0.5, "logit_softcap": 3.0}
    loss, per_exit = sorted_loss(
        states, labels, norm=norm, head=head, exits=exits, chunk_tokens=chunk_tokens, last_is_normed=False,
        return_per_exit=True, **options,
    )  # fmt: skip
    expected = naive_loss(states, labels, norm, head, exits, 0.5, 3.0)
    torch.testing.assert_close(per_exit, expected.detach())
    weighted = expected @ torch.tensor([1.0, 2.0, 5.0]) / 8
    torch.testing.assert_close(loss, weighted)
    pairs = zip(*(torch.autograd.grad(total, wanted) for total in (loss, weighted)), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_of_any_integer_type(dtype):
    states, labels, norm, head = random_problem()
    labels = labels.clamp_min(0)  # an unsigned type cannot say -100
    ours, theirs = (
        sorted_loss(states, given, norm=norm, head=head, exits=[2, 5]) for given in (labels.to(dtype), labels)
    )
    assert torch.equal(ours, theirs)


def test_a_micro_batch_without_supervision_has_zero_gradients_everywhere():
    """So that a part of a larger batch may be empty, and processes that wait for gradients get them."""
    states, labels, norm, head = random_problem()
    loss, per_exit = sorted_loss(
        states, torch.full_like(labels, -100), norm=norm, head=head, exits=[2, 5],
        num_items_in_batch=30, last_is_normed=False, return_per_exit=True,
    )  # fmt: skip
    assert loss.item() == 0
    assert per_exit.tolist() == [0, 0]
    wanted = [states[2], states[5], *norm.parameters(), *head.parameters()]
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, wanted))


def test_numbers_may_come_from_numpy_and_weights_may_be_huge():
    states, labels, norm, head = random_problem()
    assert default_exits(np.int64(40)) == default_exits(40)
    exits = np.array([2, 5])
    ours = sorted_loss(states, labels, norm=norm, head=head, exits=exits, chunk_tokens=np.int64(7))
    torch.testing.assert_close(ours, sorted_loss(states, labels, norm=norm, head=head, exits=[2, 5]))
    weighted = sorted_loss(states, labels, norm=norm, head=head, exits=[2, 5], weights=[1e308, 1e308])
    torch.testing.assert_close(weighted, ours)


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


def test_many_equal_tokens_add_up_under_autocast():
    """In bfloat16 a sum of equal parts stops growing at 256 of them."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 1, 8, generator=generator).expand(1, 2001, 8) for _ in range(2)]
    labels, head = torch.full((1, 2001), 3), nn.Linear(8, 16, bias=False)
    gradients = []
    for chunk_tokens in (1, 4096):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sorted_loss(
                states, labels, norm=nn.Identity(), head=head, exits=[1], chunk_tokens=chunk_tokens
            )
        gradients += torch.autograd.grad(loss, head.weight)
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[1].norm()


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
    found = speculative_generate(tiny.parts, PROMPT, 2, 20)
    assert torch.equal(found.tokens, tiny.greedy(PROMPT, 5, 20))
    assert found.accepted == found.drafted
    # Rounds of 4 + 1 tokens, 6 + 1, and 7 + 1 to the end; 2 blocks draft each token, 5 verify each round.
    assert found.drafted == 4 + 6 + 7
    assert found.block_calls == 2 * (4 + 6 + 7) + 5 * 3


class Echo(nn.Module):
    """A block that keeps its place in the cache and turns the channels of the state by some steps."""

    def __init__(self, index, steps=0):
        super().__init__()
        self.index, self.steps = index, steps

    def forward(self, hidden, start, cache):
        cache.update(hidden[:, None], hidden[:, None], self.index)
        return hidden.roll(self.steps, dims=-1)


def echo_parts(logits, turned_by=0):
    """Five blocks; after token t come the logits `logits[t]`, turned by the third block."""
    layers = nn.ModuleList(Echo(index, turned_by if index == 2 else 0) for index in range(5)).eval()
    head = nn.Linear(len(logits), len(logits), bias=False)
    nn.init.eye_(head.weight)
    return Parts(layers, nn.Identity(), head, embed=lambda ids, start: logits[ids])


def test_a_draft_that_is_always_wrong_grows_shorter():
    parts = echo_parts(
        10 * torch.eye(4), turned_by=1
    )  # the draft repeats the token, the full model counts on
    found = speculative_generate(parts, torch.tensor([[0]]), 2, 9)
    assert found.tokens.tolist() == [[1, 2, 3, 0, 1, 2, 3, 0, 1]]
    assert found.accepted == 0
    assert found.drafted == 4 + 3 + 2 + 1 + 1 + 1 + 1 + 1  # and none for the last token


def test_a_row_that_has_ended_does_not_hold_the_others_back():
    logits = torch.zeros(4, 4)
    logits[:, 3] = 0.1  # never sure of the end, which comes all the same
    logits[1] = torch.tensor([0.0, 20.0, 0.0, 0.0])  # always sure
    found = dynamic_generate(echo_parts(logits), torch.tensor([[0], [1]]), [2, 5], [0.9], 4, eos_token_id=3)
    assert found.tokens.tolist() == [[3, 3, 3, 3], [1, 1, 1, 1]]
    assert found.exit_layer.tolist() == [5, 2, 2, 2]


@pytest.mark.parametrize("form", [list, tuple, torch.tensor])
def test_of_several_end_tokens_the_first_to_come_ends_the_text(tiny, form):
    expected = tiny.greedy(PROMPT, 5, 9)[0].tolist()
    late, early = expected[-1], next(token for token in expected if token != expected[-1])
    stop = min(expected.index(late), expected.index(early)) + 1
    assert stop < 9
    ends = form([late, early])
    spoken = speculative_generate(tiny.parts, PROMPT, 2, 9, eos_token_id=ends)
    assert spoken.tokens.tolist() == [expected[:stop]]
    assert len(spoken.exit_layer) == stop
    assert dynamic_generate(tiny.parts, PROMPT, [5], None, 9, eos_token_id=ends).tokens.tolist() == [
        expected[:stop]
    ]


def test_every_row_repeats_the_end_token_it_ended_with():
    counting = echo_parts(10 * torch.eye(6).roll(1, dims=1))  # t + 1 follows t
    found = dynamic_generate(counting, torch.tensor([[0], [3]]), [5], None, 4, eos_token_id=[2, 5])
    assert found.tokens.tolist() == [[1, 2], [4, 5]]
    found = dynamic_generate(counting, torch.tensor([[0], [4]]), [5], None, 4, eos_token_id=[2, 5])
    assert found.tokens.tolist() == [[1, 2], [5, 5]]


def test_the_padding_of_a_single_prompt_is_cut_off(tiny):
    padded, mask = torch.cat([PROMPT[:, :2], PROMPT], 1), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    found = speculative_generate(tiny.parts, padded, 2, 9, attention_mask=mask)
    alone = speculative_generate(tiny.parts, PROMPT, 2, 9)
    assert torch.equal(found.tokens, alone.tokens)
    assert found.block_tokens == alone.block_tokens
    whole = dynamic_generate(tiny.parts, PROMPT, [5], None, 9, attention_mask=torch.ones_like(PROMPT))
    assert torch.equal(whole.tokens, alone.tokens)


def test_sampled_speculation_has_the_distribution_of_the_full_model():
    """Chi-square over all texts of three tokens; the draft model itself would fail by far."""
    logits = 1.4 * torch.eye(4)  # the draft likes to repeat a token, the full model to count on
    parts, count, temperature = echo_parts(logits, turned_by=1), 500, 0.7
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(4, 4, 4)
    for _ in range(count):
        found = speculative_generate(
            parts, torch.tensor([[0]]), 2, 3, do_sample=True, temperature=temperature, generator=generator
        )
        seen[tuple(found.tokens[0].tolist())] += 1

    def statistic(turned_by):
        step = (logits.roll(turned_by, dims=-1) / temperature).softmax(-1)
        expected = count * step[0, :, None, None] * step[:, :, None] * step
        common = expected > 5
        return ((seen - expected)[common].square() / expected[common]).sum().item()

    assert statistic(turned_by=1) < 32  # 10 texts are common: probability 0.0004
    assert statistic(turned_by=0) > 200


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
    found = dynamic_generate(model.parts, PROMPT, exits, [level] * 3, 7)
    text = PROMPT
    for token, depth in zip(found.tokens[0], found.exit_layer.tolist(), strict=True):
        sure = [model.logits(text, n)[0, -1].softmax(-1).max() >= level for n in exits[:-1]] + [True]
        assert depth == exits[sure.index(True)]
        assert token == model.logits(text, depth)[0, -1].argmax()
        text = torch.cat([text, token[None, None]], dim=1)
    # Work put off is work saved only if it is never needed.
    assert int(found.exit_layer.sum()) <= found.block_calls + 4 * 7
    assert found.block_tokens <= 5 * (PROMPT.shape[1] + 6)


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


def test_a_report_of_many_tokens_is_exact_in_a_model_of_bfloat16(make_tiny):
    """A count kept in bfloat16 would stop at 256, and a sum of nats keep two digits."""
    model = make_tiny().bfloat16()
    input_ids = torch.randint(11, (4, 151), generator=torch.Generator().manual_seed(0))
    found = layer_report(model, [{"input_ids": input_ids, "labels": input_ids}], [2, 5], parts=model.parts)
    with torch.no_grad():
        states = [model(input_ids)[depth][:, :-1] for depth in (2, 5)]
        early, full = (model.head(model.norm(state)).double().log_softmax(-1) for state in states)
    hits = (early.argmax(-1) == input_ids[:, 1:]).double().mean()
    loss = cross_entropy(early.flatten(0, 1), input_ids[:, 1:].flatten())
    kl = (full.exp() * (full - early)).sum(-1).mean()
    cosine = torch.cosine_similarity(*(state.double() for state in states), dim=-1).mean()
    expected = torch.stack([loss, hits, kl, cosine])
    measured = torch.stack([found.loss, found.accuracy, found.kl_to_full, found.cosine_to_full])[:, 0]
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)
    assert found.num_tokens == 600


@pytest.mark.parametrize("temperature", [1e-40, 1e-300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_coldest_sampling_is_greedy(tiny, temperature, dtype):
    prompt = torch.tensor([[3, 1, 4]])
    tiny = tiny.to(dtype)
    want = tiny.greedy(prompt, 5, 6)
    arguments = {"max_new_tokens": 6, "do_sample": True, "temperature": temperature}
    assert speculative_generate(tiny.parts, prompt, 2, **arguments).tokens.equal(want)
    assert dynamic_generate(tiny.parts, prompt, [5], **arguments).tokens.equal(want)
