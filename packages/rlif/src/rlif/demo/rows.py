"""The table: the exact study, then what every learner does alone when training is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlif.demo.experts import Judge, Policy, rollout
from rlif.demo.grid import LEVELS, ExactRow
from rlif.demo.learners import Arm, Learned
from rlif.demo.rivals import EXPERTS, OPTIONS, Rival
from rlif.demo.setting import Sizes

Row = dict[str, Any]

METRICS = {
    "exact_value": {"unit": "%", "better": "higher"},
    "normalised_return": {"unit": "%", "better": "higher"},
    "judged_bad": {"unit": "%", "better": "lower"},
    "supervised": {"unit": "%", "better": "lower"},
    "supervised_late": {"unit": "%", "better": "lower"},
}
ROLES = {"RLIF": "method", "expert (DAgger's fixed point)": "baseline", "HG-DAgger": "baseline"}


def exact_rows(found: Sequence[ExactRow]) -> list[Row]:
    """Build the rows of the exact study."""
    return [
        {
            "name": f"exact, {expert_name(row)}: {method}",
            "role": ROLES.get(method, "ablation"),
            "exact_value": 100 * value,
        }
        for row in found
        if row.level in (LEVELS[0], LEVELS[2], LEVELS[-1])
        for method, value in row.values.items()
    ]


def expert_name(row: ExactRow) -> str:
    """An expert of the exact study in words."""
    return f"{'mistaken' if row.mistaken else 'noisy'} expert at {100 * row.level:.0f} %"


class Measure:
    """Measures policies on the same test episodes: the return, and how much of it the supervisor would object to."""

    def __init__(self, make: Any, judge: Judge, sizes: Sizes, seed: int, device: str) -> None:
        self.make, self.judge, self.sizes = make, judge, sizes
        self.seed, self.device = seed, device

    def __call__(self, policy: Policy) -> Row:
        """Give a policy's normalised return and its share of bad actions by the gap rule, without chance."""
        episodes = self.sizes.evaluations
        task = self.make(episodes, torch.Generator(self.device).manual_seed(self.seed + 500))
        returns, seen = rollout(task, policy, episodes)
        states = seen.flatten(0, 1)
        return {
            "normalised_return": self.judge.normalised(float(returns.mean())),
            "judged_bad": 100 * float(self._bad(states, policy).float().mean()),
        }

    def _bad(self, states: Tensor, policy: Policy) -> Tensor:
        reference = self.judge.q(states, self.judge.reference(states)).amin(0)
        return self.judge.q(states, policy(states)).amin(0) < reference - self.judge.delta


def deep_rows(
    measure: Measure, judge: Judge, learned: dict[Arm, Learned], rivals: dict[Rival, Policy], action_size: int
) -> list[Row]:
    """Build the rows of the deep study."""

    def still(observation: Tensor) -> Tensor:
        return observation.new_zeros(len(observation), action_size)

    rows = [
        {"name": "reference agent (judges)", "role": "reference", **measure(judge.reference)},
        {"name": "no torque", "role": "baseline", **measure(still)},
    ]
    for name in EXPERTS:
        if name != "good":
            rows.append({"name": f"{name} expert", "role": "baseline", **measure(judge.experts[name])})
    for method in OPTIONS:
        for name in EXPERTS:
            (kept,) = (rival for rival in rivals if (rival.method, rival.expert) == (method, name))
            rows.append({"name": f"{method}, {name} expert", "role": "baseline", **measure(rivals[kept])})
    for arm, outcome in learned.items():
        role = "method" if (arm.kind, arm.store) == ("gap", "official") else "ablation"
        rates = outcome.supervised
        shares = {"supervised": sum(rates) / len(rates), "supervised_late": rates[-1]}
        rows.append({"name": arm.name, "role": role, **measure(outcome.policy), **shares})
    return rows
