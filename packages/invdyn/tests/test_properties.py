"""What must hold for every input: the indices, the contrast, the losses, the spatial softmax, the probes."""

import math

import pytest
import torch
from helpers import ACTION, DIM, OBS, SEVEN, batch, encoder, episodes, make, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invdyn import (
    InverseDynamics,
    RandomCrop,
    SpatialSoftmax,
    StateProbe,
    fit_probe,
    info_nce,
    iterate_batches,
    iterate_sequences,
    transition_index,
)

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(lengths=LENGTHS, nstep=st.integers(0, 7), history=st.integers(1, 4))
def test_indices_stay_in_their_episode_and_clamp_at_its_ends(lengths, nstep, history):
    index = transition_index(lengths, nstep, history)
    expected = {"obs": [], "next": [], "act": [], "goal": [], "episode": [], "step": []}
    first_obs = first_act = 0
    for number, length in enumerate(lengths):
        for t in range(length):
            later = min(t + nstep, length)
            expected["obs"].append([first_obs + max(t - back, 0) for back in reversed(range(history))])
            expected["next"].append([first_obs + max(later - back, 0) for back in reversed(range(history))])
            expected["goal"].append([first_obs + max(length - back, 0) for back in reversed(range(history))])
            expected["act"].append([first_act + min(t + k, length - 1) for k in range(max(nstep, 1))])
            expected["episode"].append(number)
            expected["step"].append(t)
        first_obs, first_act = first_obs + length + 1, first_act + length
    found = (index.obs_idx, index.next_idx, index.act_idx, index.goal_idx, index.episode, index.step)
    assert [one.tolist() for one in found] == [
        expected[k] for k in ("obs", "next", "act", "goal", "episode", "step")
    ]
    assert len(index) == sum(lengths)
    assert (index.num_observations, index.num_actions) == (first_obs, first_act)
    if nstep == 0:
        assert torch.equal(index.obs_idx, index.next_idx)


@given(lengths=LENGTHS, size=st.integers(1, 7), seed=st.integers(0, 9))
def test_an_epoch_has_every_transition_once(lengths, size, seed):
    buffer, index = episodes(lengths), transition_index(lengths)
    buffer["action"] = torch.arange(float(sum(lengths)))[:, None].expand(-1, ACTION)
    seen = list(iterate_batches(buffer, index, size, drop_last=False, generator=seeded(seed)))
    order = torch.cat([one.action[:, 0] for one in seen]).long()
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    assert torch.equal(torch.cat([one.obs for one in seen]), buffer["obs"][index.obs_idx[order, 0]])
    assert torch.equal(torch.cat([one.next_obs for one in seen]), buffer["obs"][index.next_idx[order, 0]])
    assert torch.equal(torch.cat([one.task for one in seen]), buffer["task"][index.episode[order]])
    assert {len(one.action) for one in seen[:-1]} <= {size}


@given(rows=st.integers(2, 9), seed=st.integers(0, 99), temperature=st.floats(0.05, 5))
def test_info_nce_is_a_cross_entropy_that_a_joint_permutation_leaves(rows, seed, temperature):
    generator = seeded(seed)
    u, v = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
    found = info_nce(u, v, temperature)
    naive = 0.0
    for i in range(rows):
        logits = [float(u[i] @ v[j]) / temperature for j in range(rows)]
        naive += math.log(sum(math.exp(x - logits[i]) for x in logits)) / rows
    assert found.item() == pytest.approx(naive, abs=1e-9)
    assert found >= 0
    order = torch.randperm(rows, generator=generator)
    torch.testing.assert_close(info_nce(u[order], v[order], temperature), found)
    one = u[:1].expand(rows, -1)
    assert info_nce(one, one, temperature).item() == pytest.approx(math.log(rows))


@pytest.mark.parametrize("name", SEVEN)
@given(seed=st.integers(0, 99))
def test_no_loss_depends_on_the_order_of_a_batch(name, seed):
    objective, given_batch = make(name).eval(), batch(7, seed)
    order = torch.randperm(7, generator=seeded(seed))
    mixed = type(given_batch)(*(field[order] for field in given_batch))
    torch.testing.assert_close(objective.loss(mixed), objective.loss(given_batch))


@given(lengths=LENGTHS, nstep=st.integers(1, 4), discrete=st.booleans(), seed=st.integers(0, 9))
def test_sequences_and_transitions_have_one_loss(lengths, nstep, discrete, seed):
    buffer, index = episodes(lengths, seed, discrete), transition_index(lengths, nstep)
    static = transition_index(lengths, nstep=0)
    (sequences,) = iterate_sequences(buffer, len(lengths), generator=seeded(seed))
    for name in SEVEN:
        if sum(lengths) < 2 and name in ("contrast", "simclr"):
            continue
        steps = {"nstep": nstep} if name in ("inverse", "forward", "contrast") else {}
        every = {"predict_all_actions": True} if name == "inverse" else {}
        objective = make(name, discrete=discrete, **steps, **every).eval()
        own = static if name == "simclr" else index
        (pairs,) = iterate_batches(buffer, own, sum(lengths), generator=seeded(seed), with_goal=True)
        torch.testing.assert_close(objective(sequences), objective(pairs))


