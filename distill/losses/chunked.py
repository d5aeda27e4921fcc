"""Terms that look at one pixel at a time, computed strip by strip: full-resolution logits are never held.

Upsampled to the images' size, the logits of both networks with their softmaxes and gradients take 28 bytes an element
in plain PyTorch. Here a few rows of one image at a time are upsampled, compared and differentiated, and their
gradient goes back through the transposed upsampling at once: what stays is the gradient at the head's own stride. The
rows fit the processor's cache, which is where the speed comes from. Values and gradients are those of the terms' own
`forward`, for every `PixelTerm` and every setting of it, since each strip is given to the terms themselves.

Left out: second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from distill.batch import Outputs, Target
from distill.losses.base import PixelTerm
from distill.losses.chunk_ops import by_autograd, closed_form, is_closed_form
from distill.losses.geometry import at_least_float32, cell_position, interpolation, pixel_centers
from distill.losses.pixel import KD
from distill.losses.supervised import CrossEntropy

Worker = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]

# Logits a strip: what a core's cache holds; on a GPU, what makes the cost of launching kernels vanish. At most one in
# 64 of all, since a strip's working memory is some ten times its logits.
STRIP_LOGITS_CPU = 2**18
STRIP_LOGITS_GPU = 2**24
STRIPS = 64


@dataclass
class Fused:
    """What `fused` returns.

    Attributes:
        total: the weighted sum of the terms, a scalar that can be differentiated once.
        values: the terms' values, unweighted, detached.
        norms: norm of each unweighted term's gradient at the student's logits (at the head's stride); None if not
            asked for.
    """

    total: Tensor
    values: list[Tensor]
    norms: list[Tensor] | None = None


class Upsampling:
    """Bilinear upsampling and cropping of one network's logits, a strip of rows at a time, and its transpose.

    It is linear and separable: columns first, for a whole image, then rows, for the strip alone.
    """

    def __init__(self, outputs: Outputs, dtype: torch.dtype):
        """Makes the two interpolation matrices.

        Args:
            outputs: their logits' shape and where they lie in the images.
            dtype: of the results.
        """
        (self.height, width), device = outputs.logits.shape[-2:], outputs.logits.device
        self.plain = (self.height, width) == tuple(outputs.padded_size)
        rows, columns = (
            cell_position(pixel_centers(size, torch.device("cpu")), cells, length, outputs.align_corners)
            for size, cells, length in zip(outputs.size, outputs.logits.shape[-2:], outputs.padded_size, strict=True)
        )
        self.first = rows.floor().long().tolist()
        self.last = rows.ceil().long().tolist()
        self.rows = interpolation(rows, self.height).to(device, dtype)
        self.columns = interpolation(columns, width).to(device, dtype)
        self.image_width = outputs.size[1]

    def widen(self, image: Tensor) -> Tensor:
        """`[C, h, w]` with its columns upsampled: `[h, C, W]`."""
        image = image.transpose(0, 1)
        return image[..., : self.image_width] if self.plain else image.contiguous() @ self.columns.T

    def strip(self, wide: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the upsampled image: `[rows, C, W]`."""
        if self.plain:
            return wide[start:stop]
        first, last = self.first[start], self.last[stop - 1] + 1
        return (self.rows[start:stop, first:last] @ wide[first:last].flatten(1)).view(-1, *wide.shape[1:])

    def add_strip(self, wide: Tensor, gradient: Tensor, start: int, stop: int) -> None:
        """Adds the gradient of a strip to that of what it was made from."""
        if self.plain:
            wide[start:stop] = gradient
        else:
            first, last = self.first[start], self.last[stop - 1] + 1
            wide[first:last].flatten(1).addmm_(self.rows[start:stop, first:last].T, gradient.flatten(1))

    def begin(self, gradient: Tensor) -> Tensor:
        """Where strips' gradients are gathered, `[h, C, W]`, zeros, given where the image's gradient shall go."""
        if self.plain:
            return gradient.zero_().transpose(0, 1)[..., : self.image_width]
        return self.columns.new_zeros(self.height, len(gradient), self.image_width)

    def end(self, wide: Tensor, gradient: Tensor) -> None:
        """Finishes an image: the transpose of `widen`."""
        if not self.plain:
            gradient.copy_((wide @ self.columns).transpose(0, 1))


def fused(
    terms: Sequence[PixelTerm],
    weights: Sequence[float],
    student: Outputs,
    teacher: Outputs | None,
    target: Target,
    *,
    norms: bool = False,
    compiled: bool = False,
    strip_logits: int | None = None,
) -> Fused:
    """The weighted sum of pixel terms with its gradient, in the memory of a few rows.

    Args:
        terms: those for which `chunked` holds.
        weights: one a term.
        student: the student's outputs.
        teacher: the teacher's; needed if a term needs it.
        target: labels and counts.
        norms: also the norm of each term's gradient, each from a pass of its own: what is learned from stays the same
            to the bit.
        compiled: let torch.compile fuse each strip's work; the first call takes a while.
        strip_logits: how many logits (rows × classes × width) are worked on at a time.

    Returns:
        The sum, the values and the norms.

    Raises:
        ValueError: a term needs a teacher and there is none, or cannot be computed by strips.
    """
    if not all(term.chunked for term in terms):
        raise ValueError("KD with stride='native' does not work at the images' size: call it by itself")
    if teacher is None and any(term.needs_teacher for term in terms):
        raise ValueError("a term compares with a teacher: pass its outputs")
    if strip_logits is None:
        strip_logits = STRIP_LOGITS_CPU if student.logits.device.type == "cpu" else STRIP_LOGITS_GPU
        strip_logits = min(strip_logits, target.mask.numel() * student.logits.shape[1] // STRIPS)
    plan = (terms, weights, student, teacher, target, compiled, strip_logits)
    total, values, sizes = _Fused.apply(student.logits, plan, norms)
    return Fused(total, list(values.unbind()), list(sizes.unbind()) if norms else None)


class _Fused(torch.autograd.Function):
    """The gradient is made in the forward pass; backward scales it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, plan: tuple[Any, ...], norms: bool) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(logits.device.type, enabled=False), _full_precision():
            total, values, ctx.gradient = _chunked(*plan)
            sizes = _norms(plan) if norms else torch.zeros_like(values)
        ctx.mark_non_differentiable(values, sizes)
        return total, values, sizes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        # In place, since at stride 1 the gradient is as large as the logits; so it is there once.
        if ctx.gradient is None:
            raise RuntimeError("the total of fused() can be differentiated once; compute it again")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad_total.to(gradient.dtype)), None, None


def _norms(plan: tuple[Any, ...]) -> Tensor:
    """The norm of each unweighted term's gradient `[terms]`, never compiled: a term alone is another function."""
    terms, _, student, teacher, target, _, strip_logits = plan
    student = replace(student, logits=at_least_float32(student.logits))  # of the size 1 / pixels: 0 in half precision
    gradients = (_chunked([term], [1.0], student, teacher, target, False, strip_logits)[2] for term in terms)
    return torch.stack([gradient.norm() for gradient in gradients])


def _chunked(
    terms: Sequence[PixelTerm],
    weights: Sequence[float],
    student: Outputs,
    teacher: Outputs | None,
    target: Target,
    compiled: bool,
    strip_logits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, values `[terms]`, and the total's gradient at the student's logits, in their dtype."""
    logits = at_least_float32(student.logits[:0])
    classes, (height, width) = logits.shape[1], student.size
    # What a sum is multiplied by is the mean of 1, in the precision of the logits, which the counts do not have.
    labeled, valid = target.labeled_count.to(logits), target.valid_count.to(logits)
    counts = replace(target, labeled_count=labeled, valid_count=valid)
    factors = torch.stack([term.mean(logits.new_ones(()), counts) for term in terms])
    weight = factors.new_tensor(weights)
    work = _worker(terms, factors * weight, compiled)
    up = Upsampling(student, logits.dtype)
    up_teacher = Upsampling(teacher, logits.dtype) if teacher else None
    rows = max(1, strip_logits // (classes * width))

    sums = torch.zeros_like(factors)
    gradient = torch.empty_like(student.logits)
    for n in range(len(target.mask)):
        wide = up.widen(student.logits[n].to(logits))
        other = up_teacher.widen(teacher.logits[n].to(logits)) if teacher and up_teacher else None
        wide_gradient = up.begin(gradient[n])
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            strip_teacher = up_teacher.strip(other, start, stop) if up_teacher and other is not None else None
            part, slope = work(up.strip(wide, start, stop), strip_teacher, target.mask[n, start:stop])
            sums += part
            up.add_strip(wide_gradient, slope, start, stop)
        up.end(wide_gradient, gradient[n])

    values = sums * factors
    return (values * weight).sum(), values, gradient


def _worker(terms: Sequence[PixelTerm], scales: Tensor, compiled: bool) -> Worker:
    """What computes a strip: from two networks' logits and a mask, the sums and the gradient."""
    if is_closed_form(terms):
        ce, kd = terms
        assert isinstance(ce, CrossEntropy) and isinstance(kd, KD)
        temperature = None if kd.config.temperature == 1 else scales.new_tensor(kd.config.temperature)
        return partial(_compiled(closed_form) if compiled else closed_form, ce.class_weights, temperature, scales)
    return partial(_compiled(by_autograd) if compiled else by_autograd, terms, scales)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Interpolation in true float32, also where the caller lets matrix products round to TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
