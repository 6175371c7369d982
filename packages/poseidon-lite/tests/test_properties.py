import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from poseidon_lite import (
    All2AllDataset,
    All2AllPairs,
    ScOT,
    ScOTConfig,
    TimeConditionedLayerNorm,
    finetune_groups,
    fourier_resize,
    group_loss,
    relative_error,
    rollout,
)
from poseidon_lite.layers import PatchMerging, PatchUnmerging, shift_mask, window_order

SEEDS = st.integers(0, 2**16)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(grid=st.integers(2, 12), window=st.integers(1, 6), data=st.data())
def test_cutting_into_shifted_windows_loses_and_doubles_no_token(grid, window, data):
    shift = data.draw(st.integers(0, window - 1))
    order = window_order(grid, window, shift)
    assert order.shape == (math.ceil(grid / window) ** 2, window**2)
    real = order[order < grid * grid]
    assert sorted(real.tolist()) == list(range(grid * grid))
    assert int((order == grid * grid).sum()) == order.numel() - grid * grid
    if shift == 0 and window <= grid:
        first = [row * grid + column for row in range(window) for column in range(window)]
        assert order[0].tolist() == first


@given(count=st.integers(2, 4), window=st.integers(2, 5), data=st.data())
def test_the_mask_parts_exactly_the_tokens_that_the_roll_brought_together(count, window, data):
    shift, grid = data.draw(st.integers(1, window - 1)), count * window
    weights = shift_mask(grid, window, shift).double().softmax(-1)
    order = window_order(grid, window, shift)
    row, column = order // grid, order % grid
    near = ((row[:, :, None] - row[:, None, :]).abs() < window) & (
        (column[:, :, None] - column[:, None, :]).abs() < window
    )
    assert torch.equal(weights > 1e-30, near)


