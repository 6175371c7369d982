"""Layers that are not quite torch's own: subclasses, hooks, parametrizations, modes; and layers of several parts."""

import copy
import io
import threading

import pytest
import torch
from models import mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fastibp import IBP, Box, add_batchnorm, evaluate, ibp_init_, linf_box, robust_loss
from fastibp.batchnorm import shared_statistics


class Plain(nn.Conv2d):
    """Another constructor, and nothing else."""

    def __init__(self, before, after):
        super().__init__(before, after, 3, padding=1, bias=False)


class Standardised(nn.Conv2d):
    """A weight of its own making."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Scaled(nn.Linear):
    """A forward pass of its own, which calls the old one and does more."""

    def forward(self, x):
        return 3 * super().forward(x) - 1


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class NormAct(nn.BatchNorm2d):
    """As in timm: the norm, written as a function, and an activation."""

    def forward(self, x):
        torch._assert(x.ndim == 4, "four dimensions")
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        return F.relu(x, inplace=True)


class Patched(nn.Linear):
    """A forward pass set on the instance."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        old = self.forward
        self.forward = lambda x: old(x) * 2


class Dropping(nn.Module):
    """Its own choice of what training is."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.dropout(x, 0.5, self.training))


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(6))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(x - 2 * self.shift + torch.tensor(0.5)))


def flat(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3))


MODELS = {
    "subclass with a constructor": lambda: flat(Plain(2, 2), nn.BatchNorm2d(2), nn.ReLU()),
    "subclass with a weight of its own": lambda: flat(Standardised(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU()),
    "subclass with a forward of its own": lambda: nn.Sequential(
        nn.Flatten(), Scaled(32, 5), nn.ReLU(), Scaled(5, 3)
    ),
    "residual block": lambda: flat(Residual(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())),
    "norm and activation": lambda: flat(nn.Conv2d(2, 2, 3, padding=1), NormAct(2)),
    "forward on the instance": lambda: nn.Sequential(nn.Flatten(), Patched(32, 5), nn.ReLU(), Patched(5, 3)),
    "weight norm": lambda: flat(parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1)), nn.ReLU()),
    "orthogonal": lambda: flat(nn.Flatten(), parametrizations.orthogonal(nn.Linear(32, 32)), nn.ReLU()),
    "parametrized subclass": lambda: nn.Sequential(
        nn.Flatten(), parametrizations.weight_norm(Scaled(32, 5)), nn.ReLU(), nn.Linear(5, 3)
    ),
    "weight norm by a hook": lambda: flat(
        weight_norm(nn.Conv2d(2, 2, 3, padding=1)), nn.BatchNorm2d(2), nn.ReLU()
    ),
    "spectral norm by a hook": lambda: flat(spectral_norm(nn.Conv2d(2, 2, 3, padding=1)), nn.ReLU()),
    "pruning": lambda: flat(
        prune.random_unstructured(nn.Conv2d(2, 2, 3, padding=1), "weight", 0.5), nn.ReLU()
    ),
    "transposed by a function": lambda: flat(Transposed(), nn.ReLU()),
}


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 3, 3))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, None, 1, 1)


def points_of(box, count=200):
    share = torch.rand(count, *box.shape, dtype=box.dtype)
    share[: count // 2].round_()
    return box.lower + share * (box.upper - box.lower)


def made(kind):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return MODELS[kind]()


@pytest.fixture(autouse=True)
def _drawn():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_layer_of_ones_own_has_the_values_of_the_model_and_bounds_around_them(kind, training):
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    model, twin = (made(kind).double().train(training) for _ in range(2))
    box = linf_box(x, 0.1)
    bounder = IBP(model)
    output = bounder(x, box)
    torch.testing.assert_close(output.logits, twin(x))
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)  # running statistics moved once, and not when traced
    if not training:
        with torch.no_grad():
            values = model(points_of(box).flatten(0, 1)).view(200, 3, 3)
        assert (values >= output.box.lower - 1e-9).all()
        assert (values <= output.box.upper + 1e-9).all()
    output.box.upper.sum().backward()
    bounder(
        x, box
    ).box.upper.sum().backward()  # a weight computed anew: its graph is not that of the last step
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize(
    ("own", "like"),
    [
        (Plain(2, 2), lambda conv: conv),
        (Scaled(32, 32), lambda linear: nn.Sequential(linear, Affine(3, -1))),
        (Residual(nn.Linear(32, 32), nn.ReLU()), lambda block: Around(nn.Sequential(*block))),
    ],
    ids=["constructor", "forward", "residual"],
)
def test_the_general_path_and_the_fast_one_are_equal(own, like):
    flatten = [] if isinstance(own, nn.Conv2d) else [nn.Flatten()]
    norm = nn.BatchNorm2d(2) if isinstance(own, nn.Conv2d) else nn.BatchNorm1d(32)
    if isinstance(own, Residual):
        base = own
    else:
        base = nn.Conv2d(2, 2, 3, padding=1, bias=False) if isinstance(own, nn.Conv2d) else nn.Linear(32, 32)
        base.load_state_dict(own.state_dict())
    rest = [nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    x = torch.rand(4, 2, 4, 4)
    labels = torch.tensor([0, 1, 2, 0])
    found, wanted = (
        IBP(nn.Sequential(*flatten, layer, copy.deepcopy(norm), *copy.deepcopy(rest)))(
            x, linf_box(x, 0.1), labels
        )
        for layer in (own, like(base))
    )
    torch.testing.assert_close(found.margins, wanted.margins)
    torch.testing.assert_close(found.preacts[-1].upper, wanted.preacts[-1].upper)


def test_a_norm_as_a_function_sends_the_gradients_of_the_layer():
    x, gradients = torch.rand(4, 2, 4, 4, dtype=torch.float64), []
    convolution = nn.Conv2d(2, 2, 3, padding=1)
    for norm in ([NormAct(2)], [nn.BatchNorm2d(2), nn.ReLU()]):
        model = nn.Sequential(copy.deepcopy(convolution), *norm).double()
        box = IBP(model)(x, linf_box(x, 0.2)).box
        loss = box.lower.square().sum() + (box.upper**3).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)


class Affine(nn.Module):
    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x):
        return self.scale * x + self.shift


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_pruning_a_layer_by_hand_has_the_bounds_of_the_zeroed_weight():
    model, x = mlp().eval(), torch.rand(4, 6)
    bounder, zeroed = IBP(model), copy.deepcopy(model)
    for pruned in (model, zeroed):
        prune.l1_unstructured(pruned[0], "weight", amount=0.5)  # after it was traced
    prune.remove(zeroed[0], "weight")
    with torch.no_grad():
        model[0].weight_orig.mul_(
            2
        )  # what an optimizer does: the weight is not computed again before the next call
        zeroed[0].weight.mul_(2)
    box = linf_box(x, 0.1)
    wanted = IBP(zeroed)(x, box).box.upper
    torch.testing.assert_close(bounder(x, box).box.upper, wanted)
    report = evaluate(
        bounder, [(x, torch.zeros(4).long())], 0.1, dtype=torch.float64
    )  # which copies the model
    assert report == evaluate(zeroed, [(x, torch.zeros(4).long())], 0.1, dtype=torch.float64)
    assert torch.equal(bounder.model[0].weight == 0, zeroed[0].weight == 0)


def test_a_single_layer_is_a_model():
    layer, x = nn.Linear(6, 3), torch.rand(4, 6)
    found = IBP(layer)(x, linf_box(x, 0.1)).box
    torch.testing.assert_close(found.radius, F.linear(linf_box(x, 0.1).radius, layer.weight.abs()))


def test_a_choice_by_the_mode_follows_the_mode():
    model, x = Dropping().train(), torch.rand(8, 6)
    bounder = IBP(model)
    assert not torch.equal(bounder(x, linf_box(x, 0.1)).logits, model.last(x))
    model.eval()
    found, wanted = bounder(x, linf_box(x, 0.1)), IBP(nn.Sequential(model.last))(x, linf_box(x, 0.1))
    assert torch.equal(found.logits, wanted.logits)
    torch.testing.assert_close(found.box.lower, wanted.box.lower)


def test_a_layer_that_is_replaced_is_seen():
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3)), torch.rand(8, 6)
    bounder = IBP(model)
    model[1] = nn.GELU()
    torch.testing.assert_close(
        bounder(x, linf_box(x, 0.1)).box.lower, IBP(model)(x, linf_box(x, 0.1)).box.lower
    )
    model[1] = nn.Softmax(1)
    with pytest.raises(TypeError, match="Softmax"):
        bounder(x, linf_box(x, 0.1))


def test_buffers_are_read_when_bounds_are_computed_and_nothing_is_left_on_the_model():
    model, x = Buffered(), torch.rand(4, 6)
    names = set(vars(model))
    bounder = IBP(model)
    assert set(vars(model)) == names
    with torch.no_grad():
        model.shift.zero_()
    output = bounder(x, linf_box(x, 0.1))
    torch.testing.assert_close(output.logits, model(x))
    torch.testing.assert_close(output.preacts[0].lower, linf_box(x, 0.1).lower + 0.5)


def test_a_bounder_survives_pickling_and_copying():
    model, x = mlp().eval(), torch.rand(4, 6)
    bounder = IBP(model)
    wanted = bounder(x, linf_box(x, 0.1)).box.upper
    file = io.BytesIO()
    torch.save(bounder, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(bounder)):
        assert torch.equal(other(x, linf_box(x, 0.1)).box.upper, wanted)
        assert other.model is not model


# --- initialisation ----------------------------------------------------------------------------------


def test_a_subclass_is_drawn_and_normalised_like_its_base():
    class Own(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(F.relu(x), self.weight, self.bias)

    model = nn.Sequential(
        Plain(2, 200), nn.ReLU(), Own(200, 200, 3, padding=1), nn.Flatten(), nn.Linear(3200, 3)
    )
    ibp_init_(model, generator=torch.Generator().manual_seed(0))
    for layer, terms in ((model[0], 18), (model[2], 1800)):
        sigma = (2 * torch.pi) ** 0.5 / terms
        assert layer.weight.std().item() == pytest.approx(sigma, rel=0.05)
    changed = add_batchnorm(model)
    assert [type(layer[1]) for layer in (changed[0], changed[2])] == [nn.BatchNorm2d, nn.BatchNorm2d]
    assert str(add_batchnorm(changed)) == str(changed)


def test_a_layer_with_two_names_is_normalised_under_both_and_a_tied_classifier_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.other = nn.Linear(6, 6)
            self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
            self.hidden.weight = self.head.weight

        def forward(self, x):
            return self.head(torch.relu(self.hidden(torch.relu(self.other(torch.relu(self.one(x)))))))

    model = Twice()
    head = model.head.weight.clone()
    changed = add_batchnorm(ibp_init_(model))
    assert torch.equal(model.head.weight, head)
    assert isinstance(changed.one[1], nn.BatchNorm1d)
    assert changed.one is changed.other


def test_an_untraceable_part_with_a_rule_is_no_obstacle_to_an_initialisation():
    class Branching(nn.Module):
        def forward(self, x):
            return torch.relu(x) if x.isfinite().all() else x

    model = nn.Sequential(nn.Linear(400, 400), Branching(), nn.Linear(400, 3))
    rules = {Branching: lambda module, bounds: bounds.monotone(torch.relu)}
    bounder = ibp_init_(IBP(model, rules=rules), generator=torch.Generator().manual_seed(0))
    assert model[0].weight.std().item() == pytest.approx((2 * torch.pi) ** 0.5 / 400, rel=0.03)
    changed, x = add_batchnorm(bounder), torch.rand(8, 400)
    assert isinstance(changed.model[0][1], nn.BatchNorm1d)
    assert isinstance(model[0], nn.Linear)
    torch.testing.assert_close(changed(x, linf_box(x, 0.1)).logits, changed.model(x))


# --- layers of several parts ---------------------------------------------------------------------------


class Parts(nn.Module):
    """The first part of what `cut` gives, minus twice the last."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def forward(self, x):
        parts = self.cut(x)
        return parts[0] - 2 * parts[-1]


