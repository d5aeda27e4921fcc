"""`report.html`: the comparison of a run in one file, to be read anywhere and sent to anybody.

What a run does not have leaves its section out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from distill.config.schema import Config, flatten
from distill.deployment.latency import cpu_name
from distill.evaluation.details import ImageScore, NetworkDetails
from distill.evaluation.pictures import MARKS, Drawn
from distill.reporting import charts, page
from distill.reporting.curves import Curves
from distill.reporting.report import files, percent, sentences
from distill.reporting.results import NetworkResults, Refused, Results
from distill.training.provenance import FINGERPRINTS, RECORD, as_made

MOST_DOTS = 40  # classes in the chart
LEAST_PIXELS = 20  # of a bin in the reliability diagram
LIBRARIES = (
    *("distill", "torch", "timm", "segmentation-models-pytorch", "accelerate", "albumentations", "numpy"),
    *("onnx", "onnxruntime"),
)
WHERE_NOT_SETTINGS = ("name", "output_dir", "resume_from_checkpoint", "allow_change", "push_to_hub", "hub_model_id")


def write_page(
    folder: Path,
    config: Config,
    results: Results,
    curves: Curves,
    command: str,
    pictures: Mapping[str, Drawn] | None = None,
) -> None:
    """Writes `report.html`.

    Args:
        folder: the run's.
        config: of the run.
        results: of the run.
        curves: of its trainings.
        command: that repeats it.
        pictures: of the worst and best images, by name.
    """
    parts = [
        _headline(results),
        _costs(results),
        _classes(results),
        _curves(curves),
        _calibration(results),
        _disagreement(results),
        _images(results, pictures or {}),
        page.section("Files", *map(page.paragraph, files(results.files))) if results.files.onnx else "",
        _made_with(folder, config, results, command),
    ]
    (folder / "report.html").write_text(page.document(config.name, parts), encoding="utf-8")


def _headline(results: Results) -> str:
    rows = _rows(results)
    head, *body = [("", *(title for title, _ in COLUMNS)), *((name, *row) for name, row in rows.items())]
    kept = [0, *(i for i in range(1, len(head)) if any(row[i] != "–" for row in body))]
    told = [page.paragraph(line) for line in sentences(results) if line] if _labeled(results) else []
    notes = [f"On {results.val_images} validation images."]
    if _labeled(results):
        present, count = results.student.classes_present, len(results.classes)
        notes += [f"mIoU is the mean over the {present} of {count} classes that they have."]
    notes += [f"GFLOPs are for an image of {'×'.join(map(str, results.image_size))}, 2 a multiply-add."]
    if details := results.details:
        notes += [f"Boundary IoU and calibration error on {details.images} of the images, evenly spread."]
    if latency := results.files.latency:
        size, threads = "×".join(map(str, latency.size)), _threads(results)
        notes += [f"Times: onnxruntime, an image of {size}, {threads} thread{'s' * (threads > 1)}, {latency.cpu}."]
    table = page.table([[row[i] for i in kept] for row in (head, *body)])
    return page.section("Results", *told, table, page.paragraph(" ".join(notes), note=True))


COLUMNS = (  # title, and how many decimals
    ("mIoU, %", 2),
    ("boundary IoU, %", 2),
    ("calibration error, %", 2),
    ("agreement, %", 2),
    ("parameters, M", 2),
    ("GFLOPs", 2),
    ("MB", 2),
    ("ms an image", 1),
)


def _rows(results: Results) -> dict[str, list[str]]:
    """The table's rows by name, `–` for what is not known."""
    found, labeled = {}, _labeled(results)
    times = _milliseconds(results)
    for name, r in results.networks.items():
        close = results.details.networks.get(name) if results.details else None
        found[name] = [
            100 * r.mean_iou if labeled else None,
            100 * close.boundary_iou if close else None,
            100 * close.calibration_error if close else None,
            100 * results.student.agreement if name == "student" else None,
            r.params / 1e6 or None,
            r.flops / 1e9 or None,
            _megabytes(name, r, results),
            times.get(name),
        ]
    unknown = [None] * 2
    for name, file in _smaller(results).items():
        parts = [100 * file.mean_iou if labeled else None, *unknown, None, results.student.params / 1e6 or None, None]
        found[name] = [*parts, file.bytes / 1e6, times.get(name)]
    digits = [count for _, count in COLUMNS]
    return {
        name: ["–" if value is None else f"{value:.{n}f}" for value, n in zip(row, digits, strict=True)]
        for name, row in found.items()
    }


