"""The same numbers from outside the code: naive loops, hand-written steps, other processes."""

import copy
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from robustmeanteacher import (
    EMATeacher,
    RobustMeanTeacher,
    RobustMeanTeacherConfig,
    SlidingWindow,
    TestTimeAugment,
    corrupt,
    evaluate_stream,
    nearest_prototypes,
    prototype_contrastive_loss,
    source_prototypes,
    symmetric_cross_entropy,
    symmetric_cross_entropy_gradient,
    use_batch_statistics,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_symmetric_cross_entropy_of_two_coins_by_hand():
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.9, 0.1])
    expected = -0.75 * (0.9 * math.log(0.7) + 0.1 * math.log(0.3)) - 0.25 * (
        0.7 * math.log(0.9) + 0.3 * math.log(0.1)
    )
    found = symmetric_cross_entropy(p.log()[None], q.log()[None], alpha=0.25)
    assert found.item() == pytest.approx(expected, rel=1e-6)


# --- the contrastive loss, anchor by anchor ---------------------------------------------------------


def naive_contrastive_loss(prototypes, features, augmented, projector, temperature):
    views = []
    for n in range(len(features)):
        similarity = [cosine_similarity(features[n], prototype, dim=0).item() for prototype in prototypes]
        nearest = prototypes[similarity.index(max(similarity))]
        views.append([nearest, features[n], augmented[n]])
    z = [[projector(view) / projector(view).norm() for view in sample] for sample in views]
    every = [(n, v) for n in range(len(z)) for v in range(3)]
    total = 0.0
    for n, v in every:
        others = [(m, w) for m, w in every if (m, w) != (n, v)]
        denominator = sum(torch.exp(z[n][v] @ z[m][w] / temperature) for m, w in others)
        for w in range(3):
            if w != v:
                total = total - 0.5 * torch.log(torch.exp(z[n][v] @ z[n][w] / temperature) / denominator)
    return total / len(every)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_contrastive_loss_and_its_gradients(temperature):
    projector = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for index, parameter in enumerate(projector.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=index))
    prototypes, features, augmented = normal(3, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)
    inputs = [features.requires_grad_(), augmented.requires_grad_(), *projector.parameters()]
    ours = prototype_contrastive_loss(prototypes, features, augmented, projector, temperature)
    theirs = naive_contrastive_loss(prototypes, features, augmented, projector, temperature)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_the_nearest_prototype_is_the_one_of_largest_cosine():
    features, prototypes = normal(50, 6), normal(9, 6, seed=1) * torch.arange(1, 10).unsqueeze(1)
    expected = cosine_similarity(features[:, None], prototypes[None], dim=-1).argmax(1)
    assert torch.equal(nearest_prototypes(features, prototypes), expected)


@pytest.mark.parametrize("cap", [3, 4])
def test_prototypes_stop_after_the_batch_that_reaches_the_cap(cap):
    batches = [(torch.full((2, 1), float(index)), torch.tensor([0, 1])) for index in range(5)]
    assert source_prototypes(lambda x: x, batches, 2, max_samples=cap).tolist() == [[0.5], [0.5]]


# --- one step of adaptation, written out ------------------------------------------------------------


