"""Bad input is refused at the boundary, by the argument's name, with what it was and what it must be."""

import re
import warnings

import pytest
import torch
from torch import nn

from instructresidual import Residual, applied, apply_residual, diagnose, residual, track

NAME = "model.layers.0.mlp.up_proj.weight"


def found_of(weights, **options):
    base = weights(0)
    return base, residual(base, weights(1, of=base), **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({NAME: torch.zeros(9, 6, dtype=torch.int8)}, ValueError, "is of dtype torch.int8, as if quantised"),
        ({NAME: torch.zeros(9, 6, device="meta")}, ValueError, "is on the meta device and has no values"),
        ({"layers.0.mlp.qweight": torch.zeros(2, dtype=torch.int32)}, ValueError, "dequantise it first"),
        (
            {"layers.0.q_proj.lora_A.weight": torch.zeros(2)},
            ValueError,
            "belongs to an adapter: merge it first",
        ),
        ({NAME: torch.full((9, 6), float("nan"))}, ValueError, f"{NAME} has values that are NaN or infinite"),
        ({NAME: torch.full((9, 6), float("inf"))}, ValueError, f"{NAME} has values that are NaN or infinite"),
        ({NAME: torch.zeros(9, 6, dtype=torch.complex64)}, ValueError, "is of dtype torch.complex64"),
        (
            {"step": 3},
            TypeError,
            "must map names to tensors, got int for 'step'; if the weights are an entry",
        ),
        ({f"module.{NAME}": torch.zeros(9, 6)}, ValueError, f"two tensors called '{NAME}'"),
    ],
)
@pytest.mark.parametrize("side", ["base", "instruct"])
def test_weights_that_cannot_be_subtracted(weights, side, change, error, message):
    sides = {"base": weights(0), "instruct": weights(1)}
    sides[side] |= change
    with pytest.raises(error, match=f"^{side}.*{re.escape(message)}"):
        residual(**sides)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dtype": torch.float16},
            ValueError,
            "dtype must be one of torch.float32, torch.float64, torch.bfloat16",
        ),
        ({"tie": "both"}, ValueError, "tie must be one of None, 'sum', 'embed', got 'both'"),
        ({"include": "nothing"}, ValueError, "include='nothing' and exclude=None leave nothing"),
        ({"exclude": "["}, ValueError, "exclude must be groups of"),
        (
            {"tokenizers": ([], [])},
            TypeError,
            "tokenizers[0] must have get_vocab() or map tokens to ids, got list",
        ),
        ({"tokenizers": ({"a": 12}, {})}, ValueError, "tokenizers[0] has ids up to 12, the weights 12 rows"),
        ({"lazy": True, "out": "x"}, ValueError, "out must be None for a lazy residual, got 'x'"),
        ({"num_workers": 0}, ValueError, "num_workers must be at least 1, got 0"),
        (
            {"instruct": 3},
            TypeError,
            "instruct must be a module, a state dict or the path of a checkpoint, got int",
        ),
        (
            {"instruct": "/nowhere"},
            ValueError,
            "instruct must be a folder or a file that exists, got /nowhere",
        ),
        (
            {"instruct": {"x": torch.zeros(2)}, "strict": False},
            ValueError,
            "no floating-point parameter in common",
        ),
    ],
)
def test_arguments_of_residual(weights, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        residual(**{"base": weights(0), "instruct": weights(1), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
        ({"scale": {"attn": float("inf")}}, ValueError, "scale must be finite, got inf"),
        ({"scale": {"attention_": 1.0}}, ValueError, "scale names 'attention_', which is no group"),
        ({"scale": "much"}, TypeError, "scale must be a number or map groups to numbers, got 'much'"),
        ({"rounding": "up"}, ValueError, "rounding must be one of 'nearest', 'stochastic', got 'up'"),
        (
            {"vocabulary": "both"},
            ValueError,
            "vocabulary must be one of None, 'instruct', 'target', got 'both'",
        ),
        ({"tie": "none"}, ValueError, "tie must be one of None, 'sum', 'embed', 'both', got 'none'"),
        (
            {"out": "somewhere"},
            ValueError,
            "out must be given for a checkpoint, out and instruct only for one",
        ),
        ({"instruct": "somewhere"}, ValueError, "out must be given for a checkpoint"),
        ({"tokenizer": {"a": 0}}, ValueError, "tokenizer needs a residual that was taken with tokenizers="),
        ({"residual": {}}, TypeError, "residual must be a Residual, got dict"),
    ],
)
def test_arguments_of_apply_residual(weights, arguments, error, message):
    base, found = found_of(weights)
    before = {name: tensor.clone() for name, tensor in base.items()}
    with pytest.raises(error, match=re.escape(message)):
        apply_residual(**{"target": base, "residual": found, **arguments})
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_an_unrelated_target_is_refused_unless_forced(weights):
    _, found = found_of(weights)
    stranger = weights(77)
    for tensor in stranger.values():
        tensor.sub_(tensor.mean())
    diagnosis = diagnose(stranger, found)
    with pytest.raises(ValueError, match=r"cosine of -?0\.0\d+ with those of the residual's base"):
        apply_residual(stranger, found)
    assert diagnosis.verdict == "unrelated"
    assert str(diagnosis).startswith("unrelated: distance 1.")
    report = apply_residual(stranger, found, force=True)
    assert report.cosine == diagnosis.weight_cosine < 0.1
    assert report.ancestor_distance == pytest.approx(2**0.5, abs=0.2)


@pytest.mark.parametrize(
    ("noise", "verdict"), [(0.0, "ok"), (0.07, "ok"), (0.14, "caution"), (0.4, "caution"), (0.7, "unlikely")]
)
def test_the_verdict_follows_the_distance(weights, noise, verdict):
    base, found = found_of(weights)
    target = weights(5, of=base, noise=noise)
    with_base, without = diagnose(target, found, base), diagnose(target, found)
    matrices = [name for name in base if base[name].dim() > 1]
    apart = sum((target[name] - base[name]).double().square().sum() for name in matrices)
    expected = (apart / sum(base[name].double().square().sum() for name in matrices)).sqrt().item()
    assert with_base.ancestor_distance == pytest.approx(expected)
    assert without.ancestor_distance == pytest.approx(expected)  # these tensors are remembered whole
    assert with_base.verdict == without.verdict == verdict
    assert (with_base.exact, without.exact) == (True, False)
    row = with_base.tensors[NAME]
    shift = (target[NAME] - base[NAME]).double().flatten()
    assert row.residual_norm == pytest.approx((found[NAME].norm() / target[NAME].norm()).item())
    assert row.shift == pytest.approx((shift.norm() / target[NAME].norm().double()).item())
    if noise:
        cosine = torch.cosine_similarity(shift, found[NAME].double().flatten(), dim=0).item()
        assert row.cosine == pytest.approx(cosine)
    assert without.tensors[NAME].cosine is None


def test_conflicts_are_counted_among_the_largest_one_per_cent():
    base, delta = torch.zeros(20, 20), torch.arange(400.0).view(20, 20)
    shift = torch.full((20, 20), -1.0)
    shift[19, 19] = 1.0
    found = residual({"w": base + 1}, {"w": base + 1 + delta})
    row = diagnose({"w": base + 1 + shift}, found, {"w": base + 1}).tensors["w"]
    assert row.sign_conflicts == 0.75  # three of the four largest


def test_another_base_is_told(weights):
    base, found = found_of(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnose(base, found, {name: tensor.double() for name, tensor in base.items()})
    with pytest.warns(UserWarning, match="base is not the one that the residual was taken from"):
        diagnose(base, found, weights(4, of=base))
    with pytest.raises(ValueError, match="have no tensor of one shape in common"):
        diagnose({"x": torch.zeros(1)}, found)


def test_sums_that_half_precision_cannot_hold(weights):
    base = {"w": torch.full((3, 3), 60000.0, dtype=torch.float16)}
    found = residual({"w": torch.zeros(3, 3)}, {"w": torch.full((3, 3), 30000.0)})
    with pytest.raises(ValueError, match=r"w: the sum is too large for torch\.float16"):
        apply_residual(base, found)
    assert (base["w"] == 60000).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.lowrank(0), ValueError, "rank must be at least 1, got 0"),
        (lambda r: r.lowrank(1.5), TypeError, "rank must be an integer, got 1.5"),
        (lambda r: r.sparsify(0.0), ValueError, "keep must lie in (0, 1], got 0.0"),
        (lambda r: r.sparsify(float("nan")), ValueError, "keep must lie in (0, 1], got nan"),
        (lambda r: r.sparsify(0.5, method="some"), ValueError, "method must be one of 'magnitude', 'random'"),
        (lambda r: r.quantise(3), ValueError, "bits must be one of 4, 8, got 3"),
        (lambda r: r.quantise(block=7), ValueError, "block must be even, got 7"),
        (lambda r: r.scaled(float("inf")), ValueError, "scale must be finite, got inf"),
        (lambda r: r.filter("zzz"), ValueError, "include='zzz' and exclude=None leave nothing"),
        (lambda r: r + 1, TypeError, "unsupported operand"),
        (lambda r: r - 1, TypeError, "unsupported operand"),
        (lambda r: r.to_peft("/nowhere"), ValueError, "has no matrix in factors: call lowrank(rank) first"),
        (
            lambda r: r.lowrank(1).to_peft("/nowhere"),
            ValueError,
            "a LoRA adapter cannot hold 'model.layers.0",
        ),
    ],
)
def test_methods(weights, call, error, message):
    _, found = found_of(weights)
    with pytest.raises(error, match=re.escape(message)):
        call(found)


