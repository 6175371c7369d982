"""The tangent kernel of any model, and how it stands to the labels and to another kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lazyrich._checks import checked_integer, real_tensor, wide
from lazyrich._factors import Check, Graph, NotFactorised, Piece, gram
from lazyrich._models import (
    Forward,
    call,
    checked_batch,
    differentiating,
    refuse_running_statistics,
    size,
    take,
    trainable,
    unwrapped,
)

MODES = ("trace", "full", "project")


def ntk_gram(
    model: nn.Module,
    x: Any,
    x2: Any = None,
    params: Iterable[Tensor] | None = None,
    mode: str = "trace",
    chunk: int | None = None,
    generator: torch.Generator | None = None,
    *,
    num_projections: int = 1,
    forward: Forward | None = None,
) -> Tensor:
    """The empirical neural tangent kernel K = J J^T, without the Jacobian (section 2 of the paper).

    K[(i, c), (j, d)] = <df_c(x_i)/d theta, df_d(x_j)/d theta>. The gradient of a matrix is a sum of outer products
    delta a^T, and so K a product of two small Gram matrices: one forward pass and one backward pass an output, memory
    O(chunk * outputs * width) beside K. What the operations on the parameters are is read off the forward pass
    (products, convolutions, embeddings, normalisations, sums; tied weights with all their cross terms) and held against
    one more backward pass; parameters that do not pass (recurrent cells, grouped convolutions, parametrised weights,
    `nn.MultiheadAttention`, position embeddings added to a whole batch) are differentiated sample by sample, which is
    slow and right.

    Outputs (n,) or (n, c) are n points; of (n, t, c) every position is a point, and the last axis its outputs.

    Args:
        model: Any module, in evaluation mode. Mode, gradients and buffers stay as they are.
        x: n samples: a tensor, a tuple (`model(*x)`) or a mapping (`model(**x)`).
        x2: The samples of the columns; `x` if not given.
        params: The parameters; those that require gradients if not given.
        mode: `"trace"` sums over the outputs of a point, (n, m). `"full"` keeps them, (n c, m c), the output running
            fastest. `"project"` estimates `"trace"` from random directions of the outputs: one backward pass each.
        chunk: Samples held at a time, all if not given; the passes are repeated for every pair of chunks.
        generator: Draws the directions of `"project"`, on the CPU.
        num_projections: How many of them; K is their mean, and unbiased.
        forward: `forward(model, x)` giving the tensor of outputs, where the model's own is not what is wanted.

    Returns:
        The kernel, in float32 at least, without a gradient.

    Raises:
        ValueError: If `mode` is unknown, the model is in training mode with dropout or batch normalisation, or mixes
            the samples of a batch, or the kernel is not finite.
        TypeError: If the model has no parameters that require gradients, or no tensor as output.

    Examples:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> ntk_gram(nn.Linear(2, 1, bias=False), x)
        tensor([[ 5., 11.],
                [11., 25.]])
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    directions = None
    if mode == "project":
        number = checked_integer("num_projections", num_projections, 1)
        outputs = probe_outputs(model, x, forward).shape[2]
        directions = draw_directions(number, outputs, generator)
    return tangent_gram(model, x, x2, params, mode, chunk, directions, forward)


def probe_outputs(model: nn.Module, x: Any, forward: Forward | None) -> Tensor:
    """The outputs (n, points, outputs of a point) on a batch, without a gradient."""
    refuse_running_statistics(model)
    with torch.inference_mode(False), torch.no_grad():
        return call(unwrapped(model), checked_batch("x", x), forward).detach()


def draw_directions(number: int, outputs: int, generator: torch.Generator | None) -> Tensor:
    """Random signs (number, outputs): E[v v^T] = I, exact for the diagonal."""
    return torch.randint(0, 2, (number, outputs), generator=generator) * 2.0 - 1.0


def tangent_gram(
    model: nn.Module,
    x: Any,
    x2: Any,
    params: Iterable[Tensor] | None,
    mode: str,
    chunk: int | None,
    directions: Tensor | None,
    forward: Forward | None,
) -> Tensor:
    """`ntk_gram` with the directions given."""
    model = unwrapped(model)
    refuse_running_statistics(model)
    parameters = trainable(model, params)
    x = checked_batch("x", x)
    x2 = None if x2 is None else checked_batch("x2", x2)
    if chunk is not None:
        chunk = checked_integer("chunk", chunk, 1)
    general: set[int] = set()
    with differentiating():
        while True:
            try:
                kernel = _Kernel(model, parameters, mode, directions, forward, general).between(x, x2, chunk)
                break
            except NotFactorised as found:
                general |= found.parameters
    if not bool(kernel.isfinite().all()):
        raise ValueError(
            "the tangent kernel is not finite: the model's weights, gradients or x hold NaN or infinity"
        )
    return kernel


