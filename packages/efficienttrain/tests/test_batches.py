"""Loops around `CurriculumBatches`: samplers, resuming, replay, and what loaders give."""

import json
import pickle

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler

from efficienttrain import Curriculum, CurriculumBatches, MagnitudeTransform, Stage, low_freq_crop


class Numbered(Dataset):
    """Image n is n everywhere, so that what becomes of it is seen."""

    def __init__(self, count=10, transform=None, side=28):
        self.count, self.transform, self.side = count, transform, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((1, self.side, self.side), float(index))
        return (image if self.transform is None else self.transform(image)), index


def labels_of(batches):
    return [(tuple(labels.tolist()), stage.size, batches.progress) for _, labels, stage in batches]


def test_batches_are_those_of_the_loader_at_the_size_of_their_stage():
    loader = DataLoader(Numbered(10), batch_size=4)  # 4, 4, 2
    batches = CurriculumBatches(loader, Curriculum.v1(28), total_steps=10)
    assert len(batches) == 10
    plain = [batch for _ in range(4) for batch in loader][:10]
    for step, ((images, labels, stage), (x, y)) in enumerate(zip(batches, plain, strict=True)):
        assert stage.size == [20, 20, 20, 24, 28][step // 2]
        assert torch.equal(images, low_freq_crop(x, stage.size))
        assert torch.equal(labels, y)
        assert not images.requires_grad
        assert batches.step == step + 1
        assert batches.progress == pytest.approx(step / 10)
        assert batches.epoch == step // 3
    assert list(batches) == []


def test_stages_of_equal_compute_take_steps_of_unequal_number():
    curriculum = Curriculum.from_sizes([14, 28], 28, [0, 9], by="compute")
    batches = CurriculumBatches(DataLoader(Numbered(), 5), curriculum, total_steps=6)
    found = labels_of(batches)
    assert [size for _, size, _ in found] == [14] * 12 + [28] * 3
    # Progress is of compute: half of it is through when the first stage is.
    expected = [step / 24 for step in range(12)] + [0.5, 0.5 + 1 / 6, 0.5 + 2 / 6]
    assert [progress for *_, progress in found] == pytest.approx(expected)


@pytest.mark.parametrize("stop", [1, 5, 8, 14])
def test_a_resumed_run_is_the_uninterrupted_one(stop):
    def build():
        sampler = DistributedSampler(Numbered(22), num_replicas=2, rank=1, shuffle=True, seed=3)
        loader = DataLoader(Numbered(22), batch_size=3, sampler=sampler)  # 4 batches an epoch
        return CurriculumBatches(loader, Curriculum.v1(28), total_steps=15)

    whole = labels_of(build())
    assert len({labels for labels, *_ in whole}) > 4  # other orders in other epochs
    first, part = build(), []
    for _, labels, stage in first:
        part.append((tuple(labels.tolist()), stage.size, first.progress))
        if first.step == stop:
            state = json.loads(json.dumps(first.state_dict()))
            break
    second = build()
    second.load_state_dict(state)
    assert part + labels_of(second) == whole
    assert part + labels_of(first) == whole  # the loop that was left goes on too


def test_ranks_see_different_images_in_the_same_stages():
    runs = []
    for rank in range(2):
        sampler = DistributedSampler(Numbered(9), num_replicas=2, rank=rank)
        loader = DataLoader(Numbered(9), batch_size=2, sampler=sampler)
        runs.append(labels_of(CurriculumBatches(loader, Curriculum.v1(28), total_steps=12)))
    assert [entry[1:] for entry in runs[0]] == [entry[1:] for entry in runs[1]]
    for first, second in zip(*runs, strict=True):
        assert first[0] != second[0]


def test_the_epoch_is_told_to_whoever_shuffles():
    class Told(BatchSampler):
        def set_epoch(self, epoch):
            told.append(("batch sampler", epoch))

    class Loader(list):
        def set_epoch(self, epoch):
            told.append(("loader", epoch))

    told = []
    sampler = Told(RandomSampler(Numbered(4)), 2, drop_last=False)
    list(CurriculumBatches(DataLoader(Numbered(4), batch_sampler=sampler), Curriculum.constant(28), 3))
    list(CurriculumBatches(Loader([torch.zeros(1, 1, 28, 28)]), Curriculum.constant(28), 2))
    assert told == [("batch sampler", 0), ("batch sampler", 1), ("loader", 0), ("loader", 1)]


def test_a_restored_loader_is_not_skipped():
    loader = [(torch.zeros(1, 1, 28, 28), torch.tensor([index])) for index in range(3)]
    batches = CurriculumBatches(loader, Curriculum.constant(28), 5, skip_on_resume=False)
    next(iter(batches))
    assert [labels for (labels,), *_ in labels_of(batches)] == [0, 1, 2, 0]


def test_other_forms_of_batches():
    x = torch.randn(2, 3, 28, 28)
    curriculum = Curriculum.from_sizes([14, 28], 28)
    small = low_freq_crop(x, 14)

    images, stage = next(iter(CurriculumBatches([x], curriculum, 4)))
    assert torch.equal(images, small)
    assert stage.size == 14
    batch, stage = next(iter(CurriculumBatches([{"pixel_values": x, "labels": "ab"}], curriculum, 4)))
    assert torch.equal(batch["pixel_values"], small)
    assert batch["labels"] == "ab"
    batch, _ = next(iter(CurriculumBatches([{"image": x}], curriculum, 4, image_key="image")))
    assert torch.equal(batch["image"], small)
    images, labels, index, stage = next(iter(CurriculumBatches([[x, "y", 7]], curriculum, 4)))
    assert (labels, index) == ("y", 7)
    assert torch.equal(images, small)


@pytest.mark.parametrize("crop", ["gemm", "fft", "resize", None])
def test_crops_by_name(crop):
    x = torch.randn(2, 3, 28, 41)
    images, _ = next(iter(CurriculumBatches([x], Curriculum.v1(28), 5, crop=crop)))
    assert torch.equal(images, x if crop is None else low_freq_crop(x, (20, 30), mode=crop))


def test_uint8_images_in_channels_last_pass():
    x = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8).to(memory_format=torch.channels_last)
    images, _ = next(iter(CurriculumBatches([x], Curriculum.v1(28), 5)))
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_moved_where_it_is_said():
    batch = {"pixel_values": torch.zeros(1, 1, 28, 28), "labels": [torch.zeros(1)], "name": "a"}
    moved = CurriculumBatches([batch], Curriculum.v1(28), 5, device="meta", crop=None)
    found, _ = next(iter(moved))
    assert found["pixel_values"].device.type == found["labels"][0].device.type == "meta"
    assert found["name"] == "a"


