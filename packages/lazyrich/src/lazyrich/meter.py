"""The three meters of a run in progress: kernel drift, kernel-target alignment, and what the first kernel explains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lazyrich._checks import checked_float, checked_integer, wide
from lazyrich._models import Forward, checked_batch, evaluating, fingerprint, size, trainable, unwrapped
from lazyrich.kernel import MODES, centered, cka, draw_directions, kta, tangent_gram
from lazyrich.linearized import KernelLearner, Loss, NotReached, Objective, outputs_of


@dataclass(frozen=True)
class LazyReading:
    """What `LazyMeter.step` read.

    Args:
        step: As given by the user.
        kta: Alignment of the present kernel with the labels, 0 to 1.
        drift: 1 - CKA(K_t, K_0): 0 while the features are frozen; 1 where the kernel has become one number for all
            pairs, as that of a saturated or dead network, and nothing of the first is left.
        weight_rel_change: ||theta_t - theta_0|| / ||theta_0||.
        train_loss: Of the network, on the probe.
        test_loss: Of the network on the test samples, if the meter has them.
        lazy_fraction: Cosine of f_t - f_0 and f_lin - f_0 on the test samples (the probe, if there are none), f_lin
            being the first kernel's fit to the probe at the same loss: 1 while the run is kernel regression on the
            probe. `None` if the meter has no reference, before the loss has fallen, or where the fit of another loss
            than the mean squared error is not reached in 20,000 steps.
        lazy_gap: Test loss of the network less that of f_lin: below 0 where features have paid. `None` likewise.
    """

    step: int
    kta: float
    drift: float
    weight_rel_change: float
    train_loss: float
    test_loss: float | None
    lazy_fraction: float | None
    lazy_gap: float | None


class LazyMeter:
    """Tell a lazy phase of training from a rich one while it runs (section 3 of the paper).

    Make it before training: the model's state at this call is theta_0. `step` costs one forward and
    c backward passes over the probe (`"project"`: as many as projections). The model is read in evaluation mode; its
    modes, gradients and buffers are left as they were.

    Args:
        model: Any module; `OutputScale` too. The scale cancels in drift and alignment.
        x_probe: n >= 2 samples: a tensor, a tuple or a mapping, as in `ntk_gram`. Drift and alignment may be read on
            any; `lazy_fraction` and `lazy_gap` need the whole training set: the reference learns from nothing else.
        y_probe: Class indices (n,), or of every position (n, t) with -100 ignored; or numbers shaped as the outputs.
        params: The parameters; those that require gradients if not given.
        x_test: Held-out samples for `test_loss`, `lazy_fraction` and `lazy_gap`.
        y_test: Their labels.
        loss: As in `linearized_fit`.
        mode: As in `ntk_gram`. The directions of `"project"` are drawn once.
        reference: Hold the first kernel of all outputs, (n c)^2 numbers, for `lazy_fraction` and `lazy_gap`. For losses
            other than the mean squared error each step descends anew in the space of outputs.
        center: Read `kta` of centred kernel and labels.
        chunk: As in `ntk_gram`.
        forward: As in `ntk_gram`.
        num_projections: As in `ntk_gram`.
        generator: As in `ntk_gram`.

    Raises:
        ValueError: If the probe has fewer than 2 points, labels do not fit the outputs or are constant where `center`
            is asked for, or only one of `x_test` and `y_test` is given.
        TypeError: If the model has no parameters that require gradients.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> meter = LazyMeter(model, x, torch.tensor([0.0, 1.0, 2.0]))
        >>> round(meter.step(0).drift, 5), meter.onset()
        (0.0, None)
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        x_probe: Any,
        y_probe: Any,
        params: Iterable[Tensor] | None = None,
        *,
        x_test: Any = None,
        y_test: Any = None,
        loss: Loss = None,
        mode: str = "trace",
        reference: bool = True,
        center: bool = False,
        chunk: int | None = None,
        forward: Forward | None = None,
        num_projections: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if (x_test is None) != (y_test is None):
            raise ValueError("x_test and y_test must be given together")
        self.model, self.mode, self.chunk, self.forward, self.center = (
            unwrapped(model),
            mode,
            chunk,
            forward,
            center,
        )
        self._parameters = trainable(self.model, params)
        self._x = checked_batch("x_probe", x_probe)
        self._x_test = None if x_test is None else checked_batch("x_test", x_test)
        self.readings: list[LazyReading] = []
        with evaluating(self.model):
            start = outputs_of(self.model, self._x, forward)
            self._objective = Objective(start, y_probe, loss, "y_probe")
            self._check_probe()
            self._directions: Tensor | None = None
            if mode == "project":
                number = checked_integer("num_projections", num_projections, 1)
                self._directions = draw_directions(number, self._objective.width, generator)
            self._kernel = self._gram()
            self._theta = [wide(p.detach().clone()) for p in self._parameters]
            self._start: Tensor = start
            self._start_test: Tensor | None = None
            self._across: Tensor | None = None
            self._test_objective: Objective | None = None
            if self._x_test is not None:
                self._start_test = outputs_of(self.model, self._x_test, forward)
                self._test_objective = Objective(self._start_test, y_test, loss, "y_test")
            self._learner = self._reference() if reference else None
        self._alignment(self._kernel)  # its errors belong here
        tests = (self._x_test, self._test_objective.y) if self._test_objective is not None else ()
        self._probe = fingerprint(self._x, self._objective.y, *tests)

    def _check_probe(self) -> None:
        keep = self._objective.keep
        if size(self._x) < 2 or int(keep.sum()) < 2:
            raise ValueError(f"x_probe must have at least 2 points with labels, got {int(keep.sum())}")

    def _gram(self) -> Tensor:
        kernel = tangent_gram(
            self.model, self._x, None, self._parameters, self.mode, self.chunk, self._directions, self.forward
        )
        keep = self._objective.entries() if self.mode == "full" else self._objective.keep
        return kernel[keep][:, keep]

    def _reference(self) -> KernelLearner:
        def full(x: Any, x2: Any) -> Tensor:
            return tangent_gram(self.model, x, x2, self._parameters, "full", self.chunk, None, self.forward)

        if self._x_test is not None:
            self._across = full(self._x_test, self._x).double()
        return KernelLearner(full(self._x, None), self._start, self._objective)

    @torch.inference_mode(False)
    def step(self, step: int) -> LazyReading:
        """Read the meters now.

        Args:
            step: The number of the training step, to find the reading by; not below the last one.

        Returns:
            The reading, also appended to `readings`.

        Raises:
            ValueError: If `step` is below the last, or the model gives NaN or infinity.
        """
        step = checked_integer("step", step, 0)
        if self.readings and step < self.readings[-1].step:
            raise ValueError(f"step must not fall, got {step} after {self.readings[-1].step}")
        with evaluating(self.model):
            kernel = self._gram()
            outputs = outputs_of(self.model, self._x, self.forward)
            at_test = None if self._x_test is None else outputs_of(self.model, self._x_test, self.forward)
        reading = self._read(step, kernel, outputs, at_test)
        self.readings.append(reading)
        return reading

    @torch.no_grad()
    def _read(self, step: int, kernel: Tensor, outputs: Tensor, at_test: Tensor | None) -> LazyReading:
        train_loss = float(self._objective(wide(outputs)))
        test_loss = None
        if at_test is not None and self._test_objective is not None:
            test_loss = float(self._test_objective(wide(at_test)))
        if not math.isfinite(train_loss) or (test_loss is not None and not math.isfinite(test_loss)):
            raise ValueError(f"the model's loss is not finite at step {step}: {train_loss}, {test_loss}")
        lazy = self._lazy(train_loss)
        moved = outputs if at_test is None else at_test
        start = self._start if self._start_test is None else self._start_test
        fraction = gap = None
        if lazy is not None:
            pair = ((moved.double() - start.double()).flatten(), lazy - start.double().flatten())
            if bool(pair[0].any()) and bool(pair[1].any()):
                fraction = float(cosine_similarity(*pair, dim=0))
            if test_loss is not None and self._test_objective is not None:
                gap = test_loss - float(self._test_objective(lazy))
        return LazyReading(
            step=step,
            kta=self._alignment(kernel),
            drift=self._drift(kernel),
            weight_rel_change=self._moved(),
            train_loss=train_loss,
            test_loss=test_loss,
            lazy_fraction=fraction,
            lazy_gap=gap,
        )

    def _drift(self, kernel: Tensor) -> float:
        if _constant(kernel):
            return 1.0
        return max(1 - float(cka(kernel.double(), self._kernel.double())), 0.0)

    def _alignment(self, kernel: Tensor) -> float:
        objective = self._objective
        if self.center and _constant(kernel):
            return 0.0
        if self.mode == "full":
            return float(kta(kernel.double(), objective.labels.flatten()[objective.entries()], self.center))
        return float(kta(kernel.double(), objective.labels[objective.keep], self.center))

    def _lazy(self, train_loss: float) -> Tensor | None:
        """The reference's outputs, flat, at this training loss; `None` if that has not fallen, or is out of reach."""
        if self._learner is None or train_loss >= float(self._objective(self._learner.start)) * (1 - 1e-9):
            return None
        try:
            a = self._learner.until(train_loss)
        except NotReached:
            return None
        if self._across is None or self._start_test is None:
            return self._learner.start + self._learner.kernel @ a
        return self._start_test.double().flatten() + self._across @ a

    def _moved(self) -> float:
        pairs = list(zip(self._parameters, self._theta, strict=True))
        change = sum(float((wide(p.detach()) - start).double().square().sum()) for p, start in pairs)
        norm = sum(float(start.double().square().sum()) for _, start in pairs)
        return math.sqrt(change / norm) if norm else (math.inf if change else 0.0)

    def onset(self, threshold: float = 0.1) -> int | None:
        """The first step read at which the kernel has drifted beyond `threshold`: features are being learnt.

        Args:
            threshold: Of the drift, greater than 0.

        Returns:
            The step, or `None` if there is none yet.
        """
        threshold = checked_float("threshold", threshold, above=0.0)
        return next((reading.step for reading in self.readings if reading.drift > threshold), None)

    def state_dict(self) -> dict[str, Tensor]:
        """What the next reading depends on beside the model, all tensors: for `torch.save` or safetensors."""
        state = {
            "kernel": self._kernel,
            "start": self._start,
            "readings": torch.tensor([_numbers(one) for one in self.readings], dtype=torch.float64).view(
                -1, 8
            ),
            "setting": torch.tensor(
                [
                    MODES.index(self.mode),
                    int(self.center),
                    int(self._learner is not None),
                    self._objective.kind,
                ]
            ),
            "probe": torch.tensor(self._probe, dtype=torch.float64),
        }
        state |= {f"theta.{i}": one for i, one in enumerate(self._theta)}
        optional = {"directions": self._directions, "start_test": self._start_test, "across": self._across}
        if self._learner is not None:
            optional["reference"] = self._learner.kernel
        state |= {name: one for name, one in optional.items() if one is not None}
        return {name: one.clone() for name, one in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a meter that was saved, in one made with the same model, probe and options.

        Args:
            state: As from `state_dict`.

        Raises:
            ValueError: If it is of another model, probe or option; of the model only the shapes are compared, and of a
                loss of one's own only that it is one.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"state must hold {sorted(own)}, got {sorted(state)}")
        for name, one in own.items():
            if name != "readings" and state[name].shape != one.shape:
                raise ValueError(
                    f"state[{name!r}] must have shape {tuple(one.shape)}, got {tuple(state[name].shape)}"
                )
        if not torch.equal(state["setting"].cpu(), own["setting"].cpu()):
            raise ValueError("state is of a meter with another mode, center, reference or loss")
        if not torch.allclose(state["probe"].cpu(), own["probe"], rtol=1e-9, equal_nan=True):
            raise ValueError(
                "state is of a meter with another x_probe, y_probe, x_test or y_test, or in another order"
            )
        taken = {name: state[name].detach().clone().to(own[name]) for name in own}
        self._kernel, self._start = taken["kernel"], taken["start"]
        self._theta = [taken[f"theta.{i}"] for i in range(len(self._theta))]
        self._directions, self._start_test = taken.get("directions"), taken.get("start_test")
        self._across = taken.get("across")
        if self._learner is not None:
            self._learner = KernelLearner(taken["reference"], self._start, self._objective)
        self.readings = [_reading(row) for row in taken["readings"].tolist()]


def _numbers(reading: LazyReading) -> list[float]:
    return [math.nan if one is None else float(one) for one in astuple(reading)]


def _reading(row: Sequence[float]) -> LazyReading:
    values = {
        one.name: None if math.isnan(value) else value
        for one, value in zip(fields(LazyReading), row, strict=True)
    }
    return LazyReading(**{**values, "step": int(row[0])})  # type: ignore[arg-type]


def grok_delay(
    steps: Sequence[int] | Tensor,
    train: Sequence[float] | Tensor,
    test: Sequence[float] | Tensor,
    frac: float = 0.1,
) -> float:
    """How much later the test loss falls than the training loss: log(t_test / t_train).

    t is the first recorded step at which a loss is at most `frac` of its first value. Losses, not accuracies: a
    thresholded score exaggerates.

    Args:
        steps: Step of each record, rising, from 0 on.
        train: Training losses, one a record.
        test: Test losses, one a record.
        frac: Between 0 and 1.

    Returns:
        The delay in units of e-folds of time: about 0 if both fall together, infinity if only the training loss does,
        minus infinity if only the test loss does, NaN if neither.

    Raises:
        ValueError: If lengths differ, steps do not rise or are negative, a loss is NaN or the first is not above 0, or
            `frac` is not between 0 and 1.

    Examples:
        >>> round(grok_delay([0, 1, 10, 100], [1.0, 0.05, 0.0, 0.0], [1.0, 1.0, 0.9, 0.01]), 3)
        4.605
    """
    frac = checked_float("frac", frac, above=0.0)
    if frac >= 1:
        raise ValueError(f"frac must be below 1, got {frac}")
    times = torch.as_tensor(steps, dtype=torch.float64).flatten()
    if len(times) < 2 or bool((times.diff() <= 0).any()) or bool(times[0] < 0):
        raise ValueError("steps must be at least two rising numbers from 0 on")
    first = [_first_below(times, values, frac, name) for values, name in ((train, "train"), (test, "test"))]
    if math.inf in first:
        return math.nan if first[0] == first[1] else (math.inf if first[1] == math.inf else -math.inf)
    return math.log(first[1] / first[0])


def _first_below(times: Tensor, values: Sequence[float] | Tensor, frac: float, name: str) -> float:
    losses = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if losses.shape != times.shape:
        raise ValueError(
            f"{name} must have one loss per step, got shape {tuple(losses.shape)} for {len(times)} steps"
        )
    if bool(losses.isnan().any()) or not 0 < float(losses[0]) < math.inf:
        raise ValueError(f"{name} must start above 0, finite, and hold no NaN")
    below = (losses <= frac * losses[0]).nonzero()
    return float(times[below[0, 0]]) if len(below) else math.inf


def _constant(kernel: Tensor) -> bool:
    """Whether a kernel is one number for all pairs, up to rounding."""
    return bool(centered(kernel.double()).norm() <= 1e-13 * kernel.double().norm())
