"""Masks made visible: colors, overlays, panels side by side. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VOID_COLOR = (96, 96, 96)
NOTHING, NOTHING_COLOR = 253, (24, 24, 24)  # where none of several classes is that may be at a pixel
UNKNOWN = 254  # as a label: none is known; from here on, see `distill.batch`, which needs torch
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323  # tags
ROWS = 256  # of an image that are worked on at once
GAP, TITLE = 4, 18  # pixels between panels and above them
SWATCH = 11  # pixels a side, of a legend's colors

Palette = Sequence[Sequence[int]]
_opening = Lock()


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Lets PIL open a file whose size the caller limits; PIL's own limit, the whole process's, is put back after."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def decoded_pixels(image: Image.Image) -> int:
    """Pixels that decoding an opened image takes: a tile of a TIFF may be larger than its image, yet is decoded."""
    tags = getattr(image, "tag_v2", {})
    width, height = (int(tags.get(tag, 0)) for tag in (TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT))
    return max(image.width * image.height, width * height)


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a decoded image, uint8 `[H, W, 3]`; some rows at a time, since PIL makes copies on the way."""
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        rgb[top : top + ROWS] = np.asarray(strip.convert("RGB"))
    return rgb


def default_palette(classes: int) -> list[tuple[int, int, int]]:
    """Distinct colors: the bits of the class id spread over the three channels, highest first (as Pascal VOC's)."""
    colors = []
    for i in range(1, classes + 1):
        r, g, b = (sum(((i >> (3 * k + c)) & 1) << (7 - k) for k in range(8)) for c in range(3))
        colors.append((r, g, b))
    return colors


def color_table(palette: Palette) -> np.ndarray:
    """The colors of all 256 ids: uint8 `[256, 3]`; those without a class are gray."""
    table = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table


def colorize(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids uint8 `[H, W]`, or planes `[C, H, W]`, in colors uint8 `[H, W, 3]`; void is gray."""
    if mask.ndim == 2:
        return color_table(palette)[mask]
    table = color_table(palette)
    table[NOTHING] = NOTHING_COLOR
    return table[topmost(mask)]


def topmost(planes: np.ndarray) -> np.ndarray:
    """Of planes of 0, 1 and void, uint8 `[C, H, W]`, the last class of each pixel: uint8 `[H, W]`.

    `NOTHING` where there is none, void where there is none and one is unknown.
    """
    top = np.where((planes >= UNKNOWN).any(0), np.uint8(255), np.uint8(NOTHING))
    for i, plane in enumerate(planes):
        top[plane == 1] = i
    return top


def palette_image(mask: np.ndarray, palette: Palette) -> Image.Image:
    """Class ids uint8 `[H, W]` as a picture whose pixels stay ids and that viewers show in colors."""
    image = Image.fromarray(mask, "L")
    image.putpalette(color_table(palette).tobytes())
    return image


def resized(
    image: np.ndarray, height: int, width: int, how: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """An image `[H, W, C]` of any kind at another size, averaging over what becomes one pixel."""

    def plane(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values).resize((width, height), how))

    if image.dtype == np.uint8 and image.shape[2] == 3:
        return plane(image)
    planes = np.stack([plane(image[..., i].astype(np.float32)) for i in range(image.shape[2])], 2)
    if image.dtype.kind == "f":
        return planes
    return planes.round().clip(0, np.iinfo(image.dtype).max).astype(image.dtype)


def viewable(image: np.ndarray) -> np.ndarray:
    """An image of any kind as uint8 `[H, W, 3]`, for people: its first three channels, or the first in gray.

    What is not of 8 bits is stretched, channel by channel, from its 1st to its 99th percentile.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown.astype(np.float64), (1, 99), axis=(0, 1))
        shown = (255 * (shown - low) / np.maximum(high - low, 1e-12)).clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(shown)


def overlay(image: np.ndarray, mask: np.ndarray, palette: Palette, opacity: float) -> np.ndarray:
    """The mask's colors over the image.

    Args:
        image: `[H, W, C]`, of any kind.
        mask: uint8 `[H, W]`; or planes `[C, H, W]`, whose colors are where a class is, later ones over earlier ones.
        palette: a color a class.
        opacity: of the colors, 0 to 1.
    """
    shown = viewable(image)
    picture = np.empty_like(shown)
    for top in range(0, len(shown), ROWS):  # PIL makes copies on the way
        rows = slice(top, top + ROWS)
        seen, colors = shown[rows], colorize(mask[..., rows, :], palette)
        if mask.ndim == 3:  # where there is nothing, the image is as it is
            colors = np.where((topmost(mask[:, rows]) == NOTHING)[..., None], seen, colors)
        below, above = Image.fromarray(seen), Image.fromarray(colors)
        picture[rows] = np.asarray(Image.blend(below, above, opacity))
    return picture


def row(panels: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Panels uint8 `[H, W, 3]` of one size from left to right, with a title above each: uint8 `[H', W', 3]`."""
    height, width = panels[0].shape[:2]
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + TITLE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        left = i * (width + GAP)
        canvas.paste(Image.fromarray(panel), (left, TITLE))
        draw.text((left + 2, 1), title, fill="black", font=font)
    return np.asarray(canvas)


def with_legend(picture: np.ndarray, entries: Sequence[tuple[str, Sequence[int]]]) -> np.ndarray:
    """A picture uint8 `[H, W, 3]` with names and their colors below it, in as many lines as it takes."""
    if not entries:
        return picture
    height, width = picture.shape[:2]
    font = ImageFont.load_default(12)
    places, left, line = [], 2, 0
    for name, _ in entries:
        wide = SWATCH + 4 + int(font.getlength(name)) + 12
        if left > 2 and left + wide > width:
            left, line = 2, line + 1
        places.append((left, height + GAP + line * TITLE))
        left += wide
    canvas = Image.new("RGB", (width, height + GAP + (line + 1) * TITLE), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y + 2, x + SWATCH, y + 2 + SWATCH), fill=tuple(color), outline="black")
        draw.text((x + SWATCH + 4, y), name, fill="black", font=font)
    return np.asarray(canvas)
