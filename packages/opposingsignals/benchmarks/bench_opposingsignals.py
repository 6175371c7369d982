"""opposingsignals against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import scipy.sparse.linalg
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from opposingsignals import (
    LossDeltaTracker,
    hvp,
    per_example_curvature,
    per_example_gradient_norms,
    top_eigs,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # torch's own, in its forward mode
WIDTH, EXAMPLES = 128, 500


def losses_of(output, target):
    return (output - target).square().sum(1) / 2


@cache
def problem():
    """A trained network, its data, and the top eigenvector of a few steps earlier."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)
    )
    x = torch.randn(EXAMPLES, 64)
    y = nn.functional.one_hot(torch.randint(10, (EXAMPLES,)), 10).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    earlier = None
    for step in range(65):
        if step == 60:
            earlier = top_eigs(model, lambda: losses_of(model(x), y).mean(), tolerance=1e-4).vectors[0]
        optimizer.zero_grad()
        losses_of(model(x), y).mean().backward()
        optimizer.step()
    return model, x, y, earlier


def mean_loss():
    model, x, y, _ = problem()
    return losses_of(model(x), y).mean()


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def compare(benchmark, case, runs, peer, size, rounds=10, **close):
    ours, theirs = runs["ours"](), runs["peer"]()
    torch.testing.assert_close(ours, theirs, **close)
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    benchmark.pedantic(runs[case], rounds=rounds, warmup_rounds=1)


NETWORK = f"64-{WIDTH}-{WIDTH}-10 tanh network, {EXAMPLES} examples"


# --- sharpness -------------------------------------------------------------------------------------------


def scipy_sharpness():
    """scipy's Lanczos on torch's products, from the same start, with the basis size that suits it best."""
    model, _, _, earlier = problem()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(mean_loss(), parameters, create_graph=True)

    def product(vector):
        pieces = torch.from_numpy(vector.copy()).float().flatten().split([p.numel() for p in parameters])
        pieces = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        return flat(torch.autograd.grad(gradient, parameters, pieces, retain_graph=True)).numpy()

    size = len(earlier)
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype="float32")
    values = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", v0=earlier.numpy(), tol=1e-2, ncv=3)[0]
    return torch.tensor(float(values[0]))


def our_sharpness():
    model, _, _, earlier = problem()
    generator = torch.Generator().manual_seed(0)
    return top_eigs(model, mean_loss, start=earlier, tolerance=1e-2, generator=generator).values[0]


@both
@pytest.mark.benchmark(group="sharpness from the last eigenvector, 1 %")
def test_sharpness_against_scipy(benchmark, case):
    runs = {"ours": our_sharpness, "peer": scipy_sharpness}
    compare(
        benchmark, case, runs, "scipy's eigsh (ncv=3) on products of one graph", NETWORK, rtol=1e-2, atol=0
    )


def power_iteration():
    """A cold start and a new graph for every product, until the value moves by less than 0.1 %."""
    model = problem()[0]
    parameters = list(model.parameters())
    vector = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(0))
    value = torch.tensor(0.0)
    for _ in range(300):
        vector = vector / vector.norm()
        gradient = flat(torch.autograd.grad(mean_loss(), parameters, create_graph=True))
        image = flat(torch.autograd.grad(gradient.dot(vector), parameters))
        before, value = value, vector.dot(image)
        vector = image
        if (value - before).abs() < 1e-3 * value.abs():
            break
    return value


@both
@pytest.mark.benchmark(group="sharpness against power iteration from scratch")
def test_sharpness_against_power_iteration(benchmark, case):
    runs = {"ours": our_sharpness, "peer": power_iteration}
    compare(benchmark, case, runs, "power iteration, a graph a product", NETWORK, rounds=5, rtol=3e-2, atol=0)


