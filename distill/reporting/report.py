"""The comparison that a person reads: `report.md`, and the tables and paragraphs that other reports share with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from distill.deployment.latency import Benchmark
from distill.errors import cell, printable
from distill.evaluation.pictures import LEGEND
from distill.reporting.results import ExportResults, Refused, Results, StudentResults


def summary(results: Results) -> str:
    """Teacher, baseline and student side by side, as a Markdown table."""
    rows = [("", "mIoU", "pixel accuracy", "parameters", "GFLOPs", "agreement")]
    for name, r in results.networks.items():
        agreement = f"{100 * r.agreement:.2f}" if isinstance(r, StudentResults) else ""
        iou, accuracy = f"{100 * r.mean_iou:.2f}", f"{100 * r.pixel_accuracy:.2f}"
        if not r.classes_present:  # no labels to score with
            iou = accuracy = "–"
        params = f"{r.params / 1e6:.2f} M" if r.params else "–"  # a function's are not known
        flops = f"{r.flops / 1e9:.2f}" if r.flops else "–"
        rows.append((name, iou, accuracy, params, flops, agreement))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table, first row the header, first column to the left, the others to the right; cells are plain text."""
    rows = [[cell(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return "\n".join(f"{line} |" for line in (lines[0], *lines[1:])).replace("\n", f"\n{rule}|\n", 1)


def write_report(folder: Path, name: str, results: Results, samples: Sequence[str], command: str) -> str:
    """Writes `report.md` and returns it."""
    student, classes, networks = results.student, list(results.student.iou), results.networks
    per_class = [("IoU", *networks), *((c, *(percent(n.iou[c]) for n in networks.values())) for c in classes)]
    lines = [f"# {name}", "", summary(results), "", *(sentences(results)), ""]
    lines += [f"mIoU is the mean over the {student.classes_present} of {len(classes)} classes that the validation"]
    lines += [f"images ({results.val_images}) have; FLOPs are for one of them, 2 a multiply-add.", ""]
    lines += ["## Classes", "", table(per_class), ""]
    lines += about_files(results.files)
    lines += ["## Images", "", LEGEND, "", *(f"![{cell(path)}]({quote(path)})" for path in samples), ""]
    lines += ["## Again", "", f"    {printable(command)}", ""]
    text = "\n".join(lines)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def percent(value: float | None) -> str:
    """A share for a table."""
    return "–" if value is None else f"{100 * value:.1f}"


def sentences(results: Results) -> list[str]:
    """What the numbers say, in words; empty lines between paragraphs."""
    student, teacher, baseline = results.student, results.teacher, results.baseline
    sizes = (
        (teacher.params, student.params, "smaller"),
        (teacher.flops, student.flops, "cheaper"),
    )  # not known of a function that was handed over
    ratios = [f"{theirs / ours:.1f} × {word}" for theirs, ours, word in sizes if theirs and ours]
    text = f"The student is {' and '.join(ratios)} than its teacher and" if ratios else "The student is"
    gap = 100 * (teacher.mean_iou - student.mean_iou)
    text += f" {abs(gap):.2f} points of mIoU {'below' if gap > 0 else 'above'} it."
    if baseline:
        gain = 100 * (student.mean_iou - baseline.mean_iou)
        text += f" Against the same student on labels alone: {gain:+.2f} points"
        closed = student.gap_closed
        text += "." if closed is None else f", {100 * closed:.0f} % of the gap to the teacher."
    if teacher.module:
        text += f" The teacher: {cell(teacher.module)}."
    lines = [text]
    clipped = {name: r.clipped_share for name, r in results.networks.items() if r.clipped_share is not None}
    if clipped:
        shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in clipped.items())
        lines += ["", f"Steps in which gradients were clipped to `optimizer.max_grad_norm`: {shares}."]
    return lines


def about_files(found: ExportResults) -> list[str]:
    """Sections on the exported files, and on their speed."""
    lines = ["## Files", "", *files(found), ""] if found.onnx else []
    return lines + (["## Time and size", "", *latency(found.latency), ""] if found.latency else [])


def files(found: ExportResults) -> list[str]:
    """What is known of the exported files: a paragraph each."""
    onnx, int8, fp16 = found.onnx, found.int8, found.fp16
    if isinstance(onnx, Refused):
        return [f"No file for onnxruntime: {onnx.error}"]
    assert onnx
    shapes = ", ".join("×".join(map(str, shape)) for shape in onnx.shapes)
    lines = [
        f"`model.onnx`, {onnx.bytes / 1e6:.2f} MB, against the network on images of {shapes}: largest difference of "
        f"a logit {onnx.max_abs_diff:.1e}, same class on {100 * onnx.argmax_agreement:.4f} % of "
        f"{onnx.pixels:,} pixels (where not, the network's class led by at most {onnx.max_margin:.1e}), "
        f"mIoU {100 * onnx.mean_iou:.2f}."
    ]
    if onnx.fixed_size:
        height, width = onnx.fixed_size
        lines += ["", f"It takes images of {width}×{height} only: the architecture's pooling is made for one size."]
    if isinstance(int8, Refused):
        lines += ["", f"No file in 8 bits: {int8.error}"]
    elif int8:
        left = ", ".join(f"`{name}`" for name in int8.float_layers)
        tuned = " Its weights were tuned to be rounded, with the teacher's help." if int8.finetuned else ""
        lines += [
            "",
            f"`model.int8.onnx`, {int8.bytes / 1e6:.2f} MB ({int8.bytes / int8.float_bytes:.2f} of it): "
            f"{int8.layers} layers compute in 8 bits, {int8.stored_layers} more have their weights in 8 bits"
            f"{f'; left in float: {left}' if left else ''}. mIoU {100 * int8.mean_iou:.2f}, "
            f"{100 * int8.mean_iou_lost:+.2f} points lost (allowed: {100 * int8.max_lost:.2f}); same class on "
            f"{100 * int8.argmax_agreement:.2f} % of the pixels. Ranges from {int8.calibration_images} training "
            f"images by {int8.method}, which was chosen on these same validation images.{tuned}",
        ]
    if isinstance(fp16, Refused):
        lines += ["", f"No file in half precision: {fp16.error}"]
    elif fp16:
        lines += [
            "",
            f"`model.fp16.onnx`, {fp16.bytes / 1e6:.2f} MB, for GPUs: mIoU {100 * fp16.mean_iou:.2f}, same class "
            f"on {100 * fp16.argmax_agreement:.2f} % of the pixels; tried on a CPU.",
        ]
    return lines


def latency(found: Benchmark) -> list[str]:
    """Milliseconds an image, ratios and sizes, as tables."""
    threads = sorted({measured.threads for measured in found.rows})
    columns = [f"{n} thread{'s' * (n > 1)}" for n in threads]
    times: dict[tuple[str, str], dict[int, str]] = {}
    for measured in found.rows:
        by_threads = times.setdefault((measured.name, measured.engine), {})
        by_threads[measured.threads] = f"{measured.milliseconds:.1f}"
    height, width = found.size
    lines = [
        f"Batch 1, {width}×{height}, {found.cpu}; {found.clock} time, medians of {found.repeat} turns:",
        "",
        table([("ms an image", "engine", *columns), *((*key, *(by[n] for n in threads)) for key, by in times.items())]),
        "",
        table(
            [
                ("times faster", *columns),
                *((name, *(f"{by[str(n)]:.2f}" for n in threads)) for name, by in found.ratios.items()),
            ]
        ),
        "",
    ]
    sizes: list[tuple[str, ...]] = [("", "parameters", "GFLOPs", "MB")]
    for name, size in found.sizes.items():
        numbers = ((size.params, 1e6, " M"), (size.flops, 1e9, ""), (size.bytes, 1e6, ""))
        sizes.append((name, *("" if n is None else f"{n / unit:.2f}{mark}" for n, unit, mark in numbers)))
    return [*lines, table(sizes)]
