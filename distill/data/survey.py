"""What a data set holds, before anything is learned from it: sizes, classes, images that stand twice, samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from distill.batch import UNLABELED, VOID
from distill.data.contents import content_hash
from distill.data.datasets import Dataset, Splits
from distill.data.planes import NONE, label_counts
from distill.data.transforms import resize_labels
from distill.errors import ConfigError
from distill.visualize import GAP, overlay, row, viewable

HASH_SIDE = 16
NEAR_BITS = 16  # of HASH_SIDE² that may differ between near-duplicates
SHEET_HEIGHT = 160  # of a sample, in pixels


@dataclass
class SplitSurvey:
    """What a split holds.

    Attributes:
        images: how many were read.
        sizes: how many there are of each `(height, width)`.
        pixels: pixels of each class, then 254 for no label and 255 for void: int64 `[256]`.
        shown_in: how many masks show each: int64 `[256]`.
        hashes: perceptual hash of each image: uint8 `[n, HASH_SIDE² / 8]`.
        names: of the images that were read.
        contents: SHA-256 of each file, or an empty text.
        bad: what is wrong with those that were not read, a line each.
    """

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    shown_in: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, HASH_SIDE**2 // 8), np.uint8))
    names: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def of(self, label: int, classes: int) -> int:
        """Of how many pixels those of a label are a part; with many labels a pixel, void is counted in each class."""
        seen = sum(height * width * count for (height, width), count in self.sizes.items())
        return seen * classes if self.pixels[NONE] and label >= classes else seen


def survey(splits: Splits, progress: Callable[..., Iterable[int]] = lambda x, **_: x) -> dict[str, SplitSurvey]:
    """Reads everything once; what cannot be read is told, and the rest is looked at."""
    return {name: _survey(dataset, name, progress) for name, dataset in named(splits)}


def named(splits: Splits) -> list[tuple[str, Dataset]]:
    """The splits that there are, by name."""
    pairs = (("train", splits.train), ("unlabeled", splits.unlabeled), ("val", splits.val))
    return [(name, dataset) for name, dataset in pairs if dataset]


def _survey(dataset: Dataset, name: str, progress: Callable[..., Iterable[int]]) -> SplitSurvey:
    found, hashes = SplitSurvey(), []
    for index in progress(range(len(dataset)), desc=f"reading {name}", leave=False):
        try:
            image, mask = dataset.read(index)
            content = content_hash(dataset.files[index][0]) if dataset.files[index] else ""
        except ConfigError as error:
            found.bad.append(str(error))
            continue
        pixels = label_counts(mask)
        found.images += 1
        found.sizes[image.shape[:2]] += 1
        found.pixels += pixels
        found.shown_in += pixels > 0
        found.names.append(dataset.names[index])
        found.contents.append(content)
        hashes.append(perceptual_hash(image))
    if hashes:
        found.hashes = np.stack(hashes)
    return found


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """By what an image is known again after resizing, recompression or a change of brightness.

    Whether each pixel of a small gray version is brighter than its left neighbor; where hardly anything differs, as in
    a clear sky, rounding decides, so small differences count as none.

    Args:
        image: `[H, W, C]` of any type.

    Returns:
        uint8 `[HASH_SIDE² / 8]`, a bit for each.
    """
    gray = np.ascontiguousarray(image.mean(2, dtype=np.float32))
    small = cv2.resize(gray, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    noticeable = max(0.02 * float(small.std()), 1e-4 * float(np.abs(small).max()))
    return np.packbits(np.diff(small, axis=1) > noticeable)


def twice(found: dict[str, SplitSurvey]) -> tuple[list[tuple[str, str]], list[tuple[str, str, int]]]:
    """Images that stand in both what is learned from and what is scored on.

    Returns:
        Pairs of the same file: name there and name among the validation images; and pairs that look alike, with the
        number of bits that differ, the nearest of each validation image.
    """
    learned = [part for name, part in found.items() if name != "val"]
    names = [name for part in learned for name in part.names]
    hashes = np.concatenate([part.hashes for part in learned])
    contents = {content: name for part in learned for name, content in zip(part.names, part.contents, strict=True)}
    same, alike = [], []
    val = found["val"]
    for name, content, bits in zip(val.names, val.contents, val.hashes, strict=True):
        if content and content in contents:
            same.append((contents[content], name))
        elif len(hashes):
            differ = np.bitwise_count(hashes ^ bits).sum(1)
            nearest = int(differ.argmin())
            flat = np.unpackbits(bits).sum() < NEAR_BITS  # nothing to be known by
            if differ[nearest] <= NEAR_BITS and not flat:
                alike.append((names[nearest], name, int(differ[nearest])))
    return same, sorted(alike, key=lambda pair: pair[2])


def contact_sheet(splits: Splits, count: int) -> np.ndarray:
    """Samples of each split, with the masks over them and alone: uint8 `[H, W, 3]`."""
    rows = []
    for name, dataset in named(splits):
        for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist():
            try:
                image, mask = dataset.read(index)
            except ConfigError:
                continue  # told by the survey
            rows.append(_sample(image, mask, f"{name}: {dataset.names[index]}", splits.palette))
    width = max(part.shape[1] for part in rows) if rows else 1
    padded = [np.pad(part, ((0, GAP), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in rows]
    return np.concatenate(padded) if padded else np.full((1, 1, 3), 255, np.uint8)


def _sample(image: np.ndarray, mask: np.ndarray, title: str, palette: Sequence[Sequence[int]]) -> np.ndarray:
    size = (max(1, round(image.shape[1] * SHEET_HEIGHT / image.shape[0])), SHEET_HEIGHT)
    seen = np.asarray(Image.fromarray(viewable(image)).resize(size, Image.Resampling.BILINEAR))
    if (mask == UNLABELED).all():
        return row([seen], [title])
    labels = resize_labels(mask, size[::-1])
    panels = [seen, overlay(seen, labels, palette, 0.5), overlay(seen, labels, palette, 1.0)]
    return row(panels, [title, "", ""])


def class_table(found: dict[str, SplitSurvey], classes: Sequence[str]) -> list[str]:
    """Lines that say how much of the masks each class has, and how many of them show it."""
    width = max(map(len, (*classes, "no label")))
    parts = {name: part for name, part in found.items() if name != "unlabeled"}
    lines = ["".join([" " * (width + 6), *(f"{name:>22}" for name in parts)])]
    rows = [(i, f"{i:3}", name) for i, name in enumerate(classes)]
    for i, number, name in (*rows, (VOID, "   ", "void"), (UNLABELED, "   ", "no label")):
        if i < len(classes) or any(part.pixels[i] for part in parts.values()):
            cells = (
                f"{100 * part.pixels[i] / max(1, part.of(i, len(classes))):7.2f} %{part.shown_in[i]:6} masks"
                for part in parts.values()
            )
            lines.append(f"  {number} {name:{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return lines
