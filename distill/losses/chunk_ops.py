"""What is done with a few rows of upsampled logits: the values of pixel terms there, and their gradients.

`by_autograd` asks the terms; it is right for all of them. `closed_form` is cross-entropy with forward KL, the pair that
nearly every distillation is made of, in a third of the passes over the data: its gradient is written out, and the two
share their exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.batch import SILENT, UNLABELED, VOID
from distill.losses.base import PixelTerm
from distill.losses.pixel import KD
from distill.losses.supervised import CrossEntropy


def by_autograd(
    terms: Sequence[PixelTerm],
    scales: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums of the terms over a strip, and the gradient of their scaled sum.

    Args:
        terms: the terms.
        scales: what each sum is multiplied by in what is differentiated `[terms]`.
        student: logits `[rows, C, W]`.
        teacher: the same of the teacher.
        mask: uint8 `[rows, W]`.

    Returns:
        The unscaled sums `[terms]`, and the gradient `[rows, C, W]`.
    """
    student = student.detach().requires_grad_()
    with torch.enable_grad():
        sums = torch.stack([term.total(student, teacher, mask) for term in terms])
        (gradient,) = torch.autograd.grad((sums * scales).sum(), student)
    return sums.detach(), gradient


def is_closed_form(terms: Sequence[PixelTerm]) -> bool:
    """Whether these are the terms that `closed_form` computes."""
    if [type(term) for term in terms] != [CrossEntropy, KD]:
        return False
    ce, kd = terms
    assert isinstance(ce, CrossEntropy) and isinstance(kd, KD)
    plain = kd.config.divergence == "forward_kl" and kd.config.confidence == "none" and not kd.config.standardize
    return plain and ce.config.label_smoothing == 0


def closed_form(
    class_weights: Tensor | None,
    temperature: Tensor | None,
    scales: Tensor,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Σ w_y · (-log p_y) and T² Σ KL(teacher‖student) over a strip, and the gradient of their scaled sum.

    The gradient of the first at the logits is w_y · (p - one-hot), that of the second T · (p_T - q_T), with p and q
    the softmaxes of student and teacher, and index T for those of logits / T.

    Args:
        class_weights: `[C]`, or none.
        temperature: T, a scalar (a number would be compiled in, each of a schedule's anew); None is 1.
        scales: what the two sums are multiplied by in what is differentiated `[2]`.
        student: logits `[rows, C, W]`.
        teacher: the same of the teacher.
        mask: uint8 `[rows, W]`.

    Returns:
        The unscaled sums `[2]`, and the gradient `[rows, C, W]`.
    """
    mask = mask.unsqueeze(1)
    labels = mask.long().masked_fill(mask >= UNLABELED, 0)
    weight = (mask < UNLABELED).to(student.dtype)
    if class_weights is not None:
        weight = weight * class_weights.to(student.dtype)[labels]
    valid = (mask != VOID).to(student.dtype)
    ce_scale, kd_scale = scales[0] * weight, scales[1] * valid

    s = student - student.amax(1, keepdim=True)
    t = teacher - teacher.amax(1, keepdim=True)
    p = s.exp()
    p_sum = p.sum(1, keepdim=True)
    ce = ((p_sum.log() - s.gather(1, labels)) * weight).sum()
    soft, soft_sum = p, p_sum
    if temperature is not None:
        kd_scale = kd_scale * temperature
        s.div_(temperature)
        t.div_(temperature)
        soft = s.exp()
        soft_sum = soft.sum(1, keepdim=True)
    q = t.exp()
    q_sum = q.sum(1, keepdim=True)
    speaks = (q_sum < q.shape[1] * (1 - SILENT)).to(q.dtype)  # see `base.speaks`, without a pass over the classes
    kd_scale, valid = kd_scale * speaks, valid * speaks
    q.div_(q_sum)
    cross = t.sub_(s).mul_(q).sum(1, keepdim=True)
    kd = ((cross + soft_sum.log() - q_sum.log()) * valid).sum()

    if temperature is None:
        gradient = p.mul_((ce_scale + kd_scale) / p_sum)
    else:
        kd = kd * temperature**2
        gradient = p.mul_(ce_scale / p_sum).add_(soft.mul_(kd_scale / soft_sum))
    gradient.sub_(q.mul_(kd_scale)).scatter_add_(1, labels, -ce_scale)
    return torch.stack([ce, kd]), gradient
