"""Masks: which points of a series an explanation keeps, and how they are drawn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from timex_explain._checks import (
    check_count,
    check_padding,
    check_positive,
    check_series,
    check_tensor,
    check_times,
    clean_padded,
)
from timex_explain._transformer import DecoderLayer, EncoderLayer

_EPSILON = 1e-9  # keeps the log-odds of p = 0 and p = 1 finite
_POSITION_BASE = 10_000.0


class Mask(NamedTuple):
    """A mask over points and sensors.

    Attributes:
        prob: (batch, T, D), the probability that a value is kept: the saliency map.
        sample: (batch, T, D), a draw from it, in {0, 1} if hard, with a gradient to `prob`.
    """

    prob: Tensor
    sample: Tensor


def straight_through_bernoulli(
    prob: Tensor,
    temperature: float = 1.0,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw zeros and ones that carry the gradient of a relaxed draw.

    s = sigmoid((logit p + l) / temperature) with l ~ Logistic(0, 1), which is the second entry of the
    Gumbel-softmax of (log(1 - p), log p): the difference of two Gumbel variables is logistic (arXiv
    2306.02109, section 4.2). With `hard`, the value is 1[s > 1/2] and the gradient that of s.

    Args:
        prob: Probabilities of any shape, in [0, 1]. Half precision is computed in float32.
        temperature: Positive. The lower, the nearer the relaxed draw is to zero or one.
        hard: Whether the values are zeros and ones or the relaxed draw itself.
        generator: Source of the noise, on the device of `prob`.

    Returns:
        A draw with the shape and dtype of `prob`. Its mean over draws is p if `hard`.

    Raises:
        ValueError: If a probability lies outside [0, 1] or the temperature is not positive.
        TypeError: If `prob` is not floating-point.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = straight_through_bernoulli(torch.full((10000,), 0.3), generator=generator)
        >>> sorted(set(draws.tolist())), round(draws.mean().item(), 1)
        ([0.0, 1.0], 0.3)
    """
    check_positive(temperature, "temperature")
    check_prob(prob)
    return sample_bernoulli(prob, temperature, hard, generator)


def check_prob(prob: Tensor) -> None:
    """Refuse anything but probabilities."""
    check_tensor(prob, "prob")
    if not prob.is_floating_point():
        raise TypeError(f"prob must be floating-point, got {prob.dtype}")
    if not bool(((prob >= 0) & (prob <= 1)).all()):
        raise ValueError("prob must lie in [0, 1], got values outside")


def sample_bernoulli(
    prob: Tensor, temperature: float, hard: bool, generator: torch.Generator | None
) -> Tensor:
    """`straight_through_bernoulli` without its checks."""
    exact = prob.to(torch.promote_types(prob.dtype, torch.float32))
    # Open interval: a uniform draw of exactly zero would be an infinite noise.
    uniform = torch.rand(exact.shape, dtype=exact.dtype, device=exact.device, generator=generator)
    uniform = uniform.clamp_min(torch.finfo(exact.dtype).tiny)
    log_odds = (exact + _EPSILON).log() - (1 - exact + _EPSILON).log()
    soft = torch.sigmoid((log_odds + uniform.log() - torch.log1p(-uniform)) / temperature)
    if hard:
        # The bracket is exactly zero, so the values are exactly zeros and ones.
        soft = (soft > 0.5).to(soft.dtype) + (soft - soft.detach())
    return soft.to(prob.dtype)


