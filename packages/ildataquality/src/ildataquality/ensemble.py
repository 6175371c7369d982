"""Many small regressors as one: stacked weights, one `baddbmm` a layer, and what they say of held-out episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ildataquality._checks import check_count, check_matrix, check_positive, constant_columns, count_episodes


class StackedMLP(nn.Module):
    """M multilayer perceptrons of the same shape with ReLU between, run together.

    Inputs and outputs are standardised by each model's own buffers, which `fit_stacked` sets.

    Args:
        num_models: M.
        in_features: D.
        out_features: O.
        hidden: Widths of the hidden layers.
        generator: Draws the weights, as `torch.nn.Linear` does.
        dtype: Of the parameters.
        device: Of the parameters.

    Raises:
        ValueError: If a size is below 1.

    Examples:
        >>> import torch
        >>> from ildataquality import StackedMLP
        >>> StackedMLP(4, in_features=3, out_features=2)(torch.zeros(4, 10, 3)).shape
        torch.Size([4, 10, 2])
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor

    def __init__(
        self,
        num_models: int,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128, 128),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        widths = (in_features, *hidden, out_features)
        if min(num_models, *widths) < 1:
            raise ValueError(f"all sizes must be at least 1, got {num_models} models of widths {widths}")
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            for parameters, rows in ((self.weights, fan_in), (self.biases, 1)):
                drawn = torch.rand(num_models, rows, fan_out, generator=generator, dtype=dtype)
                parameters.append(nn.Parameter(((2 * drawn - 1) / fan_in**0.5).to(device)))
        for name, width, value in (("input", in_features, 0.0), ("output", out_features, 0.0)):
            mean = torch.full((num_models, 1, width), value, dtype=dtype, device=device)
            self.register_buffer(f"{name}_mean", mean)
            self.register_buffer(f"{name}_std", torch.ones_like(mean))

    def standardized(self, inputs: Tensor) -> Tensor:
        """(M, B, D) standardised inputs -> (M, B, O) standardised outputs."""
        hidden = inputs
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden.relu() if layer else hidden, weight)
        return hidden

    def forward(self, inputs: Tensor) -> Tensor:
        """(M, B, D), or (B, D) for all models alike, -> (M, B, O)."""
        outputs = self.standardized((inputs - self.input_mean) / self.input_std)
        return outputs * self.output_std + self.output_mean


def fit_stacked(
    inputs: Tensor,
    targets: Tensor,
    members: Sequence[Tensor],
    *,
    hidden: Sequence[int] = (128, 128),
    num_steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    generator: torch.Generator | None = None,
    progress: Callable[[float], None] | None = None,
) -> StackedMLP:
    """Least-squares regression of M models at once, each on its own rows of the same arrays.

    Adam with cosine decay to zero; each model draws its own batches with replacement.

    Args:
        inputs: (N, D).
        targets: (N, O).
        members: M tensors of row numbers: what each model is trained on.
        hidden: Widths of the hidden layers.
        num_steps: Gradient steps.
        batch_size: Rows a model and step.
        learning_rate: Of Adam, at the start.
        generator: Draws weights and batches, on the CPU.
        progress: Called with the fraction done.

    Returns:
        The models, on the inputs' device and in their dtype, in evaluation mode.

    Raises:
        ValueError: If shapes do not fit, a number is not finite or a model has no rows.

    Examples:
        >>> import torch
        >>> from ildataquality import fit_stacked
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> halves = [torch.arange(64), torch.arange(32)]
        >>> generator = torch.Generator().manual_seed(0)
        >>> options = {"hidden": (16,), "num_steps": 100, "learning_rate": 0.01}
        >>> models = fit_stacked(x, 3 * x, halves, generator=generator, **options)
        >>> bool((models(x)[0] - 3 * x).abs().mean() < 0.3)
        True
    """
    inputs, targets = check_matrix("inputs", inputs), check_matrix("targets", targets)
    num_steps, batch_size = check_count("num_steps", num_steps), check_count("batch_size", batch_size)
    check_positive("learning_rate", learning_rate)
    if len(inputs) != len(targets):
        raise ValueError(f"targets must have {len(inputs)} rows as inputs has, got {len(targets)}")
    if not members or not all(len(rows) for rows in members):
        raise ValueError("members must hold at least one row for each model, got an empty one")
    # Gradients whatever the caller's mode: tensors made in inference mode cannot take part.
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = inputs.detach().clone(), targets.detach().to(inputs.dtype, copy=True)
        members = [rows.to(inputs.device, copy=True) for rows in members]
        models = StackedMLP(
            len(members),
            inputs.shape[1],
            targets.shape[1],
            hidden,
            generator=generator,
            dtype=inputs.dtype,
            device=inputs.device,
        )
        for name, values in (("input", inputs), ("output", targets)):
            _standardise(models, name, values, members)
        optimizer = _Adam(list(models.parameters()))
        batches = _batches(members, num_steps, batch_size, generator)
        for step, batch in enumerate(batches):
            decay = (1 + math.cos(math.pi * step / num_steps)) / 2
            optimizer.update(_gradients(models, inputs[batch], targets[batch]), learning_rate * decay)
            if progress is not None and step % 50 == 0:
                progress(step / num_steps)
    return models.eval().requires_grad_(False)


