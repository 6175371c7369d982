"""The evidence: Sorted Fine-Tuning against ordinary fine-tuning, from one checkpoint, on real text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sortedft._demo_measures import Measured, heads_loss, measure
from sortedft._demo_tasks import SIZES, Task, alpaca, python_manual
from sortedft._demo_training import Progress, fine_tune, train_heads
from sortedft.exits import default_exits, default_thresholds

Row = dict[str, Any]


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Hold Sorted Fine-Tuning (SoFT) against ordinary fine-tuning (SFT) and early-exit heads (SFT+ICT).

    `smoke` and `laptop` train a Llama-style character model on the Python manual that ships with
    Python. `paper` takes LLaMA-2-13B and Alpaca from the folders named by the environment variables
    SORTEDFT_MODEL and SORTEDFT_ALPACA (a JSON file) and needs the `hf` extra and a large GPU.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three, or `paper` misses its folders.
        ImportError: If `paper` misses transformers.
    """
    if preset not in ("smoke", "laptop", "paper"):
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    report = progress or (lambda fraction, message: None)
    generator = torch.Generator().manual_seed(seed)
    if preset == "paper":
        task = alpaca(device)
    else:
        task = python_manual(SIZES[preset], generator, device, _stage(report, 0.0, 0.35, "pretraining"))

    exits = default_exits(len(task.parts(task.model).layers))
    found, own_heads = _compare(task, exits, generator, report)
    rows = _exit_rows(found, own_heads)
    rows += [row for name, measured in found.items() for row in _decoder_rows(name, measured)]
    report(1.0, "done")
    return {
        "claim": "One fine-tuning run at the price of an ordinary one makes every exit of the model a language "
        "model, at next to no cost for the full one, and decoding can then skip blocks.",
        "setting": task.setting
        | {"exits": exits, "decoding": f"greedy, {len(task.prompts)} held-out prompts"},
        "metrics": _METRICS,
        "rows": rows,
        "criterion": _CRITERION,
        "holds": _holds(rows),
        "curves": _curves(found, own_heads),
        "images": [
            {
                "title": f"Divergence between exits, {name} (nats)",
                "values": measured.kl_map,
                "caption": f"Row m, column n: KL(p_m || p_n) on held-out text, exits {exits}",
            }
            for name, measured in found.items()
        ],
    }


def _compare(
    task: Task, exits: list[int], generator: torch.Generator, report: Progress
) -> tuple[dict[str, Measured], list[float]]:
    """Fine-tune the checkpoint both ways on the same batches; also measure heads of their own on SFT."""
    checkpoint = {key: tensor.to("cpu", copy=True) for key, tensor in task.model.state_dict().items()}
    order = int(torch.randint(2**31, (), generator=generator))
    found: dict[str, Measured] = {}
    own_heads: list[float] = []
    for name, trained, start, end in (("SFT", exits[-1:], 0.35, 0.64), ("SoFT", exits, 0.7, 0.94)):
        task.model.load_state_dict(checkpoint)
        batches = torch.Generator().manual_seed(order)
        history = fine_tune(
            task, task.model, trained, batches, _stage(report, start, 0.2, f"fine-tuning, {name}")
        )
        if name == "SFT":
            batches = torch.Generator().manual_seed(order)
            heads = train_heads(
                task, task.model, exits[:-1], batches, _stage(report, 0.55, 0.09, "exit heads")
            )
            own_heads = heads_loss(task, heads)
        found[name] = measure(task, exits, history, _stage(report, end, 0.06, f"measuring {name}"))
    return found, own_heads


def _stage(report: Progress, start: float, share: float, label: str) -> Progress:
    return lambda fraction, message: report(start + share * fraction, f"{label}: {message}")


# --- judgement -------------------------------------------------------------------------------------

_CRITERION = (
    "over the exits up to half depth, SoFT closes at least half of the gap between SFT's mean loss and its full "
    "model's, and is below SFT+ICT; its full loss is at most 5 % above SFT's; its dynamic decoding saves at least "
    "25 % of the block calls at less than 2 points of accuracy; its self-speculative text is identical to its plain "
    "greedy text in fewer block calls"
)

_METRICS = {
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


def _holds(rows: list[Row]) -> bool:
    row = {found["name"]: found for found in rows}
    soft, sft, heads = row["SoFT"], row["SFT"], row["SFT+ICT"]
    plain, dynamic, speculative = row["SoFT: plain"], row["SoFT: dynamic"], row["SoFT: self-speculative"]
    return bool(
        soft["loss_shallow"] <= (sft["loss_shallow"] + sft["loss_full"]) / 2
        and soft["loss_shallow"] < heads["loss_shallow"]
        and soft["loss_full"] <= 1.05 * sft["loss_full"]
        and dynamic["block_calls_per_token"] <= 0.75 * plain["block_calls_per_token"]
        and dynamic["accuracy"] > plain["accuracy"] - 2
        and speculative["same_text"] == 100
        and speculative["block_calls_per_token"] < plain["block_calls_per_token"]
    )


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


# --- plots -----------------------------------------------------------------------------------------


def _curves(found: dict[str, Measured], own_heads: list[float]) -> list[dict[str, Any]]:
    exits = found["SFT"].report.exits
    losses = {name: _series(exits, measured.report.loss.tolist()) for name, measured in found.items()}
    losses["SFT+ICT"] = _series(exits, [*own_heads, found["SFT"].report.loss[-1].item()])
    accuracy = {
        name: _series(exits, (100 * measured.report.accuracy).tolist()) for name, measured in found.items()
    }
    kl = {name: _series(exits, measured.report.kl_to_full.tolist()) for name, measured in found.items()}
    return [
        _curve("Held-out loss by exit", "exit after block", "loss (nats)", losses),
        _curve("Held-out accuracy by exit", "exit after block", "top-1 accuracy (%)", accuracy),
        _curve("Divergence from the full model by exit", "exit after block", "KL (nats)", kl),
        _curve(
            "Leaving when sure: accuracy against depth",
            "mean depth (blocks)",
            "top-1 accuracy (%)",
            {name: _trade_off(measured) for name, measured in found.items()},
        ),
        _curve(
            "Where generated tokens leave",
            "exit after block",
            "tokens (%)",
            {name: _exit_shares(measured) for name, measured in found.items()},
        ),
        _curve(
            "Full exit during fine-tuning",
            "step",
            "training loss (nats)",
            {name: _binned(measured.history) for name, measured in found.items()},
        ),
    ]


def _trade_off(measured: Measured) -> dict[str, list[Any]]:
    bars = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    points = [measured.held_out.leave_when_sure([bar] * (len(measured.report.exits) - 1)) for bar in bars]
    return _series([depth for _, depth in points], [accuracy for accuracy, _ in points])


def _exit_shares(measured: Measured) -> dict[str, list[Any]]:
    left = torch.cat([generated.exit_layer for generated, _ in measured.decoded["dynamic"]])
    exits = measured.report.exits
    return _series(exits, [100 * (left == depth).double().mean().item() for depth in exits])


def _binned(history: list[float], bins: int = 30) -> dict[str, list[Any]]:
    size = max(len(history) // bins, 1)
    starts = range(0, len(history) - size + 1, size)
    means = [sum(history[start : start + size]) / size for start in starts]
    return _series([start + size // 2 for start in starts], means)


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Sequence[Any], y: Sequence[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
