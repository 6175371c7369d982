import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from stabilityproxy import cross_entropy_with_z, z_loss

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 7))


def problem(shape, seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + 1.7
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)
    targets[torch.rand(shape[:-1], generator=generator) < 0.3] = -100
    return logits.to(dtype).requires_grad_(), targets


def reference(logits, targets, coef, reduction):
    """Torch's cross-entropy, and the z-loss as it is written."""
    counts = targets != -100
    entropy = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
    rows = entropy + coef * logits.exp().sum(-1).log() ** 2 * counts
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum().clamp_min(1)}[reduction]


@given(
    SHAPES, st.integers(0, 99), st.sampled_from(["mean", "sum", "none"]), st.sampled_from([0.0, 1e-4, 0.3])
)
def test_loss_and_gradient_are_the_written_out_ones(shape, seed, reduction, coef):
    logits, targets = problem(shape, seed)
    ours = cross_entropy_with_z(logits, targets, coef, reduction=reduction)
    theirs = reference(logits, targets, coef, reduction)
    torch.testing.assert_close(ours, theirs)
    weights = torch.rand(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (our_gradient,) = torch.autograd.grad((ours * weights).sum(), logits)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), logits)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_the_parts_are_told_and_the_z_loss_alone_is_the_same():
    logits, targets = problem((2, 4, 5), 3)
    found = cross_entropy_with_z(logits, targets, 0.2, return_parts=True)
    torch.testing.assert_close(
        found.cross_entropy, F.cross_entropy(logits.flatten(0, 1), targets.flatten()).detach()
    )
    torch.testing.assert_close(found.z_loss, z_loss(logits, 0.2, targets != -100).detach())
    torch.testing.assert_close(found.loss.detach(), found.cross_entropy + found.z_loss)
    assert not found.cross_entropy.requires_grad


@given(SHAPES, st.integers(0, 99))
def test_the_gradient_of_the_z_loss_is_its_closed_form(shape, seed):
    logits, _ = problem(shape, seed)
    (gradient,) = torch.autograd.grad(z_loss(logits, 0.3, reduction="sum"), logits)
    log_z = logits.logsumexp(-1, keepdim=True)
    torch.testing.assert_close(gradient, (2 * 0.3 * log_z * logits.softmax(-1)).detach())
    assert torch.autograd.gradcheck(lambda x: z_loss(x, 0.3), logits)


@given(SHAPES, st.integers(0, 99), st.floats(-5, 5))
def test_shifts_move_log_z_alone(shape, seed, shift):
    logits, targets = problem(shape, seed)
    normalised = logits.detach().log_softmax(-1)
    assert z_loss(normalised, 1.0).item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(z_loss(normalised + shift, 1.0).item(), shift**2)
    before, after = (cross_entropy_with_z(x, targets, 0.0) for x in (logits, logits + shift))
    torch.testing.assert_close(before, after)


def test_masked_tokens_do_not_count():
    logits, targets = problem((2, 6, 5), 8)
    mask = targets != -100
    torch.testing.assert_close(z_loss(logits, 0.1, mask), z_loss(logits[mask], 0.1))
    spoilt = logits.detach().clone()
    spoilt[~mask] = float("nan")
    torch.testing.assert_close(z_loss(spoilt, 0.1, mask), z_loss(logits, 0.1, mask).detach())


def test_a_batch_whose_tokens_are_all_ignored_adds_nothing():
    logits, targets = problem((2, 3, 5), 1)
    loss = cross_entropy_with_z(logits, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
    assert z_loss(logits, mask=torch.zeros(2, 3, dtype=torch.bool)).item() == 0
    assert cross_entropy_with_z(torch.zeros(0, 3, 5), torch.zeros(0, 3, dtype=torch.long)).item() == 0


def test_micro_batches_by_sums_equal_the_whole_batch():
    logits, targets = problem((4, 5, 6), 2)
    (whole,) = torch.autograd.grad(cross_entropy_with_z(logits, targets, 0.1), logits)
    number = (targets != -100).sum()
    parts = [
        cross_entropy_with_z(x, y, 0.1, reduction="sum") / number
        for x, y in zip(logits.split(1), targets.split(1), strict=True)
    ]
    torch.testing.assert_close(torch.autograd.grad(sum(parts), logits)[0], whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    logits, targets = problem((2, 3, 5), 5, scale=8.0, dtype=dtype)
    exact = logits.detach().float().requires_grad_()
    ours, theirs = cross_entropy_with_z(logits, targets, 0.3), cross_entropy_with_z(exact, targets, 0.3)
    torch.testing.assert_close(ours, theirs)
    assert z_loss(logits).dtype == torch.float32
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))


