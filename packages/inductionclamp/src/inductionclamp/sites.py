"""Sites: the named points of a forward pass at which an activation can be read and overridden."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

Handler = Callable[[Tensor], Tensor]


class Site:
    """One named activation of a running model.

    The forward pass sends the activation through the site and goes on with what comes back. A site without a
    handler returns the very tensor. It is no module: a model's `state_dict` does not know of it.

    Args:
        name: Its name, such as `"blocks.1.attn_scores"`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.handler: Handler | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """Return the activation, overridden if a clamp says so."""
        handler = self.handler
        return value if handler is None else handler(value)

    def on_output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook: send a module's output (of a tuple the first entry) through the site."""
        return None if self.handler is None else _with_first(self, output)

    def on_input(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Forward pre-hook: send a module's first input through the site."""
        if self.handler is None:
            return None
        if inputs:
            return (self._tensor(inputs[0]), *inputs[1:]), named
        first = next(iter(named), None)
        if first is None:
            raise TypeError(f"site {self.name!r}: the module was called without an input")
        return inputs, {**named, first: self._tensor(named[first])}

    def _tensor(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"site {self.name!r} must be a tensor, the module has {type(value).__name__}")
        return self(value)


def _with_first(site: Site, output: Any) -> Any:
    if isinstance(output, tuple) and output:
        entries = (site._tensor(output[0]), *output[1:])
        return type(output)(*entries) if hasattr(output, "_fields") else entries
    if isinstance(output, list) and output:
        return [site._tensor(output[0]), *output[1:]]
    return site._tensor(output)


class SiteTable(Mapping[str, Site]):
    """The sites of a model by name.

    Args:
        names: The names in the order of the forward pass.
        ordered: Whether no site influences one named before it. Then a value that other clamps have not
            touched yet is taken from the running pass, and no second pass is made for it.
        whole: Whether the names describe a whole model (they are used as they stand) or a part of one (they are
            prefixed by the part's path).
    """

    def __init__(self, names: Iterable[str], *, ordered: bool = True, whole: bool = True) -> None:
        self._sites = {name: Site(name) for name in names}
        self.ordered = ordered
        self.whole = whole
        self.harvesting = False
        self.removed = False
        self.handles: list[Any] = []
        self.undo: Callable[[], None] | None = None

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def scope(self, prefix: str) -> dict[str, Site]:
        """Return the sites below a prefix, by their names without it."""
        return {
            name.removeprefix(prefix): site for name, site in self._sites.items() if name.startswith(prefix)
        }

    def remove(self) -> None:
        """Take the hooks off the model again, and give a Hugging Face model its attention back."""
        self.removed = bool(self.handles) or self.removed
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.undo is not None:
            self.undo()
            self.undo = None


def matches(table: Mapping[str, Site], pattern: str) -> list[str]:
    """Return the names that a name or a pattern with `*` stands for.

    Raises:
        ValueError: If there is none; close names are listed.
    """
    if pattern in table:
        return [pattern]
    found = [name for name in table if fits(name, pattern)]
    if found:
        return found
    close = difflib.get_close_matches(pattern, list(table), n=5, cutoff=0.5) or list(table)[:12]
    hint = ""
    if pattern.rpartition(".")[2] in ("attn_scores", "attn_pre_softmax", "q", "k", "v"):
        hint = (
            "; attention maps live inside a fused kernel: use instrument_hf for a Hugging Face model, or "
            "ClampableAttention in a model of your own"
        )
    raise ValueError(f"unknown activation name {pattern!r}; close: {', '.join(close)}{hint}")


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern whose `*` stand for anything."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    if not name.startswith(first):
        return False
    place = len(first)
    for piece in rest[:-1]:
        found = name.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return name.endswith(rest[-1]) and len(name) - len(rest[-1]) >= place


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and `torch.compile`."""
    if isinstance(model, DataParallel):
        raise ValueError(
            "model must not be a DataParallel: its replicas share their sites; use DistributedDataParallel"
        )
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)
    inside = model.__dict__.get("_modules", {}).get("_orig_mod")
    return model if inside is None else unwrapped(inside)


def sites_of(model: nn.Module) -> SiteTable:
    """Find the named activations of a model.

    Those of a whole model (`FewShotTransformer`, `instrument`, `instrument_hf`) keep their names, also inside a
    wrapper such as DistributedDataParallel or a LoRA model; those of each `ClampableAttention` in a model of
    your own are prefixed by its path: `"layers.0.attention.attn_scores"`.

    Args:
        model: A module.

    Returns:
        The sites by name.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If it has no named activations.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    own = model.__dict__.get("clamp_sites")
    if own is not None:
        return own
    found = [
        (path, module.__dict__["clamp_sites"])
        for path, module in model.named_modules()
        if "clamp_sites" in module.__dict__
    ]
    if not found:
        raise ValueError(
            "model has no named activations: call instrument(model, {name: path}) or instrument_hf(model) first, "
            "or build it of ClampableAttention"
        )
    whole = [table for _, table in found if table.whole]
    if len(whole) == 1 and len(found) == 1:
        return whole[0]
    merged = SiteTable([], ordered=False)
    for path, table in found:
        merged._sites.update({f"{path}.{name}": site for name, site in table.items()})
    return merged


def instrument(model: nn.Module, name_map: Mapping[str, str]) -> SiteTable:
    """Name module outputs of any model, so that they can be recorded and clamped.

    One forward hook per name stays on the model and does nothing until a clamp is active; `remove()` of the
    returned table takes them off. Instrument before `torch.compile`, which does not look at hooks that come later.

    Args:
        model: Any module.
        name_map: For each new name the path of a submodule, as `named_modules` has it (`""` is the model). Its output
            is meant (of a tuple the first entry), or with `":input"` behind the path its first input.
            Recipes expect the names of `FewShotTransformer`, `"blocks.{layer}.out"` and so on.

    Returns:
        The table of sites, kept at `model.clamp_sites`.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If `name_map` is empty or names no submodule, or the model is compiled or instrumented.

    Examples:
        >>> import torch
        >>> from inductionclamp import Clamp, instrument, run
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> _ = instrument(model, {"hidden": "1"})
        >>> output, acts = run(model, torch.ones(5, 3), [Clamp("hidden", 0.0)], record=["hidden"])
        >>> acts["hidden"].abs().max().item(), torch.equal(output[0], model[2].bias)
        (0.0, True)
    """
    check_fresh(model)
    if not name_map:
        raise ValueError("name_map must name at least one activation, got none")
    modules = dict(model.named_modules())
    places = {}
    for name, place in name_map.items():
        path, _, side = place.partition(":")
        if path not in modules or side not in ("", "input"):
            close = difflib.get_close_matches(path, list(modules), n=3, cutoff=0.4)
            raise ValueError(
                f"name_map[{name!r}] must be the path of a submodule, got {place!r}; close: {', '.join(close)}"
            )
        places[name] = (modules[path], side)
    table = SiteTable(name_map, ordered=False)
    for name, (module, side) in places.items():
        hook_site(table, name, module, on_input=side == "input")
    model.clamp_sites = table  # type: ignore[assignment]
    return table


def check_fresh(model: nn.Module) -> None:
    """Refuse what cannot be instrumented (again)."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if unwrapped(model) is not model:
        raise ValueError("model must be instrumented before torch.compile or DistributedDataParallel wrap it")
    table = model.__dict__.get("clamp_sites")
    if table is None or (isinstance(table, SiteTable) and table.removed):
        return
    if isinstance(table, SiteTable) and not table.handles:
        raise ValueError(f"model must not name its activations itself, as {type(model).__name__} does")
    raise ValueError("model is instrumented already: call model.clamp_sites.remove() first")


def hook_site(table: SiteTable, name: str, module: nn.Module, *, on_input: bool = False) -> None:
    """Register a site's hook; it is a method of the site, so that a deep copy's hook is its own site's."""
    site = table[name]
    if on_input:
        handle = module.register_forward_pre_hook(site.on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(site.on_output)
    table.handles.append(handle)
