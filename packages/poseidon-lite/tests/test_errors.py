import math

import pytest
import torch

from poseidon_lite import (
    All2AllDataset,
    All2AllPairs,
    ScOT,
    ScOTConfig,
    SwinV2Block,
    TimeConditionedLayerNorm,
    convert_state_dict,
    finetune_groups,
    fourier_resize,
    gaussian_vorticity,
    group_loss,
    navier_stokes,
    relative_error,
    rollout,
    sine_vorticity,
)

MODEL = ScOT(ScOTConfig.tiny(embed_dim=12, num_heads=(1, 2)))
X, T = torch.zeros(2, 4, 32, 32), torch.zeros(2)
TRAJECTORIES, TIMES = torch.zeros(2, 3, 1, 4, 4), torch.tensor([0.0, 1.0, 2.0])
W = torch.zeros(1, 8, 8)
NAN, INF = math.nan, math.inf
WILD = 1e9 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
PDE = {"viscosity": 0.1, "num_steps": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODEL(torch.zeros(2, 4, 32, 16), T), r"x must be square .*\(2, 4, 32, 16\)"),
        (
            lambda: MODEL(torch.zeros(2, 3, 32, 32), T),
            r"x must be square fields \(batch, 4, .*\(2, 3, 32, 32\)",
        ),
        (lambda: MODEL(X, torch.zeros(2, 1)), r"t must have shape \(2,\).*\(2, 1\)"),
        (lambda: MODEL(X, torch.zeros(3)), r"t must have shape \(2,\).*\(3,\)"),
        (lambda: MODEL(X), "t must be given.*None"),
        (lambda: MODEL(X, T, torch.ones(2, 4) > 0), "labels must have shape.*None"),
        (lambda: MODEL(X, T, torch.ones(2, 4), X), "pixel_mask must be boolean.*float32"),
        (lambda: MODEL(X, T, torch.ones(2, 3) > 0, X), r"pixel_mask must be boolean.*\(2, 3\)"),
        (lambda: TimeConditionedLayerNorm(4)(torch.zeros(1, 4), None), "t must be given"),
        (lambda: SwinV2Block(4, 1, 8, window_size=4, shift=4), "shift must be in .*got 4"),
        (lambda: ScOTConfig.tiny(image_size=30), "image_size must be a multiple .* = 4, got 30"),
        (lambda: ScOTConfig.tiny(embed_dim=0), "embed_dim must be at least 1, got 0"),
        (lambda: ScOTConfig.tiny(depths=(2, 0)), r"depths must hold .*\(2, 0\)"),
        (
            lambda: ScOTConfig.tiny(num_heads=(3,)),
            r"num_heads must have one entry per stage \(2\), got \(3,\)",
        ),
        (lambda: ScOTConfig.tiny(num_heads=(5, 5)), r"num_heads must divide .*\(5, 5\)"),
        (lambda: ScOTConfig.tiny(skip_blocks=(-1, 0)), "skip_blocks must not be negative"),
        (lambda: ScOTConfig.tiny(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\), got 1.0"),
        (
            lambda: ScOTConfig.tiny(learn_residual=True, use_conditioning=False),
            "learn_residual must be False",
        ),
        (
            lambda: ScOTConfig.tiny(learn_residual=True, in_channels=2),
            "in_channels must be at least .* got 2",
        ),
        (lambda: fourier_resize(torch.zeros(3, 4), 4), r"x must hold square fields .*\(3, 4\)"),
        (lambda: fourier_resize(X, 0), "n must be at least 1, got 0"),
        (lambda: rollout(MODEL, X, T, 0), "steps must be .* got 0"),
        (lambda: rollout(MODEL, X, T, []), r"steps must be .* got \[\]"),
        (lambda: rollout(MODEL, X, T, [0.5, -0.5]), "steps must be .* got"),
        (lambda: All2AllPairs(1), "num_snapshots must be at least 2, got 1"),
        (lambda: All2AllPairs(4, 0), "step must be at least 1, got 0"),
        (lambda: All2AllPairs(4, allowed=[9]), r"allowed must leave .* got \[9\]"),
        (lambda: All2AllPairs(4, fix_input_to=4), r"fix_input_to must be in \[0, 4\), got 4"),
        (lambda: All2AllDataset(TRAJECTORIES[0], TIMES), "trajectories must have shape"),
        (lambda: All2AllDataset(TRAJECTORIES[..., :2], TIMES), "trajectories must have shape"),
        (lambda: All2AllDataset(TRAJECTORIES / 0, TIMES), "trajectories must be finite"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES.flip(0)), "times must be 3 increasing"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES[:2]), "times must be 3 increasing"),
        (
            lambda: All2AllDataset(TRAJECTORIES, TIMES, torch.zeros(2)),
            r"mean must have shape \(1,\), got \(2,\)",
        ),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, std=torch.zeros(1)), "std must be positive"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, time_scale=0), "time_scale must be positive, got 0"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, pairs=All2AllPairs(9)), "at most 3 snapshots, got 9"),
        (lambda: group_loss(X, X, (1, 2)), r"groups must be sizes that add up to 4 channels, got \(1, 2\)"),
        (lambda: group_loss(X, X[:1], (4,)), "prediction and target must have one shape"),
        (lambda: relative_error(X, X, (4,), p=3), "p must be 1 or 2, got 3"),
        (lambda: finetune_groups(MODEL, weight_decay=-1), "weight_decay must not be negative, got -1"),
        (lambda: finetune_groups(torch.nn.ReLU()), "model must have trainable parameters"),
        (lambda: navier_stokes(W[0], [0.0], **PDE), r"vorticity must have shape .*\(8, 8\)"),
        (lambda: navier_stokes(W, [0.0], **PDE, tracer=W[:, :4]), "tracer must have the shape of vorticity"),
        (lambda: navier_stokes(W, [0.0], **PDE, forcing=W[0, :4]), r"forcing must have shape .*\(4, 8\)"),
        (lambda: navier_stokes(W, [1.0, 1.0], **PDE), "times must be increasing"),
        (lambda: navier_stokes(W, [-1.0], **PDE), "times must be increasing and not negative"),
        (
            lambda: navier_stokes(W, [0.0], viscosity=-1, num_steps=1),
            "viscosity must not be negative, got -1",
        ),
        (lambda: navier_stokes(W, [0.0], viscosity=0, num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: navier_stokes(W, [0.0], viscosity=NAN, num_steps=1), "viscosity must not be .* got nan"),
        (lambda: navier_stokes(W, [0.0, NAN], **PDE), r"times must be increasing .* got \[0.0, nan\]"),
        (lambda: navier_stokes(W / 0, [0.0], **PDE), "vorticity, tracer and forcing must be finite"),
        (
            lambda: navier_stokes(WILD, [0.0, 9.0], viscosity=0, num_steps=9),
            "num_steps must be larger .*num_steps=9",
        ),
        (lambda: sine_vorticity(1, 8, modes=4), r"modes must be in \[1, n / 2 = 4.0\), got 4"),
        (lambda: gaussian_vorticity(1, 8, vortices=0), "vortices must be at least 1 .* got 0 and 8"),
        (lambda: rollout(MODEL, X, T, [NAN]), r"steps must be .* got \[nan\]"),
        (lambda: ScOTConfig.tiny(mlp_ratio=0), "mlp_ratio must leave a hidden width .* got 0"),
        (lambda: ScOTConfig.tiny(layer_norm_eps=NAN), "layer_norm_eps must be positive, got nan"),
        (lambda: All2AllDataset(TRAJECTORIES, [0.0, 1.0, INF]), "times must be 3 increasing"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, time_scale=NAN), "time_scale must be positive, got nan"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, [NAN]), r"mean must be finite, got \[nan\]"),
        (lambda: All2AllDataset(TRAJECTORIES, TIMES, std=[INF]), r"std must be finite, got \[inf\]"),
        (
            lambda: convert_state_dict({"a": W, "module.a": W}),
            r"state_dict must name each weight once, .* got \['a', 'module.a'\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MODEL(X.double(), T),
            "x must be of the dtype of the weights, torch.float32, got torch.float64",
        ),
        (lambda: MODEL(X.long(), T), "x must be of the dtype of the weights, .* got torch.int64"),
        (lambda: MODEL(X, T.to(torch.complex64)), "t must be real, got torch.complex64"),
        (lambda: fourier_resize(X.long(), 4), "x must be real and floating, got torch.int64"),
        (
            lambda: fourier_resize(X.to(torch.complex64), 4),
            "x must be real and floating, got torch.complex64",
        ),
        (lambda: group_loss(X.to(torch.complex64), X, (4,)), "prediction and target must be real"),
        (lambda: All2AllDataset(TRAJECTORIES.to(torch.complex64), TIMES), "trajectories must be real"),
        (
            lambda: navier_stokes(W.long(), [0.0], **PDE),
            "vorticity must be float32 or float64, got torch.int64",
        ),
        (lambda: ScOTConfig.tiny(embed_dim=24.0), r"embed_dim must be whole, got 24\.0"),
        (lambda: ScOTConfig.tiny(depths=(2, 1.5)), r"depths must be whole, got \(2, 1\.5\)"),
    ],
)
def test_a_wrong_kind_of_number_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_an_index_beyond_the_end_stops_an_iteration():
    data = All2AllDataset(TRAJECTORIES, TIMES)
    assert len(list(data)) == len(data) == 12
    with pytest.raises(IndexError, match="index must be below 12, got 12"):
        data[12]
