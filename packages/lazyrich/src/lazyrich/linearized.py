"""The lazy reference: what the model's tangent kernel at initialisation would have learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lazyrich._checks import checked_float, wide
from lazyrich._models import Forward, checked_batch, refuse_running_statistics, shaped, unwrapped
from lazyrich.kernel import tangent_gram

Loss = str | Callable[[Tensor, Any], Tensor] | None
IGNORED = -100


class Objective:
    """A loss on the outputs (n, points, c) of a batch, and its labels as a matrix.

    Args:
        outputs: The model's outputs in their own shape.
        y: Class indices in the shape of the outputs without their last axis (-100: ignored), or numbers in the shape of
            the outputs; a last axis of 1 may be there or not.
        loss: `"mse"`, `"cross_entropy"`, a function of outputs and y, or `None`: cross-entropy for class indices.
        name: What y is called in errors.
    """

    def __init__(self, outputs: Tensor, y: Any, loss: Loss, name: str) -> None:
        if isinstance(loss, str) and loss not in ("mse", "cross_entropy"):
            raise ValueError(
                f"loss must be 'mse', 'cross_entropy' or a function of outputs and labels, got {loss!r}"
            )
        self.shape, self.dtype, self.name = outputs.shape, wide(outputs).dtype, name
        try:
            self.y = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must be a tensor or numbers, got {type(y).__name__}") from None
        if self.y.is_inference():
            self.y = self.y.clone()
        self.width = outputs.shape[-1] if outputs.ndim > 1 else 1
        self.classes: Tensor | None = None
        self.keep, self.labels = self._read(outputs)
        if loss is None:
            loss = "mse" if self.classes is None else "cross_entropy"
        if loss == "cross_entropy" and self.width == 1:
            raise ValueError(
                "loss 'cross_entropy' needs at least two outputs; for one pass a function of your own"
            )
        self.loss: str | Callable[[Tensor, Any], Tensor] = loss
        self.kind = 0 if callable(loss) else 1 + ("mse", "cross_entropy").index(loss)

    def _read(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        y = self.y.to(outputs.device)
        if y.is_complex():
            raise TypeError(f"{self.name} must be real, got {y.dtype}")
        points = self.shape[:-1] if outputs.ndim > 1 else self.shape
        integer = not y.is_floating_point()
        if self.width > 1 and integer and y.shape in (points, (*points, 1)):
            return self._read_classes(y.reshape(-1).long(), outputs)
        if y.shape not in (self.shape, points if self.width == 1 else self.shape, (*points, self.width)):
            raise ValueError(
                f"{self.name} must have shape {tuple(points)} (class indices) or {tuple(self.shape)} (numbers) for "
                f"outputs of shape {tuple(self.shape)}, got {tuple(y.shape)}"
            )
        labels = y.reshape(-1, self.width).to(wide(outputs).dtype)
        if not bool(labels.isfinite().all()):
            raise ValueError(f"{self.name} must be finite, got NaN or infinity")
        return torch.ones(len(labels), dtype=torch.bool, device=y.device), labels

    def _read_classes(self, y: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        keep = y != IGNORED
        if not bool(keep.any()):
            raise ValueError(f"{self.name} must hold at least one label that is not {IGNORED} (ignored)")
        kept = y[keep]
        if bool((kept < 0).any()) or bool((kept >= self.width).any()):
            raise ValueError(
                f"{self.name} must be classes below {self.width}, the number of outputs (or {IGNORED}: ignored), "
                f"got {int(kept.min())} to {int(kept.max())}"
            )
        self.classes = y
        return keep, one_hot(y.clamp(min=0), self.width).to(wide(outputs).dtype)

    def __call__(self, outputs: Tensor) -> Tensor:
        """The mean loss; outputs in any shape of the right size."""
        if callable(self.loss):
            # in the type of training: a loss may hold class weights, which torch does not convert
            value = self.loss(outputs.reshape(self.shape).to(self.dtype), self.y)
            if not isinstance(value, Tensor) or value.ndim:
                raise ValueError("loss must return a scalar tensor")
            return value
        rows = outputs.reshape(-1, self.width)[self.keep]
        if self.loss == "mse":
            return (rows - self.labels[self.keep].to(rows)).square().mean()
        if self.classes is None:
            return cross_entropy(rows, self.labels[self.keep].to(rows))
        return cross_entropy(rows, self.classes[self.keep])

    def entries(self) -> Tensor:
        """Which outputs, flat, the loss looks at."""
        return self.keep.repeat_interleave(self.width)


class NotReached(ValueError):
    """The kernel's eigenvalues are too far apart for the path to be followed to the end."""


