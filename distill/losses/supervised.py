"""What a label teaches: cross-entropy and its relatives, and the losses that follow the score of a whole class.

Pixels without a label count in none of them. The losses of this module that are means over pixels divide by the
step's count of labelled pixels; those that relate pixels (OHEM, Dice, Jaccard, Lovász) are taken over the labelled
pixels of a micro-batch and averaged over the micro-batches, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import UNLABELLED
from distill.losses.base import PixelTerm

IGNORED = -100


def labels_of(mask: Tensor) -> Tensor:
    """The classes of a mask, int64, with `IGNORED` where there is no label."""
    return mask.long().masked_fill(mask >= UNLABELLED, IGNORED)


def class_weights(pixels: Tensor, scheme: Literal["median", "log"] = "log") -> Tensor:
    """Class weights from how many pixels each class has in the training set.

    - `median`: median frequency / frequency. Eigen and Fergus, 2015, arXiv:1411.4734.
    - `log`: 1 / log(1.02 + frequency). Paszke et al., ENet, 2016, arXiv:1606.02147.

    They are scaled so that the mean weight of a labelled pixel is 1: cross-entropy keeps its size, and with it the
    learning rate and the weights of the other terms keep their meaning.

    Args:
        pixels: labelled pixels of each class `[C]`.
        scheme: one of the above.

    Returns:
        `[C]`, float64; 0 for a class that has no pixel.

    Raises:
        ValueError: no class has a pixel.
    """
    total = pixels.sum()
    if total == 0:
        raise ValueError("class weights from pixel counts that are all 0: is the training set labelled?")
    present = pixels > 0
    frequency = pixels.double() / total
    if scheme == "log":
        weights = 1 / torch.log(1.02 + frequency)
    else:
        weights = frequency[present].median() / frequency.clamp(min=1e-12)
    weights = torch.where(present, weights, 0)
    return weights / (weights * frequency).sum()


class CrossEntropy(PixelTerm):
    """Cross-entropy, w_y · (-log p_y), mean over the labelled pixels.

    With class weights it is the sum of the weighted values divided by the NUMBER of labelled pixels, where PyTorch
    divides by the sum of their weights. That sum is a random variable of the batch: divided by it, a pixel of a
    rare class would weigh less in a batch that holds many of them, and the gradient would depend on how a step is
    split unless that sum were exchanged too. Divided by the count, a pixel's weight is its class's, always; weights
    with mean 1 over the pixels (as `class_weights` gives) keep the scale of the unweighted loss.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(self, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0):
        """Settings.

        Args:
            class_weights: one weight a class; None: 1 for all.
            label_smoothing: ε in 0 … 1: the label's distribution becomes (1-ε) one-hot + ε/C. Szegedy et al., 2016,
                arXiv:1512.00567.

        Raises:
            ValueError: a smoothing outside of 0 … 1, or a negative weight.
        """
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be between 0 and 1")
        if class_weights is not None and min(class_weights) < 0:
            raise ValueError(f"class_weights={list(class_weights)}: none may be negative")
        self.class_weights: Tensor | None
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float64)
        self.register_buffer("class_weights", weights, persistent=False)
        self.label_smoothing = label_smoothing

    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """w_y · (-log p_y): `[N, ...]`."""
        weights = None if self.class_weights is None else self.class_weights.to(student.dtype)
        return F.cross_entropy(
            student,
            labels_of(mask),
            weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
