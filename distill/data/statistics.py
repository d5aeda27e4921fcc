"""Mean, spread and range of the training images' channels, in the images' own units, from a sample of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.datasets import Dataset, Splits
from distill.data.transforms import Pixels

IMAGES, PIXELS = 64, 4096  # of the sample: images, and pixels of each


@dataclass(frozen=True)
class ChannelStatistics:
    """What the values of each channel are like, in the images' own units.

    Attributes:
        mean: of the channel.
        std: standard deviation; 1 for a channel that is the same everywhere.
        low: its 1st percentile.
        high: its 99th percentile; above `low`.
    """

    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]


def channel_statistics(splits: Splits) -> ChannelStatistics:
    """Statistics of the training images: the same for the same images, on any number of processes.

    A type's full range says little: a sensor of 12 bits stores numbers up to 4095 of 65535 in 16 bits.

    Raises:
        ConfigError: an image of the sample cannot be read.
    """
    return _of(splits.train)


def pixels_of(dataset: Dataset) -> Pixels:
    """What `build_transform` has to know of a data set's images; reads some unless they are of 8 bits."""
    if dataset.dtype == "uint8":
        return Pixels(dataset.channels)
    found = _of(dataset)
    return Pixels(dataset.channels, dataset.dtype, tuple(found.low), tuple(found.high))


def _of(dataset: Dataset) -> ChannelStatistics:
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).round().astype(int))
    sample = np.concatenate([_pixels(dataset, int(index)) for index in indices])
    mean, std = sample.mean(0), sample.std(0)
    low, high = np.percentile(sample, (1, 99), axis=0)
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    high = np.where(high > low, high, low + std)
    return ChannelStatistics(mean.tolist(), std.tolist(), low.tolist(), high.tolist())


def _pixels(dataset: Dataset, index: int) -> np.ndarray:
    """Some pixels of an image, float64 `[n, C]`: all of a small one, else some drawn from its number."""
    image = dataset.read(index)[0]
    flat = image.reshape(-1, image.shape[2])
    if len(flat) > PIXELS:
        flat = flat[np.random.default_rng(np.random.SeedSequence([index])).integers(0, len(flat), PIXELS)]
    return flat.astype(np.float64)
