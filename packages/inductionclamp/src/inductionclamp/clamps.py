"""Clamps: which activation is overridden, where, and by what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from inductionclamp._checks import checked_integers
from inductionclamp.sites import fits

Transform = Callable[[Any, Tensor, Tensor], Tensor]


class Order(IntEnum):
    """The order in which clamps of one activation apply; later ones win (official code, `opto.py`)."""

    PRESERVE = 0
    TEMPERATURE = 1
    COPY = 2
    GRAFT = 3
    EMBEDDING = 4
    ABLATION = 5
    PREVIOUS_TOKEN = 6
    INDUCTION = 7
    MATCH = 8
    BLOCK = 9
    CUSTOM = 10


@dataclass(frozen=True)
class FromPass:
    """An activation of another forward pass on the same batch, made before the clamped one.

    Args:
        name: Its name; None is the clamped activation's own.
        under: Clamps of that pass; None is an unperturbed one.
        transform: Maps `(context, activation, value)` to the source, `value` being what it will override.
        model: Another model, a frozen checkpoint say; None is the clamped model. Its activations are detached.

    Examples:
        >>> from inductionclamp import Clamp, FromPass
        >>> Clamp("blocks.*.attn_scores", FromPass()).name  # preserve every pattern
        'blocks.*.attn_scores'
    """

    name: str | None = None
    under: ClampSet | None = None
    transform: Transform | None = None
    model: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.under is not None and not isinstance(self.under, ClampSet):
            object.__setattr__(self, "under", ClampSet(self.under))
        if self.model is not None and not isinstance(self.model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(self.model).__name__}")


@dataclass(frozen=True)
class Earlier:
    """An activation that the same pass has computed before, as its own clamps left it.

    Args:
        name: Its name.
        transform: Maps `(context, activation, value)` to the source, `value` being what it will override.
    """

    name: str
    transform: Transform | None = None


@dataclass(frozen=True)
class Through:
    """What another model makes of an activation of this pass: `read`, with the activation `at` put into it.

    Gradients flow through that model into this one's activation.

    Args:
        model: The other model; freeze its parameters.
        at: The activation handed over, of the same name in both.
        read: The activation read.
    """

    model: nn.Module
    at: str
    read: str


Source = Tensor | float | Callable[[Any, Tensor], Tensor] | FromPass | Earlier | Through
Mask = Tensor | Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Heads:
    """A mask of some heads of an activation [B, H, T, ...], at all or some positions of its third dimension.

    Args:
        heads: Indices of heads; None are all.
        rows: Positions (negative ones count from the end); None are all.

    Raises:
        TypeError: If an index is no integer.
        ValueError: If `heads` or `rows` is empty; at the call, if a head or row is out of range.

    Examples:
        >>> import torch
        >>> from inductionclamp import Heads
        >>> Heads((1,), rows=(-1,))(None, torch.zeros(2, 3, 4, 4)).shape  # broadcasts over batch and keys
        torch.Size([3, 4, 1])
    """

    heads: tuple[int, ...] | None
    rows: tuple[int, ...] | None = None
    _built: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("heads", "rows"):
            if (chosen := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_integers(name, chosen, least=None))

    def __call__(self, context: Any, value: Tensor) -> Tensor:
        """Return the mask, of shape [H, 1, 1] or [H, T, 1]; built once per shape and device."""
        if torch.compiler.is_compiling():
            return self._build(value)
        key = (value.shape[1:3], value.device, value.dim())
        if key not in self._built:
            with torch.inference_mode(False):  # training must be able to use it later
                self._built[key] = self._build(value)
        return self._built[key]

    def _build(self, value: Tensor) -> Tensor:
        if value.dim() < 4:
            raise ValueError(f"heads need an activation [B, H, T, ...], got shape {tuple(value.shape)}")
        mask = _selected("heads", self.heads, value.shape[1], value.device)[:, None, None]
        if self.rows is not None:
            mask = mask & _selected("rows", self.rows, value.shape[2], value.device)[:, None]
        return mask


def _selected(name: str, chosen: tuple[int, ...] | None, size: int, device: torch.device) -> Tensor:
    if chosen is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    for index in chosen:
        if not -size <= index < size:
            raise ValueError(f"{name} must be below {size}, got {index}")
    wanted = torch.tensor([index % size for index in chosen], device=device)
    return (torch.arange(size, device=device)[:, None] == wanted).any(1)


@dataclass(frozen=True, eq=False)
class Clamp:
    """Override one activation: `where(mask, source, value)`; all that follows reads the result.

    The same in training and evaluation. Gradients flow through the entries that the mask leaves, and into the
    source if it carries a gradient. An activation that is replaced whole gets none: parameters that only it depends
    on keep `grad = None`.

    Args:
        name: The activation's name; `*` stands for anything, as in `"blocks.*.attn_scores"`.
        source: What is put there, broadcastable to the activation: a tensor or number, a function
            `(context, value) -> tensor` of the batch and the value so far, or `FromPass`, `Earlier` or `Through`.
        mask: Boolean, broadcastable to the activation, True where it is overridden; or a function
            `(context, value) -> mask`, such as `Heads`; None is everywhere.
        detach_source: Whether the source is taken without its gradient.
        order: Place among clamps of the same activation; recipes set theirs, a clamp of your own comes last.
        kind: What a recipe made it for; clamps that contradict each other on a head are refused.
        heads: The heads that the recipe means, None for all.

    Raises:
        TypeError: If an argument is of another type.

    Examples:
        >>> import torch
        >>> from inductionclamp import Clamp, FewShotTransformer, Heads, run
        >>> model = FewShotTransformer(num_features=6, num_labels=5, dim=16, num_heads=4)
        >>> batch = (torch.randn(2, 3, 6), torch.tensor([[0, 1, 0], [3, 2, 2]]))
        >>> clamp = Clamp("blocks.0.v", 0.0, mask=Heads((1, 2)))
        >>> logits, acts = run(model, batch, [clamp], record=["blocks.0.v"])
        >>> acts["blocks.0.v"].abs().amax(dim=(0, 2, 3)) > 0
        tensor([ True, False, False,  True])
    """

    name: str
    source: Source
    mask: Mask | None = None
    detach_source: bool = False
    order: Order = Order.CUSTOM
    kind: str = "custom"
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        if isinstance(self.source, bool) or not (
            isinstance(self.source, Tensor | float | int | FromPass | Earlier | Through)
            or callable(self.source)
        ):
            raise TypeError(
                "source must be a tensor, a number, a function (context, value), FromPass, Earlier or Through, "
                f"got {type(self.source).__name__}"
            )
        if isinstance(self.mask, Tensor):
            if self.mask.dtype != torch.bool:
                raise TypeError(f"mask must be boolean, got {self.mask.dtype}")
        elif self.mask is not None and not callable(self.mask):
            raise TypeError(f"mask must be a boolean tensor or a function, got {type(self.mask).__name__}")
        if self.heads is not None:
            object.__setattr__(self, "heads", checked_integers("heads", self.heads))


# Which kinds may not meet on one head.
_CONFLICTS = [
    {"previous token", "induction"},
    {"previous token", "match"},
    {"block", "previous token"},
    {"block", "induction"},
    {"block", "match"},
    {"block", "pattern"},
    {"silence", "induction"},
    {"silence", "match"},
    {"silence", "pattern"},
    {"pattern", "previous token"},
    {"pattern", "induction"},
    {"pattern", "match"},
]


class ClampSet:
    """Clamps that act together, in the order of `Order`, later ones winning.

    Args:
        clamps: Clamps, or lists of them as recipes return, in any order.

    Raises:
        TypeError: If something else is among them.
        ValueError: If two of them contradict each other on a head: forced as previous-token and as induction or match
            head, or forced and blocked.

    Examples:
        >>> from inductionclamp import ClampSet, ablate_heads, preserve
        >>> len(ClampSet([ablate_heads(0, [0, 1]), preserve("patterns")]))
        2
    """

    def __init__(self, clamps: Iterable[Any] | Clamp = ()) -> None:
        self.clamps = tuple(sorted(_flat(clamps), key=lambda clamp: clamp.order))
        self.plans: dict[Any, Any] = {}
        _check_conflicts(self.clamps)

    def __len__(self) -> int:
        return len(self.clamps)

    def __iter__(self) -> Iterator[Clamp]:
        return iter(self.clamps)

    def __add__(self, other: Iterable[Any]) -> ClampSet:
        return ClampSet([*self, *ClampSet(other)])

    def __repr__(self) -> str:
        return f"ClampSet({[clamp.name for clamp in self.clamps]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"clamps": self.clamps, "plans": {}}


def as_clamp_set(clamps: Any) -> ClampSet:
    """Return a `ClampSet` of what was given; None is none."""
    if isinstance(clamps, ClampSet):
        return clamps
    return ClampSet(() if clamps is None else clamps)


def _flat(clamps: Any) -> Iterator[Clamp]:
    if isinstance(clamps, Clamp):
        yield clamps
    elif isinstance(clamps, Iterable) and not isinstance(clamps, str | Tensor):
        for clamp in clamps:
            yield from _flat(clamp)
    else:
        raise TypeError(f"clamps must hold Clamp objects, got {type(clamps).__name__}")


def _check_conflicts(clamps: tuple[Clamp, ...]) -> None:
    for one, other in combinations(clamps, 2):
        layers = _layer(one), _layer(other)
        if {one.kind, other.kind} not in _CONFLICTS or not (fits(*layers) or fits(*reversed(layers))):
            continue
        if one.heads is None or other.heads is None:
            shared = one.heads or other.heads or "all"
        else:
            shared = tuple(sorted(set(one.heads) & set(other.heads)))
        if shared:
            raise ValueError(
                f"clamps conflict on heads {shared} of {_layer(one)!r}: {one.kind} and {other.kind}"
            )


def _layer(clamp: Clamp) -> str:
    return clamp.name.rpartition(".")[0]
