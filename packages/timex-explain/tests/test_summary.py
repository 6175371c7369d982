"""Maps in a few numbers, against loops."""

import pytest
import torch

from timex_explain import saliency_summary


def maps(dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    saliency = torch.rand(9, 6, 3, generator=source, dtype=torch.float64).to(dtype)
    padding = torch.arange(6) >= torch.randint(1, 6, (9, 1), generator=source)
    return saliency, torch.tensor([0, 3, 1, 1, 0, 3, 3, 0, 1]), padding


@pytest.mark.parametrize("padded", [False, True])
def test_every_mean_is_the_loops(padded):
    saliency, labels, padding = maps()
    padding = padding if padded else torch.zeros_like(padding)
    table = saliency_summary(saliency, labels, padding=padding if padded else None)
    assert table.counts.tolist() == [3, 3, 0, 3]
    assert table.per_sensor.shape == (4, 3)
    assert table.per_time.shape == (4, 6)
    for label in (0, 1, 3):
        rows = [row for row in range(9) if labels[row] == label]
        for sensor in range(3):
            kept = [saliency[r, t, sensor] for r in rows for t in range(6) if not padding[r, t]]
            torch.testing.assert_close(table.per_sensor[label, sensor], sum(kept) / len(kept))
        for time in range(6):
            kept = [saliency[r, time].mean() for r in rows if not padding[r, time]]
            expected = sum(kept) / len(kept) if kept else torch.tensor(torch.nan, dtype=torch.float64)
            torch.testing.assert_close(table.per_time[label, time], expected, equal_nan=True)
    assert table.per_sensor[2].isnan().all()
    assert table.per_time[2].isnan().all()


def test_without_labels_all_series_are_one_class():
    saliency, labels, padding = maps()
    table = saliency_summary(saliency, padding=padding)
    other = saliency_summary(saliency, 0 * labels, padding=padding)
    assert table.counts.tolist() == [9]
    torch.testing.assert_close(table.per_time, other.per_time, equal_nan=True)


def test_nan_counts_as_nothing_where_padded_and_is_refused_elsewhere():
    saliency, labels, padding = maps()
    holes = saliency.masked_fill(padding.unsqueeze(-1), torch.nan)
    for mine, other in zip(
        saliency_summary(holes, labels, padding=padding),
        saliency_summary(saliency, labels, padding=padding),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, equal_nan=True)
    with pytest.raises(ValueError, match="saliency must be finite"):
        saliency_summary(holes, labels)


def test_half_precision_is_summed_in_single():
    saliency, labels, _ = maps(torch.bfloat16)
    table = saliency_summary(saliency, labels)
    torch.testing.assert_close(
        table.per_sensor, saliency_summary(saliency.float(), labels).per_sensor, equal_nan=True
    )


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        (torch.zeros(8, dtype=torch.long), ValueError, r"labels must be \(9,\)"),
        (torch.zeros(9), TypeError, "labels must be integers"),
        (torch.full((9,), -1), ValueError, "labels must lie in"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, kind, says):
    with pytest.raises(kind, match=says):
        saliency_summary(maps()[0], labels)
