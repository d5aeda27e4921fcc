"""Any number of classes at a pixel: C questions of yes or no, each of which is a problem of two classes.

A logit z of a class stands for the logits `[0, z]` of a pixel without and with it: softmax of these is the sigmoid of
z, so cross-entropy is the binary one, and KL(teacher‖student) at temperature T is T² (softplus(z_s / T) -
softplus(z_t / T) - p_t (z_s - z_t) / T). With the classes laid beside the images, as N · C images of two classes, every
term that looks at one pixel is what it should be, and a mean over pixels is one over pixels and classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Outputs, Target
from distill.losses.base import Term

BOTH = math.sqrt(2)  # the gradient at `[0, z]` is (-g, g) where that at z is g


@dataclass
class Views:
    """What networks and labels say of a micro-batch, as each kind of term is to see it.

    Attributes:
        student: logits `[N, C, h, w]` of C classes that do not exclude each other.
        teacher: likewise.
        target: with a mask `[N, C, H, W]` of 0, 1, `VOID` and `UNLABELED`.
    """

    student: Outputs
    teacher: Outputs | None
    target: Target

    def pairs(self) -> tuple[Outputs, Outputs | None, Target]:
        """N · C images of two classes, without feature maps: logits `[N · C, 2, h, w]`, mask `[N · C, H, W]`."""
        return *self._each(lambda z: z.flatten(0, 1)), replace(self.target, mask=self.target.mask.flatten(0, 1))

    def of_class(self, index: int) -> tuple[Outputs, Outputs | None, Target]:
        """N images of two classes, without and with one of the classes."""
        return *self._each(lambda z: z[:, index]), replace(self.target, mask=self.target.mask[:, index])

    def value(self, term: Term) -> Tensor:
        """A term's value, a scalar; where maps are compared, a pixel counts in each class in which it is not void."""
        if term.many_labels == "maps":
            return term(self.student, self.teacher, self.target)
        if term.many_labels == "each class":
            classes = self.target.mask.shape[1]
            return torch.stack([term(*self.of_class(i)) for i in range(classes)]).mean()
        return term(*self.pairs())

    def _each(self, part: Callable[[Tensor], Tensor]) -> tuple[Outputs, Outputs | None]:
        student, teacher = (
            outputs and replace(outputs, logits=with_zero(part(outputs.logits)), features={})
            for outputs in (self.student, self.teacher)
        )
        assert student is not None
        return student, teacher


def with_zero(z: Tensor) -> Tensor:
    """The logits `[0, z]`, `[N, 2, h, w]`, of z `[N, h, w]`."""
    return F.pad(z.unsqueeze(1), (0, 0, 0, 0, 1, 0))
