"""Activations that a model applies as functions, where no hook can see them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_NAMES = frozenset(
    (
        *(
            "celu",
            "elu",
            "gelu",
            "hardshrink",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "leaky_relu",
            "logsigmoid",
        ),
        *("mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink"),
        *("softsign", "tanh", "tanhshrink", "threshold"),
    )
)


@contextmanager
def warning_of_functions(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Warn after a forward pass that applied activations as functions outside of these modules."""
    seen = _Seen()
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_pre_hook(seen.enter))
            stack.enter_context(module.register_forward_hook(seen.leave, always_call=True))
        stack.enter_context(seen)
        yield
    if seen.counts:
        told = ", ".join(f"{name} ({count} times)" for name, count in sorted(seen.counts.items()))
        warnings.warn(
            f"the model applies activations as functions, which are not counted: {told}; name the layers that make "
            "their inputs, and all others to be read, in layers=",
            UserWarning,
            stacklevel=5,
        )


class _Seen(TorchFunctionMode):
    """Counts calls by name while none of the hooked modules runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._inside = 0

    def enter(self, *_: Any) -> None:
        """A hooked module begins."""
        self._inside += 1

    def leave(self, *_: Any) -> None:
        """It ends."""
        self._inside -= 1

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "").removesuffix("_")
        if not self._inside and name in _NAMES:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
