"""Any finished network on any data set: scores, boundaries, calibration, agreement with a teacher, the worst images.

    python scripts/evaluate.py checkpoints/camvid_cpu --teacher checkpoints/camvid_cpu/teacher
    python scripts/evaluate.py model.onnx --data.format camvid --data.root /data/camvid --split train

For a run, or a part of one, the settings of its data are those that it was trained with, and flags win. Classes that
nobody names (`--data.format folders` without `--data.classes`) are those of the network.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distill.batch import UNLABELED, VOID
from distill.config.data import NAMED_BY_SETTINGS, DataConfig
from distill.config.parse import parse as parse_settings
from distill.data import Dataset, Splits, open_splits
from distill.deployment.runtime import Segmenter, open_model
from distill.deployment.tiles import Tiled, blended
from distill.errors import ConfigError, say
from distill.metrics import BoundaryIoU, Calibration, Scores, confusion_matrix, some_rows
from distill.storage import write_json
from distill.visualize import Palette, colorize, resized, row, viewable

WRONG = (230, 60, 50)
WORST_SIDE = 2048  # of larger images, strips show every second, third, … pixel
DATA_FLAGS = ("-c", "--config", "--data", "--data.format")  # one of them says which data; the others only vary it
Probabilities = Callable[[np.ndarray], torch.Tensor]  # image uint8 [H, W, 3] → float32 [C, H, W]


@dataclass
class Assessment:
    """What an evaluation found.

    Attributes:
        scores: mIoU and IoU by class.
        boundary: the same near outlines.
        calibration: of the confidences.
        agreement: share of pixels, void apart, in which the teacher says the same; None without one.
        image_iou: mIoU of each image by itself.
        worst: the images with the lowest mIoU, the lowest first: index → image, labels and class ids of the network
            (and of the teacher if there is one); of large ones every second, third, … pixel.
    """

    scores: Scores
    boundary: BoundaryIoU
    calibration: Calibration
    agreement: float | None = None
    image_iou: list[float] = field(default_factory=list)
    worst: dict[int, list[np.ndarray]] = field(default_factory=dict)


def assess(
    classes: int,
    probabilities: Probabilities,
    dataset: Dataset,
    teacher: Segmenter | None = None,
    progress: Callable = lambda items, **_: items,
    worst: int = 0,
) -> Assessment:
    """Scores on every image.

    Args:
        classes: number of classes.
        probabilities: of the classes at every pixel of an image.
        dataset: images with labels.
        teacher: to agree with.
        progress: wraps the loop over images, such as tqdm.
        worst: so many images are kept.

    Raises:
        FloatingPointError: values that are not finite; names the image.
    """
    boundary, calibration, image_iou = BoundaryIoU(classes), Calibration(), []
    total: Tensor | None = None
    kept: dict[int, list[np.ndarray]] = {}
    equal = compared = 0
    for index in progress(range(len(dataset)), desc="evaluating"):
        image, mask = dataset.read(index)
        guess, top = np.empty(mask.shape, np.uint8), 0
        matrix: Tensor | None = None
        for confidence, prediction in best(probabilities, image, mask.ndim == 3):
            if not confidence.isfinite().all():
                raise FloatingPointError(f"the network gives values that are not finite on {dataset.names[index]}")
            rows = (..., slice(top, top := top + prediction.shape[-2]), slice(None))
            guess[rows] = prediction.numpy()
            for part in some_rows(prediction.shape[-2:]):
                some = (..., part, slice(None))
                truth = torch.from_numpy(mask[rows][some][None])
                counts = confusion_matrix(prediction[some][None], truth, classes)
                matrix = counts if matrix is None else matrix + counts
            calibration.add(confidence.numpy(), guess[rows], mask[rows])
        assert matrix is not None
        total = matrix if total is None else total + matrix
        image_iou.append(Scores(matrix).mean_iou)
        boundary.add(guess, mask)
        theirs = teacher.mask(image) if teacher else None
        if theirs is not None:
            counted = mask != VOID
            compared += int(counted.sum())
            equal += int((counted & (theirs == guess)).sum())
        order = sorted([*kept, index], key=lambda i: (image_iou[i], i))[:worst]
        if index in order:
            step = -(-max(mask.shape[-2:]) // WORST_SIDE)
            masks = (one[..., ::step, ::step] for one in (mask, guess, theirs) if one is not None)
            kept[index] = [np.array(one) for one in (viewable(image[::step, ::step]), *masks)]
        kept = {i: kept[i] for i in order}
        del image, mask, guess, theirs  # before the next is read: they may be large
    agreement = equal / max(1, compared) if teacher else None
    assert total is not None
    return Assessment(Scores(total), boundary, calibration, agreement, image_iou, kept)


def decided(probabilities: Tensor, multilabel: bool) -> tuple[Tensor, Tensor]:
    """How sure it is, 0 to 1, and of what: class ids `[h, W]`; with many labels a pixel, `[C, h, W]` of 0 and 1."""
    if multilabel:
        return torch.maximum(probabilities, 1 - probabilities), (probabilities > 0.5).byte()
    highest, ids = probabilities.max(0)
    return highest, ids.byte()


def plain(model: Segmenter) -> Probabilities:
    """The network's own probabilities: softmax of its logits, or with many labels a pixel the sigmoid of each."""

    def of(image: np.ndarray) -> Tensor:
        logits = torch.from_numpy(model.logits(image))
        return logits.sigmoid() if model.multilabel else logits.softmax(0)

    return of


