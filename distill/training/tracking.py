"""TensorBoard: one run a network (`teacher`, `baseline`, `student`), same tags, so that its charts overlay them."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from distill.metrics import Scores

JPEG_QUALITY = 85


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
        """A picture uint8 `[H, W, 3]`, as JPEG, which is smaller and faster than the PNG that the writer would make."""
        if self.accelerator.is_main_process:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
            height, width = image.shape[:2]
            held = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
            summary = Summary(value=[Summary.Value(tag=name, image=held)])
            self._writer.file_writer.add_summary(summary, step)

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text, as Markdown."""
        if self.accelerator.is_main_process:
            self._writer.add_text(name, markdown, step)

    def hparams(self, settings: Mapping[str, bool | float | str], scores: Mapping[str, float], step: int) -> None:
        """A line of the tab HParams: what the network was made with, and its final scores as `final/…`."""
        if self.accelerator.is_main_process:
            metrics = {f"final/{name}": float(value) for name, value in scores.items()}
            for summary in hparams(dict(settings), metrics):  # `add_hparams` would make a run of its own of them
                self._writer.file_writer.add_summary(summary)
            self.scalars(metrics, step)

    def layout(self, classes: Sequence[str]) -> None:
        """Charts of the tab Custom Scalars."""
        if self.accelerator.is_main_process:
            # Tags there are regular expressions matched from the start.
            per_class = {name: ["Multiline", [f"^val_iou/{re.escape(name)}$"]] for name in classes}
            together = {
                "mIoU": ["Multiline", ["^val/mIoU$"]],
                "gap to the teacher": ["Multiline", ["^compare/gap_mIoU$"]],
                "gap closed between baseline and teacher (1 is all)": ["Multiline", ["^compare/gap_closed$"]],
                "agreement with the teacher": ["Multiline", ["^compare/agreement$"]],
                "pull of each term beside cross-entropy": ["Multiline", ["^train/pull/.*"]],
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
