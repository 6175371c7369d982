"""The meter sees what enters and leaves the layers, and leaves the model as it was."""

import pytest
import torch
from torch import nn

from neuralcollapse import NCMeter, cdnv, class_stats, nc1, nc2, nc3, nc4, norm_variation

K = 3


class Classifier(nn.Module):
    """A convolution, a pooled feature vector behind dropout, and a head; the output is a dictionary."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        self.dropout = nn.Dropout()
        self.head = nn.Linear(5, K)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        return {"logits": self.head(self.dropout(self.stem(x).mean((2, 3))))}


def batches(counts=(9, 9, 9), size=7):
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(labels), 1, 6, 6, generator=generator) + labels[:, None, None, None]
    order = torch.randperm(len(labels), generator=generator)
    return list(zip(images[order].split(size), labels[order].split(size), strict=True))


def all_of(loader):
    return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


@torch.no_grad()
def by_hand(model, loader):
    """All metrics of the head's input, from one forward of all samples."""
    images, labels = all_of(loader)
    features = model.eval().stem(images).mean((2, 3)).double()
    logits = model(images)["logits"]
    model.train()
    stats = class_stats(features, labels, K)
    weight = model.head.weight.double()
    return {
        "nc1": nc1(stats),
        "nc1_trace": nc1(stats, "trace"),
        "nc2": nc2(stats),
        "nc2_orthogonal": nc2(stats, "orthogonal"),
        "nc3": nc3(stats, weight),
        "nc3_self_duality": nc3(stats, weight, "papyan"),
        "nc4": nc4(stats, features, logits),
        "cdnv": cdnv(stats),
        "norm_variation": norm_variation(stats),
        "head_norm_variation": norm_variation(stats, weight),
    }


@pytest.mark.parametrize("counts", [(9, 9, 9), (4, 9, 14)])
def test_two_passes_give_every_metric_as_computed_by_hand(counts):
    model, loader = Classifier(), batches(counts)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.stem[1].eval()  # frozen by the user
    expected = by_hand(model, loader)
    model.stem[1].eval()
    reports = NCMeter(model, ["stem"], head="head").run(loader)
    assert list(reports) == ["stem", "head"]
    for name, value in expected.items():
        assert getattr(reports["head"], name) == pytest.approx(float(value), rel=1e-4), name
    # Pooled, the stem's output is what enters the head; there is no weight to align it with.
    assert reports["stem"].nc1 == pytest.approx(reports["head"].nc1, rel=1e-5)
    assert reports["stem"].nc4 == reports["head"].nc4
    assert reports["stem"].nc3 is None
    assert model.training
    assert not model.stem[1].training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert reports["head"].to_dict().keys() == expected.keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_classes_share_the_metrics_of_their_layer():
    """Means over classes, and over samples for NC4, are the layer's; a pair counts for both of its classes."""
    model, loader = Classifier(), batches((4, 9, 14))
    report = NCMeter(model, [], head="head").run(loader)["head"]
    rows, stats = report.per_class(), report.stats
    assert [row["class"] for row in rows] == [0, 1, 2]
    assert [row["count"] for row in rows] == [4, 9, 14]
    assert sum(row["nc1_trace"] for row in rows) / K == pytest.approx(report.nc1_trace)
    assert sum(row["cdnv"] for row in rows) / K == pytest.approx(report.cdnv)
    assert sum(row["nc4"] * row["count"] for row in rows) / 27 == pytest.approx(report.nc4)
    assert 0 < report.nc4 < 1
    norms = torch.tensor([row["norm"] for row in rows])
    assert float(norms.std() / norms.mean()) == pytest.approx(report.norm_variation)
    variance, mean = stats.within_trace, stats.mean
    pairs = [float((variance[0] + variance[k]) / (mean[0] - mean[k]).square().sum() / 2) for k in (1, 2)]
    assert rows[0]["cdnv"] == pytest.approx(sum(pairs) / 2)


def test_a_class_of_one_sample_has_no_nc1_and_all_else():
    model, loader = Classifier(), batches((9, 1, 9))
    for passes in (1, 2):
        options = {} if passes == 2 else {"class_counts": torch.tensor([9, 1, 9])}
        report = NCMeter(model, ["stem"], head="head", **options).run(loader, passes=passes)["head"]
        assert report.nc1 is report.nc1_trace is None
        assert all(
            value is not None for value in (report.nc2, report.nc3, report.cdnv, report.norm_variation)
        )
        assert [row["nc1_trace"] is None for row in report.per_class()] == [False, True, False]
    images, labels = all_of(loader)
    with torch.no_grad():
        features = model.eval().stem(images).mean((2, 3)).double()
    stats = class_stats(features, labels, K)
    assert report.cdnv == pytest.approx(float(cdnv(stats)), rel=1e-4)
    assert report.nc2 == pytest.approx(float(nc2(stats)), rel=1e-4)


