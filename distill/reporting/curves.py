"""Learning curves of a run, from the event files that its trainings wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MOST_POINTS = 200
STAGES = ("teacher", "baseline", "student")
VALIDATION, TRAINING = "val/mIoU", "train/cross_entropy"

Points = list[tuple[int, float]]  # step and value


@dataclass
class Curves:
    """Points by network: mIoU on the validation images, and cross-entropy on the training crops."""

    mean_iou: dict[str, Points] = field(default_factory=dict)
    cross_entropy: dict[str, Points] = field(default_factory=dict)


def read_curves(folder: Path) -> Curves:
    """The curves of a run.

    Args:
        folder: TensorBoard's, with a folder a network; what is not there is left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = Curves()
    for name in STAGES:
        if not any((folder / name).glob("events.out.tfevents.*")):
            continue
        events = EventAccumulator(str(folder / name), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        with _quiet():
            events.Reload()
        tags = events.Tags()["scalars"]
        for tag, curves in ((VALIDATION, found.mean_iou), (TRAINING, found.cross_entropy)):
            if tag in tags:
                curves[name] = thinned([(event.step, event.value) for event in events.Scalars(tag)])
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorBoard's word on every training that was resumed."""
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: means over neighbors, at the last one's step."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