def test_adaptation_is_the_paper_written_out(build, build_network, draw_images):
    batches = [draw_images(seed=seed) for seed in range(3)]
    source = [(draw_images(seed=9), torch.arange(8) % 4), (draw_images(seed=10), torch.arange(8) % 4)]
    numbers = {"self_training_weight": 0.7, "contrastive_weight": 1.3, "source_weight": 0.6, "momentum": 0.9}
    augment = lambda x: (x * 0.8).flip(-1)  # noqa: E731
    adapter = build(augment=augment, source=source, alpha=0.3, temperature=0.2, **numbers)

    student = build_network()
    student[1].track_running_stats, student[1].running_mean, student[1].running_var = False, None, None
    teacher, projector = copy.deepcopy(student), copy.deepcopy(adapter.projector)
    optimizer = torch.optim.Adam([*student.parameters(), *projector.parameters()], lr=1e-2)

    def sce(p, q):
        forward = -(q.softmax(1) * p.log_softmax(1)).sum(1)
        return 0.7 * forward - 0.3 * (p.softmax(1) * q.log_softmax(1)).sum(1)

    for index, images in enumerate(batches):
        features, augmented = student[:7](images), student[:7](augment(images))
        logits, logits_augmented = student[7](features), student[7](augmented)
        target = teacher(images).detach()
        source_images, labels = source[index % 2]
        loss = (
            0.7 * (0.5 * sce(logits, target) + 0.5 * sce(logits_augmented, target)).mean()
            + 1.3 * naive_contrastive_loss(adapter.prototypes, features, augmented, projector, 0.2)
            + 0.6 * cross_entropy(student(source_images), labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.mul_(0.9).add_(0.1 * other)
        torch.testing.assert_close(adapter(images), (logits + target).detach())
    for mine, other in zip(adapter.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(adapter.teacher.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_warm_up_ramps_the_learning_rate(build, build_network, draw_images):
    batches = [draw_images(seed=seed) for seed in range(3)]
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
    adapter = build(make_optimizer=sgd, momentum=0.9)
    adapter.warm_up([(batch, None) for batch in batches], steps=4)  # the loader is read twice

    student = build_network()
    student[1].track_running_stats, student[1].running_mean, student[1].running_var = False, None, None
    teacher = EMATeacher(student, 0.9)
    for step in range(4):
        images = batches[step % 3]
        loss = symmetric_cross_entropy(student(images), teacher(images))
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(student.parameters(), gradients, strict=True):
                parameter -= 0.5 * (step + 1) / 4 * gradient
        teacher.update(student)
    assert adapter.optimizer.param_groups[0]["lr"] == 0.5
    for mine, other in zip(adapter.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_source_statistics_are_used_when_asked_for(build, build_network, images):
    source = build_network()
    adapter = build(batch_norm="source")
    torch.testing.assert_close(adapter.predict(images[:1]), 2 * source(images[:1]))
    torch.testing.assert_close(adapter(images), 2 * source(images))


# --- the teacher ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "mean", "count"), [("skip", 0.0, 0), ("copy", 1.0, 3), ("ema", 0.75, 3)])
def test_buffers_follow_their_rule(rule, mean, count):
    student = nn.BatchNorm1d(2)
    teacher = EMATeacher(student, momentum=0.5, buffers=rule)
    student.running_mean.fill_(1.0)
    student.num_batches_tracked.fill_(3)
    teacher.update(student)
    teacher.update(student)
    assert teacher.module.running_mean.tolist() == [mean, mean]
    assert teacher.module.num_batches_tracked.item() == count


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_by_hooks_can_be_copied():
    student = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)), nn.ReLU())
    images = torch.rand(4, 3)
    student(images).sum().backward()  # leaves a computed weight that deepcopy alone refuses
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(student)
    teacher = EMATeacher(student, momentum=0.0)
    torch.testing.assert_close(teacher(images), student(images))
    with torch.no_grad():
        student[0].weight_g.mul_(2)
    teacher.update(student)
    torch.testing.assert_close(teacher(images), student(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_moves_as_far_as_one_in_single(dtype):
    student = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)).to(dtype)
    with torch.no_grad():
        student[0].weight.fill_(0.125)
    teacher = EMATeacher(student, 0.999, buffers="ema")
    with torch.no_grad():
        student[0].weight.add_(0.25)
    student[1].running_mean.add_(0.25)
    for _ in range(100):
        teacher.update(student)
    moved = 0.25 * (1 - 0.999**100)  # 0.0238; a bfloat16 average moves by 0.0099
    assert teacher.module[0].weight.dtype == dtype
    precision = {"atol": 0.125 * torch.finfo(dtype).eps, "rtol": 0}
    found = teacher.module[0].weight.float() - 0.125
    torch.testing.assert_close(found, torch.full((3, 4), moved), **precision)
    torch.testing.assert_close(teacher.module[1].running_mean.float(), torch.full((3,), moved), **precision)
    single = teacher.float()  # gives what was averaged, not what it was rounded to
    torch.testing.assert_close(single.module[0].weight, torch.full((3, 4), 0.125 + moved), atol=1e-6, rtol=0)
    assert [name for name in single.state_dict() if name.startswith("average")] == []


def test_averages_of_half_precision_survive_files_and_casts_and_yield_to_loaded_weights():
    student = nn.Linear(4, 3, bias=False).bfloat16()
    nn.init.zeros_(student.weight)
    first, second = EMATeacher(student), EMATeacher(student)
    nn.init.ones_(student.weight)
    for _ in range(10):
        first.update(student)
    second.load_state_dict(first.state_dict())
    second.to("cpu", torch.bfloat16)
    for teacher in (first, second):
        for _ in range(10):
            teacher.update(student)
        expected = torch.full((3, 4), 1 - 0.999**20)
        torch.testing.assert_close(teacher.average_0, expected, atol=1e-6, rtol=0)
    first.module.load_state_dict(student.state_dict())  # behind the teacher's back
    first.update(student)
    assert torch.equal(first.module.weight, student.weight)


def test_a_teacher_may_be_cast_to_half_precision_afterwards():
    student = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(student.weight)
    teacher = EMATeacher(student).bfloat16()
    nn.init.ones_(student.weight)
    for _ in range(100):
        teacher.update(student)
    torch.testing.assert_close(teacher.average_0, torch.full((3, 4), 1 - 0.999**100), atol=1e-6, rtol=0)
    with pytest.raises(
        ValueError, match="model must be of the architecture that was copied, 1 tensors, got 2"
    ):
        teacher.update(nn.Linear(4, 3))


def test_losses_and_nearest_prototypes_in_half_precision_are_those_in_single():
    p, q = normal(4, 9).bfloat16(), normal(4, 9, seed=1).bfloat16()
    for function in (symmetric_cross_entropy, symmetric_cross_entropy_gradient):
        torch.testing.assert_close(function(p, q), function(p.float(), q.float()))
    # Prototypes that bfloat16 can tell apart, but whose similarities it cannot.
    prototypes = torch.tensor([[1.0, 0.0], [1.0, 0.0625], [1.0, 0.125]]).bfloat16()
    features = torch.tensor([[1.0, 0.046875], [1.0, 0.109375]]).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_prototypes(features, prototypes).tolist() == [1, 2]


# --- models as others build them --------------------------------------------------------------------


class Wrapped(nn.Module):
    """Gives its logits as a model hub's classes do, and calls its last layer by keyword."""

    def __init__(self, network, kind):
        super().__init__()
        self.body, self.head, self.kind = network[:7], network[7], kind

    def forward(self, images):
        logits = self.head(input=self.body(images))
        kinds = {"object": SimpleNamespace(loss=None, logits=logits), "mapping": {"logits": logits}}
        return (kinds | {"tuple": (logits,)})[self.kind]


@pytest.mark.parametrize("kind", ["object", "mapping"])
def test_a_model_may_return_an_output_with_logits(build, build_network, draw_images, kind):
    batches = [draw_images(seed=seed) for seed in range(2)]
    found = []
    for model, split in ((build_network(), "7"), (Wrapped(build_network(), kind), "head")):
        source = [(draw_images(seed=9), torch.arange(8) % 4)]
        adapter = build(model, split=split, source=source, source_weight=1.0, augment=lambda x: x * 0.9)
        adapter.warm_up(source, 1)
        found.append([*(adapter(batch) for batch in batches), adapter.predict(batches[0])])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    stream = [(batches[0], torch.arange(8) % 4, "day")]
    plain, wrapped = build_network(), Wrapped(build_network(), kind)
    assert evaluate_stream(plain, stream).mean == evaluate_stream(wrapped, stream).mean


def test_compiled_models_adapt_under_the_names_that_they_have_without(build, build_network, draw_images):
    batches = [draw_images(seed=seed) for seed in range(2)]
    adapters = []
    for compiled, split in ((False, "7"), (True, "7"), (True, "_orig_mod.7")):
        network = build_network()
        model = torch.compile(network, backend="eager") if compiled else network
        adapters.append(build(model, split=split, augment=lambda x: x * 0.9))
        assert adapters[-1].release() is network
        assert EMATeacher(model).state_dict().keys() == EMATeacher(network).state_dict().keys()
    plain, *others = adapters
    for batch in batches:
        expected = plain(batch)
        assert all(torch.equal(other(batch), expected) for other in others)
    for other in others:
        assert other.state_dict().keys() == plain.state_dict().keys()
        other.load_state_dict(plain.state_dict())


def test_compiled_parts_of_a_model_adapt_as_they_would_uncompiled(build, build_network, draw_images):
    plain, part, inside = build_network(), build_network(), build_network()
    inside.compile(backend="eager")
    augment = lambda x: x * 0.9  # noqa: E731
    adapters = [build(plain, augment=augment), build(inside, augment=augment)]
    nested = nn.Sequential(torch.compile(part[:7], backend="eager"), part[7])
    adapters.append(build(nested, split="1", augment=augment))
    for count in (8, 5, 8):
        expected, *others = (adapter(draw_images(count=count, seed=count)) for adapter in adapters)
        for found in others:
            torch.testing.assert_close(found, expected)


def test_requests_of_any_size_need_no_window_without_batch_norm(build, build_network, draw_images):
    network = build_network()
    network[1] = nn.GroupNorm(1, 5).double()
    adapter = build(network)
    for updates, count in enumerate((16, 7, 1, 16), start=1):
        assert adapter(draw_images(count=count)).shape == (count, 4)
        assert adapter.num_updates == updates


def test_the_progress_of_the_adaptation_can_be_watched(build, build_network, images, tmp_path):
    adapter = build(contrastive_weight=0.0, augment=lambda x: x * 0.9)
    assert adapter.last_loss.isnan()
    student = build_network()
    use_batch_statistics(student)
    plain, augmented = student(images), student(images * 0.9)
    expected = symmetric_cross_entropy(plain, plain) + symmetric_cross_entropy(augmented, plain)
    adapter.warm_up([images], 2)
    assert (adapter.num_updates.item(), adapter.last_loss.isnan().item()) == (0, True)
    adapter = build(contrastive_weight=0.0, augment=lambda x: x * 0.9)
    adapter(images)
    torch.testing.assert_close(adapter.last_loss, 0.5 * expected.detach())
    adapter(images)
    adapter.predict(images)
    assert adapter.num_updates.item() == 2
    adapter.save(tmp_path / "state.safetensors")
    adapter.reset()
    assert (adapter.num_updates.item(), adapter.last_loss.isnan().item()) == (0, True)
    adapter.load(tmp_path / "state.safetensors")
    assert adapter.num_updates.item() == 2
    old = adapter.state_dict()
    del old["num_updates"]  # a state of version 0.1
    adapter.load_state_dict(old)
    assert adapter.num_updates.item() == 0


def test_an_adapter_can_be_copied_with_its_loader_and_its_generator(build, draw_images):
    pairs = torch.utils.data.TensorDataset(draw_images(seed=9), torch.arange(8) % 4)
    source = torch.utils.data.DataLoader(pairs, batch_size=8)
    adapter = build(source=source, source_weight=1.0)
    adapter(draw_images(seed=1))
    other, before = copy.deepcopy(adapter), copy.deepcopy(adapter.state_dict())
    found = [other(draw_images(seed=seed)) for seed in (2, 3)]
    assert all(
        torch.equal(before[key], value)
        for key, value in adapter.state_dict().items()
        if key in before and key != "_extra_state"
    )
    expected = [adapter(draw_images(seed=seed)) for seed in (2, 3)]
    assert all(torch.equal(one, another) for one, another in zip(found, expected, strict=True))


def test_an_augmentation_may_write_into_what_it_is_given(build, build_network, images):
    kept = images.clone()
    inplace, plain = (build(build_network(), augment=f) for f in (lambda x: x.mul_(0.5), lambda x: x * 0.5))
    for _ in range(2):
        assert torch.equal(inplace(images), plain(kept))
        assert torch.equal(images, kept)
    assert isinstance(
        build(build_network(), augment=nn.Sequential())._augment, nn.Sequential
    )  # empty, and so false


def test_prototypes_of_another_dtype_are_taken_to_that_of_the_model(build, build_network, draw_images):
    """Prototypes taken in single precision, the model served in half."""
    prototypes = torch.randn(4, 6, generator=torch.Generator().manual_seed(7))
    adapter = build(build_network(dtype=torch.bfloat16), prototypes=prototypes, augment=lambda x: x * 0.9)
    assert {parameter.dtype for parameter in adapter.projector.parameters()} == {torch.bfloat16}
    before = adapter.projector[0].weight.clone()
    assert adapter(draw_images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert adapter.last_loss.dtype == torch.float32
    assert not torch.equal(adapter.projector[0].weight, before)


def test_numbers_may_come_from_numpy(build, images, tmp_path):
    import numpy as np

    numbers = {"source_weight": np.float32(0), "momentum": np.float32(0.5), "projection_dim": np.int64(16)}
    adapter = build(**numbers)
    adapter(images)
    adapter.save(tmp_path / "state.safetensors")
    build(momentum=0.5, projection_dim=16).load(tmp_path / "state.safetensors")
    assert SlidingWindow(adapter, np.int64(4)).window == 4
    with pytest.raises(TypeError, match=r"projection_dim must be an integer, got 16\.0"):
        RobustMeanTeacherConfig(projection_dim=16.0)


def test_labels_of_small_integer_types_are_counted_right():
    logits = torch.eye(30)
    stream = [(logits, torch.arange(30, dtype=torch.uint8), "day")]
    assert torch.equal(evaluate_stream(lambda x: x, stream).confusion, torch.eye(30, dtype=torch.long))
    found = source_prototypes(lambda x: x, [stream[0][:2]], 30)
    assert torch.equal(found, logits)


def test_source_labels_may_be_soft(build, build_network, draw_images):
    """Those of mixed images; one-hot ones are the classes themselves."""
    classes = torch.arange(8) % 4
    outputs = []
    for labels in (classes, torch.eye(4, dtype=torch.float64)[classes]):
        adapter = build(
            build_network(),
            source=[(draw_images(seed=9), labels)],
            source_weight=1.0,
            augment=lambda x: x * 0.9,
        )
        outputs.append([adapter(draw_images(seed=seed)) for seed in (1, 2)])
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other)


# --- single samples ---------------------------------------------------------------------------------


def test_a_sliding_window_predicts_each_sample_and_adapts_once_a_window(build, build_network, draw_images):
    stream = draw_images(count=9, seed=3)
    serve, adapter = (build(augment=lambda x: x * 0.9) for _ in range(2))
    window = SlidingWindow(serve, window=3)
    found = torch.cat([window(image[None]) for image in stream])

    expected = [2 * build_network()(stream[:1])]  # alone: the statistics of the source
    for index in range(1, 9):
        buffer = stream[max(0, index - 2) : index + 1]
        logits = adapter.adapt(buffer) if index % 3 == 2 else adapter.predict(buffer)
        expected.append(logits[-1:])
    torch.testing.assert_close(found, torch.cat(expected))
    for mine, other in zip(serve.student.parameters(), adapter.student.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_sliding_window_takes_several_at_a_time(build, draw_images):
    stream = draw_images(count=8, seed=3)
    one, other = (build(augment=lambda x: x * 0.9) for _ in range(2))
    window = SlidingWindow(one, window=4)
    found = torch.cat([window(part) for part in stream.split(2)])
    expected = [other.predict(stream[:2]), other.adapt(stream[:4])[2:]]
    expected += [other.predict(stream[2:6])[2:], other.adapt(stream[4:])[2:]]
    torch.testing.assert_close(found, torch.cat(expected))


def test_without_batch_statistics_only_the_new_sample_is_predicted(build, draw_images):
    adapter = build(batch_norm="source")
    sizes = []
    adapter.student.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    window = SlidingWindow(adapter, window=3)
    for image in draw_images(count=3):
        window(image[None])
    assert sizes == [1, 1, 6]  # the last: the window and its augmented view, in one pass


def test_requests_of_any_size_have_one_entry_that_can_be_reset_and_carried_on(build, draw_images):
    stream = draw_images(count=18, seed=3)
    serve, adapter = (build(augment=lambda x: x * 0.9) for _ in range(2))
    window = SlidingWindow(serve, window=4)
    requests = stream.split([2, 1, 7, 1, 5, 2])
    memory = torch.empty_like(stream)

    def answer(request):  # as a server that reads every request into the same memory
        return window(memory[: len(request)].copy_(request))

    found = [answer(request) for request in requests]
    expected = [
        adapter.predict(stream[:2]),
        adapter.predict(stream[:3])[2:],
        adapter.adapt(stream[3:10]),  # larger than the window: whole
        adapter.predict(stream[7:11])[3:],
        adapter.adapt(stream[11:16]),
        adapter.predict(stream[14:])[2:],
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert adapter.num_updates == serve.num_updates == 2

    window.reset()
    again = [answer(request) for request in requests[:4]]
    assert all(torch.equal(one, other) for one, other in zip(again, found, strict=False))
    other = SlidingWindow(build(augment=lambda x: x * 0.9), window=4)
    other.load_state_dict(copy.deepcopy(window.state_dict()))
    for request, expected in zip(requests[4:], found[4:], strict=True):
        assert torch.equal(other(request), expected)


@pytest.mark.parametrize("batch_norm", ["batch", "source"])
def test_two_views_share_a_pass_where_no_layer_uses_batch_statistics(
    build, build_network, draw_images, batch_norm
):
    sizes, adapters = [], []
    for one_pass in (True, False):
        network = build_network()
        adapters.append(build(network, batch_norm=batch_norm, augment=lambda x: x * 0.9))
        adapters[-1]._one_pass &= one_pass
    adapters[0].student.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for seed in range(2):
        images = draw_images(seed=seed)
        torch.testing.assert_close(adapters[0](images), adapters[1](images))
    for one, other in zip(*(adapter.student.parameters() for adapter in adapters), strict=True):
        torch.testing.assert_close(one, other)
    assert sizes == ([8, 8] * 2 if batch_norm == "batch" else [16] * 2)


def test_two_views_stay_apart_where_they_would_meet_or_do_not_fit(build, build_network, images):
    network = build_network()
    network[1] = nn.BatchNorm2d(5, track_running_stats=False).double().eval()
    sizes = []
    for model, augment in ((network, lambda x: x * 0.9), (build_network(), lambda x: x[..., 1:, 1:])):
        adapter = build(model, batch_norm="source", augment=augment)
        model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        adapter(images)
    assert sizes == [8, 8] * 2


# --- images, pixel by pixel ---------------------------------------------------------------------------


def still(**changes):
    """An augmentation that does nothing but what `changes` ask for."""
    one, zero = (1.0, 1.0), (0.0, 0.0)
    nothing = {"brightness": one, "contrast": one, "saturation": one, "gamma": one, "scale": one, "hue": zero}
    nothing |= {"degrees": 0.0, "translate": 0.0, "blur_sigma": (1e-3, 1e-3), "noise_std": 0.0}
    return TestTimeAugment(**(nothing | {"flip_probability": 0.0} | changes))


def some_photos(height=6, width=8):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_an_augmentation_of_nothing_is_the_identity():
    torch.testing.assert_close(still()(some_photos()), some_photos())


def test_normalised_images_are_augmented_as_the_images_they_were():
    images = some_photos()
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.5, 0.25)):
        plain, normalised = (
            TestTimeAugment(generator=torch.Generator().manual_seed(0), **numbers)
            for numbers in ({}, {"mean": mean, "std": std})
        )
        centre, spread = (
            torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1) for numbers in (mean, std)
        )
        expected = (plain(images) - centre) / spread
        torch.testing.assert_close(normalised((images - centre) / spread), expected)


@pytest.mark.parametrize("change", [TestTimeAugment, lambda generator: lambda x: corrupt(x, "rotation", 5)])
def test_images_in_half_precision_are_moved_to_where_those_in_single_are(change):
    images = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    images[..., ::8] = 1
    half, single = (
        change(generator=torch.Generator().manual_seed(0))(images.to(dtype))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.01, rtol=0)


def test_colours_are_those_of_colorsys():
    import colorsys

    images = some_photos()
    shifted = still(hue=(0.05, 0.05))(images)
    for n in range(2):
        for y in range(6):
            for x in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*images[n, :, y, x].tolist())
                expected = colorsys.hsv_to_rgb((hue + 0.05) % 1, saturation, value)
                assert shifted[n, :, y, x].tolist() == pytest.approx(expected, abs=1e-7)
    gray = torch.full((1, 3, 4, 4), 0.3, dtype=torch.float64)
    torch.testing.assert_close(still(hue=(0.3, 0.3))(gray), gray)


