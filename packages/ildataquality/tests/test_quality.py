"""The report against noises that are known: comparable sets, slopes, coverage, angles, pauses and operators."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import random_episodes

from ildataquality import (
    Episodes,
    Normalizer,
    PMObstacle,
    decompose,
    divergence_from_others,
    episode_scores,
    held_out_residuals,
    neighbours,
    quality_report,
    rank_episodes,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def walks(amplitude, noise, seed, count=8, length=40):
    """Along a line; a = amplitude sin(s) + noise."""
    arrays = []
    for index in range(count):
        states = torch.linspace(0, 6.28, length + 1, dtype=torch.float64)[:, None]
        states = states + 0.05 * randn(seed + index, length + 1, 1)
        actions = amplitude * states[:-1].sin() + noise * randn(seed + 100 + index, length, 1)
        arrays.append({"observations": states, "actions": actions})
    return Episodes.from_arrays(arrays)


# --- comparable ------------------------------------------------------------------------------------


def test_under_one_normaliser_who_is_noisier_has_more_action_variance(monkeypatch):
    quick = partial(held_out_residuals, hidden=(32,), num_steps=150)
    monkeypatch.setattr("ildataquality.quality.held_out_residuals", quick)
    careful, hasty = walks(0.1, 0.1, 0), walks(1.0, 0.3, 1000)
    union = Episodes.concatenate([careful, hasty])
    frozen = Normalizer.fit(union.observations, union.actions)
    first = quality_report(careful, normalizer=frozen, folds=2)
    second = quality_report(hasty, normalizer=frozen)
    # In squared units of the actions: the noises themselves.
    for report, variance in ((first, 0.01), (second, 0.09)):
        assert report.action_variance * frozen.action_variance == pytest.approx(variance, rel=0.15)
        distance = float(report.samples["divergence"].mean()) * frozen.action_variance
        assert distance == pytest.approx(variance, rel=0.2)
    assert first.model_divergence * frozen.action_variance == pytest.approx(0.01, rel=0.3)
    assert first.score - second.score == pytest.approx(
        second.action_variance - first.action_variance + first.coverage - second.coverage
    )
    # Each by its own variance, the order is the other way round: the hasty one acts more.
    alone = [quality_report(part).action_variance for part in (careful, hasty)]
    assert alone[0] > 3 * alone[1]


def test_a_normaliser_without_the_actions_scale_is_refused(episodes):
    with pytest.raises(ValueError, match=r"normalizer must know the actions' scale: Normalizer\.fit\(observ"):
        quality_report(episodes, normalizer=Normalizer.fit(episodes.observations))
    other = Normalizer.fit(episodes.observations, torch.cat([episodes.actions] * 2, dim=1))
    with pytest.raises(
        ValueError, match=r"actions must be \(N, 4\) as the normalizer was fitted, got \(26, 2\)"
    ):
        quality_report(episodes, normalizer=other)
    with pytest.raises(
        ValueError, match=r"states must be \(N, 3\) as the normalizer was fitted, got \(26, 2\)"
    ):
        quality_report(
            episodes,
            normalizer=Normalizer.fit(episodes.observations, episodes.actions),
            encode=lambda observations: observations[:, :2],
        )


def test_a_normaliser_comes_back_from_its_tensors():
    states, actions = randn(0, 50, 3), randn(1, 50, 2)
    fitted = Normalizer.fit(states, actions, circular=[1])
    loaded = Normalizer.from_state_dict(fitted.state_dict())
    assert torch.equal(loaded(states), fitted(states))
    assert torch.equal(loaded.standard_actions(actions), fitted.standard_actions(actions))
    assert (loaded.radius, loaded.circular, loaded.action_variance) == (
        fitted.radius,
        (1,),
        fitted.action_variance,
    )
    plain = Normalizer.fit(states).state_dict()
    assert Normalizer.from_state_dict(plain).action_variance is None
    del plain["radius"]
    with pytest.raises(ValueError, match="state_dict must have the entries"):
        Normalizer.from_state_dict(plain)


def test_standardised_actions_are():
    states, actions = randn(0, 50, 3), 7 + randn(1, 50, 2) * torch.tensor([1.0, 20.0])
    actions = torch.cat([actions, torch.full((50, 1), 0.3)], dim=1)
    fitted = Normalizer.fit(states, actions)
    unit, standard = fitted.unit_actions(actions), fitted.standard_actions(actions)
    assert unit.var(0, correction=0).sum().item() == pytest.approx(1)
    assert standard.var(0, correction=0).tolist() == pytest.approx([1, 1, 0])
    assert fitted.action_variance == pytest.approx(float(actions[:, :2].var(0, correction=0).sum()))


# --- slopes ----------------------------------------------------------------------------------------


def test_a_slope_of_the_experts_actions_is_no_noise():
    direction, arrays = randn(0, 4, 1), []
    for index in range(12):
        states = randn(1 + index, 61, 4)
        arrays.append(
            {"observations": states, "actions": states[:-1] @ direction + 0.1 * randn(50 + index, 60, 1)}
        )
    episodes = Episodes.from_arrays(arrays)
    noise = 0.01 / float(episodes.actions.var())
    linear, mean = quality_report(episodes), quality_report(episodes, estimator="mean")
    assert linear.estimators == {"actions": "linear", "transitions": "linear"}
    assert mean.estimators == {"actions": "mean", "transitions": "mean"}
    assert linear.action_variance == pytest.approx(noise, rel=0.2)
    assert float(linear.samples["divergence"].mean()) == pytest.approx(noise, rel=0.2)
    assert mean.action_variance > 5 * noise  # the slope within 32 neighbours in four dimensions


@pytest.mark.parametrize(("system", "policy"), [(0.0, 0.6), (0.02, 0.6)])
def test_smooth_dynamics_are_no_noise_of_the_system(system, policy):
    episodes = PMObstacle().collect(16, system_noise=system, policy_noise=policy, generator=generator(0))
    report = quality_report(episodes)
    expected = float((system / report.normalizer.std).square().mean())
    assert report.transition_variance == pytest.approx(expected, rel=0.12, abs=1e-10)
    assert quality_report(episodes, estimator="mean").transition_variance > 1.05 * expected + 1e-4


def test_the_estimator_is_linear_where_there_are_neighbours_enough(episodes):
    # Three dimensions of states and two of actions: more than 5, and more than 7 neighbours.
    told = {k: quality_report(episodes, k=k).estimators for k in (5, 6, 7, 8)}
    assert [told[k]["actions"] for k in (5, 6)] == ["mean", "linear"]
    assert [told[k]["transitions"] for k in (7, 8)] == ["mean", "linear"]
    with pytest.raises(
        ValueError, match="estimator='linear' needs more than 5 neighbours in 3 dimensions, got 5"
    ):
        quality_report(episodes, k=5, estimator="linear")
    with pytest.raises(ValueError, match="estimator must be 'linear', 'mean' or None, got 'median'"):
        quality_report(episodes, estimator="median")


def test_the_error_of_a_linear_fit_is_that_of_a_library_over_its_leverage():
    states, actions = randn(0, 40, 2), randn(1, 40, 3)
    near = neighbours(states, k=9, episode_id=torch.arange(40) // 8)
    expected = []
    for i, row in enumerate(near.index.tolist()):
        design = np.column_stack([np.ones(9), states[row].numpy()])
        place = np.array([1.0, *states[i].tolist()])
        fit = np.linalg.lstsq(design, actions[row].numpy(), rcond=None)[0]
        leverage = place @ np.linalg.inv(design.T @ design) @ place
        expected.append(((actions[i].numpy() - place @ fit) ** 2).sum() / (1 + leverage))
    found = divergence_from_others(actions, near, normalize=False, states=states)
    assert found.tolist() == pytest.approx(expected)


# --- the split -------------------------------------------------------------------------------------


def autocorrelated(seed, length, memory):
    noise, kicks = torch.zeros(length, dtype=torch.float64), randn(seed, length)
    noise[0] = kicks[0]
    for step in range(1, length):
        noise[step] = memory * noise[step - 1] + math.sqrt(1 - memory**2) * kicks[step]
    return noise


@pytest.mark.parametrize("memory", [0.0, 0.98])
def test_noise_that_lasts_is_still_noise(memory):
    """One episode, four times around a circle: what lasts for fifty steps is not what the state says."""
    found = []
    for seed in range(12):
        angle = torch.arange(201, dtype=torch.float64) * 2 * math.pi * 4 / 200
        states = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.01 * randn(seed, 201, 2)
        actions = states[:-1, :1] + 0.3 * autocorrelated(50 + seed, 200, memory)[:, None]
        lap = Episodes.from_arrays([{"observations": states, "actions": actions}])
        found.append(decompose(lap, k=16).action_noise ** 2)
    assert np.sqrt(np.mean(found)) == pytest.approx(0.3, rel=0.2)


def test_the_split_takes_other_episodes_where_there_are_some():
    """Three laps at a time by two operators who differ: the difference is noise to a policy of both."""
    arrays = []
    for offset in (-0.2, 0.2):
        angle = torch.arange(121, dtype=torch.float64) * 2 * math.pi * 3 / 120
        states = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.01 * randn(int(10 * offset) + 9, 121, 2)
        arrays.append({"observations": states, "actions": torch.full((120, 1), offset, dtype=torch.float64)})
    episodes = Episodes.from_arrays(arrays)
    assert decompose(episodes, k=16).action_noise == pytest.approx(0.4, rel=0.1)  # all of the distance
    mixed = decompose(episodes, k=16, cross_episode_only=False).action_noise
    assert 0.1 < mixed < 0.3


# --- coverage, angles, pauses ----------------------------------------------------------------------


def test_coverage_is_the_share_of_pushed_states_with_a_sample_in_reach():
    """Lone states: covered by themselves alone, with the chance that a chi-square of D is at most D."""
    for dimensions, chance in ((1, 0.6827), (2, 0.6321), (8, 0.5665)):
        arrays = [
            {"observations": 100 * randn(d, 201, dimensions), "actions": randn(9 + d, 200, 1)}
            for d in range(3)
        ]
        report = quality_report(Episodes.from_arrays(arrays), reach=1e-3)
        assert report.coverage == pytest.approx(chance, abs=4 * (0.25 / 600) ** 0.5)
    dense = [{"observations": randn(d, 401, 1), "actions": randn(9 + d, 400, 1)} for d in range(3)]
    assert quality_report(Episodes.from_arrays(dense), reach=0.1).coverage > 0.97


def test_the_reach_is_in_the_units_of_each_feature(episodes):
    reach = torch.tensor([0.3, 0.1, 0.5], dtype=torch.float64)
    unit = torch.tensor([1.0, 1000.0, 0.01], dtype=torch.float64)
    other = Episodes.from_arrays(
        [episode | {"observations": episode["observations"] * unit} for episode in episodes.to_arrays()]
    )
    plain = quality_report(episodes, reach=reach)
    assert torch.equal(
        plain.samples["coverage"], quality_report(other, reach=reach * unit).samples["coverage"]
    )
    radius = plain.normalizer.radius
    standard = quality_report(episodes, reach=radius * plain.normalizer.deviations)
    assert torch.equal(standard.samples["coverage"], quality_report(episodes).samples["coverage"])
    for wrong in (0.0, float("nan"), torch.ones(2)):
        with pytest.raises(ValueError, match=r"reach must be positive, one number or \(3,\)"):
            quality_report(episodes, reach=wrong)


def turning(wrapped):
    """Angles that go round and round, beside a length."""
    arrays = []
    for index in range(4):
        angle = 0.3 * torch.arange(121, dtype=torch.float64) + 0.01 * randn(index, 121)
        if wrapped:
            angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        states = torch.stack([angle, randn(9 + index, 121)], dim=1)
        arrays.append({"observations": states, "actions": 0.3 + 0.01 * randn(20 + index, 120, 1)})
    return Episodes.from_arrays(arrays)


def test_angles_that_wrap_around_are_those_that_do_not():
    wrapped, unwrapped = (quality_report(turning(w), circular=[0], seed=1) for w in (True, False))
    for name in ("action_variance", "transition_variance", "coverage", "state_similarity", "idle"):
        # The radius is one of the distances, which rounding puts on either side.
        assert getattr(wrapped, name) == pytest.approx(getattr(unwrapped, name), abs=2e-5)
    split = decompose(turning(True), circular=[0])
    # Two draws of 0.01 in each difference of angles, two of 1 in each difference of lengths.
    assert split.system_covariance[0, 0].sqrt().item() == pytest.approx(0.0141, rel=0.15)
    # Taken for a length, the jumps from pi to -pi are noise.
    assert decompose(turning(True)).system_covariance[0, 0].sqrt() > 0.3


def test_an_angle_weighs_as_one_dimension():
    states = torch.stack([randn(0, 400), 0.7 * randn(1, 400)], dim=1)
    fitted = Normalizer.fit(states, circular=[1])
    assert fitted(states).var(0, correction=0).tolist()[0] == pytest.approx(1)
    assert fitted(states).var(0, correction=0)[1:].sum().item() == pytest.approx(1)
    assert fitted.num_dimensions == 2
    around = states + torch.tensor([0.0, 2 * math.pi], dtype=torch.float64)
    torch.testing.assert_close(fitted(around), fitted(states))
    for wrong in ([2], [1, 1], [-1]):
        with pytest.raises(ValueError, match="circular must be"):
            Normalizer.fit(states, circular=wrong)
    with pytest.raises(ValueError, match="circular must be left to the normalizer"):
        quality_report(turning(True), circular=[0], normalizer=fitted)


def test_pauses_are_counted():
    arrays = []
    for index, pause in enumerate((0, 30, 15)):
        states = torch.cat([randn(index, 31, 2), randn(index, 31, 2)[-1:].expand(pause, 2)])
        arrays.append({"observations": states, "actions": randn(9 + index, 30 + pause, 1)})
    report = quality_report(Episodes.from_arrays(arrays))
    assert report.idle == pytest.approx(45 / 135)
    assert report.episodes["idle"].tolist() == pytest.approx([0, 0.5, 1 / 3])
    assert episode_scores(report, {"idle": -1.0}).argmin() == 1


def test_a_step_is_idle_below_a_hundredth_of_the_radius():
    episodes = walks(1.0, 0.1, 0, count=4, length=30)
    frozen = Normalizer.fit(episodes.observations, episodes.actions)
    unit = frozen.radius * float(frozen.std)
    steps = torch.tensor([0.009, 0.011, 0.0, 1.0], dtype=torch.float64) * unit
    states = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])[:, None]
    walk = {"observations": states, "actions": torch.arange(4.0)[:, None]}
    report = quality_report(Episodes.from_arrays([walk, walk]), normalizer=frozen, k=2)
    assert report.samples["idle"].tolist() == [1, 0, 1, 0] * 2


def test_novelty_is_the_share_of_samples_that_no_other_episode_comes_near():
    arrays = random_episodes(3)
    arrays[2]["observations"] = arrays[2]["observations"] + 20
    episodes = Episodes.from_arrays(arrays)
    report = quality_report(episodes)
    states = report.normalizer(episodes.observations)
    near = torch.cdist(states, states) <= report.normalizer.radius
    near &= episodes.episode_id[:, None] != episodes.episode_id
    alone = [float((~near.any(1))[episodes.episode_id == e].double().mean()) for e in range(4)]
    assert report.episodes["novelty"].tolist() == pytest.approx(alone)
    assert alone[2] == 1
    assert min(alone) < 1


def test_the_spread_of_states_is_a_root_mean_square_per_dimension():
    arrays = [
        {
            "observations": randn(i, 41, 3) * torch.tensor([1.0, 2.0, 5.0]) + 100,
            "actions": randn(60 + i, 40, 1),
        }
        for i in range(40)
    ]
    assert decompose(Episodes.from_arrays(arrays)).state_spread == pytest.approx((30 / 3) ** 0.5, rel=0.03)


# --- operators and names ---------------------------------------------------------------------------


def test_the_table_of_operators_holds_the_means_over_their_episodes_and_samples(episodes):
    report = quality_report(episodes)
    table = report.by_group(["anna", "ben", "anna", "ben"])
    assert list(table) == ["anna", "ben"]
    annas = torch.isin(report.episode_id, torch.tensor([0, 2]))
    found = table["anna"]
    assert (found["num_episodes"], found["num_samples"], found["length"]) == (2, 10, 5)
    assert found["action_variance"] == pytest.approx(float(report.samples["action_variance"][annas].mean()))
    assert found["divergence"] == pytest.approx(float(report.episodes["divergence"][[0, 2]].mean()))
    with pytest.raises(ValueError, match="groups must be 4 as there are episodes, got 3"):
        report.by_group([1, 2, 3])


def test_the_report_names_the_episodes():
    arrays = random_episodes(0)
    named = Episodes.from_arrays(arrays, names=["d", "c", "b", "a"])
    report = quality_report(named)
    assert report.names == ("d", "c", "b", "a")
    assert report.to_dict()["names"] == ["d", "c", "b", "a"]


def test_an_episode_of_which_nothing_is_known_ranks_as_the_worst():
    together = walks(1.0, 0.1, 0, count=4, length=20)
    far = walks(1.0, 0.1, 50, count=1, length=20).to_arrays()[0]
    far["observations"] = far["observations"] + 1e3
    report = quality_report(Episodes.from_arrays([far, *together.to_arrays()]), radius=0.05, num_phases=2)
    assert report.episodes["divergence"].isnan().tolist() == [True, False, False, False, False]
    scores = episode_scores(report, {"divergence": -1.0})
    assert scores[0] == scores[1:].min()
    assert episode_scores(report, {"divergence": 1.0})[0] == episode_scores(report, {"divergence": 1.0}).min()
    assert sorted(rank_episodes(report).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="weights must be finite, got nan for 'divergence'"):
        episode_scores(report, {"divergence": math.nan})


# --- models ----------------------------------------------------------------------------------------


class TwoOpinions:
    """Stands for trained members: one that says 0 and one that says 2, in each of three columns."""

    def __call__(self, inputs):
        return torch.stack([torch.zeros(len(inputs), 3), torch.full((len(inputs), 3), 2.0)]).to(inputs)


def test_disagreement_is_summed_over_the_outputs(monkeypatch):
    monkeypatch.setattr("ildataquality.ensemble.fit_stacked", lambda *args, **options: TwoOpinions())
    inputs, targets, episode_id = randn(0, 12, 2), torch.ones(12, 3).double(), torch.arange(12) // 3
    residuals, disagreement = held_out_residuals(inputs, targets, episode_id, folds=2)
    assert disagreement.tolist() == [3.0] * 12
    assert residuals.abs().tolist() == [[1.0] * 3] * 12
    report = quality_report(
        Episodes.from_arrays(
            [{"observations": randn(i, 9, 2), "actions": randn(5 + i, 8, 3)} for i in range(4)]
        ),
        folds=2,
    )
    assert report.model_disagreement == pytest.approx(3.0)


def test_each_sample_is_held_against_the_model_that_has_not_seen_its_episode(monkeypatch):
    seen = []

    def spy(inputs, targets, members, **options):
        seen.extend(members)
        return lambda inputs: torch.stack(
            [torch.full((len(inputs), 1), float(m)) for m in range(len(members))]
        )

    monkeypatch.setattr("ildataquality.ensemble.fit_stacked", spy)
    episode_id = torch.arange(30) // 6
    residuals, _ = held_out_residuals(randn(0, 30, 2), torch.zeros(30, 1), episode_id, folds=3)
    model = (-residuals[:, 0]).long()
    for sample in range(30):
        assert sample not in seen[model[sample]].tolist()
        assert all(sample in seen[m].tolist() for m in range(3) if m != model[sample])
