"""Small boxes and mixed losses: between the adversarial loss and that of the box, as their papers say."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastibp import IBP, Box, attack, linf_box, mixed_loss, robust_loss, small_box

KINDS = ("mtl", "cc", "exp")


def network(batchnorm=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if batchnorm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def batch(seed=0, n=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)


def test_on_a_linear_model_the_attack_finds_the_worst_corner():
    model = nn.Linear(4, 2).double()
    x, labels = batch()[0].double(), batch()[1] % 2
    box = linf_box(x, 0.2)
    direction = (model.weight[1 - labels] - model.weight[labels]).sign()
    corner = torch.where(direction > 0, box.upper, box.lower)
    torch.testing.assert_close(attack(model, x, box, labels, steps=8), corner.detach())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 0.5), steps=st.integers(0, 6))
def test_an_attack_stays_in_the_box_and_is_no_better_than_the_input(seed, eps, steps):
    model = network().eval()
    x, labels = batch(seed)
    box = linf_box(x, eps)
    found = attack(model, x, box, labels, steps=steps, generator=torch.Generator().manual_seed(seed))
    assert bool(((found >= box.lower) & (found <= box.upper)).all())
    each = [F.cross_entropy(model(points), labels, reduction="none") for points in (found, x)]
    assert bool((each[0] >= each[1] - 1e-6).all())


def test_an_attack_leaves_the_model_as_it_was():
    model = network().train()
    model[4].eval()
    before = copy.deepcopy(model.state_dict())
    x, labels = batch()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():  # as inside an evaluation loop
        attack(model, x, linf_box(x, 0.1), labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_attack_in_inference_mode_is_the_same():
    model, (x, labels) = network().eval(), batch()
    found = attack(model, x, linf_box(x, 0.1), labels, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        again = attack(model, 1 * x, linf_box(x, 0.1), 1 * labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 0.5), share=st.floats(0.01, 1))
def test_a_small_box_lies_in_the_box_and_holds_the_adversarial_input(seed, eps, share):
    x, _ = batch(seed)
    x = x.double()
    box = linf_box(x, eps)
    adversarial = torch.lerp(box.lower, box.upper, torch.rand(x.shape, dtype=x.dtype).round())
    inner = small_box(box, adversarial, share)
    assert bool(((inner.lower >= box.lower) & (inner.upper <= box.upper)).all())
    assert bool(((inner.lower <= adversarial + 1e-12) & (adversarial - 1e-12 <= inner.upper)).all())
    torch.testing.assert_close(inner.radius, share * box.radius, atol=1e-12, rtol=0)


def test_the_whole_share_is_the_box_and_its_loss_lies_between():
    model = network(batchnorm=False).double().eval()
    x, labels = batch()
    x = x.double()
    bounder, box = IBP(model), linf_box(x, 0.1)
    adversarial = attack(model, x, box, labels)
    whole = small_box(box, adversarial, 1.0)
    torch.testing.assert_close(whole.lower, box.lower)
    torch.testing.assert_close(whole.upper, box.upper)

    def loss(share):
        inner = small_box(box, adversarial, share)
        return robust_loss(bounder(inner.center, inner, labels).margins)

    found = [loss(share) for share in (0.01, 0.1, 0.3, 1.0)]
    assert found == sorted(found)
    assert F.cross_entropy(model(adversarial), labels) <= found[0]


def attacked_and_bounded(seed):
    model = network(batchnorm=False).double().eval()
    x, labels = batch(seed)
    x = x.double()
    box = linf_box(x, 0.2)
    adversarial = attack(model, x, box, labels, steps=2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(adversarial), IBP(model)(x, box, labels).margins, labels


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_are_the_two_losses(kind):
    logits, margins, labels = attacked_and_bounded(0)
    for alpha, end in ((0.0, F.cross_entropy(logits, labels)), (1.0, robust_loss(margins))):
        torch.testing.assert_close(mixed_loss(logits, margins, labels, alpha, kind=kind), end)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0, 1), more=st.floats(0, 1))
def test_losses_grow_with_alpha_and_mtl_is_the_largest(seed, alpha, more):
    given_, (low, high) = attacked_and_bounded(seed), sorted((alpha, more))
    found = {kind: [float(mixed_loss(*given_, one, kind=kind)) for one in (low, high)] for kind in KINDS}
    for values in found.values():
        assert values[0] <= values[1] + 1e-9
    assert max(found["cc"][0], found["exp"][0]) <= found["mtl"][0] + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_a_loss_rounds_to_zero(kind):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    margins = torch.tensor([[150.0]], requires_grad=True)
    mixed_loss(logits, margins, torch.tensor([0]), 0.5, kind=kind).backward()
    assert logits.grad.isfinite().all()
    assert margins.grad.isfinite().all()


def test_each_bad_argument_is_named():
    model, (x, labels) = network().eval(), batch()
    box, logits, margins = linf_box(x, 0.1), torch.zeros(16, 3), torch.zeros(16, 2)
    for message, kind, call in [
        ("box must be a fastibp.Box", TypeError, lambda: attack(model, x, x, labels)),
        ("box must match x", ValueError, lambda: attack(model, x[:2], box, labels[:2])),
        ("labels must be integers", TypeError, lambda: attack(model, x, box, labels.float())),
        ("steps must be at least 0", ValueError, lambda: attack(model, x, box, labels, steps=-1)),
        ("step_size must be positive", ValueError, lambda: attack(model, x, box, labels, step_size=0)),
        ("box must match adversarial", ValueError, lambda: small_box(box, x[:2], 0.5)),
        ("share must be in", ValueError, lambda: small_box(box, x, 0.0)),
        ("share must be in", ValueError, lambda: small_box(box, x, float("nan"))),
        ("alpha must be in", ValueError, lambda: mixed_loss(logits, margins, labels, 1.1)),
        ("kind must be", ValueError, lambda: mixed_loss(logits, margins, labels, 0.5, kind="sum")),
        ("margins must have shape", ValueError, lambda: mixed_loss(logits, logits, labels, 0.5)),
        ("labels must have shape", ValueError, lambda: mixed_loss(logits, margins, labels[:3], 0.5)),
        ("at least one example", ValueError, lambda: mixed_loss(logits[:0], margins[:0], labels[:0], 0.5)),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_training_on_small_boxes_certifies():
    """A dozen lines of SABR on two clouds: the whole box is certified in the end."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    x = 0.3 + 0.4 * labels[:, None] + 0.05 * torch.randn(64, 2, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    bounder, optimizer = IBP(model), torch.optim.Adam(model.parameters(), 0.02)
    box = linf_box(x, 0.05)
    for _ in range(60):
        inner = small_box(box, attack(model, x, box, labels, steps=2, generator=generator), 0.4)
        loss = robust_loss(bounder(inner.center, inner, labels).margins)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (bounder(x, Box(box.lower, box.upper), labels).margins > 0).float().mean() > 0.9
