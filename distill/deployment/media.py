"""Images and video frames from files, folders and globs, and videos made from frames. Needs no torch.

Images come as viewers show them (turned by their EXIF tag); whatever cannot be read in full is an error, never half
an image. Videos are read by a process with a limit on its memory (`sandbox`), from absolute paths: FFmpeg takes a
relative name such as `http:host?.mp4` for an address.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what ffmpeg would print is said by our own errors
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "protocol_whitelist;file"  # a playlist may not lead to the network

import cv2
import numpy as np
from PIL import Image, ImageOps

from distill.deployment import sandbox
from distill.errors import ConfigError
from distill.visualize import decoded_pixels, own_pixel_limit, rgb_pixels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
RGB = (3, "uint8")  # channels and type of the images that most networks take
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000
# What reading a video may take: some fifty decoded frames (16 that later ones refer to, and those of 4 threads).
VIDEO_BYTES, VIDEO_BYTES_PER_PIXEL, VIDEO_THREADS, FRAME_SECONDS = 150_000_000, 150, 4, 30


@dataclass(frozen=True)
class Item:
    """One image or frame.

    Attributes:
        name: of the files made from it, without suffix; frames are `<video>/<number>`.
        read: gives uint8 RGB `[H, W, 3]` or raises ConfigError.
        video: that the frame is of.
    """

    name: str
    read: Callable[[], np.ndarray]
    video: Video | None = None


def find(inputs: Sequence[str], without: Path | None = None) -> dict[str, Path]:
    """Files behind names of files, folders (with all folders in them) and globs, by the names of their results.

    A name is the path below the folder or pattern that was given, without suffix. Where two files would have the same,
    all names start at the folder common to all files, and those of the same folder keep their suffixes.

    Args:
        inputs: files, folders, globs (`**` for any depth).
        without: a folder that is not searched: earlier results.

    Raises:
        ConfigError: a name that leads to nothing.
    """
    base_of: dict[str, str] = {}
    for text in inputs:
        if os.path.isdir(text):
            base, found = text, list(_walk(text, without))
            if not found:
                kinds = f"images ({', '.join(IMAGE_SUFFIXES)}) or videos ({', '.join(VIDEO_SUFFIXES)})"
                raise ConfigError(f"{text}: holds no {kinds}")
        elif os.path.isfile(text):
            base, found = os.path.dirname(text), [text]
        else:
            base, found = _fixed_part(text), [p for p in sorted(glob.glob(text, recursive=True)) if os.path.isfile(p)]
            if not found:
                raise ConfigError(f"{text}: no such file or folder, and as a pattern it matches none")
        for path in found:
            base_of.setdefault(os.path.normpath(path), base)
    names = {path: _name(path, base) for path, base in base_of.items()}
    if _clashing(names):
        common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in names])
        names = {path: _name(path, common) for path in names}
        names |= {path: names[path] + Path(path).suffix for path in _clashing(names)}
    if clashing := _clashing(names):
        raise ConfigError(f"{clashing[0]}: its results would have the name of another file's; rename it")
    return {name: Path(path) for path, name in names.items()}


def _walk(folder: str, without: Path | None) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename}: cannot be searched ({error.strerror}); check its permissions")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            f for f in folders if not without or os.path.abspath(f"{root}/{f}") != str(without.absolute())
        )
        yield from (
            os.path.join(root, f) for f in sorted(files) if Path(f).suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
        )


def _fixed_part(pattern: str) -> str:
    """The folder of a glob in which the search starts."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern


def _name(path: str, base: str) -> str:
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(base))).with_suffix("").as_posix()


def _clashing(names: Mapping[str, str]) -> list[str]:
    """Files whose results would have the name of another's, or whose frames would lie among another's results."""
    times = Counter(names.values())
    folders = {parent.as_posix() for name in times for parent in Path(name).parents}
    return [p for p, name in names.items() if times[name] > 1 or (is_video(Path(p)) and name in folders)]


def is_video(path: Path) -> bool:
    """Whether a file is read frame by frame, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def items(files: Mapping[str, Path], max_pixels: int = MAX_PIXELS, kind: tuple[int, str] = RGB) -> Iterator[Item]:
    """Images and frames in order; a file that cannot be read becomes an item that raises, and the rest follows.

    Args:
        files: by the names of their results.
        max_pixels: of an image or frame; larger ones are refused.
        kind: channels and type of the images.
    """
    for name, path in files.items():
        if not is_video(path):
            yield Item(name, partial(read_image if kind == RGB else partial(read_as, kind), path, max_pixels))
            continue
        if kind != RGB:
            yield Item(name, partial(_give, ConfigError(f"{path}: a video is RGB of 8 bits; {_takes(kind)}")))
            continue
        try:
            video = Video(path, max_pixels)
            for i, frame in enumerate(video):
                yield Item(f"{name}/{i:06d}", partial(_give, frame), video)
        except ConfigError as error:
            yield Item(name, partial(_give, ConfigError(str(error))))  # one file's end is not the model's


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 RGB `[H, W, 3]`; 16-bit gray is scaled from 0…65535, as 16-bit color is.

    Raises:
        ConfigError: not an image, damaged, of more than 16 bits, or too large.
    """
    try:
        size = path.stat().st_size  # 0 for a pipe, too, which would be waited for
        if not 0 < size <= 8 * max_pixels + 1_000_000:
            raise ConfigError(f"{path}: has {size:,} bytes, {'more than an image takes' if size else 'it is empty'}")
        with own_pixel_limit():
            opened = Image.open(path, formats=FORMATS)
        with opened as image:
            if decoded_pixels(image) > max_pixels:
                tiles = f" in tiles of {decoded_pixels(image):,}" if image.width * image.height <= max_pixels else ""
                more = f"more than {max_pixels:,} pixels; --max_pixels allows more"
                raise ConfigError(f"{path}: is {image.width}×{image.height}{tiles}, {more}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
                gray = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
                return np.repeat(gray.astype(np.uint8)[..., None], 3, 2)
            if image.mode[0] in "IF":
                raise ConfigError(f"{path}: has more than 16 bits a channel ({image.mode}); convert it to 8")
            return rgb_pixels(image)
    except ConfigError:
        raise
    except Image.UnidentifiedImageError:
        raise ConfigError(f"{path}: is not an image ({', '.join(FORMATS)})") from None
    except Exception as error:  # PIL raises many kinds for broken files
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:150]})") from None


