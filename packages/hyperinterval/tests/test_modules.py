"""Ordinary modules: their own forward, whatever it is, on tensors that know their bounds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from hyperinterval import (
    IntervalHypernetwork,
    IntervalTensor,
    certified_accuracy,
    interval_add,
    interval_forward,
)


def boxes_of(net, radius=0.1):
    return {
        name: IntervalTensor.from_mid_rad(value.detach(), torch.full_like(value, radius))
        for name, value in net.named_parameters()
    }


class Mlp(nn.Module):
    """As people write it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class Residual(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x):
        return x + super().forward(x)


class Block(nn.Module):
    """A residual block of torchvision's kind: in place, with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)
        self.down, self.relu = nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 3)
        generator = torch.Generator().manual_seed(0)
        for norm in (self.bn1, self.bn2):
            norm.running_mean.uniform_(-1, 1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        out = F.max_pool2d(self.relu(out), 2)
        return self.head(F.avg_pool2d(out, 2).flatten(1) if out.shape[-1] > 2 else torch.flatten(out, 1))


class Arithmetic(nn.Module):
    """Everything that is not a layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(3, 6))
        self.mix = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        a, b = (x * self.scale - self.shift[0]).chunk(2, dim=1)
        y = torch.cat([1 - a, -b / 3, 2 * (a + b)], dim=1).clamp(min=-1.5, max=2)
        y = torch.stack([y[:, :6], y[:, 3:]], dim=1).transpose(1, 2).amax(dim=2)
        y = y - 0.25 * F.pad(y, (1, -1), value=-0.5) + y.mean(dim=1, keepdim=True)
        y /= 2.0
        return torch.maximum(y @ self.mix, self.shift.sum(dim=0)[:4])


def sequential(*layers):
    return lambda: nn.Sequential(*copy.deepcopy(layers))


NETS = {
    "mlp": (Mlp, (5, 6)),
    "residual": (lambda: Residual(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), (5, 6)),
    "block": (Block, (2, 2, 4, 4)),
    "arithmetic": (Arithmetic, (5, 6)),
    "activations": (
        sequential(
            nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.Mish(), nn.Linear(8, 8),
            nn.Hardswish(), nn.Linear(8, 8), nn.GELU("tanh"), nn.Unflatten(1, (2, 4)), nn.AvgPool1d(2), nn.SELU(),
            nn.Dropout1d(0.5), nn.Hardtanh(-0.5, 0.7), nn.Flatten(), nn.LogSigmoid(),
        ),
        (5, 6),
    ),
    "convolutions": (
        sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 3, 3, stride=2),
            nn.BatchNorm1d(3), nn.Unflatten(2, (3, 3)), nn.ConvTranspose2d(3, 2, 3, groups=1, padding=1), nn.ELU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Softsign(),
        ),
        (2, 2, 8),
    ),
}  # fmt: skip


def member(box, generator):
    share = torch.rand(box.shape, generator=generator, dtype=box.lo.dtype) * 2 - 0.5
    return torch.clamp(box.lo + share * (box.hi - box.lo), box.lo, box.hi)


