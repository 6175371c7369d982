"""What stands in a series where the mask is zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timex_explain._checks import (
    check_count,
    check_device,
    check_finite,
    check_padding,
    check_same_shape,
    check_series,
    check_tensor,
    clean_padded,
)


class Replacement(nn.Module):
    """What stands in a series where the mask is zero: a draw from what is usual at that time and sensor.

    x' = m x + (1 - m) b with b ~ N(mean_td, std_td), drawn anew for every series (arXiv 2306.02109,
    section 4.2), so that a masked series stays in distribution, which zeros would not. With `std` zero
    it is replacement by the mean. Mean and deviation are buffers: they move and are saved with the module.

    Args:
        mean: (T, D).
        std: (T, D), not negative.

    Raises:
        ValueError: If the shapes differ or are not (T, D), or `std` is negative or anything not finite.
        TypeError: If the dtypes are not floating-point.

    Examples:
        >>> x = torch.randn(100, 50, 3)
        >>> replacement = Replacement.fit(x)
        >>> torch.equal(replacement(x, torch.ones_like(x)), x)
        True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for value, name in ((mean, "mean"), (std, "std")):
            check_tensor(value, name)
            if not value.is_floating_point():
                raise TypeError(f"{name} must be floating-point, got {value.dtype}")
            if value.dim() != 2 or value.numel() == 0:
                raise ValueError(f"{name} must be (T, D) and not empty, got shape {tuple(value.shape)}")
            check_finite(value, name)
        check_same_shape(std, mean, "std", "mean")
        if bool((std < 0).any()):
            raise ValueError("std must not be negative, got negative values")
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def fit(cls, x: Tensor, padding: Tensor | None = None) -> Replacement:
        """Take mean and standard deviation (unbiased) of every point and sensor over training series.

        Args:
            x: (N, T, D) training series, N at least 2.
            padding: (N, T) bool, true where a series has ended; such points do not count, and may be NaN.

        Returns:
            The replacement. Points that fewer than two series reach have deviation zero, and those that
            none reaches the mean of the others. Half precision is computed in float32.

        Raises:
            ValueError: If `x` is not 3-D, has fewer than two series, or is not finite.
            TypeError: If `x` is not floating-point, or `padding` not bool.
        """
        check_series(x)
        check_count(len(x), "the number of series in x", 2)
        check_padding(padding, x)
        x = clean_padded(x, padding)
        check_finite(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        keep = torch.ones_like(exact[..., :1])
        if padding is not None:
            keep = (~padding).to(exact.dtype).unsqueeze(-1)
        count = keep.sum(0)
        mean = (exact * keep).sum(0) / count.clamp_min(1)
        # A large mean is rounded: what it lacks is added, and does not count as deviation.
        mean = mean + ((exact - mean) * keep).sum(0) / count.clamp_min(1)
        rest = ((exact - mean) * keep).sum(0) / count.clamp_min(1)
        squares = ((exact - mean - rest).square() * keep).sum(0)
        reached = (count > 0).to(exact.dtype)
        usual = (mean * reached).sum(0) / reached.sum().clamp_min(1)
        mean = torch.where(count > 0, mean, usual)
        return cls(mean.to(x.dtype), (squares / (count - 1).clamp_min(1)).sqrt().to(x.dtype))

    @property
    def length(self) -> int:
        """T, the number of time points."""
        return self.mean.shape[0]

    @property
    def num_features(self) -> int:
        """D, the number of sensors."""
        return self.mean.shape[1]

    def forward(self, x: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Keep `x` where the mask is one and replace it where the mask is zero.

        Args:
            x: (batch, T, D).
            mask: (batch, T, D) in [0, 1]; in between, a mixture.
            generator: Source of the draws, on the device of `x`.

        Returns:
            (batch, T, D), bitwise `x` where the mask is one, and without any gradient to `x` where it is zero.

        Raises:
            ValueError: If the shapes do not fit the fitted T and D.
            TypeError: If `x` is not floating-point or on another device.
        """
        check_series(x, length=self.length, sensors=self.num_features)
        check_same_shape(mask, x, "mask", "x")
        check_device(self.mean, x.device, "the replacement")
        return torch.lerp(self.draw(x, generator), x, mask.to(x.dtype))

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw what would replace all of `x`, (batch, T, D)."""
        noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return torch.addcmul(self.mean.to(x.dtype), self.std.to(x.dtype), noise)

    def standardize(self, x: Tensor) -> Tensor:
        """Bring every sensor to mean 0 and deviation 1 over all points and series fitted.

        So the explainer's own networks see series of any unit and offset alike; the classifier's own units
        are for the classifier.

        Args:
            x: (batch, T, D).

        Returns:
            (batch, T, D); a sensor that is constant is only centred.
        """
        mean, std = (value.to(torch.promote_types(x.dtype, torch.float32)) for value in (self.mean, self.std))
        centre = mean.mean(0)
        scale = (std.square() + (mean - centre).square()).mean(0).sqrt()
        return ((x - centre) / torch.where(scale > 0, scale, 1)).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"length={self.length}, num_features={self.num_features}"
