"""The paper's own setting: HalfCheetah in MuJoCo with a wrong simulator and a data set of Minari."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from h2orl.demo.sizes import Progress
from h2orl.transitions import Transitions

_GAPS: dict[str, dict[str, float]] = {
    "gravity x 2": {"gravity": 2.0},
    "friction x 0.3": {"friction": 0.3},
    "action noise 1": {"action_noise": 1.0},
}
_STEPS = 1_000_000


def half_cheetah(
    seed: int, device: str, report: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    """SAC in the simulator, SAC on both mixed, and H2O, a million updates each."""
    name = os.environ.get("H2ORL_MINARI")
    if not name:
        raise ValueError(
            "the environment variable H2ORL_MINARI must name a local Minari data set of HalfCheetah, such as "
            "'mujoco/halfcheetah/medium-v0' (needs 'h2orl[sb3]', minari[hdf5] and gymnasium[mujoco])"
        )
    import gymnasium
    import minari  # type: ignore[import-untyped]
    from stable_baselines3 import SAC
    from stable_baselines3.common.evaluation import evaluate_policy

    from h2orl.sb3 import H2OSAC
    from h2orl.wrappers import SimulatorGap

    real = Transitions.from_episodes(minari.load_dataset(name).iterate_episodes(), name)
    arms: dict[str, tuple[str, Any]] = {
        "SAC, simulator only": (
            "baseline",
            lambda env: SAC("MlpPolicy", env, seed=seed, device=device, batch_size=256),
        ),
        "SAC, mixed": (
            "baseline",
            lambda env: H2OSAC(
                "MlpPolicy", env, real=real, beta=0, is_weight=False, seed=seed, device=device, batch_size=256
            ),
        ),
        "H2O": (
            "method",
            lambda env: H2OSAC("MlpPolicy", env, real=real, seed=seed, device=device, batch_size=256),
        ),
    }
    rows: list[dict[str, Any]] = []
    for gap, options in _GAPS.items():
        for arm, (role, make) in arms.items():
            report(len(rows) / (len(_GAPS) * len(arms)), f"{gap}: {arm}")
            model = make(SimulatorGap(gymnasium.make("HalfCheetah-v5"), **options))  # type: ignore[arg-type]
            model.learn(_STEPS)
            mean, _ = evaluate_policy(model, gymnasium.make("HalfCheetah-v5"), n_eval_episodes=10)
            rows.append({"name": f"{gap}: {arm}", "role": role, "real_return": float(np.mean(mean))})
    setting = {
        "data": f"{name}, {len(real)} transitions; HalfCheetah-v5 with {', '.join(_GAPS)}",
        "model": "Stable-Baselines3's SAC, batches of 256",
        "budget": f"{_STEPS:,} simulated steps and updates an arm",
    }
    return rows, setting, []
