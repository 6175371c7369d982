"""lazyrich against what a competent user would pick instead: a group is exactly two cases on the same input."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from lazyrich import PolyTask, kta, ntk_gram, suff_gd, suff_stats

both = pytest.mark.parametrize("case", ["ours", "peer"])


# --- the tangent kernel -------------------------------------------------------------------------------


@cache
def problem(samples, width, outputs):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
    return model, torch.randn(samples, 256)


def torch_func(model, x, block=16):
    """The Jacobian by vmap(jacrev), parameter by parameter, rows in blocks: torch's own recipe, trace over outputs."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = vmap(jacrev(lambda p, one: functional_call(model, p, (one[None],))[0]), (None, 0))
    blocks = [jacobian(parameters, one) for one in x.split(block)]
    flat = [torch.cat([j.flatten(1) for j in one.values()], 1) for one in blocks]
    rows = torch.cat(flat)
    return rows @ rows.T


def per_sample(model, x):
    """A loop over samples and outputs."""
    rows = []
    for one in x:
        output = model(one[None])[0]
        found = [torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for value in output]
        rows.append(torch.cat([torch.cat([g.flatten() for g in gradients]) for gradients in found]))
    rows = torch.stack(rows)
    return rows @ rows.T


KERNELS = {
    torch_func: "vmap(jacrev) and one product, the Jacobian whole",
    per_sample: "a loop of autograd calls",
}


def compare_kernels(benchmark, case, peer, samples, width, outputs, rounds=3):
    model, x = problem(samples, width, outputs)
    torch.testing.assert_close(ntk_gram(model, x), peer(model, x).detach(), rtol=1e-3, atol=1e-3)
    number = sum(p.numel() for p in model.parameters())
    benchmark.extra_info.update(
        case=case, peer=KERNELS[peer], size=f"n = {samples}, {outputs} outputs, {number:,} parameters"
    )
    benchmark.pedantic({"ours": ntk_gram, "peer": peer}[case], (model, x), rounds=rounds, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="tangent kernel against torch.func")
def test_kernel(benchmark, case):
    compare_kernels(benchmark, case, torch_func, samples=64, width=870, outputs=10)


@both
@pytest.mark.benchmark(group="tangent kernel of a small network")
def test_small_kernel(benchmark, case):
    compare_kernels(benchmark, case, torch_func, samples=32, width=32, outputs=3, rounds=20)


@both
@pytest.mark.benchmark(group="tangent kernel against a loop")
def test_kernel_by_loop(benchmark, case):
    compare_kernels(benchmark, case, per_sample, samples=32, width=870, outputs=10)


# --- the network of the paper -------------------------------------------------------------------------


@cache
def start(width):
    generator = torch.Generator().manual_seed(0)
    task = PolyTask(100, 450, generator, dtype=torch.float32)
    return task, torch.randn(width, 100, generator=generator)


def our_steps(width, steps=20):
    task, W = start(width)
    run = suff_gd(task.X, task.y, *suff_stats(W), 1.0, 0.25, 30.0, steps, b=task.b, record=[steps])
    return run.M[-1]


def explicit_steps(width, steps=20):
    """The gradient written out, on all neurons."""
    task, W = start(width)
    for _ in range(steps):
        h = task.X @ W.T
        d = (h + 0.125 * h.square()).mean(1) - task.y
        W = W - 30.0 / 450 * (d[:, None] * (1 + 0.25 * h)).T @ task.X
    return W.T @ W / width


def compare_steps(benchmark, case, width):
    torch.testing.assert_close(our_steps(width), explicit_steps(width), rtol=1e-3, atol=1e-3)
    size = f"D = 100, P = 450, N = {width:,}, 20 steps"
    benchmark.extra_info.update(case=case, peer="gradient descent on the neurons", size=size)
    benchmark.pedantic({"ours": our_steps, "peer": explicit_steps}[case], (width,), rounds=8, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="sufficient statistics against 500 neurons")
def test_statistics(benchmark, case):
    compare_steps(benchmark, case, 500)


@both
@pytest.mark.benchmark(group="sufficient statistics against 20,000 neurons")
def test_statistics_of_a_wide_network(benchmark, case):
    compare_steps(benchmark, case, 20_000)


# --- alignment ----------------------------------------------------------------------------------------


@both
@pytest.mark.benchmark(group="kernel-target alignment")
def test_alignment(benchmark, case):
    kernel, y = torch.randn(500, 500), torch.randn(500, 10)
    kernel = kernel @ kernel.T

    def peer():
        return (kernel * (y @ y.T)).sum() / (kernel.norm() * (y @ y.T).norm())

    torch.testing.assert_close(kta(kernel, y), peer())
    benchmark.extra_info.update(case=case, peer="the formula, unchecked", size="n = 500, 10 outputs")
    benchmark.pedantic({"ours": lambda: kta(kernel, y), "peer": peer}[case], rounds=30, warmup_rounds=2)
