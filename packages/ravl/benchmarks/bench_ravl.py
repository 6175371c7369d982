"""The critic's update against what is used instead: official arithmetic vectorised, separate networks, Python loops."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from ravl import (
    CriticEnsemble,
    Rollouts,
    gradient_diversity,
    ravl_actor_loss,
    ravl_critic_loss,
    soft_update_,
    truncated_rollouts,
)

both = pytest.mark.parametrize("case", ["ours", "peer"])
OBSERVATION, ACTION, BATCH, CRITICS, ALPHA, GAMMA, TAU = 17, 6, 256, 10, 0.1, 0.99, 5e-3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@cache
def batch():
    draw = lambda *shape: torch.randn(*shape, generator=seeded(len(shape) + shape[-1]))  # noqa: E731
    done = (torch.arange(BATCH) % 50 == 0).float()[:, None]
    data = [
        draw(BATCH, OBSERVATION),
        draw(BATCH, ACTION).tanh(),
        draw(BATCH, 1),
        draw(BATCH, OBSERVATION) + 1,
        done,
    ]
    return data, (draw(BATCH, ACTION) - 0.1).tanh(), draw(BATCH)


def ensemble(num_critics, hidden=(256, 256, 256)):
    critic = CriticEnsemble(OBSERVATION, ACTION, num_critics, hidden, generator=seeded(1))
    with torch.no_grad():  # gradients of ordinary size
        critic.critic[-1].weight.mul_(30)
    return critic


# --- the peers ----------------------------------------------------------------------------------------


class Batched(nn.Module):
    """The vectorised critic of CORL: weights stacked, the input repeated for each member."""

    def __init__(self, critic):
        super().__init__()
        self.num_critics = critic.num_critics
        self.weights = nn.ParameterList([copy.deepcopy(p) for p in critic.parameters()])

    def forward(self, state, action):
        x = torch.cat([state, action], -1)
        if x.dim() == 2:
            x = x.unsqueeze(0).repeat_interleave(self.num_critics, 0)
        for i in range(0, len(self.weights), 2):
            x = x @ self.weights[i] + self.weights[i + 1]
            if i < len(self.weights) - 2:
                x = torch.relu(x)
        return x.squeeze(-1)


class Separate(nn.Module):
    """N networks and a Python loop over them."""

    def __init__(self, critic):
        super().__init__()
        layers = [layer for layer in critic.critic if hasattr(layer, "weight")]
        self.members = nn.ModuleList()
        for member in range(critic.num_critics):
            net = []
            for layer in layers:
                linear = nn.Linear(*layer.weight.shape[1:])
                linear.weight.data.copy_(layer.weight.data[member].T)
                linear.bias.data.copy_(layer.bias.data[member, 0])
                net += [linear, nn.ReLU()]
            self.members.append(nn.Sequential(*net[:-1]))

    def forward(self, state, action):
        x = torch.cat([state, action], -1)
        return torch.stack(
            [member(x if x.dim() == 2 else x[i])[:, 0] for i, member in enumerate(self.members)]
        )


def official_target(target):
    (_, _, reward, following, done), next_action, log_prob = batch()
    with torch.no_grad():
        q_next = target(following, next_action).min(0).values - ALPHA * log_prob
        return reward + GAMMA * (1 - done) * q_next.unsqueeze(-1)


def official_loss(critic, target, num_critics, eta):
    """The official loss: a second forward pass for the diversity, differentiated twice, N x N products masked."""
    (state, action, *_), _, _ = batch()
    loss = ((critic(state, action) - official_target(target).view(1, -1)) ** 2).mean(1).sum(0)
    if not eta:
        return loss
    many = state.unsqueeze(0).repeat_interleave(num_critics, 0)
    leaf = action.unsqueeze(0).repeat_interleave(num_critics, 0).requires_grad_(True)
    (grad,) = torch.autograd.grad(critic(many, leaf).sum(), leaf, retain_graph=True, create_graph=True)
    grad = (grad / (torch.norm(grad, p=2, dim=2).unsqueeze(-1) + 1e-10)).transpose(0, 1)
    masks = torch.eye(num_critics).unsqueeze(0).repeat(grad.shape[0], 1, 1)
    products = (1 - masks) * (grad @ grad.permute(0, 2, 1))
    return loss + eta * products.sum((1, 2)).mean() / (num_critics - 1)


def official_update(critic, target, optimizer, eta):
    (state, _, *_), next_action, log_prob = batch()
    act = next_action.clone().requires_grad_(True)
    q = critic(state, act)
    actor_loss = (ALPHA * log_prob - q.min(0).values).mean()
    logged = [q.std(0).mean().item()]
    actor_loss.backward()
    loss = official_loss(critic, target, q.shape[0], eta)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
            slow.data.copy_((1 - TAU) * slow.data + TAU * fast.data)
        logged.append(loss.item())
    return loss.detach(), act.grad


def our_update(critic, target, optimizer, eta):
    data, next_action, log_prob = batch()
    act = next_action.clone().requires_grad_(True)
    ravl_actor_loss(critic, data[0], act, log_prob, ALPHA).backward()
    loss = ravl_critic_loss(critic, target, data, next_action, log_prob, ALPHA, discount=GAMMA, eta=eta)
    optimizer.zero_grad()
    loss.total.backward()
    optimizer.step()
    soft_update_(target, critic, TAU)
    return loss.total.detach(), act.grad


def compare_updates(benchmark, case, kind, peer, num_critics, eta, hidden=(256, 256, 256), rounds=12):
    def built(ours):
        critic = ensemble(num_critics, hidden)
        critic = critic if ours else kind(critic)
        return critic, copy.deepcopy(critic), torch.optim.Adam(critic.parameters(), lr=3e-4)

    (loss, gradient), (wanted, reference) = our_update(*built(True), eta), official_update(*built(False), eta)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-6)
    widths = "-".join(map(str, hidden))
    benchmark.extra_info.update(
        case=case, peer=peer, size=f"N = {num_critics}, {widths}, batch {BATCH}, eta = {eta:g}"
    )
    update, parts = (our_update if case == "ours" else official_update), built(case == "ours")
    benchmark.pedantic(update, (*parts, eta), rounds=rounds, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="one update of RAVL against CORL's vectorised one")
def test_update(benchmark, case):
    compare_updates(benchmark, case, Batched, "CORL's and the official update", CRITICS, 1.0)


@both
@pytest.mark.benchmark(group="one update without diversity against CORL's vectorised one")
def test_update_without_diversity(benchmark, case):
    compare_updates(benchmark, case, Batched, "CORL's update, eta = 0", CRITICS, 0.0)


@both
@pytest.mark.benchmark(group="twin critics against two networks")
def test_twins(benchmark, case):
    compare_updates(benchmark, case, Separate, "two networks in a loop", 2, 0.0)


@both
@pytest.mark.benchmark(group="ten small critics against ten networks")
def test_small(benchmark, case):
    compare_updates(benchmark, case, Separate, "ten networks in a loop", CRITICS, 0.0, hidden=(48, 48))


# --- the diversity alone, rollouts, the edge ----------------------------------------------------------


def masked_products(gradient):
    unit = (gradient / (gradient.norm(dim=2, keepdim=True) + 1e-10)).transpose(0, 1)
    masks = 1 - torch.eye(len(gradient))
    return ((unit @ unit.transpose(1, 2)) * masks).sum((1, 2)).mean() / (len(gradient) - 1)


@both
@pytest.mark.benchmark(group="diversity of 50 critics against all products")
def test_diversity(benchmark, case):
    gradient = torch.randn(50, BATCH, ACTION, generator=seeded(2))
    run = {"ours": gradient_diversity, "peer": masked_products}
    torch.testing.assert_close(run["ours"](gradient), run["peer"](gradient), rtol=1e-3, atol=1e-4)
    benchmark.extra_info.update(
        case=case, peer="batched N x N products", size=f"N = 50, batch {BATCH}, A = {ACTION}"
    )
    benchmark.pedantic(run[case], (gradient,), rounds=40, warmup_rounds=3)


def toy_step(state, action):
    following = state + 0.2 * action
    return following, -following.square().sum(-1)


def toy_policy(state):
    return -state.tanh()


def stepwise(starts, num_steps):
    """The few lines anyone writes, without step index, edge or checks."""
    columns, state = [], starts
    with torch.no_grad():
        for _ in range(num_steps):
            action = toy_policy(state)
            following, reward = toy_step(state, action)
            columns.append((state, action, reward, following))
            state = following
    return [torch.cat(column) for column in zip(*columns, strict=True)]


@both
@pytest.mark.benchmark(group="truncated rollouts against the bare loop over steps")
def test_rollouts(benchmark, case):
    starts = torch.randn(50_000, 2, generator=seeded(3))
    run = {
        "ours": lambda: truncated_rollouts(toy_step, toy_policy, starts, 5),
        "peer": lambda: stepwise(starts, 5),
    }
    assert torch.equal(run["ours"]().next_observation, run["peer"]()[3])
    benchmark.extra_info.update(
        case=case, peer="a loop over steps and torch.cat", size="50,000 starts, k = 5"
    )
    benchmark.pedantic(run[case], rounds=8, warmup_rounds=1)


def by_unique_rows(observation, following, terminated):
    """The few lines anyone writes: label equal rows by sorting them."""
    _, label = torch.cat([observation, following]).unique(dim=0, return_inverse=True)
    inputs, targets = label.split(len(observation))
    return ~torch.isin(targets, inputs) & ~terminated


@both
@pytest.mark.benchmark(group="finding the edge of a stored buffer against unique rows")
def test_edge(benchmark, case):
    found = truncated_rollouts(toy_step, toy_policy, torch.randn(10_000, 2, generator=seeded(4)), 5)
    parts = found.observation, found.next_observation, found.terminated
    run = {"ours": lambda: Rollouts.from_transitions(found).is_edge, "peer": lambda: by_unique_rows(*parts)}
    assert torch.equal(run["ours"](), run["peer"]())
    benchmark.extra_info.update(
        case=case, peer="torch.unique of rows and isin", size="50,000 transitions, S = 2"
    )
    benchmark.pedantic(run[case], rounds=8, warmup_rounds=1)
