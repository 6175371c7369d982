"""The unit in which states are near or far: standardisation and a radius, frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality._checks import check_matrix


@dataclass(frozen=True)
class Normalizer:
    """Standardisation of every state dimension and a radius, both frozen so that data sets can be compared.

    Fit it on the union of the data sets and hand it to the report of each: with a radius of its own, every data set
    looks equally dense.

    Args:
        mean: (S,) means.
        std: (S,) standard deviations of the dimensions kept.
        kept: (S,) bool; dimensions that never change carry nothing and are dropped.
        radius: Neighbourhood radius eps in standardised units.

    Example:
        >>> import torch
        >>> from ildataquality import Normalizer
        >>> states = torch.stack([torch.arange(5.0), torch.full((5,), 7.0)], dim=1)
        >>> Normalizer.fit(states)(states).T.tolist()[0][2:]
        [0.0, 0.7071067690849304, 1.4142135381698608]
    """

    mean: Tensor
    std: Tensor
    kept: Tensor
    radius: float

    @classmethod
    def fit(
        cls,
        states: Tensor,
        *,
        quantile: float = 0.01,
        subset: int = 2000,
        generator: torch.Generator | None = None,
    ) -> Normalizer:
        """Means, deviations, and as radius the `quantile` of the pair distances of at most `subset` samples.

        Pairs that coincide, as in pauses, do not count for the radius: it would be zero.

        Args:
            states: (N, S).
            quantile: Share of pairs that are closer than the radius.
            subset: Number of samples whose pairs are measured; subset^2 floats of memory.
            generator: Draws them.

        Returns:
            The normaliser.

        Raises:
            ValueError: If the states are not a finite (N, S) with N >= 2, all dimensions are constant, `quantile`
                is not in (0, 1), or all of the subset coincide.
        """
        check_matrix("states", states)
        if len(states) < 2:
            raise ValueError(f"states must hold at least two samples, got {len(states)}")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        mean = states.mean(0)
        std = states.std(0, correction=0)
        # A constant column has a deviation of rounding errors, not of zero.
        kept = std > 1e-6 * states.abs().amax(0).clamp_min(torch.finfo(states.dtype).tiny)
        if not kept.any():
            raise ValueError("states must vary in at least one dimension, got all dimensions constant")
        chosen = torch.randperm(len(states), generator=generator)[:subset].to(states.device)
        sample = (states[chosen] - mean)[:, kept] / std[kept]
        pairs = torch.pdist(sample)
        pairs = pairs[pairs > 0]
        if not len(pairs):
            raise ValueError(
                f"subset must be larger: {len(sample)} samples drawn of {len(states)} all coincide"
            )
        radius = float(pairs.kthvalue(int(quantile * len(pairs)) + 1).values)
        return cls(mean, std[kept], kept, radius)

    def __call__(self, states: Tensor) -> Tensor:
        """(N, S) -> (N, kept dimensions), standardised."""
        return (states - self.mean)[:, self.kept] / self.std
