"""The crop against what a competent user would pick instead: a group is exactly two cases on the same input."""

import warnings
from functools import cache

import pytest
import torch

from efficienttrain import LowFreqCrop

both = pytest.mark.parametrize("case", ["ours", "peer"])
SIDE = 224


def images(count, height=SIDE, width=SIDE):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def fourier_crop(x, size):
    """The lines that anyone writes with torch.fft; the official code's way, too, in fewer copies."""
    height, width = x.shape[-2:]
    h, w = size
    rows = torch.fft.fftfreq(h, 1 / h).long() % height
    columns = torch.fft.fftfreq(w, 1 / w).long() % width
    kept = torch.fft.fft2(x)[..., rows[:, None], columns]
    return torch.fft.ifft2(kept).real * (h * w / (height * width))


def official_crop(x, size):
    """Four corners copied into an empty spectrum, which is scaled and transformed back."""
    h, w = size[0] // 2, size[1] // 2
    spectrum = torch.fft.fft2(x)
    kept = torch.empty(*x.shape[:-2], *size, dtype=spectrum.dtype)
    for rows in (slice(h), slice(-h, None)):
        for columns in (slice(w), slice(-w, None)):
            kept[..., rows, columns] = spectrum[..., rows, columns]
    kept = kept * (size[0] * size[1] / (x.shape[-2] * x.shape[-1]))
    return torch.fft.ifft2(kept).real


PEERS = {
    fourier_crop: "fft2, index, ifft2",
    official_crop: "the official code's way: fft2, four copied corners, ifft2",
}


@cache
def compiled(run):
    return torch.compile(run, dynamic=False)


def compare(
    benchmark, case, peer, size, *, count=32, sides=(SIDE, SIDE), mode="gemm", compile=False, rounds=15
):
    size = size if isinstance(size, tuple) else (size, size)
    x, crop = images(count, *sides), LowFreqCrop(size, mode)
    torch.testing.assert_close(crop(x), peer(x, size), rtol=0, atol=1e-5)
    ours = compiled(crop.prepare(sides)) if compile else crop
    theirs = compiled(peer) if compile else peer
    what = f"{count} x 3 x {sides[0]} x {sides[1]} to {size[0]} x {size[1]}, float32"
    benchmark.extra_info.update(case=case, peer=PEERS[peer], size=what)
    run = {"ours": lambda: ours(x), "peer": lambda: theirs(x, size)}[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, of complex numbers
        run()
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="crop to 160")
def test_crop(benchmark, case):
    compare(benchmark, case, fourier_crop, 160)


@both
@pytest.mark.benchmark(group="crop to 96")
def test_small_crop(benchmark, case):
    compare(benchmark, case, fourier_crop, 96)


@both
@pytest.mark.benchmark(group="crop to 160, mode='fft'")
def test_crop_by_real_transforms(benchmark, case):
    compare(benchmark, case, fourier_crop, 160, mode="fft")


@both
@pytest.mark.benchmark(group="crop of odd, unequal sides")
def test_odd_sides(benchmark, case):
    compare(benchmark, case, fourier_crop, (160, 190), sides=(223, 263))


@both
@pytest.mark.benchmark(group="crop of one image")
def test_one_image(benchmark, case):
    compare(benchmark, case, fourier_crop, 160, count=1, rounds=50)


@both
@pytest.mark.benchmark(group="crop to 160, both compiled")
def test_compiled(benchmark, case):
    compare(benchmark, case, fourier_crop, 160, compile=True)


@both
@pytest.mark.benchmark(group="compiled crop to 160, against itself without torch.compile")
def test_compiling(benchmark, case):
    crop, x = LowFreqCrop(160).prepare(SIDE), images(32)
    run = {"ours": compiled(crop), "peer": crop}[case]
    torch.testing.assert_close(run(x), crop(x))
    size = f"32 x 3 x {SIDE} x {SIDE} to 160 x 160, float32"
    benchmark.extra_info.update(case=case, peer="the same, not compiled", size=size)
    benchmark.pedantic(run, (x,), rounds=15, warmup_rounds=2)


@both
@pytest.mark.benchmark(group="crop to 160, the official way")
def test_official(benchmark, case):
    compare(benchmark, case, official_crop, 160)


@both
@pytest.mark.benchmark(group="crop to 96, the official way")
def test_small_official(benchmark, case):
    compare(benchmark, case, official_crop, 96)
