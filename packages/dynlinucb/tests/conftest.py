import os

import pytest
import torch
from hypothesis import settings

from dynlinucb import DynamicalLinearBandit, SystemBounds, budget_vertices

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 10
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture(scope="session")
def actions():
    """The six permutations of (1, 0.5, 0), in lexicographic order."""
    return budget_vertices([0.0] * 3, [1.0] * 3, 1.5).double()


@pytest.fixture(scope="session")
def campaign():
    """The paper's model of ad campaigns, its three outputs summed."""
    return DynamicalLinearBandit.from_multi_output(
        matrix([[0.38, 0.33, 0.6], [0.07, 0.76, -0.54], [0.18, 0.34, 0.05]]),
        matrix([[0.14, 0.34, -0.05], [-0.17, 0.03, -0.01], [0.04, -0.09, 0.17]]),
        matrix([[0.25, -0.14, 0.01], [-0.55, 0.2, -0.13], [-0.31, -0.1, -0.01]]),
        matrix([[0.11, 0.1, 0.01], [0.01, 0.36, 0.01], [0.01, -0.05, 0.0]]),
        torch.ones(3, dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def synthetic():
    """The paper's synthetic system, its three outputs summed."""
    diagonals = ([0.2, 0.0, 0.1], [0.45, 0.0, 0.1], [1.0, 0.0, 0.1], [0.0, 0.5, 0.1])
    return DynamicalLinearBandit.from_multi_output(
        *(torch.diag(matrix(values)) for values in diagonals), torch.ones(3, dtype=torch.float64)
    )


@pytest.fixture(scope="session")
def published(actions):
    """Bounds as the official experiments set them."""

    def make(system, sigma=0.01):
        longest = float(actions.norm(dim=1).max())
        return system.bounds(actions, state_norm=longest / (1 - system.spectral_radius), sigma=sigma)

    return make


@pytest.fixture(scope="session")
def make_system():
    """A random stable system with n states and d actions."""

    def make(seed, n=3, d=2, radius=0.6, noise=0.05):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((n, n), (n, d), (n,), (d,))
        A, B, omega, theta = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
        A *= radius / torch.linalg.eigvals(A).abs().max()
        return DynamicalLinearBandit(A, B, omega, theta, noise, noise)

    return make


@pytest.fixture(scope="session")
def bounds():
    return SystemBounds(
        spectral_radius=0.5,
        theta_norm=1.0,
        omega_norm=0.5,
        input_norm=0.5,
        transient_growth=1.2,
        state_norm=2.0,
        action_norm=1.5,
        sigma=0.1,
    )
