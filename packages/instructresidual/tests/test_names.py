"""Tied weights, grown vocabularies and other names: each is named in the report, and what is not clear is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from instructresidual import Residual, VocabularyRows, applied, apply_residual, diagnose, group_of, residual

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


class Tied(nn.Module):
    """Somebody's own language model that ties its head."""

    def __init__(self, tensors, tied=True):
        super().__init__()
        vocabulary, width = tensors[EMBED].shape
        self.model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(vocabulary, width), "norm": nn.LayerNorm(width)}
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        with torch.no_grad():
            self.model["embed_tokens"].weight.copy_(tensors[EMBED])
            self.lm_head.weight.copy_(tensors.get(HEAD, tensors[EMBED]))
        if tied:
            self.lm_head.weight = self.model["embed_tokens"].weight

    def forward(self, ids):
        return self.lm_head(self.model["norm"](self.model["embed_tokens"](ids)))


# --- ties ------------------------------------------------------------------------------------------


def test_a_tied_module_gets_the_residual_once_and_stays_tied(weights):
    base = weights(0)
    models = [Tied(base), Tied(weights(1, of=base)), Tied(weights(2, of=base))]
    found = residual(models[0], models[1])
    assert HEAD not in found
    assert found.ties == {HEAD: EMBED}
    before = models[2].lm_head.weight.detach().clone()
    report = apply_residual(models[2], found)
    assert report.tied == {HEAD: EMBED}
    assert EMBED in report.applied
    torch.testing.assert_close(models[2].lm_head.weight, before + found[EMBED], rtol=0, atol=0)
    assert models[2].lm_head.weight is models[2].model["embed_tokens"].weight
    with applied(models[2], found):
        assert torch.equal(models[2].lm_head.weight, models[2].model["embed_tokens"].weight)


def test_aliases_in_a_state_dict_count_once(weights):
    base = weights(0)
    models = [Tied(base), Tied(weights(1, of=base))]
    target = Tied(weights(2, of=base))
    by_module, by_state = residual(*models), residual(*(model.state_dict() for model in models))
    assert by_state.ties == by_module.ties == {HEAD: EMBED}
    expected = target.lm_head.weight.detach() + by_module[EMBED]
    apply_residual(target.state_dict(), by_state)
    torch.testing.assert_close(target.lm_head.weight, expected, rtol=0, atol=0)


@pytest.mark.parametrize("as_module", [True, False])
def test_a_head_that_only_instruct_unties_needs_a_word(weights, checkpoint, tmp_path, as_module):
    base, instruct = weights(0, head=False), weights(1)
    if as_module:
        sides = Tied(base), Tied(instruct, tied=False)
    else:
        config = {"tie_word_embeddings": True}
        sides = (
            checkpoint(tmp_path / "base", base, config=config),
            checkpoint(tmp_path / "instruct", instruct),
        )
    with pytest.raises(
        ValueError, match=r"base ties 'lm_head.weight' to 'model.embed_tokens.weight', instruct does"
    ):
        residual(*sides)
    embed, both = residual(*sides, tie="embed"), residual(*sides, tie="sum")
    assert embed.ties == both.ties == {HEAD: EMBED}
    difference = instruct[EMBED] - base[EMBED]
    torch.testing.assert_close(embed[EMBED], difference, rtol=0, atol=0)
    torch.testing.assert_close(both[EMBED], difference + (instruct[HEAD] - base[EMBED]), rtol=0, atol=1e-6)


def test_a_tied_target_of_an_untied_residual_needs_a_word(weights):
    base, instruct = weights(0), weights(1)
    found = residual(base, instruct).filter(["embed", "head"])
    target = Tied(base)
    start = target.lm_head.weight.detach().clone()
    with pytest.raises(ValueError, match=r"the target ties 'lm_head.weight' to 'model.embed_tokens.weight'"):
        apply_residual(target, found, strict=False)
    with applied(target, found, tie="embed", strict=False):
        torch.testing.assert_close(target.lm_head.weight, start + found[EMBED], rtol=0, atol=0)
    report = apply_residual(target, found, tie="sum", strict=False, scale={"embed": 2.0, "head": 0.5})
    torch.testing.assert_close(target.lm_head.weight, start + (2 * found[EMBED] + 0.5 * found[HEAD]))
    assert report.tied == {HEAD: EMBED}


