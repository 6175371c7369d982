"""The models, batches and outputs that people have: measured right, or refused by name."""

import math
import re
from collections import UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuralcollapse import NCMeter, StreamingStats, class_stats, nc1, nc3
from neuralcollapse.batches import moved

K, D = 3, 6


def refused(error, message):
    return pytest.raises(error, match=re.escape(message))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(*layers):
    """A perceptron with weights of its own generator."""
    model = nn.Sequential(*(layers or (nn.Linear(4, D), nn.ReLU(), nn.Linear(D, K))))
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
    return model


LABELS = torch.arange(24) % K
INPUTS = randn(24, 4, seed=9) + 2 * randn(K, 4, seed=8)[LABELS]
LOADER = [(INPUTS[:16], LABELS[:16]), (INPUTS[16:], LABELS[16:])]


class Wrapped(nn.Module):
    """A network whose output is put into some other form."""

    def __init__(self, form, body=None):
        super().__init__()
        self.body = body or network()
        self.form = form

    def forward(self, x):
        return self.form(self.body(x))


def nc4_of(model, **options):
    return NCMeter(model, [], head="body.2", **options).run(LOADER)["body.2"].nc4


LOSSY = namedtuple("LOSSY", ["loss", "logits"])


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: {"loss": logits.mean(), "logits": logits},
        lambda logits: UserDict(loss=logits.sum(0), logits=logits),
        lambda logits: LOSSY(logits[:, :1], logits),
        lambda logits: SimpleNamespace(loss=logits.mean(), logits=logits),
        lambda logits: (logits, logits.mean()),
        lambda logits: [logits],
    ],
)
def test_logits_are_found_in_every_output(form):
    """NC4 of features that are far from the network's decisions is not 0: a wrong tensor would show."""
    expected = nc4_of(Wrapped(lambda logits: logits))
    assert 0.1 < expected < 0.9
    assert nc4_of(Wrapped(form)) == expected


def test_outputs_without_logits_are_refused_or_given_up_by_name():
    expected = nc4_of(Wrapped(lambda logits: logits))
    loss_first = Wrapped(lambda logits: (logits.mean(), logits))
    with refused(
        ValueError, "model must return logits [16, 3], got (): give logits, a function of the output"
    ):
        nc4_of(loss_first)
    assert nc4_of(loss_first, logits=lambda output: output[1]) == expected
    assert nc4_of(loss_first, logits=lambda output: None) is None
    with refused(ValueError, "model must return logits [16, 3], got (16, 3, 1)"):
        nc4_of(Wrapped(lambda logits: logits[..., None]))
    with refused(TypeError, "model must return logits [B, 3], or have them as 'logits', got NoneType"):
        nc4_of(Wrapped(lambda logits: {"scores": logits}))
    with refused(ValueError, "model must not return NaN as logits"):
        nc4_of(Wrapped(lambda logits: logits * math.nan))
    encoder = network(nn.Linear(4, D), nn.ReLU())  # an embedding is no vote for its largest entry
    with refused(ValueError, "model must return logits [16, 3], got (16, 6)"):
        NCMeter(encoder, ["1"], num_classes=K).run(LOADER)
    report = NCMeter(encoder, ["1"], num_classes=K, logits=lambda output: None).run(LOADER)["1"]
    assert report.nc4 is None
    assert report.nc1 > 0
    assert [row["nc4"] for row in report.per_class()] == [None] * K