class KernelLearner:
    """Gradient flow of a model that is linear in its parameters: f = f_0 + K a, in float64.

    Args:
        kernel: (m, m) over all outputs of the training samples.
        start: (m,) outputs at initialisation.
        objective: The loss.
    """

    def __init__(self, kernel: Tensor, start: Tensor, objective: Objective) -> None:
        self.rounding = torch.finfo(wide(start).dtype).eps
        self.kernel, self.start = kernel.double(), start.double().flatten()
        self.objective, self.entries = objective, objective.entries()
        self._spectrum: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues (those that are rounding: 0), eigenvectors and the initial residual among them."""
        if self._spectrum is None:
            values, vectors = torch.linalg.eigh(self.kernel[self.entries][:, self.entries])
            values = values.where(values > 2 * self.rounding * values.max(), 0.0)
            wanted = self.objective.labels.double().flatten() - self.start
            self._spectrum = values, vectors, vectors.T @ wanted[self.entries]
        return self._spectrum

    def ridge(self, ridge: float) -> Tensor:
        """(K + ridge)^-1 (y - f_0), the pseudo-inverse at 0."""
        values, vectors, residual = self.spectrum
        return self._filled(vectors @ (residual * self._inverse(values + ridge)))

    def until(self, target: float) -> Tensor:
        """The coefficients a when the training loss first is `target`, or at the end of training if it never is.

        Raises:
            NotReached: If the path there is too long.
        """
        return self._squared(target) if self.objective.loss == "mse" else self._descended(target)

    def _squared(self, target: float) -> Tensor:
        """Residuals decay as exp(-lambda t); t by bisection."""
        values, vectors, residual = self.spectrum
        if not bool(values.any()):
            return torch.zeros_like(self.start)

        def loss(time: float) -> float:
            return float((residual * torch.exp(-values * time)).square().mean())

        if loss(0.0) <= target:
            return torch.zeros_like(self.start)
        low = -math.log(float(values.max())) - 40
        high = -math.log(float(values[values > 0].min())) + 6
        if loss(math.exp(high)) > target:
            return self._filled(vectors @ (residual * self._inverse(values)))
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if loss(math.exp(middle)) > target else (low, middle)
        grown = -torch.expm1(-values * math.exp(high))
        return self._filled(vectors @ (residual * grown * self._inverse(values)))

    def _descended(self, target: float, max_steps: int = 20_000) -> Tensor:
        """Small steps along the kernel gradient, each as long as it brings what the gradient promises."""
        a, f = torch.zeros_like(self.start), self.start.clone()
        loss, slope = self._slope(f)
        rate = 1.0
        for _ in range(max_steps):
            moved = self.kernel @ slope
            promise = float(slope @ moved)
            if loss <= target or promise <= 1e-14 * max(abs(loss), 1e-30):
                break
            allowed = loss + self.rounding * abs(loss)
            while (
                lower := float(self.objective(f - rate * moved))
            ) > allowed - 0.9 * rate * promise and rate > 1e-12:
                rate /= 2
            if lower <= target:
                rate = self._landing(f, moved, rate, target)
            a, f = a - rate * slope, f - rate * moved
            loss, slope = self._slope(f)
            rate *= 1.5
        else:
            if loss > target:
                raise NotReached(
                    f"target_train_loss={target:.3g} was not reached in {max_steps:,} steps along the kernel gradient, "
                    f"only {loss:.3g}: its eigenvalues are too far apart; centre and scale x, or take loss='mse'"
                )
        return a

    def _landing(self, f: Tensor, moved: Tensor, rate: float, target: float) -> float:
        low, high = 0.0, rate
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if float(self.objective(f - middle * moved)) > target else (low, middle)
            )
        return high

    def _slope(self, f: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            f = f.detach().requires_grad_()
            loss = self.objective(f)
            (slope,) = torch.autograd.grad(loss, f)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError("loss is not finite along the path of the linear model")
        return value, slope

    def _inverse(self, values: Tensor) -> Tensor:
        return torch.where(values > 0, 1 / values.where(values > 0, 1.0), 0.0)

    def _filled(self, kept: Tensor) -> Tensor:
        full = torch.zeros_like(self.start)
        full[self.entries] = kept
        return full


@torch.inference_mode(False)
def linearized_fit(
    model: nn.Module,
    x: Any,
    y: Any,
    x_test: Any,
    *,
    target_train_loss: float | None = None,
    ridge: float | None = None,
    loss: Loss = None,
    params: Iterable[Tensor] | None = None,
    forward: Forward | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Predictions of the model that is linear in its parameters from where it stands now: kernel regression with K.

    f_lin(x) = f_0(x) + K(x, X) a. With `target_train_loss` a is that of gradient flow when the training loss first is
    so low: in closed form for the mean squared error, in small steps along the kernel gradient for any other loss.
    With `ridge` a = (K + ridge I)^-1 (y - f_0), the minimum-norm interpolation at 0. Call it before training:
    this is what training without moving features would have given (the paper's black line). Memory: the
    kernel of all outputs, (n c)^2 numbers, and their eigenvectors.

    Args:
        model: Any module, in evaluation mode.
        x: Training samples, as in `ntk_gram`.
        y: Class indices (n,), of which -100 are ignored, or numbers in the shape of the outputs. For the mean squared
            error class indices count as one-hot rows.
        x_test: Samples to predict.
        target_train_loss: Training loss at which to stop, greater than 0. Where the kernel cannot go so low, the limit.
        ridge: At least 0, in the units of the kernel; for the mean squared error.
        loss: `"mse"` (the mean over samples and outputs), `"cross_entropy"`, or a function of outputs and y with a
            scalar result. Cross-entropy for class indices if not given, else the mean squared error.
        params: The parameters; those that require gradients if not given.
        forward: As in `ntk_gram`.
        chunk: As in `ntk_gram`.

    Returns:
        Predictions in the shape of the outputs on `x_test`, in float32 at least.

    Raises:
        ValueError: If not exactly one of `target_train_loss` and `ridge` is given, labels do not fit the outputs, or a
            target of another loss than the mean squared error is not reached in 20,000 steps.
        TypeError: As in `ntk_gram`.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])
        >>> linearized_fit(model, x, y, torch.tensor([[4.0]]), ridge=0.0)
        tensor([[12.]])
    """
    if (target_train_loss is None) == (ridge is None):
        raise ValueError("exactly one of target_train_loss and ridge must be given")
    start, at_test = outputs_of(model, x, forward), outputs_of(model, x_test, forward)
    objective = Objective(start, y, loss, "y")
    if ridge is not None:
        ridge = checked_float("ridge", ridge, least=0.0)
        if objective.loss != "mse":
            raise ValueError("ridge is for loss='mse'; other losses stop at target_train_loss")
    if target_train_loss is not None:
        target_train_loss = checked_float("target_train_loss", target_train_loss, above=0.0)
    params = None if params is None else list(params)
    learner = KernelLearner(
        tangent_gram(model, x, None, params, "full", chunk, None, forward), start, objective
    )
    a = learner.ridge(ridge) if ridge is not None else learner.until(target_train_loss or 0.0)
    across = tangent_gram(model, x_test, x, params, "full", chunk, None, forward)
    return (at_test.double() + (across.double() @ a).reshape(at_test.shape)).to(wide(at_test).dtype)


def outputs_of(model: nn.Module, x: Any, forward: Forward | None) -> Tensor:
    """The model's outputs in their own shape, without a gradient."""
    refuse_running_statistics(model)
    with torch.inference_mode(False), torch.no_grad():
        return shaped(unwrapped(model), checked_batch("x", x), forward).detach()
