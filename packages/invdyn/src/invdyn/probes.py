"""What a representation knows: frozen features, probes with error bars, and predictions between representations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invdyn._checks import check_finite, check_tensor, checked_count, checked_number, checked_sizes
from invdyn.networks import MLP
from invdyn.views import Observation, map_views, num_rows, parameter_dtype, to_unit

_RESAMPLES = 1000


def encode(
    encoder: nn.Module, obs: Observation, *, batch_size: int = 1024, unit_pixels: bool = True
) -> Tensor:
    """Embeddings of a whole data set: in evaluation mode, without gradients, a batch at a time.

    Every module is afterwards in the mode that it was in, also after an exception.

    Args:
        encoder: Makes (B, d) of observations.
        obs: (N, ...) or a mapping of views, on the encoder's device.
        batch_size: Frames a pass.
        unit_pixels: Whether bytes become floats in [0, 1], as in the objectives.

    Returns:
        (N, d), ordinary tensors also inside `torch.inference_mode`.

    Raises:
        ValueError: If there are no observations, or the encoder returns no (B, d).

    Examples:
        >>> encode(nn.Linear(3, 2), torch.zeros(5, 3), batch_size=2).shape
        torch.Size([5, 2])
    """
    count, size = num_rows("obs", obs), checked_count("batch_size", batch_size)
    if count == 0:
        raise ValueError("obs must have at least one row, got none")
    modes = [(module, module.training) for module in encoder.modules()]
    found = []
    try:
        encoder.eval()
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, count, size):
                rows = map_views(lambda view, start=start: view[start : start + size], obs)
                frames = to_unit(rows, parameter_dtype(encoder)) if unit_pixels else rows
                found.append(_checked_output(encoder(frames), min(size, count - start)))
            return torch.cat(found)
    finally:
        for module, mode in modes:
            module.training = mode


def _checked_output(found: object, rows: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != rows:
        there = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"encoder must return ({rows}, d), got {there}")
    return found


class StateProbe(nn.Module):
    """A probe trained alongside: an MLP from phi(o) to the state, whose gradient never reaches phi.

    Args:
        embed_dim: d.
        target_dim: K.
        hidden: Widths.

    Examples:
        >>> probe, embedding = StateProbe(8, 2), torch.randn(4, 8, requires_grad=True)
        >>> probe.loss(embedding, torch.zeros(4, 2)).backward()
        >>> embedding.grad is None
        True
    """

    def __init__(self, embed_dim: int, target_dim: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.layers = MLP(embed_dim, hidden, target_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (B, K).

        Args:
            embedding: (B, d).
        """
        return self.layers(embedding.detach())

    def loss(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Mean squared error.

        Args:
            embedding: (B, d).
            target: (B, K).

        Raises:
            ValueError: If shapes do not fit.
        """
        found = self(embedding)
        if found.shape != target.shape:
            raise ValueError(f"target must be {tuple(found.shape)}, got {tuple(target.shape)}")
        exact = torch.promote_types(found.dtype, torch.float32)
        return (found.to(exact) - target.to(exact)).square().mean()


class Probe(nn.Module):
    """A fitted probe: standardises features, predicts, and gives targets in their own units.

    Attributes:
        layers: The network between; a linear one for a linear probe.
    """

    mean: Tensor
    scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, layers: nn.Module, features: _Standard, targets: _Standard) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", features.mean)
        self.register_buffer("scale", features.scale)
        self.register_buffer("target_mean", targets.mean)
        self.register_buffer("target_scale", targets.scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, K) in float64.

        Args:
            features: (N, d).
        """
        inputs = (features.double() - self.mean) / self.scale
        found = self.layers(inputs.to(parameter_dtype(self.layers)))
        return found.double() * self.target_scale + self.target_mean


@dataclass(frozen=True)
class ProbeResult:
    """How well held-out targets are predicted.

    Attributes:
        r2: 1 - MSE / variance, both summed over targets.
        r2_low: Lower end of its 95 % interval, over held-out groups drawn again with replacement.
        r2_high: Upper end.
        r2_per_target: (K,); NaN for a target that is constant on the held-out rows.
        mse: Mean over held-out rows and targets, in the targets' units.
        module: The probe.
        num_train: Rows it was fitted on.
        num_test: Rows it was judged on.
    """

    r2: float
    r2_low: float
    r2_high: float
    r2_per_target: Tensor
    mse: float
    module: Probe
    num_train: int
    num_test: int


class CrossPrediction(NamedTuple):
    """Who predicts whom.

    Attributes:
        names: Of the representations, the order of rows and columns.
        matrix: (R, R) float64: `matrix[i, j]` is MSE / variance of j predicted from i, which is 1 - R^2.
        low: Lower ends of the 95 % intervals.
        high: Upper ends.
    """

    names: list[str]
    matrix: Tensor
    low: Tensor
    high: Tensor


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    groups: Tensor | None = None,
    hidden: Sequence[int] = (64,),
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    test_fraction: float = 0.25,
    generator: torch.Generator | None = None,
) -> ProbeResult:
    """Fit a small network from frozen features to targets on one part of the rows, judge it on the other.

    Args:
        features: (N, d), such as `encode` returns.
        targets: (N, K) real numbers.
        groups: (N,) integers, such as episodes: all rows of a group are on one side, and the error bars are
            over groups. Give them: neighbouring frames are alike. By default each row is its own group.
        hidden: Widths; `()` is a linear probe in closed form, for which steps mean nothing.
        steps: Of Adam.
        batch_size: Rows a step.
        learning_rate: Of Adam, falling to 0 along a cosine.
        test_fraction: Share of the groups that is held out, in (0, 1).
        generator: Of the split, the weights, the batches and the error bars; on any device.

    Returns:
        A `ProbeResult`.

    Raises:
        ValueError: If rows do not match, numbers are not finite, there are fewer than 2 groups on a side, or
            held-out targets are constant.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 3, generator=generator)
        >>> result = fit_probe(x, 2 * x[:, :1] + 1, hidden=(), generator=generator)
        >>> round(result.r2, 6), round(result.r2_low, 6)
        (1.0, 1.0)
    """
    _check_rows("features", features)
    _check_rows("targets", targets)
    split = _split(len(features), groups, test_fraction, generator, features.device)
    plan = _Plan(hidden, steps, batch_size, learning_rate)
    (module,) = _fit([features], [targets], [(0, 0)], split, plan, generator)
    return _judge("targets", module, features, targets, split, generator)


