"""Every bad input says what was wrong."""

import math
import operator
import warnings

import pytest
import torch
from models import mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from fastibp import (
    IBP,
    Box,
    EpsSchedule,
    add_batchnorm,
    evaluate,
    ibp_init_,
    linf_box,
    radius_gains,
    relu_balance_loss,
    robust_loss,
    spread_loss,
    stability_loss,
    tightness_loss,
    verified,
    volume_loss,
    warmup_regularizer,
)

X = torch.rand(4, 6)
ZERO, ONE = torch.zeros(3), torch.ones(3)
EMPTY = Box(torch.zeros(0, 3), torch.zeros(0, 3))
NAN = torch.full((4, 6), float("nan"))
LABELS = torch.tensor([0, 1, 2, 0])


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Overwriting(nn.Module):
    """What it adds at the end is no longer what it read."""

    def __init__(self, overwrite):
        super().__init__()
        self.first, self.head, self.overwrite = nn.Linear(6, 4), nn.Linear(4, 3), overwrite

    def forward(self, x):
        hidden = self.first(x)
        return self.head(self.overwrite(hidden) + hidden)


class Turning(nn.Module):
    """Each call is another than the one before."""

    def __init__(self):
        super().__init__()
        self.head, self.sign = nn.Linear(6, 3), 1

    def forward(self, x):
        self.sign = -self.sign
        return self.sign * self.head(x)


class Hyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(6, 18)

    def forward(self, x):
        return F.linear(x, self.weights(x.mean(0)).view(3, 6))


