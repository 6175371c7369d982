"""Per-sample gradients as outer products, read off the operations of one forward pass.

Whoever knows that a model computed `linear(a, W)` knows the gradient of every output for every sample without forming
it: the sum over positions t of delta_t a_t^T. What is watched are torch's operations on the parameters, not layers:
subclasses, functional calls, tied weights and adapters are all seen as what they do. What was read off is then held
against one backward pass of autograd with random weights; a parameter for which it differs, and any whose
operations are not known, goes the general way, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from lazyrich._checks import wide

Forward = Callable[[], Tensor]


@dataclass
class Factor:
    """Gradients sum_t left_t right_t^T of a matrix; `left` (n, b, t, p) or indices (n, 1, t), `right` (n, b, t, q).

    The axis b runs over the outputs sent back, and is 1 where a factor does not depend on them. `shape` is (p, q).
    """

    left: Tensor
    right: Tensor
    shape: tuple[int, int]


@dataclass
class Dense:
    """Gradients as they are, (n, b, p), of a parameter small enough for that."""

    values: Tensor


Piece = Factor | Dense


@dataclass
class Use:
    """One operation on a parameter: where its output's gradient is found, and what that makes the parameter's."""

    parameter: int
    edge: GradientEdge
    pieces: Callable[[Tensor, int], Piece]


# --- what operations do to their parameters -----------------------------------------------------------


def _rows(values: Tensor, samples: int) -> Tensor:
    """(samples * t, ...) or (samples, ..., d) as (samples, t, d)."""
    if values.shape[0] % samples:
        raise _Unreadable
    return values.reshape(samples, -1, values.shape[-1])


class _Unreadable(Exception):
    """This operation's first dimension does not run over samples."""


def _product(inputs: Tensor, transposed: bool) -> Callable[[Tensor, int], Piece]:
    """linear(inputs, W), or inputs @ W if `transposed`."""

    def pieces(delta: Tensor, samples: int) -> Piece:
        inward = _rows(inputs, samples).unsqueeze(1)
        outward = torch.stack([_rows(one, samples) for one in delta], 1)
        left, right = (inward, outward) if transposed else (outward, inward)
        return Factor(left, right, (left.shape[-1], right.shape[-1]))

    return pieces


def _lookup(indices: Tensor, size: int, padding: int | None) -> Callable[[Tensor, int], Piece]:
    """embedding(indices, W): rows of W, of which `padding` gets no gradient."""

    def pieces(delta: Tensor, samples: int) -> Piece:
        if padding is not None:
            delta = delta.masked_fill((indices == padding).unsqueeze(-1), 0.0)
        if indices.shape[0] % samples:
            raise _Unreadable
        left = indices.reshape(samples, 1, -1)
        right = torch.stack([_rows(one, samples) for one in delta], 1)
        return Factor(left, right, (size, right.shape[-1]))

    return pieces


