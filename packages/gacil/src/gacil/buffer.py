"""The fixed random layer that widens the features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gacil.checks import as_size, check_tensor


class RandomBuffer(nn.Module):
    """One fixed random layer, h = activation(z W), which gives a linear classifier more to work with.

    W is drawn from U(-1 / sqrt(d), 1 / sqrt(d)), as `torch.nn.Linear` is, and never trained (arXiv
    2403.15706, section 3.1; the official code's buffer layer). It is a buffer of the module: it travels in
    `state_dict`, and features made with another W are worthless to a classifier. The activation does not
    travel: build the layer with the same one.

    Args:
        in_features: d, width of the backbone's features.
        out_features: M, width of the expansion; thousands.
        activation: Elementwise function.
        generator: Draws W, on its own device.
        dtype: Of W; the default dtype if None.

    Raises:
        ValueError: If a size is below 1, or `dtype` not a floating one.
        TypeError: If a size is not an integer, or `activation` cannot be called.

    Examples:
        >>> buffer = RandomBuffer(4, 6, generator=torch.Generator().manual_seed(0))
        >>> buffer(torch.ones(2, 4)).shape, [*buffer.parameters()]
        (torch.Size([2, 6]), [])
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = as_size("in_features", in_features), as_size("out_features", out_features)
        if not callable(activation):
            raise TypeError(f"activation must be a function of a tensor, got {activation!r}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype}")
        device = None if generator is None else generator.device
        with torch.inference_mode(False):
            uniform = torch.rand(shape, generator=generator, dtype=dtype, device=device)
            self.register_buffer("weight", (2 * uniform - 1) / shape[0] ** 0.5)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Expand features (..., d) to (..., M), in the dtype of the layer, also under autocast.

        Raises:
            ValueError: If the features are not d wide.
            TypeError: If they are not a tensor.
        """
        check_tensor("features", features)
        if features.ndim < 1 or features.shape[-1] != self.weight.shape[0]:
            raise ValueError(
                f"features must have shape (..., {self.weight.shape[0]}), got {tuple(features.shape)}"
            )
        with torch.autocast(features.device.type, enabled=False):
            return self.activation(features.to(self.weight.dtype) @ self.weight)

    @torch.no_grad()
    def checksum(self) -> int:
        """Number that two layers share only if their weights are equal bit by bit (almost surely).

        Another activation gives another number too; the numbers of ReLU layers are those of 0.1.0.
        """
        bits = self.weight.double().contiguous().view(torch.int64).flatten()
        odd = 2 * torch.arange(bits.numel(), device=bits.device) + 1
        return int(((bits ^ (bits >> 29)) * odd).sum()) + self._activation_checksum()

    def _activation_checksum(self) -> int:
        """0 for ReLU, so that layers stored before activations counted keep their number."""
        points = torch.tensor([-8.0, -2.0, -0.5, 0.5, 2.0, 8.0]).to(self.weight).unsqueeze(1)
        probe = points.expand(-1, self.weight.shape[1]).contiguous()
        difference = (self.activation(probe.clone()) - probe.relu()).double().mean(1)
        tenths = (10 * difference).round().long()  # coarse: the same on every device and in every dtype
        return sum(tenth * 1009**place for place, tenth in enumerate(tenths.tolist()))

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}"