@given(seed=SEEDS, m=st.integers(3, 12), extra=st.integers(0, 7))
def test_resampling_up_and_down_again_is_the_identity_for_odd_and_band_limited_fields(seed, m, extra):
    x = normal(seed, 2, m, m)
    if m % 2 == 0:  # drop the Nyquist modes: their partner is not on the grid
        modes = torch.fft.fft2(x)
        modes[:, m // 2, :] = modes[:, :, m // 2] = 0
        x = torch.fft.ifft2(modes).real
    up = fourier_resize(x, m + extra)
    assert up.shape == (2, m + extra, m + extra)
    assert up.dtype == torch.float64
    torch.testing.assert_close(fourier_resize(up, m), x)


@given(m=st.integers(4, 15), n=st.integers(4, 15), value=st.floats(-5, 5), phase=st.floats(0, 6))
def test_resampling_reads_a_wave_and_a_constant_on_the_other_grid(m, n, value, phase):
    def wave(size):
        place = torch.arange(size, dtype=torch.float64) / size
        return value + torch.cos(2 * math.pi * (place[:, None] - place[None, :]) + phase)

    torch.testing.assert_close(fourier_resize(wave(m), n), wave(n))


@given(seed=SEEDS, half=st.integers(1, 4))
def test_merging_lays_a_square_of_tokens_side_by_side_row_parity_fastest(seed, half):
    x = normal(seed, 2, 2 * half, 2 * half, 3)
    merging = PatchMerging(3, 2 * half, conditioned=False).double()
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    merging.norm.forward = lambda x, t=None: x
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    expected = torch.cat(corners, dim=-1).reshape(2, half * half, 12)
    assert torch.equal(merging(x.flatten(1, 2)), expected)


@given(seed=SEEDS, grid=st.integers(1, 4))
def test_unmerging_spreads_the_four_parts_of_a_token_over_a_square(seed, grid):
    dim = 6
    unmerging = PatchUnmerging(dim, grid, conditioned=False).double()
    unmerging.norm.forward = lambda x, t=None: x
    unmerging.mixup = nn.Identity()
    x = normal(seed, 1, grid * grid, dim)
    parts = unmerging.upsample(x).view(grid, grid, 4, dim // 2)
    square = unmerging(x).view(2 * grid, 2 * grid, dim // 2)
    for row in range(2 * grid):
        for column in range(2 * grid):
            part = parts[row // 2, column // 2, 2 * (row % 2) + column % 2]
            assert torch.equal(square[row, column], part)


@given(last=st.integers(1, 12))
def test_all2all_is_every_ordered_pair_once(last):
    pairs = All2AllPairs(last + 1)
    assert len(pairs) == (last + 1) * (last + 2) // 2
    assert set(pairs) == {(i, j) for i in range(last + 1) for j in range(last + 1) if i <= j}
    assert set(All2AllPairs(last + 1, include_identity=False)) == {(i, j) for i, j in pairs if i < j}
    assert set(All2AllPairs(last + 1, fix_input_to=0)) == {(0, j) for j in range(1, last + 1)}


@given(snapshots=st.integers(3, 20), step=st.integers(1, 3), data=st.data())
def test_only_allowed_transitions_of_the_strided_snapshots_are_kept(snapshots, step, data):
    if snapshots <= step:
        return
    allowed = data.draw(st.sets(st.integers(0, (snapshots - 1) // step), min_size=1))
    kept = range(0, snapshots, step)
    expected = {(i, j) for i in kept for j in kept if i <= j and (j - i) // step in allowed}
    assert set(All2AllPairs(snapshots, step, allowed=sorted(allowed))) == expected


@given(seed=SEEDS, count=st.integers(1, 4), scale=st.floats(0.5, 20))
def test_a_sample_is_the_normalised_pair_and_the_time_between(seed, count, scale):
    trajectories = normal(seed, count, 4, 2, 3, 3)
    times, mean, std = torch.tensor([0.0, 1.0, 2.5, 4.0]), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    data = All2AllDataset(trajectories, times, mean, std, time_scale=scale)
    assert len(data) == 10 * count
    seen = 0
    for trajectory in range(count):
        for i in range(4):
            for j in range(i, 4):
                x, t, y = data[seen]
                seen += 1
                for field, snapshot in ((x, i), (y, j)):
                    back = field * std.view(2, 1, 1) + mean.view(2, 1, 1)
                    torch.testing.assert_close(back, trajectories[trajectory, snapshot])
                assert float(t) == pytest.approx(float(times[j] - times[i]) / scale)


@given(seed=SEEDS, dim=st.integers(2, 9), time=st.floats(0, 1))
def test_the_conditioned_norm_is_a_layer_norm_with_affine_in_time_parameters(seed, dim, time):
    norm = TimeConditionedLayerNorm(dim).double()
    x = 3 + 5 * normal(seed, 2, 4, dim)
    t = torch.full((2,), time, dtype=torch.float64)
    gain = norm.weight.weight[:, 0] * time + norm.weight.bias
    offset = norm.bias.weight[:, 0] * time + norm.bias.bias
    centred = x - x.mean(-1, keepdim=True)
    expected = gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + offset
    torch.testing.assert_close(norm(x, t), expected)


@given(seed=SEEDS, scale=st.floats(0.01, 100), p=st.sampled_from([1, 2]))
def test_the_loss_vanishes_on_the_target_and_ignores_the_unit_of_a_group(seed, scale, p):
    prediction, target = normal(seed, 2, 3, 2, 4, 4)
    assert group_loss(target, target, (1, 1), p) == 0
    unit = torch.tensor([scale, 1.0], dtype=torch.float64).view(1, 2, 1, 1)
    plain = group_loss(prediction, target, (1, 1), p)
    torch.testing.assert_close(group_loss(prediction * unit, target * unit, (1, 1), p), plain)
    by_hand = [
        ((prediction - target)[:, c].abs() ** p).sum() / (target[:, c].abs() ** p).sum() for c in range(2)
    ]
    torch.testing.assert_close(plain, sum(by_hand) / 2)


@given(seed=SEEDS, factor=st.floats(-3, 3), p=st.sampled_from([1, 2]))
def test_the_relative_error_of_a_multiple_is_its_distance_from_one(seed, factor, p):
    target = normal(seed, 3, 3, 4, 4)
    error = relative_error(factor * target, target, (2, 1), p)
    assert error.shape == (3, 2)
    torch.testing.assert_close(error, torch.full_like(error, 100 * abs(factor - 1)), rtol=1e-6, atol=1e-9)


@given(seed=SEEDS, steps=st.integers(1, 6))
def test_a_rollout_of_an_exact_flow_map_does_not_depend_on_its_steps(seed, steps):
    def flow(x, t):  # dx/dt = -c x for the first channel; the second channel holds c
        return x[:, :1] * torch.exp(-x[:, 1:] * t.view(-1, 1, 1, 1))

    x, t = normal(seed, 3, 2, 4, 4), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    exact = flow(x, t)
    torch.testing.assert_close(rollout(flow, x, t, steps), exact)
    torch.testing.assert_close(rollout(flow, x, t, [0.5, 0.2, 0.3]), exact)
    every = rollout(flow, x, t, steps, all_steps=True)
    assert every.shape == (3, steps, 1, 4, 4)
    torch.testing.assert_close(every[:, 0], flow(x, t / steps))
    assert torch.equal(rollout(flow, x, t, [0.5, 0.5]), rollout(flow, x, t, 2))
    assert torch.equal(rollout(flow, x, t), exact)


@given(frozen=st.booleans(), conditioned=st.booleans())
def test_every_trainable_parameter_is_in_one_group(frozen, conditioned):
    model = ScOT(ScOTConfig.tiny(embed_dim=12, num_heads=(1, 2), use_conditioning=conditioned))
    if frozen:
        model.encoder.requires_grad_(False)
    groups = {group["name"]: group for group in finetune_groups(nn.Sequential(model), 1.0, 2.0, 3.0, 4.0)}
    members = [parameter for group in groups.values() for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(members) == len(trainable)
    assert set(members) == set(trainable)
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    expected = {"embedding": (2, 4), "decay": (1, 4), "time": (3, 0), "no decay": (1, 0)}
    assert rates == {name: rate for name, rate in expected.items() if conditioned or name != "time"}
