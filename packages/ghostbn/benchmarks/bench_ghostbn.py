"""Forward and backward of ghost batch normalisation, against plain batch normalisation and a loop over chunks."""

import pytest
import torch
from torch import nn

from ghostbn import GhostBatchNorm1d, GhostBatchNorm2d

INPUTS = {  # size in words: shape, ghost size, rounds
    "images 1024x32x14x14, ghost size 64": ((1024, 32, 14, 14), 64, 15),
    "features 4096x256, ghost size 32": ((4096, 256), 32, 40),
    "images 1000x32x14x14, ghost size 64, remainder 40": ((1000, 32, 14, 14), 64, 15),
    "images 256x64x7x7, ghost size 16, channels last": ((256, 64, 7, 7), 16, 40),
}


class ChunkLoop(nn.Module):
    """The usual way, as in pytorch-tabnet: one layer called on one chunk after another."""

    def __init__(self, layer, ghost_size):
        super().__init__()
        self.layer, self.ghost_size = layer, ghost_size

    def forward(self, x):
        return torch.cat([self.layer(chunk) for chunk in x.chunk(x.shape[0] // self.ghost_size)])


def make_layers(shape, ghost_size):
    if len(shape) == 2:
        return GhostBatchNorm1d(shape[1], ghost_size), nn.BatchNorm1d(shape[1])
    return GhostBatchNorm2d(shape[1], ghost_size), nn.BatchNorm2d(shape[1])


def forward_backward(layer, x, direction):
    x.grad = None
    layer.zero_grad()
    layer(x).backward(direction)


def time_case(benchmark, cases, case, x, peer, size, rounds):
    direction = torch.randn_like(x)
    benchmark.extra_info.update(case=case, peer=peer, size=size)
    arguments = (cases[case], x.requires_grad_(), direction)
    benchmark.pedantic(forward_backward, arguments, rounds=rounds, iterations=1, warmup_rounds=3)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize("size", list(INPUTS))
def test_against_batch_norm(benchmark, case, size):
    benchmark.group = f"batch norm, {size}"
    shape, ghost_size, rounds = INPUTS[size]
    ours, peer = make_layers(shape, ghost_size)
    generator = torch.Generator().manual_seed(0)
    # Where all ghost batches hold the same samples, both layers give the same answer.
    num_groups = shape[0] // ghost_size
    same = torch.randn(ghost_size, *shape[1:], generator=generator).repeat_interleave(num_groups, 0)
    torch.testing.assert_close(ours(same), peer(same), atol=1e-5, rtol=1e-4)
    x = torch.randn(shape, generator=generator)
    if "channels last" in size:
        x = x.contiguous(memory_format=torch.channels_last)
    time_case(
        benchmark, {"ours": ours, "peer": peer}, case, x, f"torch.nn.{type(peer).__name__}", size, rounds
    )


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.parametrize("size", list(INPUTS)[:2])
def test_against_a_loop_over_chunks(benchmark, case, size):
    benchmark.group = f"chunk loop, {size}"
    shape, ghost_size, rounds = INPUTS[size]
    ours, layer = make_layers(shape, ghost_size)
    peer = ChunkLoop(layer, ghost_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    num_groups = shape[0] // ghost_size
    in_runs = (
        torch.arange(shape[0]).view(-1, num_groups).T.flatten()
    )  # strided ghost batches, one after another
    torch.testing.assert_close(ours(x)[in_runs], peer(x[in_runs]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.running_var, layer.running_var)
    what = f"torch.cat([bn(c) for c in x.chunk({num_groups})])"
    time_case(benchmark, {"ours": ours, "peer": peer}, case, x, what, size, rounds)
