"""robustmeanteacher against the step as it is usually written: one group, two cases, equal answers first."""

import copy
import functools
import json
import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.functional import affine_grid, conv2d, cosine_similarity, grid_sample, normalize, pad
from torch.profiler import ProfilerActivity, profile

from robustmeanteacher import (
    EMATeacher,
    RobustMeanTeacher,
    RobustMeanTeacherConfig,
    TestTimeAugment,
    nearest_prototypes,
    prototype_contrastive_loss,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
close = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_images(count, seed=0):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# --- the whole step ---------------------------------------------------------------------------------------------

COUNT = 64


class Peer:
    """The step as it is usually written, source-free."""

    def __init__(self, model, prototypes, projector):
        self.model, self.prototypes, self.projector = model, prototypes, projector
        self.features, self.classifier = model[:-1], model[-1]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.SGD([*model.parameters(), *projector.parameters()], lr=0.01)

    def __call__(self, images):
        features = self.features(images)
        augmented = self.features(peer_augment(images))
        logits, logits_augmented, target = (
            self.classifier(features),
            self.classifier(augmented),
            self.teacher(images),
        )
        contrast = peer_contrastive(self.prototypes, features, augmented, self.projector)
        both_ways = 0.5 * self.symmetric(logits, target) + 0.5 * self.symmetric(logits_augmented, target)
        (both_ways.mean() + contrast).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        peer_average(self.teacher, self.model, 0.999)
        return (logits + target).detach()

    @staticmethod
    def symmetric(p, q):
        return -0.5 * (q.softmax(1) * p.log_softmax(1)).sum(1) - 0.5 * (p.softmax(1) * q.log_softmax(1)).sum(
            1
        )


def both_steps(width, dtype):
    network = residual_network(width).to(dtype)
    prototypes = normal(100, 8 * width).to(dtype)
    adapter = RobustMeanTeacher(
        network,
        split=str(len(network) - 1),
        make_optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        prototypes=prototypes,
        augment=our_augment(),
        config=RobustMeanTeacherConfig(source_weight=0.0),
        resettable=False,
        generator=torch.Generator().manual_seed(0),
    )
    peer = Peer(residual_network(width).to(dtype), prototypes, copy.deepcopy(adapter.projector))
    return {"ours": adapter, "peer": peer}


@cache
def agree_on_steps(width):
    """In double precision, in which two orders of summation stay close for more than a step."""
    steps = both_steps(width, torch.float64)
    for seed in range(3):  # a later prediction sees what the earlier steps did
        images = some_images(8, seed).double()
        close(steps["ours"](images), steps["peer"](images))


@both
@pytest.mark.parametrize(("width", "rounds"), [(4, 7), (16, 3)])
def test_step(benchmark, case, width, rounds):
    benchmark.group = f"one adaptation step, ResNet-18 at width {width}"
    agree_on_steps(width)
    images, step = some_images(COUNT), both_steps(width, torch.float32)[case]
    size = f"{COUNT} images, 3 x 32 x 32, 100 classes, source-free"
    benchmark.extra_info.update(case=case, peer="the step as usually written, in torch", size=size)
    benchmark.pedantic(step, (images,), rounds=rounds, warmup_rounds=1)


# --- the augmentation: pad by half the image, transform four times the pixels, crop -------------------------

# Exact in single precision, in which numbers are drawn.
BRIGHTNESS, CONTRAST, SATURATION, HUE, GAMMA, SCALE, SIGMA = 1.25, 0.75, 1.25, 0.03125, 0.875, 1.0625, 0.375
FIXED = {
    "brightness": BRIGHTNESS,
    "contrast": CONTRAST,
    "saturation": SATURATION,
    "hue": HUE,
    "gamma": GAMMA,
    "scale": SCALE,
    "blur_sigma": SIGMA,
}


def our_augment():
    """Every number fixed but the order of the colours, which is the first draw on both sides."""
    ranges = {name: (value, value) for name, value in FIXED.items()}
    still = {"degrees": 0.0, "translate": 0.0, "flip_probability": 1.0, "noise_std": 0.0}
    augment = TestTimeAugment(**ranges, **still, generator=torch.Generator())

    def run(images):
        augment.generator.manual_seed(0)
        return augment(images)

    return run


def gray(images):
    return (0.2989 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]).unsqueeze(1)


