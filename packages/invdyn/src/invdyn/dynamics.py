"""Objectives that predict the next observation: by reconstruction, by contrast, and contrast without time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from invdyn._checks import checked_count, checked_number
from invdyn.networks import MLP, ActionEncoder
from invdyn.objective import Embedded, Objective
from invdyn.views import Observation, map_views, parameter_dtype, view_tensors


class _Dynamics(Objective):
    """An objective that may read the actions between the frames."""

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        include_action: bool,
        action_embed_dim: int,
        hidden: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__(encoder, embed_dim, action_dim, **options)
        self._reads_action = bool(include_action)
        self.action_encoder = (
            ActionEncoder(self.action_dim * max(self.nstep, 1), action_embed_dim, hidden)
            if include_action
            else None
        )

    def _several_actions(self) -> bool:
        return self.nstep > 1

    def _joint(self, obs: Tensor, action: Tensor | None) -> Tensor:
        """[phi(o), psi(a)], or phi(o) where actions are left out."""
        if self.action_encoder is None:
            return obs
        if action is None:
            raise ValueError("action must be given with include_action=True, got None")
        if self.discrete:
            action = one_hot(action.long(), self.action_dim)
        return torch.cat([obs, self.action_encoder(action.to(parameter_dtype(self.action_encoder)))], -1)

    def _given_action(self, given: Embedded) -> Tensor | None:
        return given.action_seq if self._several_actions() else given.action

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"include_action": self.action_encoder is not None}


class ForwardReconstruction(_Dynamics):
    """Forward dynamics by reconstruction: L = mean of (decoder([phi(o), psi(a)]) - (o' - 0.5))^2 over pixels.

    Args:
        encoder: As for every `Objective`.
        decoder: Any module that makes an observation of (B, embed_dim + action_embed_dim), such as
            `PixelDecoder`; a mapping of views of a mapping.
        embed_dim: d.
        action_dim: A.
        include_action: Whether the decoder is told the action.
        action_embed_dim: Of psi(a).
        hidden: Widths of psi.
        target_offset: Subtracted from the target.
        nstep: n; with n > 1 psi reads all n actions.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> objective = ForwardReconstruction(nn.Linear(5, 8), nn.Linear(8 + 64, 5), embed_dim=8, action_dim=2)
        >>> objective(torch.randn(16, 5), torch.randn(16, 2)).shape
        torch.Size([16, 5])
    """

    _reconstructs = True

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        include_action: bool = True,
        action_embed_dim: int = 64,
        hidden: Sequence[int] = (256, 256),
        target_offset: float = 0.5,
        nstep: int = 1,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            include_action=include_action,
            action_embed_dim=action_embed_dim,
            hidden=hidden,
            nstep=nstep,
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )
        if not isinstance(decoder, nn.Module):
            raise TypeError(f"decoder must be a torch.nn.Module, got {type(decoder).__name__}")
        self.decoder = decoder
        self.target_offset = float(target_offset)

    def predict(self, obs: Observation, action: Tensor | None = None) -> Observation:
        """Return the predicted next observation, as `next_obs` is: the offset added again.

        Args:
            obs: (B, ...) or a mapping of views.
            action: (B, A) real numbers or (B,) integers; (B, A, n) or (B, n) with n > 1.
        """
        found = self.decoder(self._joint(self.embed(obs), action))
        return map_views(lambda view: view + self.target_offset, found)

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        assert given.target is not None
        found = self.decoder(self._joint(given.frames["obs"], self._given_action(given)))
        self._check_decoded(found, given.target)

        def squares(prediction: Tensor, target: Tensor) -> Tensor:
            exact = torch.promote_types(prediction.dtype, torch.float32)
            errors = prediction.to(exact) - (target.to(exact) - self.target_offset)
            return errors.square().flatten(1).mean(1)

        losses = map_views(squares, found, given.target)
        return torch.stack(view_tensors("decoder", losses)).mean(0)

    def _check_decoded(self, found: Any, target: Observation) -> None:
        def shapes(obs: Any) -> Any:
            if isinstance(obs, Tensor):
                return tuple(obs.shape)
            return {name: tuple(view.shape) for name, view in obs.items()} if hasattr(obs, "items") else obs

        if shapes(found) != shapes(target):
            raise ValueError(
                f"decoder must return the shape of next_obs, {shapes(target)}, got {shapes(found)}"
            )

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"target_offset": self.target_offset}


def info_nce(u: Tensor, v: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Contrast of matching rows with all others: mean_i of -l_ii + log sum_j exp(l_ij), l = u v^T / temperature.

    One direction only, negatives of the batch only, as the paper's forward dynamics has it. Rows are taken as
    they are; put them on the unit sphere first.

    Args:
        u: (B, k).
        v: (B, k), whose row i belongs to row i of `u`.
        temperature: Above 0; a tensor may be learned and is not looked at.

    Returns:
        A scalar of at least float32; log B where all rows are equal.

    Raises:
        ValueError: If shapes differ, B is below 2, or the temperature is not positive.

    Examples:
        >>> rows = torch.ones(4, 3)
        >>> round(info_nce(rows, rows).exp().item(), 4)
        4.0
    """
    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(f"u and v must be (B, k), got {tuple(u.shape)} and {tuple(v.shape)}")
    if not isinstance(temperature, Tensor):
        checked_number("temperature", temperature, 0, open_at="low")
    return _contrast(u, v, temperature).mean()


def _contrast(u: Tensor, v: Tensor, temperature: float | Tensor) -> Tensor:
    """(B,) losses of `info_nce`."""
    if len(u) < 2:
        raise ValueError(f"batch must have at least 2 transitions for a contrast, got {len(u)}")
    exact = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        logits = u.to(exact) @ v.to(exact).T / temperature
    return cross_entropy(logits, torch.arange(len(u), device=u.device), reduction="none")


class ContrastiveDynamics(_Dynamics):
    """Contrastive forward dynamics: tell which next observation belongs to an observation and its action.

    u = P1([phi(o), psi(a)]), v = P2(phi(o')), both on the unit sphere; L = `info_nce(u, v, temperature)`.
    Negatives are the other transitions of the batch: of one process under DistributedDataParallel, and of one
    micro-batch under gradient accumulation. In `loss_sequence` they are all other transitions of all sequences.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        action_dim: A.
        temperature: Above 0.
        include_action: Whether u is told the action.
        share_encoder: Whether phi encodes o' too; else `next_encoder` does. Projectors are never shared.
        next_encoder: With `share_encoder=False`; a copy of `encoder`, if not given.
        label_smoothing: In [0, 1]. This share of the rows of u, the first of the batch, is permuted.
        projection_dim: k.
        action_embed_dim: Of psi(a).
        hidden: Widths of psi and of both projectors.
        dropout: In the projectors.
        nstep: n; with n > 1 psi reads all n actions.
        discrete: Whether actions are integers.
        unit_pixels: As for every `Objective`.
        validate: As for every `Objective`.

    Examples:
        >>> objective = ContrastiveDynamics(nn.Linear(5, 8), embed_dim=8, action_dim=2)
        >>> obs, next_obs = torch.randn(2, 16, 5)
        >>> u, v = objective(obs, next_obs, torch.randn(16, 2))
        >>> u.shape, v.shape
        (torch.Size([16, 64]), torch.Size([16, 64]))
    """

    _uses = ("obs", "next_obs")

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        temperature: float = 1.0,
        include_action: bool = True,
        share_encoder: bool = True,
        next_encoder: nn.Module | None = None,
        label_smoothing: float = 0.0,
        projection_dim: int = 64,
        action_embed_dim: int = 64,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        nstep: int = 1,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            include_action=include_action,
            action_embed_dim=action_embed_dim,
            hidden=hidden,
            nstep=nstep,
            discrete=discrete,
            unit_pixels=unit_pixels,
            validate=validate,
        )
        self.temperature = checked_number("temperature", temperature, 0, open_at="low")
        self.label_smoothing = checked_number("label_smoothing", label_smoothing, 0, 1)
        if share_encoder and next_encoder is not None:
            raise ValueError("next_encoder must be None with share_encoder=True")
        self.next_encoder = None if share_encoder else next_encoder or copy.deepcopy(encoder)
        joint = self.embed_dim + (
            checked_count("action_embed_dim", action_embed_dim) if include_action else 0
        )
        size = checked_count("projection_dim", projection_dim)
        self.projector = MLP(joint, hidden, size, dropout)
        self.next_projector = MLP(self.embed_dim, hidden, size, dropout)

    def predict(
        self, obs: Observation, next_obs: Observation, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return u and v, (B, k) each, on the unit sphere.

        Args:
            obs: (B, ...) or a mapping of views.
            next_obs: The same, n steps later.
            action: (B, A) real numbers or (B,) integers; (B, A, n) or (B, n) with n > 1.
        """
        frames = self._embed_batch({"obs": obs, "next_obs": next_obs})
        return self._project(frames["obs"], frames["next_obs"], action)

    def _project(self, obs: Tensor, next_obs: Tensor, action: Tensor | None) -> tuple[Tensor, Tensor]:
        u, v = self.projector(self._joint(obs, action)), self.next_projector(next_obs)
        exact = torch.promote_types(u.dtype, torch.float32)
        return normalize(u.to(exact), dim=1), normalize(v.to(exact), dim=1)

    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        u, v = self._project(given.frames["obs"], given.frames["next_obs"], self._given_action(given))
        count = int(len(u) * self.label_smoothing)
        if count > 1:
            own = generator.device if generator is not None else u.device
            order = torch.randperm(count, generator=generator, device=own).to(u.device)
            u = torch.cat([u[:count][order], u[count:]])
        return _contrast(u, v, self.temperature)

    def _encoders(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        if self.next_encoder is None:
            return super()._encoders()
        return [(self.encoder, ("obs",)), (self.next_encoder, ("next_obs",))]

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
            "share_encoder": self.next_encoder is None,
        }


class StaticContrast(ContrastiveDynamics):
    """SimCLR as the paper compares with it: the contrast of two augmentations of one frame, with no action.

    It is `ContrastiveDynamics` with n = 0: give it batches of `transition_index(lengths, nstep=0)` whose two
    frames `augment_batch` has changed independently. Without augmentation the task is trivial.

    Args:
        encoder: As for every `Objective`.
        embed_dim: d.
        temperature: Above 0.
        share_encoder: As for `ContrastiveDynamics`.
        next_encoder: As for `ContrastiveDynamics`.
        label_smoothing: As for `ContrastiveDynamics`.
        projection_dim: k.
        hidden: Widths of both projectors.
        dropout: In the projectors.
        unit_pixels: As for every `Objective`.

    Examples:
        >>> objective = StaticContrast(nn.Linear(5, 8), embed_dim=8)
        >>> u, v = objective(*torch.randn(2, 16, 5))
        >>> u.shape
        torch.Size([16, 64])
    """

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        *,
        temperature: float = 1.0,
        share_encoder: bool = True,
        next_encoder: nn.Module | None = None,
        label_smoothing: float = 0.0,
        projection_dim: int = 64,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        unit_pixels: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            embed_dim,
            1,
            temperature=temperature,
            include_action=False,
            share_encoder=share_encoder,
            next_encoder=next_encoder,
            label_smoothing=label_smoothing,
            projection_dim=projection_dim,
            hidden=hidden,
            dropout=dropout,
            nstep=0,
            unit_pixels=unit_pixels,
        )