@dataclass
class Sliding:
    """Probabilities by overlapping windows, blended as `predict --window` does; for images larger than the crops.

    Attributes:
        probabilities: of a window.
        size: `(height, width)` of the windows.
    """

    probabilities: Probabilities
    size: Sequence[int]

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Of the whole image."""
        return torch.cat(list(self.bands(image)), 1)

    def bands(
        self, image: np.ndarray, kept: Callable[[np.ndarray], np.ndarray] = lambda found: found
    ) -> Iterator[torch.Tensor]:
        """What is kept of them, some rows at a time; see `blended`."""
        return map(torch.from_numpy, blended(lambda part: self.probabilities(part).numpy(), image, self.size, kept))


def best(probabilities: Probabilities, image: np.ndarray, multilabel: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Confidence float32 `[h, W]` and class ids uint8 `[h, W]` of an image, from top to bottom; see `decided`.

    Large images come some rows at a time: all of them, or all classes, would be too much for memory.
    """
    if not isinstance(probabilities, Sliding):
        yield decided(probabilities(image), multilabel)
        return

    def both(found: np.ndarray) -> np.ndarray:
        confidence, prediction = decided(torch.from_numpy(found), multilabel)
        return torch.stack([confidence, prediction.float()]).numpy()  # ids of classes are exact in float32

    for confidence, prediction in probabilities.bands(image, both):
        yield confidence, prediction.byte()


def augmented(probabilities: Probabilities, scales: Sequence[float], flip: bool) -> Probabilities:
    """Means over the image at several scales, each also mirrored if asked for."""

    def mean(image: np.ndarray) -> torch.Tensor:
        height, width = image.shape[:2]
        views = []
        for scale in scales:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            view = image if scale == 1 else resized(image, *size, Image.Resampling.BICUBIC)
            views.append(probabilities(view))
            if flip:
                views.append(probabilities(np.ascontiguousarray(view[:, ::-1])).flip(-1))
        same = [F.interpolate(v[None], (height, width), mode="bilinear", align_corners=False)[0] for v in views]
        return torch.stack(same).mean(0)

    return mean


def worst_strip(
    image: np.ndarray, mask: np.ndarray, guess: np.ndarray, palette: Palette, theirs: np.ndarray | None
) -> np.ndarray:
    """Input | ground truth | teacher, if any | student | where it is wrong, as one picture uint8 `[H', W', 3]`."""
    image = viewable(image)
    wrong = (np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 60).astype(np.uint8)
    differ = (guess != mask) & (mask < UNLABELED)
    wrong[differ.any(0) if mask.ndim == 3 else differ] = WRONG
    panels = {"input": image, "ground truth": colorize(mask, palette)}
    if theirs is not None:
        panels["teacher"] = colorize(theirs, palette)
    panels |= {"student": colorize(guess, palette), "wrong": wrong}
    return row(list(panels.values()), list(panels))


