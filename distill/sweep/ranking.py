"""The sweep: every trial of a list, the best first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.schema import Config
from distill.errors import cell
from distill.sweep.trials import Trial, describe

if TYPE_CHECKING:
    from distill.sweep.loop import Loop


def sweep(
    config: Config, trials: Sequence[Trial], configs: Sequence[Config], stop: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """Trains every trial that nobody else is at work on, and returns the scores of all that are there.

    Raises:
        ConfigError: bad input, before anything is trained; or trials that failed, once the others are done.
        Stopped: `stop` said so; the same call goes on from there.
    """
    # Only now: they import torch.
    from distill.sweep.loop import opened, raise_failures, train_all

    with opened(config, stop) as loop:
        train_all(loop, trials, configs)
        found = finish(loop)
        raise_failures(loop.failures)
    return found


def finish(loop: Loop) -> list[dict[str, Any]]:
    """Writes and says the scores of every trial that is there."""
    from distill.storage import write_json, write_text
    from distill.training.distributed import from_main

    run, folder = loop.run, loop.folder
    found = from_main(run.accelerator, lambda: collect(folder))
    if run.accelerator.is_main_process:
        write_json(folder / "sweep.json", found)
        write_text(folder / "sweep.md", table(found) + "\n")
    run.say(f"\n{table(found)}\n\n{folder}/sweep.json, tensorboard --logdir {folder}/tensorboard")
    return found


def collect(folder: Path) -> list[dict[str, Any]]:
    """The scores of every trial that is there, in the order in which they were finished."""
    records = sorted(folder.glob("trials/*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text(encoding="utf-8")) for path in records]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Trials as Markdown, the best first: mean and standard deviation over seeds."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        by_name.setdefault(record["name"], []).append(record)
    lines = ["| trial | mIoU | seeds | settings |", "| --- | ---: | ---: | --- |"]
    mean = {name: statistics.mean(r["mean_iou"] for r in records) for name, records in by_name.items()}
    for name in sorted(by_name, key=lambda name: -mean[name]):
        scores = [100 * r["mean_iou"] for r in by_name[name]]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        settings = cell(describe(by_name[name][0]["settings"]))
        lines.append(f"| {cell(name)} | {100 * mean[name]:.2f}{spread} | {len(scores)} | {settings} |")
    return "\n".join(lines)
