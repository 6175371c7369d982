"""Callbacks measure what the meter measures, and change nothing."""

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from neuralcollapse import NCMeter
from neuralcollapse.huggingface import CollapseCallback as HuggingFaceCallback
from neuralcollapse.lightning import CollapseCallback as LightningCallback


def samples(num=24, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num) % classes
    return torch.randn(classes, 4, generator=generator)[y] + 0.1 * torch.randn(num, 4, generator=generator), y


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
        )
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning_run(tmp_path, callbacks, epochs=4):
    seed_everything(0, verbose=False)
    x, y = samples()
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=8)
    module = Module()
    trainer = Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer, module, loader


def test_lightning_measures_the_module_and_logs(tmp_path, recwarn):
    x, y = samples()
    callback = LightningCallback([(x, y)], head="net.4", every=2)
    trainer, module, _ = lightning_run(tmp_path, [callback])
    assert [(row["epoch"], row["step"], row["layer"]) for row in callback.history.rows] == [
        (2, 6, "net.4"), (4, 12, "net.4"),
    ]  # fmt: skip
    wanted = NCMeter(module, [], head="net.4").run([(x, y)])["net.4"].to_dict()
    last = callback.history.rows[-1]
    assert {name: last[name] for name in wanted} == wanted
    assert torch.isclose(trainer.callback_metrics["collapse/net.4/nc1"], torch.tensor(wanted["nc1"]))
    fresh = LightningCallback([(x, y)], head="net.4")
    fresh.load_state_dict(callback.state_dict())
    assert fresh.history.rows == callback.history.rows


def test_lightning_training_is_the_same(tmp_path, recwarn):
    x, y = samples()
    measured = DataLoader(
        list(zip(x, y, strict=True)), batch_size=8, shuffle=True
    )  # draws a seed for each pass
    with_it = lightning_run(tmp_path, [LightningCallback(measured, head="net.4")])[1]
    without = lightning_run(tmp_path, [])[1]
    assert with_it.training
    for one, other in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def trainer_run(tmp_path, callbacks):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (12, 6), generator=generator)
    data = [{"input_ids": row, "labels": int(row[0] > 10)} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="epoch", gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return trainer, DataLoader(data, batch_size=5)


def test_hugging_face_measures_the_model_and_logs(tmp_path, recwarn):
    plain, loader = trainer_run(tmp_path, [])
    callback = HuggingFaceCallback(loader, head="classifier")
    trainer, _ = trainer_run(tmp_path, [callback])
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["epoch"] for row in callback.history.rows] == [1, 2, 3]
    wanted = NCMeter(trainer.model, [], head="classifier").run(loader)["classifier"]
    logged = [row for row in trainer.state.log_history if "collapse/classifier/nc1" in row]
    assert len(logged) == 3
    assert logged[-1]["collapse/classifier/nc1"] == callback.history.rows[-1]["nc1"] == wanted.nc1