def test_an_untied_target_of_a_tied_residual_needs_a_word(weights):
    base = weights(0, head=False)
    found = residual(Tied(base), Tied(weights(1, head=False, of=base)))
    target = Tied(weights(2), tied=False)
    before = copies(target.state_dict())
    with pytest.raises(ValueError, match="which its base ties, the target not: pass tie='both'"):
        apply_residual(target, found, force=True)
    apply_residual(target, found, tie="both", force=True)
    for name in (EMBED, HEAD):
        torch.testing.assert_close(target.state_dict()[name], before[name] + found[EMBED], rtol=0, atol=0)


def test_a_head_written_out_though_tied_stays_equal_to_the_embedding(weights, checkpoint, tmp_path):
    base, folders = weights(0, head=False), []
    for seed, side in enumerate(("base", "instruct", "target")):
        tensors = weights(seed, head=False, of=base if seed else None)
        twice = {**tensors, HEAD: tensors[EMBED].clone()}
        folders.append(checkpoint(tmp_path / side, twice, config={"tie_word_embeddings": True}))
    found = residual(*folders[:2])
    assert found.ties == {HEAD: EMBED}
    apply_residual(folders[2], found, out=tmp_path / "out")
    written, before = (
        load_file(tmp_path / "out/model.safetensors"),
        load_file(folders[2] / "model.safetensors"),
    )
    assert torch.equal(written[HEAD], written[EMBED])
    assert torch.equal(written[EMBED], before[EMBED] + found[EMBED])


def test_a_head_that_is_not_there_is_tied_only_if_the_configuration_says_so(weights, checkpoint, tmp_path):
    base, instruct = weights(0), weights(1, head=False)
    apart = checkpoint(tmp_path / "apart", instruct, config={"tie_word_embeddings": False})
    tied = checkpoint(tmp_path / "tied", instruct, config={"model_type": "gemma"})  # true is not written out
    with pytest.raises(ValueError, match=r"instruct lacks 'lm_head.weight'"):
        residual(base, apart)
    assert torch.equal(residual(base, tied)[HEAD], instruct[EMBED] - base[HEAD])


# --- vocabularies ----------------------------------------------------------------------------------


def grown(weights, more=3):
    base = weights(0)
    instruct = weights(1, of=base, vocabulary=12 + more)
    return base, instruct, residual(base, instruct)


def test_rows_new_in_instruct_are_copied_into_a_checkpoint(weights, checkpoint, tmp_path):
    base, instruct, found = grown(weights)
    target = weights(2, of=base)
    config = {"vocab_size": 12, "text_config": {"vocab_size": 12}, "model_type": "llama"}
    folder = checkpoint(tmp_path / "target", target, config=config)
    report = apply_residual(folder, found, out=tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    for name in (EMBED, HEAD):
        assert report.vocabulary[name] == VocabularyRows(common=12, copied=3, untouched=0, size=15)
        assert torch.equal(written[name][:12], target[name] + found[name])
        assert torch.equal(written[name][12:], instruct[name][12:])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["vocab_size"], config["text_config"]["vocab_size"]) == (15, 15)
    held = residual(base, instruct, out=tmp_path / "residual")
    assert torch.equal(held.added[EMBED], instruct[EMBED][12:])


def test_rows_new_in_the_target_get_nothing(weights):
    base = weights(0)
    found = residual(base, weights(1, of=base))
    target = weights(2, of=base, vocabulary=14)
    before = copies(target)
    report = apply_residual(target, found)
    assert report.vocabulary[EMBED] == VocabularyRows(common=12, copied=0, untouched=2, size=14)
    assert torch.equal(target[EMBED][12:], before[EMBED][12:])
    assert torch.equal(target[EMBED][:12], before[EMBED][:12] + found[EMBED])
    assert torch.equal(target[HEAD][:12], before[HEAD][:12] + found[HEAD])


def test_rows_of_both_sides_are_not_mixed_up(weights):
    base, instruct, found = grown(weights)
    with pytest.raises(
        ValueError, match=r"has 2 rows more .* the instruct model has 3 of its own: pass tokenizers"
    ):
        apply_residual(weights(2, of=base, vocabulary=14), found)
    theirs = weights(2, of=base, vocabulary=14)
    before = copies(theirs)
    report = apply_residual(theirs, found, vocabulary="target")
    assert torch.equal(theirs[EMBED][12:], before[EMBED][12:])
    assert report.vocabulary[EMBED].copied == 0
    resized = weights(2, of=base, vocabulary=16)
    before = copies(resized)
    apply_residual(resized, found, vocabulary="instruct")
    assert torch.equal(resized[HEAD][12:15], instruct[HEAD][12:])
    assert torch.equal(resized[HEAD][15:], before[HEAD][15:])


