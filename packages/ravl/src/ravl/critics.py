"""The critic ensemble: N networks in one stack of weights, with the action gradients of all in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ravl._checks import checked_integer, checked_number

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class StackedLinear(nn.Module):
    """N linear layers side by side: `y_i = x_i W_i + b_i`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_members: N.
        generator: Draws the initial weights; the global generator if None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_members: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_members, 1, out_features))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights and biases uniformly in +-1/sqrt(in_features), as `nn.Linear` does.

        Args:
            generator: Draws them.
        """
        bound = 1 / math.sqrt(max(self.weight.shape[1], 1))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(N, B, in_features)` to `(N, B, out_features)`."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class StackedLayerNorm(nn.Module):
    """N layer norms side by side, each with its own scale and shift.

    Args:
        features: Width.
        num_members: N.
        eps: Added to the variance.
    """

    def __init__(self, features: int, num_members: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, 1, features))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, features))
        self.eps = eps

    def normalised(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs with mean 0 and variance 1, and what they were multiplied by."""
        centred = inputs - inputs.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return centred * scale, scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise the last axis of `(N, B, features)`."""
        return self.normalised(inputs)[0] * self.weight + self.bias

    def backward(self, gradient: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
        """Turn a gradient at the output into the one at the input, in closed form."""
        inner = gradient * self.weight
        mean = inner.mean(-1, keepdim=True)
        along = (inner * normal).mean(-1, keepdim=True)
        return scale * (inner - mean - normal * along)


class CriticEnsemble(nn.Module):
    """N action-value networks `Q_1 .. Q_N` in one stack of weights: the critic of EDAC and RAVL.

    Each is an MLP of ReLU layers from observation and action to one value. They share no weight and differ by their
    initial ones: hidden biases 0.1, last layer uniform in +-0.003, as in the official code (RAVL, section 5; EDAC,
    An et al. 2021). The names and shapes of the weights are CORL's, so that its checkpoints load.

    Args:
        observation_dim: Width S of an observation.
        action_dim: Width A of an action.
        num_critics: N.
        hidden: Widths of the hidden layers.
        layer_norm: Put a layer norm before each ReLU.
        generator: Draws the initial weights; the global generator if None.

    Raises:
        ValueError: If a size is not at least 1, or `hidden` is empty.
        TypeError: If a size is no integer.

    Examples:
        >>> critic = CriticEnsemble(3, 2, num_critics=5, hidden=(32, 32))
        >>> critic(torch.randn(7, 3), torch.randn(7, 2)).shape
        torch.Size([5, 7])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_critics: int = 10,
        hidden: Sequence[int] = (256, 256, 256),
        layer_norm: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.observation_dim = checked_integer("observation_dim", observation_dim, 1)
        self.action_dim = checked_integer("action_dim", action_dim, 1)
        self.num_critics = checked_integer("num_critics", num_critics, 1)
        if not hidden:
            raise ValueError("hidden must name at least one layer, got none")
        widths = [
            self.observation_dim + self.action_dim,
            *(checked_integer("hidden", width, 1) for width in hidden),
        ]
        layers: list[Any] = []
        for before, after in pairwise(widths):
            layers.append(StackedLinear(before, after, self.num_critics, generator=generator))
            nn.init.constant_(layers[-1].bias, 0.1)
            layers += [StackedLayerNorm(after, self.num_critics)] * bool(layer_norm) + [nn.ReLU()]
        last = StackedLinear(widths[-1], 1, self.num_critics, generator=generator)
        nn.init.uniform_(last.weight, -3e-3, 3e-3, generator=generator)
        nn.init.uniform_(last.bias, -3e-3, 3e-3, generator=generator)
        self.critic = nn.Sequential(*layers, last)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Value the same pairs by all critics, or pairs of their own by each.

        Args:
            observation: `(B, S)`, or `(N, B, S)`.
            action: `(B, A)`, or `(N, B, A)`.

        Returns:
            `(N, B)`.

        Raises:
            ValueError: If a shape is another.
        """
        return self.critic(self._inputs(observation, action)).squeeze(-1)

    def value_and_action_gradient(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return `Q_i(s, a)` and `grad_a Q_i(s, a)` of all critics from one forward pass.

        The gradient is written out layer by layer, so that a loss on it needs one ordinary backward pass instead of a
        second derivative, and compiles as one graph.

        Args:
            observation: `(B, S)`, or `(N, B, S)`.
            action: `(B, A)`, or `(N, B, A)`.

        Returns:
            `(N, B)` and `(N, B, A)`, differentiable in the weights.

        Raises:
            ValueError: If a shape is another.
        """
        inputs = self._inputs(observation, action)
        layers: list[Any] = list(self.critic)
        passed: list[tuple[Any, Any]] = []
        for layer in layers[:-1]:
            kept: Any = None
            if isinstance(layer, nn.ReLU):
                kept = inputs > 0
                inputs = inputs.relu()
            elif isinstance(layer, StackedLayerNorm):
                kept = layer.normalised(inputs)
                inputs = kept[0] * layer.weight + layer.bias
            else:
                inputs = layer(inputs)
            passed.append((layer, kept))
        value = layers[-1](inputs).squeeze(-1)
        gradient = layers[-1].weight.mT
        for layer, kept in reversed(passed[1:]):
            if isinstance(layer, nn.ReLU):
                gradient = gradient * kept
            elif isinstance(layer, StackedLayerNorm):
                gradient = layer.backward(gradient, *kept)
            else:
                gradient = gradient @ layer.weight.mT
        of_action = layers[0].weight[:, self.observation_dim :]
        return value, gradient @ of_action.mT

    def _inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        sizes = (("observation", observation, self.observation_dim), ("action", action, self.action_dim))
        for name, tensor, width in sizes:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() not in (2, 3) or tensor.shape[-1] != width:
                wanted = f"(B, {width}) or ({self.num_critics}, B, {width})"
                raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
            if tensor.dim() == 3 and tensor.shape[0] != self.num_critics:
                raise ValueError(f"{name} has {tensor.shape[0]} members, the ensemble {self.num_critics}")
        if observation.shape[-2] != action.shape[-2]:
            raise ValueError(f"observation has {observation.shape[-2]} rows, action {action.shape[-2]}")
        if observation.dim() != action.dim():
            observation = observation.expand(self.num_critics, *observation.shape[-2:])
            action = action.expand(self.num_critics, *action.shape[-2:])
        dtype = torch.promote_types(observation.dtype, action.dtype)
        inputs = torch.cat([observation.to(dtype), action.to(dtype)], -1)
        return inputs.to(next(self.critic.parameters()).dtype).expand(self.num_critics, *inputs.shape[-2:])


