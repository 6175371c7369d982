import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from efficienttrain import Curriculum, CurriculumBatches, Stage, greedy_search, low_freq_crop

MODES = st.sampled_from(["gemm", "fft"])


@st.composite
def crops(draw):
    """Images of any sides, some far from zero or tiny, and a size that fits."""
    height, width = draw(st.integers(4, 33)), draw(st.integers(4, 33))
    h, w = 2 * draw(st.integers(1, height // 2)), 2 * draw(st.integers(1, width // 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
    scale, offset = draw(st.sampled_from([(1, 0), (1e-150, 0), (1e150, 0), (1, 1e6)]))
    return x * scale + offset, (h, w), scale + offset


def close(found, expected, scale=1.0):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * max(scale, float(expected.abs().max())))


@given(crops(), MODES)
def test_the_mean_is_kept_and_modes_agree(crop, mode):
    x, size, scale = crop
    y = low_freq_crop(x, size, mode=mode)
    assert y.shape == (2, 3, *size)
    close(y.mean((-2, -1)), x.mean((-2, -1)), scale)
    close(y, low_freq_crop(x, size), scale)
    constant = torch.full_like(x, 2.5 * scale)
    close(low_freq_crop(constant, size, mode=mode), constant[..., : size[0], : size[1]], scale)


@given(crops(), MODES)
def test_energy_does_not_grow(crop, mode):
    x, size, scale = crop
    x = x / scale
    energy = low_freq_crop(x, size, mode=mode).square().mean((-2, -1))
    assert (energy <= x.square().mean((-2, -1)) * (1 + 1e-9)).all()


@given(crops(), MODES)
def test_the_crop_is_linear_and_commutes_with_transposing_and_with_channels(crop, mode):
    x, size, scale = crop
    y = low_freq_crop(x, size, mode=mode)
    close(low_freq_crop(x[:1] - 3 * x[1:], size, mode=mode), y[:1] - 3 * y[1:], scale)
    close(low_freq_crop(x.mT, size[::-1], mode=mode), y.mT, scale)
    close(low_freq_crop(x[:, [2, 0, 1]], size, mode=mode), y[:, [2, 0, 1]], scale)


@given(crops(), MODES, st.data())
def test_two_crops_are_one(crop, mode, data):
    x, size, scale = crop
    assume(min(size) >= 4)
    smaller = tuple(2 * data.draw(st.integers(1, side // 2 - 1)) for side in size)
    twice = low_freq_crop(low_freq_crop(x, size, mode=mode), smaller, mode=mode)
    close(twice, low_freq_crop(x, smaller, mode=mode), scale)


@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 1000), MODES)
def test_band_limited_images_are_subsampled(half, times, seed, mode):
    size = 2 * half
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(1, 2 * half - 1, 2 * half - 1, generator=generator, dtype=torch.float64)
    spectrum = torch.zeros(1, times * size, times * size, dtype=torch.complex128)
    wave = torch.arange(1 - half, half)
    spectrum[:, wave[:, None], wave] = waves.to(torch.complex128)
    x = torch.fft.ifft2(spectrum).real  # real, with frequencies below b only
    y = low_freq_crop(x, size, mode=mode)
    close(y, x[:, ::times, ::times], 1e-2)


@given(
    st.lists(st.sampled_from([8, 12, 16, 24, 32]), min_size=1, max_size=6).map(sorted),
    st.integers(200, 5000),
    st.sampled_from(["step", "compute"]),
)
def test_stages_share_the_budget(sizes, total, by):
    curriculum = Curriculum.from_sizes(sizes, 32, by=by)
    steps = curriculum.steps(total)
    if by == "step":
        assert sum(steps) == total
        assert max(steps) - min(steps) <= 1
    else:
        compute = [count * (size / 32) ** 2 for count, size in zip(steps, sizes, strict=True)]
        # Counts are whole: a stage is at most two steps, of a cost of one at most, from its share.
        assert all(abs(part - total / len(sizes)) <= 2 for part in compute)
    batches = CurriculumBatches([(torch.zeros(1, 1, 32, 32), torch.zeros(1))], curriculum, total, crop=None)
    assert len(batches) == sum(steps)


@given(st.integers(1, 7), st.floats(0, 1))
def test_every_fraction_has_its_stage(count, fraction):
    curriculum = Curriculum.from_sizes([32] * count, 32, list(range(count)))
    stage = curriculum.at(fraction)
    assert stage.start - 1e-8 <= fraction <= stage.end
    assert curriculum.at(stage.start) == stage


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4), st.integers(1, 4))
def test_greedy_search_stays_within_its_budget_and_never_falls(noise, num_stages):
    def evaluate(sizes):
        return noise[sum(sizes) % len(noise)]

    found = greedy_search(evaluate, [8, 16, 24, 32], num_stages, baseline=0.0)
    assert list(found.sizes) == sorted(found.sizes)
    assert len(found.evaluated) <= num_stages * 3
    assert found.score >= 0
    assert Curriculum.from_sizes(found.sizes, 32).stages[-1] == Stage(
        (num_stages - 1) / num_stages, 1.0, found.sizes[-1], 9
    )
