"""One entry for requests of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustmeanteacher.adapter import RobustMeanTeacher
from robustmeanteacher.checks import check_images
from robustmeanteacher.config import whole


class SlidingWindow(nn.Module):
    """Adaptation for streams that come one sample, or any number, at a time.

    Keeps the last `window` samples. Each call predicts the new ones with the window as their batch; the model
    adapts when all of the window is new since the last time (arXiv 2211.13081, section 4.3, and the official
    code). A request that is larger than the window is a batch of its own: it is predicted and learnt from whole.
    The first sample of all, alone in its window, is predicted with the model's own BatchNorm statistics.

    The state dict holds the adapter's, the samples in the window and how many of them are new; `adapter.save` leaves
    the samples out.

    Args:
        adapter: The adapter.
        window: Samples kept, at least 2.

    Raises:
        ValueError: If `window` is below 2.
        TypeError: If `window` is no integer.

    Examples:
        >>> from robustmeanteacher import RobustMeanTeacherConfig
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> adapter = RobustMeanTeacher(
        ...     model,
        ...     split="2",
        ...     make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        ...     augment=lambda x: x + 0.01,
        ...     config=RobustMeanTeacherConfig(contrastive_weight=0.0, source_weight=0.0),
        ... )
        >>> serve = SlidingWindow(adapter, window=8)
        >>> [tuple(serve(torch.rand(count, 4)).shape) for count in (1, 7, 20)]
        [(1, 3), (7, 3), (20, 3)]
    """

    def __init__(self, adapter: RobustMeanTeacher, window: int) -> None:
        super().__init__()
        window = whole(window, "window")
        if window < 2:
            raise ValueError(f"window must be at least 2, got {window}")
        self.adapter = adapter
        self.window = window
        self._kept: Tensor | None = None
        self._since_update = 0

    def forward(self, images: Tensor) -> Tensor:
        """Predict the new samples, and adapt when the window has been renewed.

        Args:
            images: (n, ...) new samples, n >= 1.

        Returns:
            (n, K) logits of the new samples.

        Raises:
            ValueError: If there are none, one of them is not finite, or they are of another shape than those in the
                window; nothing was taken in then.
            TypeError: If the images are not floating-point.
        """
        check_images(images)
        if self.adapter.config.check_finite and not bool(images.isfinite().all()):
            raise ValueError(
                "images must be finite: one that is not would spoil the whole window; it was not taken in"
            )
        if self._kept is not None and images.shape[1:] != self._kept.shape[1:]:
            raise ValueError(
                f"images must have the shape of those in the window, (n, {', '.join(map(str, self._kept.shape[1:]))}), "
                f"got {tuple(images.shape)}; one window serves one size of images"
            )
        count = len(images)
        # A copy: the caller may write the next request into the same memory.
        batch = images.detach().clone() if self._kept is None else torch.cat([self._kept, images.detach()])
        batch = batch[-max(count, self.window) :]
        new = self._since_update + count
        logits = self.adapter.adapt(batch) if new >= self.window else self._predict(batch, images)
        # Only now: what the model refuses does not stay in the window.
        self._kept = batch[-self.window :]
        self._since_update = new if new < self.window else 0
        return logits[-count:]

    def _predict(self, batch: Tensor, images: Tensor) -> Tensor:
        if not self.adapter.needs_batch:
            return self.adapter.predict(images)
        if len(batch) > 1:
            return self.adapter.predict(batch)
        with self.adapter.source_statistics():
            return self.adapter.predict(batch)

    def reset(self) -> None:
        """Return to the state after construction, or after the adapter's `warm_up`, with an empty window.

        Raises:
            RuntimeError: If the adapter was made with `resettable=False`.
        """
        self.adapter.reset()
        self._kept, self._since_update = None, 0

    def get_extra_state(self) -> dict[str, Any]:
        """The window's part of `state_dict()`."""
        return {"window": self.window, "kept": self._kept, "since_update": self._since_update}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load the window's part of a state dict."""
        if state["window"] != self.window:
            raise ValueError(f"window must be that of the state, {state['window']}, got {self.window}")
        kept = state["kept"]
        device = self.adapter.num_updates.device
        self._kept = None if kept is None else kept.detach().to(device, copy=True)
        self._since_update = state["since_update"]
