"""The training runs: unclamped, clamped throughout, and clamped at evaluation only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inductionclamp.clamps import Clamp, ClampSet
from inductionclamp.metrics import (
    HeadTable,
    context_positions,
    few_shot_accuracy,
    head_ablation_table,
    induction_strength,
)
from inductionclamp.recipes import ablate_heads, induction_pattern, perfect_copy, perfect_layer1, preserve
from inductionclamp.running import run
from inductionclamp.sampler import FewShotBatch, FewShotSampler
from inductionclamp.toy import ToyRun, tensor_toy
from inductionclamp.transformer import FewShotTransformer

Progress = Callable[[float, str], None]
THRESHOLD = 0.4 * math.log(2)
HEADS, HELD_OUT = 8, 100
LOOK_EVERY = 40


@dataclass(frozen=True)
class Sizes:
    """The numbers of a preset."""

    steps: int
    models: int
    after: int
    classes: int = 300
    dim: int = 64
    batch: int = 64
    learning_rate: float = 1e-4
    toy_steps: int = 1000
    source: str = "50 classes of one MNIST image each, 128 random projections; 100 held-out classes"


SIZES = {
    "smoke": Sizes(steps=3, models=1, after=0, toy_steps=50),
    "laptop": Sizes(steps=2400, models=2, after=60),
    "paper": Sizes(
        steps=12500,
        models=3,
        after=1000,
        batch=32,
        learning_rate=1e-5,
        source="50 classes of Omniglot, 512 ResNet-18 features; 100 held-out classes",
    ),
}


@dataclass(frozen=True)
class Arm:
    """One kind of run."""

    name: str
    clamps: ClampSet
    classes: int = 50
    labels: int = 5
    rate: float = 1.0


def clamp_sets() -> dict[str, ClampSet]:
    """Return the clamps of each arm; head 0 of the second layer is the one that is left."""
    only = ablate_heads(1, range(1, HEADS))
    return {
        "none": ClampSet(),
        "layer1": ClampSet([perfect_layer1(1), only]),
        "match": ClampSet([induction_pattern(1, [0]), only]),
        "copy": ClampSet(perfect_copy(1, 0)),
        "layer1+copy": ClampSet([perfect_layer1(1), perfect_copy(1, 0)]),
    }


def arms() -> list[Arm]:
    """Return every run: the clamps, the larger rate, and the data that should slow one sub-circuit."""
    sets = clamp_sets()
    return [
        *(Arm(name, clamps) for name, clamps in sets.items()),
        Arm("none, 3 x rate", sets["none"], rate=3.0),
        Arm("match, 15 labels", sets["match"], labels=15),
        Arm("match, 200 classes", sets["match"], classes=200),
        Arm("layer1+copy, 15 labels", sets["layer1+copy"], labels=15),
        Arm("layer1+copy, 200 classes", sets["layer1+copy"], classes=200),
    ]


@dataclass
class Outcome:
    """One run: running losses at each step, and of the unclamped one what clamps show at its checkpoints."""

    losses: list[float]
    posthoc: dict[str, list[float]] = field(default_factory=dict)
    strengths: list[list[float]] = field(default_factory=list)
    looked_at: list[int] = field(default_factory=list)
    model: FewShotTransformer | None = None


@dataclass(frozen=True)
class Ablations:
    """The trained unclamped model with its first layer silenced, and its heads one by one."""

    accuracy: float
    silenced: float
    preserved: float
    heads: HeadTable


@dataclass(frozen=True)
class Result:
    """All runs."""

    outcomes: dict[str, list[Outcome]]
    ablations: list[Ablations]
    toys: dict[str, ToyRun]


def measure(features: Tensor, sizes: Sizes, seed: int, report: Progress) -> Result:
    """Train every arm from each initialisation."""
    kinds = arms()
    outcomes: dict[str, list[Outcome]] = {arm.name: [] for arm in kinds}
    ablations = []
    for model_seed in range(sizes.models):
        for place, arm in enumerate(kinds):
            done = (model_seed * len(kinds) + place) / (sizes.models * len(kinds))
            report(0.98 * done, f"training {arm.name}")
            outcome = _trained(features, sizes, arm, 1000 * seed + model_seed)
            if arm.name == "none":
                ablations.append(_ablated(outcome, features, seed))
            outcomes[arm.name].append(outcome)
    report(0.98, "the toy")
    toys = {
        name: tensor_toy(clamp=clamp, generator=torch.Generator().manual_seed(seed), steps=sizes.toy_steps)
        for name, clamp in (("free", ()), ("c clamped", ("c",)), ("b, c clamped", ("b", "c")))
    }
    report(1.0, "done")
    return Result(outcomes, ablations, toys)


def _sampler(features: Tensor, arm: Arm, batch: int, seed: int) -> FewShotSampler:
    pairs = arm.labels * (arm.labels - 1) // 2
    train = {5: 8, 15: 84}[arm.labels]
    last = len(features)
    return FewShotSampler(
        features,
        (range(arm.classes), range(last - HELD_OUT, last)),
        arm.labels,
        (train, pairs - train),
        generator=torch.Generator().manual_seed(seed),
        batch_size=batch,
    )


def _trained(features: Tensor, sizes: Sizes, arm: Arm, seed: int) -> Outcome:
    """Train until some steps after the running loss has passed the threshold."""
    generator = torch.Generator().manual_seed(seed)
    model = FewShotTransformer(features.shape[2], arm.labels, sizes.dim, num_heads=HEADS, generator=generator)
    model.to(features.device)
    data = _sampler(features, arm, sizes.batch, seed + 500)
    probe = _sampler(features, arm, sizes.batch, seed + 700).batch(256)
    optimizer = torch.optim.Adam(model.parameters(), lr=arm.rate * sizes.learning_rate)
    outcome = Outcome([], model=model)
    running, crossed = 0.0, sizes.steps
    for step in range(sizes.steps):
        if arm.name == "none" and step % LOOK_EVERY == 0:
            _look(model, probe, step, outcome)
        batch = data.batch()
        logits, _ = run(model, batch, arm.clamps)
        loss = cross_entropy(logits[:, -1], batch.y[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        outcome.losses.append(running)
        if running < THRESHOLD:
            crossed = min(crossed, step)
        if arm.name != "none" and step >= crossed + sizes.after:
            break
    return outcome


@torch.no_grad()
def _look(model: FewShotTransformer, probe: FewShotBatch, step: int, outcome: Outcome) -> None:
    """What clamps show of an unclamped checkpoint: the rival that never clamps in training.

    Read kindly: no head is ablated, patterns are forced in all heads, and scores are those of the best head.
    """
    outcome.looked_at.append(step)
    maps = ["blocks.1.attn_pre_softmax", "blocks.1.attn_scores"]

    def note(name: str, copied: str, clamps: list[Clamp]) -> Tensor:
        logits, acts = run(model, probe, clamps, record=maps)
        outcome.posthoc.setdefault(name, []).append(cross_entropy(logits[:, -1], probe.y[:, -1]).item())
        if copied:
            losses = copied_losses(acts[maps[0]], probe.y)
            outcome.posthoc.setdefault(copied, []).append(losses.min().item())
        return acts[maps[1]]

    attn = note("none", "copy", [])
    note("layer1", "layer1+copy", perfect_layer1(1))
    note("match", "", induction_pattern(1))
    strength = induction_strength(attn, *context_positions(probe.y))
    outcome.strengths.append(strength.tolist())


def copied_losses(scores: Tensor, y: Tensor) -> Tensor:
    """The loss under `perfect_copy` of every head at once, [H], of its scores [B, H, T, T]."""
    at = scores[:, :, -1, 1:-1:2]
    right = (y[:, :-1] == y[:, -1:])[:, None]
    return (at.logsumexp(-1) - at.masked_fill(~right, -math.inf).logsumexp(-1)).mean(0)


@torch.no_grad()
def _ablated(outcome: Outcome, features: Tensor, seed: int) -> Ablations:
    model = outcome.model
    assert model is not None
    batch = _sampler(features, Arm("none", ClampSet()), 1000, seed + 900).batch()

    def accuracy(clamps: ClampSet) -> float:
        return few_shot_accuracy(run(model, batch, clamps)[0], batch).mean().item()

    return Ablations(
        accuracy(ClampSet()),
        accuracy(ClampSet(ablate_heads(0))),
        accuracy(ClampSet([ablate_heads(0), preserve(["patterns", "values"], [1])])),
        head_ablation_table(model, batch, 1),
    )
