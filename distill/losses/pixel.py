"""What the teacher's distribution over the classes of a pixel teaches, pixel by pixel.

Relative entropy is not symmetric. Forward KL(teacher‖student) punishes the student where the teacher has mass and
the student has none: it covers all the teacher's modes and blurs between them. Reverse KL(student‖teacher) punishes
mass where the teacher has none: the student picks a mode and is sure of it. A student that can only be one bump over
the places 0 to 20, fitted to a teacher with bumps at 5 and 15 of width 1.5, shows it (over many more places the width
under forward KL is 5.2):

    forward KL    center 10.0   width 7.1
    reverse KL    center  5.0   width 1.5

Jeffreys' divergence is the sum of both; Jensen-Shannon's goes from one to the other with `beta` and stays bounded.
"""

from __future__ import annotations

import math
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import UNLABELED, Outputs, Target
from distill.losses.base import PixelTerm, speaks
from distill.losses.geometry import Cells, at_least_float32, unless_constant
from distill.losses.settings import Confidence, Divergence, DKDConfig, KDConfig


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities over dim 1 at a temperature, `log_softmax(logits / temperature)`.

    The largest logit is taken off before the division: `x / T` of two logits near 1e4 rounds by more than they
    differ, their difference does not.
    """
    if temperature != 1:
        logits = (logits - logits.detach().amax(1, keepdim=True)) / temperature
    return F.log_softmax(logits, 1)


def standardized(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over dim 1, the classes.

    The student then has to match the teacher's ranking and proportions, not its range. Sun et al., Logit
    Standardization in Knowledge Distillation, 2024, arXiv:2403.01427; the deviation here is √(Σ x² / C), that of the
    authors' program divides by C - 1, so its logits are smaller by √((C - 1) / C): the same as another temperature. A
    pixel whose logits are all equal becomes 0, and takes no gradient.
    """
    centered = unless_constant(logits - logits.mean(1, keepdim=True), logits, 1)
    return centered * torch.rsqrt(centered.square().mean(1, keepdim=True) + 1e-8)


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """How far the student's distribution s is from the teacher's t; ≥ 0, and 0 where they are equal.

    - `forward_kl`: Σ t log(t/s).
    - `reverse_kl`: Σ s log(s/t).
    - `jeffreys`: their sum, Σ (t - s) log(t/s).
    - `jensen_shannon`: β KL(t‖m) + (1-β) KL(s‖m) with m = β t + (1-β) s; bounded by the entropy of (β, 1-β), at
      most log 2. Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory, 1991. Divided by
      β (1-β) it tends to reverse KL for β → 1 and to forward KL for β → 0.
    - `soft_cross_entropy`: -Σ t log s: forward KL plus the teacher's entropy, so not 0 at equality; its gradient
      is that of forward KL.

    Args:
        student: log-probabilities `[N, C, ...]`.
        teacher: log-probabilities of the same shape.
        kind: one of the above.
        beta: weight of the teacher in `jensen_shannon`, between 0 and 1.

    Returns:
        `[N, ...]`, in nats.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "forward_kl":
        return -(teacher.exp() * (student - teacher)).sum(1)
    if kind == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(1)
    if kind == "jeffreys":
        return ((teacher.exp() - student.exp()) * (teacher - student)).sum(1)
    if kind == "jensen_shannon":
        mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
        from_teacher = (teacher.exp() * (teacher - mixture)).sum(1)
        from_student = (student.exp() * (student - mixture)).sum(1)
        return beta * from_teacher + (1 - beta) * from_student
    if kind == "soft_cross_entropy":
        return -(teacher.exp() * student).sum(1)
    raise ValueError(f"divergence={kind!r}: one of {', '.join(get_args(Divergence))}")


def certainty(logits: Tensor, kind: Confidence) -> Tensor:
    """How sure the distributions of logits `[N, C, ...]` are, at temperature 1: `[N, ...]` in 0 … 1.

    `max_probability` is the probability of the likeliest class; `entropy` is 1 - H / log C: 0 for the uniform
    distribution and 1 for a certain one.
    """
    log_probabilities = F.log_softmax(logits, 1)
    if kind == "max_probability":
        return log_probabilities.amax(1).exp()
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1)
    return 1 - entropy / math.log(max(logits.shape[1], 2))


class KD(PixelTerm):
    """Distillation of the logits of each pixel, T² · D(softmax(teacher / T), softmax(student / T)).

    Mean over the pixels that are not void. T² keeps the gradient's size when T changes. Hinton et al., Distilling
    the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    Config = KDConfig
    config: KDConfig
    needs_teacher: ClassVar[bool] = True

    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """T² · D, weighted by the teacher's confidence: `[N, ...]`."""
        assert teacher is not None
        config = self.config
        if config.confidence != "none":
            weight = certainty(teacher, config.confidence)
            if config.confidence_threshold is not None:
                weight = (weight >= config.confidence_threshold).to(teacher.dtype)
        if config.standardize:
            student, teacher = standardized(student), standardized(teacher)
        student, teacher = soften(student, config.temperature), soften(teacher, config.temperature)
        values = divergence(student, teacher, config.divergence, config.beta)
        if config.confidence != "none":
            values = values * weight
        return values * config.temperature**2

    @property
    def chunked(self) -> bool:
        """At the images' size only."""
        return self.config.stride == "full"

    def value(self, student: Outputs, teacher: Outputs | None, target: Target) -> Tensor:
        """At the images' size, or on the teacher's grid."""
        if self.config.stride == "full" or teacher is None:
            return super().value(student, teacher, target)
        cells = Cells((teacher.logits.shape[2], teacher.logits.shape[3]), teacher.padded_size, teacher.align_corners)
        logits = cells.resize(student.logits, student.padded_size)
        theirs = at_least_float32(teacher.logits.detach())
        counts = cells.count_valid(target.mask, logits.dtype) * speaks(theirs)
        values = self.per_pixel(logits, theirs, target.mask)
        return self.mean((counts * torch.where(counts > 0, values, 0)).sum(), target)