@pytest.mark.parametrize(
    ("cut", "first", "last"),
    [
        (lambda x: x.chunk(2, dim=1), slice(0, 3), slice(3, 6)),
        (lambda x: torch.chunk(x, 2, 1), slice(0, 3), slice(3, 6)),
        (lambda x: x.split([2, 2, 2], dim=1), slice(0, 2), slice(4, 6)),
        (lambda x: torch.split(x, 3, dim=1), slice(0, 3), slice(3, 6)),
        (lambda x: torch.unbind(x, 1), 0, 5),
        (lambda x: x.unbind(dim=1), 0, 5),
        (lambda x: torch.stack([x.chunk(3, 1)[part] for part in range(3)], 0), slice(0, 2), slice(4, 6)),
    ],
)
def test_parts_have_the_bounds_of_their_slices(cut, first, last):
    low = torch.randn(4, 6, dtype=torch.float64)
    box = Box(low, low + torch.rand_like(low))
    found = IBP(Parts(cut))(box.lower, box).box
    torch.testing.assert_close(found.lower, box.lower[:, first] - 2 * box.upper[:, last])
    torch.testing.assert_close(found.upper, box.upper[:, first] - 2 * box.lower[:, last])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2), nn.Upsample(size=(3, 5), mode="bilinear"),
        nn.Upsample(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True, align_corners=True),
        nn.UpsamplingNearest2d(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2),
        nn.SyncBatchNorm(2).eval(), nn.PReLU(2, init=-0.3), nn.PReLU(2, init=1.5),
    ],
    ids=str,
)  # fmt: skip
def test_a_layer_that_acts_on_each_element_or_averages_has_its_extremes_at_corners(layer):
    layer = layer.double()
    box = Box(*torch.randn(2, 1, 2, 2, 2, dtype=torch.float64).sort(0).values)
    choice = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)] * 8).view(-1, 2, 2, 2)
    turn = torch.zeros((), dtype=torch.float64).clamp(box.lower, box.upper)  # where PReLU bends
    points = torch.where(choice == 0.5, turn, torch.where(choice == 0, box.lower, box.upper))
    with torch.no_grad():
        values = layer(points)
        found = IBP(nn.Sequential(layer))(box.center, box).box
    torch.testing.assert_close(found.lower[0], values.amin(0))
    torch.testing.assert_close(found.upper[0], values.amax(0))


