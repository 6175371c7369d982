"""instructresidual against what one would use instead: a group is exactly two cases on the same checkpoints.

Checkpoints of gigabytes lie in temporary folders that are deleted at the end. Memory is the largest resident set of a
fresh process, as the kernel counts it, less that of one that has only made its imports.
"""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from instructresidual import applied, apply_residual, residual

SMALL, LARGE = 10, 21  # layers: 1 GB and 2 GB a side
both = pytest.mark.parametrize("case", ["ours", "peer"])
SIDES, SHARDS = ("base", "instruct", "target"), {"base": 3, "instruct": 2, "target": 4}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 16000, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu",
}  # fmt: skip


def roomy():
    """Where to write: a disk would be all that is timed, so the memory's own file system if it has room."""
    shared = Path("/dev/shm")
    has_room = shared.is_dir() and shutil.disk_usage(shared).free > 9e9
    return shared if has_room else Path(tempfile.gettempdir())


@pytest.fixture(scope="module")
def dense():
    """Three Llama checkpoints of 1 GB in bfloat16, each with other shards."""
    with tempfile.TemporaryDirectory(dir=roomy(), prefix="bench-instructresidual-") as root:
        yield made(Path(root), SMALL)


@pytest.fixture(scope="module")
def sparse():
    """Files of a size, without the wait: weights are holes, read as zeros, which take memory like any others."""
    with tempfile.TemporaryDirectory(prefix="bench-instructresidual-") as root:
        yield functools.cache(lambda num_layers: made(Path(root) / str(num_layers), num_layers, holes=True))


