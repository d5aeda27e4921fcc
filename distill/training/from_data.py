"""What a run's settings leave to the data: class weights, the images' mean and std, and what is done without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distill.config.networks import IMAGENET_MEAN, IMAGENET_STD, NetworkConfig
from distill.config.schema import Config
from distill.data import Splits, channel_statistics
from distill.data.class_weights import class_weights
from distill.errors import ConfigError
from distill.losses import TERMS
from distill.models import RGB
from distill.models.image_input import check_bands


def settled(config: Config, splits: Splits) -> Config:
    """The settings with everything that the data decides.

    Raises:
        ConfigError: settings that this data does not allow.
    """
    return with_class_weights(with_normalization(without_labels(config, splits), splits), splits)


def check_heads(config: Config, splits: Splits) -> None:
    """Raises ConfigError for a network of one class a pixel on data of many, and the reverse."""
    for name in ("teacher", "student"):
        head = getattr(config, name).head
        if (head == "multilabel") != splits.multilabel:
            has = "masks of any number of classes at a pixel" if splits.multilabel else "masks of one class a pixel"
            fix = "set multilabel" if splits.multilabel else "set softmax, or data.multilabel true if that is wrong"
            raise ConfigError(f"{name}.head: {head} does not go with {has}; {fix}")


def without_labels(config: Config, splits: Splits) -> Config:
    """The settings as they are for images without labels: the student learns from the teacher alone.

    Raises:
        ConfigError: settings that need labels.
    """
    if not splits.val.labeled:
        if config.export.int8:
            raise ConfigError("export.int8: INT8 files are admitted by their mIoU, and no validation image has labels")
        config = replace(config, keep="last")  # none of its scores is better than another
    if splits.labeled:
        return config
    if config.teacher.source is None and config.teacher.arch != "own":
        raise ConfigError("teacher.checkpoint: images without labels train no teacher; name one that there is")
    silent: dict[str, Any] = {}
    for name, term in TERMS.items():
        section = getattr(config, name)
        if not term.needs_teacher:
            silent[name] = replace(section, weight=0.0)
        elif section.weight and term.needs_labels:
            raise ConfigError(f"{name}.weight: this loss needs labels, and no training image has any; set 0")
    return replace(config, baseline=replace(config.baseline, enabled=False), **silent)


def with_class_weights(config: Config, splits: Splits) -> Config:
    """The settings with class weights as numbers where they are to be taken from the training masks.

    Raises:
        ConfigError: not one weight a class.
    """
    counts = None
    sections = {}
    for name in ("cross_entropy", "focal"):
        section = getattr(config, name)
        wanted = 2 if splits.multilabel else len(splits.classes)
        if isinstance(section.class_weights, list) and len(section.class_weights) != wanted:
            count = len(section.class_weights)
            fix = f"for {wanted} classes; give one a class"
            if splits.multilabel:
                fix = "with data.multilabel; give two, for pixels without and with a class"
            raise ConfigError(f"{name}.class_weights: {count} numbers {fix}")
        if section.weight and isinstance(section.class_weights, str):
            if counts is None:
                counts = count_classes(splits)
            pixels, around = counts
            weights = class_weights(pixels, around, section.class_weights)
            sections[name] = replace(section, class_weights=[round(w, 4) for w in weights.tolist()])
    return replace(config, **sections)


def with_normalization(config: Config, splits: Splits) -> Config:
    """The settings with the training images' own mean and std where a network takes other channels than R, G and B."""
    sections: dict[str, Any] = {}
    found = None
    for name in ("teacher", "student"):
        section: NetworkConfig = getattr(config, name)
        usual = (section.mean, section.std) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
        if usual and (splits.image != RGB or section.channels is not None):
            check_bands(section.channels, splits.image)
            found = found or channel_statistics(splits)
            bands, white = section.channels or range(splits.image.channels), splits.image.white
            mean, std = ([round_to(values[b] / white) for b in bands] for values in (found.mean, found.std))
            sections[name] = replace(section, mean=mean, std=std)
    return replace(config, **sections)


def round_to(value: float, digits: int = 5) -> float:
    """A number with so many digits that count, as settings show it."""
    return float(f"{value:.{digits}g}")


def count_classes(splits: Splits) -> torch.Tensor:
    """Labeled pixels of each class in the training masks, and of any class in the masks that show it: `[2, C]`.

    With many labels a pixel the classes are two: without, and with one.
    """
    classes = 2 if splits.multilabel else len(splits.classes)  # without and with a class, all of them together
    counts = torch.zeros(2, classes, dtype=torch.int64)
    for i in range(len(splits.train)):
        pixels = torch.from_numpy(np.bincount(splits.train.read(i)[1].ravel(), minlength=256))[:classes]
        counts += torch.stack([pixels, (pixels > 0) * pixels.sum()])
    return counts
