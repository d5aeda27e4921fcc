"""The student as files for others: made by their own modules, each made once, and recorded with its proof."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import onnx
import torch

from distill.batch import VOID
from distill.deployment.fp16 import Fp16File, export_fp16
from distill.deployment.int8 import Int8File, quantize_onnx
from distill.deployment.latency import Benchmark, benchmark
from distill.deployment.onnx_export import OnnxFile, export_onnx, refuse_several_sizes
from distill.errors import ExportError
from distill.models import ForeignNetwork, Mapped, Network, OwnNetwork
from distill.reporting.results import ExportResults, Refused
from distill.storage import sha256, write_json
from distill.training.context import Run
from distill.visualize import Palette

__all__ = ["exported", "refuse_several_sizes"]

File = TypeVar("File", OnnxFile, Int8File, Fp16File, Benchmark)


def exported(run: Run, networks: Mapping[str, Network], mean_iou: float) -> ExportResults:
    """The student's files, and what their proofs say; files that are there and up to date are not written again.

    Of a file that is refused, the reason is recorded, and no older one stays; the others are made, but for those that
    would be made from it.

    Args:
        run: whose student it is.
        networks: `teacher` and `student`, and `int8` if the student was tuned to be rounded.
        mean_iou: the student's, to go into the file.
    """
    config, splits, folder = run.config.export, run.splits, run.config.folder / "student"
    path, network = folder / "model.onnx", networks["student"]
    weights = sha256(folder / "model.safetensors")
    metadata = about(network, splits.palette) | {
        "weights_sha256": weights,
        "mean_iou": mean_iou,
    }

    def as_onnx() -> OnnxFile:
        run.say("exporting to ONNX")
        twin = copy.deepcopy(network)  # it moves to the CPU
        try:
            return export_onnx(twin, path, splits.val, config, metadata)
        except ExportError as error:
            if not isinstance(twin, OwnNetwork):
                raise
            run.say(f"{error}; trying again for one size of images")
            twin.fixed_size = True
            return export_onnx(twin, path, splits.val, config, metadata)

    def in_half() -> Fp16File:
        return _once(Fp16File, half, folder / "fp16.json", source, lambda: export_fp16(path, half, splits.val))

    wanted = {"weights_sha256": weights, "opset": config.opset, "output": config.output}
    small, half = folder / "model.int8.onnx", folder / "model.fp16.onnx"
    made = _or_refused(path, lambda: _once(OnnxFile, path, folder / "onnx.json", wanted, as_onnx))
    found = ExportResults(onnx=made)
    if isinstance(made, Refused):
        for file in (small, half):
            file.unlink(missing_ok=True)
        return found
    source = {"onnx_sha256": made.sha256}
    if config.int8:
        found.int8 = _or_refused(small, lambda: _in_8_bits(run, path, source, networks.get("int8"), metadata))
    if config.fp16:
        found.fp16 = _or_refused(half, in_half)
    foreign = networks["teacher"] if isinstance(networks["teacher"], ForeignNetwork | Mapped) else None
    if config.benchmark and foreign:
        run.say(
            f"export.benchmark: times an ONNX file of the teacher made here, and of {foreign.kind} none is; left out"
        )
    elif config.benchmark:
        files = {"student": path} | ({"student, 8 bits": small} if small.is_file() and config.int8 else {})
        wanted = source | {"files": {name: sha256(file) for name, file in files.items()}}
        image = splits.val.read(0)[0]
        pair = {name: copy.deepcopy(networks[name]).cpu() for name in ("teacher", "student")}
        threads = sorted({1, os.cpu_count() or 1})
        record = folder / "latency.json"
        try:
            found.latency = _once(Benchmark, path, record, wanted, lambda: benchmark(pair, files, image, threads))
        except ExportError as error:
            if not isinstance(networks["teacher"], OwnNetwork):
                raise
            run.say(f"export.benchmark: the teacher's ONNX file is needed for it: {error}")
    return found


def about(network: Network, palette: Palette) -> dict[str, Any]:
    """What a file says of itself: classes, colors, and what it does to an image."""
    return {
        "classes": network.classes,
        "palette": [list(color) for color in palette],
        "void": VOID,
        "image": {"channels": network.image.channels, "dtype": network.image.dtype, "taken": network.bands},
        "mean": network.normalization[0],
        "std": network.normalization[1],
        "stride": network.stride,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
    }


def _in_8_bits(
    run: Run, path: Path, source: dict[str, Any], tuned: Network | None, metadata: dict[str, Any]
) -> Int8File:
    """The 8-bit file, of the student or of what was tuned to be rounded: the one with the better score."""
    config, splits, folder = run.config.export, run.splits, path.parent
    small, record = folder / "model.int8.onnx", folder / "int8.json"
    limits = (config.int8_calibration_images, config.int8_max_lost)
    wanted = source | {"calibration_images": limits[0], "max_lost": limits[1]}

    def rounded() -> Int8File:
        return quantize_onnx(path, small, splits.train, splits.val, None, *limits, say=run.say)

    def finetuned() -> Int8File:
        assert tuned is not None
        run.say("exporting the student that was tuned for 8 bits")
        there = record.is_file() and small.is_file()
        before = Int8File.from_json(json.loads(record.read_text())) if there else None
        with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as scratch:  # not in what is published
            file, result = Path(scratch) / "model.onnx", Path(scratch) / small.name
            described = metadata | {"weights_sha256": tuned_sha256}
            try:
                export_onnx(copy.deepcopy(tuned), file, splits.val, config, described, sizes=())
                found = quantize_onnx(file, result, splits.train, splits.val, None, *limits, run.say, reference=path)
            except ExportError:
                if not before:
                    raise
                return replace(before, finetuned=False)
            if before and found.mean_iou <= before.mean_iou:
                return replace(before, finetuned=False)
            result.replace(small)
        return replace(found, finetuned=True)

    if tuned:
        tuned_sha256 = sha256(run.config.folder / "int8" / "model.safetensors")
        return _once(Int8File, small, record, wanted | {"tuned_sha256": tuned_sha256}, finetuned)
    return _once(Int8File, small, record, wanted, rounded)


def _or_refused(path: Path, make: Callable[[], File]) -> File | Refused:
    """What `make` says of the file it made; if that was refused, the reason, and no older file is left."""
    try:
        return make()
    except ExportError as error:
        path.unlink(missing_ok=True)
        return Refused(str(error))


def _once(kind: type[File], path: Path, record: Path, wanted: dict[str, Any], make: Callable[[], File]) -> File:
    """What is known of a file: as recorded if that very file is there and made from the same, or it is made anew."""
    if path.is_file() and record.is_file():
        known = kind.from_json(json.loads(record.read_text()))
        if known.made_from == wanted and known.sha256 == sha256(path):
            return known
    made = replace(make(), made_from=wanted, sha256=sha256(path))
    write_json(record, made.to_json())
    return made