# --- replay ----------------------------------------------------------------------------------------

REPLAYED = Curriculum((Stage(0, 0.5, 20, 0, replay=2, buffer_batches=4), Stage(0.5, 1, 28, 9)), 28)


def replayed(total=10, count=16, batch=4, seed=0):
    loader = DataLoader(Numbered(count), batch_size=batch)
    return CurriculumBatches(loader, REPLAYED, total, generator=torch.Generator().manual_seed(seed))


def test_with_replay_a_batch_is_trained_on_in_parts_of_its_size():
    batches = replayed()
    found = [(images, labels.tolist(), stage.size) for images, labels, stage in batches]
    assert [len(labels) for _, labels, _ in found] == [4] * 10
    fresh = [labels[:2] for _, labels, _ in found[:5]]
    assert fresh == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    # The stage ends within the third batch of the loader; what is left of that batch is not used.
    assert [labels for _, labels, _ in found[5:]] == [
        [12, 13, 14, 15],
        *([n, n + 1, n + 2, n + 3] for n in (0, 4, 8, 12)),
    ]
    for step, (images, labels, size) in enumerate(found):
        assert size == (20 if step < 5 else 28)
        torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor(labels).float())
        if step < 5:
            assert max(labels[2:]) <= max(labels[:2])


def test_replay_resumes_within_a_batch():
    whole = [labels[:2].tolist() for _, labels, _ in replayed()]
    for stop in (1, 2, 3, 5, 6):
        first, part = replayed(), []
        for _, labels, _ in first:
            part.append(labels[:2].tolist())
            if first.step == stop:
                break
        second = replayed()
        second.load_state_dict(first.state_dict())
        assert part + [labels[:2].tolist() for _, labels, _ in second] == whole


def test_a_loaded_state_brings_no_images_of_another_run():
    batches = replayed()
    steps = iter(batches)
    state = [next(steps) and batches.state_dict() for _ in range(4)][1]
    batches.load_state_dict(state)
    _, labels, _ = next(iter(batches))
    assert labels[:2].tolist() == [4, 5]
    assert set(labels[2:].tolist()) <= {4, 5}


def test_fewer_images_than_parts():
    assert [labels[0].item() for _, labels, _ in replayed(total=8, count=3, batch=1)] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
        1,
    ]


# --- augmentation ----------------------------------------------------------------------------------


def add(magnitude):
    return lambda image: image + magnitude


def test_the_magnitude_of_each_stage_reaches_the_dataset():
    augment = MagnitudeTransform(add)
    loader = DataLoader(Numbered(1, augment), batch_size=1)
    batches = CurriculumBatches(loader, Curriculum.v1(28), 10, augment=augment)
    assert [images.mean().item() for images, *_ in batches] == pytest.approx(
        [1, 1, 3, 3, 5, 5, 7, 7, 9, 9], rel=1e-5
    )


def test_running_workers_follow():
    augment = MagnitudeTransform(add)
    loader = DataLoader(Numbered(2, augment), batch_size=1, num_workers=1, persistent_workers=True)
    assert [images.mean().item() for images, _ in loader] == [0, 1]
    augment.set_magnitude(5)
    assert [images.mean().item() for images, _ in loader] == [5, 6]


@pytest.mark.filterwarnings("ignore:.*torch.load:FutureWarning")  # torch 2.4's own, for any pickled tensor
def test_a_pickled_transform_builds_anew():
    augment = MagnitudeTransform(lambda magnitude: abs, 2)
    augment.build = add
    augment(0)  # what was built is a local function, which no pickle takes
    copy = pickle.loads(pickle.dumps(augment))
    assert copy(torch.zeros(1)).item() == 2


def test_a_linear_ramp_is_told_at_every_step():
    augment = MagnitudeTransform(add)
    loader = DataLoader(Numbered(1, augment), batch_size=1)
    batches = CurriculumBatches(loader, Curriculum.v1(28, magnitude="linear"), 10, augment=augment)
    expected = [0.9 * step for step in range(10)]
    found = [(images.mean().item(), stage.magnitude) for images, _, stage in batches]
    assert [mean for mean, _ in found] == pytest.approx(expected, abs=1e-5)
    assert [magnitude for _, magnitude in found] == pytest.approx(expected)
