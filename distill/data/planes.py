"""Masks of many labels a pixel: a plane of 0 and 1 for each class, in files of their own or together in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.batch import UNLABELED, VOID
from distill.config.data import DataConfig
from distill.data.arrays import Header, checked_bytes, open_array
from distill.data.masks import Coding, Labels, coding, inspect_mask, labels_of, read_mask
from distill.data.pairs import PairOfFiles, match
from distill.errors import ConfigError

PLANE = ["background", "foreground"]  # what the values of a plane are called
SUFFIXES = (".npy", ".tif", ".tiff")  # of files that hold all planes
NONE = 253  # in counts of labels
FORMATS = ("folders", "synthetic", "own")


def plane_coding(config: DataConfig) -> Coding:
    """How the values of a plane are read: 0, 1 and void, or as `data.labels` says.

    Raises:
        ConfigError: settings that are for masks of one class a pixel.
    """
    if config.format not in FORMATS:
        raise ConfigError(f"data.multilabel: is for data.format {', '.join(FORMATS)}, not {config.format}")
    for name in ("mask_colors", "reduce_zero_label"):
        if getattr(config, name):
            raise ConfigError(f"data.{name}: changes nothing with data.multilabel; leave it out")
    how = coding(Labels(PLANE, [(0, 0, 0)] * 2, void=(config.ignore_index,)), config.labels)
    if how.classes != PLANE:
        wrong = next((name for name in how.classes if name not in PLANE), how.classes[0])
        fix = "a plane has background, foreground and ignore, as in {255: foreground}"
        raise ConfigError(f"data.labels: {wrong!r} is no label of a plane; {fix}")
    return how


def find_planes(config: DataConfig, images: Path, masks: Path, classes: Sequence[str]) -> list[PairOfFiles]:
    """Images with their planes, by stem: a folder of masks for each class, or files that hold all of them.

    Raises:
        ConfigError: neither; or an image without a plane.
    """
    suffixes = (config.image_suffix, config.mask_suffix)
    missing = [name for name in classes if not (masks / name).is_dir()]
    if len(missing) < len(classes):
        if missing:
            fix = "add it, with masks that are all 0 where the class is not to be seen"
            raise ConfigError(f"{masks / missing[0]}: is not there, but other classes have a folder of masks; {fix}")
        found = [match(images, masks / name, bool(config.in_channels), *suffixes) for name in classes]
        return [replace(of[0], planes=tuple(pair.masks[0] for pair in of)) for of in zip(*found, strict=True)]
    if not masks.is_dir() or not any(path.suffix.lower() in SUFFIXES for path in masks.rglob("*")):
        listed = f"a folder for each class ({', '.join(classes[:3])}{', …' * (len(classes) > 3)})"
        raise ConfigError(
            f"{masks}: data.multilabel needs {listed}, or files of a plane for each class ({', '.join(SUFFIXES)}); "
            f"masks of one class a pixel are read without data.multilabel"
        )
    return match(images, masks, bool(config.in_channels), *suffixes, SUFFIXES)


def inspect_planes(paths: Sequence[Path], classes: int, max_pixels: int) -> tuple[int, int]:
    """Height and width of the planes of an image, from their headers.

    Raises:
        ConfigError: they cannot be opened, are of several sizes, or not one a class.
    """
    if len(paths) == 1:
        header = _header(paths[0], classes, max_pixels)
        return header.height, header.width
    sizes = [inspect_mask(path, max_pixels, False) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            is_not = f"is {size[1]}×{size[0]}, but {paths[0]} is {sizes[0][1]}×{sizes[0][0]}"
            raise ConfigError(f"{path}: {is_not}; make them the same size")
    return sizes[0]


def read_planes(paths: Sequence[Path], classes: int, max_pixels: int, how: Coding) -> np.ndarray:
    """The planes of an image: uint8 `[C, H, W]` of 0, 1 and `VOID`.

    Raises:
        ConfigError: they cannot be read, or hold other values.
    """
    if len(paths) > 1:
        return np.stack([read_mask(path, max_pixels, how) for path in paths])
    path, header = paths[0], _header(paths[0], classes, max_pixels)
    if path.suffix.lower() == ".npy":
        raw = np.array(open_array(path, max_pixels))
    else:
        from distill.data.tiff import read_tiff

        raw = read_tiff(path, max_pixels)
    if raw.dtype.kind not in "bui":
        raise ConfigError(f"{path}: holds planes of {raw.dtype}; store them as uint8")
    raw = raw if raw.shape == (classes, header.height, header.width) else np.moveaxis(raw, 2, 0)
    return labels_of(path, raw.astype(np.uint8) if raw.dtype.kind == "b" else raw, how)


def _header(path: Path, classes: int, max_pixels: int) -> Header:
    """Of a file that holds all planes, `[H, W, C]` or, in `.npy`, `[C, H, W]`; PNG and the like hold none."""
    if path.suffix.lower() == ".npy":
        array = open_array(path, max_pixels)
        shape = array.shape
        if len(shape) == 3 and shape[2] != classes and (shape[0] == classes or shape[0] < shape[2]):
            shape = (*shape[1:], shape[0])
        header = Header(*(*shape, 1)[:3])
        checked_bytes(path, max_pixels, (header.height, header.width, header.channels), array.dtype)
    else:
        from distill.data.tiff import tiff_header

        header = tiff_header(path, max_pixels)
    if header.channels != classes:
        holds = f"holds {header.channels} plane{'s' * (header.channels > 1)}"
        raise ConfigError(f"{path}: {holds}, but data.classes names {classes}; store [height, width, {classes}]")
    return header


def label_counts(mask: np.ndarray) -> np.ndarray:
    """Pixels of each class, of no label (254) and of void (255), int64 `[256]`, in a mask `[H, W]` or planes.

    Of planes `[C, H, W]`, those places where a class is not are counted at `NONE`.
    """
    if mask.ndim == 2:
        return np.bincount(mask.ravel(), minlength=256)
    counts = np.zeros(256, np.int64)
    counts[: len(mask)] = (mask == 1).sum((1, 2))
    for place, value in ((NONE, 0), (UNLABELED, UNLABELED), (VOID, VOID)):
        counts[place] = (mask == value).sum()
    return counts
