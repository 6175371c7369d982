"""Selection and rewards against loops, closed forms and scikit-free references."""

import copy
import io
import math

import pytest
import torch
from helpers import demonstrations, generator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from perceptualreward import (
    LinearStepReward,
    PerceptualReward,
    collect_activations,
    feature_scores,
    select_features,
    step_labels,
    step_moments,
)

seeds = st.integers(0, 1000)


@given(seed=seeds, alpha=st.floats(0, 10))
def test_scores_are_those_of_the_loop(seed, alpha):
    X, labels = torch.randn(30, 4, generator=generator(seed)) + 100, torch.arange(30) % 3
    scores = feature_scores(X, labels, 3, alpha)
    for step in range(3):
        ours, others = X[labels == step].double(), X[labels != step].double()
        expected = alpha * (ours.mean(0) - others.mean(0)).abs() - (
            ours.std(0, correction=0) + others.std(0, correction=0)
        )
        torch.testing.assert_close(scores[step], expected)


def test_a_feature_that_tells_nothing_scores_minus_its_deviations():
    X = torch.tensor([[1.0], [3.0], [1.0], [3.0]])
    assert feature_scores(X, torch.tensor([0, 0, 1, 1]), 2).tolist() == [[-2.0], [-2.0]]


def test_the_best_features_come_first():
    scores = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 5.0]])
    assert select_features(scores, 2).tolist() == [[1, 2], [2, 0]]
    with pytest.warns(UserWarning, match="m = 9 features"):
        assert select_features(scores, 9).shape == (2, 3)


