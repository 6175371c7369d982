"""The state on a fixed grid, and what is said when it cannot be trusted."""

import math
import warnings

import numpy as np
import pytest
import torch

from lpinn import (
    EulerianNet,
    FourierState,
    LagrangianNet,
    exact_convection_diffusion,
    hessian_top,
    invert_map,
    n_width,
    on_grid,
    periodic_penalty,
    spectral_burgers,
    tanh_mlp,
    to_grid,
)

LENGTH = 2 * math.pi


def axis(size, length=LENGTH):
    return torch.arange(size, dtype=torch.float64) * (length / size)


def lattice(n1, n2, lengths):
    return torch.cartesian_prod(axis(n1, lengths[0]), axis(n2, lengths[1])).reshape(n1, n2, 2)


def sheared(x0, t):
    return torch.cat([x0[:, :1] + t * (10 + 8 * torch.sin(x0[:, 1:])), x0[:, 1:] - 3 * t], dim=1)


def test_a_lattice_that_is_moved_as_a_whole_gives_its_values_back():
    # A function linear on every cell comes out exactly; turned by whole periods it is the same.
    lengths = [2.0, 3.0]
    x = lattice(6, 5, lengths)
    u = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([[0.3, -7.1], [12.4, 0.9]], dtype=torch.float64)
    found = to_grid(x + shift[:, None, None], u, (x + shift[0]).reshape(-1, 2), lengths)
    torch.testing.assert_close(found[0], u[0].flatten())
    found = to_grid(x + shift[1], u[1], (x + shift[1]).reshape(-1, 2), lengths)
    torch.testing.assert_close(found, u[1].flatten())
    # Between two corners of a cell lies the mean, on both sides of the seam.
    middle = (x[-1, -1] + torch.tensor([2.0 / 12, 0.0]) + shift[1])[None]
    found = to_grid(x + shift[1], u[1], middle, lengths)
    torch.testing.assert_close(found[0], (u[1, -1, -1] + u[1, 0, -1]) / 2)


def test_the_plane_converges_to_the_exact_state_of_a_shear_flow():
    grid = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * LENGTH
    t = torch.tensor([0.0, 0.7], dtype=torch.float64)

    def net(x0, t):
        return sheared(x0, t), torch.cat([torch.sin(x0[:, :1]), torch.cos(x0[:, 1:])], dim=1)

    # The characteristics run backwards to y0 = y + 3 t, x0 = x - t (10 + 8 sin y0).
    y0 = grid[:, 1] + 3 * t[:, None]
    expected = torch.stack(
        [torch.sin(grid[:, 0] - t[:, None] * (10 + 8 * torch.sin(y0))), torch.cos(y0)], dim=-1
    )
    errors = [
        (on_grid(net, grid, t, [LENGTH, LENGTH], num_labels=size) - expected).abs().max().item()
        for size in (20, 40)
    ]
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > 2.5  # second order


def test_folded_triangles_are_told():
    x = lattice(12, 12, [LENGTH, LENGTH])
    folded = x.clone()
    folded[..., 0] += 2 * torch.sin(x[..., 0])  # J = 1 + 2 cos x0 < 0 for a third of the labels
    with pytest.warns(RuntimeWarning, match=r"3\d\.\d% of the cells are folded"):
        to_grid(folded, x[..., 0], x[0], [LENGTH, LENGTH])


def test_the_state_on_a_grid_is_what_four_lines_gave():
    net = LagrangianNet(u0=lambda x: torch.cat([x.sin(), x.cos()], 1), components=2, frame_speed=5.0).double()
    torch.nn.init.zeros_(net.x_net[-1].weight)
    grid, t = axis(17) + 0.1, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    found = on_grid(net, grid, t, num_labels=128)
    assert found.shape == (3, 17, 2)
    assert not found.requires_grad
    labels = axis(128)[:, None]
    for row, time in zip(found, t.tolist(), strict=True):
        x, u = net(labels, torch.full_like(labels, time))
        for column, component in zip(row.T, u.T, strict=True):
            torch.testing.assert_close(column, to_grid(x[:, 0], component, grid, LENGTH).detach())
    pinn = EulerianNet().double()
    states = on_grid(pinn, grid, 0.4)
    torch.testing.assert_close(states[0], pinn(grid[:, None], torch.full((17, 1), 0.4).double()).detach())


