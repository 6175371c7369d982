"""What users bring: broken rewards, NumPy, other dtypes, columns of ends, states with other options."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from morec import (
    DynamicsReward,
    DynamicsRewardTrainer,
    TransitionDiscriminator,
    TransitionFilter,
    TransitionGenerator,
    TransitionNormalizer,
    calibrate_threshold,
    candidates_from_gaussian,
    reward_consistency,
    rollout,
    select,
)

OBS, ACT = torch.zeros(4, 3), torch.zeros(4, 2)
CANDIDATES = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))


def make_reward(**options):
    modules = [
        TransitionDiscriminator(3, 2, (8,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]
    return DynamicsReward(TransitionNormalizer(3, 2), modules, **options)


@pytest.fixture
def broken():
    reward = make_reward()
    reward.ensemble.weights[0].data.fill_(torch.nan)
    return reward


@pytest.mark.parametrize("mode", ["greedy", "softmax"])
@pytest.mark.parametrize("min_reward", [0.69, -math.inf])
def test_a_broken_reward_accepts_nothing(broken, mode, min_reward):
    strict = TransitionFilter(broken, mode=mode, min_reward=min_reward)
    with pytest.raises(ValueError, match=r"scores of finite transitions must be finite .* 20 are not"):
        strict(OBS, ACT, CANDIDATES)
    lenient = TransitionFilter(broken, mode=mode, min_reward=min_reward, nan_policy="reject", min_length=9)
    result = lenient(OBS, ACT, CANDIDATES, step=0)
    assert result.keep.tolist() == [False] * 4
    assert result.reject.tolist() == [True] * 4
    with pytest.raises(ValueError, match="reward must be finite on the held-out transitions"):
        calibrate_threshold(broken, OBS, ACT, OBS)


class Poisoned(nn.Module):
    """Cannot judge transitions that raise the first coordinate."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, encoded):
        return torch.where(encoded[..., 2] > 0, torch.nan, encoded[..., 2])


def test_a_candidate_that_cannot_be_judged_is_not_chosen_and_the_others_are():
    reward = DynamicsReward(TransitionNormalizer(1, 1), [Poisoned()])
    candidates = torch.tensor([[[1.0], [2.0]], [[-3.0], [3.0]], [[-1.0], [4.0]]])
    lenient = TransitionFilter(reward, min_reward=-math.inf, nan_policy="reject")
    result = lenient(torch.zeros(2, 1), torch.zeros(2, 1), candidates)
    assert result.index[0] == 2  # the smaller fall of the two that can be judged
    assert result.keep.tolist() == [True, False]


@pytest.mark.parametrize("mode", ["greedy", "softmax"])
def test_select_passes_over_scores_that_are_no_numbers(mode):
    scores = torch.tensor([[torch.nan, 0.1], [0.2, torch.nan]])
    _, index, score = select(torch.zeros(2, 2, 1), scores, mode=mode)
    assert index.tolist() == [1, 0]
    assert score.tolist() == pytest.approx([0.2, 0.1])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_is_not_finite_changes_nothing(place):
    trainer = DynamicsRewardTrainer(3, 2, snapshot_every=1, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in trainer.discriminator.state_dict().items()}
    batch = [torch.zeros(6, 3), torch.zeros(6, 2), torch.ones(6, 3)]
    batch[place][2, 1] = torch.nan
    with pytest.raises(ValueError, match=rf"^{('obs', 'act', 'next_obs')[place]} must be finite"):
        trainer.step(batch)
    assert trainer.num_steps == 0
    assert all(torch.equal(before[name], value) for name, value in trainer.discriminator.state_dict().items())


def test_infinity_is_clipped_and_nan_is_not():
    clipping = TransitionFilter(make_reward(), min_reward=-math.inf, clip=25.0)
    candidates = torch.full((1, 4, 4), torch.inf)
    result = clipping(OBS, ACT, candidates)
    assert result.next_obs.unique().tolist() == [25.0]
    assert result.extra.unique().tolist() == [25.0]
    assert result.keep.all()
    candidates[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="candidates must be finite, 1 are not"):
        clipping(OBS, ACT, candidates)


