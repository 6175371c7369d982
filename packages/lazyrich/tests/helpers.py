"""Models to read kernels of, the Jacobian by brute force, and gradient descent on explicit neurons."""

import torch
from torch import nn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(build, seed=0):
    """A module with seeded weights of every sign, in float64 and evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def jacobian(model, x, forward=None):
    """Rows of the full Jacobian, one backward pass an output."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    output = forward(model, x) if forward else model(x)
    rows = []
    for value in output.reshape(-1):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if one is None else one).flatten() for one, p in pairs]))
    return torch.stack(rows).detach(), output.shape[-1]


def brute_force(model, x, x2=None, mode="full", forward=None):
    first, width = jacobian(model, x, forward)
    second = first if x2 is None else jacobian(model, x2, forward)[0]
    full = first @ second.T
    if mode == "full":
        return full
    blocks = full.reshape(len(first) // width, width, len(second) // width, width)
    return blocks.diagonal(dim1=1, dim2=3).sum(-1)


def neurons(X, y, W, alpha, eps, eta, steps):
    """Gradient descent on the weights themselves, by autograd."""
    W = W.clone().requires_grad_()
    for _ in range(steps):
        h = X @ W.T
        loss = (alpha * (h + eps / 2 * h**2).mean(1) - y).square().sum() / (2 * len(X))
        (gradient,) = torch.autograd.grad(loss, W)
        W = (W - eta * len(W) * gradient).detach().requires_grad_()
    return W.detach()


class Residual(nn.Linear):
    """A subclass of Linear that does something else."""

    def forward(self, x):
        return x + super().forward(x).tanh()


class Language(nn.Module):
    """Token embedding tied to the head, a learnt position, a gain, a scalar temperature, padding at 0."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(1, 3, 4))
        self.gain = nn.Parameter(torch.ones(4))
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, ids):
        hidden = self.gain * (self.embedding(ids) + self.position)
        hidden = hidden + self.mix(hidden.mean(1, keepdim=True)).tanh()
        return self.temperature * self.head(self.norm(hidden))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Matrices(nn.Module):
    """Weights used as `x @ w`, one of them twice."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        return torch.relu(x @ self.w) @ self.v + torch.mm(x, self.w)[:, :3]


class TimeFirst(nn.Module):
    """Positions before samples inside: rows that a careless reader would give to the wrong sample."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.second(self.first(x.transpose(0, 1)).tanh()).mean(0)


class InPlace(nn.Module):
    """Parameters changed by what comes after, and one used in a way that only the general path knows."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.odd = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        hidden = self.inner(x)
        hidden.relu_()
        hidden = 2 * hidden
        hidden += self.odd
        return torch.einsum("nd,d->n", hidden, self.odd.sin())


def shared():
    block = Residual(6, 6)
    return nn.Sequential(block, block, block, nn.Linear(6, 2))


def image(seed=0):
    return torch.randn(4, 2, 6, 6, generator=seeded(seed), dtype=torch.float64)


def vectors(seed=0):
    return torch.randn(5, 6, generator=seeded(seed), dtype=torch.float64)


def series(seed=0, width=6):
    return torch.randn(4, 3, width, generator=seeded(seed), dtype=torch.float64)


def tokens(seed=0):
    return torch.randint(0, 9, (4, 3), generator=seeded(seed))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=(1, 0), stride=2, dilation=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


MODELS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(inplace=True), nn.LayerNorm(7), nn.Linear(7, 3)),
        vectors,
    ),
    "a subclass of Linear": (lambda: nn.Sequential(Residual(6, 6), Residual(6, 6), nn.Linear(6, 2)), vectors),
    "a layer used thrice": (shared, vectors),
    "convolutions": (convolutional, image),
    "convolution in time": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=2, stride=2, dilation=2), nn.Flatten(), nn.Linear(12, 2)
        ),
        lambda seed=0: series(seed, 6),
    ),
    "tied embeddings": (Language, tokens),
    "recurrent": (Recurrent, lambda seed=0: series(seed, 3)),
    "attention": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        ),
        series,
    ),
    "bare matrices": (Matrices, vectors),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), nn.Tanh(), nn.Linear(3, 2)
        ),
        vectors,
    ),
    "time first": (TimeFirst, series),
    "in place": (InPlace, vectors),
}