@given(seed=st.integers(0, 999), row=st.integers(0, 4), column=st.integers(0, 6))
def test_a_peak_of_the_spatial_softmax_is_its_coordinate(seed, row, column):
    pool = SpatialSoftmax(2, 2)
    with torch.no_grad():
        pool.maps.weight.copy_(torch.eye(2)[..., None, None])
        pool.maps.bias.zero_()
        image = torch.randn(1, 2, 5, 7, generator=seeded(seed))
        found = pool(image).view(2, 2)
        assert (found.abs() <= 1).all()
        flipped = pool(image.flip(-1)).view(2, 2)
        torch.testing.assert_close(flipped, found * torch.tensor([-1.0, 1.0]))
        image[0, 0, row, column] = 1e4
        peak = pool(image)[0, :2]
    torch.testing.assert_close(peak, torch.tensor([-1 + 2 * column / 6, -1 + 2 * row / 4]))


@given(seed=st.integers(0, 99))
def test_a_stopped_gradient_is_that_of_a_constant_next_embedding(seed):
    """With the next frame all the encoder sees of one weight, that weight's gradient is exactly 0."""
    given_batch = batch(6, seed)
    obs = torch.cat([given_batch.obs[:, :-1], torch.zeros(6, 1)], 1)  # the last input only in next_obs
    given_batch = given_batch._replace(obs=obs)
    for stop in (True, False):
        phi = nn.Linear(OBS, DIM)
        objective = InverseDynamics(phi, DIM, ACTION, hidden=(8,), stop_grad_next=stop)
        objective.loss(given_batch).backward()
        assert (phi.weight.grad[:, -1].abs().max() == 0) == stop
        assert phi.weight.grad[:, 0].abs().max() > 0


@given(seed=st.integers(0, 99))
def test_probes_never_reach_the_encoder(seed):
    objective, given_batch = make("inverse").eval(), batch(6, seed)
    probe = StateProbe(DIM, 2)
    loss, embedding = objective.loss_and_embedding(given_batch)
    (alone,) = torch.autograd.grad(loss, objective.encoder[0].weight, retain_graph=True)
    (loss + probe.loss(embedding, torch.ones(6, 2))).backward()
    assert torch.equal(objective.encoder[0].weight.grad, alone)
    assert all(parameter.grad.abs().max() > 0 for parameter in probe.parameters())


@given(
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_a_linear_probe_is_least_squares_in_any_units(seed, offset, scale):
    generator = seeded(seed)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(3, 2, generator=generator, dtype=torch.float64)
    y = y + 0.5 * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    found = fit_probe(x * scale + offset * scale, y * scale + offset * scale, hidden=(), generator=seeded(1))
    plain = fit_probe(x, y, hidden=(), generator=seeded(1))
    assert found.r2 == pytest.approx(plain.r2, abs=1e-6)
    assert found.r2_low - 1e-9 <= found.r2 <= found.r2_high + 1e-9
    assert found.mse == pytest.approx(plain.mse * scale**2, rel=1e-4)


@given(seed=st.integers(0, 99), padding=st.integers(0, 5))
def test_a_crop_is_a_window_of_the_padded_image(seed, padding):
    images = torch.rand(3, 2, 6, 7, generator=seeded(seed))
    crop = RandomCrop(padding)
    shifts = crop.draw(images, seeded(seed))
    padded = nn.functional.pad(images, (padding,) * 4, mode="replicate")
    for image, whole, (down, right) in zip(crop.apply(images, shifts), padded, shifts.tolist(), strict=True):
        top, left = down + padding, right + padding
        assert torch.equal(image, whole[:, top : top + 6, left : left + 7])


@given(lengths=LENGTHS, size=st.integers(1, 5))
def test_padding_is_never_seen(lengths, size):
    buffer = episodes(lengths)
    seen = []
    phi = encoder()
    phi.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    objective = make("inverse", phi).eval()
    for sequences in iterate_sequences(buffer, size, shuffle=False):
        longer = sequences.obs.clone()
        beyond = torch.arange(longer.shape[1]) > sequences.lengths[:, None]
        longer[beyond] = math.nan
        loss = objective.loss_sequence(longer, sequences.action, sequences.lengths)
        assert loss.isfinite()
    assert sum(seen) == sum(lengths) + len(lengths)  # every frame once
    assert len(seen) == -(-len(lengths) // size)  # one pass a batch
