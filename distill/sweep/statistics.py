"""What the scores of several seeds say: mean and deviation, and the interval in which a difference lies.

Pure functions of NumPy arrays. A score is counted from whole images: of each, by class, the pixels that are right, that
have the class, and that were said to have it. Their sums over images give the mIoU, and so does any choice of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
REPLICATES = 2000
NORMAL = 1.959964  # 97.5 % of the normal distribution lie below it
# 97.5 % of Student's t distribution lie below, by degrees of freedom from 1 on.
STUDENT_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Interval:
    """A difference and where it lies.

    Attributes:
        mean: the difference of all images and seeds.
        low: lower end of the 95 % interval.
        high: upper end of it.
        plain: the same ends by plain percentiles, which are too narrow with few seeds.
    """

    mean: float
    low: float
    high: float
    plain: tuple[float, float]


def count_images(cells: np.ndarray, images: int, classes: int, multilabel: bool = False) -> np.ndarray:
    """Pixels of each image by class: right ones, true ones, predicted ones.

    Args:
        cells: int64 `[K, 3]` of image, true class × classes + predicted class, and pixels.
        images: number of images.
        classes: number of classes.
        multilabel: whether there is a class more in the cells, that of none, which is left out.

    Returns:
        int64 `[images, 3, classes]`.
    """
    if multilabel:
        return count_images(cells, images, classes + 1)[..., :-1]
    counts = np.zeros((images, 3, classes), np.int64)
    image, cell, pixels = cells.T
    truth, predicted = cell // classes, cell % classes
    right = truth == predicted
    np.add.at(counts, (image[right], 0, truth[right]), pixels[right])
    np.add.at(counts, (image, 1, truth), pixels)
    np.add.at(counts, (image, 2, predicted), pixels)
    return counts


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class: counts `[..., 3, C]` → `[..., C]`, NaN where the truth lacks the class."""
    right, truth, predicted = (counts[..., i, :].astype(np.float64) for i in range(3))
    return np.where(truth > 0, right / np.maximum(truth + predicted - right, 1), np.nan)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean over the classes that the truth has, 0 if it has none: counts `[..., 3, C]` → `[...]`."""
    values = iou(counts)
    present = np.isfinite(values)
    return np.where(present, values, 0.0).sum(-1) / np.maximum(present.sum(-1), 1)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None of a single value."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def difference(
    first: np.ndarray, second: np.ndarray, replicates: int = REPLICATES, generator: np.random.Generator | None = None
) -> Interval:
    """How much higher the mIoU of the first is, with a 95 % bootstrap interval over seeds and images.

    In each replicate seeds are drawn with replacement, then images; both settings have the same of either, and all
    seeds the same images, because they were scored on the same (the pigeonhole bootstrap: Owen, 2007,
    arXiv:0712.1111). Three seeds drawn from three seeds scatter too little, by the factor √(2/3), and have shorter
    tails than their number allows: their scatter is stretched by t / z · √(n / (n - 1)), as the expanded percentile
    interval does (Hesterberg, 2014, arXiv:1411.5279). With one seed the interval is one over images alone.

    Args:
        first: int `[seeds, images, 3, classes]`, see `count_images`.
        second: the same of what it is compared with, seed by seed and image by image.
        replicates: how often they are drawn.
        generator: draws; the same every time if not given.
    """
    assert first.shape == second.shape, (first.shape, second.shape)
    generator = generator or np.random.default_rng(0)
    seeds, images = first.shape[:2]
    found = float((mean_iou(first.sum(1)) - mean_iou(second.sum(1))).mean())
    plain, stretched = np.empty(replicates), np.empty(replicates)
    flat = [side.reshape(seeds, images, -1).astype(np.float64) for side in (first, second)]
    for start in range(0, replicates, 250):
        rows = slice(start, min(start + 250, replicates))
        number = rows.stop - start
        drawn = generator.multinomial(images, np.full(images, 1 / images), number).astype(np.float64)
        # Sums of whole numbers below 2^53 are exact, so equal runs differ by exactly 0.
        scores = [
            mean_iou(np.stack([drawn @ one for one in side], 1).reshape(number, seeds, *first.shape[2:]))
            for side in flat
        ]
        of_seed = scores[0] - scores[1]
        picked = np.take_along_axis(of_seed, generator.integers(0, seeds, (number, seeds)), 1).mean(1)
        center = of_seed.mean(1)
        plain[rows], stretched[rows] = picked, center + stretch(seeds) * (picked - center)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(stretched, ends).tolist()
    plain_low, plain_high = np.quantile(plain, ends).tolist()
    return Interval(found, low, high, (plain_low, plain_high))


def stretch(seeds: int) -> float:
    """By what the scatter of means of drawn seeds is multiplied, so that few seeds claim no more than they know."""
    if seeds < 2:
        return 1.0
    freedom = seeds - 1
    if freedom <= len(STUDENT_T):
        t = STUDENT_T[freedom - 1]
    else:  # Cornish and Fisher's expansion
        z = NORMAL
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t / NORMAL * math.sqrt(seeds / freedom)


def gap_closed(student: float, baseline: float, teacher: float) -> float | None:
    """The share of the gap between baseline and teacher that the student closes; None if there is no gap."""
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None