def read_as(kind: tuple[int, str], path: Path, max_pixels: int) -> np.ndarray:
    """An image `[H, W, C]` as it is stored, for networks that take other images than RGB of 8 bits.

    Raises:
        ConfigError: it cannot be read, or is of another kind.
    """
    from distill.data.images import read_image as read_stored  # its package imports torch

    image = read_stored(path, max_pixels, kind[0])
    if image.dtype.name != kind[1]:
        raise ConfigError(f"{path}: is {image.dtype.name}; {_takes(kind)}")
    return image


def _takes(kind: tuple[int, str]) -> str:
    return f"the network takes images of {kind[0]} channel{'s' * (kind[0] > 1)} of {kind[1]}"


class Video:
    """Frames of a video, uint8 RGB `[H, W, 3]`, read once.

    Args:
        path: the file.
        max_pixels: of a frame.

    Attributes:
        count: number of frames, as far as the header says.
        fps: frames a second, as far as the header says.

    Raises:
        ConfigError: not a video, frames that are too large, or one that ends before its header says; the frames until
            there have come.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS):
        if not path.is_file():
            raise ConfigError(f"{path}: is no file")
        self.process = sandbox.Sandbox("from distill.deployment.media import serve; serve()", str(path), VIDEO_BYTES)
        told, _ = self.process.ask(FRAME_SECONDS, path=str(path), max_pixels=max_pixels)
        self.count, self.fps = int(told["count"]), float(told["fps"])
        self.memory = VIDEO_BYTES_PER_PIXEL * int(told["pixels"])

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while (frame := self.process.ask(FRAME_SECONDS, self.memory)[1]) is not None:
                yield frame
        finally:
            self.process.close()


def serve() -> None:
    """In the process of a `Video`: opens the file, then gives frame after frame."""
    frames: list[Iterator[np.ndarray]] = []

    def answer(request: dict[str, Any], _: np.ndarray | None) -> sandbox.Message:
        if "path" not in request:
            return {}, next(frames[0], None)
        path, largest = request["path"], request["max_pixels"]
        threads = [cv2.CAP_PROP_N_THREADS, VIDEO_THREADS]
        capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, threads)
        if not capture.isOpened():
            raise ConfigError(f"{path}: cannot be opened as a video; it is damaged, cut off or of another format")
        names = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
        width, height, count = (int(capture.get(name)) for name in names)
        if width * height > largest:
            more = f"more than {largest:,} pixels; --max_pixels allows more"
            raise ConfigError(f"{path}: has frames of {width}×{height}, {more}")
        frames.append(_frames(path, capture, f"{width}×{height}", count))
        return {"count": max(0, count), "fps": capture.get(cv2.CAP_PROP_FPS), "pixels": width * height}, None

    sandbox.serve(answer)


def _frames(path: str, capture: cv2.VideoCapture, size: str, expected: int) -> Iterator[np.ndarray]:
    number = 0
    while True:
        read, frame = capture.read()
        if not read:
            break
        number += 1
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    if number + 1 < expected:  # some containers only know their duration, from which the count is rounded
        cause = f"it is damaged or cut off, or its frames are larger than the {size} of its header"
        raise ConfigError(f"{path}: ends after {number} of {expected} frames; {cause}")
    if not number:
        raise ConfigError(f"{path}: holds no frames")


class VideoWriter:
    """Writes an MP4 (MPEG-4 part 2, without sound) under a hidden name, which it loses when it is complete.

    Args:
        path: where it goes.
        fps: frames a second; 25 if it is not a rate at which films run.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps if 0 < fps <= 240 else 25.0
        self.scratch = path.with_name(f".{path.name}").absolute()
        self.writer: cv2.VideoWriter | None = None
        self.size = (0, 0)

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 RGB `[H, W, 3]`; those of another size than the first are resized.

        Raises:
            OSError: the file cannot be written.
        """
        if self.writer is None:
            self.size = (frame.shape[1], frame.shape[0])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
            self.writer = cv2.VideoWriter(str(self.scratch), cv2.CAP_FFMPEG, code, self.fps, self.size)
            if not self.writer.isOpened():
                raise OSError(f"{self.path.name} cannot be written as a video of {self.size[0]}×{self.size[1]}")
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Completes the file, if it has frames."""
        if self.writer is not None:
            self.writer.release()
            os.replace(self.scratch, self.path)


def _give(value: np.ndarray | ConfigError) -> np.ndarray:
    if isinstance(value, ConfigError):
        raise value
    return value