def test_labels_start_at_the_origin_of_the_domain():
    # u0 is known on [-1, 1) alone; a rigid move by 3 comes round to where it started from 1 on.
    def u0(x):
        assert ((x >= -1) & (x <= 1)).all()
        return 1 - x.square()

    flat = [tanh_mlp(3, 1, 4, 1) for _ in range(2)]
    for branch in flat:
        torch.nn.init.zeros_(branch[-1].weight)
    net = LagrangianNet(*flat, length=2.0, u0=u0, frame_speed=3.0, origin=-1.0).double()
    grid = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    found = on_grid(net, grid, 1.0)[0, :, 0]
    np.testing.assert_allclose(found, [0.75, 0.0, 0.75], atol=1e-4)
    exact = exact_convection_diffusion(
        lambda x: torch.cos(math.pi * x) * (x.abs() <= 1),
        3.0,
        0.0,
        grid,
        torch.ones(1).double(),
        2.0,
        origin=-1.0,
    )
    torch.testing.assert_close(exact[0], -torch.cos(math.pi * grid))
    shifted = spectral_burgers(lambda x: 5 + torch.sin(x + 1), 0.3, grid, torch.ones(1).double(), origin=-1.0)
    plain = spectral_burgers(lambda x: 5 + torch.sin(x), 0.3, grid + 1, torch.ones(1).double())
    torch.testing.assert_close(shifted, plain)
    state = FourierState(torch.sin(axis(8)[:, None] - 1), origin=-1.0)
    torch.testing.assert_close(state(grid[:, None]), torch.sin(grid[:, None]))
    t = torch.ones(1, 1)
    assert periodic_penalty(lambda x, t: x.square(), 4.0, t, origin=-1.0).item() == pytest.approx(
        (9 - 1) ** 2
    )


def test_inversion_tells_where_it_has_no_answer():
    x, t = axis(20)[:, None], torch.ones(20, 1, dtype=torch.float64)
    with pytest.warns(
        RuntimeWarning, match=r"labels not found, or one of several, for \d+\.\d% of the points"
    ):
        invert_map(lambda x0, t: (x0 + 2 * t * torch.sin(x0), x0), x, t, LENGTH)
    with pytest.warns(RuntimeWarning, match=r"for 100\.0% of the points"):
        invert_map(lambda x0, t: (torch.sin(x0) - 9, x0), x, t, LENGTH)
    with pytest.warns(RuntimeWarning, match="labels not found"):
        invert_map(lambda x0, t: (x0 + 0.9 * t * torch.sin(x0), x0), x, t, LENGTH, num_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert_map(lambda x0, t: (x0 + 0.9 * t * torch.sin(x0), x0), x, t, LENGTH)
        far, now = x.float(), t.float()
        invert_map(lambda x0, t: (x0 + 1e4 * t + 0.5 * torch.sin(x0), x0), far, now, LENGTH)


def test_burgers_warns_when_its_modes_do_not_resolve_the_front():
    x, t = axis(24), torch.tensor([1.2], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = spectral_burgers(torch.sin, 0.05, x, t, num_modes=192)
        good = spectral_burgers(torch.sin, 0.05, x, t, num_modes=128)
    with pytest.warns(RuntimeWarning, match="the solution is not resolved"):
        poor = spectral_burgers(torch.sin, 0.05, x, t, num_modes=48)
    assert (good - fine).abs().max() < 1e-4
    assert (poor - fine).abs().max() > 1e-2


def test_a_front_that_the_series_does_not_resolve_is_told():
    x, t = axis(9), torch.ones(1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="u0 is not resolved"):
        exact_convection_diffusion(lambda x: (x < 3).double(), 1.0, 0.0, x, t)
    samples = (axis(16) < 3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact_convection_diffusion(samples, 1.0, 0.0, x, t)  # samples are the wave itself
        exact_convection_diffusion(torch.zeros_like, 1.0, 0.0, x, t)


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e170])
def test_n_width_at_any_scale(scale):
    matrix = scale * torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    found = n_width(matrix, energy=0.9)
    np.testing.assert_allclose(found.energy, [9 / 14, 13 / 14, 1], rtol=1e-12)
    assert found.rank == 2


def test_n_width_of_complex_snapshots():
    # The imaginary part counts: two modes of energies 9 and 16.
    assert n_width(torch.diag(torch.tensor([3.0 + 0j, 4j]))).energy.tolist() == pytest.approx([16 / 25, 1])


def test_frozen_parameters_do_not_count():
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    module.bias.requires_grad_(False)

    def loss(module):
        return (module.weight.square() * torch.tensor([1.0, 3.0])).sum() + 50 * module.bias.square().sum()

    top = hessian_top(loss, module, k=2, generator=torch.Generator().manual_seed(0))
    assert top.values.tolist() == pytest.approx([6, 2])
    assert top.vectors.shape == (2, 2)
    assert not module.bias.requires_grad