def test_a_module_does_not_grow_in_place(weights):
    base, _, found = grown(weights)
    target = weights(2, of=base)
    before = copies(target)
    with pytest.raises(ValueError, match=r"would need 15, .* call resize_token_embeddings\(15\) first"):
        apply_residual(target, found)
    assert all(torch.equal(target[name], before[name]) for name in before)
    apply_residual(target, found, vocabulary="target")
    assert torch.equal(target[EMBED], before[EMBED] + found[EMBED])


def test_embedding_and_head_grow_together(weights, checkpoint, tmp_path):
    base, _, found = grown(weights)
    folder = checkpoint(tmp_path / "target", base)
    for options in ({"scale": {"head": 0.0}}, {"residual": found.filter(exclude="head")}):
        arguments = {"residual": found, **options}
        with pytest.raises(ValueError, match=r"would get 15 rows, 'lm_head.weight' would not"):
            apply_residual(folder, out=tmp_path / "out", **arguments)


def test_fewer_rows_than_the_base_need_tokens(weights):
    base = weights(0)
    found = residual(base, weights(1, of=base))
    with pytest.raises(ValueError, match=r"has 10 rows, the residual's base 12: pass tokenizers"):
        apply_residual(weights(2, vocabulary=10), found, force=True)
    smaller = residual(base, weights(1, of=base, vocabulary=10))
    assert torch.equal(smaller[EMBED][10:], torch.zeros(2, 6))
    assert smaller[EMBED][:10].abs().min() > 0


def test_tokens_of_the_instruct_model_need_the_targets_tokenizer(weights):
    base, instruct = weights(0), weights(1, vocabulary=13)
    ours = {str(index): index for index in range(12)}
    found = residual(base, instruct, tokenizers=(ours, {**ours, "<chat>": 12}))
    assert found.tokens.added == ("<chat>",)
    with pytest.raises(
        ValueError, match=r"brings tokens of its own \('<chat>'\): pass the target's tokenizer"
    ):
        apply_residual(copies(base), found)
    apply_residual(copies(base), found, vocabulary="target")


def test_shapes_that_no_vocabulary_explains_are_refused(weights):
    base, name = weights(0), "model.layers.0.mlp.up_proj.weight"
    other = {**weights(1), name: torch.zeros(10, 6)}
    message = re.escape(f"{name} is of shape [9, 6] in base and [[10, 6]] in instruct")
    with pytest.raises(ValueError, match=message):
        residual(base, other)
    with pytest.raises(ValueError, match=re.escape(f"{name} is of shape [10, 6] in the target and [9, 6]")):
        apply_residual(other, residual(base, base))
    positions = {"wpe.weight": torch.zeros(4, 2)}, {"wpe.weight": torch.zeros(6, 2)}
    with pytest.raises(ValueError, match="which rows of a vocabulary do not explain"):
        residual(*positions)


# --- names -----------------------------------------------------------------------------------------


def test_marks_of_wrappers_are_taken_off_and_named(weights):
    base = weights(0)
    found = residual(
        base, {f"module._orig_mod.{name}": tensor for name, tensor in weights(1, of=base).items()}
    )
    target = {f"_orig_mod.{name}": tensor for name, tensor in weights(2, of=base).items()}
    before = target[f"_orig_mod.{EMBED}"].clone()
    report = apply_residual(target, found)
    assert torch.equal(target[f"_orig_mod.{EMBED}"], before + found[EMBED])
    assert report.renamed[f"_orig_mod.{EMBED}"] == EMBED
    model = Tied(base)
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": model})})
    assert residual(wrapped, model).keys() == residual(model, model).keys()
    assert residual(wrapped, model).ties == {HEAD: EMBED}


def test_other_names_are_told_and_not_guessed(weights):
    base = weights(0)
    found = residual(base, weights(1, of=base))
    target = {f"backbone.{name}": tensor for name, tensor in weights(2, of=base).items()}
    with pytest.raises(ValueError, match=r"they would agree but for the prefix 'backbone\.': pass rename="):
        apply_residual(target, found)
    before = copies(target)
    report = apply_residual(target, found, rename=lambda name: f"backbone.{name}")
    assert torch.equal(target[f"backbone.{HEAD}"], before[f"backbone.{HEAD}"] + found[HEAD])
    assert report.renamed[HEAD] == f"backbone.{HEAD}"
    bare = {name.removeprefix("backbone."): tensor for name, tensor in before.items()}
    with pytest.raises(ValueError, match=r"they would agree but for the prefix 'backbone\.'"):
        residual(bare, before)
    again = residual(bare, target, rename={name: name.removeprefix("backbone.") for name in target})
    torch.testing.assert_close(again[HEAD], found[HEAD])
    assert again.renamed[f"backbone.{HEAD}"] == HEAD
    assert diagnose(target, found, rename=lambda name: f"backbone.{name}").verdict == "ok"


