import copy
import io

import pytest
import torch
from helpers import Counting, batch, make, mlp, naive_step, optimizers, seeded, squared, train
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from hypercrl import HyperNetwork, OutputRegularizer, PathImportance, continual_step

kinds = pytest.mark.parametrize("kind", ["plain", "chunked"])


def targets_of(hnet, tasks):
    return [torch.cat([piece.flatten() for piece in hnet(task).values()]).detach() for task in range(tasks)]


@kinds
@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_equal_the_naive_loop_of_the_paper(kind, lookahead, weighted):
    model, hnet = make(kind)
    _, other = make(kind)
    importance = (
        torch.rand(2, hnet.num_weights, generator=seeded(), dtype=torch.float64) if weighted else None
    )
    regularizer = OutputRegularizer(hnet, 2, beta=0.3, lookahead=lookahead, importance=importance)
    targets, ours, theirs = targets_of(other, 2), optimizers(hnet, 2), optimizers(other, 2)
    for step in range(3):
        x, y = batch(seed=step)
        found = continual_step(hnet, 2, squared(model, x, y), *ours, regularizer, batch_size=len(x), clip=0.5)
        wanted = naive_step(model, other, 2, x, y, *theirs, targets, 0.3, 0.5, lookahead, importance)
        assert found["regularizer"].item() == pytest.approx(wanted, rel=1e-6, abs=1e-12)
        assert wanted > 0 or (step == 0 and not lookahead)
    for mine, naive in zip(hnet.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-7, atol=1e-9)


@kinds
@pytest.mark.parametrize("mode", ["store", "theta"])
def test_the_regulariser_starts_at_zero_with_zero_gradient_and_grows_from_there(kind, mode):
    _, hnet = make(kind)
    regularizer = OutputRegularizer(hnet, 2, beta=2.0, targets=mode)
    loss = regularizer.loss()
    assert loss.detach() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, hnet.theta()))
    targets = targets_of(hnet, 2)
    with torch.no_grad():
        hnet.biases[-1] += 0.5
    now = targets_of(hnet, 2)
    expected = 2.0 * sum((new - old).square().sum() for new, old in zip(now, targets, strict=True)) / 2
    torch.testing.assert_close(regularizer().detach(), expected)
    drift = torch.stack([(new - old).norm() for new, old in zip(now, targets, strict=True)])
    torch.testing.assert_close(regularizer.drift(), drift)


def test_without_old_tasks_it_is_zero_and_the_targets_are_left_alone():
    model, hnet = make(tasks=1)
    regularizer = OutputRegularizer(hnet, 0)
    assert regularizer.loss() == 0
    assert regularizer.targets is None
    assert regularizer.drift().shape == (0,)
    x, y = batch()
    found = continual_step(hnet, 0, squared(model, x, y), *optimizers(hnet, 0), regularizer)
    assert found["regularizer"] == 0


