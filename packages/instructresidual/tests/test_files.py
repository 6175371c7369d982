"""Checkpoints on the disk: interrupted writing, other people's files, and what lies beside the weights."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from instructresidual import Residual, apply_residual, residual

# A child writes over and over; its parent kills it at random points and looks at what is there. Forking spares imports.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
from instructresidual import Residual, apply_residual, deltas, residual, sums
torch.set_num_threads(1)
deltas.CHUNK = sums.CHUNK = 200  # many pieces, so that there is time between them
root, moment, told = Path(sys.argv[1]), random.Random(0), []
found = Residual.load(root / "residual")
base = load_file(root / "base/model.safetensors")
sums_of = [{name: base[name] + found[name] * scale for name in base} for scale in (1, 2)]

def write(scale):
    options = {"overwrite": True, "max_shard_bytes": 20000, "num_workers": 1}
    apply_residual(root / "base", found, out=root / "out", scale=1 + scale % 2, **options)

start = time.monotonic()
write(0)
length = time.monotonic() - start
for kill in range(30):
    child = os.fork()
    if not child:
        for scale in range(10**6):
            write(scale + kill)
    time.sleep(moment.random() * 3 * length)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    written = {}
    index = json.loads((root / "out/model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        written |= load_file(root / "out" / file)
    told.append([all(torch.equal(written[name], whole[name]) for name in base) for whole in sums_of])
print(json.dumps({"whole": told, "drafts": len(list(root.glob(".out.partial-*")))}))
"""


def test_a_killed_process_leaves_the_old_or_the_new_and_nothing_between(weights, checkpoint, tmp_path):
    drawn = torch.Generator().manual_seed(0)
    base = {f"layers.{index}.mlp.weight": torch.randn(40, 50, generator=drawn) for index in range(6)}
    instruct = {name: tensor + 0.1 for name, tensor in base.items()}
    residual(checkpoint(tmp_path / "base", base), instruct, out=tmp_path / "residual")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    assert all(sum(fits) == 1 for fits in told["whole"])
    assert {fits.index(True) for fits in told["whole"]} == {0, 1}
    assert told["drafts"] > 5  # many were killed in the middle of writing


