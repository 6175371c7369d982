import copy

import pytest
import torch
from helpers import seeded
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, RMSprop

from hypercrl import lookahead_delta
from hypercrl.lookahead import sgd_delta

CASES = [
    (SGD, {}),
    (SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    (Adam, {}),
    (Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "maximize": True}),
    (Adam, {"amsgrad": True}),
    (AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    (RMSprop, {"alpha": 0.8, "weight_decay": 0.1}),
    (RMSprop, {"centered": True, "momentum": 0.7}),
]


def set_gradients(parameters, generator):
    for value in parameters:
        value.grad = torch.randn(value.shape, generator=generator, dtype=value.dtype)


def problem(kind, options, steps):
    generator = seeded()
    values = [nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64)) for size in (3, 2, 4)]
    groups = [{"params": values[:2]}, {"params": values[2:], "lr": 0.03}]
    optimizer = kind(groups, lr=0.1, **options)
    for step in range(steps):
        set_gradients(values, generator)
        for group in optimizer.param_groups:  # a shrinking gradient makes amsgrad's maximum count
            for value in group["params"]:
                value.grad /= 1 + 3 * step
        optimizer.step()
    set_gradients(values, generator)
    values[1].grad = None
    return values, optimizer


def same_state(one, other):
    assert repr(one["param_groups"]) == repr(other["param_groups"])
    for key, state in one["state"].items():
        for name, value in state.items():
            theirs = other["state"][key][name]
            assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_it_is_the_real_step_of_a_copy_and_changes_nothing(kind, options, steps):
    values, optimizer = problem(kind, options, steps)
    before, state = [value.detach().clone() for value in values], copy.deepcopy(optimizer.state_dict())
    gradients = [None if value.grad is None else value.grad.clone() for value in values]
    delta = lookahead_delta(optimizer)
    by_copy = lookahead_delta(type("Other", (kind,), {})(optimizer.param_groups, lr=0.1), fallback="copy")
    assert set(by_copy) == set(delta) == {values[0], values[2]}
    same_state(optimizer.state_dict(), state)
    for value, old, gradient in zip(values, before, gradients, strict=True):
        assert torch.equal(value, old)
        assert value.grad is None if gradient is None else torch.equal(value.grad, gradient)
        assert value not in delta or not delta[value].requires_grad
    optimizer.step()
    for value, old in zip(values, before, strict=True):
        if value in delta:
            torch.testing.assert_close(old + delta[value], value.detach(), rtol=0, atol=1e-12)


def test_a_copied_step_is_exact_with_state():
    values, optimizer = problem(Adadelta, {}, 3)
    before = [value.detach().clone() for value in values]
    delta = lookahead_delta(optimizer, fallback="copy")
    optimizer.step()
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(old + delta.get(value, 0.0), value.detach(), rtol=0, atol=1e-12)


def test_unknown_optimizers_are_refused_by_name_and_a_subclass_is_unknown():
    values, optimizer = problem(Adadelta, {}, 1)
    with pytest.raises(TypeError, match=r"Adadelta.*fallback='sgd'"):
        lookahead_delta(optimizer)
    torch.testing.assert_close(lookahead_delta(optimizer, fallback="sgd")[values[2]], -0.03 * values[2].grad)
    torch.testing.assert_close(
        sgd_delta(optimizer, {values[0]: values[0].grad})[values[0]], -0.1 * values[0].grad
    )
    with pytest.raises(TypeError, match="got Mine"):
        lookahead_delta(type("Mine", (Adam,), {})(values))
    with pytest.raises(ValueError, match="fallback must be one of"):
        lookahead_delta(optimizer, fallback="adam")
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim"):
        lookahead_delta("adam")


@pytest.mark.parametrize("kind", [SGD, Adam, RMSprop])
def test_the_graph_of_given_gradients_is_kept_and_a_zero_gradient_has_no_nan(kind):
    value = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = kind([value], lr=0.1)
    scale = torch.tensor([3.0, 0.0], dtype=torch.float64, requires_grad=True)

    def change(scale):
        return lookahead_delta(optimizer, {value: scale * value.detach()})[value]

    (found,) = torch.autograd.grad(change(scale).sum(), scale)
    assert torch.isfinite(found).all()
    step = 1e-6 * torch.tensor([1.0, 0.0], dtype=torch.float64)
    numeric = (change((scale + step).detach()) - change((scale - step).detach())).sum() / 2e-6
    torch.testing.assert_close(found[0], numeric, rtol=1e-4, atol=1e-9)