class Named(nn.Module):
    """Takes its input by name, as transformers do, and has no use for labels."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, *, values, scale):
        return self.body(values * scale)


def test_batches_may_be_mappings():
    expected = NCMeter(network(), ["0"], head="2").run([(2 * x, y) for x, y in LOADER])["2"].to_dict()
    meter = NCMeter(Named(), ["body.0"], head="body.2")
    for loader in (
        [{"values": x, "scale": torch.tensor(2.0), "labels": y} for x, y in LOADER],
        [UserDict(values=x, scale=torch.tensor(2.0), label=y) for x, y in LOADER],
        [({"values": x, "scale": torch.tensor(2.0)}, y) for x, y in LOADER],
        [[{"values": x, "scale": torch.tensor(2.0)}, y, "an index"] for x, y in LOADER],
    ):
        assert meter.run(loader)["body.2"].to_dict() == expected


def test_batches_of_other_kinds_are_refused():
    meter = NCMeter(network(), [], head="2")
    with refused(ValueError, "loader must give labels as 'labels' or 'label', got ['x', 'y']: use prepare"):
        meter.run([{"x": INPUTS, "y": LABELS}])
    for batch in (INPUTS, (INPUTS,), "text"):
        with refused(TypeError, "loader must give mappings, or inputs and labels, got"):
            meter.run([batch])
    with refused(TypeError, "labels must be a tensor, got list"):
        meter.run([(INPUTS, LABELS.tolist())])
    with refused(ValueError, "labels must lie in [0, 3), got 0 to 1000000"):
        meter.run([(INPUTS, LABELS.where(LABELS < 2, 10**6))])
    with refused(ValueError, "labels must be [24], one for each row of features, got (24, 1)"):
        meter.run([(INPUTS, LABELS[:, None])])


def test_batches_go_where_the_model_is():
    there = torch.device("meta")
    batch = moved({"a": INPUTS, "b": [LABELS, "text"], "c": LOSSY(INPUTS, (LABELS,))}, there)
    assert [batch["a"].device, batch["b"][0].device, batch["c"].loss.device, batch["c"].logits[0].device] == [
        there
    ] * 4
    assert batch["b"][1] == "text"
    assert moved(INPUTS, None) is INPUTS


def test_layers_are_chosen_by_name_pattern_and_type():
    model = nn.Sequential(network(), nn.Sequential(nn.Linear(K, D), nn.ReLU(), nn.Linear(D, K)))

    def chosen(layers):
        return NCMeter(model, layers, head="1.2").layers

    assert chosen("0.0") == chosen(["0.0"]) == ["0.0"]
    assert chosen("*.0") == ["0.0", "1.0"]
    assert chosen(nn.Linear) == ["0.0", "0.2", "1.0"]  # but not the head
    assert chosen(["1.1", nn.ReLU, "0.[02]"]) == ["1.1", "0.1", "0.0", "0.2"]
    with refused(
        ValueError, "layers and head must name submodules, got ['2.*', <class 'torch.nn.modules.conv"
    ):
        chosen(["0.0", "2.*", nn.Conv2d])


def test_features_are_those_the_layer_gave_not_what_was_made_of_them_in_place():
    model = network(nn.Linear(4, D), nn.ReLU(inplace=True), nn.Linear(D, K))
    with torch.no_grad():
        before = class_stats(model[0](INPUTS).double(), LABELS, K)
    for pool in ("auto", "flatten", lambda output: output[:, :]):
        report = NCMeter(model, ["0"], head="2", pool=pool).run([(INPUTS, LABELS)])["0"]
        torch.testing.assert_close(report.stats.mean, before.mean)


class Shared(nn.Module):
    """One activation in two places, as in many residual networks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, D), nn.Linear(D, D), nn.Linear(D, K)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.head(self.relu(self.second(self.relu(self.first(x)))))


def test_a_layer_that_is_called_twice_has_no_one_answer():
    with refused(ValueError, "layers must be called once a forward, got ['relu'] that gave other features"):
        NCMeter(Shared(), ["relu"], head="head").run(LOADER)


# torch 2.4 warns of its own checkpoint
@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")
def test_layers_that_are_computed_again_in_the_backward_pass():
    class Checkpointed(Wrapped):
        def forward(self, x):
            return self.body[1:](checkpoint(self.body[0], x, use_reentrant=False))

    model = Checkpointed(None)
    with NCMeter(model, ["body.0"], head="body.2") as meter:
        for x, y in LOADER:
            nn.functional.cross_entropy(model(x), y).backward()
            meter.update(y)
    alone = NCMeter(network(), ["0"], head="2").run(LOADER, passes=1)["0"]
    assert meter.report()["body.0"].nc1 == pytest.approx(alone.nc1)


