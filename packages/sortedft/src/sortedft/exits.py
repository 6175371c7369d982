"""Where a model may be left: the set of exits, a sampler over it, and heads of their own for the baseline."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sortedft._checks import checked_count, checked_exits


def default_exits(num_layers: int, num_exits: int = 8) -> list[int]:
    """Choose the depths after which a model of `num_layers` blocks becomes a sub-model.

    B = round(linspace(0.3 N, N, num_exits)) without duplicates. At N = 40 this is the set
    {12, 16, ..., 40} of Sorted LLaMA (arXiv 2309.08968).

    Args:
        num_layers: N, the number of blocks of the full model.
        num_exits: Size of the set before duplicates are removed.

    Returns:
        Increasing depths in 1..N, the last one N.

    Raises:
        ValueError: If either number is smaller than one.
        TypeError: If either is not an integer.

    Examples:
        >>> default_exits(40)
        [12, 16, 20, 24, 28, 32, 36, 40]
        >>> default_exits(8)
        [2, 3, 4, 5, 6, 7, 8]
    """
    num_layers, num_exits = checked_count("num_layers", num_layers), checked_count("num_exits", num_exits)
    if num_exits == 1:
        return [num_layers]
    spacing = 0.7 * num_layers / (num_exits - 1)
    depths = [round(0.3 * num_layers + index * spacing) for index in range(num_exits - 1)]
    return sorted({max(depth, 1) for depth in depths} | {num_layers})


def default_thresholds(exits: Sequence[int]) -> list[float]:
    """Choose the confidence at which each exit but the last lets a token go.

    Linear from 0.95 at the first exit to 0.70 at the last but one: the straight line through the
    thresholds the paper chose for LLaMA-2-13B. Confidence differs between models: where accuracy matters,
    choose your own on held-out text.

    Args:
        exits: Increasing depths; the last one is the full model and needs no threshold.

    Returns:
        `len(exits) - 1` probabilities.

    Examples:
        >>> default_thresholds([2, 4, 6, 8])
        [0.95, 0.825, 0.7]
    """
    steps = len(exits) - 1
    return [round(0.95 - 0.25 * index / max(steps - 1, 1), 6) for index in range(steps)]


class SortedSampler(Iterator[int]):
    """An endless stream of depths for the sampled variant of the loss.

    SortedNet (arXiv 2309.00255, algorithm 1): at every micro-step draw n ~ Uniform(B), run only the
    first n blocks and back-propagate L_n; accumulate over some micro-steps before the optimizer moves.
    The gradient is unbiased for that of `sorted_loss`, at n/N of its cost. With several processes give
    each the same generator seed, so that all run the same depth.

    Args:
        exits: The set B, increasing.
        generator: Source of randomness; torch's global one if None.
        accumulation_steps: Micro-steps per optimizer step; only `always_full` looks at it.
        always_full: Let the last micro-step of every accumulation window run the deepest exit, so that
            each update sees the full model. This gives up unbiasedness.

    Raises:
        ValueError: If `exits` is empty, unsorted or not positive, or `accumulation_steps` < 1.
        TypeError: If any of them is not an integer.

    Examples:
        >>> import itertools
        >>> sampler = SortedSampler([2, 4], accumulation_steps=2, always_full=True)
        >>> [depth for depth in itertools.islice(sampler, 6)][1::2]
        [4, 4, 4]
    """

    def __init__(
        self,
        exits: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        accumulation_steps: int = 1,
        always_full: bool = False,
    ) -> None:
        self.exits = tuple(checked_exits(exits))
        self.generator = generator
        self.accumulation_steps = checked_count("accumulation_steps", accumulation_steps)
        self.always_full = always_full
        self._micro_step = 0

    def __next__(self) -> int:
        """Draw the depth of the next micro-step."""
        self._micro_step = self._micro_step % self.accumulation_steps + 1
        if self.always_full and self._micro_step == self.accumulation_steps:
            return self.exits[-1]
        device = None if self.generator is None else self.generator.device
        return self.exits[int(torch.randint(len(self.exits), (), generator=self.generator, device=device))]


class ExitHeads(nn.Module):
    """The early-exit baseline SFT+ICT: a head of its own for every exit, on a frozen model.

    The paper trains these one more epoch after ordinary fine-tuning (its baseline "early exit"). Each
    starts as a copy of the shared head and costs V x D parameters; pass one to `sorted_loss` as `head`.

    Args:
        head: The model's own head.
        exits: Depths that get a head; the full model keeps its own.

    Raises:
        ValueError: If `exits` is empty, unsorted or not positive.

    Examples:
        >>> heads = ExitHeads(nn.Linear(8, 20, bias=False), exits=[2, 3])
        >>> heads(torch.zeros(5, 8), 2).shape
        torch.Size([5, 20])
    """

    def __init__(self, head: nn.Module, exits: Sequence[int]) -> None:
        super().__init__()
        self.exits = tuple(checked_exits(exits))
        self.heads = nn.ModuleDict({str(depth): copy.deepcopy(head) for depth in self.exits})
        self.requires_grad_(True)

    def __getitem__(self, depth: int) -> nn.Module:
        """The head of one exit."""
        return self.heads[str(depth)]

    def forward(self, normed: Tensor, depth: int) -> Tensor:
        """Map normalised states (..., D) of exit `depth` to logits (..., V)."""
        return self[depth](normed)
