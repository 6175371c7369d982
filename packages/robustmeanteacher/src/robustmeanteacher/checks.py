"""Whether model, prototypes, config and images fit together."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustmeanteacher.config import RobustMeanTeacherConfig


def check_model(model: nn.Module) -> None:
    """Refuse what is no bare module, or has nothing that could be trained."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "model must be the bare module, got DistributedDataParallel: pass model.module and process_group"
        )
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError("model must have a parameter with requires_grad=True, got none: nothing could adapt")
    if any(parameter.is_inference() for parameter in parameters):
        raise TypeError(
            "model must not be made inside torch.inference_mode(): its parameters could not be trained"
        )


def check_prototypes(prototypes: Tensor | None, config: RobustMeanTeacherConfig) -> None:
    """Refuse prototypes that are missing where the config needs them, or are none."""
    if prototypes is None:
        if config.contrastive_weight > 0:
            raise ValueError(
                f"prototypes must be given while contrastive_weight is {config.contrastive_weight}, got None; "
                "compute them with source_prototypes, or set contrastive_weight=0.0"
            )
        return
    if not prototypes.is_floating_point():
        raise TypeError(f"prototypes must be floating-point, got {prototypes.dtype}")
    if prototypes.dim() != 2:
        raise ValueError(f"prototypes must be (K, D), got shape {tuple(prototypes.shape)}")
    if not bool(prototypes.isfinite().all()):
        raise ValueError("prototypes must be finite, got NaN or infinity")


def check_last_layer(layer: nn.Module | None, prototypes: Tensor | None) -> None:
    """Refuse prototypes of another number of classes or features than the last layer has."""
    if not isinstance(layer, nn.Linear) or prototypes is None:
        return
    expected = (layer.out_features, layer.in_features)
    if tuple(prototypes.shape) != expected:
        raise ValueError(
            f"prototypes must be {expected}, the model's number of classes and of features, "
            f"got {tuple(prototypes.shape)}"
        )


def check_fit(features: Tensor, logits: Tensor, prototypes: Tensor | None) -> None:
    """Refuse a model whose features and logits are not those that the prototypes are for."""
    if logits.dim() != 2:
        raise ValueError(f"model must give logits (N, K), got shape {tuple(logits.shape)}")
    if prototypes is None:
        return
    expected = tuple(prototypes.shape)
    if (logits.shape[1], features.shape[1]) != expected:
        raise ValueError(
            f"prototypes must be ({logits.shape[1]}, {features.shape[1]}), the model's number of classes and "
            f"of features, got {expected}"
        )


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor, got {kind}")
    if images.dim() == 0 or len(images) == 0:
        raise ValueError(f"images must hold at least one sample, got shape {tuple(images.shape)}")


def check_batch(images: Tensor, needs_batch: bool) -> None:
    """The same, and refuse one image alone where statistics of the batch are used."""
    check_images(images)
    if len(images) == 1 and needs_batch:
        raise ValueError(
            "images must hold at least two samples while BatchNorm uses batch statistics, got one; "
            "for single samples wrap the adapter in SlidingWindow, or set batch_norm='source'"
        )
