"""What must hold for every input: the invariants of the loss, the exits, the sub-models and the cache."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from sortedft import (
    KeyValueCache,
    SortedSampler,
    cut,
    cut_state_dict,
    default_exits,
    default_thresholds,
    sorted_loss,
    submodel,
)

DEPTH, VOCABULARY = 5, 11
some_exits = st.sets(st.integers(1, DEPTH), min_size=1).map(sorted)


@st.composite
def some_text(draw):
    """Token ids (batch, length) and labels with holes, at least one of them supervised after the shift."""
    batch, length, seed = draw(st.integers(1, 3)), draw(st.integers(2, 7)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCABULARY, (batch, length), generator=generator)
    hidden = torch.rand(batch, length, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    hidden[-1, -1] = False
    return input_ids, input_ids.masked_fill(hidden, -100)


def loss_of(model, text, exits, **options):
    input_ids, labels = text
    return sorted_loss(
        model(input_ids),
        labels,
        norm=model.norm,
        head=model.head,
        exits=exits,
        last_is_normed=False,
        **options,
    )


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


@given(text=some_text())
def test_the_full_depth_alone_is_the_ordinary_loss(make_tiny, text):
    model = make_tiny()
    input_ids, labels = text
    ours = loss_of(model, text, [DEPTH])
    theirs = cross_entropy(model.logits(input_ids, DEPTH)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, model), gradients(theirs, model), strict=True):
        torch.testing.assert_close(mine, other)


@given(text=some_text(), exits=some_exits, chunk_tokens=st.integers(1, 40))
def test_the_size_of_the_chunks_changes_nothing(make_tiny, text, exits, chunk_tokens):
    model = make_tiny()
    whole, chunked = loss_of(model, text, exits), loss_of(model, text, exits, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(chunked, whole)
    for mine, other in zip(gradients(chunked, model), gradients(whole, model), strict=True):
        torch.testing.assert_close(mine, other)


@given(text=some_text(), exits=some_exits)
def test_a_block_learns_from_the_exits_above_it_only(make_tiny, text, exits):
    model = make_tiny()
    loss_of(model, text, exits).backward()
    for index, block in enumerate(model.blocks):
        above = [depth for depth in exits if depth > index]
        if not above:
            assert block.query.grad is None
            continue
        alone = torch.autograd.grad(loss_of(model, text, above), block.query)[0]
        torch.testing.assert_close(block.query.grad, alone * len(above) / len(exits))


@given(text=some_text(), exits=some_exits)
def test_the_mean_over_the_submodels_is_the_sorted_loss(make_tiny, text, exits):
    model = make_tiny()
    losses = []
    for depth in exits:
        with submodel(model, depth, parts=model.parts):
            losses.append(loss_of(model, text, [depth]))
    mean, whole = torch.stack(losses).mean(), loss_of(model, text, exits)
    torch.testing.assert_close(mean, whole)
    for mine, other in zip(gradients(mean, model), gradients(whole, model), strict=True):
        torch.testing.assert_close(mine, other)


@given(text=some_text(), exits=some_exits, data=st.data())
def test_weights_weigh_the_losses_of_the_exits(make_tiny, text, exits, data):
    model = make_tiny()
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(exits), max_size=len(exits)))
    loss, per_exit = loss_of(model, text, exits, weights=weights, return_per_exit=True)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(loss.detach(), shares @ per_exit)
    assert not per_exit.requires_grad


@given(text=some_text(), exits=some_exits)
def test_accumulated_micro_batches_are_the_whole_batch(make_tiny, text, exits):
    model = make_tiny()
    input_ids, labels = text
    count = int((labels[:, 1:] != -100).sum())
    parts = [  # some rows supervise nothing: they add nothing
        loss_of(model, (input_ids[[row]], labels[[row]]), exits, num_items_in_batch=torch.tensor(count))
        for row in range(len(labels))
    ]
    summed, whole = torch.stack(parts).sum(), loss_of(model, text, exits)
    torch.testing.assert_close(summed, whole)
    for mine, other in zip(gradients(summed, model), gradients(whole, model), strict=True):
        torch.testing.assert_close(mine, other)


@given(num_layers=st.integers(1, 200), num_exits=st.integers(1, 12))
def test_default_exits_are_increasing_depths_that_end_with_the_full_model(num_layers, num_exits):
    exits = default_exits(num_layers, num_exits)
    assert exits == sorted(set(exits))
    assert exits[0] >= 1
    assert exits[-1] == num_layers
    assert len(exits) <= num_exits
    thresholds = default_thresholds(exits)
    assert len(thresholds) == len(exits) - 1
    assert thresholds == sorted(thresholds, reverse=True)
    assert set(thresholds[:1]) <= {0.95}
    assert set(thresholds[1:][-1:]) <= {0.7}


def test_the_default_exits_of_forty_blocks_are_the_papers():
    assert default_exits(40) == [12, 16, 20, 24, 28, 32, 36, 40]


@given(exits=some_exits, steps=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_the_sampler_draws_every_exit_and_ends_its_windows_with_the_deepest(exits, steps, seed):
    draws = [
        list(itertools.islice(SortedSampler(exits, generator=torch.Generator().manual_seed(seed)), 300))
        for _ in "ab"
    ]
    assert draws[0] == draws[1]
    for depth in exits:
        expected, deviation = 300 / len(exits), (300 / len(exits) * (1 - 1 / len(exits))) ** 0.5
        assert abs(draws[0].count(depth) - expected) <= 5 * deviation
    generator = torch.Generator().manual_seed(seed)
    windows = SortedSampler(exits, generator=generator, accumulation_steps=steps, always_full=True)
    assert set(list(itertools.islice(windows, 4 * steps))[steps - 1 :: steps]) == {exits[-1]}


@given(depth=st.integers(1, DEPTH), seed=st.integers(0, 10**6))
def test_cut_runs_the_first_blocks_on_shared_storage(make_tiny, depth, seed):
    model = make_tiny(seed=seed)
    input_ids = torch.arange(VOCABULARY).unsqueeze(0)
    shallow = cut(model, depth, parts=model.parts)
    assert torch.equal(shallow(input_ids)[-1], model(input_ids)[depth])
    assert len(model.blocks) == DEPTH
    with torch.no_grad():
        model.blocks[0].mix.mul_(2)
    assert torch.equal(shallow(input_ids)[-1], model(input_ids)[depth])
    kept = cut_state_dict(model.state_dict(), depth)
    assert kept.keys() == shallow.state_dict().keys()
    assert {tensor.data_ptr() for tensor in kept.values()} <= {
        tensor.data_ptr() for tensor in model.parameters()
    }


@given(data=st.data())
def test_the_cache_holds_what_it_was_given(data):
    cache, expected = KeyValueCache(), {0: torch.empty(2, 1, 0, 3), 1: torch.empty(2, 1, 0, 3)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            length = data.draw(st.integers(0, 90))
            cache.crop(length)
            expected = {index: held[:, :, :length] for index, held in expected.items()}
        index = data.draw(st.integers(0, 1))
        new = torch.randn(2, 1, data.draw(st.integers(1, 70)), 3, generator=generator)
        expected[index] = torch.cat([expected[index], new], dim=2)
        keys, values = cache.update(new, -new, index)
        assert torch.equal(keys, expected[index])
        assert torch.equal(values, -expected[index])
        assert [cache.get_seq_length(index) for index in (0, 1)] == [
            held.shape[2] for held in expected.values()
        ]


def test_submodel_gives_the_model_back_even_after_an_error(tiny):
    before = list(tiny.blocks)

    def run_out_of_memory():
        with submodel(tiny, 2, parts=tiny.parts):
            assert list(tiny.blocks) == before[:2]
            raise MemoryError

    with pytest.raises(MemoryError):
        run_out_of_memory()
    assert list(tiny.blocks) == before
