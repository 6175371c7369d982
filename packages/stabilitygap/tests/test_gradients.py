"""Gradients taken apart, and GEM's projection against a brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from stabilitygap import gem_project, split_gradients


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    inputs = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (3, 8), generator=generator)
    weights = (0.3, 0.7, 2.0)
    names = ("plasticity", "stability", "third")
    parts = {
        name: weight * cross_entropy(model(x), y)
        for name, weight, x, y in zip(names, weights, inputs, labels, strict=True)
    }
    return model, parts


@given(st.integers(0, 10**6))
def test_parts_sum_to_the_whole(seed):
    model, parts = problem(seed)
    parameters = list(model.parameters())
    split = split_gradients(parts, parameters, keep_grads=True)
    whole = torch.autograd.grad(sum(parts.values()), parameters)
    for index, wanted in enumerate(whole):
        torch.testing.assert_close(sum(grads[index] for grads in split.grads.values()), wanted)
    flat = {name: torch.cat([grad.flatten() for grad in grads]) for name, grads in split.grads.items()}
    total = sum(flat.values())
    torch.testing.assert_close(sum(split.share.values()), torch.tensor(1.0).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(split.total_norm, total.norm())
    for name, grad in flat.items():
        torch.testing.assert_close(split.norm[name], grad.norm())
        torch.testing.assert_close(split.share[name], grad @ total / (total @ total))
    for (a, b), cosine in split.cosine.items():
        torch.testing.assert_close(cosine, torch.cosine_similarity(flat[a], flat[b], dim=0))
    assert list(split.cosine) == [
        ("plasticity", "stability"),
        ("plasticity", "third"),
        ("stability", "third"),
    ]


def test_nothing_is_left_behind_and_the_graph_lives_on():
    model, parts = problem()
    split_gradients(parts, model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    sum(parts.values()).backward()


def test_a_part_that_is_zero_has_no_angle_but_no_error():
    weight = torch.ones(3, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    split = split_gradients({"plasticity": weight.sum(), "stability": 0 * weight.sum()}, [weight, other])
    assert split.norm["stability"] == 0
    assert split.share["plasticity"] == 1
    assert math.isnan(split.cosine["plasticity", "stability"])


def test_parts_that_cancel_leave_an_exact_sum():
    weight = torch.ones(2, requires_grad=True)
    parts = {"plasticity": 1000 * weight[0] + 0.01 * weight[1], "stability": -1000 * weight[0]}
    split = split_gradients(parts, [weight])
    assert split.total_norm.item() == pytest.approx(0.01)
    assert split.share["plasticity"].item() == pytest.approx(1)
    assert split.share["stability"].item() == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_and_angles_at_any_scale(scale):
    weight = torch.ones(2, requires_grad=True)
    split = split_gradients(
        {"a": scale * (3 * weight[0] + 4 * weight[1]), "b": weight[0] * 2 * scale}, [weight]
    )
    assert [norm.item() / scale for norm in split.norm.values()] == pytest.approx([5, 2])
    assert split.cosine["a", "b"].item() == pytest.approx(0.6)
    assert split.total_norm.item() / scale == pytest.approx(41**0.5)
    assert split.share["b"].item() == pytest.approx(10 / 41)


def test_complex_parameters_count_as_pairs():
    pairs = torch.ones(2, 2, requires_grad=True)
    found = []
    for weight, parameter in ((torch.view_as_complex(pairs), pairs), (None, torch.ones(2).cfloat())):
        weight = parameter.requires_grad_() if weight is None else weight
        parts = {"a": (weight * (1 + 2j)).real.sum(), "b": (weight * 3j).real.sum()}
        found.append(split_gradients(parts, [parameter]))
    for one, other in zip(found[0].norm.values(), found[1].norm.values(), strict=True):
        torch.testing.assert_close(one, other)
    # <(1, -2), (0, -3)> / (sqrt(5) * 3)
    assert [split.cosine["a", "b"].item() for split in found] == pytest.approx([2 / 5**0.5] * 2)


def test_parameters_without_entries_and_gradients_that_are_not_finite():
    weight, empty = torch.ones(2, requires_grad=True), torch.ones(0, requires_grad=True)
    split = split_gradients({"a": weight.sum() + empty.sum(), "b": weight[0] * torch.inf}, [weight, empty])
    assert split.norm["a"].item() == pytest.approx(2**0.5)
    assert not math.isfinite(split.norm["b"].item())
    assert split_gradients({"a": empty.sum()}, [empty]).norm["a"].item() == 0


def test_half_precision_norms_do_not_overflow():
    weight = torch.full((4096,), 1.0, dtype=torch.float16, requires_grad=True)
    split = split_gradients({"plasticity": (300 * weight).sum()}, [weight])
    assert split.norm["plasticity"].dtype == torch.float32
    assert split.norm["plasticity"].item() == pytest.approx(300 * 64)


def test_sparse_gradients_count():
    table = nn.Embedding(10, 3, sparse=True)
    split = split_gradients({"plasticity": table(torch.tensor([1, 1, 4])).sum()}, table.parameters())
    assert split.norm["plasticity"].item() == pytest.approx(math.sqrt(3 * 4 + 3))


@pytest.mark.parametrize(
    ("losses", "params", "says"),
    [
        ({}, [torch.ones(1, requires_grad=True)], "losses must name"),
        ({"a": torch.ones(())}, [torch.ones(1, requires_grad=True)], r"losses\['a'\] must be a scalar"),
        ({"a": torch.ones(2, requires_grad=True)}, [torch.ones(1, requires_grad=True)], "must be a scalar"),
        ({"a": torch.ones((), requires_grad=True)}, [], "params must hold"),
        (
            {"a": torch.ones((), requires_grad=True)},
            [torch.ones(3)],
            r"require gradients, number 0 of shape \(3,\)",
        ),
    ],
)
def test_bad_parts_are_named(losses, params, says):
    with pytest.raises(ValueError, match=says):
        split_gradients(losses, params)


def dual_by_brute_force(g, memory, gamma, ridge):
    """The dual's optimum among all 2^T ways to bind its bounds."""
    rows, g = memory.numpy(), g.numpy()
    gram = rows @ rows.T + ridge * np.mean(np.sum(rows**2, axis=1)) * np.eye(len(rows))
    linear, best = rows @ g, (np.inf, None)
    for bits in range(2 ** len(rows)):
        free = [i for i in range(len(rows)) if bits >> i & 1]
        bound = [i for i in range(len(rows)) if i not in free]
        v = np.full(len(rows), gamma)
        if free:
            v[free] = np.linalg.solve(
                gram[np.ix_(free, free)], -(linear[free] + gram[np.ix_(free, bound)] @ v[bound])
            )
        if (v >= gamma - 1e-12).all():
            best = min(best, (0.5 * v @ gram @ v + linear @ v, tuple(v)))
    return g + rows.T @ np.array(best[1])


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 0.5]), st.sampled_from([1e-3, 0.3]))
def test_the_projection_solves_its_dual(seed, tasks, gamma, ridge):
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(tasks, 6, generator=generator, dtype=torch.float64)
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    found = gem_project(g, memory, gamma, ridge=ridge)
    if (memory @ g >= 0).all():
        assert found is g
    else:
        wanted = dual_by_brute_force(g, memory, gamma, ridge)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-7, atol=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([1e-12, 1.0, 1e15]))
