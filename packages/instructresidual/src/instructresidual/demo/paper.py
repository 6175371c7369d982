"""The paper's own setting: checkpoints of some gigabytes that the user brings, such as Llama-3.1-8B."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from instructresidual import applied, diagnose, residual
from instructresidual.demo.figures import METRICS
from instructresidual.demo.judgement import INSTRUCT, S2, S3, Row, conditions
from instructresidual.demo.training import Progress

_NEEDED = {
    "BASE": "the base model's folder",
    "INSTRUCT": "the instruct model's folder",
    "CONTINUED": "the folder of the base after continued pre-training",
    "TEXT": "held-out text of the new domain",
    "PROMPTS": "a JSON list of {prompt, answer}, judged by whether the reply contains the answer",
}


def paper(device: str, report: Progress) -> dict[str, Any]:
    """Score instruct, S2 and S3; S1 needs a continued instruct model too (INSTRUCTRESIDUAL_CONTINUED_INSTRUCT)."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "the paper preset needs transformers: pip install 'instructresidual[hf]'"
        ) from error
    given = {key: os.environ.get(f"INSTRUCTRESIDUAL_{key}", "") for key in _NEEDED}
    if missing := [f"INSTRUCTRESIDUAL_{key} ({what})" for key, what in _NEEDED.items() if not given[key]]:
        raise ValueError(f"the paper preset needs {', '.join(missing)}")
    text = Path(given["TEXT"]).read_text()
    prompts = json.loads(Path(given["PROMPTS"]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(given["INSTRUCT"])
    found = residual(given["BASE"], given["INSTRUCT"], lazy=True)
    rows: list[Row] = []

    def score(model: Any, name: str, role: str) -> Row:
        report(len(rows) / 4, name)
        row = {
            "name": name,
            "role": role,
            "accuracy": _accuracy(model, tokenizer, prompts),
            "bits": _bits(model, tokenizer, text),
        }
        rows.append(row)
        return row

    def load(folder: str) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return model.to(device).eval()

    score(load(given["INSTRUCT"]), INSTRUCT, "reference")
    if own := os.environ.get("INSTRUCTRESIDUAL_CONTINUED_INSTRUCT"):
        from instructresidual.demo.judgement import S1

        score(load(own), S1, "baseline")
    model = load(given["CONTINUED"])
    score(model, S2, "baseline")
    diagnosis = diagnose(given["CONTINUED"], found, given["BASE"])
    with applied(model, found):
        row = score(model, S3, "method")
    row |= {"distance": diagnosis.ancestor_distance, "cosine": diagnosis.weight_cosine}
    verdict = conditions(rows)
    data = f"{given['TEXT']}, {given['PROMPTS']}"
    report(1.0, "done")
    return {
        "setting": {
            "data": data,
            "model": given["BASE"],
            "budget": given["CONTINUED"],
        },
        "metrics": METRICS,
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": [],
        "images": [],
    }


@torch.no_grad()
def _accuracy(model: Any, tokenizer: Any, prompts: list[dict[str, str]]) -> float:
    right = 0
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt["prompt"]}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        inputs = inputs.to(model.device)
        reply = model.generate(**inputs, max_new_tokens=256, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        right += prompt["answer"].lower() in tokenizer.decode(reply, skip_special_tokens=True).lower()
    return 100 * right / len(prompts)


@torch.no_grad()
def _bits(model: Any, tokenizer: Any, text: str, context: int = 1024) -> float:
    """Bits a byte of the text, in windows that do not overlap."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    nats = 0.0
    for window in ids[: len(ids) // context * context].view(-1, context):
        batch = window[None].to(model.device)
        nats += model(batch, labels=batch).loss.item() * (context - 1)
    counted = tokenizer.decode(ids[: len(ids) // context * context])
    return nats / math.log(2) / len(counted.encode())
