"""Each bad input raises an error that names the argument."""

import re

import pytest
import torch
from helpers import batch_of, sampler, seeded, small_model
from torch import nn

import inductionclamp
from inductionclamp import (
    Clamp,
    ClampableAttention,
    ClampSet,
    Earlier,
    FewShotSampler,
    FewShotTransformer,
    FromPass,
    Heads,
    ablate_heads,
    block_prev_token,
    clamped,
    context_positions,
    force_pattern,
    graft,
    head_ablation_table,
    head_temperature,
    in_context_loss,
    induction_pattern,
    induction_strength,
    instrument,
    instrument_hf,
    match_pattern,
    perfect_copy,
    perfect_layer1,
    preserve,
    prev_token,
    prev_token_score,
    run,
    sequence_induction_score,
    silence_non_labels,
    sites_of,
    tensor_toy,
    time_to_threshold,
)

MODEL, BATCH = small_model(), batch_of(3)
PATTERNS = torch.rand(2, 3, 5, 5)
FEATURES = torch.rand(6, 2, 4)


@pytest.mark.parametrize(
    ("clamps", "says"),
    [
        (Clamp("blocks.0.attn_score", 0.0), r"unknown activation name .* close: blocks.0.attn_scores"),
        (Clamp("blocks.7.*", 0.0), "unknown activation name"),
        (Clamp("blocks.0.v", FromPass("blocks.*.v")), "a source must be one activation"),
        (ablate_heads(0, [4]), "heads must be below 4, got 4"),
        (Clamp("blocks.0.out", 0.0, Heads((0,))), r"heads need an activation \[B, H, T"),
        (Clamp("blocks.0.v", 0.0, Heads((0,), (5,))), "rows must be below 5, got 5"),
        (
            Clamp("blocks.0.v", torch.zeros(3, 7)),
            r"source .* broadcast to its shape \(3, 4, 5, 4\), got \(3, 7\)",
        ),
        (Clamp("blocks.0.v", torch.zeros(1, 3, 4, 5, 4)), "source .* broadcast"),
        (Clamp("blocks.0.v", 0.0, torch.ones(9, dtype=torch.bool)), "mask .* broadcast"),
        (Clamp("blocks.0.v", torch.zeros(1, dtype=torch.complex64)), "source .* must be real"),
        (induction_pattern(1, [0], label_positions=[1]), "label_positions must name 2"),
        (induction_pattern(1, [0], label_positions=[0.5]), "label_positions must be integers"),
        (induction_pattern(1, [0], labels=torch.zeros(3, 2)), "labels must hold at least two in context"),
        (induction_pattern(1, [0], query_position=5), "query_position must be below 5"),
        (perfect_copy(1, 4), "head must be below 4, got 4"),
        (perfect_copy(1, 0, query_position=7), "query_position must be below 5"),
        (perfect_copy(1, 0, label_positions=[1]), "label_ids must name at least two"),
        (force_pattern(0, [0], torch.eye(4)), "source .* broadcast"),
        (induction_pattern(1, [0], query_position=2), "label_positions must be from 0 to 2, got 1 to 3"),
        (match_pattern(1, [0], query_position=-3), "label_positions must be from 0 to 2, got 1 to 3"),
        (perfect_copy(1, 0, query_position=2), "label_positions must be from 0 to 2"),
        (induction_pattern(1, [0], label_positions=[1, 9]), "label_positions must be from 0 to 4"),
        (silence_non_labels(1, [0], label_positions=[-4, 1]), "label_positions must be from 0 to 4"),
        (perfect_copy(1, 0, label_ids=[[0, 10**6]] * 3), "label_ids must be from 0 to 4"),
        (induction_pattern(1, [0], labels=torch.zeros(3)), "labels must hold at least two in context"),
        (match_pattern(1, [0], features=torch.zeros(3, 3)), r"features must be \[B, n \+ 1, F\]"),
    ],
)
def test_clamps_that_do_not_fit_the_model(clamps, says):
    with pytest.raises(ValueError, match=says):
        run(MODEL, BATCH, clamps)
    assert all(site.handler is None for site in MODEL.clamp_sites.values())


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Clamp(3, 0.0), TypeError, "name must be a string"),
        (lambda: Clamp("v", None), TypeError, "source must be"),
        (lambda: Clamp("v", True), TypeError, "source must be"),
        (lambda: Clamp("v", 0.0, torch.ones(2)), TypeError, "mask must be boolean, got torch.float32"),
        (lambda: Clamp("v", 0.0, "all"), TypeError, "mask must be"),
        (lambda: FromPass(under=[3]), TypeError, "clamps must hold Clamp"),
        (lambda: FromPass(model="frozen"), TypeError, "model must be a torch.nn.Module"),
        (lambda: Heads((1.5,)), TypeError, "heads must be an integer"),
        (lambda: Heads(()), ValueError, "heads must name at least one"),
        (lambda: Heads(None, (True,)), TypeError, "rows must be an integer"),
        (lambda: ClampSet([3]), TypeError, "clamps must hold Clamp objects, got int"),
        (lambda: ClampSet("v"), TypeError, "clamps must hold"),
        (lambda: ablate_heads(-1), ValueError, "layer must be at least 0"),
        (lambda: ablate_heads(0.5), TypeError, "layer must be an integer"),
        (lambda: ablate_heads(0, []), ValueError, "heads must name at least one"),
        (lambda: ablate_heads(0, [-1]), ValueError, "heads must be at least 0"),
        (lambda: preserve("pattern"), ValueError, "kinds must be of patterns, values"),
        (lambda: prev_token(0, 0, 1.5), ValueError, "strength must be finite and between 0 and 1"),
        (lambda: prev_token(0, 0, float("nan")), ValueError, "strength must be finite"),
        (lambda: induction_pattern(0, 0, "much"), TypeError, "strength must be a number"),
        (lambda: match_pattern(0, 0, -1.0), ValueError, "temperature must be finite and at least 0"),
        (
            lambda: head_temperature(0, {1: 0}),
            ValueError,
            r"temperatures\[1\] must be finite and at least 1e-06",
        ),
        (lambda: perfect_layer1(0), ValueError, "layer must be at least 1"),
        (lambda: graft(MODEL), ValueError, "exactly one of upto and from_"),
        (lambda: graft(MODEL, upto=0, from_=0), ValueError, "exactly one"),
        (lambda: graft("model", upto=0), TypeError, "model must be a torch.nn.Module"),
        (lambda: force_pattern(0, 0, torch.ones(3, 3)), ValueError, "rows that sum to 1"),
        (lambda: force_pattern(0, 0, torch.tensor([[1.0, 0], [2, -1]])), ValueError, "negative weights"),
        (lambda: force_pattern(0, 0, torch.full((2, 2), 0.5)), ValueError, "must be causal"),
        (lambda: force_pattern(0, 0, torch.ones(3)), ValueError, r"of shape \[..., T, T\]"),
        (lambda: force_pattern(0, 0, torch.eye(3).long()), TypeError, "floating-point"),
        (lambda: force_pattern(0, 0, torch.full((2, 2), torch.nan).tril()), ValueError, "sum to 1"),
    ],
)
def test_arguments_of_clamps_and_recipes(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    "clamps",
    [
        [prev_token(1, [0, 2]), induction_pattern(1, [2])],
        [prev_token(1, [0]), match_pattern(1)],
        [block_prev_token(1), prev_token(1, [0])],
        [block_prev_token(1, [3]), induction_pattern(1, [3])],
        [block_prev_token(0, [0]), force_pattern(0, [0], torch.eye(5))],
        [prev_token("blocks.*", [0]), induction_pattern(1, [0])],
        [silence_non_labels(1, [0]), match_pattern(1, [0])],
    ],
)
def test_clamps_that_contradict_each_other(clamps):
    with pytest.raises(ValueError, match="clamps conflict on heads"):
        ClampSet(clamps)
    ClampSet([prev_token(0, [0]), induction_pattern(1, [0]), prev_token(1, [1])])


