"""The evidence: few-trajectory fine-tuning of a pretrained scOT against scOT and an FNO from scratch."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from poseidon_lite.config import ScOTConfig
from poseidon_lite.model import ScOT, rollout
from poseidon_lite.simulate import gaussian_vorticity, navier_stokes, sine_vorticity
from poseidon_lite.training import All2AllDataset, All2AllPairs, group_loss, relative_error
from poseidon_lite.transfer import finetune_groups, load_poseidon

Progress = Callable[[float, str], None]
VELOCITY = (2,)  # both channels make one group
FINE_TUNED, SCRATCH, FNO = "fine-tuned scOT", "scOT from scratch", "FNO from scratch"


@dataclass(frozen=True)
class Preset:
    """Sizes and rates of one run. The learning rates were chosen once, on a seed that is not reported."""

    config: ScOTConfig
    fno_width: int = 16
    fno_modes: int = 8
    num_pretraining: int = 64
    num_test: int = 32
    num_trajectories: tuple[int, ...] = (1, 4, 16)
    num_snapshots: int = 8
    horizon: float = 0.4
    viscosity: float = 1e-2
    forcing: float = 0.5  # amplitude of the body force of the new PDE; the initial velocity is about 1
    sine_modes: int = 2
    vortices: int = 4
    solver_steps: int = 10
    pretraining_steps: int = 250
    finetuning_steps: int = 50
    batch_size: int = 16
    finetuning_batch_size: int = 16
    pretraining_rate: float = 8e-3
    finetuning_rates: tuple[float, float, float] = (1e-3, 4e-3, 2e-3)  # body, embedding, time
    scratch_rate: float = 8e-3
    fno_rate: float = 8e-3


PRESETS = {
    "smoke": Preset(
        ScOTConfig.tiny(image_size=16, patch_size=4, embed_dim=12, num_heads=(2, 4), window_size=2),
        fno_width=6,
        fno_modes=3,
        num_pretraining=4,
        num_test=3,
        num_trajectories=(1, 4),
        num_snapshots=3,
        solver_steps=2,
        pretraining_steps=3,
        finetuning_steps=2,
        batch_size=4,
        finetuning_batch_size=4,
    ),
    "laptop": Preset(ScOTConfig.tiny(patch_size=4, window_size=4)),
    "paper": Preset(
        ScOTConfig.T(),
        fno_width=64,
        fno_modes=16,
        num_pretraining=2048,
        num_test=240,
        num_trajectories=(1, 2, 4, 8, 16, 32, 64, 128),
        horizon=1.0,
        viscosity=4e-4,
        sine_modes=10,
        vortices=100,
        solver_steps=80,
        pretraining_steps=40_000,
        finetuning_steps=4_000,
        batch_size=40,
        finetuning_batch_size=40,
        pretraining_rate=5e-4,
        finetuning_rates=(5e-5, 5e-4, 5e-4),
        scratch_rate=5e-4,
        fno_rate=1e-3,
    ),
}


def kolmogorov(n: int, amplitude: float) -> Tensor:
    """Curl of the body force `amplitude * (sin 2 pi y, 0)` on an `n x n` grid, the first axis being x."""
    y = torch.arange(n) / n
    return (-2 * math.pi * amplitude * torch.cos(2 * math.pi * y)).expand(n, n)


class FourierNeuralOperator(nn.Module):
    """Small FNO baseline (Li et al., 2021); the lead time is one more input channel."""

    def __init__(self, channels: int, width: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv2d(channels + 1, width, 1)
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.spectral = nn.Parameter(torch.empty(4, 2, width, width, modes, modes, 2))
        self.project = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, channels, 1)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                fan_in = parameter.shape[1] if parameter.ndim == 4 else width
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            self.spectral.mul_(width**-0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map fields `(batch, channels, n, n)` and lead times `(batch,)` to fields of the same shape."""
        time = t.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = self.lift(torch.cat([x, time], dim=1))
        for layer, weight in zip(self.local, torch.view_as_complex(self.spectral), strict=True):
            modes = torch.fft.rfft2(h, norm="ortho")
            kept = torch.zeros_like(modes)
            m = self.modes
            kept[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", modes[:, :, :m, :m], weight[0])
            kept[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", modes[:, :, -m:, :m], weight[1])
            h = nn.functional.gelu(torch.fft.irfft2(kept, s=x.shape[2:], norm="ortho") + layer(h))
        return self.project(h)


def demo(
    preset: str = "laptop",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pretrain scOT on free Navier-Stokes flow, then learn forced (Kolmogorov) flow from few trajectories.

    Three arms with the same trajectories, steps and batches: the pretrained scOT fine-tuned, the same scOT from
    scratch, a small FNO from scratch. Besides, all2all pretraining is held against vanilla pretraining (input
    always the first snapshot) at equal steps.

    Args:
        preset: `"smoke"`, `"laptop"` or `"paper"`. The last trains Poseidon-T on 128 x 128 fields and wants a GPU;
            if the environment variable `POSEIDON_LITE_CHECKPOINT` names a safetensors file or its folder, that
            model is fine-tuned instead of the one pretrained here.
        seed: Seed of every random number used.
        device: A torch device.
        progress: Called as `progress(fraction, message)`.

    Returns:
        The demo contract's dictionary.

    Raises:
        ValueError: If `preset` is not one of the three.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be 'smoke', 'laptop' or 'paper', got {preset!r}")
    run = _Run(PRESETS[preset], preset, seed, device, progress or (lambda fraction, message: None))
    threads = torch.get_num_threads()
    try:
        if preset != "paper":
            torch.set_num_threads(1)  # on fields this small, threads spend their time waiting for one another
        with torch.random.fork_rng(
            devices=[]
        ):  # modules draw default weights before they get those of the seed
            return run.result()
    finally:
        torch.set_num_threads(threads)


class _Run:
    """One run: its data, its generator of random numbers and its count of the work done."""

    def __init__(self, preset: Preset, name: str, seed: int, device: str, progress: Progress) -> None:
        self.preset, self.device, self.progress = preset, device, progress
        self.checkpoint = os.environ.get("POSEIDON_LITE_CHECKPOINT") if name == "paper" else None
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0
        per_size = 3 * preset.finetuning_steps
        self.total = 2 * preset.pretraining_steps + len(preset.num_trajectories) * per_size
        self.times = torch.linspace(0, 1, preset.num_snapshots)

    def result(self) -> dict[str, Any]:
        """Train every arm, evaluate and judge."""
        preset = self.preset
        self.progress(0.0, "simulating free and forced Navier-Stokes trajectories")
        pretraining = self.simulate(preset.num_pretraining, forced=False)
        held_out = self.simulate(preset.num_test, forced=False)
        downstream = self.simulate(max(preset.num_trajectories), forced=True)
        test = self.simulate(preset.num_test, forced=True)

        vanilla = self.pretrain(pretraining, All2AllPairs(preset.num_snapshots, fix_input_to=0), "vanilla")
        pretrained = self.pretrain(pretraining, All2AllPairs(preset.num_snapshots), "all2all")
        schemes = {"all2all": pretrained, "vanilla": vanilla}
        intermediate = {name: self.pair_error(model, held_out, first=1) for name, model in schemes.items()}
        initial = {name: self.pair_error(model, held_out, first=0) for name, model in schemes.items()}

        errors: dict[str, list[float]] = {FINE_TUNED: [], SCRATCH: [], FNO: []}
        for count in preset.num_trajectories:
            arms = self.arms(pretrained)
            data = All2AllDataset(downstream[:count], self.times)
            for name, (model, groups) in arms.items():
                message = f"{name}, {count} trajectories"
                self.train(model, groups, data, preset.finetuning_steps, message)
                errors[name].append(self.error(model, test))
        curves = [
            {
                "title": "New PDE: test error against trajectories",
                "x_label": "trajectories",
                "y_label": "median relative L1 error, %",
                "x_scale": "log",
                "y_scale": "log",
                "series": {
                    name: {"x": list(preset.num_trajectories), "y": values} for name, values in errors.items()
                },
            },
            self.lead_time_curve(arms[FINE_TUNED][0], test),
            self.scheme_curve(schemes, held_out),
        ]
        self.progress(1.0, "done")
        return self.report(errors, intermediate, initial, curves, self.images(arms[FINE_TUNED][0], test))

    def simulate(self, count: int, forced: bool) -> Tensor:
        """Velocities `(count, snapshots, 2, n, n)` on the device, half from sines, half from Gaussian vortices."""
        n, preset = self.preset.config.image_size, self.preset
        sines = sine_vorticity(count // 2, n, modes=preset.sine_modes, generator=self.generator)
        vortices = gaussian_vorticity(
            count - count // 2, n, vortices=preset.vortices, generator=self.generator
        )
        vorticity = torch.cat([sines, vortices])[torch.randperm(count, generator=self.generator)]
        return torch.cat(
            [
                navier_stokes(
                    chunk.float().to(self.device),
                    (self.times * preset.horizon).tolist(),
                    viscosity=preset.viscosity,
                    num_steps=preset.solver_steps,
                    forcing=kolmogorov(n, preset.forcing).to(self.device) if forced else None,
                )
                for chunk in vorticity.split(64)
            ]
        )

    def network(self) -> ScOT:
        """A scOT with fresh weights."""
        config = replace(self.preset.config, in_channels=2, out_channels=2)
        return ScOT(config, generator=self.generator).to(self.device)

    def pretrain(self, trajectories: Tensor, pairs: All2AllPairs, scheme: str) -> ScOT:
        """Train a fresh network on velocities."""
        model, preset = self.network(), self.preset
        data = All2AllDataset(trajectories, self.times, pairs=pairs)
        groups = [{"params": list(model.parameters()), "lr": preset.pretraining_rate}]
        self.train(model, groups, data, preset.pretraining_steps, f"pretraining, {scheme}")
        return model

    def arms(self, pretrained: ScOT) -> dict[str, tuple[nn.Module, list[dict[str, Any]]]]:
        """Fresh models of the three arms with their parameter groups."""
        preset = self.preset
        if self.checkpoint is None:
            tuned = copy.deepcopy(pretrained)
        else:
            tuned = load_poseidon(self.checkpoint, in_channels=2, out_channels=2, generator=self.generator)
            tuned = tuned.to(self.device)
        scratch = self.network()
        fno = FourierNeuralOperator(2, preset.fno_width, preset.fno_modes, self.generator).to(self.device)
        return {
            FINE_TUNED: (tuned, finetune_groups(tuned, *preset.finetuning_rates)),
            SCRATCH: (scratch, [{"params": list(scratch.parameters()), "lr": preset.scratch_rate}]),
            FNO: (fno, [{"params": list(fno.parameters()), "lr": preset.fno_rate}]),
        }

    def train(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        data: All2AllDataset,
        num_steps: int,
        message: str,
    ) -> None:
        """AdamW with a cosine schedule and clipped gradients, the same for every arm."""
        preset = self.preset
        size = preset.batch_size if message.startswith("pretraining") else preset.finetuning_batch_size
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-6, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        model.train()
        for step in range(num_steps):
            x, t, y = data.batch(torch.randint(len(data), (size,), generator=self.generator))
            optimizer.zero_grad()
            group_loss(model(x, t), y, VELOCITY).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            self.done += 1
            if step % 10 == 0:
                self.progress(0.02 + 0.96 * self.done / self.total, message)
        model.eval()

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor, time: float, steps: int = 1) -> Tensor:
        """Predictions for all fields `x` after one lead time, in chunks."""
        times = torch.full((len(x),), time, device=x.device)
        return torch.cat(
            [rollout(model, a, b, steps) for a, b in zip(x.split(64), times.split(64), strict=True)]
        )

    def errors_of(self, model: nn.Module, trajectories: Tensor, i: int, j: int, steps: int = 1) -> Tensor:
        """Relative L1 error of every trajectory from snapshot `i` to `j`."""
        prediction = self.predict(model, trajectories[:, i], float(self.times[j] - self.times[i]), steps)
        return relative_error(prediction, trajectories[:, j], VELOCITY)[:, 0]

    def error(self, model: nn.Module, trajectories: Tensor) -> float:
        """Median error over test trajectories and all later snapshots, from the first snapshot."""
        later = range(1, self.preset.num_snapshots)
        return float(torch.cat([self.errors_of(model, trajectories, 0, j) for j in later]).median())

    def pair_error(self, model: nn.Module, trajectories: Tensor, first: int) -> float:
        """Median error over forward pairs that start at snapshot 0 (`first = 0`) or at an intermediate one."""
        starts = [0] if first == 0 else range(1, self.preset.num_snapshots - 1)
        pairs = [(i, j) for i in starts for j in range(i + 1, self.preset.num_snapshots)]
        return float(torch.cat([self.errors_of(model, trajectories, i, j) for i, j in pairs]).median())

    def lead_time_curve(self, model: nn.Module, test: Tensor) -> dict[str, Any]:
        """Error of the fine-tuned model against lead time, in one call and step by step."""
        later = range(1, self.preset.num_snapshots)
        series = {
            "direct": [self.errors_of(model, test, 0, j) for j in later],
            "autoregressive, one snapshot a step": [
                self.errors_of(model, test, 0, j, steps=j) for j in later
            ],
        }
        return self._curve("Fine-tuned scOT: direct against autoregressive", series)

    def scheme_curve(self, schemes: dict[str, ScOT], held_out: Tensor) -> dict[str, Any]:
        """Error of both pretraining schemes against lead time, averaged over all starting snapshots."""
        last = self.preset.num_snapshots
        series = {
            name: [
                torch.cat([self.errors_of(model, held_out, i, i + gap) for i in range(last - gap)])
                for gap in range(1, last)
            ]
            for name, model in schemes.items()
        }
        return self._curve("Pretraining: all2all against vanilla, held-out pairs", series)

    def _curve(self, title: str, series: dict[str, list[Tensor]]) -> dict[str, Any]:
        return {
            "title": title,
            "x_label": "lead time (trajectory = 1)",
            "y_label": "median relative L1 error, %",
            "series": {
                name: {"x": self.times[1:].tolist(), "y": [float(value.median()) for value in values]}
                for name, values in series.items()
            },
        }

    def images(self, model: nn.Module, test: Tensor) -> list[dict[str, Any]]:
        """First velocity component of the first test trajectory at the start, at the end, and as predicted."""
        prediction = self.predict(model, test[:1, 0], 1.0)[0, 0]
        fields = {
            "Velocity u, initial": test[0, 0, 0],
            "Velocity u, final, reference": test[0, -1, 0],
            "Velocity u, final, fine-tuned scOT": prediction,
            "Absolute error": (prediction - test[0, -1, 0]).abs(),
        }
        stride = max(1, self.preset.config.image_size // 64)
        caption = f"first test trajectory, {max(self.preset.num_trajectories)} training trajectories"
        return [
            {"title": title, "values": field[::stride, ::stride].tolist(), "caption": caption}
            for title, field in fields.items()
        ]

    def report(
        self,
        errors: dict[str, list[float]],
        intermediate: dict[str, float],
        initial: dict[str, float],
        curves: list[dict[str, Any]],
        images: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """The contract's dictionary; the verdict is computed from the rows."""
        preset, counts = self.preset, self.preset.num_trajectories
        few = [count for count in counts if count <= 4]
        roles = {SCRATCH: "baseline", FNO: "baseline", FINE_TUNED: "method"}
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "role": role,
                **{f"error_{n}": e for n, e in zip(counts, errors[name], strict=True)},
            }
            for name, role in roles.items()
        ]
        rows += [
            {
                "name": f"pretraining, {name}",
                "role": "method" if name == "all2all" else "baseline",
                "error_intermediate": intermediate[name],
                "error_initial": initial[name],
            }
            for name in ("vanilla", "all2all")
        ]
        scratch, fno, tuned, vanilla, all2all = rows
        holds = (
            all(min(scratch[f"error_{n}"], fno[f"error_{n}"]) > tuned[f"error_{n}"] for n in few)
            and sum(scratch[f"error_{n}"] / tuned[f"error_{n}"] for n in few) / len(few) >= 1.5
            and all2all["error_intermediate"] < vanilla["error_intermediate"]
        )
        unit = {"unit": "%", "better": "lower"}
        n = preset.config.image_size
        return {
            "claim": (
                "A scOT pretrained all2all on fluid flow learns a new PDE from few trajectories far more "
                "accurately than the same scOT or an FNO from scratch, and all2all pretraining beats vanilla."
            ),
            "setting": {
                "data": (
                    f"2-D Navier-Stokes on {n} x {n} points, sines and Gaussian vortices: {preset.num_pretraining} "
                    f"trajectories of {preset.num_snapshots} snapshots; new PDE: a Kolmogorov force drives the flow; "
                    f"{preset.num_test} test trajectories; errors are medians of the relative L1 error from the "
                    "first snapshot to every later one"
                ),
                "model": (
                    f"scOT, {self._size(self.network())} parameters, "
                    f"and FNO, {self._size(self.arms(self.network())[FNO][0])} parameters"
                ),
                "budget": (
                    f"{preset.pretraining_steps} pretraining steps at batch {preset.batch_size} for either scheme; "
                    f"{preset.finetuning_steps} steps at batch {preset.finetuning_batch_size} for every arm and "
                    "number of trajectories; learning rates of every arm chosen on one seed that is not reported"
                ),
            },
            "metrics": {
                **{f"error_{count}": unit for count in counts},
                "error_intermediate": unit,
                "error_initial": unit,
            },
            "rows": rows,
            "criterion": (
                "with at most 4 trajectories the fine-tuned error is below both from-scratch errors, on average "
                "by a factor of at least 1.5 below scOT from scratch; and from intermediate snapshots all2all "
                "pretraining errs less than vanilla at equal steps"
            ),
            "holds": bool(holds),
            "curves": curves,
            "images": images,
        }

    @staticmethod
    def _size(model: nn.Module) -> str:
        return f"{sum(parameter.numel() for parameter in model.parameters()):,}"
