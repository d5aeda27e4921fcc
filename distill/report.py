"""The comparison that a person reads: strips of images, a table, `report.md`, and the card in the student's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from distill.batch import UNLABELLED
from distill.models import Network

VOID_COLOR = (96, 96, 96)
STUDENT_WRONG, TEACHER_WRONG, BOTH_WRONG = (230, 60, 50), (60, 130, 240), (245, 190, 40)
GAP, TITLE = 4, 18  # pixels between panels and above them
TITLES = ("input", "ground truth", "teacher", "student", "disagreement")
LEGEND = "Disagreement: red, only the student is wrong; blue, only the teacher; yellow, both, in different ways."


def strip(
    image: np.ndarray, mask: np.ndarray, networks: Mapping[str, Network], palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Input | ground truth | teacher | student | disagreement as one picture.

    Args:
        image: uint8 `[H, W, 3]`.
        mask: uint8 `[H, W]`.
        networks: `teacher` and `student`, on the CPU or elsewhere.
        palette: a colour a class.

    Returns:
        uint8 `[H', W', 3]`.
    """
    teacher, student = (predict(networks[name], image) for name in ("teacher", "student"))
    known, differ = mask < UNLABELLED, teacher != student
    marks = {
        STUDENT_WRONG: teacher == mask,
        TEACHER_WRONG: student == mask,
        BOTH_WRONG: (teacher != mask) & (student != mask),
    }
    disagreement = (np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 60).astype(np.uint8)
    for color, where in marks.items():
        disagreement[known & differ & where] = color
    panels = [image, *(colorize(labels, palette) for labels in (mask, teacher, student)), disagreement]
    height, width = mask.shape
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + TITLE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, (title, panel) in enumerate(zip(TITLES, panels, strict=True)):
        left = i * (width + GAP)
        canvas.paste(Image.fromarray(panel), (left, TITLE))
        draw.text((left + 2, 1), title, fill="black", font=font)
    return np.array(canvas)


@torch.no_grad()
def predict(network: Network, image: np.ndarray) -> np.ndarray:
    """Class ids uint8 `[H, W]` of an image uint8 `[H, W, 3]`."""
    batch = torch.from_numpy(np.ascontiguousarray(image[None]).copy()).permute(0, 3, 1, 2).to(network.mean.device)
    return network(batch).upsampled().max(1).indices[0].byte().cpu().numpy()


def colorize(mask: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Class ids uint8 `[H, W]` in colours uint8 `[H, W, 3]`; void is grey."""
    table = np.full((256, 3), VOID_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def summary(results: Mapping[str, Any]) -> str:
    """Teacher, baseline and student side by side, as a Markdown table."""
    rows = [("", "mIoU", "pixel accuracy", "parameters", "GFLOPs", "agreement")]
    for name in ("teacher", "baseline", "student"):
        if name in results:
            r = results[name]
            agreement = f"{100 * r['agreement']:.2f}" if "agreement" in r else ""
            iou, accuracy = f"{100 * r['mean_iou']:.2f}", f"{100 * r['pixel_accuracy']:.2f}"
            rows.append((name, iou, accuracy, f"{r['params'] / 1e6:.2f} M", f"{r['flops'] / 1e9:.2f}", agreement))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table, first row the header, first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return "\n".join(f"{line} |" for line in (lines[0], *lines[1:])).replace("\n", f"\n{rule}|\n", 1)


def write_report(folder: Path, name: str, results: Mapping[str, Any], samples: Sequence[str], command: str) -> str:
    """Writes `report.md` and returns it."""
    student = results["student"]
    classes = list(student["iou"])
    stages = [stage for stage in ("teacher", "baseline", "student") if stage in results]
    per_class = [("IoU", *stages)] + [
        (c, *("–" if results[s]["iou"][c] is None else f"{100 * results[s]['iou'][c]:.1f}" for s in stages))
        for c in classes
    ]
    lines = [f"# {name}", "", summary(results), "", *(_sentences(results)), ""]
    lines += [f"mIoU is the mean over the {student['classes_present']} of {len(classes)} classes that the validation"]
    lines += [f"images ({results['val_images']}) have; FLOPs are for one of them, 2 a multiply-add.", ""]
    lines += ["## Classes", "", table(per_class), ""]
    if "onnx" in results:
        onnx = results["onnx"]
        shapes = ", ".join("×".join(map(str, shape)) for shape in onnx["shapes"])
        lines += [
            "## ONNX",
            "",
            f"`student/model.onnx`, {onnx['bytes'] / 1e6:.1f} MB, against the network on {shapes}:",
        ]
        lines += [f"largest difference of a logit {onnx['max_abs_diff']:.1e}, same class on"]
        lines += [
            f"{100 * onnx['argmax_agreement']:.4f} % of {onnx['pixels']:,} pixels, mIoU {100 * onnx['mean_iou']:.2f}.",
            "",
        ]
    lines += ["## Images", "", LEGEND, "", *(f"![{path}]({path})" for path in samples), ""]
    lines += ["## Again", "", f"    {command}", ""]
    text = "\n".join(lines)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def _sentences(results: Mapping[str, Any]) -> list[str]:
    student, teacher = results["student"], results["teacher"]
    smaller, cheaper = teacher["params"] / student["params"], teacher["flops"] / student["flops"]
    text = f"The student is {smaller:.1f} × smaller and {cheaper:.1f} × cheaper than its teacher"
    gap = 100 * (teacher["mean_iou"] - student["mean_iou"])
    text += f" and {abs(gap):.2f} points of mIoU {'below' if gap > 0 else 'above'} it."
    if "baseline" in results:
        gain = 100 * (student["mean_iou"] - results["baseline"]["mean_iou"])
        text += f" Against the same student on labels alone: {gain:+.2f} points"
        closed = student["gap_closed"]
        text += "." if closed is None else f", {100 * closed:.0f} % of the gap to the teacher."
    return [text]
