"""Four ways to train a small character model on: supervised, verified rewards, verified samples, preferences."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tulu3 import (
    ReferenceCache,
    gae,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    preference_loss,
    replace_unfinished_scores,
    rlvr_rewards,
    rollout_masks,
    sequence_logps,
    sft_loss,
    token_logps,
)
from tulu3.demo.model import CharacterModel, sample, value_network
from tulu3.demo.sums import (
    NUM_TOKENS,
    PAD,
    STOP,
    Judge,
    Problems,
    draw,
)
from tulu3.preferences import PreferenceKind

BETA = 0.05  # of the KL penalty, the 8B model's
EPOCHS = 4  # of PPO on each rollout


@dataclass
class Trained:
    """A model and what was seen while it was trained."""

    model: CharacterModel
    history: dict[str, list[float]] = field(default_factory=dict)

    def note(self, **values: float) -> None:
        """Append one number to each line."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


class Texts(NamedTuple):
    """Prompts with responses, and the labels of the responses."""

    ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, prompts: Tensor, responses: Tensor) -> Texts:
        """Put responses behind prompts."""
        ids = torch.cat([prompts, responses], 1)
        labels = ids.masked_fill(ids == PAD, -100)
        labels[:, : prompts.shape[1]] = -100
        return cls(ids, labels)

    def take(self, index: Tensor) -> Texts:
        """Some of them."""
        return Texts(self.ids[index], self.labels[index])


def supervise(
    start: CharacterModel, texts: Texts, num_steps: int, batch: int, rate: float, generator: torch.Generator
) -> Trained:
    """Supervised fine-tuning with the token-sum loss; linear decay after a short warm-up."""
    trained = Trained(deepcopy(start))
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * _schedule(step, num_steps)
        rows = texts.take(torch.randint(len(texts.ids), (batch,), generator=generator))
        loss = sft_loss(trained.model(rows.ids), rows.labels)
        _step(optimizer, loss)
        trained.note(loss=float(loss.detach()))
    return trained


