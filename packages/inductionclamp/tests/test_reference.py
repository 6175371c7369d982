"""Against the forward pass written out in loops, closed forms and limits."""

import math

import pytest
import torch
from helpers import DIM, HEADS, LABELS, batch_of, by_hand, sampler, seeded, small_model
from torch import nn
from torch.nn.functional import cross_entropy

from inductionclamp import (
    Clamp,
    ClampableAttention,
    ClampSet,
    Earlier,
    FromPass,
    Heads,
    ablate_embedding,
    ablate_heads,
    block_prev_token,
    clamped,
    context_positions,
    few_shot_accuracy,
    force_pattern,
    graft,
    head_ablation_table,
    head_temperature,
    in_context_loss,
    induction_pattern,
    induction_strength,
    instrument,
    match_pattern,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    prev_token_score,
    run,
    sequence_induction_score,
    silence_non_labels,
    tensor_toy,
    time_to_threshold,
)
from inductionclamp.plans import plan

close = torch.testing.assert_close
PATTERN = "blocks.{}.attn_scores"


@pytest.mark.parametrize("mlp_dim", [None, 12])
@pytest.mark.parametrize("pairs", [2, 4])
def test_the_model_is_its_forward_in_loops(pairs, mlp_dim):
    model, batch = small_model(mlp_dim=mlp_dim), batch_of(pairs=pairs)
    logits, patterns, _ = by_hand(model, batch)
    assert logits.shape == (6, 2 * pairs + 1, LABELS)
    close(model(*batch), logits)
    found, acts = run(model, batch, record=["*"])
    close(found, logits)
    close(acts["blocks.1.attn_scores"][:, 2], patterns[1, 2])
    assert set(acts) == set(model.clamp_sites)


def test_the_query_s_own_label_is_not_read():
    model, (x, y) = small_model(), batch_of()
    assert torch.equal(model(x, y), model(x, y[:, :2]))


# --- gradients around a clamp -------------------------------------------------------------------------


def two_layers():
    generator = seeded(3)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, target, source = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (3, 2, 4))
    return model, x, target, source.requires_grad_()


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_around_a_clamp_are_the_closed_form_of_two_linear_layers(detach):
    """L = |W2 h' - t|^2 / 2 with h' = m s + (1 - m) W1 x."""
    model, x, target, source = two_layers()
    instrument(model, {"hidden": "0"})
    mask = torch.tensor([True, False, True, False])
    output, _ = run(model, x, [Clamp("hidden", source, mask, detach_source=detach)])
    ((output - target).square().sum() / 2).backward()
    first, second = model[0].weight.detach(), model[1].weight.detach()
    hidden = torch.where(mask, source.detach(), x @ first.T)
    residual = hidden @ second.T - target
    close(model[1].weight.grad, residual.T @ hidden)
    close(model[0].weight.grad, ((residual @ second) * ~mask).T @ x)
    if detach:
        assert source.grad is None
    else:
        close(source.grad, (residual @ second) * mask)


def test_gradients_of_values_under_a_forced_pattern_are_its_transpose():
    attention = ClampableAttention(8, 2, generator=seeded(0)).double()
    pattern = torch.rand(4, 4, generator=seeded(1), dtype=torch.float64).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    x = torch.randn(3, 4, 8, generator=seeded(2), dtype=torch.float64)
    output, acts = run(attention, x, force_pattern("", None, pattern), record=["v"])
    upstream = torch.randn(3, 4, 8, generator=seeded(4), dtype=torch.float64)
    (grad,) = torch.autograd.grad((output * upstream).sum(), acts["v"], retain_graph=True)
    per_head = (upstream @ attention.proj.weight.detach()).unflatten(-1, (2, 4)).transpose(1, 2)
    close(grad, pattern.T @ per_head)
    (all_of_it,) = torch.autograd.grad((output * upstream).sum(), attention.qkv.weight)
    close(all_of_it[:16], torch.zeros(16, 8, dtype=torch.float64))
    assert all_of_it[16:].abs().min() > 0


# --- recipes ------------------------------------------------------------------------------------------


def previous(batch, strength, size=5):
    pattern = torch.eye(size, dtype=torch.float64) * (1 - strength)
    pattern[range(1, size), range(size - 1)] = strength
    pattern[0, 0] = 1
    return pattern.expand(len(batch.x), -1, -1)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_previous_token_heads(strength):
    model, batch = small_model(), batch_of()
    wanted = by_hand(model, batch, patterns={(0, 1): previous(batch, strength)})[0]
    close(run(model, batch, prev_token(0, 1, strength))[0], wanted)


