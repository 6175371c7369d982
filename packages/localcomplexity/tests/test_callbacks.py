"""Callbacks measure at the scheduled steps, and change nothing."""

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from localcomplexity import ComplexityTracker, LocalComplexity
from localcomplexity.huggingface import ComplexityCallback as HuggingFaceCallback
from localcomplexity.lightning import ComplexityCallback as LightningCallback

POINTS = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def tracker_of(net, schedule):
    generator = torch.Generator().manual_seed(2)
    probe = LocalComplexity(net, num_directions=3, radius=0.3, generator=generator)
    return ComplexityTracker(probe, {"train": POINTS}, schedule=schedule)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(tmp_path, module, callbacks):
    seed_everything(0, verbose=False)
    loader = DataLoader(list(zip(POINTS, LABELS, strict=True)), batch_size=5)
    trainer = Trainer(
        max_epochs=3, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


def test_lightning_measures_at_optimizer_steps_and_changes_nothing(tmp_path, recwarn):
    module, plain = Module(), Module()
    tracker = tracker_of(module.net, schedule=2)
    trainer = fit(tmp_path, module, [LightningCallback(tracker)])
    fit(tmp_path, plain, [])
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert tracker.steps == [0, 2, 4, 6]
    now = tracker.probe(POINTS).layer_means().sum()
    assert tracker.values("train")[-1] == now == trainer.callback_metrics["local_complexity/train"]
    fresh = LightningCallback(tracker_of(module.net, schedule=2))
    fresh.load_state_dict(LightningCallback(tracker).state_dict())
    assert fresh.tracker.steps == tracker.steps
    assert fresh.tracker.update_once(6) == {}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(tmp_path, model, callbacks):
    data = [{"x": x, "labels": int(y)} for x, y in zip(POINTS, LABELS, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=5, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, gradient_accumulation_steps=2, learning_rate=0.1,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return trainer


def test_hugging_face_measures_at_optimizer_steps_and_changes_nothing(tmp_path, recwarn):
    model, plain = Classifier(), Classifier()
    tracker = tracker_of(model.net, schedule=[1, 3, 4])
    trainer = train(tmp_path, model, [HuggingFaceCallback(tracker)])
    train(tmp_path, plain, [])
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert tracker.steps == [1, 3, 4]
    logged = [row for row in trainer.state.log_history if "local_complexity/train" in row]
    assert [row["step"] for row in logged] == [1, 3, 4]
    assert [row["local_complexity/train"] for row in logged] == tracker.values("train").tolist()


@pytest.mark.parametrize("callback", [HuggingFaceCallback, LightningCallback])
def test_another_thing_than_a_tracker_is_named(callback):
    with pytest.raises(TypeError, match="tracker must be a ComplexityTracker, got LocalComplexity"):
        callback(LocalComplexity(network()))
