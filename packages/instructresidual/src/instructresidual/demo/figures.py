"""The table and the plots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from instructresidual import Diagnosis, Residual, group_of
from instructresidual.demo.judgement import AVERAGE, INSTRUCT, S1, S2, S3, S4, SAME_RATE, UNRELATED, Row
from instructresidual.demo.study import Score, Study

METRICS = {
    "accuracy": {"unit": "%", "better": "higher"},
    "bits": {"unit": "bits a byte", "better": "lower"},
    "distance": {"unit": "", "better": "lower"},
    "cosine": {"unit": "", "better": "higher"},
    "best_scale": {"unit": "", "better": "higher"},
    "error": {"unit": "", "better": "lower"},
}
_NAMES = {
    "instruct": INSTRUCT,
    "S1": S1,
    "S1 same": SAME_RATE,
    "S2": S2,
    "S3": S3,
    "S4": S4,
    "average": AVERAGE,
}
_ROLES = dict.fromkeys(_NAMES, "baseline") | {"instruct": "reference", "S3": "method"}


def table(study: Study, found: dict[str, Any]) -> list[Row]:
    """One row a strategy, at the largest budget."""
    last = study.budgets()[-1]
    rows = [_row(_NAMES[key], _ROLES[key], study.scores[key, last]) for key in _NAMES]
    by_name = {row["name"]: row for row in rows}
    curve: dict[float, Score] = found["scale_curve"]
    by_name[S3]["best_scale"] = max(curve, key=lambda scale: curve[scale].accuracy)
    _add_distance(by_name[S3], found["diagnosis"])
    for name, error in found["errors"].items():
        rows.append(_row(name, "ablation", study.scores[name, last]) | {"error": error})
    rows.append(_row(UNRELATED, "reference", study.scores["unrelated", last]))
    _add_distance(rows[-1], found["stranger"])
    return rows


def _row(name: str, role: str, score: Score) -> Row:
    return {"name": name, "role": role, "accuracy": score.accuracy, "bits": score.bits}


def _add_distance(row: Row, diagnosis: Diagnosis) -> None:
    row["distance"], row["cosine"] = diagnosis.ancestor_distance, diagnosis.weight_cosine


def curves(study: Study, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw the lines."""
    budgets = [0, *study.budgets()]
    by_budget = {
        metric: {
            name: _series(budgets, [getattr(study.scores[key, budget], metric) for budget in budgets])
            for key, name in _NAMES.items()
        }
        for metric in ("accuracy", "bits")
    }
    curve: dict[float, Score] = found["scale_curve"]
    scales = {S3: _series(curve, [score.accuracy for score in curve.values()])}
    bits = {S3: _series(curve, [score.bits for score in curve.values()])}
    steps, loss = "continued pre-training (steps)", "loss on d2 (bits a byte)"
    names, diagnosis = _matrices(found["residual"]), found["diagnosis"]
    rows = {name: diagnosis.tensors[name] for name in names}
    index = list(range(len(names)))
    norms = {
        "residual": _series(index, [row.residual_norm for row in rows.values()]),
        "continued pre-training": _series(index, [row.shift for row in rows.values()]),
    }
    cosines = {"cosine": _series(index, [row.cosine for row in rows.values()])}
    conflicts = {"conflicts": _series(index, [row.sign_conflicts for row in rows.values()])}
    order = (
        f"matrix, from the input to the output ({', '.join(dict.fromkeys(group_of(name) for name in names))})"
    )
    return [
        _curve(
            "Commands followed after continued pre-training", steps, "exact match (%)", by_budget["accuracy"]
        ),
        _curve("Loss on the new text", steps, loss, by_budget["bits"]),
        _curve("Scale of the residual", "scale", "exact match (%)", scales),
        _curve("Scale of the residual and the new text", "scale", loss, bits),
        _curve("Accuracy against loss on the new text", loss, "exact match (%)", _trade_offs(study)),
        _curve("How much either training moved the weights", order, "norm relative to the weights", norms),
        _curve("Residual against continued pre-training", order, "cosine", cosines),
        _curve("Sign conflicts among the largest 1 %", order, "share", conflicts),
    ]


def _trade_offs(study: Study) -> dict[str, Any]:
    return {
        name: _series(
            [study.scores[key, budget].bits for budget in study.budgets()],
            [study.scores[key, budget].accuracy for budget in study.budgets()],
        )
        for key, name in _NAMES.items()
        if key != "instruct"
    }


def _matrices(residual: Residual) -> list[str]:
    """Embedding, blocks, head."""
    return [name for name, shape in residual.shapes.items() if len(shape) > 1 and name != "lm_head"] + [
        "lm_head"
    ]


def images(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw, for every block and kind of matrix, how the residual lies to what continued pre-training did."""
    tensors = found["diagnosis"].tensors
    blocks = sorted({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    kinds = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    return [
        {
            "title": title,
            "values": [
                [getattr(tensors[f"layers.{block}.{kind}"], key) for kind in kinds] for block in blocks
            ],
            "caption": f"Rows: blocks; columns: {', '.join(kinds)}",
        }
        for title, key in (
            ("Residual relative to the weights", "residual_norm"),
            ("Cosine of residual and continued pre-training", "cosine"),
        )
    ]


def _curve(title: str, x_label: str, y_label: str, series: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "x_label": x_label, "y_label": y_label, "series": series}


def _series(x: Iterable[Any], y: Iterable[Any]) -> dict[str, list[Any]]:
    return {"x": list(x), "y": list(y)}