def blend(images, other, factor):
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def turn_hue(images, shift):
    """There and back through HSV, sector by sector."""
    red, green, blue = images.unbind(1)
    high, low = images.max(1).values, images.min(1).values
    chroma = high - low
    same = chroma == 0
    saturation = chroma / torch.where(high == 0, torch.ones_like(high), high)
    divisor = torch.where(same, torch.ones_like(chroma), chroma)
    r, g, b = ((high - channel) / divisor for channel in (red, green, blue))
    hue = (high == red) * (b - g) + ((high == green) & (high != red)) * (2 + r - b)
    hue = hue + ((high != green) & (high != red)) * (4 + g - r)
    hue = torch.fmod(torch.fmod(hue / 6 + 1, 1) + shift + 1, 1)
    sector = torch.floor(hue * 6)
    rest, sector = hue * 6 - sector, sector.to(torch.int32) % 6
    p = (high * (1 - saturation)).clamp(0, 1)
    q = (high * (1 - saturation * rest)).clamp(0, 1)
    t = (high * (1 - saturation * (1 - rest))).clamp(0, 1)
    mask = sector.unsqueeze(1) == torch.arange(6).view(-1, 1, 1)
    table = torch.stack(
        [
            torch.stack(c, 1)
            for c in ((high, q, p, p, t, high), (t, high, high, q, p, p), (p, p, t, high, high, q))
        ],
        1,
    )
    return torch.einsum("nijk,nxijk->nxjk", mask.to(images.dtype), table)


def peer_augment(images):
    generator = torch.Generator().manual_seed(0)
    images = images.clamp(0, 1)
    steps = [
        lambda x: (BRIGHTNESS * x).clamp(0, 1),
        lambda x: blend(x, gray(x).mean((1, 2, 3), keepdim=True), CONTRAST),
        lambda x: x.clamp(1e-8, 1) ** GAMMA,
        lambda x: blend(x, gray(x), SATURATION),
        lambda x: turn_hue(x, HUE),
    ]
    for index in torch.randperm(5, generator=generator).tolist():
        images = steps[index](images)
    images = pad(images, [16] * 4, mode="replicate")
    theta = images.new_tensor([[[1 / SCALE, 0.0, 0.0], [0.0, 1 / SCALE, 0.0]]]).expand(len(images), -1, -1)
    images = grid_sample(
        images, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False
    )
    weights = images.new_tensor([math.exp(-(d**2) / (2 * SIGMA**2)) for d in (-2, -1, 0, 1, 2)])
    weights = weights / weights.sum()
    kernel = (weights[:, None] * weights).expand(3, 1, 5, 5)
    images = conv2d(pad(images, [2] * 4, mode="reflect"), kernel, groups=3)[..., 16:-16, 16:-16]
    return (images.flip(-1) + 0.0 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@both
@pytest.mark.benchmark(group="strong augmentation of a batch")
def test_augmentation(benchmark, case):
    images, run = some_images(200), {"ours": our_augment(), "peer": peer_augment}
    close(run["ours"](images), run["peer"](images))
    benchmark.extra_info.update(case=case, peer="pad, transform, blur, crop", size="200 images, 3 x 32 x 32")
    benchmark.pedantic(run[case], (images,), rounds=9, warmup_rounds=1)


# --- the parts of the step --------------------------------------------------------------------------------------


def peer_nearest(features, prototypes):
    """All pairs, element by element."""
    count, classes = len(features), len(prototypes)
    similarity = cosine_similarity(
        prototypes.unsqueeze(1).repeat(1, count, 1), features.unsqueeze(0).repeat(classes, 1, 1), dim=-1
    )
    return similarity.topk(1, dim=0).indices.squeeze(0)


def peer_contrastive(prototypes, features, augmented, projector):
    """SupCon with its masks, every sample a class of its own."""
    count = len(features)
    with torch.no_grad():
        index = peer_nearest(features, prototypes)
    views = torch.stack([prototypes[index], features, augmented], 1)
    z = normalize(projector(torch.cat(views.unbind(1))), dim=1)
    logits = z @ z.T / 0.1
    logits = logits - logits.max(1, keepdim=True).values.detach()
    mask = torch.eye(count, dtype=z.dtype).repeat(3, 3)
    others = torch.scatter(torch.ones_like(mask), 1, torch.arange(3 * count).view(-1, 1), 0)
    mask = mask * others
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    return (-(mask * log_prob).sum(1) / mask.sum(1)).view(3, count).mean()


@torch.no_grad()
def peer_average(teacher, student, momentum):
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.data = momentum * mine.data + (1 - momentum) * other.data


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images):
        return (self.second(self.first(images)) + self.shortcut(images)).relu()


