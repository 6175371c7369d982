"""What was found, in the form of the demo contract."""

from __future__ import annotations

from typing import Any

from poseidon_lite.demo import judgement
from poseidon_lite.demo.settings import Preset

ORDER = (
    judgement.PERSISTENCE,
    judgement.MEAN_FIELD,
    judgement.UNTOUCHED,
    judgement.FNO,
    judgement.VANILLA,
    judgement.SCRATCH,
    judgement.FINE_TUNED,
)


def report(
    preset: Preset,
    errors: dict[str, list[float]],
    error_own: float,
    *,
    sizes: dict[str, int],
    curves: list[dict[str, Any]],
    images: list[dict[str, Any]],
) -> dict[str, Any]:
    """The contract's dictionary; the verdict is computed from the rows.

    Args:
        preset: Sizes and rates of the run.
        errors: Test errors on the new PDE of every arm, one for each number of trajectories.
        error_own: Test error of the pretrained model on the equation that it was trained on.
        sizes: Parameters of every arm.
        curves: Curves of the contract.
        images: Images of the contract.

    Returns:
        A dictionary that JSON can hold.
    """
    keys = [f"error_{count}" for count in preset.num_trajectories]
    rows: list[dict[str, Any]] = [
        {"name": name, "role": "method" if name == judgement.FINE_TUNED else "baseline"}
        | dict(zip(keys, errors[name], strict=True))
        for name in ORDER
    ]
    next(row for row in rows if row["name"] == judgement.UNTOUCHED)["error_own"] = error_own
    verdict = judgement.conditions(rows)
    return {
        "claim": (
            "A scOT pretrained all2all on fluid flow learns a new PDE from one trajectory as well as the same scOT "
            "or an FNO from scratch does from several, and all2all training beats vanilla."
        ),
        "setting": _setting(preset, sizes),
        "metrics": {key: {"unit": "%", "better": "lower"} for key in (*keys, "error_own")},
        "rows": rows,
        "conditions": verdict,
        "holds": all(condition["holds"] for condition in verdict),
        "curves": curves,
        "images": images,
    }


def _setting(preset: Preset, sizes: dict[str, int]) -> dict[str, str]:
    n = preset.config.image_size
    return {
        "data": (
            f"2-D Navier-Stokes on {n} x {n} points, sines and Gaussian vortices: {preset.num_pretraining} "
            f"trajectories of {preset.num_snapshots} snapshots at viscosity {preset.viscosity:g}; new PDE: the same at "
            f"viscosity {preset.new_viscosity:g}; {preset.num_validation} validation and {preset.num_test} test "
            "trajectories; errors are medians of the "
            "relative L1 error from the first snapshot to every later one"
        ),
        "model": (
            f"scOT, {sizes[judgement.SCRATCH]:,} parameters, and FNO, {sizes[judgement.FNO]:,} parameters"
        ),
        "budget": (
            f"{preset.pretraining_steps} pretraining steps at batch {preset.batch_size}; on the new PDE at most "
            f"{preset.finetuning_steps} steps at batch {preset.finetuning_batch_size} for every arm and number of "
            f"trajectories, the best of {preset.checks} checks on the validation trajectories being kept; learning "
            "rates of every arm chosen on seeds that are not reported"
        ),
    }
