"""Recipes on small objects of a user's own; what they join is tested in its own package."""

import functools

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class TestLanguageModel:
    @staticmethod
    def llama(num_layers=4, scale=0.02):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=23, num_hidden_layers=num_layers, initializer_range=scale, **sizes)
        ).eval()

    def test_nested_models_read_as_separate_ones_do_in_one_pass(self):
        from armillary.recipes.language_model import nested_models
        from emulatedft import Delta, eft_generate, eft_logprobs
        from sortedft import adapter, cut

        model, tuned = self.llama(), cut(self.llama(), 2)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.02)
        prompt = torch.tensor([[3, 1, 4], [1, 5, 9]])
        apart = Delta(tuned, cut(model, 2))
        options = {"max_new_tokens": 12, "do_sample": False}
        expected = eft_generate(model, apart, prompt, **options).tokens

        calls = []
        for layer in adapter(model).layers:
            layer.register_forward_hook(lambda *_: calls.append(1))
        shallow, full = nested_models(model, [2, 4])
        together = Delta(tuned, shallow)
        assert torch.equal(eft_generate(full, together, prompt, **options).tokens, expected)
        assert len(calls) == 12 * 4  # the shallow model never runs by itself

        text = torch.cat([prompt, expected], dim=1)
        torch.testing.assert_close(eft_logprobs(full, together, text), eft_logprobs(model, apart, text))

    @pytest.mark.parametrize("rule", ["coupled", "rejection"])
    def test_a_shared_cache_is_cropped_when_a_draft_is_rejected(self, rule):
        from armillary.recipes.language_model import nested_models
        from emulatedft import Delta, speculative_generate
        from sortedft import cut

        model, tuned, prompt = self.llama(scale=0.2), self.llama(2, scale=0.2), torch.tensor([[3, 1, 4]])
        shallow, full = nested_models(model, [2, 4])
        results = []
        for base, delta in ((model, Delta(tuned, cut(model, 2))), (full, Delta(tuned, shallow))):
            generator = torch.Generator().manual_seed(5)
            options = {"max_new_tokens": 20, "block": 4, "rule": rule, "generator": generator}
            results.append(speculative_generate(base, delta, prompt, **options))
        assert 0 < results[1].accepted < results[1].drafted
        assert torch.equal(results[0].tokens, results[1].tokens)

    def test_a_style_taught_to_the_shallow_model_steers_the_full_one(self):
        from armillary.recipes.language_model import sort_then_steer
        from emulatedft import eft_logprobs

        generator = torch.Generator().manual_seed(0)

        def counting(low, high, num_batches):  # runs of consecutive tokens from a range
            for _ in range(num_batches):
                starts = torch.randint(low, high, (16, 1), generator=generator)
                text = low + (starts - low + torch.arange(8)) % (high - low)
                yield {"input_ids": text, "labels": text}

        model = self.llama()
        steered = sort_then_steer(
            model,
            counting(0, 20, 60),
            counting(5, 12, 40),
            depth=2,
            optimizer=functools.partial(torch.optim.AdamW, lr=5e-3),
        )
        assert not model.training
        assert len(steered.shallow.model.layers) == 2
        # In the style 5 follows 11, in the rest 12 does; only the shallow model was told.
        text = torch.tensor([[8, 9, 10, 11, 5]])
        with torch.no_grad():
            plain = model(text).logits.log_softmax(-1)[0, 3, 5]
        assert eft_logprobs(steered.base, steered.delta, text)[0, 4] > plain + 1

    @pytest.mark.parametrize("depth", [0, 4])
    def test_the_depth_is_checked(self, depth):
        from armillary.recipes.language_model import sort_then_steer

        with pytest.raises(ValueError, match=rf"depth must be in 1\.\.3 .*, got {depth}"):
            sort_then_steer(self.llama(), [], [], depth=depth, optimizer=torch.optim.SGD)

    @pytest.mark.parametrize("depths", [[], [2, 1], [1, 1], [0, 2], [2, 5]])
    def test_the_depths_are_checked(self, depths):
        from armillary.recipes.language_model import nested_models

        with pytest.raises(ValueError, match="depths must be increasing numbers in"):
            nested_models(self.llama(), depths)


