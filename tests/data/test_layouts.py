"""Every layout on a tiny tree in its real form, and how its masks are read."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.batch import UNLABELED, VOID
from distill.config.data import DataConfig
from distill.data import check_once, check_splits, open_splits
from distill.data import layout_names as names
from distill.errors import ConfigError

SIZE = (24, 32)


def picture(path: Path, seed: int | None = None, **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(path.name.encode()) if seed is None else seed)
    image = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(image).save(path, **options)
    return image


def mask_of(path: Path, values: np.ndarray | list, palette: list | None = None) -> np.ndarray:
    """A mask whose pixels take the values in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    shape = SIZE if values.ndim == 1 else (*SIZE, 3)
    mask = np.resize(values, shape).astype(np.uint8)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(palette)
    image.save(path)
    return mask


def opened(root: Path, **settings):
    config = DataConfig(root=str(root), crop_size=[16, 16], **settings)
    splits = open_splits(config)
    check_splits(splits, config)
    return splits


def refused(root: Path, words: str, **settings) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        opened(root, **settings)
    assert len(str(error.value).splitlines()) == 1, error.value


def folders(root: Path, values: np.ndarray | list = (0, 1), splits: tuple[str, ...] = ("train", "val")) -> dict:
    """Two images a split, and settings."""
    for split in splits:
        for i in range(2):
            picture(root / split / "images" / f"{split}{i}.png")
            mask_of(root / split / "masks" / f"{split}{i}.png", values)
    return {"format": "folders", "classes": ["ground", "lane"]}


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split, stems in (("train", ["2007_000032", "2007_000039"]), ("val", ["2007_000033"])):
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            picture(root / "JPEGImages" / f"{stem}.jpg")
            raw = mask_of(root / "SegmentationClass" / f"{stem}.png", [*range(21), 255], list(range(256)) * 3)
    picture(root / "JPEGImages" / "without_mask.jpg")
    splits = opened(tmp_path, format="voc")
    assert (len(splits.train), len(splits.val), splits.classes) == (2, 1, list(names.VOC))
    assert splits.palette[:2] == [(0, 0, 0), (128, 0, 0)]
    assert (splits.val.read(0)[1] == np.where(raw == 255, VOID, raw)).all()
    (root / "SegmentationClass/2007_000039.png").unlink()
    refused(tmp_path, r"2007_000039\.png: is not there, but its image is listed", format="voc")
    (root / "ImageSets/Segmentation/train.txt").unlink()
    refused(tmp_path, r"train\.txt: is not there, or no list", format="voc")


def test_voc_of_other_classes(tmp_path):
    for split, stem in (("train", "a"), ("val", "b")):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        mask_of(tmp_path / "SegmentationClass" / f"{stem}.png", [0, 1], list(range(256)) * 3)
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(stem)
    assert opened(tmp_path, format="voc", classes=["x", "y"]).classes == ["x", "y"]


