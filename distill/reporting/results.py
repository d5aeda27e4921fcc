"""The results of a run, as `results.json` holds them: scores and sizes of its networks, proofs of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from distill import models
from distill.deployment.fp16 import Fp16File
from distill.deployment.int8 import Int8File
from distill.deployment.latency import Benchmark
from distill.deployment.onnx_export import OnnxFile
from distill.evaluation.details import Details, look_closely
from distill.evaluation.scores import Evaluation
from distill.models.network import Network
from distill.storage import INTERNAL, OPTIONAL, Record
from distill.training.context import Run
from distill.training.provenance import RECORD


@dataclass(kw_only=True)
class NetworkResults(Record):
    """Scores on the validation images, and size, of a network.

    Attributes:
        path: its folder.
        mean_iou: 0 to 1, over the classes that the images have.
        iou: by class; None for those that they do not have.
        pixel_accuracy: share of labeled pixels that are right.
        classes_present: how many classes the images have.
        params: number of weights.
        flops: floating point operations for an image, 2 a multiply-add.
        module: name of the module that was handed over, or what a foreign teacher is; None for SMP's.
        clipped_share: share of training steps in which gradients were clipped, where they may be.
    """

    path: Path = field(metadata=INTERNAL)
    mean_iou: float
    iou: dict[str, float | None]
    pixel_accuracy: float
    classes_present: int
    params: int
    flops: int
    module: str | None = field(default=None, metadata=OPTIONAL)
    clipped_share: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(kw_only=True)
class StudentResults(NetworkResults):
    """What is also known of the student.

    Attributes:
        agreement: share of pixels, void apart, in which it says what the teacher says.
        gap_closed: of the gap between baseline and teacher, if there is one.
    """

    agreement: float
    gap_closed: float | None = None


@dataclass
class Refused(Record):
    """A file that was asked for and is not there, and why."""

    error: str


@dataclass(kw_only=True)
class ExportResults(Record):
    """The student's files, each with its proof; None for what was not asked for."""

    onnx: OnnxFile | Refused | None = field(default=None, metadata=OPTIONAL)
    int8: Int8File | Refused | None = field(default=None, metadata=OPTIONAL)
    fp16: Fp16File | Refused | None = field(default=None, metadata=OPTIONAL)
    latency: Benchmark | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """See `Record.from_json`."""
        kinds: dict[str, type[Record]] = {"onnx": OnnxFile, "int8": Int8File, "fp16": Fp16File, "latency": Benchmark}
        files: dict[str, Any] = {}
        for name, kind in kinds.items():
            if name in values:
                files[name] = (Refused if "error" in values[name] else kind).from_json(values[name])
        return cls(**files)

    @property
    def errors(self) -> list[str]:
        """Why files that were asked for are not there, a line each."""
        return [file.error for file in (self.onnx, self.int8, self.fp16) if isinstance(file, Refused)]

    @property
    def int8_loses_too_much(self) -> bool:
        """Whether the INT8 file kept its score by layers in float, or is not there at all."""
        return isinstance(self.int8, Refused) or bool(self.int8 and self.int8.float_layers)


@dataclass(kw_only=True)
class Results(Record):
    """All results of a run.

    Attributes:
        classes: their names, by id.
        val_images: how many images the scores are of.
        image_size: `[H, W]` of the first.
        teacher: what the student learned from.
        baseline: the same student on labels alone, if it was trained.
        student: the student.
        details: boundaries, calibration, disagreement, worst and best images; None if no image has labels.
        files: its files; in JSON, they stand beside the networks.
    """

    classes: list[str]
    val_images: int
    image_size: list[int]
    teacher: NetworkResults
    baseline: NetworkResults | None = field(default=None, metadata=OPTIONAL)
    student: StudentResults
    details: Details | None = field(default=None, metadata=OPTIONAL)
    files: ExportResults = field(default_factory=ExportResults)

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        values = super().to_json()
        files = values.pop("files")
        return values | files

    @classmethod
    def from_json(cls, values: Mapping[str, Any], folder: Path = Path()) -> Self:
        """From what `results.json` holds; the folder is the run's."""
        kinds: dict[str, type[NetworkResults]] = {
            "teacher": NetworkResults,
            "baseline": NetworkResults,
            "student": StudentResults,
        }
        networks = {
            name: kind.from_json({**values[name], "path": folder / name})
            for name, kind in kinds.items()
            if name in values
        }
        details = {"details": Details.from_json(values["details"])} if "details" in values else {}
        return super().from_json({**values, **networks, **details, "files": ExportResults.from_json(values)})

    @property
    def networks(self) -> dict[str, NetworkResults]:
        """Those that there are, by name."""
        found = {"teacher": self.teacher, "baseline": self.baseline, "student": self.student}
        return {name: network for name, network in found.items() if network}


def collect(run: Run, networks: Mapping[str, Network], evaluation: Evaluation) -> Results:
    """The results of a run, but for the student's files."""
    classes, size = run.splits.classes, run.splits.val.read(0)[0].shape[:2]

    def numbers(name: str) -> dict[str, Any]:
        scores, folder, network = evaluation.scores[name], run.config.folder / name, networks[name]
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        clips = "clipped" in record and run.config.optimizer.max_grad_norm
        return {
            "path": folder,
            "mean_iou": scores.mean_iou,
            "iou": dict(zip(classes, scores.iou, strict=True)),
            "pixel_accuracy": scores.pixel_accuracy,
            "classes_present": scores.present,
            "params": models.count_parameters(network),
            "flops": models.count_flops(network, size),
            "module": _module(network),
            "clipped_share": record["clipped"] / record["steps"] if clips else None,
        }

    teacher = NetworkResults(**numbers("teacher"))
    baseline = NetworkResults(**numbers("baseline")) if "baseline" in networks else None
    gap = teacher.mean_iou - baseline.mean_iou if baseline else 0.0
    lost = teacher.mean_iou - evaluation.scores["student"].mean_iou
    labeled = evaluation.scores["student"].present > 0
    return Results(
        classes=classes,
        val_images=len(run.splits.val),
        image_size=list(size),
        teacher=teacher,
        baseline=baseline,
        student=StudentResults(
            **numbers("student"),
            agreement=evaluation.agreement["student"],
            gap_closed=1 - lost / gap if gap > 0 else None,
        ),
        details=look_closely(networks, run.splits.val, classes, evaluation) if labeled else None,
    )


def _module(network: Network) -> str | None:
    """What a network is called that is not SMP's."""
    network = network.inner if isinstance(network, models.Mapped) else network
    return network.kind if isinstance(network, models.OwnNetwork | models.ForeignNetwork) else None