def _reduced(factor: Tensor | None, shape: torch.Size) -> Callable[[Tensor, int], Piece]:
    """Factor * w (or a sum with w), w of `shape` broadcast against it."""

    def pieces(delta: Tensor, samples: int) -> Piece:
        values = delta if factor is None else delta * factor
        backs, length, rest = delta.shape[0], delta.shape[1], delta.shape[2:]
        if length % samples:
            raise _Unreadable
        values = values.reshape(backs, samples, length // samples, *rest)
        own = list(shape)
        if len(own) == len(rest) + 1:  # w has the batch dimension too; it must be 1
            if own[0] != 1 or length != samples:
                raise _Unreadable
            own = own[1:]
        if len(own) > len(rest):
            raise _Unreadable
        summed = list(range(2, 3 + len(rest) - len(own)))
        values = values.sum(summed)
        stretched = [i + 2 for i, size in enumerate(own) if size == 1 and values.shape[i + 2] != 1]
        values = values.sum(stretched, keepdim=True) if stretched else values
        return Dense(values.reshape(backs, samples, -1).transpose(0, 1))

    return pieces


def _per_channel(factor: Tensor | None) -> Callable[[Tensor, int], Piece]:
    """Factor * w + b with w, b along dimension 1 (convolutions, batch and group normalisation)."""

    def pieces(delta: Tensor, samples: int) -> Piece:
        if delta.shape[1] != samples:
            raise _Unreadable
        values = delta if factor is None else delta * factor
        values = values.flatten(3).sum(-1) if values.ndim > 3 else values
        return Dense(values.transpose(0, 1))

    return pieces


def _convolved(inputs: Tensor, weight: Tensor, options: dict[str, Any]) -> Callable[[Tensor, int], Piece]:
    """conv1d and conv2d without groups: a product with the unfolded input."""

    def pieces(delta: Tensor, samples: int) -> Piece:
        if delta.shape[1] != samples:
            raise _Unreadable
        image, kernel = (
            (inputs.unsqueeze(2), (1, *weight.shape[2:])) if weight.ndim == 3 else (inputs, weight.shape[2:])
        )
        full = {
            name: (neutral, value[0]) if weight.ndim == 3 and len(value) == 1 else value
            for (name, value), neutral in zip(options.items(), (1, 0, 1), strict=True)
        }
        patches = F.unfold(image, tuple(kernel), **full)  # (n, channels * kernel, places)
        left = delta.flatten(3).permute(1, 0, 3, 2)
        return Factor(left, patches.transpose(1, 2).unsqueeze(1), (left.shape[-1], patches.shape[1]))

    return pieces


# --- watching a forward pass --------------------------------------------------------------------------

_Found = list[tuple[Tensor, Callable[[Tensor, int], Piece]]]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Found:
    found: _Found = [(weight, _product(input.detach(), transposed=False))]
    return found if bias is None else [*found, (bias, _reduced(None, bias.shape))]


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> _Found:
    if beta != 1 or alpha != 1:
        return []
    return [(mat2, _product(mat1.detach(), transposed=True)), (input, _reduced(None, input.shape))]


def _matmul(input: Tensor, other: Tensor) -> _Found:
    return [(other, _product(input.detach(), transposed=True))] if other.ndim == 2 and input.ndim > 1 else []


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> _Found:
    if max_norm is not None or scale_grad_by_freq or sparse:
        return []
    padding = None if padding_idx is None else padding_idx % weight.shape[0]
    return [(weight, _lookup(input, weight.shape[0], padding))]


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Found:
    found: _Found = [] if bias is None else [(bias, _per_channel(None))]
    dims = weight.ndim - 2
    if groups != 1 or dims > 2 or isinstance(padding, str) or input.ndim != weight.ndim:
        return found
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    options = {
        name: (value,) * dims if isinstance(value, int) else tuple(value) for name, value in options.items()
    }
    return [*found, (weight, _convolved(input.detach(), weight.detach(), options))]


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Found:
    found: _Found = []
    if weight is not None:
        normal = F.layer_norm(input.detach(), normalized_shape, None, None, eps)
        found.append((weight, _reduced(normal, weight.shape)))
    return found if bias is None else [*found, (bias, _reduced(None, bias.shape))]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Found:
    if training:
        raise ValueError(
            "model has batch normalisation in training mode, where samples share statistics and have no gradients of "
            "their own: call model.eval() first"
        )
    normal = F.batch_norm(input.detach(), running_mean, running_var, None, None, False, momentum, eps)
    found: _Found = [] if weight is None else [(weight, _per_channel(normal))]
    return found if bias is None else [*found, (bias, _per_channel(None))]


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Found:
    found: _Found = []
    if weight is not None:
        found.append((weight, _per_channel(F.group_norm(input.detach(), num_groups, None, None, eps))))
    return found if bias is None else [*found, (bias, _per_channel(None))]


def _multiplied(input: Any, other: Any) -> _Found:
    pairs = [(input, other), (other, input)]
    return [
        (w, _reduced(x.detach(), w.shape))
        for w, x in pairs
        if isinstance(w, Tensor) and isinstance(x, Tensor)
    ]


def _added(input: Any, other: Any, *, alpha: float = 1) -> _Found:
    if alpha != 1:
        return []
    return [(w, _reduced(None, w.shape)) for w in (input, other) if isinstance(w, Tensor)]


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Found:
    _refuse_dropout(p if training else 0.0)
    return []


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *_: Any,
    **__: Any,
) -> _Found:
    _refuse_dropout(dropout_p)
    return []


def _refuse_dropout(probability: float) -> None:
    if probability > 0:
        raise ValueError("model draws dropout, so that its gradients are random: call model.eval() first")


_RULES: dict[Any, Callable[..., _Found]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    F.embedding: _embedding,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    torch.mul: _multiplied,
    Tensor.mul: _multiplied,
    Tensor.__mul__: _multiplied,
    Tensor.__rmul__: _multiplied,
    torch.add: _added,
    Tensor.add: _added,
    Tensor.__add__: _added,
    Tensor.__radd__: _added,
    Tensor.__iadd__: _added,
    Tensor.add_: _added,
    F.dropout: _dropout,
    F.dropout1d: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    F.alpha_dropout: _dropout,
    F.feature_alpha_dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
}
_ALWAYS = {_dropout, _attention, _batch_norm}