def test_previous_token_heads_at_labels_only():
    model, batch = small_model(), batch_of()
    _, patterns, _ = by_hand(model, batch)
    mixed = patterns[0, 1].clone()
    mixed[:, [1, 3]] = previous(batch, 0.8)[:, [1, 3]]
    wanted = by_hand(model, batch, patterns={(0, 1): mixed})[0]
    close(run(model, batch, prev_token(0, [1], 0.8, only_labels=True))[0], wanted)


@pytest.mark.parametrize("pairs", [2, 4])
def test_induction_heads_and_their_strength(pairs):
    """In loops over sequences; the plotted strength is 2 s - 1."""
    model, batch = small_model(), batch_of(pairs=pairs)
    _, acts = run(model, batch, induction_pattern(1, [0, 3], 0.8), record=[PATTERN.format(1)])
    attn = acts[PATTERN.format(1)]
    for row, labels in enumerate(batch.y.tolist()):
        for place, label in enumerate(labels[:-1]):
            share = 0.8 if label == labels[-1] else 0.2
            assert attn[row, 3, -1, 2 * place + 1].item() == pytest.approx(share / (pairs // 2))
        assert attn[row, 3, -1, ::2].abs().max() == 0
    right, wrong = context_positions(batch.y)
    found = induction_strength(attn, right, wrong)
    assert found[[0, 3]].tolist() == pytest.approx([0.6, 0.6])
    patterns = by_hand(model, batch)[1]
    close(attn[:, 1], patterns[1, 1])
    close(attn[:, 0, :-1], patterns[1, 0][:, :-1])


def test_an_induction_head_takes_what_there_is():
    """Where no label is wrong the right ones have all weight, and where none is right the wrong ones."""
    model = small_model()
    x = batch_of().x[:2]
    y = torch.tensor([[3, 3, 3], [1, 2, 0]])
    _, acts = run(model, (x, y), induction_pattern(1, [0], 0.8), record=[PATTERN.format(1)])
    wanted = torch.tensor([[0, 0.5, 0, 0.5, 0]], dtype=torch.float64).expand(2, -1)
    close(acts[PATTERN.format(1)][:, 0, -1], wanted)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_match_heads(temperature):
    model, batch = small_model(), batch_of()
    _, acts = run(model, batch, match_pattern(1, [2], temperature), record=[PATTERN.format(1)])
    row = acts[PATTERN.format(1)][:, 2, -1]
    for x, found in zip(batch.x, row, strict=True):
        cosines = [float(e @ x[2] / (e.norm() * x[2].norm())) for e in x[:2]]
        if temperature:
            weights = [math.exp(c / temperature) for c in cosines]
            weights = [w / sum(weights) for w in weights]
        else:
            weights = [float(c == max(cosines)) for c in cosines]
        assert found.tolist() == pytest.approx([0, weights[0], 0, weights[1], 0], abs=1e-6)


def test_equal_exemplars_share_a_match_head():
    model, (x, y) = small_model(), batch_of()
    _, acts = run(model, (x[:, :1].expand_as(x), y), match_pattern(1, [2]), record=[PATTERN.format(1)])
    assert acts[PATTERN.format(1)][0, 2, -1].tolist() == pytest.approx([0, 0.5, 0, 0.5, 0])


def test_a_perfect_copy_is_the_head_s_own_softmax():
    model, batch = small_model(), batch_of()
    logits, _ = run(model, batch, perfect_copy(1, 2))
    scores = by_hand(model, batch)[2][1, 2][:, -1, [1, 3]]
    found = logits[:, -1].softmax(-1)
    close(found.gather(1, batch.y[:, :2]), scores.softmax(-1))
    outside = torch.ones(6, LABELS, dtype=torch.bool).scatter(1, batch.y[:, :2], False)
    assert found[outside].abs().max() == 0
    close(logits[:, :-1], model(*batch)[:, :-1])
    cross_entropy(logits[:, -1], batch.y[:, -1]).backward()
    block = model.blocks[1].attention
    assert block.qkv.weight.grad[: 2 * DIM].abs().max() > 0
    assert block.qkv.weight.grad[2 * DIM :].abs().max() == 0
    assert block.proj.weight.grad.abs().max() == 0


def test_a_copied_label_that_stands_twice_has_both_weights():
    model, batch = small_model(), batch_of(pairs=4)
    logits, _ = run(model, batch, perfect_copy(1, 2))
    weights = by_hand(model, batch)[2][1, 2][:, -1, [1, 3, 5, 7]].softmax(-1)
    for row, (labels, found) in enumerate(zip(batch.y.tolist(), logits[:, -1].softmax(-1), strict=True)):
        for label in set(labels):
            mass = sum(weights[row, place] for place in range(4) if labels[place] == label)
            assert found[label].item() == pytest.approx(mass.item())
    (grad,) = torch.autograd.grad(cross_entropy(logits[:, -1], batch.y[:, -1]), model.blocks[1].norm.weight)
    right = (batch.y[:, :4] == batch.y[:, 4:]).double()
    (wanted,) = torch.autograd.grad(
        -(by_hand(model, batch)[2][1, 2][:, -1, [1, 3, 5, 7]].softmax(-1) * right).sum(1).log().mean(),
        model.blocks[1].norm.weight,
    )
    close(grad, wanted)


def moved_on(tokens):
    return torch.cat([tokens[:, :1], tokens[:, :-2], tokens[:, -1:]], 1)


def test_the_shift_keeps_the_first_and_the_query():
    tokens = torch.arange(5.0)[None, :, None]
    assert moved_on(tokens).flatten().tolist() == [0, 0, 1, 2, 4]


def test_a_perfect_first_layer_routes_shifted_tokens_to_queries_and_keys_only():
    model, batch = small_model(), batch_of()
    wanted = by_hand(model, batch, residual={1: lambda tokens: tokens}, qk_input={1: moved_on})[0]
    logits, _ = run(model, batch, perfect_layer1(1))
    close(logits, wanted)
    logits.sum().backward()
    assert model.blocks[0].attention.qkv.weight.grad is None
    assert model.blocks[1].attention.qkv.weight.grad.abs().min() > 0


def test_layer_and_copy_together_read_the_shifted_scores():
    model, batch = small_model(), batch_of()
    logits, _ = run(model, batch, [perfect_copy(1, 3), perfect_layer1(1)])
    scores = by_hand(model, batch, residual={1: moved_on})[2][1, 3][:, -1, [1, 3]]
    close(logits[:, -1].gather(1, batch.y[:, :2]), scores)
    unperturbed, _ = run(model, batch, [perfect_copy(1, 3, unperturbed=True), perfect_layer1(1)])
    close(unperturbed[:, -1].gather(1, batch.y[:, :2]), by_hand(model, batch)[2][1, 3][:, -1, [1, 3]])


def test_ablated_heads_write_nothing():
    model, batch = small_model(), batch_of()
    close(run(model, batch, ablate_heads(0, [0, 2]))[0], by_hand(model, batch, keep={0: [1, 3]})[0])
    nothing = by_hand(model, batch, keep={0: [], 1: []})[0]
    close(run(model, batch, [ablate_heads(0), ablate_heads(1)])[0], nothing)


def test_preserving_patterns_leaves_the_direct_path_and_the_values():
    model, batch = small_model(), batch_of()
    patterns = by_hand(model, batch)[1]
    kept = by_hand(model, batch, patterns=patterns, keep={0: [1, 2, 3]})[0]
    found, _ = run(model, batch, [ablate_heads(0, [0]), preserve("patterns")])
    close(found, kept)
    assert (kept - by_hand(model, batch, keep={0: [1, 2, 3]})[0]).abs().max() > 1e-3


def test_patterns_and_values_preserved_isolate_the_direct_path():
    """The last block then writes what it always wrote; only the residual stream misses the first layer's heads."""
    model, batch = small_model(), batch_of()
    _, plain = run(model, batch, record=["tok_embedding", "blocks.1.attn_out"])
    found, acts = run(
        model, batch, [ablate_heads(0), preserve(["patterns", "values"], [1])], record=["blocks.1.attn_out"]
    )
    close(acts["blocks.1.attn_out"], plain["blocks.1.attn_out"])
    wanted = model.unembed(model.norm(plain["tok_embedding"] + plain["blocks.1.attn_out"]))
    close(found, wanted)


def test_keys_and_queries_preserved_give_the_same_patterns():
    model, batch = small_model(), batch_of()
    clamps = [ablate_heads(0), preserve(["keys", "queries"])]
    close(run(model, batch, clamps)[0], run(model, batch, [ablate_heads(0), preserve("patterns")])[0])


def test_blocked_and_cooled_and_silenced_scores():
    model, batch = small_model(), batch_of()
    _, patterns, scores = by_hand(model, batch)
    allowed = torch.ones(5, 5).tril().bool()
    _, acts = run(
        model,
        batch,
        [
            head_temperature(0, {0: 2.0, 3: 0.5}),
            block_prev_token(0, [1], only_labels=True),
            silence_non_labels(0, [2]),
        ],
        record=[PATTERN.format(0)],
    )
    attn = acts[PATTERN.format(0)]
    for head, temperature in ((0, 2.0), (3, 0.5)):
        close(attn[:, head], torch.where(allowed, scores[0, head] / temperature, -torch.inf).softmax(-1))
    blocked = allowed.clone()
    blocked[[1, 3], [0, 2]] = False
    close(attn[:, 1], torch.where(blocked, scores[0, 1], -torch.inf).softmax(-1))
    labels_only = allowed.clone()
    labels_only[-1] = torch.tensor([False, True, False, True, False])
    close(attn[:, 2], torch.where(labels_only, scores[0, 2], -torch.inf).softmax(-1))
    _, acts = run(model, batch, block_prev_token(0, [1]), record=[PATTERN.format(0)])
    assert acts[PATTERN.format(0)][:, 1].diagonal(-1, 1, 2).abs().max() == 0
    close(acts[PATTERN.format(0)][:, 0], patterns[0, 0])


def test_an_ablated_embedding_leaves_the_biases():
    model, batch = small_model(), batch_of()
    found, _ = run(model, batch, ablate_embedding())
    wanted = by_hand(model, batch, residual={0: torch.zeros(6, 5, DIM, dtype=torch.float64)})[0]
    close(found, wanted)


def test_grafts_take_the_early_or_the_late_blocks():
    model, other, batch = small_model(0), small_model(7), batch_of()
    early = run(other, batch, record=["blocks.0.out"])[1]["blocks.0.out"]
    close(run(model, batch, graft(other, upto=0))[0], by_hand(model, batch, residual={1: early})[0])
    mine = run(model, batch, record=["blocks.0.out"])[1]["blocks.0.out"]
    found, _ = run(model, batch, graft(other, from_=0))
    close(found, by_hand(other, batch, residual={1: mine})[0])
    other.requires_grad_(False)
    run(model, batch, graft(other, from_=0))[0].sum().backward()
    assert model.embed.weight.grad.abs().min() > 0
    assert model.unembed.weight.grad is None


def test_another_model_may_be_clamped_itself():
    model, other, batch = small_model(0), small_model(7), batch_of()
    early = run(other, batch, ablate_heads(0, [1]), record=["blocks.0.out"])[1]["blocks.0.out"]
    clamp = Clamp("blocks.0.out", FromPass(model=other, under=ClampSet(ablate_heads(0, [1]))))
    close(run(model, batch, clamp)[0], by_hand(model, batch, residual={1: early})[0])


# --- how many passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clamps", "passes"),
    [
        (lambda: induction_pattern(1, [0]), 0),
        (lambda: perfect_copy(1, 0), 0),
        (lambda: perfect_copy(1, 0, unperturbed=True), 0),
        (lambda: [preserve("patterns", [0, 1]), ablate_heads(1)], 1),
        (lambda: perfect_layer1(1), 1),
        (lambda: [perfect_layer1(1), perfect_copy(1, 0)], 1),
        (lambda: [preserve("patterns"), ablate_heads(0)], 1),
    ],
)
def test_passes_are_only_made_where_the_running_one_does_not_know(clamps, passes):
    model, batch = small_model(), batch_of()
    given = ClampSet(clamps())
    assert len(plan(given, model.clamp_sites).harvests) == passes
    calls = []
    handle = model.embed.register_forward_hook(lambda *_: calls.append(1))
    ended = []
    last = model.unembed.register_forward_hook(lambda *_: ended.append(1))
    run(model, batch, given)
    handle.remove()
    last.remove()
    assert (len(calls), len(ended)) == (1 + passes, 1)


def test_a_value_of_the_same_pass_is_the_unperturbed_one():
    """The plan's shortcut against the pass really made (on sites without an order)."""
    model, batch = small_model(), batch_of()
    clamp = Clamp("blocks.1.v", FromPass("blocks.0.attn_scores", transform=_mean_of_heads), Heads((1,)))
    quick, _ = run(model, batch, clamp)
    model.clamp_sites.ordered = False
    slow = ClampSet(clamp)
    found, _ = run(model, batch, slow)
    assert [len(made.harvests) for made in slow.plans.values()] == [1]
    close(quick, found)


def _mean_of_heads(context, patterns, value):
    return patterns.mean((1, 3))[:, None, :, None]


def test_earlier_values_are_those_that_other_clamps_left():
    model, batch = small_model(), batch_of()
    clamps = [Clamp("blocks.0.out", 0.25), Clamp("blocks.1.out", Earlier("blocks.0.out"))]
    _, acts = run(model, batch, clamps, record=["blocks.1.out"])
    assert (acts["blocks.1.out"] == 0.25).all()


# --- metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_head_table_is_the_loop_over_heads(layer, chunk):
    model, batch = small_model(), batch_of(40)

    def score(output, given):
        return in_context_loss(output, given[1], reduction="none")

    table = head_ablation_table(model, batch, layer, score=score, chunk=chunk)
    assert table.full == pytest.approx(score(by_hand(model, batch)[0], batch).mean().item())
    for head in range(HEADS):
        others = [other for other in range(HEADS) if other != head]
        only = score(by_hand(model, batch, keep={layer: [head]})[0], batch).mean()
        without = score(by_hand(model, batch, keep={layer: others})[0], batch).mean()
        assert table.only[head].item() == pytest.approx(only.item())
        assert table.without[head].item() == pytest.approx(without.item())
    with clamped(model, ablate_heads(1 - layer)):
        general = head_ablation_table(model, batch, layer, score=score)
    kept = {layer: [0], 1 - layer: []}
    wanted = score(by_hand(model, batch, keep=kept)[0], batch).mean()
    assert general.only[0].item() == pytest.approx(wanted.item())


def test_accuracy_counts_queries():
    logits = torch.zeros(2, 5, 3)
    logits[0, -1, 2] = logits[1, -1, 0] = 1
    assert few_shot_accuracy(logits, (None, torch.tensor([[1, 2, 2], [1, 2, 2]]))).tolist() == [1, 0]


def test_previous_token_score_by_hand():
    attn = torch.rand(2, 3, 5, 5, generator=seeded(0))
    wanted = (attn[:, 1, 1, 0] + attn[:, 1, 3, 2]).mean() / 2
    close(prev_token_score(attn)[1], wanted)
    close(prev_token_score(attn, [4])[1], attn[:, 1, 4, 3].mean())


def test_sequence_induction_in_loops():
    tokens = torch.randint(4, (3, 9), generator=seeded(1))
    attn = torch.rand(3, 2, 9, 9, generator=seeded(2))
    total, count = torch.zeros(2), 0
    for row in range(3):
        for i in range(9):
            after = [j + 1 for j in range(i) if tokens[row, j] == tokens[row, i] and j + 1 < i]
            if after:
                total += attn[row, :, i, after].sum(-1)
                count += 1
    close(sequence_induction_score(attn, tokens), total / count)


def test_in_context_loss_by_hand():
    logits = torch.randn(3, 5, 5, generator=seeded(0), dtype=torch.float64)
    y = torch.tensor([[0, 1, 1], [4, 2, 4], [3, 3, 3]])
    wanted = []
    for row, (a, b, query) in enumerate(y.tolist()):
        kept = {a, b}
        wanted.append(
            math.log(sum(math.exp(logits[row, -1, label] - logits[row, -1, query]) for label in kept))
        )
    found = in_context_loss(logits, y, "none")
    assert found.tolist() == pytest.approx(wanted)
    assert in_context_loss(logits, y).item() == pytest.approx(sum(wanted) / 3)
    assert in_context_loss(logits, y, "sum").item() == pytest.approx(sum(wanted))
    assert in_context_loss(logits[:0], y[:0]).item() == 0


def test_the_threshold_is_crossed_once_or_never():
    assert time_to_threshold(torch.tensor([0.3, 0.27, 0.2]), range(3)) == 1
    assert time_to_threshold([0.5], [1]) is None
    assert time_to_threshold([0.5], [1], threshold=0.6) == 1


# --- the toy ------------------------------------------------------------------------------------------


def test_the_toy_follows_autograd():
    found = tensor_toy((3, 4, 5), steps=4, lr=0.7, generator=seeded(5))
    generator = seeded(5)
    truth = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (3, 4, 5)]
    vectors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in (3, 4, 5)]
    target = torch.einsum("i,j,k->ijk", *truth)
    for step in range(5):
        leaves = [v.detach().requires_grad_() for v in vectors]
        loss = (torch.einsum("i,j,k->ijk", *leaves) - target).square().mean() / 2
        assert found.loss[step].item() == pytest.approx(loss.item())
        cosine = (leaves[1] @ truth[1]) / (leaves[1].norm() * truth[1].norm())
        assert found.angle[step, 1].item() == pytest.approx(1 - cosine.item() ** 2)
        alone = [
            (torch.einsum("i,j,k->ijk", sign * leaves[0], truth[1], truth[2]) - target).square().mean() / 2
            for sign in (1, -1)
        ]
        assert found.alone[step, 0].item() == pytest.approx(min(alone).item())
        grads = torch.autograd.grad(loss, leaves)
        vectors = [v - 0.7 * grad for v, grad in zip(leaves, grads, strict=True)]
    final = tensor_toy((3, 4, 5), {"a": 2}, steps=3, generator=seeded(5))
    assert torch.equal(final.vectors[0][:2], truth[0][:2])
    assert not torch.equal(final.vectors[0][2:], truth[0][2:])


