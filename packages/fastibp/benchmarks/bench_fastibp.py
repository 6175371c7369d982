"""A training step with bounds, against the usual interval arithmetic and against a step without bounds.

CNN-7 of the paper at width 16 on 32 x 32 images, one thread, equal margins first. The first peer is
auto_LiRPA, which a user would take instead. Its metadata ask for an old torch, so it is nobody's dependency
here; 0.7.1 runs with a new one when it is installed without its dependencies, and its group is skipped
where it is missing.
"""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastibp import IBP, linf_box, robust_loss
from fastibp.demo.networks import cnn7, fresh

BATCH, EPS = 16, 2 / 255
SIZE = "CNN-7 of width 16, 16 images of 3 x 32 x 32, forward and backward"
both = pytest.mark.parametrize("case", ["ours", "peer"])


def problem():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = fresh(lambda batch_norm: cnn7(3, 10, 16, batch_norm), True, generator).train()
    return model, torch.rand(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 10


def naive_margins(model, x, labels):
    """Lower and upper bounds apart, positive and negative weights apart; BatchNorm by the clean batch."""
    clean, lower, upper = x, (x - EPS).clamp(0), (x + EPS).clamp(max=1)
    *layers, last = model
    for layer, following in itertools.pairwise([*layers, last]):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            apply = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
            plus, minus = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
            clean, lower, upper = (
                apply(clean, layer.weight, layer.bias),
                apply(lower, plus, layer.bias) + apply(upper, minus, None),
                apply(upper, plus, layer.bias) + apply(lower, minus, None),
            )
            assert following is not last
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            axes = [axis for axis in range(clean.ndim) if axis != 1]
            var, mean = torch.var_mean(clean, axes, correction=0, keepdim=True)
            shape = mean.shape
            scale = layer.weight.view(shape) / (var + layer.eps).sqrt()
            shift = layer.bias.view(shape) - mean * scale
            clean, ends = clean * scale + shift, torch.stack([lower * scale + shift, upper * scale + shift])
            lower, upper = ends.amin(0), ends.amax(0)
        else:
            clean, lower, upper = layer(clean), layer(lower), layer(upper)
    rows = last.weight[labels][:, None] - last.weight
    offsets = last.bias[labels][:, None] - last.bias
    margins = (
        torch.einsum("nkd,nd->nk", rows.clamp(min=0), lower)
        + torch.einsum("nkd,nd->nk", rows.clamp(max=0), upper)
        + offsets
    )
    others = F.one_hot(labels, 10) == 0
    return margins[others].view(len(x), 9)


def our_margins(bounder, x, labels):
    return bounder(x, linf_box(x, EPS), labels).margins


def step(model, loss):
    model.zero_grad()
    loss().backward()


@both
@pytest.mark.benchmark(group="training step, against auto_LiRPA")
def test_against_auto_lirpa(benchmark, case):
    lirpa = pytest.importorskip("auto_LiRPA", exc_type=ImportError)
    model, x, labels = problem()
    bounder = IBP(copy.deepcopy(model))
    bounded = lirpa.BoundedModule(model, x)
    bounded.train()
    ball = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=(x - EPS).clamp(0), x_U=(x + EPS).clamp(max=1))
    eye = torch.eye(10)
    rows = eye[labels][:, None] - eye
    rows = rows[F.one_hot(labels, 10) == 0].view(BATCH, 9, 10)

    def their_margins():
        inputs = lirpa.BoundedTensor(x, ball)
        bounded(inputs)  # the clean pass, from which BatchNorm takes its statistics
        return bounded.compute_bounds(x=(inputs,), C=rows, method="IBP", bound_upper=False)[0]

    torch.testing.assert_close(our_margins(bounder, x, labels), their_margins(), rtol=1e-3, atol=1e-2)
    cases = {
        "ours": lambda: step(bounder, lambda: robust_loss(our_margins(bounder, x, labels))),
        "peer": lambda: step(model, lambda: robust_loss(their_margins())),
    }
    benchmark.extra_info.update(case=case, peer="auto_LiRPA 0.7.1, compute_bounds, method IBP", size=SIZE)
    benchmark.pedantic(cases[case], rounds=9, warmup_rounds=2)


@both
@pytest.mark.benchmark(
    group="training step, against naive interval arithmetic", warmup=True, warmup_iterations=1
)
def test_against_naive_intervals(benchmark, case):
    model, x, labels = problem()
    bounder = IBP(copy.deepcopy(model))
    torch.testing.assert_close(
        our_margins(bounder, x, labels), naive_margins(model, x, labels), rtol=1e-3, atol=1e-2
    )
    cases = {
        "ours": lambda: step(bounder, lambda: robust_loss(our_margins(bounder, x, labels))),
        "peer": lambda: step(model, lambda: robust_loss(naive_margins(model, x, labels))),
    }
    benchmark.extra_info.update(case=case, peer="four products a layer: W+ l + W- u, W+ u + W- l", size=SIZE)
    benchmark.pedantic(cases[case], rounds=9, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="training step, against a plain one")
def test_against_a_plain_step(benchmark, case):
    model, x, labels = problem()
    bounder = IBP(copy.deepcopy(model))
    torch.testing.assert_close(bounder(x, linf_box(x, EPS), labels).logits, model(x))
    cases = {
        "ours": lambda: step(bounder, lambda: robust_loss(our_margins(bounder, x, labels))),
        "peer": lambda: step(model, lambda: F.cross_entropy(model(x), labels)),
    }
    benchmark.extra_info.update(case=case, peer="cross-entropy without bounds", size=SIZE)
    benchmark.pedantic(cases[case], rounds=9, warmup_rounds=2)
