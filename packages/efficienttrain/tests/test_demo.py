import json

import pytest
import torch

from efficienttrain.demo import conditions, demo
from efficienttrain.demo.arms import ARMS, METHOD, PLUS_LONG, REVERSED, SMALL
from efficienttrain.demo.data import shown_images
from efficienttrain.demo.training import low_passed
from efficienttrain.demo.tuning import choose

# Rows that meet every condition by a hair, and for each condition the change that breaks it alone.
ROWS = {
    "full size": {"seconds": 12.0, "accuracy": 90.5, "low_pass_lead": 0.1},
    "EfficientTrain": {"seconds": 10.0, "accuracy": 90.0, "accuracy_full_size": 90.0},
    "full size, equal compute": {"accuracy": 90.0},
    "EfficientTrain++, equal compute": {"accuracy": 90.0},
    "small size throughout, equal compute": {"accuracy": 89.9},
    "large to small": {"accuracy_full_size": 89.0},
}
FIGURES = [1.2, -0.5, 0.0, 0.0, 0.1, 1.0, 0.1]
BROKEN = [
    ("full size", "seconds", 11.9),
    ("full size", "accuracy", 90.6),
    None,
    (PLUS_LONG, "accuracy", 89.9),
    (SMALL, "accuracy", 90.0),
    (REVERSED, "accuracy_full_size", 89.1),
    ("full size", "low_pass_lead", 0.0),
]


def verdicts(*changes):
    rows = {name: dict(row) for name, row in ROWS.items()}
    for name, metric, value in changes:
        rows[name][metric] = value
    return conditions([{"name": name, **row} for name, row in rows.items()])


def test_rows_that_just_meet_every_condition_hold():
    assert [found["figure"] for found in verdicts()] == pytest.approx(FIGURES)
    assert all(found["holds"] for found in verdicts())


@pytest.mark.parametrize("index", range(7))
def test_every_condition_can_fail_alone(index):
    # Both full-size runs at equal compute stand against one figure each; the second is lifted with the first.
    third = [("full size, equal compute", "accuracy", 90.1), (PLUS_LONG, "accuracy", 90.1)]
    changes = third if BROKEN[index] is None else [BROKEN[index]]
    assert [found["holds"] for found in verdicts(*changes)] == [other != index for other in range(7)]


@pytest.mark.parametrize("index", range(7))
def test_a_figure_that_the_rows_lack_holds_nothing(index):
    name, metric, _ = BROKEN[index] or ("full size, equal compute", "accuracy", None)
    found = verdicts((name, metric, None))[index]
    assert (found["figure"], found["holds"]) == (None, False)


@pytest.fixture(scope="session")
def smoke():
    """One smoke run, with the global random state before it and what its progress told."""
    before, told = torch.random.get_rng_state(), []
    result = demo("smoke", seed=1, progress=lambda fraction, message: told.append(fraction))
    return result, told, torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.demo
def test_the_smoke_run_keeps_the_contract(smoke):
    result, fractions, left_alone = smoke
    assert left_alone
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["conditions"] == conditions(result["rows"])
    assert result["holds"] is all(found["holds"] for found in result["conditions"])
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    measured = {key for row in result["rows"] for key in row} - {"name", "role"}
    assert measured == set(result["metrics"])
    for curve in result["curves"]:
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in curve["series"].values())
        assert all(series["x"] == sorted(series["x"]) for series in curve["series"].values())


@pytest.mark.demo
def test_budgets_are_equal_where_it_is_said(smoke):
    rows = {row["name"]: row for row in smoke[0]["rows"]}
    for arm in ARMS:
        if arm.budget == "compute":
            assert rows[arm.name]["compute"] == pytest.approx(rows[METHOD]["compute"], abs=1.5)
        else:
            assert rows[arm.name]["steps"] == pytest.approx(30, abs=2)


def test_low_passed_images_keep_their_low_frequencies_only():
    column = torch.arange(28.0) * (2 * torch.pi / 28)
    slow, fast = (column * 3).cos().expand(1, 28, 28), (column * 8).sin().expand(1, 28, 28)
    torch.testing.assert_close(
        low_passed(1 + slow + slow.mT + fast, 12), 1 + slow + slow.mT, rtol=0, atol=1e-5
    )


def test_augmentation_grows_with_the_magnitude():
    images = torch.zeros(64, 1, 28, 28)
    images[..., 6:22, 6:22] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))

    def change(magnitude):
        shown = [
            shown_images(images, strength, torch.Generator().manual_seed(1)) for strength in (0.0, magnitude)
        ]
        return (shown[0] - shown[1]).square().mean().item()

    assert 0 == change(0.0) < change(2.0) < change(5.0) < change(9.0)


def test_a_grid_goes_on_until_its_best_is_inside():
    best, scores = choose([2.0, 4.0, 8.0], lambda value: -abs(value - 20))
    assert best == 16
    assert list(scores) == [2, 4, 8, 16, 32]
    best, scores = choose([2.0, 4.0, 8.0], lambda value: -value, lowest=0.5, known={4.0: -4.0})
    assert (best, list(scores)) == (0.5, [0.5, 1, 2, 4, 8])


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset must be 'smoke', 'laptop' or 'paper', got 'huge'"):
        demo("huge")


def test_the_paper_preset_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("EFFICIENTTRAIN_IMAGENET", raising=False)
    with pytest.raises(ValueError, match="EFFICIENTTRAIN_IMAGENET"):
        demo("paper")
