"""The step in C: what `fused.fly` and `state.initial_state` compute, by one call on the memory of the tensors.

The library is compiled when the package is installed, if there is a C compiler (`src/hatch_build.py`). Everything here
has its reference in torch, which is used where the library is missing or does not fit.
"""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flyseconds._history import traced
from flyseconds.parameters import QuadrotorParams
from flyseconds.rewards import RewardWeights
from flyseconds.state import ACTION_DIM, DISTURBANCE_DIM, MOTION_DIM, InitSpec, QuadState
from flyseconds.task import POSE_DIM, PRIVILEGED_DIM, ObservationNoise

if TYPE_CHECKING:
    from flyseconds.fused import Begun, Settings

SOURCE = Path(__file__).with_name("native.c")
LIBRARY = "_native.so"
_EULER = {"rk4": 0, "euler": 1}
_SUFFIX = {torch.float32: "float32", torch.float64: "float64"}
# Steps, observation, privileged observation, reward, terminated, truncated.
Seen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
_NOT_NAN, _STRICT = 1, 2  # 0 checks nothing


class _Flight(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in (
            "n", "history", "params_width", "weights_width", "euler", "received_is_rpm", "check", "max_steps",
        )),
        ("dt", ctypes.c_double), ("max_distance", ctypes.c_double), ("noise", ctypes.c_double * 4),
        *((name, ctypes.c_void_p) for name in (
            "motion", "disturbance", "action", "received", "params", "next_motion", "slot", "weights", "normal",
            "window", "steps", "observation", "privileged", "reward", "next_steps", "ended", "terminated", "truncated",
        )),
    )  # fmt: skip


class _Beginning(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "count", "history", "params_width")),
        ("noise", ctypes.c_double * 4),
        *((name, ctypes.c_double) for name in (
            "guidance", "max_position", "max_angle", "max_velocity", "max_omega", "action", "force_std", "torque_std",
        )),
        *((name, ctypes.c_void_p) for name in (
            "uniform", "normal", "observation_normal", "params", "vehicles", "motion", "disturbance", "window",
            "observation", "privileged", "steps",
        )),
    )  # fmt: skip


# --- the library -----------------------------------------------------------------------------------


def available() -> bool:
    """Whether the step in C was compiled when the package was installed.

    Examples:
        >>> available() in (True, False)
        True
    """
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    try:
        files = distribution("flyseconds").files or []
    except PackageNotFoundError:
        return None
    return next((_loaded(Path(str(file.locate()))) for file in files if file.name == LIBRARY), None)


def _loaded(path: Path) -> ctypes.CDLL | None:
    """The library, if it can be loaded here and was made of the present source."""
    try:
        found = ctypes.CDLL(str(path))
        found.source_checksum.restype = ctypes.c_uint32
        if found.source_checksum() != zlib.crc32(SOURCE.read_bytes()):
            return None
    except (OSError, AttributeError):
        return None
    for suffix in _SUFFIX.values():
        fly, begin = getattr(found, f"fly_{suffix}"), getattr(found, f"begin_{suffix}")
        fly.restype, begin.restype = ctypes.c_int64, None
    return found


# --- whether it fits -------------------------------------------------------------------------------


def chosen(native: bool | None, obstacle: str | None) -> bool:
    """Whether to take the step in C, as the user asks for it and if nothing stands in the way.

    Raises:
        ValueError: If it is asked for and something does.
    """
    if native and obstacle is not None:
        raise ValueError(f"native=True cannot be had: {obstacle}")
    return native is not False and obstacle is None


def obstacle(state: QuadState, action: Tensor, params: QuadrotorParams, integrator: Any) -> str | None:
    """Why the step in C cannot take these, checked as they are otherwise; None if it can."""
    motion, slots = state.motion, state.history.slots
    if traced():
        return "torch.compile, torch.func, forward differentiation and tracing see torch's operations only"
    if not isinstance(integrator, str) or integrator not in _EULER:
        return f"the integrator must be 'rk4' or 'euler', got {integrator!r}"
    if motion.dtype not in _SUFFIX or motion.device.type != "cpu":
        return f"tensors must be of float32 or float64 on the CPU, got {motion.dtype} on {motion.device}"
    tensors = motion, state.disturbance, action, slots
    if any(type(each) not in (Tensor, torch.nn.Parameter) or each.dtype != motion.dtype for each in tensors):
        return "state and action must be plain tensors of one dtype"
    n = motion.shape[1]
    shapes = motion.shape[0], *state.disturbance.shape, *slots.shape[1:]
    if shapes != (MOTION_DIM, DISTURBANCE_DIM, n, ACTION_DIM, n) or not slots.is_contiguous():
        return "the state must hold (17, B) motion, (6, B) disturbances and a history of as many vehicles"
    if torch.is_grad_enabled() and (params.is_learned or any(each.requires_grad for each in tensors)):
        return "gradients need torch's own operations"
    return None if available() else MISSING


