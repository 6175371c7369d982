"""The consistency function: a network of the user's own, wrapped so that no noise means no change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from improvedct.noise import NoiseRange, Stage


class Consistency(nn.Module):
    """f(x, sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x, c_noise(sigma)).

    c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2), c_out = sd (sigma - sigma_min) / sqrt(sd^2 + sigma^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4 (arXiv 2303.01469, appendix C), so that
    f(x, sigma_min) = x for every network F.

    The factors and the sum are computed in float32 at least, whatever dtype the network works in.

    Args:
        net: Called as `net(x, c_noise, **cond)` with x (B, ...) and c_noise (B,); returns the shape of x.
        noise_range: The range; the paper's if None.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, c_noise):
        ...         return torch.zeros_like(x)
        >>> model = Consistency(Net())
        >>> model(torch.ones(1, 2), torch.tensor([0.002]))  # no noise, no change
        tensor([[1., 1.]])
    """

    def __init__(self, net: nn.Module, noise_range: NoiseRange | None = None) -> None:
        super().__init__()
        self.net = net
        self.noise_range = noise_range or NoiseRange()
        self._stages: dict[tuple[int, torch.device, torch.dtype], Stage] = {}

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
        """
        self._check_sigma(x, sigma)
        exact = torch.promote_types(x.dtype, torch.float32)
        level = sigma.to(exact).view(-1, *[1] * (x.dim() - 1))
        data = self.noise_range.sigma_data
        beyond, total = level - self.noise_range.sigma_min, level.square() + data**2
        inputs = (x * total.rsqrt()).to(x.dtype)
        output = self.net(inputs, sigma.log().div(4).to(x.dtype), **cond)
        if output.shape != x.shape:
            raise ValueError(
                f"net must return the shape of its input, {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        c_skip, c_out = data**2 / (beyond.square() + data**2), data * beyond * total.rsqrt()
        return c_skip * x + c_out * output.to(exact)

    def stage(self, n: int, device: torch.device, dtype: torch.dtype) -> Stage:
        """The grid of n boundaries with the paper's index probabilities, kept for the next call."""
        key = (n, device, dtype)
        if key not in self._stages:
            self._stages[key] = Stage(n, self.noise_range, device=device, dtype=dtype)
        return self._stages[key]

    def _check_sigma(self, x: Tensor, sigma: Tensor) -> None:
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma must be ({len(x)},), one level for each of x, got {tuple(sigma.shape)}")
        if sigma.device.type != "cpu" or torch.compiler.is_compiling():
            return
        low, high = self.noise_range.sigma_min, self.noise_range.sigma_max
        smallest, largest = (level.item() for level in torch.aminmax(sigma))
        # A level stored in a shorter dtype may round to just outside the range.
        slack = 1 + torch.finfo(sigma.dtype).eps
        if not low <= smallest * slack or not largest <= high * slack:
            raise ValueError(f"sigma must be in [{low}, {high}], got values in [{smallest}, {largest}]")