def encode_positions(times: Tensor, size: int, base: float = _POSITION_BASE) -> Tensor:
    """Encode time stamps by sines and cosines.

    [sin(t / s_i), cos(t / s_i)] with size/2 scales s_i from 1 to `base` in geometric progression. It
    reads the stamps themselves, so irregular sampling is seen; neighbouring points should be about one
    unit apart.

    Args:
        times: (batch, T).
        size: Even number of channels.
        base: The longest scale, at least 1.

    Returns:
        (batch, T, size).

    Raises:
        ValueError: If `size` is not even and positive, or `base` below 1.

    Examples:
        >>> encode_positions(torch.zeros(1, 1), 4).tolist()
        [[[0.0, 0.0, 1.0, 1.0]]]
    """
    check_tensor(times, "times")
    if size < 2 or size % 2:
        raise ValueError(f"size must be even and positive, got {size}")
    if not 1 <= base < float("inf"):
        raise ValueError(f"base must be at least 1 and finite, got {base}")
    if not times.is_floating_point():
        times = times.double()  # seconds since 1970 are too many for float32
    exponents = torch.linspace(0, 1, size // 2, dtype=times.dtype, device=times.device)
    angles = times.unsqueeze(-1) / base**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _with_positions(x: Tensor, times: Tensor, size: int, base: float) -> Tensor:
    """Append the encoding of time to the values; stamps that all series share are encoded once."""
    shared = times[:1] if times.stride(0) == 0 else times
    if shared.is_floating_point():  # half precision cannot count far
        shared = shared.to(torch.promote_types(shared.dtype, torch.float32))
    positions = encode_positions(shared, size, base).to(x.dtype)
    return torch.cat([x, positions.expand(len(x), -1, -1)], dim=-1)


def default_times(x: Tensor) -> Tensor:
    """Time stamps 1..T for every series, in float32 at least: bfloat16 ends at 256."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return torch.arange(1, x.shape[1] + 1, dtype=exact, device=x.device).expand(x.shape[0], -1)


class SequenceEncoder(nn.Module):
    """A small transformer over a series and its time stamps: what the mask decoder looks at.

    The encoder G_M of the paper's figure 2: [x ; positions] through transformer layers, one state per
    time point. It is trained with the explainer; the explained model is never asked for its states.

    Args:
        num_features: D.
        position_size: Channels of the encoding of time, even.
        num_layers: Transformer layers.
        feedforward_size: Width of their feed-forward networks.
        dropout: Dropout in the layers.
        position_base: The longest scale of the encoding of time.
        device: Where the parameters are made.
        dtype: Their dtype.
    """

    def __init__(
        self,
        num_features: int,
        *,
        position_size: int = 16,
        num_layers: int = 1,
        feedforward_size: int = 32,
        dropout: float = 0.1,
        position_base: float = _POSITION_BASE,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.position_size, self.position_base = position_size, position_base
        self.size = num_features + position_size
        made = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            EncoderLayer(self.size, feedforward_size, dropout, **made) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, times: Tensor, padding: Tensor | None = None) -> Tensor:
        """Encode series (batch, T, D) with times (batch, T) into states (batch, T, D + position_size)."""
        x, times = clean_padded(x, padding), clean_padded(times, padding)
        states = _with_positions(x, times, self.position_size, self.position_base)
        for layer in self.layers:
            states = layer(states, padding)
        return states


class MaskGenerator(nn.Module):
    """Decide for every time point and sensor how likely it belongs to the explanation.

    A transformer decoder reads [x ; positions] as its target and states of the series as its memory; a
    linear head turns each of its outputs into probabilities: for one sensor by a softmax over
    {leave, keep}, for several by a sigmoid per sensor (arXiv 2306.02109, section 4.2). The mask is then
    drawn by `straight_through_bernoulli`.

    Args:
        num_features: D.
        memory_size: Channels of the memory; projected if it is not D + position_size. None means that size.
        position_size: Channels of the encoding of time, even.
        num_layers: Decoder layers.
        feedforward_size: Width of their feed-forward networks.
        dropout: Dropout in the layers.
        temperature: Of the draw.
        hard: Whether masks are zeros and ones (True), or relaxed draws.
        position_base: The longest scale of the encoding of time.
        device: Where the parameters are made.
        dtype: Their dtype.

    Raises:
        ValueError: If a size is not positive or the temperature not positive.

    Examples:
        >>> generator = MaskGenerator(num_features=3)
        >>> x, memory = torch.randn(2, 20, 3), torch.randn(2, 20, 19)
        >>> mask = generator(x, memory)
        >>> mask.prob.shape, set(mask.sample.unique().tolist()) <= {0.0, 1.0}
        (torch.Size([2, 20, 3]), True)
    """

    def __init__(
        self,
        num_features: int,
        memory_size: int | None = None,
        *,
        position_size: int = 16,
        num_layers: int = 2,
        feedforward_size: int = 32,
        dropout: float = 0.1,
        temperature: float = 1.0,
        hard: bool = True,
        position_base: float = _POSITION_BASE,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_features": num_features, "num_layers": num_layers, "feedforward_size": feedforward_size}
        for name, value in sizes.items():
            check_count(value, name)
        check_positive(temperature, "temperature")
        self.num_features, self.position_size, self.position_base = num_features, position_size, position_base
        self.temperature, self.hard = temperature, hard
        size = num_features + position_size
        self.project_memory: nn.Module = nn.Identity()
        if memory_size is not None and memory_size != size:
            check_count(memory_size, "memory_size")
            self.project_memory = nn.Linear(memory_size, size, device=device, dtype=dtype)
        made = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            DecoderLayer(size, feedforward_size, dropout, **made) for _ in range(num_layers)
        )
        self.head = nn.Linear(size, 2 if num_features == 1 else num_features, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.constant_(self.head.bias, 0.01)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        times: Tensor | None = None,
        padding: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Mask:
        """Make the mask of each series.

        Args:
            x: (batch, T, D).
            memory: (batch, S, memory_size) states of the same series, S often T.
            times: (batch, T) time stamps; 1..T if None.
            padding: (batch, T) bool, true where a series has ended. Not looked at, and in no mask.
            generator: Source of the draw, on the device of `x`.

        Returns:
            Probabilities and a draw, (batch, T, D); both zero at padded points.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If dtypes or devices do not fit.
        """
        check_series(x)
        check_series(x, length=x.shape[1], sensors=self.num_features)
        check_tensor(memory, "memory")
        if memory.dim() != 3 or memory.shape[0] != x.shape[0]:
            raise ValueError(f"memory must be ({x.shape[0]}, S, channels), got shape {tuple(memory.shape)}")
        check_times(times, x)
        check_padding(padding, x)
        x = clean_padded(x, padding)
        memory = clean_padded(memory, padding if memory.shape[1] == x.shape[1] else None)
        stamps = default_times(x) if times is None else clean_padded(times, padding)
        prob = self.prob(x, memory, stamps, padding)
        sample = sample_bernoulli(prob, self.temperature, self.hard, generator)
        return Mask(prob, sample if padding is None else sample.masked_fill(padding.unsqueeze(-1), 0))

    def prob(self, x: Tensor, memory: Tensor, times: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the probabilities alone, (batch, T, D), with nothing drawn."""
        states = _with_positions(x, times, self.position_size, self.position_base)
        memory = self.project_memory(memory)
        memory_padding = padding if memory.shape[1] == x.shape[1] else None
        for layer in self.layers:
            states = layer(states, memory, padding, memory_padding)
        scores = self.head(states)
        # A softmax over two is the sigmoid of the difference.
        prob = torch.sigmoid(scores[..., 1:] - scores[..., :1] if self.num_features == 1 else scores)
        return prob if padding is None else prob.masked_fill(padding.unsqueeze(-1), 0)


def attention_mask(sample: Tensor) -> Tensor:
    """Turn a mask over points and sensors into one over pairs of points.

    M_ij = m_i m_j with m_t = min(1, sum_d m_td): a point takes part in attention if any of its sensors
    is kept.

    Args:
        sample: (batch, T, D) in [0, 1].

    Returns:
        (batch, T, T), to be multiplied into attention weights, with a gradient to the mask.

    Examples:
        >>> attention_mask(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])).tolist()
        [[[1.0, 0.0], [0.0, 0.0]]]
    """
    check_tensor(sample, "sample")
    point = nn.functional.hardtanh(sample.sum(-1))
    return point.unsqueeze(1) * point.unsqueeze(2)
