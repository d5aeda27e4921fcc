"""What a label teaches: cross-entropy and its relatives, and the losses that follow the score of a whole class.

Pixels without a label count in none of them. The losses of this module that are means over pixels divide by the
step's count of labeled pixels; those that relate pixels (OHEM, Dice, Jaccard, Lovász) are taken over the labeled
pixels of a micro-batch and averaged over the micro-batches, and say so.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import UNLABELED, Outputs, Target
from distill.losses.base import ManyLabels, PixelTerm, Term
from distill.losses.settings import (
    CrossEntropyConfig,
    DiceConfig,
    FocalConfig,
    JaccardConfig,
    LovaszConfig,
    OHEMConfig,
    TermConfig,
)

IGNORED = -100


def labels_of(mask: Tensor) -> Tensor:
    """The classes of a mask, int64, with `IGNORED` where there is no label."""
    return mask.long().masked_fill(mask >= UNLABELED, IGNORED)


class WeightedPixelTerm(PixelTerm):
    """A mean over the labeled pixels, each of which counts as its class does.

    Attributes:
        class_weights: one factor per class, float64 `[C]`; None is 1 for all.
    """

    needs_labels: ClassVar[bool] = True
    config: CrossEntropyConfig | FocalConfig
    class_weights: Tensor | None

    def __init__(self, config: TermConfig | None = None):
        super().__init__(config)
        given = self.config.class_weights
        if isinstance(given, str):
            raise ValueError(
                f"class_weights: {given!r} is for a run, which counts its masks; give one number per class"
            )
        weights = None if given is None else torch.tensor(list(given), dtype=torch.float64)
        self.register_buffer("class_weights", weights, persistent=False)

    def cross_entropy(self, logits: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """w_y · (-log p_y) of every pixel `[N, ...]`; 0 without a label."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.cross_entropy(
            logits,
            labels_of(mask),
            weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=label_smoothing,
        )


class CrossEntropy(WeightedPixelTerm):
    """Cross-entropy, w_y · (-log p_y), mean over the labeled pixels.

    With class weights it is the sum of the weighted values divided by the NUMBER of labeled pixels, where PyTorch
    divides by the sum of their weights. That sum is a random variable of the batch: divided by it, a pixel of a
    rare class would weigh less in a batch that holds many of them, and the gradient would depend on how a step is
    split unless that sum were exchanged too. Divided by the count, a pixel's weight is its class's, always; weights
    with mean 1 over the pixels (as `class_weights` gives) keep the scale of the unweighted loss.
    """

    Config = CrossEntropyConfig
    config: CrossEntropyConfig

    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """w_y · (-log p_y): `[N, ...]`."""
        return self.cross_entropy(student, mask, self.config.label_smoothing)


class Focal(WeightedPixelTerm):
    """Focal loss, w_y · (1 - p_y)^γ · (-log p_y), mean over the labeled pixels.

    p is the softmax over the classes; Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002,
    write it for one class against the rest, which this is for two classes.
    """

    Config = FocalConfig
    config: FocalConfig

    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """w_y · (1 - p_y)^γ · (-log p_y): `[N, ...]`."""
        values = self.cross_entropy(student, mask)
        surprise = F.cross_entropy(student, labels_of(mask), ignore_index=IGNORED, reduction="none")
        # The floor keeps the power's slope finite where a pixel is surely right and γ < 1.
        return (-torch.expm1(-surprise)).clamp(min=1e-12) ** self.config.gamma * values


class OHEM(Term):
    """Cross-entropy of the hard pixels alone: the mean of -log p_y where p_y < `threshold`.

    At least the hardest `min_kept` of the labeled pixels are kept. What is hard depends on the other pixels of the
    micro-batch, and so does the count: the value is taken a micro-batch and averaged over the step's. Shrivastava
    et al., Training Region-based Object Detectors with Online Hard Example Mining, 2016, arXiv:1604.03540.
    """

    Config = OHEMConfig
    config: OHEMConfig
    needs_labels: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The mean over this micro-batch's hard pixels, divided by the number of micro-batches."""
        values = F.cross_entropy(student.upsampled(), labels_of(target.mask), ignore_index=IGNORED, reduction="none")[
            target.labeled
        ]
        kept = math.ceil(self.config.min_kept * values.numel())
        hard = values > -math.log(max(self.config.threshold, 1e-30))
        if int(hard.sum()) < kept:
            hard = torch.zeros_like(hard)
            hard[values.detach().topk(kept).indices] = True
        return target.mean_over_micro_batches((values * hard).sum() / hard.sum().clamp(min=1))