def made(root, num_layers, holes=False):
    config = {**CONFIG, "num_hidden_layers": num_layers, "torch_dtype": "bfloat16"}
    for seed, side in enumerate(SIDES):
        (root / side).mkdir(parents=True)
        (root / side / "config.json").write_text(json.dumps(config))
        names, count, index = list(enumerate(shapes(num_layers))), SHARDS[side], {}
        for shard in range(count):
            file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
            part = dict(names[shard::count])
            index |= dict.fromkeys(part.values(), file)
            if holes:
                write_holes(root / side / file, {name: shapes(num_layers)[name] for name in part.values()})
            else:
                tensors = {
                    name: weights(number, shapes(num_layers)[name], seed) for number, name in part.items()
                }
                save_file(tensors, root / side / file, {"format": "pt"})
        (root / side / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    return root


def write_holes(file, part):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in part.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def weights(number, shape, seed):
    found = noise(number, shape, 0.02).view(shape)
    return found + noise(number + 100 * seed, shape, 0.001).view(shape) if seed else found


@functools.cache
def pool(scale):
    drawn = torch.empty(2**25).normal_(0, scale, generator=torch.Generator().manual_seed(0))
    return drawn.bfloat16()


def noise(number, shape, scale):
    """Different for every number, and made by copying."""
    count = torch.Size(shape).numel()
    start = 1_000_003 * number % (2**25 - count)
    return pool(scale)[start : start + count].clone()


@functools.cache
def shapes(num_layers):
    size, wide, small, rows = 2048, 5632, 512, 16000
    found = {
        "model.embed_tokens.weight": (rows, size),
        "model.norm.weight": (size,),
        "lm_head.weight": (rows, size),
    }
    for layer in range(num_layers):
        block = {
            "self_attn.q_proj": (size, size), "self_attn.k_proj": (small, size), "self_attn.v_proj": (small, size),
            "self_attn.o_proj": (size, size), "mlp.gate_proj": (wide, size), "mlp.up_proj": (wide, size),
            "mlp.down_proj": (size, wide), "input_layernorm": (size,), "post_attention_layernorm": (size,),
        }  # fmt: skip
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return found


def size_of(num_layers):
    number = sum(torch.Size(shape).numel() for shape in shapes(num_layers).values())
    return (
        f"Llama of {2 * number / 1e9:.1f} GB in bfloat16 a side, {'/'.join(map(str, SHARDS.values()))} shards"
    )


# --- whole checkpoints: base + instruct - base -> new checkpoint ------------------------------------


def in_one_pass(root, out):
    """The peers keep no residual; neither does this."""
    apply_residual(root / "target", residual(root / "base", root / "instruct", lazy=True), out=out / "model")


def by_a_residual(root, out):
    """Subtract into a folder, add from there."""
    found = residual(root / "base", root / "instruct", out=out / "residual")
    apply_residual(root / "target", found, out=out / "model")


def two_models(root, out):
    """The loop that anyone writes: load the models, add up their parameters, save."""
    from transformers import AutoModelForCausalLM

    base, instruct, target = (
        AutoModelForCausalLM.from_pretrained(root / side, dtype="auto") for side in SIDES
    )
    with torch.no_grad():
        for first, second, third in zip(
            base.parameters(), instruct.parameters(), target.parameters(), strict=True
        ):
            third.copy_((third.float() + (second.float() - first.float())).to(third.dtype))
    target.save_pretrained(out / "model")


def task_arithmetic(root, out):
    """mergekit's task arithmetic with the target and the instruct model as tasks of the base, both of weight 1."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    models = [{"model": str(root / side), "parameters": {"weight": 1.0}} for side in ("target", "instruct")]
    config = {
        "merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": models,
        "dtype": "float32", "out_dtype": "bfloat16", "parameters": {"normalize": False},
    }  # fmt: skip
    options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), str(out / "model"), options)


PEERS = {
    by_a_residual: "itself",
    task_arithmetic: "mergekit's task arithmetic",
    two_models: "a loop over the parameters of transformers models",
}


def tensors_of(folder):
    files = {"model.safetensors": None}
    if (folder / "model.safetensors.index.json").exists():
        files = dict.fromkeys(
            json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()
        )
    return {name: safe_open(folder / file, "pt") for file in files for name in load_names(folder / file)}


def load_names(file):
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def agree(one, other, tolerance):
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    for name, file in first.items():
        a, b = file.get_tensor(name), second[name].get_tensor(name)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 100)


def prepare(way):
    """Imports, which neither time nor memory counts."""
    if way is two_models:
        importlib.import_module("transformers.models.llama.modeling_llama")
    elif way is task_arithmetic:
        if importlib.util.find_spec("mergekit") is None:
            pytest.skip("mergekit is not installed: no comparison with its task arithmetic")
        importlib.import_module("mergekit.merge")


RESIDENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import bench_instructresidual as bench
way = getattr(bench, sys.argv[2])
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
bench.prepare(way)
before = peak()
way(Path(sys.argv[3]), Path(sys.argv[4]))
print("PEAK", peak() - before)
"""


@functools.cache
def peak_memory(way, root):
    """Bytes by which the largest resident set of a fresh process exceeds that of its imports."""
    with tempfile.TemporaryDirectory(dir=roomy()) as out:
        command = [sys.executable, "-c", RESIDENT, str(Path(__file__).parent), way.__name__, str(root), out]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout
    return int(told.rsplit("PEAK", 1)[1])


def compare(benchmark, case, way, peer, root):
    """One run each, of seconds; what both wrote is held against each other before either counts."""
    chosen = {"ours": way, "peer": peer}[case]
    with tempfile.TemporaryDirectory(dir=roomy()) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers and mergekit have some
        prepare(peer)
        runs = iter(Path(folder) / name for name in "ab")
        benchmark.extra_info.update(case=case, peer=PEERS[peer], size=size_of(SMALL))
        benchmark.pedantic(lambda: chosen(root, next(runs)), rounds=1)
        if case == "ours":
            shutil.copytree(Path(folder) / "a" / "model", root / f"ours of {peer.__name__}")
        else:
            agree(root / f"ours of {peer.__name__}", Path(folder) / "a" / "model", 2**-7)
            shutil.rmtree(root / f"ours of {peer.__name__}")


@both
@pytest.mark.benchmark(group="subtract and add checkpoints, against mergekit")
def test_against_mergekit(benchmark, case, dense):
    compare(benchmark, case, in_one_pass, task_arithmetic, dense)


@both
@pytest.mark.benchmark(group="subtract and add checkpoints, against a loop")
def test_against_a_loop(benchmark, case, dense):
    compare(benchmark, case, in_one_pass, two_models, dense)


@both
@pytest.mark.benchmark(group="keep the residual on the disk, against a loop that keeps none")
def test_by_a_residual_against_a_loop(benchmark, case, dense):
    compare(benchmark, case, by_a_residual, two_models, dense)


def compare_memory(benchmark, case, peer, sizes):
    """What is timed is a whole process; what is compared is its largest resident set."""
    prepare(peer)
    peak = peak_memory({"ours": by_a_residual, "peer": peer}[case], sizes[case][0])
    about = {"quantity": "peak resident memory beyond the imports", "value": peak}
    named = "the same on a checkpoint of half the size" if peer is by_a_residual else PEERS[peer]
    benchmark.extra_info.update(case=case, peer=named, size=size_of(sizes["ours"][1]), **about)
    benchmark.pedantic(lambda: None, rounds=1)


@both
@pytest.mark.benchmark(group="peak memory, against mergekit")
def test_memory_against_mergekit(benchmark, case, sparse):
    size = sparse(SMALL), SMALL
    compare_memory(benchmark, case, task_arithmetic, {"ours": size, "peer": size})


@both
@pytest.mark.benchmark(group="peak memory, against a loop")
def test_memory_against_a_loop(benchmark, case, sparse):
    size = sparse(SMALL), SMALL
    compare_memory(benchmark, case, two_models, {"ours": size, "peer": size})


@both
@pytest.mark.benchmark(group="peak memory, against itself on half of it")
def test_memory_does_not_grow(benchmark, case, sparse):
    sizes = {"ours": (sparse(LARGE), LARGE), "peer": (sparse(SMALL), SMALL)}
    compare_memory(benchmark, case, by_a_residual, sizes)


# --- a residual for a moment ------------------------------------------------------------------------


@functools.cache
def module_problem(dtype):
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList(torch.randn(16, 16, generator=generator).to(dtype) for _ in range(2000))
    found = residual(model, nn.ParameterList(parameter + 0.01 for parameter in model))
    return model, found, dict(found)


def with_applied(model, found, held):
    with applied(model, found):
        return model[7].detach().clone()


def with_a_loop(model, found, held):
    saved = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            saved[name] = parameter.detach().clone()
            parameter.add_(held[name])
        seen = model[7].detach().clone()
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])
    return seen


