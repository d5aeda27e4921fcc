"""What the report also tells, from a bounded number of images: boundaries, calibration, who is right, the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch

from distill.batch import UNLABELED
from distill.data import Dataset
from distill.evaluation.pictures import as_batch
from distill.evaluation.scores import Evaluation
from distill.metrics import BoundaryIoU, Calibration
from distill.models.asked import Asked
from distill.storage import OPTIONAL, Record

MOST_IMAGES, MOST_PIXELS = 50, 10_000_000  # looked at: 50 of CamVid's, and seconds of a CPU
MOST_WORST, MOST_BEST = 3, 2


@dataclass(kw_only=True)
class NetworkDetails(Record):
    """Boundaries and calibration of a network.

    Attributes:
        boundary_iou: IoU near outlines, 0 to 1, mean over classes.
        calibration_error: expected, 0 to 1.
        bin_pixels: pixels by confidence, in bins of equal width from 0 to 1.
        bin_right: those of them that are right.
        bin_confidence: sums of their confidences.
    """

    boundary_iou: float
    calibration_error: float
    bin_pixels: list[int]
    bin_right: list[int]
    bin_confidence: list[float]


@dataclass(kw_only=True)
class Disagreement(Record):
    """Labeled pixels of a class, and those of them in which teacher and student differ, by who is right."""

    pixels: int = 0
    student_right: int = 0
    teacher_right: int = 0
    both_wrong: int = 0

    @property
    def differing(self) -> int:
        """Pixels in which the two differ."""
        return self.student_right + self.teacher_right + self.both_wrong


@dataclass(kw_only=True)
class ImageScore(Record):
    """An image, and the mIoU of each network on it alone.

    Attributes:
        name: the image's.
        index: in the validation set.
        mean_iou: 0 to 1, by network.
    """

    name: str
    index: int
    mean_iou: dict[str, float | None]


@dataclass(kw_only=True)
class Details(Record):
    """What is known beyond scores.

    Attributes:
        images: how many were looked at, evenly spread over the validation set.
        networks: by name.
        disagreement: by class; None without a teacher to differ from.
        worst: images of the whole set on which the student's mIoU is lowest, the worst first.
        best: those on which it is highest, the best first.
    """

    images: int
    networks: dict[str, NetworkDetails]
    disagreement: dict[str, Disagreement] | None = field(default=None, metadata=OPTIONAL)
    worst: list[ImageScore] = field(default_factory=list)
    best: list[ImageScore] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """See `Record.from_json`."""
        found = dict(values)
        found["networks"] = {name: NetworkDetails.from_json(one) for name, one in values["networks"].items()}
        if "disagreement" in values:
            found["disagreement"] = {n: Disagreement.from_json(one) for n, one in values["disagreement"].items()}
        found |= {key: [ImageScore.from_json(one) for one in values.get(key, [])] for key in ("worst", "best")}
        return super().from_json(found)


def look_closely(
    networks: Mapping[str, Asked], dataset: Dataset, classes: Sequence[str], evaluation: Evaluation
) -> Details:
    """Boundaries, calibration and disagreement on images evenly spread over a set; the worst and best of all of it.

    Args:
        networks: in eval mode, by name; `teacher` and `student` are compared.
        dataset: images with labels.
        classes: their names.
        evaluation: of the networks on the whole set, each image by itself, too.
    """
    indices = chosen(dataset)
    boundaries = {name: BoundaryIoU(len(classes)) for name in networks}
    calibrations = {name: Calibration() for name in networks}
    counts = np.zeros((4, len(classes)), dtype=np.int64)  # labeled pixels; of those that differ, who is right
    for index in indices:
        image, mask = dataset.read(index)
        said = {}
        for name, network in networks.items():
            confidence, said[name] = answer(network, image)
            boundaries[name].add(said[name], mask)
            calibrations[name].add(confidence, said[name], mask)
        if {"teacher", "student"} <= said.keys():
            counts += who_is_right(said["teacher"], said["student"], mask, len(classes))
    worst, best = extremes(evaluation, dataset.names)
    by_class = {
        name: Disagreement(**dict(zip(KEYS, counts[:, i].tolist(), strict=True))) for i, name in enumerate(classes)
    }
    return Details(
        images=len(indices),
        networks={
            name: NetworkDetails(
                boundary_iou=boundaries[name].mean,
                calibration_error=found.error,
                bin_pixels=found.pixels.tolist(),
                bin_right=found.right.tolist(),
                bin_confidence=[round(value, 6) for value in found.confidence.tolist()],
            )
            for name, found in calibrations.items()
        },
        disagreement=by_class if counts[0].any() else None,
        worst=worst,
        best=best,
    )


KEYS = ("pixels", "student_right", "teacher_right", "both_wrong")


def chosen(dataset: Dataset) -> list[int]:
    """Images evenly spread over the set, as many as the limits on images and on pixels (by the first one's) allow."""
    pixels = max(1, int(np.prod(dataset.read(0)[0].shape[:2])))
    count = max(1, min(len(dataset), MOST_IMAGES, MOST_PIXELS // pixels))
    return [i * len(dataset) // count for i in range(count)]


@torch.no_grad()
def answer(network: Asked, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure a network is of what it says, 0 to 1, float32, and what that is, uint8: `[H, W]`, or `[C, H, W]`."""
    logits = network(as_batch(image, network)).upsampled()[:1].float()
    return network.confidence(logits)[0].cpu().numpy(), network.decide(logits)[0].byte().cpu().numpy()


def who_is_right(teacher: np.ndarray, student: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """By true class: labeled pixels; those in which the two differ, with the student, the teacher, neither right.

    Args:
        teacher: class ids uint8 `[H, W]`.
        student: likewise.
        mask: labels uint8 `[H, W]`.
        classes: number of classes.

    Returns:
        int64 `[4, C]`. With many labels a pixel, all three are `[C, H, W]`, and each plane is its class's.
    """
    known, differ = mask < UNLABELED, teacher != student
    kinds = (known, student == mask, teacher == mask, (student != mask) & (teacher != mask))
    parts = [kinds[0], *(known & differ & kind for kind in kinds[1:])]
    if mask.ndim == 3:
        return np.stack([part.sum((1, 2)) for part in parts])
    return np.stack([np.bincount(mask[part], minlength=classes) for part in parts])


def extremes(evaluation: Evaluation, names: Sequence[str]) -> tuple[list[ImageScore], list[ImageScore]]:
    """The images that the student does worst and best on; no image is both."""
    own = evaluation.image_iou.get("student", [])
    order = sorted((i for i, value in enumerate(own) if value is not None), key=lambda i: (own[i], i))
    count = min(MOST_WORST, (len(order) + 1) // 2)

    def scored(index: int) -> ImageScore:
        return ImageScore(
            name=names[index], index=index, mean_iou={n: v[index] for n, v in evaluation.image_iou.items()}
        )

    best = order[count:][::-1][:MOST_BEST]
    return [scored(i) for i in order[:count]], [scored(i) for i in best]