class DKD(PixelTerm):
    """Decoupled distillation, T² (α · TCKD + β · NCKD), mean over the labeled pixels.

    TCKD is the KL divergence between (p_y, 1 - p_y) of teacher and student, y the label; NCKD that between their
    distributions over the other classes. Plain forward KL is TCKD + (1 - p_y of the teacher) · NCKD, so it hardly
    shows the other classes where the teacher is sure. Zhao et al., Decoupled Knowledge Distillation, 2022,
    arXiv:2203.08679.
    """

    Config = DKDConfig
    config: DKDConfig
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def per_pixel(self, student: Tensor, teacher: Tensor | None, mask: Tensor) -> Tensor:
        """T² (α · TCKD + β · NCKD): `[N, ...]`."""
        assert teacher is not None
        if student.shape[1] == 1:
            return student[:, 0] * 0
        labels = mask.long().masked_fill(mask >= UNLABELED, 0).unsqueeze(1)
        (target_s, other_s, others_s), (target_t, other_t, others_t) = (
            _decouple(soften(logits, self.config.temperature), labels) for logits in (student, teacher)
        )
        label = target_t.exp() * (target_t - target_s) + other_t.exp() * (other_t - other_s)
        others = divergence(others_s, others_t, "forward_kl")
        return (self.config.alpha * label + self.config.beta * others) * self.config.temperature**2


def _decouple(log_probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y and log(1 - p_y), `[N, ...]`, and the log-probabilities among the C - 1 other classes.

    The others are all classes but the last, with the last put in the label's place: no entry has to be masked, and
    the order of the others is the same for teacher and student.
    """
    classes = log_probabilities.shape[1]
    target = log_probabilities.gather(1, labels)
    last = log_probabilities[:, -1:]
    rest = log_probabilities[:, :-1]
    place = torch.arange(classes - 1, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2)) == labels
    rest = torch.where(place, last, rest)
    other = torch.logsumexp(rest, 1)
    return target.squeeze(1), other, rest - other.unsqueeze(1)
