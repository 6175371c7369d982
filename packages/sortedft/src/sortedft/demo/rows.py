"""The table: one row for each way to fine-tune, and one for each decoder of what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sortedft.demo.measures import Measured
from sortedft.exits import default_thresholds

Row = dict[str, Any]

METRICS = {
    "loss_shallow": {"unit": "nats", "better": "lower"},
    "loss_deep": {"unit": "nats", "better": "lower"},
    "loss_full": {"unit": "nats", "better": "lower"},
    "kl_shallow": {"unit": "nats", "better": "lower"},
    "accuracy": {"unit": "%", "better": "higher"},
    "block_calls_per_token": {"unit": "", "better": "lower"},
    "tokens_per_second": {"unit": "1/s", "better": "higher"},
    "same_text": {"unit": "%", "better": "higher"},
    "draft_accepted": {"unit": "%", "better": "higher"},
}


def table(found: dict[str, Measured], own_heads: list[float]) -> list[Row]:
    """Build every row from what was measured of SFT and SoFT, and the losses of SFT's own heads."""
    rows = _exit_rows(found, own_heads)
    for name, measured in found.items():
        rows += _decoder_rows(name, measured)
    return rows


def _exit_rows(found: dict[str, Measured], own_heads: list[float]) -> list[Row]:
    """Losses over the exits up to half depth, over those above, and of the full model."""
    exits = found["SFT"].report.exits
    shallow = sum(2 * depth <= exits[-1] for depth in exits)

    def means(losses: Sequence[float]) -> Row:
        early, late = losses[:shallow], losses[shallow:-1]
        return {
            "loss_shallow": sum(early) / len(early),
            "loss_deep": sum(late) / len(late),
            "loss_full": losses[-1],
        }

    rows = [{"name": name, **means(measured.report.loss.tolist())} for name, measured in found.items()]
    for row, measured in zip(rows, found.values(), strict=True):
        row["kl_shallow"] = measured.report.kl_to_full[:shallow].mean().item()
        row["accuracy"] = 100 * measured.report.accuracy[-1].item()
    sft, soft = rows
    heads = {"name": "SFT+ICT", **means([*own_heads, sft["loss_full"]])}
    return [sft | {"role": "baseline"}, heads | {"role": "baseline"}, soft | {"role": "method"}]


def _decoder_rows(name: str, measured: Measured) -> list[Row]:
    """Costs are of generated text, accuracy is of held-out text at the depths the decoder would choose."""
    full = 100 * measured.report.accuracy[-1].item()
    accuracy = {
        "plain": full,
        "self-speculative": full,
        "dynamic": measured.held_out.leave_when_sure(measured.thresholds)[0],
        "dynamic, default thresholds": measured.held_out.leave_when_sure(
            default_thresholds(measured.report.exits)
        )[0],
    }
    reference = [generated.tokens for generated, _ in measured.decoded["plain"]]
    rows = []
    for decoder, runs in measured.decoded.items():
        num_tokens = sum(generated.tokens.shape[1] for generated, _ in runs)
        same = [torch.equal(run.tokens, tokens) for (run, _), tokens in zip(runs, reference, strict=True)]
        drafted = sum(generated.drafted for generated, _ in runs)
        row: Row = {
            "name": f"{name}: {decoder}",
            "role": _role(name, decoder),
            "accuracy": accuracy.get(decoder),
            "block_calls_per_token": sum(generated.block_calls for generated, _ in runs) / num_tokens,
            "tokens_per_second": num_tokens / sum(seconds for _, seconds in runs),
            "same_text": 100 * sum(same) / len(same),
        }
        if drafted:
            row["draft_accepted"] = 100 * sum(generated.accepted for generated, _ in runs) / drafted
        rows.append(row)
    return rows


def _role(name: str, decoder: str) -> str:
    if decoder == "plain":
        return "reference"
    if name == "SFT":
        return "baseline"
    return "ablation" if "," in decoder else "method"