@both
@pytest.mark.benchmark(group="apply for a moment, 2,000 small tensors")
def test_applied(benchmark, case):
    problem = module_problem(torch.float32)
    assert torch.equal(with_applied(*problem), with_a_loop(*problem))
    benchmark.extra_info.update(
        case=case, peer="a loop that copies, adds and restores", size="2,000 tensors of 16 x 16, float32"
    )
    benchmark.pedantic({"ours": with_applied, "peer": with_a_loop}[case], problem, rounds=20, warmup_rounds=2)


# --- low rank ---------------------------------------------------------------------------------------


@functools.cache
def matrix_problem():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 512, generator=generator)).Q for size in (2048, 1024))
    matrix = (left * torch.arange(1, 513).float() ** -0.7) @ right.mT
    return residual({"mlp.weight": torch.zeros_like(matrix)}, {"mlp.weight": matrix}), matrix


def our_factors(found, matrix):
    small = found.lowrank(16)
    return small["mlp.weight"], small.error


def torch_factors(found, matrix):
    left, values, right = torch.svd_lowrank(matrix, q=24, niter=4)
    product = (left[:, :16] * values[:16]) @ right[:, :16].mT
    return product, ((product - matrix).norm() / matrix.norm()).item()


@both
@pytest.mark.benchmark(group="factors of rank 16 and their error")
def test_low_rank(benchmark, case):
    problem = matrix_problem()
    (ours, our_error), (theirs, their_error) = our_factors(*problem), torch_factors(*problem)
    assert our_error == pytest.approx(their_error, rel=0.01)
    assert (ours - theirs).norm() < 0.1 * problem[1].norm()
    benchmark.extra_info.update(
        case=case, peer="torch.svd_lowrank", size="2,048 x 1,024, four power iterations"
    )
    benchmark.pedantic({"ours": our_factors, "peer": torch_factors}[case], problem, rounds=5, warmup_rounds=1)
