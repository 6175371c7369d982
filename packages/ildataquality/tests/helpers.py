"""Episodes and neighbourhoods for the tests, and the loops they are held against."""

import numpy as np
import torch

from ildataquality import Neighbours


def random_episodes(seed, lengths=(6, 9, 4, 7), state_dim=3, action_dim=2):
    """Dictionaries as a user has them, float64, with rewards and terminations."""
    random = np.random.default_rng(seed)
    return [
        {
            "observations": random.normal(size=(length + 1, state_dim)),
            "actions": random.normal(size=(length, action_dim)),
            "rewards": random.normal(size=length),
            "terminations": np.arange(length) == length - 1,
        }
        for length in lengths
    ]


def brute_force(states, episode_id=None, step=None, k=None, radius=None, window=10, cross=True):
    """For every sample, the list of its neighbours: two loops, one distance at a time."""
    found = []
    for i in range(len(states)):
        near = []
        for j in range(len(states)):
            if episode_id is not None and episode_id[i] == episode_id[j]:
                if cross:
                    continue
                if window is not None and abs(step[i] - step[j]) <= window:
                    continue
            distance = float(np.sqrt(((states[i] - states[j]) ** 2).sum()))
            if radius is None or distance <= radius:
                near.append((distance, j))
        near.sort()
        found.append(near if k is None else near[:k])
    return found


def as_neighbours(lists, episode_id=None):
    """Ragged lists of numbers as the padded tensors of the package."""
    width = max(len(row) for row in lists)
    index = torch.zeros(len(lists), width, dtype=torch.int64)
    mask = torch.zeros(len(lists), width, dtype=torch.bool)
    for i, row in enumerate(lists):
        index[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return Neighbours(index, torch.where(mask, 0.0, torch.inf), mask, episode_id)


def random_lists(random, num_samples, least=2):
    """Neighbour lists of different lengths, each without repetition."""
    return [
        random.permutation(num_samples)[: random.integers(least, num_samples // 2)].tolist()
        for _ in range(num_samples)
    ]