class _Watch(TorchFunctionMode):
    """Note the operations on some parameters, and refuse those that make gradients random or shared."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        found = self._found(rule, args, kwargs) if rule is not None else []
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and output.requires_grad:
            self.uses += [
                Use(self.index[id(parameter)], get_gradient_edge(output), pieces)
                for parameter, pieces in found
                if id(parameter) in self.index
            ]
        return output

    def _found(self, rule: Callable[..., _Found], args: Any, kwargs: dict[str, Any]) -> _Found:
        if rule not in _ALWAYS and not any(id(one) in self.index for one in (*args, *kwargs.values())):
            return []
        try:
            return rule(*args, **kwargs)
        except TypeError:  # an overload that the rule does not know, such as `out=`: the general way
            return []


# --- rows of the Jacobian -----------------------------------------------------------------------------


@dataclass
class Graph:
    """One forward pass on a chunk of samples, kept for several backward passes.

    Args:
        outputs: (n, outputs), the differentiable output.
        parameters: All that the kernel is over.
        uses: Operations on those that are not in `general`.
        general: Indices of the parameters that go the general way.
        single: For each sample its own forward pass, for those.
    """

    outputs: Tensor
    parameters: Sequence[Tensor]
    uses: list[Use]
    general: set[int]
    single: Sequence[Forward]
    _singles: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, forward: Forward, single: Sequence[Forward], parameters: Sequence[Tensor], general: set[int]
    ) -> Graph:
        """Run the model once and note what it did with its parameters."""
        with _Watch(parameters) as watch:
            outputs = forward()
        uses = [use for use in watch.uses if use.parameter not in general]
        return cls(outputs, parameters, uses, general, single)

    def backward(self, cotangents: Tensor) -> list[list[Tensor]]:
        """For each row of `cotangents` (b, n, outputs) the gradients at every use."""
        edges = [use.edge for use in self.uses]
        if not edges:
            return [[] for _ in cotangents]
        found = []
        for row in cotangents:
            deltas = torch.autograd.grad(self.outputs, edges, row, retain_graph=True, allow_unused=True)
            found.append(list(deltas))
        return found

    def rows(self, directions: Tensor, check: Check | None = None) -> dict[int, list[Piece]]:
        """Gradients of <direction, output> for every sample and every direction (b, outputs), by parameter."""
        samples = self.outputs.shape[0]
        deltas = self.backward(directions.to(self.outputs.dtype).unsqueeze(1).expand(-1, samples, -1))
        pieces: dict[int, list[Piece]] = {}
        for k, use in enumerate(self.uses):
            stacked = [row[k] for row in deltas]
            if all(one is None for one in stacked):
                continue
            shape = next(one for one in stacked if one is not None)
            delta = torch.stack([torch.zeros_like(shape) if one is None else one for one in stacked])
            if check is not None:
                check.add(k, delta)
            try:
                pieces.setdefault(use.parameter, []).append(_widened(use.pieces(delta, samples)))
            except _Unreadable:
                raise NotFactorised({use.parameter}) from None
        for index in sorted(self.general):
            pieces[index] = [Dense(self._one_by_one(index, directions))]
        return {index: _merged(found) for index, found in pieces.items()}

    def _one_by_one(self, index: int, directions: Tensor) -> Tensor:
        """The general way: one forward pass a sample, one backward pass a sample and direction, (n, b, p)."""
        parameter = self.parameters[index]
        if not self._singles:
            self._singles = [forward() for forward in self.single]
            self.compare(torch.cat([one.detach() for one in self._singles]), self.outputs)
        gradients = [
            [_gradient(output, parameter, direction.to(output.dtype)[None]) for direction in directions]
            for output in self._singles
        ]
        return wide(torch.stack([torch.stack(rows) for rows in gradients]))

    @staticmethod
    def compare(again: Tensor, together: Tensor) -> None:
        """Refuse a model that answers otherwise for the same samples in another batch."""
        again, together = again.detach(), together.detach()
        tolerance = 10 * torch.finfo(together.dtype).eps ** 0.5
        wanted = together.expand_as(again)
        if (again - wanted).norm() > tolerance * wanted.norm().clamp(min=1e-12):
            raise ValueError(
                "model's output for a sample depends on the others in the batch (or is random), so that it has no "
                "tangent kernel between samples: call model.eval(), or take out what mixes the batch"
            )


class NotFactorised(Exception):
    """Some parameters' gradients are not the products that were read off."""

    def __init__(self, parameters: Iterable[int]) -> None:
        super().__init__()
        self.parameters = set(parameters)


