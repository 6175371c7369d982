"""The numbers of the method."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any, Literal


def whole(number: Any, name: str) -> int:
    """A count as an int, whatever integer it came as.

    Args:
        number: An int, or what stands for one (NumPy's, a tensor's).
        name: The argument's name.

    Returns:
        The int.

    Raises:
        TypeError: If it is no integer.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None


@dataclass(frozen=True)
class RobustMeanTeacherConfig:
    """The numbers of the method; the defaults are the paper's for every data set (arXiv 2211.13081, section 4).

    Args:
        self_training_weight: Weight of the symmetric cross-entropy between student and teacher.
        contrastive_weight: Weight of the contrastive loss; 0 needs no prototypes.
        source_weight: Weight of the cross-entropy on replayed source batches; 0 is source-free.
        momentum: m of the teacher's moving average.
        alpha: Share of the reverse term in the symmetric cross-entropy; 0 is plain cross-entropy.
        temperature: Of the contrastive loss.
        projection_dim: Width of the projector of the contrastive loss; None for no projector (the paper's
            choice on DomainNet).
        batch_norm: `"batch"`: BatchNorm uses the statistics of the batch, in student and teacher; `"source"`:
            the running statistics of the source model.
        check_finite: Refuse a batch whose loss is not finite, before it can destroy the weights. It reads one
            number back from the device per call.

    Raises:
        ValueError: Naming the argument that is out of its bounds.
        TypeError: If `projection_dim` is no integer.

    Examples:
        >>> RobustMeanTeacherConfig(source_weight=0.0).momentum
        0.999
    """

    self_training_weight: float = 1.0
    contrastive_weight: float = 1.0
    source_weight: float = 1.0
    momentum: float = 0.999
    alpha: float = 0.5
    temperature: float = 0.1
    projection_dim: int | None = 128
    batch_norm: Literal["batch", "source"] = "batch"
    check_finite: bool = True

    def __post_init__(self) -> None:
        # NumPy's numbers, as configs often hold them, could not be written to a file.
        for name in (
            "self_training_weight",
            "contrastive_weight",
            "source_weight",
            "momentum",
            "alpha",
            "temperature",
        ):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.projection_dim is not None:
            object.__setattr__(self, "projection_dim", whole(self.projection_dim, "projection_dim"))
        for name in ("self_training_weight", "contrastive_weight", "source_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be non-negative and finite, got {getattr(self, name)}")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1 or None, got {self.projection_dim}")
        if self.batch_norm not in ("batch", "source"):
            raise ValueError(f"batch_norm must be 'batch' or 'source', got {self.batch_norm!r}")

    def check_same(self, other: dict[str, Any]) -> None:
        """Refuse the numbers of a state that was adapted under others; `check_finite` may differ.

        Args:
            other: Names and values of the other config.

        Raises:
            ValueError: Naming what differs.
        """
        mine = asdict(self)
        differ = [
            f"{name} {other[name]!r}, got {mine[name]!r}"
            for name in mine
            if name != "check_finite" and name in other and other[name] != mine[name]
        ]
        if differ:
            raise ValueError(f"config must be that of the state: {'; '.join(differ)}")
