"""Recipes on small objects of a user's own; what they join is tested in its own package."""

import functools

import pytest
import torch

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