class _Kernel:
    """The kernel of one model; `general` are the parameters differentiated sample by sample."""

    def __init__(
        self,
        model: nn.Module,
        parameters: list[Tensor],
        mode: str,
        directions: Tensor | None,
        forward: Forward | None,
        general: set[int],
    ) -> None:
        self.model, self.parameters, self.mode = model, parameters, mode
        self.directions, self.forward, self.general = directions, forward, set(general)
        self.shape, self.compared = (1, 1), False

    def between(self, x: Any, x2: Any, chunk: int | None) -> Tensor:
        """All blocks of the kernel."""
        first = _slices(size(x), chunk)
        if x2 is None:
            return self._symmetric(x, first)
        second = _slices(size(x2), chunk)
        rows = []
        for i, piece in enumerate(first):
            one = self._rows(take(x, piece), checked=True)
            rows.append(
                torch.cat([self._block(one, self._rows(take(x2, p), checked=i == 0)) for p in second], 1)
            )
        return torch.cat(rows)

    def _symmetric(self, x: Any, pieces: list[slice]) -> Tensor:
        blocks: dict[tuple[int, int], Tensor] = {}
        for i, piece in enumerate(pieces):
            one = self._rows(take(x, piece), checked=True)
            block = self._block(one, one)
            blocks[i, i] = (block + block.T) / 2
            for j in range(i + 1, len(pieces)):
                blocks[i, j] = self._block(one, self._rows(take(x, pieces[j]), checked=False))
                blocks[j, i] = blocks[i, j].T
        every = range(len(pieces))
        return torch.cat([torch.cat([blocks[i, j] for j in every], 1) for i in every])

    def _rows(self, x: Any, checked: bool) -> list[dict[int, list[Piece]]]:
        """The gradients of a chunk, for every block of directions."""
        number = size(x)
        single = [partial(self._outputs, take(x, slice(i, i + 1))) for i in range(number)]
        graph = Graph.of(partial(self._outputs, x), single, self.parameters, self.general)
        if not graph.outputs.requires_grad:
            raise ValueError(
                "model's output does not depend on its parameters: it is detached or computed in no_grad"
            )
        if checked and not self.compared:
            with torch.no_grad():  # each sample's place taken by the first one
                graph.compare(self._outputs(take(x, [0] * number)), graph.outputs[:1])
            self.compared = True
        test = Check(graph) if checked else None
        found = []
        for directions in self._directions(graph.outputs):
            if test is not None:
                test.directions(directions)
            found.append(graph.rows(directions, test))
        if test is not None:
            test.conclude()
        return found

    def _outputs(self, x: Any) -> Tensor:
        outputs = call(self.model, x, self.forward)
        self.shape = (outputs.shape[1], outputs.shape[2])
        return outputs.flatten(1)

    def _directions(self, outputs: Tensor) -> Iterator[Tensor]:
        """Blocks of rows of the Jacobian, each (rows, outputs), that are contracted with themselves only."""
        points, width = self.shape
        every = torch.eye(points, device=outputs.device, dtype=outputs.dtype)
        if self.mode == "full":
            yield torch.eye(points * width, device=outputs.device, dtype=outputs.dtype)
        elif self.mode == "trace":
            for unit in torch.eye(width, device=outputs.device, dtype=outputs.dtype):
                yield torch.kron(every, unit[None])
        elif self.directions is not None:
            for direction in self.directions.to(outputs) / len(self.directions) ** 0.5:
                yield torch.kron(every, direction[None])

    @staticmethod
    def _block(one: list[dict[int, list[Piece]]], other: list[dict[int, list[Piece]]]) -> Tensor:
        parts = [gram(a, b) for a, b in zip(one, other, strict=True)]
        found = [part for part in parts if part is not None]
        if not found:
            raise ValueError("model's output does not depend on the parameters given as params")
        return torch.stack(found).sum(0)


def _slices(number: int, chunk: int | None) -> list[slice]:
    step = chunk or number
    return [slice(start, min(start + step, number)) for start in range(0, number, step)]


