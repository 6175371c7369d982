"""TimeX: an explainer that learns to see only what matters, by behaving as the explained model does."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from timex_explain._calls import Caller, Embed, Logits
from timex_explain._checks import (
    check_classes,
    check_count,
    check_device,
    check_dtype,
    check_labels,
    check_padding,
    check_positive,
    check_series,
    check_times,
    check_values,
    clean_padded,
    read_batch,
)
from timex_explain._classifier import (
    check_apart,
    check_fits,
    copy_of,
    differentiable,
    evaluating,
    frozen_copy,
    make_encoder,
)
from timex_explain.landmarks import cosine, straight_through_categorical, stratified_rows
from timex_explain.masks import (
    Mask,
    MaskGenerator,
    SequenceEncoder,
    attention_mask,
    default_times,
)
from timex_explain.objective import Objective, TimeXOutput, loss_terms
from timex_explain.replacement import Replacement

_MASKINGS = ("replace", "attention", "both")


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
        reference: The trained classifier: called with (batch, T, D), it returns logits (batch, C), or an
            object or mapping whose `logits` they are.
        replacement: What masked values are replaced by; fit it on training series. A copy is kept.
        embed: The name of the submodule that gives z (batch, d_z), the vector the classifier's decision is
            made from; or a callable `embed(model, x, **extra_inputs)` that returns (logits, z).
        embed_side: `"output"`, or `"input"` to take what goes *into* that submodule, as for `embed="head"`.
        encoder: The explanation encoder: None for a copy of the classifier, a module with the same insides
            (such as an untrained one, the paper's ablation; it is trained in place), or `"shared"` for the
            frozen classifier.
        memory: What the mask decoder looks at: None for a `SequenceEncoder` of its own, a module called
            with (x, times, padding), in the units of `x`, that returns (batch, S, channels), or the name
            of a submodule of the classifier whose output is that.
        num_landmarks: K.
        objective: What it is trained for.
        masking: `"replace"` masked values (any classifier); `"attention"` multiplies the classifier's attention by
            the mask and leaves the values (the paper's for transformers of one sensor); `"both"` (the
            paper's for transformers of several). The last two need `extra_inputs["attention"]`.
        logits: Where else the logits are in what the classifier returns: the name of an attribute or key, a
            position (0 for the first of a tuple), or a function of it.
        channels_first: Whether the classifier, and `embed` if it is a callable, takes (batch, D, T), as
            convolutions do, and the submodule named by `memory` gives (batch, channels, S). Everything
            else stays (batch, T, D): `x`, masks, saliency.
        extra_inputs: What else the classifier takes, and by which keyword: `times` (batch, T), `padding`
            (batch, T) bool, `attention` (batch, T, T), for instance `{"padding": "src_key_padding_mask"}`.
        temperature: Of the mask's draw.
        hard: Whether the mask's values are zeros and ones; False is the ablation without straight-through.

    Attributes:
        reference: The frozen copy.
        encoder: The explanation encoder.
        mask_generator: The `MaskGenerator`.
        landmarks: (K, d_z) parameter; set it by `init_landmarks` before training.
        settings: What decides a draw, saved with the parameters: a file of other settings is refused.

    Raises:
        ValueError: If a name is unknown, `encoder` or `memory` is a part of the classifier, `embed` gives no
            vector per series, or several, the classifier has fewer than two logits, or a number is too small.
        TypeError: If the replacement has not the classifier's device or dtype.

    Warns:
        UserWarning: If the classifier seems to give probabilities, of which a softmax would be taken again.

    Examples:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.randn(32, 20, 2), torch.arange(32) % 3
        >>> explainer = TimeX(classifier, Replacement.fit(x), embed="2", num_landmarks=6)
        >>> explainer.init_landmarks([(x, y)])
        >>> explainer.losses(explainer(x))["total"].backward()
        >>> explainer.eval().explain(x).shape
        torch.Size([32, 20, 2])
    """

    settings: Tensor

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
        logits: Logits | None = None,
        channels_first: bool = False,
        extra_inputs: Mapping[str, str] | None = None,
        temperature: float = 1.0,
        hard: bool = True,
    ) -> None:
        super().__init__()
        check_count(num_landmarks, "num_landmarks")
        check_positive(temperature, "temperature")
        _check_masking(masking, extra_inputs or {})
        self.masking, self.objective = masking, objective or Objective()
        self._call = Caller(
            embed,
            embed_side,
            dict(extra_inputs or {}),
            memory if isinstance(memory, str) else None,
            logits,
            channels_first,
        )
        check_apart(memory, reference, "memory")
        # What is made in inference mode could never be trained.
        with torch.inference_mode(False):
            self.reference = frozen_copy(reference)
            self.replacement = copy_of(replacement)
            self.explanation_encoder = make_encoder(reference, encoder)
            check_fits(self.reference, replacement.mean)
            self._make_parts(memory, num_landmarks, temperature, hard)

    def _make_parts(
        self, memory: nn.Module | str | None, num_landmarks: int, temperature: float, hard: bool
    ) -> None:
        """Make what is trained, of the sizes that one pass of the classifier shows."""
        replacement = self.replacement
        length, num_features = replacement.length, replacement.num_features
        made: dict[str, Any] = {"device": replacement.mean.device, "dtype": replacement.mean.dtype}
        longest = float(length)  # the longest scale of time in the official code; the paper leaves it open
        self._own_memory = memory is None
        if memory is None:
            self.sequence_encoder: nn.Module | None = SequenceEncoder(
                num_features, position_base=longest, **made
            )
        else:
            self.sequence_encoder = memory if isinstance(memory, nn.Module) else None
        scores, z, states = self._probe()
        check_classes(scores.shape[1])
        if _is_probability(scores):
            warnings.warn(
                "the classifier's outputs look like probabilities, of which a softmax would be taken again: "
                "give their logarithm, as by logits=lambda prob: prob.clamp_min(1e-12).log()",
                stacklevel=3,
            )
        self.num_classes, self.embedding_size = scores.shape[1], z.shape[1]
        self.mask_generator = MaskGenerator(
            num_features, states.shape[2], temperature=temperature, hard=hard, position_base=longest, **made
        )
        self.head = nn.Sequential(
            nn.Linear(self.embedding_size, self.embedding_size, **made),
            nn.ReLU(),
            nn.Linear(self.embedding_size, self.num_classes, **made),
        )
        self.landmarks = nn.Parameter(torch.randn(num_landmarks, self.embedding_size, **made))
        settings = [_MASKINGS.index(self.masking), int(hard), round(temperature * 1e6)]
        self.register_buffer("settings", torch.tensor(settings, device=replacement.mean.device))

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
                or counted; NaN there counts as zero.
            generator: Source of masks, replacements and landmark choices, on the device of `x`.

        Returns:
            Masks, predictions, embeddings and landmarks. In evaluation mode landmarks are the nearest
            ones; masks are drawn in either mode.

        Raises:
            ValueError: If shapes do not fit.
            TypeError: If dtypes or devices do not fit.
        """
        x, times = self._checked(x, times, padding)
        logits, z, memory = self._reference_pass(x, times, padding)
        mask = self.mask_generator(self.replacement.standardize(x), memory, times, padding, generator)
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
        return loss_terms(self.objective, output)

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
        x, stamps = self._checked(x, times, padding)
        check_values(x, stamps, padding)
        maps = []
        with evaluating(self):
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                part = (x[rows], stamps[rows], None if padding is None else padding[rows])
                standard = self.replacement.standardize(part[0])
                maps.append(self.mask_generator.prob(standard, self._memory_of(*part), *part[1:]))
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
        for batch in batches:
            x, of_x, times, padding = read_batch(batch, "batches")
            x, stamps = self._checked(x, times, padding)
            check_values(x, stamps, padding)
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

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool, *rest: Any
    ) -> None:
        """Refuse what was saved under other settings: the same parameters would mean another explainer."""
        saved = state_dict.get(f"{prefix}settings")  # missing in version 0.1, whose networks saw raw series
        if saved is not None and saved.tolist() != self.settings.tolist():
            errors = rest[-1]
            errors.append(
                "masking, hard and temperature must be as they were saved: "
                f"{_told_settings(saved)}, got {_told_settings(self.settings)}"
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

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
        seen = self.replacement.standardize(x) if self._own_memory else x
        states: Tensor = self.sequence_encoder(seen, times, padding)
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
        shared = self.explanation_encoder is None  # in evaluation mode
        with differentiable(self.encoder, x) if shared else nullcontext():
            _, z = self._call(self.encoder, seen, times=times, padding=padding, attention=attention)
        return self.head(z), z

    def _choose(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """One-hot choice of a landmark for each embedding, whose gradient reaches only the landmarks."""
        similarity = cosine(z.detach(), self.landmarks)
        if self.training:
            return straight_through_categorical(similarity.log_softmax(-1), 0.1, generator)
        return torch.zeros_like(similarity).scatter_(-1, similarity.argmax(-1, keepdim=True), 1.0)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        """One pass on the mean series, which shows the sizes, and what does not fit."""
        x = self.replacement.mean.unsqueeze(0)
        times = default_times(x)
        attention = x.new_ones(1, x.shape[1], x.shape[1]) if self.masking != "replace" else None
        with evaluating(self):
            found = self._reference_pass(x, times, None)
            self._call(self.encoder, x, times=times, attention=attention)
        return found

    def _checked(self, x: Tensor, times: Tensor | None, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check shapes, dtypes and devices; return series and time stamps without NaN where padded."""
        check_series(x, length=self.replacement.length, sensors=self.replacement.num_features)
        check_device(self.replacement.mean, x.device, "the explainer")
        check_dtype(x, self.replacement.mean.dtype)
        check_times(times, x)
        check_padding(padding, x)
        x = clean_padded(x, padding)
        return x, default_times(x) if times is None else clean_padded(times, padding)


def _check_masking(masking: str, extra_inputs: Mapping[str, str]) -> None:
    if masking not in _MASKINGS:
        raise ValueError(f"masking must be 'replace', 'attention' or 'both', got {masking!r}")
    if masking != "replace" and "attention" not in extra_inputs:
        raise ValueError(
            f"masking {masking!r} must have extra_inputs['attention'], the classifier's keyword for it, "
            f"got {sorted(extra_inputs)}"
        )


def _told_settings(settings: Tensor) -> str:
    masking, hard, temperature = settings.tolist()
    return f"masking={_MASKINGS[masking]!r}, hard={bool(hard)}, temperature={temperature / 1e6:g}"


def _is_probability(scores: Tensor) -> bool:
    """Whether rows lie in [0, 1] and sum to one, which logits do by a rare chance alone."""
    total = scores.double().sum(-1)
    return bool((scores >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3, rtol=0)