def test_the_threshold_has_no_default():
    with pytest.raises(TypeError, match="min_reward"):
        TransitionFilter(make_reward())


def test_arrays_are_cast_and_tensors_of_another_dtype_are_named():
    reward = make_reward()
    following = CANDIDATES[..., :3]
    arrays = [values.double().numpy() for values in (OBS, ACT, following)]
    torch.testing.assert_close(reward(*arrays), reward(OBS, ACT, following))
    accept = TransitionFilter(reward, min_reward=-math.inf)
    ours = accept(arrays[0], arrays[1], CANDIDATES.double().numpy())
    torch.testing.assert_close(ours.next_obs, accept(OBS, ACT, CANDIDATES).next_obs)
    with pytest.raises(ValueError, match=r"act must have the dtype torch.float32 .* got torch.float64"):
        reward(OBS, ACT.double(), following)
    with pytest.raises(ValueError, match=r"candidates must have the dtype torch.float32"):
        accept(OBS, ACT, CANDIDATES.half())
    with pytest.raises(TypeError, match="obs must be a tensor or a NumPy array, got list"):
        reward(OBS.tolist(), ACT, following)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("array", [False, True])
def test_ends_may_come_as_a_column_or_an_array(column, array):
    def proposals(obs, act):  # a random walk upwards, reward 1
        found = torch.cat([obs + 1, torch.ones(len(obs), 1)], dim=1).expand(2, -1, -1)
        return found.numpy() if array else found

    def beyond_two(obs, act, next_obs):
        ended = next_obs[:, :1] > 2 if column else next_obs[:, 0] > 2
        return ended.numpy() if array else ended

    steps = rollout(
        proposals, lambda obs: obs[:, :1], torch.tensor([[0.0], [1.0]]), 5, None, termination_fn=beyond_two
    )
    assert steps["start"].tolist() == [0, 1, 0, 1, 0]
    assert steps["terminal"].tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("answer", [torch.zeros(2, 2) > 0, torch.zeros(2), np.zeros(3, bool)])
def test_an_end_of_another_form_is_named(answer):
    still = lambda obs, act: torch.cat([obs, obs], dim=1).expand(2, -1, -1)  # noqa: E731
    with pytest.raises(ValueError, match=r"termination_fn must give booleans of shape \(2,\) or \(2, 1\)"):
        rollout(still, lambda obs: obs, torch.zeros(2, 1), 3, None, termination_fn=lambda *_: answer)


def test_options_travel_with_the_weights_and_others_are_refused():
    levels = {"data_logits": torch.tensor([1.0, 2.0]), "model_logits": torch.tensor([-1.0, 0.5])}
    options = {"delta_input": False, "rescale": True, "rescale_range": None, "probability_clip": 0.9}
    reward = make_reward(**options, **levels)
    back = DynamicsReward.from_state_dict(reward.state_dict())
    following = CANDIDATES[..., :3]
    assert torch.equal(back(OBS, ACT, following), reward(OBS, ACT, following))
    with pytest.raises(ValueError, match="state_dict must be of a reward with the same delta_input, rescale"):
        make_reward().load_state_dict(reward.state_dict())


def test_states_of_the_first_version_still_load():
    state = make_reward(probability_clip=0.9).state_dict()
    del state["_extra_state"]
    reward = DynamicsReward.from_state_dict(state, probability_clip=0.9)
    assert reward.probability_clip == 0.9
    make_reward(rescale_range=None).load_state_dict(state)