@pytest.mark.parametrize(
    ("clamp", "error", "says"),
    [
        (
            Clamp("blocks.0.v", 0.0, lambda context, value: torch.ones(1)),
            TypeError,
            "must be a boolean tensor",
        ),
        (Clamp("blocks.0.v", 0.0, lambda context, value: [True]), TypeError, "boolean tensor, got list"),
        (
            Clamp("blocks.0.v", lambda context, value: [0.0]),
            TypeError,
            "source .* must return a tensor, got list",
        ),
        (
            Clamp("blocks.0.v", Earlier("blocks.0.q", lambda context, found, value: 0.0)),
            TypeError,
            "source .* must return a tensor, got float",
        ),
    ],
)
def test_what_functions_must_return(clamp, error, says):
    with pytest.raises(error, match=says):
        run(MODEL, BATCH, clamp)


def test_integers_are_not_rounded_towards_a_source():
    model = nn.Sequential(nn.Identity(), nn.Embedding(4, 2))
    instrument(model, {"ids": "0"})
    ids = torch.tensor([0, 1])
    for source in (1.7, torch.tensor(1.7)):
        with pytest.raises(ValueError, match=r"source .* must be of integers"):
            run(model, ids, Clamp("ids", source))
    assert torch.equal(run(model, ids, Clamp("ids", 3))[0], model[1](torch.tensor([3, 3])))


