"""The training loop, as an iterator of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from flyseconds._checks import count, positive
from flyseconds.environments import QuadrotorVectorEnv
from flyseconds.parameters import QuadrotorParams
from flyseconds.replay import ReplayBuffer
from flyseconds.rewards import RewardCurriculum, RewardWeights, reward_from_observations
from flyseconds.state import ACTION_DIM
from flyseconds.task import POSE_DIM, PRIVILEGED_DIM, VectorStep
from flyseconds.td3 import TD3Agent


@dataclass(frozen=True)
class TrainMetrics:
    """How training goes, since the last report; one number per agent.

    Args:
        step: Environment steps per agent so far.
        episode_length: Mean length of the episodes that ended, in steps; 0 if none did.
        reward: Mean reward per step, under the weights of the moment.
        critic_loss: Mean temporal-difference loss; 0 before the first update.
        weights: The reward weights of each agent.
    """

    step: int
    episode_length: list[float]
    reward: list[float]
    critic_loss: list[float]
    weights: list[RewardWeights]


def train(
    env: QuadrotorVectorEnv,
    agent: TD3Agent,
    steps: int = 300_000,
    *,
    start_step: int = 0,
    curriculum: RewardCurriculum | Sequence[RewardCurriculum] | None = None,
    relabel: bool = True,
    batch_size: int = 256,
    critic_interval: int = 10,
    actor_interval: int = 20,
    critic_start: int = 15_000,
    actor_start: int = 30_000,
    noise_decay: float = 0.9,
    noise_decay_start: int = 500_000,
    noise_decay_every: int = 100_000,
    buffer: ReplayBuffer | None = None,
    report_every: int = 10_000,
    generator: torch.Generator | None = None,
) -> Iterator[TrainMetrics]:
    """Train in the simulator, as section IV of the paper does, yielding metrics on the way.

    All steps count per agent: A agents need an environment of A times as many vehicles. However many vehicles
    run in parallel, there is one update of the critics per `critic_interval` and one of the actor per
    `actor_interval` environment steps. Stop whenever you like; evaluate or save between two reports.

    Args:
        env: The vehicles, E for each agent, those of the first agent first. It is reset, and its reward weights
            are set to those of the curriculum.
        agent: Is trained in place.
        steps: Environment steps per agent, those before `start_step` included.
        start_step: Where an interrupted training goes on: schedules and curriculum start from here. Restore the
            agent and its two optimizers first, and pass the old `buffer` if there is one.
        curriculum: Of the reward weights, of all agents or one for each; the paper's if None.
        relabel: Whether to compute the rewards in the buffer anew when the weights change.
        batch_size: Transitions per update and agent.
        critic_interval: Environment steps per update of the critics.
        actor_interval: Environment steps per update of the actor, a multiple of `critic_interval`.
        critic_start: Environment steps before the first update of the critics.
        actor_start: Environment steps before the first update of the actor, not before `critic_start`.
        noise_decay: Factor on the agent's noise at and after `noise_decay_start`.
        noise_decay_start: When the noise begins to decay.
        noise_decay_every: Environment steps between decays.
        buffer: Where to keep the transitions; one that holds all of them if None.
        report_every: Environment steps between reports.
        generator: Source of the sampled batches; torch's global one if None.

    Yields:
        Metrics since the last report.

    Raises:
        TypeError: If a count is not a whole number.
        ValueError: If numbers are out of range or environment, agent, curriculum and buffer do not fit.

    Examples:
        >>> env, agent = QuadrotorVectorEnv(8), TD3Agent()
        >>> reports = train(env, agent, 400, critic_start=100, actor_start=200, report_every=200)
        >>> [report.step for report in reports]
        [200, 400]
    """
    agents = 1 if agent.num_agents is None else agent.num_agents
    if env.num_envs % agents:
        raise ValueError(f"env must have a multiple of {agents} vehicles, got {env.num_envs}")
    schedule = _Schedule(
        count("steps", steps), count("start_step", start_step, 0), count("batch_size", batch_size),
        count("critic_interval", critic_interval), count("actor_interval", actor_interval),
        count("critic_start", critic_start, 0), count("actor_start", actor_start, 0),
        positive("noise_decay", noise_decay), count("noise_decay_start", noise_decay_start, 0),
        count("noise_decay_every", noise_decay_every), count("report_every", report_every),
    )  # fmt: skip
    _check_agent(agent, env)
    curricula = _curricula(curriculum, agents)
    if buffer is None:
        buffer = _buffer(env, agent, steps - start_step)
    _check_buffer(buffer, env, agent)
    return _loop(env, agent, buffer, curricula, schedule, relabel, generator)


@dataclass(frozen=True)
class _Schedule:
    """What happens when, in environment steps per agent."""

    steps: int
    start_step: int
    batch_size: int
    critic_interval: int
    actor_interval: int
    critic_start: int
    actor_start: int
    noise_decay: float
    noise_decay_start: int
    noise_decay_every: int
    report_every: int

    def __post_init__(self) -> None:
        if self.start_step >= self.steps:
            raise ValueError(f"start_step must be before steps, got {self.start_step} and {self.steps}")
        if self.actor_interval % self.critic_interval:
            raise ValueError(
                "actor_interval must be a multiple of critic_interval, "
                f"got {self.actor_interval} and {self.critic_interval}"
            )
        if self.critic_start > self.actor_start:
            raise ValueError(
                f"actor_start must not be before critic_start, got {self.actor_start} and {self.critic_start}"
            )

    def critic_updates(self, step: int) -> int:
        """How many updates of the critics are due by `step`."""
        return max(0, (step - self.critic_start) // self.critic_interval)

    def actor_updates(self, step: int) -> int:
        """How many updates of the actor are due by `step`."""
        return max(0, (step - self.actor_start) // self.actor_interval)

    def noise_scale(self, step: int) -> float | None:
        """The factor on the agent's noise; None before it decays."""
        if step < self.noise_decay_start:
            return None
        return self.noise_decay ** ((step - self.noise_decay_start) // self.noise_decay_every + 1)


def _loop(
    env: QuadrotorVectorEnv,
    agent: TD3Agent,
    buffer: ReplayBuffer,
    curricula: list[RewardCurriculum],
    schedule: _Schedule,
    relabel: bool,
    generator: torch.Generator | None,
) -> Iterator[TrainMetrics]:
    agents = len(curricula)
    per_agent, like = env.num_envs // agents, env.params.mass
    weights: list[RewardWeights] = []
    step = schedule.start_step
    critic_updates, actor_updates = schedule.critic_updates(step), schedule.actor_updates(step)
    tally = _Tally(agents, per_agent, like)
    observation, privileged = env.reset_tensors()
    buffer.begin_episodes()
    while step < schedule.steps:
        now = [each.at(step) for each in curricula]
        if now != weights:
            weights = now
            env.reward_weights = RewardWeights.stack(weights, per_agent, like)
            if relabel and len(buffer):
                buffer.relabel(_of_vehicles(weights, env.nominal_params, per_agent))
        scale = schedule.noise_scale(step)
        agent.noise_scale = agent.noise_scale if scale is None else scale

        grouped = observation if agent.num_agents is None else observation.unflatten(0, (agents, per_agent))
        action = agent.explore(grouped)
        action = action if agent.num_agents is None else action.flatten(0, 1)
        result = env.step_tensors(action)
        buffer.add(observation, privileged, action, result)
        tally.add(result)
        observation, privileged = result.observation, result.privileged
        before, step = step, step + per_agent

        while critic_updates < schedule.critic_updates(step):
            batch = buffer.sample(schedule.batch_size, generator=generator)
            tally.add_loss(agent.update_critics(batch))
            critic_updates += 1
            if actor_updates < schedule.actor_updates(step):
                agent.update_actor(batch)
                actor_updates += 1
        if step // schedule.report_every > before // schedule.report_every or step >= schedule.steps:
            yield tally.report(step, weights)


def _of_vehicles(
    weights: list[RewardWeights], params: QuadrotorParams, per_agent: int
) -> list[RewardWeights]:
    """The weights with the action baselines that the environment gives them, one for each vehicle if need be."""
    if params.num_vehicles is None:
        return [each.for_params(params) for each in weights]
    each_vehicle = [each for each in weights for _ in range(per_agent)]
    return [
        each if each.action_baseline is not None else replace(each, action_baseline=hover)
        for each, hover in zip(each_vehicle, params.hover_action.expand(len(each_vehicle)), strict=True)
    ]


# --- what has to fit -------------------------------------------------------------------------------


def _check_agent(agent: TD3Agent, env: QuadrotorVectorEnv) -> None:
    observation_dim = POSE_DIM + ACTION_DIM * env.history_length
    if agent.actor_dim != observation_dim:
        raise ValueError(f"agent.actor_dim must be {observation_dim} here, got {agent.actor_dim}")
    if agent.critic_input == "privileged" and agent.critic_dim != PRIVILEGED_DIM:
        raise ValueError(f"agent.critic_dim must be {PRIVILEGED_DIM} here, got {agent.critic_dim}")
    if agent.action_dim != ACTION_DIM:
        raise ValueError(f"agent.action_dim must be {ACTION_DIM} here, got {agent.action_dim}")
    weight, like = agent.actor.weights[0], env.params.mass
    if (weight.dtype, weight.device) != (like.dtype, like.device):
        raise ValueError(
            f"agent must be of {like.dtype} on {like.device} as env is, got {weight.dtype} on {weight.device}"
        )


def _curricula(
    curriculum: RewardCurriculum | Sequence[RewardCurriculum] | None, agents: int
) -> list[RewardCurriculum]:
    if isinstance(curriculum, RewardCurriculum) or curriculum is None:
        return [curriculum or RewardCurriculum()] * agents
    if len(curriculum) != agents:
        raise ValueError(f"curriculum must be one or {agents}, got {len(curriculum)}")
    return list(curriculum)


def _buffer(env: QuadrotorVectorEnv, agent: TD3Agent, steps: int) -> ReplayBuffer:
    """One that holds every transition."""
    per_agent = env.num_envs // (agent.num_agents or 1)
    return ReplayBuffer(
        max(steps + per_agent, per_agent * (env.history_length + 1)),
        per_agent,
        num_agents=agent.num_agents,
        history_length=env.history_length,
        history_fill=env.init.action,
        relabel=partial(reward_from_observations, dt=env.dt),
        device=env.device,
        dtype=env.params.mass.dtype,
    )


def _check_buffer(buffer: ReplayBuffer, env: QuadrotorVectorEnv, agent: TD3Agent) -> None:
    per_agent = env.num_envs // (agent.num_agents or 1)
    if (buffer.num_agents, buffer.num_envs) != (agent.num_agents, per_agent):
        raise ValueError(
            f"buffer must be of {agent.num_agents} agents with {per_agent} vehicles, "
            f"got {buffer.num_agents} with {buffer.num_envs}"
        )
    if (buffer.history_length, buffer.history_fill) != (env.history_length, env.init.action):
        raise ValueError(
            f"buffer must have a history of {env.history_length} filled with {env.init.action}, "
            f"got {buffer.history_length} with {buffer.history_fill}"
        )


class _Tally:
    """Sums since the last report, on the device until it is asked for."""

    def __init__(self, agents: int, per_agent: int, like: Tensor) -> None:
        self._shape = (agents, per_agent)
        self._length = like.new_zeros(agents * per_agent)
        self._zero = like.new_zeros(agents)
        self._start()

    def _start(self) -> None:
        self._losses, self._rewards = self._zero.clone(), self._zero.clone()
        self._lengths, self._episodes = self._zero.clone(), self._zero.clone()
        self._steps, self._updates = 0, 0

    def add(self, result: VectorStep) -> None:
        self._length += 1
        ended = result.terminated | result.truncated
        self._rewards += self._per_agent(result.reward)
        self._lengths += self._per_agent(self._length * ended)
        self._episodes += self._per_agent(ended.to(self._length))
        self._length.masked_fill_(ended, 0)
        self._steps += self._shape[1]

    def add_loss(self, loss: Tensor) -> None:
        self._losses += loss
        self._updates += 1

    def _per_agent(self, value: Tensor) -> Tensor:
        return value.view(self._shape).sum(1)

    def report(self, step: int, weights: list[RewardWeights]) -> TrainMetrics:
        found = TrainMetrics(
            step,
            (self._lengths / self._episodes.clamp_min(1)).tolist(),
            (self._rewards / max(self._steps, 1)).tolist(),
            (self._losses / max(self._updates, 1)).tolist(),
            list(weights),
        )
        self._start()
        return found
