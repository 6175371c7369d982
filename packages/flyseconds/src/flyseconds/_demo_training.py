"""What the demo trains: the recipe and its ablations, stacked, and evaluated alike."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flyseconds.environments import QuadrotorVectorEnv
from flyseconds.flight import Evaluation, evaluate, geometric_controller, lissajous
from flyseconds.parameters import QuadrotorParams
from flyseconds.state import ACTION_DIM, HISTORY_LENGTH, InitSpec
from flyseconds.task import (
    POSE_DIM,
    PRIVILEGED_DIM,
    ObservationNoise,
    RewardCurriculum,
    RewardWeights,
)
from flyseconds.td3 import TD3Agent
from flyseconds.training import train

Progress = Callable[[float, str], None]
EPISODE_STEPS, LAST_STEPS = 500, 200
TRACKING_BOUND = 2.0  # m; a vehicle further than this from the figure eight has lost it


@dataclass(frozen=True)
class Size:
    """The budget of every variant."""

    steps: int
    num_envs: int
    seeds: int
    starts: tuple[int, int]  # of the critics and of the actor, in environment steps
    report_every: int
    episodes: int  # per evaluation during training; four times as many at the end
    episode_steps: int = EPISODE_STEPS
    tracking_steps: int = 1100  # two rounds of the figure eight
    two_processes: bool = True


SIZES = {
    "smoke": Size(2_000, 16, 1, (500, 1_000), 1_000, 4, 60, 60, two_processes=False),
    "laptop": Size(300_000, 64, 1, (15_000, 30_000), 25_000, 50),
    "paper": Size(300_000, 1, 10, (15_000, 30_000), 25_000, 100),
}


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the whole recipe.

    Variants that differ only in `history` and `curriculum` are trained in one stack.
    """

    name: str
    role: str = "baseline"
    history: bool = True
    curriculum: RewardCurriculum = field(default_factory=RewardCurriculum)
    symmetric: bool = False
    relabel: bool = True
    noise_decay: float = 0.9
    noise: ObservationNoise | None = field(default_factory=ObservationNoise)
    init: InitSpec = field(default_factory=InitSpec)
    motor_delay: bool = True

    @property
    def group(self) -> tuple[object, ...]:
        """What all variants of one stack have in common."""
        return self.symmetric, self.relabel, self.noise_decay, self.noise, self.init, self.motor_delay


FULL = "full recipe"

MAIN_VARIANTS = (
    Variant(FULL, "method"),
    Variant("no action history", history=False),
    Variant("no curriculum", curriculum=RewardCurriculum.constant(RewardWeights.target())),
    Variant("symmetric critic", symmetric=True),
)
ALL_ABLATIONS = (
    *MAIN_VARIANTS,
    Variant("initial reward only", "ablation", curriculum=RewardCurriculum.constant(RewardWeights.initial())),
    Variant("rewards not relabelled", "ablation", relabel=False),
    Variant("no disturbance", "ablation", init=InitSpec(force_std=0.0, torque_std=0.0)),
    Variant("no observation noise", "ablation", noise=None),
    Variant("no motor delay", "ablation", motor_delay=False),
    Variant("no guidance", "ablation", init=InitSpec(guidance=0.0)),
    Variant("no noise decay", "ablation", noise_decay=1.0),
)


@dataclass
class Trained:
    """One variant: its course and its end, over all seeds."""

    variant: Variant
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flight_time: list[float] = field(default_factory=list)
    episode_return: list[float] = field(default_factory=list)
    survival: list[float] = field(default_factory=list)
    hover: dict[str, float] = field(default_factory=dict)
    tracking_error: float = 0.0
    distances: list[list[float]] = field(default_factory=list)  # of some last episodes, by step
    figure_eight: Evaluation | None = None


