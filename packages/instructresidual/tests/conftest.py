import json
import os

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

EXAMPLES = 3 if os.environ.get("ARMILLARY_LOWEST") else 25
settings.register_profile("isolated", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("isolated")

VOCABULARY, WIDTH = 12, 6


def state(seed, *, head=True, vocabulary=VOCABULARY, dtype=torch.float32, noise=None, of=None):
    """Weights named as Llama's; with `of`, those and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
        "model.layers.0.mlp.up_proj.weight": (9, WIDTH),
        "model.layers.0.input_layernorm.weight": (WIDTH,),
        "model.norm.weight": (WIDTH,),
    }
    if head:
        shapes["lm_head.weight"] = (vocabulary, WIDTH)
    found = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        if of is not None:
            grown = torch.zeros(shape, dtype=torch.float64)
            grown[: len(of[name])] = of[name][: len(grown)].double()
            drawn = grown + (0.05 if noise is None else noise) * drawn
        found[name] = drawn.to(dtype)
    return found


def write(folder, tensors, shards=1, config=None, order=None):
    """A checkpoint as others write it, by the safetensors library."""
    folder.mkdir(parents=True, exist_ok=True)
    names = order or list(tensors)
    if shards == 1:
        save_file({name: tensors[name] for name in names}, folder / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
        for index, file in enumerate(files):
            save_file({name: tensors[name] for name in names[index::shards]}, folder / file, {"format": "pt"})
        weight_map = {name: files[index % shards] for index, name in enumerate(names)}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def weights():
    return state


@pytest.fixture(scope="session")
def checkpoint():
    return write


@pytest.fixture(scope="session")
def monkeypatch_chunk():
    """Small pieces, so that small tensors have many."""
    from contextlib import contextmanager

    from instructresidual import deltas, sums

    @contextmanager
    def chunk(size):
        before = deltas.CHUNK
        deltas.CHUNK = sums.CHUNK = size
        try:
            yield
        finally:
            deltas.CHUNK = sums.CHUNK = before

    return chunk
