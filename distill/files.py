"""The student as files for others: made by their own modules, each made once, and recorded with its proof."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch

from distill.batch import VOID
from distill.checkpoint import sha256, write_json
from distill.export import ExportError, export_onnx, is_fixed
from distill.half import halve_onnx
from distill.inference import benchmark
from distill.models import Network
from distill.quantize import quantize_onnx
from distill.run import Run


def exported(run: Run, networks: dict[str, Network], results: dict[str, Any]) -> dict[str, Any]:
    """The student's files, and what their proofs say; files that are there and up to date are not written again.

    Of a file that is refused, the reason is recorded as its `error`, and no older one stays; the others are made, but
    for those that would be made from it.
    """
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
    small, half = folder / "model.int8.onnx", folder / "model.fp16.onnx"
    found = {"onnx": _or_refused(path, lambda: _once(path, folder / "onnx.json", wanted, as_onnx))}
    if "error" in found["onnx"]:
        for file in (small, half):
            file.unlink(missing_ok=True)
        return found
    source = {"onnx_sha256": found["onnx"]["sha256"]}
    if config.int8:
        tuned = networks.get("int8")
        found["int8"] = _or_refused(small, lambda: _in_8_bits(run, path, source, tuned, metadata))
    if config.fp16:
        found["fp16"] = _or_refused(
            half, lambda: _once(half, folder / "fp16.json", source, lambda: halve_onnx(path, half, splits.val))
        )
    if config.benchmark:
        files = {"student": path} | ({"student, 8 bits": small} if small.is_file() and config.int8 else {})
        wanted = source | {"files": {name: sha256(file) for name, file in files.items()}}
        pair = {name: copy.deepcopy(networks[name]).cpu() for name in ("teacher", "student")}
        threads = sorted({1, os.cpu_count() or 1})
        found["latency"] = _once(
            path, folder / "latency.json", wanted, lambda: benchmark(pair, files, splits.val.read(0)[0], threads)
        )
    return found


def loses_too_much(found: dict[str, Any]) -> bool:
    """Whether the 8-bit file, as `exported` recorded it, kept its score by layers in float, or is not there at all."""
    return bool(found.get("int8", {}).get("float_layers", "error" in found.get("int8", {})))


def refused(results: dict[str, Any]) -> list[str]:
    """Why files that were asked for are not there, a line each."""
    return [facts["error"] for facts in results.values() if isinstance(facts, dict) and "error" in facts]


def _in_8_bits(
    run: Run, path: Path, source: dict[str, Any], tuned: Network | None, metadata: dict[str, Any]
) -> dict[str, Any]:
    """The 8-bit file, of the student or of what was tuned to be rounded: the one with the better score."""
    config, splits, folder = run.config.export, run.splits, path.parent
    small, record = folder / "model.int8.onnx", folder / "int8.json"
    limits = (config.int8_calibration_images, config.int8_max_lost)
    wanted = source | {"calibration_images": limits[0], "max_lost": limits[1]}

    def rounded() -> dict[str, Any]:
        return quantize_onnx(path, small, splits.train, splits.val, None, *limits, say=run.say)

    def finetuned() -> dict[str, Any]:
        assert tuned is not None
        run.say("exporting the student that was tuned for 8 bits")
        before = json.loads(record.read_text()) if record.is_file() and small.is_file() else {"mean_iou": -1.0}
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as scratch:  # not in what is published
            file, result = Path(scratch) / "model.onnx", Path(scratch) / small.name
            about = metadata | {"weights_sha256": tuned_sha256}
            try:
                export_onnx(copy.deepcopy(tuned), file, splits.val, config, about, sizes=())
                found = quantize_onnx(file, result, splits.train, splits.val, None, *limits, run.say, reference=path)
            except ExportError:
                if "sha256" not in before:
                    raise
                return before | {"finetuned": False}
            if found["mean_iou"] <= before["mean_iou"]:
                return before | {"finetuned": False}
            result.replace(small)
        return found | {"finetuned": True}

    if tuned:
        tuned_sha256 = sha256(run.config.folder / "int8" / "model.safetensors")
        return _once(small, record, wanted | {"tuned_sha256": tuned_sha256}, finetuned)
    return _once(small, record, wanted, rounded)


def _or_refused(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` says of the file it made; if that was refused, the reason as `error`, and no older file is left."""
    try:
        return make()
    except ExportError as error:
        path.unlink(missing_ok=True)
        return {"error": str(error)}


def _once(path: Path, record: Path, wanted: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is known of a file: as recorded if that very file is there and made from the same, or it is made anew."""
    if path.is_file() and record.is_file():
        facts = json.loads(record.read_text())
        if facts["made_from"] == wanted and facts["sha256"] == sha256(path):
            return dict(facts)
    facts = make() | {"made_from": wanted, "sha256": sha256(path)}
    write_json(record, facts)
    return facts
