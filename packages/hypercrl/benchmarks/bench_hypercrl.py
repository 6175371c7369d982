"""hypercrl against what a competent user would pick instead: a group is exactly two cases on the same input."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hypercrl import CEMPlanner, HyperNetwork, OutputRegularizer, continual_step, lookahead_delta

both = pytest.mark.parametrize("case", ["ours", "peer"])
BETA, BATCH, OLD = 0.05, 100, 8


def network():
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))


@cache
def problem():
    """A hypernetwork of eight old tasks that has moved since, and the same as a plain stack of layers."""
    generator = torch.Generator().manual_seed(0)
    model = network()
    hnet = HyperNetwork(model, generator=generator)
    for _ in range(OLD + 1):
        hnet.add_task(generator)
    regularizer = OutputRegularizer(hnet, OLD, beta=BETA)
    with torch.no_grad():
        for value in hnet.theta():
            value += 0.01 * torch.randn(value.shape, generator=generator)
    layers = []
    for weight, bias in zip(hnet.weights, hnet.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        layers += [layer, nn.ELU()]
    plain = nn.Sequential(*layers[:-1])
    old = torch.stack([value.detach() for value in hnet.embeddings[:OLD]])
    x, y = torch.randn(BATCH, 6, generator=generator), torch.randn(BATCH, 4, generator=generator)
    return model, hnet, regularizer, plain, old, regularizer.targets.clone(), x, y


SIZE = "target of 4,868 weights, hypernetwork 10-50-50, 8 old tasks"


# --- the regulariser -----------------------------------------------------------------------------------


def our_regulariser():
    _, hnet, regularizer, *_ = problem()
    loss = regularizer.loss()
    return loss, *torch.autograd.grad(loss, hnet.theta())


def vectorised_lines():
    """What anyone writes who sees that the embeddings are a batch."""
    _, hnet, _, plain, old, targets, *_ = problem()
    loss = BETA / OLD * (plain(old) + hnet.base - targets).square().sum()
    weights = [layer for layer in plain if isinstance(layer, nn.Linear)]
    values = [*(layer.weight for layer in weights), *(layer.bias for layer in weights)]
    return loss, *torch.autograd.grad(loss, values)


def loop_of_the_official_code():
    """One forward pass for each old task, one head for each tensor, tensors concatenated."""
    model, hnet, _, plain, old, targets, *_ = problem()
    *body, head = plain
    sizes = [value.numel() for value in model.parameters()]
    heads = list(zip(head.weight.split(sizes), head.bias.split(sizes), hnet.base.split(sizes), strict=True))
    loss = 0.0
    for embedding, target in zip(old, targets, strict=True):
        hidden = embedding
        for layer in body:
            hidden = layer(hidden)
        flat = torch.cat([nn.functional.linear(hidden, w, b) + base for w, b, base in heads])
        loss = loss + (target - flat).square().sum()
    loss = BETA * loss / OLD
    layers = [layer for layer in plain if isinstance(layer, nn.Linear)]
    values = [*(layer.weight for layer in layers), *(layer.bias for layer in layers)]
    return loss, *torch.autograd.grad(loss, values)


PEERS = {
    vectorised_lines: "nn.Sequential on the stacked embeddings, squared error",
    loop_of_the_official_code: "a loop over tasks and heads, as the official code",
}


def compare_regularisers(benchmark, case, peer):
    for ours, theirs in zip(our_regulariser(), peer(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    benchmark.extra_info.update(case=case, peer=PEERS[peer], size=SIZE)
    benchmark({"ours": our_regulariser, "peer": peer}[case])


@both
@pytest.mark.benchmark(group="regulariser and gradients")
def test_regulariser(benchmark, case):
    compare_regularisers(benchmark, case, vectorised_lines)


@both
@pytest.mark.benchmark(group="regulariser and gradients, peer as the official code")
def test_regulariser_of_the_official_code(benchmark, case):
    compare_regularisers(benchmark, case, loop_of_the_official_code)


# --- the look-ahead ------------------------------------------------------------------------------------


@cache
def adam():
    _, hnet, *_ = problem()
    values = [nn.Parameter(value.detach().clone()) for value in hnet.theta()]
    optimizer = torch.optim.Adam(values, 1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
    return values, optimizer


def step_of_a_copy():
    """The way that needs no formula: step a copy and subtract."""
    values, optimizer = adam()
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    for value, copied in zip(values, copies, strict=True):
        copied.grad = value.grad.clone()
    twin.step()
    return [(copied - value).detach() for value, copied in zip(values, copies, strict=True)]


@both
@pytest.mark.benchmark(group="look-ahead of Adam")
def test_lookahead(benchmark, case):
    values, optimizer = adam()
    ours = lookahead_delta(optimizer)
    for value, theirs in zip(values, step_of_a_copy(), strict=True):
        torch.testing.assert_close(ours[value], theirs, rtol=1e-3, atol=1e-6)
    about = {"peer": "a step of a deep copy", "size": "249,000 parameters"}
    benchmark.extra_info.update(case=case, **about)
    benchmark({"ours": lambda: lookahead_delta(optimizer), "peer": step_of_a_copy}[case])


# --- a whole step --------------------------------------------------------------------------------------


def our_step(hnet, model, regularizer, theta, embedding, x, y):
    def loss(weights):
        return (functional_call(model, weights, (x,)) - y).square().sum() / 4

    continual_step(hnet, OLD, loss, theta, embedding, regularizer, batch_size=BATCH, check_finite=False)


def plain_step(hnet, model, regularizer, theta, embedding, x, y):
    """The same without look-ahead by torch alone, on the same parameters."""
    theta.zero_grad()
    embedding.zero_grad()

    def flat(value):
        for index, (weight, bias) in enumerate(zip(hnet.weights, hnet.biases, strict=True)):
            value = nn.functional.linear(value, weight, bias)
            value = nn.functional.elu(value) if index < 2 else value
        return value + hnet.base

    pieces = flat(hnet.embeddings[OLD]).split([shape.numel() for shape in hnet.shapes.values()])
    weights = {
        name: piece.view(shape) for (name, shape), piece in zip(hnet.shapes.items(), pieces, strict=True)
    }
    ((functional_call(model, weights, (x,)) - y).square().sum() / 4).backward()
    nn.utils.clip_grad_norm_([hnet.embeddings[OLD]], 5.0)
    embedding.step()
    (BETA * BATCH / OLD * (flat(regularizer.old_embeddings) - regularizer.targets).square().sum()).backward()
    nn.utils.clip_grad_norm_(hnet.theta(), 5.0)
    theta.step()


@both
@pytest.mark.benchmark(group="training step without look-ahead")
def test_step(benchmark, case):
    found = {}
    for name, step in (("ours", our_step), ("peer", plain_step)):
        model, original, *_, x, y = problem()
        hnet = copy.deepcopy(original)
        regularizer = OutputRegularizer(hnet, OLD, beta=BETA, lookahead=False)
        theta, embedding = torch.optim.Adam(hnet.theta(), 1e-3), torch.optim.Adam([hnet.embedding(OLD)], 1e-3)
        arguments = (hnet, model, regularizer, theta, embedding, x, y)
        for _ in range(3):
            step(*arguments)
        found[name] = (step, arguments, torch.cat([value.detach().flatten() for value in hnet.parameters()]))
    torch.testing.assert_close(found["ours"][2], found["peer"][2], rtol=1e-3, atol=2e-3)
    benchmark.extra_info.update(
        case=case, peer="the same step written with torch alone", size=SIZE + ", batch 100"
    )
    step, arguments, _ = found[case]
    benchmark(step, *arguments)


# --- planning ------------------------------------------------------------------------------------------

NUM_STATES, SAMPLES, ELITES, HORIZON, ITERATIONS = 64, 100, 10, 10, 3


@cache
def model_to_plan_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return model, torch.randn(NUM_STATES, 4, generator=torch.Generator().manual_seed(2))


def dynamics(states, actions):
    return states + 0.1 * model_to_plan_on()[0](torch.cat([states, actions], dim=-1))


def cost(states, actions):
    return states.square().sum(dim=-1)


@cache
def planner():
    return CEMPlanner(dynamics, cost, HORIZON, -1.0, 1.0, SAMPLES, ELITES, ITERATIONS)


def ours_for(states):
    return planner().plan(states, torch.Generator().manual_seed(3))


@torch.no_grad()
def lines_for_a_batch(states):
    """The few lines of a batched cross-entropy method, with noise common to all states."""
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.zeros(len(states), 1, HORIZON, 1), torch.ones(len(states), 1, HORIZON, 1)
    for _ in range(ITERATIONS + 1):
        actions = (mean + std * torch.randn(SAMPLES, HORIZON, 1, generator=generator)).clamp(-1, 1)
        state, total = states[:, None].expand(-1, SAMPLES, -1), 0.0
        for step in range(HORIZON):
            state = dynamics(state, actions[:, :, step])
            total = total + cost(state, actions[:, :, step])
        order = total.argsort(dim=1)
        rows = torch.arange(len(states))[:, None]
        elites = actions[rows, order[:, :ELITES]]
        mean, std = elites.mean(dim=1, keepdim=True), elites.std(dim=1, keepdim=True, correction=0)
    return actions[torch.arange(len(states)), order[:, 0], 0]


def loop_over_states(states):
    """One state at a time, as the official planner."""
    return torch.cat([lines_for_a_batch(state[None]) for state in states])


PLAN_SIZE = f"{SAMPLES} samples, horizon {HORIZON}, {ITERATIONS} iterations, network 5-64-64-4"


def compare_planners(benchmark, case, peer, about, count):
    states = model_to_plan_on()[1][:count]
    torch.testing.assert_close(ours_for(states), peer(states), rtol=1e-3, atol=1e-3)
    benchmark.extra_info.update(case=case, peer=about, size=f"{count} states, {PLAN_SIZE}")
    benchmark.pedantic({"ours": ours_for, "peer": peer}[case], (states,), rounds=5, warmup_rounds=1)


@both
@pytest.mark.benchmark(group="planning for 64 states")
def test_plan(benchmark, case):
    compare_planners(
        benchmark, case, lines_for_a_batch, "a batched cross-entropy method in a few lines", NUM_STATES
    )


@both
@pytest.mark.benchmark(group="planning for one state")
def test_plan_of_one(benchmark, case):
    compare_planners(benchmark, case, lines_for_a_batch, "a batched cross-entropy method in a few lines", 1)


@both
@pytest.mark.benchmark(group="planning for 64 states, peer one at a time")
def test_plan_one_at_a_time(benchmark, case):
    compare_planners(
        benchmark, case, loop_over_states, "a planner for one state, as the official code", NUM_STATES
    )
