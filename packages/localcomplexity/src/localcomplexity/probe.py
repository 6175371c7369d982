"""The probe: local complexity of a model at given points, through hooks that come and go with each call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localcomplexity._first_layer import FirstLayer, shortcut
from localcomplexity._functional import warning_of_functions
from localcomplexity._modes import bare, undisturbed
from localcomplexity._reader import EnoughRead, Reader, crossings
from localcomplexity._sites import Layers, find_sites
from localcomplexity.vertices import (
    Frame,
    check_directions,
    check_neighbourhood,
    check_points,
    draw_directions,
    spread,
)

# A pass of this many vertices keeps a layer's output in a CPU's cache; an accelerator wants larger ones.
_VERTICES_PER_PASS = {"cpu": 2560}
_VERTICES_PER_PASS_ELSEWHERE = 32_768


def sign_crossings(
    z: Tensor, num_vertices: int, *, kink: float = 0.0, zero_as_state: bool = False
) -> tuple[Tensor, Tensor]:
    """Count the neurons whose pre-activation changes sign between the vertices of a point.

    Neuron j counts iff min_v z_j(v) < kink <= max_v z_j(v): its boundary {x : z_j(x) = kink} separates two vertices.
    In the first layer that is exactly when it meets their convex hull; in deeper ones it is a lower bound.

    Args:
        z: (B * V, ...) pre-activations at the vertices of `cross_polytope`, flattened.
        num_vertices: V.
        kink: Where the activation bends.
        zero_as_state: Count by sign(z - kink) with its three values, as the paper's code does, so that a
            pre-activation of exactly zero differs from both sides.

    Returns:
        count: (B,) integers.
        fraction: (B,) of the neurons.

    Raises:
        ValueError: If `num_vertices` does not divide the first axis.

    Examples:
        >>> z = torch.tensor([[1.0, -1.0, 3.0], [2.0, 1.0, 3.0]])  # one point, two vertices, three neurons
        >>> sign_crossings(z, 2)[0]
        tensor([1])
    """
    if num_vertices < 1 or z.dim() < 2 or len(z) == 0 or len(z) % num_vertices:
        raise ValueError(
            f"z must be (B * num_vertices, ...) with num_vertices = {num_vertices}, got shape {tuple(z.shape)}"
        )
    grouped = z.unflatten(0, (-1, num_vertices)).flatten(2)
    count = crossings(grouped.amin(1), grouped.amax(1), (kink,), zero_as_state).sum(1)
    return count, count.to(torch.promote_types(z.dtype, torch.float32)) / grouped.shape[2]


@dataclass(frozen=True, eq=False)
class Complexity:
    """Local complexity at B points.

    Attributes:
        per_layer: (B, L) integers: neurons of each layer whose boundary separates two vertices.
        names: The L layers in the order of the forward pass; a module's k-th use is "name #k".
        num_neurons: Neurons of each layer, times the kinks of its activation if there are several.
    """

    per_layer: Tensor
    names: tuple[str, ...]
    num_neurons: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        """(B,) the count over all layers."""
        return self.per_layer.sum(1)

    def mean(self) -> Tensor:
        """Scalar: the count over all layers, averaged over the points. The number to log."""
        return self.layer_means().sum()

    def layer_means(self) -> Tensor:
        """(L,) the counts averaged over the points."""
        return self.per_layer.to(torch.float32).mean(0)

    def fraction(self) -> Tensor:
        """(B, L) counts over numbers of neurons: what to compare between layers of different sizes."""
        return self.per_layer / self.per_layer.new_tensor(self.num_neurons)


class LocalComplexity:
    """Measures the local complexity of a model: how many of its linear regions meet near given points.

    Around each point lies a small cross-polytope; its vertices go through the model, and every neuron whose
    pre-activation changes sign between two of them counts (arXiv 2402.15555, section 3). No labels and no loss are
    needed. Nothing stays on the model between calls, and a call leaves its modes, gradients, buffers and
    the state of the random number generators as they were.

    The directions are the same at every call, since redrawing them adds noise as large as late effects. Cost of a
    call: one forward pass over 2 P B vertices as far as the last hooked layer, where the first linear layer sees
    only B + P rows. Memory: 2 P `chunk_size` times the largest layer, and with `frame="per_point"` the kept
    directions, P B D for every B that is probed.

    Args:
        model: Any module that takes one tensor (B, *shape) and keeps the batch as the first axis of what is read.
            Build the probe after the model's layers; parameters are read anew at each call.
        layers: What to read. By default the input of every activation module: torch's own (ReLU, GELU, Tanh, ...) at
            all their kinks, and leaves of other libraries whose class is called like one (`GELUActivation`,
            `QuickGELU`) at zero. Or: a list of names or modules, a regular expression that matches whole names, or
            a class. Activation modules are read at their input, others at their output; a tuple means the sum of
            its members (a residual branch and its skip). Functional activations are invisible, and the default
            warns of them at the first call: name the layers before them.
        num_directions: P; a cross-polytope has 2 P vertices.
        radius: r, in units of the model's input; small against the distance between neighbouring points.
        frame: `"shared"`, `"per_point"` or `"gaussian"`, see `cross_polytope`.
        directions: (P, D) or (P, *shape) directions of your own, made unit vectors.
        center: Whether the point itself is a further vertex.
        count_maxpool: Also count the outputs of max-pools whose choice changes between vertices.
        zero_as_state: See `sign_crossings`.
        chunk_size: Points per forward pass; by default about 2,560 vertices on a CPU and 32,768 elsewhere.
        generator: Source of the seed of the directions. If None, it is made from `torch.initial_seed()`, which
            follows `torch.manual_seed` without advancing the global state.

    Raises:
        ValueError: If the model has no such layer, or an argument is out of range.
        TypeError: If the model is not a module.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> probe = LocalComplexity(model, num_directions=2, radius=0.1)
        >>> complexity = probe(torch.rand(100, 2))
        >>> complexity.per_layer.shape, complexity.names, complexity.num_neurons
        (torch.Size([100, 1]), ('1',), (3,))
        >>> bool(0 <= complexity.mean() <= 3)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers | None = None,
        *,
        num_directions: int = 20,
        radius: float = 0.005,
        frame: Frame = "shared",
        directions: Tensor | None = None,
        center: bool = False,
        count_maxpool: bool = False,
        zero_as_state: bool = False,
        chunk_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_neighbourhood(radius, frame)
        for name, size in (("num_directions", num_directions), ("chunk_size", chunk_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.model = bare(model)
        self.radius = radius
        self.frame = frame
        self.num_directions = num_directions if directions is None else len(directions)
        self.center = center
        self.zero_as_state = zero_as_state
        self.chunk_size = chunk_size
        self.directions = directions
        self.seed = _seed(generator)
        self._sites = find_sites(self.model, layers, count_maxpool)
        self._watches_functions = layers is None
        self._drawn: dict[tuple[int, ...], Tensor] = {}
        self._plans: dict[torch.Size, _Plan] = {}

    def __call__(self, x: Tensor) -> Complexity:
        """The same as `measure`."""
        return self.measure(x)

    def measure(self, x: Tensor) -> Complexity:
        """Count at the points `x`.

        Runs in evaluation mode without gradients and without autocast; half-precision points and parameters are
        copied to float32 for the time of the call, since the signs of small numbers are what is counted.

        Args:
            x: (B, *shape) points, on the model's device.

        Returns:
            The counts, on the device of `x`.

        Raises:
            ValueError: If `x` is empty or so large that `radius` is lost in its rounding, a named layer is not
                reached, a layer's output is not finite or does not have the batch as its first axis, or P exceeds
                the dimension of an orthonormal frame.
            TypeError: If `x` is not floating.
        """
        check_points(x)
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        _check_resolved(self.radius, x)
        with _exactly(self.model, x.device):
            offsets = self.radius * self._directions_for(x)
            single = _single_precision(self.model)
            if x.shape[1:] not in self._plans:
                self._plans[x.shape[1:]] = self._plan(x[:1], offsets[:, :1], single)
            plan = self._plans[x.shape[1:]]
            size = self.chunk_size or self._default_chunk(x.device)
            counts = [
                self._count(x[start : start + size], _columns(offsets, start, size), plan, single)
                for start in range(0, len(x), size)
            ]
        return Complexity(torch.cat(counts), plan.names, plan.num_neurons)

    def state_dict(self) -> dict[str, Tensor]:
        """What fixes the neighbourhoods: the seed of the directions, or the directions given."""
        if self.directions is not None:
            return {"directions": self.directions}
        return {"seed": torch.tensor(self.seed)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Probe the neighbourhoods of another probe, given its `state_dict`."""
        self.directions = state.get("directions")
        if self.directions is None:
            self.seed = int(state["seed"])
        else:
            self.num_directions = len(self.directions)
        self._drawn.clear()

    @property
    def _num_vertices(self) -> int:
        return 2 * self.num_directions + self.center

    def _default_chunk(self, device: torch.device) -> int:
        vertices = _VERTICES_PER_PASS.get(device.type, _VERTICES_PER_PASS_ELSEWHERE)
        return max(vertices // self._num_vertices, 1)

    def _directions_for(self, x: Tensor) -> Tensor:
        """The directions (P, 1 or B, *shape) for points like `x`."""
        if self.directions is not None:
            return check_directions(self.directions, x)
        key = (len(x) if self.frame == "per_point" else 1, *x.shape[1:])
        if key not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            self._drawn[key] = draw_directions(x, self.num_directions, self.frame, generator)
        self._drawn[key] = self._drawn[key].to(x)
        return self._drawn[key]

    def _plan(self, x: Tensor, offsets: Tensor, single: dict[str, Tensor]) -> _Plan:
        """Try the model on one point: what there is to read, and whether the shortcut reads the same."""
        vertices = spread(x, offsets, self.center).flatten(0, 1)
        reader = self._reader(len(x), stop_after=None)
        first = FirstLayer(self.model, vertices)
        activations = [module for site in self._sites for module in site.modules]
        watch = warning_of_functions(activations) if self._watches_functions else nullcontext()
        with first.watched(), watch:
            self._run(reader, vertices, single)
        self._check_reached(reader.names)
        _check_finite(reader)
        plan = _Plan(tuple(reader.names), tuple(reader.num_neurons), first.module, first.input_shape)
        if plan.first is None:
            return plan
        quick = self._reader(len(x), stop_after=None)
        with shortcut(plan.first, plan.input_shape, x, offsets, self.center) as nothing:
            self._run(quick, nothing, single)
        same = quick.names == reader.names and all(map(_close, quick.extremes, reader.extremes))
        return plan if same else plan._replace(first=None)

    def _count(self, x: Tensor, offsets: Tensor, plan: _Plan, single: dict[str, Tensor]) -> Tensor:
        """The counts (B, L) of one chunk."""
        if plan.first is not None:
            reader = self._reader(len(x), stop_after=len(plan.names))
            with shortcut(plan.first, plan.input_shape, x, offsets, self.center) as nothing:
                self._run(reader, nothing, single)
            if len(reader.names) == len(plan.names) and reader.first_not_finite() is None:
                return torch.stack(reader.counts, dim=1)
        reader = self._reader(len(x), stop_after=len(plan.names))
        self._run(reader, spread(x, offsets, self.center).flatten(0, 1), single)
        if len(reader.names) != len(plan.names):
            raise ValueError(
                f"model must run the layers {plan.names} at every call, got {reader.names}; "
                "build a new probe after changing it"
            )
        _check_finite(reader)
        return torch.stack(reader.counts, dim=1)

    def _reader(self, num_points: int, stop_after: int | None) -> Reader:
        return Reader(self._sites, self._num_vertices, num_points, self.zero_as_state, stop_after)

    def _run(self, reader: Reader, vertices: Tensor, single: dict[str, Tensor]) -> None:
        with reader.attached(), suppress(EnoughRead):
            if single:
                torch.func.functional_call(self.model, single, (vertices,))
            else:
                self.model(vertices)

    def _check_reached(self, names: list[str]) -> None:
        reached = {name.partition(" #")[0] for name in names}
        missed = [site.name for site in self._sites if site.required and site.name not in reached]
        if missed or not names:
            raise ValueError(f"layers must be reached by the forward pass, not reached: {missed or 'all'}")


class _Plan(NamedTuple):
    """What one trial tells about all later calls with inputs of one shape."""

    names: tuple[str, ...]
    num_neurons: tuple[int, ...]
    first: nn.Module | None
    input_shape: tuple[int, ...]


@contextmanager
def _exactly(model: nn.Module, device: torch.device) -> Iterator[None]:
    # An autocast context is entered to switch off one that is around.
    with torch.no_grad(), undisturbed(model, device), torch.autocast(device.type, enabled=False):
        yield


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        # Mixed, since these must not be the numbers that the model was initialised with.
        return (torch.initial_seed() ^ 0x6C6F63616C) % 2**62
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def _check_resolved(radius: float, x: Tensor) -> None:
    """Vertices that round to their point would count nothing, as if no region met there."""
    largest = float(x.abs().amax())
    if radius < 8 * torch.finfo(x.dtype).eps * largest:
        raise ValueError(
            f"radius must be above the rounding of x, got {radius} beside values of {largest:.3g} in {x.dtype}; "
            "take the mean off x and add it to the first bias, or use float64"
        )


def _columns(offsets: Tensor, start: int, size: int) -> Tensor:
    return offsets if offsets.shape[1] == 1 else offsets[:, start : start + size]


def _single_precision(model: nn.Module) -> dict[str, Tensor]:
    """Float32 copies of the half-precision parameters and buffers."""
    return {
        name: tensor.float()
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if tensor.dtype in (torch.float16, torch.bfloat16)
    }


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-3 * float(
        theirs.abs().amax()
    )  # rounding, against a layer that is another function altogether
    return torch.allclose(ours.to(theirs.dtype), theirs, rtol=0.0, atol=tolerance)


def _check_finite(reader: Reader) -> None:
    name = reader.first_not_finite()
    if name is not None:
        raise ValueError(f"layer {name!r} must have finite outputs at all vertices, got NaN or infinity")
