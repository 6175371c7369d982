"""Decaying turbulence on a periodic square, forecast from one snapshot."""

import itertools

import torch

from armillary.recipes.physics import compare, fit_koopman
from poseidon_lite import All2AllDataset, ScOT, ScOTConfig, group_loss, navier_stokes, sine_vorticity

NUM_TRAIN, NUM_FRESH, NUM_TEST, SNAPSHOTS, SIZE = 64, 16, 16, 11, 32


def figure():
    """Errors over the horizon of both models, and the Koopman eigenvalues with their residuals."""
    torch.manual_seed(0)
    times = torch.linspace(0, 1, SNAPSHOTS)
    count = NUM_TRAIN + NUM_FRESH + NUM_TEST
    flows = navier_stokes(sine_vorticity(count, SIZE, modes=2), times, viscosity=5e-3, num_steps=20).float()
    train, fresh, test = flows.split([NUM_TRAIN, NUM_FRESH, NUM_TEST])

    network = ScOT(ScOTConfig.tiny(in_channels=2, out_channels=2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    data = All2AllDataset(train, times)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=2 * len(loader))
    for x, t, y in itertools.chain(loader, loader):  # twice over all pairs of snapshots
        loss = group_loss(network(x, t), y, groups=(2,))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    network.eval()

    linear = fit_koopman(train, fresh, rank=24)
    verified = fit_koopman(train, fresh, rank=24, max_residual=0.2)
    errors = compare(test, times[1:], linear, network)
    errors["koopman, residual below 0.2"] = compare(test, times[1:], verified, network)["koopman"]
    x = times[1:].tolist()
    residuals = linear.modes.residuals.tolist()
    return {
        "curves": [
            {
                "title": "Error over the horizon, held-out flows",
                "x_label": "lead time",
                "y_label": "median relative error (%)",
                "series": {name: {"x": x, "y": error.tolist()} for name, error in errors.items()},
            },
            {
                "title": "What the Koopman eigenvalues are worth, measured on fresh flows",
                "x_label": "eigenpair, best first",
                "y_label": "residual",
                "series": {"eigenpairs": {"x": list(range(1, len(residuals) + 1)), "y": residuals}},
            },
        ]
    }
