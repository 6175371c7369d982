import pytest
import torch
from helpers import dense_hessian, small_net, squared, token_losses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposingsignals import adam_preconditioner, eos_threshold, flatten, hvp, top_eigs

seeds = st.integers(0, 10_000)


def mean_loss(net, x, y):
    return lambda: squared(net(x), y).mean()


@given(seed=seeds, k=st.integers(1, 4))
def test_top_eigenvalues_are_those_of_the_dense_hessian(seed, k):
    net, x, y = small_net(seed)
    closure = mean_loss(net, x, y)
    values, vectors = torch.linalg.eigh(dense_hessian(net, closure))
    generator = torch.Generator().manual_seed(seed)
    found = top_eigs(net, closure, k, iterations=60, tolerance=1e-6, generator=generator)
    torch.testing.assert_close(found.values, values.flip(0)[:k], rtol=1e-5, atol=1e-8)
    assert vectors[:, -1].dot(found.vectors[0]).abs() > 1 - 1e-6
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k).double(), atol=1e-6, rtol=0)
    images = torch.stack([hvp(net, closure, vector) for vector in found.vectors])
    residuals = (images - found.values[:, None] * found.vectors).norm(dim=1)
    torch.testing.assert_close(residuals, found.residuals, rtol=1e-2, atol=1e-6)


@given(seed=seeds, factor=st.floats(-3, 3))
def test_products_are_symmetric_and_linear(seed, factor):
    net, x, y = small_net(seed)
    closure = mean_loss(net, x, y)
    size = sum(p.numel() for p in net.parameters())
    u, v = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)).double()
    image = hvp(net, closure, v)
    torch.testing.assert_close(u.dot(image), v.dot(hvp(net, closure, u)))
    torch.testing.assert_close(hvp(net, closure, u + factor * v), hvp(net, closure, u) + factor * image)


@pytest.mark.parametrize("training", [True, False])
def test_mixed_layers_with_dropout_and_tied_weights(sentences, training):
    model, tokens = sentences
    model.train(training)
    buffers = {name: value.clone() for name, value in model.named_buffers()}

    def closure():
        return token_losses(model(tokens), tokens).mean()

    torch.manual_seed(3)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    found = top_eigs(model, closure, 2, iterations=80, tolerance=1e-7, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == training
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), name

    with sdpa_kernel(SDPBackend.MATH):
        dense = dense_hessian(model, closure)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(dense) == sum(p.numel() for p in parameters)  # the tied weight once, the frozen one not at all
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6, atol=0)
    torch.manual_seed(3)
    vector = torch.linspace(-1, 1, len(dense)).double()
    torch.testing.assert_close(hvp(model, closure, vector), dense @ vector)


def test_several_closures_add_and_keep_their_masks(sentences):
    model, tokens = sentences
    model.train()
    closures = [
        lambda part=part: token_losses(model(tokens[part]), tokens[part]).sum() / 36
        for part in ([0, 1], [2, 3, 4, 5])
    ]
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    u, v = torch.randn(2, size).double()
    torch.testing.assert_close(u.dot(hvp(model, closures, v)), v.dot(hvp(model, closures, u)))
    torch.manual_seed(1)
    many = top_eigs(model, closures, iterations=60, tolerance=1e-7)
    torch.manual_seed(1)
    once = top_eigs(model, lambda: closures[0]() + closures[1](), iterations=60, tolerance=1e-7)
    torch.testing.assert_close(many.values, once.values, rtol=1e-6, atol=0)


def test_a_warm_start_takes_fewer_products():
    net, x, y = small_net(1, inputs=8, width=8, n=40)
    closure = mean_loss(net, x, y)
    generator = torch.Generator().manual_seed(0)
    cold = top_eigs(net, closure, iterations=60, tolerance=1e-2, generator=generator)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=generator))
    again = top_eigs(net, closure, iterations=60, tolerance=1e-2, generator=generator)
    warm = top_eigs(net, closure, start=cold.vectors, iterations=60, tolerance=1e-2, generator=generator)
    assert warm.num_products <= 3 < again.num_products
    exact = torch.linalg.eigvalsh(dense_hessian(net, closure))[-1]
    torch.testing.assert_close(warm.values[0], exact, rtol=1e-3, atol=0)


def test_a_start_that_is_another_eigenvector_and_a_twin_eigenvalue_are_seen_through():
    weight = nn.Parameter(torch.zeros(5).double())
    model = nn.ParameterList([weight])
    scale = torch.tensor([4.0, 9.0, 9.0, 1.0, 0.0]).double()

    def closure():
        return (scale * weight.square()).sum() / 2

    found = top_eigs(model, closure, 3, start=torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]), tolerance=1e-9)
    torch.testing.assert_close(found.values, torch.tensor([9.0, 9.0, 4.0]).double(), rtol=1e-4, atol=0)


def test_a_loss_without_curvature_has_none():
    model = nn.Linear(2, 1)
    found = top_eigs(model, lambda: model(torch.ones(3, 2)).sum())
    assert found.values.tolist() == [0.0]


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(50, 1, bias=False).bfloat16()
    x = torch.randn(64, 50).bfloat16()
    found = top_eigs(
        model, lambda: model(x).float().square().mean() / 2, generator=torch.Generator().manual_seed(0)
    )
    exact = torch.linalg.eigvalsh(x.double().T @ x.double() / 64)[-1]
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values[0].double(), exact, rtol=0.02, atol=0)


def test_preconditioned_sharpness_is_the_dense_one():
    net, x, y = small_net(2)
    closure = mean_loss(net, x, y)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-3)
    moments = [torch.zeros_like(p) for p in net.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        closure().backward()
        moments = [0.95 * m + 0.05 * p.grad**2 for m, p in zip(moments, net.parameters(), strict=True)]
        optimizer.step()
    wanted = flatten([(m / (1 - 0.95**3)).sqrt() + 1e-3 for m in moments])
    diagonal = adam_preconditioner(optimizer, net)
    torch.testing.assert_close(diagonal, wanted)
    dense = diagonal.rsqrt()[:, None] * dense_hessian(net, closure) * diagonal.rsqrt()
    found = top_eigs(net, closure, preconditioner=diagonal, iterations=60, tolerance=1e-6)
    torch.testing.assert_close(found.values[0], torch.linalg.eigvalsh(dense)[-1], rtol=1e-6, atol=0)


OPTIMIZERS = {
    "gd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "heavy ball": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8),
    "dampened": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, dampening=0.5),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_diverges_just_above_the_threshold_and_not_below(name):
    for factor, diverges in ((0.99, False), (1.01, True)):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = OPTIMIZERS[name]([weight], 0.1)
        sharpness = factor * eos_threshold(optimizer)
        for _ in range(3000):
            weight.grad = sharpness * weight.detach()
            optimizer.step()
        assert (weight.abs() > 1).item() == diverges


def test_adams_threshold_is_38_over_the_learning_rate():
    weight = nn.Parameter(torch.ones(1))
    assert eos_threshold(torch.optim.AdamW([weight], lr=0.01)) == pytest.approx(3800)
    assert eos_threshold(torch.optim.RMSprop([weight], lr=0.01)) == pytest.approx(200)