def results(found: Assessment, classes: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """All numbers, for `evaluation.json`."""
    return {
        "mean_iou": found.scores.mean_iou,
        "classes_present": found.scores.present,
        "pixel_accuracy": found.scores.pixel_accuracy,
        "boundary_iou": found.boundary.mean,
        "calibration_error": found.calibration.error,
        "agreement": found.agreement,
        "iou": dict(zip(classes, found.scores.iou, strict=True)),
        "boundary_iou_by_class": dict(zip(classes, found.boundary.iou, strict=True)),
        "images": dict(zip(names, found.image_iou, strict=True)),
    }


def describe(numbers: dict[str, Any]) -> str:
    """The main numbers, for a person."""

    def percent(value: float | None) -> str:
        return "    –" if value is None else f"{100 * value:5.1f}"

    lines = [
        f"mIoU {100 * numbers['mean_iou']:.2f} over {numbers['classes_present']} of {len(numbers['iou'])} classes, "
        f"{len(numbers['images'])} images; pixel accuracy {100 * numbers['pixel_accuracy']:.2f}",
        f"boundary IoU {100 * numbers['boundary_iou']:.2f}; "
        f"expected calibration error {100 * numbers['calibration_error']:.2f} %",
    ]
    if numbers["agreement"] is not None:
        lines[1] += f"; agreement with the teacher {100 * numbers['agreement']:.2f} %"
    width = max(5, *map(len, numbers["iou"]))
    lines.append(f"{'class':{width}}    IoU  boundary")
    for name, value in numbers["iou"].items():
        lines.append(f"{name:{width}}  {percent(value)}     {percent(numbers['boundary_iou_by_class'][name])}")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None, prog: str = "evaluate.py") -> tuple[argparse.Namespace, list[str]]:
    """The command line, and those of its flags that are settings of the data."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score a finished network.",
        epilog="Data: --data.format, --data.root, … as for distill.py, or --config; for a run, its own, and flags win.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="ONNX file, folder written by SMP's save_pretrained, or a run")
    parser.add_argument("--teacher", type=Path, help="another network, to agree with")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="%(default)s if not given")
    parser.add_argument("--window", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="slide over large images")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="sizes at which each image is looked at")
    parser.add_argument("--flip", action="store_true", help="also look at the mirrored image")
    parser.add_argument("--worst", type=int, default=5, help="strips of so many images are saved, the worst first")
    parser.add_argument("--output_dir", type=Path, help="evaluation, evaluation-2, … if not given")
    parser.add_argument("--trusted", action="store_true", help="run ONNX files without limits on memory and time")
    parser.add_argument("--num_threads", type=int, default=0, help="the libraries' choice if not given")
    args, rest = parser.parse_known_args(argv)
    for name, values in (("window", args.window or [1]), ("scales", args.scales)):
        if min(values) <= 0:
            parser.error(f"--{name}: {values} must be above 0")
    if not _says_data(rest):
        folders = (args.model, *args.model.resolve().parents[:2])
        run = next((["--config", str(f / "config.yaml")] for f in folders if (f / "config.yaml").is_file()), [])
        rest = run + rest
    return args, rest


def _says_data(settings: Sequence[str]) -> bool:
    return any(flag.split("=")[0] in DATA_FLAGS for flag in settings)


def free_folder(wanted: Path | None) -> Path:
    """The folder that was asked for, or the first of `evaluation`, `evaluation-2`, … that is not there.

    Raises:
        ConfigError: it holds an evaluation already.
    """
    if wanted is None:
        names = itertools.chain(["evaluation"], (f"evaluation-{i}" for i in itertools.count(2)))
        return next(folder for folder in map(Path, names) if not folder.exists())
    if (wanted / "evaluation.json").exists():
        raise ConfigError(f"--output_dir: {wanted} holds an evaluation already; remove it or set another folder")
    return wanted


def open_data(data: DataConfig, model: Segmenter) -> Splits:
    """The data; classes that its settings do not name are the network's."""
    if data.format in NAMED_BY_SETTINGS and not data.classes:
        data = replace(data, classes=model.classes, palette=data.palette or [list(color) for color in model.palette])
    return open_splits(data)


