"""Layouts of data sets on disk: for each, a function that finds the pairs and says what their masks hold.

A new one is such a function, and a row of `LAYOUTS`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.config.data import DataConfig
from distill.data import layout_names as names
from distill.data.hugging_face import read_hugging_face
from distill.data.images import IMAGE_SUFFIXES
from distill.data.masks import Color, Labels
from distill.data.pairs import PairOfFiles, find_images, hold_out, leave_out, match, spread
from distill.data.planes import find_planes
from distill.errors import ConfigError, harmless, printable
from distill.visualize import default_palette

BACKGROUND = "background"
MAX_LIST_BYTES = 100_000_000


@dataclass
class Layout:
    """What a data set on disk consists of.

    Attributes:
        train: images to learn from, with their masks.
        val: images to score on; empty if a share of the others is to be set aside for that.
        labels: what the masks hold.
        notes: what was taken for granted, to be said aloud.
    """

    train: list[PairOfFiles]
    val: list[PairOfFiles]
    labels: Labels
    notes: Sequence[str] = ()


def read_layout(config: DataConfig) -> Layout:
    """Finds the files of a data set on disk; reads none of the images.

    Raises:
        ConfigError: a missing folder, an image without mask, an empty split, no classes.
    """
    layout = LAYOUTS[config.format](config, Path(config.root))
    if config.reduce_zero_label:
        count = len(layout.labels.classes)
        layout.labels.values, layout.labels.void = range(1, count + 1), (0, *layout.labels.void)
    if config.val_fraction:
        layout.train, layout.val = hold_out(layout.train, config.val_fraction, config.val_group)
    if config.leave_out:
        layout.train, layout.val = leave_out(layout.train, config.leave_out)
    layout.train = spread(layout.train, config.label_share)
    return layout


def _folders(config: DataConfig, root: Path) -> Layout:
    """Any two folders a split, or one with a suffix, or images alone."""
    labels, notes = _own_labels(config)
    _check_root(root)
    train = _pairs(config, root, config.train_images, config.train_masks)
    if config.val_from_train:
        return Layout(train, [], labels, notes)
    val_masks = config.val_masks
    if config.train_masks is None and not (root / (val_masks or "")).is_dir():
        val_masks = None
    if config.train_masks is not None and val_masks is None:
        raise ConfigError("data.val_masks: null, but the training images have masks; set the folder of the others too")
    return Layout(train, _pairs(config, root, config.val_images, val_masks), labels, notes)


def _mmseg(config: DataConfig, root: Path) -> Layout:
    """`img_dir/train`, `ann_dir/train` and so on, as mmsegmentation has its custom data sets."""
    labels, notes = _own_labels(config)
    _check_root(root)
    train, val = (
        _pairs(config, root, f"img_dir/{split}", f"ann_dir/{split}") if split else [] for split in _both(config)
    )
    return Layout(train, val, labels, notes)


def _camvid(config: DataConfig, root: Path) -> Layout:
    """SegNet's version, of 11 classes; or one in colors, whose classes stand in a file beside it."""
    _check_root(root)
    if (root / "class_dict.csv").is_file():  # train/, train_labels/, …: 0001TP_006690_L.png beside 0001TP_006690.png
        listed = [line for line in _lines(root / "class_dict.csv", 4) if line[1].isdecimal()]
        colors = [(row[0], (int(row[1]), int(row[2]), int(row[3]))) for row in listed]
        parts, suffix = [(s, f"{s}_labels") for s in ("train", "val")], "_L"
    elif (root / "label_colors.txt").is_file():  # Cambridge's own, without splits
        text = _text(root / "label_colors.txt").splitlines()
        words = [line.split() for line in text if len(line.split()) >= 4]
        colors = [(word[3], (int(word[0]), int(word[1]), int(word[2]))) for word in words if word[0].isdecimal()]
        parts, suffix = [("701_StillsRaw_full", "LabeledApproved_full")], "_L"
        if not config.val_from_train:
            raise ConfigError(
                f"data.val_fraction: {root} has no validation images; set the share to set aside, e.g. 0.2"
            )
    else:
        labels = Labels(names.CAMVID, names.CAMVID_PALETTE, void=(names.CAMVID_VOID,), own_names=True)
        train, val = (match(root / s, root / f"{s}annot") if s else [] for s in _both(config))
        return Layout(train, val, labels)
    classes = [(name, color) for name, color in colors if name.lower() != "void"]
    if len(classes) < 2:
        raise ConfigError(f"{root}: its list of colors has no classes; expected a name and r, g, b on each line")
    void = [color for name, color in colors if name.lower() == "void"]
    labels = Labels([name for name, _ in classes], [color for _, color in classes], void=(), own_names=True)
    labels.colors = [*labels.palette, *void]
    pairs = [
        match(root / images, root / masks, mask_suffix=suffix)
        for images, masks in (parts[:1] if config.val_from_train else parts)
    ]
    return Layout(pairs[0], pairs[1] if len(pairs) > 1 else [], labels)


