"""Scores from one integer confusion matrix over the whole set: the same for any batch size and number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.batch import UNLABELLED


def confusion_matrix(prediction: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Counts of pixels by true class (rows) and predicted class (columns).

    Args:
        prediction: class ids `[N, H, W]`.
        mask: uint8 `[N, H, W]`; void and unlabelled pixels are not counted.
        classes: number of classes.

    Returns:
        int64 `[classes, classes]`.
    """
    # Pixels without a label go to an extra row, which is cheaper than picking the others out.
    truth = torch.where(mask < UNLABELLED, mask, classes).long()
    counts = torch.bincount((truth * classes + prediction).flatten(), minlength=(classes + 1) * classes)
    return counts.view(classes + 1, classes)[:classes]


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says.

    Attributes:
        matrix: int64 `[C, C]`, rows are the truth.
    """

    matrix: Tensor

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class, 0 to 1; None if no pixel of the ground truth has it."""
        inter = self.matrix.diag().tolist()
        truth, predicted = self.matrix.sum(1).tolist(), self.matrix.sum(0).tolist()
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
        """Share of labelled pixels that are right."""
        return self.matrix.diag().sum().item() / max(1, self.matrix.sum().item())

    @property
    def skill(self) -> float:
        """Mean IoU with chance taken out: 0 for blind guesses, however frequent the classes are, 1 for perfection.

        Of each class that the ground truth has, (I - E) / (U - E) with E the intersection expected of as many
        predictions strewn blindly: the Gilbert skill score of weather forecasts (Schaefer, 1990, "The critical success
        index as an indicator of warning skill"). A constant prediction has exactly 0. 0 too if the truth has one class.
        """
        if self.present < 2:
            return 0.0
        matrix = self.matrix.double()
        inter, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        expected = truth * predicted / truth.sum()
        skill = (inter - expected) / (truth + predicted - inter - expected)
        return skill[truth > 0].mean().item()
