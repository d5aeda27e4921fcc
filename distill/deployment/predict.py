"""Masks, overlays and comparisons of images and videos. Needs torch only for a network that is no ONNX file.

    python scripts/predict.py checkpoints/default/student/model.onnx photos/ 'more/*.jpg' ride.mp4 --overlay 0.5

Every worker reads, asks the network and writes by itself, each image on one core: for many images that beats spreading
each over all of them. Exit code 0: all is done; 1: some were skipped, or writing failed; 2: nothing could be done.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill.deployment import media
from distill.deployment.runtime import Segmenter, open_model
from distill.deployment.sandbox import SandboxError
from distill.deployment.tiles import Shrunk, Tiled
from distill.errors import ConfigError, harmless, printable, say
from distill.visualize import NOTHING_COLOR, Palette, overlay, palette_image, row

VOID = 255  # in the masks that are written; as `distill.batch` has it, which needs torch
_T = TypeVar("_T")


@dataclass
class Summary:
    """What became of the images.

    Attributes:
        pixels: by class id, int64 `[256]`.
        seen: all of them; with many labels a pixel, classes add up to another number.
        done: images and frames with a mask.
        skipped: one line for each that has none.
        seconds: from the first read to the last write.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    seen: int = 0
    done: int = 0
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def predict(
    model: Segmenter,
    files: Mapping[str, Path],
    folder: Path,
    opacity: float | None = None,
    teacher: Segmenter | None = None,
    workers: int = 1,
    max_pixels: int = media.MAX_PIXELS,
    min_confidence: float | None = None,
) -> Summary:
    """Writes `masks/<name>.png` and, if asked for, `overlays/<name>.jpg` and `side_by_side/<name>.jpg`.

    With many labels a pixel, `masks/<class>/<name>.png` of 0 and 1 for each class, as training data is read.

    Of a video it also writes `videos/<name>.mp4`: the overlays, or student and teacher side by side.

    Args:
        model: the student.
        files: images and videos by the names of their results.
        folder: where the results go; a frame is `<video>/<number>` there.
        opacity: of the overlays' colors, 0 to 1; if not given, only videos are overlaid, by half.
        teacher: if given, its overlay is put beside the student's.
        workers: images at once.
        max_pixels: of an image or frame.
        min_confidence: probability of the class, 0 to 1, below which a pixel of the masks is void, to be learned from;
            `confidence/<name>.png` then holds the probabilities, 255 for 1.

    Raises:
        ConfigError: the two networks have other classes, or one of them had to be stopped; with many labels a pixel,
            names of classes that cannot be folders.
        OSError: the results cannot be written.
    """
    if teacher and (teacher.classes, teacher.multilabel) != (model.classes, model.multilabel):
        raise ConfigError(f"the teacher has the classes {teacher.classes}, the student {model.classes}")
    if model.multilabel and (bad := [name for name in model.classes if not _is_folder(name)]):
        raise ConfigError(f"class {bad[0]!r}: masks go into a folder for each class, and this can be none; rename it")
    if teacher and teacher.image != model.image:
        raise ConfigError(f"the teacher takes images of {teacher.image}, the student of {model.image}")
    shown = 0.5 if opacity is None else opacity

    def write(kind: str, item: media.Item, planes: np.ndarray, palette: Palette | None) -> None:
        """Into a folder, or with many labels a pixel into one for each class."""
        of_class = zip(model.classes, planes, model.palette, strict=True) if planes.ndim == 3 else ()
        for name, plane, color in of_class or [("", planes, ())]:
            colors = [NOTHING_COLOR, color] if palette and name else palette
            shown = palette_image(plane, colors) if colors else Image.fromarray(plane)
            shown.save(_file(folder / kind / name, item, "png"), compress_level=1)

    def work(item: media.Item) -> tuple[np.ndarray, int, np.ndarray | None]:
        image, picture = item.read(), None
        if min_confidence is None:
            mask = model.mask(image)
        else:
            mask, confidence = _sure(model, image, min_confidence)
            write("confidence", item, confidence, None)
        write("masks", item, mask, model.palette)
        if opacity is not None or item.video:
            picture = overlay(image, mask, model.palette, shown)
            if opacity is not None:
                Image.fromarray(picture).save(_file(folder / "overlays", item, "jpg"), quality=90)
        if teacher:
            panels = [overlay(image, m, model.palette, shown) for m in (teacher.mask(image), mask)]
            picture = row(panels, ("teacher", "student"))
            Image.fromarray(picture).save(_file(folder / "side_by_side", item, "jpg"), quality=90)
        return _count(mask), mask.shape[-2] * mask.shape[-1], picture if item.video else None

    summary, start = Summary(), time.perf_counter()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(files), unit=" images", disable=None) as bar,
        _Films(folder / "videos") as films,
    ):
        for item, future in _ahead(pool, work, media.items(files, max_pixels, model.image), 2 * workers):
            if films.starts(item) and item.video:
                bar.total += max(0, item.video.count - 1)
            try:
                pixels, seen, picture = future.result()
                summary.pixels += pixels
                summary.seen += seen
                summary.done += 1
                films.add(item, picture)
            except SandboxError:  # nothing more can be asked of it
                raise
            except ConfigError as error:
                summary.skipped.append(str(error))
                tqdm.write(printable(f"predict: skipped {error}"), file=sys.stderr)
            bar.update()
    summary.seconds = time.perf_counter() - start
    return summary