def cross_prediction(
    reps: Mapping[str, Tensor],
    *,
    groups: Tensor | None = None,
    hidden: Sequence[int] = (64,),
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    test_fraction: float = 0.25,
    generator: torch.Generator | None = None,
) -> CrossPrediction:
    """Predict every representation from every other (figure 9 of the paper), all probes trained at once.

    A representation with a low row knows what the others know. The true state may be among them.

    Args:
        reps: Name to (N, d), rows of the same N observations.
        groups: As for `fit_probe`.
        hidden: As for `fit_probe`.
        steps: As for `fit_probe`.
        batch_size: As for `fit_probe`.
        learning_rate: As for `fit_probe`.
        test_fraction: As for `fit_probe`.
        generator: As for `fit_probe`.

    Returns:
        A `CrossPrediction`.

    Raises:
        ValueError: As `fit_probe`, and if there is no representation or their rows differ in number.

    Examples:
        >>> x = torch.randn(200, 2)
        >>> found = cross_prediction({"x": x, "norm": x.norm(dim=1, keepdim=True)}, hidden=())
        >>> found.names, bool(found.matrix[0, 0] < 1e-12)
        (['x', 'norm'], True)
    """
    if not reps:
        raise ValueError("reps must have at least one representation, got none")
    names, values = list(reps), list(reps.values())
    for name, value in reps.items():
        _check_rows(f"reps[{name!r}]", value)
        if len(value) != len(values[0]):
            raise ValueError(f"reps[{name!r}] must have {len(values[0])} rows, got {len(value)}")
    split = _split(len(values[0]), groups, test_fraction, generator, values[0].device)
    pairs = [(source, target) for source in range(len(names)) for target in range(len(names))]
    modules = _fit(values, values, pairs, split, _Plan(hidden, steps, batch_size, learning_rate), generator)
    found = [
        _judge(f"reps[{names[target]!r}]", module, values[source], values[target], split, generator)
        for module, (source, target) in zip(modules, pairs, strict=True)
    ]

    def square(numbers: list[float]) -> Tensor:
        return 1 - torch.tensor(numbers, dtype=torch.float64).view(len(names), len(names))

    return CrossPrediction(
        names,
        square([one.r2 for one in found]),
        square([one.r2_high for one in found]),
        square([one.r2_low for one in found]),
    )


# --- how ---------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    hidden: Sequence[int]
    steps: int
    batch_size: int
    learning_rate: float


class _Split(NamedTuple):
    train: Tensor  # rows
    test: Tensor
    test_groups: Tensor  # 0..G-1 for each row of `test`


