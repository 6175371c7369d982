"""Learning to Fly in Seconds: a fast differentiable quadrotor simulator, and policies for it within a minute."""

from importlib.metadata import version as _version

from flyseconds.environments import QuadrotorVectorEnv
from flyseconds.export import export_c
from flyseconds.flight import Evaluation, evaluate, geometric_controller, lissajous
from flyseconds.networks import StackedMLP
from flyseconds.parameters import QuadrotorParams
from flyseconds.replay import ReplayBuffer
from flyseconds.rewards import RewardCurriculum, RewardWeights, reward, reward_from_observations
from flyseconds.simulator import dynamics, euler, rk4, rpm_command, step
from flyseconds.single import QuadrotorEnv, register
from flyseconds.state import InitSpec, QuadState, sample_initial
from flyseconds.task import ObservationNoise, VectorStep, observe, observe_privileged, out_of_bounds
from flyseconds.td3 import Batch, TD3Agent
from flyseconds.training import TrainMetrics, train

__all__ = [
    "Batch",
    "Evaluation",
    "InitSpec",
    "ObservationNoise",
    "QuadState",
    "QuadrotorEnv",
    "QuadrotorParams",
    "QuadrotorVectorEnv",
    "ReplayBuffer",
    "RewardCurriculum",
    "RewardWeights",
    "StackedMLP",
    "TD3Agent",
    "TrainMetrics",
    "VectorStep",
    "__version__",
    "dynamics",
    "euler",
    "evaluate",
    "export_c",
    "geometric_controller",
    "lissajous",
    "observe",
    "observe_privileged",
    "out_of_bounds",
    "reward",
    "reward_from_observations",
    "rk4",
    "rpm_command",
    "sample_initial",
    "step",
    "train",
]

__version__ = _version("flyseconds")

register()
