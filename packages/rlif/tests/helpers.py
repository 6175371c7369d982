"""A scripted world: episodes of known lengths, a device pressed at known moments, definitions as plain loops."""

import gymnasium as gym
import numpy as np

from rlif import CallableSupervisor


class Line(gym.Env):
    """Observations count: (episode, step). Episodes end after the given lengths, in turn; odd ones by truncation."""

    observation_space = gym.spaces.Box(-1, 1e6, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lengths=(4, 3)):
        self.lengths, self.episode, self.moment, self.executed = list(lengths), -1, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.moment = self.episode + 1, 0
        return self.observation(), {}

    def observation(self):
        return np.array([self.episode, self.moment], dtype=np.float64)

    def step(self, action):
        self.executed.append(float(np.asarray(action).item()))
        self.moment += 1
        ended = self.moment >= self.lengths[self.episode % len(self.lengths)]
        truncated = ended and self.episode % 2 == 1
        return self.observation(), 7.0, ended and not truncated, truncated, {}


def pressed_at(flags):
    """A device that acts with 0.5 where `flags[(episode, step)]` is set."""

    def device(observation):
        return [0.5] if flags.get((int(observation[0]), int(observation[1])), False) else None

    return CallableSupervisor(device)


def naive_rewards(flags, dones, penalty):
    rewards = []
    for t in range(len(flags)):
        reward = 0.0
        if not dones[t] and t + 1 < len(flags) and flags[t + 1] and not flags[t]:
            reward = -penalty
        rewards.append(reward)
    return rewards


def naive_official(flags, dones):
    """Insert step t-1 once step t is decided, as the official script does: kept[t], rewards of those."""
    kept, rewards = [False] * len(flags), [0.0] * len(flags)
    start = 0
    for t in range(len(flags)):
        if t > start:
            before = flags[t - 1]
            if flags[t]:
                if not before:
                    kept[t - 1], rewards[t - 1] = True, -1.0
            else:
                kept[t - 1] = True
        if dones[t]:
            start = t + 1
    return kept, rewards


def official_protocol(fires, n_steps):
    """The flags of one episode by the official script's own bookkeeping of stop times."""
    intervene, stop, flags = False, -1, []
    for t, fire in enumerate(fires):
        if not intervene:
            intervene = fire
            if intervene:
                stop = t + n_steps
        if t == stop:
            intervene = False
        flags.append(intervene)
    return flags
