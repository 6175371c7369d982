"""Calling somebody's classifier: its logits, the vector before its head, and states on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Embed = str | Callable[..., tuple[Tensor, Tensor]]
Logits = str | int | Callable[[Any], Tensor]
_EXTRAS = ("times", "padding", "attention")


@dataclass(frozen=True)
class Caller:
    """How to get (logits, z) out of a classifier, and out of any other module with the same insides."""

    embed: Embed
    side: Literal["output", "input"]
    extra_inputs: Mapping[str, str]
    memory: str | None = None
    logits: Logits | None = None
    channels_first: bool = False

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise ValueError(f"embed_side must be 'output' or 'input', got {self.side!r}")
        if unknown := sorted(set(self.extra_inputs) - set(_EXTRAS)):
            raise ValueError(f"extra_inputs must name some of {', '.join(_EXTRAS)}, got {', '.join(unknown)}")

    def __call__(self, model: nn.Module, x: Tensor, **extras: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the model and return logits (batch, C) and z (batch, d_z)."""
        return self._run(model, x, extras, None)

    def with_memory(self, model: nn.Module, x: Tensor, **extras: Tensor | None) -> tuple[Tensor, ...]:
        """Run the model and return logits, z and the states (batch, S, channels) of the module `memory`."""
        assert self.memory is not None
        states = _Catch(model, self.memory, "output", "memory")
        logits, z = self._run(model, x, extras, states)
        if states.calls != 1 or not isinstance(states.value, Tensor) or states.value.dim() != 3:
            raise ValueError(f"memory must name a module that gives (batch, S, channels), {states.found()}")
        return logits, z, states.value.mT if self.channels_first else states.value

    def _run(
        self, model: nn.Module, x: Tensor, extras: Mapping[str, Tensor | None], states: _Catch | None
    ) -> tuple[Tensor, Tensor]:
        wanted = {}
        for name, keyword in self.extra_inputs.items():
            if (value := extras.get(name)) is not None:
                # Half precision cannot count far, so that stamps are finer than such a classifier.
                coarse = name == "times" and x.dtype in (torch.float16, torch.bfloat16)
                wanted[keyword] = value.to(x.dtype) if coarse else value
        given = x.mT.contiguous() if self.channels_first else x
        catch = _Catch(model, self.embed, self.side, "embed") if isinstance(self.embed, str) else None
        hooks = [found.hook() for found in (catch, states) if found is not None]
        try:
            if catch is None:
                output, z = self.embed(model, given, **wanted)  # type: ignore[operator]
            else:
                output, z = model(given, **wanted), catch.value
        finally:
            for hook in hooks:
                hook.remove()
        said = catch.found() if catch is not None else f"got {_shape(z)}"
        several = catch is not None and catch.calls > 1  # one of which is z, and nobody knows which
        if several or not isinstance(z, Tensor) or z.dim() != 2 or len(z) != len(x):
            raise ValueError(f"embed must give one vector per series, ({len(x)}, channels), {said}")
        logits = _read_logits(output, self.logits)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            advice = "" if isinstance(logits, Tensor) else ": say where they are by logits="
            raise ValueError(
                f"the classifier must give logits ({len(x)}, classes), got {_shape(logits)}{advice}"
            )
        return logits, z


def _read_logits(output: Any, where: Logits | None) -> Any:
    """Find the logits in what a classifier returns: a tensor, or an object or mapping that holds them."""
    if where is None:
        if isinstance(output, Mapping):
            return output.get("logits", output)
        return output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if callable(where):
        return where(output)
    try:
        if isinstance(where, str) and not isinstance(output, Mapping):
            return getattr(output, where)
        return output[where]
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"logits must name a part of what the classifier returns, a {type(output).__name__}, got {where!r}"
        ) from error


class _Catch:
    """What goes into or comes out of a module of the model, while the hook is on."""

    def __init__(self, model: nn.Module, name: str, side: str, argument: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            some = ", ".join(part for part in list(modules)[1:13])
            raise ValueError(
                f"{argument} must name a module of the classifier, got {name!r}; there are {some or 'none'}"
                + (", ..." if len(modules) > 13 else "")
            )
        self.module, self.name, self.side = modules[name], name, side
        self.value: Any = None
        self.calls = 0

    def hook(self) -> Any:
        if self.side == "input":
            return self.module.register_forward_pre_hook(
                lambda _, inputs, named: self._keep(inputs or tuple(named.values())), with_kwargs=True
            )
        return self.module.register_forward_hook(lambda _, __, output: self._keep(output))

    def _keep(self, value: Any) -> None:
        if isinstance(value, tuple) and value:  # recurrent layers and attention return more than one thing
            value = value[0]
        self.value = value
        self.calls += 1

    def found(self) -> str:
        if not self.calls:
            return (
                f"but {self.name!r} was never called (by a compiled model nobody sees it: give the one before "
                "torch.compile)"
            )
        if self.calls > 1:
            return f"but {self.name!r} was called {self.calls} times"
        return f"got {_shape(self.value)} as the {self.side} of {self.name!r}"


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
