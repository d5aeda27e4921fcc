"""Images as arrays: what is known of one before it is decoded, how large it may be, and `.npy` files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import ConfigError

# What arrays become: floats and small signed integers are exact in float32, but for doubles.
DTYPES = {name: name for name in ("uint8", "uint16", "float32")} | dict.fromkeys(
    ("int8", "int16", "float16", "float64"), "float32"
)
MAX_CHANNELS = 512  # of OpenCV


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded.

    Attributes:
        height: rows, as they are stored.
        width: columns, as they are stored.
        channels: values of a pixel.
        dtype: `uint8`, `uint16` or `float32`, as it is read.
        orientation: EXIF's, 1 to 8; 1 is upright.
    """

    height: int
    width: int
    channels: int = 3
    dtype: str = "uint8"
    orientation: int = 1

    @property
    def size(self) -> str:
        """Width and height, for people."""
        return f"{self.width}×{self.height}"

    @property
    def turned(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def checked_bytes(path: Path, max_pixels: int, values: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises ConfigError if a decoded image would take more than 8 bytes for each of `data.max_pixels`.

    Args:
        path: what the message names.
        max_pixels: the limit.
        values: height, width and channels.
        dtype: of a value.
    """
    if int(np.prod(values[:2], dtype=object)) > max_pixels:
        size_in_pixels = f"{values[1]}×{values[0]}"
        raise ConfigError(f"{path}: is {size_in_pixels}, more than data.max_pixels {max_pixels}; set that or remove it")
    if not 0 < values[2] <= MAX_CHANNELS or 0 in values:
        raise ConfigError(f"{path}: has {values[2]} channels of {values[1]}×{values[0]}; replace or remove it")
    if (size := int(np.prod(values, dtype=object)) * dtype.itemsize) > 8 * max_pixels + 1_000_000:
        about = f"{values[2]} channels of {values[1]}×{values[0]} {dtype} take {size:,} bytes"
        raise ConfigError(f"{path}: its {about}, more than 8 for each of data.max_pixels; set that or remove it")


def known_dtype(path: Path, dtype: np.dtype) -> str:
    """The type that values are read as.

    Raises:
        ConfigError: one that no image here has.
    """
    if (name := dtype.newbyteorder("=").name) not in DTYPES:
        raise ConfigError(f"{path}: is an image of {name}; store it as uint8, uint16 or float32")
    return DTYPES[name]


def first_line(error: Exception) -> str:
    """What an exception of somebody else's says, on one line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def open_array(path: Path, max_pixels: int) -> np.ndarray:
    """A `.npy` file as an array `[H, W]` or `[H, W, C]` that has not been read yet."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of its header's parser
        raise ConfigError(f"{path}: cannot be read as npy ({first_line(error)}); replace or remove it") from None
    if array.ndim not in (2, 3):
        shape = list(array.shape)
        raise ConfigError(f"{path}: is an array of shape {shape}; store [height, width, channels] or [height, width]")
    checked_bytes(path, max_pixels, (*array.shape, 1)[:3], array.dtype)
    return array


def array_header(path: Path, array: np.ndarray) -> Header:
    """What an array `[H, W]` or `[H, W, C]` says of its image."""
    height, width, channels = (*array.shape, 1)[:3]
    return Header(height, width, channels, known_dtype(path, array.dtype))
