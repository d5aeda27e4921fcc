"""Images and video frames from files, folders and globs. Needs no torch.

Images come as viewers show them (turned by their EXIF tag); whatever cannot be read in full is an error, never half
an image.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what ffmpeg would print is said by our own errors

import cv2
import numpy as np
from PIL import Image, ImageOps

from distill.config import ConfigError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Item:
    """One image or frame.

    Attributes:
        name: of the files made from it, without suffix; frames are `<video>/<number>`.
        read: gives uint8 RGB `[H, W, 3]` or raises ConfigError.
    """

    name: str
    read: Callable[[], np.ndarray]


def find(inputs: Sequence[str]) -> list[Path]:
    """Files behind names of files, folders (what lies directly in them) and globs (`**` goes deeper).

    Raises:
        ConfigError: a name that leads to nothing, or two files whose results would have the same name.
    """
    paths: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
            if not found:
                raise ConfigError(
                    f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)}) or videos ({', '.join(VIDEO_SUFFIXES)})"
                )
        elif path.is_file():
            found = [path]
        else:
            found = [p for p in map(Path, sorted(glob.glob(text, recursive=True))) if p.is_file()]
            if not found:
                raise ConfigError(f"{text}: no such file or folder, and as a pattern it matches none")
        paths += found
    by_stem: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise ConfigError(f"{path}: its results would have the name of those of {other}; run them apart")
    return list(by_stem.values())


def is_video(path: Path) -> bool:
    """Whether a file is read frame by frame, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def count(paths: Sequence[Path]) -> int:
    """Images and frames, as far as the headers of videos say."""
    return sum(max(1, _frame_count(path)) if is_video(path) else 1 for path in paths)


def items(paths: Sequence[Path]) -> Iterator[Item]:
    """Images and frames in order; a file that cannot be read becomes an item that raises, and the rest follows."""
    for path in paths:
        if not is_video(path):
            yield Item(path.stem, partial(read_image, path))
            continue
        try:
            for i, frame in enumerate(frames(path)):
                yield Item(f"{path.stem}/{i:06d}", partial(_give, frame))
        except ConfigError as error:
            yield Item(path.stem, partial(_give, error))


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 RGB `[H, W, 3]`.

    Raises:
        ConfigError: not an image, damaged, of more than 8 bits, or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # our own limit holds instead
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ConfigError(f"{path}: is {image.width}×{image.height}, more than {max_pixels:,} pixels")
            if image.mode[0] in "IF":
                raise ConfigError(f"{path}: has more than 8 bits a channel ({image.mode}); convert it to 8")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ConfigError:
        raise
    except Image.UnidentifiedImageError:
        raise ConfigError(f"{path}: is not an image ({', '.join(FORMATS)})") from None
    except Exception as error:  # PIL raises many kinds for broken files
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:150]})") from None


def frames(path: Path) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 RGB `[H, W, 3]`.

    Raises:
        ConfigError: not a video, or one that ends before its header says; the frames until there have come.
    """
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise ConfigError(f"{path}: cannot be opened as a video; it is damaged, cut off or of another format")
        expected, number = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if number + 1 < expected:  # some containers only know their duration, from which the count is rounded
            raise ConfigError(f"{path}: ends after {number} of {expected} frames; it is damaged or cut off")
        if not number:
            raise ConfigError(f"{path}: holds no frames")
    finally:
        capture.release()


def _frame_count(path: Path) -> int:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()


def _give(value: np.ndarray | ConfigError) -> np.ndarray:
    if isinstance(value, ConfigError):
        raise value
    return value
