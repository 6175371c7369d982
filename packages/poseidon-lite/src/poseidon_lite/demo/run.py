"""One run of the evidence: its data, its arms and the order of the work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from poseidon_lite.demo import judgement
from poseidon_lite.demo.flows import simulate, snapshot_times
from poseidon_lite.demo.measures import error, error_curve, images, lead_time_curve
from poseidon_lite.demo.report import report
from poseidon_lite.demo.rivals import FourierNeuralOperator, MeanField, Persistence
from poseidon_lite.demo.settings import Preset
from poseidon_lite.demo.training import fit
from poseidon_lite.model import ScOT
from poseidon_lite.training import All2AllDataset, All2AllPairs
from poseidon_lite.transfer import finetune_groups, load_poseidon

Progress = Callable[[float, str], None]
TRAINED = (judgement.VANILLA, judgement.SCRATCH, judgement.FNO, judgement.FINE_TUNED)


class Run:
    """One run: its generator of random numbers and its count of the work done.

    Args:
        preset: Sizes and rates.
        checkpoint: A published model to fine-tune instead of one pretrained here.
        seed: Seed of every random number.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.
    """

    def __init__(
        self, preset: Preset, checkpoint: str | None, seed: int, device: str, progress: Progress
    ) -> None:
        self.preset, self.checkpoint, self.device, self.progress = preset, checkpoint, device, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0
        finetuning = len(TRAINED) * len(preset.num_trajectories) * preset.finetuning_steps
        self.total = finetuning + (0 if checkpoint else preset.pretraining_steps)

    def result(self) -> dict[str, Any]:
        """Train every arm, evaluate and judge."""
        preset, counts = self.preset, self.preset.num_trajectories
        self.progress(0.0, "simulating Navier-Stokes trajectories")
        thin, thin_validation, thin_test = (
            self.simulate(count, preset.viscosity)
            for count in (preset.num_pretraining, preset.num_validation, preset.num_test)
        )
        thick, validation, test = (
            self.simulate(count, preset.new_viscosity)
            for count in (max(counts), preset.num_validation, preset.num_test)
        )
        pretrained = self.pretrain(thin, thin_validation)
        untrained: dict[str, nn.Module] = {
            judgement.PERSISTENCE: Persistence(),
            judgement.MEAN_FIELD: MeanField(thick),
            judgement.UNTOUCHED: pretrained,
        }
        errors = {name: [error(model, test)] * len(counts) for name, model in untrained.items()}
        errors[judgement.MEAN_FIELD] = [error(MeanField(thick[:count]), test) for count in counts]
        models = untrained
        for count in counts:
            trained = self.train_arms(pretrained, thick[:count], validation)
            for name, model in trained.items():
                errors.setdefault(name, []).append(error(model, test))
            models = untrained | trained
        self.progress(1.0, "done")
        method = judgement.FINE_TUNED
        return report(
            preset,
            errors,
            error(pretrained, thin_test),
            sizes={name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
            curves=[error_curve(counts, errors), lead_time_curve(models, method, test)],
            images=images(models[method], test, max(counts)),
        )

    def simulate(self, count: int, viscosity: float) -> Tensor:
        """Trajectories of this run."""
        return simulate(self.preset, count, viscosity, self.generator, self.device)

    def network(self) -> ScOT:
        """A fresh scOT for velocities."""
        config = replace(self.preset.config, in_channels=2, out_channels=2)
        return ScOT(config, generator=self.generator).to(self.device)

    def pretrain(self, trajectories: Tensor, validation: Tensor) -> ScOT:
        """The scOT that is fine-tuned later: loaded, or trained all2all on the thin fluid."""
        if self.checkpoint:
            model = load_poseidon(self.checkpoint, in_channels=2, out_channels=2, generator=self.generator)
            return model.to(self.device)
        model, preset = self.network(), self.preset
        groups = [{"params": list(model.parameters()), "lr": preset.pretraining_rate}]
        pairs = All2AllPairs(preset.num_snapshots)
        self.fit(
            model,
            groups,
            trajectories,
            pairs,
            validation,
            preset.pretraining_steps,
            preset.batch_size,
            "pretraining",
        )
        return model

    def train_arms(self, pretrained: ScOT, trajectories: Tensor, validation: Tensor) -> dict[str, nn.Module]:
        """Every arm, trained on the same trajectories of the new PDE."""
        preset = self.preset
        all2all = All2AllPairs(preset.num_snapshots)
        vanilla = All2AllPairs(preset.num_snapshots, fix_input_to=0)
        fno = FourierNeuralOperator(2, preset.fno_width, preset.fno_modes, self.generator).to(self.device)
        first, scratch, tuned = self.network(), self.network(), copy.deepcopy(pretrained)
        arms: dict[str, tuple[nn.Module, All2AllPairs, list[dict[str, Any]]]] = {
            judgement.VANILLA: (first, vanilla, _all_at(first, preset.vanilla_rate)),
            judgement.SCRATCH: (scratch, all2all, _all_at(scratch, preset.scratch_rate)),
            judgement.FNO: (fno, all2all, _all_at(fno, preset.fno_rate)),
            judgement.FINE_TUNED: (tuned, all2all, finetune_groups(tuned, *preset.finetuning_rates)),
        }
        for name, (model, pairs, groups) in arms.items():
            message = f"{name}, trajectories: {len(trajectories)}"
            steps, size = preset.finetuning_steps, preset.finetuning_batch_size
            self.fit(model, groups, trajectories, pairs, validation, steps, size, message)
        return {name: arm[0] for name, arm in arms.items()}

    def fit(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        trajectories: Tensor,
        pairs: All2AllPairs,
        validation: Tensor,
        num_steps: int,
        batch_size: int,
        message: str,
    ) -> int:
        """Train one model, counting the work done."""

        def told(step: int) -> None:
            self.done += 1
            if step % 10 == 0:
                self.progress(0.02 + 0.96 * self.done / self.total, message)

        return fit(
            model,
            groups,
            All2AllDataset(trajectories, snapshot_times(self.preset), pairs=pairs),
            validation,
            num_steps=num_steps,
            batch_size=batch_size,
            checks=self.preset.checks,
            generator=self.generator,
            told=told,
        )


def _all_at(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": rate}]
