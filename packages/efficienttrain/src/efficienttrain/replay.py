"""The replay buffer of EfficientTrain++, for when images are decoded more slowly than they are trained on."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from efficienttrain._checks import checked_count


class ReplayBuffer:
    """Keeps pieces of recent batches and mixes them into new ones (EfficientTrain++, replay buffer).

    A fresh batch is split into pieces, which join a queue of at most `batches * split` pieces; the training batch is
    the fresh one and pieces drawn from the queue uniformly, with replacement.

    Args:
        batches: Length of the queue in batches.
        split: Pieces a batch; a batch of fewer images is split into single ones.
        generator: Of the draws, on the CPU; torch's default generator if None.
        dtype: What images are kept in, such as `torch.float16`; theirs if None. They come back in their own dtype.

    Raises:
        TypeError: If `batches` or `split` is no integer, or `dtype` is not floating point.
        ValueError: If `batches` or `split` is below 1.

    Examples:
        >>> import torch
        >>> buffer = ReplayBuffer(batches=4, split=8, generator=torch.Generator().manual_seed(0))
        >>> images, labels = buffer.mix(torch.randn(16, 3, 8, 8), torch.arange(16), times=2)
        >>> images.shape, labels.shape
        (torch.Size([32, 3, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        batches: int,
        split: int = 32,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.batches = checked_count("batches", batches)
        self.split = checked_count("split", split)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, got {dtype}")
        self.generator, self.dtype = generator, dtype
        self._pieces: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.batches * self.split)

    def __len__(self) -> int:
        """Number of pieces kept."""
        return len(self._pieces)

    def clear(self) -> None:
        """Forget everything, as at a change of image size."""
        self._pieces.clear()

    @torch.no_grad()
    def mix(self, x: Tensor, y: Tensor, times: int) -> tuple[Tensor, Tensor]:
        """Keep a fresh batch, and return it with replayed images behind it.

        The buffer copies what it keeps, so that either batch may be changed in place afterwards. Images of another
        shape than those kept empty the buffer first.

        Args:
            x: Fresh images, shape (n, ...), any dtype; they stay on their device.
            y: Labels, shape (n, ...): classes or soft targets.
            times: Replay times r. Freshness is 1 / r.

        Returns:
            Images (r n, ...) and labels (r n, ...); the fresh ones come first. With r = 1, `x` and `y`.

        Raises:
            TypeError: If `times` is no integer.
            ValueError: If `times` is below 1, the batch is empty, or `x` and `y` differ in length.
        """
        times = checked_count("times", times)
        count = len(x)
        if count == 0 or len(y) != count:
            raise ValueError(
                f"x and y must hold the same number of samples, at least 1, got {count} and {len(y)}"
            )
        if self._pieces and self._pieces[0][0].shape[1:] != x.shape[1:]:
            self.clear()
        split = min(self.split, count)
        kept = x.to(self.dtype if x.is_floating_point() and self.dtype else x.dtype, copy=True)
        self._pieces.extend(zip(kept.tensor_split(split), y.clone().tensor_split(split), strict=True))
        if times == 1:
            return x, y
        # The smallest piece has count // split images; what is drawn too many is cut off, so sizes never vary.
        wanted = (times - 1) * count
        smallest = min(len(piece) for piece, _ in self._pieces)
        draws = torch.randint(len(self._pieces), (-(-wanted // smallest),), generator=self.generator)
        drawn = [self._pieces[index] for index in draws.tolist()]
        images = torch.cat([piece for piece, _ in drawn])[:wanted]
        labels = torch.cat([piece for _, piece in drawn])[:wanted]
        return torch.cat([x, images.to(x.dtype)]), torch.cat([y, labels])
