"""The same numbers as trl where both mean the same, and verifiers inside of its trainers."""

import warnings

import pytest
import torch

from tulu3 import Gsm8kVerifier, as_trl_reward, concatenate_pairs, preference_loss, sequence_logps, sft_loss

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5):
    pytest.skip("trl's models need torch 2.5, whatever it declares", allow_module_level=True)
pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what trl's own dependencies deprecate is not under test here
    trl = pytest.importorskip("trl")
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        GRPOTrainer,
        RLOOConfig,
        RLOOTrainer,
        SFTConfig,
        SFTTrainer,
    )

pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "seed": 0,
}


@pytest.fixture
def model(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **sizes, **tokens))


def preferences():
    said = [("What is 1+1?", "It is 2.", "no"), ("What is 2+2?", "4", "It is 5. It is 6.")]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in said]
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("theirs", "ours", "beta"), [("sigmoid", "dpo", 0.1), ("sigmoid_norm", "dpo_norm", 5.0)]
)
def test_preference_losses_and_their_gradients_equal_trls(tmp_path, tokenizer, model, theirs, ours, beta):
    from copy import deepcopy

    reference = deepcopy(model)
    with torch.no_grad():  # a policy that has left its reference: else every loss is log 2
        for parameter in reference.parameters():
            parameter.mul_(0.7)
    settings = DPOConfig(
        str(tmp_path),
        loss_type=theirs,
        beta=beta,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        **QUIET,
    )
    trainer = DPOTrainer(model, reference, settings, train_dataset=preferences(), processing_class=tokenizer)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, dict(inputs))
    expected.backward()
    gradient = trainer.model.lm_head.weight.grad.clone()
    trainer.model.zero_grad()

    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    halves = [
        {"input_ids": ids, "labels": label}
        for ids, label in zip(inputs["input_ids"].chunk(2), labels.chunk(2), strict=True)
    ]
    batch = concatenate_pairs(*halves, pad_id=tokenizer.pad_token_id)
    average = ours == "dpo_norm"
    attention = inputs["attention_mask"]
    pc, pr = sequence_logps(
        model(batch["input_ids"], attention_mask=attention).logits, labels, average
    ).chunk(2)
    with torch.no_grad():
        rc, rr = sequence_logps(
            reference(batch["input_ids"], attention_mask=attention).logits, labels, average
        ).chunk(2)
    found = preference_loss(pc, pr, rc, rr, kind=ours, beta=beta).loss
    found.backward()
    assert abs(expected.item() - 0.6931) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_token_sum_loss_equals_trls_and_serves_its_trainer(tmp_path, tokenizer, model):
    rows = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in preferences()]
    options = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "max_steps": 1, **QUIET}
    trainer = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    expected = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(17))
    labels = (
        inputs["labels"]
        if "labels" in inputs
        else inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    )
    outputs = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"))
    torch.testing.assert_close(sft_loss(outputs, labels, 17), expected, rtol=1e-5, atol=1e-6)

    from transformers import Trainer, TrainingArguments

    rows = [
        {"input_ids": ids, "labels": label} for ids, label in zip(inputs["input_ids"], labels, strict=True)
    ]
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=1, **QUIET
    )
    run = Trainer(model, arguments, train_dataset=rows, compute_loss_func=sft_loss)
    assert run.train().training_loss == pytest.approx(sft_loss(outputs, labels).item(), rel=1e-4)


@pytest.mark.parametrize(("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("conversational", [False, True])
def test_trls_trainers_take_verifiers_as_they_are(
    tmp_path, tokenizer, model, trainer, config, conversational
):
    prompts = ["What is 1+1?", "What is 2+2?"]
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}] if conversational else prompt,
            "ground_truth": label,
            "dataset": names,
        }
        for prompt, label, names in zip(
            prompts, [["2", "2"], ["4", "4"]], [["digits", "gsm8k"]] * 2, strict=True
        )
    ]
    heard = []

    def digits(prediction, label):
        heard.append((prediction, label))
        return float(any(sign.isdigit() for sign in prediction))

    reward = as_trl_reward({"digits": digits, "gsm8k": Gsm8kVerifier()})
    options = {
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "max_steps": 1,
    }
    options |= {"gradient_checkpointing": False, "logging_steps": 1, "temperature": 1.0, "beta": 0.0}
    run = trainer(
        model=model,
        reward_funcs=reward,
        args=config(str(tmp_path), **options, **QUIET),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    run.train()
    assert sorted(label for _, label in heard) == ["2", "2", "4", "4"]
    logged = next(log for log in run.state.log_history if "reward" in log)
    expected = [10 * (any(s.isdigit() for s in text) + Gsm8kVerifier()(text, label)) for text, label in heard]
    assert logged["rewards/verifiable_reward/mean"] == pytest.approx(sum(expected) / 4)
    assert any(expected)
