"""Every bad input raises an error that names the argument, what it was and what it must be."""

import builtins
import importlib.util

import pytest
import torch

from tulu3 import (
    Decontaminator,
    EmbeddingDecontaminator,
    EvalScheme,
    Gsm8kVerifier,
    MathVerifier,
    ReferenceCache,
    as_trl_reward,
    assistant_mask,
    binarise,
    concatenate_pairs,
    gae,
    kl_penalty,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    preference_loss,
    render_chat,
    replace_unfinished_scores,
    rlvr_rewards,
    rollout_masks,
    sequence_logps,
    sft_loss,
    token_logps,
)

ONE, TWO = torch.zeros(2), torch.zeros(3)
FLAT, MASK = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
LOGITS, LABELS = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.long)
NONE = torch.full((2, 3), -100)
FAST = type("Fast", (), {"is_fast": True, "eos_token": None, "chat_template": None})()
SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def scheme(**changes):
    given = {"dev": {"x": float}, "unseen": {"u": float}, "skills": {}} | changes
    return EvalScheme(**given)


CASES = {
    "logits shape": (lambda: token_logps(LOGITS[0], LABELS), r"labels must be \(B, T\)"),
    "labels shape": (lambda: token_logps(LOGITS, LABELS[:, :2]), r"labels must be \(B, T\) .* got \(2, 2\)"),
    "one position": (lambda: token_logps(LOGITS[:, :1], LABELS[:, :1]), "at least 2 positions, got 1"),
    "label too large": (lambda: token_logps(LOGITS, LABELS * 4), r"-100 or in 0..3, got 4"),
    "label negative": (lambda: token_logps(LOGITS, -LABELS), r"-100 or in 0..3, got -1"),
    "temperature": (lambda: token_logps(LOGITS, LABELS, temperature=0.0), "temperature must be positive"),
    "no response": (lambda: sequence_logps(LOGITS, NONE), r"response token .* rows \[0, 1\]"),
    "only the first": (lambda: sequence_logps(LOGITS, torch.tensor([[1, -100, -100]] * 2)), r"rows \[0, 1\]"),
    "nothing supervised": (lambda: sft_loss(LOGITS, NONE), "labels must supervise"),
    "items": (lambda: sft_loss(LOGITS, LABELS, 0), "num_items_in_batch must be positive, got 0"),
    "no assistant": (lambda: assistant_mask(SAID[:1], FAST), r"assistant turn, got roles \['user'\]"),
    "assistant first": (lambda: assistant_mask(SAID[1:], FAST), "turn before the first assistant turn"),
    "no end token": (lambda: assistant_mask(SAID, FAST), "tokenizer must have an eos_token"),
    "no role": (lambda: render_chat([{"content": "a"}], "</s>"), r"messages\[0\] must have a 'role'"),
    "no text": (
        lambda: render_chat([{"role": "user", "content": None}], "</s>"),
        r"messages\[0\]\['content'\] must be text",
    ),
    "kind": (lambda: preference_loss(ONE, ONE, ONE, ONE, kind="ppo"), "kind must be one of .* got 'ppo'"),
    "beta": (
        lambda: preference_loss(ONE, ONE, ONE, ONE, beta=0.0),
        "beta must be positive and finite, got 0.0",
    ),
    "beta NaN": (lambda: preference_loss(ONE, ONE, ONE, ONE, beta=float("nan")), "beta must be positive"),
    "smoothing": (
        lambda: preference_loss(ONE, ONE, ONE, ONE, label_smoothing=0.5),
        r"label_smoothing must lie in \[0, .5\)",
    ),
    "reduction": (lambda: preference_loss(ONE, ONE, ONE, ONE, reduction="sum"), "reduction must be one of"),
    "shapes": (lambda: preference_loss(ONE, ONE, ONE, TWO), "must have the same shape"),
    "rank": (lambda: preference_loss(FLAT, FLAT, FLAT, FLAT), r"policy_chosen must be \(B,\)"),
    "NaN": (lambda: preference_loss(ONE, ONE, ONE / 0, ONE), "reference_chosen must be finite, got 2 NaN"),
    "no reference": (
        lambda: preference_loss(ONE, ONE),
        "reference_chosen and reference_rejected must be given",
    ),
    "simpo": (lambda: preference_loss(ONE, ONE, ONE, ONE, kind="simpo"), "SimPO has no reference"),
    "wpo": (lambda: preference_loss(ONE, ONE, ONE, ONE, kind="wpo"), "lengths must be given for 'wpo'"),
    "wpo empty": (
        lambda: preference_loss(ONE, ONE, ONE, ONE, kind="wpo", lengths=(ONE, ONE)),
        "lengths must be two positive",
    ),
    "one completion": (lambda: binarise(torch.ones(3, 1, 4)), r"ratings must be \(..., M >= 2"),
    "rating NaN": (lambda: binarise(torch.full((2, 4), float("nan"))), "ratings must be finite"),
    "keys": (lambda: concatenate_pairs({"a": FLAT}, {"b": FLAT}, pad_id=0), r"keys \['a'\], got \['b'\]"),
    "rows": (
        lambda: concatenate_pairs({"a": FLAT}, {"a": FLAT[:1]}, pad_id=0),
        r"rejected\['a'\] must have 2 rows, got 1",
    ),
    "cache size": (lambda: ReferenceCache(0, average=True), "num_examples must be at least 1"),
    "cache index": (
        lambda: ReferenceCache(2, average=True).get(torch.tensor([2])),
        r"index must lie in 0..1, got 2..2",
    ),
    "cache float": (lambda: ReferenceCache(2, average=True).get(ONE), r"index must be \(B,\) integers"),
    "cache empty": (lambda: ReferenceCache(2, average=True).get(torch.tensor([1])), r"put before, got \[1\]"),
    "cache rows": (
        lambda: ReferenceCache(2, average=True).put(torch.tensor([1]), ONE, ONE),
        r"shape \(2,\), got \(1,\)",
    ),
    "no stop": (lambda: rollout_masks(LABELS, [], 0), "stop_id must name at least one token"),
    "responses": (lambda: rollout_masks(LABELS[0], 2, 0), r"responses must be \(B, T >= 1\)"),
    "pad": (lambda: rollout_masks(LABELS, 2, -1), "pad_id must be at least 0"),
    "kl": (lambda: kl_penalty(FLAT, FLAT, "kl4"), "kind must be one of .* got 'kl4'"),
    "kl beta": (lambda: rlvr_rewards(FLAT, FLAT, ONE, LABELS[:, 0], beta=-1.0), "beta must be at least 0"),
    "lengths": (lambda: rlvr_rewards(FLAT, FLAT, ONE, LABELS[:, 0] * 3), r"lengths must lie in 0..2"),
    "scores": (lambda: rlvr_rewards(FLAT, FLAT, TWO, LABELS[:, 0]), r"scores and lengths must be \(2,\)"),
    "logps NaN": (lambda: rlvr_rewards(FLAT / 0, FLAT, ONE, LABELS[:, 0]), "logps must be finite"),
    "stops": (lambda: replace_unfinished_scores(ONE, MASK[0]), r"has_stop must have shape \(2,\)"),
    "empty mask": (lambda: masked_whiten(FLAT, ~MASK), "mask must be true for at least 2 elements, got 0"),
    "mask shape": (lambda: masked_whiten(FLAT, MASK[:1]), r"mask must have shape \(2, 3\)"),
    "clip": (lambda: ppo_policy_loss(FLAT, FLAT, FLAT, MASK, clip=1.0), r"clip must lie in \(0, 1\)"),
    "policy mask": (lambda: ppo_policy_loss(FLAT, FLAT, FLAT, ~MASK), "at least 1 elements, got 0"),
    "value clip": (lambda: ppo_value_loss(FLAT, FLAT, FLAT, MASK, clip=0.0), "clip must be positive"),
    "gamma": (lambda: gae(FLAT, FLAT, MASK, gamma=1.1), r"gamma must lie in \[0, 1\], got 1.1"),
    "lam": (lambda: gae(FLAT, FLAT, MASK, lam=-0.1), r"lam must lie in \[0, 1\]"),
    "gae shapes": (lambda: gae(FLAT, FLAT[:1], MASK), "must have the same shape"),
    "gae inf": (lambda: gae(FLAT, FLAT - 1 / ONE[0], MASK), "values must be finite"),
    "n": (lambda: Decontaminator(0), "n must be at least 1, got 0"),
    "threshold": (lambda: Decontaminator(threshold=0.0), r"threshold must lie in \(0, 1\]"),
    "mode": (lambda: Decontaminator(mode="fuzzy"), "mode must be one of"),
    "not indexed": (lambda: Decontaminator().score(["a"]), "call index"),
    "no test": (lambda: Decontaminator().index(["a"]).score([]), "test must have instances"),
    "no token": (lambda: Decontaminator().index(["a"]).score(["a", "?"]), r"test\[1\] must have a token"),
    "other train": (
        lambda: Decontaminator().index(["a"]).score(["a"]).remove(["a", "b"]),
        "the 1 instances .* got 2",
    ),
    "zero vector": (lambda: EmbeddingDecontaminator(0.5).index(FLAT), "no zero vector, got one in row 0"),
    "vectors": (
        lambda: EmbeddingDecontaminator(0.5).index(torch.eye(3)).score(torch.eye(2)),
        r"test must be \(N >= 1, 3\)",
    ),
    "no unseen": (lambda: scheme(unseen={}), "dev and unseen must have evaluations"),
    "both": (lambda: scheme(unseen={"x": float}), r"share no evaluation with dev, got \['x'\]"),
    "skill": (lambda: scheme(skills={"s": (["y"], [])}), r"skills\['s'\] .* got \['y'\]"),
    "undeveloped": (lambda: scheme().final({"a": 1.0}), "checkpoint must be one of"),
    "no models": (lambda: scheme().final({}), "models must have at least one"),
    "score": (lambda: scheme().develop("a", float("nan")), "evaluation 'x' must return a finite number"),
    "registry": (lambda: as_trl_reward(["gsm9k"]), r"names of .* got \['gsm9k'\]"),
    "no verifier": (lambda: as_trl_reward({}), "verifiers must name at least one"),
    "scale": (lambda: as_trl_reward(["gsm8k"], scale=0.0), "scale must be positive"),
    "column": (
        lambda: as_trl_reward(["gsm8k"])(completions=["a"], dataset=["gsm8k"]),
        "columns must have 'ground_truth'",
    ),
    "column rows": (
        lambda: as_trl_reward(["gsm8k"])(completions=["a"], dataset=["gsm8k"], ground_truth=[]),
        "1 rows, as completions, got 0",
    ),
    "unknown": (
        lambda: as_trl_reward(["gsm8k"])(completions=["a"], dataset=["math"], ground_truth=["1"]),
        r"dataset must name .* got \['math'\]",
    ),
    "fewer verifiers": (
        lambda: as_trl_reward(["gsm8k"])(completions=["a"], dataset=[["gsm8k"]], ground_truth=[["1", "2"]]),
        r"one for each of the verifiers \['gsm8k'\]",
    ),
    "empty label": (lambda: Gsm8kVerifier()("1", " "), "label must not be empty"),
    "no label": (lambda: MathVerifier(symbolic=False)("1", None), "label must not be empty, got None"),
    "empty preferences": (
        lambda: preference_loss(*[torch.zeros(0)] * 4),
        "policy_chosen must have at least one pair",
    ),
    "gamma over beta": (
        lambda: preference_loss(ONE, ONE, kind="simpo", gamma_beta_ratio=float("nan")),
        "gamma_beta_ratio must be finite, got nan",
    ),
    "counts of wpo": (
        lambda: preference_loss(*[ONE] * 4, kind="wpo", lengths=(ONE / 0, ONE + 1)),
        "lengths must be two positive",
    ),
    "whitened NaN": (lambda: masked_whiten(FLAT / 0, MASK), "values must be finite, got 6 NaN"),
    "policy NaN": (
        lambda: ppo_policy_loss(FLAT, FLAT / 0, FLAT, MASK),
        "old_logps must be finite, got 6 NaN",
    ),
    "value NaN": (lambda: ppo_value_loss(FLAT, FLAT, FLAT / 0, MASK), "returns must be finite, got 6 NaN"),
    "label NaN": (lambda: Gsm8kVerifier()("nan", float("nan")), "label must be finite, got nan"),
    "label list": (lambda: Gsm8kVerifier()("5", ["5"]), r"label must be a number or text, got \['5'\]"),
    "score NaN": (
        lambda: as_trl_reward(lambda text, label: float("nan"))(completions=["a"], ground_truth=["a"]),
        r"scores in \[0, 1\], got nan from <lambda>",
    ),
    "timeout": (lambda: MathVerifier(symbolic=False, timeout=0), "timeout must be positive"),
}