@given(beta=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
def test_the_embedding_never_sees_the_regulariser(beta):
    model, hnet = make()
    with torch.no_grad():
        alone = nn.Parameter(hnet.embedding(2).clone())
    regularizer = OutputRegularizer(hnet, 2, beta=beta)
    x, y = batch()
    loss = squared(model, x, y)(hnet(alone))
    (gradient,) = torch.autograd.grad(loss, alone)
    alone.grad = gradient * min(1.0, 5.0 / (gradient.norm().item() + 1e-6))
    torch.optim.SGD([alone], lr=0.1).step()
    ours = optimizers(hnet, 2, torch.optim.SGD, lr=0.1)
    continual_step(hnet, 2, squared(model, x, y), *ours, regularizer, batch_size=8)
    torch.testing.assert_close(hnet.embedding(2), alone)


def test_old_embeddings_move_only_where_they_are_plastic():
    for plastic in (False, True):
        model, hnet = make()
        old = hnet.embedding(0).detach().clone()
        regularizer = OutputRegularizer(hnet, 2, beta=0.3, plastic_embeddings=plastic)
        ours = optimizers(hnet, 2, plastic=2 if plastic else 0)
        for seed in range(2):
            x, y = batch(seed=seed)
            continual_step(hnet, 2, squared(model, x, y), *ours, regularizer, batch_size=8)
        assert (not torch.equal(hnet.embedding(0), old)) == plastic


def test_a_larger_beta_holds_old_weights_better_and_zero_is_fine_tuning():
    drifts = []
    for beta in (0.0, 1e-2, 1.0, 1e2):
        model, hnet = make()
        drifts.append(train(model, hnet, 2, 25, beta=beta).drift().max().item())
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < 0.2 * drifts[0]
    model, one = make()
    _, two = make()
    train(model, one, 2, 5, beta=0.0)
    ours = optimizers(two, 2)
    for step in range(5):
        x, y = batch(seed=5 + step)
        continual_step(two, 2, squared(model, x, y), *ours)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["store", "theta"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_random_subset_is_divided_by_its_size(mode, weighted):
    _, hnet = make(tasks=5)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) if weighted else torch.ones(4)
    flags = {"beta": 1.0, "targets": mode}
    if weighted:
        flags["importance"] = factors[:, None].expand(4, hnet.num_weights)
    regularizer = OutputRegularizer(hnet, 4, max_tasks=2, **flags)
    everything = OutputRegularizer(hnet, 4, **flags)
    with torch.no_grad():
        hnet.weights[-1] += 0.1
    squares = factors * everything.drift().square()
    seen = set()
    for seed in range(12):
        chosen = torch.randperm(4, generator=seeded(seed))[:2]
        found = regularizer.loss(generator=seeded(seed)).detach()
        torch.testing.assert_close(found, squares[chosen].mean())
        seen.update(chosen.tolist())
    assert seen == {0, 1, 2, 3}
    torch.testing.assert_close(everything.loss().detach(), squares.mean())


def test_back_propagation_through_the_lookahead_is_the_derivative_of_the_whole():
    model, hnet = make()
    regularizer = OutputRegularizer(hnet, 2, beta=0.7, lookahead="sgd", backprop_delta=True)
    x, y = batch()
    theta, embedding = optimizers(hnet, 2, torch.optim.SGD, lr=1e-3)
    reference = copy.deepcopy(hnet)
    # By autograd from scratch: R(theta - lr * grad L(theta)), with the embedding as it was.
    values = reference.theta()
    loss = squared(model, x, y)(reference(2))
    slopes = torch.autograd.grad(loss, [*values, reference.embedding(2)], create_graph=True)
    ahead = [value - 1e-3 * slope for value, slope in zip(values, slopes, strict=False)]
    old = torch.stack(targets_of(reference, 2))
    moved = reference.generate(torch.stack(list(reference.embeddings[:2])).detach(), ahead)
    penalty = 0.7 * 8 / 2 * (moved - old).square().sum()
    pulls = torch.autograd.grad(penalty, values)
    steps = [slope.detach() + pull for slope, pull in zip(slopes, pulls, strict=False)]
    found = continual_step(
        hnet, 2, squared(model, x, y), theta, embedding, regularizer, batch_size=8, clip=None
    )
    assert found["regularizer"].item() == pytest.approx(penalty.item())
    for value, start, step in zip(hnet.theta(), values, steps, strict=True):
        torch.testing.assert_close(value, start - 1e-3 * step, rtol=1e-9, atol=1e-12)


def test_lookahead_without_its_graph_is_another_gradient():
    moved = []
    for through in (False, True):
        model, hnet = make()
        regularizer = OutputRegularizer(hnet, 2, beta=5.0, backprop_delta=through)
        ours = optimizers(hnet, 2)
        for seed in range(3):  # Adam's first change is a sign: it has no derivative
            x, y = batch(seed=seed)
            continual_step(hnet, 2, squared(model, x, y), *ours, regularizer, batch_size=8)
        moved.append(torch.cat([value.detach().flatten() for value in hnet.theta()]))
        assert torch.isfinite(moved[-1]).all()
    assert not torch.allclose(*moved)


FLAGS = [
    {},
    {"lookahead": False, "targets": "theta"},
    {"lookahead": "sgd", "max_tasks": 1},
    {"plastic_embeddings": True, "backprop_delta": True},
    {"importance": True, "targets": "theta"},
]


@kinds
@pytest.mark.parametrize("flags", FLAGS)
def test_a_run_resumed_in_the_middle_of_a_task_is_the_same_run(kind, flags):
    from safetensors.torch import load, save

    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    flags = dict(flags)
    if "importance" in flags:
        size = make(kind, model=model)[1].num_weights
        flags["importance"] = torch.rand(2, size, generator=seeded(), dtype=torch.float64)
    plastic = 2 if flags.get("plastic_embeddings") else 0

    def go(hnet, regularizer, path, ours, generator, steps):
        for seed in steps:
            x, y = batch(seed=seed)
            loss = squared(model, x, y)
            continual_step(hnet, 2, loss, *ours, regularizer, batch_size=8, path=path, generator=generator)

    hnet = make(kind, model=model)[1]
    path, generator = PathImportance(hnet(2)), seeded(3)
    regularizer, ours = OutputRegularizer(hnet, 2, beta=0.3, **flags), optimizers(hnet, 2, plastic=plastic)
    go(hnet, regularizer, path, ours, generator, range(3))
    saved = [save(one.state_dict()) for one in (hnet, regularizer, path)]
    buffer = io.BytesIO()
    torch.save([one.state_dict() for one in ours], buffer)
    noise = generator.get_state()
    go(hnet, regularizer, path, ours, generator, range(3, 6))

    again = make(kind, tasks=0, model=model)[1]
    again.load_state_dict(load(saved[0]))
    if "importance" in flags:
        flags["importance"] = torch.ones_like(flags["importance"])  # the state has the real one
    pinned, track = OutputRegularizer(again, 2, beta=0.3, **flags), PathImportance(again(2))
    pinned.load_state_dict(load(saved[1]))
    track.load_state_dict(load(saved[2]))
    buffer.seek(0)
    theirs = optimizers(again, 2, plastic=plastic)
    for one, state in zip(theirs, torch.load(buffer, weights_only=True), strict=True):
        one.load_state_dict(state)
    go(again, pinned, track, theirs, torch.Generator().set_state(noise), range(3, 6))
    for mine, other in zip(hnet.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(path.path, track.path)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused(mode):
    with mode(), pytest.raises(ValueError, match="must be called with gradients on"):
        one_step(lambda h, m: {})


@kinds
def test_buffers_that_a_pass_sets_anew_belong_to_their_task(kind):
    model = Counting().double()
    hnet = make(kind, model=model)[1]
    x, y = batch()
    for task, steps in ((1, 2), (2, 3)):
        for _ in range(steps):
            continual_step(hnet, task, squared(model, x, y), *optimizers(hnet, task))
    assert [int(hnet.buffers_of(task)["calls"]) for task in range(3)] == [0, 2, 3]
    torch.testing.assert_close(hnet.buffers_of(2)["mean"], 0.875 * x.mean(dim=0))
    assert model.calls == 0


def test_importance_comes_back_with_the_state():
    _, hnet = make()
    importance = torch.rand(2, 32, generator=seeded(), dtype=torch.float64)
    regularizer, again = OutputRegularizer(hnet, 2, importance=importance), OutputRegularizer(hnet, 2)
    state = regularizer.state_dict()
    again.load_state_dict(state)
    assert torch.equal(again.importance, importance)
    with torch.no_grad():
        hnet.theta()[0].add_(0.1)
    assert again.loss() == regularizer.loss() > 0
    with pytest.raises(ValueError, match="saved without importance"):
        again.load_state_dict(OutputRegularizer(hnet, 2).state_dict())


def test_the_state_of_other_flags_is_refused():
    _, hnet = make()
    state = OutputRegularizer(hnet, 2, beta=0.3).state_dict()
    for flags, name in (
        ({"beta": 0.1}, "beta=0.3"),
        ({"lookahead": False}, "lookahead=True"),
        ({"targets": "theta"}, "targets='store'"),
        ({"max_tasks": 1}, "max_tasks=None"),
        ({"plastic_embeddings": True}, "plastic_embeddings=False"),
        ({"backprop_delta": True}, "backprop_delta=False"),
    ):
        with pytest.raises(ValueError, match=name):
            OutputRegularizer(hnet, 2, **({"beta": 0.3} | flags)).load_state_dict(state)


def test_memory_is_counted():
    _, hnet = make(tasks=5)
    number = hnet.num_weights
    theta = sum(value.numel() for value in hnet.theta())
    assert OutputRegularizer(hnet, 4).num_bytes == 8 * (4 * number + 4 * 4)
    assert OutputRegularizer(hnet, 4, targets="theta").num_bytes == 8 * (theta + 4 * 4)


def test_it_makes_a_classifier_of_any_module_continual():
    model = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    generator = seeded()
    x = torch.randn(200, 2, generator=generator)
    labels = [(x[:, 0] > 0).long(), (x[:, 0] < 0).long()]  # the second task contradicts the first
    accuracy = {}
    for beta in (0.0, 0.05):
        hnet = HyperNetwork(model, generator=seeded(1))
        for y in labels:
            k = hnet.add_task(seeded(2 + hnet.num_tasks))
            regularizer = OutputRegularizer(hnet, k, beta=beta)
            ours = optimizers(hnet, k, lr=5e-3)
            for _ in range(60):
                loss = lambda w, y=y: nn.functional.cross_entropy(functional_call(model, w, (x,)), y)  # noqa: E731
                continual_step(hnet, k, loss, *ours, regularizer)
        model.eval()
        right = [
            (functional_call(model, hnet(k), (x,)).argmax(1) == y).float().mean().item()
            for k, y in enumerate(labels)
        ]
        model.train()
        accuracy[beta] = right
    assert min(accuracy[0.05]) > 0.9
    assert accuracy[0.0][0] < accuracy[0.05][0]


def one_step(change):
    model, hnet = make()
    x, y = batch()
    theta, embedding = optimizers(hnet, 2)
    arguments = {
        "hnet": hnet,
        "task_id": 2,
        "task_loss_fn": squared(model, x, y),
        "theta_optimizer": theta,
        "embedding_optimizer": embedding,
        "regularizer": OutputRegularizer(hnet, 2),
    }
    before = copy.deepcopy(hnet.state_dict())
    try:
        return continual_step(**(arguments | change(hnet, model)))
    finally:
        assert all(
            torch.equal(old, new)
            for old, new in zip(before.values(), hnet.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda h, m: {"task_id": 3}, ValueError, "task_id must be one of"),
        (lambda h, m: {"hnet": m}, TypeError, "hnet must be a HyperNetwork"),
        (
            lambda h, m: {"task_loss_fn": lambda w: w["0.bias"]},
            ValueError,
            r"one number as a tensor, got \(5,\)",
        ),
        (lambda h, m: {"task_loss_fn": lambda w: 1.0}, ValueError, "one number as a tensor, got float"),
        (lambda h, m: {"task_loss_fn": lambda w: torch.tensor(1.0)}, ValueError, "depends on the weights"),
        (lambda h, m: {"task_loss_fn": lambda w: m[0].weight.sum()}, ValueError, "depends on the weights"),
        (
            lambda h, m: {"task_loss_fn": lambda w: w["0.bias"].sum() * torch.nan},
            ValueError,
            "finite loss, got nan",
        ),
        (
            lambda h, m: {"task_loss_fn": lambda w: (0 * w["0.bias"]).square().sum().sqrt()},
            ValueError,
            "finite gradients, some are not",
        ),
        (
            lambda h, m: {"theta_optimizer": torch.optim.NAdam(h.theta())},
            TypeError,
            "got NAdam: pass fallback",
        ),
        (
            lambda h, m: {"theta_optimizer": torch.optim.Adam(h.theta()[1:])},
            ValueError,
            "1 parameters are missing",
        ),
        (
            lambda h, m: {"theta_optimizer": torch.optim.Adam(h.parameters())},
            ValueError,
            "would see the regulariser",
        ),
        (
            lambda h, m: {"embedding_optimizer": torch.optim.Adam([h.embedding(1)])},
            ValueError,
            "must hold hnet.embed",
        ),
        (
            lambda h, m: {"embedding_optimizer": torch.optim.Adam(h.parameters())},
            ValueError,
            "nothing of hnet.theta",
        ),
        (
            lambda h, m: {"regularizer": OutputRegularizer(h, 1)},
            ValueError,
            "made for task_id=2, it is of task 1",
        ),
        (lambda h, m: {"regularizer": OutputRegularizer(make()[1], 2)}, ValueError, "made for this hnet"),
        (lambda h, m: {"regularizer": 0.05}, TypeError, "regularizer must be an OutputRegularizer"),
        (
            lambda h, m: {"regularizer": OutputRegularizer(h, 2, plastic_embeddings=True)},
            ValueError,
            "old tasks' embeddings for plastic_embeddings, 2 are missing",
        ),
        (lambda h, m: {"batch_size": 0}, ValueError, "batch_size must be finite and above 0"),
        (lambda h, m: {"clip": -1.0}, ValueError, "clip must be"),
    ],
)
def test_a_step_that_cannot_be_right_changes_nothing(change, error, match):
    with pytest.raises(error, match=match):
        one_step(change)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta": -0.1}, "beta must be finite and at least 0"),
        ({"beta": float("nan")}, "beta must be finite"),
        ({"lookahead": "adam"}, "lookahead must be one of"),
        ({"targets": "data"}, "targets must be one of"),
        ({"max_tasks": 0}, "max_tasks must be at least 1"),
        ({"importance": torch.ones(2, 3)}, r"importance must be \(2, 32\)"),
        ({"importance": -torch.ones(2, 32)}, "importance must be finite and >= 0"),
        ({"importance": [{}]}, "one mapping for each of 2"),
        ({"importance": [{}, {}]}, "importance must give '0.weight'"),
    ],
)
def test_bad_options_of_the_regulariser_are_named(options, match):
    _, hnet = make()
    with pytest.raises(ValueError, match=match):
        OutputRegularizer(hnet, 2, **options)
    with pytest.raises(TypeError, match="importance must be a tensor or a sequence of mappings, got dict"):
        OutputRegularizer(hnet, 2, importance=hnet(0))
    with pytest.raises(ValueError, match="task_id must be one of"):
        OutputRegularizer(hnet, 3)
    with pytest.raises(TypeError, match="hnet must be a HyperNetwork"):
        OutputRegularizer(mlp(), 0)


