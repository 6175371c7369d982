"""The regulariser that keeps the weights generated for old tasks where they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hypercrl._checks import check_same, choice, integer, number, pack, unwrapped
from hypercrl.hypernetwork import Delta, HyperNetwork

Importance = Tensor | Sequence[Mapping[str, Tensor]]


class OutputRegularizer(nn.Module):
    r"""Pin the weights that a hypernetwork generates for tasks `0 .. k-1` while it learns task `k`.

    $$L_{reg} = \frac{\beta}{k} \sum_{j<k} \lVert F_j^{1/2} (w^*_j - h_{\theta+\Delta\theta}(e_j)) \rVert^2, \;
    w^*_j = h_{\theta^*}(e_j)$$

    (arXiv 2009.11997, equation 4; von Oswald et al., 2020). Make it at the start of a task: `theta*` is the
    hypernetwork as it is now. All old tasks are generated in one batched call. The sum is kept in float32 at least.

    It is a module so that its targets and flags are in its `state_dict`: to go on in the middle of a task, load the
    hypernetwork, make the regulariser with the same flags, and load its state, which brings `importance` along. The
    hypernetwork is no part of it.

    Memory: `targets="store"` keeps `k * W` numbers; `targets="theta"` keeps `theta*` and the old embeddings and
    generates the targets anew in each call. Either way a call holds `k * W` numbers, or `max_tasks * W`.

    Args:
        hnet: The hypernetwork, at the start of the task.
        task_id: The task `k` that will be learnt; all tasks before it are pinned, tasks after it are not.
        beta: Strength, >= 0. It belongs to a task loss that is *summed* over the batch, with `batch_size` in
            `continual_step`; paper and official code: 0.05 (pusher, cheetah), 0.5 (door).
        lookahead: Look where the task's step leads: `True` by the optimizer's own change, `"sgd"` by `-lr * gradient`,
            `False` not at all, which is cheaper.
        targets: `"store"` or `"theta"`.
        max_tasks: Pin a random subset of so many old tasks in each call (the sum is divided by its size).
        importance: `F`: weights >= 0 of each generated weight of each old task, (k, W), or a mapping of the weights'
            names for each old task, as `diagonal_fisher` and `PathImportance` make them.
        plastic_embeddings: Train the old tasks' embeddings too, by this loss alone.
        backprop_delta: Let the gradient pass through the look-ahead change.

    Raises:
        ValueError: If the task is unknown, `beta` is negative, an option is unknown, or `importance` does not fit.
        TypeError: If `hnet` is no hypernetwork, or `importance` neither a tensor nor a sequence.

    Examples:
        >>> hnet = HyperNetwork(nn.Linear(3, 2))
        >>> first, second = hnet.add_task(), hnet.add_task()
        >>> regularizer = OutputRegularizer(hnet, second, beta=0.05)
        >>> regularizer.loss().detach()
        tensor(0.)
    """

    old_embeddings: Tensor
    targets: Tensor | None
    importance: Tensor | None

    def __init__(
        self,
        hnet: nn.Module,
        task_id: int,
        *,
        beta: float = 0.05,
        lookahead: bool | Literal["sgd"] = True,
        targets: Literal["store", "theta"] = "store",
        max_tasks: int | None = None,
        importance: Importance | None = None,
        plastic_embeddings: bool = False,
        backprop_delta: bool = False,
    ) -> None:
        super().__init__()
        inner = unwrapped(hnet)
        if not isinstance(inner, HyperNetwork):
            raise TypeError(f"hnet must be a HyperNetwork, got {type(inner).__name__}")
        inner.embedding(task_id)
        self._hnet = (inner,)  # in a tuple: not a part of this module's state
        self.task_id = int(task_id)
        self.beta = number("beta", beta)
        self.lookahead = choice("lookahead", lookahead, (True, False, "sgd"))
        self.target_mode = choice("targets", targets, ("store", "theta"))
        self.max_tasks = None if max_tasks is None else integer("max_tasks", max_tasks, 1)
        self.plastic_embeddings = bool(choice("plastic_embeddings", plastic_embeddings, (True, False)))
        self.backprop_delta = bool(choice("backprop_delta", backprop_delta, (True, False)))
        with torch.inference_mode(False), torch.no_grad():
            self._remember(inner)
            self.register_buffer("importance", self._checked_importance(importance))

    def _remember(self, hnet: HyperNetwork) -> None:
        if self.task_id:
            embeddings = torch.stack([hnet.embedding(task_id) for task_id in range(self.task_id)])
        else:
            embeddings = hnet.base.new_empty(0, hnet.embedding_dim)
        self.register_buffer("old_embeddings", embeddings)
        stored = self.target_mode == "store" and self.task_id > 0
        self.register_buffer("targets", hnet.forward_flat(embeddings) if stored else None)
        self._num_stored = 0
        if self.target_mode == "theta" and self.task_id > 0:
            for index, value in enumerate(hnet.theta()):
                self.register_buffer(f"theta_{index}", value.detach().clone())
            self._num_stored = len(hnet.theta())

    def _checked_importance(self, importance: Importance | None) -> Tensor | None:
        if importance is None:
            return None
        hnet = self.hnet
        if not isinstance(importance, (Tensor, Sequence)):
            raise TypeError(
                f"importance must be a tensor or a sequence of mappings, got {type(importance).__name__}"
            )
        if not isinstance(importance, Tensor):
            if len(importance) != self.task_id:
                raise ValueError(
                    f"importance must have one mapping for each of {self.task_id} old tasks, got {len(importance)}"
                )
            for one in importance:
                for name, shape in hnet.shapes.items():
                    if name not in one or one[name].shape != shape:
                        raise ValueError(
                            f"importance must give {name!r} of shape {tuple(shape)} for each old task"
                        )
            rows = [
                torch.cat([one[name].flatten().to(hnet.base) for name in hnet.shapes]) for one in importance
            ]
            importance = torch.stack(rows) if rows else hnet.base.new_empty(0, hnet.num_weights)
        if importance.shape != (self.task_id, hnet.num_weights):
            raise ValueError(
                f"importance must be ({self.task_id}, {hnet.num_weights}), got {tuple(importance.shape)}"
            )
        if not bool((torch.isfinite(importance) & (importance >= 0)).all()):
            raise ValueError("importance must be finite and >= 0")
        return importance.detach().to(hnet.base, copy=True)

    @property
    def hnet(self) -> HyperNetwork:
        """The hypernetwork whose output is pinned."""
        return self._hnet[0]

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept for the old tasks: targets or `theta*`, embeddings, importance."""
        return sum(value.numel() * value.element_size() for value in self.buffers())

    def loss(self, delta: Delta | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return the regulariser at `theta + delta`, for a task loss of one sample or a mean.

        Args:
            delta: Change of `theta` (and of old embeddings, if they are plastic), as `lookahead_delta` returns it.
            generator: Source of the random subset, used with `max_tasks` only.

        Returns:
            A scalar; 0 without old tasks.
        """
        hnet, tasks = self.hnet, self._subset(generator)
        if not len(tasks):
            return torch.zeros((), device=hnet.base.device, dtype=_wide(hnet.base.dtype))
        if self.plastic_embeddings:
            rows = [hnet.embeddings[task] for task in tasks]
            embeddings = torch.stack([row + delta[row] if delta and row in delta else row for row in rows])
        else:
            embeddings = self.old_embeddings[tasks]
        difference = (hnet.forward_flat(embeddings, delta) - self._pinned(tasks)).to(_wide(hnet.base.dtype))
        squares = difference.square()
        if self.importance is not None:
            squares = squares * self.importance[tasks]
        return squares.sum() * (self.beta / len(tasks))

    forward = loss

    def drift(self) -> Tensor:
        """Return how far each old task's weights have moved since the task started, `||w*_j - w_j||`, (k,)."""
        tasks = list(range(self.task_id))
        if not tasks:
            return self.old_embeddings.new_zeros(0)
        with torch.no_grad():
            embeddings = torch.stack([self.hnet.embeddings[task] for task in tasks])
            return torch.linalg.vector_norm(self.hnet.forward_flat(embeddings) - self._pinned(tasks), dim=1)

    def _subset(self, generator: torch.Generator | None) -> list[int]:
        if self.max_tasks is None or self.max_tasks >= self.task_id:
            return list(range(self.task_id))
        device = None if generator is None else generator.device
        return torch.randperm(self.task_id, generator=generator, device=device)[: self.max_tasks].tolist()

    def _pinned(self, tasks: list[int]) -> Tensor:
        if self.target_mode == "store":
            assert self.targets is not None
            return self.targets if len(tasks) == self.task_id else self.targets[tasks]
        with torch.no_grad():
            theta = [getattr(self, f"theta_{index}") for index in range(self._num_stored)]
            return self.hnet.generate(self.old_embeddings[tasks], theta)

    def _saved_importance(self, saved: Tensor | None) -> Tensor | None:
        if saved is None and self.importance is not None:
            raise ValueError("state_dict was saved without importance, this OutputRegularizer has it")
        return None if saved is None else self._checked_importance(saved)

    # --- saving ----------------------------------------------------------------------------------------

    def _configuration(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "beta": self.beta,
            "lookahead": self.lookahead,
            "targets": self.target_mode,
            "max_tasks": self.max_tasks,
            "plastic_embeddings": self.plastic_embeddings,
            "backprop_delta": self.backprop_delta,
        }

    def get_extra_state(self) -> Tensor:
        """Return the flags as a tensor."""
        return pack(self._configuration())

    def set_extra_state(self, state: Any) -> None:
        """Refuse the state of other flags."""
        check_same("OutputRegularizer", state, self._configuration())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if (state := state_dict.get(f"{prefix}_extra_state")) is not None:
            self.set_extra_state(state)
            self.register_buffer("importance", self._saved_importance(state_dict.get(f"{prefix}importance")))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