class Check:
    """Whether the products are the gradients: random weights for every sample and direction, and one backward pass."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights: list[tuple[Tensor, Tensor]] = []
        self.summed: dict[int, Tensor] = {}
        self.scale: dict[int, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0x1A2)

    def directions(self, directions: Tensor) -> Tensor:
        """Note the directions sent back next, and draw their weights."""
        samples = self.graph.outputs.shape[0]
        weights = torch.randn(samples, len(directions), generator=self.generator).to(self.graph.outputs)
        self.weights.append((weights, directions.to(self.graph.outputs)))
        return directions

    def add(self, use: int, delta: Tensor) -> None:
        """Weigh the gradients (b, n * t, ...) found at a use."""
        weights = self.weights[-1][0]
        samples, backs = weights.shape
        if delta.shape[1] % samples:
            raise NotFactorised({self.graph.uses[use].parameter})
        rows = delta.reshape(backs, samples, -1)
        weighed = torch.einsum("nb,bnx->nx", weights.to(rows.dtype), rows)
        square = torch.einsum("nb,bnx->", wide(weights) ** 2, wide(rows) ** 2)
        self.summed[use] = self.summed[use] + weighed if use in self.summed else weighed
        self.scale[use] = self.scale[use] + square if use in self.scale else square

    def conclude(self) -> None:
        """Raise `NotFactorised` with the parameters for which autograd finds something else."""
        graph = self.graph
        wanted = [i for i in range(len(graph.parameters)) if i not in graph.general]
        if not wanted:
            return
        cotangent = torch.stack([weights @ directions for weights, directions in self.weights]).sum(0)
        inputs: Any = [use.edge for use in graph.uses] + [graph.parameters[i] for i in wanted]
        found = torch.autograd.grad(graph.outputs, inputs, cotangent, retain_graph=True, allow_unused=True)
        deltas, truth = found[: len(graph.uses)], found[len(graph.uses) :]
        tolerance = _tolerance(
            [graph.outputs, *graph.parameters, *(one for one in deltas if one is not None)]
        )
        bad = {use.parameter for k, use in enumerate(graph.uses) if not self._agrees(k, deltas[k], tolerance)}
        made = self._composed(deltas, bad)
        for i, gradient in zip(wanted, truth, strict=True):
            if i not in bad and not _close(made.get(i), gradient, tolerance):
                bad.add(i)
        if bad:
            raise NotFactorised(bad)

    def _agrees(self, use: int, delta: Tensor | None, tolerance: float) -> bool:
        """Every row of this use belongs to the sample it was counted to."""
        if delta is None or use not in self.summed:
            return (delta is None or not bool(delta.any())) and use not in self.summed
        difference = wide(self.summed[use]) - wide(delta.reshape(self.summed[use].shape))
        return bool(difference.norm() <= tolerance * self.scale[use].sqrt())

    def _composed(self, deltas: Sequence[Tensor | None], bad: set[int]) -> dict[int, Tensor]:
        samples, made = self.graph.outputs.shape[0], dict[int, Tensor]()
        for use, delta in zip(self.graph.uses, deltas, strict=True):
            if delta is None or use.parameter in bad:
                continue
            total = _summed(_widened(use.pieces(delta.unsqueeze(0), samples)))
            made[use.parameter] = made[use.parameter] + total if use.parameter in made else total
        return made


def _tolerance(tensors: Sequence[Tensor]) -> float:
    """What rounding may do, by the coarsest of the types in use."""
    eps = max(torch.finfo(one.dtype).eps for one in tensors)
    return min(4 * eps**0.5, 0.1)


def _close(made: Tensor | None, truth: Tensor | None, tolerance: float) -> bool:
    if truth is None:
        return made is None or not bool(made.any())
    truth = wide(truth.to_dense() if truth.is_sparse else truth).flatten()
    made = torch.zeros_like(truth) if made is None else made.flatten()
    return bool((made - truth).norm() <= tolerance * torch.maximum(made.norm(), truth.norm()))


def _gradient(output: Tensor, parameter: Tensor, direction: Tensor) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(parameter).flatten()
    (found,) = torch.autograd.grad(output, [parameter], direction, retain_graph=True, allow_unused=True)
    found = torch.zeros_like(parameter) if found is None else found
    return (found.to_dense() if found.is_sparse else found).flatten()


# --- algebra of pieces --------------------------------------------------------------------------------


def _widened(piece: Piece) -> Piece:
    if isinstance(piece, Dense):
        return Dense(wide(piece.values))
    left = wide(piece.left) if piece.left.is_floating_point() else piece.left
    return Factor(left, wide(piece.right), piece.shape)


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Uses of one kind as one: dense gradients add, positions of factors are laid side by side."""
    dense = [piece.values for piece in pieces if isinstance(piece, Dense)]
    merged: list[Piece] = [Dense(torch.stack(dense).sum(0))] if dense else []
    kinds: dict[tuple[Any, ...], list[Factor]] = {}
    for piece in pieces:
        if isinstance(piece, Factor):
            key = (piece.left.is_floating_point(), piece.left.shape[1], piece.right.shape[1])
            kinds.setdefault(key, []).append(piece)
    for alike in kinds.values():
        left, right = torch.cat([one.left for one in alike], 2), torch.cat([one.right for one in alike], 2)
        merged.append(Factor(left, right, alike[0].shape))
    return merged


