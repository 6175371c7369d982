"""The crop against its definition, written out; schedules and buffer against the papers' and the scripts' figures."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from efficienttrain import (
    Curriculum,
    LowFreqCrop,
    ReplayBuffer,
    Stage,
    greedy_search,
    low_freq_crop,
    plus_plus_search,
    resize_pos_embed,
)


def by_definition(x, h, w):
    """Keep frequencies -b to b - 1 of both axes, scale, transform back, drop the imaginary part; in NumPy."""
    height, width = x.shape[-2:]
    spectrum = np.fft.fft2(x.numpy())
    rows = np.fft.fftfreq(h, 1 / h).astype(int) % height
    columns = np.fft.fftfreq(w, 1 / w).astype(int) % width
    kept = spectrum[..., rows[:, None], columns]
    return torch.from_numpy(np.fft.ifft2(kept).real * (h * w) / (height * width))


def image(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("mode", ["gemm", "fft"])
@pytest.mark.parametrize(
    ("sides", "size"),
    [((28, 28), 20), ((28, 28), 2), ((31, 31), 16), ((24, 37), (10, 30)), ((37, 24), (36, 4)), ((9, 8), (8, 8)),
     ((8, 31), (8, 30)), ((224, 224), 160)],
)  # fmt: skip
def test_the_crop_is_its_definition(mode, sides, size):
    x = image(2, 3, *sides)
    h, w = size if isinstance(size, tuple) else (size, size)
    torch.testing.assert_close(low_freq_crop(x, size, mode=mode), by_definition(x, h, w), rtol=0, atol=1e-12)


def test_a_sum_over_every_frequency_says_the_same():
    x = image(1, 6, 7)
    sides, new = (6, 7), (4, 2)
    expected = torch.zeros(new, dtype=torch.complex128)
    for i in range(4):
        for j in range(2):
            for k in range(-2, 2):
                for m in range(-1, 1):
                    for h in range(6):
                        for w in range(7):
                            turn = k * (i / new[0] - h / sides[0]) + m * (j / new[1] - w / sides[1])
                            expected[i, j] += (
                                x[0, h, w]
                                * complex(math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn))
                                / 42
                            )
    torch.testing.assert_close(low_freq_crop(x, new)[0], expected.real, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["gemm", "fft"])
def test_an_odd_side_may_stay(mode):
    x = image(2, 1, 15, 28)
    columns = by_definition(x.reshape(2, 15, 1, 28).expand(2, 15, 2, 28), 2, 20)[:, :, 0]
    torch.testing.assert_close(low_freq_crop(x, (15, 20), mode=mode)[:, 0], columns, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["gemm", "fft"])
def test_float32_images_far_from_zero_are_accurate(mode):
    x = image(2, 3, 64, 64) + 1e4
    found = low_freq_crop(x.float(), 40, mode=mode)
    torch.testing.assert_close(found.double(), by_definition(x.float().double(), 40, 40), rtol=3e-6, atol=0)


def test_resize_is_torchs_antialiased_bicubic():
    x = image(2, 3, 40, 30, dtype=torch.float32)
    expected = interpolate(x, (20, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(low_freq_crop(x, (20, 16), mode="resize"), expected)
    torch.testing.assert_close(low_freq_crop(x[0], (20, 16), mode="resize"), expected[0])


@pytest.mark.parametrize("mode", ["gemm", "fft", "resize"])
def test_uint8_is_the_rounded_and_clamped_float_crop(mode):
    x = (
        torch.randint(0, 2, (2, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        * 255
    )
    exact = low_freq_crop(x.double(), 10, mode=mode)
    assert exact.min() < 0 or exact.max() > 255
    found = low_freq_crop(x, 10, mode=mode)
    assert found.dtype == torch.uint8
    assert (found.double() - exact.clamp(0, 255)).abs().max() < 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["gemm", "fft", "resize"])
def test_half_precision_is_computed_in_float32(dtype, mode):
    x = image(2, 3, 32, 32, dtype=dtype)
    found = low_freq_crop(x, 20, mode=mode)
    assert torch.equal(found, low_freq_crop(x.float(), 20, mode=mode).to(dtype))
    module = LowFreqCrop(20, mode).to(dtype)
    assert torch.equal(module(x), found)
    assert torch.equal(module.half()(x), found)


@pytest.mark.parametrize("mode", ["gemm", "fft"])
def test_autocast_changes_nothing(mode):
    x = image(2, 3, 32, 32, dtype=torch.float32)
    expected = low_freq_crop(x, 20, mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low_freq_crop(x, 20, mode=mode), expected)


@pytest.mark.parametrize("mode", ["gemm", "fft", "resize"])
def test_channels_last_stays_and_says_the_same(mode):
    x = image(2, 3, 24, 32, dtype=torch.float32)
    expected = low_freq_crop(x, (16, 20), mode=mode)
    found = low_freq_crop(x.to(memory_format=torch.channels_last), (16, 20), mode=mode)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_gradients_are_those_of_a_linear_map():
    x = image(1, 6, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: low_freq_crop(x, (4, 6)), x)
    assert torch.autograd.gradcheck(lambda x: low_freq_crop(x, (4, 6), mode="fft"), x)


def test_one_bad_image_spoils_itself_only():
    x = image(3, 1, 12, 12)
    clean = low_freq_crop(x, 8)
    x[1, 0, 3, 4] = math.nan
    found = low_freq_crop(x, 8)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_empty_batches_pass():
    assert low_freq_crop(torch.zeros(0, 3, 28, 28), 20).shape == (0, 3, 20, 20)


def test_the_result_goes_where_it_is_wanted():
    x, out = image(2, 3, 28, 28), torch.empty(2, 3, 20, 20, dtype=torch.float64)
    assert low_freq_crop(x, 20, out=out) is out
    assert torch.equal(out, low_freq_crop(x, 20))


def test_the_module_is_the_function_and_keeps_its_matrices():
    module, x = LowFreqCrop(20), image(2, 3, 28, 30, dtype=torch.float32)
    with pytest.raises(ValueError, match="pair"):
        module(x)
    square = x[..., :28]
    assert torch.equal(module(square), low_freq_crop(square, 20))
    assert len(module._operators) == 1  # one for both axes
    kept = module._operators.copy()
    module(square)
    assert all(module._operators[key] is kept[key] for key in kept)
    assert torch.equal(module.set_size((12, 16))(x), low_freq_crop(x, (12, 16)))
    assert module.state_dict() == {}


def test_the_module_may_be_built_inside_of_inference_mode():
    x = image(2, 3, 28, 28)
    module = LowFreqCrop(20)
    with torch.inference_mode():
        module(x)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None


# --- schedules -------------------------------------------------------------------------------------


def test_the_schedules_are_the_official_ones():
    v1, plus, deit = Curriculum.v1(), Curriculum.plus_plus(), Curriculum.plus_plus(family="deit")
    convnext = Curriculum.plus_plus(family="convnext")
    assert [stage.size for stage in v1.stages] == [160, 160, 160, 192, 224]
    assert [stage.magnitude for stage in v1.stages] == pytest.approx([1, 3, 5, 7, 9])
    assert [stage.size for stage in plus.stages] == [96] * 2 + [160] * 4 + [224] * 4
    assert [stage.size for stage in deit.stages] == [96] * 2 + [160] * 4 + [192] * 2 + [224] * 2
    assert [stage.size for stage in convnext.stages] == [160] * 6 + [224] * 4
    assert [stage.magnitude for stage in plus.stages] == pytest.approx(list(range(10)))
    replayed = Curriculum.plus_plus(replay=True).stages
    assert [stage.replay for stage in replayed] == [4] * 2 + [2] * 4 + [1] * 4
    assert [stage.buffer_batches for stage in replayed] == [1920] * 2 + [256] * 4 + [0] * 4


@pytest.mark.parametrize("replay", [False, True])
def test_epochs_are_those_of_the_official_script(replay):
    curriculum = Curriculum.plus_plus(replay=replay)
    for index, found in enumerate(curriculum.epochs(200)):
        times = [4, 4, 2, 2, 2, 2, 1, 1, 1, 1][index] if replay else 1
        size = [96, 96, 160, 160, 160, 160, 224, 224, 224, 224][index]
        run = Fraction(200 * 224**2, size**2 * times).__floor__()
        first, last = run * index // 10, run * (index + 1) // 10
        assert found.num_epochs == last - first
        assert found.lr_fractions == pytest.approx((first / run, last / run))
    # As a user's log has it: stage 0 ends after 108 of 1088 epochs.
    assert Curriculum.plus_plus().epochs(200)[0].lr_fractions[1] == pytest.approx(108 / 1088)


def test_v1_epochs_share_one_schedule():
    found = Curriculum.v1().epochs(300)
    ends = [fraction for entry in found for fraction in entry.lr_fractions]
    assert ends == pytest.approx([0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1])
    assert sum(entry.num_epochs for entry in Curriculum.v1().epochs(7)) == 7


def test_costs_by_hand():
    assert Curriculum.v1().cost() == pytest.approx((3 * 160**2 + 192**2 + 224**2) / (5 * 224**2))
    per_compute = 0.2 * (224 / 96) ** 2 + 0.4 * (224 / 160) ** 2 + 0.4
    assert Curriculum.plus_plus().speedup() == pytest.approx(per_compute)
    uneven = Curriculum((Stage(0, 0.25, 10, 0), Stage(0.25, 1, 20, 0)), 20)
    assert uneven.cost() == pytest.approx(0.25 / 4 + 0.75)


def test_stages_are_found_by_fraction():
    curriculum = Curriculum.v1()
    at = [curriculum.at(fraction).magnitude for fraction in (0, 0.19, 0.2, 0.6, 0.8, 0.99, 1)]
    assert at == pytest.approx([1, 1, 3, 7, 9, 9, 9])
    assert curriculum.at(3 * 0.2).size == 192
    linear = Curriculum.v1(magnitude="linear")
    assert [linear.at(fraction).magnitude for fraction in (0, 0.5, 1)] == pytest.approx([0, 4.5, 9])
    assert linear.at(0.5).size == 160


@pytest.mark.parametrize(
    ("final", "multiple", "sizes"),
    [(28, 2, [20, 20, 20, 24, 28]), (32, 2, [22, 22, 22, 28, 32]), (384, 16, [272, 272, 272, 336, 384]),
     (98, 7, [70, 70, 70, 84, 98]), (33, 2, [24, 24, 24, 28, 33])],
)  # fmt: skip
def test_other_sizes_keep_the_ratios(final, multiple, sizes):
    assert [stage.size for stage in Curriculum.v1(final, multiple_of=multiple).stages] == sizes


def test_other_images_keep_the_share():
    curriculum = Curriculum.v1(224, multiple_of=16)
    assert curriculum.crop_size(curriculum.stages[0], (448, 301)) == (320, 208)
    assert curriculum.crop_size(curriculum.stages[-1], (225, 301)) == (225, 301)
    assert curriculum.crop_size(curriculum.stages[0], 224) == (160, 160)


# --- buffer, embeddings, searches ------------------------------------------------------------------


def test_the_buffer_returns_the_fresh_batch_and_what_it_kept():
    buffer = ReplayBuffer(2, split=4, generator=torch.Generator().manual_seed(0))
    seen = []
    for step in range(4):
        x = torch.full((8, 1, 2, 2), float(step)) + torch.arange(8.0).view(8, 1, 1, 1) / 10
        y = torch.arange(8) + 10 * step
        images, labels = buffer.mix(x, y, 3)
        assert images.shape == (24, 1, 2, 2)
        assert torch.equal(images[:8], x)
        assert torch.equal(labels[:8], y)
        # Every image still has its own label, whole pieces of two stay together, and none is older than the queue.
        value = (labels // 10) + (labels % 10) / 10
        torch.testing.assert_close(images[:, 0, 0, 0], value.float())
        assert torch.equal(labels[8::2] + 1, labels[9::2])
        assert (labels // 10).min() >= max(step - 1, 0)
        seen += labels[8:].tolist()
        assert len(buffer) == min(4 * (step + 1), 8)
    assert len(set(seen)) < len(seen)  # with replacement
    assert any(label // 10 != max(seen) // 10 for label in seen[-16:])  # older batches come back


def test_pieces_of_unequal_length_make_batches_of_one_size():
    buffer = ReplayBuffer(3, split=4, generator=torch.Generator().manual_seed(0))
    for count in (10, 7, 3, 1):
        images, labels = buffer.mix(torch.zeros(count, 2), torch.zeros(count), 4)
        assert len(images) == len(labels) == 4 * count


def test_the_buffer_copies_and_stores_in_half():
    buffer = ReplayBuffer(1, split=2, dtype=torch.float16)
    x = torch.full((2, 1), 1 / 3)
    images, _ = buffer.mix(x, torch.zeros(2), 2)
    assert images.dtype == torch.float32
    assert torch.equal(images[:2], x)
    assert torch.equal(images[2:], x.half().float())
    plain = ReplayBuffer(2, split=1, generator=torch.Generator().manual_seed(0))
    x, y = torch.full((2, 1), 7.0), torch.full((2,), 7.0)
    plain.mix(x, y, 1)
    x.zero_(), y.zero_()  # as mixup does, in place
    images, labels = plain.mix(torch.ones(2, 1), torch.ones(2), 9)
    assert set(images.flatten().tolist()) == set(labels.tolist()) == {1.0, 7.0}


def test_images_of_another_size_empty_the_buffer():
    buffer = ReplayBuffer(4, split=2)
    buffer.mix(torch.zeros(2, 3, 8, 8), torch.zeros(2), 2)
    assert buffer.mix(torch.ones(2, 3, 4, 4), torch.ones(2), 2)[1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_embeddings_are_resized_as_images(mode):
    embedding = image(1, 2 + 6 * 4, 5)
    options = {} if mode == "nearest" else {"align_corners": False}
    grid = embedding[0, 2:].T.reshape(1, 5, 6, 4)
    expected = interpolate(grid, (3, 7), mode=mode, **options)[0].reshape(5, 21).T
    found = resize_pos_embed(embedding, (6, 4), (3, 7), prefix=2, mode=mode)
    torch.testing.assert_close(found[0, 2:], expected)
    assert torch.equal(found[:, :2], embedding[:, :2])
    half = resize_pos_embed(embedding.bfloat16(), (6, 4), (3, 7), prefix=2)
    assert half.dtype == torch.bfloat16


def test_greedy_search_by_hand():
    asked = []

    def evaluate(sizes):
        asked.append(sizes)
        return {(8, 32, 32): 0.4, (16, 32, 32): 0.5, (16, 16, 32): 0.4, (16, 16, 16): 1.0}[sizes]

    found = greedy_search(evaluate, [32, 8, 16], 3, baseline=0.75, tolerance=0.25)
    assert found.sizes == (16, 32, 32)
    assert found.score == 0.5
    assert asked == [(8, 32, 32), (16, 32, 32), (16, 16, 32)] == list(found.evaluated)


def test_greedy_search_falls_back_to_the_baseline():
    found = greedy_search(lambda sizes: math.nan, [8, 32], 2, baseline=0.8)
    assert (found.sizes, found.score) == ((32, 32), 0.8)


def test_plus_plus_search_by_hand():
    scores = {(8,): 0.5, (16,): 0.7, (32,): 0.7, (16, 16): 0.1, (16, 32): math.inf}
    with pytest.raises(KeyError):
        plus_plus_search(scores.__getitem__, [8, 16, 32], 3)
    found = plus_plus_search(scores.__getitem__, [8, 16, 32], 2)
    assert found.sizes == (16, 16)  # ties go to the smaller, infinity never wins, no size falls
    assert found.score == 0.1
    assert set(found.evaluated) == set(scores)
