"""Image files: opened, limited in size before anything decodes them, and read as they are or as RGB.

PIL opens what it reads without loss: it refuses truncated files, keeps palette indices and does not rotate images
behind the mask's back. It has none of many channels, and of 16 bits only gray ones, so with `data.in_channels` set:

- PNG of 16 bits in color: OpenCV decodes it, which albumentations brings along; PIL would cut it to 8 bits. PIL decodes
  it first nevertheless, since OpenCV returns a truncated file as an image.
- TIFF of many channels, or of several of more than 8 bits: tifffile (see `distill.data.tiff`), an extra.
- `.npy`: NumPy, without pickles.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from distill.data.arrays import Header, array_header, first_line, open_array
from distill.data.windows import Window
from distill.errors import ConfigError
from distill.visualize import decoded_pixels, own_pixel_limit, rgb_pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")  # of images that are read as they are
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# PIL goes by content and knows formats that start programs (EPS); masks come in none that alters labels (JPEG).
IMAGE_FORMATS, MASK_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP"), ("PNG", "BMP", "TIFF")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # as RGB they would be cut off at 255
# Channels and type of what PIL gives; palettes and single bits become what they show.
PIL_MODES: dict[str, tuple[int, str]] = {
    **{mode: (1, "uint16") for mode in ("I;16", "I;16B", "I;16L", "I;16N")},
    **{mode: (n, "uint8") for mode, n in (("L", 1), ("1", 1), ("LA", 2), ("RGB", 3), ("P", 3), ("RGBA", 4))},
    **{"RGBX": (4, "uint8"), "CMYK": (4, "uint8"), "F": (1, "float32")},
}
SHOWN = {"1": "L", "P": "RGB"}
PNG_START, NPY_START = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ROTATED = "is rotated by an EXIF tag that masks do not have; store it rotated, without the tag"


def open_picture(
    path: Path, max_pixels: int, formats: tuple[str, ...] = IMAGE_FORMATS, rotated: bool = False
) -> Image.Image:
    """Opens a file with PIL; reads the header only.

    Args:
        path: the file.
        max_pixels: larger ones are refused.
        formats: of PIL's, which it may have.
        rotated: whether an EXIF tag may turn it.

    Raises:
        ConfigError: it cannot be read, is too large, holds several pictures or is turned.
    """
    try:
        size = path.stat().st_size  # 0 for a pipe, too, which would be waited for
        if not 0 < size <= 8 * max_pixels + 1_000_000:
            raise OSError(f"it has {size:,} bytes, more than data.max_pixels can take" if size else "it is empty")
        with own_pixel_limit():
            image = Image.open(path, formats=formats)
        if decoded_pixels(image) > max_pixels:  # before anything decodes it, as looking for tags does in a PNG
            tiles = f" in tiles of {decoded_pixels(image):,}" if image.width * image.height <= max_pixels else ""
            more = f"is {image.width}×{image.height}{tiles}, more than data.max_pixels {max_pixels}"
            raise ConfigError(f"{path}: {more}; set that or remove it")
        pictures, orientation = getattr(image, "n_frames", 1), orientation_of(image, path)
    except ConfigError:
        raise
    except Exception as error:  # PIL raises many kinds for broken files
        kinds, fix = ", ".join(formats), "replace or remove it"
        if formats == IMAGE_FORMATS and _start(path).startswith(TIFF_STARTS):
            fix += ", or set data.in_channels if it is a TIFF of other channels than RGB"
        raise ConfigError(f"{path}: cannot be read as {kinds} ({first_line(error)}); {fix}") from None
    if image.format != "MPO" and pictures > 1:  # MPO: a photo with a smaller twin
        how = ", with all channels in each pixel (tifffile.imwrite: planarconfig='contig')"
        raise ConfigError(f"{path}: holds {pictures} pictures; store one{how if image.format == 'TIFF' else ''}")
    # A TIFF is turned by PIL itself when it is decoded.
    if orientation != 1 and not (rotated and image.format != "TIFF" and orientation in range(2, 9)):
        raise ConfigError(f"{path}: {ROTATED}")
    return image


def orientation_of(image: Image.Image, path: Path) -> int:
    """EXIF's orientation of an opened image, 1 to 8; 1 is upright.

    PIL decodes a PNG to find out whether tags stand behind its pixels, which is not needed where none do.
    """
    tags = Image.Image.getexif(image) if image.format == "PNG" and not _tags_behind_pixels(path) else image.getexif()
    return int(tags.get(0x0112, 1))


def decode(path: Path, max_pixels: int, formats: tuple[str, ...] = IMAGE_FORMATS, rotated: bool = False) -> Image.Image:
    """Opens a file with PIL and decodes it, as it is stored.

    Raises:
        ConfigError: it cannot be opened (see `open_picture`) or decoded.
    """
    image = open_picture(path, max_pixels, formats, rotated)
    try:
        image.load()
    except Exception as error:
        raise ConfigError(f"{path}: cannot be decoded ({first_line(error)}); replace or remove it") from None
    return image


def read_header(path: Path, max_pixels: int, channels: int | None = None) -> Header:
    """What a file says of its image, without decoding it.

    Args:
        path: the file.
        max_pixels: larger ones are refused.
        channels: `data.in_channels`.

    Raises:
        ConfigError: it cannot be opened, or has other channels.
    """
    kind = _kind(path) if channels else ""
    if kind == "tiff":
        from distill.data.tiff import tiff_header

        found = tiff_header(path, max_pixels)
    elif kind == "npy":
        found = array_header(path, open_array(path, max_pixels))
    else:
        with open_picture(path, max_pixels, rotated=True) as image:
            if channels is None:
                if image.mode in DEEP_MODES:
                    fix = "store it with 8 bits a channel, or set data.in_channels 1 to read it as it is"
                    raise ConfigError(f"{path}: is an image of mode {image.mode}; {fix}")
                return Header(image.height, image.width, orientation=orientation_of(image, path))
            found = _header_of_picture(path, image, kind, channels)
    if channels != found.channels:
        has = "1 channel" if found.channels == 1 else f"{found.channels} channels"
        fix = "leave data.in_channels out, which reads 8 bits as RGB, or replace the file"
        raise ConfigError(f"{path}: has {has}, data.in_channels is {channels}; {fix}")
    return found


def read_image(path: Path, max_pixels: int, channels: int | None = None) -> np.ndarray:
    """An image as it is stored, unless it is to be RGB.

    Args:
        path: the file.
        max_pixels: larger ones are refused.
        channels: `data.in_channels`: None for RGB of 8 bits, whatever the file has.

    Returns:
        `[H, W, channels]`: uint8, uint16 or float32.

    Raises:
        ConfigError: it cannot be read, has other channels, or holds what is no number.
    """
    if channels is None:
        return rgb_pixels(decode(path, max_pixels, rotated=True))
    kind, header = _kind(path), read_header(path, max_pixels, channels)
    if kind == "tiff":
        from distill.data.tiff import read_tiff

        image = read_tiff(path, max_pixels)
    elif kind == "npy":
        image = np.array(open_array(path, max_pixels))
    else:
        picture = decode(path, max_pixels, rotated=True)
        if kind == "deep png":
            image = _deep_png(path)
        else:
            shown = "L" if channels == 1 and picture.mode not in DEEP_MODES else SHOWN.get(picture.mode, picture.mode)
            image = np.asarray(picture if picture.mode == shown else picture.convert(shown))
    return _as_pixels(path, image, header.dtype)


def read_window(path: Path, max_pixels: int, channels: int | None, window: Window) -> np.ndarray | None:
    """A window of an image as `read_image` gives it; None if its file is one that has to be decoded whole.

    Raises:
        ConfigError: as `read_image`.
    """
    if not reads_windows(path, channels):
        return None
    header = read_header(path, max_pixels, channels)
    if _kind(path) == "npy":
        return _as_pixels(path, window.of(open_array(path, max_pixels)), header.dtype)
    from distill.data.tiff import read_tiff

    return _as_pixels(path, read_tiff(path, max_pixels, window), header.dtype)


def reads_windows(path: Path, channels: int | None) -> bool:
    """Whether a part of an image can be read without decoding all of it."""
    return channels is not None and _kind(path) in ("npy", "tiff")


def _as_pixels(path: Path, values: np.ndarray, dtype: str) -> np.ndarray:
    """Values `[H, W]` or `[H, W, C]` of a file as an image `[H, W, C]`.

    Raises:
        ConfigError: some are not finite.
    """
    image = np.ascontiguousarray(values.reshape(*values.shape[:2], -1), dtype)
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        count = int((~finite).sum())
        raise ConfigError(f"{path}: {count} of its values are not finite (NaN or infinite); replace them by numbers")
    return image


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image `[H, W, …]` turned and mirrored as an EXIF orientation (1 to 8) says."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _kind(path: Path) -> str:
    """Which reader a file needs, by what it begins with: `tiff`, `npy`, `deep png`, or PIL for the rest."""
    start = _start(path)
    if start.startswith(NPY_START):
        return "npy"
    if start.startswith(TIFF_STARTS):
        return "" if _pil_reads(path) else "tiff"
    if start.startswith(PNG_START) and len(start) > 25 and start[24] == 16:
        return {2: "deep png", 4: "deep gray and alpha", 6: "deep png"}.get(start[25], "")
    return ""


def _start(path: Path) -> bytes:
    """A file's first bytes; none if it is no file, or cannot be read: PIL's reader says so."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return b""
        with path.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""


