"""What is wrong is named at the boundary."""

import math
import re

import pytest
import torch

from morec import (
    DynamicsReward,
    DynamicsRewardTrainer,
    TransitionDiscriminator,
    TransitionFilter,
    TransitionNormalizer,
    calibrate_threshold,
    candidates_from_gaussian,
    reward_consistency,
    rollout,
    select,
)

OBS, ACT, CANDIDATES = torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(4, 5, 3)


def make_reward(**options):
    return DynamicsReward(TransitionNormalizer(3, 2), [TransitionDiscriminator(3, 2, (4,))] * 2, **options)


def refuses(message, error=ValueError):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize(
    ("obs", "act", "following", "message"),
    [
        (torch.zeros(5, 4), ACT, CANDIDATES, "obs must have shape (B, 3), got (5, 4)"),
        (OBS, torch.zeros(5, 1), CANDIDATES, "act must have shape (5, 2), got (5, 1)"),
        (OBS, torch.zeros(4, 2), CANDIDATES, "act must have shape (5, 2), got (4, 2)"),
        (OBS, ACT, torch.zeros(4, 5, 2), "next_obs must have shape (5, 3) or (K, 5, 3), got (4, 5, 2)"),
        (OBS, ACT, torch.zeros(4, 6, 3), "next_obs must have shape (5, 3) or (K, 5, 3), got (4, 6, 3)"),
        (OBS, ACT, torch.zeros(0, 5, 3), "next_obs must hold at least one candidate per state, got K = 0"),
        (OBS, ACT, CANDIDATES.to("meta"), "next_obs must be on the device cpu of what it meets, got meta"),
    ],
)
def test_reward_inputs(obs, act, following, message):
    with refuses(message):
        make_reward()(obs, act, following)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability_clip": 0.0}, "probability_clip must be in (0, 1], got 0.0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"data_logits": torch.zeros(3)}, "data_logits must have shape (2,), got (3,)"),
        ({"rescale": True}, "rescale=True needs data_logits and model_logits"),
    ],
)
def test_reward_options(options, message):
    with refuses(message):
        make_reward(**options)


def test_a_reward_needs_snapshots():
    with refuses("discriminators must hold at least one snapshot, got none"):
        DynamicsReward(TransitionNormalizer(3, 2), [])
    with refuses("there are no snapshots: 0 steps taken, one is kept every 50"):
        DynamicsRewardTrainer(3, 2).export()
    with refuses("state_dict must come from a DynamicsReward"):
        DynamicsReward.from_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode must be 'greedy' or 'softmax', got 'best'"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive and finite, got nan"),
        ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        ({"min_reward": math.nan}, "min_reward must be a number, got NaN"),
        ({"min_length": -1}, "min_length must be at least 0, got -1"),
        ({"on_reject": "stop"}, "on_reject must be 'terminal', 'drop' or 'truncate', got 'stop'"),
        ({"clip": 0.0}, "clip must be positive, got 0.0"),
        ({"nan_policy": "ignore"}, "nan_policy must be 'raise' or 'reject', got 'ignore'"),
    ],
)
def test_filter_options(options, message):
    with refuses(message):
        TransitionFilter(make_reward(), **{"min_reward": 0.6, **options})


def test_filter_inputs():
    transition_filter = TransitionFilter(make_reward(), min_reward=0.6)
    for shape in ((0, 5, 3), (4, 5, 2), (5, 3)):
        with refuses(f"candidates must have shape (K, B, 3 or more) with K >= 1, got {shape}"):
            transition_filter(OBS, ACT, torch.zeros(shape))
    for poison in (math.nan, math.inf):
        broken = CANDIDATES.clone()
        broken[1, 2, 0] = poison
        with refuses("candidates must be finite, 1 are not"):
            transition_filter(OBS, ACT, broken)


def test_select_inputs():
    with refuses("candidates must have shape (K, B, D) with K >= 1, got (0, 5, 3)"):
        select(torch.zeros(0, 5, 3), torch.zeros(0, 5))
    with refuses("scores must have shape (4, 5) like candidates, got (5, 4)"):
        select(CANDIDATES, torch.zeros(5, 4))
    with refuses("temperature must be positive and finite, got -1"):
        select(CANDIDATES, torch.zeros(4, 5), mode="softmax", temperature=-1)


