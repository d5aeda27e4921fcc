"""Where the cells of a map lie in the image, and what follows: resizing between maps and counting pixels a cell.

A map `[N, C, h, w]` covers the image as its network saw it (padded at the bottom and right). A mask is never resized:
each pixel belongs to the cell nearest to it, and a cell counts as often as it has pixels. So no class is invented,
no pixel is counted twice, and a mean over cells has the same count as a mean over pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.batch import VOID

ROUNDINGS = 64  # a constant's own mean was up to 8 of them beside it, over a million entries


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unless_constant(centered: Tensor, x: Tensor, dim: int) -> Tensor:
    """`centered` (x less its mean); 0, and without gradient, where x is constant along an axis but for rounding."""
    variance, size = (y.detach().square().sum(dim, keepdim=True) for y in (centered, x))
    return centered.masked_fill(variance <= size * (ROUNDINGS * torch.finfo(x.dtype).eps) ** 2, 0)


def pixel_centers(size: int, device: torch.device) -> Tensor:
    """Coordinates of `size` pixels in a row, float64 `[size]`."""
    return torch.arange(size, dtype=torch.float64, device=device)


def cell_position(pixels: Tensor, cells: int, length: int, align_corners: bool) -> Tensor:
    """Where pixels lie among the cells of a map, as PyTorch's bilinear interpolation has it.

    Args:
        pixels: pixel coordinates `[n]`, float64; 0 is the center of the first pixel.
        cells: how many cells the map has along this axis.
        length: how many pixels they cover.
        align_corners: the centers of the first and last cell lie on the first and last pixel; otherwise cells are
            equal blocks of pixels.

    Returns:
        Float64 `[n]`, between 0 and `cells - 1`: 1.25 is a quarter of the way from cell 1 to cell 2.
    """
    if align_corners:
        return pixels.clamp(0, length - 1) * ((cells - 1) / max(length - 1, 1))
    return ((pixels + 0.5) * (cells / length) - 0.5).clamp(0, cells - 1)


def interpolation(positions: Tensor, cells: int) -> Tensor:
    """The matrix `[n, cells]`, float64, that interpolates linearly at positions `[n]` (see `cell_position`)."""
    distance = (positions[:, None] - torch.arange(cells, dtype=torch.float64, device=positions.device)).abs()
    return (1 - distance).clamp(min=0)


@dataclass(frozen=True)
class Cells:
    """The cells of one map of one network.

    Attributes:
        grid: height and width of the map.
        padded_size: height and width of what the map covers.
        align_corners: how the cells lie; see `cell_position`.
    """

    grid: tuple[int, int]
    padded_size: tuple[int, int]
    align_corners: bool

    def resize(self, x: Tensor, padded_size: tuple[int, int]) -> Tensor:
        """Another map, bilinearly, at these cells; half precision becomes float32.

        Args:
            x: `[N, C, h, w]`, whose cells lie in the same manner.
            padded_size: height and width of what `x` covers.

        Returns:
            `[N, C, *grid]`.
        """
        x = at_least_float32(x)
        if tuple(x.shape[-2:]) == self.grid and padded_size == self.padded_size:
            return x
        for axis, equation in enumerate(("nchw,yh->ncyw", "nchw,xw->nchx")):
            cells, length = self.grid[axis], self.padded_size[axis]
            pixels = pixel_centers(cells, x.device)
            if self.align_corners:
                pixels = pixels * ((length - 1) / max(cells - 1, 1))
            else:
                pixels = (pixels + 0.5) * (length / cells) - 0.5
            positions = cell_position(pixels, x.shape[2 + axis], padded_size[axis], self.align_corners)
            x = torch.einsum(equation, x, interpolation(positions, x.shape[2 + axis]).to(x.dtype))
        return x

    def count(self, labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
        """How many pixels of each class belong to each cell.

        Args:
            labels: uint8 `[N, H, W]`; pixels of `classes` and above count nowhere.
            classes: how many classes.
            dtype: of the counts.

        Returns:
            `[N, classes, *grid]`; summed over the cells it is the number of pixels of that class.
        """
        rows, columns = (
            cell_position(pixel_centers(size, labels.device), cells, length, self.align_corners).round()
            for size, cells, length in zip(labels.shape[1:], self.grid, self.padded_size, strict=True)
        )
        cell = (rows[:, None] * self.grid[1] + columns).long()
        images, places = len(labels), self.grid[0] * self.grid[1]
        image = torch.arange(images, device=labels.device).view(-1, 1, 1)
        # One class more than there are, for the pixels that count nowhere.
        slot = (image * (classes + 1) + labels.long().clamp(max=classes)) * places + cell
        counts = torch.bincount(slot.flatten(), minlength=images * (classes + 1) * places)
        return counts.view(images, classes + 1, *self.grid)[:, :-1].to(dtype)

    def count_valid(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """How many pixels that are not void belong to each cell: `[N, *grid]`.

        Of a mask `[N, C, H, W]` the sum over the classes.
        """
        if mask.ndim == 4:
            return self.count_valid(mask.flatten(0, 1), dtype).unflatten(0, mask.shape[:2]).sum(1)
        return self.count((mask == VOID).byte(), 1, dtype)[:, 0]
