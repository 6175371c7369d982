"""Right in single precision too: far offsets, outliers, ties and mixed precisions, held against float64."""

import pytest
import torch

from ildataquality import (
    Episodes,
    Normalizer,
    action_variance,
    divergence_from_others,
    fit_stacked,
    leave_one_out,
    multimodality,
    neighbours,
    quality_report,
    shift_bound,
    state_similarity,
    transition_variance,
    tube_coverage,
)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_state_a_hundred_away_is_not_within_one_however_far_from_the_origin():
    here, there = torch.tensor([[5e5]]), torch.tensor([[5e5 + 100]])
    assert tube_coverage(here, there, radius=1.0).tolist() == [False]
    assert tube_coverage(here, there, radius=101.0).tolist() == [True]
    assert state_similarity(torch.cat([here, there]), radius=1.0) == 0.5


def test_one_outlier_does_not_blur_the_others():
    states = randn(0, 1500, 6)
    states[0] = 1000
    exact = state_similarity(states, radius=1.5)
    assert exact > 4 / 1500  # more than each to itself
    assert state_similarity(states.float(), radius=1.5).item() == pytest.approx(exact.item(), rel=1e-5)
    states[0] = 1e6
    assert state_similarity(states.float(), radius=1.5).item() == pytest.approx(exact.item(), rel=1e-5)


# Two heaps far apart: no centre is near both, and only distances computed one by one are right.
HEAPS = torch.cat([randn(1, 400, 3), 3e4 + randn(2, 400, 3)]).float()