class TestTrainingProbes:
    @staticmethod
    def probes(**changes):
        from armillary.recipes.training_probes import TrainingProbes
        from localcomplexity import LocalComplexity
        from neuralcollapse import NCMeter

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
        x, y = torch.randn(60, 3), torch.arange(60) % 2
        options = {
            "points": {"train": x, "random": torch.rand(9, 3)},
            "loader": [(x[:30], y[:30]), (x[30:], y[30:])],
        }
        complexity = LocalComplexity(model, num_directions=3, radius=0.2)
        return (
            model,
            x,
            y,
            TrainingProbes(complexity, NCMeter(model, layers=["1"], head="3"), **options | changes),
        )

    def test_they_measure_what_the_packages_measure_by_themselves(self):
        from localcomplexity import LocalComplexity
        from neuralcollapse import class_stats, nc1

        model, x, y, probes = self.probes()
        found = probes()
        again = LocalComplexity(model, num_directions=3, radius=0.2)
        assert found["local_complexity/train"] == pytest.approx(float(again(x).mean()))
        with torch.no_grad():
            stats = class_stats(model[:2](x).double(), y, 2)
        assert found["neural_collapse/1/nc1"] == pytest.approx(float(nc1(stats)), rel=1e-4)
        assert {"neural_collapse/3/nc3", "neural_collapse/3/nc4"} <= found.keys()
        assert "neural_collapse/1/nc3" not in found

    def test_a_run_with_probes_is_the_run_without_them(self):
        def train(watched):
            model, x, y, probes = self.probes()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            torch.manual_seed(1)
            for _ in range(5):
                if watched:
                    probes()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            return model

        watched, plain = train(True), train(False)
        assert watched.training
        for mine, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    def test_the_log_keeps_what_it_is_given_and_refuses_other_names(self, tmp_path):
        from armillary.recipes.training_probes import TensorBoardLog

        for folder in (None, tmp_path / "runs"):
            log = TensorBoardLog(folder)
            log.add(1, {"a": 1.0})
            log.add(3, {"a": 2.0})
            log.close()
            assert (log.steps, log.scalars) == ([1, 3], {"a": [1.0, 2.0]})
            with pytest.raises(ValueError, match="scalars must be the same at every step"):
                log.add(4, {"b": 0.0})

    def test_points_are_needed(self):
        with pytest.raises(ValueError, match="points must name at least one set"):
            self.probes(points={})


class TestContinualStream:
    @staticmethod
    def stream(**options):
        from armillary.recipes.continual_stream import ContinualStream

        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU())
        return ContinualStream(backbone, 12, **{"max_classes": 6, "buffer_size": 64} | options)

    @staticmethod
    def data(num_classes, seed=0, count=240):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(9))
        labels = torch.arange(count) % num_classes
        return (centres[labels] + 0.05 * torch.randn(count, 1, 4, 4, generator=generator)).clamp(0, 1), labels

    def test_classes_in_turn_are_as_all_at_once(self):
        x, y = self.data(6)
        together, in_turn = self.stream(), self.stream()
        together.learn(x, y)
        for label in range(6):
            in_turn.learn(x[y == label], y[y == label])
        torch.testing.assert_close(in_turn.classifier.weight, together.classifier.weight)
        assert in_turn.collapse() == pytest.approx(together.collapse())

    def test_a_deployed_copy_adapts_and_leaves_the_stream_alone(self):
        x, y = self.data(4)
        stream = self.stream()
        stream.learn(x, y)
        before = [
            tensor.clone() for tensor in (*stream.backbone.state_dict().values(), stream.classifier.weight)
        ]
        adapter = stream.deploy(functools.partial(torch.optim.Adam, lr=1e-3))
        with torch.no_grad(), adapter.source_statistics():
            scores = stream.classifier(stream.expand(stream.backbone(x))) / 0.1
            torch.testing.assert_close(adapter.predict(x), 2 * scores.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(adapter.prototypes[1], stream.backbone(x[y == 1]).mean(0))
        weights = [parameter.detach().clone() for parameter in adapter.student.parameters()]
        for _ in range(3):
            assert adapter(x).shape == (240, 4)
        changed = zip(adapter.student.parameters(), weights, strict=True)
        assert any(not torch.equal(now, then) for now, then in changed)
        after = (*stream.backbone.state_dict().values(), stream.classifier.weight)
        assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))

        stream.learn(*self.data(6, seed=1))  # and the next deployment knows the new classes
        assert stream.deploy(torch.optim.Adam)(x).shape == (240, 6)

    def test_bad_input_is_named(self):
        stream = self.stream()
        stream.learn(*self.data(2))
        with pytest.raises(ValueError, match="temperature must be positive, got 0"):
            stream.deploy(torch.optim.Adam, temperature=0)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 6\)"):
            stream.learn(torch.rand(2, 1, 4, 4), torch.tensor([0, 6]))
        assert stream.classifier.num_classes == 2  # nothing of it was learned
        x, y = self.data(2)
        stream.learn(x, y + 3)
        with pytest.raises(ValueError, match=r"got none of \[2\]"):
            stream.deploy(torch.optim.Adam)


