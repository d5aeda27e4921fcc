"""Scores: mIoU from one integer confusion matrix, boundary IoU, calibration error.

All are sums over the pixels of the whole set: the same for any batch size and number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from distill.batch import UNLABELED, VOID


def confusion_matrix(prediction: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Counts of pixels by true class (rows) and predicted class (columns).

    Args:
        prediction: class ids `[N, H, W]`; with many labels a pixel, `[N, C, H, W]` of 0 and 1.
        mask: uint8 of the same shape; void and unlabeled pixels are not counted.
        classes: number of classes.

    Returns:
        int64 `[classes, classes]`; with many labels a pixel, `[classes, 2, 2]`: without and with each class.
    """
    if mask.ndim == 4:
        return torch.stack([confusion_matrix(prediction[:, i], mask[:, i], 2) for i in range(classes)])
    # Pixels without a label go to an extra row, which is cheaper than picking the others out.
    truth = torch.where(mask < UNLABELED, mask, classes).long()
    counts = torch.bincount((truth * classes + prediction).flatten(), minlength=(classes + 1) * classes)
    return counts.view(classes + 1, classes)[:classes]


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says.

    Attributes:
        matrix: int64 `[C, C]`, rows are the truth; with many labels a pixel, `[C, 2, 2]`.
    """

    matrix: Tensor

    @property
    def counts(self) -> Tensor:
        """Of each class, the pixels that are right, that have it, that are said to have it, and all: `[4, C]`."""
        if self.matrix.ndim == 3:
            with_class = self.matrix[:, 1, 1], self.matrix[:, 1].sum(1), self.matrix[:, :, 1].sum(1)
            return torch.stack([*with_class, self.matrix.sum((1, 2))])
        total = self.matrix.sum().expand(len(self.matrix))
        return torch.stack([self.matrix.diag(), self.matrix.sum(1), self.matrix.sum(0), total])

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class, 0 to 1; None if no pixel of the ground truth has it."""
        inter, truth, predicted, _ = self.counts.tolist()
        return [i / (t + p - i) if t else None for i, t, p in zip(inter, truth, predicted, strict=True)]

    @property
    def present(self) -> int:
        """Number of classes that the ground truth has."""
        return sum(value is not None for value in self.iou)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that the ground truth has; 0 if it has none."""
        values = [value for value in self.iou if value is not None]
        return sum(values) / len(values) if values else 0.0

    @property
    def pixel_accuracy(self) -> float:
        """Share of labeled pixels that are right; with many labels a pixel, of pixels and classes."""
        return self.matrix.diagonal(0, -2, -1).sum().item() / max(1, self.matrix.sum().item())

    @property
    def skill(self) -> float:
        """Mean IoU with chance taken out: 0 for blind guesses, however frequent the classes are, 1 for perfection.

        Of each class that the ground truth has, (I - E) / (U - E) with E the intersection expected of as many
        predictions strewn blindly: the Gilbert skill score of weather forecasts (Schaefer, 1990, "The critical success
        index as an indicator of warning skill"). A constant prediction has exactly 0. 0 too if the truth has one class.
        """
        if self.present < 2:
            return 0.0
        inter, truth, predicted, total = self.counts.double()
        expected = truth * predicted / total.clamp(min=1)
        skill = (inter - expected) / (truth + predicted - inter - expected)
        return skill[truth > 0].mean().item()


def some_rows(size: Sequence[int]) -> Iterator[slice]:
    """The rows of an image of a height and width, some at a time."""
    step = max(1, COUNTED // max(1, size[1]))
    return (slice(top, min(top + step, size[0])) for top in range(0, size[0], step))


class Comparison:
    """Masks beside those of a reference, on labeled images.

    Args:
        classes: number of classes.
        multilabel: whether a pixel may have any number of them.
    """

    def __init__(self, classes: int, multilabel: bool = False):
        self.classes = classes
        self.matrices = torch.zeros(2, classes, *((2, 2) if multilabel else (classes,)), dtype=torch.int64)
        self.equal = self.pixels = 0

    def add(self, reference: Tensor, candidate: Tensor, mask: Tensor) -> None:
        """Counts images: class ids of both, and labels, each `[N, H, W]`, or `[N, C, H, W]`."""
        for matrix, prediction in zip(self.matrices, (reference, candidate), strict=True):
            matrix += confusion_matrix(prediction, mask, self.classes)
        self.equal += int((reference == candidate).sum())
        self.pixels += candidate.numel()

    @property
    def reference_mean_iou(self) -> float:
        """0 to 1, of the reference."""
        return Scores(self.matrices[0]).mean_iou

    @property
    def mean_iou(self) -> float:
        """0 to 1, of the candidate."""
        return Scores(self.matrices[1]).mean_iou

    @property
    def agreement(self) -> float:
        """Share of all pixels, void ones too, with the same class."""
        return self.equal / self.pixels


ROWS = 1024  # of an image in which outlines are looked for at once
COUNTED = 1 << 20  # pixels that are counted at once, which takes many bytes of each
BOUNDARY_WIDTH = 0.02  # of the image's diagonal


class BoundaryIoU:
    """IoU of the pixels near the outlines of each class (Cheng et al., 2021, arXiv:2103.16562).

    A mask's pixels count if they lie within 2 % of the image's diagonal of a pixel of another class or of the image's
    edge. Void is void in the prediction too, so both have the same outline there.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = np.zeros((3, classes), dtype=np.int64)  # intersection, truth, prediction

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Counts an image: class ids uint8 `[H, W]`, and labels that may hold void or unlabeled pixels.

        With many labels a pixel, both are `[C, H, W]`, and the outline is that between without and with a class.
        """
        if mask.ndim == 3:
            for i, (said, labels) in enumerate(zip(prediction, mask, strict=True)):
                of_class = BoundaryIoU(2)
                of_class.add(said, labels)
                self.counts[:, i] += of_class.counts[:, 1]
            return
        reach = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*mask.shape))))
        for top in range(0, len(mask), ROWS):  # and as many rows around these as a window reaches
            first, bottom = max(0, top - reach), min(top + ROWS, len(mask))
            seen, inner = slice(first, bottom + reach), slice(top - first, bottom - first)
            known = mask[seen] < UNLABELED
            truth, guess = (np.where(known, labels[seen], np.uint8(VOID)) for labels in (mask, prediction))
            near_truth, near_guess = ((_near_boundary(x, reach) & known)[inner] for x in (truth, guess))
            truth, guess = truth[inner], guess[inner]
            for i, labels in enumerate((truth[near_truth & near_guess & (truth == guess)], truth[near_truth])):
                self.counts[i] += _histogram(labels, self.classes)
            self.counts[2] += _histogram(guess[near_guess], self.classes)

    @property
    def iou(self) -> list[float | None]:
        """Of each class, 0 to 1; None if the ground truth has no outline of it."""
        return [int(i) / int(t + p - i) if t else None for i, t, p in self.counts.T]

    @property
    def mean(self) -> float:
        """Mean over the classes that the ground truth has; 0 if it has none."""
        values = [value for value in self.iou if value is not None]
        return sum(values) / len(values) if values else 0.0


def _histogram(labels: np.ndarray, classes: int) -> np.ndarray:
    """How often there is each class id among some, int64 `[classes]`."""
    parts = np.array_split(labels, 1 + len(labels) // COUNTED)
    return np.sum([np.bincount(part, minlength=classes) for part in parts], axis=0)


def _near_boundary(labels: np.ndarray, reach: int) -> np.ndarray:
    """Where a window around the pixel holds more than one label, or the image's edge: bool `[H, W]`."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    # Beyond the edge lies 0 for the minimum and 255 for the maximum, so a window that reaches out sees two labels.
    low = cv2.erode(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    high = cv2.dilate(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=255)
    return low != high


class Calibration:
    """Expected calibration error of the highest probability (Guo et al., 2017, arXiv:1706.04599).

    Labeled pixels are sorted into equal bins by confidence; the error is the mean, over pixels, of the distance
    between a bin's accuracy and its mean confidence.

    Args:
        bins: number of bins.
    """

    def __init__(self, bins: int = 15):
        self.bins = bins
        self.pixels, self.right = np.zeros(bins, dtype=np.int64), np.zeros(bins, dtype=np.int64)
        self.confidence = np.zeros(bins)

    def add(self, confidence: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Counts an image: probabilities of the predicted class, class ids and labels, each `[H, W]`."""
        sums = np.zeros(self.bins)
        for rows in some_rows(mask.shape):
            known = mask[rows] < UNLABELED
            values = confidence[rows][known].astype(np.float64)
            places = np.minimum((values * self.bins).astype(np.int64), self.bins - 1)
            self.pixels += np.bincount(places, minlength=self.bins)
            self.right += np.bincount(places[prediction[rows][known] == mask[rows][known]], minlength=self.bins)
            np.add.at(sums, places, values)  # in the order of the pixels, however many rows come at a time
        self.confidence += sums

    @property
    def error(self) -> float:
        """0 (a confidence of 70 % is right in 70 % of cases) to 1."""
        return float(np.abs(self.right - self.confidence).sum() / max(1, self.pixels.sum()))
