"""Data sets handed over in Python: anything with a length and pairs of an image and a mask by index."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from distill.batch import VOID
from distill.config.data import DataConfig
from distill.data.arrays import DTYPES
from distill.data.datasets import Dataset, Pair, Splits, check_classes, first
from distill.errors import ConfigError


def own_splits(train: Any, val: Any, config: DataConfig, void: int | None = None) -> Splits:
    """Data sets of somebody's own as splits.

    Args:
        train: has `len()`, and by index a pair of image and mask, or a dict with `image` and `mask`; see `as_image` and
            `as_labels`. It may augment with `random`, NumPy and torch: their generators are seeded for each item.
        val: likewise, not augmented.
        config: class names, palette and limits on the number of samples.
        void: label that is neither trained on nor scored; `data.ignore_index` if not given.

    Raises:
        ConfigError: no data set, an empty one, or classes that cannot be.
    """
    for name in ("windows", "decoded_dir"):
        if getattr(config, name) is not None:
            raise ConfigError(f"data.{name}: changes nothing for data handed over in Python; leave it out")
    classes, palette = check_classes(config.classes or [], config.palette)
    void = config.ignore_index if void is None else void
    many = config.multilabel
    learned = as_dataset(train, "train", len(classes), void, config.in_channels, multilabel=many)
    scored = as_dataset(val, "val", len(classes), void, config.in_channels, learned.dtype, many)
    train, val = first(learned, config.max_train_samples), first(scored, config.max_eval_samples)
    return Splits(train, val, classes, palette, void=[void], multilabel=many)


def as_dataset(
    pairs: Any,
    name: str,
    classes: int,
    void: int,
    channels: int | None = None,
    dtype: str | None = None,
    multilabel: bool = False,
) -> Dataset:
    """A data set whose items are read in the same random state each time.

    Args:
        pairs: the data set.
        name: what it is called in messages.
        classes: number of classes.
        void: label that does not count.
        channels: `data.in_channels`; RGB of 8 bits if not given.
        dtype: of all images; that of the first if not given.
        multilabel: whether masks have a plane of 0 and 1 for each class.

    Raises:
        ConfigError: it has no length, or nothing in it.
    """
    try:
        count = len(pairs)
    except TypeError:
        raise ConfigError(f"{name}: {type(pairs).__name__} is not a data set with len() and pairs by index") from None
    if not count:
        raise ConfigError(f"{name}: {type(pairs).__name__} holds nothing; give at least one pair of image and mask")

    def read(index: int) -> Pair:
        try:
            pair = pairs[index]
            image, mask = (pair["image"], pair["mask"]) if isinstance(pair, Mapping) else pair[:2]
        except Exception as error:  # whatever the data set raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"{name}[{index}]: gives no image and mask ({reason})") from error
        try:
            found = as_image(image, channels), (as_planes if multilabel else as_labels)(mask, classes, void)
        except ValueError as error:
            raise ConfigError(f"{name}[{index}]: {error}") from None
        if found[0].shape[:2] != found[1].shape[-2:]:
            sizes = "×".join(map(str, found[0].shape[:2])), "×".join(map(str, found[1].shape[-2:]))
            raise ConfigError(f"{name}[{index}]: its image is {sizes[0]}, its mask {sizes[1]}; make them the same size")
        if dtype and found[0].dtype != dtype:
            fix = "give all images the same type"
            raise ConfigError(f"{name}[{index}]: its image is {found[0].dtype}, but the first one is {dtype}; {fix}")
        return found

    def reread(index: int) -> Pair:
        with seeded(index):
            return read(index)

    if channels is None:
        dtype = "uint8"
    elif dtype is None:
        dtype = reread(0)[0].dtype.name
    names = [f"{name}-{i:05d}" for i in range(count)]
    return Dataset(names, reread, [()] * count, lambda index: None, drawn=read, channels=channels or 3, dtype=dtype)


def as_image(image: Any, channels: int | None = None) -> np.ndarray:
    """An image as uint8 RGB `[H, W, 3]`; with a number of channels, as it is: `[H, W, channels]`.

    Args:
        image: PIL's; an array `[H, W, 3]`, `[3, H, W]` or gray `[H, W]`; or a tensor likewise. uint8, or floats from 0
            to 1. Not normalized: that is done for each network by its own mean and std.
        channels: if given, arrays and tensors of so many are taken, of uint8, uint16 or floats of any range.

    Raises:
        ValueError: something else.
    """
    if channels is not None:
        return _as_it_is(image, channels)
    array = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else _array(image, "image")
    if array.ndim == 2:
        array = np.stack([array] * 3, 2)
    if array.ndim == 3 and (array.shape[2] != 3 or (array.shape[0] == 3 and isinstance(image, torch.Tensor))):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"its image has the shape {list(_array(image, 'image').shape)}; expected RGB, [H, W, 3]")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"its image holds floats from {array.min():.3g} to {array.max():.3g}; give uint8, or floats from 0 to "
                f"1, before any normalization: what the networks want is said by mean and std"
            )
        array = (255 * array).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"its image is {array.dtype}; give uint8, or floats from 0 to 1")
    return np.ascontiguousarray(array)


def _as_it_is(image: Any, channels: int) -> np.ndarray:
    """An image `[H, W, channels]` of its own type, floats as float32."""
    array = np.asarray(image) if isinstance(image, Image.Image) else _array(image, "image")
    if array.ndim == 2:
        array = array[..., None]
    if (
        array.ndim == 3
        and array.shape[0] == channels
        and (array.shape[2] != channels or isinstance(image, torch.Tensor))
    ):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != channels:
        shape = list(array.shape)
        raise ValueError(f"its image has the shape {shape}; expected [H, W, {channels}], as data.in_channels says")
    if array.dtype.name not in DTYPES:
        raise ValueError(f"its image is {array.dtype}; give uint8, uint16 or float32")
    array = np.ascontiguousarray(array, DTYPES[array.dtype.name])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("its image holds what is not finite (NaN or infinite); replace it by numbers")
    return array


def as_labels(mask: Any, classes: int, void: int) -> np.ndarray:
    """A mask as uint8 `[H, W]` of class ids and `VOID`.

    Args:
        mask: PIL's (not RGB); an array or tensor of whole numbers or bools, `[H, W]`, `[1, H, W]` or `[H, W, 1]`.
        classes: number of classes.
        void: its label for pixels that do not count.

    Raises:
        ValueError: something else, or a label that is neither a class nor void.
    """
    array = np.asarray(mask) if isinstance(mask, Image.Image) else _array(mask, "mask")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iub":
        kind = f"{array.dtype} of the shape {list(array.shape)}"
        raise ValueError(f"its mask is {kind}; expected one class id for each pixel, whole numbers [H, W]")
    labels = array.astype(np.int64)
    wrong = ((labels < 0) | (labels >= classes)) & (labels != void)
    if wrong.any():
        value = int(labels[wrong][0])
        raise ValueError(
            f"label {value} ({int((labels == value).sum())} pixels) is outside the class list 0 to {classes - 1} and "
            f"is not the void label {void}; set ignore_index"
        )
    return np.where(labels == void, VOID, labels).astype(np.uint8)


def as_planes(mask: Any, classes: int, void: int) -> np.ndarray:
    """A mask of any number of classes at a pixel as uint8 `[C, H, W]` of 0, 1 and `VOID`.

    Args:
        mask: an array or tensor of whole numbers or bools, `[C, H, W]` or `[H, W, C]`.
        classes: number of classes.
        void: its label for what does not count.

    Raises:
        ValueError: something else, or a label that is neither 0 nor 1 nor void.
    """
    array = _array(mask, "mask")
    if array.ndim != 3 or classes not in (array.shape[0], array.shape[2]) or array.dtype.kind not in "iub":
        kind = f"{array.dtype} of the shape {list(array.shape)}"
        raise ValueError(f"its mask is {kind}; expected a plane of 0 and 1 for each class, [{classes}, H, W]")
    planes = array if array.shape[0] == classes else array.transpose(2, 0, 1)
    try:
        return np.stack([as_labels(plane, 2, void) for plane in planes])
    except ValueError as error:
        raise ValueError(str(error).replace("class list 0 to 1", "0 and 1 of a plane")) from None


def _array(value: Any, what: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value
    raise ValueError(f"its {what} is {type(value).__name__}; expected a PIL image, an array or a tensor")


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the generators that data sets augment with, Python's, NumPy's and torch's, and puts them back after."""
    seed = [int(n) for n in np.random.SeedSequence(list(key)).generate_state(3)]
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed[0])
        np.random.seed(seed[1])
        torch.set_rng_state(torch.Generator().manual_seed(seed[2]).get_state())  # those of GPUs are left alone
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