@pytest.mark.parametrize("kind", NETS)
@given(
    seed=st.integers(0, 2**31 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weight_radius=st.sampled_from([0.0, 1e-7, 0.03, 1.0]),
    input_radius=st.sampled_from([0.0, 1e-7, 0.1]),
)
def test_every_member_as_computed_stays_within_the_outward_bounds(
    kind, seed, dtype, weight_radius, input_radius
):
    build, shape = NETS[kind]
    generator = torch.Generator().manual_seed(seed)
    net = build().to(dtype).eval()
    boxes = {}
    for name, value in net.named_parameters():
        mid = torch.randn(value.shape, generator=generator, dtype=dtype)
        rad = weight_radius * torch.rand(value.shape, generator=generator, dtype=dtype)
        boxes[name] = IntervalTensor.from_mid_rad(mid, rad)
    mid = 2 * torch.randn(shape, generator=generator, dtype=dtype)
    x = IntervalTensor.from_mid_rad(mid, torch.full_like(mid, input_radius))
    out = interval_forward(net, boxes, x if input_radius else mid, outward=True)
    for _ in range(4):
        weights = {name: member(box, generator) for name, box in boxes.items()}
        assert out.contains(functional_call(net, weights, (member(x, generator),))).all()
    middles = {name: box.mid for name, box in boxes.items()}
    size = 1 + out.magnitude.max().item()
    torch.testing.assert_close(out.mid, functional_call(net, middles, (x.mid,)), rtol=1e-4, atol=1e-5 * size)
    if weight_radius == input_radius == 0:  # and not needlessly wide
        assert out.rad.max() <= 3e-3 * size


def test_an_ordinary_class_has_the_bounds_of_its_sequential():
    net, x = Mlp(), torch.randn(5, 6)
    flat = nn.Sequential(net.fc1, nn.ReLU(), net.fc2)
    renamed = {name.replace("fc1", "0").replace("fc2", "2"): box for name, box in boxes_of(net).items()}
    for outward in (False, True):
        own = interval_forward(net, boxes_of(net), x, outward=outward)
        for bound in ("lo", "mid", "hi"):
            expected = getattr(interval_forward(flat, renamed, x, outward=outward), bound)
            assert torch.equal(getattr(own, bound), expected)


def residual_rule(layer, boxes, x, outward):
    plain = nn.Sequential(*layer)
    return interval_add(x, interval_forward(plain, boxes, x, outward=outward))


def test_a_residual_subclass_has_the_bounds_of_the_rule_for_it():
    net, x = nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)), torch.randn(3, 4)
    general = interval_forward(net, boxes_of(net), x)
    ruled = interval_forward(net, boxes_of(net), x, rules={Residual: residual_rule})
    assert torch.equal(general.lo, ruled.lo)
    assert torch.equal(general.hi, ruled.hi)
    assert not torch.equal(general.hi, interval_forward(nn.Sequential(*net[0], net[1]), {
        "0.weight": boxes_of(net)["0.0.weight"], "0.bias": boxes_of(net)["0.0.bias"],
        "2.weight": boxes_of(net)["1.weight"], "2.bias": boxes_of(net)["1.bias"],
    }, x).hi)  # fmt: skip


