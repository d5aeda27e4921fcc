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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill import media
from distill.config import ConfigError
from distill.deployed import Segmenter, open_model
from distill.pictures import overlay, palette_image, row


@dataclass
class Summary:
    """What became of the images.

    Attributes:
        pixels: by class id, int64 `[256]`.
        done: images and frames with a mask.
        skipped: one line for each that has none.
        seconds: from the first read to the last write.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    done: int = 0
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def predict(
    model: Segmenter,
    paths: Sequence[Path],
    folder: Path,
    opacity: float | None = None,
    teacher: Segmenter | None = None,
    workers: int = 1,
) -> Summary:
    """Writes `masks/<name>.png` and, if asked for, `overlays/<name>.jpg` and `side_by_side/<name>.jpg`.

    Args:
        model: the student.
        paths: images and videos.
        folder: where the results go; a frame is `<video>/<number>` there.
        opacity: of the overlays' colours, 0 to 1; none are written if not given.
        teacher: if given, its overlay is put beside the student's.
        workers: images at once.

    Raises:
        ConfigError: the two networks have other classes.
        OSError: the results cannot be written.
    """
    if teacher and teacher.classes != model.classes:
        raise ConfigError(f"the teacher has the classes {teacher.classes}, the student {model.classes}")
    shown = 0.5 if opacity is None else opacity

    def work(item: media.Item) -> np.ndarray:
        image = item.read()
        mask = model.mask(image)
        palette_image(mask, model.palette).save(_file(folder / "masks", item, "png"), compress_level=1)
        if opacity is not None:
            picture = overlay(image, mask, model.palette, opacity)
            Image.fromarray(picture).save(_file(folder / "overlays", item, "jpg"), quality=90)
        if teacher:
            panels = [overlay(image, m, model.palette, shown) for m in (teacher.mask(image), mask)]
            picture = row(panels, ("teacher", "student"))
            Image.fromarray(picture).save(_file(folder / "side_by_side", item, "jpg"), quality=90)
        return np.bincount(mask.ravel(), minlength=256)

    summary, start = Summary(), time.perf_counter()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=media.count(paths), unit=" images", disable=None) as bar,
    ):
        for future in _ahead(pool, work, media.items(paths), 2 * workers):
            try:
                summary.pixels += future.result()
                summary.done += 1
            except ConfigError as error:
                summary.skipped.append(str(error))
                tqdm.write(f"predict: skipped {error}", file=sys.stderr)
            bar.update()
    summary.seconds = time.perf_counter() - start
    return summary


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[media.Item], np.ndarray], items: Iterator[media.Item], depth: int
) -> Iterator[Future[np.ndarray]]:
    """Results in order, with only so many images in memory: the frames of a video would fill it."""
    pending: deque[Future[np.ndarray]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= depth:
            yield pending.popleft()
    yield from pending


def _file(folder: Path, item: media.Item, suffix: str) -> Path:
    path = folder / f"{item.name}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def describe(summary: Summary, classes: Sequence[str], folder: Path) -> str:
    """Counts, speed and the share of each class, for a person."""
    lines = [f"{summary.done} masks in {folder}, {summary.done / max(summary.seconds, 1e-9):.1f} images/s"]
    if summary.skipped:
        lines[0] += f", {len(summary.skipped)} skipped"
    total = max(1, int(summary.pixels.sum()))
    width = max(map(len, classes))
    lines += [f"  {name:{width}}  {100 * n / total:6.2f} %" for name, n in zip(classes, summary.pixels, strict=False)]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="predict.py", description="Segment images and videos.", allow_abbrev=False)
    parser.add_argument("model", type=Path, help="ONNX file, folder written by SMP's save_pretrained, or a run")
    parser.add_argument("inputs", nargs="+", help="images, videos, folders, globs")
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="%(default)s if not given")
    parser.add_argument("--overlay", type=float, metavar="OPACITY", help="also write overlays, 0 to 1")
    parser.add_argument("--teacher", type=Path, help="another network, to be shown beside the first")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--num_threads", type=int, default=cores, help="images at once; one a core if not given")
    args = parser.parse_args(argv)
    if args.overlay is not None and not 0 <= args.overlay <= 1:
        parser.error(f"--overlay: {args.overlay} is not between 0 and 1")
    if args.num_threads < 1:
        parser.error(f"--num_threads: {args.num_threads} must be above 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse(argv)
    try:
        paths = media.find(args.inputs)
        workers = min(args.num_threads, media.count(paths))
        model = open_model(args.model, args.num_threads // workers)
        teacher = open_model(args.teacher, args.num_threads // workers) if args.teacher else None
        summary = predict(model, paths, args.output_dir, args.overlay, teacher, workers)
    except ConfigError as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"predict: error: {args.output_dir}: {error}", file=sys.stderr)
        return 1
    print(describe(summary, model.classes, args.output_dir))
    return 1 if summary.skipped else 0
