import copy

import pytest
import torch
from helpers import random_critic, seeded
from torch import nn

from ravl import CriticEnsemble, diversity_loss, gradient_diversity, soft_update_
from ravl.losses import value_and_action_gradient


def separate(critic, member):
    """One member as an ordinary network with the same weights."""
    layers = []
    for layer in critic.critic:
        kind = type(layer).__name__
        if kind == "StackedLinear":
            new = nn.Linear(*layer.weight.shape[1:]).double()
            new.weight.data, new.bias.data = layer.weight[member].T.clone(), layer.bias[member, 0].clone()
        elif kind == "StackedLayerNorm":
            new = nn.LayerNorm(layer.weight.shape[-1]).double()
            new.weight.data, new.bias.data = layer.weight[member, 0].clone(), layer.bias[member, 0].clone()
        else:
            new = nn.ReLU()
        layers.append(new)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_ensemble_is_n_separate_networks(layer_norm):
    critic = random_critic(layer_norm=layer_norm)
    s, a = torch.randn(5, 3, generator=seeded(2)).double(), torch.randn(5, 2, generator=seeded(3)).double()
    wanted = torch.stack([separate(critic, i)(torch.cat([s, a], 1))[:, 0] for i in range(4)])
    torch.testing.assert_close(critic(s, a), wanted)
    torch.testing.assert_close(critic(s.expand(4, 5, 3), a), wanted)
    own = torch.stack([a + i for i in range(4)])
    torch.testing.assert_close(critic(s, own)[2], critic(s, a + 2)[2])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_action_gradients_are_those_of_autograd_to_the_weights(layer_norm):
    critic = random_critic(layer_norm=layer_norm)
    s, a = torch.randn(5, 3, generator=seeded(2)).double(), torch.randn(5, 2, generator=seeded(3)).double()
    value, gradient = critic.value_and_action_gradient(s, a)
    for i in range(4):
        alone, leaf = separate(critic, i), a.clone().requires_grad_()
        out = alone(torch.cat([s, leaf], 1))[:, 0]
        torch.testing.assert_close(value[i], out)
        torch.testing.assert_close(gradient[i], torch.autograd.grad(out.sum(), leaf)[0])


class Residual(CriticEnsemble):
    """A subclass with a forward of its own."""

    def forward(self, observation, action):
        return super().forward(observation, action) + action.square().sum(-1)


def general(critic):
    """The same critic behind a function: the general way."""
    return lambda s, a: critic(s, a)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_general_way_gives_the_same_loss_and_gradients(layer_norm):
    critic = random_critic(layer_norm=layer_norm)
    s, a = torch.randn(5, 3, generator=seeded(2)).double(), torch.randn(5, 2, generator=seeded(3)).double()
    fast, slow = diversity_loss(critic, s, a), diversity_loss(general(critic), s, a)
    torch.testing.assert_close(fast, slow)
    weights = [p for name, p in critic.named_parameters() if name != "critic.0.bias"]
    for one, other in zip(
        torch.autograd.grad(fast, weights, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(slow, weights, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_subclasses_hooks_and_replaced_layers_take_the_general_way():
    s, a = torch.randn(5, 3, generator=seeded(2)).double(), torch.randn(5, 2, generator=seeded(3)).double()
    plain = random_critic()
    residual = Residual(3, 2, 4, (8, 7)).double()
    residual.load_state_dict(plain.state_dict())
    moved = value_and_action_gradient(residual, s, a)[1] - value_and_action_gradient(plain, s, a)[1]
    torch.testing.assert_close(moved, (2 * a).expand(4, 5, 2))
    hooked = copy.deepcopy(plain)
    hooked.critic[2].register_forward_hook(lambda module, args, output: 3 * output)
    replaced = copy.deepcopy(plain)
    replaced.critic[1] = nn.Tanh()
    for critic in (hooked, replaced):
        leaf = a.clone().requires_grad_()
        wanted = torch.autograd.grad(critic(s, leaf)[1].sum(), leaf)[0]
        torch.testing.assert_close(value_and_action_gradient(critic, s, a)[1][1], wanted)


def test_initial_weights_are_the_official_ones():
    critic = CriticEnsemble(11, 3, 10, generator=seeded(0))
    hidden = [critic.critic[i] for i in (0, 2, 4)]
    assert [tuple(layer.weight.shape) for layer in hidden] == [(10, 14, 256), (10, 256, 256), (10, 256, 256)]
    assert all(bool((layer.bias == 0.1).all()) for layer in hidden)
    bound = 14**-0.5
    assert 0.99 * bound < hidden[0].weight.abs().max() <= bound
    assert 0.0029 < critic.critic[6].weight.abs().max() <= 3e-3
    assert critic.critic[6].bias.abs().max() <= 3e-3
    assert torch.equal(
        critic.critic[0].weight, CriticEnsemble(11, 3, 10, generator=seeded(0)).critic[0].weight
    )


def test_weights_have_the_names_of_corl():
    names = {name: tuple(p.shape) for name, p in CriticEnsemble(3, 2, 4, (8, 7)).named_parameters()}
    assert names == {
        "critic.0.weight": (4, 5, 8), "critic.0.bias": (4, 1, 8), "critic.2.weight": (4, 8, 7),
        "critic.2.bias": (4, 1, 7), "critic.4.weight": (4, 7, 1), "critic.4.bias": (4, 1, 1),
    }  # fmt: skip


def test_target_networks_move_by_tau_and_take_buffers():
    source, target = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    source[1].running_mean += 5
    before = target[0].weight.clone()
    soft_update_(target, source, 0.25)
    torch.testing.assert_close(target[0].weight, 0.75 * before + 0.25 * source[0].weight)
    assert torch.equal(target[1].running_mean, source[1].running_mean)
    with pytest.raises(ValueError, match="differ in 'weight'"):
        soft_update_(nn.Linear(2, 2), nn.Linear(3, 2), 0.5)
    with pytest.raises(ValueError, match="tau must be in"):
        soft_update_(target, source, 1.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    gradient = torch.randn(10, 64, 3, generator=seeded(0))
    found = gradient_diversity((1000 * gradient).to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_diversity(gradient), rtol=0.05, atol=0.02)


def test_critics_of_float32_take_float64_observations_and_integers():
    critic = CriticEnsemble(3, 2, 4, (8,))
    s = torch.arange(6.0).view(2, 3)
    wanted = critic(s, torch.ones(2, 2))
    torch.testing.assert_close(critic(s.double(), torch.ones(2, 2)), wanted)
    torch.testing.assert_close(critic(s.long(), torch.ones(2, 2, dtype=torch.int64)), wanted)
