import copy

import pytest
import torch
from helpers import batch, mlp, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from hypercrl import (
    EWC,
    Coreset,
    HyperNetwork,
    OutputRegularizer,
    PathImportance,
    SynapticIntelligence,
    diagonal_fisher,
    transfer_matrix_metrics,
)


def half_squares(model):
    return lambda w, x, y: 0.5 * (functional_call(model, w, (x,)) - y).square().sum()


@pytest.mark.parametrize("chunk_size", [3, None])
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples(chunk_size):
    model, (x, y) = mlp(), batch(7)
    found = diagonal_fisher(
        half_squares(model), dict(model.named_parameters()), (x, y), chunk_size=chunk_size
    )
    expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for one, target in zip(x, y, strict=True):
        model.zero_grad()
        (0.5 * (model(one) - target).square().sum()).backward()
        for name, value in model.named_parameters():
            expected[name] += value.grad.square() / 7
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    with pytest.raises(ValueError, match=r"one length > 0, got lengths \[5, 7\]"):
        diagonal_fisher(half_squares(model), dict(model.named_parameters()), (x, y[:5]))
    with pytest.raises(ValueError, match="finite gradients"):
        diagonal_fisher(half_squares(model), dict(model.named_parameters()), (x, y * torch.nan))


def test_fisher_of_generated_weights_leaves_buffers_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    hnet = HyperNetwork(model, generator=seeded())
    weights = hnet(hnet.add_task(seeded(1)))
    x, y = batch(6, torch.float32)
    found = diagonal_fisher(lambda w, x, y: half_squares(model)(w, x[None], y), weights, (x, y))
    assert list(found) == list(hnet.shapes)
    slopes = functional_call(model, weights, (x,)).detach() - y
    torch.testing.assert_close(found["2.bias"], slopes.square().mean(dim=0))
    OutputRegularizer(hnet, hnet.add_task(), importance=[found])
    with pytest.raises(TypeError, match="batch must hold tensors with a dimension of samples, got ndarray"):
        diagonal_fisher(half_squares(model), weights, (x.numpy(), y))


def test_gradients_that_are_not_finite_are_no_importance():
    path = PathImportance({"w": torch.zeros(2)})
    path.observe({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, torch.nan])})
    with pytest.raises(ValueError, match="gradients must be finite"):
        path.importance({"w": torch.ones(2)})