@both
@pytest.mark.benchmark(group="one Hessian product")
def test_one_product(benchmark, case):
    model, x, y, vector = problem()
    parameters = dict(model.named_parameters())
    pieces = vector.split([p.numel() for p in parameters.values()])
    direction = {name: piece.view_as(p) for piece, (name, p) in zip(pieces, parameters.items(), strict=True)}

    def loss(values):
        return losses_of(functional_call(model, values, x), y).mean()

    def forward_over_reverse():
        values = {name: p.detach() for name, p in parameters.items()}
        return flat(jvp(grad(loss), (values,), (direction,))[1].values()).detach()

    runs = {"ours": lambda: hvp(model, mean_loss, vector), "peer": forward_over_reverse}
    peer = "torch.func: jvp of grad"
    compare(benchmark, case, runs, peer, NETWORK, rounds=30, rtol=1e-3, atol=1e-4)


# --- per example -----------------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="curvature of every example along a direction")
def test_curvatures(benchmark, case):
    model, x, y, vector = problem()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    pieces = vector.split([p.numel() for p in parameters.values()])
    direction = {name: piece.view_as(p) for piece, (name, p) in zip(pieces, parameters.items(), strict=True)}

    def losses(values):
        return losses_of(functional_call(model, values, x), y)

    def slopes(values):
        return jvp(losses, (values,), (direction,))[1]

    runs = {
        "ours": lambda: per_example_curvature(model, losses_of, x, y, vector),
        "peer": lambda: jvp(slopes, (parameters,), (direction,))[1],
    }
    compare(benchmark, case, runs, "torch.func: jvp of jvp", NETWORK, rtol=1e-3, atol=1e-3)


@both
@pytest.mark.benchmark(group="gradient norm of every example")
def test_gradient_norms(benchmark, case):
    model, x, y, _ = problem()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values, a, b):
        return losses_of(functional_call(model, values, a[None]), b[None])[0]

    def peer():
        found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
        return torch.stack([value.flatten(1).norm(dim=1) for value in found.values()]).norm(dim=0)

    runs = {"ours": lambda: per_example_gradient_norms(model, losses_of, x, y), "peer": peer}
    compare(benchmark, case, runs, "torch.func: vmap of grad", NETWORK, rtol=1e-4, atol=1e-5)


# --- the tracker -----------------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="full-batch step with every loss recorded")
def test_recording(benchmark, case):
    model, x, y, _ = problem()
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def steps(second_forward):
        """Ten steps; the peer measures the losses by a forward pass of its own."""
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        tracker, kept = LossDeltaTracker(), []
        for step in range(10):
            if second_forward:
                with torch.no_grad():
                    kept.append(losses_of(model(x), y))
            losses = losses_of(model(x), y)
            if not second_forward:
                tracker.record_losses(losses, step)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        model.load_state_dict(state)
        return torch.stack(kept) if second_forward else tracker.losses()

    runs = {"ours": lambda: steps(False), "peer": lambda: steps(True)}
    compare(benchmark, case, runs, "a second forward pass under no_grad", f"{NETWORK}, 10 steps")


@both
@pytest.mark.benchmark(group="finding pairs, against sorting in NumPy")
def test_finding(benchmark, case):
    generator = torch.Generator().manual_seed(0)
    losses = 1 + 0.01 * torch.randn(20, 50_000, generator=generator)
    signs = (-1.0) ** torch.arange(20)[:, None]
    losses[:, :250] += 0.5 * signs
    losses[:, 250:500] -= 0.5 * signs
    tracker = LossDeltaTracker()
    for step, row in enumerate(losses):
        tracker.record_losses(row, step)
    array = losses.numpy()

    def peer():
        """Rank every change in full, keep who is extreme at each step with alternating sign."""
        change = array[1:] - array[:-1]
        order = change.argsort(axis=1)
        k = 250
        up, down = set(order[0, -k:]), set(order[0, :k])
        for index in range(1, len(order)):
            falls, rises = set(order[index, :k]), set(order[index, -k:])
            up, down = (up & rises, down & falls) if index % 2 == 0 else (up & falls, down & rises)
        return torch.tensor(sorted([*up, *down]))

    def ours():
        pair = tracker.alternating_pairs()[0]
        return torch.cat([pair.a, pair.b]).sort().values

    compare(
        benchmark,
        case,
        {"ours": ours, "peer": peer},
        "NumPy: argsort and intersection",
        "20 records of 50,000",
        5,
    )
