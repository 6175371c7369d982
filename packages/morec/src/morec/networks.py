"""The two players of the adversarial game, and many discriminators as one stacked network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

__all__ = ["TransitionDiscriminator", "TransitionGenerator"]


class _MLP(nn.Module):
    """Linear layers with ReLU between them, initialised from a generator of the caller's."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None) -> None:
        super().__init__()
        if min(sizes) < 1:
            raise ValueError(f"every layer must have at least one unit, got sizes {tuple(sizes)}")
        device = torch.get_default_device() if generator is None else generator.device
        self.layers = nn.ModuleList()
        for inputs, outputs in pairwise(sizes):
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
            self.layers.append(layer)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            inputs = layer(inputs).relu()
        return self.layers[-1](inputs)


class TransitionDiscriminator(_MLP):
    r"""Logit that an encoded transition is real: $f_\phi(s, a, s')$, $D = \sigma(f)$.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        hidden_sizes: Widths of the hidden layers.
        generator: Randomness of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden_sizes: Sequence[int] = (128, 128),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__([2 * obs_dim + act_dim, *hidden_sizes, 1], generator)

    def forward(self, encoded: Tensor) -> Tensor:
        """Judge encoded transitions, shape (..., 2S + A), as `TransitionNormalizer.encode` lays them out.

        Args:
            encoded: Encoded transitions.

        Returns:
            Logits, shape (...).
        """
        return super().forward(encoded).squeeze(-1)


class TransitionGenerator(_MLP):
    r"""Gaussian imitation of the environment, $P_\theta(s' | s, a)$, in scaled coordinates.

    Args:
        obs_dim: Number of state dimensions S.
        act_dim: Number of action dimensions A.
        hidden_sizes: Widths of the hidden layers.
        log_std_range: Bounds of the log standard deviation of the scaled state difference.
        generator: Randomness of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden_sizes: Sequence[int] = (128, 128),
        *,
        log_std_range: tuple[float, float] = (-6.0, 0.0),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__([obs_dim + act_dim, *hidden_sizes, 2 * obs_dim], generator)
        self.log_std_range = log_std_range

    def forward(self, state_action: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Predict the scaled state difference.

        Args:
            state_action: Scaled states and actions side by side, shape (..., S + A).

        Returns:
            Mean and log standard deviation of the difference, each (..., S).
        """
        mean, raw = super().forward(state_action).chunk(2, dim=-1)
        low, high = self.log_std_range
        # A sigmoid, not a clamp: a clamped generator could never again widen its noise.
        return mean, low + (high - low) * torch.sigmoid(raw)


def as_logits(logits: Tensor, judged: Tensor) -> Tensor:
    """A discriminator's answer about `judged`, (..., S), as (...); a last axis of 1 is dropped.

    Raises:
        ValueError: If it has another shape.
    """
    expected = judged.shape[:-1]
    if logits.shape == (*expected, 1):
        return logits.squeeze(-1)
    if logits.shape != expected:
        raise ValueError(
            f"discriminator must give logits of shape {tuple(expected)} or {(*expected, 1)}, "
            f"got {tuple(logits.shape)}"
        )
    return logits


def is_plain(module: nn.Module) -> bool:
    """Whether a discriminator is what its class says: linear layers and nothing that acts on them."""
    hooks = (part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    return (
        type(module) is TransitionDiscriminator
        and all(type(layer) is nn.Linear for layer in module.layers)
        and not any(hooks)
    )


# Bytes of activations at once: about a core's cache, or a bound that an accelerator does not notice.
_CACHE_BYTES = 4 << 20
_ACCELERATOR_BYTES = 256 << 20


def activation_budget(like: Tensor) -> int:
    """Floats of activations worth having at once on the device of `like`."""
    return (_CACHE_BYTES if like.device.type == "cpu" else _ACCELERATOR_BYTES) // like.element_size()


class StackedDiscriminators(nn.Module):
    """M `TransitionDiscriminator`s as stacked weights (M, in, out), the first layer split at the candidate.

    Args:
        modules: The discriminators, all of the same widths.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layers in zip(*[module.layers for module in modules], strict=True):
            weight = torch.stack([layer.weight.detach().mT for layer in layers]).contiguous()
            bias = torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1)
            self.weights.append(nn.Parameter(weight, requires_grad=False))
            self.biases.append(nn.Parameter(bias, requires_grad=False))

    @property
    def floats_per_transition(self) -> int:
        """Activations of one transition in one member: in and out of its widest layer."""
        return 2 * max(weight.shape[2] for weight in self.weights)

    def forward(self, state: Tensor, action: Tensor, following: Tensor, delta_input: bool) -> Tensor:
        """Judge scaled transitions: (B, S), (B, A) and (K, B, S) to logits (M, K, B)."""
        state_action = torch.cat([state, action], dim=-1)
        # The difference itself, not the difference of two products: what is left of those in half precision is noise.
        last = following - state if delta_input else following
        # A large batch goes through few members at a time, so that activations stay in the cache.
        needed = max(1, last[..., 0].numel() * self.floats_per_transition)
        size = max(1, activation_budget(following) // needed)
        blocks = zip(
            zip(*[weight.split(size) for weight in self.weights], strict=True),
            zip(*[bias.split(size) for bias in self.biases], strict=True),
            strict=True,
        )
        logits = [_forward_block(state_action, last, weights, biases) for weights, biases in blocks]
        return torch.cat(logits).unflatten(1, following.shape[:2])


def _forward_block(
    state_action: Tensor,
    last: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """Logits (members, K * B) of (B, S + A) and (K, B, S)."""
    members = len(weights[0])
    of_given, of_last = weights[0].split([state_action.shape[1], last.shape[2]], dim=1)
    # The state and action's half of the first layer once for all K candidates.
    shared = torch.baddbmm(biases[0], state_action.expand(members, -1, -1), of_given)
    hidden = torch.bmm(last.flatten(0, 1).expand(members, -1, -1), of_last)
    hidden = hidden.unflatten(1, last.shape[:2]).add_(shared.unsqueeze(1)).flatten(1, 2)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden = torch.baddbmm(bias, hidden.relu_(), weight)
    return hidden.squeeze(-1)


class StackedModules(nn.Module):
    """M discriminators of the user's own kind, called together by `torch.vmap`.

    Args:
        modules: The discriminators, all alike.
    """

    # Nothing is known of them: as if each had two hidden layers of 256.
    floats_per_transition = 512

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(modules))
        stacked = {**parameters, **buffers}
        self.names = {f"stacked_{name.replace('.', '__')}": name for name in stacked}
        for safe, name in self.names.items():
            self.register_buffer(safe, stacked[name].detach())
        # In a tuple, so that the template's weights are neither moved nor saved.
        self._template = (copy.deepcopy(modules[0]).to("meta").eval(),)

    def forward(self, state: Tensor, action: Tensor, following: Tensor, delta_input: bool) -> Tensor:
        """Judge scaled transitions: (B, S), (B, A) and (K, B, S) to logits (M, K, B)."""
        last = following - state if delta_input else following
        given = torch.cat([state, action], dim=-1).expand(len(following), -1, -1)
        encoded = torch.cat([given, last], dim=-1)
        stacked = {name: getattr(self, safe) for safe, name in self.names.items()}

        def judge(one: dict[str, Tensor]) -> Tensor:
            return as_logits(functional_call(self._template[0], one, (encoded,)), last)

        return torch.vmap(judge)(stacked)