def residual_network(width, classes=100):
    """ResNet-18 for images of 32 x 32, at some width."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            layers += [Block(inputs, outputs, 1 + (stage > 0)), Block(outputs, outputs, 1)]
            inputs = outputs
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
        ).eval()


@both
@pytest.mark.benchmark(group="nearest prototype")
def test_nearest_prototype(benchmark, case):
    features, prototypes = normal(64, 512), normal(1000, 512, seed=1)
    run = {"ours": nearest_prototypes, "peer": peer_nearest}
    assert torch.equal(run["ours"](features, prototypes), run["peer"](features, prototypes))
    size = "64 features, 1,000 classes, D = 512"
    benchmark.extra_info.update(case=case, peer="cosine similarity of repeated tensors", size=size)
    benchmark.pedantic(run[case], (features, prototypes), rounds=5, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="peak extra memory of the nearest prototype")
def test_nearest_prototype_memory(benchmark, case, tmp_path):
    features, prototypes = normal(64, 512), normal(1000, 512, seed=1)
    run = {"ours": nearest_prototypes, "peer": peer_nearest}
    assert torch.equal(run["ours"](features, prototypes), run["peer"](features, prototypes))
    peak = peak_memory(lambda: run[case](features, prototypes), tmp_path / "trace.json")
    benchmark.extra_info.update(
        case=case,
        peer="cosine similarity of repeated tensors",
        size="64 features, 1,000 classes, D = 512",
        quantity="peak memory",
        value=peak,
    )
    benchmark.pedantic(run[case], (features, prototypes), rounds=1)


def peak_memory(run, path):
    """The most bytes that `run` holds at once beyond what was held before, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = [
        event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"
    ]
    held = [event["args"]["Total Allocated"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(held) - (held[0] - events[0]["args"]["Bytes"])


@both
@pytest.mark.benchmark(group="contrastive loss and gradients")
def test_contrastive_loss(benchmark, case):
    prototypes, features, augmented = normal(100, 640), normal(200, 640, seed=1), normal(200, 640, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        projector = nn.Sequential(nn.Linear(640, 128), nn.ReLU(), nn.Linear(128, 128))
    features.requires_grad_()

    def run(loss):
        found = loss(prototypes, features, augmented, projector)
        return found, *torch.autograd.grad(found, [features, *projector.parameters()])

    losses = {"ours": prototype_contrastive_loss, "peer": peer_contrastive}
    for mine, other in zip(run(losses["ours"]), run(losses["peer"]), strict=True):
        close(mine, other)
    benchmark.extra_info.update(case=case, peer="SupCon with masks", size="200 samples, 100 classes, D = 640")
    benchmark.pedantic(run, (losses[case],), rounds=9, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="teacher update")
def test_teacher_update(benchmark, case):
    student, origin = residual_network(64), residual_network(64)
    with torch.no_grad():
        for parameter in origin.parameters():
            parameter.mul_(0.5)
    ours, peer = EMATeacher(origin, 0.999), copy.deepcopy(origin)
    ours.update(student)
    peer_average(peer, student, 0.999)
    for mine, other in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    run = {"ours": lambda: ours.update(student), "peer": lambda: peer_average(peer, student, 0.999)}
    benchmark.extra_info.update(
        case=case, peer="a loop over the parameters", size="ResNet-18, 11 M parameters"
    )
    benchmark.pedantic(run[case], rounds=9, warmup_rounds=1)