def _labeled(results: Results) -> bool:
    return results.student.classes_present > 0


def _smaller(results: Results) -> dict[str, Any]:
    """The files of fewer bits, by the name that charts know."""
    found = {"student, INT8": results.files.int8, "student, fp16": results.files.fp16}
    return {name: file for name, file in found.items() if file and not isinstance(file, Refused)}


def _megabytes(name: str, network: NetworkResults, results: Results) -> float | None:
    """Of the ONNX file, or else of the weights."""
    onnx = results.files.onnx
    if name == "student" and onnx and not isinstance(onnx, Refused):
        return onnx.bytes / 1e6
    weights = network.path / "model.safetensors"
    return weights.stat().st_size / 1e6 if weights.is_file() else None


def _threads(results: Results) -> int:
    latency = results.files.latency
    return min(row.threads for row in latency.rows) if latency else 0


def _milliseconds(results: Results) -> dict[str, float]:
    """Of an image, by network, on the fewest threads that were measured."""
    names = {"teacher": "teacher", "student": "student", "student, 8 bits": "student, INT8"}
    rows = results.files.latency.rows if results.files.latency else []
    wanted = [row for row in rows if row.engine == "onnxruntime" and row.threads == _threads(results)]
    return {names[row.name]: row.milliseconds for row in wanted if row.name in names}


def _costs(results: Results) -> str:
    """mIoU against what it costs."""
    if not _labeled(results):
        return ""
    scores = {name: r.mean_iou for name, r in results.networks.items()}
    small = _smaller(results)
    scores |= {name: file.mean_iou for name, file in small.items()}
    sizes = {name: _megabytes(name, r, results) for name, r in results.networks.items() if name != "baseline"}
    costs: dict[str, dict[str, float | None]] = {
        "GFLOPs an image": {name: r.flops / 1e9 for name, r in results.networks.items()},
        "ms an image": dict(_milliseconds(results)),
        "MB": sizes | {name: file.bytes / 1e6 for name, file in small.items()} if small else {},
    }
    drawn = []
    for label, by_name in costs.items():
        points = {name: (cost, scores[name]) for name, cost in by_name.items() if cost}
        if len(points) > 1:
            drawn.append((charts.against(points, label), ""))
    return page.section("Accuracy and cost", page.charts(*drawn))


def _classes(results: Results) -> str:
    if not _labeled(results):
        return ""
    networks = results.networks
    iou = {name: r.iou for name, r in networks.items()}

    def gap(name: str) -> float:
        ours, theirs = results.student.iou[name], results.teacher.iou[name]
        return -1.0 if ours is None or theirs is None else abs(theirs - ours)

    present = [name for name in results.classes if results.student.iou[name] is not None]
    shown = sorted(sorted(present, key=gap, reverse=True)[:MOST_DOTS], key=results.classes.index)
    caption = "" if len(shown) == len(present) else f"The {len(shown)} classes with the largest gaps of {len(present)}."
    rows, best = [["IoU, %", *networks]], []
    for i, name in enumerate(results.classes, 1):
        values = [r.iou[name] for r in networks.values()]
        rows.append([name, *map(percent, values)])
        known = [value for value in values if value is not None]
        best += [(i, j) for j, value in enumerate(values, 1) if value is not None and value == max(known)]
    drawn = page.charts((charts.class_dots(iou, shown), caption), beside=page.table(rows, best=best))
    return page.section("Classes", drawn)


def _curves(curves: Curves) -> str:
    drawn = []
    if curves.mean_iou:
        scores = {name: [(step, 100 * v) for step, v in points] for name, points in curves.mean_iou.items()}
        drawn.append((charts.lines(scores, "optimizer steps", "mIoU, %"), "On the validation images."))
    if curves.cross_entropy:
        chart = charts.lines(curves.cross_entropy, "optimizer steps", "cross-entropy")
        drawn.append((chart, "On the training crops, unweighted; the student's loss has further terms."))
    return page.section("Learning curves", page.charts(*drawn))


