"""Source prototypes: one mean feature per class, and the contrastive loss that anchors the stream to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from robustmeanteacher.batches import images_and_labels
from robustmeanteacher.split import SplitModel


def source_prototypes(
    features: Callable[[Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    max_samples: int | None = 100_000,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean source feature of every class (arXiv 2211.13081, section 3.2).

    Compute them once, with the source model as it was trained and in evaluation mode, before anything adapts.
    Features are not normalised first. Sums are kept in float64, so no feature is stored.

    Args:
        features: Images (n, ...) -> features (n, D); trailing dimensions are flattened. For a model split at
            its last layer, `SplitModel(model, "fc").features`.
        loader: Batches (images, labels) with labels (n,) integers in 0..num_classes-1, on the model's device.
        num_classes: K.
        max_samples: Stop once this many samples have been read (whole batches); None reads all.
        process_group: If each rank reads its own shard: sums are added over the ranks of this group.

    Returns:
        (K, D) prototypes in the dtype of the features.

    Raises:
        ValueError: If a label is out of range, a class has no sample, features are not finite, the
            loader is empty, or `features` belongs to a model whose BatchNorm or dropout is in training mode.
        TypeError: If batches are no pairs of tensors, or labels are not integers.

    Examples:
        >>> images, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1])
        >>> source_prototypes(lambda x: x, [(images, labels)], num_classes=2)
        tensor([[2., 0.],
                [0., 5.]])
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1 or None, got {max_samples}")
    _check_evaluation(features)
    sums = counts = found = None
    seen = 0
    with torch.no_grad():
        for batch in loader:
            images, labels = images_and_labels(batch, "loader")
            _check_range(labels, num_classes)
            found = features(images).flatten(1)
            if sums is None or counts is None:
                sums = found.new_zeros(num_classes, found.shape[1], dtype=torch.float64)
                counts = found.new_zeros(num_classes, dtype=torch.float64)
            labels = labels.to(found.device)
            sums.index_add_(0, labels, found.double())
            counts += torch.bincount(labels, minlength=num_classes)
            seen += len(labels)
            if max_samples is not None and seen >= max_samples:
                break
    if sums is None or counts is None or found is None:
        raise ValueError("loader must give at least one batch, got none")
    if process_group is not None:
        dist.all_reduce(sums, group=process_group)
        dist.all_reduce(counts, group=process_group)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"loader must have samples of all {num_classes} classes, has none of {empty}")
    if not bool(sums.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity")
    return (sums / counts.unsqueeze(1)).to(found.dtype)


def nearest_prototypes(features: Tensor, prototypes: Tensor) -> Tensor:
    """Index of the prototype with the largest cosine similarity to each feature.

    One product of (N, D) and (D, K): memory N K instead of the N K D of comparing all pairs element by element.

    Args:
        features: (N, D).
        prototypes: (K, D).

    Returns:
        (N,) integers in 0..K-1; no gradients.

    Raises:
        ValueError: If the dimensions do not fit.

    Examples:
        >>> nearest_prototypes(torch.tensor([[0.0, 9.0], [1.0, 0.1]]), torch.eye(2)).tolist()
        [1, 0]
    """
    _check_dimensions(features, prototypes)
    # In bfloat16 most prototypes that lie close together would be equally near.
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        # The length of a feature scales its whole row of similarities, so only prototypes are normalised.
        return (features.to(dtype) @ normalize(prototypes.to(dtype), dim=1).T).argmax(1)


def prototype_contrastive_loss(
    prototypes: Tensor,
    features: Tensor,
    features_augmented: Tensor,
    projector: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Pull a test sample, its augmented view and its nearest source prototype together, away from other samples.

    With the three views of sample n, v = (prototype c_n, g(x_n), g(x~_n)), projected and normalised to z:
    the mean over all 3 N anchors a of -1/2 sum_b log(exp(z_a.z_b/t) / sum_{c != a} exp(z_a.z_c/t)), where b
    runs over the two other views of the same sample (arXiv 2211.13081, section 3.2). Two samples with the same
    nearest prototype stay negatives of each other. Memory: one (3 N, 3 N) matrix.

    Args:
        prototypes: (K, D) source prototypes; constants.
        features: (N, D) of the test batch.
        features_augmented: (N, D) of its augmented view.
        projector: (3 N, D) -> (3 N, P); identity if None. Prototypes go through it too.
        temperature: t > 0.

    Returns:
        The scalar loss, in float32 or better even under autocast.

    Raises:
        ValueError: If the dimensions do not fit, or the temperature is not positive.

    Examples:
        >>> prototypes = torch.eye(2)
        >>> near = prototype_contrastive_loss(prototypes, prototypes, prototypes)
        >>> far = prototype_contrastive_loss(prototypes, prototypes, prototypes.flip(0))
        >>> bool(near < far)
        True
    """
    _check_dimensions(features, prototypes)
    if features_augmented.shape != features.shape:
        raise ValueError(
            f"features_augmented must have the shape of features, {tuple(features.shape)}, "
            f"got {tuple(features_augmented.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    anchors = prototypes[nearest_prototypes(features, prototypes)].to(features.dtype)
    views = torch.cat([anchors, features, features_augmented])
    projected = views if projector is None else projector(views)
    # In bfloat16 similarities divided by 0.1 would be wrong by several hundredths.
    with torch.autocast(projected.device.type, enabled=False):
        z = normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
        similarity = z @ z.T / temperature
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_denominator = similarity.masked_fill(itself, float("-inf")).logsumexp(1)
        anchor, plain, augmented = z.chunk(3)
        # Every pair of views is met twice, with weight 1/2.
        agreement = (anchor * plain + anchor * augmented + plain * augmented).sum() / temperature
        return log_denominator.mean() - agreement / len(z)


def make_projector(
    prototypes: Tensor, width: int, generator: torch.Generator | None, dtype: torch.dtype
) -> nn.Module:
    """Linear, ReLU, Linear, initialised as torch does it but from the given generator."""
    layers = []
    for inputs in (prototypes.shape[1], width):
        layer = nn.utils.skip_init(nn.Linear, inputs, width, device=prototypes.device, dtype=dtype)
        bound = inputs**-0.5
        with torch.no_grad():
            for parameter in layer.parameters():
                where = parameter.device if generator is None else generator.device
                drawn = torch.rand(parameter.shape, generator=generator, device=where, dtype=parameter.dtype)
                parameter.copy_((2 * drawn - 1) * bound)
        layers.append(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _check_range(labels: Tensor, num_classes: int) -> None:
    if labels.is_floating_point():
        raise TypeError(f"loader's labels must be integers, got {labels.dtype}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in 0..{num_classes - 1} (num_classes is {num_classes}), "
            f"got {int(labels.min())}..{int(labels.max())}"
        )


def _check_evaluation(features: Callable[[Tensor], Tensor]) -> None:
    """Refuse a model in training mode, where features are other than in use and statistics would change."""
    owner = getattr(features, "__self__", features)
    model = owner.model if isinstance(owner, SplitModel) else owner
    layers = model.modules() if isinstance(model, nn.Module) else ()
    if any(layer.training and isinstance(layer, (_BatchNorm, _DropoutNd)) for layer in layers):
        raise ValueError(
            "features must be those of a model in evaluation mode, got training mode: call model.eval()"
        )


def _check_dimensions(features: Tensor, prototypes: Tensor) -> None:
    if features.dim() != 2 or prototypes.dim() != 2 or features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            "features must be (N, D) and prototypes (K, D) with one D, got "
            f"{tuple(features.shape)} and {tuple(prototypes.shape)}"
        )
