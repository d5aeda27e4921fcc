"""Where the cells of a map lie in the image, and what follows: resizing between maps and counting pixels a cell.

A map `[N, C, h, w]` covers the image as its network saw it (padded at the bottom and right). A mask is never resized:
each pixel belongs to the cell nearest to it, and a cell counts as often as it has pixels. So no class is invented,
no pixel is counted twice, and a mean over cells has the same count as a mean over pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.batch import Outputs


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pixel_centres(size: int, device: torch.device) -> Tensor:
    """Coordinates of `size` pixels in a row, float64 `[size]`."""
    return torch.arange(size, dtype=torch.float64, device=device)


def cell_position(pixels: Tensor, cells: int, length: int, align_corners: bool) -> Tensor:
    """Where pixels lie among the cells of a map, as PyTorch's bilinear interpolation has it.

    Args:
        pixels: pixel coordinates `[n]`, float64; 0 is the centre of the first pixel.
        cells: how many cells the map has along this axis.
        length: how many pixels they cover.
        align_corners: the centres of the first and last cell lie on the first and last pixel; otherwise cells are
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


def to_grid(x: Tensor, source: Outputs, goal: Outputs, grid: tuple[int, int], align_corners: bool) -> Tensor:
    """A map of one network, bilinearly, at the cells of a map of another one; half precision becomes float32.

    Args:
        x: `[N, C, h, w]`, which covers `source.padded_size`.
        source: outputs of the network that `x` comes from.
        goal: outputs of the network whose map has the cells.
        grid: height and width of that map, which covers `goal.padded_size`.
        align_corners: how the cells lie in both maps; see `cell_position`.

    Returns:
        `[N, C, *grid]`.
    """
    x = at_least_float32(x)
    if x.shape[-2:] == torch.Size(grid) and source.padded_size == goal.padded_size:
        return x
    for axis in (0, 1):
        cells = pixel_centres(grid[axis], x.device)
        if align_corners:
            pixels = cells * ((goal.padded_size[axis] - 1) / max(grid[axis] - 1, 1))
        else:
            pixels = (cells + 0.5) * (goal.padded_size[axis] / grid[axis]) - 0.5
        length = x.shape[2 + axis]
        positions = cell_position(pixels, length, source.padded_size[axis], align_corners)
        matrix = interpolation(positions, length).to(x.dtype)
        x = torch.einsum("nchw,yh->ncyw" if axis == 0 else "nchw,xw->nchx", x, matrix)
    return x


def cell_counts(
    labels: Tensor,
    classes: int,
    owner: Outputs,
    grid: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype,
) -> Tensor:
    """How many pixels of each class belong to each cell of a map.

    Args:
        labels: int or bool `[N, H, W]`; pixels outside of 0 … classes - 1 count nowhere.
        classes: how many classes.
        owner: outputs of the network that the map comes from.
        grid: height and width of the map, which covers `owner.padded_size`.
        align_corners: how the cells lie; see `cell_position`.
        dtype: of the counts.

    Returns:
        `[N, classes, *grid]`; summed over the cells, it is the number of pixels of that class.
    """
    rows, columns = (
        cell_position(pixel_centres(size, labels.device), cells, length, align_corners).round()
        for size, cells, length in zip(labels.shape[1:], grid, owner.padded_size, strict=True)
    )
    cell = (rows[:, None] * grid[1] + columns).long()
    counts = torch.zeros(len(labels), classes, grid[0] * grid[1], dtype=dtype, device=labels.device)
    for k in range(classes):
        counts[:, k].index_add_(1, cell.flatten(), (labels == k).flatten(1).to(dtype))
    return counts.unflatten(2, grid)