def _calibration(results: Results) -> str:
    if not results.details:
        return ""
    known = {name: found for name, found in results.details.networks.items() if name in results.networks}
    bins = {name: points for name, found in known.items() if (points := _reliability(found))}
    if not bins:
        return ""
    text = (
        "Pixels sorted by the probability that a network gives its class. On the dashed line, what it is sure of to "
        "70 % is right in 70 % of the pixels; below the line it is too sure."
    )
    return page.section("Calibration", page.paragraph(text), page.charts((charts.reliability(bins), "")))


def _reliability(found: NetworkDetails) -> list[tuple[float, float]]:
    """Mean confidence and accuracy of each bin that has pixels enough."""
    bins = zip(found.bin_pixels, found.bin_right, found.bin_confidence, strict=True)
    return [(sure / pixels, right / pixels) for pixels, right, sure in bins if pixels >= LEAST_PIXELS]


def _disagreement(results: Results) -> str:
    found = results.details.disagreement if results.details else None
    if not found:
        return ""
    total = sum(d.pixels for d in found.values())
    differing = sum(d.differing for d in found.values())
    if not differing:
        return ""
    sums = [sum(getattr(d, key) for d in found.values()) for key in ("teacher_right", "student_right", "both_wrong")]
    shares = [f"{100 * n / differing:.1f} %" for n in sums]
    text = (
        f"Teacher and student differ in {100 * differing / total:.2f} % of the labeled pixels. Of these, the teacher "
        f"is right in {shares[0]}, the student in {shares[1]}, and neither in {shares[2]}."
    )
    rows = [["true class", "pixels", "they differ, %", "of these: teacher right, %", "student right, %", "neither, %"]]
    for name, d in found.items():
        if d.pixels:
            parts = (d.teacher_right, d.student_right, d.both_wrong)
            shown = [f"{100 * n / d.differing:.1f}" if d.differing else "–" for n in parts]
            rows.append([name, f"{d.pixels:,}", f"{100 * d.differing / d.pixels:.2f}", *shown])
    return page.section("Where student and teacher disagree", page.paragraph(text), page.table(rows))


def _images(results: Results, pictures: Mapping[str, Drawn]) -> str:
    """The worst and the best images."""
    details = results.details
    if not details or not pictures:
        return ""

    def shown(score: ImageScore) -> str:
        drawn = pictures[score.name]
        said = ", ".join(f"{name} {percent(value)}" for name, value in score.mean_iou.items())
        title = page.heading(f"{score.name}: mIoU {said}")
        return page.keep(title, page.panels(drawn.panels), page.legend(drawn.legend))

    text = f"Of all {results.val_images}, by the student's mIoU on each alone."
    marks = page.paragraph("Disagreement of teacher and student:", note=True) + page.legend(MARKS.items(), marks=True)
    parts = {
        "Worst images": [shown(score) for score in details.worst if score.name in pictures],
        "Best images": [shown(score) for score in details.best if score.name in pictures],
    }
    return "\n".join(
        page.section(title, page.paragraph(text, note=True), marks, *found) for title, found in parts.items() if found
    )


def _made_with(folder: Path, config: Config, results: Results, command: str) -> str:
    """Settings, data, versions, and the command."""
    record = json.loads((folder / "student" / RECORD).read_text(encoding="utf-8"))
    made, defaults = flatten(as_made(config, record["settings"])), flatten(Config())
    changed = {k: v for k, v in made.items() if v != defaults[k] and k not in WHERE_NOT_SETTINGS}
    rows = [["setting", "value", "default"]]
    rows += [[name, _shown(value), _shown(defaults[name])] for name, value in changed.items()]
    data = {name: record["settings"][name] for name in FINGERPRINTS if record["settings"].get(name)}
    hashes = {"student/model.safetensors": record["sha256"]}
    onnx = results.files.onnx
    if onnx and not isinstance(onnx, Refused):
        hashes["student/model.onnx"] = onnx.sha256
    prints = [["", "fingerprint"], *([name, _shown(value)] for name, value in (data | hashes).items())]
    versions = [["", "version"], ["Python", python_version()], *map(list, _versions().items())]
    processor = f"{cpu_name()}; the versions are those that made this report."
    return "\n".join(
        (
            page.section("Settings that differ from the defaults", page.table(rows, words=True) if changed else ""),
            page.section("Data and weights", page.table(prints, words=True)),
            page.section("Versions", page.table(versions, words=True), page.paragraph(processor, note=True)),
            page.section("Again", page.code(command)),
        )
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its folder, not installed
            continue
    return found


def _shown(value: Any) -> str:
    """A setting as one writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