def by_hand(reward, demos, cuts, x, form, eps=1e-6):
    frames = torch.cat(demos).double()
    labels = torch.cat([step_labels(one, len(X)) for one, X in zip(cuts, demos, strict=True)])
    normal = (frames - frames.mean(0)) / frames.std(0, correction=0)
    point = (x.double() - frames.mean(0)) / frames.std(0, correction=0)
    columns = []
    for step in range(reward.n_steps):
        chosen = reward.index[step]
        mu = normal[labels == step][:, chosen].mean(0)
        sigma = normal[labels == step][:, chosen].std(0, correction=0).clamp_min(1e-2)
        spread = sigma**2 + eps if form == "logprob" else sigma
        columns.append(-((point[:, chosen] - mu) ** 2 / spread).mean(1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("form", ["logprob", "v1"])
def test_rewards_are_the_formulas(form):
    demos, cuts = demonstrations()
    reward = PerceptualReward.fit(demos, 3, m=6, form=form)
    x = demos[0]
    expected = by_hand(reward, demos, cuts, x, form)
    torch.testing.assert_close(reward.step_rewards(x).double(), expected, rtol=1e-4, atol=1e-5)
    combined = 2 * expected[:, 1] + 4 * expected[:, 2]
    torch.testing.assert_close(reward(x).double(), combined, rtol=1e-4, atol=1e-5)
    squashed = ((expected - reward.level.double()) / reward.scale.double()).clamp_max(0).exp()
    progress = (2 * squashed[:, 1:].amax(1) + 4 * squashed[:, 2]) / 6
    torch.testing.assert_close(reward.progress(x).double(), progress, rtol=1e-4, atol=1e-6)


def test_features_are_the_highest_scores_of_normalised_frames():
    demos, cuts = demonstrations()
    frames = torch.cat(demos)
    labels = torch.cat([step_labels(one, len(X)) for one, X in zip(cuts, demos, strict=True)])
    normal = (frames - frames.mean(0)) / frames.std(0, correction=0)
    for alpha in (0.1, 5.0):
        reward = PerceptualReward.fit(demos, 3, m=4, alpha=alpha)
        scores = feature_scores(normal, labels, 3, alpha)
        torch.testing.assert_close(
            scores.gather(1, reward.index), scores.topk(4).values, rtol=1e-4, atol=1e-4
        )


def test_half_of_a_steps_frames_or_more_are_on():
    demos, cuts = demonstrations(12)
    reward = PerceptualReward.fit(demos, 3, m=8)
    on = torch.cat([reward.step_rewards(X, squashed=True) for X in demos])
    labels = torch.cat([step_labels(one, len(X)) for one, X in zip(cuts, demos, strict=True)])
    for step in range(3):
        own = on[labels == step, step]
        assert (own >= math.exp(-1) - 1e-5).double().mean() >= 0.95 - 1 / len(own)
        assert own.median() >= 0.99 > 0.5 > on[labels != step, step].max()


@given(seed=seeds)
def test_rewards_are_at_most_zero_there_only_at_the_means_and_see_the_chosen_alone(seed):
    demos, _ = demonstrations()
    reward = PerceptualReward.fit(demos, 3, m=5)
    x = torch.randn(7, 40, generator=generator(seed))
    assert (reward.step_rewards(x) < 0).all()
    centre = reward.mean.clone()
    centre[reward.index[1]] += reward.mu[1] * reward.std[reward.index[1]]
    assert reward.step_rewards(centre)[1].item() == pytest.approx(0, abs=1e-6)
    unseen = torch.ones(40, dtype=torch.bool)
    unseen[reward.index.flatten()] = False
    moved = x + 100 * unseen
    torch.testing.assert_close(reward(moved), reward(x))


@given(seed=seeds)
def test_a_frame_is_rewarded_whenever_it_comes(seed):
    demos, _ = demonstrations()
    reward = PerceptualReward.fit(demos, 3)
    order = torch.randperm(len(demos[0]), generator=generator(seed))
    assert torch.equal(reward(demos[0])[order], reward(demos[0][order]))


@given(seed=seeds)
def test_the_scale_of_a_raw_feature_changes_nothing(seed):
    demos, cuts = demonstrations()
    factors = torch.rand(40, generator=generator(seed)) * 10 + 0.1
    one = PerceptualReward.fit(demos, 3, m=5, cuts=cuts)
    other = PerceptualReward.fit([X * factors + 3 for X in demos], 3, m=5, cuts=cuts)
    torch.testing.assert_close(other(demos[0] * factors + 3), one(demos[0]), rtol=2e-3, atol=1e-2)


def test_an_offset_of_a_hundred_thousand_in_float32():
    demos, cuts = demonstrations()
    demos = [(X + 1e5).float() for X in demos]
    reward = PerceptualReward.fit(demos, 3, m=5, cuts=cuts)
    exact = PerceptualReward.fit([X.double() for X in demos], 3, m=5, cuts=cuts)
    assert torch.equal(reward.index, exact.index)
    torch.testing.assert_close(reward(demos[1]).double(), exact(demos[1].double()), rtol=1e-3, atol=1e-3)


def test_features_that_are_dead_are_never_chosen():
    demos, _ = demonstrations()
    dead = [torch.cat([X, torch.full((len(X), 5), 7.0), 1e-9 * X[:, :5]], 1) for X in demos]
    reward = PerceptualReward.fit(dead, 3, m=32)
    assert reward.index.max() < 40
    with pytest.warns(UserWarning, match="only 40 vary"):
        assert PerceptualReward.fit(dead, 3, m=50).index.shape == (3, 40)


def test_a_state_says_everything():
    demos, _ = demonstrations()
    reward = PerceptualReward.fit(demos, 3, m=5, form="v1", eps=1e-3, include_logdet=True)
    file = io.BytesIO()
    torch.save(reward.state_dict(), file)
    file.seek(0)
    again = PerceptualReward.from_state_dict(torch.load(file, weights_only=True))
    for other in (again, copy.deepcopy(reward)):
        assert torch.equal(other(demos[0]), reward(demos[0]))
        assert torch.equal(other.progress(demos[0]), reward.progress(demos[0]))


def test_the_normaliser_is_that_of_the_gaussian():
    demos, _ = demonstrations()
    plain = PerceptualReward.fit(demos, 3, m=5)
    whole = PerceptualReward.fit(demos, 3, m=5, include_logdet=True)
    x = demos[0]
    gaussian = torch.distributions.Normal(plain.mu, (plain.sigma**2 + 1e-6).sqrt())
    point = ((x - plain.mean) / plain.std)[:, plain.index]
    expected = gaussian.log_prob(point).mean(2) + math.log(2 * math.pi) / 2
    found = whole.step_rewards(x) / 2 - (plain.sigma**2 + 1e-6).log().mean(1) / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.progress(x), plain.progress(x))


def test_frames_come_in_any_batch_and_in_half_precision_and_have_gradients():
    demos, _ = demonstrations()
    reward = PerceptualReward.fit(demos, 3)
    x = torch.stack([demos[0][:10], demos[1][:10]])
    assert torch.equal(reward(x)[1], reward(demos[1][:10]))
    assert reward(x[0, 0]).shape == reward.progress(x[0, 0]).shape == ()
    assert reward(x[:0]).shape == (0, 10)
    assert reward(x.half()).dtype == torch.float32
    (slope,) = torch.autograd.grad(reward(x.requires_grad_()).sum(), x)
    assert slope.isfinite().all()
    assert not list(reward.parameters())


def test_half_precision_demonstrations_are_fitted_in_float32():
    demos, cuts = demonstrations()
    reward = PerceptualReward.fit([X.half() for X in demos], 3, cuts=cuts)
    assert reward.mean.dtype == torch.float32
    torch.testing.assert_close(reward.mean, torch.cat(demos).mean(0), rtol=1e-2, atol=1e-2)


def test_logistic_regression_is_at_its_optimum():
    demos, cuts = demonstrations(noise=1.0)
    demos = [X.double() for X in demos]
    reward = LinearStepReward.fit(demos, 3, cuts=cuts, penalty=0.1)
    frames = torch.cat(demos)
    labels = torch.cat([step_labels(one, len(X)) for one, X in zip(cuts, demos, strict=True)])
    weight, bias = reward.weight.clone().requires_grad_(), reward.bias.clone().requires_grad_()
    logits = (frames - frames.mean(0)) / frames.std(0, correction=0) @ weight.T + bias
    for step in range(3):
        own = nn.functional.binary_cross_entropy_with_logits(logits[:, step], (labels == step).double())
        slopes = torch.autograd.grad(
            own + 0.05 * weight[step].square().sum(), [weight, bias], retain_graph=True
        )
        assert max(slope.abs().max().item() for slope in slopes) < 1e-4
    torch.testing.assert_close(reward.step_rewards(frames), nn.functional.logsigmoid(logits.detach()))
    torch.testing.assert_close(reward.step_rewards(frames, squashed=True), logits.detach().sigmoid())
    assert reward.progress(demos[0])[-1] > 0.5 > reward.progress(demos[0])[0]


def test_moments_of_a_step_are_torchs():
    X = torch.randn(20, 3, generator=generator(), dtype=torch.float64)
    found = step_moments(X, torch.arange(20) % 2, 2)
    torch.testing.assert_close(found.std[1], X[1::2].std(0, correction=0))
    torch.testing.assert_close(found.other_mean[1], X[::2].mean(0))


def test_activations_are_those_of_the_layers():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    batch = torch.randn(3, 1, 6, 6, generator=generator())
    net[1].eval()
    modes = [part.training for part in net.modules()]
    found = collect_activations(net, ["2", "4"], batch)
    assert [part.training for part in net.modules()] == modes
    net.eval()
    torch.testing.assert_close(found, torch.cat([net[:3](batch).flatten(1), net(batch)], 1))
    assert not net[2]._forward_hooks
    assert not found.requires_grad