def test_cityscapes(tmp_path):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        picture(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        raw = mask_of(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", list(range(34)))
        mask_of(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", [0])
        (tmp_path / "gtFine" / split / city / f"{stem}_gtFine_polygons.json").write_text("{}")
    splits = opened(tmp_path, format="cityscapes")
    assert (len(splits.train), len(splits.val), len(splits.classes)) == (2, 1, 19)
    assert splits.train.names == ["aachen_aachen_000000_000019", "bochum_bochum_000000_000019"]
    mask = splits.train.read(0)[1]
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    train_ids |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert all((mask[raw == value] == train_ids.get(value, VOID)).all() for value in range(34))
    assert splits.classes[:3] == ["road", "sidewalk", "building"]
    merged = opened(tmp_path, format="cityscapes", labels={"rider": "person", "truck": "vehicle", "car": "vehicle"})
    assert len(merged.classes) == 17
    assert "vehicle" in merged.classes and "rider" not in merged.classes


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(root / "images" / split / f"{stem}.jpg")
        raw = mask_of(root / "annotations" / split / f"{stem}.png", list(range(151)))
    refused(tmp_path, r"objectInfo150\.txt: is not there", format="ade20k")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"] + [f"{i}\t0.1\t1\t1\t1\tname{i}, other" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(rows))
    splits = opened(tmp_path, format="ade20k")
    assert splits.classes == [f"name{i}" for i in range(1, 151)]
    assert (splits.train.read(0)[1] == np.where(raw == 0, VOID, raw - 1)).all()


def test_coco_stuff(tmp_path):
    for split in ("train2017", "val2017"):
        picture(tmp_path / "images" / split / "000000000009.jpg", seed=len(split))
        raw = mask_of(tmp_path / "annotations" / split / "000000000009.png", [0, 10, 12, 181, 255])
    rows = ["0: unlabeled"] + [f"{i}: thing {i}" for i in range(1, 183)]
    (tmp_path / "labels.txt").write_text("\n".join(rows))
    splits = opened(tmp_path, format="coco_stuff", allow_missing_classes=True)
    assert len(splits.classes) == 171
    mask = splits.train.read(0)[1]
    for value, name in ((0, "thing 1"), (10, "thing 11"), (12, "thing 13"), (181, "thing 182")):
        assert (mask[raw == value] == splits.classes.index(name)).all()
    assert (mask[raw == 255] == VOID).all()


def test_mmseg_with_zero_for_void(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "img_dir" / split / f"{split}_a.jpg")
        raw = mask_of(tmp_path / "ann_dir" / split / f"{split}_a.png", [0, 1, 2])
    splits = opened(tmp_path, format="mmseg", classes=["x", "y"], reduce_zero_label=True)
    assert (splits.train.read(0)[1] == np.where(raw == 0, VOID, raw - 1)).all()
    assert opened(tmp_path, format="mmseg", classes=["z", "x", "y"]).classes == ["z", "x", "y"]
    with pytest.raises(ConfigError, match=r"label 2 .*outside the class list 0 to 1"):
        opened(tmp_path, format="mmseg", classes=["x", "y"])


def test_camvid_in_32_colors(tmp_path):
    colors = {"Animal": (64, 128, 64), "Bicyclist": (0, 128, 192), "Sky": (128, 128, 128), "Void": (0, 0, 0)}
    for split in ("train", "val"):
        picture(tmp_path / split / f"{split}_L01.png")
        raw = mask_of(tmp_path / f"{split}_labels" / f"{split}_L01_L.png", np.array(list(colors.values())))
    rows = ["name,r,g,b"] + [f"{name},{r},{g},{b}" for name, (r, g, b) in colors.items()]
    (tmp_path / "class_dict.csv").write_text("\n".join(rows))
    splits = opened(tmp_path, format="camvid")
    assert splits.classes == ["Animal", "Bicyclist", "Sky"]
    assert splits.palette[1] == (0, 128, 192)
    mask = splits.train.read(0)[1]
    assert (mask[(raw == (0, 0, 0)).all(2)] == VOID).all()
    assert (mask[(raw == (0, 128, 192)).all(2)] == 1).all()


def test_camvid_as_cambridge_has_it(tmp_path):
    for i in range(30):
        picture(tmp_path / "701_StillsRaw_full" / f"Seq0{i % 3}_{i:04d}.png", seed=i)
        mask_of(tmp_path / "LabeledApproved_full" / f"Seq0{i % 3}_{i:04d}_L.png", np.array([(64, 128, 64), (0, 0, 0)]))
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\t\tVoid\n")
    refused(tmp_path, r"data\.val_fraction: .* has no validation images", format="camvid")
    splits = opened(tmp_path, format="camvid", val_fraction=0.3, allow_missing_classes=True)
    assert splits.classes == ["Animal", "Archway"]
    assert len(splits.train) + len(splits.val) == 30
    assert 3 <= len(splits.val) <= 18


def test_csv(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / "photos" / f"{name}.jpg")
        mask_of(tmp_path / "drawn" / f"{name}-mask.png", [0, 1])
    line = "photos/{0}.jpg, drawn/{0}-mask.png"
    (tmp_path / "train.csv").write_text("image,mask\n" + line.format("a") + "\n\n" + line.format("b") + "\n")
    (tmp_path / "val.csv").write_text("\ufeff" + line.format("c"))
    settings = {"format": "csv", "classes": ["x", "y"]}
    splits = opened(tmp_path, **settings)
    assert splits.train.names == ["photos_a", "photos_b"]
    assert (len(splits.val), set(np.unique(splits.val.read(0)[1]))) == (1, {0, 1})
    (tmp_path / "val.csv").write_text("photos/c.jpg")
    refused(tmp_path, r"c\.jpg: has no mask in its list, but others do", **settings)
    (tmp_path / "val.csv").write_text("nothing here")
    refused(tmp_path, r"val\.csv: holds no images; expected lines", **settings)
    (tmp_path / "val.csv").write_text(line.format("missing"))
    refused(tmp_path, r"missing-mask\.png: is not there", **settings)


def test_folders_in_folders(tmp_path):
    for split in ("train", "val"):
        for sequence in ("s1", "s2"):
            picture(tmp_path / split / "images" / sequence / "0001.png", seed=len(split) + ord(sequence[1]))
            mask_of(tmp_path / split / "masks" / sequence / "0001.png", [0, 1])
    splits = opened(tmp_path, format="folders", classes=["a", "b"])
    assert splits.train.names == ["s1_0001", "s2_0001"]
    (tmp_path / "train/masks/s2/0001.png").unlink()
    refused(tmp_path, r"s2/0001\.png: has no mask .*masks/s2/0001\.png", format="folders", classes=["a", "b"])


def test_one_folder_with_a_suffix(tmp_path):
    for i in range(20):
        picture(tmp_path / f"scan{i:02d}.png", seed=i)
        mask_of(tmp_path / f"scan{i:02d}_mask.png", [0, 1])
    settings = {"format": "folders", "classes": ["a", "b"], "train_images": ".", "train_masks": "."}
    splits = opened(tmp_path, **settings, mask_suffix="_mask", val_fraction=0.2)
    assert len(splits.train) + len(splits.val) == 20
    assert not any("mask" in name for name in splits.train.names)
    refused(tmp_path, r"scan00\.png: has no mask .*scan00_gt\.png", **settings, mask_suffix="_gt", val_fraction=0.2)


def test_validation_images_are_set_aside_by_name(tmp_path):
    for i in range(60):
        picture(tmp_path / "train/images" / f"video{i % 12:02d}_{i:03d}.png", seed=i)
        mask_of(tmp_path / "train/masks" / f"video{i % 12:02d}_{i:03d}.png", [0, 1])
    settings = {"format": "folders", "classes": ["a", "b"], "check": "off"}
    splits = opened(tmp_path, **settings, val_fraction=0.25)
    assert 8 <= len(splits.val) <= 22
    assert not set(splits.train.names) & set(splits.val.names)
    grouped = opened(tmp_path, **settings, val_fraction=0.25, val_group=r"(video\d+)_")
    videos = [{name.split("_")[0] for name in dataset.names} for dataset in (grouped.train, grouped.val)]
    assert not videos[0] & videos[1]
    assert len(videos[0] | videos[1]) == 12
    for i in range(60, 70):  # more images move none to the other side
        picture(tmp_path / "train/images" / f"video99_{i:03d}.png", seed=i)
        mask_of(tmp_path / "train/masks" / f"video99_{i:03d}.png", [0, 1])
    more = opened(tmp_path, **settings, val_fraction=0.25)
    assert set(splits.val.names) <= set(more.val.names)
    assert set(splits.train.names) <= set(more.train.names)
    refused(tmp_path, r"val_group: 'x\(\\\\d\)' matches nothing in", **settings, val_fraction=0.2, val_group=r"x(\d)")
    refused(tmp_path, "leaves no validation image", **settings, val_fraction=1e-9)


def test_a_drive_is_left_out_of_all_that_is_learned_from(tmp_path):
    for split, drives in (("train", "ABC"), ("val", "A")):
        for name in [f"{drive}_{i}" for drive in drives for i in range(4)]:
            picture(tmp_path / split / "images" / f"{name}.png")
            mask_of(tmp_path / split / "masks" / f"{name}.png", [0, 1])
    settings = {"format": "folders", "classes": ["a", "b"], "check": "off", "unlabeled": "train/images"}
    splits = opened(tmp_path, **settings, leave_out="^B_")
    assert {name[0] for name in splits.train.names} == {name[0] for name in splits.unlabeled.names} == {"A", "C"}
    assert [name[0] for name in splits.val.names] == ["B"] * 4
    few = opened(tmp_path, **settings, leave_out="^B_", label_share=0.25)
    assert [name.split(".")[0] for name in few.train.names] == ["A_0", "C_0"]
    assert few.unlabeled.names == splits.unlabeled.names
    refused(tmp_path, "data.leave_out: 'D' is found in none of the 12 names", **settings, leave_out="D")
    refused(tmp_path, "data.leave_out: '_' is found in all of the 12 names", **settings, leave_out="_")


@pytest.mark.parametrize(
    "bad", [{"val_group": "("}, {"leave_out": "("}, {"label_share": 0.0}, {"val_fraction": 1.0}, {"in_channels": 0}]
)
def test_settings_that_cannot_be_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DataConfig(**bad)


def test_foreground_of_255(tmp_path):
    settings = folders(tmp_path, [0, 255])
    refused(tmp_path, r"label 255 mean a class.*data\.labels '\{255: lane\}'", **settings, max_void_share=0.4)
    splits = opened(tmp_path, **settings, labels={"255": "lane"})
    mask = splits.train.read(0)[1]
    assert set(np.unique(mask)) == {0, 1}
    assert splits.classes == ["ground", "lane"]


def test_a_rare_foreground_of_255_comes_with_the_fix_too(tmp_path):
    settings = folders(tmp_path, [0] * 39 + [255]) | {"classes": ["lane"]}
    found = r"no training mask shows 'lane' \(id 1\); does the label 255 mean a class.*data\.labels '\{255: lane\}'"
    refused(tmp_path, found, **settings)
    folders(tmp_path, [0] * 40)
    refused(tmp_path, r"shows 'lane' \(id 1\); are data\.classes all the classes", **settings)


def test_single_bits_are_masks_of_two_classes(tmp_path):
    settings = folders(tmp_path, [0, 1])
    for path in tmp_path.rglob("masks/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) > 0).save(path)
    assert Image.open(path).mode == "1"
    assert (opened(tmp_path, **settings).train.read(0)[1] == np.resize([0, 1], SIZE)).all()
    with pytest.raises(ConfigError, match="is a mask of mode 1; expected one class id"):
        opened(tmp_path, **settings | {"classes": ["ground", "lane", "car"]})


def test_one_name_is_that_of_the_foreground(tmp_path):
    settings = folders(tmp_path, [0, 1, 255]) | {"classes": ["lane"]}
    splits = opened(tmp_path, **settings)
    assert splits.classes == ["background", "lane"]
    assert set(np.unique(splits.train.read(0)[1])) == {0, 1, VOID}, "255 beside 0 and 1 is void"
    said: list[str] = []
    config = DataConfig(root=str(tmp_path), crop_size=[16, 16], **settings)
    check_once(open_splits(config), config, tmp_path / "none.json", say=said.append)
    assert said == ["data.classes: one name, so masks hold 0 (background) and 1 (lane)"]
    folders(tmp_path, [0, 255])
    assert set(np.unique(opened(tmp_path, **settings, labels={255: "lane"}).train.read(0)[1])) == {0, 1}


def test_labels_off_by_one_and_masks_of_255_come_with_the_fix(tmp_path):
    settings = folders(tmp_path, [1, 2]) | {"check": "off"}
    with pytest.raises(ConfigError, match=r"label 2 .*data\.reduce_zero_label if 0 is void and ids start at 1"):
        opened(tmp_path, **settings).train.read(0)
    assert set(np.unique(opened(tmp_path, **settings, reduce_zero_label=True).train.read(0)[1])) == {0, 1}
    folders(tmp_path, [0, 255])
    with pytest.raises(ConfigError, match=r"label 255 .*data\.labels '\{255: lane\}'"):
        opened(tmp_path, **settings, ignore_index=200).train.read(0)


def test_labels_are_merged_renamed_and_ignored(tmp_path):
    settings = folders(tmp_path, list(range(5))) | {"classes": ["road", "car", "bus", "bike", "sky"]}
    splits = opened(tmp_path, **settings, labels={"bus": "car", "bike": "ignore", "sky": "air"})
    assert splits.classes == ["road", "car", "air"]
    raw = np.resize(np.arange(5), SIZE)
    assert (splits.train.read(0)[1] == np.array([0, 1, 1, VOID, 2])[raw]).all()
    refused(tmp_path, r"data\.labels: 'tram' is neither a class \(road", **settings, labels={"tram": "car"})


def test_one_class_against_the_rest(tmp_path):
    drawn = open_splits(DataConfig(synthetic_train=2, synthetic_val=1, labels={"boat": "boat", "*": "rest"}))
    usual = open_splits(DataConfig(synthetic_train=2, synthetic_val=1))
    assert drawn.classes == ["rest", "boat"]
    mask = usual.train.read(0)[1]
    boat = usual.classes.index("boat")
    assert (drawn.train.read(0)[1] == np.where(mask == VOID, VOID, mask == boat)).all()
    settings = folders(tmp_path, [0, 7, 9, 255])
    splits = opened(tmp_path, **settings, labels={9: "lane", "*": "ground"})
    assert (splits.train.read(0)[1] == np.resize([0, 0, 1, 255], SIZE)).all()
    splits = opened(tmp_path, **settings, labels={"ground": "g", "lane": "l", "*": "more"}, check="off")
    assert splits.classes == ["g", "l", "more"]
    assert (splits.train.read(0)[1] == np.resize([0, 2, 2, 255], SIZE)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_colors": "palette"},
        {"reduce_zero_label": True},
        {"val_fraction": 0.2},
        {"val_group": "a"},
        {"leave_out": "a"},
        {"label_share": 0.5},
    ],
    ids=str,
)
def test_settings_that_would_change_nothing_are_named(settings):
    with pytest.raises(ConfigError, match=rf"data\.{next(iter(settings))}: changes nothing .*; leave it out"):
        open_splits(DataConfig(**settings))


def test_values_of_masks_that_are_not_ids(tmp_path):
    settings = folders(tmp_path, [7, 26, 0]) | {"classes": ["road", "car"]}
    splits = opened(tmp_path, **settings, labels={7: "road", 26: "car", 0: "ignore"})
    raw = np.resize([7, 26, 0], SIZE)
    assert (splits.train.read(0)[1] == np.select([raw == 7, raw == 26], [0, 1], VOID)).all()
    folders(tmp_path, [7, 26, 1])
    config = DataConfig(root=str(tmp_path), **settings, labels={7: "road", 26: "car", 0: "ignore"})
    with pytest.raises(ConfigError, match=r"label 1 \(256 pixels\) is outside the class list 7, 26 and .*data\.labels"):
        open_splits(config).train.read(0)


COLORS = [(0, 0, 0), (255, 128, 0), (9, 9, 9)]


@pytest.mark.parametrize("form", ["rgb", "palette"])
def test_masks_in_colors(tmp_path, form):
    settings = folders(tmp_path, np.array(COLORS))
    raw = np.resize(np.array(COLORS), (*SIZE, 3))
    if form == "palette":  # whose indices are no ids
        for path in tmp_path.glob("*/masks/*.png"):
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    splits = opened(tmp_path, **settings, mask_colors=[list(color) for color in COLORS])
    expected = np.select([(raw == color).all(2) for color in COLORS[:2]], [0, 1], VOID)
    assert (splits.train.read(0)[1] == expected).all()


def test_masks_in_colors_that_are_not_listed(tmp_path):
    settings = folders(tmp_path, np.array(COLORS))
    config = DataConfig(root=str(tmp_path), **settings, mask_colors=[[0, 0, 0], [255, 128, 0]])
    with pytest.raises(ConfigError, match=r"color \[9, 9, 9\] \(256 pixels\) is not in data\.mask_colors"):
        open_splits(config).train.read(0)
    with pytest.raises(ConfigError, match=r"mask of mode RGB; .* or set data\.mask_colors"):
        open_splits(DataConfig(root=str(tmp_path), **settings)).train.read(0)
    for colors, words in (
        ([[0, 0, 0]], "1 colors for 2 classes"),
        ([[0, 0, 0], [0, 0, 0]], "stands twice"),
        ([[0, 0, 0], [0, 0, 300]], "is no color"),
    ):
        refused(tmp_path, rf"data\.mask_colors: .*{words}", **settings, mask_colors=colors)
    palette = opened(tmp_path, **settings, mask_colors="palette", palette=[list(c) for c in COLORS[:2]], check="off")
    assert palette.classes == ["ground", "lane"]


def test_all_classes_that_are_not_listed_can_become_one():
    config = DataConfig(labels={"boat": "boat", "*": "rest"}, synthetic_train=3, synthetic_val=1)
    merged, whole = open_splits(config), open_splits(DataConfig(synthetic_train=3, synthetic_val=1))
    assert merged.classes == ["rest", "boat"]
    boat = whole.classes.index("boat")
    for i in range(3):
        mask, known = merged.train.read(i)[1], whole.train.read(i)[1]
        assert np.array_equal(mask, np.where(known == 255, 255, known == boat))


def test_merged_colors(tmp_path):
    settings = folders(tmp_path, np.array(COLORS)) | {"classes": ["a", "b", "c"]}
    splits = opened(tmp_path, **settings, mask_colors=[list(c) for c in COLORS], labels={"c": "a"})
    assert (splits.classes, set(np.unique(splits.train.read(0)[1]))) == (["a", "b"], {0, 1})


def rotate(path: Path, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.open(path).save(path, exif=tags)


def test_rotated_photos_are_turned_with_masks_of_the_turned_size(tmp_path):
    settings = folders(tmp_path)
    stored = np.asarray(Image.open(tmp_path / "train/images/train0.png"))
    rotate(tmp_path / "train/images/train0.png", 6)
    Image.fromarray(np.ones(SIZE[::-1], np.uint8)).save(tmp_path / "train/masks/train0.png")
    splits = opened(tmp_path, **settings)
    image, mask = splits.train.read(0)
    assert (image == np.rot90(stored, -1)).all()
    assert (mask.shape, splits.train.size_of(0)) == (SIZE[::-1], SIZE[::-1])
    for orientation in (6, 3):  # a mask of the stored size, and one that fits both ways
        rotate(tmp_path / "train/images/train1.png", orientation)
        refused(tmp_path, r"train1\.png: is rotated by an EXIF tag", **settings)
    (tmp_path / "more").mkdir()
    stored = picture(tmp_path / "more" / "m.png")
    rotate(tmp_path / "more" / "m.png", 3)
    unlabeled = open_splits(DataConfig(root=str(tmp_path), **settings, unlabeled="more")).unlabeled
    assert (unlabeled.read(0)[0] == stored[::-1, ::-1]).all(), "without a mask, nothing speaks against it"


def test_images_without_any_labels(tmp_path):
    for i in range(12):
        picture(tmp_path / f"{i}.png", seed=i)
    config = DataConfig(
        format="folders", root=str(tmp_path), train_images=".", train_masks=None, val_fraction=0.3, classes=["a", "b"]
    )
    splits = open_splits(config)
    assert check_splits(splits, config) is None
    assert (splits.labeled, splits.val.labeled) == (False, False)
    assert len(splits.train) + len(splits.val) == 12
    assert (splits.train.read(0)[1] == UNLABELED).all()


def test_images_without_labels_scored_with_some(tmp_path):
    settings = folders(tmp_path) | {"train_masks": None}
    splits = opened(tmp_path, **settings)
    assert (splits.labeled, splits.val.labeled) == (False, True)
    splits = opened(tmp_path, **settings, val_masks=None)
    assert not splits.val.labeled
    refused(
        tmp_path,
        r"data\.val_masks: null, but the training",
        **settings | {"train_masks": "train/masks"},
        val_masks=None,
    )


def test_names_that_a_terminal_would_obey_are_refused(tmp_path):
    folders(tmp_path)
    picture(tmp_path / "train/images" / "a\x1b[2Jb.png")
    with pytest.raises(ConfigError, match="control character") as error:
        opened(tmp_path, format="folders", classes=["a", "b"])
    assert not re.search(r"\x1b", str(error.value))
