import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev, vmap

import lazyrich._factors as factors
from lazyrich import cka, kta, label_power, ntk_gram


@pytest.fixture
def one_by_one(monkeypatch):
    """Shapes of the parameters that were differentiated sample by sample."""
    seen, original = [], factors.Graph._one_by_one

    def watched(self, index, directions):
        seen.append(tuple(self.parameters[index].shape))
        return original(self, index, directions)

    monkeypatch.setattr(factors.Graph, "_one_by_one", watched)
    return seen


@pytest.mark.parametrize("name", helpers.MODELS)
def test_it_is_the_product_of_the_full_jacobians(name):
    build, draw = helpers.MODELS[name]
    model, x, x2 = helpers.made(build), draw(), draw(1)[:3]
    forward = (lambda m, b: m(b).unsqueeze(1)) if name == "in place" else None
    for mode in ("full", "trace"):
        wanted = helpers.brute_force(model, x, None, mode, forward)
        assert torch.allclose(ntk_gram(model, x, mode=mode), wanted, rtol=1e-9, atol=1e-10)
        assert torch.allclose(ntk_gram(model, x, mode=mode, chunk=3), wanted, rtol=1e-9, atol=1e-10)
        wanted = helpers.brute_force(model, x, x2, mode, forward)
        assert torch.allclose(ntk_gram(model, x, x2, mode=mode, chunk=2), wanted, rtol=1e-9, atol=1e-10)


def test_it_equals_torch_func():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    parameters = dict(model.named_parameters())
    single = jacrev(lambda p, one: functional_call(model, p, (one[None],))[0])
    rows = torch.cat([j.flatten(2) for j in vmap(single, (None, 0))(parameters, x).values()], 2).flatten(0, 1)
    assert torch.allclose(ntk_gram(model, x, mode="full"), rows @ rows.T, rtol=1e-10)


def test_what_is_read_off_and_what_is_not(one_by_one):
    for name, wanted in {
        "mlp": set(), "a subclass of Linear": set(), "a layer used thrice": set(), "tied embeddings": set(),
        "bare matrices": set(), "convolution in time": set(), "convolutions": {(4, 2, 2, 2)},
        "recurrent": {(16, 3), (16, 4), (16,)},
    }.items():  # fmt: skip
        one_by_one.clear()
        build, draw = helpers.MODELS[name]
        ntk_gram(helpers.made(build), draw())
        assert set(one_by_one) == wanted, name


def test_a_million_parameters_in_chunks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(200, 900), nn.ReLU(), nn.Linear(900, 900), nn.ReLU(), nn.Linear(900, 3)
        )
    assert sum(p.numel() for p in model.parameters()) > 990_000
    x = torch.randn(24, 200, generator=helpers.seeded())
    kernel = ntk_gram(model, x, chunk=7)
    assert torch.allclose(kernel, ntk_gram(model, x), rtol=1e-4)
    rows = torch.cat([helpers.jacobian(model, one[None])[0] for one in x[[0, 23]]])
    wanted = [(rows[:3] * rows[3:]).sum(), rows[:3].square().sum()]
    assert torch.allclose(torch.stack([kernel[0, 23], kernel[0, 0]]), torch.stack(wanted), rtol=1e-4)


@given(seed=st.integers(0, 1000))
def test_it_is_symmetric_and_positive(seed):
    kernel = ntk_gram(helpers.made(helpers.MODELS["mlp"][0], seed), helpers.vectors(seed), mode="full")
    assert torch.equal(kernel, kernel.T)
    assert torch.linalg.eigvalsh(kernel).min() >= -1e-9 * kernel.norm()


def test_projections_are_an_unbiased_mean_of_directions():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    trace = ntk_gram(model, x)
    found = ntk_gram(model, x, mode="project", num_projections=400, generator=helpers.seeded())
    assert (found - trace).norm() < 0.1 * trace.norm()
    full = ntk_gram(model, x, mode="full").reshape(5, 3, 5, 3)
    sign = torch.randint(0, 2, (1, 3), generator=helpers.seeded(4))[0] * 2.0 - 1
    single = ntk_gram(model, x, mode="project", generator=helpers.seeded(4))
    assert torch.allclose(single, torch.einsum("icjd,c,d->ij", full, sign.double(), sign.double()))


def test_positions_of_a_sequence_are_points():
    model, x = helpers.made(helpers.Language), helpers.tokens()
    assert ntk_gram(model, x).shape == (12, 12)
    assert ntk_gram(model, x, mode="full").shape == (108, 108)
    assert ntk_gram(model, x, mode="project").shape == (12, 12)
    last = ntk_gram(model, x, forward=lambda m, ids: m(ids)[:, -1])
    assert torch.allclose(last, ntk_gram(model, x)[2::3, 2::3])


def test_frozen_and_chosen_parameters():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    head = ntk_gram(model, x, params=[model[3].weight, model[3].weight])
    features = model[:3](x).detach()
    assert torch.allclose(head, 3 * features @ features.T)
    model[:3].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    assert torch.allclose(ntk_gram(model, x), head)


def test_nothing_of_the_model_is_changed():
    model, x = helpers.made(helpers.convolutional), helpers.image()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    ntk_gram(model, x)
    assert all(p.grad is None for p in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_half_precision_autocast_and_inference_mode():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    wanted = ntk_gram(model, x)
    with torch.inference_mode():
        assert torch.equal(ntk_gram(model, x.clone()), wanted)
    half = ntk_gram(model.bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), wanted, rtol=0.1, atol=0.1 * float(wanted.max()))
    with torch.autocast("cpu", torch.bfloat16):
        cast = ntk_gram(model.float(), x.float())
    assert torch.allclose(cast.double(), wanted, rtol=0.1, atol=0.1 * float(wanted.max()))


