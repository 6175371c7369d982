"""What a probe has read in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


class NamedValues(Mapping[str, float]):
    """A read-only dict of numbers that are kept in one tensor.

    Args:
        names: The keys.
        values: (P,) the numbers.

    Examples:
        >>> import torch
        >>> dict(NamedValues(("bias",), torch.tensor([0.5])))
        {'bias': 0.5}
    """

    def __init__(self, names: tuple[str, ...], values: Tensor):
        self.names = names
        self.values_tensor = values

    def __getitem__(self, name: str) -> float:
        try:
            return float(self.values_tensor[self.names.index(name)])
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"NamedValues({dict(self.items())})"

    # Mapping's own looks every key up again.
    def items(self):  # type: ignore[no-untyped-def]  # noqa: D102
        return dict(zip(self.names, self.values_tensor.tolist(), strict=True)).items()


@dataclass(frozen=True)
class Reading:
    r"""One measured step; tensors are on the CPU.

    Attributes:
        step: Its number, from 0.
        layers: Names of the L modules that attended.
        max_logit: (L,) largest $|z_{ij}|$ over ranks, sequences, heads, queries and visible keys; infinite
            where one is no number. An upper bound in the probe's mode "bound".
        max_logit_by_head: L tensors (heads,).
        mean_entropy: (L,) mean entropy of the attention in nats, NaN in the mode "bound".
        log_z: Mean over tokens of the output's log-partition $\log Z = \log \sum e^y$, None where no logits were seen.
        log_z_rms: Root mean square of the same: the z-loss is its square.
        grad_rms: By tensor, root mean square of the gradient as the optimizer takes it: unscaled and clipped.
        update_rms: By tensor, that of $\hat m / (\sqrt{\hat v} + \epsilon)$.
        eps_ratio: By tensor, $\epsilon$ over the root mean square of $\sqrt{\hat v}$.
        parameter_rms: By tensor, that of the parameter after the step.
    """

    step: int
    layers: tuple[str, ...]
    max_logit: Tensor
    max_logit_by_head: tuple[Tensor, ...]
    mean_entropy: Tensor
    log_z: float | None
    log_z_rms: float | None
    grad_rms: NamedValues
    update_rms: NamedValues
    eps_ratio: NamedValues
    parameter_rms: NamedValues

    def as_dict(self) -> dict[str, float]:
        """Flat, for a logger.

        Returns:
            Numbers by keys such as `max_logit/layers.0.attention`.
        """
        flat = {
            f"{kind}/{layer}": value
            for kind in ("max_logit", "mean_entropy")
            for layer, value in zip(self.layers, getattr(self, kind).tolist(), strict=True)
        }
        for kind in ("log_z", "log_z_rms"):
            if getattr(self, kind) is not None:
                flat[kind] = getattr(self, kind)
        for kind in ("grad_rms", "update_rms", "eps_ratio", "parameter_rms"):
            flat |= {f"{kind}/{name}": value for name, value in getattr(self, kind).items()}
        return flat

    def alarms(self, *, max_logit: float = 1e4, eps_ratio: float = 0.1) -> list[str]:
        """Say what has passed a danger level.

        Args:
            max_logit: Runs whose largest attention logit passed about 1e4 diverged (section 3.1.1 of the paper).
            eps_ratio: Above a tenth, epsilon takes a noticeable part of the update (section 3.4).

        Returns:
            One sentence a layer or tensor; a number that is none alarms too.
        """
        found = [
            f"max attention logit {value:.3g} in {layer} is above {max_logit:g}"
            for layer, value in zip(self.layers, self.max_logit.tolist(), strict=True)
            if not value <= max_logit
        ]
        return found + [
            f"epsilon is {value:.3g} of the root mean square gradient of {name}, above {eps_ratio:g}"
            for name, value in self.eps_ratio.items()
            if not value <= eps_ratio
        ]