class TestPhysics:
    @staticmethod
    def flows(count, seed, steps=6):
        """Two patterns that decay at their own rates: exactly linear dynamics."""
        place = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
        patterns = torch.stack(
            [torch.sin(place)[:, None].expand(16, 16), torch.cos(2 * place).expand(16, 16)]
        )
        amplitudes = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        decay = torch.tensor([0.9, 0.6], dtype=torch.float64) ** torch.arange(steps)[:, None]
        return torch.einsum("bk,tk,kxy->btxy", amplitudes, decay, patterns)[:, :, None]

    def test_a_linear_flow_is_forecast_exactly_and_its_eigenvalues_are_verified(self):
        from armillary.recipes.physics import compare, fit_koopman
        from koopmanlimits import Identity

        koopman = fit_koopman(self.flows(8, 0), self.flows(4, 1), rank=2, dictionary=Identity(constant=True))
        found = dict(zip(koopman.modes.values.real.sort().values.tolist(), [0.6, 0.9, 1.0], strict=True))
        assert list(found) == pytest.approx(list(found.values()))
        assert koopman.modes.residuals.max() < 1e-6

        flows = self.flows(5, 2)
        half = lambda fields, lead_time: fields * 0.5  # noqa: E731  (a network that is always half wrong)
        errors = compare(flows, torch.linspace(0.2, 1, 5, dtype=torch.float64), koopman, half)
        assert errors["koopman"].max() < 1e-4
        truth, start = flows[:, 1], flows[:, 0]
        expected = 100 * (start / 2 - truth).abs().sum((1, 2, 3)) / truth.abs().sum((1, 2, 3))
        assert errors["network, direct"][0] == pytest.approx(expected.median().item())
        assert errors["network, rollout"][1] != pytest.approx(errors["network, direct"][1].item())
        assert errors["persistence"][-1] > errors["persistence"][0]

    def test_bad_input_is_named(self):
        from armillary.recipes.physics import compare, fit_koopman

        good = self.flows(8, 0)
        with pytest.raises(ValueError, match="flows and fresh must be"):
            fit_koopman(good, good[:, :3], rank=2)
        noise = torch.randn(8, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="max_residual must leave at least one eigenpair"):
            fit_koopman(noise[:6], noise[6:], rank=3, max_residual=1e-9)
        koopman = fit_koopman(good, self.flows(4, 1), rank=2)
        with pytest.raises(ValueError, match=r"lead_times must have shape \(5,\)"):
            compare(good, torch.ones(3), koopman, lambda x, t: x)


