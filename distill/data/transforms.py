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
from distill.config import ConfigError, DataConfig

cv2.setNumThreads(0)  # its threads and those of torch get in each other's way

# Every transform of images and masks but the one that takes code.
TRANSFORMS: dict[str, Any] = {
    name: cls
    for name, cls in vars(A).items()
    if isinstance(cls, type) and issubclass(cls, (A.ImageOnlyTransform, A.DualTransform)) and cls is not A.Lambda
}

Transform = Callable[[np.ndarray, np.ndarray, Sequence[int]], tuple[np.ndarray, np.ndarray]]


def build_transform(config: DataConfig) -> Transform:
    """The training transform `(image [H, W, 3], mask [H, W], key) -> (image, mask)`, a pure function of its arguments.

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

    def transform(image: np.ndarray, mask: np.ndarray, key: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        sequence = np.random.SeedSequence(list(key))
        compose.set_random_state(np.random.default_rng(sequence), random.Random(int(sequence.generate_state(1)[0])))
        result = compose(image=image, mask=mask)
        return result["image"], result["mask"]

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
    if "fill_mask" in cls.InitSchema.model_fields:
        arguments = {"fill_mask": VOID} | arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns of unknown arguments
            return cls(**arguments)
    except Exception as error:  # pydantic's and its own
        raise ConfigError(f"data.augmentations: {name}: {' '.join(str(error).split())[:200]}") from error


def save_preprocessing(folder: Path, mean: Sequence[float], std: Sequence[float], stride: int) -> None:
    """Writes what the network expects of its input, as `albumentations.Compose.from_pretrained` reads it."""
    pad = {"pad_height_divisor": stride, "pad_width_divisor": stride, "fill": 0, "fill_mask": VOID}
    # Normalised first, so that padding is the mean colour, as in Network.forward.
    steps = [A.Normalize(tuple(mean), tuple(std)), A.PadIfNeeded(None, None, position="top_left", **pad)]
    A.Compose(steps).save_pretrained(str(folder))
