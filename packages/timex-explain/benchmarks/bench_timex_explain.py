"""timex_explain against attributions that run the classifier, and its losses and scores against loops."""

from functools import cache

import pytest
import torch
from torch import nn

from timex_explain import (
    Replacement,
    TimeX,
    freq_shapes,
    gradient_times_input,
    integrated_gradients,
    label_consistency,
    occlusion_saliency,
    saliency_scores,
)
from timex_explain.demo.models import ConvNet, Transformer

both = pytest.mark.parametrize("case", ["ours", "peer"])
BATCH = 256
INTEGRATED = "integrated gradients, 50 steps, the whole batch at a time"


# --- explanations ----------------------------------------------------------------------------------


class Convolutional(nn.Module):
    """The paper's convolutional classifier: three convolutions of 128 channels, each with pooling."""

    def __init__(self, channels=128):
        super().__init__()
        layers = []
        for before, width in ((1, 7), (channels, 3), (channels, 3)):
            layers += [nn.Conv1d(before, channels, width, padding=width // 2), nn.ReLU(), nn.MaxPool1d(2)]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 4))

    def forward(self, x):
        return self.head(self.trunk(x.mT))


CLASSIFIERS = {
    "convolutional": Convolutional,
    "transformer": lambda: Transformer(1, 50, 4),
    "convnet": lambda: ConvNet(1, 4),
}


@cache
def problem(kind):
    """A classifier and its explainer: what a pass costs does not depend on what was learnt."""
    data = freq_shapes(BATCH, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLASSIFIERS[kind]().eval()
        explainer = TimeX(model, Replacement.fit(data.x), embed="head", embed_side="input")
    return data, model, explainer.eval()


def assert_both_explain(kind):
    """Different answers to one question: each is checked against what it must be."""
    data, model, explainer = problem(kind)
    x, y = data.x[:32], data.y[:32]
    torch.testing.assert_close(explainer.explain(x), explainer(x).prob)
    fine = integrated_gradients(model, x, y, num_steps=300).sum((1, 2))
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x))).gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(fine, difference, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(integrated_gradients(model, x, y).sum((1, 2)), difference, atol=0.1, rtol=0.1)


@both
@pytest.mark.parametrize(
    ("kind", "about"),
    [
        pytest.param(
            "convolutional",
            "3 convolutions of 128 channels",
            marks=pytest.mark.benchmark(
                group="explaining a batch against one gradient, convolutional classifier"
            ),
        ),
        pytest.param(
            "transformer",
            "transformer of 17 channels and 1 layer",
            marks=pytest.mark.benchmark(group="explaining a batch against one gradient, smallest classifier"),
        ),
    ],
)
def test_explanations_against_one_gradient(benchmark, case, kind, about):
    assert_both_explain(kind)
    data, model, explainer = problem(kind)
    x = data.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).gather(1, data.y.unsqueeze(1)).sum(), x)
    torch.testing.assert_close(gradient_times_input(model, data.x, data.y), slope * data.x)
    run = {
        "ours": lambda: explainer.explain(data.x),
        "peer": lambda: gradient_times_input(model, data.x, data.y),
    }
    size = f"{BATCH} series of 50 points, {about}"
    benchmark.extra_info.update(case=case, peer="gradient x input, the whole batch at a time", size=size)
    benchmark.pedantic(run[case], rounds=5, iterations=10, warmup_rounds=1)


@both
@pytest.mark.parametrize(
    ("kind", "about"),
    [
        pytest.param(
            "convolutional",
            "3 convolutions of 128 channels",
            marks=pytest.mark.benchmark(group="explaining a batch, the paper's convolutional classifier"),
        ),
        pytest.param(
            "transformer",
            "transformer of 17 channels and 1 layer",
            marks=pytest.mark.benchmark(group="explaining a batch, the paper's smallest classifier"),
        ),
        pytest.param(
            "convnet",
            "3 convolutions of 32 channels",
            marks=pytest.mark.benchmark(group="explaining a batch, a small convolutional network"),
        ),
    ],
)
def test_explanations(benchmark, case, kind, about):
    assert_both_explain(kind)
    data, model, explainer = problem(kind)
    run = {
        "ours": lambda: explainer.explain(data.x),
        "peer": lambda: integrated_gradients(model, data.x, data.y),
    }
    size = f"{BATCH} series of 50 points, {about}"
    benchmark.extra_info.update(case=case, peer=INTEGRATED, size=size)
    rounds, iterations = (5, 10) if case == "ours" else (3, 1)  # rounds of about the same length
    benchmark.pedantic(run[case], rounds=rounds, iterations=iterations, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="explaining a batch, against occlusion")
