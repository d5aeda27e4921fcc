"""A network in training beside those that it is measured by: its teacher, and the same network on labels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from distill.evaluation.pictures import Pictures
from distill.evaluation.scores import Evaluation
from distill.models.asked import Asked
from distill.training.context import Run
from distill.training.tracking import Tracker

MOST_PICTURES = 4  # of an image during a training; TensorBoard shows ten, and the last one comes with the report


class Beside:
    """Scores and pictures of a network beside others that do not change.

    Args:
        run: what the stages share.
        networks: `teacher` and, if there is one, `baseline`; none for networks that learn from labels alone.
        steps: of the training.
    """

    def __init__(self, run: Run, networks: Mapping[str, Asked], steps: int):
        self.run, self.steps = run, steps
        self.networks = dict(networks) if run.compare else {}
        self.pictures: Pictures | None = None

    def write(self, tracker: Tracker, name: str, network: Asked, evaluation: Evaluation, step: int) -> None:
        """The gap to the teacher, what of it is closed, and from time to time pictures.

        Args:
            tracker: of the network's run.
            name: the network's.
            network: in training.
            evaluation: of it and of `networks`.
            step: done.
        """
        if "teacher" not in self.networks:
            return
        scores, score = evaluation.scores, evaluation.scores[name].mean_iou
        gap = scores["teacher"].mean_iou - score
        values = {"compare/gap_mIoU": gap, "compare/agreement": evaluation.agreement[name]}
        if "baseline" in scores and name != "baseline":
            whole = scores["teacher"].mean_iou - scores["baseline"].mean_iou
            values["compare/gain_mIoU"] = score - scores["baseline"].mean_iou
            values |= {"compare/gap_closed": 1 - gap / whole} if whole > 0 else {}
        tracker.scalars(values, step)
        if self.due(step) and self.run.accelerator.is_main_process:
            self.show(tracker, name, network, step)

    def due(self, step: int) -> bool:
        """Whether it is time for pictures; at the end, the report has its own."""
        every = self.run.config.eval_steps
        return step < self.steps and step % (every * max(1, math.ceil(self.steps / every / MOST_PICTURES))) == 0

    def show(self, tracker: Tracker, name: str, network: Asked, step: int) -> None:
        """Pictures of now."""
        splits = self.run.splits
        if self.pictures is None:
            shown = self.run.shown
            self.pictures = Pictures(splits.val, shown, splits.classes, splits.palette, self.networks)
        for image, picture in self.pictures.blocks({name: network}).items():
            tracker.image(f"samples/{image}", picture, step)
