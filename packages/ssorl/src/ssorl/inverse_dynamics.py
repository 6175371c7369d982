"""The inverse dynamics model: which action led from these states to the next one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from ssorl._checks import checked_choice, checked_count, checked_share
from ssorl.windows import PADS

LOG_STD_RANGE = (-5.0, 2.0)
_EDGE = 1e-6  # how far an action stays from the ends of its range, which atanh maps to infinity
_CONFIGURATION = ("k", "next_state", "pad", "parity", "discrete", "deterministic", "differences")
_KEPT = ("center", "shift", "scale", "step_scale", "low", "high")  # in float32 at least


class InverseDynamics(nn.Module):
    r"""A stochastic multi-transition inverse dynamics model p(a_t | s_{t-k}, ..., s_t, s_{t+1}), or an ensemble.

    Section 3 of the paper. A continuous action is an affine image of tanh(x), x ~ Normal(mu, std), with
    log std = -5 + 3.5 (tanh(.) + 1); mu and log std come from two separate networks. A discrete action, which
    the paper does not have, is categorical. Members are stacked: one batched product serves all of them.

    States are standardised inside; `fit_idm` sets by what. The mean and the deviation, the action range and
    what the window is are in the `state_dict`.

    Args:
        obs_dim: Size S of a state.
        act_dim: Size A of a continuous action, or the number of discrete ones.
        k: Past transitions in the window; 0 is the one-step model.
        hidden: Widths of the hidden layers, ReLU between.
        low: Lower end of the action range, a number or one for each dimension.
        high: Upper end.
        dropout: Probability before the last layer, in training.
        members: Models in the ensemble.
        discrete: Whether actions are indices 0, ..., act_dim - 1.
        deterministic: Whether a continuous action is tanh(mu), and the loss its squared error in half ranges.
        next_state: False leaves s_{t+1} out: the behaviour-cloning proxy p(a_t | s_{t-k}, ..., s_t).
        differences: Whether the network sees s_t and the differences of successive states, each standardised by its own
            size, instead of the states: the same window in coordinates that a small network learns sooner where an
            action moves the state little in one step. Not in the paper.
        pad: As in `windows`.
        parity: As in `windows`.
        network: Your own network instead: called as `network(in_features, out_features)` once for each member, it
            returns a module from (B, in_features), the flat standardised window, to (B, out_features).
        generator: For the initial weights.

    Raises:
        ValueError: If a size, range or probability makes no sense, or options contradict each other.

    Examples:
        >>> import torch
        >>> model = InverseDynamics(obs_dim=3, act_dim=2, k=1, hidden=(16,), low=[-2, 0], high=[2, 1], members=5)
        >>> x = torch.randn(7, 3, 3)  # seven windows of three states
        >>> action, variance = model.predict(x)
        >>> action.shape, variance.shape, model.nll(x, action).shape
        (torch.Size([7, 2]), torch.Size([7, 2]), torch.Size([5, 7]))
    """

    center: Tensor
    shift: Tensor
    scale: Tensor
    step_scale: Tensor
    low: Tensor
    high: Tensor
    configuration: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        k: int = 1,
        hidden: Sequence[int] = (1024, 1024),
        *,
        low: float | Sequence[float] | Tensor = -1.0,
        high: float | Sequence[float] | Tensor = 1.0,
        dropout: float = 0.1,
        members: int = 1,
        discrete: bool = False,
        deterministic: bool = False,
        next_state: bool = True,
        differences: bool = False,
        pad: str = "edge",
        parity: bool = False,
        network: Callable[[int, int], nn.Module] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.obs_dim = checked_count("obs_dim", obs_dim)
        self.act_dim = checked_count("act_dim", act_dim, 2 if discrete else 1)
        self.k = checked_count("k", k, 0)
        self.members = checked_count("members", members)
        self.dropout = checked_share("dropout", dropout, zero=True, one=False)
        self.pad = checked_choice("pad", pad, PADS)
        self.discrete, self.deterministic = bool(discrete), bool(deterministic)
        self.next_state, self.parity, self.differences = bool(next_state), bool(parity), bool(differences)
        if self.discrete and self.deterministic:
            raise ValueError("deterministic must be False for discrete actions: their model is categorical")
        self._set_buffers(low, high)
        self.heads = 1 if self.discrete or self.deterministic else 2
        in_features = self.obs_dim * (self.k + 1 + self.next_state)
        self.networks: nn.ModuleList | None = None
        if network is not None:
            made = [network(in_features, self.heads * self.act_dim) for _ in range(self.members)]
            if len({id(module) for module in made}) < self.members:
                raise ValueError(
                    "network must make a new module at each call, got the same one for two members"
                )
            self.networks = nn.ModuleList(made)
            return
        sizes = [in_features, *(checked_count("hidden", size) for size in hidden), self.act_dim]
        lead = (self.members, self.heads)
        self.weights = nn.ParameterList(_orthogonal((*lead, *pair), generator) for pair in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(*lead, size)) for size in sizes[1:])

    def forward(self, windows: Tensor, actions: Tensor | None = None) -> Tensor:
        """Return the distribution's parameters, or with actions the loss of each, so that wrappers such as DDP see it.

        Args:
            windows: (B, k + 2, S), or (members, B, k + 2, S) with other windows for each member.
            actions: As in `loss`.

        Returns:
            Raw parameters (members, heads, B, act_dim), heads being mu and the raw log std, or mu, or the logits; with
            actions the loss (members, B).
        """
        parameters = self._outputs(self._features(windows))
        return parameters if actions is None else self._loss(parameters, actions)

    def dist(self, windows: Tensor) -> Distribution:
        """Return the members' distributions over actions, batch shape (members, B).

        Args:
            windows: As in `forward`.

        Returns:
            An `Independent` squashed normal over (A,) in the units of the actions, or a `Categorical`.

        Raises:
            ValueError: If the model is deterministic.
        """
        parameters = self._outputs(self._features(windows))
        if self.discrete:
            return Categorical(logits=parameters[:, 0])
        mu, std = self._normal(parameters)
        transforms = [TanhTransform(), AffineTransform(self._middle.to(mu.dtype), self._half.to(mu.dtype))]
        return Independent(TransformedDistribution(Normal(mu, std), transforms), 1)

    def nll(self, windows: Tensor, actions: Tensor) -> Tensor:
        """Return the negative log-likelihood of each action under each member, in the units of the actions.

        -log p(a) = -sum_j [log N(x_j; mu_j, std_j) - 2 (log 2 - x_j - softplus(-2 x_j)) - log (high_j - low_j) / 2],
        x = atanh of the action mapped to (-1, 1), at most 1 - 1e-6 in size.

        Args:
            windows: As in `forward`.
            actions: (B, A), or indices (B,); with the members' axis in front where windows have it.

        Returns:
            (members, B).

        Raises:
            ValueError: If the model is deterministic, or `actions` has another shape.
        """
        if self.deterministic:
            raise ValueError("nll must have a distribution, and deterministic=True has none: use loss")
        return self.loss(windows, actions)

    def loss(self, windows: Tensor, actions: Tensor) -> Tensor:
        """Return what is minimised, (members, B): the negative log-likelihood, or the squared error if deterministic.

        Args:
            windows: As in `forward`.
            actions: As in `nll`.

        Returns:
            (members, B), summed over the dimensions of the action.
        """
        return self._loss(self._outputs(self._features(windows)), actions)

    @torch.no_grad()
    def predict(self, windows: Tensor, *, variance: str = "pre") -> tuple[Tensor, Tensor]:
        """Return the proxy action and how uncertain it is (section 3 and appendix of the paper), without dropout.

        The action is the mean over members of the image of tanh(mu_m). The variance is that of the mixture,
        mean_m std_m^2 + mean_m tanh(mu_m)^2 - action^2, with the deviation before tanh as the official code has it
        (`"pre"`) or carried through tanh to first order, std_m (1 - tanh(mu_m)^2) (`"delta"`). A discrete action is
        the most probable one of the mixture p, its variance that of the one-hot vector, sum_c p_c (1 - p_c).

        Args:
            windows: (B, k + 2, S).
            variance: `"pre"` or `"delta"`; a deterministic model has the members' disagreement alone, whichever it is.

        Returns:
            Action (B, A) inside the range and variance (B, A) in squared units of it; or index (B,) and (B,).
        """
        checked_choice("variance", variance, ("pre", "delta"))
        with evaluating(self):
            parameters = self._outputs(self._features(windows))
        if self.discrete:
            probabilities = parameters[:, 0].softmax(-1).mean(0)
            return probabilities.argmax(-1), (probabilities * (1 - probabilities)).sum(-1)
        squashed = parameters[:, 0].tanh()
        middle = squashed.mean(0)
        spread = (squashed - middle).square().mean(0)
        if not self.deterministic:
            std = self._normal(parameters)[1]
            std = std * (1 - squashed.square()) if variance == "delta" else std
            spread = spread + std.square().mean(0)
        return self._to_range(middle), spread * self._half.to(spread.dtype).square()

    @torch.no_grad()
    def sample(self, windows: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action from the mixture: a member, then from it; without dropout.

        Args:
            windows: (B, k + 2, S).
            generator: On the model's device.

        Returns:
            (B, A) inside the range, or indices (B,).
        """
        with evaluating(self):
            parameters = self._outputs(self._features(windows))
        batch = parameters.shape[2]
        member = torch.randint(self.members, (batch,), device=parameters.device, generator=generator)
        chosen = parameters[member, :, torch.arange(batch, device=parameters.device)]
        if self.discrete:
            if batch == 0:
                return member
            return torch.multinomial(chosen[:, 0].softmax(-1), 1, generator=generator)[:, 0]
        x = chosen[:, 0]
        if not self.deterministic:
            std = _log_std(chosen[:, 1]).exp()
            x = x + std * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self._to_range(x.tanh())

    def set_standardiser(self, mean: Tensor, std: Tensor, step: Tensor | None = None) -> None:
        """Set what states are standardised by: (s - mean) / (std + 1e-6); differences by s / (step + 1e-6).

        A column that does not vary, up to float32's rounding of its mean, is only centred. The official code divides
        it by 1e-6, so that rounding alone becomes a large input.

        Args:
            mean: (S,) of all states, labelled and not; float64 keeps an offset exact.
            std: (S,).
            step: Root mean square of s_{t+1} - s_t, (S,), needed with `differences`.

        Raises:
            ValueError: If a shape is another, `step` is missing, or a value is not finite in float32.
        """
        if step is None:
            if self.differences:
                raise ValueError("step must be given where differences=True, got None")
            step = std
        for name, value in (("mean", mean), ("std", std), ("step", step)):
            if value.shape != (self.obs_dim,):
                raise ValueError(f"{name} must be ({self.obs_dim},), got {tuple(value.shape)}")
            if not value.float().isfinite().all():
                raise ValueError(
                    f"{name} must be finite in float32, got {value.tolist()}: rescale the states"
                )
        mean = mean.double().cpu()
        rounding = 4 * torch.finfo(torch.float32).eps * mean.abs()
        center = mean.float()
        self.center.copy_(center)
        self.shift.copy_(mean - center.double())
        for scale, value in ((self.scale, std), (self.step_scale, step)):
            size = value.double().cpu()
            scale.copy_(torch.where(size <= rounding, torch.ones_like(size), size + 1e-6))

    def member_state(self) -> list[Tensor]:
        """Return a copy of all weights and buffers that belong to members."""
        return [tensor.clone() for tensor in self._member_tensors()]

    def member_owners(self) -> list[int | None]:
        """Return for each tensor of `member_state` its member; None if its first axis runs over all members."""
        if self.networks is None:
            return [None] * (len(self.weights) + len(self.biases))
        return [member for member, network in enumerate(self.networks) for _ in _tensors(network)]

    def load_member_state(self, state: Sequence[Tensor]) -> None:
        """Write back what `member_state` returned."""
        for target, kept in zip(self._member_tensors(), state, strict=True):
            target.copy_(kept)

    def _member_tensors(self) -> list[Tensor]:
        if self.networks is None:
            return [parameter.detach() for parameter in (*self.weights, *self.biases)]
        return [tensor for network in self.networks for tensor in _tensors(network)]

    def _features(self, windows: Tensor) -> Tensor:
        """Standardise and flatten: (members or 1, B, features)."""
        if not isinstance(windows, Tensor):
            raise TypeError(f"windows must be a tensor, got {type(windows).__name__}")
        if windows.dim() not in (3, 4) or windows.shape[-2:] != (self.k + 2, self.obs_dim):
            raise ValueError(
                f"windows must be (B, {self.k + 2}, {self.obs_dim}), k + 2 states each, got {tuple(windows.shape)}"
            )
        if windows.dim() == 4 and windows.shape[0] != self.members:
            raise ValueError(f"windows must have {self.members} members in front, got {tuple(windows.shape)}")
        windows = windows if windows.is_floating_point() else windows.to(self.center.dtype)
        windows = windows if windows.dtype.itemsize >= 4 else windows.float()
        windows = windows if self.next_state else windows[..., :-1, :]
        states = (windows - self.center.to(windows.dtype) - self.shift.to(windows.dtype)) / self.scale
        if self.differences:
            now = states[..., self.k : self.k + 1, :]
            states = torch.cat([now, windows.diff(dim=-2) / self.step_scale], dim=-2)
        features = states.flatten(-2)
        return features if features.dim() == 3 else features.unsqueeze(0)

    def _outputs(self, features: Tensor) -> Tensor:
        """(members or 1, B, features) to (members, heads, B, act_dim), at least in float32."""
        if self.networks is not None:
            return self._own_networks(features)
        lead, batch = (self.members, self.heads), features.shape[1]
        hidden = features.to(self.weights[0].dtype).unsqueeze(1)
        hidden = hidden.expand(*lead, batch, features.shape[2]).flatten(0, 1)
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if index == last and last:
                hidden = F.dropout(hidden, self.dropout, self.training)
            hidden = torch.baddbmm(bias.flatten(0, 1).unsqueeze(1), hidden, weight.flatten(0, 1))
            hidden = F.relu(hidden) if index < last else hidden
        return _at_least_float32(hidden.unflatten(0, lead))

    def _own_networks(self, features: Tensor) -> Tensor:
        assert self.networks is not None
        found = []
        for member, network in enumerate(self.networks):
            given = features[member if len(features) > 1 else 0]
            parameter = next(network.parameters(), None)
            out = network(given if parameter is None else given.to(parameter.dtype))
            if not isinstance(out, Tensor) or out.shape != (len(given), self.heads * self.act_dim):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(
                    f"network must return a tensor ({len(given)}, {self.heads * self.act_dim}), got {got}"
                )
            found.append(out.unflatten(-1, (self.heads, self.act_dim)).transpose(0, 1))
        return _at_least_float32(torch.stack(found))

    def _loss(self, parameters: Tensor, actions: Tensor) -> Tensor:
        if self.discrete:
            return self._cross_entropy(parameters[:, 0], actions)
        self._check_actions(actions, (parameters.shape[2], self.act_dim))
        half, middle = self._half.to(parameters.dtype), self._middle.to(parameters.dtype)
        unit = ((actions.to(parameters.dtype) - middle) / half).clamp(-1 + _EDGE, 1 - _EDGE)
        if self.deterministic:
            return (parameters[:, 0].tanh() - unit).square().sum(-1)
        x = unit.atanh()
        mu, std = self._normal(parameters)
        log_normal = -0.5 * ((x - mu) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x)) + half.log()
        return -(log_normal - log_slope).sum(-1)

    def _cross_entropy(self, logits: Tensor, actions: Tensor) -> Tensor:
        self._check_actions(actions, (logits.shape[1],))
        if actions.is_floating_point():
            raise ValueError(f"actions must be integers for discrete=True, got {actions.dtype}")
        index = actions.long().expand(self.members, -1).unsqueeze(-1)
        # Not F.cross_entropy: it takes an index of -100, as labels that miss often have, for one without a loss.
        return -logits.log_softmax(-1).gather(-1, index).squeeze(-1)

    def _check_actions(self, actions: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(actions, Tensor):
            raise TypeError(f"actions must be a tensor, got {type(actions).__name__}")
        if tuple(actions.shape) not in (shape, (1, *shape), (self.members, *shape)):
            raise ValueError(
                f"actions must be {shape}, one for each window, or {(self.members, *shape)}, "
                f"got {tuple(actions.shape)}"
            )

    def _normal(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if self.deterministic:
            raise ValueError("dist must have a distribution, and deterministic=True has none: use predict")
        return parameters[:, 0], _log_std(parameters[:, 1]).exp()

    def _to_range(self, unit: Tensor) -> Tensor:
        found = self._middle.to(unit.dtype) + self._half.to(unit.dtype) * unit
        return torch.minimum(torch.maximum(found, self.low.to(unit.dtype)), self.high.to(unit.dtype))

    @property
    def _middle(self) -> Tensor:
        return self.low / 2 + self.high / 2

    @property
    def _half(self) -> Tensor:
        return self.high / 2 - self.low / 2

    def _set_buffers(self, low: Any, high: Any) -> None:
        size = 1 if self.discrete else self.act_dim
        ends = {}
        for name, value, inward in (("low", low, math.inf), ("high", high, -math.inf)):
            exact = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
            if exact.numel() not in (1, size) or not exact.isfinite().all():
                raise ValueError(f"{name} must be finite, one number or {size}, got {value!r}")
            exact = exact.flatten().expand(size)
            near = exact.float()  # rounded inwards, so that no label leaves the range
            outside = near.double() < exact if name == "low" else near.double() > exact
            ends[name] = torch.where(outside, near.nextafter(torch.full_like(near, inward)), near)
        if not (ends["low"] < ends["high"]).all():
            raise ValueError(f"low must be below high, got {low!r} and {high!r}")
        for name, end in ends.items():
            self.register_buffer(name, end)
        self.register_buffer("center", torch.zeros(self.obs_dim))
        self.register_buffer("shift", torch.zeros(self.obs_dim))
        self.register_buffer("scale", torch.ones(self.obs_dim))
        self.register_buffer("step_scale", torch.ones(self.obs_dim))
        self.register_buffer("configuration", torch.tensor(self._configured()))

    def _configured(self) -> list[int]:
        flags = (self.discrete, self.deterministic, self.differences)
        return [self.k, int(self.next_state), PADS.index(self.pad), int(self.parity), *map(int, flags)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InverseDynamics:
        """Keep the standardiser and the range in float32 where weights become bfloat16 or float16."""
        before = {name: getattr(self, name) for name in _KEPT}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < kept.dtype.itemsize:
                setattr(self, name, kept.to(moved.device))
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        extra: Any,
        errors: Any,
    ) -> None:
        """Refuse weights of a model with another window or another kind of action."""
        saved = state_dict.get(f"{prefix}configuration")
        if saved is not None and len(saved) == len(_CONFIGURATION):
            for name, theirs, ours in zip(_CONFIGURATION, saved.tolist(), self._configured(), strict=True):
                if theirs != ours:
                    told = (PADS[theirs], PADS[ours]) if name == "pad" else (theirs, int(ours))
                    errors.append(f"{name} must be that of the saved model: {told[0]} there, {told[1]} here")
            if saved.tolist() != self._configured():
                return  # the model keeps what it is
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, extra, errors)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, and afterwards back in the mode it was in, also after an exception."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _log_std(raw: Tensor) -> Tensor:
    least, most = LOG_STD_RANGE
    return least + 0.5 * (most - least) * (raw.tanh() + 1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


def _orthogonal(shape: tuple[int, ...], generator: torch.Generator | None) -> nn.Parameter:
    weight = torch.empty(shape)
    for matrix in weight.view(-1, *shape[-2:]):
        nn.init.orthogonal_(matrix.mT, generator=generator)
    return nn.Parameter(weight)
