"""The paper's own models on the user's problems: three published checkpoints, judged by the verifiers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tulu3 import as_trl_reward

_STAGES = {"SFT": "TULU3_SFT", "DPO": "TULU3_DPO", "RLVR": "TULU3_RLVR"}
_NUM_TOKENS = 2048
_BATCH = 8


def judged_checkpoints(
    device: str, report: Callable[[float, str], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Generate greedily with every stage's checkpoint and count the answers that the verifiers accept.

    Args:
        device: A torch device that holds an 8B model in bfloat16.
        report: Progress.

    Returns:
        Rows, and the setting.

    Raises:
        ValueError: If an environment variable is missing or names nothing.
        ImportError: If transformers or sympy is missing.
    """
    folders = {stage: _path(variable) for stage, variable in _STAGES.items()}
    lines = _path("TULU3_PROBLEMS").read_text().splitlines()
    problems = [json.loads(line) for line in lines if line.strip()]
    if not problems:
        raise ValueError("TULU3_PROBLEMS must name a file of JSON lines, got an empty one")
    reward = as_trl_reward(["gsm8k", "math", "ifeval"], scale=1.0)
    rows = []
    for index, (stage, folder) in enumerate(folders.items()):
        texts = _answers(folder, problems, device)
        labels, names = ([problem[key] for problem in problems] for key in ("ground_truth", "dataset"))
        accepted = reward(completions=texts, ground_truth=labels, dataset=names)
        wanted = [1 if isinstance(name, str) else len(name) for name in names]
        right = sum(found == count for found, count in zip(accepted, wanted, strict=True))
        role = "method" if stage == "RLVR" else "baseline"
        rows.append({"name": f"paper: {stage}", "role": role, "accuracy": 100 * right / len(problems)})
        report((index + 1) / len(folders), stage)
    setting = {
        "data": f"{len(problems)} problems of TULU3_PROBLEMS",
        "model": "the checkpoints of TULU3_SFT, TULU3_DPO and TULU3_RLVR",
        "budget": f"one greedy answer of at most {_NUM_TOKENS} tokens each",
    }
    return rows, setting


def _path(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not value or not Path(value).exists():
        raise ValueError(f"the environment variable {variable} must name what is there, got {value!r}")
    return Path(value)


@torch.no_grad()
def _answers(folder: Path, problems: list[dict[str, Any]], device: str) -> list[str]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("demo('paper') needs transformers: pip install 'tulu3[hf,math]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = model.to(device).eval()
    texts = []
    for start in range(0, len(problems), _BATCH):
        asked = [
            tokenizer.apply_chat_template(problem["messages"], tokenize=False, add_generation_prompt=True)
            for problem in problems[start : start + _BATCH]
        ]
        inputs = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        inputs.pop("token_type_ids", None)
        found = model.generate(
            **inputs, max_new_tokens=_NUM_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts += tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