def test_silenced_scores_never_look_ahead():
    clamps = silence_non_labels(1, [0], query_position=0)
    _, acts = run(MODEL, BATCH, clamps, record=["blocks.1.attn_scores"])
    assert acts["blocks.1.attn_scores"][:, 0, 0].tolist() == [[1, 0, 0, 0, 0]] * 3


def test_arrays_and_lists_are_labels_too():
    name = "blocks.1.attn_scores"
    wanted = run(MODEL, BATCH, induction_pattern(1, [0]), record=[name])[1][name]
    for labels in (BATCH.y.tolist(), BATCH.y.numpy()):
        found = run(MODEL, BATCH, induction_pattern(1, [0], labels=labels), record=[name])[1][name]
        assert torch.equal(found, wanted)
    assert torch.equal(context_positions(BATCH.y.tolist())[0], context_positions(BATCH.y)[0])
    assert induction_strength(wanted, [1, 1, 1], [3, 3, 3]).shape == (4,)
    assert sequence_induction_score(PATTERNS, [[1, 2, 1, 2, 1]] * 2).shape == (3,)
    assert in_context_loss(torch.zeros(3, 5), BATCH.y.tolist()).item() == pytest.approx(0.6931, abs=1e-4)


def test_a_state_of_other_classes_is_refused():
    def made(*splits, **options):
        return FewShotSampler(torch.rand(6, 3, 4), splits, 3, (2, 1), **options)

    state = made(range(3), range(3, 6)).state_dict()
    made(range(3), range(3, 6)).load_state_dict(state)
    for other in (
        made(range(2), range(3, 6)),
        made(range(3), range(3, 5)),
        made(range(3), range(3, 6), exemplar_split=(2, 1)),
        made(range(3), range(3, 6), context_pairs=4, burstiness=2),
    ):
        with pytest.raises(ValueError, match="state must be of a sampler with the same"):
            other.load_state_dict(state)


def test_the_head_table_sees_hooks_and_wants_a_score_for_each_sequence():
    model = small_model()
    with pytest.raises(ValueError, match="score must return one number for each sequence"):
        head_ablation_table(model, BATCH, 1, score=lambda output, batch: output.mean())
    model.blocks[0].register_forward_hook(lambda module, inputs, output: output)
    hooked = head_ablation_table(model, BATCH, 1, score=lambda output, batch: output[:, -1, 0])
    wanted = head_ablation_table(MODEL, BATCH, 1, score=lambda output, batch: output[:, -1, 0])
    torch.testing.assert_close(hooked.only, wanted.only)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: 0 * output)
    silent = head_ablation_table(model, BATCH, 1, score=lambda output, batch: output[:, -1, 0])
    torch.testing.assert_close(silent.only, silent.full + torch.zeros(4).double())


def test_sources_that_were_never_produced():
    with pytest.raises(RuntimeError, match=r"'blocks.0.v' reads 'blocks.1.out', which was never produced"):
        run(MODEL, BATCH, Clamp("blocks.0.v", Earlier("blocks.1.out")))
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "spare": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)
    instrument(model, {"used": "used", "spare": "spare"})
    with pytest.raises(RuntimeError, match=r"\['spare'\] were never produced"):
        run(model, torch.ones(1, 2), Clamp("used", FromPass("spare")))
    with pytest.raises(RuntimeError, match=r"clamps on \['spare'\] had no effect"):
        run(model, torch.ones(1, 2), Clamp("spare", 0.0))
    with pytest.raises(RuntimeError, match=r"\['spare'\] were never produced"):
        run(model, torch.ones(1, 2), record=["spare"])
    with pytest.raises(RuntimeError, match="had no effect"), clamped(model, Clamp("spare", 0.0)):
        model(torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"source .* must return a tensor, got NoneType"):
        run(MODEL, BATCH, Clamp("blocks.0.v", lambda context, value: None))


