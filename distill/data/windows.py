"""Windows of large images, each of which is an item of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels.

    Attributes:
        top: its first row.
        left: its first column.
        height: rows.
        width: columns.
        whole: whether it is all of the image.
    """

    top: int
    left: int
    height: int
    width: int
    whole: bool = False

    @property
    def suffix(self) -> str:
        """What tells it from other windows of the image, at the end of a name; nothing for all of it."""
        return "" if self.whole else f"_y{self.top:05d}x{self.left:05d}"

    def of(self, array: np.ndarray) -> np.ndarray:
        """A copy of the part of an array `[H, W, …]`."""
        return np.array(array[self.top : self.top + self.height, self.left : self.left + self.width])

    def of_planes(self, mask: np.ndarray) -> np.ndarray:
        """A copy of the part of a mask, `[H, W]` or `[C, H, W]`."""
        return np.array(mask[..., self.top : self.top + self.height, self.left : self.left + self.width])


def windows_of(size: Sequence[int], window: Sequence[int], overlapping: bool) -> list[Window]:
    """Windows that cover an image, row by row.

    Args:
        size: height and width of the image.
        window: height and width; smaller images are one window.
        overlapping: windows of just this size, which overlap by at least a third; else they are at most this large, of
            nearly one size, and no pixel is in two of them.
    """
    spans = [_spans(length, min(length, wanted), overlapping) for length, wanted in zip(size, window, strict=True)]
    whole = all(len(one) == 1 for one in spans)
    return [Window(top, left, height, width, whole) for (top, height), (left, width) in product(*spans)]


def _spans(length: int, window: int, overlapping: bool) -> list[tuple[int, int]]:
    """Where windows begin along a side, and how long they are."""
    if not overlapping:
        count = -(-length // window)
        ends = [i * length // count for i in range(count + 1)]
        return [(a, b - a) for a, b in pairwise(ends)]
    count = 1 + -(-3 * (length - window) // (2 * window))
    return [(i * (length - window) // max(1, count - 1), window) for i in range(count)]