def _batches(
    members: Sequence[Tensor], num_steps: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """(M, B) row numbers for each step, drawn with replacement."""
    sizes = torch.tensor([[len(rows)] for rows in members])
    padded = nn.utils.rnn.pad_sequence(list(members), batch_first=True)
    for _ in range(num_steps):
        drawn = torch.rand(len(members), batch_size, generator=generator)
        yield padded.gather(1, (drawn * sizes).long().clamp_max(sizes - 1).to(padded.device))


def _gradients(models: StackedMLP, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    inside = (inputs - models.input_mean) / models.input_std
    wanted = (targets - models.output_mean) / models.output_std
    # Summed over models: each has the gradient it would have alone.
    loss = (models.standardized(inside) - wanted).square().mean((1, 2)).sum()
    return torch.autograd.grad(loss, list(models.parameters()))


class _Adam:
    """Torch's own Adam in its functional form.

    Constructing `torch.optim.Adam` imports torch's compiler, which takes longer than a small fit.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.steps = [torch.zeros((), device=p.device) for p in parameters]

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        adam(
            list(self.parameters),
            list(gradients),
            self.first,
            self.second,
            [],
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def _standardise(models: StackedMLP, name: str, values: Tensor, members: Sequence[Tensor]) -> None:
    for model, rows in enumerate(members):
        part = values[rows]
        std = part.double().std(0, correction=0).masked_fill(constant_columns(part), 1)
        getattr(models, f"{name}_mean")[model, 0] = part.double().mean(0)
        getattr(models, f"{name}_std")[model, 0] = std


def held_out_residuals(
    inputs: Tensor,
    targets: Tensor,
    episode_id: Tensor,
    *,
    folds: int = 5,
    hidden: Sequence[int] = (64, 64),
    num_steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What regressors trained on other episodes miss, and how much they disagree.

    Episodes are dealt into K folds, and one model is trained without each fold. With states and actions this is the
    model-based action divergence D_i = ||pi_k(s_i) - a_i||^2 with k the model that has not seen the episode; with
    (state, action) and s' - s, the residuals' covariance estimates the system's noise.

    Args:
        inputs: (N, D).
        targets: (N, O).
        episode_id: (N,) in 0..E-1.
        folds: K, 2..E.
        hidden: Widths of the models.
        num_steps: Gradient steps of each.
        batch_size: Rows a model and step.
        learning_rate: Of Adam, at the start.
        generator: Deals the folds, draws weights and batches.

    Returns:
        (N, O) residuals target - prediction of the model that has not seen the episode, and (N,) disagreement: the
        variance over all K models' predictions, summed over the outputs.

    Raises:
        ValueError: If shapes do not fit, a number is not finite or `folds` is out of range.

    Examples:
        >>> import torch
        >>> from ildataquality import held_out_residuals
        >>> x, episode = torch.rand(40, 2), torch.arange(40) // 10
        >>> residuals, disagreement = held_out_residuals(x, x, episode, folds=2, num_steps=10)
        >>> residuals.shape, disagreement.shape
        (torch.Size([40, 2]), torch.Size([40]))
    """
    inputs, targets = check_matrix("inputs", inputs), check_matrix("targets", targets)
    num_episodes = count_episodes(episode_id, len(inputs))
    folds = check_count("folds", folds, least=0)
    if not 2 <= folds <= num_episodes:
        raise ValueError(f"folds must lie in 2..{num_episodes} (the number of episodes), got {folds}")
    dealt = torch.randperm(num_episodes, generator=generator).to(episode_id.device) % folds
    fold = dealt[episode_id]
    members = [(fold != left_out).nonzero()[:, 0] for left_out in range(folds)]
    models = fit_stacked(
        inputs,
        targets,
        members,
        hidden=hidden,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=generator,
    )
    predicted = models(inputs)
    own = predicted[fold, torch.arange(len(inputs), device=inputs.device)]
    return targets - own, predicted.var(0, correction=0).sum(1)
