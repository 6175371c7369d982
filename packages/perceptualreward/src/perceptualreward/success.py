"""A success detector: a threshold on the progress, set for a rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from perceptualreward._checks import as_count


def episode_score(progress: Tensor, hold: int = 1) -> float:
    """The highest progress that an episode keeps for some frames in a row.

    Args:
        progress: (T,) in [0, 1].
        hold: Frames in a row.

    Returns:
        The score; zero for an episode shorter than `hold`.

    Raises:
        TypeError: If `hold` is not an integer.
        ValueError: If the progress is not (T,) or has NaN.
    """
    hold = as_count("hold", hold)
    if progress.dim() != 1 or bool(progress.isnan().any()):
        raise ValueError(f"progress must be (T,) without NaN, got {tuple(progress.shape)}")
    if len(progress) < hold:
        return 0.0
    return float(progress.unfold(0, hold, 1).amin(1).amax())


class SuccessDetector:
    """Tells success as soon as the progress stays at a threshold for some frames.

    Args:
        progress: What gives (B,) progress of (B, F) frames, such as `reward.progress`.
        threshold: In [0, 1].
        hold: Frames in a row that it takes.

    Attributes:
        threshold: As given, or calibrated.
        false_alarm_rate: The bound that calibration gave, None without.

    Raises:
        TypeError: If `hold` is not an integer.
        ValueError: If the threshold is no number of [0, 1], or `hold` below one.
    """

    def __init__(self, progress: Callable[[Tensor], Tensor], threshold: float, *, hold: int = 1) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.progress, self.threshold, self.hold = progress, float(threshold), as_count("hold", hold)
        self.false_alarm_rate: float | None = None
        self._frames: Tensor | None = None

    @classmethod
    def calibrate(
        cls,
        progress: Callable[[Tensor], Tensor],
        failures: Sequence[Tensor],
        false_alarm_rate: float = 0.1,
        *,
        hold: int = 1,
    ) -> SuccessDetector:
        """Choose the lowest threshold that raises a false alarm in no more than a share of failed episodes.

        The bound is that of split conformal prediction: it holds on average over draws of failed episodes that are
        exchangeable with these, whatever the features and however good the reward. The demonstrations that the reward
        was fitted to should not be among them.

        Args:
            progress: As of the class.
            failures: (T, F) frames of failed episodes; 1 / false_alarm_rate - 1 of them at least.
            false_alarm_rate: Between 0 and 1.
            hold: As of the class.

        Returns:
            The detector; its `false_alarm_rate` is the bound that was reached.

        Raises:
            ValueError: If the rate is not between 0 and 1, episodes are too few for it, or more of them than the rate
                allows reach full progress, so that no threshold can keep them out.
        """
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must lie between 0 and 1, got {false_alarm_rate}")
        count = len(failures)
        allowed = math.floor(false_alarm_rate * (count + 1) + 1e-9)
        if allowed < 1:
            raise ValueError(
                f"failures must be at least {math.ceil(1 / false_alarm_rate - 1 - 1e-9)} episodes for a rate of "
                f"{false_alarm_rate}, got {count}"
            )
        with torch.no_grad():
            scores = sorted((episode_score(progress(one), hold) for one in failures), reverse=True)
        # As many may lie at the threshold or above as the rate allows, but for one: the next episode counts, too.
        bar = scores[allowed - 1]
        threshold = math.nextafter(bar, math.inf)
        if threshold > 1:
            raise ValueError(f"failures must stay below full progress, but {allowed} of {count} reach it")
        detector = cls(progress, threshold, hold=hold)
        detector.false_alarm_rate = allowed / (count + 1)
        return detector

    def succeeded(self, episode: Tensor) -> bool:
        """Whether a whole episode succeeded at some frame.

        Args:
            episode: (T, F) frames.

        Returns:
            Whether it did.
        """
        with torch.no_grad():
            return episode_score(self.progress(episode), self.hold) >= self.threshold

    def reset(self, where: Tensor | None = None) -> None:
        """Begin new episodes.

        Args:
            where: (B,) bool, in which environments; in all if None.
        """
        if where is None or self._frames is None:
            self._frames = None
        else:
            self._frames = self._frames.masked_fill(where.to(self._frames.device), 0)

    def update(self, frames: Tensor) -> Tensor:
        """Take the next frame of each environment.

        Args:
            frames: (B, F), of as many environments as before.

        Returns:
            (B,) bool: whether the progress has now been at the threshold for `hold` frames.

        Raises:
            ValueError: If the number of environments changes without `reset`.
        """
        with torch.no_grad():
            reached = self.progress(frames).double() >= self.threshold
        if self._frames is None:
            self._frames = torch.zeros_like(reached, dtype=torch.long)
        if reached.shape != self._frames.shape:
            raise ValueError(f"frames must be of {len(self._frames)} environments, got {len(reached)}")
        self._frames = (self._frames + 1) * reached
        return self._frames >= self.hold
