"""The sizes of each preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run. The strengths of a rival bracket its optimum; it keeps the best by its own final accuracy."""

    num_tasks: int
    iterations: int
    batch_size: int
    hidden: tuple[int, ...]
    target_hidden: tuple[int, ...]
    pool: int
    check_every: int
    beta: float = 0.005
    eps: float = 5.0
    embedding_dim: int = 24
    learning_rate: float = 1e-3
    anchor_strengths: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05)
    ewc_strengths: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


FREE_EPS, FREE_BETA = 0.1, 0.1  # the official code's, for permuted MNIST with the task known

SIZES = {
    "smoke": Sizes(
        2, 24, 64, (16,), (16,), pool=2, check_every=8, anchor_strengths=(0.01,), ewc_strengths=(30.0,)
    ),
    "laptop": Sizes(3, 300, 64, (64,), (64,), pool=2, check_every=25),
    "paper": Sizes(10, 5000, 128, (100, 100), (1000, 1000), pool=1, check_every=500),
}
