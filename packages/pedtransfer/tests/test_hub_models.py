"""Straight from a timm or transformers model and a loader, in one call; weights are random, nothing is downloaded."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

os.environ.setdefault("HF_HUB_OFFLINE", "1")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from pedtransfer import ReferenceStats, extract_features, rank_models  # noqa: E402

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])
LOADER = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2)
TEXT = torch.randint(3, 30, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0], [1] * 6])
TEXTS = [
    {"input_ids": TEXT[i : i + 2], "attention_mask": MASK[i : i + 2], "labels": LABELS[i : i + 2]}
    for i in (0, 2)
]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("test_vit", {"img_size": 32, "patch_size": 8}),
        ("test_efficientnet", {}),
    ],
)
def test_timm_features_are_those_under_the_classifier(name, options):
    """As timm itself has them once the classifier is taken off."""
    model = timm.create_model(name, **options).train()
    told = []
    features, labels = extract_features(model, LOADER, progress=lambda *report: told.append(report))
    assert model.training
    assert told == [(1, 2), (2, 2)]
    assert torch.equal(labels, LABELS)
    model.eval().reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(features, model(IMAGES), rtol=1e-4, atol=1e-5)
    assert features.shape == (4, model.num_features)


def test_a_transformers_image_classifier():
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=32, patch_size=16, num_labels=5, **SIZES)
    ).eval()
    with torch.no_grad():
        hidden = model(IMAGES, output_hidden_states=True).hidden_states[-1]
        hidden = model.vit.layernorm(hidden)
    torch.testing.assert_close(extract_features(model, LOADER, pool="cls")[0], hidden[:, 0])
    pixels = [{"pixel_values": IMAGES, "labels": LABELS}]
    torch.testing.assert_close(extract_features(model, pixels)[0], hidden.mean(1))
    named, _ = extract_features(model, pixels, layer="vit.layernorm", pool="cls")
    torch.testing.assert_close(named, hidden[:, 0])


def test_a_transformers_text_classifier_without_its_padding():
    config = transformers.BertConfig(vocab_size=30, num_labels=2, max_position_embeddings=8, **SIZES)
    model = transformers.BertForSequenceClassification(config)
    features, labels = extract_features(model, TEXTS)
    model.eval()
    with torch.no_grad():
        for row, (ids, mask) in enumerate(zip(TEXT, MASK, strict=True)):
            alone = model.bert(ids[mask.bool()][None]).last_hidden_state
            torch.testing.assert_close(features[row], alone[0].mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, LABELS)


def test_the_last_token_of_a_decoder():
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = transformers.GPT2ForSequenceClassification(config).eval()
    features, _ = extract_features(model, TEXTS, pool="last")
    with torch.no_grad():
        alone = model.transformer(TEXT[2:3, :2]).last_hidden_state
    torch.testing.assert_close(features[2], alone[0, -1], rtol=1e-4, atol=1e-5)


def test_from_loader_to_table():
    models = {name: timm.create_model(name, num_classes=2) for name in ("resnet10t", "test_efficientnet")}
    labels = torch.arange(12) % 2
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + labels.view(-1, 1, 1, 1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    corpus = DataLoader(TensorDataset(torch.flip(images, (0,)), labels), batch_size=4)
    entries = {}
    for name, model in models.items():
        reference = ReferenceStats.from_features(extract_features(model, corpus)[0])
        entries[name] = (*extract_features(model, loader), reference)
    table = rank_models(entries, ["sfda", "logme"])
    assert set(table.order()) == set(models)


def test_the_block_of_the_readme_that_needs_timm(capsys):
    """As it stands, but for weights that would be downloaded and names of models that are small."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    block = re.sub(r"for name in \[.*?\]:", "for name in ['resnet10t', 'test_efficientnet']:", block)
    block = block.replace("pretrained=True", "pretrained=False").replace(
        "num_resamples=50", "num_resamples=2"
    )
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=4)
    exec(compile(block, "README.md", "exec"), {"loader": loader, "imagenet_loader": loader})
    told = capsys.readouterr().out
    assert "resnet10t 3 3" in told
    assert "| model | sfda | sfda + PED | logme | logme + PED |" in told
