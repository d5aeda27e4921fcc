"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import cell, printable
from distill.sweep.records import VALIDATION

UNKNOWN = "–"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of a comparison: each set of images, each class, equal time; then what is missing."""
    parts = []
    for name in found["sets"]:
        title = "validation images" if name == VALIDATION else name
        parts += [f"## {printable(title)}", main_table(found, name), class_table(found, name)]
    if found["equal_time"]:
        parts += ["## At equal time", equal_time_table(found)]
    parts += ["## How to read it", explanation(found)]
    if lines := missing(found):
        parts += ["## Missing", "\n".join(lines)]
    return "\n\n".join(parts)


def main_table(found: Mapping[str, Any], name: str) -> str:
    """The trials, the baseline first and then the best."""
    baseline, teacher = found["baseline"], found["teacher"].get(name)
    lines = [
        f"| trial | seeds | steps | mIoU | difference to {cell(baseline)} | gap closed | training s | with cache s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if teacher:
        lines.append(f"| *teacher* | | | {100 * teacher['mean_iou']:.2f} | | | | |")
    for trial in in_order(found, name):
        result = found["results"][trial]
        scores = result["sets"].get(name, {})
        gap = scores.get("gap_closed")
        cells = [
            cell(trial),
            str(len(result["runs"])),
            number(result["steps"], 1, 0),
            number(scores.get("mean_iou"), 100, 2),
            "" if trial == baseline else interval(scores.get("difference")),
            "" if trial == baseline else UNKNOWN if gap is None else f"{round(100 * gap)} %",
            number(result["seconds"], 1, 1),
            number(result["seconds_with_cache"], 1, 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def class_table(found: Mapping[str, Any], name: str) -> str:
    """IoU by class, a column for each trial."""
    trials, teacher = in_order(found, name), found["teacher"].get(name, {}).get("iou", {})
    lines = [
        f"| IoU | *teacher* | {' | '.join(map(cell, trials))} |",
        f"| --- | ---: |{' ---: |' * len(trials)}",
    ]
    for label in found["classes"]:
        scores = [found["results"][trial]["sets"].get(name, {}).get("iou", {}).get(label) for trial in trials]
        known = teacher.get(label)
        of_teacher = UNKNOWN if known is None else f"{100 * known:.2f}"
        lines.append(f"| {cell(label)} | {of_teacher} | {' | '.join(number(one, 100, 2) for one in scores)} |")
    return "\n".join(lines)


def equal_time_table(found: Mapping[str, Any]) -> str:
    """Each trial beside the baseline that was trained for as long."""
    lines = [
        "| trial | its time with cache s | its steps | baseline's time s | baseline's steps | images | difference |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for trial, compared in found["at_equal_time"].items():
        mine, other = found["results"][trial], found["results"][compared["baseline"]]
        times = [number(mine["seconds_with_cache"], 1, 1), number(mine["steps"], 1, 0)]
        times += [number(other["seconds"], 1, 1), number(other["steps"], 1, 0)]
        for name, one in compared["difference"].items():
            lines.append(f"| {cell(trial)} | {' | '.join(times)} | {cell(name)} | {interval(one)} |")
    return "\n".join(lines)


def in_order(found: Mapping[str, Any], name: str) -> list[str]:
    """The trials that have scores: the baseline, then the others, the best first."""
    scores = {trial: one["sets"].get(name, {}).get("mean_iou") for trial, one in found["results"].items()}
    there = [trial for trial, one in scores.items() if one]
    return sorted(there, key=lambda trial: (trial != found["baseline"], -scores[trial]["mean"]))


def number(value: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    """Mean ± sample standard deviation; the latter where there are several seeds, and they differ."""
    if value is None:
        return UNKNOWN
    spread = value["deviation"]
    shown = f" ± {factor * spread:.{digits}f}" if spread else ""
    return f"{factor * value['mean']:.{digits}f}{shown}"


def interval(value: Mapping[str, Any] | None) -> str:
    """A difference with its interval, in points of mIoU."""
    if value is None:
        return UNKNOWN
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def explanation(found: Mapping[str, Any]) -> str:
    """What the columns mean, in a few lines."""
    lines = [
        f"mIoU and IoU in percent: mean ± sample standard deviation over seeds {', '.join(map(str, found['seeds']))}. "
        f"Differences to {printable(found['baseline'])} are paired by seed and image, with a "
        f"{100 * found['level']:.0f} % bootstrap interval over seeds and images ({found['replicates']} replicates).",
        "Gap closed: (student - baseline) / (teacher - baseline). Training s: wall-clock of the steps, without "
        "validation and saving; with cache s: with the time in which the teacher answered for the images once.",
    ]
    if len(found["seeds"]) == 1:
        lines.append("One seed: the intervals are over images alone, and say nothing of another seed.")
    return "\n".join(f"- {line}" for line in lines)


def missing(found: Mapping[str, Any]) -> Sequence[str]:
    """Trials that are not finished, and those that failed."""
    lines = [
        f"- {printable(trial)}: seed(s) {', '.join(map(str, result['missing_seeds']))} not finished"
        for trial, result in found["results"].items()
        if result["missing_seeds"]
    ]
    return lines + [f"- {printable(key)}: failed: {printable(why)}" for key, why in found["failures"].items()]
