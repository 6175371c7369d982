"""What must hold for every input: the invariants of losses, teacher, statistics, adapter and streams."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from robustmeanteacher import (
    CORRUPTIONS,
    EMATeacher,
    SplitModel,
    TestTimeAugment,
    continual_stream,
    correlated_stream,
    corrupt,
    evaluate_stream,
    gradual_stream,
    mixed_stream,
    nearest_prototypes,
    prototype_contrastive_loss,
    source_prototypes,
    symmetric_cross_entropy,
    symmetric_cross_entropy_gradient,
    use_batch_statistics,
)

seeds = st.integers(0, 10**6)
alphas = st.floats(0, 1)


@st.composite
def two_logits(draw):
    rows, classes, scale = draw(st.integers(1, 6)), draw(st.integers(2, 7)), draw(st.floats(0.1, 20))
    generator = torch.Generator().manual_seed(draw(seeds))
    return tuple(scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in "pq")


def entropy(logits):
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def same(state, other):
    """Two state dicts, to the bit."""
    assert state.keys() == other.keys()
    return all(torch.equal(state[key], other[key]) for key in state if key != "_extra_state")


# --- the symmetric cross-entropy -------------------------------------------------------------------


@given(pair=two_logits())
def test_at_one_half_the_loss_is_symmetric(pair):
    p, q = pair
    torch.testing.assert_close(
        symmetric_cross_entropy(p, q, 0.5, "none"), symmetric_cross_entropy(q, p, 0.5, "none")
    )


@given(pair=two_logits())
def test_at_zero_the_loss_is_cross_entropy_with_a_soft_target(pair):
    p, q = pair
    expected = cross_entropy(p, q.softmax(1), reduction="none")
    torch.testing.assert_close(symmetric_cross_entropy(p, q, 0.0, "none"), expected)
    torch.testing.assert_close(
        symmetric_cross_entropy(p, q, 1.0, "none"), cross_entropy(q, p.softmax(1), reduction="none")
    )


@given(pair=two_logits(), alpha=alphas)
def test_entropies_bound_the_loss_from_below_and_agreement_reaches_them(pair, alpha):
    p, q = pair
    loss = symmetric_cross_entropy(p, q, alpha, "none")
    assert (loss >= (1 - alpha) * entropy(q) + alpha * entropy(p) - 1e-9).all()
    torch.testing.assert_close(symmetric_cross_entropy(p, p, alpha, "none"), entropy(p))


@given(pair=two_logits(), alpha=alphas, shift=st.floats(-50, 50))
def test_a_shift_of_a_row_changes_nothing(pair, alpha, shift):
    p, q = pair
    offset = shift * torch.arange(len(p), dtype=p.dtype).unsqueeze(1)
    torch.testing.assert_close(
        symmetric_cross_entropy(p + offset, q - offset, alpha), symmetric_cross_entropy(p, q, alpha)
    )


@given(pair=two_logits(), alpha=alphas)
def test_the_closed_gradient_is_that_of_autograd(pair, alpha):
    p, q = pair
    p.requires_grad_()
    (expected,) = torch.autograd.grad(symmetric_cross_entropy(p, q, alpha, "sum"), p)
    found = symmetric_cross_entropy_gradient(p.detach(), q, alpha)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.zeros(len(p), dtype=p.dtype), atol=1e-9, rtol=0)


# --- prototypes ------------------------------------------------------------------------------------


@given(seed=seeds, batch_size=st.integers(1, 20))
def test_prototypes_are_class_means_whatever_the_batches(seed, batch_size):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.cat([torch.arange(4), torch.randint(4, (16,), generator=generator)])
    batches = zip(features.split(batch_size), labels.split(batch_size), strict=True)
    found = source_prototypes(lambda x: x, batches, num_classes=4)
    expected = torch.stack([features[labels == label].mean(0) for label in range(4)])
    torch.testing.assert_close(found, expected)


@given(seed=seeds, scale=st.floats(0.01, 100))
def test_the_contrastive_loss_ignores_order_and_scale(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    prototypes, plain, augmented = (
        torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in (3, 6, 6)
    )
    loss = prototype_contrastive_loss(prototypes, plain, augmented)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(prototype_contrastive_loss(prototypes, plain[order], augmented[order]), loss)
    torch.testing.assert_close(prototype_contrastive_loss(scale * prototypes, plain, augmented * scale), loss)
    assert torch.equal(nearest_prototypes(scale * plain, prototypes), nearest_prototypes(plain, prototypes))


# --- teacher and statistics ------------------------------------------------------------------------


@given(momentum=st.floats(0, 1), updates=st.integers(0, 12))
def test_the_teacher_follows_a_constant_student_geometrically(build_network, momentum, updates):
    first, second = build_network(seed=1), build_network(seed=2)
    teacher = EMATeacher(first, momentum)
    for _ in range(updates):
        teacher.update(second)
    kept = momentum**updates
    for found, old, new in zip(teacher.parameters(), first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(found, kept * old.detach() + (1 - kept) * new.detach())
        if updates and momentum in (0, 1):
            assert torch.equal(found, old if momentum else new)


@given(seed=seeds)
def test_batch_statistics_go_back_to_the_bit(build_network, draw_images, seed):
    network, images = build_network(seed=seed), draw_images(seed=seed)
    before, output = copy.deepcopy(network.state_dict()), network(images)
    with use_batch_statistics(network) as handle:
        assert len(handle) == 1
        inside = network.train()(images)
        assert torch.equal(inside, network.eval()(images))
        with handle.suspended():
            assert torch.equal(network(images), output)
        assert torch.equal(network(images), inside)
    assert not torch.equal(inside, output)
    assert same(before, network.state_dict())
    assert torch.equal(network(images), output)


def test_batch_statistics_are_those_of_training_mode(network, images):
    training = copy.deepcopy(network).train()(images)
    use_batch_statistics(network)
    torch.testing.assert_close(network(images), training)


# --- the adapter -----------------------------------------------------------------------------------


def test_the_first_prediction_is_twice_the_batch_normalised_source(build, build_network, images):
    source = build_network()
    use_batch_statistics(source)
    adapter = build()
    expected = 2 * source(images)
    torch.testing.assert_close(adapter.predict(images), expected)
    torch.testing.assert_close(adapter(images), expected)  # from before the step
    assert not torch.allclose(adapter.predict(images), expected)


def test_without_losses_nothing_changes(build, images):
    adapter = build(self_training_weight=0.0, contrastive_weight=0.0)
    before = copy.deepcopy(adapter.state_dict())
    logits = adapter(images)
    assert same(before, adapter.state_dict())
    assert torch.equal(logits, adapter.student(images) + adapter.teacher(images))


@settings(max_examples=4)
@given(seed=seeds, warm_up=st.integers(0, 2))
def test_reset_returns_to_the_state_of_deployment(build, draw_images, seed, warm_up):
    adapter = build(seed=seed)
    batches = [draw_images(seed=seed + index) for index in range(3)]
    if warm_up:
        adapter.warm_up(batches, warm_up)
    state, first = copy.deepcopy(adapter.state_dict()), adapter.predict(batches[0])
    runs = []
    for _ in range(2):
        adapter._augment.generator.manual_seed(seed)
        runs.append([adapter(batch) for batch in batches])
        adapter.reset()
        assert same(state, adapter.state_dict())
        assert torch.equal(adapter.predict(batches[0]), first)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert not torch.equal(runs[0][-1], adapter.predict(batches[-1]))


@settings(max_examples=4)
@given(seed=seeds)
def test_a_state_dict_carries_on_where_it_was_taken(build, build_network, draw_images, seed):
    batches = [draw_images(seed=seed + index) for index in range(4)]
    adapter, other = build(augment=lambda x: x * 0.9), build(build_network(seed=5), augment=lambda x: x * 0.9)
    for batch in batches[:2]:
        adapter(batch)
    other.load_state_dict(copy.deepcopy(adapter.state_dict()))
    for batch in batches[2:]:
        assert torch.equal(adapter(batch), other(batch))


def test_a_file_carries_on_where_it_was_written(build, build_network, draw_images, tmp_path):
    torch_momentum = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9)  # noqa: E731
    for optimizer in (torch_momentum, lambda parameters: torch.optim.Adam(parameters, lr=0.01)):
        made = {"make_optimizer": optimizer, "augment": lambda x: x * 0.9}
        adapter, other = build(**made), build(build_network(seed=5), **made)
        adapter(draw_images(seed=1))
        adapter.save(tmp_path / "adapter.safetensors")
        other.load(tmp_path / "adapter.safetensors")
        assert same(adapter.state_dict(), other.state_dict())
        for seed in (2, 3):
            assert torch.equal(adapter(draw_images(seed=seed)), other(draw_images(seed=seed)))


def test_frozen_parameters_stay(build, network, images):
    network[0].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    adapter = build(network)
    adapter(images)
    assert torch.equal(network[0].weight, before["0.weight"])
    assert not torch.equal(network[5].weight, before["5.weight"])
    assert torch.equal(adapter.teacher.module[0].weight, before["0.weight"])


def test_release_gives_the_statistics_back(build, network, images):
    kept = copy.deepcopy(dict(network.named_buffers()))
    adapter = build(network)
    adapter(images)
    assert not any(name.endswith("running_mean") for name, _ in network.named_buffers())
    assert adapter.release() is network
    assert all(torch.equal(kept[name], buffer) for name, buffer in network.named_buffers())
    assert kept.keys() == dict(network.named_buffers()).keys()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_serving_loop_may_switch_gradients_off(build, images, context):
    plain, served = build(augment=lambda x: x * 0.9), build(augment=lambda x: x * 0.9)
    for _ in range(2):
        expected = plain(images)
        with context():
            found = served(images * 1)  # made inside, as a loop makes it
            served.predict(images * 1)
        assert torch.equal(found, expected)
        assert not found.requires_grad
    assert same(plain.state_dict(), served.state_dict())


def test_everything_may_happen_in_inference_mode(build, build_network, draw_images, tmp_path):
    labels = torch.arange(8) % 4
    outputs = []
    for context in (torch.inference_mode, torch.enable_grad):
        network = build_network()
        with context():
            source = [(draw_images(seed=9), labels)]
            adapter = build(network, source=source, source_weight=1.0, augment=lambda x: x * 0.9)
            adapter.warm_up(source, 2)
            adapter(draw_images(seed=1))
            adapter.save(tmp_path / "state.safetensors")
            adapter.reset()
            adapter(draw_images(seed=2))
            adapter.load(tmp_path / "state.safetensors")
        outputs.append([adapter(draw_images(seed=seed)) for seed in (3, 4)])  # and go on outside of it
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_calling_train_does_not_wake_dropout(build, build_network, images):
    network = build_network()
    network.insert(6, torch.nn.Dropout(0.9))
    adapter = build(network, split="8").train()
    assert torch.equal(adapter.predict(images), adapter.predict(images))


def test_adaptation_leaves_the_global_generator_alone(build, network, images):
    before = torch.random.get_rng_state()
    adapter = build(network)
    adapter.warm_up([images], 1)
    adapter(images)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_input(build, build_network, draw_images, dtype):
    adapter = build(build_network(dtype=dtype), prototypes=torch.randn(4, 6, dtype=dtype))
    assert adapter(draw_images(dtype=dtype)).dtype == dtype


def test_autocast_is_safe(build, build_network, draw_images):
    network, images = build_network(dtype=torch.float32), draw_images(dtype=torch.float32)
    adapter = build(network, prototypes=torch.rand(4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        logits = [adapter(images) for _ in range(3)]
    assert all(found.isfinite().all() for found in logits)
    assert network[0].weight.dtype == torch.float32


# --- images ----------------------------------------------------------------------------------------


@given(seed=seeds, channels=st.sampled_from([1, 2, 3]), per_sample=st.booleans())
def test_augmented_images_are_images(seed, channels, per_sample):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, channels, 7, 10, generator=generator)
    augment = TestTimeAugment(per_sample=per_sample, generator=generator)
    found = augment(images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert 0 <= found.min() <= found.max() <= 1


@given(seed=seeds)
def test_parameters_are_drawn_once_per_batch_or_once_per_image(seed):
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    for per_sample in (False, True):
        generator = torch.Generator().manual_seed(seed)
        augment = TestTimeAugment(per_sample=per_sample, noise_std=0.0, generator=generator)
        first, second = augment(image.expand(2, -1, -1, -1))
        assert torch.allclose(first, second) != per_sample


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_severity(kind):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 7, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    distances = []
    for severity in range(1, 6):
        corrupted = corrupt(images, kind, severity, torch.Generator().manual_seed(1))
        assert corrupted.shape == images.shape
        assert 0 <= corrupted.min() <= corrupted.max() <= 1
        assert torch.equal(corrupted, corrupt(images, kind, severity, torch.Generator().manual_seed(1)))
        distances.append((corrupted - images).norm().item())
    assert 0 < distances[0] < distances[-1]
    if kind != "pixelate":  # half the side divides it evenly, and so does less harm than a little more
        assert distances == sorted(distances)


# --- streams ---------------------------------------------------------------------------------------


class Map(torch.utils.data.Dataset):
    """A map-style data set."""

    def __init__(self, pair):
        self.pair = pair

    def __len__(self):
        return len(self.pair[0])

    def __getitem__(self, index):
        return self.pair[0][index], int(self.pair[1][index])


@st.composite
def some_domains(draw):
    generator = torch.Generator().manual_seed(draw(seeds))
    domains = {}
    for index in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 9))
        images = torch.arange(length).view(-1, 1) + 100.0 * index
        pair = images, torch.randint(3, (length,), generator=generator)
        domains[f"domain {index}"] = Map(pair) if draw(st.booleans()) else pair
    return domains, draw(st.integers(1, 5)), generator


def contents(domains):
    pairs = {name: domain.pair if isinstance(domain, Map) else domain for name, domain in domains.items()}
    return sorted(
        (name, *pair)
        for name, (x, y) in pairs.items()
        for pair in zip(x.flatten().tolist(), y.tolist(), strict=True)
    )


def flattened(batches):
    return [
        (name, image, label)
        for images, labels, names in batches
        for name, image, label in zip(names, images.flatten().tolist(), labels.tolist(), strict=True)
    ]


@given(drawn=some_domains())
def test_every_stream_holds_every_sample_once(drawn):
    domains, batch_size, generator = drawn
    for make in (continual_stream, mixed_stream, correlated_stream):
        batches = list(make(domains, batch_size, generator=generator))
        assert sorted(flattened(batches)) == contents(domains)
        assert all(len(batch.labels) <= batch_size for batch in batches)
        whole = list(make(domains, batch_size, drop_last=True, generator=generator))
        assert all(len(batch.labels) == batch_size for batch in whole)
        if make is not mixed_stream:
            assert all(len(set(batch.domains)) == 1 for batch in batches)
            order = [name for name, _, _ in flattened(batches)]
            assert order == sorted(order)


@given(drawn=some_domains(), loops=st.integers(1, 3))
def test_loops_repeat_the_sequence_of_domains(drawn, loops):
    domains, batch_size, generator = drawn
    once = [batch.domains for batch in continual_stream(domains, batch_size, generator=generator)]
    again = [
        batch.domains for batch in continual_stream(domains, batch_size, loops=loops, generator=generator)
    ]
    assert again == loops * once


@given(drawn=some_domains())
def test_a_correlated_stream_is_sorted_by_class(drawn):
    domains, batch_size, generator = drawn
    for name in domains:
        batches = list(correlated_stream({name: domains[name]}, batch_size, generator=generator))
        labels = [label for _, _, label in flattened(batches)]
        assert labels == sorted(labels)


def test_severity_rises_and_falls_before_the_next_corruption():
    levels = [(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))] * 5
    batches = gradual_stream({"noise": levels, "fog": levels}, batch_size=2)
    rise_and_fall = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    expected = [f"{name}-{severity}" for name in ("noise", "fog") for severity in rise_and_fall]
    assert [batch.domains[0] for batch in batches] == expected


@given(drawn=some_domains(), seed=seeds)
def test_errors_and_confusion_are_counts(drawn, seed):
    domains, batch_size, generator = drawn
    batches = list(mixed_stream(domains, batch_size, generator=generator))
    answers = torch.Generator().manual_seed(seed)
    logits = [torch.randn(len(labels), 3, generator=answers) for _, labels, _ in batches]
    waiting = iter(logits)
    result = evaluate_stream(lambda images: next(waiting), batches)
    wrong, confusion = {name: [] for name in domains}, torch.zeros(3, 3, dtype=torch.long)
    for (_, labels, names), found in zip(batches, logits, strict=True):
        for name, label, guess in zip(names, labels.tolist(), found.argmax(1).tolist(), strict=True):
            wrong[name].append(float(label != guess))
            confusion[label, guess] += 1
    assert result.error_by_domain == pytest.approx({name: sum(x) / len(x) for name, x in wrong.items()})
    assert torch.equal(result.confusion, confusion)
    assert result.mean == pytest.approx(sum(sum(x) / len(x) for x in wrong.values()) / len(wrong))


def test_an_oracle_may_reset_at_each_shift(build, draw_images):
    adapter = build(augment=lambda x: x * 0.9)
    labels = torch.zeros(8, dtype=torch.long)
    stream = [(draw_images(seed=seed), labels, domain) for seed, domain in enumerate("aabbb")]
    calls = []
    adapter.reset = lambda reset=adapter.reset: calls.append(1) or reset()
    evaluate_stream(adapter, stream, reset_each_shift=True)
    assert len(calls) == 1
    after = copy.deepcopy(adapter.state_dict())
    adapter.reset()
    for images, _, _ in stream[2:]:
        adapter(images)
    assert same(after, adapter.state_dict())


def test_a_model_split_by_name_and_by_parts_is_the_same(network, images):
    by_name, by_parts = SplitModel(network, "7"), SplitModel(network, (network[:7], network[7]))
    for one, other in zip(by_name(images), by_parts(images), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(by_name.features(images), by_parts.features(images))
    assert not network[7]._forward_pre_hooks
