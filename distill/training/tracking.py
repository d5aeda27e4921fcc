"""TensorBoard: one run a network (`teacher`, `baseline`, `student`), same tags, so that its charts overlay them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from distill.metrics import Scores


class Tracker:
    """Writes one run, on the main process; elsewhere it does nothing.

    Args:
        accelerator: made with `log_with="tensorboard"`.
        run: name of the run.
        first_step: points from this step on that an interrupted run left are hidden.
    """

    def __init__(self, accelerator: Accelerator, run: str, first_step: int = 0):
        self.accelerator = accelerator
        if accelerator.is_main_process:
            _date_back(Path(accelerator.logging_dir) / run)
        accelerator.init_trackers(run, init_kwargs={"tensorboard": {"purge_step": first_step}})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of some charts. Plain floats: the writer drops NumPy's without a word."""
        self.accelerator.log({name: float(value) for name, value in values.items()}, step=step)

    def scores(self, scores: Scores, classes: Sequence[str], step: int) -> None:
        """`val/mIoU`, `val/pixel_accuracy` and `val_iou/<class>` for the classes that the ground truth has."""
        ious = {f"val_iou/{name}": iou for name, iou in zip(classes, scores.iou, strict=True) if iou is not None}
        self.scalars({"val/mIoU": scores.mean_iou, "val/pixel_accuracy": scores.pixel_accuracy} | ious, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture uint8 `[H, W, 3]`."""
        if self.accelerator.is_main_process:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text, as Markdown."""
        if self.accelerator.is_main_process:
            self._writer.add_text(name, markdown, step)

    def layout(self, classes: Sequence[str]) -> None:
        """Charts of the tab Custom Scalars."""
        if self.accelerator.is_main_process:
            # Tags there are regular expressions matched from the start.
            per_class = {name: ["Multiline", [f"^val_iou/{re.escape(name)}$"]] for name in classes}
            together = {
                "mIoU": ["Multiline", ["^val/mIoU$"]],
                "gap to the teacher": ["Multiline", ["^compare/gap_mIoU$"]],
                "agreement with the teacher": ["Multiline", ["^compare/agreement$"]],
            }
            self._writer.add_custom_scalars({"Teacher and student": together, "IoU of each class": per_class})

    def close(self) -> None:
        """Flushes and closes the run."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []

    @property
    def _writer(self):
        return self.accelerator.get_tracker("tensorboard").writer


class Clock:
    """Speed since the last question."""

    def __init__(self, step: int):
        self.step, self.time = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        speed = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        return speed


def _date_back(folder: Path) -> None:
    """Has the event files that are there come before one of now, in the order that they have.

    TensorBoard reads them by name, which begins with the time, and hides what it read before of the steps that a later
    file holds. After a clock was set back, or within a second, the new file would come first and be hidden itself.
    """
    paths, now = sorted(folder.glob("events.out.tfevents.*")), int(time.time())
    for latest, path in enumerate(paths, now - len(paths)):
        head, stamp, rest = re.split(r"(?<=tfevents\.)(\d+)", path.name, maxsplit=1)
        if int(stamp) > latest:
            path.rename(path.with_name(f"{head}{latest:010}{rest}"))