def _voc(config: DataConfig, root: Path) -> Layout:
    """`JPEGImages`, `SegmentationClass` and the lists of `ImageSets/Segmentation`; other classes by `data.classes`."""
    _check_root(root)
    root = next(
        (p for p in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012") if (p / "JPEGImages").is_dir()), root
    )
    images = find_images(root / "JPEGImages", bool(config.in_channels))
    found = []
    for split in _both(config):
        pairs = []
        for stem in _text(root / "ImageSets/Segmentation" / f"{split}.txt").split() if split else ():
            if stem not in images:
                raise ConfigError(
                    f"{root}/ImageSets/Segmentation/{split}.txt: {printable(stem)} is not in JPEGImages; remove it"
                )
            pairs.append(PairOfFiles(stem, images[stem], _there(root / "SegmentationClass" / f"{stem}.png")))
        found.append(pairs)
    classes = config.classes or names.VOC
    palette: Sequence[Color] = config.palette or [(0, 0, 0), *default_palette(len(classes) - 1)]
    labels = Labels(classes, palette, void=(config.ignore_index,), own_names=not config.classes)
    _refuse_empty(config, root, found)
    return Layout(found[0], found[1], labels)


def _cityscapes(config: DataConfig, root: Path) -> Layout:
    """`leftImg8bit/train/CITY/…_leftImg8bit.png` and `gtFine/train/CITY/…_gtFine_labelIds.png`: 19 classes of 34."""
    _check_root(root)
    found = [
        match(
            *(root / "leftImg8bit" / split, root / "gtFine" / split),
            image_suffix="_leftImg8bit",
            mask_suffix="_gtFine_labelIds",
        )
        if split
        else []
        for split in _both(config)
    ]
    classes, values, palette = zip(*names.CITYSCAPES, strict=True)
    return Layout(found[0], found[1], Labels(classes, palette, values, (), others_are_void=True, own_names=True))


def _ade20k(config: DataConfig, root: Path) -> Layout:
    """`images/training`, `annotations/training`, …; 0 is void, and the names stand in `objectInfo150.txt`."""
    _check_root(root)
    root = next((p for p in (root, root / "ADEChallengeData2016") if (p / "annotations").is_dir()), root)
    classes = list(config.classes or ())
    if not classes:
        rows = [line.split("\t") for line in _text(root / "objectInfo150.txt").splitlines()]
        classes = [row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdecimal()]
    found = [
        match(root / "images" / split, root / "annotations" / split) if split else []
        for split in _both(config, "training", "validation")
    ]
    count = len(classes)
    palette = config.palette or default_palette(count)
    return Layout(found[0], found[1], Labels(classes, palette, range(1, count + 1), (0,), own_names=True))


def _coco_stuff(config: DataConfig, root: Path) -> Layout:
    """COCO's `train2017` and `val2017` with the masks of COCO-Stuff; their 171 classes stand in `labels.txt`."""
    _check_root(root)
    base = root / "images" if (root / "images").is_dir() else root
    masks = next(
        (root / n for n in ("annotations", "stuffthingmaps") if (root / n / "train2017").is_dir()), root / "annotations"
    )
    rows = [line.partition(":") for line in _text(root / "labels.txt").splitlines()]
    listed = {int(number): name.strip() for number, _, name in rows if number.strip().isdecimal()}
    kept = {i: name for i, name in sorted(listed.items()) if i and i not in names.COCO_UNUSED}  # 0 is unlabeled
    found = [match(base / s, masks / s) if s else [] for s in _both(config, "train2017", "val2017")]
    values = [i - 1 for i in kept]  # as the masks have them
    labels = Labels(list(kept.values()), default_palette(len(kept)), values, (config.ignore_index,), own_names=True)
    return Layout(found[0], found[1], labels)


def _csv(config: DataConfig, root: Path) -> Layout:
    """A file for each split whose lines are an image and a mask, or an image alone."""
    labels, notes = _own_labels(config)
    _check_root(root)
    found = [_csv_pairs(root, root / str(getattr(config, f"{split}_list"))) if split else [] for split in _both(config)]
    if any(pair.mask for pair in found[0]) and not all(pair.mask for pairs in found for pair in pairs):
        bare = next(pair for pairs in found for pair in pairs if not pair.mask)
        raise ConfigError(f"{bare.image}: has no mask in its list, but others do; add it, or list it in data.unlabeled")
    return Layout(found[0], found[1], labels, notes)


def _hf(config: DataConfig, root: Path) -> Layout:
    """Hugging Face's, of `save_to_disk` or Parquet files, see `distill.data.hugging_face`."""
    found = read_hugging_face(config, root)
    named = config if config.classes or not found.names else replace(config, classes=found.names)
    labels, notes = _own_labels(named)
    return Layout(found.train, found.val, labels, [*found.notes, *notes])


LAYOUTS: dict[str, Callable[[DataConfig, Path], Layout]] = {
    "folders": _folders,
    "camvid": _camvid,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "coco_stuff": _coco_stuff,
    "mmseg": _mmseg,
    "csv": _csv,
    "hf": _hf,
}


def _own_labels(config: DataConfig) -> tuple[Labels, list[str]]:
    """Labels whose names are the settings'; a single name is that of the foreground."""
    if not config.classes:
        raise ConfigError(f"data.classes: format {config.format!r} needs the class names, in the order of their ids")
    classes, notes = list(config.classes), list[str]()
    palette: Sequence[Color] = config.palette or ()
    if config.multilabel:
        return Labels(classes, palette or default_palette(len(classes))), notes
    if len(classes) == 1 and classes != [BACKGROUND]:
        notes = [f"data.classes: one name, so masks hold 0 ({BACKGROUND}) and 1 ({classes[0]})"]
        classes, palette = [BACKGROUND, *classes], [[0, 0, 0], *palette] if len(palette) == 1 else palette
    palette = palette or default_palette(len(classes))
    labels = Labels(classes, palette, void=(config.ignore_index,))
    if config.mask_colors is not None:
        labels.void = ()
        labels.colors = palette if isinstance(config.mask_colors, str) else config.mask_colors
    return labels, notes


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is not a folder")


def _pairs(config: DataConfig, root: Path, images: str, masks: str | None) -> list[PairOfFiles]:
    folder = None if masks is None else root / masks
    if config.multilabel and folder:
        return find_planes(config, root / images, folder, config.classes or ())
    return match(root / images, folder, bool(config.in_channels), config.image_suffix, config.mask_suffix)


def _both(config: DataConfig, train: str = "train", val: str = "val") -> list[str]:
    """The two splits; the second is empty if a share of the first is set aside."""
    return [train, "" if config.val_from_train else val]


def _refuse_empty(config: DataConfig, root: Path, found: list[list[PairOfFiles]]) -> None:
    for split, pairs in zip(_both(config), found, strict=True):
        if split and not pairs:
            raise ConfigError(f"{root}: its list of {split} images is empty; set data.root to another folder")


def _there(mask: Path) -> Path:
    if not mask.is_file():
        raise ConfigError(f"{mask}: is not there, but its image is listed; add it, or remove the image from the list")
    return mask


def _csv_pairs(root: Path, file: Path) -> list[PairOfFiles]:
    pairs: dict[str, PairOfFiles] = {}
    for row in _lines(file, 1):
        if not any(Path(row[0]).suffix.lower() == s for s in (*IMAGE_SUFFIXES, ".npy")):
            if pairs:
                raise ConfigError(f"{file}: {printable(row[0])} is no image; expected lines of an image and a mask")
            continue  # the names of the columns
        image, mask = root / row[0], root / row[1] if len(row) > 1 and row[1] else None
        key = Path(row[0]).with_suffix("").as_posix().lstrip("./")
        if not harmless(key):
            raise ConfigError(f"{printable(str(image))}: its name has a control character or is not UTF-8; rename it")
        if key in pairs:
            raise ConfigError(f"{file}: {row[0]} stands twice; keep one")
        pairs[key] = PairOfFiles(key, image, mask and _there(mask))
    if not pairs:
        raise ConfigError(f"{file}: holds no images; expected lines of an image and a mask, such as a.jpg,a.png")
    return list(pairs.values())


def _lines(file: Path, columns: int) -> list[list[str]]:
    rows = [[word.strip() for word in row] for row in csv.reader(_text(file).splitlines()) if any(row)]
    return [row for row in rows if len(row) >= columns]


def _text(file: Path) -> str:
    try:
        if not file.is_file() or file.stat().st_size > MAX_LIST_BYTES:
            raise ConfigError(f"{file}: is not there, or no list; expected a text file, check data.root")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8; store it so") from None