@pytest.mark.parametrize(
    "names", [("obs", "act", "next_obs"), ("observations", "actions", "next_observations")]
)
def test_batches_come_as_mappings_and_arrays(names):
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randn(16, width, generator=generator) for width in (3, 2, 3)]
    arrays = {name: column.double().numpy() for name, column in zip(names, columns, strict=True)}
    arrays |= {"rewards": np.zeros(16), "terminals": np.zeros((16, 1), bool)}
    trainers = [DynamicsRewardTrainer(3, 2, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert trainers[0].step(arrays) == trainers[1].step(columns)
    assert trainers[0].generator_rmse(*(arrays[name] for name in names)) == trainers[1].generator_rmse(
        *columns
    )
    fitted = TransitionNormalizer.fit(*(arrays[name] for name in names))
    assert fitted.obs_center.dtype == torch.float32
    torch.testing.assert_close(fitted.state_dict(), TransitionNormalizer.fit(*columns).state_dict())
    reward, scores = make_reward(), [arrays[name] for name in names]
    assert calibrate_threshold(reward, *scores) == calibrate_threshold(reward, *columns)
    found = reward_consistency(reward, *scores, scores[0])
    torch.testing.assert_close(found, reward_consistency(reward, *columns, columns[0]))
    del arrays[names[1]]
    with pytest.raises(
        ValueError, match=r"batch must hold 'act' or 'actions'; it holds .*'rewards', 'terminals'"
    ):
        trainers[0].step(arrays)
    with pytest.raises(ValueError, match=r"batch must be \(obs, act, next_obs\) or a mapping, got 2 columns"):
        trainers[0].step(columns[:2])


def test_arrays_of_every_kind_are_right_or_refused():
    reward, following = make_reward(), CANDIDATES[0, :, :3]
    obs = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    expected = reward(obs, ACT, following)
    plain = obs.numpy()
    read_only = plain.copy()
    read_only.flags.writeable = False
    for array in (plain[::-1].copy()[::-1], plain.astype(">f8"), plain.astype(np.longdouble), read_only):
        torch.testing.assert_close(reward(array, ACT, following), expected)
    torch.testing.assert_close(reward(OBS.int().numpy(), ACT, following), reward(OBS, ACT, following))
    for array in (plain.astype(complex), plain.astype(object), plain.astype(str)):
        with pytest.raises(TypeError, match="obs must hold real numbers"):
            reward(array, ACT, following)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_mixed_dtypes_are_named_where_they_enter(place):
    columns = [OBS + torch.arange(4.0).unsqueeze(1), ACT, OBS]
    columns[place] = columns[place].double()
    wrong = "act" if place == 0 else ("act", "next_obs")[place - 1]
    with pytest.raises(ValueError, match=f"^{wrong} must have the dtype"):
        TransitionNormalizer.fit(*columns)
    name = ("obs", "act", "next_obs")[place]
    for use in (
        DynamicsRewardTrainer(3, 2).step,
        lambda batch: calibrate_threshold(make_reward(), *batch),
        lambda batch: reward_consistency(make_reward(), *batch, OBS),
    ):
        with pytest.raises(ValueError, match=f"^{name} must have the dtype torch.float32"):
            use(columns)


def test_a_loop_in_numpy():
    """As in OfflineRL-Kit: arrays go in and come out, the reward is a column, ends are columns too."""
    reward = make_reward()
    keep_plausible = TransitionFilter(reward, min_reward=0.7, on_reject="terminal")
    found = keep_plausible(OBS.numpy(), ACT.numpy(), CANDIDATES.numpy()).numpy()
    expected = keep_plausible(OBS, ACT, CANDIDATES)
    assert set(found) == {"next_obs", "extra", "score", "index", "reject", "terminal", "keep"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, getattr(expected, name).numpy())
    assert found["extra"].shape == (4, 1)
    half = TransitionFilter(make_reward().bfloat16(), min_reward=0.7)
    assert half(OBS.numpy(), ACT.numpy(), CANDIDATES.numpy()).numpy()["next_obs"].dtype == np.float32
    steps = rollout(
        lambda obs, act: CANDIDATES[:, : len(obs)].numpy(),
        lambda obs: np.zeros((len(obs), 2)),
        OBS.numpy(),
        2,
        None,
    )
    assert steps["obs"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"init_obs must have the dtype torch.float32"):
        rollout(lambda obs, act: CANDIDATES, lambda obs: ACT, OBS.double(), 2, keep_plausible)
    with pytest.raises(ValueError, match=r"policy must return actions \(4, A\), got \(4,\)"):
        rollout(lambda obs, act: CANDIDATES, lambda obs: obs[:, 0], OBS, 2, None)


def test_every_rollout_may_have_its_own_number_of_steps():
    keep_plausible = TransitionFilter(make_reward(), min_reward=math.inf, min_length=2)
    for steps in (torch.tensor([0, 1, 2, 3]), np.array([0, 1, 2, 3])):
        assert keep_plausible(OBS, ACT, CANDIDATES, steps).reject.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match=r"step must be a number or have shape \(4,\), got \(4, 1\)"):
        keep_plausible(OBS, ACT, CANDIDATES, torch.zeros(4, 1))


@pytest.mark.parametrize("name", ["obs", "act"])
def test_states_and_actions_that_are_not_finite_are_named_or_rejected(name):
    inputs = {"obs": OBS.clone(), "act": ACT.clone()}
    inputs[name][1, 0] = torch.nan
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        TransitionFilter(make_reward(), min_reward=-math.inf)(**inputs, candidates=CANDIDATES)
    lenient = TransitionFilter(make_reward(), min_reward=-math.inf, nan_policy="reject")
    assert lenient(**inputs, candidates=CANDIDATES).keep.tolist() == [True, False, True, True]
    scores = make_reward()(inputs["obs"], inputs["act"], CANDIDATES[..., :3])
    assert scores.isnan().any(0).tolist() == [False, True, False, False]


def test_a_tiny_temperature_is_greedy_still():
    scores = torch.tensor([[0.3], [0.7], [-torch.inf]])
    values = torch.zeros(3, 1, 1)
    assert select(values, scores, mode="softmax", temperature=1e-42)[1].item() == 1
    assert select(values, scores - 1e30, mode="softmax", temperature=1e30)[1].item() in (0, 1)


@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_half_precision_judges_small_steps(how):
    """Steps of a hundredth of the state: their products with the weights must not cancel, nor the sum be rounded."""
    generator = torch.Generator().manual_seed(0)
    modules = [TransitionDiscriminator(3, 2, (64,), generator=generator) for _ in range(20)]
    for module in modules:
        module.layers[0].weight.data[:, 5:] *= 100
    obs = (0.8 + 0.1 * torch.rand(64, 3, generator=generator)).bfloat16().float()
    # steps that bfloat16 can add to the state exactly
    steps = torch.randint(-3, 4, (5, 64, 3), generator=generator) / 256
    act, following = torch.zeros(64, 2), obs + steps
    reward = DynamicsReward(TransitionNormalizer(3, 2), modules)
    exact = reward(obs, act, following)
    if how == "cast":
        found = reward.bfloat16()(obs.bfloat16(), act.bfloat16(), following.bfloat16())
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = reward(obs, act, following)
    assert found.dtype == torch.float32
    assert found.unique().numel() > 250  # 320 scores that eight bits would not tell apart
    assert (found - exact).abs().max() < 0.02 * (exact.max() - exact.min())


class Columned(nn.Sequential):
    """Logits with a last axis of 1, dropout, and a parameter that takes no part."""

    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
        self.idle = nn.Parameter(torch.zeros(3))


def test_a_discriminator_of_ones_own():
    torch.manual_seed(0)
    own = Columned()
    trainer = DynamicsRewardTrainer(3, 2, discriminator=own, snapshot_every=1, optimizer=torch.optim.SGD)
    batch = [torch.randn(6, width) for width in (3, 2, 3)]
    trainer.step(batch)
    assert own.training
    reward, candidates = trainer.export(), CANDIDATES[:, :4, :3]
    own.eval()
    encoded = [trainer.normalizer.encode(OBS, ACT, one) for one in candidates]
    expected = torch.stack([own(one).squeeze(-1) for one in encoded])
    torch.testing.assert_close(reward.logits(OBS, ACT, candidates)[0], expected)
    file = io.BytesIO()
    torch.save(reward, file)
    file.seek(0)
    for copied in (copy.deepcopy(reward), torch.load(file, weights_only=False)):
        torch.testing.assert_close(copied(OBS, ACT, candidates), reward(OBS, ACT, candidates))
    with pytest.raises(
        ValueError, match=r"discriminator must give logits of shape \(12,\) or \(12, 1\), got \(12, 2\)"
    ):
        DynamicsRewardTrainer(3, 2, discriminator=nn.Linear(8, 2)).step(batch)


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_layers_that_were_changed_are_not_computed_as_if_they_were_not():
    generator = torch.Generator().manual_seed(0)
    changed, hooked = (TransitionDiscriminator(3, 2, (8,), generator=generator) for _ in range(2))
    changed.layers[1] = Doubled(8, 1)
    hooked.layers[0].register_forward_hook(lambda module, inputs, output: output.abs())
    for module in (changed, hooked):
        reward = DynamicsReward(TransitionNormalizer(3, 2), [module])
        encoded = reward.normalizer.encode(OBS, ACT, CANDIDATES[0, :, :3])
        torch.testing.assert_close(reward.logits(OBS, ACT, CANDIDATES[0, :, :3])[0], module(encoded))


def test_a_checkpoint_of_other_settings_is_refused():
    state = DynamicsRewardTrainer(3, 2, horizon=1, discount=0.9).state_dict()
    for options in (
        {"discount": 0.5},
        {"entropy_coefficient": 0.2},
        {"snapshot_every": 3},
        {"max_snapshots": 7},
    ):
        (name, value), *_ = options.items()
        other = DynamicsRewardTrainer(3, 2, **{"discount": 0.9, **options})
        with pytest.raises(
            ValueError, match=f"state_dict must be of a trainer with {name}={value} like this one"
        ):
            other.load_state_dict(state)
    wider = TransitionGenerator(3, 2, log_std_range=(-3.0, 0.0))
    with pytest.raises(ValueError, match="log_std_range"):
        DynamicsRewardTrainer(3, 2, discount=0.9, transition_generator=wider).load_state_dict(state)


def test_a_checkpoint_holds_tensors_by_name_and_the_first_versions_tuples_still_load(tmp_path):
    batch = [torch.randn(6, width, generator=torch.Generator().manual_seed(width)) for width in (3, 2, 3)]
    trainer = DynamicsRewardTrainer(3, 2, snapshot_every=1, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        trainer.step(batch)
    torch.save(trainer.state_dict(), tmp_path / "trainer.pt")
    state = torch.load(tmp_path / "trainer.pt", weights_only=True)
    assert state["snapshots"]["weights"]["layers.0.weight"].shape == (3, 128, 8)
    old = {**state, "snapshots": list(trainer.snapshots)}
    del old["settings"]
    for one in (state, old):
        other = DynamicsRewardTrainer(3, 2, snapshot_every=1)
        other.load_state_dict(one)
        assert torch.equal(other.export()(*batch), trainer.export()(*batch))


def test_counts_come_from_numpy_and_fractions_are_refused():
    trainer = DynamicsRewardTrainer(3, 2, snapshot_every=np.int64(1), max_snapshots=np.int32(2))
    trainer.step((OBS, ACT, OBS))
    assert trainer.export(keep_last=np.int64(1), every=np.int64(1)).num_snapshots == 1
    with pytest.raises(TypeError, match=r"snapshot_every must be a whole number, got 2.5"):
        DynamicsRewardTrainer(3, 2, snapshot_every=2.5)
    with pytest.raises(TypeError, match=r"horizon must be a whole number, got 3.0"):
        rollout(lambda obs, act: CANDIDATES, lambda obs: ACT, OBS, 3.0, None)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_entropy_coefficient_that_cannot_be_is_named(value):
    with pytest.raises(ValueError, match="entropy_coefficient must be at least 0 and finite"):
        DynamicsRewardTrainer(3, 2, entropy_coefficient=value)


def test_half_precision_training_is_refused():
    columns = [part.bfloat16() for part in (OBS + torch.arange(4.0).unsqueeze(1), ACT, OBS)]
    with pytest.raises(ValueError, match="normalizer must be float32 or float64"):
        DynamicsRewardTrainer(3, 2, normalizer=TransitionNormalizer.fit(*columns))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_an_offset_does_not_blur_the_scaling(offset):
    """float32 cannot hold more, but what it holds must reach the discriminator: against float64."""
    generator = torch.Generator().manual_seed(0)
    obs = 100 * torch.randn(50, 3, generator=generator, dtype=torch.float64) + offset
    obs, act = obs.float(), torch.randn(50, 2, generator=generator)
    single = TransitionNormalizer.fit(obs, act, obs).encode(obs[1:], act[1:], obs[:-1])
    exact = [part.double() for part in (obs, act)]
    double = TransitionNormalizer.fit(exact[0], exact[1], exact[0])
    expected = double.encode(exact[0][1:], exact[1][1:], exact[0][:-1])
    torch.testing.assert_close(single.double(), expected, atol=1e-3 if offset == 1e6 else 1e-5, rtol=0)


def test_a_column_that_cannot_be_scaled_is_named():
    for width in (1e-42, 3e38):
        obs = torch.tensor([[-width, 0.0, 0.0], [width, 1.0, 1.0]])
        with pytest.raises(ValueError, match=r"obs must vary by amounts that torch.float32 can scale"):
            TransitionNormalizer.fit(obs, ACT[:2], obs)


@pytest.mark.parametrize("own", [False, True])
def test_an_empty_batch_gives_an_empty_answer(own):
    """The last state of a loop has ended; nothing is left to ask."""
    reward = DynamicsReward(TransitionNormalizer(3, 2), [Columned()]) if own else make_reward()
    assert reward(OBS[:0], ACT[:0], CANDIDATES[:, :0, :3]).shape == (5, 0)
    assert reward(OBS[:0], ACT[:0], OBS[:0]).shape == (0,)
    result = TransitionFilter(reward, min_reward=0.0)(OBS[:0], ACT[:0], CANDIDATES[:, :0])
    assert result.next_obs.shape == (0, 3)
    assert result.keep.shape == (0,)


def test_elites_as_mask_numbers_or_nonsense():
    mean = torch.arange(3.0).view(3, 1, 1).expand(3, 2, 2)
    for elites in (
        [0, 2],
        np.array([0, 2]),
        torch.tensor([True, False, True]),
        np.array([True, False, True]),
    ):
        found = candidates_from_gaussian(mean, 0 * mean, elites, np.int64(1))
        assert found[:, 0, 0].tolist() == [0.0, 2.0]
    assert candidates_from_gaussian(mean.numpy(), 0 * mean.numpy(), [1]).unique().tolist() == [1.0]
    for elites in ([0.5], [3], [-1], torch.tensor([True, False])):
        with pytest.raises(
            ValueError, match=r"elites must (be whole numbers from 0 to 2|name at least one) "
        ):
            candidates_from_gaussian(mean, mean, elites)
    with pytest.raises(ValueError, match="std must not be negative"):
        candidates_from_gaussian(mean, mean - 1, [0])


def test_measures_refuse_what_is_not_finite(broken):
    poisoned = OBS.clone()
    poisoned[2, 1] = torch.nan
    trainer = DynamicsRewardTrainer(3, 2)
    for use in (trainer.generator_rmse, lambda *batch: reward_consistency(make_reward(), *batch, OBS)):
        with pytest.raises(ValueError, match="next_obs must be finite"):
            use(OBS, ACT, poisoned)
    with pytest.raises(ValueError, match="rewards must be finite"):
        reward_consistency(make_reward(), OBS, ACT, OBS, poisoned)
    with pytest.raises(ValueError, match="rewards must be finite"):
        reward_consistency(broken, OBS, ACT, OBS, OBS)


def test_a_threshold_that_is_no_number_is_named():
    for value in (None, "0.6"):
        with pytest.raises(TypeError, match=f"min_reward must be a number, got {value!r}"):
            TransitionFilter(make_reward(), min_reward=value)
    assert TransitionFilter(make_reward(), min_reward=np.float32(0.5)).min_reward == 0.5