def test_factors_are_applied_as_image_libraries_do():
    images = some_photos()
    gray = (0.2989 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]).unsqueeze(1)
    close = torch.testing.assert_close
    close(still(brightness=(1.4, 1.4))(images), (1.4 * images).clamp(0, 1))
    close(still(gamma=(0.7, 0.7))(images), images**0.7)
    close(still(saturation=(0.5, 0.5))(images), 0.5 * images + 0.5 * gray)
    mean = gray.mean((1, 2, 3), keepdim=True)
    close(still(contrast=(1.3, 1.3))(images), (1.3 * images - 0.3 * mean).clamp(0, 1))


def bilinear(image, x, y):
    """Value at a point, the edge repeated without end."""
    height, width = image.shape
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
            total += wx * wy * image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)].item()
    return total


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_geometry_is_rotation_scaling_shift_then_flip(monkeypatch, flip):
    height, width, degrees, scale, shift_x, shift_y = 6, 8, 13.0, 1.1, 0.11, -0.06
    augment = still(degrees=15.0, scale=(scale, scale), translate=0.125, flip_probability=flip)
    draws = {(-15.0, 15.0): [degrees], (-0.125, 0.125): [shift_x, shift_y]}
    ordinary = TestTimeAugment._draw

    def draw(self, images, low, high):
        found = ordinary(self, images, low, high)
        return torch.full_like(found, draws[low, high].pop(0)) if draws.get((low, high)) else found

    monkeypatch.setattr(TestTimeAugment, "_draw", draw)
    images = some_photos(height, width)
    found = augment(images)

    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for row in range(height):
        for column in range(width):
            out_x = width - 1 - column if flip else column
            x = out_x + 0.5 - width / 2 - shift_x * width
            y = row + 0.5 - height / 2 - shift_y * height
            at_x = (cos * x + sin * y) / scale + width / 2 - 0.5
            at_y = (-sin * x + cos * y) / scale + height / 2 - 0.5
            expected = bilinear(images[1, 2], at_x, at_y)
            assert found[1, 2, row, column].item() == pytest.approx(expected, abs=1e-6)


