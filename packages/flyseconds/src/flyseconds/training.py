"""The training loop, as an iterator of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flyseconds.environments import QuadrotorVectorEnv, VectorStep
from flyseconds.replay import ReplayBuffer
from flyseconds.state import ACTION_DIM
from flyseconds.task import POSE_DIM, RewardCurriculum, RewardWeights
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
        env: The vehicles, E for each agent, those of the first agent first.
        agent: Is trained in place.
        steps: Environment steps per agent.
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
        ValueError: If numbers are out of range or environment, agent, curriculum and buffer do not fit.

    Example:
        >>> env, agent = QuadrotorVectorEnv(8), TD3Agent()
        >>> reports = train(env, agent, 400, critic_start=100, actor_start=200, report_every=200)
        >>> [report.step for report in reports]
        [200, 400]
    """
    agents = 1 if agent.num_agents is None else agent.num_agents
    if env.num_envs % agents:
        raise ValueError(f"env must have a multiple of {agents} vehicles, got {env.num_envs}")
    per_agent = env.num_envs // agents
    for name, value in (("steps", steps), ("batch_size", batch_size), ("report_every", report_every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if critic_interval < 1 or actor_interval % critic_interval or actor_interval < 1:
        raise ValueError(
            "actor_interval must be a multiple of critic_interval, both at least 1, "
            f"got {actor_interval} and {critic_interval}"
        )
    if not 0 <= critic_start <= actor_start:
        raise ValueError(f"actor_start must not be before critic_start, got {actor_start} and {critic_start}")
    observation_dim = POSE_DIM + ACTION_DIM * env.history_length
    if agent.actor_dim != observation_dim:
        raise ValueError(f"agent.actor_dim must be {observation_dim} here, got {agent.actor_dim}")
    if isinstance(curriculum, RewardCurriculum) or curriculum is None:
        curricula = [curriculum or RewardCurriculum()] * agents
    else:
        curricula = list(curriculum)
    if len(curricula) != agents:
        raise ValueError(f"curriculum must be one or {agents}, got {len(curricula)}")
    like = env.params.mass
    if buffer is None:
        buffer = ReplayBuffer(
            max(steps + per_agent, per_agent * (env.history_length + 1)),
            per_agent,
            num_agents=agent.num_agents,
            history_length=env.history_length,
            history_fill=env.init.action,
            device=like.device,
            dtype=like.dtype,
        )
    if (buffer.num_agents, buffer.num_envs) != (agent.num_agents, per_agent):
        raise ValueError(
            f"buffer must be of {agent.num_agents} agents with {per_agent} vehicles, "
            f"got {buffer.num_agents} with {buffer.num_envs}"
        )

    def loop() -> Iterator[TrainMetrics]:
        weights: list[RewardWeights] = []
        step, critic_updates, actor_updates, reported = 0, 0, 0, 0
        tally = _Tally(agents, per_agent, like)
        observation, privileged = env.reset_tensors()
        while step < steps:
            now = [each.at(step) for each in curricula]
            if now != weights:
                weights = now
                env.reward_weights = RewardWeights.stack(weights, per_agent, like)
                if relabel and step:
                    buffer.relabel(weights)
            if step >= noise_decay_start:
                agent.noise_scale = noise_decay ** ((step - noise_decay_start) // noise_decay_every + 1)

            grouped = (
                observation if agent.num_agents is None else observation.unflatten(0, (agents, per_agent))
            )
            action = agent.explore(grouped)
            action = action if agent.num_agents is None else action.flatten(0, 1)
            result = env.step_tensors(action)
            buffer.add(observation, privileged, action, result)
            tally.add(result)
            observation, privileged = result.observation, result.privileged
            step += per_agent

            while (critic_updates + 1) * critic_interval <= step - critic_start:
                batch = buffer.sample(batch_size, generator=generator)
                tally.losses += agent.update_critics(batch)
                critic_updates += 1
                if (actor_updates + 1) * actor_interval <= step - actor_start:
                    agent.update_actor(batch)
                    actor_updates += 1
            tally.updates = critic_updates
            if step // report_every > reported or step >= steps:
                reported = step // report_every
                yield tally.report(step, weights)

    return loop()


class _Tally:
    """Sums since the last report, on the device until it is asked for."""

    def __init__(self, agents: int, per_agent: int, like: Tensor) -> None:
        self._shape = (agents, per_agent)
        self._length = like.new_zeros(agents * per_agent)
        self._zero = like.new_zeros(agents)
        self.updates = 0
        self._start()

    def _start(self) -> None:
        self.losses, self._rewards = self._zero.clone(), self._zero.clone()
        self._lengths, self._episodes = self._zero.clone(), self._zero.clone()
        self._steps, self._updates_before = 0, self.updates

    def add(self, result: VectorStep) -> None:
        self._length += 1
        ended = result.terminated | result.truncated
        self._rewards += self._per_agent(result.reward)
        self._lengths += self._per_agent(self._length * ended)
        self._episodes += self._per_agent(ended.to(self._length))
        self._length.masked_fill_(ended, 0)
        self._steps += self._shape[1]

    def _per_agent(self, value: Tensor) -> Tensor:
        return value.view(self._shape).sum(1)

    def report(self, step: int, weights: list[RewardWeights]) -> TrainMetrics:
        updates = max(self.updates - self._updates_before, 1)
        found = TrainMetrics(
            step,
            (self._lengths / self._episodes.clamp_min(1)).tolist(),
            (self._rewards / max(self._steps, 1)).tolist(),
            (self.losses / updates).tolist(),
            list(weights),
        )
        self._start()
        return found
