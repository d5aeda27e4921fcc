"""TIFF files of many channels, or of several channels of more than 8 bits, which PIL does not read.

tifffile (BSD) reads them, an extra. It is plain Python beside NumPy, whereas rasterio brings all of GDAL along, whose
many formats would have to be closed one by one. Of the compressions it knows, those are read here whose output can be
limited, by decompressing with the size that the image's header promises: tifffile itself would inflate a strip of a few
kilobytes to gigabytes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.arrays import Header, checked_bytes, first_line, known_dtype
from distill.data.windows import Window
from distill.errors import ConfigError

NONE, LZW, DEFLATE, OLD_DEFLATE = 1, 5, 8, 32946  # compressions, tag 259
BITS = (8, 16, 32, 64)


def tiff_header(path: Path, max_pixels: int) -> Header:
    """What the file says of its image.

    Raises:
        ConfigError: it cannot be read, is too large, or is of a kind that is not read.
    """
    with _page(path, max_pixels) as (_, page):
        return _header(path, page)


def read_tiff(path: Path, max_pixels: int, window: Window | None = None) -> np.ndarray:
    """An image `[H, W, C]`, of the file's own type, or a window of it: only the strips or tiles in it are read.

    Raises:
        ConfigError: as `tiff_header`; or it is damaged.
    """
    with _page(path, max_pixels) as (file, page):
        compression = int(page.compression)
        page.compression = NONE  # each segment is decompressed here; the rest of decoding is tifffile's
        planes, _, height, width, contiguous = page.shaped
        place = window or Window(0, 0, height, width, True)
        image = np.zeros((planes, place.height, place.width, contiguous), page.dtype)
        length, offsets, counts, indices = int(np.prod(page.chunked)), page.dataoffsets, page.databytecounts, None
        if window and len(offsets) >= length:  # else it is cut off, which reading all of it finds
            indices = [i for i in range(length) if _meets(page.decode(None, i), place)]
            offsets, counts = ([values[i] for i in indices] for values in (offsets, counts))
            length = len(indices)
        for data, index in file.filehandle.read_segments(offsets, counts, indices, length=length, flat=True):
            shape = page.decode(None, index)[2]
            wanted = int(np.prod(shape)) * page.dtype.itemsize
            data = _decompressed(path, data or b"", wanted, compression)
            if len(data) < wanted:
                raise ConfigError(f"{path}: cannot be decoded (it is cut off); replace or remove it")
            segment, (plane, _, top, left, _), _ = page.decode(data[:wanted], index)
            segment = segment[0, max(0, place.top - top) : height - top, max(0, place.left - left) : width - left]
            top, left = max(0, top - place.top), max(0, left - place.left)
            segment = segment[: max(0, place.height - top), : max(0, place.width - left)]
            image[plane, top : top + segment.shape[0], left : left + segment.shape[1]] = segment
        return image[0] if planes == 1 else np.moveaxis(image[..., 0], 0, 2)


def _meets(segment: tuple[Any, tuple[int, ...], tuple[int, ...]], window: Window) -> bool:
    """Whether a strip or tile, as tifffile decodes it, has pixels of a window."""
    _, (_, _, top, left, _), (_, height, width, _) = segment
    below, right = window.top + window.height, window.left + window.width
    return window.top - height < top < below and window.left - width < left < right


@contextmanager
def _page(path: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """The open file and its only image, found to be of a size and kind that is read."""
    try:
        import tifffile
    except ImportError:
        what = "is a TIFF of many channels, or of several of more than 8 bits"
        raise ConfigError(f"{path}: {what}; reading it needs tifffile: pip install 'distill[tiff]'") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of becomes our one line, or is harmless
    size = path.stat().st_size
    if size > 8 * max_pixels + 1_000_000:
        raise ConfigError(f"{path}: it has {size:,} bytes, more than data.max_pixels can take; replace or remove it")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            if _has_second(file):
                raise ConfigError(f"{path}: holds several pictures; store one, with all channels in each pixel")
            _refuse_unreadable(path, page, max_pixels)
            yield file, page
    except ConfigError:
        raise
    except Exception as error:  # of many kinds for broken files
        if "imagecodecs" in str(error):
            more = "is packed in a way for which tifffile needs more (LZW, or a predictor of floats)"
            fix = "pip install imagecodecs, or store it with deflate"
            raise ConfigError(f"{path}: {more}; {fix}") from None
        raise ConfigError(f"{path}: cannot be read as TIFF ({first_line(error)}); replace or remove it") from None


def _has_second(file: Any) -> bool:
    try:
        file.pages[1]  # without walking to the end of what may be millions
    except IndexError:
        return False
    return True


def _refuse_unreadable(path: Path, page: Any, max_pixels: int) -> None:
    """Raises ConfigError for what is too large, or not read."""
    if page.dtype is None or page.bitspersample not in BITS or page.imagedepth != 1:
        bits = page.bitspersample
        raise ConfigError(f"{path}: is a TIFF of {bits} bits a channel; store it as uint8, uint16 or float32")
    checked_bytes(path, max_pixels, (page.imagelength, page.imagewidth, page.samplesperpixel), page.dtype)
    if page.is_tiled and (tile := page.tilewidth * page.tilelength * page.tiledepth) > max_pixels:
        size = f"{page.imagewidth}×{page.imagelength} in tiles of {tile:,}"
        raise ConfigError(f"{path}: is {size}, more than data.max_pixels {max_pixels}; set that or remove it")
    if int(page.compression) not in (NONE, LZW, DEFLATE, OLD_DEFLATE):
        name = getattr(page.compression, "name", page.compression)
        raise ConfigError(f"{path}: is compressed by {name}; store it with deflate, LZW or without compression")
    if (tag := page.tags.get(274)) is not None and tag.value != 1:
        raise ConfigError(f"{path}: is rotated by a tag that masks do not have; store it rotated, without the tag")


def _header(path: Path, page: Any) -> Header:
    return Header(page.imagelength, page.imagewidth, page.samplesperpixel, known_dtype(path, page.dtype))


def _decompressed(path: Path, data: bytes, wanted: int, compression: int) -> bytes:
    """A strip or tile, never more than is wanted of it."""
    if compression == NONE:
        return data
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(data, wanted)
    import imagecodecs

    return bytes(imagecodecs.lzw_decode(data, out=wanted))
