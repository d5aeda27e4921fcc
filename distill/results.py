"""What a finished run leaves behind: numbers, pictures, the files with their proofs, the report, the model card."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from distill import models
from distill.batch import VOID
from distill.card import push, write_card
from distill.checkpoint import sha256, write_json
from distill.evaluate import Evaluation
from distill.export import ExportError, export_onnx, is_fixed
from distill.half import halve_onnx
from distill.inference import benchmark
from distill.models import Network
from distill.quantize import quantize_onnx
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
    teacher, student = results["teacher"]["mean_iou"], results["student"]["mean_iou"]
    gap = teacher - results["baseline"]["mean_iou"] if "baseline" in results else 0.0
    results["student"]["agreement"] = evaluation.agreement["student"]
    results["student"]["gap_closed"] = 1 - (teacher - student) / gap if gap > 0 else None
    return results


def finish(run: Run, networks: dict[str, Network], evaluation: Evaluation, results: dict[str, Any]) -> None:
    """Pictures, numbers, the ONNX file, the report and TensorBoard."""
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
    if config.export.enabled:
        results |= exported(run, networks, results)
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
    run.say(
        f"\n{summary(results)}\n\n{folder}/report.md, {student}/model.onnx, tensorboard --logdir {folder}/tensorboard"
    )
    if config.push_to_hub and config.hub_model_id:
        run.say(f"uploaded to {push(student, config.hub_model_id)}")


def exported(run: Run, networks: dict[str, Network], results: dict[str, Any]) -> dict[str, Any]:
    """The student's files, and what their proofs say; files that are there and up to date are not written again."""
    config, splits, folder = run.config.export, run.splits, run.config.folder / "student"
    path, network = folder / "model.onnx", networks["student"]
    weights = sha256(folder / "model.safetensors")
    metadata = {
        "classes": splits.classes,
        "palette": splits.palette,
        "void": VOID,
        "mean": (network.mean / 255).flatten().tolist(),
        "std": (network.std / 255).flatten().tolist(),
        "stride": network.stride,
        "weights_sha256": weights,
        "mean_iou": results["student"]["mean_iou"],
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
    }

    def as_onnx() -> dict[str, Any]:
        run.say("exporting to ONNX")
        twin = copy.deepcopy(network)  # it moves to the CPU
        fixed = list(splits.val.read(0)[1].shape) if is_fixed(twin) else None
        return export_onnx(twin, path, splits.val, config, metadata) | {"fixed_size": fixed}

    wanted = {"weights_sha256": weights, "opset": config.opset, "output": config.output}
    found = {"onnx": _once(path, folder / "onnx.json", wanted, as_onnx)}
    source = {"onnx_sha256": found["onnx"]["sha256"]}
    if config.int8:
        small, limits = folder / "model.int8.onnx", (config.int8_calibration_images, config.int8_max_lost)
        wanted = source | {"calibration_images": limits[0], "max_lost": limits[1]}
        found["int8"] = _once(
            small,
            folder / "int8.json",
            wanted,
            lambda: quantize_onnx(path, small, splits.train, splits.val, None, *limits, say=run.say),
        )
    if config.fp16:
        half = folder / "model.fp16.onnx"
        try:
            found["fp16"] = _once(half, folder / "fp16.json", source, lambda: halve_onnx(path, half, splits.val))
        except ExportError as error:  # the other files are as good without it
            run.say(f"export.fp16: {error}")
            found["fp16"] = {"error": str(error)}
    if config.benchmark:
        files = {"student": path} | ({"student, 8 bits": folder / "model.int8.onnx"} if config.int8 else {})
        wanted = source | {"files": {name: sha256(file) for name, file in files.items()}}
        pair = {name: copy.deepcopy(networks[name]).cpu() for name in ("teacher", "student")}
        threads = sorted({1, os.cpu_count() or 1})
        found["latency"] = _once(
            path, folder / "latency.json", wanted, lambda: benchmark(pair, files, splits.val.read(0)[0], threads)
        )
    return found


def _once(path: Path, record: Path, wanted: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is known of a file: as recorded if that very file is there and made from the same, or it is made anew."""
    if path.is_file() and record.is_file():
        facts = json.loads(record.read_text())
        if facts["made_from"] == wanted and facts["sha256"] == sha256(path):
            return dict(facts)
    facts = make() | {"made_from": wanted, "sha256": sha256(path)}
    write_json(record, facts)
    return facts
