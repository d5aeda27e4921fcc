import os
import random
from pathlib import Path

import albumentations as A
import giant_files
import numpy as np
import pytest
import torch
from PIL import Image

from distill.batch import UNLABELED, VOID
from distill.config.data import DataConfig
from distill.data import build_transform, check_splits, open_splits, save_preprocessing, train_batches, val_batches
from distill.data.sampler import StepSampler
from distill.data.transforms import resize_labels
from distill.errors import ConfigError


def camvid_config(root: Path, **settings) -> DataConfig:
    return DataConfig(format="camvid", root=str(root), crop_size=[32, 32], **settings)


def paint(path: Path, value: int, count: int = 1) -> None:
    mask = np.array(Image.open(path))
    mask.flat[:count] = value
    Image.fromarray(mask).save(path)


def test_camvid_reads_images_and_masks_by_stem(camvid):
    config = camvid_config(camvid)
    splits = open_splits(config)
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (4, 2, 11)
    image, mask = splits.train.read(1)
    raw = np.array(Image.open(camvid / "trainannot" / "train_1.png"))
    assert image.shape == (40, 56, 3)
    assert (mask == np.where(raw == 11, VOID, raw)).all()
    check_splits(splits, config)


def test_folders_take_the_classes_and_the_void_label_of_the_settings(camvid):
    folders = {f"{s}_{k}": f"{s}{t}" for s in ("train", "val") for k, t in (("images", ""), ("masks", "annot"))}
    config = DataConfig(
        format="folders", root=str(camvid), classes=list("abcdefghijk"), ignore_index=11, image_size=[20, 28], **folders
    )
    splits = open_splits(config)
    image, mask = splits.val.read(0)
    assert image.shape == (20, 28, 3)
    assert mask.shape == (20, 28)
    assert set(np.unique(mask)) <= {*range(11), VOID}
    assert len(set(splits.palette)) == 11


def test_palette_and_16_bit_masks_keep_their_ids(camvid):
    path = camvid / "trainannot" / "train_0.png"
    raw = np.array(Image.open(path))
    palette = Image.fromarray(raw)
    palette.putpalette(list(range(256)) * 3)
    for image in (palette, Image.fromarray(raw.astype(np.uint16))):
        image.save(path)
        _, mask = open_splits(camvid_config(camvid)).train.read(0)
        assert (mask == np.where(raw == 11, VOID, raw)).all()


