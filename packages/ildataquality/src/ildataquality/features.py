"""What a report measures: features of the observations, beside the actions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ildataquality._checks import check_matrix
from ildataquality.normalizer import Normalizer

Encoder = Callable[[Tensor], Tensor]


def features_of(observations: Tensor, encode: Encoder | None) -> Tensor:
    """(N, D) features, flat or encoded."""
    if encode is None:
        return check_matrix("observations", observations.flatten(1))
    features = encode(observations)
    if features.ndim != 2 or len(features) != len(observations):
        raise ValueError(f"encode must give ({len(observations)}, D) features, got {tuple(features.shape)}")
    if features.device != observations.device:
        raise ValueError(
            f"encode must give features on the device of the episodes, {observations.device}, got {features.device}"
        )
    return check_matrix("encode(observations)", features)


def joint(states: Tensor, actions: Tensor, normalizer: Normalizer) -> Tensor:
    """(N, S + A) standardised; a constant action stays, as zeros."""
    return torch.cat([states, normalizer.standard_actions(actions)], dim=1)
