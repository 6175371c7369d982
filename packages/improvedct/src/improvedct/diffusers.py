"""From diffusers and back: its U-Nets as networks here, and models trained here in its pipelines.

Only `to_diffusers` needs diffusers itself (extra `diffusers`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from improvedct.model import Consistency
from improvedct.noise import NoiseRange

__all__ = ["ScaledTime", "from_diffusers", "to_diffusers"]

_SCALE = (
    1000  # diffusers' schedulers of consistency models say 1000 ln(sigma) / 4 where c_noise is ln(sigma) / 4
)
_RANGE = ("sigma_min", "sigma_max", "rho", "sigma_data")


class ScaledTime(nn.Module):
    """A U-Net of diffusers as a network of `Consistency`: it is told 1000 c_noise, as its time embedding expects.

    Args:
        unet: Called as `unet(x, timestep, **cond)`; a `UNet2DModel`, a `UNet2DConditionModel` or one like them.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Any:
        """The U-Net's answer.

        Args:
            x: (B, C, H, W).
            c_noise: (B,), ln(sigma) / 4.
            **cond: What else the U-Net takes, such as `class_labels`.
        """
        return self.unet(x, _SCALE * c_noise, **cond)


def from_diffusers(unet: nn.Module, scheduler: Any = None) -> Consistency:
    """A consistency function of a U-Net of diffusers, to be trained, sampled from or distilled into.

    Args:
        unet: A new one, or one of a `ConsistencyModelPipeline`, whose f it then is.
        scheduler: The pipeline's `CMStochasticIterativeScheduler`, which has the noise range; the paper's range if
            None.

    Returns:
        The model; its `net.unet` is the U-Net itself.

    Raises:
        TypeError: If `scheduler` has no noise range of consistency models.

    Examples:
        >>> import torch
        >>> from improvedct import consistency_loss
        >>> class UNet(nn.Module):
        ...     def forward(self, x, timestep):
        ...         return 0 * x
        >>> out = consistency_loss(from_diffusers(UNet()), torch.randn(4, 3, 8, 8), 11)
        >>> bool(out.loss > 0)
        True
    """
    if scheduler is None:
        return Consistency(ScaledTime(unet))
    config = getattr(scheduler, "config", scheduler)
    missing = [name for name in _RANGE if not hasattr(config, name)]
    if missing:
        raise TypeError(
            f"scheduler must be a CMStochasticIterativeScheduler, {type(scheduler).__name__} has no {missing[0]}"
        )
    return Consistency(ScaledTime(unet), NoiseRange(*(float(getattr(config, name)) for name in _RANGE)))


def to_diffusers(
    model: Consistency, *, num_train_timesteps: int = 40, clip: bool = True
) -> tuple[nn.Module, Any]:
    """U-Net and scheduler of a model, for `ConsistencyModelPipeline(*to_diffusers(average))` and `save_pretrained`.

    One step of that pipeline is `sample(model, ...)`, several are `sample(model, ..., taus=...)` at those of
    the scheduler's levels.

    Args:
        model: Of `from_diffusers`, best the average of its weights.
        num_train_timesteps: Levels of the scheduler's grid, among which its steps are chosen.
        clip: Whether it clamps samples to [-1, 1], as is right for images in that range.

    Returns:
        The U-Net itself, no copy, and a new `CMStochasticIterativeScheduler`.

    Raises:
        ImportError: If diffusers is missing.
        TypeError: If the model is none of `from_diffusers`.
    """
    if not isinstance(model, Consistency) or not isinstance(model.net, ScaledTime):
        raise TypeError(
            f"model must be a Consistency of from_diffusers, got {type(getattr(model, 'net', model)).__name__}"
        )
    try:
        from diffusers import CMStochasticIterativeScheduler
    except ImportError as error:  # pragma: no cover
        raise ImportError("to_diffusers needs diffusers: pip install 'improvedct[diffusers]'") from error
    noise = dict(zip(_RANGE, model.noise_range.as_tuple(), strict=True))
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=num_train_timesteps, clip_denoised=clip, **noise
    )
    return model.net.unet, scheduler
