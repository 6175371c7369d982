"""The unit in which states and actions are near or far: standardisation and a radius, frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ildataquality._checks import check_count, check_matrix, constant_columns


@dataclass(frozen=True)
class Normalizer:
    """Standardisation of states and actions and a radius, all frozen so that data sets can be compared.

    Fit it on the union of the data sets and hand it to the report of each: with a radius of its own, every data set
    looks equally dense, and with a variance of its own, whoever acts more looks more consistent.

    Args:
        mean: (S',) means of the states' columns, an angle counting as the two columns of its cosine and sine.
        std: Standard deviations of the columns kept; the two of an angle share one, so that it weighs as any other
            dimension.
        kept: (S',) bool; columns that never change carry nothing and are dropped.
        radius: Neighbourhood radius eps in standardised units.
        circular: Which of the S dimensions are angles in radians; -pi and pi are then the same.
        action_mean: (A,), or None where `fit` saw no actions.
        action_std: (A,) standard deviations of the actions; 1 where they never change.
        action_variance: Sum of the variances of all action dimensions, in squared units of the actions.

    Examples:
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
    circular: tuple[int, ...] = ()
    action_mean: Tensor | None = None
    action_std: Tensor | None = None
    action_variance: float | None = None

    @classmethod
    def fit(
        cls,
        states: Tensor,
        actions: Tensor | None = None,
        *,
        circular: Sequence[int] = (),
        quantile: float = 0.01,
        subset: int = 2000,
        generator: torch.Generator | None = None,
    ) -> Normalizer:
        """Means, deviations, and as radius the `quantile` of the pair distances of at most `subset` samples.

        Pairs that coincide, as in pauses, do not count for the radius: it would be zero.

        Args:
            states: (N, S).
            actions: (N, A); without them the normaliser knows no scale of the actions, which a report needs.
            circular: Dimensions of the states that are angles in radians.
            quantile: Share of pairs that are closer than the radius.
            subset: Number of samples whose pairs are measured; subset^2 floats of memory.
            generator: Draws them.

        Returns:
            The normaliser.

        Raises:
            ValueError: If the states are not a finite (N, S) with N >= 2, all dimensions are constant, `circular`
                names none of them, `quantile` is not in (0, 1), or all of the subset coincide.
        """
        states = check_matrix("states", states)
        if len(states) < 2:
            raise ValueError(f"states must hold at least two samples, got {len(states)}")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        subset, angles = check_count("subset", subset), _checked_angles(circular, states.shape[1])
        columns = _unwound(states, angles)
        mean, std, kept = _standardisation(columns, states.shape[1] - len(angles))
        if not kept.any():
            raise ValueError("states must vary in at least one dimension, got all dimensions constant")
        chosen = torch.randperm(len(states), generator=generator)[:subset].to(states.device)
        pairs = torch.pdist((columns[chosen] - mean)[:, kept] / std[kept])
        pairs = pairs[pairs > 0]
        if not len(pairs):
            raise ValueError(
                f"subset must be larger: {len(chosen)} samples drawn of {len(states)} all coincide"
            )
        radius = float(pairs.kthvalue(int(quantile * len(pairs)) + 1).values)
        scale = () if actions is None else _action_scale(check_matrix("actions", actions))
        return cls(mean, std[kept], kept, radius, angles, *scale)

    def __call__(self, states: Tensor) -> Tensor:
        """(N, S) -> (N, columns kept), standardised.

        Raises:
            ValueError: If the states are not of the dimensions that the normaliser was fitted on.
        """
        wanted = len(self.kept) - len(self.circular)
        if states.ndim != 2 or states.shape[1] != wanted:
            raise ValueError(
                f"states must be (N, {wanted}) as the normalizer was fitted, got {tuple(states.shape)}"
            )
        columns, kept = _unwound(states, self.circular), self.kept.to(states.device)
        return (columns - self.mean.to(columns))[:, kept] / self.std.to(columns)

    @property
    def num_dimensions(self) -> int:
        """Dimensions of the states that vary, an angle being one."""
        plain = len(self.kept) - 2 * len(self.circular)
        return int(self.kept[:plain].sum()) + int(self.kept[plain:].sum()) // 2

    @property
    def deviations(self) -> Tensor:
        """(S,) standard deviation of each dimension of the states in its own unit; 0 where it was dropped."""
        columns = torch.zeros(len(self.kept), dtype=self.std.dtype, device=self.std.device)
        columns[self.kept] = self.std
        plain, found = self._plain, columns.new_zeros(len(self.kept) - len(self.circular))
        found[plain] = columns[: len(plain)]
        found[list(self.circular)] = columns[len(plain) :: 2]
        return found

    def in_columns(self, lengths: Tensor) -> Tensor:
        """(S,) lengths in the dimensions' own units -> (columns kept,) in standardised units."""
        columns = torch.cat([lengths[self._plain], lengths[list(self.circular)].repeat_interleave(2)])
        return columns[self.kept.to(columns.device)] / self.std.to(columns)

    @property
    def _plain(self) -> list[int]:
        return [
            column for column in range(len(self.kept) - len(self.circular)) if column not in self.circular
        ]

    def unit_actions(self, actions: Tensor) -> Tensor:
        """(N, A) -> (N, A) in units in which the frozen data's total variance is 1.

        Raises:
            ValueError: If the normaliser was fitted without actions, or on some of another width.
        """
        mean, _, variance = self._actions(actions)
        return (actions - mean.to(actions)) / (variance**0.5 or 1.0)

    def standard_actions(self, actions: Tensor) -> Tensor:
        """(N, A) -> (N, A), each dimension standardised.

        Raises:
            ValueError: As `unit_actions`.
        """
        mean, std, _ = self._actions(actions)
        return (actions - mean.to(actions)) / std.to(actions)

    def _actions(self, actions: Tensor) -> tuple[Tensor, Tensor, float]:
        if self.action_mean is None or self.action_std is None or self.action_variance is None:
            raise ValueError(
                "normalizer must know the actions' scale: Normalizer.fit(observations, actions), "
                "got one fitted without actions"
            )
        if actions.shape[1:] != self.action_mean.shape:
            raise ValueError(
                f"actions must be (N, {len(self.action_mean)}) as the normalizer was fitted, "
                f"got {tuple(actions.shape)}"
            )
        return self.action_mean, self.action_std, self.action_variance

    # --- keeping it ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, for `safetensors.torch.save_file` or `torch.save`."""
        found = {
            "mean": self.mean,
            "std": self.std,
            "kept": self.kept,
            "radius": torch.tensor(self.radius, dtype=torch.float64),
            "circular": torch.tensor(self.circular, dtype=torch.int64),
        }
        if self.action_mean is not None and self.action_std is not None and self.action_variance is not None:
            found |= {
                "action_mean": self.action_mean,
                "action_std": self.action_std,
                "action_variance": torch.tensor(self.action_variance, dtype=torch.float64),
            }
        return found

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Normalizer:
        """The normaliser that `state_dict` was taken of.

        Raises:
            ValueError: If entries are missing or not known.
        """
        if set(state_dict) not in (set(_OF_STATES), set(_OF_STATES + _OF_ACTIONS)):
            raise ValueError(f"state_dict must have the entries {list(_OF_STATES)}, got {sorted(state_dict)}")
        variance = state_dict.get("action_variance")
        return cls(
            state_dict["mean"],
            state_dict["std"],
            state_dict["kept"],
            float(state_dict["radius"]),
            tuple(state_dict["circular"].tolist()),
            state_dict.get("action_mean"),
            state_dict.get("action_std"),
            None if variance is None else float(variance),
        )


_OF_STATES = ("mean", "std", "kept", "radius", "circular")
_OF_ACTIONS = ("action_mean", "action_std", "action_variance")


def _checked_angles(circular: Sequence[int], num_dimensions: int) -> tuple[int, ...]:
    angles = tuple(check_count("circular", column, least=0) for column in circular)
    if len(set(angles)) != len(angles) or any(column >= num_dimensions for column in angles):
        raise ValueError(f"circular must be different columns in 0..{num_dimensions - 1}, got {list(angles)}")
    return angles


def _unwound(states: Tensor, angles: tuple[int, ...]) -> Tensor:
    """(N, S) -> (N, S + angles): the plain dimensions, and each angle as its cosine and sine at the end."""
    if not angles:
        return states
    plain = [column for column in range(states.shape[1]) if column not in angles]
    turned = states[:, list(angles)]
    return torch.cat([states[:, plain], torch.stack([turned.cos(), turned.sin()], dim=2).flatten(1)], dim=1)


def _standardisation(columns: Tensor, num_plain: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, deviations and which columns vary, summed in float64; the pairs behind `num_plain` are angles."""
    wide = columns.double()
    variance, kept = wide.var(0, correction=0), ~constant_columns(columns)
    pairs = variance[num_plain:].view(-1, 2).sum(1).repeat_interleave(2)
    turning = kept[num_plain:].view(-1, 2).any(1).repeat_interleave(2)
    std = torch.cat([variance[:num_plain], pairs]).sqrt().to(columns.dtype)
    return wide.mean(0).to(columns.dtype), std, torch.cat([kept[:num_plain], turning])


def _action_scale(actions: Tensor) -> tuple[Tensor, Tensor, float]:
    wide, constant = actions.double(), constant_columns(actions)
    variance = wide.var(0, correction=0).masked_fill(constant, 0)
    std = torch.where(constant, 1, variance.sqrt()).to(actions.dtype)
    return wide.mean(0).to(actions.dtype), std, float(variance.sum())