def test_rules_are_followed_at_any_depth():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Mlp()

        def forward(self, x):
            return 2 * self.inner(x)

    net, calls = Outer(), []

    def rule(layer, boxes, x, outward):
        calls.append(sorted(boxes))
        if outward:
            return interval_forward(layer, boxes, x, outward=True)  # which runs the layer's own forward
        first = {name.removeprefix("fc1."): box for name, box in boxes.items() if name.startswith("fc1.")}
        hidden = interval_forward(layer.fc1, first, x)
        return interval_forward(
            layer.fc2, {}, interval_forward(nn.ReLU(), {}, hidden)
        )  # fc2 has its boxes still

    for outward in (False, True):
        out = interval_forward(net, boxes_of(net), torch.ones(2, 6), rules={Mlp: rule}, outward=outward)
        assert torch.equal(out.hi, interval_forward(net, boxes_of(net), torch.ones(2, 6), outward=outward).hi)
    assert calls == 2 * [["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]]
    assert "forward" not in vars(net.inner)


def test_by_hand_a_gelu_dips_to_its_minimum_between_the_bounds():
    x = IntervalTensor(torch.tensor([-3.0, -0.5, 1.0]), torch.tensor([0.0, 0.5, 2.0]))
    out = interval_forward(nn.GELU(), {}, x)
    assert out.lo.tolist() == pytest.approx([-0.1699712, F.gelu(torch.tensor(-0.5)).item(), 0.8413447])
    assert out.hi.tolist() == pytest.approx([0.0, F.gelu(torch.tensor(0.5)).item(), 1.9544997])


def test_by_hand_batch_norm_in_eval_mode():
    norm = nn.BatchNorm1d(1, eps=0.0).eval()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    boxes = {
        "weight": IntervalTensor(torch.tensor([-1.0]), torch.tensor([3.0])),
        "bias": IntervalTensor(torch.tensor([0.0]), torch.tensor([0.5])),
    }
    out = interval_forward(
        norm, boxes, torch.tensor([[5.0]])
    )  # (5 - 1) / 2 = 2, times [-1, 3], plus [0, 0.5]
    assert (out.lo.item(), out.mid.item(), out.hi.item()) == (-2.0, 2.25, 6.5)


def by_hand(lo, hi):
    return IntervalTensor(torch.tensor([lo]), torch.tensor([hi]))


@pytest.mark.parametrize(
    ("function", "lo", "hi"),
    [
        (lambda x, w: x * w, -6.0, 3.0),  # of -1 .. 2 and -3 .. 1
        (lambda x, w: w * x, -6.0, 3.0),
        (lambda x, w: x + w, -4.0, 3.0),
        (lambda x, w: x - w, -2.0, 5.0),
        (lambda x, w: torch.sub(w, x), -5.0, 2.0),
        (lambda x, w: 1 - x, -1.0, 2.0),
        (lambda x, w: -w, -1.0, 3.0),
        (lambda x, w: -2 * w, -2.0, 6.0),
        (lambda x, w: x / -2, -1.0, 0.5),
        (
            lambda x, w: (x[:, None] @ w[:, None]).flatten(),
            -6.0,
            5.0,
        ),  # -.5 +- (.5 * 2 + 1.5 (1 + 2))
        (lambda x, w: (torch.relu(x)[:, None] @ w[:, None]).flatten(), -6.0, 2.0),
        (lambda x, w: (F.pad(torch.relu(x), (0, 1), value=-1.0)[1:, None] @ w[:, None]).flatten(), -1.0, 3.0),
        (
            lambda x, w: (torch.cat([torch.relu(x), -torch.ones(1)])[1:, None] @ w[:, None]).flatten(),
            -1.0,
            3.0,
        ),
    ],
)
def test_by_hand_two_boxes(function, lo, hi):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return function(x, self.w)

    out = interval_forward(Net(), {"w": by_hand(-3.0, 1.0)}, by_hand(-1.0, 2.0))
    assert (out.lo.item(), out.hi.item()) == (lo, hi)
    middle = function(torch.tensor([0.5]), torch.tensor([-1.0]))
    torch.testing.assert_close(out.mid, middle)


def trained_norm():
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.copy_(torch.tensor([300.0, -1.0, 0.1]))
    norm.running_var.copy_(torch.tensor([7.0, 0.3, 0.01]))
    return norm


@pytest.mark.parametrize(
    "layer",
    [nn.AvgPool2d(16), nn.AdaptiveAvgPool2d(1), nn.AvgPool3d(3), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Tanh(),
     trained_norm(), nn.Conv2d(3, 2, 16, bias=False), nn.ConvTranspose2d(3, 2, 5, bias=False)],
    ids=str,
)  # fmt: skip
def test_outward_bounds_hold_the_exact_value_where_plain_ones_do_not(layer):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(8, 3, 16, 16, generator=generator)
    if "Conv" in type(layer).__name__:
        layer.weight.data.normal_(std=0.05, generator=generator)
    exact = copy.deepcopy(layer).double()(x.double())
    plain, outward = (interval_forward(layer, {}, x, outward=outward) for outward in (False, True))
    assert not plain.contains(exact).all()
    assert outward.contains(exact).all()
    assert outward.rad.max() <= 1e-2 * (1 + exact.abs().max())


def test_a_transposed_convolution_is_rounded_like_the_convolution_that_it_is():
    transposed = nn.ConvTranspose2d(30, 2, 3, bias=False)
    kernel = transposed.weight.detach().flip(2, 3).transpose(0, 1)
    same = nn.Conv2d(30, 2, 3, padding=2, bias=False)
    x = torch.randn(4, 30, 5, 5, generator=torch.Generator().manual_seed(0))
    out = interval_forward(transposed, {}, x, outward=True)
    expected = interval_forward(same, {"weight": IntervalTensor.point(kernel)}, x, outward=True)
    torch.testing.assert_close(out.mid, expected.mid)
    torch.testing.assert_close(out.rad, expected.rad, rtol=0.02, atol=1e-6)  # of sums of 270 products
    flat, columns = nn.Conv1d(200, 3, 1, bias=False), torch.rand(2, 200, 1)
    rows = interval_forward(nn.Linear(200, 3, bias=False), {"weight": IntervalTensor.point(flat.weight[..., 0])},
                            columns[..., 0], outward=True)  # fmt: skip
    torch.testing.assert_close(
        interval_forward(flat, {}, columns, outward=True).rad[..., 0], rows.rad, rtol=0.02, atol=1e-6
    )


def test_batch_norm_of_the_batch_is_refused_and_counts_nothing():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with pytest.raises(
        ValueError, match=r"layer '0\.1' is BatchNorm1d: batch_norm with the statistics of the batch"
    ):
        interval_forward(net, boxes_of(net), torch.zeros(2, 4))
    assert net[0][1].num_batches_tracked == 0
    assert net[0][1].training
    assert isinstance(net[0][1].weight, nn.Parameter)


def refused(forward):
    class Net(nn.Linear):
        pass

    Net.forward = forward
    return Net(4, 4)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: x.softmax(dim=1), "it calls softmax, for which there is no interval rule"),
        (lambda self, x: x if x.sum() > 0 else -x, "it calls (gt|__gt__|greater)"),
        (lambda self, x: x * float(x.sum()), "it calls (__float__|item|_local_scalar_dense)"),
        (lambda self, x: x / x, "it divides by a tensor with bounds"),
        (lambda self, x: torch.add(x, x, alpha=-1), "alpha=-1 has no interval rule"),
        (lambda self, x: F.leaky_relu(x, -0.1), "negative_slope must be >= 0, got -0.1"),
        (lambda self, x: F.elu(x, -1.0), r"alpha must be in \[0, 1\], got -1"),
        (lambda self, x: x.clamp(min=1.0, max=0.0), "min must be <= max"),
        (lambda self, x: x.long(), "it calls long"),
        (lambda self, x: x.to(torch.int32), "turns a tensor with bounds into torch.int32"),
        (lambda self, x: x.view(torch.int32), "views the bits"),
        (lambda self, x: F.avg_pool2d(x[None], 2, divisor_override=-4), "divisor_override must be >= 1, got -4"),
        (lambda self, x: F.max_pool2d(x[None], 2, return_indices=True)[0], "return_indices=True|with_indices"),
        (lambda self, x: x.view(-1).relu_(), "it calls relu_ in place on a view"),
        (lambda self, x: torch.relu(x, out=torch.zeros(1)), "relu"),
        (lambda self, x: torch.zeros(2, 4).add_(x), "in place on a tensor without bounds"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_refused_by_name(forward, message):
    net = refused(forward)
    before = dict(vars(net))
    with pytest.raises((ValueError, TypeError), match=message):
        interval_forward(net, boxes_of(net), torch.ones(2, 4))
    assert vars(net) == before
    assert isinstance(net.weight, nn.Parameter)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AdaptiveMaxPool2d])
