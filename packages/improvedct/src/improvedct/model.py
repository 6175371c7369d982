"""The consistency function: a network of the user's own, wrapped so that no noise means no change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from improvedct.noise import NoiseRange, Stage

_STATE = "_extra_state"  # torch's name of what `get_extra_state` returns


class Consistency(nn.Module):
    """f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma)).

    c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2), c_out = sd (sigma - sigma_min) / sqrt(sd^2 + sigma^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4 (arXiv 2303.01469, appendix C), so that
    f(x, sigma_min) = x for every network F.

    The factors and the sum are computed in float32 at least, whatever dtype the network works in. The network is
    given x and c_noise in the dtype of x. The `state_dict` carries the noise range, as it decides what f is; it does
    not load into a model of another range.

    Args:
        net: Called as `net(x, c_noise, **cond)` with x (B, ...) and c_noise (B,); returns the shape of x, as a
            tensor, as the `sample` of an object, or first in a tuple.
        noise_range: The range; the paper's if None.

    Examples:
        >>> class Net(nn.Module):
        ...     def forward(self, x, c_noise):
        ...         return torch.zeros_like(x)
        >>> model = Consistency(Net())
        >>> model(torch.ones(1, 2), torch.tensor([0.002]))  # no noise, no change
        tensor([[1., 1.]])
    """

    # What the last step used; of this process, so neither pickled nor copied.
    _stage: Stage | None = None
    _looked_at: Stage | None = None

    def __init__(self, net: nn.Module, noise_range: NoiseRange | None = None) -> None:
        super().__init__()
        self.net = net
        self.noise_range = noise_range or NoiseRange()

    def forward(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Map noisy data to the start of their path.

        Args:
            x: (B, ...) floating point.
            sigma: (B,) noise levels within the range.
            **cond: Passed on to the network.

        Returns:
            (B, ...) in float32 at least.

        Raises:
            ValueError: If sigma is not (B,) or, where that can be seen for free (on the CPU, outside of
                compilation), not within the range; if the network changes the shape.
            TypeError: If x or sigma is not floating point, or the network answers with something else.
        """
        self._check_input(x, sigma)
        exact = torch.promote_types(x.dtype, torch.float32)
        sigma = sigma.to(exact)
        level, data = sigma.view(-1, *[1] * (x.dim() - 1)), self.noise_range.sigma_data
        beyond, c_in = level - self.noise_range.sigma_min, (level.square() + data**2).rsqrt()
        c_skip, c_out = data**2 / (beyond.square() + data**2), data * beyond * c_in
        output = _tensor_of(self.net((x * c_in).to(x.dtype), (sigma.log() / 4).to(x.dtype), **cond))
        if output.shape != x.shape:
            raise ValueError(
                f"net must return the shape of its input, {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        return c_skip * x + c_out * output.to(exact)

    def stage(self, n: int, device: torch.device, dtype: torch.dtype) -> Stage:
        """The grid of n boundaries with the paper's index probabilities; the last one is kept for the next call."""
        kept = self._stage
        if (
            kept is None
            or (kept.n, kept.sigmas.device, kept.sigmas.dtype) != (n, device, dtype)
            or kept.noise_range != self.noise_range
        ):
            kept = self._stage = Stage(n, self.noise_range, device=device, dtype=dtype)
        return kept

    def get_extra_state(self) -> Tensor:
        """The noise range, for the `state_dict`."""
        return torch.tensor(self.noise_range.as_tuple(), dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the noise range of a `state_dict` with this model's.

        Raises:
            ValueError: If they differ.
        """
        theirs, ours = state.tolist(), self.noise_range.as_tuple()
        # Not exactly: states are stored in half precision and averaged, too.
        if not all(math.isclose(a, b, rel_tol=0.01) for a, b in zip(theirs, ours, strict=True)):
            raise ValueError(
                f"state_dict is that of a model with {NoiseRange(*theirs)}, this one has {self.noise_range}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_stage", "_looked_at")}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # States of version 0.1 do not tell their range, and load into any.
        state_dict.setdefault(prefix + _STATE, self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_input(self, x: Tensor, sigma: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma must be ({len(x)},), one level for each of x, got {tuple(sigma.shape)}")
        if not sigma.is_floating_point():
            raise TypeError(f"sigma must be floating point, got {sigma.dtype}")
        if not _values_are_free(sigma):
            return
        low, high = self.noise_range.sigma_min, self.noise_range.sigma_max
        smallest, largest = (level.item() for level in torch.aminmax(sigma))
        # A level stored in a shorter dtype may round to just outside the range.
        slack = 1 + torch.finfo(sigma.dtype).eps
        if not low <= smallest * slack or not largest <= high * slack:
            raise ValueError(f"sigma must be in [{low}, {high}], got values in [{smallest}, {largest}]")


def find_bare(model: nn.Module) -> Any | None:
    """The module that has a noise range of its own, inside of what wraps it; None if there is none.

    DistributedDataParallel, DataParallel, AveragedModel and their like keep what they wrap as `module`,
    torch.compile as `_orig_mod`. An attribute `module` of a module that has a noise range itself is its own affair.
    """
    inner: Any = model
    while not _has_range(inner):
        wrapped = (getattr(inner, name, None) for name in ("_orig_mod", "module"))
        inner = next((module for module in wrapped if isinstance(module, nn.Module)), None)
        if inner is None:  # a wrapper of another make may hand attributes through
            return model if hasattr(model, "noise_range") else None
    return inner


def _has_range(module: Any) -> bool:
    """Whether the range is its own; a wrapper may hand the attributes of what it wraps through."""
    if isinstance(module, Consistency):  # first, for torch 2.4 cannot compile the rest
        return True
    return "noise_range" in getattr(module, "__dict__", ()) or hasattr(type(module), "noise_range")


def bare_of(model: nn.Module) -> Any:
    """As `find_bare`.

    Raises:
        TypeError: If there is none.
    """
    found = find_bare(model)
    if found is None:
        raise TypeError(
            f"model must be a Consistency, or a module with a noise_range, bare or wrapped, got {type(model).__name__}"
        )
    return found


def conditioning(cond: dict[str, Any], model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the network is told: what came by name, and what came apart, as its name is taken."""
    if model_kwargs is None:
        return cond
    if twice := sorted(cond.keys() & model_kwargs.keys()):
        raise ValueError(f"model_kwargs must not repeat what is given by name, got {', '.join(twice)} twice")
    return {**cond, **model_kwargs}


def _values_are_free(sigma: Tensor) -> bool:
    """Whether the values can be looked at without waiting for a device, in no graph and under no transformation."""
    return (
        sigma.device.type == "cpu"
        and sigma.numel() > 0
        and not torch.compiler.is_compiling()
        and type(sigma) is Tensor  # a fake one has no values
        and not torch._C._functorch.is_functorch_wrapped_tensor(sigma)
    )


def _tensor_of(answer: Any) -> Tensor:
    """The tensor in what a network answers."""
    found = getattr(answer, "sample", answer) if not isinstance(answer, Tensor) else answer
    if isinstance(found, (tuple, list)) and found:  # torch 2.4 cannot compile a union here
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"net must return a tensor, an object with a tensor `sample`, or a tuple that begins with one, "
            f"got {type(answer).__name__}"
        )
    return found
