"""What each preset trains, and what a result says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuralcollapse.demo.networks import Training

CLAIM = (
    "Each added layer reduces the within-class variability of the features, and the weight decay of the feature layers "
    "moves the collapse more than that of the last layer; in the near-features model behind it NC1~ falls along the "
    "central path, and perturbations travel by an operator known up to O(1/beta^2)."
)
METRICS = {
    "error exponent": {"unit": "power of beta", "better": "neither"},
    "distance from closed form": {"unit": "", "better": "lower"},
    "layers added": {"unit": "", "better": "neither"},
    "of them with lower NC1~": {"unit": "", "better": "higher"},
    "theorem holds": {"unit": "% of steps", "better": "higher"},
    "error of log NC1~": {"unit": "nats", "better": "lower"},
    "shift of log NC1": {"unit": "nats", "better": "higher"},
    "penalty changed": {"unit": "% of all", "better": "neither"},
    "NC1": {"unit": "", "better": "lower"},
    "NC1~": {"unit": "", "better": "lower"},
    "NC2": {"unit": "", "better": "lower"},
    "NC3": {"unit": "", "better": "lower"},
    "train accuracy": {"unit": "%", "better": "higher"},
    "test accuracy": {"unit": "%", "better": "higher"},
}


@dataclass(frozen=True)
class Settings:
    """One preset.

    Attributes:
        data: What it trains on, in words.
        network: The network whose weight decay is changed, in words.
        sizes: Its widths from input to last feature; none for ResNet-18.
        num_replicas: Initialisations of it.
        factor: By which weight decay is raised.
        arms: Its training.
        width: Of the network that grows layer by layer.
        depth: How many layers that gets.
        layerwise: The training of each of them.
        num_times: Looks along the central path.
        betas: Among which the forecast chooses.
        samples: Images per class, for training and testing.
    """

    data: str
    network: str
    sizes: tuple[int, ...]
    num_replicas: int
    factor: float
    arms: Training
    width: int
    depth: int
    layerwise: Training
    num_times: int
    betas: tuple[float, ...]
    samples: tuple[int, int] = (400, 100)


_BETAS = tuple(10 ** (exponent / 4) for exponent in range(-12, 5))
_PAPER = Training(200, 128, drops=(0.2, 0.4, 0.6, 0.8), num_looks=50)
PRESETS = {
    "smoke": Settings(
        data="8 x 8 digits, 1,200 for training",
        network="perceptron 64-32-32-10",
        sizes=(64, 32, 32),
        num_replicas=1,
        factor=4.0,
        arms=Training(2),
        width=32,
        depth=3,
        layerwise=Training(2),
        num_times=5,
        betas=(100.0, 1000.0),
        samples=(120, 50),
    ),
    "laptop": Settings(
        data="MNIST, 4,000 images for training, 1,000 for testing",
        network="perceptron 784-128-128-128-10",
        sizes=(784, 128, 128, 128),
        num_replicas=2,
        factor=4.0,
        arms=Training(50),
        width=128,
        depth=6,
        layerwise=Training(60),
        num_times=41,
        betas=_BETAS,
    ),
    "paper": Settings(
        data="CIFAR-10, not augmented",
        network="ResNet-18",
        sizes=(),
        num_replicas=1,
        factor=2.0,
        arms=_PAPER,
        width=512,
        depth=10,
        layerwise=_PAPER,
        num_times=41,
        betas=_BETAS,
    ),
}


def described(settings: Settings) -> dict[str, Any]:
    """The setting of a result: data, model and budget in words."""
    arms = settings.arms
    return {
        "data": settings.data,
        "model": f"one layer of {settings.width} at a time up to {settings.depth}; for weight decay "
        f"{settings.network}; squared loss, no bias in the head",
        "budget": f"{settings.layerwise.num_epochs} epochs a layer, {arms.num_epochs} for each weight decay, "
        f"mean of {settings.num_replicas} initialisations; SGD, momentum 0.9, learning rate "
        f"{arms.learning_rate:g} falling to a tenth {len(arms.drops)} times, weight decay {arms.weight_decay:g}; "
        "arms of one initialisation see the same batches. Metrics on the training set",
    }