@pytest.mark.parametrize("wrap", [nn.Identity, lambda layer: nn.Sequential(nn.Identity(), layer)])
def test_indices_of_a_maximum_have_no_rule(pool, wrap):
    layer = pool(2, return_indices=True)
    net = layer if wrap is nn.Identity else wrap(layer)
    with pytest.raises(ValueError, match=f"{pool.__name__} with return_indices=True has no interval rule"):
        interval_forward(net, {}, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("returned", [lambda x: {"logits": x}, lambda x: (x, x), lambda x: torch.zeros(2)])
def test_a_module_must_return_one_tensor_that_depends_on_the_input(returned):
    net = refused(lambda self, x: returned(x))
    with pytest.raises(TypeError, match="must return one tensor that depends on x, got"):
        interval_forward(net, {}, torch.ones(2, 4))


def test_hooks_count_and_leave_nothing_behind():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    plain = interval_forward(net, boxes_of(net), x)
    handle = net[2].register_forward_hook(lambda layer, inputs, output: 3 * output)
    torch.testing.assert_close(interval_forward(net, boxes_of(net), x).hi, 3 * plain.hi)
    handle.remove()
    prune.l1_unstructured(net[0], "weight", 0.5)  # a hook as well, with another parameter
    boxes = {f"0.{name}": box for name, box in boxes_of(net[0]).items()}
    weight = net[0].weight
    out = interval_forward(net, boxes, x)
    assert boxes.keys() == {"0.bias", "0.weight_orig"}
    assert net[0].weight is weight
    mask, pruned = net[0].weight_mask, boxes["0.weight_orig"]
    by_hand = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), net[2])
    expected = {
        "0.bias": boxes["0.bias"],
        "0.weight": IntervalTensor(pruned.lo * mask, pruned.hi * mask),
    }
    torch.testing.assert_close(out.hi, interval_forward(by_hand, expected, x).hi)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weight_norm_is_refused_not_ignored(old):
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    net = nn.Sequential(norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="it calls _weight_norm, for which there is no interval rule"):
        interval_forward(net, boxes_of(net), torch.ones(2, 4))


def test_parameters_shared_between_modules():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    net, x = Tied(), torch.randn(20, 4)
    boxes = boxes_of(net, 0.3)
    assert boxes.keys() == {"first.weight", "first.bias", "second.bias"}
    out = interval_forward(net, boxes, x, outward=True)
    for bound in ("lo", "mid", "hi"):
        weights = {name: getattr(box, bound) for name, box in boxes.items()}
        assert out.contains(functional_call(net, weights, (x,))).all()


