"""What a finished run leaves behind: numbers, pictures, the files with their proofs, the report, the model card."""

from __future__ import annotations

import numpy as np
from PIL import Image

from distill.config.schema import OWN
from distill.deployment.onnx_export import OnnxFile
from distill.evaluation.scores import Evaluation
from distill.models.network import Network
from distill.reporting.model_card import push, write_card
from distill.reporting.report import strip, summary, write_report
from distill.reporting.results import Results
from distill.storage import write_json
from distill.training.context import Run
from distill.training.tracking import Tracker


def finish(run: Run, networks: dict[str, Network], evaluation: Evaluation, results: Results) -> None:
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

    write_json(folder / "results.json", results.to_json())
    command = f"accelerate launch scripts/distill.py --config {folder}/config.yaml"
    if config.data.format == OWN:
        command = f'distill.distill(…, output_dir="{folder}") with the same arguments'
    report = write_report(folder, config.name, results, paths, command)
    write_card(student, config, results)

    if config.teacher.source or config.teacher.arch == OWN:  # it was not trained here: a level line to compare with
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
    made = student / ("model.onnx" if isinstance(results.files.onnx, OnnxFile) else "model.safetensors")
    run.say(f"\n{summary(results)}\n\n{folder}/report.md, {made}, tensorboard --logdir {folder}/tensorboard")
    for reason in results.files.errors:
        run.say(f"distill: warning: {reason}; all else is done")
    if config.push_to_hub and config.hub_model_id:
        run.say(f"uploaded to {push(student, config.hub_model_id)}")