TYPES = {
    "labels": (lambda: token_logps(LOGITS, LABELS.float()), "labels must be integers"),
    "logits": (lambda: token_logps(LABELS[:, :, None], LABELS), "logits must be floating point"),
    "outputs": (lambda: sft_loss([LOGITS], LABELS), "outputs must be logits or hold them"),
    "tokenizer": (lambda: assistant_mask(SAID, object()), "tokenizer must be a fast one"),
    "log-probabilities": (
        lambda: preference_loss(ONE.long(), ONE.long(), ONE, ONE),
        "policy_chosen must be floating point",
    ),
    "mask": (lambda: gae(FLAT, FLAT, FLAT), "mask must be boolean"),
    "ids": (lambda: rollout_masks(FLAT, 2, 0), "responses must be integers"),
    "stop": (lambda: rollout_masks(LABELS, None, 0), "stop_id must be an integer, got None"),
    "lengths": (lambda: rlvr_rewards(FLAT, FLAT, ONE, ONE), "lengths must be integers, got torch.float32"),
    "n": (lambda: Decontaminator(8.5), "n must be an integer"),
    "one text": (lambda: Decontaminator().index("a text"), "train must be a collection"),
    "one test": (lambda: Decontaminator().index(["a"]).score("a text"), "test must be a collection"),
    "test of numbers": (lambda: Decontaminator().index(["a"]).score([1]), r"test\[0\] must be a text"),
    "train of numbers": (lambda: Decontaminator().index([1]), "train must hold texts or lists of turns"),
    "prediction": (lambda: MathVerifier(symbolic=False)(None, "1"), "prediction must be text, got NoneType"),
    "verifier": (lambda: as_trl_reward({"a": 1}), r"verifiers\['a'\] must be callable"),
    "one verifier": (lambda: as_trl_reward(3), "verifiers must be a mapping, names, or a verifier"),
    "completion": (
        lambda: as_trl_reward(["gsm8k"])(completions=[3]),
        "completions must be texts or lists of messages",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_value_is_named(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("case", TYPES)
def test_a_bad_type_is_named(case):
    call, message = TYPES[case]
    with pytest.raises(TypeError, match=message):
        call()


def test_files_of_others_are_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"other": ONE}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"must hold 'chosen' and 'rejected', got \['other'\]"):
        ReferenceCache.load(tmp_path / "other.safetensors", average=True)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="path must hold 'locked' and 'scores'"):
        scheme().load(tmp_path / "other.json")
    (tmp_path / "foreign.json").write_text('{"locked": true, "scores": {"a": {"z": 1.0}}}')
    with pytest.raises(ValueError, match=r"this scheme's evaluations, got \['z'\]"):
        scheme().load(tmp_path / "foreign.json")


def test_what_is_looked_at_stays_looked_at_when_it_fails():
    broken = scheme(unseen={"u": lambda model: 1 / 0})
    broken.develop("a", 1.0)
    with pytest.raises(ZeroDivisionError):
        broken.final({"a": 1.0})
    assert not broken.locked


def test_a_missing_extra_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sympy" else found(name))
    with pytest.raises(ImportError, match=r"tulu3\[math\]"):
        MathVerifier()
    assert MathVerifier(symbolic=False)("\\boxed{1/2}", "0.5") == 1
    monkeypatch.setattr(builtins, "print", None)  # nothing is ever printed
    assert Gsm8kVerifier()("5", "5") == 1
