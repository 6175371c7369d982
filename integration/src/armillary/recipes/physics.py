"""One flow forecast in two ways: `koopmanlimits` with modes that carry a residual, `poseidon-lite` with a network.

pip install armillary koopmanlimits poseidon-lite
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from armillary.recipes._packages import joined

with joined("koopmanlimits", "poseidon-lite"):
    from koopmanlimits import POD, Identity, Modes, forecast, galerkin, pod, resdmd
    from poseidon_lite import relative_error, rollout

Dictionary = Callable[[Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KoopmanFlow:
    """A linear model of a flow in the coordinates of its leading spatial modes.

    Attributes:
        basis: The spatial modes.
        dictionary: Functions of their coordinates, on which the model is linear.
        modes: Eigenvalues, eigenfunctions and residuals, best first.
    """

    basis: POD
    dictionary: Dictionary
    modes: Modes

    def forecast(self, fields: Tensor, steps: int) -> Tensor:
        """Forecast flows from one field each.

        Args:
            fields: (B, C, n, n).
            steps: Number of snapshots ahead.

        Returns:
            (B, steps, C, n, n), in the dtype of the fields.
        """
        start = self.dictionary(self.basis.encode(fields.flatten(1)))
        coordinates = forecast(self.modes, start, steps).mean
        return self.basis.decode(coordinates).to(fields.dtype).unflatten(-1, fields.shape[1:])


def fit_koopman(
    flows: Tensor,
    fresh: Tensor,
    *,
    rank: int,
    dictionary: Dictionary | None = None,
    max_residual: float | None = None,
) -> KoopmanFlow:
    """Fit a Koopman model and measure its residuals on flows that it was not fitted to.

    Args:
        flows: (B, T, C, n, n) trajectories of equally spaced snapshots.
        fresh: (B', T, C, n, n) further trajectories of the same kind.
        rank: Number of spatial modes (proper orthogonal decomposition of `flows`).
        dictionary: Coordinates (M, rank) -> functions (M, N); the coordinates themselves if None.
        max_residual: Drop eigenpairs whose residual on `fresh` is larger; None keeps all.

    Returns:
        The model.

    Raises:
        ValueError: If shapes differ, or no eigenpair is left.
    """
    if flows.dim() != 5 or fresh.dim() != 5 or flows.shape[1:] != fresh.shape[1:] or flows.shape[1] < 2:
        raise ValueError(
            "flows and fresh must be (trajectories, snapshots, channels, n, n) of the same sizes with at least two "
            f"snapshots, got {tuple(flows.shape)} and {tuple(fresh.shape)}"
        )
    lift = dictionary or Identity()
    basis = pod(flows.flatten(0, 1).flatten(1), rank)

    def lifted(trajectories: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates (M, rank) of all snapshots but the last ones, functions of them, and of their successors."""
        coordinates = basis.encode(trajectories.flatten(2))
        before, after = coordinates[:, :-1].flatten(0, 1), coordinates[:, 1:].flatten(0, 1)
        return before, lift(before), lift(after)

    states, psi_x, psi_y = lifted(flows)
    _, fresh_x, fresh_y = lifted(fresh)
    modes = resdmd(galerkin(psi_x, psi_y), max_residual, fresh=galerkin(fresh_x, fresh_y))
    if len(modes) == 0:
        raise ValueError(f"max_residual must leave at least one eigenpair, got {max_residual}")
    return KoopmanFlow(basis, lift, modes.with_state(psi_x, states))


def error_over_horizon(predicted: Tensor, truth: Tensor) -> Tensor:
    """Median relative L1 error in percent over trajectories, for each snapshot ahead.

    Args:
        predicted: (B, steps, C, n, n).
        truth: The same.

    Returns:
        (steps,).
    """
    groups = (truth.shape[2],)
    pairs = zip(predicted.unbind(1), truth.unbind(1), strict=True)
    errors = [relative_error(mine, true, groups=groups)[:, 0] for mine, true in pairs]
    return torch.stack(errors).median(dim=1).values


@torch.no_grad()
def compare(flows: Tensor, lead_times: Tensor, koopman: KoopmanFlow, network: Network) -> dict[str, Tensor]:
    """Forecast held-out flows from their first snapshots and measure the errors over the horizon.

    Args:
        flows: (B, T, C, n, n) trajectories that neither model has seen.
        lead_times: (T - 1,) equally spaced lead times of the later snapshots, as the network takes them.
        koopman: The Koopman model.
        network: Maps fields (B, C, n, n) and lead times (B,) to fields, such as a `ScOT` in evaluation mode.

    Returns:
        Name of the forecast -> (T - 1,) errors in percent: `koopman`; `network, direct`, each lead time in one call;
        `network, rollout`, one call a snapshot; `persistence`, the first snapshot for ever.

    Raises:
        ValueError: If there are not as many lead times as later snapshots.
    """
    start, truth = flows[:, 0], flows[:, 1:]
    steps, batch = truth.shape[1], len(flows)
    if lead_times.shape != (steps,):
        raise ValueError(f"lead_times must have shape ({steps},), got {tuple(lead_times.shape)}")
    direct = torch.stack([network(start, time.expand(batch)) for time in lead_times], dim=1)
    stepped = rollout(network, start, lead_times[-1].expand(batch), steps=steps, all_steps=True)
    found = {
        "koopman": koopman.forecast(start, steps),
        "network, direct": direct,
        "network, rollout": stepped,
        "persistence": start.unsqueeze(1).expand_as(truth),
    }
    return {name: error_over_horizon(predicted, truth) for name, predicted in found.items()}
