"""Episodes of a known linear system, and naive loops that say what the package must give."""

import numpy as np

from ssorl import Episode


def linear_episodes(
    lengths=(9, 4, 13, 1, 7), *, obs_dim=3, act_dim=2, seed=0, hidden=(), noise=0.0, offset=0.0
):
    """s' = A s + B a (+ noise), B of full column rank; episodes in `hidden` lack their actions."""
    rng = np.random.default_rng(seed)
    a_matrix = 0.8 * np.linalg.qr(rng.normal(size=(obs_dim, obs_dim)))[0]
    b_matrix = rng.normal(size=(obs_dim, act_dim))
    found = []
    for index, length in enumerate(lengths):
        actions = rng.uniform(-0.95, 0.95, (length, act_dim))
        states = [rng.normal(size=obs_dim)]
        for action in actions:
            states.append(a_matrix @ states[-1] + b_matrix @ action + noise * rng.normal(size=obs_dim))
        found.append(
            Episode(
                np.array(states) + offset,
                rng.normal(size=length),
                terminals=index % 2 == 0,
                actions=None if index in hidden else actions,
                id=f"log-{index}",
            )
        )
    return found


def naive_windows(episodes, k, pad="edge", parity=False):
    """One window after the other; the official slicing where `parity` says so."""
    found, index = [], []
    for number, episode in enumerate(episodes):
        after = episode.observations if episode.next_observations is None else episode.next_observations
        for step in range(len(episode)):
            if parity and k >= 1:
                part = episode.observations[max(0, step - k) : min(len(episode), step + 2)]
                zeros = np.zeros((k + 2 - len(part), episode.observations.shape[1]))
                rows = np.concatenate([zeros, part])
            else:
                first = episode.observations[0] if pad == "edge" else 0 * episode.observations[0]
                rows = [episode.observations[t] if t >= 0 else first for t in range(step - k, step + 1)]
                rows = np.array([*rows, after[step]])
            found.append(rows)
            index.append((number, step))
    return np.array(found), np.array(index)
