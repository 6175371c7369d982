"""The solver against flows that are known in closed form, in float64."""

import math

import pytest
import torch

from poseidon_lite import gaussian_vorticity, navier_stokes, sine_vorticity

TAU = 2 * math.pi


def grid(n):
    place = torch.arange(n, dtype=torch.float64) / n
    return torch.meshgrid(place, place, indexing="ij")


def test_taylor_green_vortices_decay_as_the_heat_equation_says():
    x, y = grid(24)
    waves = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1, 1)
    psi = torch.sin(TAU * waves * x) * torch.sin(TAU * waves * y) / (TAU * waves)
    rate = 2 * (TAU * waves) ** 2
    times, viscosity = [0.0, 0.3, 1.0], 1e-2
    found = navier_stokes(rate * psi, times, viscosity=viscosity, num_steps=30)
    u = torch.sin(TAU * waves * x) * torch.cos(TAU * waves * y)
    v = -torch.cos(TAU * waves * x) * torch.sin(TAU * waves * y)
    for index, time in enumerate(times):
        exact = torch.stack([u, v], dim=1) * torch.exp(-viscosity * rate * time).unsqueeze(1)
        torch.testing.assert_close(found[:, index], exact, rtol=0, atol=1e-11)


def test_a_steady_shear_carries_a_tracer_along():
    x, y = grid(48)
    u = torch.sin(TAU * y)
    vorticity = -TAU * torch.cos(TAU * y)
    found = navier_stokes(
        vorticity[None], [0.5], viscosity=0.0, num_steps=200, tracer=torch.sin(TAU * x)[None]
    )
    torch.testing.assert_close(found[0, 0, 0], u, rtol=0, atol=1e-11)
    torch.testing.assert_close(found[0, 0, 2], torch.sin(TAU * (x - 0.5 * u)), rtol=0, atol=1e-6)


def test_a_tracer_in_fluid_at_rest_diffuses():
    x, y = grid(16)
    tracer = 2 + torch.cos(TAU * (x + 2 * y))
    found = navier_stokes(
        torch.zeros(1, 16, 16, dtype=torch.float64), [0.4], viscosity=1.0, num_steps=1, tracer=tracer[None],
        diffusivity=0.01,
    )  # fmt: skip
    exact = 2 + torch.cos(TAU * (x + 2 * y)) * math.exp(-0.01 * 5 * TAU**2 * 0.4)
    torch.testing.assert_close(found[0, 0, 2], exact, rtol=0, atol=1e-12)


def test_a_body_force_drives_fluid_from_rest_to_the_laminar_kolmogorov_flow():
    _, y = grid(16)
    viscosity, time = 0.05, 0.7
    force = -TAU * torch.cos(TAU * y)  # curl of (sin 2 pi y, 0)
    found = navier_stokes(
        torch.zeros(2, 16, 16, dtype=torch.float64), [time], viscosity=viscosity, num_steps=60, forcing=force
    )
    rate = viscosity * TAU**2
    exact = torch.sin(TAU * y) * (1 - math.exp(-rate * time)) / rate
    torch.testing.assert_close(found[:, 0, 0], exact.expand(2, -1, -1), rtol=0, atol=1e-8)
    assert found[:, 0, 1].abs().max() < 1e-12


def test_without_viscosity_energy_and_enstrophy_stay_and_the_error_falls_with_the_fourth_power_of_the_step():
    generator = torch.Generator().manual_seed(0)
    vorticity = sine_vorticity(3, 32, modes=2, generator=generator)
    vorticity = torch.cat([vorticity, gaussian_vorticity(3, 32, generator=generator)])
    modes = torch.fft.fft2(vorticity)
    wave = torch.fft.fftfreq(32, 1 / 32)
    modes[:, (wave[:, None].abs() >= 32 / 3) | (wave[None, :].abs() >= 32 / 3)] = 0
    vorticity = torch.fft.ifft2(modes).real
    runs = {n: navier_stokes(vorticity, [0.0, 0.2], viscosity=0.0, num_steps=n) for n in (20, 40, 160)}
    energy = runs[160].square().sum(2).mean((2, 3))
    torch.testing.assert_close(energy[:, 1], energy[:, 0], rtol=1e-7, atol=0)
    gradients = torch.fft.fft2(runs[160])
    curl = 1j * TAU * (wave[:, None] * gradients[:, :, 1] - wave[None, :] * gradients[:, :, 0])
    enstrophy = curl.abs().square().mean((2, 3))
    torch.testing.assert_close(enstrophy[:, 1], enstrophy[:, 0], rtol=1e-6, atol=0)
    coarse, fine = ((runs[n] - runs[160]).abs().max() for n in (20, 40))
    assert 11 < coarse / fine < 22


@pytest.mark.parametrize("draw", [sine_vorticity, gaussian_vorticity])
def test_initial_data_are_divergence_free_reproducible_and_of_unit_speed(draw):
    first, again = (draw(4, 32, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.mean((1, 2)).abs().max() < 1e-9
    velocity = navier_stokes(first, [0.0], viscosity=0.0, num_steps=1)[:, 0]
    torch.testing.assert_close(velocity.square().sum(1).mean((1, 2)), torch.ones(4, dtype=torch.float64))
    wave = torch.fft.fftfreq(32, 1 / 32)
    wave[16] = 0
    modes = torch.fft.fft2(velocity)
    assert (wave[:, None] * modes[:, 0] + wave[None, :] * modes[:, 1]).abs().max() < 1e-8


def test_a_batch_is_its_members():
    vorticity = gaussian_vorticity(3, 16, generator=torch.Generator().manual_seed(1))
    options = {"viscosity": 1e-2, "num_steps": 6}
    together = navier_stokes(vorticity, [0.1, 0.2], **options)
    torch.testing.assert_close(together[1:2], navier_stokes(vorticity[1:2], [0.1, 0.2], **options))