def _summed(piece: Piece) -> Tensor:
    """The gradient of the whole batch, flat."""
    if isinstance(piece, Dense):
        return piece.values.sum((0, 1))
    rows = piece.right.expand(-1, max(piece.left.shape[1], piece.right.shape[1]), -1, -1)
    if piece.left.is_floating_point():
        return torch.einsum("nbtp,nbtq->pq", piece.left.expand(-1, rows.shape[1], -1, -1), rows).flatten()
    total = rows.new_zeros(piece.shape)
    return total.index_add_(0, piece.left.flatten(), rows.flatten(0, 2)).flatten()


def _dense(piece: Piece) -> Tensor:
    """Gradients written out, (n, b, p * q)."""
    if isinstance(piece, Dense):
        return piece.values
    backs = max(piece.left.shape[1], piece.right.shape[1])
    right = piece.right.expand(-1, backs, -1, -1)
    if piece.left.is_floating_point():
        return torch.einsum("nbtp,nbtq->nbpq", piece.left.expand(-1, backs, -1, -1), right).flatten(2)
    total = right.new_zeros(*right.shape[:2], *piece.shape)
    where = piece.left.unsqueeze(-1).expand(-1, backs, -1, piece.shape[1])
    return total.scatter_add_(2, where, right).flatten(2)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """<first, second> over the last axis for all pairs, (n, b, t, m, c, s); indices stand for unit vectors."""
    if first.is_floating_point() and second.is_floating_point():
        flat = first.flatten(0, 2) @ second.flatten(0, 2).T
        return flat.reshape(*first.shape[:3], *second.shape[:3])
    if not first.is_floating_point() and not second.is_floating_point():
        return first[:, :, :, None, None, None] == second
    if first.is_floating_point():
        return _inner(second, first).permute(3, 4, 5, 0, 1, 2)
    return second[..., first].permute(3, 4, 5, 0, 1, 2)  # (m, c, s, n, b, t)


def _contract(first: Piece, second: Piece) -> Tensor:
    """<gradient, gradient> for all pairs, (n, b, m, c)."""
    if isinstance(first, Factor) and isinstance(second, Factor) and _by_gram(first, second):
        product = _inner(first.right, second.right)
        left = _inner(first.left, second.left)
        return (
            (product * left).sum((2, 5))
            if product.shape[2] * product.shape[5] > 1
            else (product * left)[:, :, 0, ..., 0]
        )
    one, other = _dense(first), _dense(second)
    return torch.einsum("nbp,mcp->nbmc", one, other)


def _by_gram(first: Factor, second: Factor) -> bool:
    """Whether the two small Gram matrices are cheaper than the gradients written out."""
    (n, b, t), (m, c, s) = _sizes(first), _sizes(second)
    p, q = first.shape
    grams = n * m * b * c * t * s * (q + (p if first.left.is_floating_point() else 1))
    written = (n * b * t + m * c * s) * p * q + n * b * m * c * p * q
    memory = n * m * b * c * t * s <= max(4 * (n * b + m * c) * p * q, 1 << 22)
    return memory and grams <= written


def _sizes(factor: Factor) -> tuple[int, int, int]:
    return factor.right.shape[0], max(factor.left.shape[1], factor.right.shape[1]), factor.right.shape[2]


def gram(first: dict[int, list[Piece]], second: dict[int, list[Piece]]) -> Tensor | None:
    """Sum over the parameters of <gradient, gradient> for all pairs of rows, (n * b, m * c)."""
    total = None
    for index in first.keys() & second.keys():
        for one in first[index]:
            for other in second[index]:
                part = _contract(one, other)
                total = part if total is None else total + part
    return None if total is None else total.flatten(2).flatten(0, 1)
