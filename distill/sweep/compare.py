"""`distill compare`: every trial of a list against a baseline, with intervals, seconds, and scores on other images.

distill compare configs/sweeps/compare.yaml --teacher.checkpoint checkpoints/default --equal_time
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.schema import flatten
from distill.errors import ConfigError
from distill.sweep.comparison import JSON, MARKDOWN, Planned, build, steps_in, with_cache
from distill.sweep.plan import Plan
from distill.sweep.records import SCORES, VALIDATION, ScoredSet, read_json
from distill.sweep.tables import markdown
from distill.sweep.trials import Trial

if TYPE_CHECKING:
    from distill.sweep.loop import Loop
    from distill.training.context import Run


def compare(plan: Plan, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains what is not there, writes the comparison after every trial, and returns its numbers.

    Raises:
        ConfigError: bad input, before anything is trained; or trials that failed, once the others are done.
        Stopped: `stop` said so; the same call goes on from there.
    """
    from distill.sweep.loop import opened, raise_failures, train_all

    with opened(plan.config, stop) as loop:
        loop.sets = open_sets(plan, loop)
        planned = planned_of(plan, loop)
        loop.on_result = lambda: write(loop, planned)
        runs = train_all(loop, plan.trials, plan.configs)
        for name in plan.equal_time:
            train_as_long(plan, loop, planned, name, runs)
        found = write(loop, planned) if loop.run.accelerator.is_main_process else {}
        loop.run.say(f"\n{markdown(found)}\n\n{plan.config.folder / JSON}" if found else "")
        raise_failures(loop.failures)
    return found


def open_sets(plan: Plan, loop: Loop) -> dict[str, ScoredSet]:
    """The further sets of images, once it is sure that the networks can be scored on them.

    Raises:
        ConfigError: they have other classes or channels, or an image cannot be read.
    """
    from distill.data import check_splits, open_splits

    run, found = loop.run, {}
    for name, (settings, config) in plan.score_on.items():
        try:
            splits = open_splits(config)
            if splits.classes != run.splits.classes or splits.val.kind != run.splits.val.kind:
                raise ConfigError(
                    "has other classes or channels than the validation images; leave data.classes as it is"
                )
            # Every label is looked at when the teacher is scored on them, which comes before any training.
            looked_at = replace(config, check="off" if config.check == "off" else "headers")
            check_splits(replace(splits, train=run.splits.train, unlabeled=None), looked_at, run.progress)
        except ConfigError as error:
            raise ConfigError(f"score_on: {name}: {error}") from error
        found[name] = ScoredSet(splits.val, settings)
    return found


def planned_of(plan: Plan, loop: Loop) -> Planned:
    """What is compared, in words of JSON."""
    accelerator = loop.run.accelerator
    packages = ("distill", "torch", "timm", "segmentation-models-pytorch", "accelerate", "numpy")
    return Planned(
        plan.baseline,
        {trial.name: trial.settings for trial in plan.trials},
        list(dict.fromkeys(trial.seed for trial in plan.trials)),
        list(loop.run.splits.classes),
        {VALIDATION: {}} | {name: settings for name, (settings, _) in plan.score_on.items()},
        about={
            "command": plan.command,
            "settings": flatten(loop.run.config),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            "device": str(accelerator.device),
            "processes": accelerator.num_processes,
        },
    )


def train_as_long(plan: Plan, loop: Loop, planned: Planned, name: str, runs: dict[str, Run]) -> None:
    """Trains, seed by seed, a baseline for as long as a trial took with its cache."""
    from distill.training.distributed import from_main

    run, folder, longer = loop.run, loop.folder, f"{plan.baseline}, time of {name}"
    for seed in planned.seeds:
        mine, baseline = from_main(run.accelerator, partial(records_of, folder, [name, plan.baseline], seed))
        seconds = with_cache(mine)["seconds_with_cache"]
        if seconds is None or not baseline.get("seconds"):
            run.say(f"{longer}, seed {seed}: left out, since the time of {name} or {plan.baseline} is not known")
            continue
        steps = steps_in(seconds, baseline)
        run.say(
            f"{longer}, seed {seed}: {name} took {seconds:.1f} s with cache, {1000 * seconds / mine['steps']:.1f} ms a "
            f"step; {plan.baseline} {1000 * baseline['seconds'] / baseline['steps']:.1f} ms a step, so {steps} steps"
        )
        i = next(i for i, t in enumerate(plan.trials) if (t.name, t.seed) == (plan.baseline, seed))
        trial = replace(
            plan.trials[i], name=longer, settings=plan.trials[i].settings | {"student.max_train_steps": steps}
        )
        config = plan.configs[i]
        config = replace(config, student=replace(config.student, max_train_steps=steps))
        planned.equal_time[name] = longer
        runs[trial.key] = loop.prepare(trial, config)
        loop.train(trial, runs[trial.key])


def records_of(folder: Path, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The scores of trials with a seed."""
    return [read_json(folder / Trial(name, seed, {}, {}).key / SCORES) for name in names]


def write(loop: Loop, planned: Planned) -> dict[str, Any]:
    """Writes the comparison of what is finished; of several processes at work in a folder one at a time."""
    from distill.storage import write_json, write_text
    from distill.sweep.loop import alone

    with alone(loop.folder, "comparison"):
        found = build(loop.folder, planned, loop.failures)
        write_json(loop.folder / JSON, found)
        write_text(loop.folder / MARKDOWN, markdown(found) + "\n")
    return found


def printed(folder: Path) -> str:
    """The tables of a comparison, from its files alone.

    Raises:
        ConfigError: there is none.
    """
    found = read_json(folder / JSON)
    try:
        return markdown(found)
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder / JSON}: is not there, or no comparison; give the output folder of one") from None
