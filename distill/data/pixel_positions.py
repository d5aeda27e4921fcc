"""Where the pixels of an augmented crop come from in their image, and what a map of the whole image says there.

An image of coordinates goes through the same geometry as the image itself, with the same interpolation; it says where
each pixel of the crop was, to a sixtieth of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

INSIDE = 1000.0  # in the third channel of an image of coordinates: not what a transform fills with

BEYOND = 4  # cells by which a map is continued beyond its edge


@dataclass(frozen=True)
class MapGeometry:
    """How the cells of a teacher's map lie in the image that it saw.

    Attributes:
        grid: height and width of the whole map.
        padded_size: height and width of what it covers, the image and its padding at the bottom and right.
        align_corners: how the cells lie, as in `distill.batch.Outputs`.
        stride: multiple to which the network pads its images.
    """

    grid: tuple[int, int]
    padded_size: tuple[int, int]
    align_corners: bool
    stride: int

    def of_crop(self, size: tuple[int, int]) -> MapGeometry:
        """The map that the same network would give of a smaller image."""
        padded = tuple(-(-n // self.stride) * self.stride for n in size)
        ratios = zip(self.grid, padded, self.padded_size, strict=True)
        grid = tuple(max(1, round(cells * now / before)) for cells, now, before in ratios)
        return MapGeometry(grid, padded, self.align_corners, self.stride)  # type: ignore[arg-type]

    def centers(self, axis: int) -> np.ndarray:
        """Pixel coordinates of the cells' centers along an axis, float64."""
        cells, length = self.grid[axis], self.padded_size[axis]
        if self.align_corners:
            return np.arange(cells) * ((length - 1) / max(cells - 1, 1))
        return (np.arange(cells) + 0.5) * (length / cells) - 0.5

    def cell(self, pixels: np.ndarray, axis: int) -> np.ndarray:
        """Where pixel coordinates lie among the cells; the inverse of `centers`."""
        cells, length = self.grid[axis], self.padded_size[axis]
        if self.align_corners:
            return pixels * ((cells - 1) / max(length - 1, 1))
        return (pixels + 0.5) * (cells / length) - 0.5

    def needed(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many rows and columns of cells the image itself lies between, without its padding."""
        last = (self.cell(np.array(n - 1.0), axis) for axis, n in enumerate(size))
        return tuple(min(int(np.ceil(p)) + 1, n) for p, n in zip(last, self.grid, strict=True))  # type: ignore[return-value]


def coordinates(height: int, width: int) -> np.ndarray:
    """Each pixel's row and column, and `INSIDE`, as an image float32 `[H, W, 3]`, to be transformed with another."""
    return _coordinates(height, width).copy()  # a transform may work in place


@lru_cache(8)
def _coordinates(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([rows, columns, np.full_like(rows, INSIDE)])


def source_positions(moved: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where places of an augmented crop were in the image.

    Args:
        moved: the transformed image of coordinates, `[h, w, 3]`.
        rows: coordinates of the places along the first axis, float64 `[n]`; they may lie outside of the crop.
        columns: the same along the second, `[m]`.

    Returns:
        Row and column in the image, float64 `[n, m]` each. For places that were not in the image they are continued
        from those around, beyond its edges.
    """
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    low, share = [], []
    for axis, length in enumerate(moved.shape[:2]):  # places beyond the edge are continued from the last two pixels
        first = np.floor(places[..., axis]).astype(np.int64).clip(0, max(length - 2, 0))
        low.append(first)
        share.append((places[..., axis] - first if length > 1 else 0 * places[..., axis])[..., None])
    (y, x), (down, right) = low, share
    below, beside = (np.minimum(first + 1, n - 1) for first, n in zip(low, moved.shape[:2], strict=True))
    corners = [moved[y, x], moved[y, beside], moved[below, x], moved[below, beside]]
    weights = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    found = sum(w * corner[..., :2].astype(np.float64) for w, corner in zip(weights, corners, strict=True))
    inside = np.all([np.abs(corner[..., 2] - INSIDE) < 0.1 for corner in corners], axis=0)
    if not inside.all():
        found = _continued(found, inside, places)
    return found[..., 0], found[..., 1]


def _continued(found: np.ndarray, inside: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Positions `[n, m, 2]` with those that are not inside continued: affinely, from the nearest that are."""
    if not inside.any():  # nothing is left of the image: void everywhere
        return np.zeros_like(found)
    known = np.concatenate([places, np.ones_like(places[..., :1])], -1)
    affine = np.linalg.lstsq(known[inside], found[inside], rcond=None)[0]
    beside = found - known @ affine
    outside = (~inside).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    of_label = np.zeros((nearest.max() + 1, 2))
    of_label[nearest[inside]] = beside[inside]
    return np.where(inside[..., None], found, known @ affine + of_label[nearest])


def interpolation_of(
    geometry: MapGeometry, positions: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The four cells around each position, and their weights.

    Near its edge the map is continued linearly: cells beyond it reach into the image when the crop's map is upsampled.

    Args:
        geometry: of the map.
        positions: rows and columns in the image, `[n, m]`.
        shape: rows and columns of cells that are stored.

    Returns:
        Cell numbers int64 `[n, m, 4]` in a stored map `[rows · columns]`, and float32 weights of the same shape.
    """
    low, share = [], []
    for axis, pixels in enumerate(positions):
        cells = geometry.cell(pixels, axis).clip(-BEYOND, shape[axis] - 1 + BEYOND)
        first = np.floor(cells).astype(np.int64).clip(0, max(shape[axis] - 2, 0))
        if shape[axis] == 1:
            cells = cells * 0
        low.append(first)
        share.append(cells - first)
    (row, column), (down, right) = low, share
    next_row, next_column = np.minimum(row + 1, shape[0] - 1), np.minimum(column + 1, shape[1] - 1)
    corners = [(row, column), (row, next_column), (next_row, column), (next_row, next_column)]
    weights = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    numbers = np.stack([r * shape[1] + c for r, c in corners], -1)
    return numbers, np.stack(weights, -1).astype(np.float32)
