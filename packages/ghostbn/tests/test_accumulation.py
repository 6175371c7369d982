"""Gradient accumulation against the same loss over the whole batch, with masks, weights and all kinds of batches."""

from collections import UserDict, namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ghostbn import convert_ghost_bn, ghost_accumulate

TARGETS = torch.tensor([0, 1, 0, 1, -100, -100, -100, 0])
ALL_IGNORED = torch.tensor([0, 1, 0, 2, -100, -100, -100, -100])
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def both_ways(network, loss_fn, y, *, size=4, whole=None, **options):
    """Gradients and losses of the plain model by accumulation and of the converted one in one pass."""
    x = torch.randn(len(y), 2, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain, ghost = network(), convert_ghost_bn(network(), size, grouping="contiguous")
    loss = ghost_accumulate(plain, loss_fn, x, y, size, **options)
    expected = (whole or loss_fn)(ghost(x), y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for mine, other in zip(plain.parameters(), ghost.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-7)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, ghost.state_dict()[name], msg=name)


@pytest.mark.parametrize("y", [TARGETS, ALL_IGNORED], ids=["some ignored", "a ghost batch ignored"])
@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        partial(F.cross_entropy, weight=CLASS_WEIGHTS),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2),
        lambda out, y: F.nll_loss(out.log_softmax(1), y),
    ],
    ids=["module", "function", "partial", "weights and smoothing", "own"],
)
def test_masked_and_weighted_losses_are_those_of_the_whole_batch(network, loss_fn, y):
    is_own = getattr(loss_fn, "__name__", "") == "<lambda>"
    options = {"count_fn": lambda y: (y != -100).sum()} if is_own else {}
    both_ways(network, loss_fn, y, **options)


def test_a_masked_mean_by_hand():
    """Eight outputs, five of which count: the gradient of their sum is each input over five."""
    model = nn.Linear(1, 3, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.arange(1.0, 9.0).unsqueeze(1)
    loss = ghost_accumulate(model, nn.CrossEntropyLoss(), x, TARGETS, 4)
    # At equal logits the gradient of a sample is x (1/3 - [its class]): 1 + 3 + 8 in class 0, 2 + 4 in class 1.
    expected = torch.tensor([[18 / 3 - 12], [18 / 3 - 6], [18 / 3]]) / 5
    torch.testing.assert_close(model.weight.grad, expected)
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item())


