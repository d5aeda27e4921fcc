"""What flows through the loop: a batch of images, what a network says of it, what the labels say of it.

Masks are uint8 everywhere. Besides class ids they hold two values: `VOID` (void in the labels, or padding: counts
in no term and no metric) and `UNLABELED` (a real pixel without a label: counts for the terms that compare with
the teacher, not for those that need a label).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255
UNLABELED = 254
MAX_CLASSES = 254
SILENT = 1e-5  # nats by which a teacher's logits for a pixel differ at most that say nothing of it


@dataclass(frozen=True)
class ImageKind:
    """What all images of a data set have in common, and what a network or a file is made for.

    Attributes:
        channels: values of a pixel; three of 8 bits are RGB.
        dtype: `uint8`, `uint16` or `float32`, as they are stored.
    """

    channels: int = 3
    dtype: str = "uint8"

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"

    @property
    def white(self) -> float:
        """What a mean of 1 stands for: 255 for images of 8 bits, whose means are given in 0 to 1; else 1."""
        return 255.0 if self.dtype == "uint8" else 1.0


RGB = ImageKind()


@dataclass
class Batch:
    """Images with their labels.

    Attributes:
        image: RGB, uint8 `[N, 3, H, W]`, 0 to 255; or `[N, C, H, W]` of other channels, uint8, or float32 in the
            images' own units if they are deeper than 8 bits. Each network normalizes it by itself.
        mask: uint8 `[N, H, W]`: class ids, `VOID` or `UNLABELED`.
        names: one file name (or other identity) an image, for messages.
        teacher: what a teacher that was asked before said of these crops, logits `[N, C, h, w]` at its stride, if one
            was.
    """

    image: Tensor
    mask: Tensor
    names: list[str]
    teacher: Tensor | None = None

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, called by the data loader."""
        teacher = None if self.teacher is None else self.teacher.pin_memory()
        return Batch(self.image.pin_memory(), self.mask.pin_memory(), self.names, teacher)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        image, mask = (x.to(device, non_blocking=True) for x in (self.image, self.mask))
        teacher = None if self.teacher is None else self.teacher.to(device, non_blocking=True)
        return Batch(image, mask, self.names, teacher)


@dataclass
class Outputs:
    """What a network says of a batch.

    Attributes:
        logits: `[N, C, h, w]` at the stride of the network's head, before softmax and before upsampling.
        size: height and width of the images.
        padded_size: height and width that the network really saw (padded at the bottom and right to its stride);
            the logits cover these.
        align_corners: how the head upsamples (bilinear).
        features: intermediate maps by name (`encoder.1` … `encoder.5`, `decoder`), `[N, channels, h, w]`; only
            those that were asked for.
    """

    logits: Tensor
    size: tuple[int, int]
    padded_size: tuple[int, int]
    align_corners: bool = True
    features: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, logits: Tensor, size: tuple[int, int] | None = None, align_corners: bool = False) -> Outputs:
        """The outputs of any network.

        Args:
            logits: `[N, C, h, w]`, before softmax; at any stride.
            size: height and width of the images, which the logits cover; if not given, the logits are that large.
            align_corners: how the network upsamples its logits, as in `torch.nn.functional.interpolate`.

        Raises:
            ValueError: logits of another shape.
        """
        if logits.ndim != 4:
            raise ValueError(f"logits of shape {list(logits.shape)}: must be [N, C, h, w]")
        height, width = size or logits.shape[-2:]
        return cls(logits, (height, width), (height, width), align_corners)

    def upsampled(self) -> Tensor:
        """Float32 (or float64) logits `[N, C, H, W]` at the images' size."""
        return upsample(self.logits, self.size, self.padded_size, self.align_corners)


def upsample(logits: Tensor, size: tuple[int, int], padded_size: tuple[int, int], align_corners: bool) -> Tensor:
    """Logits `[N, C, h, w]` to `padded_size` (bilinear), cropped to `size`; half precision becomes float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] != torch.Size(padded_size):
        logits = F.interpolate(logits, padded_size, mode="bilinear", align_corners=align_corners)
    return logits[..., : size[0], : size[1]]


@dataclass
class Target:
    """The labels of a micro-batch and the pixel counts of the whole optimizer step it belongs to.

    A loss that is a mean over pixels has `mean_over_pixels` divide its local sum by one of the two counts. They are the
    pixels of all micro-batches and all processes of the step, divided by the number of processes: since DDP averages
    gradients over processes, the result is exactly the mean over all pixels, however unevenly void is spread.

    Attributes:
        mask: uint8 `[N, H, W]`: class ids, `VOID` or `UNLABELED`.
        labeled_count: pixels with a class id, at least 1.
        valid_count: pixels that are not void, at least 1.
        micro_batches: micro-batches in the step; losses that relate pixels to each other and so cannot be split
            (they say so) are averaged over them by `mean_over_micro_batches`.
    """

    mask: Tensor
    labeled_count: Tensor
    valid_count: Tensor
    micro_batches: int = 1

    @classmethod
    def of(cls, mask: Tensor) -> Target:
        """A target whose step is this one batch on one process.

        Raises:
            ValueError: a mask of another type, whose void would be taken for labels.
        """
        if mask.dtype != torch.uint8:
            fix = f"must be uint8, with {VOID} for void and {UNLABELED} for pixels without a label"
            raise ValueError(f"mask of {mask.dtype}: {fix}")
        labeled, valid = count_pixels(mask)
        return cls(mask, labeled.clamp(min=1), valid.clamp(min=1))

    def mean_over_pixels(self, total: Tensor, labeled: bool = False) -> Tensor:
        """The mean over the step's pixels.

        Args:
            total: the sum over this micro-batch's pixels that are not void.
            labeled: the sum is over the pixels with a class instead, and so is the mean.

        Returns:
            This micro-batch's share of the mean: the shares of a step add up to it.
        """
        return total / (self.labeled_count if labeled else self.valid_count)

    def mean_over_micro_batches(self, value: Tensor) -> Tensor:
        """The share of a mean over the step's micro-batches that this one's value has."""
        return value / self.micro_batches

    @property
    def labeled(self) -> Tensor:
        """Where a class is known: bool `[N, H, W]`."""
        return self.mask < UNLABELED

    @property
    def valid(self) -> Tensor:
        """Where teacher and student are compared: bool `[N, H, W]`."""
        return self.mask != VOID


def count_pixels(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels with a class, and pixels that are not void: two int64 scalars."""
    return (mask < UNLABELED).sum(), (mask != VOID).sum()
