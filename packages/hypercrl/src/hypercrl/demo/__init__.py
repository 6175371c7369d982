"""The evidence: five conflicting cart-poles learnt one after another, by HyperCRL and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from hypercrl.demo.control import mean_rewards
from hypercrl.demo.figures import curves, images
from hypercrl.demo.judgement import conditions
from hypercrl.demo.learners import Setting, Sizes, make_model
from hypercrl.demo.rows import METRICS, Row, learner_row, mean
from hypercrl.demo.tasks import COMPATIBLE, CONFLICTING, Task, cart_poles, own_robot
from hypercrl.demo.training import Outcome, choose, run, run_errors

__all__ = ["conditions", "demo"]

# Learner and name in the table, strengths tried first.
TUNED = (
    ("hypercrl", "HyperCRL, look-ahead", True, (0.005, 0.05, 0.5)),
    ("hypercrl", "HyperCRL, first order", False, (0.005, 0.05, 0.5)),
    ("chunked", "HyperCRL, chunked", True, (0.005, 0.05, 0.5)),
    ("EWC", "EWC", True, (1e5, 1e6, 1e7)),
    ("SI", "SI", True, (1e3, 1e4, 1e5)),
)
RATES = {
    "hypercrl": (3e-4, 1e-3, 3e-3),
    "chunked": (1e-3, 3e-3, 1e-2),
    "single": (3e-3, 1e-2, 3e-2),
}
FIXED = (
    ("hypercrl", "fine-tuning"),
    ("plain fine-tuning", "plain fine-tuning"),
    ("one network", "one network"),
    ("coreset", "coreset"),
    ("plain coreset", "plain coreset"),
    ("multitask", "multitask"),
    ("single", "single"),
)
PLANNED = (
    "HyperCRL, look-ahead",
    "HyperCRL, first order",
    "fine-tuning",
    "plain fine-tuning",
    "EWC",
    "SI",
    "coreset",
    "single",
)


@dataclass(frozen=True)
class Preset:
    """What a preset spends."""

    sizes: Sizes
    data: tuple[int, int]  # transitions to learn from, held out
    num_tasks: int
    rate: float | None  # None: chosen on the first task
    strengths: int  # how many of each grid
    widenings: int
    control: tuple[int, int] | None  # environments of each task, steps


PRESETS = {
    "smoke": Preset(Sizes((16,), (10,), (60, 4, (10,)), 12, 32, 20), (200, 100), 2, 1e-3, 1, 0, (1, 2)),
    "laptop": Preset(
        Sizes((64, 64), (50, 50), (600, 8, (20, 20)), 400, 100, 100),
        (2000, 500),
        5,
        None,
        3,
        8,
        (4, 50),
    ),
    "paper": Preset(
        Sizes((200, 200, 200, 200), (256, 256), (4000, 20, (25, 30)), 20_000, 100, 1000),
        (0, 0),
        0,
        1e-4,
        3,
        4,
        None,
    ),
}


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Learn conflicting dynamics one after another, and see what is left of the old ones.

    `paper` has the sizes of the paper's half-cheetah and takes the transitions of your own tasks, from the folder named
    by the environment variable HYPERCRL_DATA.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` has no data.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    chosen, own = PRESETS[preset], preset == "paper"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the target network's own values, which no learner uses
        generator = torch.Generator().manual_seed(1000 + seed)
        if own:
            tasks = own_robot(device, generator)
        else:
            tasks = cart_poles(CONFLICTING[: chosen.num_tasks], *chosen.data, generator, device)
        bench = _Bench(chosen, tasks, () if own else (2,), seed, device, progress)
        result = bench.result(
            None if own else cart_poles(COMPATIBLE[: chosen.num_tasks], *chosen.data, generator, device)
        )
    if progress is not None:
        progress(1.0, "done")
    return result


class _Bench:
    """Runs every learner on the tasks."""

    def __init__(
        self, preset: Preset, tasks: list[Task], angles: tuple[int, ...], seed: int, device: str,
        progress: Callable[[float, str], None] | None,
    ) -> None:  # fmt: skip
        self.preset, self.tasks, self.angles, self.seed, self.device = preset, tasks, angles, seed, device
        self.model = make_model(tasks, angles, preset.sizes.hidden)
        self.progress, self.done = progress, 0
        per_tuned = preset.strengths + (1 if preset.widenings else 0)
        tries = 0 if preset.rate else sum(map(len, RATES.values()))
        self.expected = len(TUNED) * (per_tuned + 1) + len(FIXED) + 2 + tries + len(PLANNED)

    def attempt(self, setting: Setting, tasks: list[Task] | None = None) -> Outcome:
        if self.progress is not None:
            self.progress(
                min(0.99, self.done / self.expected), f"{setting.learner}, strength {setting.strength:g}"
            )
        self.done += 1
        model = self.model if tasks is None else make_model(tasks, self.angles, self.preset.sizes.hidden)
        return run(setting, tasks or self.tasks, model, self.preset.sizes, self.seed, self.device)

    def learning_rate(self, learner: str) -> float:
        """Choose on the first task alone, for hypernetworks and plain networks each."""
        if self.preset.rate is not None:
            return self.preset.rate
        _, best = choose(
            RATES[learner],
            lambda rate: self.attempt(Setting(learner, rate), self.tasks[:1]),
            self.preset.widenings,
        )
        return best

    def result(self, compatible: list[Task] | None) -> dict[str, Any]:
        rates = {kind: self.learning_rate(kind) for kind in ("hypercrl", "chunked", "single")}
        plain = ("EWC", "SI", "plain fine-tuning", "one network", "plain coreset")
        rate = (
            rates
            | dict.fromkeys(plain, rates["single"])
            | dict.fromkeys(("coreset", "multitask"), rates["hypercrl"])
        )
        outcomes: dict[str, Outcome] = {}
        curve: dict[str, dict[float, Outcome]] = {}
        for learner, name, lookahead, grid in TUNED:
            setting = Setting(learner, rate[learner], lookahead=lookahead)
            tried, best = choose(
                grid[: self.preset.strengths],
                lambda strength, setting=setting: self.attempt(  # type: ignore[misc]
                    replace(setting, strength=strength), self.tasks[:2]
                ),
                self.preset.widenings,
            )
            curve[name] = tried
            outcomes[name] = self.attempt(replace(setting, strength=best))
        for learner, name in FIXED:
            outcomes[name] = self.attempt(Setting(learner, rate[learner]))
        rewards = self.rewards(outcomes)
        rows = self.rows(outcomes, rewards)
        if compatible is not None:
            easy = self.attempt(Setting("one network", rate["single"]), compatible)
            rows.append(learner_row("one network, compatible tasks", easy, None, None))
        verdict = conditions(rows)
        return {
            "claim": "One hypernetwork of fixed size learns conflicting dynamics one after another and "
            "keeps the old ones without their data, better than EWC and SI and close to learners that keep data or a "
            "network for each task.",
            "setting": self.setting(outcomes),
            "metrics": {name: told for name, told in METRICS.items() if any(name in row for row in rows)},
            "rows": rows,
            "conditions": verdict,
            "holds": all(condition["holds"] for condition in verdict),
            "curves": curves(outcomes, curve),
            "images": images(outcomes),
        }

    def rewards(self, outcomes: dict[str, Outcome]) -> dict[str, list[float]]:
        if self.preset.control is None:
            return {}
        envs, steps = self.preset.control
        found = {}
        for name in (*PLANNED, "true physics"):
            if self.progress is not None:
                self.progress(min(0.99, self.done / self.expected), f"planning: {name}")
            self.done += 1
            weights = outcomes[name].learner.weights(range(len(self.tasks))) if name in outcomes else None
            found[name] = mean_rewards(self.tasks, self.model, weights, envs, steps, self.seed, self.device)
        return found

    def rows(self, outcomes: dict[str, Outcome], rewards: dict[str, list[float]]) -> list[Row]:
        rows = []
        for name, outcome in outcomes.items():
            runs = None
            if all(task.states is not None for task in self.tasks):
                runs = run_errors(self.model, outcome.learner.weights(range(len(self.tasks))), self.tasks)
            rows.append(learner_row(name, outcome, runs, rewards.get(name)))
        rows.append({"name": "no change predicted", "role": "baseline", "error": self.no_change()})
        if rewards:
            rows.append(
                {"name": "true physics", "role": "reference", "reward": mean(rewards["true physics"])}
            )
        return rows

    def no_change(self) -> float:
        """Return the error of the most trivial model, the previous state."""
        found = []
        for task in self.tasks:
            change = task.test.next_state - task.test.state
            ratio = change.square().mean(dim=0) / change.var(dim=0, unbiased=False)
            found.append(100 * float(ratio.mean().sqrt()))
        return mean(found)

    def setting(self, outcomes: dict[str, Outcome]) -> dict[str, Any]:
        sizes, tasks = self.preset.sizes, self.tasks
        target = sum(value.numel() for value in self.model.network.parameters())
        what = (
            "cart-poles of other length, mass and motor, one motor turned round"
            if self.angles
            else "the user's tasks"
        )
        return {
            "data": f"{len(tasks)} {what}; {len(tasks[0].train)} transitions each, "
            f"{len(tasks[0].validation)} to choose by, {len(tasks[0].test)} to report",
            "model": f"target of {target} weights, {' and '.join(map(str, sizes.hidden))} hidden units; "
            "task identity and the inputs' statistics of each task are given to every learner",
            "budget": f"{sizes.iterations} updates a task in batches of {sizes.batch}, the same batches for all; "
            f"coreset of {sizes.coreset} transitions a task; strengths by validation error on the first two tasks, "
            "the grid widened at its edges; learning rates on the first task, likewise",
            "chosen": {
                name: {
                    "learning_rate": one.learner.setting.learning_rate,
                    "strength": one.learner.setting.strength,
                }
                for name, one in outcomes.items()
            },
        }
