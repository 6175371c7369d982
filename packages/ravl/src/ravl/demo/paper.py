"""The paper's own setting: MuJoCo data of the user's, learned dynamics, N = 10, k = 5, 3 million updates."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ravl.demo.arms import Progress
from ravl.reference import GaussianEnsemble, GroupedSAC, GroupedTransitions
from ravl.rollouts import RolloutBuffer, TransitionBatch, as_batch, truncated_rollouts

KEYS = ("observations", "actions", "rewards", "next_observations", "terminals")
EPOCHS, UPDATES, ROLLOUTS, STEPS, RETAINED, BATCH, RATIO = 3000, 1000, 50_000, 5, 5, 256, 0.05


def paper(seed: int, device: str, report: Progress) -> dict[str, Any]:
    """Train base (N = 2, eta = 0) and RAVL (N = 10, eta = 1) on one data set, and evaluate them in the simulator.

    RAVL_DATASET names a safetensors file with D4RL's five arrays, RAVL_ENV the gymnasium environment
    (`HalfCheetah-v5` if unset).

    Args:
        seed: Of everything.
        device: Where models train.
        report: Called as `report(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If the file is missing or lacks an array.
    """
    data = TransitionBatch(*(part.to(device) for part in read(os.environ.get("RAVL_DATASET"))[:5]))
    name = os.environ.get("RAVL_ENV", "HalfCheetah-v5")
    generator = torch.Generator().manual_seed(seed)
    shape = data.observation.shape[1], data.action.shape[1]
    model = GaussianEnsemble(*shape, num_members=7, hidden=200, generator=generator).to(device)
    model.fit(*data[:4], num_updates=50_000, batch_size=256)
    table: list[dict[str, Any]] = []
    for label, role, critics, eta in (
        ("base, N = 2, eta = 0", "baseline", 2, 0.0),
        ("RAVL, N = 10, eta = 1", "method", 10, 1.0),
    ):
        agent = GroupedSAC(
            *shape,
            [torch.Generator().manual_seed(seed)],
            num_critics=critics,
            hidden=(256, 256, 256),
            learning_rate=3e-4,
            eta=eta,
            batch_size=BATCH,
            temperature=1.0,
            device=device,
        )
        train(agent, model, data, name, report, label)
        table.append({"name": label, "role": role, "return": evaluate(agent, name, seed, device)})
    ahead = table[1]["return"] - table[0]["return"]
    verdict = [{"says": "RAVL is above base", "figure": ahead, "needs": "> 0", "holds": ahead > 0}]
    return {
        "claim": "With learned dynamics RAVL is above an agent of two critics.",
        "setting": {
            "data": os.environ["RAVL_DATASET"],
            "model": f"7 Gaussian networks 200-200; SAC 256-256-256 for {name}",
            "budget": f"{EPOCHS * UPDATES:,} updates, k = {STEPS}, {RATIO:.0%} real data",
        },
        "metrics": {"return": {"unit": "", "better": "higher"}},
        "rows": table,
        "conditions": verdict,
        "holds": all(one["holds"] for one in verdict),
        "curves": [],
    }


def read(path: str | None) -> TransitionBatch:
    """Read D4RL's arrays from a safetensors file.

    Args:
        path: The file.

    Returns:
        All its transitions.

    Raises:
        ValueError: If there is no such file, or it lacks an array.
        ImportError: If safetensors is missing.
    """
    if not path or not os.path.isfile(path):
        raise ValueError(
            f"the paper preset needs RAVL_DATASET, a safetensors file with the arrays {', '.join(KEYS)}; got {path!r}"
        )
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("the paper preset needs the extra: pip install 'ravl[demo]'") from error
    arrays = load_file(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"RAVL_DATASET must hold {', '.join(KEYS)}; {path} lacks {missing[0]!r}, has {sorted(arrays)}"
        )
    return as_batch({key: arrays[key].float() for key in KEYS})


def unhealthy(name: str, observation: Tensor) -> Tensor:
    """Return where an episode ends, as the official code has it for Hopper and Walker2d; nowhere for others.

    Args:
        name: The environment.
        observation: `(B, S)`, height and angle first.

    Returns:
        `(B,)` bool.
    """
    height, angle = observation[:, 0], observation[:, 1]
    if name.startswith("Hopper"):
        sound = observation.isfinite().all(1) & (observation[:, 1:].abs() < 100).all(1)
        return ~(sound & (height > 0.7) & (angle.abs() < 0.2))
    if name.startswith("Walker2d"):
        return ~((height > 0.8) & (height < 2) & (angle.abs() < 1))
    return torch.zeros(len(observation), dtype=torch.bool, device=observation.device)


def train(
    agent: GroupedSAC, model: GaussianEnsemble, data: TransitionBatch, name: str, report: Progress, label: str
) -> None:
    """Alternate 50,000 rollouts and 1,000 updates, 3,000 times.

    Args:
        agent: One group.
        model: The dynamics.
        data: Real transitions.
        name: The environment.
        report: Called as `report(fraction, message)`.
        label: The message.
    """
    buffer = RolloutBuffer(ROLLOUTS * STEPS * RETAINED)
    (generator,) = agent.generators

    def policy(observation: Tensor) -> Tensor:
        return agent.act(observation[None], agent.noise(len(observation), agent.action_dim))[0]

    for epoch in range(EPOCHS):
        rows = torch.randint(len(data.reward), (ROLLOUTS,), generator=generator)
        starts = data.observation[rows.to(data.reward.device)]
        found = truncated_rollouts(
            model.step(), policy, starts, STEPS, terminated_fn=lambda state: unhealthy(name, state)
        )
        buffer.add(found, epoch * UPDATES)
        agent.train(_mixture(buffer, data, generator), UPDATES)
        report((epoch + 1) / EPOCHS, label)


def _mixture(buffer: RolloutBuffer, data: TransitionBatch, generator: torch.Generator) -> GroupedTransitions:
    """Return the buffer with real rows drawn to be a twentieth of all."""
    model = buffer.contents()
    count = int(RATIO / (1 - RATIO) * len(model))
    rows = torch.randint(len(data.reward), (count,), generator=generator).to(data.reward.device)
    parts = (model.observation, model.action, model.reward, model.next_observation, model.terminated.float())
    both = (torch.cat([ours, real[rows]]) for ours, real in zip(parts, data[:5], strict=True))
    return GroupedTransitions.stack([TransitionBatch(*both)])


def evaluate(agent: GroupedSAC, name: str, seed: int, device: str, episodes: int = 10) -> float:
    """Return the mean return of deterministic episodes.

    Args:
        agent: One group.
        name: The environment.
        seed: Of the first episode.
        device: The agent's.
        episodes: How many.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("the paper preset needs the extra: pip install 'ravl[demo]'") from error
    env = gymnasium.make(name)
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            state = torch.as_tensor(observation, dtype=torch.float32, device=device)
            observation, reward, terminated, truncated, _ = env.step(
                agent.act(state[None, None])[0, 0].cpu().numpy()
            )
            total += float(reward)
            ended = terminated or truncated
    env.close()
    return total / episodes
