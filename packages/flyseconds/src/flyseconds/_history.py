"""The last commands of every vehicle, as a value that is cheap to append to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def traced() -> bool:
    """Whether something watches torch's operations and would miss, or refuse, writing in place."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


class ActionHistory:
    """The last `length` commands, oldest first.

    Shifting 32 x 4 numbers at every step would cost more than the physics. Histories are therefore windows
    into slots that they share: appending writes the slot behind the window and returns the next window, and
    the old commands are copied once every `length + 1` steps only. Older histories stay valid, since no slot
    is written twice: one that is no longer the newest copies its window before it appends. Only `restart_`
    overwrites; whoever calls it must be the only one to hold the history, or a `copy` of it.

    With gradients, and where `torch.compile` or `torch.func` trace, nothing is written in place: appending
    concatenates.

    Args:
        slots: Feature-major commands (slots, action dimension, B), the first `length` of them filled.
        length: Length of the window.
    """

    __slots__ = ("_start", "_written", "length", "slots")

    def __init__(self, slots: Tensor, length: int) -> None:
        self.length = length
        self.slots = slots
        self._start = 0
        self._written = [length]  # shared with every history on these slots

    @classmethod
    def constant(cls, length: int, action: Tensor) -> ActionHistory:
        """A history in which every command was `action` (action dimension, B)."""
        return cls.of(action.expand(length, *action.shape))

    @classmethod
    def of(cls, window: Tensor) -> ActionHistory:
        """A history with the given window (length, action dimension, B), which is copied."""
        length = len(window)
        slots = window.new_empty(2 * length, *window.shape[1:])
        slots[:length] = window
        return cls(slots, length)

    def copy(self) -> ActionHistory:
        """The same commands in slots of their own."""
        return ActionHistory.of(self.window())

    def window(self) -> Tensor:
        """The commands, oldest first, feature-major: (length, action dimension, B)."""
        return self.slots[self._start : self._start + self.length]

    def append(self, action: Tensor) -> ActionHistory:
        """The history after one more command (action dimension, B)."""
        if self.length == 0:
            return self
        differentiated = torch.is_grad_enabled() and (action.requires_grad or self.slots.requires_grad)
        if differentiated or traced():
            return ActionHistory(torch.cat([self.window()[1:], action[None]]), self.length)
        following, behind = self.reserve()
        following.slots[behind] = action
        return following

    def reserve(self) -> tuple[ActionHistory, int]:
        """The history after one more command, and the index of the slot where that is to be written."""
        behind = self._start + self.length
        if behind < len(self.slots) and self._written[0] == behind:
            following = ActionHistory(self.slots, self.length)
            following._start, following._written = self._start + 1, self._written
            self._written[0] += 1
        else:
            slots = self.slots.new_empty(2 * self.length, *self.slots.shape[1:])
            slots[: self.length - 1] = self.window()[1:]
            following, behind = ActionHistory(slots, self.length), self.length - 1
        return following, behind

    def restart_(self, vehicles: Tensor, action: Tensor) -> None:
        """Overwrite the window of some vehicles (K,) with `action` (action dimension, K), in place."""
        if self.length:
            self.window()[:, :, vehicles] = action
