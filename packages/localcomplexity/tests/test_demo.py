import json

import pytest
import torch

from localcomplexity import demo as demo_module
from localcomplexity.demo import conditions, demo
from localcomplexity.demo.settings import PreActivationResNet, _load_cifar, _load_idx
from localcomplexity.demo.training import LOSS, WEIGHTS


def holds(rows):
    return all(condition["holds"] for condition in conditions(rows))


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract():
    told = []
    before = torch.random.get_rng_state()
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append((fraction, message)))
    assert torch.equal(torch.random.get_rng_state(), before)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"claim", "setting", "metrics", "rows", "conditions", "holds", "curves", "images"} == result.keys()
    assert {"data", "model", "budget"} <= result["setting"].keys()
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    assert {row["role"] for row in result["rows"]} == {"method", "baseline", "ablation", "reference"}
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    assert isinstance(result["holds"], bool)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["network at the end"]["test_accuracy"] > 50  # of ten classes
    assert rows["vertex count on random networks"]["exact_share"] <= 100
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    assert all(len({len(line) for line in image["values"]}) == 1 for image in result["images"])


GOOD = [
    {"name": "local complexity at training points", "final_over_peak": 0.5},
    {"name": LOSS},
    {"name": WEIGHTS},
    {"name": "network at interpolation", "step": 100},
    {
        "name": "network at the peak of local complexity",
        "step": 500,
        "test_accuracy": 70.0,
        "robust_accuracy": 5.0,
    },
    {"name": "network at the end", "test_accuracy": 80.0, "robust_accuracy": 30.0, "train_over_test": 0.9},
    {"name": "network where training over test is greatest", "train_over_test": 1.6},
    {"name": "vertex count on random networks", "exact_correlation": 0.99},
]


def test_the_criterion_is_that_of_its_words():
    assert holds(GOOD)
    for index, change in [
        (0, {"final_over_peak": 0.8}),
        (1, {"peak_step": 300}),
        (2, {"peak_step": 300}),
        (3, {"step": 600}),
        (4, {"test_accuracy": 76.0}),
        (4, {"robust_accuracy": 26.0}),
        (5, {"train_over_test": 1.2}),
        (6, {"train_over_test": 1.2}),
        (7, {"exact_correlation": 0.8}),
    ]:
        assert not holds([row | change if place == index else row for place, row in enumerate(GOOD)])
    assert not holds([row for row in GOOD if row["name"] != "network at interpolation"])
    assert not holds([row for row in GOOD if row["name"] != "network at the peak of local complexity"])


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("LOCALCOMPLEXITY_MNIST", raising=False)
    monkeypatch.delenv("LOCALCOMPLEXITY_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="LOCALCOMPLEXITY_MNIST"):
        demo("paper")


def test_the_paper_preset_runs_on_files_of_its_formats(monkeypatch, tmp_path):
    """Both settings on made-up images of the right formats, two steps long, few points."""
    import dataclasses

    from localcomplexity.demo.settings import settings

    generator = torch.Generator().manual_seed(0)

    def random_bytes(count, top=256):
        return bytes(torch.randint(top, (count,), generator=generator, dtype=torch.uint8).tolist())

    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(bytes(16) + random_bytes(784 * 20))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(bytes(8) + random_bytes(20, 10))
    for name in [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(b"".join(random_bytes(1, 10) + random_bytes(3072) for _ in range(4)))
    monkeypatch.setenv("LOCALCOMPLEXITY_MNIST", str(tmp_path))
    monkeypatch.setenv("LOCALCOMPLEXITY_CIFAR10", str(tmp_path))
    found = settings("paper")
    small = {"num_steps": 2, "batch_size": 4, "num_measurements": 2, "num_probes": 2, "num_directions": 2}
    short = [dataclasses.replace(setting, num_attacked=2, **small) for setting in found]
    monkeypatch.setattr(demo_module, "settings", lambda preset: short)
    monkeypatch.setattr(demo_module, "compare_counts", lambda count, *_: compare_four(*_))
    result = demo("paper")
    names = [row["name"] for row in result["rows"]]
    assert "MNIST: network at the end" in names
    assert "CIFAR-10: network at the end" in names
    assert not result["holds"]

    data = _load_cifar(tmp_path)
    assert data.train_x.shape == (20, 3, 32, 32)
    assert float((data.low + 2.4291).abs().min()) < 1e-3
    assert float((data.high - 2.7537).abs().min()) < 1e-3
    assert bool(((data.train_x >= data.low) & (data.train_x <= data.high)).all())
    assert _load_idx(tmp_path, generator).test_x.shape == (20, 784)


def compare_four(generator, report):
    from localcomplexity.demo.exact import compare_counts

    return compare_counts(4, generator, report)


def test_the_papers_network_has_the_size_of_a_resnet_18():
    model = PreActivationResNet(64)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 16 + 3
    # The published ResNet-18 for CIFAR has 11.17 million parameters, about 9,600 of them in batch norm.
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(11.16e6, rel=0.005)
