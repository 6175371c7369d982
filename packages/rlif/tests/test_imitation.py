import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rlif import Demonstrations, aggregate_dagger, aggregate_hg_dagger, bc_loss

STATES = torch.arange(8.0).view(4, 2)
DATA = Demonstrations(torch.full((1, 2), -1.0), torch.full((1, 1), -9.0))


def expert(states):
    return states[:, :1] * 10


def test_dagger_adds_the_experts_labels_for_a_share_of_states():
    whole = aggregate_dagger(DATA, STATES, expert)
    assert whole.observation.tolist() == [[-1, -1], *STATES.tolist()]
    assert whole.action.ravel().tolist() == [-9, 0, 20, 40, 60]
    generator = torch.Generator().manual_seed(0)
    many = aggregate_dagger(DATA, STATES.repeat(5000, 1), expert, fraction=0.3, generator=generator)
    assert (len(many.action) - 1) / 20_000 == pytest.approx(0.3, abs=0.01)
    assert torch.equal(many.action[1:], expert(many.observation[1:]))
    assert len(aggregate_dagger(DATA, STATES, expert, fraction=0.0).action) == 1


def test_hg_dagger_adds_what_was_executed():
    actions, flags = torch.arange(4.0)[:, None], torch.tensor([False, True, True, False])
    assert aggregate_hg_dagger(DATA, STATES, actions, flags).action.ravel().tolist() == [-9, 0, 1, 2, 3]
    only = aggregate_hg_dagger(DATA, STATES, actions, flags, only_expert=True)
    assert only.action.ravel().tolist() == [-9, 1, 2]
    assert only.observation.tolist() == [[-1, -1], [2, 3], [4, 5]]


def squashed(mean, std):
    return TransformedDistribution(Independent(Normal(mean, std), 1), TanhTransform())


def test_the_loss_is_torchs_own_likelihood():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(5, 3, generator=generator), 0.5 + torch.rand(5, 3, generator=generator)
    actions = torch.rand(5, 3, generator=generator) * 1.9 - 0.95
    by_hand = -squashed(mean, std).log_prob(actions).mean()
    torch.testing.assert_close(bc_loss(squashed(mean, std), actions), by_hand)
    plain = Normal(mean, std)
    torch.testing.assert_close(bc_loss(plain, 3 * actions), -plain.log_prob(3 * actions).sum(1).mean())
    torch.testing.assert_close(bc_loss(Independent(plain, 1), actions), bc_loss(plain, actions))
    border = torch.tensor([[1.0, -1.0, 0.2]]).expand(5, 3)
    clipped = -squashed(mean, std).log_prob(torch.tensor([[0.99, -0.99, 0.2]]).expand(5, 3)).mean()
    torch.testing.assert_close(bc_loss(squashed(mean, std), border, clip=0.99), clipped)


def test_weights_mask_padding_even_where_it_is_not_finite():
    plain = Normal(torch.zeros(3, 1), torch.ones(3, 1), validate_args=False)
    actions = torch.tensor([[1.0], [float("nan")], [2.0]])
    found = bc_loss(plain, actions, weight=torch.tensor([1.0, 0.0, 3.0]))
    rows = -Normal(0.0, 1.0).log_prob(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found, (rows[0] + 3 * rows[1]) / 4)


def test_padding_has_no_gradient_and_nothing_costs_nothing():
    actions = torch.tensor([[1.0], [float("nan")], [2.0]])
    for weight in (torch.tensor([1.0, 0.0, 3.0]), torch.tensor([True, False, True])):
        mean = torch.zeros(3, 1, requires_grad=True)
        bc_loss(Normal(mean, 1.0, validate_args=False), actions, weight=weight).backward()
        share = weight / weight.sum()
        torch.testing.assert_close(mean.grad[:, 0], -share * torch.tensor([1.0, 0.0, 2.0]))
    assert bc_loss(Normal(torch.zeros(2, 1), 1.0), torch.zeros(2, 1), weight=torch.zeros(2)) == 0
    assert bc_loss(Normal(torch.zeros(0, 1), 1.0), torch.zeros(0, 1)) == 0
    assert bc_loss(Normal(torch.zeros(0, 1), 1.0), torch.zeros(0, 1), weight=torch.zeros(0)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_border_in_half_precision(dtype):
    mean, std = torch.zeros(2, 1), torch.ones(2, 1)
    found = bc_loss(squashed(mean.to(dtype), std.to(dtype)), torch.ones(2, 1, dtype=dtype))
    torch.testing.assert_close(found, bc_loss(squashed(mean, std), torch.ones(2, 1)))


def test_arrays_are_demonstrations_too():
    states, actions = STATES.numpy()[::-1], np.arange(4, dtype=np.float32)[:, None]
    assert aggregate_dagger(DATA, states, expert).action.ravel().tolist() == [-9, 60, 40, 20, 0]
    found = aggregate_hg_dagger(DATA, states, actions, np.array([0, 1, 0, 1], bool), only_expert=True)
    assert found.action.ravel().tolist() == [-9, 1, 3]
    assert aggregate_dagger(DATA, STATES, None, fraction=0.0) is DATA  # nobody is asked about no state


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: aggregate_dagger(DATA, STATES, expert, fraction=1.1), "fraction must be"),
        (lambda: aggregate_dagger(DATA, STATES, lambda s: s), "action must have rows"),
        (lambda: aggregate_dagger(DATA, STATES[:, :1], expert), "observation must have rows"),
        (lambda: aggregate_dagger(DATA, STATES, lambda s: expert(s)[1:]), "action must have 4 rows"),
        (
            lambda: aggregate_dagger(Demonstrations(DATA[0], torch.zeros(1, 1).long()), STATES, expert),
            "action must be of torch.int64",
        ),
        (lambda: aggregate_hg_dagger(DATA, STATES, STATES[:, :1], [True]), "intervened must have the shape"),
        (lambda: aggregate_hg_dagger(DATA, STATES, STATES[:2, :1], [True] * 4), "action must have 4 rows"),
        (lambda: bc_loss(Normal(torch.zeros(2, 1), 1.0), torch.zeros(2)), "action must have the shape"),
        (lambda: bc_loss(Normal(torch.zeros(2, 1), 1.0), torch.zeros(2, 1), clip=1.0), "clip must be"),
        (
            lambda: bc_loss(Normal(torch.zeros(2, 1), 1.0), torch.zeros(2, 1), weight=torch.ones(2, 1)),
            "weight must have the shape",
        ),
    ],
)
def test_what_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