MISSING = (
    "no library was compiled when flyseconds was installed, for want of a C compiler or because FLYSECONDS_NO_NATIVE "
    "was set: install it from source where there is one"
)


# --- one step --------------------------------------------------------------------------------------


def advanced(
    state: QuadState,
    action: Tensor,
    received: Tensor,
    params: QuadrotorParams,
    dt: float,
    integrator: str,
    received_is_rpm: bool,
) -> QuadState:
    """`simulator.advanced`, with `received` as rotor speeds or as actions of the mode `"rpm"`."""
    flight, after, _kept = _flight(state, action, received, params, dt, integrator, received_is_rpm)
    _call("fly", state.motion.dtype, flight)
    return after


def _flight(
    state: QuadState,
    action: Tensor,
    received: Tensor,
    params: QuadrotorParams,
    dt: float,
    integrator: str,
    received_is_rpm: bool,
) -> tuple[_Flight, QuadState, tuple[Tensor, ...]]:
    """What to compute, where it will be, and the tensors that must live until then."""
    motion, disturbance = state.motion.contiguous(), state.disturbance.contiguous()
    chosen = action.contiguous()
    taken = chosen if received is action else received.contiguous()
    numbers = packed_params(params)
    following = torch.empty_like(motion)
    history, flight = state.history, _Flight()
    if history.length:
        history, behind = history.reserve()
        slots = history.slots
        flight.slot = slots.data_ptr() + behind * slots.stride(0) * slots.element_size()
    flight.n, flight.params_width = motion.shape[1], numbers.shape[1]
    flight.history, flight.dt, flight.euler = history.length, dt, _EULER[integrator]
    flight.received_is_rpm = received_is_rpm
    flight.motion, flight.disturbance = motion.data_ptr(), disturbance.data_ptr()
    flight.action, flight.received = chosen.data_ptr(), taken.data_ptr()
    flight.params, flight.next_motion = numbers.data_ptr(), following.data_ptr()
    after = QuadState(following, state.disturbance, history)
    return flight, after, (motion, disturbance, chosen, taken, numbers)


def _call(name: str, dtype: torch.dtype, asked: ctypes.Structure) -> int:
    library = _library()
    assert library is not None
    return int(getattr(library, f"{name}_{_SUFFIX[dtype]}")(ctypes.byref(asked)) or 0)


def fly(
    before: QuadState,
    action: Tensor,
    received: Tensor,
    steps: Tensor,
    normal: Tensor | None,
    params: QuadrotorParams,
    weights: Tensor,
    settings: Settings,
    *,
    received_is_rpm: bool,
    strict: bool,
) -> tuple[QuadState, Seen, Tensor]:
    """`fused.fly`, with weights from `packed_weights`.

    Returns:
        The state after the step, the last fields of `fused.Flown`, and the vehicles whose episodes end.

    Raises:
        ValueError: If an action is NaN, or with `strict` outside [-1, 1].
    """
    flight, after, kept = _flight(
        before, action, received, params, settings.dt, str(settings.integrator), received_is_rpm
    )
    n, like = flight.n, after.motion
    window = after.history.window()
    observation = like.new_empty(POSE_DIM + ACTION_DIM * flight.history, n)
    privileged, reward = like.new_empty(PRIVILEGED_DIM, n), like.new_empty(n)
    counts = steps.new_empty(2, n)
    flags = torch.empty(2, n, dtype=torch.bool)
    flight.weights, flight.weights_width = weights.data_ptr(), weights.shape[1]
    flight.check = _STRICT if strict else _NOT_NAN
    flight.max_steps = -1 if settings.max_episode_steps is None else settings.max_episode_steps
    flight.max_distance, flight.window = settings.max_distance, window.data_ptr()
    if settings.noise is not None and normal is not None:
        flight.noise, flight.normal = _stds(settings.noise), normal.data_ptr()
    flight.observation, flight.privileged = observation.data_ptr(), privileged.data_ptr()
    flight.reward, flight.steps = reward.data_ptr(), steps.data_ptr()
    following, ended = counts.unbind(0)
    terminated, truncated = flags.unbind(0)
    flight.next_steps, flight.ended = following.data_ptr(), ended.data_ptr()
    flight.terminated, flight.truncated = terminated.data_ptr(), truncated.data_ptr()
    found = _call("fly", like.dtype, flight)
    del kept
    if found < 0:
        problem = "be finite and in [-1, 1] (strict)" if strict else "not be NaN"
        raise ValueError(f"action must {problem}")
    seen = following, observation.mT, privileged.mT, reward, terminated, truncated
    return after, seen, ended[:found]


