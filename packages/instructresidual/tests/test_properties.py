"""What must hold for all weights: the algebra of residuals, and that streaming is what memory would give."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from instructresidual import Residual, applied, apply_residual, diagnose, numerics, residual
from instructresidual.sources import open_source

seeds = st.integers(0, 10**6)
scales = st.sampled_from([-1.0, 0.0, 0.25, 0.7, 1.0, 1.5])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def three(weights, seed, dtype=torch.float32, **options):
    """A base, an instruct model and a continued base."""
    base = weights(seed, dtype=dtype, **options)
    return base, *(weights(seed + 1 + n, dtype=dtype, of=base, **options) for n in range(2))


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


@given(seed=seeds, dtype=dtypes)
def test_base_and_residual_are_instruct_to_one_rounding(weights, seed, dtype):
    base, instruct, _ = three(weights, seed, dtype)
    found = residual(base, instruct, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    apply_residual(base, found)
    for name, weight in base.items():
        if dtype in (torch.bfloat16, torch.float16):  # the difference of two such is exact in float32
            assert torch.equal(weight, instruct[name])
        else:
            ulp = torch.finfo(dtype).eps * torch.maximum(weight.abs(), found[name].abs().to(dtype))
            assert ((weight - instruct[name]).abs() <= ulp).all()


@given(seed=seeds, scale=scales, dtype=dtypes)
def test_the_sum_is_rounded_once_from_float32(weights, seed, scale, dtype):
    base, instruct, target = three(weights, seed, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = {
        name: (target[name].to(wide) + (instruct[name].to(wide) - base[name].to(wide)) * scale).to(dtype)
        for name in base
    }
    apply_residual(target, residual(base, instruct, dtype=wide), scale=scale)
    equal(target, expected)


@settings(max_examples=10)
@given(seed=seeds, first=scales, second=scales)
def test_the_algebra_of_residuals(weights, seed, first, second):
    a, b, c = three(weights, seed, torch.float64)
    ab, bc, ac = (residual(x, y, dtype=torch.float64) for x, y in ((a, b), (b, c), (a, c)))
    for name in a:
        torch.testing.assert_close((ab + bc)[name], ac[name])
        torch.testing.assert_close((ac - ab)[name], bc[name])
        assert torch.equal(residual(b, a, dtype=torch.float64)[name], -ab[name])
        assert torch.equal((-ab)[name], -ab[name])
        assert torch.equal(ab.scaled(first)[name], ab[name] * first)
    once, twice = ({name: tensor.clone() for name, tensor in c.items()} for _ in "ab")
    apply_residual(once, ab, scale=first + second, force=True)
    apply_residual(twice, ab, scale=first, force=True)
    apply_residual(twice, ab, scale=second, force=True)
    for name in a:
        torch.testing.assert_close(once[name], twice[name])
    unchanged = {name: tensor.clone() for name, tensor in c.items()}
    report = apply_residual(unchanged, ab, scale=0)
    equal(unchanged, c)
    assert report.applied == ()


@settings(max_examples=10)
@given(seed=seeds, parts=st.tuples(*[st.integers(1, 4)] * 3), dtype=dtypes, scale=scales, order=st.randoms())
def test_streaming_is_what_memory_gives_whatever_the_shards(
    weights, checkpoint, monkeypatch_chunk, seed, parts, dtype, scale, order
):
    base, instruct, target = three(weights, seed, dtype)
    names = list(base)
    order.shuffle(names)
    with tempfile.TemporaryDirectory() as folder, monkeypatch_chunk(7):
        root = Path(folder)
        folders = [
            checkpoint(root / side, tensors, shards, order=names if side == "instruct" else None)
            for side, tensors, shards in zip(
                ("base", "instruct", "target"), (base, instruct, target), parts, strict=True
            )
        ]
        streamed = residual(folders[0], folders[1], out=root / "residual", max_shard_bytes=200)
        held, lazy = residual(base, instruct), residual(folders[0], folders[1], lazy=True)
        equal(dict(streamed), dict(held))
        equal(dict(lazy), dict(held))
        assert streamed.ancestor.fingerprint == held.ancestor.fingerprint
        apply_residual(folders[2], streamed, out=root / "out", scale=scale, max_shard_bytes=300)
        tables = [diagnose(*sides) for sides in ((target, held, base), (folders[2], streamed, folders[0]))]
        assert len({tuple(sorted(str(table).splitlines())) for table in tables}) == 1
        apply_residual(target, held, scale=scale)
        written = {}
        for file in (root / "out").glob("*.safetensors"):
            written |= load_file(file)
        equal(written, {name: target[name] for name in written})
        assert written.keys() == target.keys()


@given(seed=seeds, scale=scales, offload=st.booleans(), fails=st.booleans(), dtype=dtypes)
def test_applied_restores_every_bit(weights, seed, scale, offload, fails, dtype):
    base, instruct, target = three(weights, seed, dtype)
    found = residual(base, instruct)
    before = {name: tensor.clone() for name, tensor in target.items()}
    expected = {name: tensor.clone() for name, tensor in target.items()}
    apply_residual(expected, found, scale=scale, force=True)
    with suppress(KeyError), applied(target, found, scale, offload=offload):
        equal(target, expected)
        if fails:
            raise KeyError
    equal(target, before)


@given(seed=seeds)
def test_low_rank_is_the_best_there_is(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(40, 300, generator=generator) * torch.logspace(0, -2, 40)[:, None]
    found = residual({"a.weight": torch.zeros(40, 300)}, {"a.weight": matrix})
    values = torch.linalg.svdvals(matrix.double()).square()
    errors = [found.lowrank(rank).error for rank in (1, 5, 20, 40)]
    for rank, error in zip((1, 5, 20), errors, strict=False):
        best = (values[rank:].sum() / values.sum()).sqrt().item()
        assert error == pytest.approx(best, rel=1e-3)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5
    assert found.lowrank(99).deltas["a.weight"].parts()["left"].shape == (40, 40)


def test_a_randomised_low_rank_is_within_one_per_cent_of_the_best():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(400, 330, generator=generator) @ torch.diag(torch.arange(1, 331).float() ** -0.5)
    found = residual({"a.weight": torch.zeros(400, 330)}, {"a.weight": matrix})
    values = torch.linalg.svdvals(matrix.double()).square()
    errors = []
    for rank in (4, 16, 64):
        error = found.lowrank(rank, generator=generator).error
        best = (values[rank:].sum() / values.sum()).sqrt().item()
        assert best * (1 - 1e-6) <= error <= best * 1.01
        errors.append(error)
    assert errors == sorted(errors, reverse=True)


def test_random_drops_are_unbiased_and_magnitudes_are_the_largest():
    values = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.5, 6.0]])
    found = residual({"a.weight": torch.zeros(2, 3)}, {"a.weight": values})
    generator = torch.Generator().manual_seed(3)
    drops = torch.stack(
        [found.sparsify(0.4, method="random", generator=generator)["a.weight"] for _ in range(1500)]
    )
    spread = values.abs() * (0.6 / 0.4 / 1500) ** 0.5
    assert ((drops.mean(0) - values).abs() < 5 * spread).all()
    assert 0.3 < (drops != 0).float().mean() < 0.5
    unscaled = found.sparsify(0.4, method="random", rescale=False, generator=generator)["a.weight"]
    assert ((unscaled == 0) | (unscaled == values)).all()
    largest = found.sparsify(0.5)
    assert largest["a.weight"].tolist() == [[0, 0, 3], [-4, 0, 6]]
    assert largest.error == pytest.approx((5.25 / 66.25) ** 0.5)
    assert largest.errors == {"a.weight": pytest.approx(largest.error)}
    assert found.sparsify(0.5, rescale=True)["a.weight"].tolist() == [[0, 0, 6], [-8, 0, 12]]


@given(seed=seeds, bits=st.sampled_from([4, 8]), block=st.sampled_from([2, 6, 256]), size=st.integers(1, 40))
def test_quantised_elements_are_half_a_step_away_at_most(monkeypatch_chunk, seed, bits, block, size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    with monkeypatch_chunk(5):
        found = residual({"a": torch.zeros(size)}, {"a": values}).quantise(bits, block)["a"]
    for start in range(0, size, block):
        part = values[start : start + block]
        step = part.abs().max() / (2 ** (bits - 1) - 1)
        assert ((found[start : start + block] - part).abs() <= step * 0.5001).all()
        assert torch.isclose(found[start : start + block].abs().max(), part.abs().max())


@settings(max_examples=5)
@given(seed=seeds, factor=scales)
def test_every_form_is_saved_scaled_and_read_in_part(monkeypatch_chunk, seed, factor):
    generator = torch.Generator().manual_seed(seed)
    found = residual({"a.weight": torch.zeros(7, 5)}, {"a.weight": torch.randn(7, 5, generator=generator)})
    forms = [
        found,
        found.lowrank(2),
        found.sparsify(0.3),
        found.quantise(8, 4),
        found.quantise(4, 6),
        found + found,
    ]
    for form in forms:
        whole = form["a.weight"]
        with tempfile.TemporaryDirectory() as folder:
            form.save(Path(folder) / "r")
            again = Residual.load(Path(folder) / "r")
            assert torch.equal(again["a.weight"], whole)
            assert again.error == form.error
            assert again.errors == form.errors
        torch.testing.assert_close(form.scaled(factor)["a.weight"], whole * factor)
        assert form.norms()["a.weight"] == pytest.approx(whole.norm().item(), rel=1e-5)
        torch.testing.assert_close(form.deltas["a.weight"].read(6, 23), whole.flatten()[6:23])
        torch.testing.assert_close(form.to(dtype=torch.float64)["a.weight"], whole.double())


@given(value=st.floats(-3, 3, width=32), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_stochastic_rounding_takes_the_two_neighbours_in_proportion(value, dtype):
    values = torch.full((4000,), value)
    drawn = numerics.round_to(values, dtype, "stochastic", torch.Generator().manual_seed(1))
    found = drawn.unique().float()
    assert len(found) <= 2
    if torch.tensor(value).to(dtype).float() == value:
        assert found.tolist() == [value]
    else:
        low, high = found.min().item(), found.max().item()
        assert low <= value <= high or len(found) == 1
        gap = torch.finfo(dtype).eps * max(abs(value), torch.finfo(dtype).tiny)
        assert abs(drawn.float().mean().item() - value) <= 5 * gap / 4000**0.5
        assert high - low <= gap


def test_stochastic_rounding_keeps_increments_that_nearest_loses():
    base = {"mlp.weight": torch.ones(200, 200, dtype=torch.bfloat16)}
    found = residual(base, {"mlp.weight": torch.full((200, 200), 1.0 + 2**-10)})
    nearest, drawn = ({"mlp.weight": base["mlp.weight"].clone()} for _ in "ab")
    assert apply_residual(nearest, found).lost == {"mlp.weight": 1.0}
    generator = torch.Generator().manual_seed(0)
    report = apply_residual(drawn, found, rounding="stochastic", generator=generator)
    assert report.lost["mlp.weight"] == pytest.approx(7 / 8, abs=0.01)  # one step of bfloat16 is 2**-7
    assert drawn["mlp.weight"].float().mean().item() == pytest.approx(1 + 2**-10, abs=1e-4)
    assert set(drawn["mlp.weight"].float().unique().tolist()) == {1.0, 1 + 2**-7}


@given(data=st.data(), seed=seeds)
def test_rows_of_a_vocabulary_match_by_token(weights, monkeypatch_chunk, data, seed):
    """Against a loop over tokens: common rows get their difference, rows of instruct are copied, others are left."""
    letters = st.sampled_from("abcdefghijklmnop")
    common = data.draw(st.sets(letters, min_size=2, max_size=8))
    sides = []
    for own in ("base", "instruct", "target"):
        extra = {f"{own} {n}" for n in range(data.draw(st.integers(0, 3)))}
        tokens = data.draw(st.permutations(sorted(common | extra)))
        rows = len(tokens) + data.draw(st.integers(0, 2)) + 3
        sides.append(
            (
                {token: index for index, token in enumerate(tokens)},
                weights(seed + len(sides), vocabulary=rows),
            )
        )
    (ours, base), (theirs, instruct), (last, target) = sides
    with monkeypatch_chunk(data.draw(st.sampled_from([5, 20]))):  # less than a row, and three rows
        found = residual(base, instruct, tokenizers=(ours, theirs))
    before = {name: tensor.clone() for name, tensor in target.items()}
    with tempfile.TemporaryDirectory() as folder, monkeypatch_chunk(data.draw(st.sampled_from([5, 20]))):
        save_file(target, Path(folder) / "model.safetensors")
        report = apply_residual(folder, found, tokenizer=last, out=Path(folder + "-out"), force=True)
        after = load_file(Path(folder + "-out") / "model.safetensors")
        shutil.rmtree(folder + "-out")
    new = [token for token in sorted(theirs, key=theirs.get) if token not in ours]
    assert list(report.added_tokens) == [token for token in new if token not in last]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for token, row in {**last, **report.added_tokens}.items():
            if token in ours and token in theirs:
                expected = before[name][row] + (instruct[name][theirs[token]] - base[name][ours[token]])
            elif token in theirs and token not in ours:
                expected = instruct[name][theirs[token]]
            else:
                expected = before[name][row]
            torch.testing.assert_close(after[name][row], expected, rtol=0, atol=0)


def test_ten_thousand_pieces_are_what_one_is(monkeypatch_chunk):
    a, b = torch.randn(100, 1000), torch.randn(100, 1000)
    whole = residual({"w": a}, {"w": b})["w"]
    with monkeypatch_chunk(10):
        assert torch.equal(residual({"w": a}, {"w": b})["w"], whole)
    assert torch.equal(whole, b - a)


def test_a_module_is_its_state_dict():
    base, instruct = (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)) for _ in "ab")
    by_module, by_state = residual(base, instruct), residual(base.state_dict(), instruct.state_dict())
    equal(dict(by_module), dict(by_state))
    assert open_source(base, "base").tensors.keys() == base.state_dict().keys()