def kta(kernel: Tensor, y: Tensor, center: bool = False) -> Tensor:
    """Kernel-target alignment: how far the kernel is the labels' own (section 3 of the paper).

    Tr(Y^T K Y) / (||K||_F ||Y Y^T||_F); for one output y^T K y / (||K||_F ||y||^2). It lies in [0, 1] for a positive
    semi-definite K, does not see scale, and is 1 for K ~ y y^T. With `center` both are centred first.

    Args:
        kernel: (n, n), symmetric.
        y: Labels (n,) or (n, c); integers (n,) are used as numbers, so encode classes first (`one_hot`).
        center: Subtract the means of kernel and labels.

    Returns:
        A scalar tensor.

    Raises:
        ValueError: If shapes disagree, values are not finite, or kernel or labels are zero: for `center`, if the
            labels are constant.

    Examples:
        >>> y = torch.tensor([1.0, -1.0])
        >>> kta(torch.outer(y, y), y).item(), round(kta(torch.eye(2), y).item(), 3)
        (1.0, 0.707)
    """
    kernel, given = _square("kernel", kernel)
    labels = _labels(y, kernel)
    if center:
        spread = labels - labels.mean(0)
        if bool(spread.norm() <= 1e-13 * labels.norm()):
            raise ValueError("y is constant: its centred alignment is not defined")
        kernel, labels = centered(kernel), spread / spread.abs().max()
    return _cosine(kernel, labels @ labels.T, "kernel", "y").to(given)


def cka(kernel: Tensor, other: Tensor) -> Tensor:
    """Centred kernel alignment of two kernels, <HKH, HK'H> / (||HKH|| ||HK'H||); 1 - CKA(K_t, K_0) is the drift.

    Args:
        kernel: (n, n), symmetric.
        other: (n, n), symmetric, on the same points.

    Returns:
        A scalar tensor, 1 for kernels equal up to scale and an added constant.

    Raises:
        ValueError: If shapes disagree, values are not finite, or a centred kernel is zero.

    Examples:
        >>> round(cka(torch.eye(3), 2 * torch.eye(3) + 5).item(), 6)
        1.0
    """
    (kernel, given), (other, _) = _square("kernel", kernel), _square("other", other)
    if kernel.shape != other.shape:
        raise ValueError(
            f"other must have the shape of kernel, got {tuple(other.shape)} for {tuple(kernel.shape)}"
        )
    return _cosine(centered(kernel), centered(other), "kernel", "other").to(given)


def label_power(kernel: Tensor, y: Tensor) -> Tensor:
    """Cumulative share of the labels' power in the top eigenvectors of a kernel: what it learns first.

    power_k = sum_{i <= k} ||v_i^T Y||^2 / ||Y||^2, eigenvalues descending.

    Args:
        kernel: (n, n), symmetric.
        y: Labels (n,) or (n, c).

    Returns:
        Shares (n,), rising to 1.

    Raises:
        ValueError: If shapes disagree, values are not finite, or all labels are zero.

    Examples:
        >>> label_power(torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([3.0, 4.0]))
        tensor([0.6400, 1.0000])
    """
    kernel, given = _square("kernel", kernel)
    labels = _labels(y, kernel)
    power = (torch.linalg.eigh(kernel).eigenvectors.flip(1).T @ labels).square().sum(1)
    if not bool(power.sum() > 0):
        raise ValueError("y must not be all zero")
    return (power.cumsum(0) / power.sum()).to(given)


def _square(name: str, kernel: Tensor) -> tuple[Tensor, torch.dtype]:
    """A kernel in float64 and of size 1, since centring takes small differences; and the type of the answer."""
    kernel = wide(real_tensor(name, kernel, 2))
    kernel, given = kernel.double(), kernel.dtype
    if kernel.shape[0] != kernel.shape[1] or len(kernel) < 2:
        raise ValueError(f"{name} must be square with at least 2 points, got shape {tuple(kernel.shape)}")
    scale = kernel.abs().max()
    if bool((kernel - kernel.T).abs().max() > 1e-3 * scale):
        raise ValueError(f"{name} must be symmetric")
    return (kernel / scale if bool(scale > 0) else kernel), given


def _labels(y: Any, kernel: Tensor) -> Tensor:
    """Labels (n, c) of size 1 in float64."""
    labels = torch.as_tensor(y)
    labels = labels if labels.is_floating_point() or labels.is_complex() else labels.double()
    labels = real_tensor("y", labels.unsqueeze(1) if labels.ndim == 1 else labels, 2).to(kernel)
    if len(labels) != len(kernel):
        raise ValueError(f"y must have one row per row of kernel, got {len(labels)} for {len(kernel)}")
    scale = labels.abs().max()
    return labels / scale if bool(scale > 0) else labels


def centered(kernel: Tensor) -> Tensor:
    """H K H, with H = 1 - 11^T / n: the means of rows and columns taken off."""
    rows = kernel - kernel.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)


def _cosine(first: Tensor, second: Tensor, name: str, other: str) -> Tensor:
    for one, called in ((first, name), (second, other)):
        if not bool(one.norm() > 0):
            raise ValueError(
                f"{called} is zero (after centring, if that was asked): its alignment is not defined"
            )
    first, second = first / first.norm(), second / second.norm()
    return (first * second).sum()