def test_one_pass_gives_all_but_nc4_and_follows_max_batches():
    model, loader = Classifier(), batches()
    expected = by_hand(model, loader[:3])
    count = torch.bincount(all_of(loader[:3])[1])
    report = NCMeter(model, [], head="head", class_counts=count).run(iter(loader), max_batches=3, passes=1)[
        "head"
    ]
    for name in ("nc1", "nc1_trace", "nc2", "nc3", "cdnv"):
        assert getattr(report, name) == pytest.approx(float(expected[name]), rel=1e-4), name
    assert report.nc4 is None
    assert report.stats.count.tolist() == count.tolist()
    lean = NCMeter(model, [], head="head", cov="trace").run(loader, max_batches=3, passes=1)["head"]
    assert lean.nc1 is None
    assert lean.nc1_trace == report.nc1_trace


def test_inside_a_loop_of_your_own():
    model, loader = Classifier().eval(), batches()
    expected = by_hand(model, loader)
    model.eval()
    with NCMeter(model, ["stem"], head="head") as meter:
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images)["logits"], labels)
            loss.backward()  # the meter holds no graph
            meter.update(labels)
        with meter:  # opened twice is opened once
            model(images)
        inside = meter.run(loader, passes=1)["head"]  # does not mix with what update took in
        report = meter.report()["head"]
        meter.reset()
        with pytest.raises(ValueError, match="must have seen a batch"):
            meter.report()
    assert report.stats.count.tolist() == inside.stats.count.tolist() == [9, 9, 9]
    assert report.nc1 == pytest.approx(float(expected["nc1"]), rel=1e-4)


@pytest.mark.parametrize(
    ("pool", "shape", "expected"),
    [
        ("auto", (2, 3, 4, 5), lambda x: x.mean((2, 3))),
        ("auto", (2, 3), lambda x: x),
        ("mean", (2, 3, 4, 5), lambda x: x.mean((2, 3))),
        ("mean", (2, 3), lambda x: x),
        ("token_mean", (2, 4, 3), lambda x: x.mean(1)),
        ("flatten", (2, 3, 4), lambda x: x.reshape(2, 12)),
        (lambda x: x[:, 0], (2, 4, 3), lambda x: x[:, 0]),
    ],
)
def test_outputs_are_pooled_to_vectors(pool, shape, expected):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2)
    meter = NCMeter(nn.Sequential(nn.Identity()), ["0"], num_classes=2, pool=pool, cov="trace")
    with meter:
        for noise in (0.1, -0.1):
            meter.model(x + noise)
            meter.update(labels)
    mean = meter.report()["0"].stats.mean
    torch.testing.assert_close(mean, expected(x).double(), rtol=1e-6, atol=1e-6)


def test_classes_may_be_missing_and_batches_of_any_form():
    model = Classifier()
    loader = [{"image": images, "label": labels} for images, labels in batches((9, 0, 9))]
    prepare = lambda batch: (batch["image"], batch["label"])  # noqa: E731
    with pytest.raises(ValueError, match=r"every class must have samples, got none of \[1\]"):
        NCMeter(model, [], head="head").run(loader, prepare=prepare)
    for passes in (1, 2):
        report = NCMeter(model, [], head="head", skip_empty=True).run(loader, prepare=prepare, passes=passes)
        assert report["head"].stats.classes.tolist() == [0, 2]
        assert report["head"].nc3 is not None
        rows = report["head"].per_class()
        assert [row["class"] for row in rows] == [0, 2]
    assert sum(row["nc4"] * row["count"] for row in rows) / 18 == pytest.approx(report["head"].nc4)


def test_an_exception_in_the_loop_restores_the_model():
    model = Classifier()

    def breaking():
        yield batches()[0]
        raise KeyError("no more")

    with pytest.raises(KeyError):
        NCMeter(model, ["stem"], head="head").run(breaking(), passes=1)
    assert model.training
    assert not model.stem._forward_hooks
