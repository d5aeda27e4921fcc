"""Augmentations: albumentations transforms by name, then the crop. Only this module knows albumentations.

Each sample draws from its own generators, seeded by (seed, epoch, index): albumentations' own would repeat the same
numbers in every worker and every epoch.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for updates

import albumentations as A
import cv2
import numpy as np

from distill.batch import VOID
from distill.config.schema import DataConfig
from distill.errors import ConfigError

# Every transform of images and masks but the one that takes code, base classes and those of volumes.
TRANSFORMS: dict[str, Any] = {
    name: cls
    for name, cls in vars(A).items()
    if isinstance(cls, type)
    and issubclass(cls, (A.ImageOnlyTransform, A.DualTransform))
    and not issubclass(cls, A.Transform3D)
    and cls not in (A.Lambda, A.ImageOnlyTransform, A.DualTransform)
}
# cv2.INTER_NEAREST, which albumentations resizes masks with, rounds down and knows no pixel centers: masks would lie up
# to half a pixel beside their images. These are resized by `resize_labels` instead; warps are centered as they are.
RESIZING = ("RandomScale", "Resize", "LongestMaxSize", "SmallestMaxSize", "RandomResizedCrop", "RandomSizedCrop")
REFUSED = {
    "Morphological": "grows one class into another by the order of their ids",
    **{name: "needs boxes beside image and mask" for name in TRANSFORMS if "BBox" in name},
}

Transform = Callable[..., tuple[np.ndarray, ...]]


def build_transform(config: DataConfig) -> Transform:
    """The training transform `(image [H, W, 3], mask [H, W], key) -> (image, mask)`, a pure function of its arguments.

    With `coordinates` (see `distill.data.pixel_positions`) given after the key, it returns them as well: moved as the
    image is, its colors aside.

    Raises:
        ConfigError: an unknown transform or argument in `data.augmentations`.
    """
    height, width = config.crop_size
    compose = A.Compose(
        [
            *(_named(item) for item in config.augmentations),
            A.PadIfNeeded(height, width, fill=0, fill_mask=VOID),
            A.RandomCrop(height, width),
        ]
    )
    for step in compose.transforms:
        if isinstance(step, A.DualTransform):  # of the others, which change colors, coordinates know nothing
            step.add_targets({"coordinates": "image"})

    def transform(
        image: np.ndarray, mask: np.ndarray, key: Sequence[int], coordinates: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        sequence = np.random.SeedSequence(list(key))
        threads = cv2.getNumThreads()  # of the process, which may use OpenCV for other things
        cv2.setNumThreads(0)  # its threads and those of torch get in each other's way, and survive no fork
        compose.set_random_state(np.random.default_rng(sequence), random.Random(int(sequence.generate_state(1)[0])))
        try:
            more = {} if coordinates is None else {"coordinates": coordinates}
            result = compose(image=image, mask=mask, **more)
        finally:
            cv2.setNumThreads(threads)
        return tuple(result[name] for name in ("image", "mask", *more))

    return transform


def _named(item: dict[str, dict[str, Any]]) -> A.BasicTransform:
    """One `{Name: {argument: value}}`, with void where a transform moves pixels in from outside."""
    if len(item) != 1:
        raise ConfigError(f"data.augmentations: {item} must be one {{Name: {{argument: value}}}}")
    ((name, arguments),) = item.items()
    cls = TRANSFORMS.get(name)
    if cls is None:
        raise ConfigError(f"data.augmentations: {name!r} is not an albumentations transform of images and masks")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    _check_alignment(name, arguments)
    if "fill_mask" in cls.InitSchema.model_fields:
        arguments = {"fill_mask": VOID} | arguments
    if name == "CropAndPad":
        arguments["mask_interpolation"] = cv2.INTER_NEAREST_EXACT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Argument")  # albumentations only warns of unknown arguments
            transform = (_with_aligned_masks(cls) if name in RESIZING else cls)(**arguments)
    except Exception as error:  # pydantic's and its own
        raise ConfigError(f"data.augmentations: {name}: {' '.join(str(error).split())[:200]}") from error
    if needed := set(transform.targets_as_params) - {"image", "mask"}:
        needs = ", ".join(sorted(needed))
        raise ConfigError(f"data.augmentations: {name} needs {needs} beside image and mask; take another transform")
    return transform


def _check_alignment(name: str, arguments: dict[str, Any]) -> None:
    """Raises ConfigError for what would move a mask against its image, or mix class ids."""
    if name in REFUSED:
        raise ConfigError(f"data.augmentations: {name} {REFUSED[name]}; take another transform")
    if "mask_interpolation" in arguments or arguments.get("area_for_downscale") == "image_mask":
        wrong = "mask_interpolation" if "mask_interpolation" in arguments else "area_for_downscale: image_mask"
        raise ConfigError(f"data.augmentations: {name}: {wrong} would mix class ids or move masks; leave it out")
    if name in (*RESIZING, "CropAndPad") and arguments.get("interpolation") == cv2.INTER_NEAREST:
        raise ConfigError(
            f"data.augmentations: {name}: interpolation 0 (nearest) moves images by half a pixel; use 1 (linear)"
        )


def _with_aligned_masks(cls: type[A.DualTransform]) -> type[A.DualTransform]:
    """A transform that crops (or not) and resizes, with masks that stay at the pixel centers of the images."""

    class Aligned(cls):  # type: ignore[misc, valid-type]
        def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
            size = super().apply_to_mask(mask, **params).shape[:2]
            left, top, right, bottom = params.get("crop_coords", (0, 0, mask.shape[1], mask.shape[0]))
            return resize_labels(mask[top:bottom, left:right], size)

    return Aligned


def resize_labels(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The nearest label by pixel centers, without a shift at any ratio of sizes.

    Where two labels are equally near, as at every pixel of a mask of half the size, they take turns: always the same
    one would move the whole mask by half a pixel.

    Args:
        mask: `[H, W]`.
        size: new height and width.

    Returns:
        `[size[0], size[1]]`, of the same dtype.
    """
    rows, columns = (_nearest(old, new) for old, new in zip(mask.shape[:2], size, strict=True))
    return mask[rows][:, columns]


def _nearest(old: int, new: int) -> np.ndarray:
    """The nearest of `old` pixels to the center of each of `new` pixels over the same length."""
    # In whole numbers, so that ties are ties: the center of pixel i lies at (2 i + 1) old / (2 new) - 1/2.
    index, remainder = np.divmod((2 * np.arange(new) + 1) * old, 2 * new)
    tie = (remainder == 0) & (np.arange(new) % 2 == 1)
    return np.clip(index - tie, 0, old - 1)


def save_preprocessing(folder: Path, mean: Sequence[float], std: Sequence[float], stride: int) -> None:
    """Writes what the network expects of its input, as `albumentations.Compose.from_pretrained` reads it."""
    pad = {"pad_height_divisor": stride, "pad_width_divisor": stride, "fill": 0, "fill_mask": VOID}
    # Normalized first, so that padding is the mean color, as in Network.forward.
    steps = [A.Normalize(tuple(mean), tuple(std)), A.PadIfNeeded(None, None, position="top_left", **pad)]
    A.Compose(steps).save_pretrained(str(folder))