def test_residuals_with_copied_rows_have_no_sum(weights):
    base = weights(0)
    found = residual(base, weights(1, vocabulary=13))
    with pytest.raises(ValueError, match="cannot be added"):
        found + found
    with pytest.raises(ValueError, match=r"has no negative: 'model\.embed_tokens\.weight'"):
        residual(weights(1), base) - found
    other = residual({NAME: torch.zeros(2, 2)}, {NAME: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"is of shape \(9, 6\) in one residual, \(2, 2\) in the other"):
        found.filter("mlp") + other


def test_a_path_cannot_be_changed_for_a_moment(weights):
    _, found = found_of(weights)
    with (
        pytest.raises(TypeError, match="model must be a module or a state dict, got a path"),
        applied("x", found),
    ):
        pass


def test_quantised_parameters_of_a_module_are_refused():
    class Packed(torch.Tensor):
        pass

    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Packed))
    with pytest.raises(
        ValueError, match="weight is a Packed, not a plain tensor: dequantise or gather it first"
    ):
        residual(model, model)


# --- modules in training ---------------------------------------------------------------------------


def tuned():
    torch.manual_seed(0)
    base, instruct = (nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)) for _ in "ab")
    return base, residual(base, instruct)


def test_training_does_not_notice(weights):
    """Losses, optimizer state and random numbers are those of a run that is never tracked, bit for bit."""
    results = []
    for tracked in (False, True):
        base, found = tuned()
        base[2].eval()
        optimizer = torch.optim.Adam(base.parameters(), 0.1)
        losses = []
        for step in range(6):
            loss = base(torch.ones(4, 3)).square().sum()
            if tracked and step % 2:  # between forward and backward, where autograd holds on to the weights
                scores = track(base, found, lambda model: torch.rand(1).item() + float(model.training))
                assert scores.base < 1
                with applied(base, found):
                    pass
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert [module.training for module in base.modules()] == [True, True, True, False]
        results.append(
            (losses, [parameter.tolist() for parameter in base.parameters()], torch.rand(3).tolist())
        )
    assert results[0] == results[1]


def test_a_failed_evaluation_leaves_the_model_as_it_was():
    base, found = tuned()
    before = [parameter.detach().clone() for parameter in base.parameters()]

    def evaluate(model):
        if not torch.equal(model[0].weight, before[0]):
            raise RuntimeError("no data")
        return 0.0

    with pytest.raises(RuntimeError, match="no data"):
        track(base, found, evaluate)
    assert all(torch.equal(new, old) for new, old in zip(base.parameters(), before, strict=True))
    assert base.training


def test_models_made_in_inference_mode_and_frozen_ones():
    with torch.inference_mode():
        base, instruct = (nn.Linear(2, 2) for _ in "ab")
        for parameter in (*base.parameters(), *instruct.parameters()):
            parameter.requires_grad_(False)
        found = residual(base, instruct)
        expected = instruct.weight.clone()
    with torch.inference_mode():
        with applied(base, found):
            torch.testing.assert_close(base.weight, expected)
        apply_residual(base, found, force=True)
    torch.testing.assert_close(base.weight, expected)
    assert isinstance(found, Residual)
    assert not base.weight.requires_grad