def test_the_blur_sees_beyond_the_crop_and_sums_to_one():
    images = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    images[0, 0, 4, 4] = 1
    weights = torch.tensor([math.exp(-(d**2) / (2 * 0.5**2)) for d in (-2, -1, 0, 1, 2)], dtype=torch.float64)
    weights = weights / weights.sum()
    found = still(blur_sigma=(0.5, 0.5))(images)[0, 0]
    torch.testing.assert_close(found[2:7, 2:7], weights[:, None] * weights[None])
    flat = torch.full((1, 1, 5, 5), 0.4, dtype=torch.float64)
    torch.testing.assert_close(still(blur_sigma=(0.5, 0.5))(flat), flat)


def test_corruptions_by_hand():
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inverted = images.clone()
    inverted[..., :2] = 1 - images[..., :2]  # 0.4 of four columns, rounded
    torch.testing.assert_close(corrupt(images, "inversion", 2), inverted)
    contrast = 0.15 * images + 0.85 * images.mean()
    torch.testing.assert_close(corrupt(images, "contrast", 5), contrast)
    blocks = images.view(2, 2, 2, 2).mean((1, 3)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(corrupt(images, "pixelate", 3)[0, 0], blocks)
    flat = torch.full((2, 3, 16, 16), 0.5)
    for kind in ("gaussian_blur", "motion_blur"):
        torch.testing.assert_close(corrupt(flat, kind, 5), flat)
    noise = corrupt(flat, "impulse_noise", 5, torch.Generator().manual_seed(0))
    assert (noise != 0.5).double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert set(noise.unique().tolist()) == {0.0, 0.5, 1.0}


# --- compiled, and many processes ---------------------------------------------------------------------


def test_the_losses_are_one_graph_each():
    def losses(prototypes, features, augmented):
        contrast = prototype_contrastive_loss(prototypes, features, augmented)
        return contrast + symmetric_cross_entropy(features, augmented)

    inputs = normal(3, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)
    compiled = torch.compile(losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), losses(*inputs))