BAD_FILES = {
    "an image without mask": (lambda c: (c / "trainannot/train_2.png").unlink(), ("train_2", "no mask")),
    "a mask of another size": (
        lambda c: Image.new("L", (56, 41)).save(c / "trainannot/train_2.png"),
        ("trainannot/train_2.png", "56×41", "56×40"),
    ),
    "a label outside the class list": (
        lambda c: paint(c / "trainannot/train_2.png", 12, 3),
        ("trainannot/train_2.png", "label 12", "3 pixels"),
    ),
    "a truncated jpeg": (
        lambda c: os.truncate(c / "train/train_2.jpg", (c / "train/train_2.jpg").stat().st_size // 2),
        ("train/train_2.jpg", "truncated"),
    ),
    "an empty file": (lambda c: os.truncate(c / "train/train_2.jpg", 0), ("train/train_2.jpg", "empty")),
    "a page named jpg": (lambda c: (c / "train/train_2.jpg").write_text("<html>"), ("train/train_2.jpg", "cannot")),
    "a bit of a png": (
        lambda c: (c / "trainannot/train_2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30)),
        ("train_2.png",),
    ),
    "an rgb mask": (
        lambda c: Image.new("RGB", (56, 40)).save(c / "trainannot/train_2.png"),
        ("trainannot/train_2.png", "RGB", "class id"),
    ),
    "a float mask": (
        lambda c: (
            (c / "trainannot/train_2.png").unlink(),
            Image.fromarray(np.zeros((40, 56), np.float32)).save(c / "trainannot/train_2.tiff"),
        ),
        ("train_2.tiff", "mode F"),
    ),
    "a broken link": (
        lambda c: ((c / "train/train_2.jpg").unlink(), (c / "train/train_2.jpg").symlink_to("nowhere")),
        ("train/train_2.jpg",),
    ),
    "the same image in both splits": (
        lambda c: (c / "val/val_0.jpg").write_bytes((c / "train/train_0.jpg").read_bytes()),
        ("val/val_0.jpg", "train/train_0.jpg"),
    ),
    "an image that a tag rotates": (
        lambda c: Image.open(c / "train/train_2.jpg").save(
            c / "train/train_2.jpg", exif=(lambda e: (e.__setitem__(0x0112, 6), e)[1])(Image.Exif())
        ),
        ("train/train_2.jpg", "EXIF"),
    ),
    "two images of one stem": (
        lambda c: Image.new("RGB", (56, 40)).save(c / "train/train_2.png"),
        ("train_2", "same stem"),
    ),
    "a bomb": (
        lambda c: Image.new("L", (9000, 9000)).save(c / "trainannot/train_2.png"),
        ("trainannot/train_2.png", "9000×9000", "max_pixels"),
    ),
    "a bomb of one tile": (
        lambda c: giant_files.tile(c / "train/train_2.jpg"),
        ("train/train_2.jpg", "10×10 in tiles of 675,168,256", "max_pixels"),
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_files_are_named_before_training(camvid, fault):
    break_it, words = BAD_FILES[fault]
    break_it(camvid)
    config = camvid_config(camvid)
    with pytest.raises(ConfigError) as error:
        check_splits(open_splits(config), config)
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) == 1


def test_several_bad_files_are_listed(camvid):
    for i in (0, 2):
        paint(camvid / f"trainannot/train_{i}.png", 99)
    config = camvid_config(camvid)
    with pytest.raises(ConfigError, match=r"2 bad files:\n.*train_0.*\n.*train_2"):
        check_splits(open_splits(config), config)


def test_an_empty_split_and_missing_folders_are_named(camvid, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root: nowhere"):
        open_splits(camvid_config(Path("nowhere")))
    for path in (camvid / "val").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="val: holds no images"):
        open_splits(camvid_config(camvid))
    (camvid / "val").rmdir()
    with pytest.raises(ConfigError, match="val: is not a folder"):
        open_splits(camvid_config(camvid))
    with pytest.raises(ConfigError, match=r"data\.classes"):
        open_splits(DataConfig(format="folders", root=str(camvid)))


def test_names_in_other_scripts_and_with_spaces_work(camvid):
    for folder, suffix in (("train", "jpg"), ("trainannot", "png")):
        (camvid / folder / f"train_0.{suffix}").rename(camvid / folder / f"улица 1 ü.{suffix}")
    config = camvid_config(camvid)
    splits = open_splits(config)
    check_splits(splits, config)
    assert "улица 1 ü" in splits.train.names


@pytest.mark.parametrize(
    "item",
    [{"Rotat": {}}, {"Lambda": {}}, {"HorizontalFlip": {"probability": 1}}, {"Compose": {}}, {"RandomScale": {"p": 7}}],
)
def test_unknown_augmentations_are_refused(item):
    with pytest.raises(ConfigError, match=r"data\.augmentations"):
        build_transform(DataConfig(augmentations=[item]))


def test_what_a_transform_moves_in_is_void():
    rotate = {"Rotate": {"limit": [45, 45], "p": 1.0}}
    transform = build_transform(DataConfig(augmentations=[rotate], crop_size=[64, 64]))
    image, mask = transform(np.full((48, 48, 3), 200, np.uint8), np.ones((48, 48), np.uint8), (0, 0, 0))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {1, VOID}
    assert (mask[image.max(2) == 0] == VOID).all()


@pytest.mark.parametrize(
    "arguments", [{"mask_interpolation": 1}, {"area_for_downscale": "image_mask"}, {"interpolation": 0}]
)
def test_what_would_move_masks_or_mix_classes_is_refused(arguments):
    with pytest.raises(ConfigError, match=r"data\.augmentations: RandomScale: .*(leave it out|use 1)"):
        build_transform(DataConfig(augmentations=[{"RandomScale": arguments}]))


@pytest.mark.parametrize("size", [(20, 28), (13, 56), (40, 56), (80, 112), (97, 31)])
def test_labels_are_resized_without_a_shift(size):
    y, x = np.mgrid[:40, :56]
    for position, old, new, axis in ((y, 40, size[0], 0), (x, 56, size[1], 1)):
        centers = (np.arange(new) + 0.5) * old / new - 0.5
        found = resize_labels(position.astype(np.uint8), size).astype(float).mean(1 - axis)
        assert np.abs(found - centers).max() <= 0.5
        assert abs((found - centers).mean()) < 0.5 / new + 1e-6  # one tie without a partner at most


def test_augmentation_is_a_function_of_its_key_and_its_parts_are_independent():
    flips = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    transform = build_transform(DataConfig(augmentations=flips, crop_size=[2, 2]))
    image, mask = np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [2, 3]], np.uint8)
    np.random.seed(0)
    random.seed(0)
    corners = [transform(image, mask, (1, 2, i))[1][0, 0] for i in range(2000)]
    assert corners == [transform(image, mask, (1, 2, i))[1][0, 0] for i in range(2000)]
    assert corners != [transform(image, mask, (1, 3, i))[1][0, 0] for i in range(2000)]
    horizontal, vertical = np.array(corners) % 2, np.array(corners) // 2
    assert abs(np.corrcoef(horizontal, vertical)[0, 1]) < 0.1


def keys(rank: int = 0, world: int = 1, batch: int = 2, micro: int = 1, start: int = 0, steps: int = 9, n: int = 7):
    sampler = iter(StepSampler(n, batch, micro, 0, start, rank, world))
    return [key for _ in range((steps - start) * micro) for key in next(sampler)]


def test_each_epoch_shows_every_image_once():
    row = keys(steps=14)
    assert [epoch for epoch, _ in row] == [i // 7 for i in range(28)]
    assert all(sorted(i for e, i in row if e == epoch) == list(range(7)) for epoch in range(4))
    assert row[:7] != [(0, i) for _, i in row[7:14]]


def test_a_step_has_the_same_images_for_any_number_of_processes_and_micro_batches():
    whole = keys(batch=4, steps=5)
    for world, micro in ((2, 1), (1, 2), (2, 2), (4, 1)):
        parts = [keys(rank, world, 4 // world // micro, micro, steps=5) for rank in range(world)]
        for step in range(5):
            share = 4 // world
            seen = sorted(key for part in parts for key in part[step * share : (step + 1) * share])
            assert seen == sorted(whole[4 * step : 4 * step + 4])


def test_the_order_goes_on_where_it_was():
    assert keys(start=4) == keys()[8:]


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_second_data_set_keeps_its_share_of_every_step(share):
    def mixed(rank: int = 0, world: int = 1, batch: int = 20, steps: int = 4):
        sampler = iter(StepSampler(7, batch, 1, 0, 0, rank, world, more=5, share=share))
        return [[index for _, index in next(sampler)] for _ in range(steps)]

    for indices in mixed():
        assert sum(index >= 7 for index in indices) == 20 * share
    row = [index for indices in mixed(steps=50) for index in indices]
    for part, length in (([i for i in row if i < 7], 7), ([i - 7 for i in row if i >= 7], 5)):
        epochs = [part[first : first + length] for first in range(0, len(part) - length, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    for step, indices in enumerate(mixed()):
        assert sorted(mixed(0, 2, 10)[step] + mixed(1, 2, 10)[step]) == sorted(indices)
    labeled = iter(StepSampler(7, 3, 1, 0, 0, 0, 1))
    assert [i for i in row if i < 7][:9] == [i for _ in range(3) for _, i in next(labeled)], "the order stays"


def test_images_without_masks_have_no_labels(camvid, tmp_path):
    (camvid / "more").mkdir()
    Image.new("RGB", (90, 40), (9, 8, 7)).save(camvid / "more" / "a.png")
    splits = open_splits(camvid_config(camvid, unlabeled="more"))
    image, mask = splits.unlabeled.read(0)
    assert image.shape == (40, 90, 3)
    assert (mask == UNLABELED).all()
    both = splits.train + splits.unlabeled
    assert (len(both), both.names[4], both.files[4]) == (5, "a", (camvid / "more" / "a.png",))
    assert (both.read(4)[0] == image).all()
    assert (both.read(1)[1] == splits.train.read(1)[1]).all()
    _, cropped = build_transform(camvid_config(camvid, augmentations=[]))(image[:20, :20], mask[:20, :20], (0, 0, 0))
    assert (cropped == UNLABELED).sum() == 400
    assert (cropped == VOID).sum() == 32 * 32 - 400, "padding counts in no term"


def test_bad_images_without_masks_are_named_too(camvid):
    (camvid / "more").mkdir()
    Image.open(camvid / "val" / "val_0.jpg").save(camvid / "more" / "a.png")
    config = camvid_config(camvid, unlabeled="more")
    (camvid / "more" / "b.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"b\.png: cannot be read"):
        check_splits(open_splits(config), config)
    (camvid / "more" / "b.png").write_bytes((camvid / "val" / "val_1.jpg").read_bytes())
    with pytest.raises(ConfigError, match=r"val_1\.jpg: the same image as .*more.b\.png"):
        check_splits(open_splits(config), config)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(camvid, workers):
    config = camvid_config(camvid)
    dataset, transform = open_splits(config).train, build_transform(config)

    def batches(count: int):
        stream = train_batches(dataset, transform, StepSampler(4, 2, 1, 0, 0, 0, 1), count, 30)
        return [next(stream) for _ in range(6)]

    state = torch.random.get_rng_state()
    for a, b in zip(batches(0), batches(workers), strict=True):
        assert a.names == b.names
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
    assert torch.equal(state, torch.random.get_rng_state()), "reading must not move the global generator"


def test_scoring_sees_each_image_once_whatever_its_size(camvid):
    Image.new("RGB", (30, 20)).save(camvid / "val/val_0.jpg")
    Image.new("L", (30, 20)).save(camvid / "valannot/val_0.png")
    dataset = open_splits(camvid_config(camvid)).val
    for world in (1, 2, 3):
        seen = [i for rank in range(world) for indices, _ in val_batches(dataset, 2, rank, world) for i in indices]
        assert sorted(seen) == [0, 1]


def test_preprocessing_is_what_albumentations_reads(tmp_path):

    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    save_preprocessing(tmp_path, mean, std, 32)
    with pytest.warns(UserWarning, match="padding"):  # albumentations' own output
        compose = A.Compose.from_pretrained(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8)
    result = compose(image=image, mask=np.zeros((33, 40), np.uint8))
    assert result["image"].shape == (64, 64, 3)
    assert np.allclose(result["image"][:33, :40], (image / 255 - mean) / std, atol=1e-5)
    assert (result["image"][33:] == 0).all()
    assert (result["mask"][33:] == VOID).all()
