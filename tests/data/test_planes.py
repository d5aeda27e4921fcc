"""Masks of any number of classes at a pixel: where they lie, what they may hold, how they move with their images."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from distill.batch import UNLABELED, VOID
from distill.cli import survey as data_command
from distill.config.data import DataConfig
from distill.data import open_splits, own_splits
from distill.data.loader import View
from distill.data.planes import NONE, label_counts
from distill.data.synthetic import scene, shapes
from distill.data.transforms import build_transform
from distill.data.verify import check_splits
from distill.errors import ConfigError

CLASSES = ["road", "wheel", "dirt"]


def drawn(seed: int = 0, size=(24, 32)) -> np.ndarray:
    planes = (np.random.default_rng(seed).random((3, *size)) < [[[0.6]], [[0.2]], [[0.4]]]).astype(np.uint8)
    planes[0, :2], planes[2, 5, 3:9] = VOID, VOID
    return planes


def written(root, kind: str = "folders", foreground: int = 1, count: int = 3) -> DataConfig:
    """Images with their planes in one of the ways in which they may lie."""
    for split in ("train", "val"):
        (root / split / "images").mkdir(parents=True)
        for i in range(count):
            picture = np.random.default_rng(i + 10 * (split == "val")).integers(0, 256, (24, 32, 3), np.uint8)
            Image.fromarray(picture).save(root / split / "images" / f"{i}.png")
            planes, masks = drawn(i), root / split / "masks"
            masks.mkdir(exist_ok=True)
            if kind == "folders":
                for name, plane in zip(CLASSES, planes, strict=True):
                    (masks / name).mkdir(exist_ok=True)
                    plane = np.where(plane == 1, foreground, 7 if foreground == 255 else VOID) * (plane > 0)
                    Image.fromarray(plane.astype(np.uint8)).save(masks / name / f"{i}.png")
            elif kind == "tiff":
                how = {"photometric": "minisblack", "planarconfig": "contig"}
                tifffile.imwrite(masks / f"{i}.tif", planes.transpose(1, 2, 0), **how)
            else:
                laid = planes.transpose(1, 2, 0) if kind == "npy, channels last" else planes
                np.save(masks / f"{i}.npy", laid)
    return DataConfig(format="folders", root=str(root), classes=CLASSES, multilabel=True)


def change(config: DataConfig, **values) -> DataConfig:
    return DataConfig(**{**vars(config), **values})


@pytest.mark.parametrize("kind", ["folders", "npy", "npy, channels last", "tiff"])
def test_planes_are_read_wherever_they_lie(tmp_path, kind):
    splits = open_splits(written(tmp_path, kind))
    assert splits.multilabel and splits.classes == CLASSES and splits.train.labeled
    for i in range(3):
        splits.train.inspect(i)
        image, planes = splits.train.read(i)
        assert image.shape == (24, 32, 3) and planes.dtype == np.uint8
        assert np.array_equal(planes, drawn(i))
    assert len(splits.train.files[0]) == (4 if kind == "folders" else 2)
    found = check_splits(splits, DataConfig(check="full", max_void_share=0.5))
    assert found == [*sum((d == 1).sum((1, 2)) for d in map(drawn, range(3))), *found[3:]]
    assert sum(found) == 3 * 3 * 24 * 32 and found[-1] == sum((drawn(i) == VOID).sum() for i in range(3))


def test_planes_of_0_and_255_say_so_in_a_setting(tmp_path):
    config = written(tmp_path, foreground=255)
    values = change(config, labels={255: "foreground", 7: "ignore"})
    assert np.array_equal(open_splits(values).train.read(1)[1], drawn(1))
    with pytest.raises(ConfigError, match=r"label 7 .* outside the class list 0 to 1"):
        open_splits(config).train.read(1)


def test_planes_of_0_and_255_alone_are_told_their_fix(tmp_path):
    config = written(tmp_path, "npy")
    for path in tmp_path.rglob("*.npy"):
        np.save(path, np.where(np.load(path) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(ConfigError, match=r"set data\.labels '\{255: foreground\}'"):
        check_splits(open_splits(config), change(config, check="full", allow_missing_classes=False))


def test_images_may_be_resized_and_some_have_no_labels(tmp_path):
    config = change(written(tmp_path), image_size=[12, 16], unlabeled="val/images", crop_size=[12, 12])
    splits = open_splits(config)
    assert splits.train.read(0)[1].shape == (3, 12, 16)
    image, planes = splits.unlabeled.read(0)
    assert image.shape == (12, 16, 3) and planes.shape == (3, 12, 16) and (planes == UNLABELED).all()
    none = open_splits(change(config, train_masks=None, val_masks=None))
    assert not none.train.labeled and (none.val.read(0)[1] == UNLABELED).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ["road", "wheel"]}, r"0\.npy: holds 3 planes, but data\.classes names 2; store .* 2\]"),
        ({"train_masks": "train/images"}, r"train/images: data\.multilabel needs a folder for each class \(road, wh"),
        ({"format": "voc"}, r"data\.multilabel: is for data\.format folders, synthetic, own, not voc"),
        ({"mask_colors": "palette"}, r"data\.mask_colors: changes nothing with data\.multilabel; leave it out"),
        ({"labels": {255: "road"}}, r"data\.labels: 'road' is no label of a plane; .* as in \{255: foreground\}"),
    ],
)
def test_what_is_no_set_of_planes_is_told_in_a_line(tmp_path, settings, words):
    config = change(written(tmp_path, "npy"), **settings)
    with pytest.raises(ConfigError, match=words) as told:
        open_splits(config).train.inspect(0)
    assert "\n" not in str(told.value)


def test_bad_planes_are_told_by_name(tmp_path):
    config = written(tmp_path)
    masks = tmp_path / "train" / "masks"
    Image.fromarray(np.full((24, 32), 2, np.uint8)).save(masks / "wheel" / "0.png")
    with pytest.raises(ConfigError, match=r"wheel/0\.png: label 2 \(768 pixels\) is outside the class list 0 to 1"):
        open_splits(config).train.read(0)
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(masks / "wheel" / "0.png")
    with pytest.raises(ConfigError, match=r"wheel/0\.png: is 30×24, but .*road/0\.png is 32×24; make them the same"):
        open_splits(config).train.inspect(0)
    (masks / "wheel" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"images/0\.png: has no mask .*wheel/0\.png"):
        open_splits(config)
    (masks / "dirt").rename(masks / "mud")
    with pytest.raises(ConfigError, match=r"masks/dirt: is not there, but other classes have a folder of masks; add"):
        open_splits(config)


def test_one_mask_of_class_ids_is_no_plane(tmp_path):
    config = written(tmp_path, "npy")
    np.save(tmp_path / "train" / "masks" / "0.npy", np.zeros((24, 32), np.uint8))
    with pytest.raises(ConfigError, match=r"0\.npy: holds 1 plane, but data\.classes names 3"):
        open_splits(config).train.inspect(0)
    np.save(tmp_path / "train" / "masks" / "0.npy", np.zeros((24, 32, 3), np.float32))
    with pytest.raises(ConfigError, match=r"0\.npy: holds planes of float32; store them as uint8"):
        open_splits(config).train.read(0)


def test_each_plane_moves_as_a_mask_by_itself_does(tmp_path):
    augmentations = [
        {"RandomScale": {"scale_limit": [-0.4, 0.4], "p": 1.0}},
        {"Rotate": {"limit": 30, "p": 1.0}},
        {"HorizontalFlip": {"p": 0.5}},
        {"GridDropout": {"p": 1.0}},
    ]
    config = change(written(tmp_path), crop_size=[40, 40], augmentations=augmentations)
    transform, planes = build_transform(config), drawn(1)
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for epoch in range(4):
        moved_image, moved = transform(image, planes, (0, epoch, 1))
        assert moved.shape == (3, 40, 40) and set(np.unique(moved)) <= {0, 1, VOID} and (moved == VOID).any(2).any()
        for plane, found in zip(planes, moved, strict=True):
            alone = transform(image, plane, (0, epoch, 1))
            assert np.array_equal(alone[0], moved_image) and np.array_equal(alone[1], found)


def test_drawn_scenes_label_things_as_wholes():
    config = DataConfig(multilabel=True, synthetic_train=12, synthetic_val=2)
    splits = open_splits(config)
    assert splits.classes == list(shapes.PLANES)
    overlaps = np.zeros((len(splits.classes),) * 2, int)
    for i in range(12):
        image, planes = splits.train.read(i)
        seen, mask = scene.render(0, i, *config.synthetic_size)
        assert np.array_equal(image, seen) and set(np.unique(planes)) <= {0, 1}
        flat = planes.reshape(len(planes), -1).astype(int)
        overlaps += flat @ flat.T
        for name in ("boat", "house", "person"):  # what is seen of a thing is part of it
            visible = mask == shapes.CLASSES.index(name)
            assert planes[splits.classes.index(name)][visible].mean() > 0.8 if visible.sum() > 20 else True
    at = splits.classes.index
    for one, other in (("ground", "person"), ("water", "boat"), ("ground", "shadow"), ("house", "person")):
        assert overlaps[at(one), at(other)] > 100, (one, other)
    assert not overlaps[at("water"), at("ground")]
    item = View(splits.train, build_transform(config), 0)[0, 1]
    assert item[1].shape == (7, 96, 128)


def test_data_of_ones_own_may_have_planes():
    pairs = [(np.zeros((24, 32, 3), np.uint8), drawn(i)) for i in range(2)]
    config = DataConfig(format="own", classes=CLASSES, multilabel=True)
    splits = own_splits(pairs, [(i, m.transpose(1, 2, 0)) for i, m in pairs], config)
    assert splits.multilabel
    assert np.array_equal(splits.train.read(1)[1], drawn(1)) and np.array_equal(splits.val.read(1)[1], drawn(1))
    for mask, words in (
        (drawn(0)[0], r"train\[0\]: its mask is uint8 of the shape \[24, 32\]; expected a plane of 0 and 1 for each"),
        (np.where(drawn(0) == 1, 3, 0), r"train\[0\]: label 3 .* is outside the 0 and 1 of a plane"),
    ):
        wrong = own_splits([(pairs[0][0], mask)], pairs, config)
        with pytest.raises(ConfigError, match=words):
            wrong.train.read(0)


def test_labels_are_counted_by_class():
    counts = label_counts(drawn())
    assert counts[:3].tolist() == (drawn() == 1).sum((1, 2)).tolist()
    assert counts[NONE] == (drawn() == 0).sum() and counts[VOID] == (drawn() == VOID).sum()
    assert counts.sum() == drawn().size


def test_distill_data_says_how_much_of_the_images_each_class_has(tmp_path, capsys):
    config = written(tmp_path)
    flags = ["--data.format=folders", f"--data.root={config.root}", "--data.multilabel=true"]
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    assert data_command.main([*flags, "--data.classes=[road, wheel, dirt]", *sheet]) == 0
    said = capsys.readouterr().out
    share = 100 * sum((drawn(i)[1] == 1).sum() for i in range(3)) / (3 * 24 * 32)
    assert f"wheel   {share:.2f} %" in " ".join(said.split()).replace("wheel ", "wheel   ") and "void" in said
    assert Image.open(tmp_path / "sheet.png").width > 200
