"""The same numbers from closed forms, naive loops and other libraries."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from morec import (
    DynamicsReward,
    TransitionDiscriminator,
    TransitionFilter,
    TransitionNormalizer,
    calibrate_threshold,
    candidates_from_gaussian,
    reward_consistency,
    select,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def batch(generator):
    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return draw(6, 3), draw(6, 2), draw(4, 6, 3)


def loop(snapshots, normalizer, obs, act, candidates, delta_input):
    """One network and one candidate at a time."""
    return torch.stack(
        [
            torch.stack(
                [snapshot(normalizer.encode(obs, act, one, delta_input=delta_input)) for one in candidates]
            )
            for snapshot in snapshots
        ]
    )


@pytest.mark.parametrize("delta_input", [True, False])
@pytest.mark.parametrize("hidden_sizes", [(16,), (16, 12), (8, 16, 4)])
def test_stacked_snapshots_equal_a_loop_over_modules(generator, batch, delta_input, hidden_sizes):
    obs, act, _ = batch
    normalizer = TransitionNormalizer.fit(obs, act, obs + 0.1)
    snapshots = [TransitionDiscriminator(3, 2, hidden_sizes, generator=generator) for _ in range(5)]
    reward = DynamicsReward(normalizer, snapshots, delta_input=delta_input)
    logits = loop(snapshots, normalizer, *batch, delta_input)
    torch.testing.assert_close(reward.logits(*batch), logits, atol=1e-5, rtol=1e-5)
    expected = -torch.log(1 - torch.sigmoid(logits).mean(0) + 1e-9)
    torch.testing.assert_close(reward(*batch), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reward(*batch)[1], reward(obs, act, batch[2][1]))


def test_large_batches_go_through_in_blocks_of_members(generator):
    snapshots = [TransitionDiscriminator(3, 1, (64,), generator=generator) for _ in range(7)]
    normalizer = TransitionNormalizer(3, 1)
    reward = DynamicsReward(normalizer, snapshots)
    obs, act = torch.randn(3000, 3, generator=generator), torch.randn(3000, 1, generator=generator)
    following = torch.randn(3, 3000, 3, generator=generator)
    expected = loop(snapshots, normalizer, obs, act, following, True)
    torch.testing.assert_close(reward.logits(obs, act, following), expected, atol=1e-5, rtol=1e-5)


class OwnDiscriminator(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, encoded):
        return torch.tanh(encoded @ self.weight)


def test_modules_of_the_users_own_kind(generator, batch):
    snapshots = [OwnDiscriminator(torch.randn(8, generator=generator)) for _ in range(3)]
    normalizer = TransitionNormalizer(3, 2)
    reward = DynamicsReward(normalizer, snapshots)
    torch.testing.assert_close(reward.logits(*batch), loop(snapshots, normalizer, *batch, True))


@pytest.mark.parametrize("shipped", [True, False])
def test_the_official_calibration(generator, batch, shipped):
    """The published inference, written out in numpy one snapshot at a time."""
    snapshots = [TransitionDiscriminator(3, 2, (8,), generator=generator) for _ in range(5)]
    data_logits = torch.tensor([0.4, 0.2, math.nan, 0.05, 0.3])
    model_logits = torch.tensor([-0.3, -0.1, 0.0, -0.4, math.nan])
    reward = DynamicsReward(
        TransitionNormalizer(3, 2),
        snapshots,
        data_logits=data_logits,
        model_logits=model_logits,
        rescale=True,
        rescale_range=(0.0, 1.0) if shipped else None,
        probability_clip=0.7,
    )
    logits = loop(snapshots, TransitionNormalizer(3, 2), *batch, True).detach().numpy().astype(np.float64)
    known = [0, 1, 3]
    largest, smallest = (1.0, 0.0) if shipped else (0.4, -0.4)
    width = 2 * max(abs(largest), abs(smallest))
    probabilities = []
    for index in known:
        low, high = model_logits[index].item(), data_logits[index].item()
        scaled = (np.clip(logits[index], low, high) - low) / (high - low + 1e-7) * width - width / 2
        probabilities.append(np.clip(1 / (1 + np.exp(-scaled)), 0, 0.7))
    expected = -np.log(1 - np.mean(probabilities, axis=0) + 1e-9)
    np.testing.assert_allclose(reward(*batch).detach().numpy(), expected, rtol=2e-5)


def test_the_shipped_calibration_spans_the_published_interval():
    """r^D lies in [0.313, 1.313] and the published threshold 0.6 is a mean probability of 0.451."""
    reward = DynamicsReward(
        TransitionNormalizer(1, 1),
        [TransitionDiscriminator(1, 1, (4,))] * 2,
        data_logits=torch.tensor([0.5, 0.2]),
        model_logits=torch.tensor([-0.5, 0.0]),
        rescale=True,
    )
    extremes = reward.reward_of_logits(torch.tensor([[-9.0, 9.0], [-9.0, 9.0]]))
    torch.testing.assert_close(extremes, torch.tensor([0.3133, 1.3133]), atol=1e-4, rtol=0)
    assert 1 - math.exp(-0.6) == pytest.approx(0.451, abs=1e-3)


def test_greedy_follows_the_density_ratio_of_two_gaussians(generator):
    """With the optimal discriminator log p_data - log p_generator, greedy maximises the ratio."""
    data, imitation = torch.distributions.Normal(0.3, 0.2), torch.distributions.Normal(0.0, 0.5)

    class Optimal(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, encoded):
            step = encoded[..., 2]
            return data.log_prob(step) - imitation.log_prob(step)

    reward = DynamicsReward(TransitionNormalizer(1, 1), [Optimal()])
    obs, act = torch.zeros(50, 1), torch.zeros(50, 1)
    candidates = imitation.loc + imitation.scale * torch.randn(10, 50, 1, generator=generator)
    result = TransitionFilter(reward, min_reward=0.6)(obs, act, candidates)
    # log of the ratio is a parabola: its top is where its derivative is 0
    top = (0.3 / 0.04 - 0.0 / 0.25) / (1 / 0.04 - 1 / 0.25)
    nearest = (candidates[..., 0] - top).abs().argmin(0)
    assert torch.equal(result.index, nearest)


def test_softmax_draws_its_own_distribution(generator):
    scores = torch.tensor([0.1, 0.35, 0.2, -math.inf]).unsqueeze(-1).expand(4, 20_000)
    values = torch.zeros(4, 20_000, 1)
    for temperature, expected in (
        (0.1, torch.softmax(scores[:, 0] / 0.1, 0)),
        (1e6, torch.tensor([1, 1, 1, 0]) / 3),
    ):
        _, index, _ = select(values, scores, mode="softmax", temperature=temperature, generator=generator)
        observed = torch.bincount(index, minlength=4).double()
        wanted = 20_000 * expected.double()
        chi_square = ((observed - wanted).square() / wanted)[:3].sum()
        assert observed[3] == 0
        assert chi_square < 13.8  # 0.1 % of the chi-square distribution with 2 degrees of freedom


def test_candidates_have_the_members_moments(generator):
    mean = torch.tensor([0.0, 10.0, -5.0]).view(3, 1, 1).expand(3, 4000, 2)
    std = torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1).expand(3, 4000, 2)
    candidates = candidates_from_gaussian(mean, std, [2, 0], resample=2, generator=generator)
    assert candidates.shape == (4, 4000, 2)
    expected = torch.tensor([-5.0, 0.0, -5.0, 0.0])
    torch.testing.assert_close(candidates.mean((1, 2)), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(candidates.std((1, 2)), torch.tensor([2.0, 1.0, 2.0, 1.0]), atol=0.1, rtol=0)


def test_the_threshold_rejects_the_share_asked_for(generator):
    reward = DynamicsReward(
        TransitionNormalizer(3, 1), [TransitionDiscriminator(3, 1, (8,), generator=generator)]
    )
    obs, act = torch.randn(1001, 3, generator=generator), torch.randn(1001, 1, generator=generator)
    scores = reward(obs, act, obs + 1).detach().numpy()
    for quantile in (0.0, 0.05, 0.5, 1.0):
        found = calibrate_threshold(reward, obs, act, obs + 1, quantile)
        assert found == pytest.approx(np.quantile(scores, quantile, method="nearest"), abs=1e-6)
    gap = reward_consistency(reward, obs, act, obs + 1, torch.stack([obs, obs + 2]))
    others = [reward(obs, act, other).detach().numpy() for other in (obs, obs + 2)]
    assert gap.item() == pytest.approx(scores.mean() - np.mean(others), abs=1e-6)


def test_kept_as_safetensors(generator, batch, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    normalizer = TransitionNormalizer.fit(batch[0], batch[1], batch[0])
    reward = DynamicsReward(
        normalizer,
        [TransitionDiscriminator(3, 2, (8, 6), generator=generator) for _ in range(3)],
        data_logits=torch.tensor([0.5, 0.6, 0.4]),
        model_logits=torch.tensor([-0.2, 0.0, -0.1]),
        rescale=True,
    )
    safetensors.save_file(reward.state_dict(), tmp_path / "reward.safetensors")
    again = DynamicsReward.from_state_dict(
        safetensors.load_file(tmp_path / "reward.safetensors"), rescale=True
    )
    assert torch.equal(again(*batch), reward(*batch))
    doubled = DynamicsReward.from_state_dict(reward.double().state_dict(), rescale=True)
    assert doubled(*[part.double() for part in batch]).dtype == torch.float64


def test_compiles_without_graph_breaks(batch):
    reward = DynamicsReward(
        TransitionNormalizer(3, 2),
        [TransitionDiscriminator(3, 2, (8,))] * 3,
        data_logits=torch.ones(3),
        model_logits=torch.zeros(3),
        rescale=True,
    )
    compiled = torch.compile(reward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch), reward(*batch))


def test_under_autocast_and_with_gradients(batch):
    reward = DynamicsReward(TransitionNormalizer(3, 2), [TransitionDiscriminator(3, 2, (8,))] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(reward(*batch)).all()
    double = reward.double()
    inputs = [part[..., :2, :].double().requires_grad_() for part in batch]
    assert torch.autograd.gradcheck(double, inputs)
