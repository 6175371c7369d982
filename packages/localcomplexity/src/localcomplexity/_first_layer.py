"""A shortcut through the first layer: it is linear, so all vertices follow from the points and the directions.

z(x +- r v) = z(x) +- r W v costs B + P rows through W instead of 2 P B, and the vertices themselves are never made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from localcomplexity.vertices import spread

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LINEAR = (nn.Linear, *_CONVOLUTIONS)


class FirstLayer:
    """Watches a forward pass for the layer that the vertices enter as they are, at most reshaped.

    Args:
        model: What runs.
        vertices: (N, *shape) what it runs on.
    """

    def __init__(self, model: nn.Module, vertices: Tensor) -> None:
        self.module: nn.Module | None = None
        self.input_shape: tuple[int, ...] = ()
        self._vertices = vertices
        self._decided = False
        self._candidates = [module for module in model.modules() if _is_plain(module)]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hook all candidates for one forward pass."""
        handles = [module.register_forward_pre_hook(self._enter) for module in self._candidates]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._decided or not args:
            return
        self._decided = True
        entering = args[0]
        if len(entering) == len(self._vertices) and torch.equal(
            entering.reshape(-1), self._vertices.reshape(-1)
        ):
            self.module = module
            self.input_shape = tuple(entering.shape[1:])


@contextmanager
def shortcut(
    module: nn.Module, input_shape: tuple[int, ...], x: Tensor, offsets: Tensor, center: bool
) -> Iterator[Tensor]:
    """Let `module` answer for all vertices of `x`, whatever it is given; yield what to give the model.

    That is not-a-number without storage: if the model uses its input anywhere else, the readings are not finite,
    and the caller knows that there is no shortcut.
    """
    original, saved = module.forward, module.__dict__.get("forward")

    def restore() -> None:
        if saved is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = saved

    def forward(_: Tensor) -> Tensor:
        restore()  # for the first call only: a layer that is used again computes as ever
        points = original(x.reshape(-1, *input_shape))
        moved = _without_bias(module, offsets.reshape(-1, *input_shape))
        return spread(points, moved.unflatten(0, offsets.shape[:2]), center).flatten(0, 1)

    num_vertices = 2 * len(offsets) + center
    module.__dict__["forward"] = forward
    try:
        yield x.new_full((), torch.nan).expand(num_vertices * len(x), *x.shape[1:])
    finally:
        restore()


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer computes what torch's own does: not a subclass that overrides it."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _LINEAR) and (
        "forward" not in module.__dict__
    )


def _without_bias(module: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return nn.functional.linear(inputs, module.weight)
    assert isinstance(module, _CONVOLUTIONS)
    return module._conv_forward(inputs, module.weight, None)