def test_with_two_vectors_clamped_the_toy_decays_exponentially():
    found = tensor_toy(clamp=("b", "c"), steps=300, lr=0.5, generator=seeded(2))
    _, b, c = found.truth
    rate = 0.5 * float(b @ b) * float(c @ c) / 20**3
    steps = torch.arange(301, dtype=torch.float64)
    wanted = found.loss[0] * (1 - rate) ** (2 * steps)
    close(found.loss[:60], wanted[:60], rtol=1e-6, atol=0.0)
    slow = tensor_toy(clamp=("b", "c"), steps=100, lr=1e-3, generator=seeded(2))
    close(slow.loss, slow.loss[0] * torch.exp(-2 * rate / 500 * steps[:101]), rtol=1e-3, atol=0.0)


def test_unclamped_the_toy_waits_and_then_drops():
    """Plateau of Fig. 5: a quarter of the way down takes longer than the steepest half."""
    free = tensor_toy(generator=seeded(1), steps=1000).loss
    clamped_run = tensor_toy(clamp=("b", "c"), generator=seeded(1), steps=1000).loss

    def reached(loss, share):
        return int((loss < share * loss[0]).nonzero()[0])

    assert reached(clamped_run, 0.01) < reached(free, 0.5)


# --- the sampler --------------------------------------------------------------------------------------