def test_explanations_against_occlusion(benchmark, case):
    data, model, explainer = problem("transformer")
    replacement = explainer.replacement
    assert_both_explain("transformer")
    means = Replacement(replacement.mean, torch.zeros_like(replacement.std))
    lost = occlusion_saliency(model, data.x[:4], data.y[:4], means)[:, 7, 0]
    other = data.x[:4].clone()
    other[:, 7] = means.mean[7]
    with torch.no_grad():
        change = (model(data.x[:4]).softmax(-1) - model(other).softmax(-1)).gather(1, data.y[:4, None])
    torch.testing.assert_close(lost, change.squeeze(1))
    run = {
        "ours": lambda: explainer.explain(data.x),
        "peer": lambda: occlusion_saliency(model, data.x, data.y, replacement),
    }
    name = "replacing one value at a time, one draw, the whole batch at a time"
    benchmark.extra_info.update(case=case, peer=name, size=f"{BATCH} series of 50 points")
    rounds, iterations = (5, 10) if case == "ours" else (5, 1)
    benchmark.pedantic(run[case], rounds=rounds, iterations=iterations, warmup_rounds=1)


# --- losses and scores -----------------------------------------------------------------------------


def listed_pairs(logits, logits_explanation):
    """The same loss as it is usually written: lists of all pairs, and KL from their mean."""
    pairs = torch.combinations(torch.arange(len(logits)))

    def divergence(values):
        log_prob = values.log_softmax(-1)
        p, q = log_prob[pairs[:, 0]], log_prob[pairs[:, 1]]
        log_mean = ((p.exp() + q.exp()) / 2).log()
        kl = nn.functional.kl_div
        options = {"log_target": True, "reduction": "none"}
        return (kl(log_mean, p, **options) + kl(log_mean, q, **options)).sum(-1) / 2

    return (divergence(logits_explanation) - divergence(logits)).square().mean()


def loss_and_gradient(loss, logits, logits_explanation):
    logits_explanation = logits_explanation.detach().requires_grad_()
    value = loss(logits, logits_explanation)
    return value.detach(), torch.autograd.grad(value, logits_explanation)[0]


@both
@pytest.mark.parametrize(
    ("batch", "classes"),
    [
        pytest.param(
            64, 4, marks=pytest.mark.benchmark(group="label consistency and its gradient, batch of 64")
        ),
        pytest.param(
            512, 8, marks=pytest.mark.benchmark(group="label consistency and its gradient, batch of 512")
        ),
    ],
)
def test_label_consistency(benchmark, case, batch, classes):
    generator = torch.Generator().manual_seed(0)
    logits, other = (2 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    loss = {"ours": label_consistency, "peer": listed_pairs}
    ours, peer = (loss_and_gradient(loss[name], logits, other) for name in ("ours", "peer"))
    torch.testing.assert_close(ours[0], peer[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], peer[1], rtol=1e-3, atol=1e-7)
    size = f"{batch} series, {classes} classes"
    benchmark.extra_info.update(case=case, peer="index lists of all pairs", size=size)
    iterations = 20 if batch < 100 else 1
    benchmark.pedantic(loss_and_gradient, (loss[case], logits, other), rounds=10, iterations=iterations)


@both
@pytest.mark.benchmark(group="AUPRC, AUP and AUR of many series")
def test_scores(benchmark, case):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    data = freq_shapes(500, generator=generator)
    saliency = torch.rand(data.x.shape, generator=generator, dtype=torch.float64)

    def loop():
        found = []
        for value, true in zip(saliency.flatten(1).numpy(), data.truth.flatten(1).numpy(), strict=True):
            value = (value - value.min()) / (value.max() - value.min())
            precision, recall, thresholds = metrics.precision_recall_curve(true, value)
            areas = [metrics.auc(thresholds, curve[:-1]) for curve in (precision, recall)]
            found.append([metrics.average_precision_score(true, value), *areas])
        return torch.tensor(found, dtype=torch.float64)

    run = {"ours": lambda: torch.stack(saliency_scores(saliency, data.truth), dim=1), "peer": loop}
    torch.testing.assert_close(run["ours"](), loop())
    benchmark.extra_info.update(
        case=case, peer="scikit-learn's curves, series by series", size="500 series of 50 points"
    )
    benchmark.pedantic(run[case], rounds=20 if case == "ours" else 3)
