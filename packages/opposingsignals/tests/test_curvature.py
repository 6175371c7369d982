import pytest
import torch
from helpers import dense_hessian, small_net, squared, token_losses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opposingsignals import (
    OpposingTask,
    curvature_share,
    example_weights,
    group_gradient,
    per_example_curvature,
    per_example_gradient_norms,
    score_pair,
    top_eigs,
)

seeds = st.integers(0, 10_000)


@given(seed=seeds, batch=st.sampled_from([None, 1, 5]))
def test_curvatures_are_those_of_each_examples_own_hessian(seed, batch):
    net, x, y = small_net(seed, n=6)
    size = sum(p.numel() for p in net.parameters())
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed)).double()
    dense = [dense_hessian(net, lambda i=i: squared(net(x[i : i + 1]), y[i : i + 1]).sum()) for i in range(6)]
    wanted = torch.stack([vector @ h @ vector for h in dense])
    torch.testing.assert_close(per_example_curvature(net, squared, x, y, vector, batch=batch), wanted)


def test_tokens_curvatures_through_mixed_layers_add_to_the_whole(sentences):
    model, tokens = sentences
    model.eval()
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    vector = torch.randn(size).double()
    found = per_example_curvature(model, token_losses, tokens, tokens, vector, batch=4, per_token=True)
    assert found.shape == (6, 6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = dense_hessian(model, lambda: token_losses(model(tokens), tokens).mean())
    torch.testing.assert_close(found.mean(), vector @ dense @ vector)


@given(seed=seeds)
def test_shares_of_a_partition_add_to_one_and_the_errors_are_the_bootstraps(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(200, generator=generator) + torch.arange(200) % 3
    groups = torch.randperm(200, generator=generator).split([20, 60, 120])
    found = [curvature_share(values, group) for group in groups]
    assert sum(one.share for one in found) == pytest.approx(1)
    assert sum(one.data_share for one in found) == pytest.approx(1)
    inside = torch.zeros(200)
    inside[groups[0]] = 1
    drawn = torch.randint(200, (4000, 200), generator=generator)
    resampled = (inside * values)[drawn].sum(1) / values[drawn].sum(1)
    assert found[0].error == pytest.approx(resampled.std().item(), rel=0.12)
    assert found[0].ratio == pytest.approx(found[0].share * 10)
    assert found[0].ratio_error == pytest.approx(found[0].error * 10)


def test_a_share_is_the_slope_of_the_sharpness_in_the_groups_weight():
    net, x, y = small_net(3)
    group, shift = [0, 3, 4], 1e-4
    sharpness = []
    for weight in (1 - shift, 1 + shift):
        weights = torch.ones(12).double()
        weights[group] = weight
        dense = dense_hessian(net, lambda w=weights: (w * squared(net(x), y)).mean())
        sharpness.append(torch.linalg.eigvalsh(dense)[-1])
    top = top_eigs(net, lambda: squared(net(x), y).mean(), iterations=60, tolerance=1e-8)
    share = curvature_share(per_example_curvature(net, squared, x, y, top.vectors[0]), group).share
    slope = (sharpness[1] - sharpness[0]) / (2 * shift) / top.values[0]
    assert share == pytest.approx(slope.item(), rel=1e-4)


@given(seed=seeds)
def test_group_gradients_and_norms_are_those_of_single_examples(seed):
    net, x, y = small_net(seed, n=7)
    single = []
    for i in range(7):
        gradient = torch.autograd.grad(squared(net(x[i : i + 1]), y[i : i + 1]).sum(), list(net.parameters()))
        single.append(torch.cat([g.flatten() for g in gradient]))
    single = torch.stack(single)
    for batch in (None, 2):
        found = group_gradient(net, squared, x, y, [5, 1, 4], batch=batch)
        torch.testing.assert_close(found, single[[5, 1, 4]].mean(0))
        torch.testing.assert_close(
            per_example_gradient_norms(net, squared, x, y, batch=batch), single.norm(dim=1)
        )


def test_gradient_norms_where_vmap_cannot_follow(sentences):
    model, tokens = sentences

    def losses(output, y):
        assert float(output["logits"].detach().sum()) < 1e9  # a value is read: vmap refuses
        return token_losses(output, y).mean(1)

    found = per_example_gradient_norms(model, losses, tokens, tokens)
    each = [group_gradient(model, losses, tokens, tokens, [i]).norm() for i in range(6)]
    torch.testing.assert_close(found, torch.stack(each))


def test_a_group_of_tokens_is_the_mean_of_its_tokens(sentences):
    model, tokens = sentences
    model.eval()
    chosen = [3, 17, 20, 35]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = token_losses(model(tokens), tokens).flatten()[chosen].mean()
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    found = group_gradient(model, token_losses, tokens, tokens, chosen, per_token=True)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in wanted]))


