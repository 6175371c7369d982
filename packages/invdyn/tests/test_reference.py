"""The same numbers from elsewhere: closed forms, naive loops, libraries."""

import colorsys
import math

import numpy as np
import pytest
import torch
from helpers import ACTION, DIM, OBS, SEVEN, batch, encoder, make, seeded
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from invdyn import (
    Batch,
    ColorJitter,
    Compose,
    ContrastiveDynamics,
    GaussianBlur,
    InverseDynamics,
    PixelDecoder,
    PixelEncoder,
    RandomCrop,
    augment_batch,
    cross_prediction,
    fit_probe,
    info_nce,
    linear_bc_oracle,
    linear_id_oracle,
)

# --- the worked example of the theory -------------------------------------------------------------

EYE, ZERO = torch.eye(2), torch.zeros(2, 2)


def test_a_hidden_context_confounds_cloning_but_not_inverse_dynamics():
    """z' = z + a, a = c ~ N(0, I): cloning is left with the variance of c, inverse dynamics with nothing."""
    assert linear_bc_oracle(ZERO, EYE).risk.item() == 1.0
    assert linear_id_oracle(EYE, EYE, ZERO, ZERO, EYE, EYE).risk.item() < 1e-12


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_noise_of_the_dynamics_costs_inverse_dynamics_what_a_scalar_filter_says(noise):
    weight, risk = linear_id_oracle(EYE, EYE, noise * EYE, ZERO, EYE, EYE)
    gain = 1 / (1 + noise)  # Var(a) / (Var(a) + Var(eps))
    torch.testing.assert_close(weight, gain * torch.cat([-EYE, EYE], 1).double())
    assert risk.item() == pytest.approx(noise * gain)


def linear_world(generator, contexts=3, rows=4000):
    """Trajectories of a mixture of linear experts, without noise, with B of full column rank."""
    A, B = torch.randn(3, 3, generator=generator).double(), torch.randn(3, 2, generator=generator).double()
    gains = torch.randn(contexts, 2, 3, generator=generator).double()
    offsets = torch.randn(contexts, 2, generator=generator).double()
    z = torch.randn(rows, 3, generator=generator).double()
    c = torch.randint(contexts, (rows,), generator=generator)
    action = (gains[c] @ z[..., None])[..., 0] + offsets[c]
    return A, B, z, action, z @ A.T + action @ B.T


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_on_any_mixture_of_experts_recovers_the_inverse(seed):
    A, B, z, action, later = linear_world(seeded(seed))
    pair = torch.cat([z, later], 1)
    weight = torch.linalg.lstsq(pair, action).solution.T
    pinv = torch.linalg.pinv(B)
    assert (pair @ weight.T - action).square().mean() < 1e-8
    # [z, z'] spans only 5 of 6 dims, so that the head is unique up to what the data never show
    torch.testing.assert_close(pair @ weight.T, pair @ torch.cat([-pinv @ A, pinv], 1).T)
    square = torch.randn(3, 3, generator=seeded(seed + 50)).double() + 3 * torch.eye(3)
    found = linear_id_oracle(A, square, torch.zeros(3, 3), torch.ones(3, 3), torch.eye(3), torch.eye(3))
    inverse = square.inverse()
    torch.testing.assert_close(found.weight, torch.cat([-inverse @ A, inverse], 1), rtol=1e-6, atol=1e-8)
    assert found.risk < 1e-8