def _tags_behind_pixels(path: Path) -> bool:
    """Whether a PNG may have tags behind its pixels; yes where its chunks do not lead to its end."""
    with path.open("rb") as file:
        place, size, pixels = len(PNG_START), os.fstat(file.fileno()).st_size, False
        while place + 12 <= size:
            file.seek(place)
            length, name = struct.unpack(">I4s", file.read(8))
            if name == b"IEND":
                return False
            if pixels and name not in (b"IDAT", b"tIME"):
                return True
            pixels = pixels or name == b"IDAT"
            place += 12 + length
    return True


def _pil_reads(path: Path) -> bool:
    """Whether PIL reads a TIFF without loss."""
    try:
        with warnings.catch_warnings(action="ignore"), own_pixel_limit(), Image.open(path, formats=("TIFF",)) as image:
            bits = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
            samples = image.tag_v2.get(277, 1)  # type: ignore[attr-defined]
            deep = image.mode in DEEP_MODES or max(bits) <= 8
            return image.mode != "I" and image.mode in PIL_MODES and deep and samples == len(image.getbands())
    except Exception:  # PIL raises many kinds for what it does not know
        return False


def _header_of_picture(path: Path, image: Image.Image, kind: str, channels: int) -> Header:
    channels_in_file, dtype = PIL_MODES.get(image.mode, (0, ""))
    if kind.startswith("deep"):
        channels_in_file, dtype = {"RGB": 3, "RGBA": 4}.get(image.mode, 0), "uint16"
    if not channels_in_file or kind == "deep gray and alpha":
        mode = kind.replace("deep", "16-bit") if kind == "deep gray and alpha" else f"mode {image.mode}"
        raise ConfigError(f"{path}: is an image of {mode}; store it as gray, RGB or RGBA")
    if channels == 1 and dtype == "uint8":
        channels_in_file = 1  # color is read as gray
    return Header(image.height, image.width, channels_in_file, dtype, orientation_of(image, path))


def _deep_png(path: Path) -> np.ndarray:
    """A PNG of 16 bits in color, which PIL has decoded to the end."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3:
        raise ConfigError(f"{path}: cannot be decoded as PNG of 16 bits; replace or remove it")
    return image[..., [2, 1, 0, *range(3, image.shape[2])]]  # OpenCV's order is BGR
