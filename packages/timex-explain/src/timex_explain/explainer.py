"""TimeX: an explainer that learns to see only what matters, by behaving as the explained model does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from timex_explain._calls import Caller, Embed
from timex_explain._checks import (
    check_count,
    check_device,
    check_finite,
    check_labels,
    check_padding,
    check_positive,
    check_series,
    check_sorted,
    check_times,
)
from timex_explain.landmarks import cosine, straight_through_categorical, stratified_rows
from timex_explain.losses import (
    check_density,
    check_mode,
    connectedness,
    label_consistency,
    mbc_loss,
    simclr_loss,
    sparsity,
)
from timex_explain.masks import (
    Mask,
    MaskGenerator,
    Replacement,
    SequenceEncoder,
    attention_mask,
    default_times,
)


@dataclass(frozen=True)
class Objective:
    """What the explainer is trained for; the defaults are the paper's on its synthetic sets.

    total = explanation (sparsity + connectedness C) + similarity (consistency + landmark Λ + label L)

    Attributes:
        density: r of the sparsity term, in (0, 1): 0.5 on the synthetic sets, 0.1 on PAM.
        explanation: Weight of the two terms about the mask.
        connectedness: C, relative to sparsity.
        connectedness_mode: `"official"` (the paper's code, which its weights and figures belong to) or
            `"l1"` (the equation as printed: far stronger at the same weight).
        similarity: Weight of the terms about behaviour.
        consistency: `"mbc"`, or one of the paper's ablations, `"simclr"` and `"none"`.
        normalized: Whether the consistency is divided by the variance of the model's similarities.
        label: L, the weight of label consistency; zero is an ablation.
        label_mode: `"pairwise"` (the paper's equation) or `"official"` (its code).
        landmark: Λ, the weight of the consistency of landmarks, which moves nothing but the landmarks.

    Raises:
        ValueError: If a number or a name is not one of those.
    """

    density: float = 0.5
    explanation: float = 2.0
    connectedness: float = 2.0
    connectedness_mode: Literal["official", "l1"] = "official"
    similarity: float = 1.0
    consistency: Literal["mbc", "simclr", "none"] = "mbc"
    normalized: bool = False
    label: float = 1.0
    label_mode: Literal["pairwise", "official"] = "pairwise"
    landmark: float = 1.0

    def __post_init__(self) -> None:
        check_density(self.density)
        check_mode(self.connectedness_mode)
        if self.consistency not in ("mbc", "simclr", "none"):
            raise ValueError(f"consistency must be 'mbc', 'simclr' or 'none', got {self.consistency!r}")
        if self.label_mode not in ("pairwise", "official"):
            raise ValueError(f"label_mode must be 'pairwise' or 'official', got {self.label_mode!r}")
        for name in ("explanation", "connectedness", "similarity", "label", "landmark"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


class TimeXOutput(NamedTuple):
    """Everything one forward pass makes.

    Attributes:
        prob: (batch, T, D), the saliency map.
        mask: (batch, T, D), the mask drawn from it.
        logits: (batch, C) of the explained model on the whole series.
        logits_explanation: (batch, C) of the explainer's own head on the masked series.
        z: (batch, d_z), the explained model's embedding of the whole series.
        z_explanation: (batch, d_z), the explainer's embedding of the masked series.
        z_landmark: (batch, d_z), the landmark chosen for each series.
        assignment: (batch,), its number.
        padding: (batch, T) bool or None, as given.
    """

    prob: Tensor
    mask: Tensor
    logits: Tensor
    logits_explanation: Tensor
    z: Tensor
    z_explanation: Tensor
    z_landmark: Tensor
    assignment: Tensor
    padding: Tensor | None


class TimeX(nn.Module):
    """Explain a trained time-series classifier by masks, learnt once and then one forward pass each.

    A mask generator picks points and sensors; a second encoder, started as a copy of the classifier, sees
    only those; it is trained so that pairs of series are as similar in its embedding space, and as
    different in its predictions, as for the classifier itself (arXiv 2306.02109, section 4). The mask's
    probabilities are the saliency map.

    The explainer keeps a frozen copy of the classifier, always in evaluation mode: yours is neither
    changed nor kept. Parameters are made with the dtype and on the device of `replacement`. The losses
    compare pairs within the batch of a process; nothing is reduced over processes. Under
    DistributedDataParallel set `find_unused_parameters=True`, since the copy's own head is not used.

    Args:
        reference: The trained classifier: called with (batch, T, D), it returns logits (batch, C).
        replacement: What masked values are replaced by; fit it on training series.
        embed: The name of the submodule that gives z (batch, d_z), the vector the classifier's decision is
            made from; or a callable `embed(model, x, **extra_inputs)` that returns (logits, z).
        embed_side: `"output"`, or `"input"` to take what goes *into* that submodule, as for `embed="head"`.
        encoder: The explanation encoder: None for a copy of the classifier, a module with the same insides
            (such as an untrained one, the paper's ablation), or `"shared"` for the frozen classifier.
        memory: What the mask decoder looks at: None for a `SequenceEncoder` of its own, a module called
            with (x, times, padding) that returns (batch, S, channels), or the name of a submodule of the
            classifier whose output is that.
        num_landmarks: K.
        objective: What it is trained for.
        masking: `"replace"` masked values (any classifier); `"attention"` multiplies the classifier's attention by
            the mask and leaves the values (the paper's for transformers of one sensor); `"both"` (the
            paper's for transformers of several). The last two need `extra_inputs["attention"]`.
        extra_inputs: What else the classifier takes, and by which keyword: `times` (batch, T), `padding`
            (batch, T) bool, `attention` (batch, T, T), for instance `{"padding": "src_key_padding_mask"}`.
        temperature: Of the mask's draw.
        hard: Whether the mask's values are zeros and ones; False is the ablation without straight-through.

    Attributes:
        reference: The frozen copy.
        encoder: The explanation encoder.
        mask_generator: The `MaskGenerator`.
        landmarks: (K, d_z) parameter; set it by `init_landmarks` before training.

    Raises:
        ValueError: If a name is unknown, `embed` gives no vector per series, or a number is too small.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.randn(32, 20, 2), torch.arange(32) % 3
        >>> explainer = TimeX(classifier, Replacement.fit(x), embed="2", num_landmarks=6)
        >>> explainer.init_landmarks([(x, y)])
        >>> explainer.losses(explainer(x))["total"].backward()
        >>> explainer.eval().explain(x).shape
        torch.Size([32, 20, 2])
    """

    def __init__(
        self,
        reference: nn.Module,
        replacement: Replacement,
        *,
        embed: Embed,
        embed_side: Literal["output", "input"] = "output",
        encoder: nn.Module | Literal["shared"] | None = None,
        memory: nn.Module | str | None = None,
        num_landmarks: int = 50,
        objective: Objective | None = None,
        masking: Literal["replace", "attention", "both"] = "replace",
        extra_inputs: Mapping[str, str] | None = None,
        temperature: float = 1.0,
        hard: bool = True,
    ) -> None:
        super().__init__()
        check_count(num_landmarks, "num_landmarks")
        check_positive(temperature, "temperature")
        self._call = Caller(
            embed, embed_side, dict(extra_inputs or {}), memory if isinstance(memory, str) else None
        )
        _check_masking(masking, self._call.extra_inputs)
        self.masking, self.objective = masking, objective or Objective()
        self.reference = copy.deepcopy(reference).requires_grad_(False).eval()
        self.replacement = replacement
        self.explanation_encoder = _make_encoder(reference, encoder)
        for parameter in self.reference.parameters():
            check_device(parameter, replacement.mean.device, "reference")

        length, num_features = replacement.length, replacement.num_features
        made: dict[str, Any] = {"device": replacement.mean.device, "dtype": replacement.mean.dtype}
        longest = float(length)  # the longest scale of time in the official code; the paper leaves it open
        if memory is None:
            self.sequence_encoder: nn.Module | None = SequenceEncoder(
                num_features, position_base=longest, **made
            )
        else:
            self.sequence_encoder = memory if isinstance(memory, nn.Module) else None
        logits, z, states = self._probe()
        self.num_classes, self.embedding_size = logits.shape[1], z.shape[1]
        self.mask_generator = MaskGenerator(
            num_features, states.shape[2], temperature=temperature, hard=hard, position_base=longest, **made
        )
        self.head = nn.Sequential(
            nn.Linear(self.embedding_size, self.embedding_size, **made),
            nn.ReLU(),
            nn.Linear(self.embedding_size, self.num_classes, **made),
        )
        self.landmarks = nn.Parameter(torch.randn(num_landmarks, self.embedding_size, **made))

    @property
    def encoder(self) -> nn.Module:
        """The explanation encoder: a module of its own, or the frozen classifier where that is shared."""
        return self.reference if self.explanation_encoder is None else self.explanation_encoder

    def forward(
        self,
        x: Tensor,
        times: Tensor | None = None,
        padding: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TimeXOutput:
        """Mask each series, embed it, and find its landmark.

        Values are not looked at (a finite `x` is checked where data first come in: `Replacement.fit`,
        `init_landmarks`, `explain`).

        Args:
            x: (batch, T, D).
            times: (batch, T), sorted; 1..T if None.
            padding: (batch, T) bool, true where a series has ended. Such points are never kept, replaced,
                or counted.
            generator: Source of masks, replacements and landmark choices, on the device of `x`.

        Returns:
            Masks, predictions, embeddings and landmarks. In evaluation mode landmarks are the nearest
            ones; masks are drawn in either mode.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If dtypes or devices do not fit.
        """
        times = self._check(x, times, padding)
        logits, z, memory = self._reference_pass(x, times, padding)
        mask = self.mask_generator(x, memory, times, padding, generator)
        logits_explanation, z_explanation = self._explanation_pass(x, mask, times, padding, generator)
        choice = self._choose(z_explanation, generator)
        return TimeXOutput(
            prob=mask.prob,
            mask=mask.sample,
            logits=logits,
            logits_explanation=logits_explanation,
            z=z,
            z_explanation=z_explanation,
            z_landmark=choice.to(self.landmarks.dtype) @ self.landmarks,
            assignment=choice.argmax(-1),
            padding=padding,
        )

    def losses(self, output: TimeXOutput) -> dict[str, Tensor]:
        """Compute the loss and its terms (arXiv 2306.02109, eq. 3).

        Args:
            output: What a forward pass on at least two series returned.

        Returns:
            Scalars: `total` (weighted by the objective) and, unweighted, `consistency`, `landmark`,
            `label`, `sparsity`, `connectedness`. A term of weight zero is not computed and is zero.

        Raises:
            ValueError: If the batch is too small to have pairs.
        """
        objective, prob, padding = self.objective, output.prob, output.padding
        zero = prob.new_zeros(())
        terms = {"consistency": zero, "landmark": zero, "label": zero}
        if objective.consistency == "mbc":
            terms["consistency"] = mbc_loss(output.z, output.z_explanation, normalized=objective.normalized)
        elif objective.consistency == "simclr":
            terms["consistency"] = simclr_loss(output.z, output.z_explanation)
        if objective.landmark:
            terms["landmark"] = mbc_loss(output.z, output.z_landmark, normalized=objective.normalized)
        if objective.label:
            terms["label"] = label_consistency(
                output.logits, output.logits_explanation, official=objective.label_mode == "official"
            )
        terms["sparsity"] = sparsity(prob, objective.density, padding)
        terms["connectedness"] = connectedness(prob, padding, objective.connectedness_mode)
        about_mask = terms["sparsity"] + objective.connectedness * terms["connectedness"]
        about_behaviour = (
            terms["consistency"] + objective.landmark * terms["landmark"] + objective.label * terms["label"]
        )
        total = objective.explanation * about_mask + objective.similarity * about_behaviour
        return {"total": total, **terms}

    @torch.no_grad()
    def explain(
        self, x: Tensor, times: Tensor | None = None, padding: Tensor | None = None, *, batch_size: int = 128
    ) -> Tensor:
        """Give the saliency maps: one pass of the mask generator, nothing drawn, no gradient.

        Modules that behave differently in training are in evaluation mode meanwhile, so that the same
        series always gets the same map, whatever else is in the batch.

        Args:
            x: (batch, T, D), of any number of series.
            times: (batch, T), sorted; 1..T if None.
            padding: (batch, T) bool, true where a series has ended.
            batch_size: Series at a time, which bounds the memory: O(batch_size T²).

        Returns:
            (batch, T, D) in [0, 1], zero where padded.

        Raises:
            ValueError: If shapes do not fit, values are not finite, times go backwards, a series is all
                padding, or `batch_size` is not positive.
            TypeError: If dtypes or devices do not fit.
        """
        check_count(batch_size, "batch_size")
        stamps = self._check(x, times, padding)
        _check_values(x, times, padding)
        maps = []
        with _evaluating(self):
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                part = (x[rows], stamps[rows], None if padding is None else padding[rows])
                maps.append(self.mask_generator.prob(part[0], self._memory_of(*part), *part[1:]))
        return torch.cat(maps)

    @torch.no_grad()
    def init_landmarks(
        self, batches: Iterable[Sequence[Any]], generator: torch.Generator | None = None
    ) -> None:
        """Set the landmarks to the classifier's embeddings of training series, the classes in turn.

        Args:
            batches: Batches (x, labels), (x, labels, times) or (x, labels, times, padding), such as a loader.
            generator: Source of the choice among them, on the CPU.

        Raises:
            ValueError: If there are no batches, shapes do not fit, or values are not finite.
            TypeError: If dtypes or devices do not fit.
        """
        embeddings, labels = [], []
        for x, of_x, *rest in batches:
            times, padding = (*rest, None, None)[:2]
            stamps = self._check(x, times, padding)
            _check_values(x, times, padding)
            check_labels(of_x, len(x))
            embeddings.append(self._call(self.reference, x, times=stamps, padding=padding)[1])
            labels.append(of_x)
        if not embeddings:
            raise ValueError("batches must hold at least one batch, got none")
        rows = stratified_rows(torch.cat(labels), len(self.landmarks), generator)
        self.landmarks.copy_(torch.cat(embeddings)[rows.to(self.landmarks.device)])

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the frozen classifier, which stays in evaluation mode."""
        super().train(mode)
        self.reference.eval()
        return self

    # --- parts of a pass ---------------------------------------------------------------------------

    def _reference_pass(
        self, x: Tensor, times: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and z of the frozen classifier, and the memory of the mask decoder."""
        if self._call.memory is not None:
            with torch.no_grad():
                logits, z, memory = self._call.with_memory(self.reference, x, times=times, padding=padding)
            return logits, z, memory
        with torch.no_grad():
            logits, z = self._call(self.reference, x, times=times, padding=padding)
        return logits, z, self._memory_of(x, times, padding)

    def _memory_of(self, x: Tensor, times: Tensor, padding: Tensor | None) -> Tensor:
        if self.sequence_encoder is None:
            return self._call.with_memory(self.reference, x, times=times, padding=padding)[2]
        states: Tensor = self.sequence_encoder(x, times, padding)
        return states

    def _explanation_pass(
        self, x: Tensor, mask: Mask, times: Tensor, padding: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        sample, seen, attention = mask.sample, x, None
        if padding is not None:  # the end of a series is no secret, and nothing else may stand there
            sample = sample.masked_fill(padding.unsqueeze(-1), 1.0)
        if self.masking != "attention":
            seen = self.replacement(x, sample, generator)
        if self.masking != "replace":
            attention = attention_mask(mask.sample)
        _, z = self._call(self.encoder, seen, times=times, padding=padding, attention=attention)
        return self.head(z), z

    def _choose(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """One-hot choice of a landmark for each embedding, whose gradient reaches only the landmarks."""
        exact = torch.promote_types(z.dtype, torch.float32)
        similarity = cosine(z.detach().to(exact), self.landmarks.to(exact))
        if self.training:
            return straight_through_categorical(similarity.log_softmax(-1), 0.1, generator)
        return torch.zeros_like(similarity).scatter_(-1, similarity.argmax(-1, keepdim=True), 1.0)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        """One pass on the mean series, which shows the sizes, and what does not fit."""
        x = self.replacement.mean.unsqueeze(0)
        with _evaluating(self):
            times = default_times(x)
            if self.explanation_encoder is not None:
                attention = x.new_ones(1, x.shape[1], x.shape[1]) if self.masking != "replace" else None
                self._call(self.encoder, x, times=times, attention=attention)
            return self._reference_pass(x, times, None)

    def _check(self, x: Tensor, times: Tensor | None, padding: Tensor | None) -> Tensor:
        """Check shapes, dtypes and devices; return the time stamps."""
        check_series(x, length=self.replacement.length, sensors=self.replacement.num_features)
        check_device(self.replacement.mean, x.device, "the explainer")
        check_times(times, x)
        check_padding(padding, x)
        return default_times(x) if times is None else times


def _make_encoder(reference: nn.Module, encoder: nn.Module | str | None) -> nn.Module | None:
    """Give the module that sees masked series; None stands for the frozen classifier."""
    if encoder is None:
        return copy.deepcopy(reference).requires_grad_(True)
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder != "shared":
        raise ValueError(f"encoder must be a module, 'shared' or None, got {encoder!r}")
    return None


def _check_masking(masking: str, extra_inputs: Mapping[str, str]) -> None:
    if masking not in ("replace", "attention", "both"):
        raise ValueError(f"masking must be 'replace', 'attention' or 'both', got {masking!r}")
    if masking != "replace" and "attention" not in extra_inputs:
        raise ValueError(
            f"masking {masking!r} must have extra_inputs['attention'], the classifier's keyword for it, "
            f"got {sorted(extra_inputs)}"
        )


def _check_values(x: Tensor, times: Tensor | None, padding: Tensor | None) -> None:
    check_finite(x)
    check_sorted(times, padding)
    if padding is not None and bool(padding.all(1).any()):
        raise ValueError("padding must leave at least one point of every series, got a series without any")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put everything in evaluation mode, and back as it was."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
