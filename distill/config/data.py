"""Settings of the images and masks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.losses.validation import Settings

NAMED_BY_SETTINGS = ("folders", "csv", "mmseg", "hf")  # formats whose classes `data.classes` names


@dataclass
class DataConfig(Settings):
    """Images and masks.

    Args:
        format: `synthetic` (drawn scenes, no files), `folders` (two folders a split, matched by stem, with all below
            them), `csv` (lists of an image and a mask a line), `mmseg` (`img_dir`, `ann_dir`), `hf` (a folder of
            Hugging Face's save_to_disk, or of Parquet files), or a public data set as it is unpacked: `camvid`, `voc`,
            `cityscapes`, `ade20k`, `coco_stuff`; `own` in Python only.
        root: folder of the data set; relative paths below start here.
        in_channels: channels of the images; null reads any file of 8 bits as RGB; 1 reads gray (color of 8 bits is made
            gray); n reads files of n channels. With a number, PNG, TIFF and `.npy` of 16 bits or floats are read as
            they are, all of one type.
        train_images: format `folders`: folder of the training images.
        train_masks: format `folders`: folder of the training masks (8-bit PNG, one class id a pixel); null for images
            without labels.
        train_list: format `csv`: file of the training images.
        unlabeled: folder of images without masks; the student learns from what the teacher says of them.
        unlabeled_share: share of a step's images that come from there, between 0 and 1.
        val_images: format `folders`: folder of the validation images.
        val_masks: format `folders`: folder of the validation masks; null only where `train_masks` is.
        val_list: format `csv`: file of the validation images.
        image_column: format `hf`: column of the images; `image` if not given.
        mask_column: format `hf`: column of the masks; `label`, `annotation` or `mask` if not given.
        unpacked: format `hf`: folder into which its images are unpacked once; `unpacked` in `root` if not given.
        val_fraction: share of the training images, chosen by their names, that is set aside for validation; 0 takes
            the data set's own.
        val_group: regular expression that is searched for in an image's name with its folders: images for which its
            first group (or all that it matches) is the same, such as frames of one video, stay on one side.
        leave_out: regular expression: training images in whose names with their folders it is found (one drive, one
            hospital) are not trained on, `unlabeled` ones neither, and are the validation images.
        image_suffix: formats `folders` and `mmseg`: end of an image's name, without `.jpg`, that its mask's lacks.
        mask_suffix: formats `folders` and `mmseg`: end of a mask's name that its image's lacks, such as `_mask`; both
            may then lie in one folder.
        classes: class names in the order of their ids; public data sets and `synthetic` bring their own. A single name
            is that of the foreground, in masks of 0 and 1.
        multilabel: a pixel may have any number of the classes: `synthetic`; or `folders` whose masks are a folder of
            PNGs for each class (`train/masks/<class>/`), or files of a plane for each (`.npy`, TIFF). They hold 0, 1
            and void; with 0 and 255, set `labels: {255: foreground}`.
        labels: changes of the labels: `{name or value in the masks: name of a class, or ignore}`: merges, renames, and
            gives values that are not numbers of the list a class, such as `{255: lane}`; `'*'` stands for all that is
            not named, as in `{car: car, '*': background}`.
        mask_colors: format `folders`, `mmseg`, `csv` and `hf`: masks are pictures, with one `[r, g, b]` a class in the
            order of `classes`; further colors are void. `palette` takes those of `palette`.
        reduce_zero_label: label 0 is void, and class ids start at 1.
        palette: one `[r, g, b]` a class for pictures; made up if not given.
        ignore_index: value of void in the mask files; never trained on, never scored.
        image_size: `[height, width]` to which images and masks are resized when read; as they are if not given.
        windows: `[height, width]`: larger images are taken for windows of this size, each an image of its own: those to
            learn from overlap by a third, those to score on do not, so that each pixel counts once.
        decoded_dir: folder where images and masks are kept as decoded, a byte a value, and mapped into memory: each
            file is decoded once, not each time. What is in it may be removed at any time.
        crop_size: `[height, width]` of the training crops; smaller images are padded with void.
        augmentations: albumentations transforms before the crop, each `{Name: {argument: value}}`.
        label_share: share of the training images, spread evenly over them, that is trained on; `unlabeled` may name
            the folder of them all.
        max_train_samples: use only that many training images.
        max_eval_samples: use only that many validation images.
        cache: keep decoded images in memory (once a worker), but neither windows nor what `decoded_dir` holds.
        max_pixels: larger images are refused before they are decoded.
        check: what is looked at before the first step: `off`, `headers` (every file opened) or `full` (every file
            decoded, every label looked at); not again in the same output folder as long as no file changes.
        allow_missing_classes: go on if no training mask shows a pixel of some class.
        max_void_share: go on up to this share of void pixels in the training masks, 0 to 1.
        synthetic_train: format `synthetic`: number of training scenes.
        synthetic_val: format `synthetic`: number of validation scenes.
        synthetic_size: format `synthetic`: `[height, width]` of a scene.
        synthetic_channels: format `synthetic`: channels of a scene; 3 are red, green and blue.
        synthetic_depth: format `synthetic`: type of its values.
        num_workers: processes that read and augment images, for each training process; 0 reads in the training
            process itself.
    """

    format: Literal[
        "synthetic", "camvid", "folders", "csv", "mmseg", "hf", "voc", "cityscapes", "ade20k", "coco_stuff", "own"
    ] = "synthetic"
    root: str = "."
    in_channels: int | None = None
    train_images: str = "train/images"
    train_masks: str | None = "train/masks"
    train_list: str = "train.csv"
    unlabeled: str | None = None
    unlabeled_share: float = 0.5
    val_images: str = "val/images"
    val_masks: str | None = "val/masks"
    val_list: str = "val.csv"
    image_column: str | None = None
    mask_column: str | None = None
    unpacked: str | None = None
    val_fraction: float = 0.0
    val_group: str | None = None
    leave_out: str | None = None
    image_suffix: str = ""
    mask_suffix: str = ""
    classes: list[str] | None = None
    multilabel: bool = False
    labels: dict[str | int, str] | None = None
    mask_colors: list[list[int]] | Literal["palette"] | None = None
    reduce_zero_label: bool = False
    palette: list[list[int]] | None = None
    ignore_index: int = 255
    image_size: list[int] | None = None
    windows: list[int] | None = None
    decoded_dir: str | None = None
    crop_size: list[int] = field(default_factory=lambda: [96, 128])
    augmentations: list[dict[str, dict[str, Any]]] = field(
        default_factory=lambda: [
            {"RandomScale": {"scale_limit": [-0.25, 0.25], "p": 1.0}},
            {"HorizontalFlip": {"p": 0.5}},
            {"RandomBrightnessContrast": {"p": 0.5}},
        ]
    )
    label_share: float = 1.0
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    cache: bool = True
    max_pixels: int = 50_000_000
    check: Literal["off", "headers", "full"] = "full"
    allow_missing_classes: bool = False
    max_void_share: float = 0.5
    synthetic_train: int = 400
    synthetic_val: int = 40
    synthetic_size: list[int] = field(default_factory=lambda: [128, 160])
    synthetic_channels: int = 3
    synthetic_depth: Literal["uint8", "uint16"] = "uint8"
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        super().__post_init__()
        self.above_zero("image_size", "windows", "crop_size", "max_train_samples", "max_eval_samples", "max_pixels")
        self.above_zero("synthetic_train", "synthetic_val", "synthetic_size", "synthetic_channels", "in_channels")
        self.not_negative("ignore_index", "num_workers")
        for name in ("in_channels", "synthetic_channels"):
            self.require((getattr(self, name) or 1) <= 512, name, "must be at most 512")
        self.require(0 <= self.val_fraction < 1, "val_fraction", "must be from 0 to below 1")
        for name in ("val_group", "leave_out"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                text = getattr(self, name)
                raise ValueError(f"{name}: {text!r} is no regular expression ({error}); correct it") from None
        self.require(not (self.val_fraction and self.leave_out), "leave_out", "set this or val_fraction, not both")
        self.zero_to_one("max_void_share")
        self.require(0 < self.label_share <= 1, "label_share", "must be above 0 and at most 1")
        self.require(0 < self.unlabeled_share < 1, "unlabeled_share", "must be above 0 and below 1")
        for name in ("image_size", "windows", "crop_size", "synthetic_size"):
            size = getattr(self, name)
            self.require(size is None or len(size) == 2, name, "must be [height, width]")
        fits = self.windows is None or self.image_size is None
        self.require(fits, "windows", "are of images as they are; leave them or image_size out")
        fits = all(a >= b for a, b in zip(self.windows or self.crop_size, self.crop_size, strict=True))
        self.require(fits, "windows", f"must be at least as large as crop_size {self.crop_size}")

    @property
    def val_from_train(self) -> bool:
        """Whether the validation images are taken from the training images."""
        return bool(self.val_fraction or self.leave_out)
