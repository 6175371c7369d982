"""Features of anybody's module: outputs, batches, pooling, modes."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pedtransfer import extract_features

IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(7) % 3
LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)


class Residual(nn.Linear):
    """A Linear that is more than a Linear."""

    def forward(self, x):
        return x + super().forward(x)


class Network(nn.Module):
    """Batch statistics, dropout, a part that is frozen in evaluation mode, and a choice of outputs."""

    def __init__(self, wrap=lambda x: x):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.block, self.drop, self.head = Residual(4, 4), nn.Dropout(), nn.Linear(4, 5)
        self.norm.running_mean += 0.5
        self.norm.eval()
        self.wrap = wrap

    def forward(self, pixels):
        x = self.norm(self.conv(pixels))
        return self.wrap(self.head(self.drop(self.block(x.mean((2, 3))))))


def expected_block(model):
    with torch.no_grad():
        x = nn.functional.batch_norm(
            model.conv(IMAGES),
            model.norm.running_mean,
            model.norm.running_var,
            model.norm.weight,
            model.norm.bias,
        ).mean((2, 3))
        return x + x @ model.block.weight.T + model.block.bias


def test_a_named_layer_whatever_its_class():
    model, told = Network().train(), []
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features, labels = extract_features(model, LOADER, "block", progress=lambda *report: told.append(report))
    torch.testing.assert_close(features, expected_block(model))
    assert torch.equal(labels, LABELS)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not features.requires_grad
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)
    assert not model.block._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


Fields = namedtuple("Fields", ["logits", "other"])


class Output:
    """As a library of its own would return it."""

    def __init__(self, logits):
        self.logits, self.loss = logits, None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(())),
        lambda x: [x],
        lambda x: {"logits": x},
        lambda x: {"loss": torch.zeros(()), "last_hidden_state": x},
        Output,
        lambda x: Fields(x, None),
    ],
)
def test_outputs_of_every_form(wrap):
    features, _ = extract_features(Network(wrap), LOADER)
    model = Network()
    torch.testing.assert_close(features, model.head(expected_block(model)).detach())


def test_an_output_of_no_known_form_is_refused():
    with pytest.raises(TypeError, match=r"got dict with \['a', 'b'\]: name a layer"):
        extract_features(Network(lambda x: {"a": x, "b": x}), LOADER)


@pytest.mark.parametrize(
    "loader",
    [
        [(IMAGES, LABELS, ["name"] * 7)],
        [[IMAGES, LABELS.tolist()]],
        [{"pixels": IMAGES, "labels": LABELS}],
        [{"pixels": IMAGES, "label": LABELS[:, None]}],
        ({"pixels": IMAGES[i : i + 2], "labels": LABELS[i : i + 2]} for i in range(0, 7, 2)),
    ],
)
def test_batches_of_every_form(loader):
    features, labels = extract_features(Network(), loader, "block")
    torch.testing.assert_close(features, expected_block(Network()))
    assert torch.equal(labels, LABELS)


def test_progress_of_a_loader_without_length():
    told = []
    extract_features(Network(), iter([(IMAGES, LABELS)]), progress=lambda *report: told.append(report))
    assert told == [(1, None)]


@pytest.mark.parametrize("wrapped", ["compile", "parallel", "both"])
def test_wrappers_are_looked_through(wrapped):
    model = Network()
    if wrapped in ("parallel", "both"):
        model = nn.DataParallel(model)
    if wrapped in ("compile", "both"):
        model = torch.compile(model, backend="eager")
    torch.testing.assert_close(extract_features(model, LOADER, "block")[0], expected_block(Network()))


TOKENS = torch.tensor([[[1.0, 8.0], [3.0, 2.0], [100.0, 100.0]], [[2.0, 2.0], [4.0, 1.0], [6.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


class Encoder(nn.Module):
    def forward(self, inputs, attention_mask=None):
        return inputs


@pytest.mark.parametrize(
    ("pool", "masked", "plain"),
    [
        ("avg", [[2.0, 5.0], [4.0, 4.0]], [[104 / 3, 110 / 3], [4.0, 4.0]]),
        ("max", [[3.0, 8.0], [6.0, 9.0]], [[100.0, 100.0], [6.0, 9.0]]),
        ("cls", [[1.0, 8.0], [2.0, 2.0]], [[1.0, 8.0], [2.0, 2.0]]),
        ("last", [[3.0, 2.0], [6.0, 9.0]], [[100.0, 100.0], [6.0, 9.0]]),
        (lambda x: x[:, 1], [[3.0, 2.0], [4.0, 1.0]], [[3.0, 2.0], [4.0, 1.0]]),
    ],
)
def test_tokens_are_pooled_without_padding(pool, masked, plain):
    batch = {"inputs": TOKENS, "labels": torch.tensor([0, 1])}
    found, _ = extract_features(Encoder(), [batch | {"attention_mask": MASK}], pool=pool)
    torch.testing.assert_close(found, torch.tensor(masked))
    found, _ = extract_features(Encoder(), [batch], pool=pool)
    torch.testing.assert_close(found, torch.tensor(plain))
    left = {"inputs": TOKENS.flip(1), "attention_mask": MASK.flip(1), "labels": torch.tensor([0, 1])}
    if pool in ("avg", "max"):
        torch.testing.assert_close(extract_features(Encoder(), [left], pool=pool)[0], torch.tensor(masked))


def test_maps_and_flat_features():
    maps = torch.arange(16.0).view(2, 2, 2, 2)
    batch = [(maps, torch.tensor([0, 1]))]
    torch.testing.assert_close(extract_features(Encoder(), batch)[0], maps.mean((2, 3)))
    torch.testing.assert_close(extract_features(Encoder(), batch, pool="max")[0], maps.amax((2, 3)))
    assert torch.equal(extract_features(Encoder(), batch, pool="flatten")[0], maps.flatten(1))
    channels_last = [(maps.to(memory_format=torch.channels_last), torch.tensor([0, 1]))]
    assert torch.equal(extract_features(Encoder(), channels_last, pool="flatten")[0], maps.flatten(1))


def test_low_precision_is_averaged_in_single():
    tokens = torch.full((1, 1000, 2), 1.0, dtype=torch.bfloat16)
    tokens[:, ::2] = 1.0078125
    found, _ = extract_features(Encoder(), [(tokens, torch.tensor([0]))])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 2), 1.00390625))
    assert extract_features(Encoder(), [(tokens[:, 0], torch.tensor([0]))])[0].dtype == torch.float32
    assert extract_features(Encoder(), [(tokens.double(), torch.tensor([0]))])[0].dtype == torch.float64


def test_modes_come_back_after_an_exception():
    model = Network().train()
    with pytest.raises(RuntimeError):
        extract_features(model, [(IMAGES[:, :2], LABELS)], "block")
    assert model.training
    assert not model.block._forward_hooks


def test_a_layer_that_the_next_one_overwrites():
    layers = nn.Linear(3, 4), nn.ReLU(inplace=True)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    features, _ = extract_features(nn.Sequential(*layers), [(x, torch.arange(6))], "0")
    torch.testing.assert_close(features, layers[0](x).detach())
    assert features.min() < 0


class Twice(Network):
    def forward(self, pixels):
        return super().forward(pixels) + super().forward(pixels)


@pytest.mark.parametrize(
    ("model", "loader", "options", "error", "message"),
    [
        (Network(), LOADER, {"layer": "blok"}, ValueError, r"got 'blok'; there are \['block'\]"),
        (Network(), LOADER, {"layer": "drop.x"}, ValueError, "there are"),
        (Twice(), LOADER, {"layer": "block"}, ValueError, "must run once a batch, got 2 runs of 'block'"),
        (Network(), LOADER, {"layer": "wrap2"}, ValueError, "layer must be the name of a submodule"),
        (Network(), LOADER, {"pool": "mean"}, ValueError, r"pool must be a function or one of .* got 'mean'"),
        (
            Network(),
            LOADER,
            {"layer": "conv", "pool": lambda x: x},
            ValueError,
            r"pool must give \(batch, D\)",
        ),
        (Network(), LOADER, {"layer": 3}, ValueError, "layer must be the name of a submodule, got 3"),
        ("resnet50", LOADER, {}, TypeError, "model must be a torch module, got str"),
        (Network(), LOADER, {"progress": True}, TypeError, "progress must be a function .* got True"),
        (Network(), LOADER.dataset, {}, TypeError, "loader must give batches, got one label"),
        (Network(), [(IMAGES, list("abcdefg"))], {}, TypeError, "labels must be numbers, got <U1"),
        (
            Network(),
            [(IMAGES, LABELS), (IMAGES, torch.eye(7)[:, :3])],
            {},
            ValueError,
            r"labels must have one shape a sample, got \(\) and \(3,\)",
        ),
        (
            Encoder(),
            [(torch.ones(2, size, 4), [0, 1]) for size in (3, 5)],
            {"pool": "flatten"},
            ValueError,
            "pool must give every batch the same D, got 12 and 20",
        ),
        (Network(), [], {}, ValueError, "loader must give at least one batch"),
        (Network(), [IMAGES], {}, TypeError, r"batches must be \(inputs, labels\) or mappings, got Tensor"),
        (Network(), [{"pixels": IMAGES}], {}, TypeError, r"must have 'labels' or 'label', got \['pixels'\]"),
        (Network(), [(IMAGES, LABELS[:5])], {}, ValueError, r"one row a sample, got \(7, 5\) for 5 labels"),
        (Encoder(), [(torch.ones(7), LABELS)], {}, ValueError, r"output must be .* got \(7,\)"),
    ],
)
def test_what_is_refused(model, loader, options, error, message):
    with pytest.raises(error, match=message):
        extract_features(model, loader, **options)
