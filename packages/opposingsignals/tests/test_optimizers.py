import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opposingsignals import ClippedSGD, PartialAdamSGD, SignSGD


def run(make, steps=12, seed=0, dtype=torch.float64):
    """Weights after some steps on fixed gradients, the tenth coordinate wild."""
    generator = torch.Generator().manual_seed(seed)
    weights = [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in ((4, 5), (3,))
    ]
    optimizer = make(weights)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(dtype)
            weight.grad.view(-1)[::10] *= 50
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights])


@given(
    seed=st.integers(0, 1000), momentum=st.sampled_from([0.0, 0.5, 0.9]), decay=st.sampled_from([0.0, 0.1])
)
def test_clipping_nothing_is_dampened_sgd(seed, momentum, decay):
    ours = run(
        lambda p: ClippedSGD(p, lr=0.1, momentum=momentum, quantile=1.0, weight_decay=decay), seed=seed
    )
    theirs = run(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum, dampening=momentum, weight_decay=decay),
        seed=seed,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 1000), decay=st.sampled_from([0.0, 0.1]))
def test_the_ends_of_partial_adam_are_sgd_and_adam(seed, decay):
    options = {
        "lr": 0.05,
        "adam_lr": 0.02,
        "momentum": 0.8,
        "betas": (0.7, 0.95),
        "eps": 1e-4,
        "weight_decay": decay,
    }
    none = run(lambda p: PartialAdamSGD(p, fraction=0.0, dampening=0.3, **options), seed=seed)
    sgd = run(
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.3, weight_decay=decay), seed=seed
    )
    torch.testing.assert_close(none, sgd, rtol=0, atol=1e-7)
    every = run(lambda p: PartialAdamSGD(p, fraction=1.0, **options), seed=seed)
    adam = run(
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.95), eps=1e-4, weight_decay=decay), seed=seed
    )
    torch.testing.assert_close(every, adam, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mirror", [False, True])
def test_partial_adam_moves_the_loudest_coordinates_like_adam(mirror):
    options = {"lr": 0.05, "adam_lr": 0.02, "momentum": 0.8, "mirror": mirror}
    found = run(lambda p: PartialAdamSGD(p, fraction=0.1, **options), steps=1)
    sgd = run(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8), steps=1)
    adam = run(lambda p: torch.optim.Adam(p, lr=0.02), steps=1)
    loud = torch.zeros(23, dtype=torch.bool)
    start = run(lambda p: torch.optim.SGD(p, lr=0.0), steps=1)
    gradient = (start - sgd).abs()
    for part, count in ((slice(0, 20), 2), (slice(20, 23), 1)):  # a tenth of 3 is one whole coordinate
        loud[part.start + gradient[part].topk(count, largest=not mirror).indices] = True
    torch.testing.assert_close(found[loud], adam[loud])
    torch.testing.assert_close(found[~loud], sgd[~loud])


def test_the_choice_of_coordinates_is_kept_between_two_masks():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = PartialAdamSGD([weight], lr=1.0, adam_lr=1e-3, fraction=0.5, momentum=0.0, mask_every=2)
    for gradient in ([9.0, 1.0], [1.0, 99.0], [1.0, 99.0]):
        weight.grad = torch.tensor(gradient)
        before = weight.detach().clone()
        optimizer.step()
    assert (weight - before).abs()[1].item() < 0.01  # the third step has chosen anew
    assert weight[1].item() < -99  # the second had not


def test_sign_steps_have_one_size():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = PartialAdamSGD([weight], lr=0.1, adam_lr=0.01, fraction=0.5, large_step="sign")
    weight.grad = torch.tensor([1.0, -200.0, 300.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([-0.1, 0.01, -0.01, -0.2]))


def test_clamps_are_order_statistics_of_the_update_or_of_the_gradient():
    gradients = [torch.tensor([1.0, -2.0, 3.0, -40.0]), torch.tensor([-8.0, 2.0, 4.0, 6.0])]
    weight = nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight], lr=1.0, momentum=0.5, quantile=0.75)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    # m = [1, -2, 3, -40], then 0.5 m + 0.5 g = [-3.5, 0, 3.5, -17]: thresholds 3 and 3.5
    torch.testing.assert_close(weight.data, torch.tensor([-1 + 3.5, 2.0, -3 - 3.5, 3 + 3.5]))
    weight = nn.Parameter(torch.zeros(4))
    optimizer = ClippedSGD([weight], lr=1.0, momentum=0.5, quantile=0.75, clip="gradient")
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    # g clamped to [1, -2, 3, -3] and [-6, 2, 4, 6]; m = [1, -2, 3, -3], then [-2.5, 0, 3.5, 1.5]
    torch.testing.assert_close(weight.data, torch.tensor([-1 + 2.5, 2.0, -3 - 3.5, 3 - 1.5]))


def test_a_normalised_step_is_as_long_as_a_sign_step():
    for gradient in ([3.0, -4.0], [0.0, 0.0]):
        weight = nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor(gradient)
        SignSGD([weight], lr=0.1, normalise="tensor").step()
        wanted = torch.tensor(gradient) / 5 * -0.1 * 2**0.5
        torch.testing.assert_close(weight.data, wanted, atol=1e-7, rtol=0)


MAKERS = {
    "clipped": lambda p: ClippedSGD(p, lr=0.1),
    "partial": lambda p: PartialAdamSGD(p, lr=0.1, mask_every=3),
    "sign": lambda p: SignSGD(p, lr=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_survives_saving(name):
    weight = nn.Parameter(torch.ones(6))
    optimizer = MAKERS[name]([weight])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        weight.grad = torch.randn(6, generator=generator)
        optimizer.step()
    twin = nn.Parameter(weight.detach().clone())
    other = MAKERS[name]([twin])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(4):
        weight.grad = torch.randn(6, generator=generator)
        twin.grad = weight.grad.clone()
        optimizer.step()
        other.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_keeps_its_averages_in_float32(name):
    weight = nn.Parameter(torch.ones(6).bfloat16())
    optimizer = MAKERS[name]([weight])
    for _ in range(2):
        weight.grad = torch.ones(6).bfloat16()
        optimizer.step()
    kept = [
        v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor) and v.is_floating_point()
    ]
    assert {value.dtype for value in kept} == {torch.float32}


def test_a_closure_and_a_parameter_without_a_gradient():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ClippedSGD([used, unused], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert used[0].item() == pytest.approx(0.8)
    assert unused[0].item() == 1