@dataclass(frozen=True)
class Reward:
    """What a rollout earns: verified or drawn at random, with or without the penalty for not ending."""

    at_random: bool = False
    stop_penalty: bool = True

    def scores(
        self, judge: Judge, problems: Problems, responses: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(B,) scores of whole responses."""
        found = judge.scores(problems, responses)
        return found[torch.randperm(len(found), generator=generator)] if self.at_random else found


def reinforce(
    start: CharacterModel,
    problems: Problems,
    judge: Judge,
    num_iterations: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    reward: Reward | None = None,
) -> Trained:
    """RLVR: PPO against verifiers, from and with a divergence penalty to `start`; the rate decays linearly."""
    reward = reward or Reward()
    trained, value = Trained(deepcopy(start)), value_network(start)
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0) for model in (trained.model, value)
    ]
    for iteration in range(num_iterations):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate * (1 - iteration / num_iterations)
        asked = draw(problems, batch, generator)
        prompts = asked.prompts()
        rollout = rollout_masks(sample(trained.model, prompts, NUM_TOKENS, generator), STOP, PAD)
        scores = reward.scores(judge, asked, rollout.responses, generator)
        if reward.stop_penalty:
            scores = replace_unfinished_scores(scores, rollout.has_stop)
        texts, first = Texts.of(prompts, rollout.responses), prompts.shape[1] - 1
        with torch.no_grad():
            old, ref = (_response_logps(model, texts, first) for model in (trained.model, start))
            old_values = _values(value, texts, first)
        rewards = rlvr_rewards(old, ref, scores, rollout.lengths, beta=BETA)
        found = gae(rewards, old_values, rollout.value_mask)
        advantages = masked_whiten(found.advantages, rollout.policy_mask)
        for _ in range(EPOCHS):
            new = _response_logps(trained.model, texts, first)
            _step(optimizers[0], ppo_policy_loss(new, old, advantages, rollout.policy_mask).loss)
            values = _values(value, texts, first)
            _step(optimizers[1], 0.1 * ppo_value_loss(values, old_values, found.returns, rollout.value_mask))
        trained.note(
            verified=100 * float(judge.verified(asked, rollout.responses).float().mean()),
            divergence=float(((old - ref) * rollout.policy_mask).sum(1).mean()),
            ended=100 * float(rollout.has_stop.float().mean()),
        )
    return trained


def imitate_verified(
    start: CharacterModel,
    problems: Problems,
    judge: Judge,
    num_iterations: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
) -> Trained:
    """Rejection sampling: as many samples and updates as RLVR, but supervised on those that the verifiers accept."""
    trained = Trained(deepcopy(start))
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=rate, weight_decay=0.0)
    for iteration in range(num_iterations):
        optimizer.param_groups[0]["lr"] = rate * (1 - iteration / num_iterations)
        asked = draw(problems, batch, generator)
        responses = sample(trained.model, asked.prompts(), NUM_TOKENS, generator)
        accepted = judge.verified(asked, responses)
        texts = Texts.of(asked.prompts(), responses).take(accepted.nonzero().flatten())
        for _ in range(EPOCHS if len(texts.ids) else 0):
            _step(optimizer, sft_loss(trained.model(texts.ids), texts.labels))
        trained.note(verified=100 * float(accepted.float().mean()))
    return trained


class PairTexts(NamedTuple):
    """Preference pairs of a model's own samples: right against wrong, the right one longer in most of them."""

    chosen: Texts
    rejected: Texts
    longer: float  # share of pairs whose chosen side is the longer one

    @classmethod
    def of(
        cls,
        start: CharacterModel,
        problems: Problems,
        judge: Judge,
        generator: torch.Generator,
        longer: float = 0.7,
    ) -> PairTexts:
        """One pair for each problem of which eight samples hold a right and a wrong answer of the length wanted."""
        num_samples = 8
        asked = problems.take(torch.arange(len(problems)).repeat_interleave(num_samples))
        responses = sample(start, asked.prompts(), NUM_TOKENS, generator)
        right = judge.verified(asked, responses).view(-1, num_samples)
        lengths = (responses != PAD).sum(1).view(-1, num_samples)
        wants_longer = torch.rand(len(problems), 1, generator=generator) < longer
        signed = torch.where(wants_longer, lengths, -lengths)
        good = signed.masked_fill(~right, -99).max(1)
        bad = signed.masked_fill(right, 99).min(1)
        kept = (right.any(1) & ~right.all(1) & (good.values > bad.values)).nonzero().flatten()
        sides = [
            Texts.of(
                problems.prompts(),
                responses.view(-1, num_samples, NUM_TOKENS)[torch.arange(len(problems)), which],
            )
            for which in (good.indices, bad.indices)
        ]
        return cls(sides[0].take(kept), sides[1].take(kept), float(wants_longer[kept].float().mean()))

    @property
    def sides(self) -> tuple[Texts, Texts]:
        """The chosen and the rejected responses."""
        return self.chosen, self.rejected


def prefer(
    start: CharacterModel,
    pairs: PairTexts,
    kind: PreferenceKind,
    num_steps: int,
    batch: int,
    rate: float,
    beta: float,
    generator: torch.Generator,
) -> Trained:
    """Train on preference pairs, with the reference's log-probabilities computed once."""
    trained, average = Trained(deepcopy(start)), kind in ("dpo_norm", "simpo")
    cache = ReferenceCache(len(pairs.chosen.ids), average=average)
    with torch.no_grad():
        cache.put(
            torch.arange(len(cache)),
            *(sequence_logps(start(side.ids), side.labels, average) for side in pairs.sides),
        )
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * _schedule(step, num_steps)
        index = torch.randint(len(cache), (batch,), generator=generator)
        both = [side.take(index) for side in pairs.sides]
        ids, labels = (torch.cat(columns) for columns in zip(*both, strict=True))
        chosen, rejected = sequence_logps(trained.model(ids), labels, average).chunk(2)
        counts = [(side.labels != -100).sum(1) for side in both]
        reference = (None, None) if kind == "simpo" else cache.get(index)
        lengths = (counts[0], counts[1]) if kind == "wpo" else None
        found = preference_loss(chosen, rejected, *reference, kind=kind, beta=beta, lengths=lengths)
        _step(optimizer, found.loss)
        trained.note(margin=float(found.margin.mean()))
    return trained


def mean_divergence(
    model: CharacterModel, start: CharacterModel, problems: Problems, responses: Tensor
) -> float:
    """Nats by which samples of a model are likelier under it than under where it started, per response."""
    texts = Texts.of(problems.prompts(), responses)
    with torch.no_grad():
        logps = [sequence_logps(one(texts.ids), texts.labels) for one in (model, start)]
    return float((logps[0] - logps[1]).mean())


def _schedule(step: int, num_steps: int) -> float:
    return min(1.0, (step + 1) / (0.1 * num_steps)) * (1 - step / num_steps)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _response_logps(model: CharacterModel, texts: Texts, first: int) -> Tensor:
    return token_logps(model(texts.ids), texts.ids, temperature=1.0)[:, first:]


def _values(model: CharacterModel, texts: Texts, first: int) -> Tensor:
    # The value of what is known before a token is chosen stands where its log-probability does.
    return model(texts.ids)[:, first:-1, 0]