def check_classes(path: Path, model: Segmenter, classes: Sequence[str], multilabel: bool = False) -> None:
    """Refuses a network of other classes; one that has no names for its own must have as many.

    Raises:
        ConfigError: other classes.
    """
    if not getattr(model, "named", True):  # only of networks in torch, which an ONNX file need not import
        if len(model.classes) != len(classes):
            raise ConfigError(f"{path}: predicts {len(model.classes)} classes, but the data has {len(classes)}")
    elif model.classes != list(classes):
        raise ConfigError(f"{path}: has the classes {model.classes}, the data {list(classes)}")
    if model.multilabel != multilabel:
        kinds = {True: "any number of classes at a pixel", False: "one class a pixel"}
        raise ConfigError(f"{path}: gives {kinds[model.multilabel]}, the data {kinds[multilabel]} (data.multilabel)")


def evaluate(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """Evaluates as the command line says, writes `evaluation.json` and `worst/`, and returns the numbers."""
    if not _says_data(settings):
        raise ConfigError(
            f"{args.model}: is no part of a run, so it does not say which data it is for; "
            f"set --data.format with --data.root, or --config"
        )
    data = replace(parse_settings(settings).data, cache=False)  # nothing is read often, and images may be large
    data = replace(data, windows=None) if args.window else data
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = open_model(args.model, args.num_threads, args.trusted)
    teacher = open_model(args.teacher, args.num_threads, args.trusted) if args.teacher else None
    splits = open_data(data, model)
    dataset: Dataset = getattr(splits, args.split)
    for path, one in ((args.model, model), (args.teacher, teacher)):
        if one:
            check_classes(path, one, splits.classes, splits.multilabel)
    where = "drawn scenes" if data.format == "synthetic" else f"{data.format}, {Path(data.root).resolve()}"
    say(f"{args.model} on {where}: {args.split}, {len(dataset)} images")
    probabilities: Probabilities = Sliding(plain(model), args.window) if args.window else plain(model)
    if teacher and args.window:
        teacher = Tiled(teacher, args.window)
    if args.flip or args.scales != [1.0]:
        probabilities = augmented(probabilities, args.scales, args.flip)
    bar = partial(tqdm, disable=None)
    found = assess(len(splits.classes), probabilities, dataset, teacher, bar, args.worst)
    numbers = results(found, splits.classes, dataset.names)
    (args.output_dir / "worst").mkdir(parents=True, exist_ok=True)
    about = {"model": str(args.model), "teacher": args.teacher and str(args.teacher), "data": where}
    write_json(args.output_dir / "evaluation.json", about | {"split": args.split, **numbers})
    for place, (index, (image, mask, guess, *theirs)) in enumerate(found.worst.items()):
        picture = worst_strip(image, mask, guess, splits.palette, theirs[0] if theirs else None)
        Image.fromarray(picture).save(args.output_dir / "worst" / f"{place + 1:02d}_{dataset.names[index]}.png")
    return numbers


def main(argv: Sequence[str] | None = None, prog: str = "evaluate.py") -> int:
    """Runs the command line; returns the exit code."""
    args, settings = parse(argv, prog)
    try:
        args.output_dir = free_folder(args.output_dir)
        numbers = evaluate(args, settings)
    except (ConfigError, FloatingPointError, OSError) as error:
        say(f"evaluate: error: {error}", sys.stderr)
        return 2
    say(f"{describe(numbers)}\n{args.output_dir}/evaluation.json, {args.output_dir}/worst/")
    return 0
