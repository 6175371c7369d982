"""Walking modules: layers, further rules, and what is refused."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hyperinterval import (
    INTERVAL_RULES,
    IntervalTensor,
    certified_accuracy,
    interval_forward,
    relaxed_forward,
)


def boxes_of(net, radius=0.1):
    return {
        name: IntervalTensor.from_mid_rad(value.detach(), torch.full_like(value, radius))
        for name, value in net.named_parameters()
    }


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.Tanh(), nn.Sigmoid(), nn.Identity(),
        nn.Flatten(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2),
        nn.ReLU(inplace=True), nn.Dropout(0.5).eval(),
    ],
    ids=str,
)  # fmt: skip
def test_layers_without_weights_map_bounds_and_middle(layer):
    mid = 4 * torch.randn(2, 3, 4, 4)
    box = IntervalTensor(mid - 1, mid + 2, mid)
    out = interval_forward(layer, {}, box)
    for bound in ("lo", "mid", "hi"):
        torch.testing.assert_close(getattr(out, bound), layer(getattr(box, bound).clone()))
    wide = interval_forward(layer, {}, box, outward=True)
    assert wide.contains(out.lo).all()
    assert wide.contains(out.hi).all()


def test_parameters_without_a_box_keep_their_value():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    boxes, x = boxes_of(net), torch.randn(3, 4)
    partial = interval_forward(net, {"2.weight": boxes["2.weight"]}, x)
    points = {name: IntervalTensor.point(value) for name, value in net.named_parameters()}
    whole = interval_forward(net, {**points, "2.weight": boxes["2.weight"]}, x)
    torch.testing.assert_close(partial.hi, whole.hi)
    assert partial.contains(net(x)).all()


def test_layers_and_parameters_used_twice_are_bounded_twice():
    relu, linear = nn.ReLU(), nn.Linear(4, 4)
    net = nn.Sequential(linear, relu, linear, relu)
    boxes, x = boxes_of(net, 0.3), torch.randn(50, 4)
    assert boxes.keys() == {"0.weight", "0.bias"}
    out = interval_forward(net, boxes, x, outward=True)
    assert (out.lo >= 0).all()
    for bound in ("lo", "mid", "hi"):
        weights = {name: getattr(box, bound) for name, box in boxes.items()}
        assert out.contains(functional_call(net, weights, (x,))).all()
    untied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    twice = {**boxes, "2.weight": boxes["0.weight"], "2.bias": boxes["0.bias"]}
    assert torch.equal(out.hi, interval_forward(untied, twice, x, outward=True).hi)


def test_dropout_draws_one_mask_for_bounds_and_middle():
    net = nn.Sequential(nn.Linear(4, 200), nn.Dropout(0.5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = interval_forward(net, boxes_of(net), torch.ones(1, 4))
    kept = [value != 0 for value in (out.lo, out.mid, out.hi)]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[1], kept[2])
    assert 60 < kept[0].sum() < 140
    plain = interval_forward(net[:1], boxes_of(net[:1]), torch.ones(1, 4))
    torch.testing.assert_close(out.hi[kept[0]], 2 * plain.hi[kept[0]])


def test_relaxed_dropout_shares_its_mask_and_batch_norm_counts_one_run():
    net = nn.Sequential(nn.Linear(4, 200), nn.BatchNorm1d(200), nn.Dropout(0.5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = relaxed_forward(net, boxes_of(net), torch.randn(8, 4))
    assert torch.equal(out.lo == 0, out.hi == 0)
    assert net[1].num_batches_tracked == 1


@pytest.mark.parametrize("run", [interval_forward, relaxed_forward])
def test_wrong_boxes_are_named(run):
    net = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="params has 'weight', which is no parameter"):
        run(net, {"weight": IntervalTensor.point(torch.zeros(2, 4))}, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"params\['0.weight'\] must have shape \(2, 4\), got \(4, 2\)"):
        run(net, {"0.weight": IntervalTensor.point(torch.zeros(4, 2))}, torch.zeros(1, 4))


@pytest.mark.parametrize("run", [interval_forward, relaxed_forward])
def test_weights_that_are_no_boxes_are_named(run):
    net = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"params\['0.weight'\] must be an IntervalTensor, got Tensor"):
        run(net, {"0.weight": torch.zeros(2, 4)}, torch.zeros(1, 4))


def test_inputs_that_are_no_floats_are_named():
    for x, got in ((torch.zeros(1, 4, dtype=torch.int64), r"torch\.int64"), ([0.0] * 4, "list")):
        with pytest.raises(TypeError, match=f"x must be a floating-point tensor, got {got}"):
            interval_forward(nn.Linear(4, 2), {}, x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LeakyReLU(-0.1), "negative_slope must be >= 0"),
        (nn.ELU(-1.0), r"alpha must be in \[0, 1\], got -1"),
        (nn.AvgPool2d(2, divisor_override=-4), "divisor_override must be >= 1, got -4"),
        (
            nn.Softplus(threshold=1),
            "it calls softplus, for which there is no interval rule",
        ),  # it falls at its threshold
    ],
)
def test_layers_that_are_not_monotone_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        interval_forward(layer, {}, torch.zeros(1, 1, 4, 4))


def test_active_dropout_cannot_be_certified():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    data = [(torch.zeros(1, 2), torch.tensor([0]))]
    with pytest.raises(ValueError, match="dropout is active"):
        certified_accuracy(net, boxes_of(net), data)
    assert certified_accuracy(net.eval(), boxes_of(net, 9.0), data) == 0
    with pytest.raises(ValueError, match="loader must yield at least one sample"):
        certified_accuracy(net, boxes_of(net), [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outward_rounding_refuses_what_it_cannot_bound(dtype):
    net = nn.Linear(3, 2).to(dtype)
    with pytest.raises(TypeError, match="outward=True needs float32 or float64"):
        interval_forward(net, {}, torch.zeros(1, 3, dtype=dtype), outward=True)


def test_the_rules_are_for_reading():
    assert nn.Linear in INTERVAL_RULES
    with pytest.raises(TypeError):
        INTERVAL_RULES[nn.Linear] = None


def test_padding_with_values_of_the_image():
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    boxes, x = boxes_of(conv, 0.2), torch.randn(4, 2, 5, 5)
    out = interval_forward(conv, boxes, x, outward=True)
    for bound in ("lo", "mid", "hi"):
        weights = {name: getattr(box, bound) for name, box in boxes.items()}
        assert out.contains(functional_call(conv, weights, (x,))).all()
    inner = nn.Conv2d(2, 3, 3)
    inside = interval_forward(inner, boxes, x)  # without padding, the inner outputs are the same
    torch.testing.assert_close(interval_forward(conv, boxes, x).hi[..., 1:-1, 1:-1], inside.hi)


def test_relaxed_mode_needs_one_tensor():
    class Net(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    with pytest.raises(TypeError, match="module must return one tensor, got dict"):
        relaxed_forward(Net(2, 2), {}, torch.zeros(1, 2))
