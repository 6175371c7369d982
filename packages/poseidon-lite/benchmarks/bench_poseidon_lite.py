"""scOT against the same network put together from the Swin-V2 modules of transformers, as the official code is.

The peer loads the very same state dict by name, so the two answers are compared before anything is timed.
"""

import runpy
from pathlib import Path

import pytest
import torch

from poseidon_lite import ScOTConfig, group_loss

PEER = "scOT assembled from transformers' Swin-V2 modules"
peer = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "peer.py"))
build, batch = peer["build"], peer["batch"]


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(
    group="evaluation forward, Poseidon-T", min_rounds=9, max_time=0.1, warmup=True, warmup_iterations=1
)
def test_forward(benchmark, case):
    models = {name: model.eval() for name, model in build(ScOTConfig.T()).items()}
    x, t = batch(4, 4, 128)
    with torch.no_grad():
        torch.testing.assert_close(models["ours"](x, t), models["peer"](x, t), rtol=1e-3, atol=1e-5)
        benchmark.extra_info.update(case=case, peer=PEER, size="4 fields of 4 x 128 x 128, CPU, float32")
        benchmark(models[case], x, t)


@pytest.mark.parametrize("case", ["ours", "peer"])
@pytest.mark.benchmark(
    group="training step, Poseidon-T", min_rounds=5, max_time=0.1, warmup=True, warmup_iterations=1
)
def test_training_step(benchmark, case):
    models = build(ScOTConfig.T())
    x, t = batch(2, 4, 128)

    def gradient(model):
        model.zero_grad()
        group_loss(model(x, t), x, (1, 2, 1)).backward()
        return dict(model.named_parameters())["embeddings.patch_embeddings.projection.weight"].grad

    torch.testing.assert_close(gradient(models["ours"]), gradient(models["peer"]), rtol=1e-2, atol=1e-5)
    benchmark.extra_info.update(case=case, peer=PEER, size="2 fields of 4 x 128 x 128, CPU, float32")
    benchmark(gradient, models[case])