def test_large_logits_stay_exact():
    """A target far below the rest: log Z must not be lost in the difference of two large numbers."""
    logits = torch.tensor([[3e4, -3e4, 1.0]])
    assert z_loss(logits, 1.0).item() == pytest.approx(9e8)
    found = cross_entropy_with_z(
        logits + torch.tensor([[-3e4, 0, 0]]), torch.tensor([1]), 1.0, return_parts=True
    )
    assert found.z_loss.item() == pytest.approx(torch.tensor([0.0, 1.0]).logsumexp(0).item() ** 2, rel=1e-5)


def test_it_runs_under_vmap_and_compiled():
    logits, targets = problem((4, 3, 5), 6)
    each = torch.func.vmap(lambda x, y: cross_entropy_with_z(x, y, 0.1, reduction="none"))(logits, targets)
    torch.testing.assert_close(each, cross_entropy_with_z(logits, targets, 0.1, reduction="none"))
    compiled = torch.compile(cross_entropy_with_z, fullgraph=True, backend="eager")
    ours, theirs = compiled(logits, targets, 0.1), cross_entropy_with_z(logits, targets, 0.1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: z_loss(x, -1.0), ValueError, r"coef must be finite and >= 0, got -1.0"),
        (
            lambda x, y: z_loss(x, mask=torch.ones(2, 3, 5).bool()),
            ValueError,
            r"mask must have the shape of logits",
        ),
        (
            lambda x, y: z_loss(x, mask=torch.ones(2, 3)),
            TypeError,
            r"mask must be boolean, got torch.float32",
        ),
        (lambda x, y: z_loss(x, reduction="max"), ValueError, r"reduction must be one of .* got 'max'"),
        (lambda x, y: z_loss(y), ValueError, r"logits must be floats"),
        (
            lambda x, y: cross_entropy_with_z(x, y[:, :2]),
            ValueError,
            r"targets must have the shape .*\(2, 3\), got \(2, 2\)",
        ),
        (lambda x, y: cross_entropy_with_z(x.mT, y), ValueError, r"targets must have the shape"),
        (
            lambda x, y: cross_entropy_with_z(x, y.float()),
            TypeError,
            r"targets must be integers, got torch.float32",
        ),
        (lambda x, y: cross_entropy_with_z(x, y, -1e-4), ValueError, r"coef must be finite and >= 0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    logits, targets = problem((2, 3, 5), 0)
    with pytest.raises(error, match=message):
        call(logits, targets)


def test_targets_of_any_integer_kind_and_none_beyond_the_vocabulary():
    logits, targets = problem((2, 3, 5), 0)
    for kind in (torch.int32, torch.int16):
        torch.testing.assert_close(
            cross_entropy_with_z(logits, targets.to(kind)), cross_entropy_with_z(logits, targets)
        )
    for wrong in (10**6, -7):
        with pytest.raises(IndexError, match=r"targets must be in 0 .. 4, or ignore_index = -100"):
            cross_entropy_with_z(logits, torch.full_like(targets, wrong))


def test_second_derivatives_are_those_of_the_written_out_loss():
    logits, targets = problem((2, 3, 4), 8)
    hessians = [
        torch.autograd.functional.hessian(lambda x, f=f: f(x, targets, 0.3, reduction="mean"), logits)
        for f in (cross_entropy_with_z, reference)
    ]
    assert hessians[1].abs().max() > 0.01
    torch.testing.assert_close(*hessians)
    # Through a model, whose own curvature would hide the missing one.
    weight = torch.eye(4, dtype=torch.float64).requires_grad_()
    products = []
    for f in (cross_entropy_with_z, reference):
        loss = f((logits.detach() @ weight).tanh(), targets, 0.3, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        products += torch.autograd.grad(gradient.square().sum(), weight)
    torch.testing.assert_close(*products)