class Tokens(nn.Module):
    """Embeds tokens, and classifies the first."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, D)
        self.head = nn.Linear(D, K)

    def forward(self, x, attention_mask=None):
        return self.head(self.embed(x)[:, 0])


def test_padding_is_left_out_of_the_mean_over_tokens():
    """On either side; without a mask nothing is padding."""
    model, tokens = Tokens(), randn(24, 5, 2)
    lengths = torch.arange(24) % 4 + 2
    right = torch.arange(5) < lengths[:, None]
    with torch.no_grad():
        embedded = model.embed(tokens)
    for mask in (right, right.flip(1), torch.ones_like(right)):
        batch = {"x": tokens, "attention_mask": mask.long(), "labels": LABELS}
        report = NCMeter(model, ["embed"], num_classes=K, pool="token_mean").run([batch])["embed"]
        rows = torch.stack([row[kept].mean(0) for row, kept in zip(embedded, mask, strict=True)])
        torch.testing.assert_close(report.stats.mean, class_stats(rows.double(), LABELS, K).mean)
    alone = NCMeter(model, ["embed"], num_classes=K, pool="token_mean").run([(tokens, LABELS)])["embed"]
    assert alone.nc1 == pytest.approx(report.nc1)


def test_an_output_that_could_be_tokens_or_channels_asks_which():
    with refused(
        ValueError, "pool must say what an output of shape (24, 5, 6) is: 'token_mean' of [B, T, d]"
    ):
        NCMeter(Tokens(), ["embed"], num_classes=K).run([(randn(24, 5, 2), LABELS)])


def test_layers_that_give_tuples_or_hidden_states():
    def features(form):
        model = nn.Sequential(Wrapped(form), nn.Identity())
        meter = NCMeter(model, ["0"], num_classes=K, logits=lambda output: None)
        return meter.run(LOADER)["0"].nc1

    plain = features(lambda x: x)
    assert features(lambda x: (x, x.sum())) == plain
    assert features(lambda x: {"attentions": x[:, :1], "last_hidden_state": x}) == plain
    with refused(TypeError, "layers must give a tensor, or a tuple that begins with one, got dict from '0'"):
        features(lambda x: {"attentions": x[:, :1], "states": x})


class Adapted(nn.Linear):
    """A low-rank adapter beside the weight, that is not in it."""

    def forward(self, input):
        return super().forward(input) + 0.5 * input.flip(-1)[..., :K]


class Cosine(nn.Linear):
    """A head that normalises."""

    def forward(self, input):
        return nn.functional.linear(nn.functional.normalize(input), nn.functional.normalize(self.weight))


@pytest.mark.parametrize("kind", [Adapted, Cosine])
def test_a_head_that_is_not_its_weight_has_no_nc3(kind):
    model = network(nn.Linear(4, D), nn.ReLU(), kind(D, K))
    meter = NCMeter(model, [], head="2")
    with pytest.warns(UserWarning, match="head '2' does not multiply by its weight") as warned:
        report = meter.run(LOADER)["2"]
    assert warned[0].filename == __file__
    assert report.nc3 is report.nc3_self_duality is report.head_norm_variation is None
    assert report.nc1 > 0


def test_heads_called_by_name_in_half_precision_or_with_a_parametrised_weight_have_one():
    class ByName(Wrapped):
        def forward(self, x):
            return self.body[2](input=self.body[:2](x))

    model = ByName(None)
    nn.utils.parametrizations.weight_norm(model.body[2])
    with torch.autocast("cpu", torch.bfloat16):
        report = NCMeter(model, [], head="body.2").run(LOADER)["body.2"]
    with torch.no_grad():
        features = model.body[:2](INPUTS)
        expected = nc3(class_stats(features, LABELS, K), model.body[2].weight)
    assert report.nc3 == pytest.approx(float(expected), rel=2e-2)


def test_what_inference_mode_has_begun_goes_on_outside():
    model = network()
    meter = NCMeter(model, ["0"], head="2")
    with meter:
        with torch.inference_mode():
            model(LOADER[0][0])
            meter.update(LOADER[0][1])
            inside = NCMeter(model, ["0"], head="2").run(LOADER)["2"]
        model(LOADER[1][0])
        meter.update(LOADER[1][1])
    outside = NCMeter(model, ["0"], head="2").run(LOADER)["2"]
    assert inside.to_dict() == outside.to_dict()
    assert meter.report()["2"].nc1 == pytest.approx(outside.nc1)


def test_a_pass_that_draws_anew_is_found_out():
    """An augmenting loader: the same number of samples of the same distribution, but others."""

    class Augmenting:
        def __init__(self, size):
            self.size = size

        def __iter__(self):
            generator.manual_seed(generator.initial_seed() + 1)
            for x, y in LOADER:
                noise = torch.randn(x.shape, generator=generator)
                yield x + self.size * noise, y

    generator = torch.Generator().manual_seed(0)
    meter = NCMeter(network(), ["0"], head="2")
    for size in (1.0, 0.3):
        with refused(
            ValueError, "the second pass must see the samples of the first, got others in the classes ["
        ):
            meter.run(Augmenting(size))
    assert meter.run(Augmenting(0.0))["2"].nc4 is not None


@pytest.mark.parametrize("size", [2, 3000])
def test_other_samples_are_told_from_rounding_however_many_they_are(size):
    labels = torch.arange(4).repeat(size)
    means = 3 * randn(4, D, seed=1)

    def drawn(seed):
        return means[labels] + randn(len(labels), D, seed=seed)

    stream = StreamingStats(4, D, "trace")
    stream.update(drawn(2), labels)
    second = stream.second_pass()
    second.update(drawn(3), labels)
    with refused(ValueError, "got others in the classes"):
        second.compute()
    # The same numbers, rounded as a forward in half precision rounds them.
    again = stream.second_pass()
    again.update(drawn(2).bfloat16(), labels)
    exact = class_stats(drawn(2), labels, 4)
    torch.testing.assert_close(nc1(again.compute()).float(), nc1(exact), rtol=1e-2, atol=0)
    # And twice the scatter about the same means.
    wider = stream.second_pass()
    wider.update(stream.mean[labels] + 2**0.5 * (drawn(2) - stream.mean[labels]), labels)
    with refused(ValueError, "got others in the classes [0, 1, 2, 3]"):
        wider.compute()


def test_warnings_name_the_line_that_asked():
    model = network()
    loader = [(INPUTS[:-1], LABELS[:-1])]
    with pytest.warns(UserWarning, match="unequal size") as warned:
        NCMeter(model, [], head="2").run(loader, passes=1)
    assert warned[0].filename == __file__


class Cosine(nn.Linear):
    """A head that normalises."""

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


@pytest.mark.parametrize("first", [1, 2])
def test_batches_of_one_sample_tell_what_a_head_is(first):
    labels = torch.arange(30) % K
    inputs = randn(K, D)[labels] + randn(30, D, seed=1)
    inputs[1] = inputs[0]  # the first two tell no more than one
    loader = [(inputs[:first], labels[:first])]
    loader += [(inputs[row : row + 1], labels[row : row + 1]) for row in range(first, 30)]
    head = Cosine(D, K, bias=False)
    with pytest.warns(UserWarning, match="does not multiply by its weight"):
        assert NCMeter(nn.Sequential(head), [], head="0").run(loader)["0"].nc3 is None
    plain = nn.Linear(D, K)
    found = NCMeter(nn.Sequential(plain), [], head="0").run(loader)["0"].nc3
    assert found == pytest.approx(float(nc3(class_stats(inputs.double(), labels, K), plain.weight.detach())))


def test_a_head_that_is_trained_between_batches_of_one_sample_stays_linear():
    model = nn.Sequential(nn.Linear(D, K))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    labels = torch.arange(12) % K
    with NCMeter(model, [], head="0") as meter:
        for row, label in zip(randn(12, D), labels, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(row[None]), label[None]).backward()
            meter.update(label[None])
            optimizer.step()
        assert meter.report()["0"].nc3 is not None


def test_what_is_no_features_is_named():
    labels = torch.arange(6) % K
    loader = [(randn(6, D), labels)]
    for pool, got in (
        (torch.sum, "()"),
        (lambda output: output[:, None], "(6, 1, 6)"),
        (lambda output: None, "NoneType"),
    ):
        with refused(ValueError, f"pool must return features [B, d], got {got} of an output (6, 6)"):
            NCMeter(nn.Sequential(nn.Identity()), ["0"], num_classes=K, pool=pool).run(loader)
    with refused(ValueError, "layers must give at least [B, d], got an output of shape (6,)"):
        NCMeter(nn.Sequential(nn.Flatten(0)), ["0"], num_classes=K).run([(randn(6, 1), labels)])
    for number, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with refused(error, "max_batches must be"):
            NCMeter(nn.Sequential(nn.Identity()), ["0"], num_classes=K).run(loader, max_batches=number)
