"""Small hypernetworks, losses and the naive loops that tests compare with."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from hypercrl import ChunkedHyperNetwork, HyperNetwork, OutputRegularizer, continual_step


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def make(kind="plain", tasks=3, model=None, **options):
    """A hypernetwork of a few tasks whose embeddings and theta are all in play."""
    generator = seeded(1)
    model = model or mlp()
    options = {"embedding_dim": 4, "hidden": (6, 7), "generator": generator} | options
    if kind == "plain":
        hnet = HyperNetwork(model, **options)
    else:
        hnet = ChunkedHyperNetwork(model, chunk_size=9, chunk_embedding_dim=3, **options)
    for _ in range(tasks):
        hnet.add_task(generator)
    with torch.no_grad():
        for value in hnet.theta():  # nothing is left at zero
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return model, hnet


def batch(size=8, dtype=torch.float64, seed=5):
    generator = seeded(seed)
    return (
        torch.randn(size, 3, generator=generator, dtype=dtype),
        torch.randn(size, 2, generator=generator, dtype=dtype),
    )


def squared(model, x, y):
    return lambda weights: (functional_call(model, weights, (x,)) - y).square().sum()


def optimizers(hnet, task_id, kind=torch.optim.Adam, plastic=0, lr=1e-2, **options):
    theta = [*hnet.theta(), *hnet.embeddings[:plastic]]
    return kind(theta, lr=lr, **options), kind([hnet.embedding(task_id)], lr=lr, **options)


def train(model, hnet, task_id, steps, beta=0.05, seed=5, **flags):
    regularizer = OutputRegularizer(hnet, task_id, beta=beta, **flags)
    theta, embedding = optimizers(hnet, task_id)
    for step in range(steps):
        x, y = batch(seed=seed + step)
        continual_step(hnet, task_id, squared(model, x, y), theta, embedding, regularizer, batch_size=len(x))
    return regularizer


def naive_step(
    model, hnet, task_id, x, y, theta_opt, emb_opt, targets, beta, clip, lookahead=True, importance=None
):
    """Section III-B by a loop over tasks and a real step of a deep copy; changes `hnet`."""
    theta_opt.zero_grad()
    emb_opt.zero_grad()
    squared(model, x, y)(hnet(task_id)).backward()
    nn.utils.clip_grad_norm_([hnet.embedding(task_id)], clip)
    emb_opt.step()
    ahead = hnet
    if lookahead:
        # The copy's graph is its own, so its gradients are carried over: d theta' / d theta is the identity.
        ahead, twin = copy.deepcopy((hnet, theta_opt))
        held = [value for group in twin.param_groups for value in group["params"]]
        for value, original in zip(held, theta_opt.param_groups[0]["params"], strict=True):
            value.grad = None if original.grad is None else original.grad.clone()
        twin.step()
    before = [value.grad for value in ahead.theta()]
    for value in ahead.theta():
        value.grad = None
    loss = 0
    for task in range(task_id):
        flat = torch.cat([piece.flatten() for piece in ahead(task).values()])
        factor = 1 if importance is None else importance[task]
        loss = loss + (factor * (targets[task] - flat).square()).sum()
    loss = beta * len(x) / max(task_id, 1) * loss
    if task_id:
        pulls = torch.autograd.grad(loss, ahead.theta())
    if ahead is hnet:
        for value, gradient in zip(hnet.theta(), before, strict=True):
            value.grad = gradient
    if task_id:
        for value, pull in zip(hnet.theta(), pulls, strict=True):
            value.grad = value.grad + pull
    nn.utils.clip_grad_norm_(hnet.theta(), clip)
    theta_opt.step()
    return loss.item()


class Counting(nn.Module):
    """A layer that sets its buffers anew in each training pass, rather than in place."""

    def __init__(self, inputs=3, outputs=2):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.mean(dim=0)
            self.calls = self.calls + 1
        return self.linear(x - self.mean)