class _Standard(NamedTuple):
    mean: Tensor
    scale: Tensor  # 1 where a column is constant

    @classmethod
    def of(cls, values: Tensor) -> _Standard:
        exact = values.double()
        mean, spread = exact.mean(0), exact.std(0, correction=0)
        constant = spread <= 1e-12 * exact.abs().amax(0)
        return cls(mean, torch.where(constant, 1.0, spread))


def _check_rows(name: str, values: Tensor) -> None:
    check_tensor(name, values)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must be (N, d), got {tuple(values.shape)}")
    check_finite(name, values)


def _split(
    count: int,
    groups: Tensor | None,
    test_fraction: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> _Split:
    share = checked_number("test_fraction", test_fraction, 0, 1, open_at="low high")
    if groups is None:
        labels, num_groups = torch.arange(count), count
    else:
        if groups.shape != (count,):
            raise ValueError(f"groups must be ({count},), got {tuple(groups.shape)}")
        labels = groups.unique(return_inverse=True)[1].cpu()
        num_groups = int(labels.max()) + 1
    held_out = max(round(share * num_groups), 2)
    if num_groups - held_out < 2:
        raise ValueError(f"groups must be at least 4, 2 to fit and 2 to judge, got {num_groups}")
    order = _permutation(num_groups, generator)
    place = torch.full((num_groups,), -1)
    place[order[:held_out]] = torch.arange(held_out)
    own = place[labels]
    test = (own >= 0).nonzero().squeeze(1)
    return _Split((own < 0).nonzero().squeeze(1).to(device), test.to(device), own[test].to(device))


def _permutation(count: int, generator: torch.Generator | None) -> Tensor:
    own = generator.device if generator is not None else None
    return torch.randperm(count, generator=generator, device=own).cpu()


def _fit(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    split: _Split,
    plan: _Plan,
    generator: torch.Generator | None,
) -> list[Probe]:
    """One probe for each (source, target)."""
    if any(len(one) != len(sources[0]) for one in targets):
        raise ValueError(f"targets must have {len(sources[0])} rows, as features, got {len(targets[0])}")
    hidden = checked_sizes("hidden", plan.hidden)
    source_units = [_Standard.of(one[split.train]) for one in sources]
    target_units = [_Standard.of(one[split.train]) for one in targets]
    xs = [_standardised(one[split.train], unit) for one, unit in zip(sources, source_units, strict=True)]
    ys = [_standardised(one[split.train], unit) for one, unit in zip(targets, target_units, strict=True)]
    with torch.inference_mode(False), torch.enable_grad():
        if hidden:
            layers = _fit_networks(xs, ys, pairs, hidden, plan, generator)
        else:
            inverses = [torch.linalg.pinv(x, rtol=1e-10) for x in xs]
            layers = [_linear(inverses[source] @ ys[target]) for source, target in pairs]
    return [
        Probe(layer, source_units[source], target_units[target]).requires_grad_(False)
        for layer, (source, target) in zip(layers, pairs, strict=True)
    ]


def _standardised(values: Tensor, unit: _Standard) -> Tensor:
    return (values.detach().double() - unit.mean) / unit.scale


def _linear(weight: Tensor) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, *weight.shape, bias=False, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
    return layer


def _fit_networks(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    hidden: tuple[int, ...],
    plan: _Plan,
    generator: torch.Generator | None,
) -> list[nn.Module]:
    """MLPs of all pairs in step: members are padded to one width and multiplied as a batch of matrices."""
    steps, size = checked_count("steps", plan.steps), checked_count("batch_size", plan.batch_size)
    rate = checked_number("learning_rate", plan.learning_rate, 0, open_at="low")
    device, count = xs[0].device, len(xs[0])
    source, target = (torch.tensor(side, device=device) for side in zip(*pairs, strict=True))
    x, y = _padded(xs), _padded(ys)
    used = torch.stack([(torch.arange(y.shape[2], device=device) < one.shape[1]) for one in ys])[target]
    share = (used / used.sum(1, keepdim=True))[:, None]  # (M, 1, K): mean over the targets there are
    fans = [torch.tensor([float(one.shape[1]) for one in xs], device=device)[source]]
    fans += [torch.full_like(fans[0], float(width)) for width in hidden]
    widths = [x.shape[2], *hidden, y.shape[2]]
    parameters = _initial(widths, fans, generator, device)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    own = generator.device if generator is not None else None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(count, (min(size, count),), generator=generator, device=own).to(device)
        found = _networks(x[:, rows][source], parameters)
        loss = ((found - y[:, rows][target]).square() * share).sum(2).mean(1).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return [
        _member(parameters, number, xs[first].shape[1], ys[second].shape[1])
        for number, (first, second) in enumerate(pairs)
    ]


def _padded(values: Sequence[Tensor]) -> Tensor:
    """(R, N, widest) in float32, zeros beyond each one's width."""
    widest = max(one.shape[1] for one in values)
    pad = torch.nn.functional.pad
    return torch.stack([pad(one.float(), (0, widest - one.shape[1])) for one in values])


def _initial(
    widths: Sequence[int], fans: Sequence[Tensor], generator: torch.Generator | None, device: torch.device
) -> list[Tensor]:
    """Weights (M, in, out) and biases (M, 1, out), uniform within 1 / sqrt(inputs) as torch's own are."""
    own = generator.device if generator is not None else None
    found: list[Tensor] = []
    for before, after, fan in zip(widths, widths[1:], fans, strict=False):
        bound = fan.rsqrt()[:, None, None]
        for shape in ((len(fan), before, after), (len(fan), 1, after)):
            drawn = torch.rand(shape, generator=generator, device=own).to(device)
            found.append(((2 * drawn - 1) * bound).requires_grad_())
    return found


def _networks(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    for layer in range(0, len(parameters), 2):
        if layer:
            x = torch.nn.functional.gelu(x, approximate="tanh")
        x = torch.baddbmm(parameters[layer + 1], x, parameters[layer])
    return x


def _member(parameters: Sequence[Tensor], number: int, inputs: int, outputs: int) -> nn.Module:
    """One network of the stack as a module of its own, without the padding."""
    layers: list[nn.Module] = []
    last = len(parameters) - 2
    for place in range(0, len(parameters), 2):
        weight, bias = parameters[place][number].detach(), parameters[place + 1][number, 0].detach()
        if place == 0:
            weight = weight[:inputs]
        if place == last:
            weight, bias = weight[:, :outputs], bias[:outputs]
        layer = nn.utils.skip_init(nn.Linear, *weight.shape, device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
        layers += [layer] if place == last else [layer, nn.GELU(approximate="tanh")]
    return nn.Sequential(*layers)


def _judge(
    name: str,
    module: Probe,
    features: Tensor,
    targets: Tensor,
    split: _Split,
    generator: torch.Generator | None,
) -> ProbeResult:
    with torch.no_grad():
        wanted = targets[split.test].double()
        wanted = wanted - wanted.mean(0)
        found = module(features[split.test]) - targets[split.test].double().mean(0)
        errors = (found - wanted).square()
    spread = wanted.square().sum(0)
    floor = 1e-20 * targets[split.test].double().square().sum(0)
    if not bool((spread > floor).any()):
        raise ValueError(f"{name} must vary on the held-out rows, got constants")
    low, high = _interval(errors, wanted, split.test_groups, generator)
    per_target = torch.where(spread > floor, 1 - errors.sum(0) / spread, math.nan)
    return ProbeResult(
        r2=1 - (errors.sum() / spread.sum()).item(),
        r2_low=low,
        r2_high=high,
        r2_per_target=per_target,
        mse=errors.mean().item(),
        module=module,
        num_train=len(split.train),
        num_test=len(split.test),
    )


def _interval(
    errors: Tensor, wanted: Tensor, groups: Tensor, generator: torch.Generator | None
) -> tuple[float, float]:
    """95 % of R^2 over groups drawn again: all that R^2 needs are sums over each group's rows."""
    num_groups = int(groups.max()) + 1

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(num_groups, values.shape[1]).index_add_(0, groups, values)

    counts = sums(torch.ones_like(wanted[:, :1]))
    own = generator.device if generator is not None else None
    size = (_RESAMPLES, num_groups)
    drawn = torch.randint(num_groups, size, generator=generator, device=own).to(wanted.device)
    times = torch.zeros(size, dtype=wanted.dtype, device=wanted.device)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=wanted.dtype))
    totals = times @ torch.cat([sums(errors).sum(1, keepdim=True), counts, sums(wanted)], 1)
    squares = times @ sums(wanted.square()).sum(1)
    spread = squares - totals[:, 2:].square().sum(1) / totals[:, 1]
    r2 = 1 - totals[:, 0] / spread
    r2 = r2[spread > 1e-12 * squares]  # one group again and again may not vary
    if len(r2) == 0:
        return -math.inf, 1.0
    low, high = torch.quantile(r2, torch.tensor([0.025, 0.975], dtype=r2.dtype, device=r2.device)).tolist()
    return low, high