def test_statistics_of_several_processes_are_those_of_one_batch(monkeypatch):
    slots, barrier = {}, threading.Barrier(2, timeout=300)

    def all_reduce(values, group):
        slots[threading.current_thread().name] = values.clone()
        barrier.wait()
        values.copy_(sum(slots.values()))
        barrier.wait()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    whole = 100 + torch.randn(7, 3, 2, dtype=torch.float64)
    parts = [part.clone().requires_grad_() for part in whole.split([3, 4])]
    found = {}

    def process(part):
        mean, inverse = shared_statistics(part, 1e-5, None)
        (mean.sin() + inverse.exp()).sum().backward()
        found[threading.current_thread().name] = (mean.detach(), inverse.detach())

    threads = [threading.Thread(target=process, args=(part,), name=str(i)) for i, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    whole.requires_grad_()
    mean, inverse = whole.mean((0, 2)), (whole.var((0, 2), correction=0) + 1e-5).rsqrt()
    (2 * (mean.sin() + inverse.exp()).sum()).backward()  # the losses of both
    for statistics in found.values():
        torch.testing.assert_close(statistics, (mean, inverse))
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)


def test_a_synchronised_norm_asks_for_the_statistics_of_its_group(monkeypatch):
    norm, x = nn.SyncBatchNorm(2), torch.rand(4, 2, 3, 3)
    monkeypatch.setattr(
        nn.SyncBatchNorm, "forward", lambda self, x: x
    )  # which refuses a CPU where processes share
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(
        "fastibp.batchnorm.shared_statistics", lambda x, eps, group: (torch.ones(2), torch.full((2,), 2.0))
    )
    norm.process_group = object()
    found = IBP(nn.Sequential(norm, nn.ReLU()))(x, linf_box(x, 0.0)).preacts[0]
    torch.testing.assert_close(found.center, 2 * (x - 1))


def test_training_follows_a_weight_norm():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    x, labels = torch.rand(16, 6), torch.arange(16) % 3
    bounder, optimizer = IBP(model), torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = robust_loss(bounder(x, linf_box(x, 0.01), labels).margins)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 cannot build a Box inside"
)
def test_a_step_compiles_whole_in_both_modes_and_for_other_batch_sizes():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    bounder = IBP(model)

    def loss(x, lower, upper, labels):
        return robust_loss(bounder(x, Box.between(lower, upper), labels).margins)

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for training, size in ((True, 8), (True, 5), (False, 5)):
        model.train(training)
        x, labels = torch.rand(size, 1, 4, 4), torch.arange(size) % 3
        given = (x, *(getattr(linf_box(x, 0.1), end) for end in ("lower", "upper")), labels)
        torch.testing.assert_close(compiled(*given), loss(*given))