def planted(seed, shuffle=False):
    """A linear model between two groups of 1 % each, pulled at through one large feature."""
    generator = torch.Generator().manual_seed(seed)
    task = OpposingTask(dimension=5, probability=0.02, variance=8.0)
    x, y, group = task.sample(2000, generator=generator)
    net = task.net(s0=0.9)
    a, b = ((group == sign).nonzero()[:, 0] for sign in (1, -1))
    if shuffle:
        # labels of both groups now point either way at random
        both = torch.cat([a, b])
        y[both] *= 2.0 * torch.randint(2, (len(both),), generator=generator) - 1
    return net, x, y, a, b


def half_squares(output, target):
    return (output - target).square() / 2


def test_planted_groups_are_opposed_and_make_the_curvature():
    net, x, y, a, b = planted(0)
    score = score_pair(net, half_squares, x, y, a, b, null=16, generator=torch.Generator().manual_seed(0))
    assert score.cosine < -0.99
    assert score.cosine < score.null_cosines.min()
    assert min(score.gradient_ratio_a, score.gradient_ratio_b) > 5
    # along b_o: c² α of it from the two groups, the rest of the data adds nothing
    assert score.curvature.share > 0.95
    assert score.curvature.data_share == pytest.approx(len(torch.cat([a, b])) / 2000)
    assert score.curvature.share == pytest.approx(score.curvature_a.share + score.curvature_b.share)
    assert score.share_z > 5
    assert score.cosine_z == pytest.approx(
        ((score.cosine - score.null_cosines.double().mean()) / score.null_cosines.double().std()).item()
    )
    assert score.sharpness == pytest.approx(0.9 * x[:, -1].square().mean().item(), rel=0.05)


def test_shuffled_labels_undo_the_opposition():
    cosines = []
    for seed in range(6):
        net, x, y, a, b = planted(seed, shuffle=True)
        cosines.append(score_pair(net, half_squares, x, y, a, b, null=2).cosine)
    assert max(cosines) > 0
    assert sum(cosines) / 6 > -0.5


def test_scores_in_batches_are_those_at_once():
    net, x, y, a, b = planted(1)
    options = {"null": 3, "vector": torch.ones(7) / 7**0.5}
    one, other = (
        score_pair(
            net, half_squares, x, y, a, b, batch=batch, generator=torch.Generator().manual_seed(0), **options
        )
        for batch in (None, 300)
    )
    assert other.cosine == pytest.approx(one.cosine, abs=1e-5)
    assert other.curvature.share == pytest.approx(one.curvature.share, rel=1e-5)
    torch.testing.assert_close(other.null_cosines, one.null_cosines, atol=1e-4, rtol=0)


def test_padding_counts_for_nothing_where_it_is_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)
    ).double()  # one position knows of no other
    x, y = torch.randn(6, 5, 3).double(), torch.randn(6, 5, 2).double()
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1, 3, 5])[:, None]
    x[~mask] = 30.0
    real = mask.flatten().nonzero()[:, 0]

    def by_token(output, target):
        return (output - target).square().sum(-1)

    options = {"null": 5, "batch": 4}
    padded = score_pair(
        model, by_token, x, y, real[[2, 9]], real[[4, 11, 15]], per_token=True, among=real,
        generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip
    packed = score_pair(
        model, by_token, x[mask], y[mask], [2, 9], [4, 11, 15],
        generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip
    sign = padded.vector.dot(packed.vector).sign()
    torch.testing.assert_close(sign * padded.vector, packed.vector, atol=1e-4, rtol=1e-4)
    assert padded.sharpness == pytest.approx(packed.sharpness, rel=1e-5)
    assert padded.cosine == pytest.approx(packed.cosine)
    torch.testing.assert_close(padded.null_cosines, packed.null_cosines)
    torch.testing.assert_close(padded.null_shares, packed.null_shares, atol=1e-4, rtol=1e-3)
    for name in ("curvature", "curvature_a", "curvature_b"):
        one, other = getattr(padded, name), getattr(packed, name)
        assert (one.share, one.error) == pytest.approx((other.share, other.error), rel=1e-3, abs=1e-4)
        assert one.data_share == pytest.approx(other.data_share)


def test_half_precision_curvatures_are_kept_in_single():
    net, x, y = small_net()
    vector = torch.randn(sum(p.numel() for p in net.parameters()))
    expected = per_example_curvature(net, squared, x, y, vector.double())
    found = per_example_curvature(net.bfloat16(), squared, x.bfloat16(), y.bfloat16(), vector)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=0.05 * float(expected.abs().max()), rtol=0)


def test_weights_drop_groups_at_a_mean_of_one():
    weights = example_weights(10, [[0, 1], [9]], 0.5)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[2] / weights[9]).item() == pytest.approx(2)


def test_batch_statistics_can_be_kept():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    _, x, y = small_net()
    vector = torch.randn(sum(p.numel() for p in model.parameters())).double()
    found = per_example_curvature(model, squared, x, y, vector, evaluate=False).mean()
    model.train()
    dense = dense_hessian(model, lambda: squared(model(x), y).mean())
    torch.testing.assert_close(found, vector @ dense @ vector)