def test_missing_and_extra_names_are_listed(weights):
    base = weights(0)
    instruct = weights(1, of=base)
    del instruct["model.norm.weight"]
    instruct["extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"instruct lacks 'model.norm.weight'; base lacks 'extra.weight'"):
        residual(base, instruct)
    found = residual(base, instruct, strict=False)
    assert "model.norm.weight" not in found
    target = {**weights(2, of=base), "more.weight": torch.zeros(1)}
    del target[HEAD]
    with pytest.raises(
        ValueError, match=r"the target lacks 'lm_head.weight'; the residual's base lacks 'more.weight'"
    ):
        apply_residual(target, found)
    report = apply_residual(target, found, strict=False)
    assert report.unused == (HEAD,)
    assert set(report.untouched) == {"more.weight", "model.norm.weight"}


def test_filters_and_scales_by_group(weights):
    base = weights(0)
    instruct = weights(1, of=base)
    found = residual(base, instruct, exclude=["norm", r"^lm_"])
    assert list(found) == [
        EMBED,
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ]
    assert list(residual(base, instruct, include="attn")) == ["model.layers.0.self_attn.q_proj.weight"]
    both = found.filter("attn") + found.filter("mlp")
    assert set(both) == {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"}
    target, plain = copies(base), copies(base)
    report = apply_residual(target, found, scale={"attn": 0.5, "embed": 0.0, r"up_proj": 2.0})
    apply_residual(plain, found)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(target[name] - base[name], 0.5 * found[name])
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(target[name], base[name] + 2 * found[name])
    assert torch.equal(target[EMBED], base[EMBED])
    assert EMBED in report.untouched
    assert torch.equal(target[HEAD], base[HEAD])


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("transformer.wte.weight", "embed"),
        ("transformer.h.0.attn.c_attn.weight", "attn"),
        ("transformer.h.0.mlp.c_fc.bias", "mlp"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("gpt_neox.layers.0.attention.dense.weight", "attn"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "mlp"),
        ("embed_out.weight", "head"),
        ("gpt_neox.embed_in.weight", "embed"),
        ("model.layers.1.self_attn.q_norm.weight", "norm"),
        ("model.layers.1.block_sparse_moe.gate.weight", "router"),
        ("model.layers.1.mlp.experts.gate_up_proj", "mlp"),
        ("model.layers.1.mlp.shared_expert_gate.weight", "router"),
        ("model.layers.1.mlp.gate_proj.weight", "mlp"),
        ("lm_head.weight", "head"),
        ("output.weight", "head"),
        ("tok_embeddings.weight", "embed"),
        ("layers.0.feed_forward.w1.weight", "mlp"),
        ("layers.0.qkv_proj", "attn"),
        ("layers.0.down_proj", "mlp"),
        ("lm_head", "head"),
        ("0.weight", "other"),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


def test_buffers_and_integers_are_left_alone_and_named(weights, checkpoint, tmp_path):
    extras = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "encoder.norm.running_mean": torch.zeros(4),
        "encoder.norm.running_var": torch.ones(4),
        "steps": torch.tensor([3]),
    }
    base = weights(0)
    sides = [{**base, **extras}, {**weights(1, of=base), **{name: t + 1 for name, t in extras.items()}}]
    found = residual(*sides)
    assert set(found) == set(base)
    assert found.skipped == tuple(sorted(extras))
    folder = checkpoint(tmp_path / "target", sides[0])
    apply_residual(folder, found, out=tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in extras.items():
        assert torch.equal(written[name], tensor)


def test_a_residual_remembers_what_it_was_told(weights, tmp_path):
    base = weights(0)
    ours = {str(index): index for index in range(12)}
    instruct = {f"x.{name}": tensor for name, tensor in weights(1, of=base, vocabulary=13).items()}
    found = residual(
        {**base, "steps": torch.tensor([1])},
        instruct,
        tokenizers=(ours, {**ours, "<chat>": 12}),
        rename=lambda name: name[2:],
    )
    found.save(tmp_path / "r", max_shard_bytes=100)
    again = Residual.load(tmp_path / "r")
    assert again.ancestor.fingerprint == found.ancestor.fingerprint
    assert again.tokens == found.tokens
    assert (again.skipped, again.ties, again.renamed) == (("steps",), {}, found.renamed)
    assert torch.equal(again.added[HEAD], instruct[f"x.{HEAD}"][12:])
    assert list(again) == list(found)
    assert repr(again) == repr(found)
