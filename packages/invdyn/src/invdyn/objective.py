"""What all seven objectives share: one encoder, a loss of a batch, a loss of whole sequences."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invdyn._checks import check_finite, check_range, check_tensor, checked_count, is_integer
from invdyn.transitions import Batch, SequenceBatch
from invdyn.views import Observation, map_views, num_rows, parameter_dtype, to_unit, view_tensors


@dataclass(frozen=True)
class Embedded:
    """Transitions whose frames have passed the encoder: what an objective's own part is given.

    Attributes:
        frames: "obs", "next_obs" and "goal", as far as the objective uses them, (B, embed_dim) each.
        action: (B, A), or (B,) integers.
        action_seq: (B, A, n), or (B, n) integers.
        task: (B,) integers.
        target: The next observation itself, bytes made floats.
    """

    frames: Mapping[str, Tensor]
    action: Tensor
    action_seq: Tensor | None
    task: Tensor | None
    target: Observation | None


class Objective(nn.Module, ABC):
    """A pretraining objective of an encoder: a scalar loss of transitions, or of whole sequences.

    All frames of a batch pass the encoder in one call, so that batch normalisation sees them together. Called
    with a `Batch`, an objective returns its loss. Under DistributedDataParallel call the wrapper like that:
    `.loss` of the module inside would leave the gradients of the processes apart.

    Args:
        encoder: Any module that makes (B, embed_dim) of an observation, or of a mapping of views.
        embed_dim: d.
        action_dim: A, numbers of one action; with `discrete`, how many actions there are to choose from.
        nstep: n, steps between the two frames.
        discrete: Whether actions are integers 0..A-1.
        unit_pixels: Whether observations of dtype uint8 become floats in [0, 1] before the encoder.
        validate: Whether to look at the values of actions and tasks of each batch. On a GPU that waits for
            the device once a loss; compiled code never does it.

    Attributes:
        encoder: What it is all for.
    """

    _uses: ClassVar[tuple[str, ...]] = ("obs",)
    _reads_action = True
    _reads_task = False
    _reconstructs = False

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        *,
        nstep: int = 1,
        discrete: bool = False,
        unit_pixels: bool = True,
        validate: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a torch.nn.Module, got {type(encoder).__name__}")
        self.encoder = encoder
        self.embed_dim = checked_count("embed_dim", embed_dim)
        self.action_dim = checked_count("action_dim", action_dim)
        self.nstep = checked_count("nstep", nstep, 0)
        self.discrete, self.unit_pixels, self.validate = bool(discrete), bool(unit_pixels), bool(validate)

    # --- the public face ---------------------------------------------------------------------------

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the loss of a `Batch` or `SequenceBatch`, or what `predict` makes of observations."""
        if inputs and isinstance(inputs[0], Batch):
            return self.loss(*inputs, **named)
        if inputs and isinstance(inputs[0], SequenceBatch):
            return self.loss_sequence(*inputs[0], **named)
        return self.predict(*inputs, **named)

    @abstractmethod
    def predict(self, *inputs: Any, **named: Any) -> Any:
        """What the objective predicts, from observations."""

    def loss(self, batch: Batch, *, generator: torch.Generator | None = None) -> Tensor:
        """Mean loss of the transitions of a batch.

        Args:
            batch: See `Batch`.
            generator: Only of the label smoothing of `ContrastiveDynamics`.

        Returns:
            A scalar of at least float32.

        Raises:
            ValueError: If the batch is empty, lacks a field, or shapes or values do not fit.
            TypeError: If actions are integers with `discrete=False`, or the other way round.
        """
        return self.loss_and_embedding(batch, generator=generator)[0]

    def loss_and_embedding(
        self, batch: Batch, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and phi(o) for what is trained alongside (see `StateProbe`).

        Args:
            batch: See `Batch`.
            generator: As of `loss`.

        Returns:
            A scalar, and (B, embed_dim) embeddings of `batch.obs` with their gradient.

        Raises:
            ValueError: As `loss`.
            TypeError: As `loss`.
        """
        size = num_rows("obs", batch.obs)
        frames = {name: self._frame(batch, name, size) for name in self._uses}
        self._check_transitions(batch.action, batch.action_seq, batch.task, size)
        given = Embedded(
            frames=self._embed_batch(frames),
            action=batch.action,
            action_seq=batch.action_seq,
            task=batch.task,
            target=self._prepared(self._frame(batch, "next_obs", size)) if self._reconstructs else None,
        )
        return self._losses(given, generator).mean(), given.frames["obs"]

    def loss_sequence(
        self,
        obs: Observation,
        action: Tensor,
        lengths: Tensor | None = None,
        task: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean loss of all transitions of whole sequences: each frame is encoded once, where `loss` does it twice.

        Equals `loss` on the transitions that `transition_index` lists.

        Args:
            obs: (B, T + 1, ...) frames, or a mapping of views.
            action: (B, T, A) real numbers, or (B, T) integers.
            lengths: (B,) actions of each sequence, T if not given. What lies beyond is never encoded.
            task: (B,) integers; only for `MultiHeadBC`.
            generator: As of `loss`.

        Returns:
            A scalar of at least float32, in which each transition weighs the same.

        Raises:
            ValueError: As `loss`, or if there is not one frame more than actions.
            TypeError: As `loss`.
        """
        self._check_sequences(obs, action, lengths, task)
        flat = map_views(lambda view: view.flatten(0, 1), obs)
        rows = _sequence_rows(action.shape[0], action.shape[1], lengths, self.nstep, action.device)
        sequences = action.flatten(0, 1)[rows["action"]]  # (N, n, A), or (N, n)
        action_seq = sequences.transpose(1, 2) if sequences.ndim == 3 else sequences
        tasks = None if task is None else task[rows["sequence"]]
        self._check_transitions(sequences[:, 0], action_seq, tasks, len(sequences))
        given = Embedded(
            frames=self._embed_rows(flat, rows),
            action=sequences[:, 0],
            action_seq=action_seq,
            task=tasks,
            target=self._prepared(map_views(lambda view: view[rows["next_obs"]], flat))
            if self._reconstructs
            else None,
        )
        return self._losses(given, generator).mean()

    def embed(self, obs: Observation) -> Tensor:
        """phi(o): bytes made floats, then the encoder, checked.

        Args:
            obs: (B, ...) or a mapping of views.

        Returns:
            (B, embed_dim).

        Raises:
            ValueError: If the encoder returns another shape.
            TypeError: If it returns no tensor.
        """
        return self._embed_with(self.encoder, obs)

    # --- what each objective says of itself --------------------------------------------------------

    @abstractmethod
    def _losses(self, given: Embedded, generator: torch.Generator | None) -> Tensor:
        """(B,) losses."""

    def _encoders(self) -> list[tuple[nn.Module, tuple[str, ...]]]:
        """Which module encodes which frames."""
        return [(self.encoder, self._uses)]

    def _settings(self) -> dict[str, Any]:
        """What decides a result and is no weight: kept in the state dict."""
        names = ("embed_dim", "action_dim", "nstep", "discrete", "unit_pixels")
        return {"objective": type(self).__name__} | {name: getattr(self, name) for name in names}

    # --- encoding ----------------------------------------------------------------------------------

    def _prepared(self, obs: Observation) -> Observation:
        return to_unit(obs, parameter_dtype(self.encoder)) if self.unit_pixels else obs

    def _embed_with(self, encoder: nn.Module, obs: Observation) -> Tensor:
        size = num_rows("obs", obs)
        found = encoder(self._prepared(obs))
        if not isinstance(found, Tensor):
            raise TypeError(
                f"encoder must return a tensor (B, embed_dim), got {type(found).__name__}: wrap it in a module "
                "that does"
            )
        if found.shape != (size, self.embed_dim):
            raise ValueError(
                f"embed_dim must be the encoder's: expected ({size}, {self.embed_dim}) of it, got {tuple(found.shape)}"
            )
        return found

    def _embed_batch(self, frames: Mapping[str, Observation]) -> dict[str, Tensor]:
        """Embeddings of named frames, with one call of each encoder."""
        found: dict[str, Tensor] = {}
        for encoder, names in self._encoders():
            together = map_views(lambda *views: torch.cat(views), *(frames[name] for name in names))
            parts = self._embed_with(encoder, together).chunk(len(names))
            found |= dict(zip(names, parts, strict=True))
        return found

    def _embed_rows(self, flat: Observation, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same for rows of a flat buffer, each of which an encoder sees at most once."""
        total = num_rows("obs", flat)
        found: dict[str, Tensor] = {}
        for encoder, names in self._encoders():
            wanted = torch.zeros(total, dtype=torch.bool, device=rows["obs"].device)
            for name in names:
                wanted[rows[name]] = True
            chosen = wanted.nonzero().squeeze(1)
            if len(chosen) < total:
                frames = map_views(lambda view, chosen=chosen: view[chosen], flat)
            else:
                frames = flat
            embeddings = self._embed_with(encoder, frames)
            place = wanted.cumsum(0) - 1
            found |= {name: embeddings[place[rows[name]]] for name in names}
        return found

    # --- checks ------------------------------------------------------------------------------------

    def _frame(self, batch: Batch, name: str, size: int) -> Observation:
        frame = getattr(batch, name)
        if frame is None:
            raise ValueError(f"{name} must be in the batch for {type(self).__name__}, got None")
        found = num_rows(name, frame)
        if found != size:
            raise ValueError(f"{name} must have {size} rows, as obs, got {found}")
        return frame

    def _check_transitions(
        self, action: Tensor, action_seq: Tensor | None, task: Tensor | None, size: int
    ) -> None:
        if size == 0:
            raise ValueError("batch must have at least one transition, got none")
        if self._reads_action:
            self._check_action("action", action, (size, self.action_dim), (size,))
            if self._several_actions():
                steps = self.nstep
                self._check_action("action_seq", action_seq, (size, self.action_dim, steps), (size, steps))
        if self._reads_task:
            self._check_task(task, size)

    def _several_actions(self) -> bool:
        """Whether the objective reads all actions between the frames."""
        return False

    def _check_action(self, name: str, action: Any, real: tuple[int, ...], whole: tuple[int, ...]) -> None:
        if action is None:
            raise ValueError(f"{name} must be in the batch for nstep={self.nstep}, got None")
        check_tensor(name, action)
        if is_integer(action) != self.discrete:
            wanted = "integers with discrete=True" if self.discrete else "real numbers with discrete=False"
            raise TypeError(f"{name} must be {wanted}, got {action.dtype}")
        shape = whole if self.discrete else real
        if action.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(action.shape)}")
        if not self.validate or torch.compiler.is_compiling():
            return
        if self.discrete:
            check_range(name, action, self.action_dim, "action_dim")
        else:
            check_finite(name, action)
            self._check_bounds(name, action)

    def _check_bounds(self, name: str, action: Tensor) -> None:
        """Raise ValueError for actions that the objective cannot predict."""

    def _check_task(self, task: Tensor | None, size: int) -> None:
        """Raise an error unless tasks are what the objective needs."""

    def _check_sequences(
        self, obs: Observation, action: Tensor, lengths: Tensor | None, task: Tensor | None
    ) -> None:
        check_tensor("action", action)
        if action.ndim != (2 if is_integer(action) else 3):
            raise ValueError(f"action must be (B, T, A), or (B, T) integers, got {tuple(action.shape)}")
        batch, time = action.shape[:2]
        for view in view_tensors("obs", obs):
            if view.shape[:2] != (batch, time + 1):
                raise ValueError(
                    f"obs must be ({batch}, {time + 1}, ...), one frame more than actions, got {tuple(view.shape)}"
                )
        if lengths is not None:
            if not is_integer(check_tensor("lengths", lengths)):
                raise TypeError(f"lengths must be integers, got {lengths.dtype}")
            if lengths.shape != (batch,):
                raise ValueError(f"lengths must be ({batch},), got {tuple(lengths.shape)}")
            if self.validate and not torch.compiler.is_compiling():
                check_range("lengths", lengths, time + 1, "actions of a sequence, plus 1")
        if task is not None and check_tensor("task", task).shape != (batch,):
            raise ValueError(f"task must be ({batch},), one integer a sequence, got {tuple(task.shape)}")

    # --- the state dict ----------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """The settings as bytes in a tensor, which any format of checkpoints can keep."""
        text = json.dumps(self._settings(), sort_keys=True)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise ValueError where a checkpoint was made with other settings."""
        theirs, ours = json.loads(bytes(state.tolist()).decode()), self._settings()
        differing = [
            f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            raise ValueError(f"the state dict is of another {type(self).__name__}: {'; '.join(differing)}")


def action_losses(prediction: Tensor, action: Tensor, *, discrete: bool) -> Tensor:
    """(B,) losses of predicted actions: squared errors, mean over dims, or cross-entropies.

    Args:
        prediction: (B, A) or (B, A, n), actions or logits.
        action: (B, A) or (B, A, n) real numbers; (B,) or (B, n) integers.
        discrete: Which of the two.
    """
    exact = torch.promote_types(prediction.dtype, torch.float32)
    if discrete:
        losses = nn.functional.cross_entropy(prediction.to(exact), action.long(), reduction="none")
        return losses if losses.ndim == 1 else losses.mean(1)
    return (prediction.to(exact) - action.to(exact)).square().flatten(1).mean(1)


def _sequence_rows(
    batch: int, time: int, lengths: Tensor | None, nstep: int, device: torch.device
) -> dict[str, Tensor]:
    """Rows of the N transitions in flattened frames (B (T + 1)), actions (B T) and sequences (B)."""
    steps = torch.arange(time, device=device).expand(batch, time)
    last = (
        torch.full((batch, 1), time, device=device) if lengths is None else lengths.to(device).long()[:, None]
    )
    sequence = torch.arange(batch, device=device)[:, None].expand(batch, time)
    if lengths is None:
        step, number, end = steps.reshape(-1), sequence.reshape(-1), last.expand(batch, time).reshape(-1)
    else:
        kept = steps < last
        step, number, end = steps[kept], sequence[kept], last.expand(batch, time)[kept]
    ahead = step[:, None] + torch.arange(max(nstep, 1), device=device)
    first = number * (time + 1)
    return {
        "obs": first + step,
        "next_obs": first + torch.minimum(step + nstep, end),
        "goal": first + end,
        "action": number[:, None] * time + torch.minimum(ahead, end[:, None] - 1),
        "sequence": number,
    }
