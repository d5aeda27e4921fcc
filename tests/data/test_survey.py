"""What `distill data` says: counts, classes, and images that stand on both sides."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from distill.cli import main
from distill.config.data import DataConfig
from distill.data import open_splits
from distill.data.survey import contact_sheet, perceptual_hash, survey, twice
from distill.data.synthetic import scene
from distill.visualize import viewable


@pytest.fixture
def scenes(tmp_path):
    """Six drawn scenes to learn from and three to score on, as files, and the settings that read them."""
    for seed, (split, count) in enumerate((("train", 6), ("val", 3))):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask = scene.render(seed, i, 96, 128)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{split}{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{split}{i}.png")
    return tmp_path


def opened(root):
    return open_splits(DataConfig(format="folders", root=str(root), classes=list(scene.CLASSES)))


def test_counts_are_those_of_the_masks(scenes):
    splits = opened(scenes)
    found = survey(splits)
    masks = [splits.train.read(i)[1] for i in range(6)]
    assert (found["train"].images, found["val"].images) == (6, 3)
    assert found["train"].sizes == {(96, 128): 6}
    assert (found["train"].pixels == np.bincount(np.concatenate(masks).ravel(), minlength=256)).all()
    assert found["train"].shown_in[0] == sum((mask == 0).any() for mask in masks)
    assert twice(found) == ([], [])


def test_the_same_picture_in_other_bytes_is_found(scenes):
    source = Image.open(scenes / "train/images/train2.png")
    changed = ImageEnhance.Brightness(source.resize((160, 120))).enhance(1.1).resize((128, 96))
    changed.save(scenes / "val/images/val1.jpg", quality=60)
    (scenes / "val/images/val1.png").unlink()
    (scenes / "val/images/val2.png").write_bytes((scenes / "train/images/train4.png").read_bytes())
    same, alike = twice(survey(opened(scenes)))
    assert same == [("train4", "val2")]
    assert [pair[:2] for pair in alike] == [("train2", "val1")]


def test_different_pictures_are_far_apart():
    hashes = np.stack([perceptual_hash(scene.render(0, i, 64, 80)[0]) for i in range(40)])
    differ = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) + 999 * np.eye(40, dtype=int)
    assert differ.min() > 30
    assert (perceptual_hash(np.full((50, 50, 3), 7, np.uint8)) == 0).all()


def test_the_command_says_it_and_draws_samples(scenes, capsys):
    settings = ["--data.format=folders", f"--data.root={scenes}", f"--data.classes=[{', '.join(scene.CLASSES)}]"]
    sheet = scenes / "sheet.png"
    assert main(["data", *settings, "--sheet", str(sheet), "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert "train: 6 images: 6 of 128×96" in said
    assert "val: 3 images" in said
    assert "  9 balloon" in said
    assert Image.open(sheet).height > 4 * 160
    (scenes / "train/images/train1.png").write_text("nothing")
    assert main(["data", *settings]) == 1
    said = capsys.readouterr().out
    assert "1 file(s) cannot be used:\n  " in said and "train1.png: cannot be read" in said
    assert main(["data", "--data.format=folders", "--data.root=nowhere", "--data.classes=[a, b]"]) == 1
    assert capsys.readouterr().err == "distill: error: data.root: nowhere is not a folder\n"


def test_deep_images_come_with_statistics_and_can_be_seen(capsys):
    settings = ["--data.synthetic_channels=6", "--data.synthetic_depth=uint16", "--data.synthetic_train=4"]
    assert main(["data", *settings, "--data.synthetic_val=2"]) == 0
    said = capsys.readouterr().out
    assert "6 channel(s) of uint16" in said
    assert len(next(line for line in said.splitlines() if "mean" in line).split()) == 7
    config = DataConfig(synthetic_channels=2, synthetic_depth="uint16", synthetic_train=2, synthetic_val=1)
    splits = open_splits(config)
    assert contact_sheet(splits, 1).dtype == np.uint8
    seen = viewable(splits.train.read(0)[0])
    assert seen.shape == (128, 160, 3) and seen.min() == 0 and seen.max() == 255


def test_masks_of_0_and_255_are_told_before_a_training_stops_at_them(scenes, capsys):
    for path in scenes.glob("*/masks/*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 5, 255, 0).astype(np.uint8)).save(path)
    settings = ["data", "--data.format=folders", f"--data.root={scenes}", "--data.classes=[rest, lane]"]
    assert main(settings) == 0
    said = capsys.readouterr().out
    assert "distill train will stop: data.classes: no training mask shows 'lane' (id 1)" in said
    assert "set data.labels '{255: lane}'" in said
    assert main([*settings, "--data.labels={255: lane}"]) == 0
    assert "will stop" not in capsys.readouterr().out
