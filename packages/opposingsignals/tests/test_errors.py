import re

import pytest
import torch
from helpers import small_net, squared
from torch import nn

from opposingsignals import (
    ClippedSGD,
    LossDeltaTracker,
    OpposingTask,
    PartialAdamSGD,
    SignSGD,
    adam_preconditioner,
    alternation,
    crossing_time,
    curvature_share,
    eos_threshold,
    example_weights,
    feature_view,
    group_curves,
    group_gradient,
    hvp,
    image_panel,
    per_example_curvature,
    per_example_gradient_norms,
    per_example_loss,
    score_pair,
    spike_steps,
    text_panel,
    top_eigs,
)

NET, X, Y = small_net()
WEIGHT = nn.Parameter(torch.zeros(3))


def closure():
    return squared(NET(X), Y).mean()


def tracked(records=5, n=12, **options):
    tracker = LossDeltaTracker(**options)
    for step in range(records):
        tracker.record_losses(torch.rand(n), step)
    return tracker


def sgd(**options):
    return torch.optim.SGD([WEIGHT], **options)


class Stuck(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


CASES = [
    # losses
    (
        lambda: per_example_loss(NET, lambda o, t: squared(o, t).mean(), X, Y),
        ValueError,
        "loss_fn must return .* got \\(\\)",
    ),
    (lambda: per_example_loss(NET, nn.MSELoss(), X, Y), TypeError, "reduction='none', got reduction='mean'"),
    (lambda: per_example_loss(NET, nn.functional.mse_loss, X, Y), ValueError, "got \\(12, 2\\)"),
    (lambda: per_example_loss(NET, squared, X, Y, per_token=True), ValueError, "one loss for every token"),
    (
        lambda: per_example_loss(NET, squared, X, Y[:3]),
        ValueError,
        "y must have as many examples as x, 12, got 3",
    ),
    (lambda: per_example_loss(NET, squared, X[:0], Y[:0]), ValueError, "x must hold at least one"),
    (lambda: per_example_loss(NET, squared, X, Y, batch=0), ValueError, "batch must be at least 1"),
    (lambda: per_example_loss(NET, "mse", X, Y), TypeError, "loss_fn must be callable"),
    (lambda: per_example_gradient_norms(NET, nn.MSELoss(), X, Y), TypeError, "reduction"),
    (lambda: group_gradient(NET, squared, X, Y, []), ValueError, "group must name at least one"),
    (lambda: group_gradient(NET, squared, X, Y, [12]), ValueError, "group must lie in 0..11, got 12"),
    (lambda: group_gradient(NET, squared, X, Y, [1, 1]), ValueError, "twice"),
    (
        lambda: group_gradient(NET, squared, X, Y, [True, False]),
        TypeError,
        "group must be a list of integers",
    ),
    (lambda: example_weights(2, [[0], [1]]), ValueError, "at least one example"),
    (lambda: example_weights(2, [[0]], -1), ValueError, "weight must be"),
    # tracker
    (lambda: LossDeltaTracker(every=0), ValueError, "every must be at least 1"),
    (lambda: LossDeltaTracker(keep=2), ValueError, "keep must be at least 3"),
    (lambda: LossDeltaTracker().record(NET, 0), ValueError, "record needs a tracker made with x"),
    (lambda: LossDeltaTracker().record_losses(torch.tensor(1.0), 0), ValueError, "losses must be unreduced"),
    (
        lambda: LossDeltaTracker().record_losses(torch.tensor([1, 2]), 0),
        TypeError,
        "floating point, got torch.int64",
    ),
    (lambda: LossDeltaTracker().record_losses(torch.rand(1), 0), ValueError, "at least 2 examples"),
    (
        lambda: LossDeltaTracker().record_losses(torch.tensor([0.0, 1.0, torch.nan]), 0),
        ValueError,
        "losses must be finite, got nan at index 2",
    ),
    (
        lambda: tracked().record_losses(torch.rand(11), 5),
        ValueError,
        "shape \\(12,\\) as before, got \\(11,\\)",
    ),
    (
        lambda: tracked().record_losses(torch.rand(12), 4),
        ValueError,
        "step must be larger than the last, 4, got 4",
    ),
    (lambda: tracked().record_losses(torch.rand(2), 5, indices=[0, 1]), ValueError, "num_examples"),
    (
        lambda: tracked(num_examples=12).record_losses(torch.rand(2), 3, indices=[0, 1]),
        ValueError,
        "not be smaller",
    ),
    (
        lambda: tracked(num_examples=12).record_losses(torch.rand(3), 5, indices=[0, 1]),
        ValueError,
        "as indices",
    ),
    (lambda: tracked(num_examples=5), ValueError, "shape \\(5,\\)"),
    (lambda: tracked().extremes(7), ValueError, "k must be at most half of the 12"),
    (lambda: tracked().extremes(), ValueError, "k must be at most half"),
    (lambda: tracked().extremes(2, step=0), ValueError, "step must be a recorded one after the first, got 0"),
    (lambda: tracked(1).extremes(2), ValueError, "at least 2 records"),
    (lambda: tracked(3).alternating_pairs(2), ValueError, "at least 4 records, got 3"),
    (lambda: tracked().alternating_pairs(2, window=3), ValueError, "window must be at least 4"),
    (lambda: tracked().alternating_pairs(7), ValueError, "k must be at most half"),
    (lambda: tracked().alternating_pairs(2, end_step=9), ValueError, "end_step"),
    (lambda: tracked().alternating_pairs(2, min_correlation=0), ValueError, "min_correlation"),
    (lambda: LossDeltaTracker().losses(), ValueError, "no record yet"),
    (lambda: group_curves(tracked(), [[]]), ValueError, "groups must name at least one"),
    (lambda: alternation(torch.rand(2), torch.rand(2)), ValueError, "at least 3"),
    (lambda: alternation(torch.rand(4), torch.arange(4.0)), ValueError, "b changes by the same amount"),
    (lambda: alternation(torch.rand(4), torch.full((4,), torch.inf)), ValueError, "b must be finite"),
    (lambda: alternation([1.0, 2.0, 4.0, 4.0], [1.0, 3.0, 2.0]), ValueError, "one length, got 4 and 3"),
    (lambda: spike_steps([0.5, 0.4]), ValueError, "losses must be a curve of at least 3"),
    (lambda: spike_steps(torch.rand(2)), ValueError, "at least 3"),
    (lambda: spike_steps(torch.rand(9), z=0), ValueError, "z must be"),
    # Hessian and curvature
    (lambda: hvp(NET, closure, torch.ones(3)), ValueError, "vector must be of shape \\(26,\\)"),
    (lambda: hvp(NET, closure, torch.full((26,), torch.nan)), ValueError, "vector must be finite"),
    (
        lambda: hvp(NET, lambda: squared(NET(X), Y), torch.ones(26)),
        ValueError,
        "scalar tensor, got \\(12,\\)",
    ),
    (lambda: hvp(NET, lambda: closure().detach(), torch.ones(26)), ValueError, "detached"),
    (lambda: hvp(NET, [], torch.ones(26)), ValueError, "empty sequence"),
    (
        lambda: hvp(nn.Linear(2, 2).requires_grad_(False), closure, torch.ones(6)),
        ValueError,
        "requires a gradient",
    ),
    (
        lambda: hvp(NET, lambda: Stuck.apply(NET(X)).square().sum(), torch.ones(26)),
        RuntimeError,
        "second derivative",
    ),
    (lambda: top_eigs(NET, closure, 27), ValueError, "k must be at most 26"),
    (lambda: top_eigs(NET, closure, 5, iterations=4), ValueError, "k must be at most 4"),
    (
        lambda: top_eigs(NET, closure, preconditioner=torch.zeros(26)),
        ValueError,
        "preconditioner must be positive",
    ),
    (lambda: top_eigs(NET, closure, start=torch.ones(2)), ValueError, "start must be of shape"),
    (lambda: top_eigs(NET, lambda: closure() * torch.nan), RuntimeError, "not finite"),
    (lambda: per_example_curvature(NET, squared, X, Y, torch.ones(2)), ValueError, "vector must be of shape"),
    (lambda: curvature_share(torch.zeros(4), [0]), ValueError, "positive sum"),
    (lambda: curvature_share(torch.ones(4), [4]), ValueError, "group must lie in 0..3"),
    (lambda: score_pair(NET, squared, X, Y, [0], [0]), ValueError, "disjoint"),
    (lambda: score_pair(NET, squared, X, Y, [0], []), ValueError, "b must name at least one"),
    (lambda: score_pair(NET, squared, X, Y, [0], [1], null=1), ValueError, "null must be at least 2"),
    (
        lambda: score_pair(NET, squared, X, Y, [0], [1], among=[0, 2, 3]),
        ValueError,
        "b must lie among the examples that count, 1 does not",
    ),
    (lambda: score_pair(NET, squared, X, Y, [0], [1], among=[0, 1, 99]), ValueError, "among must lie in"),
    (lambda: curvature_share(torch.ones(4), [3], among=[0, 1]), ValueError, "group must lie among"),
    # stability and optimizers
    (lambda: eos_threshold(torch.optim.Adagrad([WEIGHT])), TypeError, "Adagrad"),
    (lambda: eos_threshold(sgd(lr=0.0)), ValueError, "lr must be"),
    (
        lambda: eos_threshold(
            torch.optim.SGD([{"params": [WEIGHT], "lr": 1.0}, {"params": [*NET.parameters()]}], lr=0.1)
        ),
        ValueError,
        "one learning rate",
    ),
    (lambda: adam_preconditioner(sgd(lr=1.0), NET), TypeError, "got SGD"),
    (lambda: adam_preconditioner(torch.optim.Adam(NET.parameters()), NET), ValueError, "taken a step"),
    (lambda: ClippedSGD([WEIGHT], lr=0.1, quantile=1.5), ValueError, "quantile must be"),
    (lambda: ClippedSGD([WEIGHT], lr=-1), ValueError, "lr must be"),
    (lambda: ClippedSGD([WEIGHT], lr=0.1, clip="norm"), ValueError, "clip must be"),
    (lambda: ClippedSGD([WEIGHT], lr=0.1, momentum=1.0), ValueError, "momentum must be below 1"),
    (lambda: PartialAdamSGD([WEIGHT], lr=0.1, fraction=-0.1), ValueError, "fraction must be"),
    (lambda: PartialAdamSGD([WEIGHT], lr=0.1, large_step="x"), ValueError, "large_step must be"),
    (lambda: PartialAdamSGD([WEIGHT], lr=0.1, mask_every=0), ValueError, "mask_every must be"),
    (lambda: SignSGD([WEIGHT], lr=0.1, normalise="x"), ValueError, "normalise must be"),
    # toys and views
    (lambda: OpposingTask(probability=0), ValueError, "probability must be"),
    (lambda: OpposingTask(dimension=1.5), TypeError, "dimension must be an integer"),
    (lambda: OpposingTask().sample(0), ValueError, "num_examples"),
    (lambda: crossing_time(0.0, 1.0, 0.1, 1.0), ValueError, "learning_rate must be"),
    (lambda: feature_view(NET, torch.ones(3, 2).long(), [0], [1]), TypeError, "floating point"),
    (lambda: image_panel(torch.rand(3, 2, 4, 4), [[0]]), ValueError, "images must be"),
    (lambda: image_panel(torch.rand(3, 4, 4), []), ValueError, "groups must hold"),
    (
        lambda: text_panel(torch.ones(2, 3).long(), {"A": [0]}, str, shape=(2, 3)),
        ValueError,
        "shape must fit",
    ),
    (lambda: text_panel(torch.rand(2, 3), {"A": [0]}, str, shape=(2, 2)), ValueError, "tokens must be ids"),
]


@pytest.mark.parametrize(("call", "kind", "says"), CASES, ids=range(len(CASES)))
def test_bad_input_is_named(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


@pytest.mark.parametrize("make", [ClippedSGD, PartialAdamSGD, SignSGD])
def test_sparse_gradients_are_refused(make):
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense"):
        make(table.parameters(), lr=0.1).step()


def test_modes_come_back_after_an_exception():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).double()
    with pytest.raises(ValueError, match=re.escape("got ()")):
        per_example_loss(model, lambda o, t: o.sum(), X, Y)
    assert model.training
    assert model[1].training


def test_inference_mode_around_is_no_hindrance():
    wanted = hvp(NET, closure, torch.ones(26).double())
    with torch.inference_mode():
        assert torch.equal(hvp(NET, closure, torch.ones(26).double()), wanted)
        assert per_example_loss(NET, squared, X, Y).shape == (12,)


def test_every_measurement_works_in_inference_mode():
    vector = torch.ones(sum(p.numel() for p in NET.parameters())).double()

    def measured():
        return [
            group_gradient(NET, squared, X, Y, [0, 2]),
            per_example_curvature(NET, squared, X, Y, vector.clone()),
            feature_view(NET, X, [0], [1]).sensitivity,
            score_pair(NET, squared, X, Y, [0, 1], [2], null=2).curvature.share,
        ]

    wanted = measured()
    with torch.inference_mode():
        found = measured()
    torch.testing.assert_close(found[:3], wanted[:3])
    assert found[3] == pytest.approx(wanted[3], rel=1e-3)


def test_records_of_different_modes_go_together():
    tracker = LossDeltaTracker(X, Y, squared)
    with torch.inference_mode():
        tracker.record(NET, 0)
    tracker.record(NET, 1)
    assert tracker.losses().shape == (2, 12)


def test_losses_are_measured_without_a_graph():
    seen = []

    def loss(output, target):
        seen.append(output.requires_grad)
        return squared(output, target)

    per_example_loss(NET, loss, X, Y)
    assert seen == [False]


def test_a_loss_of_another_model_is_refused():
    other, _, _ = small_net(1)
    with pytest.raises(ValueError, match="loss_closure must depend on a trainable parameter"):
        top_eigs(other, closure)


def test_the_length_of_a_vector_does_not_change_a_score():
    size = sum(p.numel() for p in NET.parameters())
    vector = torch.linspace(-1, 2, size).double()
    unit = vector / vector.norm()
    wanted = per_example_curvature(NET, squared, X, Y, unit).mean().item()
    assert wanted != 0
    score = score_pair(NET, squared, X, Y, [0, 1], [2], null=2, vector=10 * vector)
    assert score.sharpness == pytest.approx(wanted)
    with pytest.raises(ValueError, match="vector must not be zero"):
        score_pair(NET, squared, X, Y, [0, 1], [2], null=2, vector=0 * vector)


def test_gradients_of_bfloat16_models_are_summed_in_float32():
    net = nn.Linear(1, 1, bias=False).bfloat16()
    x = torch.ones(1000, 1, dtype=torch.bfloat16)
    found = group_gradient(net, lambda output: output[:, 0], x, None, range(1000), batch=1)
    assert found.dtype == torch.float32  # a sum in bfloat16 stops growing at 1/4
    assert found.item() == pytest.approx(1, rel=5e-3)
    assert per_example_gradient_norms(net, lambda output: output[:, 0], x[:3]).dtype == torch.float32