def test_the_oracle_is_the_regression_of_a_large_sample():
    generator = seeded(3)
    A, B = torch.randn(3, 3, generator=generator).double(), torch.randn(3, 2, generator=generator).double()
    gain = torch.randn(2, 3, generator=generator).double()
    roots = [torch.randn(size, size, generator=generator).double() for size in (3, 2, 3)]
    noise, policy, state = (root @ root.T for root in roots)
    z, u, eps = (
        torch.randn(200_000, len(root), generator=generator).double() @ root.T
        for root in (roots[2], roots[1], roots[0])
    )
    action = z @ gain.T + u
    pair = torch.cat([z, z @ A.T + action @ B.T + eps], 1)
    weight = torch.linalg.lstsq(pair, action).solution.T
    found = linear_id_oracle(A, B, noise, gain, policy, state)
    torch.testing.assert_close(found.weight, weight, rtol=0.05, atol=0.02)
    assert (pair @ weight.T - action).square().mean().item() == pytest.approx(found.risk.item(), rel=0.02)
    assert (action - z @ gain.T).square().mean().item() == pytest.approx(
        linear_bc_oracle(gain, policy).risk.item(), rel=0.02
    )


def test_training_on_the_worked_example_ends_where_the_theory_says():
    """a = c, z' = z + a / 2: inverse dynamics with a linear head learns it, cloning stays at Var(c) = 1 / 3."""
    generator = seeded(0)
    z = torch.randn(2000, 2, generator=generator)
    action = 2 * torch.rand(2000, 2, generator=generator) - 1
    transitions = Batch(z, action, z + 0.5 * action)
    losses = {}
    for name, inputs in (("inverse", 2), ("bc", 1)):
        objective = make(name, nn.Identity(), hidden=(), squash=False)
        objective.embed_dim, objective.head = 2, nn.Linear(2 * inputs, 2)
        optimizer = torch.optim.Adam(objective.head.parameters(), lr=0.05)
        for _ in range(250):
            optimizer.zero_grad()
            loss = objective.loss(transitions)
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["inverse"] < 1e-3
    assert losses["bc"] == pytest.approx(1 / 3, abs=0.02)


# --- losses by hand -------------------------------------------------------------------------------


def test_the_losses_of_actions_by_hand():
    given = batch(8)
    for name, second in (("inverse", given.next_obs), ("goal", given.goal), ("bc", None)):
        objective = make(name).eval()
        z = [objective.encoder(frame) for frame in (given.obs, second) if frame is not None]
        expected = (objective.head(torch.cat(z, 1)).tanh() - given.action).square().mean()
        torch.testing.assert_close(objective.loss(given), expected)
        plain = make(name, objective.encoder, squash=False).eval()
        plain.head = objective.head
        wide = given._replace(action=3 * given.action)
        expected = (objective.head(torch.cat(z, 1)) - wide.action).square().mean()
        torch.testing.assert_close(plain.loss(wide), expected)


def test_each_task_has_its_own_row():
    objective, given = make("multihead").eval(), batch(8)
    rows = objective.head(objective.encoder(given.obs)).tanh().view(8, 3, ACTION)
    picked = torch.stack([rows[i, int(given.task[i])] for i in range(8)])
    torch.testing.assert_close(objective(given.obs, given.task), picked)
    torch.testing.assert_close(objective.loss(given), (picked - given.action).square().mean())


def test_discrete_actions_have_a_cross_entropy():
    given = batch(8, discrete=True)
    objective = make("inverse", discrete=True).eval()
    logits = objective(given.obs, given.next_obs)
    assert logits.abs().max() != logits.tanh().abs().max()
    torch.testing.assert_close(objective.loss(given), cross_entropy(logits, given.action))
    several = make("inverse", discrete=True, nstep=3, predict_all_actions=True).eval()
    given = batch(8, discrete=True, nstep=3)
    logits = several(given.obs, given.next_obs)
    expected = torch.stack([cross_entropy(logits[..., k], given.action_seq[:, k]) for k in range(3)]).mean()
    torch.testing.assert_close(several.loss(given), expected)
    torch.testing.assert_close(several.loss(given._replace(action_seq=given.action_seq.int())), expected)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("nstep", [1, 3])