def test_labels_and_classes_are_as_the_paper_has_them():
    data = sampler(dtype=torch.float32)
    x, y = data.batch(4000, labels="all", exemplars="held-out")
    right, wrong = y[:, :2] == y[:, 2:], y[:, :2] != y[:, 2:]
    assert bool((right.sum(1) == 1).all())
    assert bool((wrong.sum(1) == 1).all())
    counts = y[:, 2].bincount(minlength=LABELS) / 4000
    close(counts, torch.full((LABELS,), 0.2), atol=0.03, rtol=0.0)
    assert 0.45 < float(right[:, 0].float().mean()) < 0.55
    origin = (x[:, :, None, None] == data.features).all(-1)  # [B, 3, classes, exemplars]
    classes = origin.any(-1).float().argmax(-1)
    assert bool((classes[:, :2][right] == classes[:, 2]).all())
    assert bool((classes[:, :2][wrong] != classes[:, 2]).all())
    assert int(classes.max()) < 8
    assert not bool(origin[..., 0].any())
    close(classes[:, 2].bincount(minlength=8) / 4000, torch.full((8,), 1 / 8), atol=0.03, rtol=0.0)
    close(classes[:, :2][wrong].bincount(minlength=8) / 4000, torch.full((8,), 1 / 8), atol=0.03, rtol=0.0)


def test_held_out_pairs_never_train():
    data = sampler()
    seen = {tuple(sorted(row)) for row in data.batch(500).y[:, :2].tolist()}
    other = {tuple(sorted(row)) for row in data.batch(500, labels="held-out").y[:, :2].tolist()}
    assert (len(seen), len(other)) == (8, 2)
    assert not seen & other


def test_classes_of_longer_contexts_stand_equally_often():
    x, y = sampler(pairs=4).batch(50)
    assert x.shape[1] == 5
    assert bool(((y[:, :4] == y[:, 4:]).sum(1) == 2).all())
    assert all(len(set(row)) == 2 for row in y.tolist())