class RegionTerm(Term):
    """A loss that follows the score of whole classes: mean over the classes that the labeled pixels show.

    Taken over all labeled pixels of a micro-batch together, since the score of a class is a ratio of sums over
    pixels; averaged over the step's micro-batches. A class that no label shows does not count (its score would be
    that of an empty set), and without any label the value is 0.
    """

    needs_labels: ClassVar[bool] = True
    many_labels: ClassVar[ManyLabels] = "each class"

    @abstractmethod
    def class_losses(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """The loss of each class, `[C]`, from probabilities and labels of 0 and 1, `[C, pixels]`."""

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The mean over this micro-batch's classes, divided by the number of micro-batches."""

        def by_class(x: Tensor) -> Tensor:  # [N, C, H, W] → [C, pixels]; 0 where there is no label
            return torch.where(target.labeled, x.transpose(0, 1), 0).flatten(1)

        probabilities = by_class(student.upsampled().softmax(1))
        ids = torch.arange(len(probabilities), device=probabilities.device, dtype=target.mask.dtype)
        truth = by_class(target.mask.unsqueeze(1) == ids.view(-1, 1, 1)).to(probabilities.dtype)
        present = truth.amax(1) if truth.shape[1] else truth.new_zeros(len(truth))
        losses = self.class_losses(probabilities, truth) * present
        return target.mean_over_micro_batches(losses.sum() / present.sum().clamp(min=1))


class Dice(RegionTerm):
    """Soft Dice loss, 1 - (2 I + s) / (P + Y + s) of each class.

    I is the sum of the class's probability over its pixels, P that over all pixels, Y its number of pixels.
    Milletari et al., V-Net, 2016, arXiv:1606.04797.
    """

    Config = DiceConfig
    config: DiceConfig

    def class_losses(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """1 - Dice: `[C]`."""
        intersection, size = (probabilities * truth).sum(1), probabilities.sum(1) + truth.sum(1)
        return 1 - (2 * intersection + self.config.smooth) / (size + self.config.smooth).clamp(min=1e-12)


class Jaccard(RegionTerm):
    """Soft Jaccard loss, 1 - (I + s) / (P + Y - I + s) of each class, in the terms of `Dice`.

    Rahman and Wang, Optimizing Intersection-over-Union in Deep Neural Networks for Image Segmentation, ISVC 2016.
    """

    Config = JaccardConfig
    config: JaccardConfig

    def class_losses(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """1 - IoU: `[C]`."""
        intersection, size = (probabilities * truth).sum(1), probabilities.sum(1) + truth.sum(1)
        return 1 - (intersection + self.config.smooth) / (size - intersection + self.config.smooth).clamp(min=1e-12)


class Lovasz(RegionTerm):
    """Lovász-softmax: the convex continuation of 1 - IoU of each class from hard to soft predictions.

    With the errors |truth - probability| of a class sorted, largest first, it is their sum, each times what the
    Jaccard loss 1 - I / U grows when that pixel joins the wrong ones: 1 / U for one that is missed, and
    I / (U (U - 1)) for one too many, which U then holds. The differences of the losses themselves would be lost in
    float32 where there are many pixels. Berman et al., The Lovász-Softmax loss, 2018, arXiv:1705.08790.
    """

    Config = LovaszConfig
    config: LovaszConfig

    def class_losses(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        """The Lovász extension of 1 - IoU: `[C]`."""
        errors = (truth - probabilities).abs()
        growth = torch.zeros_like(errors)
        with torch.no_grad():  # a class at a time: its numbers stay in the processor's cache
            for row, error, true in zip(growth, errors, truth, strict=True):
                order = largest_first(error)
                row.scatter_(0, order, jaccard_growth(true.gather(0, order)))
        return (errors * growth).sum(1)


def jaccard_growth(truth: Tensor) -> Tensor:
    """What 1 - I / U grows by when pixels join the wrong ones one after the other.

    Args:
        truth: 1 where a pixel is of the class, else 0, `[n]`.
    """
    missed = truth.cumsum(0, dtype=torch.int32)  # float32 counts to 16.8 million
    total, wrong = missed[-1:], torch.arange(1, len(truth) + 1, dtype=torch.int32, device=truth.device)
    intersection, union = (total - missed).to(truth.dtype), (total + wrong - missed).to(truth.dtype)
    return torch.where(truth > 0, 1 / union, intersection / union / (union - 1).clamp(min=1))


def largest_first(values: Tensor) -> Tensor:
    """The positions that sort numbers ≥ 0 `[n]`, the largest first, equal ones as they stand.

    On the CPU, NumPy sorts whole numbers, with the processor's vector instructions, some 15 times as fast as PyTorch
    sorts floats: the bits of a float ≥ 0 are a whole number of the same order, and below them stands the position.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.argsort(dim=0, descending=True, stable=True)
    keys = ~values.view(torch.int32).long() << 32 | torch.arange(len(values))
    keys.numpy().sort()
    return keys & 0xFFFFFFFF
