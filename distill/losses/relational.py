"""How the places of an image relate: pairwise similarity (SKD) and the spread around each class (IFVD)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Target
from distill.losses.base import ManyLabels, MapTerm
from distill.losses.geometry import Cells
from distill.losses.settings import IFVDConfig, SKDConfig


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Vectors of length 1 along an axis; one that is 0 points nowhere, and so stays 0 and takes no gradient."""
    shortest = 1e-12
    longer = vectors.detach().norm(dim=dim, keepdim=True) > shortest
    return torch.where(longer, F.normalize(vectors, dim=dim, eps=shortest), 0)


def nodes(features: Tensor, counts: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A map pooled to at most `side` × `side` nodes, each the mean of its pixels that are not void.

    Args:
        features: `[N, C, h, w]`.
        counts: valid pixels of each cell `[N, h, w]`.
        side: the largest number of nodes along an axis.

    Returns:
        Unit vectors `[N, P, C]` (0 where a node is all void) and the nodes' shares of the image's valid pixels
        `[N, P]`, which sum to 1, or to 0 for an image that is all void.
    """
    size = (min(side, features.shape[2]), min(side, features.shape[3]))
    weights = F.adaptive_avg_pool2d(counts.unsqueeze(1), size)
    pooled = F.adaptive_avg_pool2d(torch.where(counts.unsqueeze(1) > 0, features, 0) * counts.unsqueeze(1), size)
    vectors = unit((pooled / weights.clamp(min=1e-12)).flatten(2).transpose(1, 2), -1)
    weights = weights.flatten(1)
    return vectors, weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


class SKD(MapTerm):
    """Structured distillation, its pairwise part: Σ over pairs of places of (a_ij of student - a_ij of teacher)².

    a_ij is the cosine between the features of places i and j of an image; mean over pairs, then over images. Liu et
    al., Structured Knowledge Distillation for Semantic Segmentation, 2019, arXiv:1903.04197; its pixel-wise part is
    the term `kd`, its adversarial part is left out. Needs no adapter, since a_ij has no channels. Relates the pixels
    of an image, and so counts images: exact under any split into micro-batches with equally many images; an image
    that is all void counts 0.
    """

    Config = SKDConfig
    config: SKDConfig

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype)
        (ours, share), (theirs, _) = nodes(student, counts, self.config.side), nodes(teacher, counts, self.config.side)
        difference = ours @ ours.transpose(1, 2) - theirs @ theirs.transpose(1, 2)
        per_image = torch.einsum("npq,np,nq->n", difference.square(), share, share)
        return target.mean_over_micro_batches(per_image.mean())


class IFVD(MapTerm):
    """Intra-class feature variation: (cos of student - cos of teacher)², mean over the labeled pixels.

    cos is that between a pixel's feature and its class's prototype, the mean feature of the class in that image. Wang
    et al., Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020. Each pixel of a cell
    counts for its own class, so no label is resized. Images are independent: exact under any split between images.
    """

    Config = IFVDConfig
    config: IFVDConfig
    many_labels: ClassVar[ManyLabels] = "cannot"
    needs_labels: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count(target.mask, self.classes, student.dtype).flatten(2)
        difference = self.similarity(student, counts) - self.similarity(teacher, counts)
        total = torch.where(counts > 0, counts * difference.square(), 0).sum()
        return target.mean_over_pixels(total, labeled=True)

    @staticmethod
    def similarity(features: Tensor, counts: Tensor) -> Tensor:
        """Cosine between each place of `[N, C, h, w]` and each class's prototype: `[N, K, P]`."""
        features = features.flatten(2)
        return unit(prototypes_of(features, counts), 2) @ unit(features, 1)


def prototypes_of(features: Tensor, counts: Tensor) -> Tensor:
    """The mean feature of each class in each image, `[N, K, C]`; 0 where the class is absent.

    Args:
        features: `[N, C, P]`.
        counts: pixels of each class `[N, K, P]`.
    """
    features = torch.where(counts.sum(1, keepdim=True) > 0, features, 0)
    return counts @ features.transpose(1, 2) / counts.sum(2, keepdim=True).clamp(min=1)