def test_gaussian_candidates():
    with refuses("mean and std must have the same shape (E, B, D), got (4, 5, 3) and (4, 5, 2)"):
        candidates_from_gaussian(CANDIDATES, torch.ones(4, 5, 2), [0])
    with refuses("resample must be at least 1, got 0"):
        candidates_from_gaussian(CANDIDATES, CANDIDATES, [0], 0)
    with refuses("elites must name at least one member, got none"):
        candidates_from_gaussian(CANDIDATES, CANDIDATES, [])


def test_normaliser_data():
    with refuses("obs must hold at least one transition, got none"):
        TransitionNormalizer.fit(OBS[:0], ACT[:0], OBS[:0])
    with refuses("next_obs must be finite"):
        TransitionNormalizer.fit(OBS, ACT, OBS + math.nan)
    with refuses("low must be below high, got low=1.0, high=1.0"):
        TransitionNormalizer.fit(OBS, ACT, OBS, low=1.0, high=1.0)
    with refuses("act must have as many rows as obs (5), got 4"):
        TransitionNormalizer.fit(OBS, ACT[:4], OBS)
    with refuses("next_obs must have 3 columns like obs, got 2"):
        TransitionNormalizer.fit(OBS, ACT, ACT)
    with refuses("act must have shape (N, dimensions), got (5,)"):
        TransitionNormalizer.fit(OBS, ACT[:, 0], OBS)
    with refuses("act must be a floating-point tensor, got torch.int64", TypeError):
        TransitionNormalizer.fit(OBS, ACT.long(), OBS)
    with refuses("obs_dim must be at least 1, got 0"):
        TransitionNormalizer(0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_every": 0}, "snapshot_every must be at least 1, got 0"),
        ({"max_snapshots": 0}, "max_snapshots must be at least 1, got 0"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"horizon": 2}, "behavior must be given when horizon > 1"),
        ({"discount": 1.5}, "discount must be in [0, 1], got 1.5"),
        ({"hidden_sizes": (0,)}, "every layer must have at least one unit"),
        ({"normalizer": TransitionNormalizer(4, 2)}, "normalizer must fit obs_dim=3, act_dim=2, got 4 and 2"),
    ],
)
def test_trainer_options(options, message):
    with refuses(message):
        DynamicsRewardTrainer(3, 2, **options)


def test_trainer_inputs():
    trainer = DynamicsRewardTrainer(3, 2, hidden_sizes=(4,), snapshot_every=1)
    for batch in ((OBS[:0], ACT[:0], OBS[:0]), (ACT, ACT, ACT)):
        with refuses("batch must hold at least one transition with 3 state and 2 action columns"):
            trainer.step(batch)
    trainer.step((OBS, ACT, OBS))
    for name in ("keep_last", "every"):
        with refuses(f"{name} must be at least 1, got 0"):
            trainer.export(**{name: 0})


def test_threshold_and_consistency_inputs():
    reward = make_reward()
    for measure in (calibrate_threshold, reward_consistency):
        with refuses("obs must hold at least one transition, got none"):
            measure(reward, OBS[:0], ACT[:0], OBS[:0], 0.5)
    with refuses("quantile must be in [0, 1], got 2"):
        calibrate_threshold(reward, OBS, ACT, OBS, 2)


def test_rollout_inputs():
    def sample(obs, act):
        return torch.zeros(2, len(obs), 3)

    with refuses("sample_fn must return candidates (K, 5, 4), got (2, 5, 3)"):
        rollout(sample, lambda obs: obs, OBS, 3, None)
    with refuses("horizon must be at least 1, got 0"):
        rollout(sample, lambda obs: obs, OBS, 0, None)
    with refuses("init_obs must have shape (B, S) with B >= 1, got (0, 3)"):
        rollout(sample, lambda obs: obs, OBS[:0], 3, None)