def test_the_losses_of_dynamics_by_hand(discrete, nstep):
    given = batch(8, discrete=discrete, nstep=nstep)
    actions = one_hot(given.action_seq, ACTION).float() if discrete else given.action_seq
    forward = make("forward", discrete=discrete, nstep=nstep).eval()
    joint = torch.cat([forward.encoder(given.obs), forward.action_encoder.layers(actions.flatten(1))], 1)
    expected = (forward.decoder(joint) - (given.next_obs - 0.5)).square().mean()
    torch.testing.assert_close(forward.loss(given), expected)
    read = given.action_seq if nstep > 1 else given.action
    torch.testing.assert_close(forward(given.obs, read), forward.decoder(joint) + 0.5)

    contrast = make("contrast", discrete=discrete, nstep=nstep, temperature=0.3).eval()
    joint = torch.cat([contrast.encoder(given.obs), contrast.action_encoder.layers(actions.flatten(1))], 1)
    u = contrast.projector(joint)
    v = contrast.next_projector(contrast.encoder(given.next_obs))
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(contrast.loss(given), cross_entropy(u @ v.T / 0.3, torch.arange(8)))


def test_label_smoothing_permutes_the_first_rows_of_u_and_no_others():
    given = batch(8)
    smooth = make("contrast", label_smoothing=0.5).eval()
    u, v = smooth(given.obs, given.next_obs, given.action)
    order = torch.cat([torch.randperm(4, generator=seeded(5)), torch.arange(4, 8)])
    assert order.tolist() != list(range(8))
    torch.testing.assert_close(smooth.loss(given, generator=seeded(5)), info_nce(u[order], v))


def test_encoders_that_are_not_shared_each_see_their_frames():
    phi, psi = encoder(), encoder()
    objective = ContrastiveDynamics(phi, DIM, ACTION, hidden=(8,), share_encoder=False, next_encoder=psi)
    given = batch(6)
    _, v = objective(given.obs, given.next_obs, given.action)
    torch.testing.assert_close(
        v, nn.functional.normalize(objective.next_projector(psi(given.next_obs)), dim=1)
    )
    copied = ContrastiveDynamics(phi, DIM, ACTION, hidden=(8,), share_encoder=False).next_encoder
    assert copied is not phi
    assert torch.equal(copied[0].weight, phi[0].weight)


def test_batch_normalisation_sees_both_frames_together():
    phi = nn.Sequential(nn.Linear(OBS, DIM), nn.BatchNorm1d(DIM, momentum=1.0))
    given = batch(8)._replace(next_obs=batch(8).next_obs + 5)
    InverseDynamics(phi, DIM, ACTION).loss(given)
    both = phi[0](torch.cat([given.obs, given.next_obs]))
    torch.testing.assert_close(phi[1].running_mean, both.mean(0))


# --- networks -------------------------------------------------------------------------------------