@pytest.fixture
def two_ranks(tmp_path, monkeypatch):
    """What two processes found that adapted together; this one is the first, so torch is loaded once more only."""
    path = Path(__file__).with_name("distributed_worker.py")
    spec = importlib.util.spec_from_file_location("robustmeanteacher_distributed_worker", path)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=worker.LIMIT
    )
    other = subprocess.Popen([sys.executable, str(path), str(tmp_path), str(store.port)])
    try:
        with torch.random.fork_rng():
            first = worker.adapt_together(store, 0)
        store.wait(["rank 1 is done"])
        store.set("rank 0 is done", "")
        assert other.wait(timeout=300) == 0
        yield first, torch.load(tmp_path / "1.pt", weights_only=True)
    finally:
        other.kill()
        other.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_two_processes_take_one_step_together(two_ranks):
    first, second = two_ranks
    assert first["parameters"].keys() == second["parameters"].keys()
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name])
    torch.testing.assert_close(first["prototypes"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert first["refused"]
    assert second["refused"]

    # By hand: rank 0's weights, the mean of the gradients of both shards.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
    gradients = []
    for rank in range(2):
        images = torch.rand(4, 2, generator=torch.Generator().manual_seed(rank))
        logits = model(images)
        plain = symmetric_cross_entropy(logits, logits.detach())
        augmented = symmetric_cross_entropy(model(0.9 * images), logits.detach())
        gradients.append(torch.autograd.grad(0.5 * (plain + augmented), list(model.parameters())))
    for parameter, *both in zip(model.parameters(), *gradients, strict=True):
        parameter.data -= 0.1 * (both[0] + both[1]) / 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(first["parameters"][name], parameter.detach())


def test_a_layer_norm_network_with_tied_weights_adapts(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
            self.head.weight = self.first.weight

        def forward(self, x):
            return self.head(self.norm(self.first(x).relu()))

    adapter = RobustMeanTeacher(
        Tied(),
        split="head",
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        prototypes=torch.eye(4),
        augment=lambda x: x * 0.9,
        config=RobustMeanTeacherConfig(source_weight=0.0, projection_dim=None),
    )
    assert not adapter.needs_batch
    assert isinstance(adapter.projector, nn.Identity)
    before = adapter.predict(torch.ones(1, 4))
    adapter(torch.rand(1, 4))
    adapter.save(tmp_path / "tied.safetensors")
    after = adapter.predict(torch.ones(1, 4))
    assert not torch.equal(before, after)
    adapter.reset()
    assert torch.equal(adapter.predict(torch.ones(1, 4)), before)
    adapter.load(tmp_path / "tied.safetensors")
    assert torch.equal(adapter.predict(torch.ones(1, 4)), after)
