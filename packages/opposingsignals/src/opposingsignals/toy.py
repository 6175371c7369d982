"""Toy models whose opposing signals are known: a two-layer linear network, and a valley of two coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opposingsignals._checks import checked_count, checked_number


class TwoLayerNet(nn.Module):
    """f(x) = c b·x, with x = (x_s, x_o): the last entry of b is the weight b_o on the opposing feature.

    Args:
        c: The outer weight.
        b: The inner weights, (d + 1,).

    Examples:
        >>> net = TwoLayerNet(torch.tensor(2.0), torch.tensor([1.0, 0.5]))
        >>> net(torch.tensor([[1.0, 2.0]]))
        tensor([4.], grad_fn=<MulBackward0>)
    """

    def __init__(self, c: Tensor, b: Tensor) -> None:
        super().__init__()
        self.c, self.b = nn.Parameter(c.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Predict, (n, d + 1) to (n,)."""
        return self.c * (x @ self.b)


@dataclass(frozen=True)
class OpposingTask:
    """Regression with a rare, large feature that two groups of examples pull in opposite directions.

    x_s ~ N(0, I); x_o is ±m with probability p/2 each, else 0, with m² = α/p so that E x_o² = α; the label is
    y = β·x_s + κ |x_o| + noise. A linear model's best weight on x_o is 0, yet x_o = m wants +κ and x_o = -m wants -κ.
    The structure is that of the theory of Rosenfeld and Risteski (2024), the constants are free here.

    Args:
        dimension: d, of the signal.
        probability: p, of the two groups together, in (0, 1].
        variance: α = E x_o².
        beta_norm: ||β||; β points along (1, ..., 1).
        kappa: κ.
        noise: Standard deviation of the label's noise.

    Raises:
        ValueError: If an argument is outside of its range.

    Examples:
        >>> task = OpposingTask(dimension=3, probability=0.5, variance=8.0)
        >>> x, y, group = task.sample(100, generator=torch.Generator().manual_seed(0))
        >>> x.shape, task.magnitude, sorted(set(group.tolist()))
        (torch.Size([100, 4]), 4.0, [-1, 0, 1])
    """

    dimension: int = 20
    probability: float = 0.02
    variance: float = 10.0
    beta_norm: float = 1.0
    kappa: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        checked_count("dimension", self.dimension)
        checked_number("probability", self.probability, 0.0, 1.0, strict=True)
        checked_number("variance", self.variance, 0.0, strict=True)
        checked_number("beta_norm", self.beta_norm, 0.0, strict=True)
        checked_number("kappa", self.kappa, 0.0)
        checked_number("noise", self.noise, 0.0)

    @property
    def magnitude(self) -> float:
        """M = sqrt(α / p), the size of the opposing feature where it is there."""
        return math.sqrt(self.variance / self.probability)

    @property
    def beta(self) -> Tensor:
        """β, (d,)."""
        return torch.full((self.dimension,), self.beta_norm / math.sqrt(self.dimension))

    def sample(
        self, num_examples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw examples.

        Args:
            num_examples: n.
            generator: Draws them.

        Returns:
            Inputs (n, d + 1), labels (n,), and the group of each, +1, -1 or 0, (n,).
        """
        n = checked_count("num_examples", num_examples)
        signal = torch.randn(n, self.dimension, generator=generator)
        drawn = torch.rand(n, generator=generator)
        group = (drawn < self.probability).long() - 2 * (drawn < self.probability / 2).long()
        opposing = self.magnitude * group
        noise = self.noise * torch.randn(n, generator=generator)
        labels = signal @ self.beta + self.kappa * opposing.abs() + noise
        return torch.cat([signal, opposing[:, None]], dim=1), labels, group

    def net(self, s0: float, b_o: float = 0.0) -> TwoLayerNet:
        """A balanced network: c² = ||b_s||² = s0, b_s along β.

        Args:
            s0: Signal c ||b_s|| to start from.
            b_o: Weight on the opposing feature.

        Returns:
            The network.
        """
        size = math.sqrt(checked_number("s0", s0, 0.0, strict=True))
        inner = torch.cat([size * self.beta / self.beta_norm, torch.tensor([float(b_o)])])
        return TwoLayerNet(torch.tensor(size), inner)

    def population_loss(self, net: TwoLayerNet) -> Tensor:
        """1/2 E (y - f)² = 1/2 ||β - c b_s||² + 1/2 α (κ² + c² b_o²) + 1/2 noise².

        Args:
            net: The network.

        Returns:
            The loss, with its graph.
        """
        residual = self.beta.to(net.b) - net.c * net.b[:-1]
        tail = self.variance * (self.kappa**2 + (net.c * net.b[-1]).square())
        return (residual.square().sum() + tail + self.noise**2) / 2

    def group_losses(self, net: TwoLayerNet) -> Tensor:
        """Expected losses of the two groups and of the rest, given their group.

        1/2 ||β - c b_s||² + 1/2 noise² + 1/2 m² (κ ∓ c b_o)² for x_o = ±m.

        Args:
            net: The network.

        Returns:
            Losses of x_o = +m, x_o = -m and x_o = 0, (3,).
        """
        shared = ((self.beta.to(net.b) - net.c * net.b[:-1]).square().sum() + self.noise**2) / 2
        pull = net.c * net.b[-1]
        own = torch.stack([self.kappa - pull, self.kappa + pull, torch.zeros_like(pull)])
        return shared + self.magnitude**2 * own.square() / 2


def two_layer_flow(time: Tensor, beta_norm: float, s0: float) -> Tensor:
    """Signal s = c ||b_s|| of balanced gradient flow, b_o = 0: s(t) = ||β|| / (1 + (||β||/s0 - 1) e^{-2 ||β|| t}).

    It solves ds/dt = 2 s (||β|| - s).

    Args:
        time: Flow time, steps times learning rate.
        beta_norm: ||β||.
        s0: s(0), above 0.

    Returns:
        s at each time.

    Examples:
        >>> two_layer_flow(torch.tensor([0.0, 100.0]), beta_norm=2.0, s0=0.5)
        tensor([0.5000, 2.0000])
    """
    size, start = _positive(beta_norm=beta_norm, s0=s0)
    return size / (1 + (size / start - 1) * torch.exp(-2 * size * torch.as_tensor(time)))


def predicted_sharpness(time: Tensor, beta_norm: float, s0: float, variance: float) -> Tensor:
    """Sharpness along b_o on that flow, λ_o(t) = α s(t): it rises to α ||β||, which is progressive sharpening.

    Args:
        time: Flow time.
        beta_norm: ||β||.
        s0: s(0).
        variance: α.

    Returns:
        λ_o at each time.

    Examples:
        >>> predicted_sharpness(torch.tensor(0.0), beta_norm=2.0, s0=0.5, variance=10.0)
        tensor(5.)
    """
    (alpha,) = _positive(variance=variance)
    return alpha * two_layer_flow(time, beta_norm, s0)


def crossing_time(learning_rate: float, beta_norm: float, s0: float, variance: float) -> float:
    """Flow time at which the sharpness along b_o crosses 2/η.

    t* = ln[(||β||/s0 - 1) / (||β|| η α / 2 - 1)] / (2 ||β||), if η α ||β|| > 2.

    Args:
        learning_rate: η.
        beta_norm: ||β||.
        s0: s(0).
        variance: α.

    Returns:
        The time; infinite if the sharpness never gets there, 0 if it starts above.

    Examples:
        >>> round(crossing_time(0.3, beta_norm=1.0, s0=0.01, variance=10.0), 4)
        2.6441
    """
    rate, size, start, alpha = _positive(
        learning_rate=learning_rate, beta_norm=beta_norm, s0=s0, variance=variance
    )
    if start * alpha >= 2 / rate:
        return 0.0
    if rate * alpha * size <= 2:
        return math.inf
    return math.log((size / start - 1) / (size * rate * alpha / 2 - 1)) / (2 * size)


class Valley(nn.Module):
    """A narrow valley: L = 1/2 h_o θ_o² + 1/2 h_s (θ_s - 1)², h_o >> h_s, and gradients of ±m on θ_o in turn.

    Args:
        steep: h_o.
        flat: h_s.
        pull: m, the size of the alternating gradient.

    Examples:
        >>> valley = Valley(steep=100.0, flat=1.0, pull=10.0)
        >>> valley().item(), valley(step=1).item()
        (0.5, 0.5)
    """

    def __init__(self, steep: float = 100.0, flat: float = 1.0, pull: float = 10.0) -> None:
        super().__init__()
        self.steep, self.flat = _positive(steep=steep, flat=flat)
        self.pull = checked_number("pull", pull, 0.0)
        self.opposing, self.signal = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, step: int | None = None) -> Tensor:
        """Loss of the valley; with a step, of the group whose turn it is: m more, or less, of gradient on θ_o."""
        loss = (self.steep * self.opposing.square() + self.flat * (self.signal - 1).square()) / 2
        return loss if step is None else loss + self.pull * (-1) ** step * self.opposing


def _positive(**values: float) -> list[float]:
    return [checked_number(name, value, 0.0, strict=True) for name, value in values.items()]
