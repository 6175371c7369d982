"""What the demo measures of one fine-tuned model: its exits on held-out text, and its decoders."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sortedft.decoding import Generated, dynamic_generate, speculative_generate
from sortedft.demo.tasks import Batch, Task
from sortedft.demo.training import Progress
from sortedft.exits import ExitHeads, default_thresholds
from sortedft.loss import sorted_loss
from sortedft.report import LayerReport, layer_report


@dataclass(frozen=True)
class Answers:
    """What every exit says of some text.

    Args:
        depths: (|B|,) the exits.
        confidence: (|B|, tokens) the largest probability.
        correct: (|B|, tokens) whether that choice is right.
    """

    depths: Tensor
    confidence: Tensor
    correct: Tensor

    def leave_when_sure(self, thresholds: list[float]) -> tuple[float, float]:
        """Accuracy (%) and mean depth when every token leaves at its first sure exit."""
        bars = torch.tensor([*thresholds, 0.0], device=self.depths.device)[:, None]
        index = (self.confidence >= bars).int().argmax(0)
        accuracy = 100 * self.correct.gather(0, index[None]).double().mean().item()
        return accuracy, self.depths[index].mean().item()


@dataclass(frozen=True)
class Measured:
    """Everything measured of one fine-tuned model.

    Args:
        history: Training loss of the full exit at each step.
        report: Loss, accuracy and divergence by exit.
        held_out: What every exit says of held-out text.
        thresholds: Calibrated on fine-tuning text.
        kl_map: KL(p_m || p_n) in nats, row m and column n.
        decoded: By decoder, what each prompt gave and the seconds it took.
    """

    history: list[float]
    report: LayerReport
    held_out: Answers
    thresholds: list[float]
    kl_map: list[list[float]]
    decoded: dict[str, list[tuple[Generated, float]]]


@torch.no_grad()
def measure(task: Task, exits: list[int], history: list[float], report: Progress) -> Measured:
    """Measure the task's model as it now is."""
    found = layer_report(task.model, task.held_out, exits, parts=task.parts(task.model))
    report(0.2, "held-out exits")
    held_out = _answers(task, task.held_out, exits)
    kl_map = _kl_map(task, exits)
    report(0.3, "held-out confidence")
    thresholds = _calibrated(_answers(task, task.calibration, exits), exits)
    report(0.4, "thresholds")
    return Measured(history, found, held_out, thresholds, kl_map, _decode(task, exits, thresholds, report))


@torch.no_grad()
def heads_loss(task: Task, heads: ExitHeads) -> list[float]:
    """Held-out loss of each exit's own head."""
    norm, total = task.parts(task.model).norm, torch.zeros(len(heads.exits), dtype=torch.float64)
    for batch in task.held_out:
        states = task.states(task.model, batch)
        losses = [
            sorted_loss(states, batch["labels"], norm=norm, head=heads[n], exits=[n]) for n in heads.exits
        ]
        total += torch.stack(losses).double().cpu()
    return (total / len(task.held_out)).tolist()


def _answers(task: Task, batches: list[Batch], exits: list[int]) -> Answers:
    confidence, correct = [], []
    for batch in batches:
        log_probs, targets = task.log_probs(task.model, batch, exits)
        best, choice = log_probs.max(-1)
        confidence.append(best.exp())
        correct.append(choice == targets)
    depths = torch.tensor(exits, dtype=torch.float64, device=targets.device)
    return Answers(depths, torch.cat(confidence, 1), torch.cat(correct, 1))


def _calibrated(answers: Answers, exits: list[int]) -> list[float]:
    """The lowest bar, the same for all exits, that costs at most one point of the full exit's accuracy."""
    full = 100 * answers.correct[-1].double().mean().item()
    for percent in range(30, 100, 5):
        thresholds = [percent / 100] * (len(exits) - 1)
        if answers.leave_when_sure(thresholds)[0] >= full - 1:
            break
    return thresholds


def _kl_map(task: Task, exits: list[int]) -> list[list[float]]:
    """Of one held-out batch: all batches would not look different."""
    log_probs, _ = task.log_probs(task.model, task.held_out[0], exits)
    negative_entropy = (log_probs.exp() * log_probs).sum(-1).mean(1)
    cross = torch.einsum("mtv,ntv->mn", log_probs.exp(), log_probs) / log_probs.shape[1]
    return (negative_entropy[:, None] - cross).clamp_min(0).tolist()


def _decode(
    task: Task, exits: list[int], thresholds: list[float], report: Progress
) -> dict[str, list[tuple[Generated, float]]]:
    """Every prompt through every decoder."""
    parts, length, end = task.parts(task.model), task.num_new_tokens, task.eos_token_id
    draft_exit = exits[min(1, len(exits) - 2)]

    def dynamic(
        exits: list[int], thresholds: list[float], fill: str = "exact"
    ) -> Callable[[Tensor], Generated]:
        return lambda ids: dynamic_generate(
            parts, ids, exits, thresholds, length, eos_token_id=end, fill=fill
        )

    decoders = {
        "plain": dynamic(exits[-1:], []),
        "self-speculative": lambda ids: speculative_generate(
            parts, ids, draft_exit, length, eos_token_id=end
        ),
        "dynamic": dynamic(exits, thresholds),
        "dynamic, copied states": dynamic(exits, thresholds, fill="copy"),
        "dynamic, default thresholds": dynamic(exits, default_thresholds(exits)),
    }
    found: dict[str, list[tuple[Generated, float]]] = {name: [] for name in decoders}
    for index, prompt in enumerate(task.prompts):
        for name, decoder in decoders.items():
            start = time.perf_counter()
            found[name].append((decoder(prompt), time.perf_counter() - start))
        report(
            0.4 + 0.6 * (index + 1) / len(task.prompts), f"decoded prompt {index + 1} of {len(task.prompts)}"
        )
    return found
