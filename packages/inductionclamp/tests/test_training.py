"""In somebody else's training: hooks, nesting, compile, accumulation, resume, DistributedDataParallel."""

import copy
import subprocess
import sys

import pytest
import torch
from helpers import batch_of, sampler, seeded, small_model
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from inductionclamp import (
    Clamp,
    ClampableAttention,
    ClampSet,
    FromPass,
    ablate_heads,
    clamped,
    induction_pattern,
    instrument,
    match_pattern,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    run,
    sites_of,
)

close = torch.testing.assert_close
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
SETS = {
    "none": lambda: ClampSet(),
    "match": lambda: ClampSet([induction_pattern(1, [0]), ablate_heads(1, [1, 2, 3])]),
    "nearest": lambda: ClampSet(match_pattern(1, [0])),
    "copy": lambda: ClampSet(perfect_copy(1, 2)),
    "layer1": lambda: ClampSet(perfect_layer1(1)),
    "preserved": lambda: ClampSet([preserve(["patterns", "values"]), ablate_heads(0)]),
}
sets = pytest.mark.parametrize("clamps", [make() for make in SETS.values()], ids=list(SETS))


def loss_of(logits, y, reduction="mean"):
    return cross_entropy(logits[:, -1], y[:, -1], reduction=reduction)


def silent(model):
    return all(site.handler is None for site in sites_of(model).values()) and not model._forward_pre_hooks


@sets
def test_the_block_is_the_call(clamps):
    model, batch = small_model(), batch_of()
    wanted, kept = run(model, batch, clamps, record=["blocks.1.v"])
    with clamped(model, clamps, record=["blocks.1.v"]) as acts:
        for _ in range(2):  # each forward has passes of its own
            assert torch.equal(model(*batch), wanted)
            assert torch.equal(acts["blocks.1.v"], kept["blocks.1.v"])
            close(model(x=batch.x[:2], y=batch.y[:2]), wanted[:2])
    assert silent(model)


def test_blocks_nest_and_the_inner_one_acts_later():
    model, batch = small_model(), batch_of()
    both, _ = run(model, batch, [ablate_heads(0, [1]), prev_token(1, [0])])
    with clamped(model, ablate_heads(0, [1])):
        assert torch.equal(run(model, batch, prev_token(1, [0]))[0], both)
        with clamped(model, prev_token(1, [0])):
            assert torch.equal(model(*batch), both)
        with clamped(model, Clamp("blocks.0.v", 3.0), record="blocks.0.v") as acts:
            model(*batch)
            assert (acts["blocks.0.v"] == 3).all()
        assert torch.equal(model(*batch), run(small_model(), batch, ablate_heads(0, [1]))[0])
    assert silent(model)


def test_a_pass_inside_a_block_is_perturbed_by_the_outer_clamps_only():
    model, batch = small_model(), batch_of()
    inner = ClampSet([preserve("patterns"), ablate_heads(0)])
    with clamped(model, ablate_heads(0, [1])):
        _, outer_only = run(model, batch, record=["blocks.1.attn_scores"])
        found, acts = run(model, batch, inner, record=["blocks.1.attn_scores"])
        with clamped(model, inner):
            assert torch.equal(model(*batch), found)
    close(acts["blocks.1.attn_scores"], outer_only["blocks.1.attn_scores"])
    with clamped(model, perfect_layer1(1)):
        close(run(model, batch, inner)[0], run(model, batch, [perfect_layer1(1), ablate_heads(0)])[0])
        close(model(*batch), run(small_model(), batch, perfect_layer1(1))[0])


@sets
def test_everything_is_as_before_after_an_exception(clamps):
    model, batch = small_model(), batch_of()
    wanted = model(*batch)
    with pytest.raises(ZeroDivisionError), clamped(model, clamps):
        raise ZeroDivisionError(model(*batch))
    broken = Clamp("blocks.1.mlp_or_so", 0.0)
    with pytest.raises(ValueError, match="unknown activation"):
        run(model, batch, [*clamps, broken])
    late = Clamp("blocks.1.out", lambda context, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, batch, [*clamps, late])
    assert silent(model)
    assert torch.equal(model(*batch), wanted)