class Shortcut(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


def double(module, inputs, output):
    return 2 * output


def hooked(part):
    model = mlp()
    part(model).register_forward_hook(double)
    return model


def pruned():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def bounded(**changes):
    arguments = {"x": X, "box": linf_box(X, 0.1), "labels": LABELS} | changes
    return IBP(mlp().eval())(**arguments)


def regularizer(**changes):
    return warmup_regularizer(bounded(), **({"eps": 0.1, "eps_max": 0.3} | changes))


CASES = {
    "lower above upper": (lambda: Box(ONE, ZERO), ValueError, "lower must be <= upper"),
    "NaN bounds": (lambda: Box(ZERO, ZERO / 0), ValueError, "hold no NaN"),
    "shapes of bounds": (lambda: Box(ZERO, torch.ones(4)), ValueError, "must have one shape"),
    "dtypes of bounds": (lambda: Box(ZERO, ONE.double()), TypeError, "one floating dtype"),
    "bounds that are no tensors": (lambda: Box(0.0, 1.0), TypeError, "must be tensors, got float"),
    "negative eps": (lambda: linf_box(X, -0.1), ValueError, "eps must be >= 0"),
    "NaN input": (lambda: linf_box(NAN, 0.1), ValueError, "must hold no NaN"),
    "input outside of its range": (lambda: linf_box(X + 5, 0.1), ValueError, r"lie in \[low, high\]"),
    "standard deviation of zero": (lambda: linf_box(X, 0.1, std=0.0), ValueError, "std must be > 0"),
    "channels of eps": (lambda: linf_box(X, [0.1, 0.2]), ValueError, "eps must be a number or one per channel"),
    "integer input": (lambda: linf_box(LABELS, 0.1), TypeError, "x must be a floating-point tensor"),
    "box of another shape": (lambda: bounded(box=linf_box(X[:2], 0.1)), ValueError, "box must match x"),
    "box of another dtype": (lambda: bounded(box=linf_box(X.double(), 0.1)), ValueError, "box must match x"),
    "no box": (lambda: bounded(box=0.1), TypeError, "box must be a fastibp.Box"),
    "label too large": (lambda: bounded(labels=LABELS + 1), ValueError, r"labels must lie in \[0, 3\)"),
    "label below zero": (lambda: bounded(labels=LABELS - 1), ValueError, r"labels must lie in \[0, 3\)"),
    "labels that are floats": (lambda: bounded(labels=LABELS.float()), TypeError, "labels must be integers"),
    "labels of NumPy": (lambda: bounded(labels=LABELS.numpy()), TypeError, "labels must be a tensor of integers, got"),
    "labels in a column": (lambda: bounded(labels=LABELS[:, None]), ValueError, r"got \(4, 1\)"),
    "no radius": (lambda: linf_box(X, None), TypeError, "eps must be a number or one per channel, got None"),
    "radius without a limit": (lambda: linf_box(X, math.inf, None), ValueError, "eps must be finite where low"),
    "infinite bounds": (lambda: Box(ZERO, ONE * math.inf), ValueError, "both must be finite"),
    "input a little outside": (lambda: linf_box(X + 1.0001, 0.0), ValueError, r"lie in \[low, high\]"),
    "empty batch in training mode": (
        lambda: IBP(mlp())(X[:0], linf_box(X[:0], 0.1)), ValueError, "more than one example",
    ),
    "regulariser of an empty batch": (lambda: relu_balance_loss([EMPTY]), ValueError, "preacts must hold at least"),
    "tightness of an empty batch": (lambda: tightness_loss(EMPTY, [EMPTY]), ValueError, "preacts must hold at least"),
    "spread of an empty batch": (lambda: spread_loss([EMPTY]), ValueError, "preacts must hold at least"),
    "stability of an empty batch": (lambda: stability_loss([EMPTY]), ValueError, "preacts must hold at least"),
    "volume of an empty batch": (lambda: volume_loss([EMPTY]), ValueError, "preacts must hold at least"),
    "batches of three": (lambda: evaluate(mlp(), [(X, LABELS, X)], 0.1), TypeError, "loader must yield pairs"),
    "batches that are mappings": (lambda: evaluate(mlp(), [{"x": X}], 0.1), TypeError, "loader must yield pairs"),
    "certificates in half precision": (
        lambda: evaluate(mlp(), [(X, LABELS)], 0.1, dtype=torch.float16), ValueError, "dtype must be torch.float32 or",
    ),
    "number of labels": (lambda: bounded(labels=LABELS[:2]), ValueError, r"labels must have shape \(4,\)"),
    "one example in training mode": (
        lambda: IBP(mlp())(X[:1], linf_box(X[:1], 0.1)), ValueError, "more than one example",
    ),
    "module without rule": (
        lambda: IBP(nn.Sequential(nn.Linear(6, 2), nn.Bilinear(2, 2, 2))), TypeError,
        "cannot be traced|no interval rule",
    ),
    "function without rule": (
        lambda: IBP(nn.Sequential(nn.Linear(6, 2), Sine())), TypeError, r"'sin' .* IBP\(model, rules={sin: rule}\)",
    ),
    "activation without a rule": (
        lambda: IBP(nn.Sequential(nn.Linear(6, 2), nn.Hardshrink())), TypeError,
        "Hardshrink, target 1. has no interval rule",
    ),
    "negative slope": (
        lambda: IBP(nn.Sequential(nn.Linear(6, 3), nn.LeakyReLU(-1.0)))(X, linf_box(X, 0.1)),
        ValueError, "negative_slope must be >= 0",
    ),
    "in-place layer": (lambda: IBP(Overwriting(nn.ReLU(inplace=True))), TypeError, "overwrites 'first' in place"),
    "in-place method": (lambda: IBP(Overwriting(lambda x: x.relu_())), TypeError, "overwrites 'first' in place"),
    "in-place function": (
        lambda: IBP(Overwriting(lambda x: F.relu(x, inplace=True))), TypeError, "overwrites 'first' in place",
    ),
    "in-place arithmetic": (
        lambda: IBP(Overwriting(lambda x: operator.iadd(x, 1))), TypeError, "overwrites 'first' in place",
    ),
    "in-place view": (
        lambda: IBP(Overwriting(lambda x: x.view(-1, 4).mul_(2))), TypeError, "overwrites 'view' in place",
    ),
    "a branch that turns with each call": (lambda: IBP(Turning(), X), ValueError, "give different logits"),
    "hook of a layer": (
        lambda: IBP(hooked(lambda model: model[0])), TypeError, "module '0' .Linear. has a hook, double",
    ),
    "hook of the model": (
        lambda: IBP(hooked(lambda model: model)), TypeError, "module 'model' .Sequential. has a hook, double",
    ),
    "weight that depends on the input": (lambda: IBP(Hyper()), TypeError, "'linear' reads the model's input in more"),
    "margins of one logit": (
        lambda: IBP(nn.Sequential(nn.Linear(6, 1)))(X, linf_box(X, 0.1), 0 * LABELS), ValueError, "with K >= 2",
    ),
    "weights drawn behind a parametrization": (
        lambda: ibp_init_(nn.Sequential(weight_norm(nn.Linear(6, 4)), nn.Linear(4, 3))), ValueError,
        "layer '0' computes its weight",
    ),
    "weights drawn behind pruning": (lambda: ibp_init_(pruned()), ValueError, "layer '0' computes its weight"),
    "BatchNorm behind a layer that does more": (
        lambda: add_batchnorm(nn.Sequential(Shortcut(6, 6), nn.Linear(6, 3))), ValueError,
        "'0' .linear. is not a layer",
    ),
    "regularising without rectifiers": (
        lambda: warmup_regularizer(IBP(nn.Sequential(nn.Linear(6, 3)))(X, linf_box(X, 0.1)), 0.1, 0.3), ValueError,
        "output holds no rectifier",
    ),
    "rounding in half precision": (
        lambda: IBP(mlp().eval().bfloat16(), outward_rounding=True)(X.bfloat16(), linf_box(X.bfloat16(), 0.1)),
        ValueError, "outward_rounding needs x in float32 or float64, got torch.bfloat16",
    ),
    "model that is none": (lambda: IBP(torch.relu), TypeError, "model must be a torch.nn.Module"),
    "two outputs": (lambda: IBP(nn.Sequential(nn.Linear(6, 3), Pair())), TypeError, "return one tensor"),
    "model without layers": (lambda: ibp_init_(nn.Sequential(nn.ReLU())), ValueError, "no linear or convolutional"),
    "nothing to normalise": (lambda: add_batchnorm(nn.Sequential(nn.ReLU())), ValueError, "no linear or"),
    "a point's gains": (lambda: radius_gains(mlp().eval(), linf_box(X, 0.0)), ValueError, "positive radius"),
    "margins of one dimension": (lambda: robust_loss(ONE), ValueError, r"margins must have shape \(N, K - 1\)"),
    "verified of one dimension": (lambda: verified(ONE), ValueError, r"margins must have shape \(N, K - 1\)"),
    "empty loader": (lambda: evaluate(mlp(), [], 0.1), ValueError, "loader must yield at least one batch"),
    "length of zero": (lambda: EpsSchedule(0.3, 10, length=0), ValueError, "length must be > 0"),
    "start before the first epoch": (lambda: EpsSchedule(0.3, 10, start=0), ValueError, "start must be >= 1"),
    "steps": (lambda: EpsSchedule(0.3, 0), ValueError, "steps_per_epoch must be >= 1"),
    "negative maximum": (lambda: EpsSchedule(-0.3, 10), ValueError, "eps_max must be >= 0"),
    "kind": (lambda: EpsSchedule(0.3, 10, kind="cubic"), ValueError, "kind must be 'smooth' or 'linear'"),
    "beta": (lambda: EpsSchedule(0.3, 10, beta=0.5), ValueError, "beta must be >= 1"),
    "mid": (lambda: EpsSchedule(0.3, 10, mid=2.0), ValueError, "mid must be between 0 and 1"),
    "radius above its maximum": (lambda: regularizer(eps=0.4), ValueError, r"eps must lie in \[0, eps_max\]"),
    "maximum of zero": (lambda: regularizer(eps_max=0.0), ValueError, "eps_max must be > 0"),
    "negative weight": (lambda: regularizer(weight=-1.0), ValueError, "weight must be >= 0"),
    "tolerance of zero": (lambda: relu_balance_loss([], 0.0), ValueError, "tolerance must lie in"),
    "tolerance above one": (lambda: tightness_loss(Box(ZERO, ONE), [], 1.5), ValueError, "tolerance must lie in"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message):
        call()


def test_a_classifier_that_is_not_linear_falls_back_with_a_warning():
    model = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
    with pytest.warns(UserWarning, match="the last layer is not nn.Linear"):
        margins = IBP(model)(X, linf_box(X, 0.1), LABELS).margins
    box = IBP(model)(X, linf_box(X, 0.1)).box
    assert margins[0, 0] == box.lower[0, 0] - box.upper[0, 1]


def test_ordinary_use_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bounded().margins.shape == (4, 2)