@pytest.mark.parametrize(
    "loss_fn",
    [nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), nn.CrossEntropyLoss(label_smoothing=0.1)],
    ids=["weighted", "smoothed"],
)
def test_class_probabilities_count_by_samples(network, loss_fn):
    y = torch.rand(10, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    both_ways(network, loss_fn, y)  # a remainder: ghost batches of 4 and 6


def test_other_labels_and_other_ignored_ones(network):
    y = torch.tensor([0, 1, 2, 2, 1, 2, 2, 2, 2, 0])
    both_ways(network, nn.CrossEntropyLoss(ignore_index=2), y)
    both_ways(network, nn.NLLLoss(weight=CLASS_WEIGHTS, ignore_index=1), y)


def test_a_batch_in_which_nothing_counts_adds_zero(network):
    model = network()
    x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert ghost_accumulate(model, F.cross_entropy, x, torch.full((8,), -100), 4) == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert model[1].num_batches_tracked == 2


class Named(nn.Module):
    """As models of language are: keywords in, an object out, the loss inside."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels, labels=None, scale=1.0):
        logits = scale * self.network(pixels)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits, more=(logits.detach(), {"k": logits * 2}))


Pair = namedtuple("Pair", ["first", "second"])


def test_mappings_tuples_and_outputs_of_any_form(network):
    x = torch.randn(10, 2, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 2, -100, -100, 1, 0, 2, 1])
    expected = network()
    ghost_accumulate(expected, F.cross_entropy, x, y, 2, remainder="own")
    inside = network()
    ghost_accumulate(
        Named(inside),
        lambda out, y: out.loss,
        UserDict(pixels=x, labels=y, scale=1.0),
        y,
        2,
        count_fn=lambda y: (y != -100).sum(),
    )
    positional, pairs = network(), network()
    ghost_accumulate(
        Named(positional),
        lambda out, y: F.cross_entropy(out.logits, y[0]),
        [x],
        (y, None),
        2,
        count_fn=lambda y: (y[0] != -100).sum(),
    )
    ghost_accumulate(
        pairs,
        lambda out, y: F.cross_entropy(out, y.second["labels"]),
        x,
        Pair(torch.tensor(1.0), {"labels": y}),
        2,
        count_fn=lambda y: (y.second["labels"] != -100).sum(),
    )
    for other in (inside, positional, pairs):
        for mine, value in zip(other.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, value.grad)


def test_no_targets_at_all():
    model = nn.Linear(2, 1, bias=False)
    ghost_accumulate(model, lambda out, y: out.mean(), torch.ones(4, 2), None, 2)
    assert model.weight.grad.tolist() == [[1.0, 1.0]]


def test_under_autocast():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(12, 4)
    with torch.autocast("cpu", torch.bfloat16):
        ghost_accumulate(model, F.cross_entropy, x, torch.arange(12) % 3, 4)
    low = model[0].weight.grad.clone()
    model.zero_grad()
    ghost_accumulate(model, F.cross_entropy, x, torch.arange(12) % 3, 4)
    torch.testing.assert_close(low, model[0].weight.grad, atol=0.02, rtol=0.1)


def test_what_cannot_be_accumulated_is_named():
    model, x, y = nn.Linear(2, 3), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="y must have one target for each of the 4 samples of x, got 3"):
        ghost_accumulate(model, F.cross_entropy, x, y[:3], 2)
    with pytest.raises(
        ValueError, match=r"x must hold tensors of one length, got 4 in x\['a'\] and 3 in x\['b'\]"
    ):
        ghost_accumulate(model, F.cross_entropy, {"a": x, "b": x[:3]}, y, 2)
    with pytest.raises(TypeError, match=r"y\[1\] must be a tensor, .* got ndarray"):
        ghost_accumulate(model, F.cross_entropy, x, (y, y.numpy()), 2)
    with pytest.raises(
        ValueError, match="x must hold at least one tensor with a dimension of samples, got none"
    ):
        ghost_accumulate(model, F.cross_entropy, {}, y, 2)
    with pytest.raises(ValueError, match="x must hold at least one sample, got none"):
        ghost_accumulate(model, F.cross_entropy, x[:0], y[:0], 2)
    for summed in (nn.CrossEntropyLoss(reduction="sum"), partial(F.mse_loss, reduction="sum")):
        with pytest.raises(
            ValueError, match="must be a mean over the samples it is given, got reduction='sum'"
        ):
            ghost_accumulate(model, summed, x, y, 2)
    with pytest.raises(ValueError, match=r"loss_fn must give a scalar tensor, .* got \(2, 3\)"):
        ghost_accumulate(model, lambda out, y: out, x, y, 2)
    with pytest.raises(ValueError, match=r"loss_fn must give a scalar tensor, .* got float"):
        ghost_accumulate(model, lambda out, y: 1.0, x, y, 2)
    with pytest.raises(ValueError, match=r"count_fn must give finite numbers from 0 on, got -1\.0"):
        ghost_accumulate(model, F.cross_entropy, x, y, 2, count_fn=lambda y: -1)
    with pytest.raises(ValueError, match="model must return tensors that need a gradient where no target"):
        ghost_accumulate(lambda x: x, F.cross_entropy, x, y, 2, count_fn=lambda y: 0)


class _Doubled(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


def test_targets_of_bytes_are_classes(network):
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2], dtype=torch.uint8)
    both_ways(network, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), y, size=3)  # as many samples as classes


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_loss_divides_as_it_did(network):
    both_ways(network, torch.compile(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), backend="eager"), TARGETS)


def test_where_the_number_of_samples_cannot_be_right_a_count_is_asked_for(network):
    with pytest.raises(ValueError, match="count_fn must say what the mean in _Doubled divides by"):
        both_ways(network, _Doubled(), TARGETS)
    both_ways(network, _Doubled(), TARGETS, count_fn=lambda y: (y != -100).sum())

    def own(out, y):
        return F.cross_entropy(out, y["labels"])

    x, model = torch.randn(8, 1), nn.Linear(1, 3)
    for y in ({"labels": TARGETS}, [None, TARGETS], TARGETS.int()):
        with pytest.raises(ValueError, match=r"count_fn must say .* as targets hold -100"):
            ghost_accumulate(model, own, x, y, 4)
    with pytest.raises(ValueError, match=r"count_fn must say .* as targets hold -100"):
        ghost_accumulate(model, lambda out, _: out.loss, {"input": x, "labels": TARGETS}, None, 4)
    assert model.weight.grad is None


def test_empty_parts_of_a_batch_go_into_every_call():
    model = nn.Linear(1, 1)
    x = torch.randn(8, 1)
    loss = ghost_accumulate(
        model, lambda out, y: (out - y["target"]).mean(), x, {"target": x, "meta": {}, "more": []}, 4
    )
    torch.testing.assert_close(loss, (model(x) - x).mean().detach())
