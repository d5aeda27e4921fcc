"""What TensorBoard shows once a run is finished: pictures, confusion, classes, and what each network was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.config.networks import OWN
from distill.config.schema import Config
from distill.evaluation.scores import Evaluation
from distill.losses import TERMS
from distill.reporting.charts import confusion
from distill.reporting.report import percent, table
from distill.reporting.results import Results, StudentResults
from distill.training.context import Run
from distill.training.provenance import RECORD, as_made
from distill.training.tracking import Tracker


def write_board(
    run: Run, evaluation: Evaluation, results: Results, samples: Mapping[str, np.ndarray], report: str
) -> None:
    """Adds to each network's run, one step after its last, so that writing it again replaces it.

    Args:
        run: what the stages share.
        evaluation: of the networks.
        results: of the run.
        samples: panels uint8 `[H, W, 3]` by the image's name.
        report: as Markdown.
    """
    config, classes = run.config, run.splits.classes
    matrices = {name: shares(found.matrix.numpy()) for name, found in evaluation.scores.items()}
    outside = config.teacher.source or config.teacher.arch == OWN
    if outside:  # it was not trained here: a level line to compare with
        line = Tracker(run.accelerator, "teacher")
        for step in (0, *range(config.eval_steps, config.student.max_train_steps + 1, config.eval_steps)):
            line.scores(evaluation.scores["teacher"], classes, step)
        line.close()
    for name, numbers in results.networks.items():
        trained = config.teacher if name == "teacher" and not outside else config.student
        last = trained.max_train_steps + 1
        tracker = Tracker(run.accelerator, name, first_step=last)
        scores = {"mIoU": numbers.mean_iou, "pixel_accuracy": numbers.pixel_accuracy}
        if isinstance(numbers, StudentResults):
            scores["agreement"] = numbers.agreement
        if results.details:
            close = results.details.networks[name]
            scores |= {"boundary_IoU": close.boundary_iou, "calibration_error": close.calibration_error}
        tracker.hparams(made_with(config, name, results), scores, last)
        tracker.image("confusion", confusion(matrices[name], classes, name), last)
        if name == "student":
            for other in ("teacher", "baseline"):
                if other in matrices:
                    title = f"student minus {other}"
                    found = confusion(matrices[name] - matrices[other], classes, title, difference=True)
                    tracker.image(f"confusion/{title}", found, last)
            for image, picture in samples.items():
                tracker.image(f"samples/{image}", picture, last)
            tracker.layout(classes)
            tracker.text("report", report, last)
            tracker.text("IoU of each class", class_table(results), last)
        tracker.close()


def shares(matrix: np.ndarray) -> np.ndarray:
    """Counts `[C, C]` as shares of each row; NaN for a class without pixels.

    Of `[C, 2, 2]`, without and with each class: what is found of its pixels, and as how many as it has are invented.
    """
    if matrix.ndim == 3:
        total = matrix[:, 1].sum(1, keepdims=True)
        return np.where(total > 0, matrix[:, [1, 0], 1] / np.maximum(total, 1), np.nan)
    total = matrix.sum(1, keepdims=True)
    return np.where(total > 0, matrix / np.maximum(total, 1), np.nan)


def class_table(results: Results) -> str:
    """IoU of each class and network, and what distillation gained and left, as a Markdown table."""
    networks = results.networks
    differences = [name for name in ("baseline", "teacher") if name in networks]
    rows = [("IoU", *networks, *(f"student minus {name}" for name in differences))]
    for name in results.classes:
        ours = results.student.iou[name]
        found = [percent(numbers.iou[name]) for numbers in networks.values()]
        for other in differences:
            theirs = networks[other].iou[name]
            found.append("–" if ours is None or theirs is None else f"{100 * (ours - theirs):+.1f}")
        rows.append((name, *found))
    return table(rows)


def made_with(config: Config, name: str, results: Results) -> dict[str, bool | float | str]:
    """What tells networks apart: architecture, size, steps, and the weight of each term."""
    path = config.folder / name / RECORD
    made = as_made(config, json.loads(path.read_text(encoding="utf-8"))["settings"]) if path.is_file() else config
    section = made.teacher if name == "teacher" else made.student
    found: dict[str, Any] = {
        "network": name,
        "arch": section.arch,
        "encoder": section.encoder_name,
        "parameters_M": round(results.networks[name].params / 1e6, 3),
        "GFLOPs": round(results.networks[name].flops / 1e9, 3),
        "steps": section.max_train_steps,
        "learning_rate": section.learning_rate,
        "seed": made.seed,
    }
    for term, kind in TERMS.items():
        if weight := getattr(made, term).weight:
            found[f"{term}.weight"] = float(weight if name == "student" or not kind.needs_teacher else 0)
    return found
