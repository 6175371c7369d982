"""The form of the evidence, how it is judged, and what its paper preset reads and trains."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from improvedct.demo import BASELINE, LEARNING_RATES, METHOD, RECIPES, TRIVIAL, conditions, demo
from improvedct.demo.data import (
    eight_gaussians,
    energy_distance,
    fitted_gaussian,
    folder,
    frechet_distance,
    two_moons,
)
from improvedct.demo.figures import grids
from improvedct.demo.networks import UNet


def holds(rows):
    return all(condition["holds"] for condition in conditions(rows))


@pytest.mark.demo
def test_smoke_returns_plain_data_and_judges_its_own_rows():
    seen = []
    result = demo("smoke", seed=3, progress=lambda fraction, message: seen.append(fraction))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert {"method", "baseline"} <= {row["role"] for row in result["rows"]}
    for row in result["rows"]:
        told = ["one_step", "floor"] if row["name"].endswith(TRIVIAL) else result["metrics"]
        assert row.keys() == {"name", "role", *told}
    assert result["holds"] == holds(result["rows"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
    # Every sample that lies in the frame is counted, and nearly all do after training.
    assert [len(image["values"]) for image in result["images"]] == [40] * 4
    assert all(0 < sum(map(sum, image["values"])) <= 4000 for image in result["images"])


def rows(method=(1.0, 0.5), baseline=(2.0, 1.0), gaussian=2.0):
    return [
        {"name": f"{data}: {name}", "one_step": one, "two_step": two}
        for data, (name, (one, two)) in (
            ("a", (BASELINE, (9.0, 9.0))),
            ("a", (METHOD, (1.0, 0.5))),
            ("a", (TRIVIAL, (9.0, None))),
            ("b", (TRIVIAL, (gaussian, None))),
            ("b", (BASELINE, baseline)),
            ("b", (METHOD, method)),
        )
    ]


def test_the_criterion_can_fail_in_each_of_its_parts():
    assert holds(rows())
    assert not holds(rows(method=(1.4, 0.5)))  # less than 1.5 times better on one of the data sets
    assert not holds(rows(method=(1.0, 1.0)))  # a second step that brings nothing
    assert not holds(rows(gaussian=1.4))  # no better than what needs no network
    older = [row for row in rows() if TRIVIAL not in row["name"]]
    assert [told["figure"] for told in conditions(older)] == [9.0, None, 0.5, 2.0, None, 0.5]


def test_every_recipe_has_its_learning_rate():
    assert LEARNING_RATES["8 Gaussians"].keys() == RECIPES.keys()
    assert LEARNING_RATES["digits"].keys() == {BASELINE, METHOD}


def test_the_fitted_gaussian_has_the_moments_of_the_data():
    generator = torch.Generator().manual_seed(0)
    moons = two_moons(4000, generator)
    drawn = fitted_gaussian(moons, 40_000, generator)
    torch.testing.assert_close(drawn.mean(0), moons.training.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(drawn.T.cov(), moons.training.T.cov(), rtol=0, atol=0.01)
    assert energy_distance(drawn[:2000], moons.held_out) > 0.01  # but not their law


def test_unknown_preset_and_missing_data_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"preset must be .* got 'huge'"):
        demo("huge")
    monkeypatch.delenv("IMPROVEDCT_CIFAR10", raising=False)
    with pytest.raises(ValueError, match="needs the environment variable IMPROVEDCT_CIFAR10"):
        demo("paper")


def test_the_papers_data_are_read_and_its_network_takes_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    path = tmp_path / "cifar10.safetensors"
    save_file({"images": bytes_, "labels": torch.arange(60) % 10}, path)
    data = folder(str(path), generator, num_steps=3)
    assert (data.training.shape, data.held_out.shape) == ((48, 3, 32, 32), (12, 3, 32, 32))
    # Uniform bytes, scaled to [-1, 1]: standard deviation 1 / sqrt(3).
    assert data.training.std().item() == pytest.approx(3**-0.5, rel=0.01)
    net = UNet(3, generator, width=32, blocks=1, dropout=data.dropout)
    assert net(data.held_out[:2], torch.zeros(2)).shape == (2, 3, 32, 32)
    assert data.dropout == 0.3
    images = grids(data, METHOD, {"1 step": data.training[:1].expand(64, -1, -1, -1)})
    tile = torch.tensor(images[0]["values"]).view(8, 34, 8, 34)[3, 1:33, 5, 1:33]
    torch.testing.assert_close(tile, data.training[0].mean(0))


def test_data_in_the_plane():
    generator = torch.Generator().manual_seed(0)
    ring = eight_gaussians(8000, generator).training
    assert ring.norm(dim=1).mean().item() == pytest.approx(math.hypot(0.7, 0.05 / math.sqrt(2)), abs=0.005)
    assert ring.mean(0).abs().max().item() < 0.03
    moons = two_moons(8000, generator)
    assert torch.cat([moons.training, moons.held_out]).std().item() == pytest.approx(0.5, abs=1e-5)


def test_energy_distance_of_two_shifted_points_and_of_equal_laws():
    """Two clusters at distance r have 2 r; two samples of one law about nothing."""
    near = torch.zeros(50, 2)
    assert energy_distance(near + torch.tensor([3.0, 4.0]), near) == pytest.approx(10)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1500, 2, generator=generator) for _ in range(2))
    assert energy_distance(a, b) < 0.01
    assert energy_distance(a + 1, b) > 0.3


def test_frechet_distance_tells_digits_from_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (800,), generator=generator)
    prototypes = torch.randn(10, 16, generator=generator) * 0.5
    images = prototypes[labels] + 0.1 * torch.randn(800, 16, generator=generator)
    distance = frechet_distance(images[:400], labels[:400], generator)
    same, noise = distance(images[400:], images[:400]), distance(torch.randn(400, 16), images[:400])
    assert distance(images[:400], images[:400]) < 1e-4
    assert same < 0.05 < noise