def test_the_projection_keeps_its_constraints_at_any_scale(seed, tasks, scale):
    generator = torch.Generator().manual_seed(seed)
    memory = scale * torch.randn(tasks, 8, generator=generator, dtype=torch.float64)
    g = scale * torch.randn(8, generator=generator, dtype=torch.float64)
    found = gem_project(g, memory, gamma=0.0, ridge=0.0)
    assert (memory @ found >= -1e-9 * scale**2).all()
    torch.testing.assert_close(
        gem_project(found, memory, 0.0, ridge=0.0), found, rtol=1e-7, atol=1e-7 * scale
    )
    # No feasible point is nearer: the step is orthogonal to what is left.
    assert abs(float((found - g) @ found)) <= 1e-8 * scale**2


def test_the_projection_without_a_conflict_changes_nothing():
    g = torch.tensor([1.0, 2.0])
    assert gem_project(g, torch.tensor([[1.0, 0.0], [0.0, 0.1]])) is g
    assert gem_project(g, torch.empty(0, 2)) is g


@pytest.mark.parametrize(
    ("g", "memory", "options", "says"),
    [
        (torch.ones(3), torch.ones(2, 4), {}, r"memory must have shape \(tasks, 3\)"),
        (torch.ones(3), torch.ones(3), {}, "memory must have shape"),
        (torch.ones(3), -torch.ones(1, 3), {"gamma": -1.0}, "gamma must be finite and at least 0, got -1.0"),
        (torch.ones(3), -torch.ones(1, 3), {"ridge": math.nan}, "ridge must be"),
        (torch.tensor([1.0, math.nan]), -torch.ones(1, 2), {}, "must be finite"),
    ],
)
def test_bad_projections_are_named(g, memory, options, says):
    with pytest.raises(ValueError, match=says):
        gem_project(g, memory, **options)
