"""What a set of clamps asks of a model: which sites it touches and which other passes it needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from inductionclamp.clamps import Clamp, ClampSet, Earlier, FromPass, Through
from inductionclamp.sites import SiteTable, matches

PassKey = tuple[int, int]


@dataclass
class Harvest:
    """A pass that is run before the clamped one, up to the last of the names kept."""

    model: nn.Module | None
    under: ClampSet
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Step:
    """One clamp on one site; `key` is the pass that its source comes from, None for this very pass."""

    clamp: Clamp
    reads: str = ""
    key: PassKey | None = None


@dataclass(frozen=True)
class Plan:
    """A clamp set as a table of sites sees it."""

    steps: dict[str, tuple[Step, ...]]
    harvests: dict[PassKey, Harvest]
    kept: frozenset[str]
    recorded: tuple[str, ...]


_NOTHING = ClampSet()


def plan(clamps: ClampSet, table: SiteTable, record: tuple[str, ...] = ()) -> Plan:
    """Resolve names and decide which sources need a pass of their own.

    A source of the unperturbed pass is taken from the running one where that gives the same value: if no clamp
    acts on a site up to it. So copying scores to the logits, or preserving patterns while heads of the last layer
    are ablated, needs one pass and not two.

    Args:
        clamps: The clamps.
        table: The model's sites.
        record: Names or patterns to keep besides.

    Returns:
        The plan, built once per clamp set and table.

    Raises:
        ValueError: If a name is unknown.
    """
    key = (tuple(table), table.ordered, record)
    if key not in clamps.plans:
        clamps.plans[key] = _build(clamps, table, record)
    return clamps.plans[key]


def _build(clamps: ClampSet, table: SiteTable, record: tuple[str, ...]) -> Plan:
    steps: dict[str, list[Step]] = {}
    harvests: dict[PassKey, Harvest] = {}
    recorded = tuple(dict.fromkeys(name for pattern in record for name in matches(table, pattern)))
    kept = set(recorded)
    index = {name: place for place, name in enumerate(table)}
    targets = [(clamp, name) for clamp in clamps for name in matches(table, clamp.name)]
    first = min((index[name] for _, name in targets), default=len(index))
    for clamp, name in targets:
        source = clamp.source
        step = Step(clamp)
        if isinstance(source, Earlier):
            (reads,) = _one(table, source.name)
            kept.add(reads)
            step = Step(clamp, reads)
        elif isinstance(source, Through):
            _one(table, source.at)
            kept.add(source.at)
            step = Step(clamp, source.at)
        elif isinstance(source, FromPass):
            reads = name if source.name is None else source.name
            if source.model is None:
                (reads,) = _one(table, reads)
            if _same_pass_serves(source, table, index.get(reads, -1), index[name], first):
                kept.add(reads)
                step = Step(clamp, reads)
            else:
                under = _NOTHING if source.under is None else source.under
                key = (id(source.model), id(under))
                harvests.setdefault(key, Harvest(source.model, under)).names.add(reads)
                step = Step(clamp, reads, key)
        steps.setdefault(name, []).append(step)
    return Plan({name: tuple(found) for name, found in steps.items()}, harvests, frozenset(kept), recorded)


def _same_pass_serves(source: FromPass, table: SiteTable, reads: int, target: int, first: int) -> bool:
    """Whether the running pass has the unperturbed value by the time it is asked for."""
    plain = source.model is None and (source.under is None or not len(source.under))
    return plain and table.ordered and reads < target and reads < first


def _one(table: SiteTable, name: str) -> list[str]:
    found = matches(table, name)
    if len(found) != 1:
        raise ValueError(f"a source must be one activation, {name!r} stands for {len(found)}")
    return found
