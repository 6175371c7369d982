"""In timm's and torchvision's own loops; the only file that imports them."""

import pytest
import torch
from torch import nn

from efficienttrain import (
    Curriculum,
    CurriculumBatches,
    MagnitudeTransform,
    magnitude_to_timm,
    resize_pos_embed,
)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of classes with real image files, as ImageFolder and ImageNet have it."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{index}.png")
    return root


def test_the_magnitude_is_what_timm_reads(timm):
    from timm.data.auto_augment import rand_augment_transform

    for magnitude in (0.0, 2.6, 9.0):
        operation = rand_augment_transform(magnitude_to_timm(magnitude), {}).ops[0]
        assert operation.magnitude == round(magnitude)
        assert operation.magnitude_std == 0.5


def test_noise_never_asks_posterizing_for_no_bits(timm):
    from PIL import Image
    from timm.data.auto_augment import rand_augment_ops

    image = Image.new("RGB", (4, 4))
    for magnitude in (9, 30):
        options = {"magnitude_std": 0.5, "magnitude_max": _option(magnitude_to_timm(magnitude), "mmax")}
        (operation,) = rand_augment_ops(magnitude, hparams=options, transforms=["PosterizeIncreasing"])
        operation.prob = 1.0
        for _ in range(300):
            operation(image)


def _option(text, name):
    (found,) = [part.removeprefix(name) for part in text.split("-") if part.startswith(name)]
    return int(found)


def test_a_timm_loader_with_mixup_and_a_model(timm, folder):
    from timm.data import Mixup, create_loader
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder / "train"))
    options = {"use_prefetcher": False, "num_workers": 0, "persistent_workers": False}
    loader = create_loader(dataset, (3, 32, 32), batch_size=4, is_training=True, **options)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=2)
    model = timm.create_model("resnet10t", num_classes=2)
    sizes = []
    for images, labels, stage in CurriculumBatches(loader, Curriculum.v1(32), total_steps=5):
        images, targets = mixup(images, labels)
        logits = model(images)
        torch.nn.functional.cross_entropy(logits, targets).backward()
        sizes.append((stage.size, *images.shape))
    assert sizes == [(size, 4, 3, size, size) for size in (22, 22, 22, 28, 32)]


def test_torchvision_transforms_follow_the_curriculum(folder):
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    def build(magnitude):
        built.append(magnitude)
        steps = [
            transforms.Resize((32, 32)),
            transforms.RandAugment(2, round(magnitude)),
            transforms.ToTensor(),
        ]
        return transforms.Compose(steps)

    built = []
    augment = MagnitudeTransform(build)
    loader = DataLoader(ImageFolder(str(folder / "train"), augment), batch_size=4, shuffle=True)
    for images, labels, stage in CurriculumBatches(
        loader, Curriculum.v1(32), total_steps=10, augment=augment
    ):
        assert images.shape == (4, 3, stage.size, stage.size)
        assert len(labels) == 4
        assert built[-1] <= 9
    assert built == pytest.approx([1, 3, 5, 7, 9])


def test_resized_embeddings_are_timms(timm):
    from timm.layers import resample_abs_pos_embed

    embedding = torch.randn(1, 1 + 7 * 7, 8)
    expected = resample_abs_pos_embed(embedding, [5, 3], [7, 7], interpolation="bilinear", antialias=False)
    torch.testing.assert_close(resize_pos_embed(embedding, 7, (5, 3)), expected)


def test_a_vision_transformer_trains_through_the_stages(timm):
    model = timm.create_model("test_vit", img_size=64, num_classes=2, dynamic_img_size=True)
    loader = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]
    seen = []
    for images, labels, _ in CurriculumBatches(loader, Curriculum.plus_plus(64, "deit", multiple_of=16), 20):
        nn.functional.cross_entropy(model(images), labels).backward()
        seen.append(images.shape[-1])
    assert sorted(set(seen)) == [32, 48, 64]
    assert seen == sorted(seen)


@pytest.mark.demo
def test_the_paper_preset_runs_on_a_small_folder(timm, folder):
    from efficienttrain.demo.paper import Recipe, compare

    recipe = Recipe("resnet10t", 32, 4, baseline_epochs=6, method_epochs=5, warm_up_epochs=1, num_workers=0)
    told = []
    result = compare(folder, recipe, 0, "cpu", lambda fraction, message: told.append(fraction))
    assert [row["role"] for row in result["rows"]] == ["baseline", "method"]
    assert all(0 <= row["accuracy"] <= 100 and row["hours"] > 0 for row in result["rows"])
    assert told == sorted(told)
    assert told[-1] == 1