def train_variants(
    variants: Sequence[Variant], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """Train every variant on every seed with the same budget, and evaluate all in the same world.

    Stacks are too small to keep two cores busy with one of them: where `size.two_processes` says so, all but
    the first are trained in a second process meanwhile.
    """
    groups: dict[tuple[object, ...], list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.group, []).append(variant)
    first, *others = groups.values()
    if size.two_processes and others:
        with _Elsewhere(others, size, seed, device) as elsewhere:
            found = _train_group(first, size, seed, device, progress)
            found += elsewhere.result()
    else:
        found = _train_groups([first, *others], size, seed, device, progress)
    order = [variant.name for variant in variants]
    return sorted(found, key=lambda trained: order.index(trained.variant.name))


def _train_groups(
    groups: Sequence[list[Variant]], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """One stack after the other."""
    found: list[Trained] = []
    total = sum(map(len, groups))
    for members in groups:
        start, share = len(found) / total, len(members) / total

        def report(fraction: float, message: str, start: float = start, share: float = share) -> None:
            progress(start + share * fraction, message)

        found += _train_group(members, size, seed, device, report)
    return found


class _Elsewhere:
    """Stacks in training in a second process; each process has half the threads meanwhile.

    A plain child that reads its task and writes its result: multiprocessing would import the caller's main
    script once more.
    """

    def __init__(self, groups: Sequence[list[Variant]], size: Size, seed: int, device: str) -> None:
        self._threads = torch.get_num_threads()
        half = max(1, self._threads // 2)
        self._task = _packed((groups, size, seed, device, half))
        self._half = half

    def __enter__(self) -> _Elsewhere:
        torch.set_num_threads(self._half)
        command = [sys.executable, "-c", "from flyseconds._demo_training import _work; _work()"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdin is not None
        self._child.stdin.write(self._task)
        self._child.stdin.close()
        return self

    def result(self) -> list[Trained]:
        """Wait for the second process; its traceback, if any, has gone to standard error."""
        assert self._child.stdout is not None
        written = self._child.stdout.read()
        if self._child.wait():
            raise RuntimeError(f"the second process ended with exit status {self._child.returncode}")
        found: list[Trained] = _unpacked(written)
        return found

    def __exit__(self, *exception: Any) -> None:
        torch.set_num_threads(self._threads)
        self._child.kill()
        self._child.__exit__(*exception)  # closes the pipes and waits


def _work() -> None:
    """What the second process does."""
    groups, size, seed, device, threads = _unpacked(sys.stdin.buffer.read())
    torch.set_num_threads(threads)
    found = _train_groups(groups, size, seed, device, lambda fraction, message: None)
    sys.stdout.buffer.write(_packed(found))


def _packed(value: object) -> bytes:
    """What goes from one of the two processes to the other; nothing of it is kept."""
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def _unpacked(written: bytes) -> Any:
    return torch.load(
        io.BytesIO(written), weights_only=False
    )  # written by this process's own child or parent


def _train_group(
    members: list[Variant], size: Size, seed: int, device: str, progress: Progress
) -> list[Trained]:
    """Train a stack: all seeds of the first variant, then of the second, ..."""
    common = members[0]
    world = QuadrotorParams.crazyflie_paper(device=device)
    # Without delay the rotors follow within one step; the integrator needs a lag of some kind.
    lag = world.motor_time_constant if common.motor_delay else torch.full_like(world.mass, 0.005)
    agents = len(members) * size.seeds
    generator = torch.Generator(device).manual_seed(seed)
    env = QuadrotorVectorEnv(
        size.num_envs * agents,
        params=replace(world, motor_time_constant=lag),
        init=common.init,
        noise=common.noise,
        max_episode_steps=EPISODE_STEPS,
        generator=generator,
    )
    actor_dim = POSE_DIM + ACTION_DIM * HISTORY_LENGTH
    visible = torch.ones(agents, actor_dim, dtype=torch.bool, device=device)
    for index, variant in enumerate(members):
        if not variant.history:
            visible[index * size.seeds : (index + 1) * size.seeds, POSE_DIM:] = False
    agent = TD3Agent(
        actor_dim,
        actor_dim if common.symmetric else PRIVILEGED_DIM,
        num_agents=agents,
        critic_input="observation" if common.symmetric else "privileged",
        visible=None if bool(visible.all()) else visible,
        generator=generator,
        device=device,
    )
    found = [Trained(variant) for variant in members]
    label = " + ".join(variant.name for variant in members)
    trained_for, began = 0.0, time.perf_counter()
    for report in train(
        env,
        agent,
        size.steps,
        curriculum=[variant.curriculum for variant in members for _ in range(size.seeds)],
        relabel=common.relabel,
        critic_start=size.starts[0],
        actor_start=size.starts[1],
        noise_decay=common.noise_decay,
        report_every=size.report_every,
        generator=generator,
    ):
        trained_for += time.perf_counter() - began
        episodes = _evaluate_stack(agent, world, size.episodes, size.episode_steps, seed)
        for trained, part in zip(found, _means(episodes, len(members)), strict=True):
            trained.steps.append(report.step)
            trained.seconds.append(trained_for)
            trained.flight_time.append(0.01 * part["length"])
            trained.episode_return.append(part["episode_return"])
            trained.survival.append(100 * part["survived"])
        progress(0.95 * report.step / size.steps, f"{label}: {report.step:,} steps".replace(",", " "))
        began = time.perf_counter()

    final = _evaluate_stack(agent, world, 4 * size.episodes, size.episode_steps, seed + 1)
    per_variant = final.survived.numel() // len(members)
    for index, trained in enumerate(found):
        trained.hover = _means(final, len(members))[index]
        some = final.positions[:, index * per_variant : index * per_variant + 6].norm(dim=-1)
        trained.distances = some.T.tolist()
        policies = [agent.policy(index * size.seeds + number).to(device) for number in range(size.seeds)]
        tracked = [track(policy, world, size, seed) for policy in policies]
        trained.figure_eight = tracked[0]
        trained.tracking_error = sum(each.summary()["position_error"] for each in tracked) / size.seeds
    return found


def _evaluate_stack(
    agent: TD3Agent, world: QuadrotorParams, episodes: int, steps: int, seed: int
) -> Evaluation:
    """All agents at once, `episodes` for each; every evaluation of a seed meets the same initial states."""
    agents = agent.num_agents or 1

    def policy(observation: Tensor) -> Tensor:
        return agent.act(observation.unflatten(0, (agents, episodes))).flatten(0, 1)

    return evaluate(
        policy,
        world,
        num_episodes=agents * episodes,
        num_steps=steps,
        last_steps=min(LAST_STEPS, steps),
        generator=torch.Generator(world.mass.device).manual_seed(10_000 + seed),
    )


def _means(episodes: Evaluation, parts: int) -> list[dict[str, float]]:
    names = episodes.summary()
    columns = {name: getattr(episodes, name).float().view(parts, -1).mean(1).tolist() for name in names}
    return [{name: column[index] for name, column in columns.items()} for index in range(parts)]


def track(policy: nn.Module, world: QuadrotorParams, size: Size, seed: int) -> Evaluation:
    """Fly the figure eight twice, from near its start and at its speed; the second round counts."""
    return evaluate(
        policy,
        world,
        num_episodes=size.episodes,
        num_steps=size.tracking_steps,
        last_steps=size.tracking_steps // 2,
        reference=lissajous,
        max_distance=TRACKING_BOUND,
        generator=torch.Generator(world.mass.device).manual_seed(20_000 + seed),
    )


def classical(size: Size, seed: int, device: str) -> Trained:
    """The geometric controller with perfect knowledge, in the same evaluations."""
    world = QuadrotorParams.crazyflie_paper(device=device)
    trained = Trained(Variant("geometric controller, perfect knowledge", "reference"))
    runs = []
    for steps, last, reference, bound, offset in (
        (size.episode_steps, min(LAST_STEPS, size.episode_steps), None, 0.6, 10_001),
        (size.tracking_steps, size.tracking_steps // 2, lissajous, TRACKING_BOUND, 20_000),
    ):
        runs.append(
            evaluate(
                lambda state: geometric_controller(state, world),
                world,
                num_episodes=4 * size.episodes if reference is None else size.episodes,
                num_steps=steps,
                last_steps=last,
                reference=reference,
                max_distance=bound,
                inputs=lambda state: state,
                generator=torch.Generator(device).manual_seed(offset + seed),
            )
        )
    trained.hover = runs[0].summary()
    trained.distances = runs[0].positions[:, :6].norm(dim=-1).T.tolist()
    trained.figure_eight = runs[1]
    trained.tracking_error = runs[1].summary()["position_error"]
    return trained
