"""Channels-last images on the CPU: the way without a copy against the fused operators, and its gradients."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ghostbn import functional, ghost_batch_norm, rows

GROUPINGS = ("strided", "contiguous")
SHAPES = {"images": (12, 5, 3, 4), "volumes": (8, 3, 2, 2, 3), "one place": (8, 3, 2, 1)}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(rows, "LEAST", 0)


def channels_last(shape, dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, dtype=torch.float64, generator=generator) + offset
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return x.to(dtype).contiguous(memory_format=layout)


def affine(channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(channels, dtype=dtype, generator=generator).requires_grad_() for _ in range(2))


def both_ways(monkeypatch, run):
    ours = run()
    monkeypatch.setattr(functional, "takes_rows", lambda *_: False)
    return ours, run()


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-4)])
def test_it_is_the_fused_way(monkeypatch, shape, grouping, dtype, tolerance):
    def run():
        x = channels_last(shape, dtype, offset=20.0).requires_grad_()
        weight, bias = affine(shape[1], dtype)
        mean, var = torch.zeros(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype)
        y = ghost_batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5, 4, grouping=grouping)
        assert y.stride() == x.stride()
        direction = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(shape)
        gradients = torch.autograd.grad(y, (x, weight, bias), direction)
        return [y.detach(), mean, var, *gradients]

    ours, fused = both_ways(monkeypatch, run)
    torch.testing.assert_close(ours, fused, atol=tolerance, rtol=tolerance)


def test_it_is_taken(monkeypatch):
    taken = []
    real = functional.normalise_rows
    monkeypatch.setattr(functional, "normalise_rows", lambda *a: taken.append(a) or real(*a))
    x = channels_last((8, 3, 2, 2))
    for one in (x, x.contiguous(), x.bfloat16(), x[:, :, 0, 0]):
        ghost_batch_norm(one, None, None, None, None, True, 0.1, 1e-5, 4)
    assert len(taken) == 1
    monkeypatch.setattr(rows, "LEAST", x.numel() + 1)
    ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, 4)
    assert len(taken) == 1


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("trained", ["all", "input", "affine", "no affine"])
def test_its_gradients_and_theirs(grouping, trained):
    x = channels_last((6, 2, 2, 2)).requires_grad_(trained != "affine")
    weight, bias = (None, None) if trained == "no affine" else affine(2)
    if trained == "input":
        weight, bias = weight.detach(), bias.detach()

    def run(x, weight, bias):
        return ghost_batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3, 3, grouping=grouping)

    assert gradcheck(run, (x, weight, bias))
    assert gradgradcheck(run, (x, weight, bias))


def test_an_offset_of_a_thousand_deviations_costs_no_more_digits_than_in_torch():
    x = channels_last((32, 4, 6, 6), torch.float32, offset=1000.0)
    y = ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, 8)
    exact = ghost_batch_norm(x.double(), None, None, None, None, True, 0.1, 1e-5, 8)
    torch.testing.assert_close(y.double(), exact, atol=2e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_reads_through_it():
    x, tangent = channels_last((6, 2, 2, 2)), channels_last((6, 2, 2, 2), offset=1.0)

    def run(x):
        return ghost_batch_norm(x, None, None, None, None, True, 0.1, 1e-3, 3)

    _, forward = torch.func.jvp(run, (x,), (tangent,))
    _, reverse = torch.autograd.functional.jvp(run, x, tangent)
    torch.testing.assert_close(forward, reverse)
