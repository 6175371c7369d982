"""Models, losses and a Hessian row by row, for several test files."""

import torch
from torch import nn


class Sentences(nn.Module):
    """Convolution, batch statistics, attention, dropout, recurrence; a tied, a frozen and an unused weight."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.recur = nn.GRU(4, 4, batch_first=True)
        self.last = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.dropout = dropout
        self.frozen = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, tokens, scale=1.0):
        hidden = self.embed(tokens)
        hidden = hidden + self.norm(self.mix(hidden.mT)).mT
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        hidden = nn.functional.scaled_dot_product_attention(*[hidden[:, None]] * 3)[:, 0]
        hidden = self.last(hidden + self.recur(hidden)[0])
        return {"logits": self.head(torch.tanh(hidden)) * self.frozen * scale}


def token_losses(output, tokens):
    """Next-token losses, (n, T - 1)."""
    return nn.functional.cross_entropy(output["logits"][:, :-1].mT, tokens[:, 1:], reduction="none")


def squared(output, target):
    return (output - target).square().sum(1) / 2


def small_net(seed=0, inputs=3, width=4, outputs=2, n=12):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()
    x = torch.randn(n, inputs, generator=generator).double()
    return net, x, torch.randn(n, outputs, generator=generator).double()


def dense_hessian(model, closure):
    """Row by row."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(closure(), parameters, create_graph=True, **options)
    flat = torch.cat([g.flatten() for g in gradient])
    rows = []
    for value in flat:
        if not value.requires_grad:
            rows.append(torch.zeros_like(flat))
            continue
        row = torch.autograd.grad(value, parameters, retain_graph=True, **options)
        rows.append(torch.cat([r.flatten() for r in row]))
    return torch.stack(rows).detach()
