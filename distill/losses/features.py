"""Feature maps compared directly: hints, attention transfer, masked generative distillation."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Target
from distill.losses.base import MapTerm
from distill.losses.geometry import Cells
from distill.losses.settings import ATConfig, HintConfig, MGDConfig


def mean_squared_error(student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
    """Squared difference of two maps `[N, C, h, w]`, mean over channels and over the pixels that are not void."""
    counts = cells.count_valid(target.mask, student.dtype)
    errors = (student - teacher).square().mean(1)
    return target.mean_over_pixels((counts * torch.where(counts > 0, errors, 0)).sum())


class Hint(MapTerm):
    """Hints: mean squared error between the teacher's features and the student's behind a 1×1 adapter.

    Mean over channels and pixels. Romero et al., FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550; their
    regressor is a convolution as wide as the difference of the maps' sizes asks for, which are resized here, they train
    toward the hint first and toward the labels after, and they take half the sum of the squares.
    """

    Config = HintConfig
    config: HintConfig
    adapts: ClassVar[bool] = True

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        return mean_squared_error(student, teacher, cells, target)


class AT(MapTerm):
    """Attention transfer: ‖Q of student / ‖Q‖ - Q of teacher / ‖Q‖‖², Q the channels' mean of |feature|^p.

    The norm is over the places of an image; mean over images; between 0 and 2. Zagoruyko and Komodakis, Paying More
    Attention to Attention, 2017, arXiv:1612.03928; the authors' program takes the mean over places where this takes
    the sum. Relates the pixels of an image, and so counts images: exact under any split into micro-batches with
    equally many images; an image that is all void counts 0.
    """

    Config = ATConfig
    config: ATConfig

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        counts = cells.count_valid(target.mask, student.dtype)

        def attention(features: Tensor) -> Tensor:
            places = torch.where(counts > 0, features.abs().pow(self.config.power).mean(1), 0) * counts.sqrt()
            return F.normalize(places.flatten(1), dim=1)

        return target.mean_over_micro_batches((attention(student) - attention(teacher)).square().sum(1).mean())


class Generator(nn.Module):
    """MGD's adapter: 1×1 to the teacher's channels, holes, then 3×3, ReLU, 3×3 to fill them."""

    def __init__(self, student_channels: int, teacher_channels: int, mask_ratio: float):
        """Settings.

        Args:
            student_channels: of the input.
            teacher_channels: of the output.
            mask_ratio: share of the places that become holes.
        """
        super().__init__()
        self.mask_ratio = mask_ratio
        self.align = nn.Conv2d(student_channels, teacher_channels, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """The teacher's features as guessed from the student's `[N, C, h, w]` with holes."""
        kept = torch.rand(features[:, :1].shape, device=features.device) >= self.mask_ratio
        return self.generate(self.align(features) * kept)


class MGD(MapTerm):
    """Masked generative distillation: the teacher's features guessed from the student's with holes.

    Squared error, mean over channels and over the pixels that are not void; the paper's sum over channels and places
    of an image is this × C·h·w. The holes come from torch's random generator. The 3×3 convolutions of the adapter see
    void places, as the networks do. Yang et al., Masked Generative Distillation, 2022, arXiv:2205.01529; their program
    has the 1×1 convolution before the holes only where the channels differ, here it is there always.
    """

    Config = MGDConfig
    config: MGDConfig
    adapts: ClassVar[bool] = True

    def make_adapter(self, student_channels: int, teacher_channels: int) -> nn.Module:
        """A `Generator`."""
        return Generator(student_channels, teacher_channels, self.config.mask_ratio)

    def compare(self, student: Tensor, teacher: Tensor, cells: Cells, target: Target) -> Tensor:
        """See the class."""
        return mean_squared_error(student, teacher, cells, target)