def test_ranks_average_the_tasks_gradients(monkeypatch):
    import torch.distributed as dist

    model, hnet = make()
    _, other = make()
    x, y = batch(16)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def on_both(parts):
        """The other rank's gradients, by its half of the batch at the same weights."""
        loss = squared(model, *parts)(other(2))
        gradients = torch.autograd.grad(loss, [other.embedding(2), *other.theta()])
        return torch.cat([*(value.flatten() for value in gradients), torch.tensor([2.0])]).float()

    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.add_(on_both((x[8:], y[8:]))))
    ours = optimizers(hnet, 2, torch.optim.SGD, lr=1e-2)
    continual_step(hnet, 2, squared(model, x[:8], y[:8]), *ours, OutputRegularizer(hnet, 2), batch_size=8)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    theirs = optimizers(other, 2, torch.optim.SGD, lr=1e-2)

    def halved(weights):
        return squared(model, x, y)(weights) / 2

    continual_step(other, 2, halved, *theirs, OutputRegularizer(other, 2), batch_size=8)
    for mine, whole in zip(hnet.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat[-1:].add_(1.0))
    with pytest.raises(ValueError, match="task_id must be the same on all ranks"):
        continual_step(hnet, 2, squared(model, x, y), *ours, OutputRegularizer(hnet, 2))


def test_ranks_of_different_importance_stay_together(monkeypatch):
    import torch.distributed as dist

    model, hnet = make()
    x, y = batch()
    regularizer = OutputRegularizer(hnet, 2, importance=torch.ones(2, hnet.num_weights))
    reduced = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: reduced.append(flat.clone()) or flat.mul_(2))
    continual_step(hnet, 2, squared(model, x, y), *optimizers(hnet, 2), regularizer)
    assert [flat.dtype for flat in reduced] == [torch.float64] * 2
    theta = sum(value.numel() for value in hnet.theta())
    assert [len(flat) for flat in reduced] == [4 + theta + 1, theta + 1]