def begin_(
    old: Begun,
    ended: Tensor,
    uniform: Tensor,
    normal: Tensor,
    observation_normal: Tensor | None,
    params: QuadrotorParams,
    noise: ObservationNoise | None,
    init: InitSpec,
) -> None:
    """`state.initial_state` and what is seen of it, at the places of some vehicles, in place.

    Args:
        old: All vehicles, feature-major: also what they see, (18 + 4 H, B) and (28, B).
        ended: (K,), which of them begin anew.
        uniform: (11, K), see `initial_draws`.
        normal: (9, K), likewise.
        observation_normal: (18, K), see `fused.fly`.
        params: Of all vehicles, the new ones in place.
        noise: Of the observation.
        init: The distribution.
    """
    numbers = packed_params(params)
    asked = _Beginning()
    asked.n, asked.count, asked.history = old.motion.shape[1], len(ended), len(old.window)
    asked.params_width, asked.params = numbers.shape[1], numbers.data_ptr()
    asked.guidance, asked.max_position = init.guidance, init.max_position
    asked.max_angle = min(init.max_angle, torch.pi)
    asked.max_velocity, asked.max_omega = init.max_velocity, init.max_angular_velocity
    asked.action, asked.force_std, asked.torque_std = init.action, init.force_std, init.torque_std
    if noise is not None and observation_normal is not None:
        asked.noise, asked.observation_normal = _stds(noise), observation_normal.data_ptr()
    asked.uniform, asked.normal, asked.vehicles = uniform.data_ptr(), normal.data_ptr(), ended.data_ptr()
    for name, value in zip(old._fields, old, strict=True):
        assert value.is_contiguous()
        setattr(asked, name, value.data_ptr())
    _call("begin", old.motion.dtype, asked)


def _stds(noise: ObservationNoise) -> Any:
    return (ctypes.c_double * 4)(*(float(getattr(noise, each.name)) for each in fields(noise)))


# --- numbers in one block --------------------------------------------------------------------------


@torch.no_grad()
def packed_params(params: QuadrotorParams) -> Tensor:
    """The constants of the integrator as rows (41, 1) or (41, B), computed once unless they are being learned."""
    found: Tensor | None = getattr(params, "_packed", None)
    if found is None:
        constants, count = params.computed_constants(), params.num_vehicles or 1
        falling = constants.rate_rising if constants.rate_falling is None else constants.rate_falling
        rows = (
            constants.mixing.flatten(0, 1).reshape(24, -1), constants.thrust_coefficients, constants.inverse_mass,
            constants.gravity, constants.inertia, constants.inverse_inertia, constants.rate_rising, falling,
            constants.rpm_min, constants.rpm_max,
        )  # fmt: skip
        wide = [row if row.ndim == 2 else row.reshape(1, -1) for row in rows]
        found = torch.cat([row.expand(-1, count) for row in wide]).contiguous()
        if not params.is_learned:
            object.__setattr__(params, "_packed", found)
    return found


@torch.no_grad()
def packed_weights(weights: RewardWeights, like: Tensor) -> Tensor | None:
    """The weights as rows (10, 1) or (10, B), for vehicles `like` (B,); None if they are of another kind."""
    values = [getattr(weights, each.name) for each in fields(weights)]
    rows = []
    for value in values:
        row = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else like.dtype)
        if row.dtype != like.dtype or row.device != like.device or row.shape not in ((), (1,), like.shape):
            return None
        rows.append(row.detach().reshape(1, -1))
    width = max(row.shape[1] for row in rows)
    return torch.cat([row.expand(1, width) for row in rows]).contiguous()
