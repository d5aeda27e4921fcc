"""What a term is: one number, unweighted, from what student and teacher say of a batch and what its labels say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.batch import UNLABELLED, VOID, Outputs, Target


class Term(nn.Module, ABC):
    """One summand of the objective; sub-modules (adapters) train with the student and are never exported.

    Half precision is for networks: a term computes in float32, or in float64 where it is given float64, inside
    and outside of autocast.

    Attributes:
        needs_teacher: without a teacher it cannot be computed.
        needs_labels: pixels without a label count nothing in it.
        features: the feature maps it wants of both networks.
    """

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    features: tuple[str, ...] = ()

    def build(self, student_channels: Mapping[str, int], teacher_channels: Mapping[str, int]) -> None:
        """Make the adapters, once, before the optimizer is made; most terms have none.

        Args:
            student_channels: channels of each map of the student: its features by name, and `logits`.
            teacher_channels: the same of the teacher.
        """

    def forward(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The term's value, a scalar.

        Raises:
            ValueError: the term needs a teacher and there is none.
        """
        if teacher is None and self.needs_teacher:
            raise ValueError(f"{type(self).__name__} compares with a teacher: pass its outputs")
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.value(student, teacher, target)

    @abstractmethod
    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """What `forward` returns, computed outside of autocast."""


class PixelTerm(Term):
    """A term that is a mean over pixels, each pixel by itself.

    So it may be computed over any part of an image and summed: over micro-batches and processes (`Target` holds
    their common count) and over strips of one image (`distill.losses.fused`).
    """

    @abstractmethod
    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """The value of every pixel, whatever stands where the mask does not count.

        Args:
            student: logits `[N, C, ...]`, float32 or float64.
            teacher: the same of the teacher.
            mask: uint8 `[N, ...]`: class ids, `VOID` or `UNLABELLED`.

        Returns:
            `[N, ...]`.
        """

    def total(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """The sum of `per_pixel` over the pixels that count."""
        counts = mask < UNLABELLED if self.needs_labels else mask != VOID
        values = self.per_pixel(student, teacher, mask)
        return torch.where(counts, values, 0).sum()

    def count(self, target: Target) -> Tensor:
        """The step's number of pixels, which the sum is divided by."""
        return target.labelled_count if self.needs_labels else target.valid_count

    def scale(self, shape: torch.Size) -> float:
        """A factor on the mean; `shape` is that of the logits `[N, C, H, W]` that are compared."""
        return 1.0

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """The sum over the pixels that count, at the images' size, divided by the step's count of them."""
        logits = student.upsampled()
        other = None if teacher is None or not self.needs_teacher else teacher.upsampled().detach()
        return self.total(logits, other, target.mask) / self.count(target) * self.scale(logits.shape)
