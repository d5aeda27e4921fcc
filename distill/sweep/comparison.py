"""What each setting gains over the baseline, as numbers: read from the files of finished trials, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.sweep.records import SCORES, VALIDATION, read_counts, read_json
from distill.sweep.statistics import LEVEL, REPLICATES, difference, gap_closed, mean_and_deviation
from distill.sweep.trials import Trial

JSON, MARKDOWN = "comparison.json", "comparison.md"


@dataclass
class Planned:
    """What is compared, in words of JSON.

    Attributes:
        baseline: name of the trial that the others are compared with.
        trials: name → settings, in the order of the list.
        seeds: of every trial.
        classes: their names.
        sets: name of a set of images → the settings by which it differs from the validation images.
        equal_time: name of a trial → name of the baseline that was given its time.
        about: command, settings and versions.
    """

    baseline: str
    trials: dict[str, dict[str, Any]]
    seeds: list[int]
    classes: list[str]
    sets: dict[str, dict[str, Any]] = field(default_factory=lambda: {VALIDATION: {}})
    equal_time: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def build(folder: Path, planned: Planned, failures: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All numbers of a comparison, of the trials that are finished.

    Args:
        folder: of the trials.
        planned: what is compared.
        failures: trials that failed, by key, and why.
    """
    teacher = read_json(folder / "teacher" / SCORES).get("sets", {})
    runs = {name: find_runs(folder, name, planned) for name in (*planned.trials, *planned.equal_time.values())}
    found: dict[str, Any] = {
        **asdict(planned),
        "level": LEVEL,
        "replicates": REPLICATES,
        "failures": dict(failures or {}),
    }
    found["teacher"] = {
        name: {k: teacher[name][k] for k in ("mean_iou", "iou")} for name in planned.sets if name in teacher
    }
    found["results"] = {name: result_of(records, planned) for name, records in runs.items()}
    for set_name in planned.sets:
        against = counts_of(folder, planned.baseline, set_name, runs[planned.baseline])
        for name in runs:
            if name != planned.baseline:
                compared = compare_counts(counts_of(folder, name, set_name, runs[name]), against)
                found["results"][name]["sets"].setdefault(set_name, {})["difference"] = compared
        add_gaps(found["results"], teacher.get(set_name), planned.baseline, set_name)
    found["at_equal_time"] = {name: at_equal_time(folder, planned, name, runs) for name in planned.equal_time}
    return found


def find_runs(folder: Path, name: str, planned: Planned) -> dict[int, dict[str, Any]]:
    """The records of a trial's seeds that are finished and scored on every set."""
    records = {seed: read_json(folder / Trial(name, seed, {}, {}).key / SCORES) for seed in planned.seeds}
    return {seed: record for seed, record in records.items() if planned.sets.keys() <= record.get("sets", {}).keys()}


def result_of(records: Mapping[int, Mapping[str, Any]], planned: Planned) -> dict[str, Any]:
    """Means and deviations of a trial's seeds, beside the numbers of each."""
    runs = [
        {"seed": seed} | {key: record.get(key) for key in ("steps", "seconds", "cache_seconds")} | with_cache(record)
        for seed, record in records.items()
    ]
    result: dict[str, Any] = {"runs": runs, "missing_seeds": [seed for seed in planned.seeds if seed not in records]}
    for key in ("steps", "seconds", "cache_seconds", "seconds_with_cache"):
        result[key] = summary([run[key] for run in runs])
    result["sets"] = {}
    for name in planned.sets if records else ():
        scores = [record["sets"][name] for record in records.values()]
        result["sets"][name] = {
            "mean_iou": summary([one["mean_iou"] for one in scores]),
            "iou": {c: summary([one["iou"][c] for one in scores]) for c in planned.classes},
        }
    return result


def with_cache(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds of training and of filling the teacher's cache together; None where one is not known."""
    parts = [record.get(key) for key in ("seconds", "cache_seconds")]
    known = [part for part in parts if part is not None]
    return {"seconds_with_cache": sum(known) if len(known) == len(parts) else None}


def summary(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, sample standard deviation and the values; None if one is not known, or there is none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean, deviation = mean_and_deviation(known)
    return {"mean": mean, "deviation": deviation, "values": known}


def counts_of(
    folder: Path, name: str, set_name: str, seeds: Mapping[int, Any]
) -> dict[int, tuple[np.ndarray, list[str]]]:
    """Counts of each image by seed, where they are there and whole."""
    read = {seed: read_counts(folder / Trial(name, seed, {}, {}).key, set_name) for seed in seeds}
    return {seed: counts for seed, counts in read.items() if counts is not None}


def compare_counts(
    first: Mapping[int, tuple[np.ndarray, list[str]]], second: Mapping[int, tuple[np.ndarray, list[str]]]
) -> dict[str, Any] | None:
    """The paired difference of two trials over the seeds that both have; None if they share none."""
    seeds = [seed for seed in first if seed in second and first[seed][1] == second[seed][1]]
    if not seeds:
        return None
    mine, theirs = (np.stack([side[seed][0] for seed in seeds]) for side in (first, second))
    found = difference(mine, theirs)
    return asdict(found) | {"seeds": seeds}


def add_gaps(results: Mapping[str, Any], teacher: Mapping[str, Any] | None, baseline: str, set_name: str) -> None:
    """Adds what share of the gap to the teacher each trial closes, over the seeds that it shares with the baseline."""
    baseline_runs = {run["seed"]: i for i, run in enumerate(results[baseline]["runs"])}
    for name, result in results.items():
        scores = result["sets"].get(set_name)
        if name == baseline or not teacher or not scores or not scores.get("difference"):
            continue
        values = results[baseline]["sets"][set_name]["mean_iou"]["values"]
        of_baseline = float(np.mean([values[baseline_runs[seed]] for seed in scores["difference"]["seeds"]]))
        student = of_baseline + scores["difference"]["mean"]
        scores["gap_closed"] = gap_closed(student, of_baseline, teacher["mean_iou"])


def at_equal_time(folder: Path, planned: Planned, name: str, runs: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """A trial beside the baseline that was trained for as long, cache included."""
    other = planned.equal_time[name]
    sets = {
        one: compare_counts(counts_of(folder, name, one, runs[name]), counts_of(folder, other, one, runs[other]))
        for one in planned.sets
    }
    return {"baseline": other, "difference": sets}


def steps_in(seconds: float, record: Mapping[str, Any]) -> int:
    """How many steps a run like that of the record does in a time."""
    return max(1, round(seconds * record["steps"] / record["seconds"]))