def is_plain(critic: Any) -> bool:
    """Whether the closed form above computes what calling `critic` computes.

    Not so for subclasses, wrappers, hooks, replaced or parametrised layers: those take the general way.
    """
    if type(critic) is not CriticEnsemble or "forward" in critic.__dict__:
        return False
    if type(critic.critic) is not nn.Sequential:
        return False
    layers = [type(layer) for layer in critic.critic]
    if layers[:1] + layers[-1:] != [StackedLinear] * 2:
        return False
    known = (StackedLinear, StackedLayerNorm, nn.ReLU)
    return len(layers) > 1 and all(
        (type(module) in known or module in (critic, critic.critic))
        and "forward" not in module.__dict__
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        for module in critic.modules()
    )


@torch.no_grad()
def soft_update_(target: nn.Module, source: nn.Module, tau: float = 5e-3) -> nn.Module:
    """Move a target network towards its source: `theta' <- (1 - tau) theta' + tau theta`.

    Parameters move in one fused call; buffers (running statistics, counters) are copied. Steps this small are lost to
    rounding in half precision: keep the target in float32; the source may be in bfloat16.

    Args:
        target: The module that is changed.
        source: A module of the same parameters, of any dtype.
        tau: The step, in [0, 1].

    Returns:
        `target`.

    Raises:
        ValueError: If `tau` is outside [0, 1], the two have other parameters or buffers, or a target in half precision
            is to be averaged.

    Examples:
        >>> target, source = CriticEnsemble(3, 2, 4), CriticEnsemble(3, 2, 4)
        >>> _ = soft_update_(target, source, tau=1.0)
        >>> torch.equal(target.critic[0].weight, source.critic[0].weight)
        True
    """
    tau = checked_number("tau", tau, 0, 1)
    pairs = [(dict(module.named_parameters()), dict(module.named_buffers())) for module in (target, source)]
    for both in zip(*pairs, strict=True):
        shapes = [{name: value.shape for name, value in side.items()} for side in both]
        if shapes[0] != shapes[1]:
            names = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ValueError(f"target and source must have the same tensors, differ in {names[0][0]!r}")
    ours: list[Tensor] = list(pairs[0][0].values())
    theirs: list[Tensor] = list(pairs[1][0].values())
    if tau == 1:
        torch._foreach_copy_(ours, theirs)
    elif ours:
        if any(value.dtype in (torch.float16, torch.bfloat16) for value in ours):
            raise ValueError(f"target must be in float32 or wider to move by tau={tau}, got half precision")
        torch._foreach_lerp_(ours, [new.to(old.dtype) for old, new in zip(ours, theirs, strict=True)], tau)
    for name, buffer in pairs[0][1].items():
        buffer.copy_(pairs[1][1][name])
    return target
