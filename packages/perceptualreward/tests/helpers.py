"""Demonstrations made up for the tests."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def piecewise(lengths, levels, num_features=40, noise=0.1, seed=0):
    """Frames (T, F) that jump from level to level; a feature in two takes part."""
    source = generator(seed)
    means = torch.randn(max(levels) + 1, num_features, generator=generator(99))
    means[:, ::2] = means[0, ::2]
    parts = [means[level].expand(length, -1) for length, level in zip(lengths, levels, strict=True)]
    x = torch.cat(parts)
    return x + noise * torch.randn(x.shape, generator=source)


def demonstrations(count=5, **options):
    """Three steps each, of uneven lengths, and the true cuts."""
    demos, cuts = [], []
    for number in range(count):
        lengths = (8 + number % 3, 5 + number % 2, 6)
        demos.append(piecewise(lengths, (0, 1, 2), seed=number, **options))
        cuts.append(torch.tensor([lengths[0], lengths[0] + lengths[1]]))
    return demos, cuts