def test_the_networks_have_the_published_sizes():
    counted = sum(p.numel() for p in PixelEncoder(3, 84).parameters())
    convolutions = sum(9 * a * b + b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
    assert counted == convolutions + (256 * 256 + 256) + (512 * 64 + 64) + 2 * 64
    for size in (24, 32, 84, 120):
        narrow = PixelDecoder(4, size, channels=(2, 2, 2, 2))
        assert narrow(torch.zeros(1, 4)).shape == (1, 3, size, size)
    assert PixelDecoder(4, 84).layers[0].out_features == 16 * 16 * 2
    assert PixelDecoder(4, 120).layers[0].out_features == 25 * 25 * 2


# --- augmentations --------------------------------------------------------------------------------


def test_colours_change_as_the_standard_library_says():
    images = torch.rand(2, 3, 4, 4, generator=seeded(1))
    jitter = ColorJitter(brightness=0, contrast=0, saturation=0.2, hue=0.1)
    drawn = torch.full((2, 6), 0.5)
    drawn[:, 2], drawn[:, 3], drawn[:, 5] = 0.25, 0.9, 0.9
    found = jitter.apply(images, drawn)
    for b in range(2):
        for row in range(4):
            hue, saturation, value = colorsys.rgb_to_hsv(*images[b, :, row, 1].tolist())
            wanted = colorsys.hsv_to_rgb((hue + 0.1 * 0.8) % 1, min(saturation * 0.9, 1), value)
            assert found[b, :, row, 1].tolist() == pytest.approx(wanted, abs=1e-5)


def test_brightness_contrast_and_grey_by_hand():
    images = 0.3 + 0.2 * torch.rand(1, 6, 4, 4, generator=seeded(2))
    drawn = torch.tensor([[0.75, 0.5, 0.5, 0.5, 0.0, 0.9]])
    torch.testing.assert_close(ColorJitter().apply(images, drawn), images + 0.2)
    drawn = torch.tensor([[0.5, 0.75, 0.5, 0.5, 0.0, 0.9]])
    mean = images.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(ColorJitter().apply(images, drawn), mean + 1.2 * (images - mean))
    drawn = torch.tensor([[0.9, 0.9, 0.9, 0.9, 0.9, 0.1]])  # no jitter, but grey
    found = ColorJitter().apply(images, drawn)
    for frame in (0, 3):
        grey = 0.2989 * images[:, frame] + 0.5870 * images[:, frame + 1] + 0.1140 * images[:, frame + 2]
        torch.testing.assert_close(found[:, frame + 2], grey)


def test_a_blurred_point_is_a_gaussian():
    images = torch.zeros(2, 1, 41, 41)
    images[:, :, 20, 20] = 1
    sigma = torch.tensor([0.5, 1.0])
    found = GaussianBlur(kernel_share=0.5).apply(images, sigma)
    offsets = torch.arange(41.0) - 20
    for b in range(2):
        line = torch.exp(-0.5 * (offsets / sigma[b]) ** 2)
        line = line / line.sum()
        torch.testing.assert_close(found[b, 0], line[:, None] * line, atol=1e-6, rtol=1e-5)


def test_frames_of_a_pair_share_a_draw_only_if_asked():
    frames = torch.rand(8, 3, 16, 16, generator=seeded(0))
    views = {"image": frames, "state": torch.randn(8, 2, generator=seeded(1))}
    given = Batch(views, torch.zeros(8, 1), views, goal=views)
    change = Compose(RandomCrop(4), ColorJitter(probability=1), GaussianBlur())
    alike = augment_batch(given, change, single_aug=True, generator=seeded(2))
    assert torch.equal(alike.obs["image"], alike.next_obs["image"])
    assert torch.equal(alike.obs["image"], alike.goal["image"])
    assert not torch.equal(alike.obs["image"], frames)
    apart = augment_batch(given, change, generator=seeded(2))
    assert not torch.allclose(apart.obs["image"], apart.next_obs["image"])
    assert torch.equal(apart.obs["state"], views["state"])


# --- probes ---------------------------------------------------------------------------------------


def test_a_linear_probe_is_numpys_least_squares():
    generator = seeded(0)
    x = torch.randn(60, 4, generator=generator)
    y = x[:, :2] + torch.randn(60, 2, generator=generator)
    groups = torch.arange(60) // 5
    found = fit_probe(x, y, groups=groups, hidden=(), generator=seeded(1))
    held_out = torch.isin(groups, torch.randperm(12, generator=seeded(1))[:3])
    design = np.c_[x.numpy(), np.ones(60)].astype(float)
    train, test = ~held_out.numpy(), held_out.numpy()
    weight = np.linalg.lstsq(design[train], y.numpy()[train], rcond=None)[0]
    errors = (design[test] @ weight - y.numpy()[test]) ** 2
    spread = (y.numpy()[test] - y.numpy()[test].mean(0)) ** 2
    assert (found.num_train, found.num_test) == (train.sum(), test.sum())
    assert found.mse == pytest.approx(errors.mean(), rel=1e-6)
    assert found.r2 == pytest.approx(1 - errors.sum() / spread.sum(), rel=1e-6)
    assert found.r2_per_target.tolist() == pytest.approx((1 - errors.sum(0) / spread.sum(0)).tolist())
    np.testing.assert_allclose(found.module(x).numpy(), design @ weight, atol=1e-6)


def test_the_error_bars_are_those_of_resampling_whole_groups():
    """A naive bootstrap, group by group, of the same held-out rows."""
    generator = seeded(4)
    groups = torch.arange(400) // 10
    x = torch.randn(400, 1, generator=generator)
    shift = torch.randn(40, 1, generator=generator)[groups]  # what a group has in common
    y = x + shift
    found = fit_probe(x, y, groups=groups, hidden=(), generator=seeded(1), test_fraction=0.5)
    held_out = torch.randperm(40, generator=seeded(1))[:20]
    resampled, rng = [], np.random.default_rng(0)
    predicted = found.module(x)
    for _ in range(2000):
        rows = torch.cat([(groups == g).nonzero()[:, 0] for g in held_out[rng.integers(20, size=20)]])
        errors = (predicted[rows] - y[rows]).square().sum()
        resampled.append(1 - (errors / (y[rows] - y[rows].mean()).square().sum()).item())
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.r2_low == pytest.approx(low, abs=0.04)
    assert found.r2_high == pytest.approx(high, abs=0.04)


def test_a_network_probe_finds_what_no_line_can():
    x = torch.randn(600, 2, generator=seeded(0))
    y = (x[:, :1] * x[:, 1:]).repeat(1, 2) * torch.tensor([1.0, 50.0]) + 1e4
    linear = fit_probe(x, y, hidden=(), generator=seeded(1))
    network = fit_probe(x, y, hidden=(32,), steps=400, learning_rate=1e-2, generator=seeded(1))
    assert linear.r2 < 0.2
    assert network.r2 > 0.9
    assert network.r2 == pytest.approx(1 - network.mse / linear.mse * (1 - linear.r2))


def test_noise_predicts_nothing_and_the_error_bars_say_so():
    x, y = torch.randn(2, 400, 3, generator=seeded(0))
    found = fit_probe(x, y, hidden=(), generator=seeded(1))
    assert found.r2_low < 0.02
    assert found.r2 < 0.05


def test_probes_trained_together_are_those_trained_alone():
    generator = seeded(0)
    wide = torch.randn(300, 5, generator=generator)
    reps = {"wide": wide, "narrow": torch.tanh(wide[:, :2]), "one": wide[:, :1] ** 2}
    found = cross_prediction(reps, steps=400, learning_rate=1e-2, generator=seeded(3))
    assert found.names == list(reps)
    alone = fit_probe(reps["narrow"], reps["wide"], steps=400, learning_rate=1e-2, generator=seeded(7))
    assert found.matrix[1, 0].item() == pytest.approx(1 - alone.r2, abs=0.12)
    assert found.matrix[0, 0] < 0.05
    assert found.matrix[0, 1] < 0.05 < 0.5 < found.matrix[2, 0]  # the square tells little of five numbers
    assert ((found.low <= found.matrix) & (found.matrix <= found.high)).all()


@pytest.mark.parametrize("name", SEVEN)
def test_accumulated_gradients_are_those_of_one_batch(name):
    """True of all but the contrasts, whose negatives are the batch."""
    objective, given = make(name).eval(), batch(8)
    objective.loss(given).backward()
    whole = [p.grad.clone() for p in objective.encoder.parameters()]
    objective.zero_grad()
    for half in (slice(0, 4), slice(4, 8)):
        (objective.loss(type(given)(*(field[half] for field in given))) / 2).backward()
    same = all(
        torch.allclose(a, p.grad, atol=1e-7)
        for a, p in zip(whole, objective.encoder.parameters(), strict=True)
    )
    assert same == (name not in ("contrast", "simclr"))
    assert not math.isnan(sum(float(p.grad.sum()) for p in objective.encoder.parameters()))
