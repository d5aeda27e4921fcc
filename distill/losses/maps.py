"""Distributions and correlations over a whole map: channel-wise distillation and DIST."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Target
from distill.losses.base import ManyLabels, MapTerm
from distill.losses.geometry import Cells, unless_constant
from distill.losses.settings import CWDConfig, DISTConfig


def log_softmax_over(scores: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Log-probabilities over the last axis, where entry i stands for `counts` equal ones; none for 0.

    Args:
        scores: `[..., P]`.
        counts: ≥ 0, broadcastable to `scores`.
        temperature: T > 0.

    Returns:
        log of (n_i exp(x_i / T) / Σ n exp(x / T)); a very low number, finite, where the count is 0.
    """
    lowest = torch.finfo(scores.dtype).min
    empty = counts == 0
    top = scores.detach().masked_fill(empty, lowest).amax(-1, keepdim=True)
    weighted = (scores - top) / temperature + counts.clamp(min=1e-30).log()
    return F.log_softmax(weighted.masked_fill(empty, lowest), -1)


def kl_over(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher‖student) over the last axis, of log-probabilities made by `log_softmax_over` with equal counts."""
    return (teacher.exp() * (teacher - student)).sum(-1)


class CWD(MapTerm):
    """Channel-wise distillation: each channel is a distribution over the places of the image.

    T² · mean over channels of KL(softmax over places of teacher / T ‖ that of student / T), mean over images. Shu et
    al., Channel-wise Knowledge Distillation for Dense Prediction, 2021, arXiv:2011.13256. Features with other channel
    counts go through a 1×1 adapter. A place counts as often as it has pixels, in the authors' program once: on
    logits of a head with `align_corners` the cells of the edge have half as many pixels as others, and count half,
    those of the corners a quarter. Relates the pixels of an image, and so counts images, not pixels: exact under any
    split of a step into micro-batches with equally many images; an image that is all void counts 0.
    """

    Config = CWDConfig
    config: CWDConfig
    adapts: ClassVar[bool] = True

    def make_adapter(self, student_channels: int, teacher_channels: int) -> nn.Module:
        """A 1×1 convolution, or nothing where the channels agree."""
        if student_channels == teacher_channels:
            return nn.Identity()
        return super().make_adapter(student_channels, teacher_channels)

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype).flatten(1).unsqueeze(1)
        ours, theirs = (log_softmax_over(x.flatten(2), counts, self.config.temperature) for x in (student, teacher))
        return target.mean_over_micro_batches(kl_over(ours, theirs).mean() * self.config.temperature**2)


class DIST(MapTerm):
    """Distillation by correlation: T² (β · inter + γ · intra), on softmax(logits / T).

    - inter: 1 - Pearson's correlation between the teacher's and the student's probabilities of a pixel, mean over
      pixels: as exact as any mean over pixels.
    - intra: for each class, 1 - the correlation between its probabilities over all pixels (the samples), mean over
      classes. It relates the pixels of a micro-batch, and is averaged over the step's micro-batches.

    Huang et al., Knowledge Distillation from a Stronger Teacher, 2022, arXiv:2205.10536. Where either side does not
    vary, but for rounding, there is nothing to correlate: that part is 1 and has no gradient. Cells of the edge count
    as in `CWD`; in the authors' program each counts once.
    """

    Config = DISTConfig
    config: DISTConfig
    many_labels: ClassVar[ManyLabels] = "cannot"

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype).flatten()
        student, teacher = (
            F.softmax(x.movedim(1, -1).flatten(0, 2) / self.config.temperature, -1) for x in (student, teacher)
        )
        inter = ((1 - correlation(student, teacher, counts.new_ones(student.shape[1]))) * counts).sum()
        intra = (1 - correlation(student.T, teacher.T, counts)).mean() * (counts.sum() > 0)
        between = target.mean_over_pixels(self.config.beta * inter)
        within = target.mean_over_micro_batches(self.config.gamma * intra)
        return (between + within) * self.config.temperature**2


def correlation(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Pearson's correlation over the last axis, whose entries count `weights` times; 0 where one is constant."""
    share = weights / weights.sum().clamp(min=1e-12)
    root = share.sqrt()
    a, b = (unless_constant((x - (x * share).sum(-1, keepdim=True)) * root, x * root, -1) for x in (a, b))
    return F.cosine_similarity(a, b, -1)
