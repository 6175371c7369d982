"""A small model and batches, and the model once more in plain lines."""

import torch

from inductionclamp import FewShotSampler, FewShotTransformer

FEATURES, LABELS, DIM, HEADS = 6, 5, 16, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model(seed=0, dtype=torch.float64, layers=2, mlp_dim=None):
    """Weights drawn wide, so that patterns are far from uniform."""
    model = FewShotTransformer(
        FEATURES, LABELS, dim=DIM, num_layers=layers, num_heads=HEADS, mlp_dim=mlp_dim, generator=seeded(seed)
    ).to(dtype)
    generator = seeded(seed + 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.3)
    return model


def sampler(seed=0, pairs=2, dtype=torch.float64, **options):
    features = torch.randn(14, 3, FEATURES, generator=seeded(seed), dtype=dtype)
    return FewShotSampler(
        features, (range(8), range(8, 14)), LABELS, (8, 2), pairs, pairs // 2, seeded(seed + 1), **options
    )


def batch_of(size=6, seed=0, pairs=2, dtype=torch.float64):
    return sampler(seed, pairs, dtype).batch(size)


def by_hand(model, batch, *, patterns=None, keep=None, residual=None, qk_input=None):
    """The whole forward in loops over heads.

    `patterns[layer, head]` [B, T, T] replaces a pattern, `keep[layer]` names heads that write, `residual[layer]`
    replaces a block's input, and `qk_input[layer]` what its queries and keys read.
    """
    x, y = batch
    tokens = []
    for place in range(x.shape[1]):
        tokens.append(model.embed(x[:, place]))
        if place < x.shape[1] - 1:
            tokens.append(model.label_embed.weight[y[:, place]])
    stream = embedded = torch.stack(tokens, 1)
    found, scores_of = {}, {}
    for layer, block in enumerate(model.blocks):
        stream = (residual or {}).get(layer, stream)
        stream = stream(embedded) if callable(stream) else stream
        reading = (qk_input or {}).get(layer, stream)
        reading = reading(embedded) if callable(reading) else reading
        width = DIM // HEADS
        weight = block.attention.qkv.weight.view(3, HEADS, width, DIM)
        written = torch.zeros_like(stream)
        for head in range(HEADS):
            q, k = (block.norm(reading) @ weight[part, head].T for part in (0, 1))
            v = block.norm(stream) @ weight[2, head].T
            scores = rotated(q) @ rotated(k).transpose(1, 2) / width**0.5
            size = scores.shape[-1]
            allowed = torch.ones(size, size).tril().bool()
            scores_of[layer, head] = scores
            pattern = torch.where(allowed, scores, -torch.inf).softmax(-1)
            pattern = (patterns or {}).get((layer, head), pattern)
            found[layer, head] = pattern
            if keep is None or layer not in keep or head in keep[layer]:
                columns = block.attention.proj.weight[:, head * width : (head + 1) * width]
                written = written + (pattern @ v) @ columns.T
        stream = stream + written
        if block.mlp is not None:
            stream = stream + block.mlp(block.mlp_norm(stream))
    return model.unembed(model.norm(stream)), found, scores_of


def rotated(x):
    """Rotary positions by complex numbers."""
    size, width = x.shape[-2:]
    pairs = torch.view_as_complex(x.unflatten(-1, (width // 2, 2)).contiguous())
    rates = 10000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    turn = torch.polar(torch.ones(size, width // 2, dtype=torch.float64), torch.arange(size)[:, None] * rates)
    return torch.view_as_real(pairs * turn).flatten(-2)