def test_a_module_that_is_called_twice_has_no_one_value():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared, nn.Linear(2, 1))
    instrument(model, {"shared": "0", "last": "2"})
    with pytest.raises(RuntimeError, match=r"\['shared'\] were produced more than once"):
        run(model, torch.ones(1, 2), Clamp("last", FromPass("shared", transform=lambda c, a, v: a[:, :1])))


def test_what_two_passes_cannot_share():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    instrument(model, {"first": "0", "last": "2"})
    clamp = Clamp("first", FromPass("last"))
    with pytest.raises(ValueError, match=r"must not drop out .* '1' has p = 0.5"):
        run(model, torch.ones(1, 2), clamp)
    run(model.eval(), torch.ones(1, 2), clamp)
    model.train()[0].gradient_checkpointing = True
    with pytest.raises(ValueError, match="must not checkpoint gradients"):
        run(model, torch.ones(1, 2), Clamp("first", 0.0))
    with pytest.raises(ValueError, match="must not checkpoint"), clamped(model, Clamp("first", 0.0)):
        pass


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: run(nn.Linear(2, 2), torch.ones(1, 2)), ValueError, "model has no named activations"),
        (lambda: sites_of("model"), TypeError, "model must be a torch.nn.Module"),
        (lambda: sites_of(nn.DataParallel(small_model())), ValueError, "must not be a DataParallel"),
        (lambda: instrument(nn.Linear(2, 2), {}), ValueError, "name_map must name at least one"),
        (
            lambda: instrument(nn.Sequential(nn.ReLU()), {"a": "1"}),
            ValueError,
            r"name_map\['a'\] must be the path",
        ),
        (lambda: instrument(nn.Sequential(nn.ReLU()), {"a": "0:out"}), ValueError, r"name_map\['a'\]"),
        (lambda: instrument(3, {"a": "0"}), TypeError, "model must be a torch.nn.Module"),
        (
            lambda: instrument(small_model(), {"a": "blocks.0"}),
            ValueError,
            "must not name its activations itself",
        ),
        (lambda: induction_strength(PATTERNS, [1, 9], [3, 3]), ValueError, "correct_pos must be from 0 to 4"),
        (lambda: induction_strength(PATTERNS, [1, 1], [3, 3], 5), ValueError, "query_pos must be below 5"),
        (lambda: instrument_hf(nn.ReLU()), TypeError, "model must be a PreTrainedModel"),
        (lambda: ClampableAttention(8, 3), ValueError, "heads must divide dim = 8, got 3"),
        (lambda: ClampableAttention(6, 2), ValueError, "must be even for rotary"),
        (
            lambda: ClampableAttention(8, 2)(torch.ones(1, 3, 8), torch.ones(1, 3)),
            ValueError,
            "key_mask must be",
        ),
        (lambda: FewShotTransformer(4, 1), ValueError, "num_labels must be at least 2"),
        (lambda: MODEL(BATCH.x, BATCH.y[:, :1]), ValueError, r"x must be \[B, n \+ 1, F\]"),
        (lambda: head_ablation_table(MODEL, BATCH, 2), ValueError, "unknown activation name"),
        (lambda: head_ablation_table(MODEL, BATCH, 0, chunk=0), ValueError, "chunk must be at least 1"),
        (lambda: context_positions(torch.zeros(2, 2)), ValueError, "at least two labels in context"),
        (lambda: induction_strength(PATTERNS[0], None, None), ValueError, "attn must have shape"),
        (lambda: induction_strength([1], None, None), TypeError, "attn must be a tensor"),
        (
            lambda: induction_strength(PATTERNS, torch.ones(3).long(), torch.ones(2).long()),
            ValueError,
            "correct_pos must be integers",
        ),
        (
            lambda: induction_strength(PATTERNS, torch.ones(2).long(), torch.ones(2)),
            ValueError,
            "wrong_pos must be integers",
        ),
        (lambda: prev_token_score(PATTERNS, [0]), ValueError, "positions must be integers from 1 to 4"),
        (lambda: prev_token_score(PATTERNS[..., :1, :1]), ValueError, "positions must be integers from"),
        (lambda: sequence_induction_score(PATTERNS, torch.ones(2, 4)), ValueError, "tokens must be"),
        (
            lambda: sequence_induction_score(PATTERNS, torch.arange(10).view(2, 5)),
            ValueError,
            "must hold a token that stood before",
        ),
        (lambda: in_context_loss(torch.ones(2, 5), torch.ones(2, 2)), ValueError, "logits must be"),
        (
            lambda: in_context_loss(torch.ones(1, 5), torch.tensor([[1, 9, 9]])),
            ValueError,
            "y must be from 0 to 4",
        ),
        (lambda: in_context_loss(torch.ones(1, 5), torch.tensor([[1, 2, 3]])), ValueError, "query's label"),
        (
            lambda: in_context_loss(torch.ones(1, 5), torch.tensor([[1, 2, 2]]), "max"),
            ValueError,
            "reduction must be",
        ),
        (lambda: time_to_threshold([1.0], [1, 2]), ValueError, "times must be as many"),
        (lambda: tensor_toy((2, 2)), ValueError, "dims must be three"),
        (lambda: tensor_toy((2, 2, 0)), ValueError, r"dims\[2\] must be at least 1"),
        (lambda: tensor_toy(clamp="bd"), ValueError, r"clamp must be of a, b and c, got \['d'\]"),
        (lambda: tensor_toy((2, 2, 2), {"a": 3}), ValueError, r"clamp\['a'\] must be at most 2"),
        (lambda: tensor_toy(lr=1e6, steps=200, generator=seeded()), ValueError, "lr must be small enough"),
    ],
)
def test_bad_arguments_elsewhere(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"features": FEATURES[0]}, "features must be"),
        ({"class_split": (range(4), range(3, 6))}, r"class_split must not share classes .* \[3\]"),
        ({"class_split": (range(7), [])}, "class_split must be below the 6 classes"),
        ({"class_split": (range(4),)}, "class_split must hold training and held-out"),
        ({"n_labels": 1}, "n_labels must be at least 2"),
        ({"label_split": (8, 3)}, "label_split must be two .* sum to 10 for 5 labels"),
        ({"label_split": (0, 10)}, "the first not 0"),
        ({"context_pairs": 3}, "context_pairs must be twice burstiness"),
        ({"exemplar_split": (2, 1)}, "exemplar_split must sum to at most 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments_of_the_sampler(changed, says):
    given = {
        "features": FEATURES,
        "class_split": (range(4), range(4, 6)),
        "n_labels": 5,
        "label_split": (8, 2),
    }
    FewShotSampler(**given)
    with pytest.raises(ValueError, match=says):
        FewShotSampler(**{**given, **changed})


def test_bad_calls_of_the_sampler():
    data = FewShotSampler(FEATURES, (range(6), []), 3, (3, 0), exemplar_split=(2, 0))
    with pytest.raises(TypeError, match="features must be a floating-point tensor"):
        FewShotSampler(FEATURES.long(), (range(6), []), 3, (3, 0))
    for changed, says in (
        ({"classes": "test"}, "classes must be one of"),
        ({"classes": "held-out"}, "classes = 'held-out' needs at least 2, has 0"),
        ({"labels": "held-out"}, "labels = 'held-out' needs at least 1"),
        ({"exemplars": "held-out"}, "exemplars = 'held-out' has none"),
        ({"exemplars": "all"}, "exemplars must be one of"),
    ):
        with pytest.raises(ValueError, match=says):
            data.batch(2, **changed)
    with pytest.raises(ValueError, match="same split of labels"):
        data.load_state_dict(sampler().state_dict())
    with pytest.raises(ValueError, match="must hold a generator exactly if"):
        data.load_state_dict({**data.state_dict(), "generator": seeded().get_state()})


def test_labels_that_nobody_gave():
    with pytest.raises(ValueError, match="labels must be given, or be in the context as 'y' or 'labels'"):
        run(MODEL, BATCH, induction_pattern(1, [0]), context={"tokens": BATCH.x})
    found, _ = run(MODEL, BATCH, induction_pattern(1, [0], labels=BATCH.y), context={})
    named, _ = run(MODEL, {"x": BATCH.x, "y": BATCH.y}, induction_pattern(1, [0]))
    made, _ = run(MODEL, BATCH, induction_pattern(1, [0], labels=lambda context: context[1]))
    for other in (named, made):
        assert torch.equal(found, other)


def test_maps_of_a_fused_kernel_are_explained():
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    instrument(layer, {"attention": "self_attn"})
    with pytest.raises(ValueError, match=r"maps live inside a fused kernel: use instrument_hf"):
        run(layer, torch.ones(1, 3, 8), Clamp("attn_scores", 0.0))


def test_every_public_name_exists():
    assert all(hasattr(inductionclamp, name) for name in inductionclamp.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", inductionclamp.__version__)
