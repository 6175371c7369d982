"""Many replicas of a policy on many replicas of a system, whole holds at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynlinucb._convert import as_count
from dynlinucb._policy import Policy
from dynlinucb.actions import FiniteActions
from dynlinucb.system import DynamicalLinearBandit, as_systems, warn_if_too_small

_BLOCK = 1024  # rounds whose noise is made in one go
_CHUNK = 32  # rounds of noise that one matrix product takes through the system; divides _BLOCK
_LONGEST_STEP = 256  # rounds of a hold played in one go at most


@dataclass(frozen=True, eq=False)
class BanditRun:
    """What `simulate` recorded of S replicas, every `record_every` rounds (R times).

    Attributes:
        choices: Index of the action played in the recorded round, (S, R) int64; the action itself, (S, R, d), from
            an `Ellipsoid`.
        rewards: Mean reward of the rounds up to the recorded one since the record before, shape (S, R).
        pseudo_regret: `sum_t (J* - <h, u_t>)` up to the recorded round, shape (S, R).
        optimal_value: J*, the average reward of the best constant action, shape (S,).
        counts: Rounds that each action was played, (S, K) int64; None for an `Ellipsoid`.
        record_every: Rounds between records.
        action_table: The actions that indices speak of, shape (K, d); None for an `Ellipsoid`.
    """

    choices: Tensor
    rewards: Tensor
    pseudo_regret: Tensor
    optimal_value: Tensor
    counts: Tensor | None
    record_every: int
    action_table: Tensor | None

    @property
    def actions_index(self) -> Tensor | None:
        """Index of the action in each recorded round, (S, R) int64; None for an `Ellipsoid`."""
        return None if self.action_table is None else self.choices

    @property
    def actions(self) -> Tensor:
        """The action in each recorded round, shape (S, R, d)."""
        return self.choices if self.action_table is None else self.action_table[self.choices]

    @property
    def rounds(self) -> Tensor:
        """The recorded rounds, counted from 1, shape (R,)."""
        return torch.arange(1, self.rewards.shape[1] + 1, device=self.rewards.device) * self.record_every

    @property
    def regret(self) -> Tensor:
        """`T J* - sum_t y_t` up to each recorded round, noise and transients included, shape (S, R)."""
        return ((self.optimal_value.unsqueeze(1) - self.rewards) * self.record_every).cumsum(1)

    def slope(self, last: float = 0.2) -> Tensor:
        """Pseudo-regret a round over the last part of the run.

        Args:
            last: Which share of the rounds, in (0, 1].

        Returns:
            Shape (S,).
        """
        if not 0 < last <= 1:
            raise ValueError(f"last must be in (0, 1], got {last}")
        records = self.pseudo_regret.shape[1]
        start = records - max(1, round(last * records))
        before = self.pseudo_regret[:, start - 1] if start else 0
        return (self.pseudo_regret[:, -1] - before) / ((records - start) * self.record_every)


def simulate(
    system: DynamicalLinearBandit | Sequence[DynamicalLinearBandit],
    policy: Policy,
    horizon: int,
    *,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    record_every: int = 1,
) -> BanditRun:
    """Let a policy play a system, all replicas in lock-step.

    Nothing is decided during a hold, so its rounds are simulated at once. The noise passes through the system
    by itself (the system is linear): its part of every reward is made ahead, in blocks, by matrix products; what
    the actions add to the rewards of k rounds and to the state after them is one matrix product. All is equal,
    up to rounding, to playing round after round.

    Memory is O(S (R d + 1024 (n + d))) beyond the policy's.

    Args:
        system: The system, or one per replica (all of the same sizes).
        policy: A `Policy`, fresh or experienced; it learns in place and can go on afterwards.
        horizon: Number of rounds to play.
        seeds: One seed per replica: replica i is then the same whoever its neighbours are.
        generator: Randomness of the noise of all replicas instead; None takes torch's global one.
        record_every: Rounds between records; must divide `horizon`.

    Returns:
        The run.

    Raises:
        TypeError: If `system` or `policy` is something else.
        ValueError: If sizes do not fit or an argument is outside its range.

    Warns:
        UserWarning: If the policy's bound on the spectral radius is below the system's.

    Examples:
        >>> from dynlinucb import DynLinUCB
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> system = DynamicalLinearBandit(0.5 * one[None], one[None], omega=one, theta=-one)
        >>> actions = torch.tensor([[-1.0], [1.0]])
        >>> policy = DynLinUCB(actions, system.bounds(actions), horizon=2000, replicas=3)
        >>> run = simulate(system, policy, 2000, seeds=[0, 1, 2], record_every=500)
        >>> run.pseudo_regret.shape
        torch.Size([3, 4])
        >>> run.counts.argmax(1)  # the action that looks worse at first and is better in the long run
        tensor([1, 1, 1])
    """
    systems, horizon = as_systems(system), as_count("horizon", horizon)
    record_every = as_count("record_every", record_every)
    _check(systems, policy, horizon, seeds, generator, record_every)
    with torch.no_grad():
        player = _Player(systems, policy)
        generators = (
            [generator] if seeds is None else [torch.Generator(policy.device).manual_seed(s) for s in seeds]
        )
        recorder = _Recorder(player, horizon, record_every)
        for start in range(0, horizon, _BLOCK):
            noise = player.noise_rewards(_normal(player, generators))
            length = min(_BLOCK, horizon - start)
            recorder.record(start, *player.play(noise[:, :length]))
        return recorder.run()


class _Player:
    """The systems, their states, and the policy.

    Systems are stacked: G of them, one for all replicas (G = 1) or one for each (G = S).
    """

    def __init__(self, systems: Sequence[DynamicalLinearBandit], policy: Policy) -> None:
        self.policy, replicas = policy, policy.num_replicas
        self.A, self.B, self.omega, self.theta = (
            torch.stack([getattr(one, name) for one in systems]).to(**policy.options)
            for name in ("A", "B", "omega", "theta")
        )
        effects = torch.stack([one.cumulative_markov() for one in systems]).to(**policy.options)
        self.effects = effects.expand(replicas, -1)
        self.state_dimension = self.A.shape[1]
        self.scales = torch.tensor(
            [[one.noise_state] * one.state_dimension + [one.noise_reward] for one in systems],
            **policy.options,
        ).unsqueeze(1)
        # The part of the state that comes from noise, and that which comes from actions, beside the action.
        self.noise_state = self.A.new_zeros(replicas, self.state_dimension)
        self.driven = self.A.new_zeros(
            len(systems), replicas // len(systems), self.state_dimension + self.B.shape[2]
        )
        self._make_noise_filter()
        self._rewards = [torch.cat([self.omega, self.theta], 1).unsqueeze(2)]
        self._moves = [self._one_round()]
        self._steps: dict[int, Tensor] = {}

    # --- noise ----------------------------------------------------------------------------------------

    def _make_noise_filter(self) -> None:
        """Matrices that take the noise of a chunk, and the state before it, to rewards and the state after it."""
        powers = [torch.eye(self.state_dimension, **self.policy.options).expand_as(self.A)]
        for _ in range(_CHUNK):
            powers.append(torch.bmm(powers[-1], self.A.mT))
        self.observe = torch.cat([torch.bmm(power, self.omega.unsqueeze(2)) for power in powers[:-1]], 2)
        shape = (len(self.A), _CHUNK, self.state_dimension, _CHUNK + self.state_dimension)
        noise_filter = self.A.new_zeros(shape)
        for i in range(_CHUNK):  # noise of round i enters the state of round i + 1
            noise_filter[:, i, :, i + 1 : _CHUNK] = self.observe[:, :, : _CHUNK - 1 - i]
            noise_filter[:, i, :, _CHUNK:] = powers[_CHUNK - 1 - i]
        self.noise_filter, self.leap = noise_filter.flatten(1, 2), powers[-1]

    def noise_rewards(self, noise: Tensor) -> Tensor:
        """What noise alone adds to the rewards of a block. noise: (S, L, n + 1), standard normal."""
        noise = noise * self.scales
        chunks = noise[:, :, :-1].unflatten(1, (-1, _CHUNK)).flatten(2)
        found = self._through(self.noise_filter, chunks)
        # The states between chunks, x_{k+1} = x_k leap + end_k, by doubling: after the step of length k every
        # entry sums 2k chunks.
        states, length, power = found[:, :, _CHUNK:].clone(), 1, self.leap
        states[:, :1] += self._through(power, self.noise_state.unsqueeze(1))
        while length < states.shape[1]:
            states[:, length:] += self._through(power, states[:, :-length])
            length, power = 2 * length, torch.bmm(power, power)
        before = torch.cat([self.noise_state.unsqueeze(1), states[:, :-1]], 1)
        self.noise_state = states[:, -1]
        through_state = found[:, :, :_CHUNK] + self._through(self.observe, before)
        return through_state.flatten(1) + noise[:, :, -1]

    def _through(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """Rows (S, m, p) of every replica times its system's matrix (G, p, q)."""
        found = torch.bmm(rows.reshape(len(matrix), -1, rows.shape[2]), matrix)
        return found.view(*rows.shape[:2], -1)

    # --- actions --------------------------------------------------------------------------------------

    def _one_round(self) -> Tensor:
        """[x | u] -> [A x + B u | u], as a matrix (G, n + d, n + d) for rows."""
        stay = torch.eye(self.B.shape[2], **self.policy.options).expand(len(self.B), -1, -1)
        to_state = torch.cat([self.A.mT, self.B.mT], 1)
        return torch.cat([to_state, torch.cat([torch.zeros_like(self.B), stay], 1)], 2)

    def _step_of(self, length: int) -> Tensor:
        """The matrix (G, n + d, length + n) from [state | action] to `length` rewards and the state after them."""
        if length not in self._steps:
            while len(self._moves) < length:
                self._rewards.append(torch.bmm(self._moves[0], self._rewards[-1]))
                self._moves.append(torch.bmm(self._moves[-1], self._moves[0]))
            reached = self._moves[length - 1][:, :, : self.state_dimension]
            self._steps[length] = torch.cat([*self._rewards[:length], reached], 2)
        return self._steps[length]

    def play(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Play a block. Returns the choices (S, L) or (S, L, d), and the rewards (S, L)."""
        policy, driven, total = self.policy, self.driven, noise.shape[1]
        state, action = driven[:, :, : self.state_dimension], driven[:, :, self.state_dimension :]
        rewards, start = torch.empty_like(noise), 0
        if isinstance(policy.actions, FiniteActions):
            choices = torch.empty(noise.shape, dtype=torch.int64, device=noise.device)
        else:
            choices = noise.new_empty(*noise.shape, policy.actions.dimension)
        while start < total:
            choice, vectors = policy.begin()
            length = min(policy.rounds_left, total - start, _LONGEST_STEP)
            end = start + length
            action.copy_(vectors.view_as(action))
            found = torch.bmm(driven, self._step_of(length))
            state.copy_(found[:, :, length:])
            earned = torch.add(
                found.flatten(0, 1)[:, :length], noise[:, start:end], out=rewards[:, start:end]
            )
            choices[:, start:end] = choice.unsqueeze(1)
            policy.observe(earned)
            start = end
        return choices, rewards


class _Recorder:
    """Sums up blocks into the records of a run."""

    def __init__(self, player: _Player, horizon: int, record_every: int) -> None:
        self.policy, self.effects, self.record_every = player.policy, player.effects, record_every
        actions = self.policy.actions
        self.optimal_value = torch.stack([actions.best(effect)[1] for effect in self.effects])
        shape = (self.policy.num_replicas, horizon // record_every)
        self.rewards, self.lost = self.effects.new_zeros(shape), self.effects.new_zeros(shape)
        self.choices: list[Tensor] = []
        self.counts: Tensor | None = None
        if isinstance(actions, FiniteActions):
            self.counts = torch.zeros(
                shape[0], actions.num_actions, dtype=torch.int64, device=self.effects.device
            )
            self.values = self.effects @ actions.table.mT

    def record(self, start: int, choices: Tensor, rewards: Tensor) -> None:
        if self.counts is not None:
            values = self.values.gather(1, choices)
            self.counts.scatter_add_(1, choices, torch.ones_like(choices))
        else:
            values = torch.bmm(choices, self.effects.unsqueeze(2)).squeeze(2)
        lost, end = self.optimal_value.unsqueeze(1) - values, start + rewards.shape[1]
        if self.record_every == 1:
            self.rewards[:, start:end], self.lost[:, start:end] = rewards, lost
        else:
            record = torch.arange(start, end, device=rewards.device).div(
                self.record_every, rounding_mode="floor"
            )
            self.rewards.index_add_(1, record, rewards)
            self.lost.index_add_(1, record, lost)
        first = -(start + 1) % self.record_every  # the first round of the block that is recorded
        self.choices.append(choices[:, first :: self.record_every])

    def run(self) -> BanditRun:
        actions = self.policy.actions
        return BanditRun(
            choices=torch.cat(self.choices, 1),
            rewards=self.rewards / self.record_every,
            pseudo_regret=self.lost.cumsum(1),
            optimal_value=self.optimal_value,
            counts=self.counts,
            record_every=self.record_every,
            action_table=actions.table if isinstance(actions, FiniteActions) else None,
        )


def _normal(player: _Player, generators: Sequence[torch.Generator | None]) -> Tensor:
    """A block of standard normal numbers, (S, _BLOCK, n + 1): always a whole one, whatever is left to play."""
    rows = player.policy.num_replicas // len(generators)
    shape, like = (rows, _BLOCK, player.state_dimension + 1), player.A
    parts = [torch.randn(shape, generator=one, dtype=like.dtype, device=like.device) for one in generators]
    return torch.cat(parts)


def _check(
    systems: Sequence[DynamicalLinearBandit],
    policy: Policy,
    horizon: int,
    seeds: Sequence[int] | None,
    generator: torch.Generator | None,
    record_every: int,
) -> None:
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a Policy, got {type(policy).__name__}")
    if len(systems) not in (1, policy.num_replicas):
        raise ValueError(
            f"system must be one or one per replica ({policy.num_replicas}), got {len(systems)} of them"
        )
    if systems[0].action_dimension != policy.actions.dimension:
        raise ValueError(
            f"policy must choose actions with {systems[0].action_dimension} components as the system's, "
            f"got {policy.actions.dimension}"
        )
    if horizon % record_every:
        raise ValueError(f"record_every must divide horizon={horizon}, got {record_every}")
    if seeds is not None and generator is not None:
        raise ValueError("seeds and generator must not both be given")
    if seeds is not None and len(seeds) != policy.num_replicas:
        raise ValueError(f"seeds must be one per replica ({policy.num_replicas}), got {len(seeds)}")
    bounds = getattr(policy, "bounds", None)
    if bounds:
        every = bounds if len(bounds) == len(systems) else [*bounds] * len(systems)
        for one, system in zip(every, [*systems] * (len(every) // len(systems)), strict=True):
            warn_if_too_small(one.spectral_radius, system.spectral_radius, stacklevel=3)