class TestOfflineControl:
    """A point on a line that is pushed to the origin: s' = s + a, reward -s'^2."""

    @staticmethod
    def log(noise, seed=0, length=20):
        from ildataquality import Episodes

        generator = torch.Generator().manual_seed(seed)
        episodes = []
        for shake in noise:
            states, actions = [4 * torch.rand(1, generator=generator) - 2], []
            for _ in range(length):
                act = -0.5 * states[-1] + shake * torch.randn(1, generator=generator)
                actions.append(act.clamp(-1, 1))
                states.append(states[-1] + actions[-1])
            rewards = -torch.stack(states[1:]).square().sum(1)
            episodes.append(
                {"observations": torch.stack(states), "actions": torch.stack(actions), "rewards": rewards}
            )
        return Episodes.from_arrays(episodes)

    @staticmethod
    def propose(obs, act):
        """Three candidates: the truth, and two that lie far beyond it and promise much."""
        truth = obs + act
        lies = [torch.cat([truth + shift, torch.full_like(truth, 5.0)], -1) for shift in (3.0, -3.0)]
        return torch.stack([torch.cat([truth, -truth.square()], -1), *lies])

    def test_the_careless_are_not_imitated(self):
        from armillary.recipes.offline_control import imitate

        log = self.log([0.0, 0.6] * 8)
        policy = nn.Linear(1, 1)
        generator = torch.Generator().manual_seed(0)
        kept = imitate(
            policy, torch.optim.Adam(policy.parameters(), lr=0.05), log, num_steps=300, generator=generator
        )
        assert len(kept) == 8
        assert {tuple(each["actions"][0].tolist()) for each in kept.to_arrays()} == {
            tuple(each["actions"][0].tolist()) for each in log.to_arrays()[::2]
        }
        inside = (kept.observations.abs() < 1.9).all(1)
        torch.testing.assert_close(policy(kept.observations[inside]), kept.actions[inside], atol=0.1, rtol=0)

    def test_returns_to_go_by_hand(self):
        from armillary.recipes.offline_control import returns_to_go

        rewards, episodes = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 0, 1])
        assert returns_to_go(rewards, episodes, 0.5).tolist() == [3.0, 4.0, 4.0, 8.0]

    def test_the_filter_is_not_taken_in_by_lies_and_the_plan_beats_the_policy(self):
        from armillary.recipes.offline_control import Planner, learn_filter
        from morec import DynamicsRewardTrainer, TransitionNormalizer

        log, held_out = self.log([0.3] * 16), self.log([0.3] * 4, seed=1)
        generator = torch.Generator().manual_seed(0)
        columns = (log.observations, log.actions, log.next_observations)
        trainer = DynamicsRewardTrainer(
            1, 1, normalizer=TransitionNormalizer.fit(*columns), hidden_sizes=(32, 32), generator=generator
        )
        keep_plausible = learn_filter(
            trainer, log, held_out, num_steps=400, batch_size=64, generator=generator
        )
        obs, act = held_out.observations, held_out.actions
        result = keep_plausible(obs, act, self.propose(obs, act))
        assert (result.index == 0).float().mean() > 0.9
        assert keep_plausible.on_reject == "drop"

        def plan(horizon, transition_filter=keep_plausible):
            return Planner(
                lambda states: 0 * states, lambda states: -states.square().sum(1), self.propose,
                transition_filter, horizon=horizon, discount=0.9, floor=-50.0, num_plans=256,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip

        start = torch.tensor([[0.5], [-0.3]])
        assert torch.equal(plan(0)(start), torch.zeros(2, 1))  # the policy as it is
        torch.testing.assert_close(plan(1)(start), -start, atol=0.1, rtol=0)

    def test_a_plan_that_is_ended_is_worth_the_floor(self):
        from armillary.recipes.offline_control import Planner

        steps = {
            "start": torch.tensor([0, 1, 0]), "step": torch.tensor([0, 0, 1]),
            "reward": torch.tensor([1.0, 2.0, 4.0]), "next_obs": torch.tensor([[0.0], [0.0], [7.0]]),
        }  # fmt: skip
        planner = Planner(None, lambda states: states[:, 0], None, None, horizon=2, discount=0.5, floor=-8.0)
        assert planner._worth(steps, 3).tolist() == [1 + 0.5 * 4 + 0.25 * 7, 2 - 0.5 * 8, -8.0]

    def test_returns_count_up_to_the_first_end(self):
        import gymnasium

        from armillary.recipes.offline_control import returns

        environments = gymnasium.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync")
        found = returns(environments, lambda states: torch.zeros(len(states), 1), seed=0)
        alone = gymnasium.make("Pendulum-v1")
        for index in range(2):  # a vector environment seeds its members one after the other
            alone.reset(seed=index)
            total = sum(alone.step([0.0])[1] for _ in range(200))
            assert found[index].item() == pytest.approx(total, rel=1e-4)

    def test_bad_input_is_named(self):
        from armillary.recipes.offline_control import Planner

        for options, message in (
            ({"horizon": -1}, "horizon must be at least 0, got -1"),
            ({"horizon": 1, "num_plans": 1}, "num_plans must be at least 2, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                Planner(None, None, None, None, discount=0.9, floor=0.0, **options)
