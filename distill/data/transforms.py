"""Augmentations: albumentations transforms by name, then the crop. Only this module knows albumentations.

Those that move pixels work on images of any type. Those that change colors know uint8, and floats from 0 to 1, and some
of them three channels only: other images are brought to the range that the training images mostly lie in, and back.

Each sample draws from its own generators, seeded by (seed, epoch, index): albumentations' own would repeat the same
numbers in every worker and every epoch.
"""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for updates

import albumentations as A
import cv2
import numpy as np

from distill.batch import VOID
from distill.config.data import DataConfig
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


@dataclass(frozen=True)
class Pixels:
    """What an image's pixels are like.

    Attributes:
        channels: values of each.
        dtype: `uint8`, `uint16` or `float32`.
        low: for each channel, the lower end of its usual range; for `uint8` not given.
        high: the upper end.
    """

    channels: int = 3
    dtype: str = "uint8"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def build_transform(config: DataConfig, pixels: Pixels | None = None) -> Transform:
    """The training transform `(image [H, W, C], mask [H, W], key) -> (image, mask)`, a pure function of its arguments.

    With `coordinates` (see `distill.data.pixel_positions`) given after the key, it returns them as well: moved as the
    image is, its colors aside. Images of uint8 stay so, others become float32 in their own units.

    Args:
        config: the augmentations and the size of the crop.
        pixels: what the images are like (see `distill.data.statistics.pixels_of`); RGB of 8 bits if not given.

    Raises:
        ConfigError: an unknown transform or argument in `data.augmentations`, or one that cannot work on such images.
    """
    height, width = config.crop_size
    pixels = pixels or Pixels()
    compose = A.Compose(
        [
            *(_named(item, pixels) for item in config.augmentations),
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
        image = image if image.dtype == np.uint8 else image.astype(np.float32)  # OpenCV knows no more of uint16
        threads = cv2.getNumThreads()  # of the process, which may use OpenCV for other things
        cv2.setNumThreads(0)  # its threads and those of torch get in each other's way, and survive no fork
        compose.set_random_state(np.random.default_rng(sequence), random.Random(int(sequence.generate_state(1)[0])))
        try:
            more = {} if coordinates is None else {"coordinates": coordinates}
            labels = "masks" if mask.ndim == 3 else "mask"  # a plane for each class is a mask of its own
            result = compose(image=image, **{labels: mask}, **more)
            result["image"] = result["image"].reshape(*result["image"].shape[:2], -1)  # a single channel may be lost
        finally:
            cv2.setNumThreads(threads)
        return tuple(result[name] for name in ("image", labels, *more))

    return transform


def _named(item: dict[str, dict[str, Any]], pixels: Pixels) -> A.BasicTransform:
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
            made = _with_aligned_masks(cls) if name in RESIZING else cls
            transform = (_in_usual_range(made, pixels) if pixels.low and _colors(cls) else made)(**arguments)
    except Exception as error:  # pydantic's and its own
        raise ConfigError(f"data.augmentations: {name}: {' '.join(str(error).split())[:200]}") from error
    if needed := set(transform.targets_as_params) - {"image", "mask"}:
        needs = ", ".join(sorted(needed))
        raise ConfigError(f"data.augmentations: {name} needs {needs} beside image and mask; take another transform")
    if _colors(cls) and pixels != Pixels():
        _try_out(name, transform, pixels)
    return transform


def _colors(cls: type) -> bool:
    return issubclass(cls, A.ImageOnlyTransform)


def _in_usual_range(cls: type[A.ImageOnlyTransform], pixels: Pixels) -> type[A.ImageOnlyTransform]:
    """A transform of colors that sees the usual range of each channel as 0 to 1, and gives it back in its own units.

    What lies beyond is not cut off: it sees the end of the range, and what is beyond comes on top again.
    """
    low, high = (np.array(ends, np.float32) for ends in (pixels.low, pixels.high))

    class InUsualRange(cls):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> Any:
            # Around the whole of it: noise and the like are drawn for the image that it is given.
            scaled = (data["image"] - low) / (high - low)
            inside = scaled.clip(0, 1)
            result = super().__call__(*args, force_apply=force_apply, **data | {"image": inside.copy()})
            seen = result["image"].reshape(inside.shape)
            if np.array_equal(seen, inside):
                return result | {"image": data["image"]}
            return result | {"image": ((seen + scaled - inside) * (high - low) + low).astype(np.float32)}

    return InUsualRange


def _try_out(name: str, transform: A.BasicTransform, pixels: Pixels) -> None:
    """Raises ConfigError unless a transform of colors works on images of such pixels."""
    eager, (side, channels) = copy.deepcopy(transform), (96, pixels.channels)
    eager.p = 1.0
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (side, side, channels), np.uint8)
    if pixels.low:
        low, high = (np.array(ends, np.float32) for ends in (pixels.low, pixels.high))
        image = (low + generator.random(image.shape, np.float32) * (high - low)).astype(np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compose = A.Compose([eager])
            compose.set_random_state(generator, random.Random(0))
            found = compose(image=image)["image"]
        if found.shape[:2] != (side, side) or found.size != image.size or found.dtype != image.dtype:
            raise ValueError(f"gives {found.dtype} of shape {list(found.shape)}")
    except Exception as error:  # OpenCV's, NumPy's and albumentations' own
        kind = f"{channels} channel{'s' if channels > 1 else ''} of {pixels.dtype}"
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"data.augmentations: {name} cannot work on images of {kind} ({reason}); take another transform"
        ) from None


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
        mask: `[..., H, W]`.
        size: new height and width.

    Returns:
        `[..., size[0], size[1]]`, of the same dtype.
    """
    rows, columns = (_nearest(old, new) for old, new in zip(mask.shape[-2:], size, strict=True))
    return mask[..., rows, :][..., columns]


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