def test_the_state_of_other_weights_is_refused():
    path = PathImportance({"a": torch.zeros(2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="saved with weights="):
        PathImportance({"a": torch.zeros(2), "c": torch.zeros(2)}).load_state_dict(path.state_dict())
    for kind in (EWC, SynapticIntelligence):
        with pytest.raises(ValueError, match="saved with parameters="):
            kind(nn.Linear(4, 1), 1.0).load_state_dict(kind(nn.Linear(1, 4, bias=True), 1.0).state_dict())


def test_ewc_is_the_sum_of_its_tasks_parabolas():
    model, generator = mlp(), seeded()
    ewc, tasks = EWC(model, strength=3.0), []
    for _ in range(3):
        with torch.no_grad():
            for value in model.parameters():
                value += torch.randn(value.shape, generator=generator, dtype=value.dtype)
        fisher = {
            n: torch.rand(v.shape, generator=generator, dtype=v.dtype) for n, v in model.named_parameters()
        }
        fisher["0.bias"] *= 0  # a weight that no task cares for
        ewc.consolidate(fisher)
        tasks.append((fisher, {name: value.detach().clone() for name, value in model.named_parameters()}))
    with torch.no_grad():
        for value in model.parameters():
            value += 1.5
    expected = sum(
        1.5 * (fisher[name] * (value - old[name]).square()).sum()
        for fisher, old in tasks
        for name, value in model.named_parameters()
    )
    torch.testing.assert_close(ewc.penalty(), expected)
    ours = torch.autograd.grad(ewc.penalty(), list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    twin = EWC(model, strength=3.0)
    twin.load_state_dict(ewc.state_dict())
    torch.testing.assert_close(twin.penalty(), ewc.penalty())
    with pytest.raises(ValueError, match=r"saved with strength=3\.0"):
        EWC(model, strength=1.0).load_state_dict(ewc.state_dict())
    with pytest.raises(ValueError, match=r"saved with strength=0\.5"):
        SynapticIntelligence(model, 1.0).load_state_dict(SynapticIntelligence(model, 0.5).state_dict())


def test_synaptic_intelligence_by_hand():
    model, omega, generator = mlp(), 0.0, seeded()
    si = SynapticIntelligence(model, strength=0.7, damping=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)  # it overshoots

    def flat(values):
        return torch.cat([value.detach().flatten() for value in values])

    for task in range(2):
        start, path = flat(model.parameters()), 0.0
        for step in range(6):
            x, y = batch(seed=10 * task + step)
            loss = (model(x) - y).square().mean()
            si.observe(loss)
            optimizer.zero_grad()
            (loss + si.penalty()).backward()
            before = flat(model.parameters())
            gradient = flat(torch.autograd.grad((model(x) - y).square().mean(), list(model.parameters())))
            optimizer.step()
            path = path - gradient * (flat(model.parameters()) - before)
        si.end_task()
        end = flat(model.parameters())
        omega = omega + path.clamp(min=0) / ((end - start).square() + 0.01)
    torch.testing.assert_close(si.omega, omega)
    assert (path < 0).any()
    with torch.no_grad():
        for value in model.parameters():
            value += torch.randn(value.shape, generator=generator, dtype=value.dtype)
    torch.testing.assert_close(
        si.penalty().detach(), 0.7 * (omega * (flat(model.parameters()) - end).square()).sum()
    )


def test_a_path_is_resumed_with_its_sums():
    values = {"w": torch.tensor([1.0, 2.0])}
    path = PathImportance(values, damping=0.5)
    path.observe(values, {"w": torch.tensor([1.0, -1.0])})
    other = PathImportance({"w": torch.zeros(2)}, damping=0.5)
    other.load_state_dict(path.state_dict())
    later = {"w": torch.tensor([0.0, 4.0])}
    # Moved by -1 against a gradient of 1, by 2 along one of -1: 1 / 1.5 and 2 / 4.5.
    torch.testing.assert_close(other.importance(later)["w"], torch.tensor([1 / 1.5, 2 / 4.5]))
    with pytest.raises(ValueError, match=r"saved with damping=0\.5"):
        PathImportance(values, damping=0.1).load_state_dict(path.state_dict())
    with pytest.raises(ValueError, match=r"give 'w' of shape \(2,\), got none"):
        path.observe({}, {})
    with pytest.raises(ValueError, match="damping must be finite and above 0"):
        PathImportance(values, damping=0.0)


def test_penalties_refuse_what_does_not_fit():
    model = mlp()
    ewc = EWC(model, 1.0)
    with pytest.raises(ValueError, match="none called 'x'"):
        ewc.consolidate({"x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"fisher\['2.bias'\] must be \(2,\)"):
        ewc.consolidate({"2.bias": torch.ones(3)})
    with pytest.raises(ValueError, match=r"fisher\['2.bias'\] must be finite and >= 0"):
        ewc.consolidate({"2.bias": torch.tensor([-1.0, 0.0])})
    for build in (EWC, SynapticIntelligence):
        with pytest.raises(ValueError, match="strength must be finite and at least 0"):
            build(model, -1.0)
        with pytest.raises(ValueError, match="at least one trainable"):
            build(nn.ReLU(), 1.0)
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
            build("net", 1.0)


@given(size=st.integers(1, 6), draw=st.integers(1, 9))
def test_a_coreset_keeps_rows_together_and_tasks_apart(size, draw):
    coreset = Coreset(size)
    for task in range(3):
        x = 100.0 * task + torch.arange(6.0)[:, None]
        coreset.add_task(x, x[:, 0].long(), generator=seeded(task))
    for inputs, labels in (coreset.sample(draw, seeded(9)), coreset.all()):
        assert torch.equal(inputs[..., 0].long(), labels)
        assert torch.equal(labels // 100, torch.arange(3)[:, None].expand_as(labels))
    kept = coreset.all()[1]
    assert all(len(set(row.tolist())) == size for row in kept)
    assert coreset.num_bytes == 3 * size * (4 + 8)
    fresh = Coreset(size)
    fresh.load_state_dict(copy.deepcopy(coreset.state_dict()))
    assert torch.equal(fresh.sample(draw, seeded(9))[0], coreset.sample(draw, seeded(9))[0])


def test_a_coreset_refuses_what_does_not_fit():
    coreset = Coreset(3)
    with pytest.raises(ValueError, match="no task yet"):
        coreset.sample(2)
    with pytest.raises(ValueError, match="one length >= size=3"):
        coreset.add_task(torch.zeros(2, 1))
    coreset.add_task(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="must be 1 tensors as for the tasks before"):
        coreset.add_task(torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(TypeError, match=r"must be torch\.float32 as for the tasks before, got torch\.int64"):
        coreset.add_task(torch.zeros(5, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be \(n, \*\(1,\)\) as for the tasks before, got \(5, 2\)"):
        coreset.add_task(torch.zeros(5, 2))
    with pytest.raises(TypeError, match="must be tensors with a dimension of samples, got ndarray"):
        coreset.add_task(torch.zeros(5, 1).numpy())
    with pytest.raises(TypeError, match="must be tensors with a dimension of samples, got Tensor"):
        coreset.add_task(torch.tensor(1.0))
    with pytest.raises(ValueError, match="saved with size=3"):
        Coreset(2).load_state_dict(coreset.state_dict())


def test_transfer_of_a_matrix_by_hand():
    scores = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.4], [0.5, 0.85, 0.6]]
    found = transfer_matrix_metrics(scores, higher_is_better=True, untrained=[0.1, 0.1, 0.3])
    assert found["final"] == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert found["backward_transfer"] == pytest.approx((-0.4 + 0.05) / 2)
    assert found["forgetting"] == pytest.approx((0.4 - 0.05) / 2)
    assert found["forward_transfer"] == pytest.approx((0.1 + 0.1) / 2)
    errors = transfer_matrix_metrics(
        -torch.tensor(scores), higher_is_better=False, untrained=[-0.1, -0.1, -0.3]
    )
    for name in ("backward_transfer", "forgetting", "forward_transfer"):
        assert errors[name] == pytest.approx(found[name])
    assert errors["final"] == pytest.approx(-found["final"])
    nan = float("nan")
    assert (
        transfer_matrix_metrics([[1.0, nan], [0.5, 1.0]], higher_is_better=True, untrained=[0, 0])[
            "forward_transfer"
        ]
        is None
    )
    assert transfer_matrix_metrics([[1.0]], higher_is_better=True)["forgetting"] is None
    with pytest.raises(ValueError, match=r"scores must be \(tasks, tasks\)"):
        transfer_matrix_metrics([[1.0, 2.0]], higher_is_better=True)
    with pytest.raises(ValueError, match="no NaN on or below"):
        transfer_matrix_metrics([[nan, 1.0], [1.0, 1.0]], higher_is_better=True)
    with pytest.raises(ValueError, match=r"untrained must be \(2,\)"):
        transfer_matrix_metrics([[1.0, 1.0], [1.0, 1.0]], higher_is_better=True, untrained=[0.0])


def test_forgetting_is_against_the_best_that_was_measured_after_learning():
    # Task 0 was best after task 1 (0.9); the 0.95 on task 1 before it was learnt does not count.
    scores = [[0.8, 0.95, 0.0], [0.9, 0.7, 0.0], [0.5, 0.6, 0.4]]
    for sign, higher in ((1.0, True), (-1.0, False)):
        found = transfer_matrix_metrics(sign * torch.tensor(scores), higher_is_better=higher)
        assert found["forgetting"] == pytest.approx((0.9 - 0.5 + 0.7 - 0.6) / 2, abs=1e-6)
        assert found["backward_transfer"] == pytest.approx((0.5 - 0.8 + 0.6 - 0.7) / 2, abs=1e-6)
