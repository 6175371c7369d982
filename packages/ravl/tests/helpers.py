"""What several test files build."""

import torch
from torch import nn

from ravl import CriticEnsemble


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_critic(num_critics=4, observation_dim=3, action_dim=2, hidden=(8, 7), layer_norm=False, seed=0):
    """An ensemble in float64 whose weights are all of order one: biases and norms count."""
    generator = seeded(seed)
    critic = CriticEnsemble(observation_dim, action_dim, num_critics, hidden, layer_norm).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return critic


def transitions(size=6, observation_dim=3, action_dim=2, seed=1, dtype=torch.float64):
    generator = seeded(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    terminated = (torch.arange(size) % 3 == 0).to(dtype)
    return [
        draw(size, observation_dim),
        draw(size, action_dim),
        draw(size),
        draw(size, observation_dim),
        terminated,
    ]


class Gaussian(nn.Module):
    """CORL's actor in small."""

    def __init__(self, observation_dim=3, action_dim=2):
        super().__init__()
        self.net = nn.Linear(observation_dim, 2 * action_dim)

    def forward(self, observation):
        mean, log_std = self.net(observation).chunk(2, -1)
        noise = torch.randn_like(mean)
        action = torch.tanh(mean + log_std.clip(-5, 2).exp() * noise)
        log_prob = (-0.5 * noise**2 - log_std.clip(-5, 2) - 0.9189385332).sum(-1)
        return action, log_prob - torch.log(1 - action**2 + 1e-6).sum(-1)