class Wrapped(nn.Module):
    def __init__(self, inner, form):
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, values):
        return self.form(self.inner(values))


class Output:
    def __init__(self, logits):
        self.logits, self.loss = logits, None


def test_outputs_and_inputs_of_other_forms():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    wanted = ntk_gram(model, x)
    for form in (lambda z: {"logits": z}, Output):
        assert torch.equal(ntk_gram(Wrapped(model, form), {"values": x}), wanted)
    assert torch.equal(ntk_gram(Wrapped(model, lambda z: z), (x,)), wanted)
    assert torch.equal(ntk_gram(nn.DataParallel(model), x), wanted)
    one = ntk_gram(model, x, forward=lambda m, b: m(b)[:, 0])
    assert torch.allclose(one, ntk_gram(model, x, mode="full")[::3, ::3])
    with pytest.raises(TypeError, match=r"tensor, .* got tuple; pass forward="):
        ntk_gram(Wrapped(model, lambda z: (z, z)), x)


class Mixing(nn.Linear):
    def forward(self, x):
        hidden = super().forward(x)
        return hidden - hidden.mean(0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), r"batch normalisation .* call model.eval\(\)"),
        (nn.BatchNorm1d(6, track_running_stats=False).eval(), "batch normalisation"),
        (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.1)), r"dropout.*call model.eval\(\)"),
        (nn.TransformerEncoderLayer(6, 2, 8), r"dropout.*call model.eval\(\)"),
        (Mixing(6, 3), "depends on the others in the batch"),
        (Wrapped(nn.Linear(6, 3), lambda z: z.detach()), "does not depend on its parameters"),
        (Wrapped(nn.Linear(6, 3), lambda z: z / 0), "not finite"),
        (Wrapped(nn.Linear(6, 3), lambda z: z.mean(0)), "one output per sample"),
    ],
)
def test_models_without_a_kernel_are_refused(model, says):
    with pytest.raises(ValueError, match=says):
        ntk_gram(model, helpers.vectors().float())


def test_wrong_arguments_are_named():
    model, x = helpers.made(helpers.MODELS["mlp"][0]), helpers.vectors()
    other = nn.Linear(2, 2).weight
    for match, arguments in {
        "mode must be": {"mode": "sum"},
        "chunk must be at least 1": {"chunk": 0},
        "num_projections must be": {"mode": "project", "num_projections": 0},
        "params must be parameters of the model": {"params": [other]},
        "params must hold at least one": {"params": []},
    }.items():
        with pytest.raises(ValueError, match=match):
            ntk_gram(model, x, **arguments)
    with pytest.raises(ValueError, match="at least one sample"):
        ntk_gram(model, x[:0])
    with pytest.raises(ValueError, match="one number of samples"):
        ntk_gram(model, (x, x[:2]))
    with pytest.raises(TypeError, match="x must be a tensor"):
        ntk_gram(model, 3)
    with pytest.raises(TypeError, match="no parameter that requires a gradient"):
        ntk_gram(model.requires_grad_(False), x)


def positive(seed, n=6):
    root = torch.randn(n, n, generator=helpers.seeded(seed), dtype=torch.float64)
    return root @ root.T


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e9, 1e100]),
    outputs=st.integers(1, 3),
)
def test_alignment_is_a_bounded_cosine(seed, scale, outputs):
    kernel, order = positive(seed), torch.randperm(6, generator=helpers.seeded(seed))
    y = torch.randn(6, outputs, generator=helpers.seeded(seed + 1), dtype=torch.float64)
    found = kta(kernel, y)
    naive = (y.T @ kernel @ y).trace() / (kernel.norm() * (y @ y.T).norm())
    assert torch.allclose(found, naive, rtol=1e-10)
    assert 0 <= found <= 1 + 1e-12
    assert torch.allclose(kta(scale * kernel, y), found)
    assert torch.allclose(kta(kernel[order][:, order], y[order]), found)
    assert kta(y @ y.T, y) == pytest.approx(1)
    if outputs == 1:
        assert torch.allclose(kta(kernel, y[:, 0]), found)
    H = torch.eye(6, dtype=torch.float64) - 1 / 6
    other = positive(seed + 2)
    a, b = H @ kernel @ H, H @ other @ H
    assert torch.allclose(cka(kernel, scale * other), (a * b).sum() / (a.norm() * b.norm()), rtol=1e-9)
    assert torch.allclose(kta(kernel, y, center=True), kta(a, H @ y), rtol=1e-8)


def test_the_labels_power_by_hand():
    angle = torch.tensor(0.3, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    kernel = turn @ torch.diag(torch.tensor([5.0, 2.0], dtype=torch.float64)) @ turn.T
    y = turn @ torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(label_power(kernel, y), torch.tensor([0.2, 1.0], dtype=torch.float64))


def test_alignments_that_are_not_defined_are_refused():
    kernel = positive(0)
    for match, call in {
        "y is constant": lambda: kta(kernel, torch.ones(6), center=True),
        "y must have one row": lambda: kta(kernel, torch.ones(5)),
        "y is zero": lambda: kta(kernel, torch.zeros(6)),
        "y must be finite": lambda: kta(kernel, torch.full((6,), torch.nan)),
        "kernel must be square": lambda: kta(kernel[:3], torch.ones(3)),
        "kernel must be symmetric": lambda: kta(kernel.tril(), torch.ones(6)),
        "kernel must be finite": lambda: cka(kernel / 0, kernel),
        "other must have the shape": lambda: cka(kernel, kernel[:3, :3]),
        "other is zero": lambda: cka(kernel, torch.zeros(6, 6)),
        "y must not be all zero": lambda: label_power(kernel, torch.zeros(6)),
        "at least 2 points": lambda: kta(kernel[:1, :1], torch.ones(1)),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