@sets
def test_accumulated_gradients_are_those_of_one_batch(clamps):
    whole, parts = small_model(), small_model()
    x, y = batch_of(9)
    loss_of(run(whole, (x, y), clamps)[0], y).backward()
    with clamped(parts, clamps):
        for rows in (slice(0, 4), slice(4, 8), slice(8, 9)):
            (loss_of(parts(x[rows], y[rows]), y[rows], "sum") / 9).backward()
    for mine, other in zip(parts.parameters(), whole.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            close(mine.grad, other.grad)


def trained(model, optimizer, data, clamps, steps):
    for _ in range(steps):
        batch = data.batch(8)
        optimizer.zero_grad()
        loss_of(run(model, batch, clamps)[0], batch.y).backward()
        optimizer.step()


def test_a_resumed_clamped_run_is_the_uninterrupted_one():
    clamps = ClampSet([perfect_layer1(1), ablate_heads(1, [1, 2, 3])])
    model, data = small_model(), sampler()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trained(model, optimizer, data, clamps, 3)
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), data.state_dict()])
    trained(model, optimizer, data, clamps, 3)
    other, again = small_model(seed=9), sampler(seed=0)
    another = torch.optim.Adam(other.parameters(), lr=0.01)
    for part, kept in zip((other, another, again), state, strict=True):
        part.load_state_dict(kept)
    trained(other, another, again, ClampSet([perfect_layer1(1), ablate_heads(1, [1, 2, 3])]), 3)
    for mine, wanted in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.skipif(OLD, reason="the compiler of this torch cannot trace it")
@pytest.mark.parametrize("name", ["layer1"])
def test_compiled_steps_are_whole_graphs_and_the_same(name):
    clamps, model, data = SETS[name](), small_model(), sampler()

    @torch.compile(fullgraph=True, backend="eager")
    def step(x, y):
        return run(model, (x, y), clamps)[0]

    for size in (6, 4, 3):
        batch = data.batch(size)
        close(step(*batch), run(model, batch, clamps)[0])
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at the harvested activations
@pytest.mark.parametrize("name", ["layer1"])
def test_a_compiled_model_sees_clamps_come_and_go(name):
    model, batch = small_model(), batch_of()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"before torch.compile"):
        instrument(compiled, {"a": ""})
    plain = model(*batch)
    close(compiled(*batch), plain)
    wanted = run(model, batch, SETS[name]())[0]
    with clamped(compiled, SETS[name]()):
        close(compiled(*batch), wanted)
    close(compiled(*batch), plain)
    torch.compiler.reset()


@pytest.mark.skipif(OLD, reason="the compiler of this torch cannot trace it")
def test_a_compiled_plain_model_sees_its_clamps():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = instrument(model, {"hidden": "1"})
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 3, generator=seeded())
    close(compiled(x), model(x))
    with clamped(compiled, Clamp("hidden", 0.0)):
        close(compiled(x), model[2].bias.expand(2, -1))
    table.remove()
    instrument(model, {"hidden": "1:input"})
    torch.compiler.reset()
    close(run(model, x, Clamp("hidden", -1.0))[0], model[2].bias.expand(2, -1))


def test_any_module_with_tuples_names_and_residuals():
    class Doubled(nn.Linear):
        def forward(self, x, scale=1.0):
            return x + scale * super().forward(x), "aside"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = Doubled(3, 3), nn.Linear(3, 1)

        def forward(self, *, x):
            hidden, aside = self.body(x, scale=2.0)
            assert aside == "aside"
            return {"score": self.head(hidden)}

    model, x = Model(), torch.randn(2, 3, generator=seeded())
    instrument(model, {"body": "body", "entry": "body:input", "head": "head"})
    output, acts = run(model, {"x": x}, record=["*"])
    close(acts["body"], x + 2 * nn.functional.linear(x, model.body.weight, model.body.bias))
    assert torch.equal(acts["entry"], x)
    assert torch.equal(output["score"], acts["head"])
    assert torch.equal(run(model, {"x": x}, Clamp("body", 0.0))[0]["score"], model.head.bias.expand(2, 1))
    assert set(model.state_dict()) == {"body.weight", "body.bias", "head.weight", "head.bias"}
    assert torch.equal(copy.deepcopy(model)(x=x)["score"], output["score"])


def test_a_second_pass_leaves_running_statistics_and_modes_alone():
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    one, two = made(), made()
    x = torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    one(x)
    instrument(two, {"normed": "1", "first": "0"})
    first, _ = run(two, x, [Clamp("normed", FromPass("first"))])
    first.sum().backward()
    for mine, other in zip(two.buffers(), one.buffers(), strict=True):
        close(mine, other)
    assert two.training
    close(first, two[2](two[0](x)))


def test_a_part_called_on_its_own_never_acts_on_the_batch_before():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_model()

        def forward(self, x, y):
            return self.inner(x, y)

    model, first, second = Outer(), batch_of(), batch_of(seed=5)
    for clamps in (SETS["match"](), SETS["preserved"]()):
        with clamped(model, clamps):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="reached outside a forward of the model given"):
                    model.inner(*second)
                model(*first)
            close(model(*second), run(small_model(), second, clamps)[0])
    with clamped(model, SETS["match"](), context=second):
        close(model.inner(*second), run(small_model(), second, SETS["match"]())[0])
    with clamped(model, ablate_heads(0)):
        model(*first)
        close(model.inner(*second), run(small_model(), second, ablate_heads(0))[0])