@pytest.mark.parametrize("states", [randn(3, 700, 6).float() + 1e4, HEAPS])
def test_single_precision_finds_the_neighbours_that_double_does(states):
    for options in ({"k": 8}, {"radius": 1.5}, {"k": 8, "episode_id": torch.arange(len(states)) // 100}):
        single, double = (neighbours(part, chunk=256, **options) for part in (states, states.double()))
        assert torch.equal(single.mask, double.mask)
        torch.testing.assert_close(single.dist.double(), double.dist, rtol=1e-5, atol=0)
        # The same samples too, but where two are equally far.
        assert (single.index == double.index).double().mean() > 0.995
    for radius in (0.5, 2.0):
        shares = [state_similarity(part, radius, reduce=None).double() for part in (states, states.double())]
        torch.testing.assert_close(*shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_coincide_are_all_found(dtype):
    states = torch.cat([torch.full((300, 2), 0.3), torch.full((40, 2), 2.7)]).to(dtype)
    near = neighbours(states, k=50, chunk=128)
    assert near.mask.all()
    assert (near.dist[:300] == 0).all()
    assert ((near.dist[300:] == 0).sum(1) == 40).all()
    assert state_similarity(states, 1e-6).item() == pytest.approx((300**2 + 40**2) / 340**2)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_metrics_of_actions_do_not_see_an_offset(offset, scale):
    states, actions = randn(5, 300, 2), scale * randn(6, 300, 2)
    actions = (actions + offset).float().double()  # what single precision can hold of them
    near = neighbours(states, k=20, episode_id=torch.arange(300) // 30)
    measures = [
        action_variance,
        lambda a, n: action_variance(a, n, normalize=False),
        lambda a, n: action_variance(a, n, normalize="per_dim"),
        lambda a, n: action_variance(a, n, states=states.to(a.dtype)),
        divergence_from_others,
        multimodality,
        leave_one_out,
    ]
    for measure in measures:
        torch.testing.assert_close(
            measure(actions.float(), near).double(), measure(actions, near), rtol=2e-3, atol=1e-6
        )


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_shares_do_not_see_the_scale_of_actions(scale):
    states, actions = randn(5, 60, 2), randn(6, 60, 2)
    near = neighbours(states, k=6, episode_id=torch.arange(60) // 10)
    for measure in (action_variance, divergence_from_others, multimodality, leave_one_out):
        torch.testing.assert_close(measure(scale * actions, near), measure(actions, near))


def test_a_normaliser_keeps_what_varies_far_from_the_origin():
    states = (1e6 + randn(7, 500, 2)).float()
    fitted, exact = Normalizer.fit(states), Normalizer.fit(states.double())
    assert fitted.kept.all()
    torch.testing.assert_close(fitted.std.double(), exact.std, rtol=1e-6, atol=0)
    small = Normalizer.fit(1e-20 * randn(7, 500, 2).float(), 1e-12 * randn(8, 500, 1).float())
    assert small(1e-20 * randn(7, 500, 2).float()).std().item() == pytest.approx(1, rel=0.05)
    assert small.action_variance == pytest.approx(1e-24, rel=0.2)


def test_states_whose_squares_leave_the_precision_are_refused():
    for scale in (1e-30, 1e30):
        with pytest.raises(ValueError, match=r"states must be standardised: .* torch\.float32"):
            neighbours((scale * randn(0, 20, 2)).float(), k=3)


def test_half_precision_is_measured_in_single():
    arrays = [
        {"observations": randn(i, 13, 2).half(), "actions": randn(9 + i, 12, 1).half()} for i in range(4)
    ]
    wide = [{name: value.float() for name, value in episode.items()} for episode in arrays]
    half, single = (Episodes.from_arrays(given) for given in (arrays, wide))
    assert half.observations.dtype == half.actions.dtype == torch.float32
    assert quality_report(half).to_dict(samples=True) == quality_report(single).to_dict(samples=True)
    states = randn(0, 40, 2).bfloat16()
    near = neighbours(states, k=5)
    assert near.dist.dtype == torch.float32
    actions = randn(1, 40, 1).bfloat16()
    assert torch.equal(action_variance(actions, near), action_variance(actions.float(), near))
    many = torch.full((4096,), 0.125, dtype=torch.bfloat16)
    assert shift_bound(many).item() == pytest.approx(0.125 * 4097 / 2)


def test_states_and_actions_may_be_of_different_precision():
    """As gymnasium has them: float64 observations, float32 actions."""
    arrays = [{"observations": randn(i, 41, 2), "actions": randn(9 + i, 40, 1).float()} for i in range(4)]
    exact = [{name: value.double() for name, value in episode.items()} for episode in arrays]
    mixed, double = (quality_report(Episodes.from_arrays(given)) for given in (arrays, exact))
    assert mixed.estimators == {"actions": "linear", "transitions": "linear"}
    assert mixed.action_variance == pytest.approx(double.action_variance, rel=1e-5)
    assert mixed.samples["action_variance"].dtype == torch.float64


def test_small_targets_are_learnt_as_well_as_large_ones():
    x = torch.linspace(-1, 1, 64)[:, None]
    options = {"hidden": (8,), "num_steps": 40}

    def fitted(scale, offset):
        generator = torch.Generator().manual_seed(0)
        models = fit_stacked(x, scale * x, [torch.arange(64)], generator=generator, **options)
        return models(x) / scale + offset

    torch.testing.assert_close(fitted(1e-8, 0.0), fitted(1.0, 0.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_models_are_fitted_whatever_the_callers_mode(mode):
    x = torch.linspace(-1, 1, 32)[:, None]
    options = {"hidden": (8,), "num_steps": 5}
    outside = fit_stacked(x, x, [torch.arange(32)], generator=torch.Generator().manual_seed(0), **options)
    with mode():
        inside = fit_stacked(
            x.clone(), x.clone(), [torch.arange(32)], generator=torch.Generator().manual_seed(0), **options
        )
        assert torch.equal(inside(x), outside(x))


def test_transitions_are_of_one_shape_and_tensors():
    with pytest.raises(TypeError, match="states must be a torch tensor, got ndarray"):
        neighbours(randn(0, 9, 2).numpy(), k=3)
    near = neighbours(randn(0, 9, 2), k=3)
    with pytest.raises(TypeError, match="next_states must be a torch tensor, got list"):
        transition_variance(randn(0, 9, 2), [[0.0, 0.0]] * 9, near)
