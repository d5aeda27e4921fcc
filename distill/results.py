"""What a finished run leaves behind: numbers, pictures, the files with their proofs, the report, the model card."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from distill import models
from distill.card import push, write_card
from distill.checkpoint import write_json
from distill.evaluate import Evaluation
from distill.files import refused
from distill.models import Network
from distill.provenance import RECORD
from distill.report import strip, summary, write_report
from distill.run import Run
from distill.tracking import Tracker


def collect(run: Run, networks: dict[str, Network], evaluation: Evaluation) -> dict[str, Any]:
    """What `results.json` holds, but for the ONNX file."""
    classes, size = run.splits.classes, run.splits.val.read(0)[1].shape
    results: dict[str, Any] = {"classes": classes, "val_images": len(run.splits.val), "image_size": list(size)}
    for name, network in networks.items():
        scores = evaluation.scores[name]
        results[name] = {
            "mean_iou": scores.mean_iou,
            "iou": dict(zip(classes, scores.iou, strict=True)),
            "pixel_accuracy": scores.pixel_accuracy,
            "classes_present": scores.present,
            "params": models.count_parameters(network),
            "flops": models.count_flops(network, size),
        }
        record = json.loads((run.config.folder / name / RECORD).read_text(encoding="utf-8"))
        if "clipped" in record and run.config.optimizer.max_grad_norm:
            results[name]["clipped_share"] = record["clipped"] / record["steps"]
    teacher, student = results["teacher"]["mean_iou"], results["student"]["mean_iou"]
    gap = teacher - results["baseline"]["mean_iou"] if "baseline" in results else 0.0
    results["student"]["agreement"] = evaluation.agreement["student"]
    results["student"]["gap_closed"] = 1 - (teacher - student) / gap if gap > 0 else None
    return results


def finish(run: Run, networks: dict[str, Network], evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Pictures, numbers, the report and TensorBoard."""
    config, splits, folder = run.config, run.splits, run.config.folder
    student = folder / "student"
    samples: dict[str, np.ndarray] = {}
    count = min(config.num_sample_images, len(splits.val))
    for index in range(0, len(splits.val), max(1, len(splits.val) // max(1, count)))[:count]:
        samples[splits.val.names[index]] = strip(*splits.val.read(index), networks, splits.palette)
    (folder / "samples").mkdir(exist_ok=True)
    paths = [f"samples/{name}.png" for name in samples]
    for path, picture in zip(paths, samples.values(), strict=True):
        Image.fromarray(picture).save(folder / path)

    write_json(folder / "results.json", results)
    command = f"accelerate launch scripts/distill.py --config {folder}/config.yaml"
    report = write_report(folder, config.name, results, paths, command)
    write_card(student, config, results)

    if config.teacher.checkpoint:  # it was not trained here: a level line to compare with
        line = Tracker(run.accelerator, "teacher")
        for step in (0, *range(config.eval_steps, config.student.max_train_steps + 1, config.eval_steps)):
            line.scores(evaluation.scores["teacher"], splits.classes, step)
        line.close()
    last = config.student.max_train_steps + 1  # a step of its own, so that writing it again replaces it
    tracker = Tracker(run.accelerator, "student", first_step=last)
    tracker.layout(splits.classes)
    for name, picture in samples.items():
        tracker.image(f"samples/{name}", picture, last)
    tracker.text("report", report, last)
    tracker.close()
    made = f"{student}/{'model.onnx' if 'sha256' in results.get('onnx', {}) else 'model.safetensors'}"
    run.say(f"\n{summary(results)}\n\n{folder}/report.md, {made}, tensorboard --logdir {folder}/tensorboard")
    for reason in refused(results):
        run.say(f"distill: warning: {reason}; all else is done")
    if config.push_to_hub and config.hub_model_id:
        run.say(f"uploaded to {push(student, config.hub_model_id)}")