def test_compiled_and_scripted_modules():
    net, x = Mlp(), torch.randn(3, 6)
    compiled = torch.compile(net, backend="eager")
    out = interval_forward(compiled, boxes_of(compiled), x)
    assert torch.equal(out.hi, interval_forward(net, boxes_of(net), x).hi)
    inside = refused(lambda self, x: self.inner(x) + x[:, :4])
    inside.inner = compiled
    boxes = {name: box for name, box in boxes_of(inside).items() if name.startswith("inner")}
    out = interval_forward(inside, boxes, x)
    assert torch.equal(out.hi, interval_forward(net, boxes_of(net), x).hi + x[:, :4])
    assert torch.equal(compiled(x), net(x))
    hyper = IntervalHypernetwork(compiled, 1)
    hyper.start_task(0)
    compiled.load_state_dict(hyper.universal())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_compiled_script_is_refused():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(nn.Linear(4, 4))

        def forward(self, x):
            return x + self.inner(x)

    with pytest.raises(ValueError, match="holds a compiled script"):
        interval_forward(Scripted(), {}, torch.ones(2, 4))


def test_functional_dropout_draws_one_mask_and_cannot_be_certified():
    net = refused(lambda self, x: F.dropout(F.linear(x, self.weight), 0.5, self.training))
    out = interval_forward(net, boxes_of(net), torch.ones(50, 4))
    assert torch.equal(out.lo == 0, out.hi == 0)
    assert 50 < (out.mid == 0).sum() < 150
    data = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"dropout is active: call eval\(\)"):
        certified_accuracy(net, boxes_of(net), data)
    assert certified_accuracy(net.eval(), boxes_of(net, 9.0), data) == 0
    with pytest.raises(ValueError, match="dropout is active"):
        certified_accuracy(nn.Sequential(nn.Dropout2d()), {}, data)


def test_gradients_flow_through_an_ordinary_class():
    net, x = Mlp(), torch.randn(5, 6)
    hyper = IntervalHypernetwork(net, 2, 6, (7,), generator=torch.Generator().manual_seed(0))

    def width(x):
        return interval_forward(net, hyper(0), x).rad.sum()

    gradient = torch.autograd.grad(width(x), hyper.embeddings[0])[0]
    assert gradient.abs().sum() > 0
    with torch.inference_mode():
        assert width(x) > 0


@pytest.mark.parametrize("as_buffer", [True, False])
@pytest.mark.parametrize("inside", [nn.Sequential, Residual])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Conv2d(2, 2, 1)], ids=["linear", "conv"])
def test_a_weight_or_bias_that_is_no_parameter_counts(layer, name, inside, as_buffer):
    layer = copy.deepcopy(layer)
    value = getattr(layer, name).detach() + 3
    delattr(layer, name)
    layer.register_buffer(name, value) if as_buffer else setattr(layer, name, value)
    net, x = inside(layer), torch.ones(1, 2) if isinstance(layer, nn.Linear) else torch.ones(1, 2, 1, 1)
    out = interval_forward(net, boxes_of(net, 0.0), x)
    torch.testing.assert_close(out.lo, net(x))
    torch.testing.assert_close(out.hi, net(x))


def test_hooks_of_all_modules_count():
    net, x = nn.Sequential(nn.Linear(6, 3)), torch.ones(2, 6)
    handle = nn.modules.module.register_module_forward_hook(lambda layer, inputs, out: out + 1)
    try:
        out, expected = interval_forward(net, boxes_of(net, 0.0), x), net(x)
    finally:
        handle.remove()
    torch.testing.assert_close(out.lo, expected)
    torch.testing.assert_close(out.hi, expected)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: torch.rsub(x, x, alpha=2), "alpha=2 has no interval rule"),
        (lambda x: x.sum(dim=1, dtype=torch.int64), "it sums tensors with bounds as torch.int64"),
    ],
)
def test_options_without_a_rule_are_named(forward, message):
    net = Mlp()
    net.fc1.register_forward_hook(lambda layer, inputs, out: forward(out))
    with pytest.raises(ValueError, match=message):
        interval_forward(net, {}, torch.ones(1, 6))


def test_sums_in_another_dtype_are_widened_for_it():
    net = nn.Sequential(nn.Linear(6, 3))
    net.register_forward_hook(lambda layer, inputs, out: out.sum(dim=1, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"needs float32 or float64, got torch\.float16"):
        interval_forward(net, {}, torch.ones(1, 6), outward=True)