@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")  # of torch 2.4's own checkpoint
def test_recomputing_in_the_backward_pass_gives_the_same_gradients():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_model()

        def forward(self, x, y):
            return torch.utils.checkpoint.checkpoint(self.inner, x, y, use_reentrant=False)

    model, plain, batch = Outer(), small_model(), batch_of()
    with clamped(model, SETS["match"]()):
        loss_of(model(*batch), batch.y).backward()
    loss_of(run(plain, batch, SETS["match"]())[0], batch.y).backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            close(mine.grad, other.grad)


def test_modules_that_work_in_place_spoil_neither_records_nor_sources():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    instrument(model, {"before": "0", "after": "1"})
    x, source = torch.randn(6, 3, generator=seeded()), torch.randn(6, 4, generator=seeded(1))
    _, acts = run(model, x, record=["before"])
    close(acts["before"], model[0](x))
    kept = source.clone()
    for given in (source, -1.0):
        _, acts = run(model, x, Clamp("before", given), record=["*"])
        close(acts["after"], torch.as_tensor(given).relu().expand(6, 4))
    assert torch.equal(source, kept)


def test_a_module_used_twice_has_no_single_record():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    instrument(model, {"layer": "layer"})
    with pytest.raises(RuntimeError, match="more than once"):
        run(model, torch.ones(2, 3), record=["layer"])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0])


def test_the_model_that_makes_the_pass_must_not_drop_out():
    x, frozen = torch.randn(2, 3, 4, generator=seeded()), Attending().eval()
    model = copy.deepcopy(frozen).train()
    for one in (frozen, model):
        instrument(one, {"attend": "attend"})
    with pytest.raises(ValueError, match=r"'attend' has dropout = 0.5 in training mode"):
        run(model, x, Clamp("attend", FromPass()))
    with pytest.raises(ValueError, match="must not drop out"):
        run(frozen, x, Clamp("attend", FromPass(model=model)))
    close(run(model, x, Clamp("attend", FromPass(model=frozen)))[0], frozen(x))


def test_frozen_parameters_stay_without_gradient():
    model, batch = small_model(), batch_of()
    model.blocks[0].requires_grad_(False)
    loss_of(run(model, batch, perfect_layer1(1))[0], batch.y).backward()
    assert all(p.grad is None for p in model.blocks[0].parameters())
    assert not model.blocks[0].norm.weight.requires_grad


def test_inference_mode_leaves_nothing_behind():
    model, batch = small_model(), batch_of()
    clamps = ClampSet([prev_token(0, [1]), perfect_layer1(1)])
    with torch.inference_mode():
        quiet, _ = run(model, batch, clamps)
    logits, _ = run(model, batch, clamps)
    loss_of(logits, batch.y).backward()
    assert torch.equal(quiet, logits)


def test_attention_in_a_model_of_ones_own():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(ClampableAttention(8, 2, generator=seeded(i)) for i in range(2))

        def forward(self, x, key_mask=None):
            for layer in self.layers:
                x = x + layer(x, key_mask)
            return x

    model, x = Model(), torch.randn(2, 5, 8, generator=seeded(3))
    _, acts = run(model, x, prev_token("layers.0", [1]), record=["layers.0.attn_scores"])
    assert acts["layers.0.attn_scores"][:, 1].diagonal(-1, 1, 2).min() == 1
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    padded = model(x, left)
    mapped, acts = run(model, (x, left), record=["layers.*.attn_scores"])
    close(mapped, padded)
    assert acts["layers.1.attn_scores"][0, :, 2:, :2].max() == 0
    assert bool(padded.isfinite().all())


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["layer1", "preserved"])
def test_distributed_data_parallel_has_the_same_gradients(name, one_process):
    clamps, batch = SETS[name](), batch_of()
    plain, model = small_model(), small_model()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    loss_of(run(plain, batch, clamps)[0], batch.y).backward()
    loss_of(run(wrapped, batch, clamps)[0], batch.y).backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            close(mine.grad, other.grad)
    with clamped(wrapped, clamps):
        assert torch.equal(wrapped(*batch), run(plain, batch, clamps)[0])


def test_importing_brings_in_nothing_heavy():
    code = (
        "import sys, inductionclamp; "
        "print([m for m in ('torch._dynamo', 'scipy', 'transformers', 'mlxtend') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "[]"
