"""What must hold for every input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timex_explain import (
    Replacement,
    attention_mask,
    connectedness_loss,
    freq_shapes,
    label_consistency,
    landmark_summary,
    low_variance,
    mbc_loss,
    occlusion_curve,
    saliency_scores,
    seq_comb,
    simclr_loss,
    sparsity_loss,
    straight_through_bernoulli,
    straight_through_categorical,
    stratified_rows,
)

LENGTH, NUM_FEATURES = 12, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds = st.integers(0, 10**6)
batches = st.integers(2, 9)


def source(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def some_masks(draw, least=1):
    """Probabilities (batch, T, D), some of them zero or one, and padding that leaves a point of each."""
    batch, length, sensors = draw(st.integers(1, 4)), draw(st.integers(least, 7)), draw(st.integers(1, 3))
    generator = source(draw(seeds))
    prob = torch.rand(batch, length, sensors, generator=generator, dtype=torch.float64)
    prob = prob.masked_fill(prob < 0.1, 0).masked_fill(prob > 0.9, 1)
    ends = torch.randint(1, length + 1, (batch, 1), generator=generator)
    return prob, torch.arange(length) >= ends


# --- losses ----------------------------------------------------------------------------------------


@given(batch=batches, seed=seeds, scale=st.floats(1e-2, 1e2))
def test_mbc_sees_neither_rotation_nor_scale_nor_order(batch, seed, scale):
    z, other = normal(batch, 5, seed=seed), normal(batch, 3, seed=seed + 1)
    rotation = torch.linalg.qr(normal(5, 5, seed=seed + 2)).Q
    assert float(mbc_loss(z, scale * z @ rotation)) < 1e-25
    loss, order = mbc_loss(z, other), torch.randperm(batch, generator=source(seed))
    assert loss >= 0
    torch.testing.assert_close(mbc_loss(other, z), loss)
    torch.testing.assert_close(mbc_loss(z[order], other[order]), loss)


@given(batch=batches, seed=seeds)
def test_simclr_ignores_scale_and_order(batch, seed):
    z, other = normal(batch, 4, seed=seed), normal(batch, 4, seed=seed + 1)
    order, loss = torch.randperm(batch, generator=source(seed)), simclr_loss(z, other)
    torch.testing.assert_close(simclr_loss(z[order], other[order]), loss)
    torch.testing.assert_close(simclr_loss(3 * z, other / 7), loss)
    assert simclr_loss(z, z) < simclr_loss(z, -z)


@pytest.mark.parametrize("official", [False, True])
@given(batch=batches, classes=st.integers(2, 5), seed=seeds)
def test_labels_are_consistent_if_the_logits_differ_by_a_constant_per_row(official, batch, classes, seed):
    logits, shift = 3 * normal(batch, classes, seed=seed), normal(batch, 1, seed=seed + 1)
    assert float(label_consistency(logits, logits + shift, official=official)) < 1e-25
    other = normal(batch, classes, seed=seed + 2)
    order = torch.randperm(batch, generator=source(seed))
    loss = label_consistency(logits, other, official=official)
    assert 0 <= loss <= torch.tensor(2.0).log() ** 2 + 1e-12 or official
    torch.testing.assert_close(label_consistency(logits[order], other[order], official=official), loss)


@given(batch=batches, classes=st.integers(2, 4), seed=seeds, chunk_rows=st.integers(1, 9))
def test_chunks_change_neither_the_loss_nor_its_gradient(batch, classes, seed, chunk_rows):
    logits, other = normal(batch, classes, seed=seed), normal(batch, classes, seed=seed + 1).requires_grad_()
    found = [label_consistency(logits, other, chunk_rows=rows) for rows in (chunk_rows, 99)]
    torch.testing.assert_close(found[0], found[1])
    gradients = [torch.autograd.grad(loss, other)[0] for loss in found]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_label_consistency_survives_certain_predictions(dtype):
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0], [0.0, 0.0, 1e4]], dtype=dtype)
    certain = logits.clone().requires_grad_()
    loss = label_consistency(torch.zeros_like(logits), certain)
    torch.testing.assert_close(loss.detach(), torch.tensor(2.0, dtype=dtype).log() ** 2)
    (gradient,) = torch.autograd.grad(loss, certain)
    assert gradient.isfinite().all()


@given(density=st.floats(0.05, 0.95), masks=some_masks(), other=seeds)
def test_sparsity_is_convex_and_smallest_at_its_density(density, masks, other):
    prob, padding = masks
    second = torch.rand(prob.shape, generator=source(other), dtype=torch.float64)
    at_density = sparsity_loss(torch.full_like(prob, density), density)
    assert abs(float(at_density)) < 1e-4
    assert sparsity_loss(prob, density, padding=padding) >= -1e-4
    middle = sparsity_loss((prob + second) / 2, density)
    assert middle <= (sparsity_loss(prob, density) + sparsity_loss(second, density)) / 2 + 1e-9


@pytest.mark.parametrize("mode", ["l1", "official"])
@given(masks=some_masks(least=2))
def test_connectedness_is_blind_to_the_direction_of_time_and_to_constants(mode, masks):
    prob, _ = masks
    loss = connectedness_loss(prob, mode=mode)
    assert 0 <= loss <= 1
    torch.testing.assert_close(connectedness_loss(prob.flip(1), mode=mode), loss)
    assert float(connectedness_loss(prob[:, :1].expand_as(prob), mode=mode)) == 0


@pytest.mark.parametrize("mode", ["l1", "official"])
@given(masks=some_masks(), noise=seeds)
def test_padded_points_count_in_no_term_of_the_mask(mode, masks, noise):
    prob, padding = masks
    other = torch.rand(prob.shape, generator=source(noise), dtype=torch.float64)
    changed = torch.where(padding.unsqueeze(-1), other, prob)
    torch.testing.assert_close(sparsity_loss(changed, padding=padding), sparsity_loss(prob, padding=padding))
    losses = [connectedness_loss(value, padding=padding, mode=mode) for value in (changed, prob)]
    torch.testing.assert_close(losses[0], losses[1])


# --- masks -----------------------------------------------------------------------------------------


@given(prob=st.floats(0, 1), temperature=st.floats(0.2, 5), seed=seeds)
def test_hard_draws_are_exactly_zeros_and_ones_with_mean_p(prob, temperature, seed):
    values = torch.full((4000,), prob, dtype=torch.float64)
    draws = straight_through_bernoulli(values, temperature, generator=source(seed))
    assert set(draws.tolist()) <= {0.0, 1.0}
    assert abs(float(draws.mean()) - prob) <= 5 * (prob * (1 - prob) / 4000) ** 0.5 + 1e-3


@given(seed=seeds, temperature=st.floats(0.2, 5))
def test_a_hard_draw_has_the_gradient_of_the_relaxed_one(seed, temperature):
    prob = torch.rand(50, generator=source(seed), dtype=torch.float64).clamp(0.05, 0.95).requires_grad_()
    draws = [straight_through_bernoulli(prob, temperature, hard, source(seed)) for hard in (True, False)]
    gradients = [torch.autograd.grad(draw.sum(), prob)[0] for draw in draws]
    assert torch.equal(*gradients)
    assert (gradients[0] >= 0).all()
    assert gradients[0].sum() > 0
    assert torch.equal(draws[0], (draws[1] > 0.5).double())
    cold = straight_through_bernoulli(prob, 1e-6, False, source(seed))
    torch.testing.assert_close(cold, draws[0], atol=1e-3, rtol=0)


def test_draws_are_made_in_float32_whatever_the_dtype():
    prob = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float16)
    draws = straight_through_bernoulli(prob.expand(500, 3), generator=source(0))
    assert draws.dtype == torch.float16
    assert draws[:, 0].sum() == 0
    assert draws[:, 1].sum() == 500
    assert 150 < draws[:, 2].sum() < 350


@given(seed=seeds)
def test_replacement_keeps_what_is_kept_and_knows_nothing_of_the_rest(seed):
    x = normal(4, 6, 2, seed=seed).requires_grad_()
    replacement = Replacement.fit(normal(9, 6, 2, seed=seed + 1))
    kept = torch.rand(4, 6, 2, generator=source(seed)) < 0.5
    masked = replacement(x, kept.double(), source(seed))
    assert torch.equal(masked[kept], x[kept])
    assert torch.equal(masked[~kept], replacement.draw(x, source(seed))[~kept])
    (gradient,) = torch.autograd.grad(masked.sum(), x)
    assert torch.equal(gradient, kept.double())


@given(masks=some_masks())
def test_attention_joins_points_with_a_kept_sensor(masks):
    kept = (masks[0] > 0.5).double()
    point = kept.any(-1)
    assert torch.equal(attention_mask(kept), (point.unsqueeze(1) & point.unsqueeze(2)).double())


# --- landmarks and scores --------------------------------------------------------------------------


@given(seed=seeds, temperature=st.floats(0.05, 5))
def test_categorical_draws_are_one_hot_and_follow_their_probabilities(seed, temperature):
    log_prob = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log().expand(3000, 3)
    draws = straight_through_categorical(log_prob, temperature, source(seed))
    assert torch.equal(draws.sort(1).values, torch.tensor([0.0, 0.0, 1.0]).double().expand(3000, 3))
    for share, wanted in zip(draws.mean(0).tolist(), (0.6, 0.3, 0.1), strict=True):
        assert abs(share - wanted) <= 5 * (wanted * (1 - wanted) / 3000) ** 0.5


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), count=st.integers(1, 30), seed=seeds)
def test_stratified_rows_deal_the_classes_in_turn(sizes, count, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 3 - 1
    rows = stratified_rows(labels, count, source(seed))
    assert len(rows) == count
    assert len(set(rows[: len(labels)].tolist())) == min(count, len(labels))
    dealt = min(count, min(sizes) * len(sizes))  # while no class has run out
    got = [(labels[rows[:dealt]] == label).sum().item() for label in labels.unique()]
    assert max(got) - min(got) <= 1


@given(seed=seeds, num_series=st.integers(1, 30), num_landmarks=st.integers(1, 6), least=st.integers(0, 5))
def test_the_table_of_landmarks_is_the_naive_one(seed, num_series, num_landmarks, least):
    z, landmarks = normal(num_series, 3, seed=seed), normal(num_landmarks, 3, seed=seed + 1)
    table = landmark_summary(z, landmarks, min_members=least, num_nearest=4)
    similarity = torch.nn.functional.cosine_similarity(z.unsqueeze(1), landmarks, dim=-1)
    members = [[] for _ in range(num_landmarks)]
    for row, found in enumerate(similarity.argmax(1).tolist()):
        members[found].append(row)
    assert table.counts.tolist() == [len(rows) for rows in members]
    assert set(table.kept.tolist()) == {k for k, rows in enumerate(members) if len(rows) > least}
    for k, rows in enumerate(members):
        best = sorted(rows, key=lambda row, k=k: -similarity[row, k])[:4]
        assert table.nearest[k].tolist() == best + [-1] * (min(4, num_series) - len(best))


@given(masks=some_masks(), seed=seeds)
def test_scores_ignore_padding_and_the_scale_of_the_saliency(masks, seed):
    saliency, padding = masks
    truth = torch.rand(saliency.shape, generator=source(seed)) < 0.5
    truth[:, 0] = True
    scores = saliency_scores(saliency, truth, padding=padding)
    assert all(((score >= 0) & (score <= 1 + 1e-12)).all() for score in scores)
    moved = torch.where(padding.unsqueeze(-1), 7.0, 3 * saliency - 1)
    for mine, other in zip(saliency_scores(moved, truth, padding=padding), scores, strict=True):
        torch.testing.assert_close(mine, other)
    perfect = saliency_scores(truth.double(), truth)
    assert torch.equal(perfect.auprc, torch.ones(len(truth), dtype=torch.float64))


def test_occlusion_ends_where_nothing_is_left_and_begins_with_the_classifier():
    x = normal(400, 5, 1)
    y = (x[:, 2, 0] > 0).long()
    replacement = Replacement.fit(x)

    def model(series):
        return torch.cat([-series[:, 2], series[:, 2]], dim=-1)

    saliency = torch.zeros_like(x)
    saliency[:, 2] = 1
    fractions = [0, 0.2, 0.4, 0.6, 0.8, 1]
    lowest = occlusion_curve(model, x, y, saliency, fractions, replacement, generator=source(1))
    assert lowest.auroc[:5] == [1.0] * 5
    assert abs(lowest.auroc[5] - 0.5) < 0.15
    highest = occlusion_curve(
        model, x, y, saliency, fractions, replacement, order="highest", num_draws=3, generator=source(1)
    )
    assert highest.auroc[0] == 1.0
    assert all(abs(value - 0.5) < 0.15 for value in highest.auroc[1:])
    assert lowest.area > highest.area


# --- data ------------------------------------------------------------------------------------------


@settings(max_examples=3)  # three generators, twice each
@given(num_samples=st.integers(1, 60), seed=seeds)
def test_synthetic_sets_are_balanced_and_reproducible(num_samples, seed):
    for make in (freq_shapes, seq_comb, low_variance):
        data = make(num_samples, generator=source(seed))
        again = make(num_samples, generator=source(seed), dtype=torch.float64)
        torch.testing.assert_close(
            again.x.float(), data.x, atol=2.0 if make is freq_shapes else 1e-4, rtol=1e-4
        )
        assert torch.equal(again.truth, data.truth)
        counts = data.y.bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
        assert data.truth.shape == data.x.shape
        assert data.truth.dtype == torch.bool


def test_the_replacement_and_the_explainer_say_their_sizes(series):
    _, _, replacement = series
    assert repr(replacement) == f"Replacement(length={LENGTH}, num_features={NUM_FEATURES})"