def test_a_failure_leaves_nothing_behind(weights, checkpoint, tmp_path):
    base = weights(0)
    found = residual(base, weights(1, of=base))
    target = weights(2, of=base)
    target["model.norm.weight"][3] = float("inf")
    folder = checkpoint(tmp_path / "target", target)
    with pytest.raises(ValueError, match=r"target: model\.norm\.weight has values that are NaN or infinite"):
        apply_residual(folder, found, out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["target"]
    found.save(tmp_path / "r")
    broken = {**weights(1, of=base), "model.norm.weight": torch.full((6,), float("nan"))}
    with pytest.raises(ValueError, match=r"instruct: model\.norm\.weight has values that are NaN"):
        residual(base, broken, out=tmp_path / "r", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["r", "target"]
    assert torch.equal(Residual.load(tmp_path / "r")["lm_head.weight"], found["lm_head.weight"])


def test_what_is_there_is_not_replaced_unless_told_and_ours(weights, checkpoint, tmp_path):
    base = weights(0)
    found = residual(base, weights(1, of=base))
    found.save(tmp_path / "r")
    with pytest.raises(ValueError, match=r"out must not exist yet, got .*pass overwrite=True"):
        found.save(tmp_path / "r")
    found.scaled(2.0).save(tmp_path / "r", overwrite=True)
    assert torch.equal(Residual.load(tmp_path / "r")["lm_head.weight"], found["lm_head.weight"] * 2)
    with pytest.raises(ValueError, match="path must not be where the residual is read from"):
        Residual.load(tmp_path / "r").scaled(2.0).save(tmp_path / "r", overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="out must be a folder of safetensors"):
        found.save(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home/thesis.txt").read_text() == "years"
    folder = checkpoint(tmp_path / "target", base)
    held = Residual.load(tmp_path / "r")
    for out in (folder, folder / "inside", tmp_path, tmp_path / "r"):
        with pytest.raises(ValueError, match="out must lie apart from the inputs"):
            apply_residual(folder, held, out=out, overwrite=True)
    with pytest.raises(ValueError, match="out must lie apart from the inputs"):
        residual(folder, folder, out=folder, overwrite=True)


def test_what_lies_beside_the_weights_comes_along(weights, checkpoint, tmp_path):
    base = weights(0, dtype=torch.bfloat16)
    found = residual(base, weights(1, of=base))
    target = checkpoint(
        tmp_path / "target", base, shards=3, config={"model_type": "llama", "eos_token_id": 1}
    )
    instruct = checkpoint(
        tmp_path / "instruct", base, config={"model_type": "x", "eos_token_id": [7, 8], "y": 1}
    )
    for folder, text in ((target, "target"), (instruct, "instruct")):
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
        ):
            (folder / name).write_text(json.dumps(text))
        (folder / "README.md").write_text(text)
    (target / "optimizer.pt").write_text("large")
    apply_residual(target, found, out=tmp_path / "plain")
    apply_residual(target, found, out=tmp_path / "chat", instruct=instruct)
    for out, expected in (("plain", "target"), ("chat", "instruct")):
        assert json.loads((tmp_path / out / "tokenizer.json").read_text()) == expected
        assert json.loads((tmp_path / out / "chat_template.jinja").read_text()) == expected
        assert json.loads((tmp_path / out / "generation_config.json").read_text()) == expected
        assert (tmp_path / out / "README.md").read_text() == "target"
        assert not (tmp_path / out / "optimizer.pt").exists()
        assert not (tmp_path / out / "model.safetensors.index.json").exists()
    config = json.loads((tmp_path / "chat/config.json").read_text())
    assert config == {"model_type": "llama", "eos_token_id": [7, 8]}
    with safe_open(tmp_path / "chat/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_single_file_is_a_checkpoint_too(weights, tmp_path):
    base = weights(0)
    instruct = weights(1, of=base)
    for name, tensors in (("a", base), ("b", instruct)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    found = residual(tmp_path / "a.safetensors", str(tmp_path / "b.safetensors"))
    apply_residual(tmp_path / "a.safetensors", found, out=tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    torch.testing.assert_close(written, instruct)


def test_odd_dtypes_and_empty_tensors_lie_where_the_library_finds_them(tmp_path):
    base = {
        "a": torch.zeros(3, dtype=torch.bfloat16),
        "b": torch.zeros(0, 4),
        "c": torch.ones(5, dtype=torch.float64),
        "d": torch.tensor(2.0),
        "e": torch.zeros(2, 3).mT,
    }
    instruct = {name: tensor + 1 for name, tensor in base.items()}
    found = residual(base, instruct)
    found.save(tmp_path / "r", max_shard_bytes=20)
    assert {name: tuple(t.shape) for name, t in Residual.load(tmp_path / "r").items()} == found.shapes
    apply_residual(base, found)
    assert {name: t.tolist() for name, t in base.items()} == {
        name: t.tolist() for name, t in instruct.items()
    }


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
            "holds 'pytorch_model.bin'; save pickled weights",
        ),
        (lambda f: None, "holds nothing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "is not a whole safetensors file"),
        (
            lambda f: (f / "model.safetensors").write_bytes((99).to_bytes(8, "little") + b"{}"),
            "its header does not fit its 10 bytes",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"no"),
            "its header is not JSON",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "x.safetensors"}}'
            ),
            "'x.safetensors', which the index names, is missing",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text("{}"),
            "is an adapter: merge it into its base model first",
        ),
        (
            lambda f: (f / "config.json").write_text('{"quantization_config": {"bits": 4}}'),
            "is quantised (quantization_config in",
        ),
    ],
)
def test_the_wrong_folder_says_what_is_there(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        residual(tmp_path, tmp_path)


def test_a_file_cut_short_is_named(weights, checkpoint, tmp_path):
    folder = checkpoint(tmp_path / "base", weights(0))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short: .* ends at byte"):
        residual(folder, weights(1))
    checkpoint(tmp_path / "sharded", weights(0), shards=2)
    index = tmp_path / "sharded/model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "model-00002"))
    with pytest.raises(ValueError, match=r"the index places .* which has not got them"):
        residual(tmp_path / "sharded", weights(1))
    with pytest.raises(ValueError, match=r"path must be a folder with residual\.json, .* holds 'model"):
        Residual.load(folder)
