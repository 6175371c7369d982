"""The paper's own setting on a data set of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ssorl.episodes import Episode, from_minari
from ssorl.inverse_dynamics import InverseDynamics
from ssorl.labelling import concat_transitions, label_episodes
from ssorl.reference import GroupedTD3BC
from ssorl.study import coupled_split, hide_actions, label_quality, normalised_return
from ssorl.training import fit_idm

Row = dict[str, Any]


def paper_study(
    seed: int, device: str, report: Callable[[float, str], None]
) -> tuple[list[Row], Row, list[Row]]:
    """Fit, label and learn at the paper's sizes on the Minari data set SSORL_MINARI; return rows, setting, curves."""
    name = os.environ.get("SSORL_MINARI")
    if not name:
        raise ValueError(
            "paper needs SSORL_MINARI, the id of a local Minari data set with continuous actions, such as "
            "mujoco/hopper/medium-v0"
        )
    try:
        import minari  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("the paper preset needs minari: pip install 'ssorl[minari]'") from error
    dataset = minari.load_dataset(name)
    truth = [from_minari(episode) for episode in dataset.iterate_episodes()]
    generator = torch.Generator().manual_seed(seed)
    returns = [episode.return_ for episode in truth]
    split = coupled_split(returns, 0.1, 0.5, generator)
    space = dataset.action_space
    model = InverseDynamics(
        truth[0].observations.shape[1],
        space.shape[0],
        low=space.low.tolist(),
        high=space.high.tolist(),
        generator=generator,
    ).to(device)
    given = hide_actions(truth, split.labelled)
    updates = int(os.environ.get("SSORL_UPDATES", "200000"))
    fit_idm(
        model,
        torch.optim.Adam(model.parameters(), 1e-4),
        given,
        steps=max(updates // 10, 1),
        patience=50,
        generator=generator,
        progress=lambda share, text: report(0.2 * share, text),
    )
    labelled = label_episodes(model, given)
    env = dataset.recover_environment()
    group = _agents(truth, labelled, split.labelled, space, device, seed)
    for update in range(updates):
        group.update()
        if update % 1000 == 0:
            report(0.2 + 0.7 * update / updates, "TD3+BC")
    quality = label_quality(labelled, truth)
    low, high = min(returns), max(returns)
    names = (
        "all actions known",
        "labelled episodes alone, from lowest 50 %",
        "k = 1, labelled from lowest 50 %",
    )
    rows: list[Row] = []
    for index, (arm, role) in enumerate(zip(names, ("reference", "baseline", "method"), strict=True)):
        earned = _earned(env, group, index, space, seed)
        rows.append({"name": arm, "role": role, "score": normalised_return(earned, low, high)})
    for row in rows[1:]:
        row["gap"] = 100 * (rows[0]["score"] - row["score"]) / max(abs(rows[0]["score"]), 1e-9)
    rows[2]["mse"] = quality.mse
    if quality.rank_correlation is not None:
        rows[2]["rank_correlation"] = quality.rank_correlation
    setting = {
        "data": f"{name}, {len(truth)} episodes; scores between its worst and its best return",
        "model": "inverse dynamics 1024 x 2, k = 1; TD3+BC 256 x 2",
        "budget": f"{max(updates // 10, 1)} and {updates} updates",
    }
    return rows, setting, []


def _agents(
    truth: list[Episode], labelled: Any, chosen: tuple[int, ...], space: Any, device: str, seed: int
) -> GroupedTD3BC:
    both = [concat_transitions(truth), concat_transitions(labelled)]
    low, high = (torch.as_tensor(end, dtype=torch.float32) for end in (space.low, space.high))
    actions = torch.stack(
        [2 * (torch.as_tensor(d["actions"]).float() - low) / (high - low) - 1 for d in both]
    )
    names = ("observations", "next_observations", "rewards", "terminals")
    data = {key: torch.as_tensor(both[0][key], dtype=torch.float32).to(device) for key in names}
    every = torch.arange(actions.shape[1])
    few = torch.nonzero(torch.isin(torch.as_tensor(both[0]["episode"]), torch.tensor(chosen)))[:, 0]
    generator = torch.Generator(device).manual_seed(seed)
    return GroupedTD3BC(data, actions, [0, 0, 1], [every, few, every], generator=generator)


def _earned(env: Any, group: GroupedTD3BC, index: int, space: Any, seed: int, episodes: int = 10) -> float:
    """Return the mean return of one agent."""
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 * (seed + 1) + episode)
        over = False
        while not over:
            state = torch.as_tensor(observation, dtype=torch.float32, device=group.states.device)
            unit = group.act(state.expand(group.num_agents, 1, -1))[index, 0].cpu().numpy()
            observation, reward, ended, cut, _ = env.step(
                space.low + (unit + 1) / 2 * (space.high - space.low)
            )
            total += float(reward)
            over = ended or cut
    return total / episodes