def _count(mask: np.ndarray) -> np.ndarray:
    """Pixels of each id, int64 `[256]`; some at a time, since `bincount` makes eight bytes of each."""
    if mask.ndim == 3:
        return np.pad((mask == 1).sum((1, 2)), (0, 256 - len(mask)))
    parts = np.array_split(mask, 1 + (mask.size >> 22))
    return np.sum([np.bincount(part.ravel(), minlength=256) for part in parts], axis=0)


def _is_folder(name: str) -> bool:
    """Whether a class may name a folder here: a file of anybody's says what its classes are called."""
    return Path(name).name == name and name not in ("", ".", "..") and "\\" not in name and harmless(name)


def _sure(model: Segmenter, image: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """What a network says, void where it is less sure than `least`, and how sure it is in 0 to 255: uint8 `[H, W]`.

    With many labels a pixel, `[C, H, W]`: of each class, whether it is there.
    """
    if not isinstance(model, Tiled):
        return _sure_of(model.logits(image), least, model.multilabel)

    def both(found: np.ndarray) -> np.ndarray:
        return np.stack(_sure_of(model.logits_of(found), least, model.multilabel))

    mask, confidence = np.concatenate(list(model.bands(image, both)), -2)
    return mask, confidence


def _sure_of(logits: np.ndarray, least: float, multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same of logits `[C, h, w]`."""
    if multilabel:
        probability = 1 / (1 + np.exp(-np.abs(logits)))
        mask = np.where(probability < least, VOID, logits > 0).astype(np.uint8)
        return mask, (255 * probability).round().astype(np.uint8)
    highest = logits.max(0)
    probability = 1 / np.exp(logits - highest).sum(0)
    mask = np.where(probability < least, VOID, logits.argmax(0)).astype(np.uint8)
    return mask, (255 * probability).round().astype(np.uint8)


class _Films:
    """The videos made of the frames of videos, one after the other."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.video: media.Video | None = None
        self.writer: media.VideoWriter | None = None

    def __enter__(self) -> _Films:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()

    def starts(self, item: media.Item) -> bool:
        """Whether the item is the first of a video, or none of one; completes the video before it."""
        if item.video is self.video and item.video:
            return False
        self.__exit__()
        self.video, self.writer = item.video, None
        if item.video:
            name = item.name.rpartition("/")[0]
            self.writer = media.VideoWriter(self.folder / f"{name}.mp4", item.video.fps)
        return True

    def add(self, item: media.Item, picture: np.ndarray | None) -> None:
        """The picture of an item, if it is of a video."""
        if self.writer and picture is not None:
            self.writer.write(picture)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[media.Item], _T], items: Iterator[media.Item], depth: int
) -> Iterator[tuple[media.Item, Future[_T]]]:
    """Results in order, with only so many images in memory: the frames of a video would fill it."""
    pending: deque[tuple[media.Item, Future[_T]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) >= depth:
            yield pending.popleft()
    yield from pending


def _file(folder: Path, item: media.Item, suffix: str) -> Path:
    path = folder / f"{item.name}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def describe(summary: Summary, classes: Sequence[str], folder: Path) -> str:
    """Counts, speed and, if anything was done, the share of each class, for a person."""
    masks = folder / "masks"
    lines = [f"{summary.done} masks in {masks}, {summary.done / max(summary.seconds, 1e-9):.1f} images/s"]
    if summary.skipped:
        lines[0] += f", {len(summary.skipped)} skipped"
    if total := summary.seen or int(summary.pixels.sum()):
        width = max(map(len, classes))
        shares = zip(classes, summary.pixels, strict=False)
        lines += ["share of all pixels:", *(f"  {name:{width}}  {100 * n / total:6.2f} %" for name, n in shares)]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None, prog: str = "predict.py") -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Segment images and videos.", allow_abbrev=False)
    parser.add_argument("model", type=Path, help="ONNX file, folder written by SMP's save_pretrained, or a run")
    parser.add_argument("inputs", nargs="+", help="images, videos, folders (with all folders in them), globs")
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="%(default)s if not given")
    parser.add_argument("--overlay", type=float, metavar="OPACITY", help="also write overlays, 0 to 1")
    parser.add_argument(
        "--min_confidence", type=float, metavar="P", help="less likely pixels are void: masks to learn from"
    )
    parser.add_argument("--teacher", type=Path, help="another network, to be shown beside the first")
    parser.add_argument(
        "--window", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="slide over large images, overlaps blended"
    )
    parser.add_argument(
        "--longest_side", type=int, metavar="PIXELS", help="larger images are made smaller for the network"
    )
    parser.add_argument(
        "--max_pixels", type=int, default=media.MAX_PIXELS, help="of an image; %(default)s if not given"
    )
    parser.add_argument("--trusted", action="store_true", help="run ONNX files without limits on memory and time")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--num_threads", type=int, default=cores, help="images at once; one a core if not given")
    args = parser.parse_args(argv)
    for name in ("overlay", "min_confidence"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            parser.error(f"--{name}: {value} is not between 0 and 1")
    for name in ("num_threads", "longest_side", "max_pixels", "window"):
        value = getattr(args, name)
        if value is not None and min(value if name == "window" else [value]) < 1:
            parser.error(f"--{name}: {value} must be above 0")
    return args


def _open(path: Path, args: argparse.Namespace, threads: int) -> Segmenter:
    """A network that sees images as the command line says."""
    model = open_model(path, threads, args.trusted)
    if args.window:
        model = Tiled(model, args.window)
    return Shrunk(model, args.longest_side) if args.longest_side else model


def main(argv: Sequence[str] | None = None, prog: str = "predict.py") -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv, prog)
    try:
        files = media.find(args.inputs, args.output_dir)
        one_each = len(files) < args.num_threads and not any(map(media.is_video, files.values()))
        workers = len(files) if one_each else args.num_threads
        model, teacher = (
            path and _open(path, args, args.num_threads // workers) for path in (args.model, args.teacher)
        )
        more = (workers, args.max_pixels, args.min_confidence)
        summary = predict(model, files, args.output_dir, args.overlay, teacher, *more)
    except ConfigError as error:
        say(f"predict: error: {error}", sys.stderr)
        return 2
    except OSError as error:
        say(f"predict: error: {args.output_dir}: {error}", sys.stderr)
        return 1
    say(describe(summary, model.classes, args.output_dir))
    return 1 if summary.skipped else 0
