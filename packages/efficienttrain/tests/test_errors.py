"""Each bad input raises an error that names the argument and what it was."""

import math
import re

import pytest
import torch

from efficienttrain import (
    Curriculum,
    CurriculumBatches,
    LowFreqCrop,
    MagnitudeTransform,
    ReplayBuffer,
    Stage,
    greedy_search,
    low_freq_crop,
    magnitude_to_timm,
    plus_plus_search,
    resize_pos_embed,
)

X = torch.zeros(2, 3, 28, 28)
WIDE = torch.zeros(2, 3, 28, 30)
HALVES = (Stage(0, 0.5, 14, 0), Stage(0.5, 1, 28, 9))
V1 = Curriculum.v1(28)
STATE = CurriculumBatches([X], V1, 10).state_dict()
REPLAYED = Curriculum((Stage(0, 1, 28, 0, replay=2, buffer_batches=1),), 28)


def loaded(state):
    CurriculumBatches([X], V1, 10).load_state_dict(state)


def first(loader, **options):
    return next(iter(CurriculumBatches(loader, V1, 10, **options)))


CASES = [
    (lambda: low_freq_crop(X.long(), 20), TypeError, "x must be floating point or uint8, got torch.int64"),
    (lambda: low_freq_crop(X.to(torch.complex64), 20), TypeError, "got torch.complex64"),
    (lambda: low_freq_crop([1], 20), TypeError, "x must be a tensor of images, got list"),
    (lambda: low_freq_crop(X[0, 0], 20), ValueError, "got (28, 28)"),
    (lambda: low_freq_crop(X, math.nan), TypeError, "size must be an integer, got nan"),
    (lambda: low_freq_crop(X, 20.0), TypeError, "size must be an integer, got 20.0"),
    (lambda: low_freq_crop(X, True), TypeError, "size must be an integer, got True"),
    (lambda: low_freq_crop(X, 1), ValueError, "size must be at least 2, got 1"),
    (lambda: low_freq_crop(X, 21), ValueError, "size must be even, got 21; round_band=True"),
    (lambda: low_freq_crop(X, (20, 13)), ValueError, "size must be even, got (20, 13)"),
    (lambda: low_freq_crop(X, 30), ValueError, "size must be at most that of the images, 28 x 28, got 30"),
    (lambda: low_freq_crop(WIDE, 20), ValueError, "unequal sides, 28 x 30, got 20"),
    (lambda: low_freq_crop(WIDE, (20, 20, 20)), ValueError, "got (20, 20, 20)"),
    (lambda: low_freq_crop(X, 20, mode="dct"), ValueError, "mode must be one of 'gemm', 'fft', 'resize', got 'dct'"),
    (lambda: low_freq_crop(X, 20, out=X), ValueError, "out must be a tensor of (2, 3, 20, 20)"),
    (lambda: low_freq_crop(X, 20, out=3), ValueError, "got int"),
    (lambda: LowFreqCrop(20, "dct"), ValueError, "mode"),
    (lambda: LowFreqCrop(20).set_size(0), ValueError, "size must be at least 2, got 0"),
    (lambda: LowFreqCrop(20).prepare(10), ValueError, "size must be at most that of the images, 10 x 10"),
    (lambda: Stage(0.5, 0.5, 28, 0), ValueError, "0 <= start < end <= 1, got 0.5 and 0.5"),
    (lambda: Stage(0, 1.5, 28, 0), ValueError, "got 0.0 and 1.5"),
    (lambda: Stage(0, math.nan, 28, 0), ValueError, "end must be finite"),
    (lambda: Stage(0, 1, 28.0, 0), TypeError, "size must be an integer, got 28.0"),
    (lambda: Stage(0, 1, 28, -1), ValueError, "magnitude must be at least 0, got -1"),
    (lambda: Stage(0, 1, 28, "9m"), TypeError, "magnitude must be a number, got '9m'"),
    (lambda: Stage(0, 1, 28, 9, replay=0), ValueError, "replay must be at least 1, got 0"),
    (lambda: Stage(0, 1, 28, 9, replay=2), ValueError, "buffer_batches must be at least 1 where replay is 2"),
    (lambda: Curriculum((), 28), ValueError, "stages must hold at least one stage"),
    (lambda: Curriculum(("a",), 28), TypeError, "stages must hold Stage objects, got 'a'"),
    (lambda: Curriculum(HALVES[:1], 28), ValueError, "stages must span 0 to 1, got 0 to 0.5"),
    (lambda: Curriculum((HALVES[0], Stage(0.6, 1, 28, 9)), 28), ValueError, "a gap: 0.5 to 0.6"),
    (lambda: Curriculum((HALVES[0], Stage(0.4, 1, 28, 9)), 28), ValueError, "an overlap: 0.5 to 0.4"),
    (lambda: Curriculum(HALVES, 20), ValueError, "even sizes of at most 20 (final_size), got 28"),
    (lambda: Curriculum.from_sizes([13, 28], 28), ValueError, "even sizes of at most 28 (final_size), got 13"),
    (lambda: Curriculum.from_sizes([28, 20], 28), ValueError, "allow_decreasing=True, got sizes [28, 20]"),
    (lambda: Curriculum.from_sizes([20, 28], 28, [1]), ValueError, "one for each of 2 sizes, got [1]"),
    (lambda: Curriculum.from_sizes([], 28), ValueError, "at least one stage"),
    (lambda: Curriculum(HALVES, 28, by="time"), ValueError, "by must be one of 'step', 'compute', got 'time'"),
    (lambda: Curriculum(HALVES, 28, magnitude="steep"), ValueError, "magnitude must be one of"),
    (lambda: Curriculum.plus_plus(family="vit"), ValueError, "family must be one of 'default', 'deit',"),
    (lambda: Curriculum.v1(200, multiple_of=16), ValueError, "a multiple of multiple_of, 16, got 200"),
    (lambda: V1.at(1.01), ValueError, "fraction must lie in [0, 1], got 1.01"),
    (lambda: V1.at(-0.01), ValueError, "fraction must lie in [0, 1], got -0.01"),
    (lambda: V1.at(math.nan), ValueError, "fraction must be finite, got nan"),
    (lambda: V1.steps(4), ValueError, "total_steps must leave each stage a step, got 4"),
    (lambda: V1.epochs(0), ValueError, "total_epochs must be at least 1, got 0"),
    (lambda: CurriculumBatches([X], "v1", 10), TypeError, "curriculum must be a Curriculum, got str"),
    (lambda: CurriculumBatches([X], V1, 10.0), TypeError, "total_steps must be an integer"),
    (lambda: CurriculumBatches([X], V1, 10, crop="dct"), ValueError, "crop must be one of"),
    (lambda: first([]), ValueError, "loader must give batches in every epoch, epoch 0 has none"),
    (lambda: list(CurriculumBatches(iter([X]), V1, 10)), ValueError, "epoch 1 has none"),
    (lambda: first([{"image": X}]), ValueError, "image_key must be one of ['image'], got 'pixel_values'"),
    (lambda: first([("x", 1)]), TypeError, "a tensor of images, got str"),
    (lambda: first([()]), TypeError, "a tensor of images, got tuple"),
    (lambda: next(iter(CurriculumBatches([X], REPLAYED, 10))), ValueError, "(images, labels), two tensors"),
    (lambda: loaded({"step": 1}), ValueError, "misses ['batch', 'epoch', 'part', 'schedule']"),
    (lambda: loaded(CurriculumBatches([X], V1, 11).state_dict()), ValueError, "same curriculum and total_steps"),
    (lambda: loaded(STATE | {"step": 11}), ValueError, "at most 10 steps, got 11"),
    (lambda: loaded(STATE | {"step": -1}), ValueError, "step must be at least 0, got -1"),
    (lambda: ReplayBuffer(0), ValueError, "batches must be at least 1, got 0"),
    (lambda: ReplayBuffer(1, dtype=torch.uint8), TypeError, "dtype must be floating point, got torch.uint8"),
    (lambda: ReplayBuffer(1).mix(X, torch.zeros(2), 0), ValueError, "times must be at least 1, got 0"),
    (lambda: ReplayBuffer(1).mix(X, torch.zeros(3), 2), ValueError, "same number of samples, at least 1, got 2 and 3"),
    (lambda: ReplayBuffer(1).mix(X[:0], torch.zeros(0), 2), ValueError, "at least 1, got 0 and 0"),
    (lambda: MagnitudeTransform(3), TypeError, "build must be callable, got 3"),
    (lambda: MagnitudeTransform(abs, -1), ValueError, "magnitude must be at least 0, got -1"),
    (lambda: magnitude_to_timm(math.inf), ValueError, "magnitude must be finite, got inf"),
    (lambda: magnitude_to_timm(-1), ValueError, "magnitude must be at least 0, got -1"),
    (lambda: resize_pos_embed(torch.zeros(1, 10, 4), 3, 2, prefix=0), ValueError, "shape (1, 9, D)"),
    (lambda: resize_pos_embed(torch.zeros(1, 10, 4).long(), 3, 2), TypeError, "got torch.int64"),
    (lambda: resize_pos_embed(torch.zeros(10, 4), 3, 2), ValueError, "got (10, 4)"),
    (lambda: resize_pos_embed(torch.zeros(1, 10, 4), 3, 0), ValueError, "new_hw must be at least 1, got 0"),
    (lambda: resize_pos_embed(torch.zeros(1, 10, 4), 3, 2, mode="lanczos"), ValueError, "mode must be one of"),
    (lambda: greedy_search(len, [], 2, 0.5), ValueError, "candidates must hold at least one size"),
    (lambda: greedy_search(len, [8], 0, 0.5), ValueError, "num_stages must be at least 1, got 0"),
    (lambda: greedy_search(len, [8], 1, math.nan), ValueError, "baseline must be finite, got nan"),
    (lambda: greedy_search(len, [8], 1, 0.5, -0.1), ValueError, "tolerance must be at least 0, got -0.1"),
    (lambda: plus_plus_search(lambda sizes: math.nan, [8], 1), ValueError, "a finite score for some size"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_odd_sizes_are_taken_down_where_that_is_asked_for():
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(low_freq_crop(x, 21, round_band=True), low_freq_crop(x, 20))
    assert torch.equal(LowFreqCrop((21, 17), round_band=True)(x), low_freq_crop(x, (20, 16)))
    odd = torch.randn(1, 15, 15)
    assert low_freq_crop(odd, 15) is odd
    assert low_freq_crop(odd, 15, round_band=True) is odd


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    assert low_freq_crop(X, np.int64(20)).shape[-1] == 20
    assert Curriculum.v1(np.int64(28)).at(np.float32(0.5)).size == 20
