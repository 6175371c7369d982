"""A classifier as others built it: its logits, its name without wrappers, its features and last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Module = Callable[[Tensor], Tensor]

_COMPILED = "_orig_mod"  # where torch.compile keeps the module that it wraps


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a classifier returns: a tensor, or an object or mapping that calls them `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model must return logits (N, K), or an output with logits as `.logits`, got {type(output).__name__}"
        )
    return logits


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile(model)`, which shares its parameters; any other as it is."""
    inner = getattr(model, _COMPILED, model)
    return inner if isinstance(inner, nn.Module) else model


class SplitModel:
    """A classifier seen as h(g(x)): one call gives features and logits, from one forward pass.

    Args:
        model: The classifier, images (N, ...) -> logits (N, K).
        split: The name of its last linear layer as `named_modules` gives it (`"fc"`, `"head"`,
            `"classifier.6"`), whose input is taken as the features; or a pair of callables
            (features, classifier) with `model(x) == classifier(features(x))`. By name a compiled model runs
            uncompiled, and needs no `_orig_mod.` in the name; to keep it compiled, compile the two of a pair.

    Raises:
        ValueError: If the model has no layer of that name; its linear layers are then listed.
        TypeError: If `split` is neither a name nor a pair of callables.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> features, logits = SplitModel(model, "2")(torch.ones(5, 4))
        >>> tuple(features.shape), torch.equal(model[2](features), logits)
        ((5, 3), True)
    """

    def __init__(self, model: nn.Module, split: str | tuple[Module, Module]) -> None:
        self.model = model
        self.layer: nn.Module | None = None
        if isinstance(split, str):
            self.model = uncompiled(model)
            self.layer = _named_layer(self.model, split)
        elif isinstance(split, tuple) and len(split) == 2 and all(callable(part) for part in split):
            self._features, self._classifier = split
        else:
            raise TypeError(
                f"split must be the name of the last layer or (features, classifier), got {split!r}"
            )
        self.split = split

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and logits (N, K).

        Args:
            images: (N, ...).

        Returns:
            Features, flattened to two dimensions, and logits.

        Raises:
            ValueError: If the named layer was not called.
            TypeError: If features are no tensor, or what the model returns has no logits.
        """
        if self.layer is None:
            features = self._given_features(images)
            return features.flatten(1), logits_of(self._classifier(features))
        caught: list[Tensor] = []
        # Only while this call lasts: the user's module carries no hook of ours, and copies of it neither.
        handle = self.layer.register_forward_pre_hook(
            lambda module, inputs, named: caught.append([*inputs, *named.values()][0]), with_kwargs=True
        )
        try:
            logits = logits_of(self.model(images))
        finally:
            handle.remove()
        if not caught:
            raise ValueError(
                f"split must name a layer that the forward pass calls, {self.split!r} was not called "
                "(calls inside a compiled part are not seen: give a pair there)"
            )
        return caught[-1].flatten(1), logits

    def features(self, images: Tensor) -> Tensor:
        """Features alone, (N, D).

        Args:
            images: (N, ...).

        Returns:
            What the last layer is given.
        """
        if self.layer is None:
            return self._given_features(images).flatten(1)
        return self(images)[0]

    def _given_features(self, images: Tensor) -> Tensor:
        features = self._features(images)
        if not isinstance(features, Tensor):
            raise TypeError(f"split's features must return a tensor (N, D), got {type(features).__name__}")
        return features


def _named_layer(model: nn.Module, name: str) -> nn.Module:
    wanted = name.replace(f"{_COMPILED}.", "")
    layers = {found.replace(f"{_COMPILED}.", ""): layer for found, layer in model.named_modules()}
    if wanted and wanted in layers:
        return layers[wanted]
    linear = [found for found, layer in layers.items() if isinstance(layer, nn.Linear)]
    raise ValueError(f"split must name a layer of the model, got {name!r}; its linear layers are {linear}")
